"""A stripped file computes what it computed, to the last bit, and holds nothing it can do without."""

import keras
import numpy as np
import pytest
from ai_edge_litert import interpreter
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import qtyping
from ai_edge_quantizer.quantizer import Quantizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.flatbuffer_files import File, unpacked

from secateur import conversion, export, zoo
from secateur.artifact import gzip_bytes
from secateur.errors import SecateurError
from secateur.runtimes import litert, onnx, tflm
from secateur.runtimes.keras import KerasSession
from secateur.stripping import embedded, strip
from secateur.tflite import TfliteFile

# The quantizer opens an interpreter of its own, which warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*experimental_preserve_all_tensors:UserWarning")

layers = keras.layers
XNNPACK = interpreter.OpResolverType.BUILTIN
REFERENCE = interpreter.OpResolverType.BUILTIN_REF


def net():
    """Convolutions, BatchNorm, a residual branch and a dense end, with half of the zeros to encode."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 1), name="image")
    a = layers.BatchNormalization()(layers.Conv2D(32, 3, padding="same", activation="relu")(x))
    b = layers.DepthwiseConv2D(3, padding="same", activation="relu")(a)
    b = layers.Conv2D(32, 1)(b)
    y = layers.GlobalAveragePooling2D()(layers.Add()([a, b]))
    y = layers.Dense(32, activation="relu", name="hidden")(y)
    model = keras.Model(x, layers.Dense(4, activation="softmax", name="score")(y))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        values = rng.normal(0, 0.3, weight.shape)
        if len(weight.shape) > 1:
            values[rng.random(weight.shape) < 0.8] = 0
        weight.assign(np.abs(values) + 0.1 if "variance" in weight.path else values)
    return model


@pytest.fixture(scope="module")
def files():
    x = np.random.default_rng(1).random((64, 8, 8, 1), dtype="float32")
    made = conversion.to_litert(net(), conversion.FORMATS, calibration=x)
    # Scales that are a tensor of their own, to which the quantization parameters point.
    blocks = Quantizer(bytearray(made["float32"]))
    granularity = qtyping.QuantGranularity.BLOCKWISE_32
    blocks.add_dynamic_config(".*", qtyping.TFLOperationName.FULLY_CONNECTED, 4, granularity)
    found = blocks.quantize(enable_progress_report=False).quantized_model
    return {**made, "int4 in blocks": bytes(found)}


def inputs_of(blob: bytes, rows: int = 1) -> list[np.ndarray]:
    """Random inputs of the types and shapes that a file takes."""
    rng, made = np.random.default_rng(2), []
    for detail in interpreter.Interpreter(model_content=blob).get_input_details():
        shape, dtype = (rows, *detail["shape"][1:]), np.dtype(detail["dtype"])
        high = 2 if dtype.kind == "b" else 100
        floating = dtype.kind == "f"
        values = rng.normal(size=shape) if floating else rng.integers(0, high, shape)
        made.append(values.astype(dtype))
    return made


def outputs_of(blob: bytes, inputs: list[np.ndarray], kernels) -> list[bytes]:
    """The bytes of every output."""
    run = interpreter.Interpreter(
        model_content=blob, num_threads=1, experimental_op_resolver_type=kernels
    )
    places = [detail["index"] for detail in run.get_input_details()]
    for place, array in zip(places, inputs, strict=True):
        run.resize_tensor_input(place, array.shape)
    run.allocate_tensors()
    for place, array in zip(places, inputs, strict=True):
        run.set_tensor(place, array)
    run.invoke()
    return [run.get_tensor(detail["index"]).tobytes() for detail in run.get_output_details()]


def assert_same_outputs(before: bytes, after: bytes, rows: int = 1):
    inputs = inputs_of(before, rows)
    for kernels in (XNNPACK, REFERENCE):
        expected = outputs_of(before, inputs, kernels)
        assert expected and outputs_of(after, inputs, kernels) == expected


FORMATS = [*conversion.FORMATS, "int4 in blocks"]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("keep_signature", [False, True])
def test_a_smaller_file_with_outputs_equal_to_the_last_bit(files, format, keep_signature):
    before = files[format]
    after = strip(before, keep_signature=keep_signature)
    assert len(after) < len(before) - 1000
    assert gzip_bytes(after) < gzip_bytes(before) - (450 if keep_signature else 500)
    assert strip(after, keep_signature=keep_signature) == after
    assert_same_outputs(before, after)


@pytest.mark.parametrize("format", ["float32", "sparse", "dynamic", "int8"])
def test_a_stripped_file_still_takes_every_batch(files, format):
    after = strip(files[format])
    x = np.random.default_rng(3).random((5, 8, 8, 1), dtype="float32")
    session, plain = litert.load(after), litert.load(files[format])
    np.testing.assert_array_equal(session.predict(x, batch=3), plain.predict(x, batch=3))
    assert session.resizable and plain.resizable
    assert (session.input_names, session.output_names) == (("input",), ("output",))
    assert (session.operators(), session.macs()) == (plain.operators(), plain.macs())


@pytest.mark.parametrize("format", ["float32", "int8", "int16x8"])
def test_tflite_micro_gives_the_same_outputs(files, format):
    runtime = pytest.importorskip("tflite_micro", reason="install tflite-micro").runtime

    def run(blob: bytes, x: np.ndarray) -> bytes:
        # Its own guess is ten times the file, which a stripped one falls short of.
        micro = runtime.Interpreter.from_bytes(blob, arena_size=1 << 20)
        micro.set_input(x, 0)
        micro.invoke()
        return micro.get_output(0).tobytes()

    (x,) = inputs_of(files[format])
    assert run(strip(files[format]), x) == run(files[format], x)


def vector(values) -> list | None:
    return None if values is None else values.tolist()


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_that_a_runtime_reads_is_lost(files, format):
    before, after = unpacked(files[format]), unpacked(strip(files[format]))
    for old, new in zip(before.subgraphs, after.subgraphs, strict=True):
        assert vector(old.inputs) == vector(new.inputs)
        assert vector(old.outputs) == vector(new.outputs)
        for a, b in zip(old.tensors, new.tensors, strict=True):
            assert (a.type, vector(a.shape), a.hasRank) == (b.type, vector(b.shape), b.hasRank)
            assert vector(a.shapeSignature) == vector(b.shapeSignature)
            assert vector(before.buffers[a.buffer].data) == vector(after.buffers[b.buffer].data)
            assert (a.sparsity is None) == (b.sparsity is None)
            if a.quantization is not None and a.quantization.scale is not None:
                p, q = a.quantization, b.quantization
                assert vector(p.scale) == vector(q.scale)
                assert vector(p.zeroPoint) == vector(q.zeroPoint) != []
                assert (p.quantizedDimension, p.detailsType) == (
                    q.quantizedDimension,
                    q.detailsType,
                )
        for a, b in zip(old.operators, new.operators, strict=True):
            code, other = before.operatorCodes[a.opcodeIndex], after.operatorCodes[b.opcodeIndex]
            assert (code.builtinCode, code.version) == (other.builtinCode, other.version)
            assert (vector(a.inputs), vector(a.outputs)) == (vector(b.inputs), vector(b.outputs))
            assert a.builtinOptionsType == b.builtinOptionsType
    tensors = [tensor for graph in after.subgraphs for tensor in graph.tensors]
    assert any(tensor.sparsity for tensor in tensors) == (format == "sparse")
    pointed = [t for t in tensors if t.quantization is not None and t.quantization.details]
    assert bool(pointed) == (format == "int4 in blocks")
    for old, new in zip(
        TfliteFile.parse(files[format], "").constants(),
        TfliteFile.parse(strip(files[format]), "").constants(),
        strict=True,
    ):
        np.testing.assert_array_equal(old.values, new.values)


@pytest.mark.parametrize("format", FORMATS)
def test_names_and_metadata_are_gone_and_buffers_are_aligned(files, format):
    after = strip(files[format])
    told = unpacked(after)
    assert (told.description, told.metadata, told.signatureDefs) == (None, None, None)
    assert told.subgraphs[0].name is None
    assert all(tensor.name is None for tensor in told.subgraphs[0].tensors)
    for word in (b"image", b"score", b"MLIR", b"min_runtime", b"serving_default", b"main"):
        assert word in files[format] and word not in after
    model = schema.Model.GetRootAs(after, 0)
    for i in range(1, model.BuffersLength()):
        table = model.Buffers(i)._tab
        assert table.Vector(table.Offset(4)) % 16 == 0


def test_a_signature_that_is_wanted_stays(files):
    kept = strip(files["float32"], keep_signature=True)
    expected = interpreter.Interpreter(model_content=files["float32"]).get_signature_list()
    assert interpreter.Interpreter(model_content=kept).get_signature_list() == expected
    assert litert.load(kept).input_names == ("image",)
    assert len(kept) > len(strip(files["float32"]))


@pytest.mark.parametrize("format", ["float32", "int8"])
def test_some_half_a_kilobyte_of_the_gzipped_lab_cnn(format):
    keras.utils.set_random_seed(0)
    model = zoo.build("lab-cnn")
    for weight in model.weights:
        weight.assign(weight + 0.01)
    x = np.random.default_rng(0).random((32, 28, 28), dtype="float32")
    blob = conversion.to_litert(model, [format], calibration=x)[format]
    saved = gzip_bytes(blob) - gzip_bytes(strip(blob))
    assert saved >= {"float32": 500, "int8": 400}[format]


def dense(file: File, x: int, size: int, kernel, bias, scale) -> int:
    """Append a FULLY_CONNECTED of `size` inputs and outputs; return its output."""
    kind = "int8" if scale else "float32"
    weights = file.tensor((size, size), kind, values=kernel, scale=scale and [scale] * size)
    offsets = -1
    if bias is not None:
        dtype = "int32" if scale else "float32"
        per_channel = scale and [scale * 0.1] * size
        offsets = file.tensor((size,), dtype, values=bias, scale=per_channel)
    out = file.tensor((1, size), kind, scale=scale and 0.1)
    file.operator("FULLY_CONNECTED", [x, weights, offsets], [out], schema.FullyConnectedOptionsT())
    return out


@st.composite
def random_files(draw) -> bytes:
    """Chains of a few operators, in float or int8, with equal constants, names and dead weight."""
    size = draw(st.integers(1, 5))
    scale = draw(st.sampled_from([None, 0.05]))
    kind = "int8" if scale else "float32"
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    kernels = [rng.integers(-3, 4, (size, size)) for _ in range(2)]
    biases = [None, rng.integers(-9, 9, size), np.zeros(size)]
    file = File()
    x = file.tensor(
        (1, size), kind, scale=scale and 0.1, name=draw(st.sampled_from(["x", "é" * 9]))
    )
    file.here.inputs = np.int32([x])
    for name in draw(st.lists(st.sampled_from(["dense", "add", "relu", "reshape"]), max_size=6)):
        if name == "dense":
            x = dense(
                file, x, size, draw(st.sampled_from(kernels)), draw(st.sampled_from(biases)), scale
            )
            continue
        out = file.tensor((1, size), kind, scale=scale and 0.1)
        if name == "add":
            other = file.tensor((1, size), kind, scale=scale and 0.1, values=kernels[0][:1])
            file.operator("ADD", [x, other], [out], schema.AddOptionsT())
        elif name == "relu":
            file.operator("RELU", [x], [out])
        else:
            shape = file.tensor((2,), "int32", values=[1, size])
            options = schema.ReshapeOptionsT(newShape=np.int32([1, size]))
            file.operator("RESHAPE", [x, shape], [out], options)
        x = out
    file.here.outputs = np.int32([x])
    for data in draw(st.lists(st.sampled_from([None, b"", b"abcd" * 9]), max_size=3)):
        file.buffer(data)
    if draw(st.booleans()):
        file.metadata("min_runtime_version", b"1.5.0".ljust(16, b"\0"))
    if draw(st.booleans()):
        file.signature("serving_default", {"x": 0}, {"y": x})
    return file.blob


@settings(max_examples=60)
@given(random_files(), st.booleans())
def test_any_file_keeps_its_outputs_and_is_stripped_once_for_all(blob, keep_signature):
    after = strip(blob, keep_signature=keep_signature)
    assert len(after) < len(blob)
    assert strip(after, keep_signature=keep_signature) == after
    assert strip(strip(blob, keep_signature=True)) == strip(blob)
    assert_same_outputs(blob, after)


def test_what_is_equal_is_written_once():
    file = File()
    x = file.tensor((1, 3), "int8", scale=0.1)
    file.here.inputs = np.int32([x])
    kernel = np.arange(9).reshape(3, 3)
    for _ in range(3):
        x = dense(file, x, 3, kernel, np.arange(3), 0.05)
    file.here.outputs = np.int32([x])
    file.buffer(b"nobody wants this")
    after = strip(file.blob)
    told = unpacked(after)
    assert len(told.buffers) == 3  # the empty one, kernel, bias
    assert len(told.operatorCodes) == 1 < len(file.model.operatorCodes)
    assert after.count(np.float32([0.05] * 3).tobytes()) == 1
    assert b"nobody" not in after
    assert all(operator.intermediates is None for operator in told.subgraphs[0].operators)
    model = schema.Model.GetRootAs(after, 0)
    tables = {model.Subgraphs(0).Tensors(i)._tab.Pos for i in range(len(file.here.tensors))}
    assert len(tables) == 3  # activations, kernels, biases
    assert_same_outputs(file.blob, after)


def test_a_constant_without_elements_stays_a_constant():
    """RESHAPE to a scalar takes a shape of length zero: its buffer is there, and empty."""
    file = File()
    x, y = file.tensor((1,)), file.tensor(())
    shape = file.tensor((0,), "int32", values=[])
    file.operator("RESHAPE", [x, shape], [y])
    file.here.inputs, file.here.outputs = np.int32([x]), np.int32([y])
    told = unpacked(strip(file.blob))
    buffers = [told.buffers[tensor.buffer].data for tensor in told.subgraphs[0].tensors]
    assert buffers[0] is None and buffers[1] is None and buffers[2].size == 0
    assert told.buffers[0].data is None
    assert_same_outputs(file.blob, strip(file.blob))


def branches() -> File:
    """IF with a graph for each case, of which one doubles and the other negates."""
    file = File()
    condition, x = file.tensor((1,), "bool", name="condition"), file.tensor((1, 4), name="x")
    y = file.tensor((1, 4), name="y")
    file.operator(
        "IF", [condition, x], [y], schema.IfOptionsT(thenSubgraphIndex=1, elseSubgraphIndex=2)
    )
    file.here.inputs, file.here.outputs = np.int32([condition, x]), np.int32([y])
    for name in ("ADD", "NEG"):
        file.graph()
        x, y = file.tensor((1, 4), name="inner"), file.tensor((1, 4), name="result")
        options = schema.AddOptionsT() if name == "ADD" else None
        file.operator(name, [x, x] if name == "ADD" else [x], [y], options)
        file.here.inputs, file.here.outputs = np.int32([x]), np.int32([y])
    return file


@pytest.mark.parametrize("case", [True, False])
def test_several_graphs_keep_their_places(case):
    blob = branches().blob
    after = strip(blob)
    assert len(after) < len(blob) - 100
    inputs = [np.array([case]), np.float32([[1, 2, 3, 4]])]
    expected = np.float32([[2, 4, 6, 8]] if case else [[-1, -2, -3, -4]]).tobytes()
    for kernels in (XNNPACK, REFERENCE):
        assert outputs_of(after, inputs, kernels) == [expected]


def test_of_several_signatures_each_is_an_entry_and_stays():
    file = branches()
    file.signature("serving_default", {"condition": 0, "x": 1}, {"y": 2})
    file.signature("double", {"x": 0}, {"y": 1}, graph=1)
    expected = interpreter.Interpreter(model_content=file.blob).get_signature_list()
    after = interpreter.Interpreter(model_content=strip(file.blob))
    assert after.get_signature_list() == expected
    double = after.get_signature_runner("double")
    np.testing.assert_array_equal(double(x=np.ones((1, 4), "float32"))["y"], np.full((1, 4), 2))


def test_metadata_that_a_runtime_obeys_stays_with_its_bytes():
    file = branches()
    file.metadata("min_runtime_version", b"1.5.0")
    file.metadata("reduced_precision_support", b"fp16")
    told = unpacked(strip(file.blob))
    assert [entry.name for entry in told.metadata] == [b"reduced_precision_support"]
    assert told.buffers[told.metadata[0].buffer].data.tobytes() == b"fp16"


def test_unnamed_inputs_and_outputs_are_numbered():
    file = File()
    inputs = [file.tensor((1, 2)) for _ in range(3)]
    outputs = [file.tensor((1, 2)) for _ in range(2)]
    file.operator("ADD", inputs[:2], outputs[:1], schema.AddOptionsT())
    file.operator("SUB", inputs[1:], outputs[1:], schema.SubOptionsT())
    file.here.inputs, file.here.outputs = np.int32(inputs), np.int32(outputs)
    session = litert.load(strip(file.blob))
    assert session.input_names == ("input", "input_1", "input_2")
    assert session.output_names == ("output", "output_1")
    x = {"input": np.float32([[1, 1]]), "input_1": np.float32([[10, 1]])}
    x["input_2"] = np.float32([[100, 1]])
    np.testing.assert_array_equal(session.predict(x)["output_1"], [[-90, 0]])


def test_what_cannot_be_stripped_is_refused_in_one_line():
    file = branches()
    file.model.buffers.append(schema.BufferT(offset=4096, size=16))
    damaged = bytearray(branches().blob)
    damaged[:4] = b"\xff\xff\xff\x7f"
    for blob, told in (
        (file.blob, "keeps 1 of its parts outside.*leave this file as it is"),
        (bytes(damaged), "damaged.*convert the model again"),
        (b"not a model", "11 bytes received that are not a .tflite file"),
        (b"", "0 bytes received"),
    ):
        with pytest.raises(SecateurError, match=told) as refused:
            strip(blob)
        assert "\n" not in str(refused.value)


def behind(blob):
    """The same file with its buffers behind the flatbuffer, as writers of large files put them."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(blob, 0))
    data = {k: b.data.tobytes() for k, b in enumerate(model.buffers) if b.data is not None}

    def written(start):
        for k, held in data.items():
            model.buffers[k].data = None
            model.buffers[k].offset, model.buffers[k].size = start, len(held)
            start += len(held)
        builder = schema.flatbuffers.Builder(0)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    flatbuffer = written(len(written(2)))  # numbers of a fixed width: the second is as long
    return flatbuffer + b"".join(data.values())


def test_buffers_behind_the_flatbuffer_are_read_and_put_inside():
    file = File()
    x, y = file.tensor((1, 8), name="x"), file.tensor((1, 4), name="y")
    weights = file.tensor((4, 8), name="w", values=np.arange(32))
    bias = file.tensor((4,), name="b", values=np.arange(4))
    file.operator("FULLY_CONNECTED", [x, weights, bias], [y], schema.FullyConnectedOptionsT())
    file.here.inputs, file.here.outputs = np.int32([x]), np.int32([y])
    blob = file.blob
    moved = behind(blob)
    assert moved != blob
    found, expected = (TfliteFile.parse(b, "f").constants() for b in (moved, blob))
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
    assert strip(moved) == strip(blob)
    inside = schema.Model.GetRootAs(embedded(moved), 0)
    assert not any(inside.Buffers(k).Offset() for k in range(inside.BuffersLength()))
    with pytest.raises(SecateurError, match="lie outside"):
        TfliteFile.parse(moved[:-1], "f")


def test_a_large_file_is_quantized_into_one_that_every_reader_knows():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Input((64,)), *map(keras.layers.Dense, (4096, 64))])
    blob = conversion.to_litert(model, ["dynamic"])["dynamic"]
    assert len(blob) > 512 * 1024  # beyond 256 KiB the quantizer writes buffers behind
    file = schema.Model.GetRootAs(blob, 0)
    assert not any(file.Buffers(k).Offset() for k in range(file.BuffersLength()))


def test_inputs_and_outputs_come_in_the_order_of_the_model_everywhere(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = [keras.Input((6,), name="zeta"), keras.Input((4,), name="aux")]
    hidden = layers.Concatenate()([layers.Dense(8, activation="relu")(x) for x in inputs])
    heads = [
        layers.Dense(3, activation="softmax", name="score"),
        layers.Dense(4, name="box"),
        layers.Dense(1, activation="tanh", name="angle"),
    ]
    model = keras.Model(inputs, [head(hidden) for head in heads])
    rng = np.random.default_rng(0)
    x = {"zeta": rng.random((64, 6), "float32"), "aux": 3 * rng.random((64, 4), "float32")}
    expected = KerasSession(model).predict(x)
    formats = ["float32", "int8", "onnx", "onnx-int8"]
    files = {
        (file.format, bare): file.path
        for bare in (False, True)
        for file in export(
            model, formats, tmp_path, stage=f"bare{bare}", calibration=x, strip=bare, header=True
        )
    }
    for (format, _), path in files.items():
        kinds = [onnx] if path.suffix == ".onnx" else [litert, tflm]
        for session in (kind.load(path) for kind in kinds):
            assert (session.input_names, session.output_names) == (tuple(x), tuple(expected))
            for name, values in session.predict(x).items():
                np.testing.assert_allclose(values, expected[name], atol=0.06)
        if path.suffix == ".onnx":
            continue
        run = interpreter.Interpreter(str(path))
        lines = path.with_suffix(".h").read_text().splitlines()
        details = [*run.get_input_details(), *run.get_output_details()]
        calls = [
            "input(0) zeta",
            "input(1) aux",
            "output(0) score",
            "output(1) box",
            "output(2) angle",
        ]
        for call, detail in zip(calls, details, strict=True):
            line = next(line for line in lines if f" {call}:" in line)
            assert f"[1, {detail['shape'][1]}]" in line
            scale, zero_point = detail["quantization"]
            assert (f"scale {scale:.9g}, zero point {zero_point}" in line) == (format == "int8")
        # without names too, a file's inputs and outputs are the model's, one by one
        nameless = litert.load(strip(path.read_bytes()))
        assert nameless.input_names == ("input", "input_1")
        found = nameless.predict(dict(zip(nameless.input_names, x.values(), strict=True)))
        for values, wanted in zip(found.values(), expected.values(), strict=True):
            np.testing.assert_allclose(values, wanted, atol=0.06)
