"""docs/results.md is what the committed records say, and the statistics behind it are right."""

import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from tests.reporting.records_example import example_runs

from secateur.errors import SecateurError

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
RECORDS = BENCHMARKS / "records"

pytestmark = pytest.mark.skipif(
    os.environ["KERAS_BACKEND"] != "tensorflow", reason="the same on every backend"
)


sys.path.insert(0, str(BENCHMARKS))  # the scripts find each other there, as when they are run


def load(name: str):
    """A script of benchmarks/, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


results = load("results")
step_overhead = load("step_overhead")


def run_script(name: str, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *map(str, arguments)],
        # TensorFlow's chatter would stand before our one line, were it ever started here.
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "TF_CPP_MIN_LOG_LEVEL": "0"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.fixture
def lab_records(tmp_path):
    """Records of a made-up lab of three seeds, collected from Runs, and the anchors."""
    for run in example_runs(3):
        folder = tmp_path / "out" / f"seed-{run['seed']}"
        folder.mkdir(parents=True)
        run["command"] = "secateur run lab --data mnist --seeds 3 --out some/where --overwrite"
        (folder / "run.json").write_text(json.dumps(run))
    records = tmp_path / "records"
    records.mkdir()
    shutil.copy(RECORDS / "anchors.json", records)
    results.collect(tmp_path / "out", records)
    return records


def overhead_record(median: float = 1.02) -> dict:
    row = {
        "model": "challenge-mlp", "batch": 64, "side": "secateur", "backend": "tensorflow",
        "every": 100, "pairs": 12, "ratio": {"median": median, "low": 1.01, "high": 1.2},
        "update_ms": 31.4, "plain_step_ms": 9.8, "threads": 2, "jit": False, "onednn": "default",
        "load": [0.1, 2.0], "versions": {"keras": "3.15.1"}, "ratios": [median],
    }  # fmt: skip
    machine = {
        "cpu": "a processor", "cores": 2, "system": "Linux x86_64", "python": "3.11.7",
        "instructions": ["avx2"],
    }  # fmt: skip
    return {
        "kind": "step-overhead", "created": "2026-03-01T00:00:00+00:00", "quick": False,
        "seconds": 200, "machine": machine, "rows": [row],
    }  # fmt: skip


# --- the committed page -----------------------------------------------------------------------------


def test_the_page_is_what_the_committed_records_say():
    done = run_script("results.py", "--check")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def committed():
    return results.page(RECORDS)


@pytest.mark.parametrize("name", sorted(file.name for file in RECORDS.glob("*.json")))
def test_one_changed_number_in_any_committed_record_is_noticed(tmp_path, name, committed):
    records = tmp_path / "records"
    shutil.copytree(RECORDS, records)
    record = json.loads((records / name).read_text())
    change_one_number(name, record)
    (records / name).write_text(json.dumps(record))
    assert results.page(records) != committed


def test_a_page_that_differs_is_one_line_and_an_exit_code(tmp_path, committed):
    page = tmp_path / "results.md"
    page.write_text(committed.replace("%", "percent", 1), encoding="utf-8")
    done = run_script("results.py", "--check", "--page", page)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert "make results" in done.stderr


def change_one_number(name: str, record: dict) -> None:
    if name.startswith("lab-seed"):
        record["rows"][0]["bytes"] += 300
    elif name == "anchors.json":
        record["lab"]["rows"]["pruned-dynamic"]["gzip_bytes"] += 1
        record["overhead"]["rows"]["lab-cnn-32"]["ratio"] = "9.99"
        record["targets"]["help_seconds"] = 9
        record["seedlings"]["source"] = "nowhere"
    elif name == "qat-lab.json":
        for row in record["runs"][0]["rows"]:
            row["accuracy"] += 0.1
    elif name == "qat-sizes.json":
        record["runs"][0]["accuracy"] += 0.1
    elif name == "qat-networks.json":
        record["runs"][0]["files"][0]["reference"]["agreement"] -= 0.01
    elif name == "qat-onnx.json":
        record["runs"][0]["levels"]["default"]["agreement"] -= 0.01
    elif name.startswith("challenge-"):
        record["points"][0]["test"]["loss"] += 0.1
    elif "tuning" in name or "-seed-" in name:
        record["runs"][0]["accuracy"] += 0.01
    elif name == "vgg16-memory.json":
        record["sides"][0]["parameters"]["during"] += 1
    elif name.startswith("targets-"):
        record["parameters"] += 1
    elif name in ("vgg16-conversion.json", "mlperf-tiny.json"):
        record["rows"][0]["bytes"] += 100_000
    elif name in ("step-overhead.json", "pattern-overhead.json", "qat-overhead.json"):
        record["rows"][0]["ratio"]["median"] += 0.01
    elif name == "one-shot-speed.json":
        record["rows"][0]["ratio_cpu"]["median"] += 0.1
    else:
        record["rows"][0]["seconds"]["median"] += 0.01


def test_a_missing_page_is_one_line(tmp_path):
    done = run_script("results.py", "--check", "--page", tmp_path / "none.md")
    assert done.returncode == 1
    assert done.stderr == "error: none.md is missing; fix: make results\n"


def test_committed_records_are_of_full_runs_and_name_no_place():
    for file in RECORDS.glob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert '"quick": true' not in text, file.name
        assert "/tmp" not in text and "/home" not in text, file.name


def test_the_intervals_in_the_committed_record_follow_from_its_ratios():
    file = RECORDS / "step-overhead.json"
    if not file.exists():
        pytest.skip("not measured yet")
    for row in json.loads(file.read_text(encoding="utf-8"))["rows"]:
        assert row["ratio"] == step_overhead.interval(row["ratios"])
        assert row["pairs"] == len(row["ratios"])


# --- what the page says -----------------------------------------------------------------------------


def test_the_lab_section_holds_means_zeros_anchors_and_targets(lab_records):
    text = results.page(lab_records)
    row = next(line for line in text.splitlines() if line.startswith("| `pruned-dynamic`"))
    runs = example_runs(3)
    gzips = [r["gzip_bytes"] for run in runs for r in run["rows"] if r["row"] == "pruned-dynamic"]
    assert f"{round(statistics.fmean(gzips)):,}" in row.split("|")[3]
    assert [cell.strip() for cell in row.split("|")[7:10]] == ["24,472", "8,133", "96.50 %"]
    assert "| `conv2d/kernel` | 86 of 108 | 86 of 108 | 86 of 108 |" in text
    assert "| `dense/kernel` | 16,224 of 20,280 |" in text
    assert "exactly 86 of 108, every seed | 86 of 108 | yes |" in text


def test_zeros_that_are_one_off_miss_the_target(lab_records):
    file = lab_records / "lab-seed-1.json"
    run = json.loads(file.read_text())
    for stage in run["stages"]:
        for weight in stage["weights"]:
            weight["zeros"] -= weight["path"] == "conv2d/kernel"
    file.write_text(json.dumps(run))
    assert "every seed | 86 of 108 / 85 of 108 | **no** |" in results.page(lab_records)


def test_a_missing_record_is_said_to_be_missing_with_what_makes_it(lab_records):
    (lab_records / "lab-seed-2.json").unlink()
    text = results.page(lab_records)
    assert "`benchmarks/records/lab-seed-2.json` is missing. It is made by `secateur run" in text
    assert "step-overhead.json` is missing" in text and "command-start.json` is missing" in text
    assert "Means over seeds 0, 1," in text


@pytest.mark.parametrize(
    ("median", "high", "verdict"),
    [(1.02, 1.05, "yes"), (1.02, 1.2, "the median only"), (1.09, 1.2, "**no**")],
)
def test_the_overhead_verdict_tells_median_from_interval(lab_records, median, high, verdict):
    record = overhead_record(median)
    record["rows"][0]["ratio"]["high"] = high
    (lab_records / "step-overhead.json").write_text(json.dumps(record))
    text = results.page(lab_records)
    row = next(line for line in text.splitlines() if line.startswith("| challenge-mlp, batch 64"))
    assert row.split("|")[-2].strip() == verdict
    assert "at most 40 ms | 31.4 ms | yes |" in text


def test_a_ratio_above_the_bar_is_named(lab_records):
    (lab_records / "step-overhead.json").write_text(json.dumps(overhead_record(1.17)))
    text = results.page(lab_records)
    assert "Above 1.10, and explained in `benchmarks/README.md`: challenge-mlp batch 64" in text


def test_collecting_trims_and_forgets_places(lab_records, tmp_path):
    run = json.loads((lab_records / "lab-seed-0.json").read_text())
    assert run["command"] == "secateur run lab --data mnist --seeds 3"
    weights = [weight for stage in run["stages"] for weight in stage["weights"]]
    assert weights and not any("histogram" in weight or "first" in weight for weight in weights)
    assert len((lab_records / "lab-seed-0.json").read_bytes()) < 40_000


def test_collecting_refuses_a_record_that_names_a_place(lab_records, tmp_path):
    file = tmp_path / "out" / "seed-0" / "run.json"
    run = json.loads(file.read_text())
    run["rows"][0]["path"] = "/somewhere/on/this/machine.h5"
    file.write_text(json.dumps(run))
    with pytest.raises(SecateurError, match="names a place on this machine"):
        results.collect(tmp_path / "out", lab_records)


# --- the statistics behind the overhead ---------------------------------------------------------------


def test_the_interval_holds_the_median_and_repeats_itself():
    values = [1.0 + 0.01 * number for number in range(21)]
    found = step_overhead.interval(values)
    assert found == step_overhead.interval(values)
    assert found["median"] == pytest.approx(1.10)
    assert 1.02 < found["low"] < found["median"] < found["high"] < 1.18


def test_the_interval_of_equal_values_is_that_value():
    assert step_overhead.interval([1.25] * 7) == {"median": 1.25, "low": 1.25, "high": 1.25}


@pytest.mark.parametrize("where", [0, 99])
def test_the_update_is_found_wherever_in_the_hundred_steps_it_falls(where):
    pairs = [[0.010 + 0.0001 * (pair % 3)] * 100 for pair in range(9)]
    for steps in pairs:
        steps[where] += 0.040
    pairs[4][50] += 0.5  # one disturbance elsewhere is no update
    assert statistics.median(step_overhead.update_times(pairs)) == pytest.approx(0.040)


@pytest.mark.slow
def test_a_quick_run_of_the_overhead_benchmark_writes_a_record_the_page_can_show(
    lab_records, tmp_path
):
    out = lab_records / "step-overhead.json"
    done = run_script("step_overhead.py", "--quick", "--backends", "tensorflow", "--out", out)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["model"], row["side"], row["pairs"], row["every"]) == ("lab-cnn", "secateur", 4, 20)
    assert row["ratio"] == step_overhead.interval(row["ratios"])
    assert "these figures mean nothing" in results.page(lab_records)


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_benchmark_with_its_last_words(tmp_path):
    peer = "import sys; sys.exit('no tfmot here')"
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{peer}"\n')
    fake.chmod(0o755)
    done = run_script("step_overhead.py", "--quick", "--backends", "tensorflow", "--peer", fake)
    assert done.returncode == 1
    assert "no tfmot here" in done.stderr and "(tfmot on tensorflow) died" in done.stderr
