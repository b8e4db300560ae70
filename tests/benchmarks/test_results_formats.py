"""The sections on formats say what their records say, and flip with them."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

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


formats = load("results_formats")
recording = load("recording")

ANCHORS = json.loads((BENCHMARKS / "records" / "anchors.json").read_text(encoding="utf-8"))
N = 10_000
HEAD = {
    "created": "2026-03-01T00:00:00+00:00", "quick": False, "threads": 1,
    "versions": {"keras": "3.15.1"},
    "machine": {"cpu": "a processor", "cores": 2, "system": "Linux x86_64", "python": "3.11.7"},
}  # fmt: skip


def row(text: str, begin: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(begin))


# --- the matrix -----------------------------------------------------------------------------------


def matrix(
    folder: Path,
    size: int = 23_504,
    right: int = 9_595,
    seeds: tuple = (0, 1, 2),
    last: int | None = None,
) -> str:
    """The section of records in which float32 has 9,600 images right, int8 `right` of seed 2.

    last: bytes of the files of seed 2, where they are not `size`.
    """
    for seed in seeds:
        runs = [
            {
                "network": "lab-cnn", "stage": "dense", "format": name,
                "bytes": size if seed < 2 or last is None else last,
                "gzip_bytes": 9, "stripped_bytes": 8, "stripped_gzip_bytes": 7,
                "accuracy": count / N, "agreement": 0.999, "latency_us": 8.0,
                "right": recording.pack(np.arange(N) < count),
            }
            for name, count in (("float32", 9_600), ("int8", right if seed == 2 else 9_595))
        ]  # fmt: skip
        record = {**HEAD, "seed": seed, "n": N, "sparsity": 0.8, "runs": runs}
        (folder / f"format-matrix-seed-{seed}.json").write_text(json.dumps(record))
    return "\n".join(formats.matrix(folder, ANCHORS))


def test_the_matrix_holds_means_differences_and_agreement(tmp_path):
    found = row(matrix(tmp_path), "| `dense-int8`").split("|")
    assert found[2].strip() == "23,504" and found[6].strip() == "95.95 %"
    assert found[7].strip().startswith("-0.05 (") and found[8].strip() == "99.90 %"


@pytest.mark.parametrize(
    ("right", "word"), [(9_595, "yes"), (9_585, "the mean only"), (9_500, "**no**")]
)
def test_accuracy_is_judged_by_the_mean_and_by_every_seed(tmp_path, right, word):
    found = row(matrix(tmp_path, right=right), "| lab-cnn, `int8`: accuracy at most 0.1")
    assert found.endswith(f"| {word} |")


@pytest.mark.parametrize(("size", "word"), [(25_056, "yes"), (25_057, "**no**")])
def test_one_byte_too_many_misses_the_target(tmp_path, size, word):
    assert row(matrix(tmp_path, size), "| lab CNN, `int8`: at most").endswith(f"| {word} |")


def test_a_single_seed_that_is_too_large_is_said(tmp_path):
    found = row(matrix(tmp_path, 25_000, last=25_057), "| lab CNN, `int8`: at most")
    assert found.endswith("| the mean only |")


def test_a_missing_seed_is_named(tmp_path):
    text = matrix(tmp_path, seeds=(0, 1))
    assert "`benchmarks/records/format-matrix-seed-2.json` is missing" in text
    assert "Means over seeds 0, 1;" in text


# --- VGG16 ----------------------------------------------------------------------------------------


def conversion(peak: float, added: float, size: float = 105.15) -> str:
    def side(name: str, format: str, mib: float, peak: float, added: float) -> dict:
        return {
            "side": name, "format": format, "parameters": 27_566_412, "bytes": round(mib * 2**20),
            "gzip_bytes": 9_900_000, "seconds": 3.0, "held_mib": peak - added, "peak_mib": peak,
            "each": [{}, {}, {}], "load": [0.5], "versions": {"keras": "3.15.1"},
        }  # fmt: skip

    rows = [
        side("secateur", "float32", size, peak, added),
        side("secateur", "sparse", 38.89, peak, added),
        side("secateur", "dynamic", 26.35, peak, added),
        side("converter", "float32", 105.15, 1500.0, 700.0),
        side("converter", "sparse", 38.89, 1800.0, 900.0),
    ]
    return "\n".join(formats.conversion({**HEAD, "rows": rows}, ANCHORS))


def test_memory_is_held_against_what_was_measured_earlier_and_in_the_same_run():
    text = conversion(peak=1400.0, added=500.0)
    assert row(text, "| `float32`: peak memory below the 1,552 MB").endswith("0.95 of it | yes |")
    assert row(text, "| `float32`: what converting adds").endswith("| 0.71 of it | yes |")
    text = conversion(peak=1600.0, added=600.0)
    assert row(text, "| `float32`: peak memory below the 1,552 MB").endswith("| **no** |")
    assert row(text, "| `float32`: what converting adds").endswith("| 0.86 of it | **no** |")
    assert row(text, "| `sparse`: what converting adds").endswith("| 0.67 of it | yes |")


def test_bytes_are_compared_with_two_digits_of_a_mib():
    assert row(conversion(1400.0, 500.0), "| `float32`: at most 105.15").endswith("| yes |")
    text = conversion(1400.0, 500.0, size=105.16)
    assert row(text, "| `float32`: at most 105.15").endswith("| **no** |")


# --- MLPerf Tiny ----------------------------------------------------------------------------------


def tiny(scales: int, ours: int, arena: int = 3984) -> str:
    def side(name: str, size: int, scales: int, arena: int) -> dict:
        return {
            "model": "ad01", "side": name, "bytes": size, "gzip_bytes": 9, "scales": scales,
            "scale_bytes": 4 * scales, "zero_point_bytes": 2 * scales, "arena_bytes": arena,
            "npu": {"seconds": 4e-4, "encoded_weight_bytes": 7, "flash_bytes": 8},
            "label": "estimated by Vela",
        }  # fmt: skip

    rows = [
        side("published", 1000, 31, 3984),
        side("secateur", ours, scales, arena),
        side("secateur, stripped", ours - 50, scales, arena),
        side("one scale a kernel", 990, 31, 3984),
    ]
    return "\n".join(formats.tiny({**HEAD, "rows": rows}))


def test_a_larger_file_is_explained_by_its_scales_only_where_it_has_more():
    text = tiny(131, ours=1640, arena=5000)
    assert "100 more: 600 of the 640 B by which ours is larger" in text
    assert row(text, "| ad01, secateur: arena").endswith("| 5,000 B | **no** |")
    assert "nothing is larger for it" in tiny(31, ours=900)
    assert "does not explain the bytes" in tiny(31, ours=1100)
    assert row(tiny(31, ours=1000), "| ad01, secateur: bytes").endswith("| yes |")


# --- the loop -------------------------------------------------------------------------------------


def loop(seconds: float, peak: float) -> str:
    def side(name: str, seconds: float, peaks: dict) -> dict:
        times = {"median": seconds, "low": seconds, "high": seconds, "runs": 6}
        return {
            "network": "lab-cnn", "format": "float32", "side": name, "seconds": times,
            "peak_mib": peaks, "load": [0.1],
        }  # fmt: skip

    rows = [
        side("loop", 0.2, {"1000": 0.1}),
        side("measure", seconds, {"1000": 1.0, "60000": peak}),
    ]
    return "\n".join(formats.loop({**HEAD, "n": N, "rows": rows}))


def test_measure_is_faster_or_slower_and_flat_or_not_as_the_record_says():
    text = loop(0.1, 2.0)
    assert "lab-cnn, float32, measure: less time than the loop (0.50)" in text
    assert "is flat: at most 18 B more for each further image" in text
    text = loop(0.3, 50.0)
    assert "lab-cnn, float32, measure: more time than the loop (1.50)" in text
    assert "grows: at most 871 B more" in text


# --- the scripts ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_quick_run_of_the_matrix_writes_a_record_the_page_can_show(tmp_path):
    words = ["--quick", "--networks", "lab-cnn", "--seeds", "0", "--out", str(tmp_path)]
    if not os.environ.get("SECATEUR_DATA"):
        pytest.skip("MNIST is not there; SECATEUR_DATA names its folder")
    subprocess.run(
        [sys.executable, str(BENCHMARKS / "format_matrix.py"), *words],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent / "src")},
        check=True,
        capture_output=True,
        timeout=500,
    )
    record = json.loads((tmp_path / "format-matrix-seed-0.json").read_text())
    assert {run["format"] for run in record["runs"]} >= {"float32", "int8", "int4", "sparse"}
    text = "\n".join(formats.matrix(tmp_path, ANCHORS))
    assert "these figures mean nothing" in text
    assert re.search(r"\| `dense-int4` \| 12,8\d\d \|", text)
