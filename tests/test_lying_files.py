"""Files that fail, or run and lie, made by the tools that make them: each is caught, its cause named.

A lie is shown to be one first: with the rules of `diagnosis` gone the file runs, and what it answers
is wrong. Where a newer LiteRT makes that test fail, the rule has had its day.
"""

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from keras import layers
from tests.digits_cnn import copy, trained
from tests.exporting_cases import left_in
from tests.flatbuffer_files import packed, unpacked

import secateur as sc
from secateur import conversion, diagnosis
from secateur.arrays import patterns
from secateur.artifact import FORMATS
from secateur.errors import SecateurError
from secateur.exporting import export
from secateur.runtimes import litert, trial
from secateur.tflite import TfliteFile
from secateur.verification import verify

NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if name[0] != "_"}
by_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="TensorFlow's own converter makes the file, in this process",
)


# --- the model, and how each file is made ---------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    return sc.load_data("digits")


@pytest.fixture(scope="module")
def model(data):
    return trained(data)


def pruned(model, pattern):
    """80 % of the last kernel zero."""
    again = copy(model)
    kernel = keras.ops.convert_to_numpy(again.layers[-1].kernel)
    keep = patterns.pattern(pattern)(np.abs(kernel), 0.8)
    again.layers[-1].kernel.assign(np.where(keep, kernel, 0))
    return again


def convert(function, calibration=None, shape=(1, 8, 8), sparse=False, bias=None):
    """TensorFlow's converter with its default optimizations, as everybody calls it."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    spec = [tf.TensorSpec(shape, tf.float32, name="image")]
    traced = tf.function(function, input_signature=spec).get_concrete_function()
    frozen = convert_variables_to_constants_v2(traced)
    named = tf.function(lambda image: {"dense": frozen(image)[0]}, input_signature=spec)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [named.get_concrete_function()], tf.Module()
    )
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if sparse:
        converter.optimizations += [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    if calibration is not None:
        converter.representative_dataset = lambda: ([image[None]] for image in calibration)
    if bias is not None:
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]
        converter._experimental_full_integer_quantization_bias_type = bias
    return conversion.batch_free(bytes(converter.convert()))


def sparse_and_8_bits(model, shape=(1, 8, 8), calibration=None):
    return convert(lambda image: model(image, training=False), calibration, shape, sparse=True)


def fake_quantized(model, data):
    """int8 weights and int16 activations, through fake quantization."""
    import tensorflow as tf

    kernel, bias, last, last_bias = model.get_weights()
    stages = keras.Model(model.inputs, [layer.output for layer in model.layers])
    sizes = [float(np.abs(a).max()) for a in stages.predict(data.train.x[:500], verbose=0)]
    largest = np.abs(kernel).max((0, 1, 2))
    last = np.round(last / (np.abs(last).max(0) / 127)) * (np.abs(last).max(0) / 127)

    def ranged(x, size):
        return tf.quantization.fake_quant_with_min_max_vars(x, -size, size, 16, True)

    def function(image):
        x = tf.reshape(ranged(image, 1.0), [-1, 8, 8, 1])
        weights = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            kernel, -largest, largest, 8, True
        )
        x = ranged(tf.nn.relu(tf.nn.conv2d(x, weights, 1, "SAME") + bias), sizes[1])
        x = tf.matmul(tf.reshape(x, [-1, 1024]), last.astype(np.float32)) + last_bias
        return ranged(x, sizes[-1])

    return convert(function)


def two_bits(model, operator):
    """ai-edge-quantizer writes 2-bit weights where it is asked to."""
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.quantizer import Quantizer

    quantizer = Quantizer(bytearray(conversion.to_litert(model, ["float32"])["float32"]))
    quantizer.add_dynamic_config(
        ".*", qtyping.TFLOperationName[operator], 2, qtyping.QuantGranularity.CHANNELWISE
    )
    return bytes(quantizer.quantize(None, enable_progress_report=False).quantized_model)


def biases_in_64_bits(blob, name):
    """The file with the 32-bit biases of one kind of operator made longer."""
    tables = unpacked(blob)
    graph = tables.subgraphs[0]
    for operator in graph.operators:
        if NAMES[tables.operatorCodes[operator.opcodeIndex].builtinCode] == name:
            tensor = graph.tensors[operator.inputs[2]]
            codes = np.asarray(tables.buffers[tensor.buffer].data, np.uint8).view(np.int32)
            tables.buffers[tensor.buffer].data = codes.astype(np.int64).view(np.uint8)
            tensor.type = schema.TensorType.INT64
    return packed(tables)


# --- how it is caught -----------------------------------------------------------------------------


def refused(blob, folder, format, model, data, *told):
    """One line that names the file, the cause and what to write instead."""
    path = folder / f"m-{format}.tflite"
    path.write_bytes(blob)
    with pytest.raises(SecateurError) as error:
        verify(path, format, model, data=data.test.x)
    line = str(error.value)
    assert "\n" not in line and str(path) in line
    for words in told:
        assert words in line
    return path


def accuracy(blob, data, kernels="xnnpack"):
    outputs = litert.LiteRTSession(blob, 1, "m", kernels=kernels).predict(data.test.x)
    return np.mean(outputs.argmax(-1) == data.test.y)


@pytest.fixture
def undiagnosed(monkeypatch):
    """As if nobody had seen these files before."""
    monkeypatch.setattr(diagnosis, "DEFECTS", ())
    monkeypatch.setattr(trial, "require", lambda *arguments: None)  # its process has the rules


def right(model, data):
    found = model.predict(data.test.x, verbose=0).argmax(-1)
    return np.mean(found == data.test.y)


ENCODED = ("8-bit weights whose zeros are encoded", "fix: export 'sparse', or 'dynamic' or 'int8'")


@by_tensorflow
@pytest.mark.parametrize("pattern", ["unstructured", "block 4x1"])
@pytest.mark.parametrize("codes", ["dynamic", "int8"])
def test_sparse_encoding_of_codes_is_refused(model, data, tmp_path, pattern, codes):
    net = pruned(model, pattern)
    blob = sparse_and_8_bits(net, calibration=data.train.x[:50] if codes == "int8" else None)
    told = (*ENCODED, "XNNPACK cannot prepare", "DENSIFY (10, 1024)", "failed to prepare")
    path = refused(blob, tmp_path, codes, net, data, *told)
    with pytest.raises(SecateurError, match="XNNPACK cannot prepare.*fix: export 'sparse'"):
        sc.measure(path, data)
    # What the line says of the other kernels is true.
    found = sc.measure(path, data, runtime="litert:reference", latency=False)
    assert abs(found.accuracy - right(net, data)) < 0.02


@by_tensorflow
def test_sparse_encoding_of_codes_passes_a_first_allocation_and_is_refused(model, data, tmp_path):
    """As Keras's own export traces it, with a batch of any size."""
    from ai_edge_litert.interpreter import Interpreter

    net = pruned(model, "unstructured")
    blob = sparse_and_8_bits(net, shape=(None, 8, 8))
    Interpreter(model_content=blob, num_threads=1).allocate_tensors()
    refused(blob, tmp_path, "dynamic", net, data, *ENCODED, "XNNPACK cannot prepare")


@by_tensorflow
def test_encoded_blocks_of_codes_are_refused(model, data, tmp_path):
    net = pruned(model, "block 16x1")
    blob = sparse_and_8_bits(net)
    told = ("runs in LiteRT and answers wrongly", "FULLY_CONNECTED (10, 1024)", *ENCODED)
    path = refused(blob, tmp_path, "dynamic", net, data, *told)
    with pytest.raises(SecateurError, match="answers wrongly"):
        sc.measure(path, data)
    found = sc.measure(path, data, runtime="litert:reference", latency=False)
    assert abs(found.accuracy - right(net, data)) < 0.02


@by_tensorflow
def test_encoded_blocks_are_kept_where_they_are_right(model, data, tmp_path):
    """Floats, and codes multiplied with codes, are computed as they should be."""
    net = pruned(model, "block 16x1")
    path = tmp_path / "m.tflite"
    for format in ("sparse", "int8"):
        blob = (
            sparse_and_8_bits(net, calibration=data.train.x[:50])
            if format == "int8"
            else conversion.to_litert(net, ["sparse"])["sparse"]
        )
        kernels = [o.inputs[1] for o in TfliteFile.parse(blob, "m").operators[-3:] if o.inputs[1:]]
        assert any(t is not None and t.sparsity is not None for t in kernels)
        path.write_bytes(blob)
        assert verify(path, format, net, data=data.test.x).parity["agreement"] > 0.97


@by_tensorflow
def test_encoded_blocks_lie_and_the_outputs_tell(model, data, tmp_path, undiagnosed):
    net = pruned(model, "block 16x1")
    blob = sparse_and_8_bits(net)
    assert accuracy(blob, data) < 0.3 < 0.7 < right(net, data)
    refused(blob, tmp_path, "dynamic", net, data, "outputs differ from the model's")


BIASES = ("16-bit activations and 32-bit biases", "64-bit", "fix: export 'int16x8'")


@by_tensorflow
def test_16_bit_activations_of_fake_quantization_are_refused(model, data, tmp_path):
    blob = fake_quantized(model, data)
    path = refused(blob, tmp_path, "int16x8", model, data, "CONV_2D (16, 3, 3, 1)", *BIASES)
    for runtime in ("litert", "litert:reference"):
        with pytest.raises(SecateurError, match="answers wrongly: CONV_2D .*'int16x8'"):
            sc.measure(path, data, runtime=runtime)
    # With the convolution's biases mended, the reference kernels still misread the last layer's.
    path.write_bytes(biases_in_64_bits(blob, "CONV_2D"))
    assert verify(path, "int16x8", model, data=data.test.x).parity["agreement"] > 0.99
    with pytest.raises(SecateurError, match="answers wrongly: FULLY_CONNECTED"):
        sc.measure(path, data, runtime="litert:reference")
    path.write_bytes(biases_in_64_bits(path.read_bytes(), "FULLY_CONNECTED"))
    found = sc.measure(path, data, runtime="litert:reference", latency=False)
    assert abs(found.accuracy - right(model, data)) < 0.01


@by_tensorflow
def test_16_bit_activations_lie_and_the_outputs_tell(model, data, tmp_path, undiagnosed):
    blob = fake_quantized(model, data)
    assert accuracy(blob, data) < 0.3 < 0.9 < right(model, data)
    refused(blob, tmp_path, "int16x8", model, data, "outputs differ from the model's")
    mended = biases_in_64_bits(blob, "CONV_2D")
    assert accuracy(mended, data) > 0.9
    assert accuracy(mended, data, "reference") < 0.3


@by_tensorflow
def test_declared_32_bit_biases_are_kept(model, data, tmp_path):
    """The same types as the lie; but the file says what its biases are, and LiteRT listens."""
    import tensorflow as tf

    calibration = data.train.x[:50]
    path = tmp_path / "m.tflite"
    path.write_bytes(convert(lambda image: model(image), calibration, bias=tf.int32))
    types = [t.type for t in TfliteFile.parse(path.read_bytes(), "m").operators[2].inputs if t]
    assert types == ["INT16", "INT8", "INT32"]
    assert verify(path, "int16x8", model, data=data.test.x).parity["agreement"] > 0.99
    found = sc.measure(path, data, runtime="litert:reference", latency=False)
    assert abs(found.accuracy - right(model, data)) < 0.01


def test_2_bit_convolutions_are_refused(model, data, tmp_path):
    blob = two_bits(model, "CONV_2D")
    told = ("CONV_2D (16, 3, 3, 1) received with 2-bit weights", "fix: export 'int4' or 'dynamic'")
    path = refused(blob, tmp_path, "int4", model, data, *told)
    for runtime in ("litert", "litert:reference"):
        with pytest.raises(SecateurError, match="2-bit weights"):
            sc.measure(path, data, runtime=runtime)


def test_2_bit_convolutions_lie_and_the_outputs_tell(model, data, tmp_path, undiagnosed):
    blob = two_bits(model, "CONV_2D")
    assert accuracy(blob, data) < 0.3
    refused(blob, tmp_path, "int4", model, data, "output")


def test_2_bits_that_are_poor_and_no_lie_are_measured(model, data, tmp_path):
    """4 values for a weight of a dense layer: computed rightly, and bad."""
    path = tmp_path / "m.tflite"
    path.write_bytes(two_bits(model, "FULLY_CONNECTED"))
    fast, slow = (
        sc.measure(path, data, runtime=runtime, latency=False).accuracy
        for runtime in ("litert", "litert:reference")
    )
    assert fast and fast == slow and 0.3 < fast < right(model, data)


# --- operators left in float in a file called int8 ------------------------------------------------


@pytest.mark.parametrize("format", ["int8", "int16x8"])
@pytest.mark.parametrize(
    ("layer", "named"), [(layers.LeakyReLU(), "LEAKY_RELU"), (layers.ELU(), "ELU")]
)
def test_an_operator_left_in_float_is_named(format, layer, named, data, tmp_path):
    """ai-edge-quantizer says nothing of it: the file runs, and is right, and no integer file."""
    net = keras.Sequential(
        [keras.Input((8, 8)), layers.Flatten(), layers.Dense(8), layer, layers.Dense(10)]
    )
    options = {"calibration": data.train.x[:50], "data": data.test.x[:50]}
    with pytest.raises(
        SecateurError, match=rf"{format} file with {named} in float.*fix: "
    ) as error:
        export(net, [format], tmp_path, stage="m", **options)
    assert "dynamic" in str(error.value) and left_in(tmp_path) == []
    (file,) = export(net, [format], tmp_path, stage="m", allow_float=True, **options)
    assert file.format == {"int8": "mixed", "int16x8": "mixed16x8"}[format]


# --- layers that become loops ---------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"return_sequences": True}])
@pytest.mark.parametrize("layer", [layers.LSTM, layers.GRU])
def test_a_recurrent_layer_is_to_be_unrolled(layer, options, tmp_path):
    """Its loop is refused by the converter, or by the interpreter: the fix is the same, and works."""
    x = np.random.default_rng(0).random((16, 4, 3), dtype="float32")

    def network(**more):
        keras.utils.set_random_seed(0)
        return keras.Sequential(
            [keras.Input((4, 3), name="steps"), layer(5, name="out", **options, **more)]
        )

    looped, unrolled = network(), network(unroll=True)
    with pytest.raises(
        SecateurError, match="fix: build recurrent layers with unroll=True"
    ) as error:
        export(looped, ["float32"], tmp_path, stage="m", data=x)
    assert "\n" not in str(error.value) and left_in(tmp_path) == []
    unrolled.set_weights(looped.get_weights())  # the line says that they stay the same
    (file,) = export(unrolled, ["float32"], tmp_path, stage="m", data=x)
    verify(file.path, "float32", looped, data=x)


# --- the rules -------------------------------------------------------------------------------------


def test_rules_are_written_out():
    """Every rule says what was received, what was expected and what to write instead."""
    for defect in diagnosis.DEFECTS:
        assert defect.has and defect.expected and defect.fix
        assert set(defect.fix.split("'")[1::2]) <= set(FORMATS), defect.fix
