"""Keras files: loaded without running code from them, saved without optimizer and without clock."""

import io
import json
import time
import zipfile

import h5py
import keras
import numpy as np
import pytest

from secateur import zoo
from secateur.errors import SecateurError
from secateur.runtimes import keras as runtime
from secateur.runtimes import keras_files, runtime_for

layers, ops = keras.layers, keras.ops


@pytest.fixture
def model():
    return zoo.build("lab-cnn")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_file_gives_what_the_model_gives(model, tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    runtime.save_model(model, path)
    x = np.random.default_rng(0).random((7, 28, 28), dtype="float32")
    session = runtime_for(path).load(path)
    assert session.name == f"keras {keras.version()}, {keras.backend.backend()}"
    assert (session.input_shape, session.output_shape) == ((28, 28), (10,))
    expected = keras.ops.convert_to_numpy(model(x))
    for batch in (1, 3, 7):
        np.testing.assert_allclose(session.predict(x, batch=batch), expected, atol=1e-5)
    session.invoke_once(x[:1])
    assert session.macs() == 93_288
    assert [c.name for c in session.constants()] == [
        f"{layer}/{part}" for layer in ("conv2d", "dense") for part in ("kernel", "bias")
    ]
    assert ("Conv2D", 1) in session.operators()


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_the_optimizer_is_left_out_and_the_model_is_not_touched(model, tmp_path, suffix):
    plain, trained = tmp_path / f"plain{suffix}", tmp_path / f"trained{suffix}"
    model.compile("adam", "mse")
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
    runtime.save_model(model, trained)
    assert model.optimizer is optimizer and model.compiled
    again = runtime.load_model(trained)
    runtime.save_model(again, plain)
    assert trained.stat().st_size < 105_000  # 81,640 bytes of weights; Adam would double them
    assert abs(plain.stat().st_size - trained.stat().st_size) <= 1  # a name may count up


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_the_same_model_gives_the_same_bytes_at_any_time(model, tmp_path, suffix, monkeypatch):
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    runtime.save_model(model, first)
    time.sleep(2.1)  # the zip format counts in steps of two seconds
    runtime.save_model(model, second)
    assert first.read_bytes() == second.read_bytes()


def test_plain_keras_opens_what_was_saved(model, tmp_path):
    path = tmp_path / "model.keras"
    runtime.save_model(model, path)
    loaded = keras.saving.load_model(path)
    for mine, theirs in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (mine, theirs)))


def test_saving_h5_is_silent(model, tmp_path, capfd):
    runtime.save_model(model, tmp_path / "model.h5")
    captured = capfd.readouterr()
    assert "HDF5" not in captured.out + captured.err


def test_no_code_from_a_file_is_run(tmp_path):
    path = tmp_path / "lambda.keras"
    net = keras.Sequential([keras.Input((2,)), layers.Lambda(lambda x: x * 2)])
    net.save(path)
    with pytest.raises(SecateurError, match="could not be loaded") as refused:
        runtime.load(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.keras", b"not a zip"), ("a.h5", b"not hdf5"), ("b.keras", None), ("c.h5", None)],
)
def test_a_bad_file_is_one_line(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SecateurError, match=name) as refused:
        runtime.load(tmp_path / name)
    assert "\n" not in str(refused.value)


def test_an_unknown_layer_says_how_to_name_its_module(model, tmp_path):
    path = tmp_path / "model.keras"
    runtime.save_model(model, path)
    changed = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename == "config.json":
                config = json.loads(content)
                config["config"]["layers"][-1] |= {"module": "mine", "class_name": "Gone"}
                content = json.dumps(config).encode()
            new.writestr(info, content)
    path.write_bytes(changed.getvalue())
    with pytest.raises(SecateurError, match=r"--import"):
        runtime.load(path)


def test_another_suffix_is_refused():
    with pytest.raises(
        SecateurError, match=r"model.pt received, expected a .tflite, .onnx, .keras or .h5"
    ):
        runtime_for("model.pt")


def test_a_model_without_inputs_is_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(SecateurError, match="does not know its inputs"):
        runtime.load(Own())


def test_inputs_and_outputs_travel_by_name():
    left, right = keras.Input((2,), name="left"), keras.Input((3,), name="right")
    joined = layers.Concatenate()([right, left])
    net = keras.Model(
        [right, left], [layers.Dense(4, name="z")(joined), layers.Dense(1, name="a")(joined)]
    )
    session = runtime.load(net)
    assert session.input_names == ("right", "left") and session.output_names == ("z", "a")
    x = {"left": np.ones((5, 2)), "right": np.ones((5, 3))}
    outputs = session.predict(x, batch=2)
    assert {name: array.shape for name, array in outputs.items()} == {"z": (5, 4), "a": (5, 1)}


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (layers.Dense(5), (4,), 20),
        (layers.Dense(5), (3, 4), 60),
        (layers.Conv1D(5, 3), (8, 2), 6 * 5 * 3 * 2),
        (layers.Conv2D(6, 3, groups=2), (8, 8, 4), 36 * 6 * 9 * 2),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), (8, 8, 4), 36 * 8 * 9),
        (layers.SeparableConv2D(6, 3), (8, 8, 4), 36 * 4 * 9 + 36 * 4 * 6),
        (layers.Conv2DTranspose(6, 2, strides=2), (5, 5, 3), 25 * 3 * 6 * 4),
        (layers.EinsumDense("abc,cde->abde", (3, 2, 7)), (3, 4), 3 * 4 * 14),
        (layers.BatchNormalization(), (4,), 0),
        (layers.Embedding(9, 4), (6,), 0),
        (layers.LSTM(4), (6, 3), None),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_multiplications_by_hand(layer, shape, macs):
    assert runtime.load(keras.Sequential([keras.Input(shape), layer])).macs() == macs


def test_a_layer_called_twice_counts_twice():
    x = keras.Input((4,))
    shared = layers.Dense(4)
    net = keras.Model(x, shared(shared(x)))
    assert runtime.load(net).macs() == 32
    outer = keras.Model(x, layers.Add()([net(x), net(x)]))
    assert runtime.load(outer).macs() == 64


def kernel(*shape):
    return np.ones(shape, "float32")


@pytest.mark.parametrize(
    ("operation", "shapes", "macs"),
    [
        (lambda x: ops.conv(x, kernel(3, 3, 1, 4), padding="same"), [(6, 6, 1)], 1296),
        (lambda x: ops.depthwise_conv(x, kernel(3, 3, 2, 1), padding="same"), [(6, 6, 2)], 648),
        (
            lambda x: ops.separable_conv(x, kernel(3, 3, 2, 1), kernel(1, 1, 2, 3)),
            [(6, 6, 2)],
            16 * 18 + 16 * 6,
        ),
        (
            lambda x: ops.conv_transpose(x, kernel(3, 3, 4, 2), strides=2, padding="same"),
            [(6, 6, 2)],
            72 * 36,
        ),
        (lambda x: x @ kernel(6, 5), [(6,)], 30),
        (lambda x, y: ops.matmul(x, y), [(4, 6), (6, 5)], 120),
        (lambda x: ops.einsum("bti,ij->btj", x, kernel(6, 5)), [(4, 6)], 120),
        (lambda x: ops.tensordot(x, kernel(4, 6, 5), axes=2), [(4, 6)], 120),
        pytest.param(
            *(lambda x: ops.tensordot(x, kernel(5, 6), axes=[[2], [1]]), [(4, 6)], 120),
            marks=pytest.mark.filterwarnings("ignore:NotImplemented should not:DeprecationWarning"),
        ),
        (lambda x: ops.inner(x, kernel(5, 6)), [(6,)], 30),
        (lambda x: ops.dot(x, kernel(6, 5)), [(6,)], 30),
        (lambda x, y: layers.Dot(1)([x, y]), [(6,), (6,)], 6),
        (lambda x: layers.ReLU()(ops.multiply(x, 2.0)), [(6,)], 0),
        # not told by any shape, so not 0
        (lambda x: layers.Lambda(lambda v: ops.matmul(v, v))(x), [(4, 4)], None),
        (
            lambda x: layers.TimeDistributed(layers.Lambda(lambda v: v * v, (4,)))(x),
            [(4, 4)],
            None,
        ),
        (lambda x: Squared()(x), [(4, 4)], None),
        (lambda x: layers.Attention()([x, x]), [(4, 4)], None),
        (lambda x: ops.matmul(ops.reshape(x, (-1, 4)), kernel(4, 5)), [(6, 4)], None),
        (lambda x: ops.einsum("bti,bsi->bts", x, x), [(None, 4)], None),
    ],
)
def test_operations_that_multiply_are_counted_or_not_known_and_never_nothing(
    operation, shapes, macs
):
    inputs = [keras.Input(shape) for shape in shapes]
    assert runtime.load(keras.Model(inputs, operation(*inputs))).macs() == macs


class Squared(layers.Layer):
    def call(self, x):
        return ops.matmul(x, x)


def test_layers_of_a_nested_model_are_counted():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(5)], name="inner")
    x = keras.Input((4,))
    net = keras.Model(x, layers.Dense(2)(inner(x)))
    assert runtime.load(net).macs() == 20 + 10


def test_a_loss_nested_too_deep_says_nothing(tmp_path):
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file.create_group("model_weights").attrs["layer_names"] = []
        file.attrs["training_config"] = '{"loss": ' + "[" * 20_000 + "]" * 20_000 + "}"
    assert keras_files.stored_loss(path) is None
