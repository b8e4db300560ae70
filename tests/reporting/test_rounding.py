"""The part of a report that says what quantization did, from records alone."""

import copy

import pytest
from tests.reporting.records_example import example_run
from tests.reporting.test_page import EVIL, outline, page, visible

from secateur.reporting import rows, write_markdown
from secateur.reporting.rounding import rounding

RANGES = [
    {"key": "input:0", "low": 0.0, "high": 1.0, "step": 1 / 255, "error": 0.0021, "clipped": 0.0},
    {
        "key": "dense",
        "low": -18.0,
        "high": 12.0,
        "step": 30 / 255,
        "error": 0.0123,
        "clipped": 0.05,
    },
]


def run(seed=0, aware=True):
    made = copy.deepcopy(example_run(seed))
    base, last = (next(r for r in made["rows"] if r["stage"] == s) for s in ("baseline", "pruned"))
    int8 = {"format": "int8", "bytes": 23512, "gzip_bytes": 18000, "accuracy": 0.95 + seed / 100}
    kernels = {"conv2d/kernel": {"bits": 8, "error": 0.004 + seed / 1000}}
    made["rows"] += [
        {**base, **int8, "row": "baseline-int8", "kernels": kernels},
        {**last, "format": "keras", "stage": "quantized", "row": "quantized-keras", "kernels": {}},
        {
            **last,
            **int8,
            "stage": "quantized",
            "row": "quantized-int8",
            "kernels": {**kernels, "dense/kernel": {"bits": 4, "error": None}},
        },
    ]
    made["quantization"] = {
        "format": "int8",
        "stage": "quantized",
        "aware": aware,
        "ranges": RANGES if aware else [],
    }
    return made


def test_a_run_without_a_quantize_step_has_no_such_part(tmp_path):
    plain = example_run(0)
    assert rounding([plain], rows([plain])) is None
    assert 'id="quantization"' not in page([plain], tmp_path)
    assert "Quantization" not in write_markdown([plain], tmp_path / "r.md").read_text()


def test_float_and_both_kinds_of_quantization_stand_side_by_side():
    runs = [run(0), run(1)]
    found = rounding(runs, rows(runs))
    assert [(s["row"], s["what"]) for s in found["sides"]] == [
        ("baseline-float32", "float"),
        ("control-keras", "dense, float, trained as long"),
        ("baseline-int8", "quantized after training"),
        ("quantized-keras", "that training, weights in float"),
        ("quantized-int8", "quantized in training"),
    ]
    assert found["sides"][2]["quality"] == "95.50 %"
    assert found["files"] == ["baseline-int8", "quantized-int8"]
    assert found["kernels"][0]["cells"] == ["0.45 % at 8 bits"] * 2  # the mean over seeds
    assert found["kernels"][1]["cells"][0] == "\N{EN DASH}"
    assert found["kernels"][1]["cells"][1] == "\N{EN DASH} at 4 bits"
    assert [(r["low"], r["high"], r["clipped"]) for r in found["ranges"]] == [
        ("0", "1", "0.00 %"),
        ("-18", "12", "5.00 %"),
    ]
    after = rounding([run(0, aware=False)], rows([run(0, aware=False)]))
    assert after["sides"][-1]["what"] == "quantized after training" and not after["ranges"]


@pytest.mark.parametrize("aware", [True, False])
def test_page_and_markdown_show_it(tmp_path, aware):
    one = run(0, aware)
    text = page([one], tmp_path)
    assert ("was trained through the grids of its int8 file" in visible(text)) == aware
    ids = {attrs.get("id") for _, attrs in outline(text).tags}
    assert "quantization" in ids
    assert ('aria-label="dense: from -18 to 12"' in text) == aware
    lines = write_markdown([one], tmp_path / "r.md").read_text().splitlines()
    how = "in training" if aware else "after training"
    assert f"## Quantization (int8, {how})" in lines
    assert "| conv2d/kernel | 0.40 % at 8 bits | 0.40 % at 8 bits |" in lines
    assert ("| dense | -18 | 12 | 0.1176 | 1.23 % | 5.00 % |" in lines) == aware


def test_names_are_text_and_odd_numbers_break_nothing(tmp_path):
    one = run(0)
    one["rows"][-1]["kernels"][EVIL] = {"bits": None, "error": float("nan")}
    one["quantization"]["ranges"] += [
        {"key": EVIL, "low": None, "high": float("inf"), "step": None, "error": None},
        "no range",
        {},
    ]
    text = page([one], tmp_path)
    assert EVIL not in text and EVIL in visible(text)
    one["quantization"] = "edited"
    assert 'id="quantization"' not in page([one], tmp_path)


def test_long_tables_are_cut_and_it_is_said(tmp_path):
    one = run(0)
    one["quantization"]["ranges"] = [{**RANGES[0], "key": f"layer-{i}"} for i in range(50)]
    assert "10 more are in run.json" in visible(page([one], tmp_path))
