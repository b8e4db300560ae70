"""The lab with quantization-aware training, as a built-in recipe: what the Run leaves, and what it says."""

import json

import keras
import numpy as np
import pytest

import secateur as sc
from secateur.reporting import rows, write_markdown
from secateur.runtimes import litert

pytestmark = pytest.mark.slow  # one Run of four trainings and six files, measured

ROWS = [
    *("baseline-keras", "baseline-float32", "baseline-int8"),
    *("quantized-keras", "quantized-int8", "control-keras"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The recipe on digits instead of MNIST."""
    return sc.run(None, "lab-pruned-qat", "digits", tmp_path_factory.mktemp("lab") / "out")


def test_the_rows_are_float_quantized_after_and_in_training_and_the_control(made):
    assert [row["row"] for row in made.rows] == ROWS
    found = {row["row"]: row for row in made.record["rows"]}
    assert found["quantized-int8"]["parity"]["agreement"] >= 0.99  # with what was trained
    kernel = keras.models.load_model(made.path / "quantized-keras.keras").get_layer("dense").kernel
    zeros = np.asarray(kernel) == 0
    assert zeros.sum() == int(0.8 * zeros.size + 0.5)
    constants = litert.load(made.path / "quantized-int8.tflite").constants()
    codes = next(c for c in constants if c.values.size == zeros.size).values
    assert (codes.T[zeros] == 0).all()


def test_the_record_says_what_rounding_cost_layer_by_layer(made):
    told = made.record["quantization"]
    assert (told["format"], told["stage"], told["aware"]) == ("int8", "quantized", True)
    keys = [one["key"] for one in told["ranges"]]
    assert keys[0] == "input:0" and "dense" in keys
    for one in told["ranges"]:
        assert one["low"] <= 0 < one["high"]
        assert one["step"] == pytest.approx((one["high"] - one["low"]) / 255)
        assert 0 < one["error"] < 0.1 and 0 <= one["clipped"] < 0.2
    for row in made.record["rows"]:
        kernels = row["kernels"]
        if row["format"] != "int8":
            assert kernels == {}
            continue
        assert set(kernels) == {"conv2d/kernel", "dense/kernel"}
        for kernel in kernels.values():
            assert kernel["bits"] == 8 and 0.001 < kernel["error"] < 0.02


def test_page_and_markdown_show_them(made, tmp_path):
    pytest.importorskip("jinja2", reason="install the extra 'report' (Jinja2)")
    text = made.report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert 'id="quantization"' in text and "quantized in training" in text
    lines = write_markdown([made.record], tmp_path / "r.md").read_text(encoding="utf-8")
    assert "## Quantization (int8, in training)" in lines and "| dense/kernel | 0." in lines
    assert len(rows([made.record])) == len(ROWS)


def test_from_the_keras_file_alone_comes_the_very_file_of_the_run(made, tmp_path):
    kept = sc.load(made.path / "quantized-keras.keras")
    assert len(kept.specification.ranges) == len(made.record["quantization"]["ranges"])
    (file,) = sc.export(kept, ["int8"], tmp_path, stage="again")
    assert file.path.read_bytes() == (made.path / "quantized-int8.tflite").read_bytes()
    notes = json.loads((made.path / "manifest.json").read_text())["files"]
    assert any("secateur.load()" in note for one in notes for note in one["notes"])
