"""Where compression pays: section and page say what the records say, and no more."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"

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


results_targets = load("results_targets")


def row(target, format, sparsity, size, factor=1.0):
    times = [factor * t for t in (10.0, 10.1, 10.2, 9.9, 10.0, 10.3, 10.1)]
    latency = {"us": 10.1 * factor, "times_us": times, "again_us": list(times)}
    return {
        "target": target, "format": format, "sparsity": sparsity, "bytes": size, "gzip_bytes": size,
        "accuracy": 0.975, "n": 1000, "latency": latency if target == "litert" else None,
        "arena_bytes": None if target == "litert" else 4000, "npu": None, "reason": None,
    }  # fmt: skip


@pytest.fixture
def records(tmp_path):
    """One model: in LiteRT zeros help from 80 % on, in tflite-micro never."""
    rows = []
    for sparsity, factor, size in ((0.0, 1.0, 9000), (0.5, 1.0, 9000), (0.8, 0.5, 3000)):
        rows.append(row("litert", "float32", sparsity, size, factor))
    rows += [row("litert", "int8", sparsity, 2000, 0.25) for sparsity in (0.0, 0.5, 0.8)]
    rows += [row("tflm", "int8", sparsity, 2000) for sparsity in (0.0, 0.5, 0.8)]
    record = {
        "quick": False, "model": "lenet-5", "input_shape": [28, 28], "parameters": 431080,
        "epochs": 1, "rounds": 7, "load": [0.1, 1.0], "created": "2026-03-01T00:00:00+00:00",
        "machine": {"cpu": "a processor", "cores": 2, "system": "Linux", "python": "3.11.7"},
        "versions": {"keras": "3.15.1"}, "records": rows,
    }  # fmt: skip
    (tmp_path / "targets-lenet-5.json").write_text(json.dumps(record))
    return tmp_path


def test_the_section_has_a_column_for_each_model_and_the_words_of_its_records(records):
    lines = "\n\n".join(results_targets.targets(records)).splitlines()
    assert "|  | LeNet-5 |" in lines
    assert "| LiteRT, float32: time | **0.50x faster** |" in lines
    assert "| LiteRT, float32: file | **0.33x smaller** |" in lines
    assert "| LiteRT, int8: time | 1.00x not faster |" in lines
    assert "| TFLM, int8: arena | 1.00x not smaller |" in lines
    assert "| LiteRT, int8: time | **0.25x faster** |" in lines  # the second table: int8 alone
    assert any("431,080 parameters" in line and "97.5 %" in line for line in lines)
    assert any("a processor" in line for line in lines)


def test_the_page_holds_answers_and_tables_between_its_markers(records):
    block = results_targets.page(records)
    assert "faster from 80 % on" in block
    assert (
        "| float32 | 80 % | 5.0 us (0.50x) | 3,000 B (0.33x) | 3,000 B (0.33x) | 97.5 % |" in block
    )
    text = f"before\n{results_targets.BEGIN}old{results_targets.END}\nafter\n"
    written = results_targets.with_page(text, block)
    assert "old" not in written and written.startswith("before\n") and written.endswith("after\n")
    assert results_targets.with_page(written, block) == written


def test_no_record_is_said_to_be_missing(tmp_path):
    assert "Not measured" in "\n".join(results_targets.targets(tmp_path))
    assert "python benchmarks/targets.py" in results_targets.page(tmp_path)
