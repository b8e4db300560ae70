"""What outputs mean, read from a model, its loss, a file's operators and the manifest; never from values."""

import json

import keras
import numpy as np
import pytest
from keras import layers, ops

from secateur import conversion, measure, onnx_export, outputs
from secateur.artifact import describe, write_manifest
from secateur.errors import SecateurError
from secateur.runtimes import litert, onnx
from secateur.runtimes.keras import KerasSession, load, meanings_of

RNG = np.random.default_rng(0)
X = RNG.random((64, 4), dtype="float32")
LINEAR, LOGITS, PROBABILITIES = "linear", "logits", "probabilities"


def ending(end, units=3):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    hidden = layers.Dense(units, name="d")(inputs)
    return keras.Model(inputs, end(hidden))


class Own(layers.Layer):
    """Who knows what it computes."""

    def call(self, x):
        return ops.exp(x)


ENDS = [
    (lambda h: h, LINEAR),
    (layers.Dense(2, activation="softmax"), PROBABILITIES),
    (layers.Dense(1, activation="sigmoid"), PROBABILITIES),
    (layers.Dense(2, activation=layers.Softmax()), PROBABILITIES),
    (layers.Softmax(), PROBABILITIES),
    (layers.Activation("sigmoid"), PROBABILITIES),
    (layers.Activation("linear"), LINEAR),
    (ops.softmax, PROBABILITIES),
    (ops.sigmoid, PROBABILITIES),
    (ops.log_softmax, LOGITS),
    (lambda h: layers.Reshape((3, 1))(ops.softmax(h)), PROBABILITIES),
    (lambda h: layers.Average()([ops.softmax(h), ops.softmax(2 * h)]), PROBABILITIES),
    (lambda h: layers.Average()([h, h]), LINEAR),
    (lambda h: layers.Concatenate()([h, ops.softmax(h)]), None),
    (lambda h: h / 8, LINEAR),
    (lambda h: 2 * ops.softmax(h), None),
    (layers.ReLU(), None),
    (layers.Dense(2, activation="relu", bias_initializer="ones"), None),
    (lambda h: layers.GRU(2)(layers.Reshape((3, 1))(h)), None),
    (Own(), None),
    (keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.Softmax()]), PROBABILITIES),
]


@pytest.mark.parametrize(("end", "expected"), ENDS)
def test_the_end_of_a_model_says_it(end, expected):
    assert list(KerasSession(ending(end)).meanings().values()) == [expected]


@pytest.mark.parametrize(
    ("loss", "activation", "expected"),
    [
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), None, LOGITS),
        ("sparse_categorical_crossentropy", None, PROBABILITIES),
        (keras.losses.categorical_crossentropy, None, PROBABILITIES),
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), "softmax", PROBABILITIES),
        (keras.losses.BinaryCrossentropy(from_logits=True), "relu", LOGITS),
        ("mse", None, None),
        ("mse", "softmax", PROBABILITIES),
    ],
)
def test_else_the_loss_does_live_and_from_a_file(loss, activation, expected, tmp_path):
    model = ending(layers.Dense(2, activation=activation, name="end"))
    model.compile("sgd", loss)
    assert KerasSession(model).meanings() == {"end": expected}
    for name in ("m.keras", "m.h5"):
        keras.saving.save_model(model, tmp_path / name)
        assert load(tmp_path / name).meanings() == {"end": expected}


def test_each_output_has_its_own():
    inputs = keras.Input((4,))
    ends = [layers.Dense(2, name=name)(inputs) for name in ("a", "b", "c")]
    model = keras.Model(inputs, [*ends, layers.Dense(1, "sigmoid", name="d")(inputs)])
    losses = {"a": keras.losses.BinaryCrossentropy(from_logits=True), "b": "mse"}
    expected = {"a": LOGITS, "b": None, "c": LINEAR, "d": PROBABILITIES}
    assert meanings_of(model, losses) == expected
    assert meanings_of(model, losses, "logits") == dict.fromkeys(expected, LOGITS)


# Files of the other backends are converted on TensorFlow too, in processes of their own.
on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the same converter on every backend"
)


@on_tensorflow
@pytest.mark.parametrize(("end", "expected"), [ENDS[k] for k in (0, 2, 4, 10, 17)])
def test_the_operator_that_ends_a_file_says_it(end, expected):
    """In integers too, where codes are between the operator and the output."""
    model = ending(end)
    files = conversion.to_litert(model, ("float32", "dynamic", "int8"), calibration=X)
    for blob in files.values():
        assert list(litert.load(blob).meanings().values()) == [expected]
    for blob in onnx_export.to_onnx(model, ("onnx", "onnx-int8"), calibration=X).values():
        assert list(onnx.load(blob).meanings().values()) == [expected]


@on_tensorflow
def test_the_manifest_says_what_the_file_cannot(tmp_path):
    """Of these very bytes alone: another file under the name is not what it speaks of."""
    model = ending(layers.Dense(1, name="end"))
    path = tmp_path / "m.tflite"
    path.write_bytes(conversion.to_litert(model, ("float32",))["float32"])
    pair = X, np.ones(64, int)
    assert measure(path, pair, latency=False).outputs == {"end": LINEAR}
    write_manifest(tmp_path, [describe(path, format="float32", stage="m", outputs={"end": None})])
    unsaid = measure(path, pair, latency=False)
    assert (unsaid.outputs, unsaid.accuracy, unsaid.loss) == ({"end": None}, None, None)
    assert "--outputs logits" in unsaid.omitted["accuracy"]
    said = measure(path, pair, latency=False, outputs="probabilities")
    assert said.outputs == {"end": PROBABILITIES} and said.accuracy is not None
    record = json.loads((tmp_path / "manifest.json").read_text())
    record["files"][0]["sha256"] = "0" * 64
    (tmp_path / "manifest.json").write_text(json.dumps(record))
    assert measure(path, pair, latency=False).outputs == {"end": LINEAR}


def test_a_word_that_is_none_is_refused():
    for word in ("logit", {"end": "logit"}, 3):
        with pytest.raises(
            SecateurError, match=r"expected logits or probabilities; fix"
        ) as refused:
            measure(ending(ops.softmax), (X, None), outputs=word)
        assert "\n" not in str(refused.value)
    with pytest.raises(SecateurError, match="outputs of unknown 'dd' received"):
        outputs.asked({"dd": "logits", "e": "logits"}, ["d", "e"])


def test_a_manifest_that_is_damaged_says_nothing(tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"any")
    (tmp_path / "manifest.json").write_text('{"files": ' + "[" * 100_000 + "]" * 100_000 + "}")
    assert outputs.of_manifest(tmp_path / "m.tflite") is None


# --- numbers that are none ------------------------------------------------------------------------


def test_a_weight_that_is_nan_is_named():
    """argmax of NaN is 0: with labels 0 the model scored 100 %."""
    model = ending(layers.Dense(2, name="end"))
    model.get_layer("end").kernel.assign(np.full((3, 2), np.nan))
    with pytest.raises(SecateurError, match=r"NaN or infinity .*64 samples, from .*end/kernel"):
        measure(model, (X, np.zeros(64, int)), latency=False)


def test_a_nan_weight_that_finite_outputs_hide_is_named():
    """Many a ReLU makes 0 of NaN."""
    model = ending(lambda hidden: ops.where(hidden > 0, hidden, 0.0))
    model.get_layer("d").kernel.assign(np.full((4, 3), np.nan))
    with pytest.raises(SecateurError, match="NaN received in .*d/kernel of the model"):
        measure(model, (X, np.zeros(64, int)), latency=False)


def test_a_layer_whose_outputs_overflow_is_named():
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(3, name="big"), layers.ReLU()])
    model = ending(inner)
    inner.layers[0].kernel.assign(np.full((3, 3), 1e38))
    model.get_layer("d").kernel.assign(np.full((4, 3), 1e10))
    with pytest.raises(SecateurError, match=r"layer .*big, whose inputs are finite"):
        measure(model, (X, None), latency=False)


@on_tensorflow
def test_a_file_whose_outputs_are_nan_is_named(tmp_path):
    model, path = ending(layers.Dense(2, name="end")), tmp_path / "m.tflite"
    model.get_layer("end").kernel.assign(np.full((3, 2), np.nan))
    path.write_bytes(conversion.to_litert(model, ("float32",))["float32"])
    with pytest.raises(
        SecateurError, match=r"NaN or infinity .* from .*m\.tflite, expected finite"
    ):
        measure(path, (X, np.zeros(64, int)), latency=False)
