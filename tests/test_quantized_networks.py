"""The five networks of the benchmark in small: their files answer as they were trained."""

import importlib
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from secateur.errors import SecateurError
from secateur.exporting import export
from secateur.runtimes import litert, tflm
from secateur.runtimes.keras import KerasSession
from secateur.substitute import as_in_file
from secateur.tflite import TfliteFile

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
qat_networks = importlib.import_module("qat_networks")

INTEGERS = {
    "lab-cnn": ["CONV_2D", "MAX_POOL_2D", "RESHAPE", "FULLY_CONNECTED"],
    "lenet-5": ["CONV_2D", "MAX_POOL_2D", "RESHAPE", "FULLY_CONNECTED"],
    "mobilenet": ["CONV_2D", "DEPTHWISE_CONV_2D", "MEAN", "RESHAPE", "FULLY_CONNECTED"],
    "resnet": ["CONV_2D", "ADD", "MEAN", "RESHAPE", "FULLY_CONNECTED"],
}
EPOCHS = 8


@pytest.fixture(scope="module")
def digits():
    return qat_networks.prepared(quick=True, short=False)


def operators(artifact):
    file = TfliteFile.parse(artifact.path.read_bytes(), "it")
    return file, {o.name for o in file.operators} - {"QUANTIZE", "DEQUANTIZE"}


def agreeing(name, data, folder, **settings):
    """Train, write, and hold both kernel sets against the training: at least 99.5 % alike."""
    # One epoch of digits leaves the normalized ones guessing, at ties that any step decides.
    _, small = qat_networks.trained(name, data, epochs=EPOCHS)
    found = small.specification
    x = np.concatenate([data.train.x, data.test.x])
    with as_in_file(small.model, found.widths, found.ranges) as quantized:
        expected = KerasSession(quantized).predict(x)
    (artifact,) = export(
        small.model,
        ["int8"],
        folder,
        stage="aware",
        promises=small.promises,
        specification=found,
        calibration=data.calibration.x,
        data=data.calibration.x,
        allow_float=True,
        **settings,
    )
    for kernels in ("xnnpack", "reference"):
        answers = litert.load(artifact.path, kernels=kernels).predict(x)
        alike = (answers.argmax(-1) == expected.argmax(-1)).mean()
        assert alike >= 0.995, kernels
    return artifact, expected, x


def in_full(*values):
    """Trained on TensorFlow alone, and not every day."""
    elsewhere = keras.backend.backend() != "tensorflow"
    marks = [pytest.mark.slow, pytest.mark.skipif(elsewhere, reason="in full on TensorFlow")]
    return pytest.param(*values, marks=marks)


@pytest.mark.parametrize("name", ["lab-cnn", *map(in_full, ("lenet-5", "mobilenet", "resnet"))])
def test_a_network_of_integers_agrees_with_its_training(name, digits, tmp_path):
    artifact, expected, x = agreeing(name, digits, tmp_path)
    assert artifact.format == "int8"
    file, kinds = operators(artifact)
    assert not file.float_operators()
    assert kinds <= set(INTEGERS[name]) and kinds >= set(INTEGERS[name]) - {"RESHAPE"}
    few = tflm.load(artifact.path.read_bytes()).predict(x[:20])
    assert (few.argmax(-1) == expected[:20].argmax(-1)).all()


@pytest.mark.parametrize("name", [in_full("transformer")])
def test_a_transformer_keeps_in_float_what_was_trained_in_float(name, digits, tmp_path):
    artifact, *_ = agreeing(name, digits, tmp_path)
    assert artifact.format == "mixed"
    assert artifact.path.name == "aware-mixed.tflite"
    file, _ = operators(artifact)
    floats = set(file.float_operators())
    assert "RSQRT" in floats and "FULLY_CONNECTED" not in floats and "BATCH_MATMUL" not in floats
    integers = [o.name for o in file.operators if not any(t.floating for t in o.outputs)]
    assert {"SOFTMAX", "BATCH_MATMUL", "GELU", "FULLY_CONNECTED"} <= set(integers)
    assert any("layer_normalization" in note and "in float" in note for note in artifact.notes)
    with pytest.raises(SecateurError, match=r"TFLM has no kernel for \(GELU\)"):
        tflm.load(artifact.path.read_bytes())
