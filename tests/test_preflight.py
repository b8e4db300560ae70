"""Calibration data that a model was not trained on are questioned, and files compared on what there is."""

import keras
import numpy as np
import pytest
from keras import layers
from tests.exporting_cases import left_in

import secateur as sc
from secateur.datasets import Split
from secateur.errors import SecateurError
from secateur.exporting import export
from secateur.preflight import calibration_samples, scales_inputs
from secateur.verification import compare, verify

MEANS = {"head": "logits"}


@pytest.fixture(scope="module")
def digits():
    """Images as pixels from 0 to 240, and their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.images * 15).astype(np.uint8), found.target


@pytest.fixture(scope="module")
def model(digits):
    """Trained on [0, 1]; through its ReLUs it ranks pixels from 0 to 255 nearly as well."""
    return trained(digits, 1 / 255)


def trained(digits, factor, *more):
    keras.utils.set_random_seed(0)
    x, y = digits
    net = keras.Sequential(
        [
            keras.Input((8, 8)),
            *more,
            layers.Flatten(),
            layers.Dense(32, activation="relu", name="hidden"),
            layers.Dense(10, name="head"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    net.fit(np.float32(x[:1200] * factor), y[:1200], epochs=8, batch_size=32, verbose=0)
    return net


SCALE = r"8-bit calibration data \(0..255\) received.*fix: --scale 255 .*--scale 1 "


def test_pixels_that_nothing_scales_are_questioned(model, digits, tmp_path):
    x, y = digits
    for source in (x, {"input": x}, (x, y), Split(x, y), sc.load_data((x, y))):
        with pytest.raises(SecateurError, match=SCALE) as error:
            export(model, ["int8"], tmp_path, stage="s", calibration=source)
        assert "\n" not in str(error.value) and left_in(tmp_path) == []
        calibration_samples(model, source, MEANS, may_be_chance=True)
    scaled = sc.load_data((x, y), scale=255)
    inputs, others = calibration_samples(model, scaled, MEANS, may_be_chance=False)
    assert inputs is scaled.calibration.x and others is scaled.validation.x  # held out
    for source in (np.float32(x), {"input": np.float32(x)}, sc.load_data((x, y), scale=1)):
        calibration_samples(model, source, MEANS, may_be_chance=False)  # said by the caller


def test_a_model_that_scales_its_inputs_takes_pixels(digits, model):
    inner = keras.Sequential([keras.Input((8, 8)), layers.Rescaling(1 / 255)])
    x = keras.Input((8, 8))
    for first in (layers.BatchNormalization(), inner, lambda x: x / 255):
        net = keras.Model(x, layers.Dense(10)(layers.Flatten()(first(x))))
        assert scales_inputs(net)
        calibration_samples(net, digits[0], MEANS, may_be_chance=False)
    last = keras.Model(x, layers.Rescaling(30.0)(layers.Dense(10)(layers.Flatten()(x))))
    assert not scales_inputs(last) and not scales_inputs(model)


def test_labels_that_the_model_does_not_know_are_questioned(model, digits, tmp_path):
    x, y = np.float32(digits[0] / 255), digits[1]
    for source in ((x, (y + 1) % 10), sc.load_data((x, (y + 1) % 10))):
        with pytest.raises(
            SecateurError, match=r"calibration data: .*chance level.*--allow-chance"
        ):
            export(model, ["int8"], tmp_path, stage="s", calibration=source)
    assert left_in(tmp_path) == []
    calibration_samples(model, (x, y), MEANS, may_be_chance=False)
    calibration_samples(
        model, (x, x), MEANS, may_be_chance=False
    )  # nothing to count right answers of


def test_ranges_of_other_inputs_are_seen_on_data(model, digits, tmp_path):
    """Codes for outputs 255 times as large: before, two of their steps excused whatever was wrong."""
    x, y = digits
    (file,) = export(model, ["int8"], tmp_path, stage="s", calibration=x, allow_chance=True)
    assert file.parity["on"] == "the calibration data" and file.parity["agreement"] > 0.9
    with pytest.raises(SecateurError, match="outputs differ from the model's"):
        verify(file.path, "int8", model, data=np.float32(x / 255))
    data = sc.load_data((x, y), scale=255)
    (file,) = export(model, ["keras"], tmp_path, stage="s", calibration=data)
    assert file.parity["on"] == "data held out from the calibration"


def test_a_network_for_pixels_is_compared_on_pixels(digits, tmp_path):
    """Noise in [0, 1] is a black picture to it: it was refused as int16x8, and passed as int8."""
    x = np.float32(digits[0])
    net = trained(digits, 1.0)
    files = export(net, ["int8", "int16x8"], tmp_path, stage="s", calibration=x[:200])
    for file in files:
        assert file.parity["n"] == 200 and 0.9 < file.parity["agreement"] <= 1
        assert file.parity["relative_rms"] > 1e-5
        unseen = verify(file.path, file.format, net)  # no data at all: nothing is claimed
        assert unseen.parity == {} and "not compared on data" in unseen.notes[0]


def test_coarse_steps_excuse_no_file():
    rng = np.random.default_rng(0)
    logits = {"out": rng.normal(0, 3, (256, 10))}
    step = 30.0
    coded = {"out": np.round(logits["out"] / step) * step}  # all of them 0
    for format in ("int8", "onnx-int8", "int4"):
        with pytest.raises(SecateurError, match="outputs differ from the model's"):
            compare(logits, coded, format, {"out": step})
    fine = {"out": np.round(logits["out"] / 0.1) * 0.1}
    parity = compare(logits, fine, "int8", {"out": 0.1})
    assert parity["relative_rms"] == pytest.approx(0.1 / np.sqrt(12) / 3, rel=0.05)  # all of it


def test_unknown_kinds_of_inputs_and_outputs_are_refused(model, tmp_path):
    with pytest.raises(SecateurError, match="unknown io 'flaot'; did you mean 'float'"):
        export(model, ["float32"], tmp_path, stage="s", io="flaot")
    with pytest.raises(SecateurError, match="unknown format 'int9'; did you mean 'int8'"):
        export(model, "int9", tmp_path, stage="s")
    assert left_in(tmp_path) == []


def test_codes_that_keras_made_are_named(tmp_path):
    net = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="head")])
    net.layers[0].quantize("int8")
    with pytest.raises(SecateurError, match=r"head received as quantized by Keras \(int8\)"):
        export(net, ["float32"], tmp_path, stage="s")
