"""The sections on ways of pruning: their numbers and sentences follow from the records, both ways."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # the scripts find each other there, as when they are run

pytestmark = pytest.mark.skipif(
    os.environ["KERAS_BACKEND"] != "tensorflow", reason="the same on every backend"
)


def load(name: str):
    """A script of benchmarks/, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


paired = load("paired")
recording = load("recording")
accuracy = load("results_accuracy")
results = load("results")

N = 2000
HEAD = {
    "created": "2026-03-01T00:00:00+00:00",
    "quick": False,
    "n": N,
    "threads": 1,
    "versions": {"keras": "3.15.1"},
    "machine": {
        "cpu": "a processor", "cores": 2, "system": "Linux x86_64", "python": "3.11.7",
        "instructions": ["avx2"],
    },
}  # fmt: skip
BUDGET = {
    "dense": 2, "extra": 3, "batch": 128, "sparsities": [0.9], "ways": ["one-shot", "gradual"],
    "allocations": ["uniform", "lamp"],
}  # fmt: skip


def scored(accuracy: float, seed: int) -> dict:
    """A result of that accuracy; the first images are the easy ones, a few differ by seed."""
    right = np.arange(N) < round(accuracy * N)
    right[np.random.default_rng(seed).integers(0, N, 6)] ^= True
    return {"accuracy": round(float(right.mean()), 6), "right": recording.pack(right)}


def mnist_record(seed: int, good: str = "gradual") -> dict:
    runs = [("dense", "", 0.0, 0.96), ("control", "", 0.0, 0.98)]
    runs += [
        (way, allocation, 0.9, (0.97 if way == good else 0.93) + (allocation == "lamp") * 0.001)
        for way in BUDGET["ways"]
        for allocation in BUDGET["allocations"]
    ]
    return {
        **HEAD, "seed": seed, "budgets": {"lenet-300-100": BUDGET},
        "runs": [
            {"network": "lenet-300-100", "way": way, "allocation": allocation, "seconds": 60.0,
             "sparsity": sparsity, "choice": {"rate": 0.004}, **scored(score, seed)}
            for way, allocation, sparsity, score in runs
        ],
    }  # fmt: skip


SCORES = {
    ("scratch", ""): 0.80, ("dense", ""): 0.81, ("control, frozen", ""): 0.81,
    ("control, frozen, re-estimate", ""): 0.81, ("frozen, keep", "all"): 0.60,
    ("frozen, re-estimate", "all"): 0.78, ("frozen, keep", "large"): 0.70,
    ("frozen, re-estimate", "large"): 0.79, ("frozen, head after", "large"): 0.805,
    ("control, unfrozen", ""): 0.83, ("control, unfrozen, re-estimate", ""): 0.83,
    ("unfrozen, keep", "large"): 0.825, ("unfrozen, re-estimate", "large"): 0.82,
}  # fmt: skip


def seedlings_record(seed: int, scores: dict) -> dict:
    phase = {"epochs": 4, "rate": 0.001}
    return {
        **HEAD, "seed": seed, "trained on": 2103,
        "budget": {"scratch": phase, "head": phase, "frozen": phase, "unfrozen": phase,
                   "sparsity": 0.4, "batch": 32, "alpha": 0.25, "end": 0.4},
        "chosen": {"after": "large", "unfrozen": "large", "rate": 0.003},
        "runs": [
            {"way": way, "select": select, "rate": None, "seconds": 9.0, "zeros": 40,
             "kernels": 100, **scored(scores.get((way, select), score), seed)}
            for (way, select), score in SCORES.items()
        ],
    }  # fmt: skip


@pytest.fixture
def records(tmp_path):
    """A folder that holds the anchors only."""
    shutil.copy(BENCHMARKS / "records" / "anchors.json", tmp_path)
    return tmp_path


def anchors() -> dict:
    return json.loads((BENCHMARKS / "records" / "anchors.json").read_text(encoding="utf-8"))


def mnist(records: Path, good: str = "gradual", seeds: tuple = (0, 1, 2)) -> str:
    for seed in seeds:
        file = records / f"mnist-sparsity-seed-{seed}.json"
        file.write_text(json.dumps(mnist_record(seed, good)))
    return "\n".join(accuracy.mnist_sparsity(records, anchors()))


def seedlings(records: Path, scores: dict | None = None, seeds: tuple = (0, 1, 2, 3, 4)) -> str:
    for seed in seeds:
        file = records / f"seedlings-seed-{seed}.json"
        file.write_text(json.dumps(seedlings_record(seed, scores or {})))
    return "\n".join(accuracy.seedlings(records, anchors()))


# --- bits and intervals ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 8, 584, 10_000])
def test_which_images_were_right_survives_being_text(n):
    right = np.random.default_rng(n).random(n) < 0.9
    assert np.array_equal(recording.unpack(recording.pack(right), n), right)


def test_a_difference_of_equals_is_nothing_and_one_that_is_sure_leaves_zero_out():
    rows = [np.random.default_rng(seed).random(500) < 0.9 for seed in range(3)]
    assert not paired.difference(rows, rows).clear
    worse = [row & (np.arange(500) % 5 > 0) for row in rows]
    gap = paired.difference(worse, rows)
    assert gap.clear and gap.low < gap.mean < gap.high < 0
    back = paired.difference(rows, worse)
    assert (back.mean, back.low, back.high) == (-gap.mean, -gap.high, -gap.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    source, hits = np.random.default_rng(0), 0
    for _ in range(300):
        images, seeds = source.normal(0, 0.3, (1, 80)), source.normal(0, 0.05, (5, 1))
        gap = paired.difference(
            0.1 + images + seeds + source.normal(0, 0.1, (5, 80)), np.zeros((5, 80))
        )
        hits += gap.low <= 10 <= gap.high
    assert 0.92 <= hits / 300 <= 1.0


def test_seeds_that_disagree_widen_the_interval():
    zero = np.zeros((5, 100))
    calm = paired.difference(np.full((5, 100), 0.1), zero)
    wild = paired.difference(np.repeat([[0.0], [0.2], [0.1], [0.3], [-0.1]], 100, axis=1), zero)
    assert wild.mean == pytest.approx(calm.mean) and wild.high - wild.low > calm.high - calm.low


def test_one_seed_has_no_interval():
    with pytest.raises(ValueError, match="two or more"):
        paired.difference([np.ones(4)], [np.zeros(4)])


# --- MNIST ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("good", "bad"), [("gradual", "one-shot"), ("one-shot", "gradual")])
def test_the_winner_is_whoever_the_records_say(records, good, bad):
    text = mnist(records, good)
    assert f"At 90 % zeros the best mean of 4 is {good} with LAMP" in text
    ahead = re.search(rf"Ways, all with LAMP: {good} is ahead of {bad} by ([\d.]+) ", text)
    assert float(ahead[1]) == pytest.approx(4.0, abs=0.1)
    row = next(line for line in text.splitlines() if line.startswith(f"| 90 % | {good}"))
    assert "| 96.70 % (" in row and "| 96.80 % (" in row


def test_a_difference_within_chance_is_not_called_a_win(records):
    for seed in range(3):
        record = mnist_record(seed)
        for run in record["runs"]:
            if run["sparsity"]:
                run.update(scored(0.97, 10 * seed + len(run["way"])))
        file = records / f"mnist-sparsity-seed-{seed}.json"
        file.write_text(json.dumps(record))
    text = "\n".join(accuracy.mnist_sparsity(records, anchors()))
    ways = text.split("Ways, all with ")[1].split(" Allocations,")[0]
    assert "has the highest mean, but is not told apart from" in ways


def test_records_that_are_missing_are_said_to_be_and_nothing_is_compared_without_pairs(records):
    text = mnist(records, seeds=(1,))
    assert "`benchmarks/records/mnist-sparsity-seed-0.json` is missing" in text
    assert "mnist-sparsity-seed-2.json` is missing" in text
    assert "not every seed is there, nothing is compared" in text and "is ahead of" not in text
    assert "mnist-sparsity-tuning-10.json` is missing" in text


def test_a_run_that_one_seed_lacks_is_shown_as_of_fewer_seeds(records):
    mnist(records)
    file = records / "mnist-sparsity-seed-2.json"
    record = json.loads(file.read_text())
    record["runs"].pop()
    file.write_text(json.dumps(record))
    text = "\n".join(accuracy.mnist_sparsity(records, anchors()))
    assert ", 2 seeds)" in text and "nothing is compared" in text


# --- seedlings ------------------------------------------------------------------------------------


def test_what_statistics_give_back_and_what_is_left_is_computed(records):
    text = seedlings(records)
    back = re.findall(r"re-estimating them gives back ([\d.]+)", text)
    assert [float(b) for b in back] == pytest.approx([18.0, 9.0], abs=0.2)
    row = next(line for line in text.splitlines() if line.startswith("| `frozen, keep`"))
    assert "| every kernel |" in row and "| 40.00 % |" in row
    assert "| -2" in row and "against `control, frozen`" in row
    row = next(line for line in text.splitlines() if line.startswith("| `unfrozen, keep`: at most"))
    assert row.endswith("| by the middle only |") or row.endswith("| yes |")


def test_the_verdict_and_the_sentence_flip_with_the_records(records):
    text = seedlings(
        records, {("unfrozen, keep", "large"): 0.75, ("frozen, re-estimate", "all"): 0.55}
    )
    assert re.search(r"re-estimating them takes another (4\.9|5\.)", text)
    row = next(line for line in text.splitlines() if line.startswith("| `unfrozen, keep`: at most"))
    assert row.endswith("| **no** |")


def test_statistics_that_change_nothing_are_said_to(records):
    text = seedlings(records, {("frozen, re-estimate", "large"): 0.7005})
    assert "re-estimating them is not told apart from keeping them (+0.0" in text


def test_missing_seedling_records_are_named(records):
    text = seedlings(records, seeds=(0, 1))
    assert all(f"seedlings-seed-{seed}.json` is missing" in text for seed in (2, 3, 4))
    assert "seedlings-tuning-10.json` is missing" in text
    assert "means over seeds 0, 1" in text


# --- VGG16 and patterns ---------------------------------------------------------------------------


def vgg_record(during: int = 27_566_412, update: float = 0.2, ours_seconds: float = 3.0) -> dict:
    def phase(seconds: float, mib: float) -> dict:
        return {"seconds": seconds, "held_mib": 900.0, "peak_mib": mib, "kept_mib": mib}

    def side(name: str, during: int, phases: dict) -> dict:
        return {
            "side": name, "rounds": 3, "kernel": 12_845_056, "kernels": 27_560_000,
            "parameters": {"before": 27_566_412, "during": during, "after": 27_566_412},
            "zeros": 20_670_000, "phases": phases, "load": [0.5, 1.5],
            "versions": {"keras": "3.15.1"},
            "update": {"median": update, "low": 0.1, "high": update + 0.1},
        }  # fmt: skip

    return {
        **HEAD, "kind": "vgg16-memory",
        "sides": [
            side("plain", 27_566_412, {"step": phase(2.0, 400.0)}),
            side("at once", during, {"prune": phase(1.0, 200.0)}),
            side("callback", during, {"step": phase(ours_seconds, 500.0)}),
            side("plain, tf_keras", 27_566_412, {"step": phase(2.0, 400.0)}),
            side("wrapper", 55_128_112, {"wrap": phase(6.5, 300.0), "step": phase(9.0, 800.0)}),
        ],
    }  # fmt: skip


def page(records: Path, **given: dict) -> str:
    for name, record in given.items():
        (records / f"{name.replace('_', '-')}.json").write_text(json.dumps(record))
    return results.page(records)


def test_vgg16_says_parameters_memory_and_time_of_both_sides(records):
    text = page(records, vgg16_memory=vgg_record())
    assert "| tfmot, wrappers | 27,566,412 | 55,128,112 | 27,566,412 |" in text
    assert "parameters before, during and after | 27,566,412 | yes |" in text
    assert "The callback takes less time (0.19 of the wrappers') and less memory" in text


def test_vgg16_verdicts_flip(records):
    text = page(records, vgg16_memory=vgg_record(during=27_566_413, update=0.6, ours_seconds=30))
    assert "27,566,412, 27,566,413 | **no** |" in text
    assert "0.600 s (0.100..0.700) | **no** |" in text or "/ 0.600 s" in text
    assert "The callback takes more time" in text


def pattern_record(units: float) -> dict:
    def row(pattern: str, median: float) -> dict:
        ratio = {"median": median, "low": median - 0.02, "high": median + 0.02}
        return {
            "pattern": pattern, "backend": "torch", "model": "challenge-mlp", "batch": 64,
            "pairs": 10, "ratio": ratio, "update_ms": 20.0, "plain_step_ms": 9.0, "threads": 2,
            "load": [0.2, 1.9], "versions": {"keras": "3.15.1"},
        }  # fmt: skip

    return {**HEAD, "rows": [row("unstructured", 1.2), row("units", units), row("2:4", 1.21)]}


@pytest.mark.parametrize(("units", "word"), [(1.1, "cheaper"), (1.3, "dearer"), (1.22, "not told")])
def test_a_pattern_is_dearer_or_cheaper_only_beyond_the_intervals(records, units, word):
    text = page(records, pattern_overhead=pattern_record(units))
    line = next(line for line in text.splitlines() if line.startswith("On torch unstructured"))
    found = next(part for part in line.split(";") if f"units ({units:.3f})" in part)
    assert word in found


def test_patterns_whose_plain_steps_differ_are_not_compared(records):
    record = pattern_record(1.3)
    record["rows"][1]["plain_step_ms"] = 12.0
    text = page(records, pattern_overhead=record)
    line = next(line for line in text.splitlines() if line.startswith("On torch unstructured"))
    assert "take 9.0 to 12.0 ms: the patterns are not compared" in line and "dearer" not in line


def test_sections_without_records_say_so(records):
    text = results.page(records)
    for name in ("mnist-sparsity-seed-0", "seedlings-seed-4", "vgg16-memory", "pattern-overhead"):
        assert f"`benchmarks/records/{name}.json` is missing. It is made by `python" in text


# --- the scripts ----------------------------------------------------------------------------------


def test_a_record_begun_with_other_settings_is_refused(tmp_path):
    file = tmp_path / "record.json"
    recording.save(file, {**HEAD, "seed": 0, "runs": []})
    assert recording.load(file, {"seed": 0})["runs"] == []
    with pytest.raises(SystemExit, match=r"record\.json was begun with another seed"):
        recording.load(file, {"seed": 1})


def test_rounds_of_rewinding_fill_the_budget():
    mnist_sparsity = load("mnist_sparsity")
    for network, budget in mnist_sparsity.BUDGETS.items():
        assert budget.dense + budget.extra <= 20
        choices = mnist_sparsity.TRIED[network].get("rewinding", [])
        for choice in choices:
            epochs = budget.extra // choice["rounds"] + choice["to"]
            assert choice["rounds"] <= 5
            assert choice["rounds"] * (epochs - choice["to"]) == budget.extra


@pytest.mark.slow
def test_a_quick_run_of_the_pattern_benchmark_writes_a_record_the_page_can_show(records):
    out = records / "pattern-overhead.json"
    script = BENCHMARKS / "pattern_overhead.py"
    options = ["--quick", "--backends", "tensorflow", "--patterns", "unstructured,2:4"]
    subprocess.run(
        [sys.executable, str(script), *options, "--out", str(out)],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent / "src")},
        check=True,
        capture_output=True,
        timeout=500,
    )
    patterns = [row["pattern"] for row in json.loads(out.read_text(encoding="utf-8"))["rows"]]
    assert patterns == ["unstructured", "2:4"]
    text = results.page(records)
    assert "On tensorflow unstructured zeros take" in text and "these figures mean nothing" in text
