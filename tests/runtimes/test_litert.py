"""What is read from a `.tflite` and what comes out of it, at every batch size."""

import os
import subprocess
import sys
import tracemalloc

import keras
import numpy as np
import pytest

from secateur import conversion, zoo
from secateur.errors import SecateurError
from secateur.runtimes import litert
from secateur.runtimes.keras import KerasSession
from secateur.tflite import Operator, Tensor


def with_biases(model):
    """A zero bias is not stored in a `.tflite`; a trained model has none."""
    rng = np.random.default_rng(5)
    for weight in model.weights:
        if weight.path.endswith("bias"):
            weight.assign(rng.normal(0, 0.1, weight.shape))
    return model


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return with_biases(zoo.build("lab-cnn"))


@pytest.fixture(scope="module")
def files(model):
    return conversion.to_litert(model, ("float32", "dynamic"))


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).random((256, 28, 28), dtype="float32")


@pytest.mark.parametrize("format", ["float32", "dynamic"])
def test_batch_1_7_and_256_give_equal_outputs(files, x, format):
    session = litert.load(files[format])
    whole = session.predict(x, batch=256)
    assert whole.shape == (256, 10) and whole.dtype == np.float32
    # 256 = 36 * 7 + 4: the last batch is a partial one
    for batch in (1, 7):
        np.testing.assert_allclose(session.predict(x, batch=batch), whole, rtol=0, atol=1e-6)
    assert session.resizable


def test_float32_gives_what_keras_gives(files, model, x):
    expected = KerasSession(model).predict(x)
    np.testing.assert_allclose(litert.load(files["float32"]).predict(x), expected, atol=1e-5)
    rounded = litert.load(files["dynamic"]).predict(x)
    assert 1e-6 < np.abs(rounded - expected).max() < 0.05


def test_what_is_inside_the_file(files, model):
    session = litert.load(files["float32"], threads=2)
    assert session.threads == 2
    assert session.name.startswith("litert 2.")
    assert (session.input_shape, session.output_shape) == ((28, 28), (10,))
    assert dict(session.operators()) == {
        "RESHAPE": 2,
        "CONV_2D": 1,
        "MAX_POOL_2D": 1,
        "FULLY_CONNECTED": 1,
    }
    # by hand: 26 x 26 places x 12 filters x 9 weights, and 13 x 13 x 12 inputs x 10 outputs
    assert session.macs() == 26 * 26 * 12 * 9 + 2028 * 10 == 93_288
    kernels = {c.operator: c for c in session.constants() if c.slot == 1}
    assert kernels["CONV_2D"].values.shape == (12, 3, 3, 1)
    dense = np.asarray(model.layers[-1].kernel)
    np.testing.assert_array_equal(kernels["FULLY_CONNECTED"].values, dense.T)
    assert sum(c.values.size for c in session.constants()) == 20_410


def test_codes_are_within_half_a_step_of_the_weights(files, model):
    constants = litert.load(files["dynamic"]).constants()
    (codes,) = [c for c in constants if c.coded and c.operator == "FULLY_CONNECTED"]
    assert codes.values.dtype == np.int8
    difference = np.abs(codes.dequantized() - np.asarray(model.layers[-1].kernel).T)
    assert 0 < (difference / codes.step()).max() <= 0.501


def test_memory_does_not_grow_with_the_samples(files):
    x = np.random.default_rng(0).random((10_000, 28, 28), dtype="float32")  # 31 MB
    session = litert.load(files["dynamic"])
    session.predict(x[:256])
    tracemalloc.start()
    outputs = session.predict(x)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert outputs.shape == (10_000, 10)
    assert peak < 4e6  # 0.4 MB of outputs and a batch or two of 0.8 MB


def test_neither_tensorflow_nor_keras_is_imported_and_nothing_is_printed(files, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(files["float32"])
    code = f"""
import sys
import numpy as np
from secateur.runtimes import runtime_for
session = runtime_for({str(path)!r}).load({str(path)!r})
session.predict(np.zeros((3, 28, 28)), batch=2)
print(session.macs(), [m for m in ("tensorflow", "keras", "jax", "torch") if m in sys.modules])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # it would keep the interpreter quiet too
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("93288 []\n", "")


def test_samples_of_another_shape_are_refused_with_both_shapes(files):
    session = litert.load(files["float32"])
    with pytest.raises(SecateurError, match=r"\(8, 8\) received for .*, expected \(28, 28\)"):
        session.predict(np.zeros((2, 8, 8), "float32"))
    with pytest.raises(SecateurError, match=r"inputs \['left', 'right'\] received"):
        session.predict({"left": np.zeros(1), "right": np.zeros(1)})


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda blob: b"PK\3\4" + blob, "is not a .tflite file"),
        (lambda blob: b"", "is not a .tflite file"),
        (lambda blob: blob[:200], "is damaged|does not run"),
        (lambda blob: blob[: len(blob) // 2], "is damaged|does not run"),
        (lambda blob: blob[:24] + b"\xff" * 60 + blob[84:], "is damaged|does not run"),
    ],
)
def test_a_damaged_file_is_one_line(files, tmp_path, damage, match):
    path = tmp_path / "model.tflite"
    path.write_bytes(damage(files["float32"]))
    with pytest.raises(SecateurError, match=match) as refused:
        litert.load(path)
    assert "\n" not in str(refused.value) and "model.tflite" in str(refused.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SecateurError, match=r"none.tflite could not be read \(No such file"):
        litert.load(tmp_path / "none.tflite")


def test_a_missing_runtime_names_the_extra(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(SecateurError, match=r"pip install 'secateur\[litert\]'"):
        litert.load(files["float32"])


def tensorflow_only():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("makes a foreign file with TensorFlow's own converter, in this process")
    return pytest.importorskip("tensorflow")


def test_a_foreign_file_with_a_batch_of_its_own_still_gives_every_output(model, x):
    tensorflow_only()
    session = litert.load(conversion._traced(model, 4, "float32"))
    expected = KerasSession(model).predict(x[:10])
    np.testing.assert_allclose(session.predict(x[:10], batch=7), expected, atol=1e-5)
    assert not session.resizable
    assert session.macs() == 93_288


def test_a_foreign_file_with_integer_inputs_and_outputs_is_read_as_floats():
    tf = tensorflow_only()
    rng = np.random.default_rng(0)
    layer = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    x = rng.random((50, 8), dtype="float32")
    spec = [tf.TensorSpec([1, 8], tf.float32)]
    weights = [tf.constant(np.asarray(w)) for w in layer.weights]
    function = tf.function(lambda a: a @ weights[0] + weights[1], input_signature=spec)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], tf.Module()
    )
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([row[None]] for row in x)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    session = litert.load(bytes(converter.convert()))
    outputs = session.predict(x, batch=16)
    np.testing.assert_allclose(outputs, KerasSession(layer).predict(x), atol=0.05)
    assert session.macs() == 32


def test_operators_are_counted_by_hand():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    net = keras.Sequential(
        [
            keras.Input((9, 9, 4)),
            layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2),
            layers.Conv2D(6, 1, strides=2),
            layers.Conv2DTranspose(5, 2),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    by_hand = 81 * 8 * 9 + 25 * 6 * 8 + 25 * 6 * (4 * 5) + 180 * 3
    session = litert.load(conversion.to_litert(net)["float32"])
    assert session.macs() == by_hand
    assert KerasSession(net).macs() == by_hand


def test_keras_and_the_file_count_the_same():
    keras.utils.set_random_seed(0)
    layers, ops = keras.layers, keras.ops
    rng = np.random.default_rng(0)

    def kernel(*shape):
        return rng.normal(size=shape).astype("float32")

    x = keras.Input((6, 6, 2))
    rows = layers.Reshape((12, 6))(x)
    branches = [
        ops.conv(x, kernel(3, 3, 2, 4), padding="same"),
        ops.depthwise_conv(x, kernel(3, 3, 2, 1), padding="same"),
        ops.separable_conv(x, kernel(3, 3, 2, 1), kernel(1, 1, 2, 3), padding="same"),
        ops.matmul(layers.Flatten()(x), kernel(72, 5)),
        ops.matmul(rows, ops.transpose(rows, (0, 2, 1))),
        ops.einsum("bti,ij->btj", rows, kernel(6, 4)),
        layers.LayerNormalization()(rows),
        layers.BatchNormalization()(layers.Conv2D(4, 3, groups=2)(x)),
        layers.SeparableConv2D(3, 3, depth_multiplier=2)(x),
        layers.Conv1D(3, 3, strides=2)(rows),
        layers.EinsumDense("bti,ijk->btjk", (12, 2, 3))(rows),
        layers.Dense(5)(layers.GlobalAveragePooling2D()(x)),
    ]
    net = keras.Model(x, layers.Concatenate()([layers.Flatten()(branch) for branch in branches]))
    by_hand = 2592 + 648 + 648 + 216 + 360 + 864 + 288
    by_hand += 16 * 4 * 9 + 16 * 4 * 9 + 16 * 4 * 3 + 5 * 3 * 18 + 12 * 6 * 6 + 10
    assert KerasSession(net).macs() == by_hand
    assert litert.load(conversion.to_litert(net)["float32"]).macs() == by_hand
    # Behind a reshape whose target is computed no size in a file is that of a sample.
    rows, weights, out = ((1, 1), (3, 6), (1, 3))
    tensors = [Tensor("", shape, "FLOAT32", None, None, None) for shape in (rows, weights, out)]
    assert Operator("FULLY_CONNECTED", tensors[:2], tensors[2:]).macs() is None


def test_a_name_within_a_name_is_not_that_operator():
    """SQUARED_DIFFERENCE holds the letters of IF, whose work is not known."""
    assert Operator("SQUARED_DIFFERENCE", [], []).macs() == 0
    assert Operator("STABLEHLO_DOT_GENERAL", [], []).macs() is None
    one, many = (Tensor("", shape, "FLOAT32", None, None, None) for shape in ((1, 4, 6), (8, 6, 5)))
    product = Tensor("", (8, 4, 5), "FLOAT32", None, None, None)
    assert Operator("BATCH_MATMUL", [one, many], [product]).macs() == 8 * 4 * 5 * 6


def test_an_operator_that_notices_the_batch_only_when_it_runs():
    """LiteRT's own transposed convolution; XNNPACK's takes any."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    net = keras.Sequential(
        [keras.Input((6, 6, 2)), layers.Conv2DTranspose(3, 2), layers.Flatten(), layers.Dense(4)]
    )
    x = np.random.default_rng(0).random((9, 6, 6, 2), dtype="float32")
    made = conversion.to_litert(net, ["float32", "int8"], calibration=x)
    expected = KerasSession(net).predict(x)
    for kernels, resizable in (("xnnpack", True), ("reference", False)):
        session = litert.load(made["float32"], kernels=kernels)
        np.testing.assert_allclose(session.predict(x, batch=4), expected, atol=1e-5)
        assert session.resizable == resizable
    found = litert.load(made["int8"]).predict(x, batch=4)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    whole = litert.ranges(made["float32"], x)
    assert whole == litert.ranges(made["float32"], x, batch=1)
    assert any(high == pytest.approx(expected.max(), rel=1e-4) for _, high in whole.values())
