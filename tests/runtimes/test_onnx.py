"""What is read from an `.onnx` and what comes out of it, at every batch size."""

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import onnx as package
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur import zoo
from secateur.errors import SecateurError
from secateur.onnx_export import FORMATS, to_onnx
from secateur.runtimes import onnx
from secateur.runtimes.keras import KerasSession


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    made = zoo.build("lab-cnn")
    for weight in made.weights:
        weight.assign(weight + 0.01)  # no zero bias, which would not be stored
    return made


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).random((256, 28, 28), dtype="float32")


@pytest.fixture(scope="module")
def files(model, x):
    return to_onnx(model, FORMATS, calibration=x)


def built(nodes, tensors, inputs, outputs, opset=21):
    """A file made by hand: inputs and outputs are {name: (type, shape)}."""
    graph = helper.make_graph(
        nodes,
        "by hand",
        [helper.make_tensor_value_info(n, *told) for n, told in inputs.items()],
        [helper.make_tensor_value_info(n, *told) for n, told in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()


def product(batch="n", dtype=np.float32):
    return built(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"w": np.arange(6, dtype=dtype).reshape(3, 2)},
        {"x": (helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), [batch, 3])},
        {"y": (helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), [batch, 2])},
    )


@pytest.mark.parametrize("format", ["onnx", "onnx-int8"])
def test_batch_1_7_and_256_give_equal_outputs(files, x, format):
    session = onnx.load(files[format])
    whole = session.predict(x, batch=256)
    assert whole.shape == (256, 10) and whole.dtype == np.float32
    # 256 = 36 * 7 + 4: the last batch is a partial one
    for batch in (1, 7):
        np.testing.assert_allclose(session.predict(x, batch=batch), whole, rtol=0, atol=1e-6)
    assert session.resizable


def test_what_is_inside_the_file(files, model):
    session = onnx.load(files["onnx"], threads=2)
    assert session.threads == 2 and session.name.startswith("onnxruntime 1.")
    assert (session.input_names, session.output_names) == (("image",), ("dense",))
    assert (session.input_shape, session.output_shape) == ((28, 28), (10,))
    assert {"Conv": 1, "MaxPool": 1, "MatMul": 1}.items() <= dict(session.operators()).items()
    # by hand: 26 x 26 places x 12 filters x 9 weights, and 13 x 13 x 12 inputs x 10 outputs
    assert session.macs() == 26 * 26 * 12 * 9 + 2028 * 10 == 93_288
    kernels = {c.operator: c for c in session.constants() if c.slot == 1}
    assert kernels["Conv"].values.shape == (12, 1, 3, 3) and not kernels["Conv"].coded
    dense = np.asarray(keras.ops.convert_to_numpy(model.layers[-1].kernel))
    np.testing.assert_array_equal(kernels["MatMul"].values, dense)
    assert sum(c.values.size for c in session.constants()) == 20_410
    assert session.output_steps == {"dense": 0.0} and session.costs() == {}


def operator_format(files, x, tmp_path):
    """The other format of onnxruntime's static quantizer, which a foreign file may have."""
    from onnxruntime import quantization

    batches = iter([{"image": x[:32]}])

    class Reader(quantization.CalibrationDataReader):
        def get_next(self):
            return next(batches, None)

    path = tmp_path / "operators.onnx"
    float_path = tmp_path / "float.onnx"
    float_path.write_bytes(files["onnx"])
    quantization.quantize_static(
        float_path,
        path,
        Reader(),
        quant_format=quantization.QuantFormat.QOperator,
        per_channel=True,
        op_types_to_quantize=["Conv", "MatMul"],  # others become operators of onnxruntime's own
    )
    return path.read_bytes()


@pytest.mark.parametrize("format", ["onnx-dynamic", "onnx-int8", "QOperator"])
def test_codes_are_within_half_a_step_of_the_weights(files, model, x, format, tmp_path):
    blob = files[format] if format in files else operator_format(files, x, tmp_path)
    session = onnx.load(blob)
    kernels = [c for c in session.constants() if c.coded and c.values.ndim > 1]
    floats = [c for c in onnx.load(files["onnx"]).constants() if c.values.ndim > 1]
    assert len(kernels) == len(floats) == 2
    for coded, stored in zip(kernels, floats, strict=True):
        assert coded.values.dtype == np.int8 and coded.values.shape == stored.values.shape
        difference = np.abs(coded.dequantized() - stored.values)
        assert 0 < (difference / coded.step()).max() <= 0.501
    assert session.macs() == 93_288
    # No scale and no zero point is taken for a weight.
    assert sum(c.values.size for c in session.constants()) == 20_410


def test_biases_are_codes_in_a_static_file(files):
    biases = [c for c in onnx.load(files["onnx-int8"]).constants() if c.values.ndim == 1]
    assert [(c.operator, c.slot, c.values.dtype) for c in biases] == [
        ("Conv", 2, np.int32),
        ("Gemm", 2, np.int32),
    ]
    assert all(c.coded and c.scale.shape == c.values.shape for c in biases)


def test_the_step_of_decoded_outputs_is_told(files, x):
    session = onnx.load(files["onnx-int8"])
    (step,) = session.output_steps.values()
    codes = session.predict(x) / step
    assert step > 0
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-3)


def test_scales_for_blocks_are_multiplied_out():
    codes = np.arange(-8, 7, dtype=np.int8).reshape(5, 3)
    scale = np.float32([[1, 2, 3], [10, 20, 30], [100, 200, 300]])  # for two rows each
    nodes = [
        helper.make_node("DequantizeLinear", ["c", "s"], ["w"], axis=0, block_size=2),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    shapes = {"x": (TensorProto.FLOAT, ["n", 5])}, {"y": (TensorProto.FLOAT, ["n", 3])}
    session = onnx.load(built(nodes, {"c": codes, "s": scale}, *shapes))
    (constant,) = session.constants()
    assert (constant.operator, constant.slot, constant.coded) == ("MatMul", 1, False)
    np.testing.assert_array_equal(constant.values, codes * np.repeat(scale, 2, 0)[:5])
    np.testing.assert_array_equal(session.predict(np.eye(5)), constant.values)


def test_an_lstm_comes_apart_in_keras_order():
    """Codes and floats alike; onnxruntime's own operator has the axes the other way round."""
    net = keras.Sequential(
        [keras.Input((6, 5)), keras.layers.Bidirectional(keras.layers.LSTM(4), name="both")]
    )
    for variable in net.variables:
        if variable.path.endswith("bias"):
            variable.assign(np.random.default_rng(0).normal(size=variable.shape))
    made = to_onnx(net, ("onnx", "onnx-dynamic"))
    floats, codes = (
        [c for c in onnx.load(blob).constants() if "LSTM" in c.operator] for blob in made.values()
    )
    assert ("DynamicQuantizeLSTM", 1) in onnx.load(made["onnx-dynamic"]).operators()
    weights = [keras.ops.convert_to_numpy(w) for w in net.get_weights()]
    order = [0, 3, 1, 4, 2]  # kernels of both directions, states, and the first bias
    assert [c.slot for c in floats] == [c.slot for c in codes] == [1, 1, 2, 2, 3, 3, 3, 3]
    for place, k in enumerate(order):
        stored = floats[place].values
        np.testing.assert_array_equal(stored.T if weights[k].ndim == 2 else stored, weights[k])
        found = codes[place].dequantized()
        assert codes[place].coded == (weights[k].ndim == 2)
        off = np.abs(found - weights[k])
        assert (off <= 0.501 * codes[place].step()).all() if codes[place].coded else not off.any()
    assert not floats[5].values.any()  # of the state: Keras's LSTM has one bias
    np.testing.assert_array_equal(floats[6].values, weights[5])
    assert onnx.load(made["onnx"]).macs() is None


def test_a_file_with_a_batch_of_its_own_still_gives_every_output():
    session = onnx.load(product(batch=4))
    data = np.random.default_rng(0).random((11, 3), dtype="float32")
    expected = data @ np.arange(6).reshape(3, 2)
    np.testing.assert_allclose(session.predict(data, batch=7), expected, rtol=1e-6)
    assert not session.resizable and session.macs() == 6


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.int64])
def test_inputs_are_given_as_the_file_takes_them(dtype):
    outputs = onnx.load(product(dtype=dtype)).predict(np.eye(3))
    assert outputs.dtype == np.float32
    np.testing.assert_array_equal(outputs, np.arange(6).reshape(3, 2))


def test_neither_tensorflow_nor_keras_is_imported_and_nothing_is_printed(files, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(files["onnx"])
    code = f"""
import sys
import numpy as np
from secateur.runtimes import runtime_for
session = runtime_for({str(path)!r}).load({str(path)!r})
session.predict(np.zeros((3, 28, 28)), batch=2)
print(session.macs(), [m for m in ("tensorflow", "keras", "jax", "torch") if m in sys.modules])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("93288 []\n", "")


def test_samples_of_another_shape_are_refused_with_both_shapes(files):
    session = onnx.load(files["onnx"])
    with pytest.raises(SecateurError, match=r"\(8, 8\) received for image, expected \(28, 28\)"):
        session.predict(np.zeros((2, 8, 8), "float32"))
    with pytest.raises(SecateurError, match=r"inputs \['left', 'right'\] received"):
        session.predict({"left": np.zeros(1), "right": np.zeros(1)})


def scalar():
    shapes = {"x": (TensorProto.FLOAT, [])}, {"y": (TensorProto.FLOAT, [])}
    return built([helper.make_node("Neg", ["x"], ["y"])], {}, *shapes)


def merged():
    """A sum over the batch: no output for each sample."""
    shapes = {"x": (TensorProto.FLOAT, ["n", 3])}, {"y": (TensorProto.FLOAT, [1, 3])}
    return built([helper.make_node("ReduceSum", ["x", "a"], ["y"])], {"a": np.int64([0])}, *shapes)


def words():
    shapes = {"x": (TensorProto.STRING, ["n"])}, {"y": (TensorProto.STRING, ["n"])}
    return built([helper.make_node("Identity", ["x"], ["y"])], {}, *shapes)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (scalar, "x has no axis for the batch"),
        (merged, r"output y has shape \(1, 3\)"),
        (words, r"input x is a tensor\(string\)"),
    ],
)
def test_files_without_a_row_for_each_sample_are_refused(make, match):
    with pytest.raises(SecateurError, match=match) as refused:
        onnx.load(make()).predict(np.zeros((2, 3)))
    assert "\n" not in str(refused.value)


def test_weights_in_other_files_are_refused(tmp_path):
    """onnxruntime would look for them from the folder that it runs in."""
    proto = package.load_model_from_string(product())
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    with pytest.raises(SecateurError, match="keeps w in another file"):
        onnx.load(proto.SerializeToString())
    proto = package.load_model_from_string(product())
    values = numpy_helper.from_array(np.float32([1]), "w")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.int64([1])), [3, 2])
    proto.graph.sparse_initializer.append(sparse)
    del proto.graph.initializer[:]
    with pytest.raises(SecateurError, match="keeps w in another file or a sparse encoding"):
        onnx.load(proto.SerializeToString())


@pytest.mark.parametrize(
    "damage",
    [
        lambda blob: b"",
        lambda blob: b"PK\3\4" + blob,
        lambda blob: blob[:200],
        lambda blob: blob[: len(blob) // 2],
        lambda blob: blob[:24] + b"\xff" * 60 + blob[84:],
        lambda blob: blob.replace(b"MaxPool", b"MaxFool"),
        lambda blob: np.random.default_rng(0).bytes(5000),
    ],
)
def test_a_damaged_file_is_one_line(files, tmp_path, damage):
    path = tmp_path / "model.onnx"
    path.write_bytes(damage(files["onnx"]))
    with pytest.raises(SecateurError, match=r"is damaged|does not run") as refused:
        onnx.load(path)
    assert "\n" not in str(refused.value) and "model.onnx" in str(refused.value)


def mutated(blob, rng):
    """A file with a bit or more flipped, cut off, or with bytes missing or replaced."""
    blob, how, place = bytearray(blob), rng.choice(["cut", "flip", "flip", "drop", "noise"]), 0
    place = rng.randrange(len(blob))
    if how == "cut":
        return bytes(blob[:place])
    if how == "drop":
        del blob[place : place + rng.randrange(1, 20)]
    elif how == "noise":
        end = min(len(blob), place + 40)
        blob[place:end] = rng.randbytes(end - place)
    else:
        for _ in range(rng.choice([1, 1, 3, 20])):
            blob[rng.randrange(len(blob))] ^= 1 << rng.randrange(8)
    return bytes(blob)


def survive(blobs, count, seed):
    """Load and run damaged files; returns how many were refused, each in one line."""
    rng, refused = random.Random(seed), 0
    for _ in range(count):
        blob = mutated(rng.choice(blobs), rng)
        try:
            session = onnx.load(blob)
            session.constants(), session.operators(), session.macs(), session.output_steps
            session.predict({n: np.zeros((2, *s)) for n, s in session.samples.items()})
        except SecateurError as error:
            assert "\n" not in str(error)
            refused += 1
    return refused


def small(files):
    """The parts of a file that are not weights are most of it here: that is where damage tells."""
    layers = [keras.layers.Conv2D(2, 3), keras.layers.Flatten(), keras.layers.Dense(3)]
    net = keras.Sequential([keras.Input((6, 6, 1)), *layers])
    made = to_onnx(net, FORMATS, calibration=np.random.default_rng(0).random((8, 6, 6, 1)))
    return list(made.values())


def test_damage_anywhere_is_refused_or_harmless(files, capfd):
    assert survive(small(files), 60, seed=1) > 30
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_damage_never_ends_the_process(files, tmp_path):
    for number, blob in enumerate([*small(files), *files.values()]):
        (tmp_path / f"{number}.onnx").write_bytes(blob)
    code = f"""
import pathlib
from tests.runtimes.test_onnx import survive
blobs = [path.read_bytes() for path in sorted(pathlib.Path({str(tmp_path)!r}).glob("*.onnx"))]
print(survive(blobs, 600, seed=2))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path.cwd())])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.splitlines()[-1]) > 200


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SecateurError, match=r"none.onnx could not be read .*expected a .onnx file"):
        onnx.load(tmp_path / "none.onnx")


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_a_missing_runtime_names_the_extra(files, monkeypatch, name):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == name else found(n, *a)
    )
    with pytest.raises(SecateurError, match=r"pip install 'secateur\[onnx\]'"):
        onnx.load(files["onnx"])


def test_keras_agrees(files, model, x):
    expected = KerasSession(model).predict(x)
    for format, most in (("onnx", 1e-5), ("onnx-dynamic", 0.05), ("onnx-int8", 0.05)):
        difference = np.abs(onnx.load(files[format]).predict(x) - expected).max()
        assert difference <= most * np.abs(expected).max(), format


def test_codes_at_the_ends_of_a_file_are_values_outside():
    """A file that takes and gives uint8: what goes in is quantized, what comes out is decoded."""
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "step", "zero"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Sigmoid", ["b"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "unit", "none"], ["y"]),
    ]
    tensors = {
        **{"step": np.float32(0.5), "zero": np.uint8(10), "w": np.eye(2, dtype="float32")},
        **{"unit": np.float32(1 / 256), "none": np.uint8(0)},
    }
    ends = TensorProto.UINT8, ["n", 2]
    session = onnx.load(built(nodes, tensors, {"x": ends}, {"y": ends}))
    values = np.array([[0.0, 1.5], [-5.0, 40.0]])
    expected = 1 / (1 + np.exp(-values))
    np.testing.assert_allclose(session.predict(values), expected, atol=1 / 256)
    np.testing.assert_array_equal(session.predict(np.int64([[0, 3]])), session.predict([[0.0, 3]]))
    assert session.input_coding("x") == (np.uint8, 0.5, 10)
    assert session.meanings() == {"y": "probabilities"}


def test_whole_numbers_are_not_made_of_others():
    session = onnx.load(product(dtype=np.int64))
    assert session.predict(np.float32([[1, 2, 3]])).tolist() == [[16, 22]]
    with pytest.raises(SecateurError, match="an input of int64 without a scale, expected whole"):
        session.predict(np.float32([[0.5, 2, 3]]))
