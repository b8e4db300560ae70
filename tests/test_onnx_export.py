"""A Keras model of any backend becomes the same `.onnx` files, which answer as the model does."""

import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile

import keras
import numpy as np
import pytest

from secateur import conversion, onnx_export, zoo
from secateur.errors import SecateurError
from secateur.exporting import export
from secateur.locating import located
from secateur.onnx_export import FORMATS, to_onnx
from secateur.promises import Promise
from secateur.runtimes import onnx
from secateur.runtimes.keras import KerasSession
from secateur.verification import verify
from secateur.weights import weight_table

layers = keras.layers
TENSORFLOW = keras.backend.backend() == "tensorflow"
MODULE = """
import keras

@keras.saving.register_keras_serializable("{name}")
class Doubled(keras.layers.Layer):
    def call(self, x):
        return keras.ops.concatenate([x, 2 * x], -1)
"""


def residual():
    """Normalizations after convolutions of every kind, with and without a bias."""
    x = image = keras.Input((16, 16, 3), name="image pixels")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(x)
    x = shortcut = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.BatchNormalization()(layers.Conv2D(8, 1, name="pointwise")(x))
    x = layers.ReLU()(layers.Add()([x, shortcut]))
    x = layers.SeparableConv2D(12, 3, strides=2, padding="same", name="separable")(x)
    x = layers.Conv2DTranspose(6, 3, strides=2, padding="same", name="transposed")(x)
    x = layers.Dense(16, name="hidden")(layers.GlobalAveragePooling2D()(x))
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(image, layers.Dense(5, name="Score")(x), name="residual")


def attention():
    tokens = keras.Input((7,), dtype="int32", name="tokens")
    x = layers.Embedding(20, 16, name="embedding")(tokens)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 8, name="attention")(x, x)])
    x = layers.Dense(24, activation="gelu", name="hidden")(layers.LayerNormalization()(x))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(tokens, layers.Dense(3, name="out")(x), name="attention")


def several():
    right, left = keras.Input((3,), name="right"), keras.Input((4,), name="left")
    both = layers.Concatenate()([left, right])
    outputs = [layers.Dense(4, name="z")(right), layers.Dense(4, name="a")(both)]
    return keras.Model([right, left], outputs, name="several")


NETS = {
    "lab": lambda: zoo.build("lab-cnn"),
    "residual": residual,
    "attention": attention,
    "several": several,
}


def randomized(net):
    """Statistics and biases as after training, with negative factors among them."""
    rng = np.random.default_rng(3)
    for weight in net.weights:
        if weight.name in ("gamma", "beta", "moving_mean", "moving_variance"):
            sign = 1 if weight.name == "moving_variance" else rng.choice([-1, 1], weight.shape)
            weight.assign(rng.uniform(0.5, 1.5, weight.shape) * sign)
        elif weight.name == "bias":
            weight.assign(rng.normal(0, 0.1, weight.shape))
    return net


def pruned(net, share=0.7):
    """Sets the smallest weights of each kernel to zero; returns the promises."""
    promises = []
    for layer in net.layers:
        if hasattr(layer, "kernel") and not isinstance(layer, layers.SeparableConv2D):
            kernel = np.array(keras.ops.convert_to_numpy(layer.kernel))
            zeros = np.abs(kernel) <= np.quantile(np.abs(kernel), share)
            layer.kernel.assign(np.where(zeros, 0, kernel))
            promises.append(Promise(f"{layer.name}/kernel", "zeros", zeros, kernel.shape))
    return promises


def outputs(session, x, batch):
    found = session.predict(x, batch=batch)
    return found if isinstance(found, dict) else {session.output_names[0]: found}


@pytest.fixture(scope="module", params=NETS)
def case(request):
    """A pruned net, its promises, inputs, and its files of every format."""
    keras.utils.set_random_seed(0)
    net = randomized(NETS[request.param]())
    promises = pruned(net)
    x = conversion.random_inputs(net, 40)
    return net, promises, x, to_onnx(net, FORMATS, calibration=x)


def test_float_files_give_what_keras_gives_at_every_batch_size(case):
    net, _, x, files = case
    session, live = onnx.load(files["onnx"]), KerasSession(net)
    expected = outputs(live, x, 40)
    assert session.resizable and set(session.input_names) == set(live.input_names)
    assert set(session.output_names) == set(expected)
    for batch in (40, 7, 1):
        for name, array in outputs(session, x, batch).items():
            assert np.abs(array - expected[name]).max() <= 1e-5 * np.abs(expected[name]).max()


def test_quantized_files_stay_near_and_static_ranges_do_not_depend_on_the_batch(case):
    net, _, x, files = case
    expected = outputs(KerasSession(net), x, 40)
    for format in ("onnx-dynamic", "onnx-int8"):
        session = onnx.load(files[format])
        whole, alone = outputs(session, x, 40), outputs(session, x, 1)
        for name, array in expected.items():
            scale = np.abs(array).max()
            assert 1e-6 * scale < np.abs(whole[name] - array).max() < 0.06 * scale
            difference = np.abs(whole[name] - alone[name]).max()
            assert difference <= (1e-6 if format == "onnx-int8" else 0.06) * scale


def test_every_kernel_is_found_and_its_zeros_are_kept(case):
    net, promises, _, files = case
    for format, blob in files.items():
        found = located(onnx.load(blob).constants(), net, {promise.path for promise in promises})
        kernels = [m for m in found.values() if m.weight.role in ("kernel", "embedding")]
        lost = [m.weight.path for m in kernels if m.constant is None]
        assert len(kernels) >= 2 and not lost, (format, lost)
        for promise in promises:
            finding = found[promise.path].check(promise)
            assert finding.ok, (format, promise.path, finding)
            constant = found[promise.path].constant
            transposed = "transposed" in promise.path  # left in float by the dynamic quantizer
            assert constant.coded == (
                format != "onnx" and not (format == "onnx-dynamic" and transposed)
            )


def test_a_zero_that_is_not_one_is_noticed(case):
    net, promises, _, files = case
    if not promises:
        pytest.skip("no layer with a kernel of its own")
    layer, promise = net.get_layer(promises[0].path.split("/")[0]), promises[0]
    before = np.array(keras.ops.convert_to_numpy(layer.kernel))
    changed = before.copy()
    # More than half of 1.0, the step that an output without weights gets.
    changed[tuple(np.argwhere(promise.value)[0])] = 0.9
    layer.kernel.assign(changed)
    try:
        for blob in files.values():
            with pytest.raises(
                SecateurError, match=rf"{promise.path} .*not found among the tensors"
            ):
                located(onnx.load(blob).constants(), net, {promise.path})
    finally:
        layer.kernel.assign(before)


def test_work_is_that_of_the_model(case):
    net, _, _, files = case
    if net.name == "attention":  # its shapes are computed when it runs
        assert onnx.load(files["onnx"]).macs() is None
    else:
        assert {onnx.load(blob).macs() for blob in files.values()} == {KerasSession(net).macs()}


def test_normalizations_are_folded_before_activations_are_coded(case):
    net, _, _, files = case
    if net.name != "residual":
        pytest.skip("has no normalization after a convolution")
    floats, codes = (dict(onnx.load(files[f]).operators()) for f in ("onnx", "onnx-int8"))
    assert floats["Mul"] == 3 and codes["Mul"] == 1  # that after the Dense layer stays


def test_the_same_model_gives_the_same_bytes(case):
    net, _, x, files = case
    assert to_onnx(net, FORMATS, calibration=x) == files


def test_the_clean_process_writes_the_same_bytes(tmp_path, capsys):
    """Its `main`, in this process; on other backends every test here goes through it."""
    if not TENSORFLOW:
        pytest.skip("needs TensorFlow as the backend of this very process")
    net = NETS["several"]()
    net.save(tmp_path / "model.keras")
    options = {"convert": onnx_export.convert, "formats": ("onnx",)}
    assert conversion.main([str(tmp_path), "onnx"], **options) == 0
    assert (tmp_path / "onnx").read_bytes() == to_onnx(net)["onnx"]
    assert capsys.readouterr().out == ""


def test_loops_give_the_same_bytes_too():
    """In their bodies tf2onnx leaves to chance which of two outputs is the copy of the other."""
    net = keras.Sequential(
        [
            keras.Input((6, 5)),
            layers.Bidirectional(layers.GRU(4, return_sequences=True)),
            layers.LSTM(4),
        ]
    )
    x = conversion.random_inputs(net, 8)
    first, second = (to_onnx(net, FORMATS, calibration=x) for _ in range(2))
    assert first == second
    expected = KerasSession(net).predict(x)
    np.testing.assert_allclose(onnx.load(first["onnx"]).predict(x, batch=3), expected, atol=1e-6)
    found = located(onnx.load(first["onnx"]).constants(), net, set())
    assert sum(m.constant is not None for p, m in found.items() if "gru" in p) >= 4


@pytest.mark.parametrize("format", FORMATS)
def test_a_pruned_lstm_keeps_its_zeros(format, tmp_path):
    """ONNX stores its gates in another order, and both directions in one tensor."""
    net = keras.Sequential(
        [
            keras.Input((6, 5)),
            layers.Bidirectional(layers.LSTM(8, return_sequences=True)),
            layers.LSTM(4),
        ]
    )
    promises = []
    for row in weight_table(net):
        if row.path.endswith("kernel"):
            kernel = row.read()
            zeros = np.abs(kernel) <= np.quantile(np.abs(kernel), 0.8)
            row.variable.assign(np.where(zeros, 0, kernel))
            promises.append(Promise(row.path, "zeros", zeros, kernel.shape))
    assert len(promises) == 6
    x = conversion.random_inputs(net, 64)
    (file,) = export(net, [format], tmp_path, stage="m", promises=promises, data=x, calibration=x)
    found = [file.tensors[promise.path]["tensor"] for promise in promises]
    assert len(set(found)) == 6 and found[0].endswith("LSTM_0:in1[0]")
    assert all("reason" not in file.tensors[promise.path] for promise in promises)
    # A zero that is none any more, in the other direction.
    kernel = next(row for row in weight_table(net) if "backward" in row.path)
    changed = np.array(kernel.read())
    changed[tuple(np.argwhere(changed == 0)[0])] = 0.9  # an output without weights has a step of 1
    kernel.variable.assign(changed)
    with pytest.raises(SecateurError, match="backward.*not found|outputs differ"):
        verify(file.path, format, net, promises, x)


def test_names_and_opset():
    import onnx as package

    blob = to_onnx(NETS["residual"]())["onnx"]
    proto = package.load_model_from_string(blob)
    package.checker.check_model(proto, full_check=True)
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", onnx_export.OPSET)]
    assert [value.name for value in proto.graph.input] == ["image_pixels"]
    assert [value.name for value in proto.graph.output] == ["Score"]
    batch = proto.graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_param == "batch"
    assert b"residual" in blob and b"unk__" not in blob and b"batchnorm" not in blob


def test_a_tensor_under_two_names():
    x = keras.Input((3,), name="x")
    y = layers.Dense(2, name="y")(x)
    net = keras.Model(x, [y, y])
    data = conversion.random_inputs(net, 5)
    expected = KerasSession(net).predict(data)
    found = onnx.load(to_onnx(net)["onnx"]).predict(data, batch=2)
    assert set(found) == set(expected)
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], atol=1e-6)


def test_trained_digits_keep_their_classes():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, 8, 8, 1).astype(np.float32)
    net = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.Adam(0.01), loss)
    net.fit(images[:1400], labels[:1400], epochs=12, batch_size=64, verbose=0)
    files = to_onnx(net, FORMATS, calibration=images[:200])
    expected = KerasSession(net).predict(images[1400:])
    assert np.mean(expected.argmax(-1) == labels[1400:]) > 0.88
    for format, least in (("onnx", 1.0), ("onnx-dynamic", 0.97), ("onnx-int8", 0.97)):
        given = onnx.load(files[format]).predict(images[1400:], batch=32)
        assert np.mean(given.argmax(-1) == expected.argmax(-1)) >= least, format


def test_an_output_without_weights_keeps_its_bias():
    net = keras.Sequential([keras.Input((8,)), layers.Dense(3), layers.Dense(2)])
    for layer in net.layers:
        kernel = np.random.default_rng(0).normal(size=layer.kernel.shape)
        kernel[:, 0] = 0
        layer.kernel.assign(kernel)
        layer.bias.assign(np.linspace(0.3, 0.9, layer.bias.shape[0]))
    x = np.random.default_rng(1).random((64, 8), dtype="float32")
    expected = KerasSession(net).predict(x)
    for blob in to_onnx(net, FORMATS, calibration=x).values():
        np.testing.assert_allclose(onnx.load(blob).predict(x), expected, atol=0.05)


def test_own_layers_reach_the_converter_by_import(tmp_path, monkeypatch):
    (tmp_path / "own_onnx_layers.py").write_text(MODULE.format(name="own_onnx_layers"))
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("own_onnx_layers")
    net = keras.Sequential([keras.Input((5,)), module.Doubled(), layers.Dense(2)])
    x = np.random.default_rng(0).random((6, 5), dtype="float32")
    found = onnx.load(to_onnx(net, imports=["own_onnx_layers"])["onnx"]).predict(x, batch=4)
    np.testing.assert_allclose(found, KerasSession(net).predict(x), rtol=1e-5, atol=1e-6)


def test_a_layer_without_operator_is_named():
    if not TENSORFLOW:
        pytest.skip("a raw TensorFlow operation needs TensorFlow as the backend")
    tf = pytest.importorskip("tensorflow")

    class Odd(layers.Layer):
        def call(self, x):
            return tf.raw_ops.Betainc(a=x, b=x, x=x)

    net = keras.Sequential([keras.Input((4,)), Odd()], name="odd")
    with pytest.raises(SecateurError, match=r"'odd' could not be converted .*Betainc") as refused:
        to_onnx(net)
    assert "\n" not in str(refused.value)


def test_the_model_is_not_changed_and_nothing_is_left_or_logged(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    net = NETS["several"]()
    before = [np.array(keras.ops.convert_to_numpy(w)) for w in net.weights]
    to_onnx(net, FORMATS, calibration=conversion.random_inputs(net, 4))
    for old, new in zip(before, net.weights, strict=True):
        np.testing.assert_array_equal(old, keras.ops.convert_to_numpy(new))
    assert list(tmp_path.iterdir()) == [] and caplog.records == []


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    x = np.zeros((4, 28, 28), "float32")
    with pytest.raises(SecateurError, match=r"none could not be used .*TMPDIR"):
        to_onnx(zoo.build("lab-cnn"), ["onnx-int8"], calibration=x)


def test_another_process_is_silent_and_gives_the_same_bytes(tmp_path):
    code = f"""
import sys
from pathlib import Path
import keras
import numpy as np
from secateur import onnx_export, zoo
keras.utils.set_random_seed(0)
model = zoo.build("lab-cnn")
print("imported", file=sys.stderr, flush=True)
x = np.random.default_rng(0).random((9, 28, 28), dtype="float32")
for format, blob in onnx_export.to_onnx(model, onnx_export.FORMATS, calibration=x).items():
    Path({str(tmp_path)!r}, format).write_bytes(blob)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "" and done.stderr.endswith("imported\n")
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).random((9, 28, 28), dtype="float32")
    for format, blob in to_onnx(zoo.build("lab-cnn"), FORMATS, calibration=x).items():
        assert (tmp_path / format).read_bytes() == blob, format


@pytest.mark.parametrize(
    ("formats", "calibration", "match"),
    [
        (["onnx-int4"], None, "'onnx-int4' received, expected one of onnx, onnx-dynamic"),
        (["onnx-int8"], None, "onnx-int8 received without calibration data"),
        (
            ["onnx-int8"],
            np.zeros((0, 28, 28)),
            "calibration data for image received that are empty",
        ),
        (["onnx-int8"], np.full((4, 28, 28), np.nan), "calibration data .* hold NaN"),
        (["onnx-int8"], np.zeros((4, 8, 8)), r"\(8, 8\) received for image, expected \(28, 28\)"),
    ],
)
def test_what_cannot_be_made_is_refused(formats, calibration, match):
    with pytest.raises(SecateurError, match=match) as refused:
        to_onnx(zoo.build("lab-cnn"), formats, calibration=calibration)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("package", "extra"), onnx_export.NEEDED.items())
def test_missing_packages_are_named(package, extra, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == package else found(n, *a)
    )
    with pytest.raises(
        SecateurError, match=rf"{package} is not installed.*pip install 'secateur\[{extra}\]'"
    ) as refused:
        to_onnx(zoo.build("lab-cnn"))
    assert "\n" not in str(refused.value)
