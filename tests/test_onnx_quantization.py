"""The `.onnx` file of a quantization-aware training has its grids, and answers as it was trained."""

from collections import Counter

import keras
import numpy as np
import onnxruntime
import pytest
from keras import layers, ops
from tests import digits_cnn
from tests import quantized_models as nets

from secateur import datasets, onnx_quantization
from secateur.errors import SecateurError
from secateur.exporting import export
from secateur.fake_quantization import (
    NARROWEST,
    kernel_steps,
    quantized_kernel,
    quantized_values,
    widened,
)
from secateur.loading import load
from secateur.methods.prune import Prune
from secateur.methods.quantize import Quantize
from secateur.onnx_export import to_onnx
from secateur.onnx_quantization import Kernel, activation_grid, kernel_codes
from secateur.pipeline import run
from secateur.promises import Promise
from secateur.recipe import Export, Recipe
from secateur.runtimes import onnx
from secateur.substitute import Substitution, as_in_file
from secateur.training import Train
from secateur.weights import Select, weight_table
from secateur.widths import Specification, Width, promised


def pooled():
    inputs = keras.Input(nets.SHAPE)
    x = layers.ZeroPadding2D(1)(inputs)
    x = layers.Conv2D(6, 3, activation="relu", name="conv")(x)
    x = layers.MaxPooling2D(2)(x)
    x = layers.AveragePooling2D(2)(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(layers.Flatten()(x)))


def mixed():
    """LayerNormalization and GELU stay float between layers that are quantized."""
    inputs = keras.Input(nets.SHAPE)
    x = layers.Dense(16, name="embed")(layers.Reshape((8, 16))(inputs))
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.Dense(16, activation="gelu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalAveragePooling1D()(x)))


def embedded():
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8, name="embedding")(inputs)
    x = layers.Conv1D(8, 3, activation="relu", name="conv")(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalMaxPooling1D()(x)))


MODELS = {**nets.MODELS, "pooled": pooled, "mixed": mixed, "embedded": embedded}
# Steps, and share of outputs. Averages that lie between two codes go to the even one, in LiteRT and in
# training away from the middle; attention and a BatchNorm of its own have constants that stay float.
FURTHER = {"pooled": (1, 0.2), "averaged": (4, 0.7), "unfolded": (1, 0.35), "attention": (2, 0.1)}
QUICK = ("normalized", "residual", "joined", "pooled", "mixed", "embedded")
# Elsewhere each conversion takes a process of its own: one network is enough to see the way there.
in_full = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="in full on TensorFlow"
)
CASES = [
    "normalized",
    *(pytest.param(name, marks=in_full) for name in QUICK[1:]),
    *(pytest.param(n, marks=[in_full, pytest.mark.slow]) for n in MODELS if n not in QUICK),
]


def inputs_of(model, n=64):
    rng = np.random.default_rng(1)
    shape = (n, *model.input_shape[1:])
    return rng.integers(0, 20, shape, "int32") if len(shape) == 2 else rng.random(shape, "float32")


def randomized(make):
    """Statistics and biases as after a training."""
    keras.utils.set_random_seed(0)
    model, rng = make(), np.random.default_rng(3)
    for weight in model.weights:
        if weight.name in ("gamma", "beta", "moving_mean", "moving_variance"):
            sign = 1 if weight.name == "moving_variance" else rng.choice([-1, 1], weight.shape)
            weight.assign(rng.uniform(0.5, 1.5, weight.shape) * sign)
        elif weight.name == "bias":
            weight.assign(rng.normal(0, 0.1, weight.shape))
    return model


def specified(model, x, step=None):
    """What an aware training would leave, with the ranges of data: no training is needed for it."""
    found = (step or Quantize(aware=True)).specify(weight_table(model))
    substitution = Substitution(model, found.widths)
    substitution.start_from([x])
    return Specification(format=found.format, widths=found.widths, ranges=substitution.ranges())


def answers(model, specification, x):
    with as_in_file(model, specification.widths, specification.ranges) as quantized:
        return quantized.predict(x, verbose=0)


def file_of(model, specification, x=None):
    settings = {"widths": specification.widths, "trained": specification.ranges}
    return to_onnx(model, ["onnx-int8"], calibration=x, **settings)["onnx-int8"]


def session(blob, level="ORT_ENABLE_ALL", dump=None):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = 4
    if dump is not None:
        options.optimized_model_filepath = str(dump)
    return onnxruntime.InferenceSession(blob, options, providers=["CPUExecutionProvider"])


def steps_apart(found, expected, blob):
    (step,) = onnx.load(blob).output_steps.values()
    apart = np.abs(found - expected) / step
    return apart.max(), np.mean(apart > 0.5)


def executed(blob, tmp_path):
    """The operators that onnxruntime makes of a file."""
    import onnx as package

    session(blob, "ORT_ENABLE_EXTENDED", tmp_path / "optimized.onnx")
    graph = package.load(tmp_path / "optimized.onnx").graph
    return Counter(node.op_type for node in graph.node)


def test_activations_have_the_grid_of_training():
    values = np.random.default_rng(0).normal(1, 3, 1000).astype("float32")
    for low, high in ((-1.3, 2.7), (0.0, 6.0), (0.4, 0.9), (-2.0, -1.0), (0.0, 0.0)):
        scale, zero_point = activation_grid(low, high)
        codes = np.clip(np.rint(values / scale) + zero_point, 0, 255)
        bounds = widened(ops.array(low), ops.array(high))
        expected = ops.convert_to_numpy(quantized_values(ops.array(values), *bounds, 8))
        np.testing.assert_allclose((codes - zero_point) * scale, expected, atol=1e-5 * scale + 1e-7)
    assert onnx_quantization.NARROWEST == NARROWEST


@pytest.mark.parametrize("bits", [4, 8])
def test_kernels_have_the_codes_of_training(bits):
    values = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    values[:, 1] = 0
    outputs = np.broadcast_to(np.arange(3), (5, 3))
    codes, scales = kernel_codes(values, Kernel(bits=bits, outputs=outputs))
    expected = ops.convert_to_numpy(quantized_kernel(values, kernel_steps(values, bits, (1,))))
    np.testing.assert_allclose(codes * scales, expected, rtol=1e-6)
    assert np.abs(codes).max() == 2 ** (bits - 1) - 1 and not codes[:, 1].any()


@pytest.mark.parametrize("name", CASES)
def test_files_answer_as_their_training(name, tmp_path):
    model = randomized(MODELS[name])
    x = inputs_of(model)
    specification = specified(model, x)
    expected = answers(model, specification, x)
    blob = file_of(model, specification, x)
    most, often = FURTHER.get(name, (1, 0.04))
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        opened = session(blob, level)
        (found,) = opened.run(None, {opened.get_inputs()[0].name: x})
        apart, share = steps_apart(found, expected, blob)
        assert apart <= most + 0.01 and share <= often, level


@in_full
def test_without_data_the_file_is_the_same():
    model = randomized(nets.plain)
    x = inputs_of(model)
    specification = specified(model, x)
    assert file_of(model, specification) == file_of(model, specification, x)


@in_full
def test_other_ranges_make_another_file():
    """What is compared above can fail: a range of half the size is noticed."""
    model = randomized(nets.plain)
    x = inputs_of(model)
    specification = specified(model, x)
    narrow = {key: (low / 2, high / 2) for key, (low, high) in specification.ranges.items()}
    wrong = Specification(format="int8", widths=specification.widths, ranges=narrow)
    blob = file_of(model, wrong)
    found = onnx.load(blob).predict(x)
    assert steps_apart(found, answers(model, specification, x), blob)[0] > 3


@in_full
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain", {"QLinearConv": 1, "QGemm": 1}),
        ("normalized", {"QLinearConv": 4, "QGemm": 2}),
        ("residual", {"QLinearConv": 2, "QLinearAdd": 1, "QGemm": 1}),
        ("pooled", {"QLinearConv": 1, "QLinearAveragePool": 1, "QGemm": 1, "QLinearSoftmax": 1}),
        ("embedded", {"QLinearConv": 1, "QGemm": 1}),
        ("sequence", {"QLinearConv": 1, "QLinearAdd": 1, "MatMulIntegerToFloat": 1, "QGemm": 1}),
    ],
)
def test_onnxruntime_computes_integers(name, expected, tmp_path):
    model = randomized(MODELS[name])
    made = executed(file_of(model, specified(model, inputs_of(model))), tmp_path)
    assert {kind: made[kind] for kind in expected} == expected
    assert not set(made) & {"Conv", "FusedConv", "Gemm", "MatMul", "Relu", "Clip"}


@in_full
def test_biases_are_codes_and_zeros_stay_zeros(tmp_path):
    model = randomized(nets.plain)
    promises = []
    for layer in ("conv", "head"):
        kernel, bias = model.get_layer(layer).get_weights()
        zeros = np.abs(kernel) <= np.quantile(np.abs(kernel), 0.8)
        zeros[..., 0] = True  # an output without weights keeps its bias
        model.get_layer(layer).set_weights([np.where(zeros, 0, kernel), bias + 0.3])
        promises.append(Promise(f"{layer}/kernel", "zeros", zeros, kernel.shape))
    x = inputs_of(model)
    specification = specified(model, x)
    promises += promised(specification.widths, weight_table(model))
    (file,) = export(
        model,
        ["onnx-int8"],
        tmp_path,
        stage="aware",
        promises=promises,
        data=x,
        specification=specification,
    )
    assert file.parity["agreement"] == 1.0
    found = onnx.load(file.path)
    kinds = Counter((str(c.values.dtype), c.coded) for c in found.constants())
    assert kinds == {("int8", True): 2, ("int32", True): 2}
    expected = answers(model, specification, x)
    assert steps_apart(found.predict(x), expected, file.path)[0] <= 1.01


@in_full
@pytest.mark.parametrize("name", ["plain", "normalized", "embedded"])
def test_four_bits_are_stored_as_four(name, tmp_path):
    model = randomized(MODELS[name])
    x = inputs_of(model)
    specification = specified(model, x, Quantize(bits=4, aware=True))
    (file,) = export(
        model,
        ["onnx-int8"],
        tmp_path,
        stage="aware",
        promises=promised(specification.widths, weight_table(model)),
        data=x,
        specification=specification,
    )
    expected = answers(model, specification, x)
    apart, share = steps_apart(onnx.load(file.path).predict(x), expected, file.path)
    assert apart <= 1.01 and share <= 0.15
    bits = {path: found.get("bits") for path, found in file.tensors.items()}
    assert bits["head/kernel"] == 4
    halved = sum(w.size for w in weight_table(model) if file.tensors[w.path].get("bits") == 4) / 2
    saved = len(file_of(model, specified(model, x), x)) - file.bytes
    assert saved == pytest.approx(halved, abs=150) and halved > 100


@in_full
def test_a_step_after_training_has_its_widths_too(tmp_path):
    model = randomized(nets.plain)
    x = inputs_of(model)
    step = Quantize(bits=4, select=Select(include=("head",)), otherwise=8)
    specification = step.specify(weight_table(model))
    settings = {"data": x, "specification": specification}
    settings["promises"] = promised(specification.widths, weight_table(model))
    (file,) = export(model, ["onnx-int8"], tmp_path, stage="m", calibration=x, **settings)
    assert file.tensors["head/kernel"]["bits"] == 4 and file.tensors["conv/kernel"]["bits"] == 8
    with pytest.raises(SecateurError, match="onnx-int8 received without calibration data"):
        export(model, ["onnx-int8"], tmp_path, stage="m", **settings)


@in_full
def test_what_cannot_be_written_is_refused():
    model = randomized(nets.plain)
    x = inputs_of(model)
    specification = specified(model, x)
    with pytest.raises(SecateurError, match=r"ranges of another model received \(nowhere"):
        to_onnx(model, ["onnx-int8"], trained={**specification.ranges, "nowhere": (0.0, 1.0)})
    with pytest.raises(SecateurError, match=r"ranges of another model received \(head"):
        fewer = {key: bounds for key, bounds in specification.ranges.items() if key != "head"}
        to_onnx(model, ["onnx-int8"], trained=fewer)
    recurrent = keras.Sequential([keras.Input((4, 3)), layers.LSTM(4, name="lstm")])
    widths = {"lstm/lstm_cell/kernel": Width(bits=8)}
    data = np.zeros((4, 4, 3), "float32")
    path = next(w.path for w in weight_table(recurrent) if w.role == "kernel")
    with pytest.raises(SecateurError, match=rf"{path} as 8 bits received, which LSTM takes"):
        to_onnx(recurrent, ["onnx-int8"], widths={path: widths.popitem()[1]}, calibration=data)


@in_full
def test_the_same_training_gives_the_same_bytes():
    model = randomized(nets.joined)
    specification = specified(model, inputs_of(model))
    assert file_of(model, specification) == file_of(model, specification)


@in_full
@pytest.mark.slow
def test_a_run_writes_both_files_with_the_zeros_of_an_earlier_step(tmp_path):
    data = datasets.load("digits")
    recipe = Recipe(
        steps=[Prune(sparsity=0.8), Quantize(aware=True)],
        train=Train(epochs=2, learning_rate=0.002),
        export=Export(formats=("keras", "onnx-int8")),
        control=False,
    )
    made = run(digits_cnn.trained(data), recipe, data, tmp_path / "out")
    rows = {row["row"]: row for row in made.record["rows"]}
    assert list(rows)[-3:] == ["quantized-keras", "quantized-int8", "quantized-onnx-int8"]
    assert rows["quantized-onnx-int8"]["accuracy"] == pytest.approx(
        rows["quantized-int8"]["accuracy"], abs=0.005
    )
    assert rows["quantized-onnx-int8"]["parity"]["agreement"] == 1.0
    assert rows["quantized-onnx-int8"]["zeros"] >= rows["quantized-keras"]["zeros"]
    # The Keras file and what stands beside it make the same file again.
    found = load(tmp_path / "out" / "quantized-keras.keras")
    (again,) = export(found, ["onnx-int8"], tmp_path, stage="again")
    before = (tmp_path / "out" / "quantized-onnx-int8.onnx").read_bytes()
    assert again.path.read_bytes() == before


def test_a_specification_asks_for_both_files():
    asked = ["keras", "onnx", "onnx-int8"]
    assert Specification(format="int8").formats(asked) == ("keras", "int8", "onnx-int8")
    assert Specification(format="int4").formats(asked) == ("keras", "int4")
