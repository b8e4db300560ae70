"""Where compression pays: real files in real runtimes, and answers that follow the numbers."""

import importlib.util
import json
import os
import re
import sys

import keras
import numpy as np
import pytest
from keras import layers
from tests.documents import ROOT, execute, page

from secateur import cli, payoff
from secateur.errors import SecateurError
from secateur.payoff import targets
from secateur.reporting.targets import answers, bounds, quantized, summary, verdicts
from secateur.reporting.targets_table import caption, grid, tables

pytestmark = pytest.mark.skipif(
    os.environ["KERAS_BACKEND"] != "tensorflow", reason="files are the same from every backend"
)

TARGETS = ("litert", "onnx", "tflm", "vela:ethos-u55-128", "vela:ethos-u65-512")
PACKAGES = ("onnx", "onnxruntime", "tf2onnx", "tflite_micro", "ethosu")
complete = pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in PACKAGES),
    reason="needs the extras onnx and micro",
)


def small():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(64, activation="relu", name="hidden"),
            layers.Dense(10, name="classes"),
        ]
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The records of a small model on every target, and the folder of the files."""
    folder = tmp_path_factory.mktemp("targets")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(payoff, "ROUNDS", 6)
        patched.setattr(payoff, "SECONDS", 0.005)
        keras.utils.set_random_seed(0)
        net = small()
        for layer in net.layers:
            if layer.weights:  # a bias of zeros is left out of some files
                layer.bias.assign(np.full(layer.bias.shape, 0.1, np.float32))
        before = [np.array(w) for w in net.get_weights()]
        records = targets(net, "digits", sparsities=(0.9,), out=folder, limit=50)
        for mine, theirs in zip(net.get_weights(), before, strict=True):
            assert np.asarray(mine).tobytes() == theirs.tobytes()
    return records, folder


def column(records, target, format, name):
    """A number without zeros and with 90 %."""
    rows = [r for r in records if (r["target"], r["format"]) == (target, format)]
    assert [r["sparsity"] for r in rows] == ([0.9] if format == "sparse" else [0.0, 0.9])
    return [
        (r["npu"] or {}).get(name.removeprefix("npu.")) if "npu." in name else r[name] for r in rows
    ]


@complete
def test_every_target_has_its_rows_and_none_failed(measured):
    records, folder = measured
    assert tuple(dict.fromkeys(r["target"] for r in records)) == TARGETS
    assert [r["reason"] for r in records] == [None] * len(records)
    assert {r["file"] for r in records} == {file.name for file in folder.iterdir()}
    for record in records:
        assert record["bytes"] == (folder / record["file"]).stat().st_size
    json.dumps(records, allow_nan=False)


@complete
def test_what_zeros_change_and_what_they_do_not(measured):
    records, _ = measured
    for target, format in (("litert", "float32"), ("litert", "int8"), ("tflm", "int8")):
        assert len(set(column(records, target, format, "bytes"))) == 1
    for target, format in (("litert", "float32"), ("litert", "int8"), ("onnx", "onnx")):
        gzipped = column(records, target, format, "gzip_bytes")
        assert gzipped[0] > 2 * gzipped[1]
    (sparse,) = column(records, "litert", "sparse", "bytes")
    assert column(records, "litert", "float32", "bytes")[0] > 2 * sparse
    assert len(set(column(records, "tflm", "int8", "arena_bytes"))) == 1
    for target, memory in ((TARGETS[3], "npu.flash_bytes"), (TARGETS[4], "npu.dram_bytes")):
        stored = column(records, target, "int8", memory)
        assert stored[0] > 2 * stored[1]
        assert all("not silicon" in label for label in column(records, target, "int8", "npu.label"))


@complete
def test_the_zeros_are_those_asked_for(measured):
    """Nine tenths of each kernel: of 72, 18,432 and 640 weights."""
    records, _ = measured
    assert column(records, "litert", "float32", "zeros") == [0, 65 + 16589 + 576]
    assert column(records, "onnx", "onnx", "zeros") == [0, 65 + 16589 + 576]
    assert column(records, "tflm", "int8", "zeros")[1] >= 65 + 16589 + 576  # small ones round to 0


@complete
def test_only_runtimes_of_this_machine_are_timed_and_asked_for_answers(measured):
    records, _ = measured
    for record in records:
        here = record["target"] in ("litert", "onnx")
        assert (record["latency"] is not None) == here
        assert (record["n"] == 50 and 0 <= record["accuracy"] <= 1) if here else not record["n"]
        if here:
            times = record["latency"]["times_us"]
            assert len(times) == 6 and min(times) > 0
            assert record["latency"]["us"] == pytest.approx(np.median(times))
            assert (record["latency"]["again_us"] is not None) == (record["sparsity"] == 0.0)


@complete
def test_tables_and_answers_of_real_records(measured):
    records, _ = measured
    assert len(tables(records)) == len(TARGETS)
    headings, rows = grid(records, TARGETS[3])
    assert headings == ["format", "zeros", "time", "flash"]
    assert [row[1] for row in rows] == ["dense", "90 %"]
    assert "50 test samples" in caption(records)
    told = answers(records)
    assert "file 1.00x of" in told["litert"][0] and "not smaller; gzipped" in told["litert"][0]
    assert any("says nothing" in line or "say nothing" in line for line in told["tflm"])
    words = {(v.target, v.format, v.cost): v.word for v in verdicts(records)}
    assert words["litert", "sparse", "file"] == "smaller"
    assert words["tflm", "int8", "arena"] == "not smaller"
    assert words[TARGETS[3], "int8", "flash"] == words[TARGETS[4], "int8", "DRAM"] == "smaller"
    int8 = {(v.target, v.cost): v.word for v in quantized(records)}
    assert int8["litert", "file"] == int8["tflm", "arena"] == int8["onnx", "gzipped"] == "smaller"
    assert "Ethos-U55-128 (flash)" in summary(records)


# --- answers from made-up rows ----------------------------------------------------------------------


def row(target, format, sparsity, times=None, again=None, **numbers):
    latency = None
    if times is not None:
        latency = {"us": float(np.median(times)), "times_us": times, "again_us": again}
    empty = {"npu": None, "arena_bytes": None, "reason": None, "accuracy": None, "n": None}
    sizes = {"bytes": 1000, "gzip_bytes": 900, "file": "f"}
    named = {"target": target, "format": format, "sparsity": sparsity, "latency": latency}
    return {**empty, **sizes, **named, **numbers}


def timed(factors, again=1.0):
    """LiteRT at 50, 80 and 90 % zeros, each so many times the dense time, round by round."""
    rounds = [10.0, 11.0, 14.0, 10.5, 10.2, 9.8, 10.1, 10.0, 30.0, 10.3, 10.1]
    dense = row("litert", "float32", 0.0, rounds, [again * t for t in rounds])
    zeros = [
        row("litert", "float32", sparsity, [factor * t for t in rounds])
        for sparsity, factor in zip((0.5, 0.8, 0.9), factors, strict=True)
    ]
    return [dense, *zeros]


@pytest.mark.parametrize(
    ("factors", "again", "word"),
    [
        ((0.9, 0.7, 0.6), 1.0, "faster"),
        ((1.0, 0.7, 0.6), 1.0, "faster from 80 % on"),
        ((1.0, 1.0, 0.6), 1.0, "faster from 90 % on"),
        ((1.0, 1.005, 0.995), 1.0, "not faster"),
        ((0.7, 0.7, 1.0), 1.0, "not faster"),  # a gain that more zeros undo is none
        ((1.0, 1.1, 1.3), 1.0, "slower"),
        ((0.95, 0.95, 0.95), 0.94, "not faster"),  # no more than one file differs from itself
        ((0.95, 0.95, 0.92), 0.94, "faster from 90 % on"),
        ((1.05, 1.05, 1.05), 1.06, "not faster"),
    ],
)
def test_the_word_follows_the_times_and_their_noise(factors, again, word):
    records = timed(factors, again)
    verdict = next(v for v in verdicts(records) if v.cost == "time")
    assert verdict.word == word
    assert verdict.sentence().endswith(f": {word}")
    assert ("Faster? LiteRT." in summary(records)) == word.startswith("faster")
    assert verdict.word in answers(records)["litert"][0]


def test_one_disturbed_round_decides_nothing_and_disagreeing_rounds_neither():
    records = timed((1.0, 1.0, 1.0))
    records[-1]["latency"]["times_us"][3] *= 0.1
    assert next(v for v in verdicts(records) if v.cost == "time").word == "not faster"
    records = timed((1.0, 1.0, 0.8))
    slow = records[-1]["latency"]["times_us"]
    slow[::4] = [1.4 * t for t in slow[::4]]  # the median of the ratios is 0.8, three are above 1
    assert next(v for v in verdicts(records) if v.cost == "time").word == "not faster"


@pytest.mark.parametrize(
    ("sizes", "word"),
    [
        ((600, 300, 200), "smaller"),
        ((1000, 1000, 995), "not smaller"),
        ((1000, 700, 600), "smaller from 80 % on"),
        ((1000, 1000, 1100), "larger"),
    ],
)
def test_sizes_are_exact(sizes, word):
    records = timed((1.0, 1.0, 1.0))
    for record, size in zip(records[1:], sizes, strict=True):
        record["bytes"] = size
    assert next(v for v in verdicts(records) if v.cost == "file").word == word


def npu(seconds, flash):
    return {"seconds": seconds, "flash_bytes": flash, "dram_bytes": 0, "label": "an estimate"}


def test_an_npu_that_saves_memory_alone_is_told_from_one_that_saves_time():
    target = "vela:ethos-u55-128"
    for seconds, told in ((5e-4, "50 % of the time is gone at 80 % zeros"), (1e-3, "memory alone")):
        rows = [
            row(target, "int8", 0.0, npu=npu(1e-3, 9000)),
            row(target, "int8", 0.8, npu=npu(seconds, 3000)),
        ]
        assert any(told in line for line in answers(rows)[target])
        assert ("Faster? nowhere" in summary(rows)) == (seconds == 1e-3)


def test_a_missing_row_is_told_with_its_reason_and_the_others_are_compared():
    rows = timed((0.5, 0.5, 0.5))
    rows[2] = row("litert", "float32", 0.8, reason="it broke; fix: mend it", bytes=None)
    rows.append(row("tflm", "int8", 0.0, reason="tflite-micro is not installed", bytes=None))
    told = answers(rows)
    assert "50 / 90 % zeros" in told["litert"][0]
    assert told["litert"][-1] == "not measured (float32 80 %): it broke; fix: mend it"
    assert told["tflm"] == ["not measured: tflite-micro is not installed"]
    assert [table.title for table in tables(rows)] == ["LiteRT on this processor"]
    rows[0] = row("litert", "float32", 0.0, reason="it broke", bytes=None)
    assert verdicts(rows) == []  # nothing to compare with
    assert "Is the pruned model smaller? nowhere" in summary(rows)


def test_bounds_hold_the_median():
    """95 % of the time or more, by simulation; and they leave out what is far from it."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        found = bounds(list(rng.standard_cauchy(11)))
        assert found.low <= found.value <= found.high
        hits += found.low <= 0.0 <= found.high
    assert hits >= 950
    assert bounds([1.0] * 9 + [0.0, 9.0]).low == 1.0


# --- what can go wrong ------------------------------------------------------------------------------


def test_a_missing_runtime_is_a_row(monkeypatch):
    """`None` in sys.modules is what a package that is not installed looks like."""
    for package in ("ethosu", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(payoff, "ROUNDS", 1)
    runtimes = ("litert", "onnx", "vela:ethos-u55-128")
    net = keras.Sequential([keras.Input((8, 8)), layers.Flatten(), layers.Dense(10)])
    records = targets(net, "digits", sparsities=(0.5,), runtimes=runtimes, limit=10)
    reasons = {r["target"]: r["reason"] for r in records}
    assert reasons["litert"] is None
    assert "secateur[onnx]" in reasons["onnx"]
    assert "secateur[micro]" in reasons["vela:ethos-u55-128"]
    with pytest.raises(SecateurError, match="no target could be measured: onnxruntime is not"):
        targets(net, "digits", sparsities=(0.5,), runtimes=("onnx",))


def test_a_format_that_fails_is_lost_alone():
    """A softplus has no integer kernel: no int8 file, but the float file is there."""
    net = keras.Sequential(
        [keras.Input((64,)), layers.Dense(16, activation="softplus"), layers.Dense(10)]
    )
    runtimes = ("litert", "vela:ethos-u55-128")
    records = targets(net, "digits", sparsities=(0.5,), runtimes=runtimes, limit=10)
    reasons = {(r["target"], r["format"]): r["reason"] for r in records}
    assert reasons["litert", "float32"] is None and reasons["litert", "sparse"] is None
    assert "in float received" in reasons["litert", "int8"]
    assert reasons["vela:ethos-u55-128", "int8"] == reasons["litert", "int8"]


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        ("net.tflite", {}, "a finished file is measured as it is, never pruned.*secateur measure"),
        ("net.onnx", {}, "expected a .keras or .h5 model"),
        ("gone.keras", {}, "not a file"),
        (None, {"sparsities": (80,)}, "fix: 0.8 for 80 %"),
        (None, {"sparsities": (0.0, 0.5)}, "stands beside the others anyway"),
        (None, {"sparsities": ()}, "one or more of each"),
        (None, {"runtimes": ()}, "one or more of each"),
        (None, {"runtimes": ("keras",)}, "expected where files run"),
        (None, {"runtimes": ("vela:ethos-u55-12",)}, "did you mean 'ethos-u55-128'"),
        (None, {"limit": 0}, "1 sample or more"),
        (None, {"data": "digit"}, "digits"),
    ],
)
def test_bad_input_is_one_error(model, words, message):
    given = {"data": "digits", **words}
    with pytest.raises(SecateurError, match=message) as caught:
        targets(model or small(), **given)
    assert "\n" not in str(caught.value)


def test_a_pruned_model_is_no_model_to_compare_with():
    net = small()
    hidden = net.get_layer("hidden")
    hidden.kernel.assign(np.where(np.arange(64) < 40, 0, hidden.kernel))
    with pytest.raises(SecateurError, match="60.2 % zeros in its kernels.*dense model"):
        targets(net, "digits", sparsities=(0.5,))


def test_ctrl_c_leaves_the_model_and_no_folder(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    net = small()
    before = [np.array(w) for w in net.get_weights()]

    def stop(label, done, total, text):
        if label == "measured":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        targets(net, "digits", sparsities=(0.5,), runtimes=("litert",), progress=stop)
    assert list(tmp_path.iterdir()) == []
    for mine, theirs in zip(net.get_weights(), before, strict=True):
        assert np.asarray(mine).tobytes() == theirs.tobytes()


def test_every_file_has_its_turn_in_every_round(monkeypatch):
    monkeypatch.setattr(payoff, "ROUNDS", 4)
    order = list(payoff._rounds(["a", "b", "c", "d", "e"]))
    rounds = [order[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(one) == ["a", "b", "c", "d", "e"] for one in rounds)
    assert len(set(map(tuple, rounds))) > 1


# --- the command ------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """`secateur targets` in this process: exit code, standard output and error output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(payoff, "ROUNDS", 2)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["secateur", "targets", *map(str, words)])
        for console in (cli._out, cli._err):
            monkeypatch.setattr(console, "_width", 160)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), *capsys.readouterr()

    return call


def test_the_command_end_to_end_on_digits(command, tmp_path):
    net = keras.Sequential([keras.Input((64,)), layers.Dense(64), layers.Dense(10)])
    net.save(tmp_path / "net.keras")
    usual = ("net.keras", "--data", "digits", "--sparsity", "0.8", "--target", "litert")
    code, printed, _ = command(*usual, "--out", "files")
    assert code == 0
    flat = " ".join(printed.split())
    found = json.loads((tmp_path / "files" / "targets.json").read_text())
    assert found["summary"] in flat
    assert found["answers"]["litert"][0] in flat
    assert "no training afterwards" in flat
    assert (tmp_path / "files" / "zeros-80-int8.tflite").is_file()
    assert found["data"]["name"] == "digits" and len(found["records"]) == 5
    code, printed, told = command(*usual, "--json")
    assert code == 0 and "digits: test: 360 samples held out" in told
    assert [r["sparsity"] for r in json.loads(printed)["records"]] == [0.0, 0.8, 0.8, 0.0, 0.8]


def test_the_command_tells_in_one_line_what_is_wrong(command, tmp_path):
    small().save(tmp_path / "net.keras")
    (tmp_path / "net.tflite").write_bytes(b"not read")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    for words, message in (
        (("net.keras",), "no --data received"),
        (("net.tflite", "--data", "digits"), "never pruned"),
        (("net.keras", "--data", "digits", "--sparsity", "half"), "expected numbers with commas"),
        (("net.keras", "--data", "digits", "--target", "lite"), "unknown runtime"),
        (("net.keras", "--data", "digits", "--out", "run"), "holds a run"),
        (("gone.keras", "--data", "digits"), "not a file"),
    ):
        code, _, told = command(*words)
        assert code == 1
        assert told.strip().startswith("error:") and told.strip().count("\n") == 0
        assert message in told


# --- the page ---------------------------------------------------------------------------------------


@complete
def test_the_code_of_the_page_prints_what_it_shows(tmp_path):
    count = 0
    for snippet, printed in execute("docs/targets.md", tmp_path):
        assert printed.rstrip() == (snippet.shown or "").rstrip(), f"line {snippet.line}"
        count += 1
    assert count == 1
    for link in re.findall(r"\]\(([^)#\s]+)\)", page("docs/targets.md")):
        assert (ROOT / "docs" / link).is_file(), link
