"""A Keras model of any backend becomes the same small `.tflite`, at any batch size."""

import importlib
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from secateur import apart, conversion, zoo
from secateur.apart import Limits
from secateur.errors import SecateurError
from secateur.quantization import QUANTIZATIONS, quantize
from secateur.runtimes import litert
from secateur.runtimes.keras import KerasSession

layers = keras.layers
TENSORFLOW = keras.backend.backend() == "tensorflow"

MODULE = """
import keras

@keras.saving.register_keras_serializable("{name}")
class Pairs(keras.layers.Layer):
    '''Halves each sample into two rows of its own: the batch is merged into (2 * batch, n).'''

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(3)

    def build(self, shape):
        self.dense.build((None, shape[-1] // 2))

    def call(self, x):
        rows = keras.ops.reshape(x, (2 * keras.ops.shape(x)[0], x.shape[-1] // 2))
        return keras.ops.reshape(self.dense(rows), (-1, 6))
"""


@pytest.fixture(autouse=True)
def _started_not_forked(monkeypatch):
    """Here conversions start a process, as outside the tests."""
    monkeypatch.setattr(apart, "subprocess", subprocess)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    made = zoo.build("lab-cnn")
    for weight in made.weights:
        weight.assign(weight + 0.01)  # no zero bias, which would not be stored
    return made


@pytest.fixture(scope="module")
def files(model):
    return conversion.to_litert(model, ("float32", "dynamic"))


@pytest.fixture
def custom(tmp_path, monkeypatch, request):
    """A module of the user's own, with a registered layer, that can be imported by name."""
    name = f"own_layers_of_{request.node.name}"
    (tmp_path / f"{name}.py").write_text(MODULE.format(name=name))
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module(name)
    del sys.modules[name]


def test_the_files_are_small(files):
    """The old toolkit's: 85,040 and 24,384 bytes, with SHAPE, STRIDED_SLICE and PACK inside."""
    assert 4 * 20_410 < len(files["float32"]) <= 84_000
    assert 20_280 < len(files["dynamic"]) <= 23_400


def test_the_same_model_gives_the_same_bytes(model, files, tmp_path):
    again = conversion.in_clean_process(model, ("sparse", "float32"), (), tmp_path)
    assert (
        again["float32"] == files["float32"]
    )  # on TensorFlow: in this process, and in a clean one
    dynamic = quantize(again["float32"], QUANTIZATIONS["dynamic"])
    assert dynamic == files["dynamic"]


@pytest.mark.parametrize("activation", ["swish", "gelu", "relu6"])
def test_an_activation_with_a_gradient_of_its_own_keeps_the_names_too(activation):
    x = keras.Input((8,), name="x")
    hidden = layers.Dense(8, activation=activation, name="hidden")(x)
    net = keras.Model(x, layers.Dense(4, name="logits")(hidden))
    session = litert.load(conversion.to_litert(net)["float32"])
    assert session.input_names == ("x",) and session.output_names == ("logits",)
    samples = np.random.default_rng(0).random((5, 8), np.float32)
    np.testing.assert_allclose(
        session.predict(samples), KerasSession(net).predict(samples), rtol=1e-4, atol=1e-5
    )


def test_inputs_and_outputs_keep_their_names():
    x = keras.Input((4,), name="image pixels")
    net = keras.Model(x, layers.Dense(2, name="Score")(x))
    session = litert.load(conversion.to_litert(net)["float32"])
    assert session.input_names == ("image_pixels",) and session.output_names == ("Score",)


def test_several_inputs_and_outputs_are_told_apart_by_name():
    right, left = keras.Input((3,), name="right"), keras.Input((3,), name="left")
    net = keras.Model(
        [right, left], [layers.Dense(4, name="z")(right), layers.Dense(4, name="a")(left)]
    )
    rng = np.random.default_rng(0)
    x = {name: rng.random((5, 3), dtype="float32") for name in ("left", "right")}
    expected = KerasSession(net).predict(x)
    outputs = litert.load(conversion.to_litert(net)["float32"]).predict(x, batch=2)
    assert set(outputs) == {"a", "z"}
    for name, array in outputs.items():
        np.testing.assert_allclose(array, expected[name], atol=1e-6)


def test_a_nested_model_converts():
    inner = keras.Sequential([keras.Input((6, 6)), layers.Flatten(), layers.Dense(5)], name="inner")
    x = keras.Input((6, 6))
    net = keras.Model(x, layers.Dense(2)(inner(x)))
    data = np.random.default_rng(0).random((9, 6, 6), dtype="float32")
    outputs = litert.load(conversion.to_litert(net)["float32"]).predict(data, batch=4)
    np.testing.assert_allclose(outputs, KerasSession(net).predict(data), atol=1e-6)


def test_a_layer_that_merges_the_batch_still_takes_every_batch(custom):
    """At batch 1 its RESHAPE holds a number that is not 1; the file falls back to SHAPE."""
    net = keras.Sequential([keras.Input((10,)), custom.Pairs(), layers.Dense(2)])
    blob = conversion.to_litert(net, imports=[custom.__name__])["float32"]
    session = litert.load(blob)
    x = np.random.default_rng(0).random((10, 10), dtype="float32")
    np.testing.assert_allclose(session.predict(x, batch=4), KerasSession(net).predict(x), atol=1e-5)
    assert session.resizable


@pytest.mark.slow
def test_own_layers_reach_the_clean_process_by_import(custom, tmp_path, capfd):
    net = keras.Sequential([keras.Input((10,)), custom.Pairs()], name="mine")
    with pytest.raises(SecateurError, match=r"Could not locate class 'Pairs'.*--import") as refused:
        conversion.in_clean_process(net, ["float32"], (), tmp_path)
    assert "\n" not in str(refused.value) and "model 'mine'" in str(refused.value)
    with pytest.raises(SecateurError, match="No module named 'no_such_module'"):
        conversion.in_clean_process(net, ["float32"], ["no_such_module"], tmp_path)
    blobs = conversion.in_clean_process(net, ["float32"], [custom.__name__], tmp_path)
    assert litert.load(blobs["float32"]).output_shape == (6,)
    assert capfd.readouterr().err == ""


def test_the_clean_process_is_bounded_and_its_cost_is_told(model, tmp_path, monkeypatch):
    costs = []
    conversion.in_clean_process(model, ["float32"], (), tmp_path, spent=costs.append)
    assert 0.5 < costs[0].seconds < 600
    if sys.platform == "linux":
        assert 100 < costs[0].peak_mib < 4000  # TensorFlow alone is several hundred
    monkeypatch.setenv("SECATEUR_MAX_SECONDS", "0.4")
    with pytest.raises(SecateurError, match=r"the converter was still at work after 0.4 s") as late:
        conversion.in_clean_process(model, ["float32"], (), tmp_path)
    assert "\n" not in str(late.value)
    if not TENSORFLOW:
        with pytest.raises(SecateurError, match="after 0.3 s"):
            conversion.to_litert(model, limits=Limits(seconds=0.3))


def test_a_process_that_dies_is_told_in_one_line(model, tmp_path, monkeypatch):
    (tmp_path / "dies.py").write_text(
        "import os, sys; sys.stderr.write('a\\nlast words\\n'); os._exit(9)"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SecateurError, match=r"status 9 \(last words\)") as refused:
        conversion.in_clean_process(model, ["float32"], ["dies"], tmp_path)
    assert "\n" not in str(refused.value)


def test_a_layer_without_operator_is_named():
    if not TENSORFLOW:
        pytest.skip("a raw TensorFlow operation needs TensorFlow as the backend")
    tf = pytest.importorskip("tensorflow")

    class Odd(layers.Layer):
        def call(self, x):
            return tf.raw_ops.Betainc(a=x, b=x, x=x)

    net = keras.Sequential([keras.Input((4,)), Odd()], name="odd")
    with pytest.raises(
        SecateurError, match=r"'odd' could not be converted \('tf.Betainc' op"
    ) as error:
        conversion.to_litert(net)
    assert "\n" not in str(error.value)


def test_the_model_is_not_changed(model, files):
    before = [np.array(keras.ops.convert_to_numpy(w)) for w in model.weights]
    conversion.to_litert(model, ["dynamic"])
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, keras.ops.convert_to_numpy(new))


def test_converting_is_silent():
    """TensorFlow writes some twenty lines by itself, to a descriptor that Python does not see."""
    code = """
import sys
from secateur import conversion, zoo
model = zoo.build("lab-cnn")
print("imported", file=sys.stderr, flush=True)
conversion.to_litert(model, ["float32"])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "" and done.stderr.endswith("imported\n")


def test_unknown_formats_and_a_missing_tensorflow_say_what_to_do(model, monkeypatch):
    with pytest.raises(
        SecateurError, match="'int3' received, expected one of float32, sparse, float16"
    ):
        conversion.to_litert(model, ["int3"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SecateurError, match=r"pip install 'secateur\[tensorflow\]'"):
        conversion.to_litert(model)


def test_a_missing_litert_is_named_before_anything_is_converted(model, monkeypatch):
    original = importlib.util.find_spec

    def without(name, *rest):
        return None if name.startswith("ai_edge_litert") else original(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(SecateurError, match=r"pip install 'secateur\[litert\]'") as refused:
        conversion.to_litert(model)
    said = str(refused.value)
    assert "ai-edge-litert is not installed" in said and "\n" not in said
    assert "replace the layer" not in said


def test_random_inputs_are_the_same_every_time_and_fit():
    x, i = keras.Input((None, 3), name="x"), keras.Input((5,), name="i", dtype="int32")
    net = keras.Model([x, i], [layers.Dense(1)(x), layers.Embedding(2, 3)(i)])
    first, second = conversion.random_inputs(net, 4), conversion.random_inputs(net, 4)
    assert first["x"].shape == (4, 8, 3) and first["x"].dtype == np.float32
    assert set(np.unique(first["i"])) == {0, 1}
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
