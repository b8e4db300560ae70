"""Classes, and outputs, in another's place: refused in every format, and told from noise."""

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from keras import layers
from tests.digits_cnn import copy, trained
from tests.flatbuffer_files import packed, unpacked

import secateur as sc
from secateur.artifact import FORMATS
from secateur.errors import SecateurError
from secateur.exporting import export
from secateur.verification import compare, exchanged, verify


@pytest.fixture(scope="module")
def data():
    return sc.load_data("digits")


@pytest.fixture(scope="module")
def model(data):
    return trained(data)


COMPILED = [format for format in FORMATS if FORMATS[format] in (".tflite", ".onnx")]
ORDERS = {
    "all of ten": (
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 0],
        "class 1 in the place of 0, 2 in the place of 1",
    ),
    "a pair": ([0, 1, 2, 5, 4, 3, 6, 7, 8, 9], "class 5 in the place of 3, 3 in the place of 5"),
}


@pytest.fixture(scope="module")
def files(model, data, tmp_path_factory):
    made = export(
        model,
        tuple(FORMATS),
        tmp_path_factory.mktemp("files"),
        stage="m",
        calibration=data.train.x[:200],
        data=data.test.x,
    )
    return {file.format: file.path for file in made}


def reordered(path, order):
    """The file with an operator behind its output that puts the classes in another order."""
    if path.suffix == ".onnx":
        import onnx

        proto = onnx.load(path)
        (output,) = proto.graph.output
        for node in proto.graph.node:
            node.output[:] = ["before" if n == output.name else n for n in node.output]
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(np.array(order, np.int64), "order")
        )
        proto.graph.node.append(
            onnx.helper.make_node("Gather", ["before", "order"], [output.name], axis=-1)
        )
        return proto.SerializeToString()
    tables = unpacked(path.read_bytes())
    graph = tables.subgraphs[0]
    (last,) = graph.outputs
    tables.buffers.append(schema.BufferT(data=np.int32(order).view(np.uint8)))
    graph.tensors.append(
        schema.TensorT(
            shape=[10], type=schema.TensorType.INT32, buffer=len(tables.buffers) - 1, name="order"
        )
    )
    kept = {
        key: value
        for key, value in vars(graph.tensors[last]).items()
        if key not in ("name", "buffer")
    }
    tables.buffers.append(schema.BufferT())
    after = schema.TensorT(**kept, name="after", buffer=len(tables.buffers) - 1)
    graph.tensors.append(after)
    code = schema.BuiltinOperator.GATHER
    tables.operatorCodes.append(
        schema.OperatorCodeT(deprecatedBuiltinCode=code, builtinCode=code, version=4)
    )
    graph.operators.append(
        schema.OperatorT(
            opcodeIndex=len(tables.operatorCodes) - 1,
            inputs=[last, len(graph.tensors) - 2],
            outputs=[len(graph.tensors) - 1],
            builtinOptionsType=schema.BuiltinOptions.GatherOptions,
            builtinOptions=schema.GatherOptionsT(axis=1),
        )
    )
    graph.outputs = [len(graph.tensors) - 1]
    tables.signatureDefs[0].outputs[0].tensorIndex = len(graph.tensors) - 1
    return packed(tables)


@pytest.mark.parametrize(
    ("format", "order"),
    [*((format, "a pair") for format in COMPILED), ("int8", "all of ten"), ("onnx", "all of ten")],
)
def test_permuted_classes_are_named_with_every_weight_in_its_place(
    files, model, data, tmp_path, format, order
):
    permutation, told = ORDERS[order]
    path = tmp_path / files[format].name
    if format == "int8":  # the operator itself does no harm
        path.write_bytes(reordered(files[format], list(range(10))))
        assert verify(path, format, model, data=data.test.x).tensors["dense/kernel"]["tensor"]
    path.write_bytes(reordered(files[format], permutation))
    with pytest.raises(SecateurError, match=f"output dense with {told}.*fix: export") as error:
        verify(path, format, model, data=data.test.x)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("format", FORMATS)
def test_a_pair_of_classes_swapped_in_the_last_layer_is_named(files, model, data, format):
    """The file is right, and of a model whose third and fifth class changed places."""
    other = copy(model)
    *first, kernel, bias = model.get_weights()
    order = ORDERS["a pair"][0]
    other.set_weights([*first, kernel[:, order], bias[order]])
    with pytest.raises(SecateurError, match=ORDERS["a pair"][1]):
        verify(files[format], format, other, data=data.test.x)


@pytest.mark.parametrize("format", ["float32", "int8", "onnx", "onnx-int8"])
def test_outputs_that_changed_names_are_told_apart(format, data, tmp_path):
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8), name="image")
    x = layers.Dense(16, activation="relu")(layers.Flatten()(image))
    net = keras.Model(image, {name: layers.Dense(4, name=name)(x) for name in ("left", "right")})
    options = {"calibration": data.train.x[:100], "data": data.test.x}
    (file,) = export(net, [format], tmp_path, stage="m", **options)
    names = {"left": "right", "right": "left"}
    if format.startswith("onnx"):
        import onnx

        proto = onnx.load(file.path)
        for node in proto.graph.node:
            node.output[:] = [names.get(name, name) for name in node.output]
            node.input[:] = [names.get(name, name) for name in node.input]
        file.path.write_bytes(proto.SerializeToString())
    else:
        tables = unpacked(file.path.read_bytes())
        for output in tables.signatureDefs[0].outputs:
            name = output.name.decode()
            output.name = names[name]
        file.path.write_bytes(packed(tables))
    with pytest.raises(SecateurError, match="output right in the place of left received.*fix: "):
        verify(file.path, format, net, data=data.test.x)


@pytest.mark.parametrize("kind", ["trained", "constant", "one direction"])
@pytest.mark.parametrize("classes", [10, 1000])
def test_noise_is_no_exchange(kind, classes):
    """Poor is not wrong: noise of a third of the spread, on outputs of every make."""
    rng = np.random.default_rng(classes)
    outputs = {
        "trained": rng.normal(size=(256, classes)),
        "constant": rng.normal(size=classes) + 0.01 * rng.normal(size=(256, classes)),
        "one direction": rng.normal(size=classes) * rng.normal(1, 0.3, (256, 1)),
    }[kind]
    spread = outputs.std()
    for _ in range(2):
        offset = 0.33 * spread * rng.normal(size=classes)
        noise = 0.33 * spread * rng.normal(size=outputs.shape)
        gain = rng.normal(1, 0.33, classes)
        for given in (outputs + offset, outputs + noise, outputs * gain):
            assert exchanged({"a": outputs}, {"a": given}) == ""
    if kind == "one direction":  # as far off as 8 bits allow, and at the size of another's
        wide = outputs.copy()
        wide[:, :2] = wide[:, 2:3] / wide[0, 2] * [1, 3] * np.abs(wide[0]).max()
        assert (
            exchanged({"a": wide}, {"a": wide * np.repeat([3, 1 / 3, 1], [1, 1, classes - 2])})
            == ""
        )
    order = np.arange(classes)
    order[[0, 1]] = [1, 0]
    if kind == "trained":
        given = outputs[:, order] + 0.1 * rng.normal(size=outputs.shape)
        assert "1 in the place of 0" in exchanged({"a": outputs}, {"a": given})


def test_outputs_too_near_for_8_bits_are_poor_and_not_wrong():
    """A softmax over many classes that knows nothing yet: codes cannot tell its classes apart."""
    rng = np.random.default_rng(0)
    outputs = {"p": (0.01 + 1e-4 * rng.normal(size=(64, 100))).astype(np.float32)}
    codes = {"p": np.full((64, 100), np.float32(2 / 256))}
    parity = compare(outputs, codes, "int8", {"p": 1 / 256})
    assert parity["agreement"] < 0.1 and parity["relative_rms"] > 10  # and it is said
    with pytest.raises(SecateurError, match="outputs differ"):
        compare(outputs, codes, "int8")
