"""Small `.tflite` files written table by table, for what no converter writes on demand."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(bool): schema.TensorType.BOOL,
}


class File:
    """Grows tensor by tensor and operator by operator; `blob` is the file so far."""

    def __init__(self):
        self.model = schema.ModelT(version=3, operatorCodes=[], subgraphs=[], metadata=[])
        self.model.buffers, self.model.description = [schema.BufferT()], "made by hand"
        self.graph()

    def graph(self) -> int:
        """Start another graph; tensors and operators go there from now on."""
        self.here = schema.SubGraphT(tensors=[], inputs=[], outputs=[], operators=[], name="main")
        self.model.subgraphs.append(self.here)
        return len(self.model.subgraphs) - 1

    def buffer(self, data: bytes | None) -> int:
        array = None if data is None else np.frombuffer(data, np.uint8)
        self.model.buffers.append(schema.BufferT(data=array))
        return len(self.model.buffers) - 1

    def tensor(self, shape, dtype="float32", *, scale=None, name: str | None = "t", values=None):
        """Index of a tensor; `values` make it a constant, `scale` a quantized one."""
        tensor = schema.TensorT(
            shape=np.array(shape, np.int32),
            type=TYPES[np.dtype(dtype)],
            name=name,
            buffer=self.buffer(None if values is None else np.asarray(values, dtype).tobytes()),
            hasRank=True,
        )
        tensor.quantization = schema.QuantizationParametersT()
        if scale is not None:
            scales = np.atleast_1d(np.float32(scale))
            tensor.quantization.scale = scales
            tensor.quantization.zeroPoint = np.zeros(len(scales), np.int64)
            tensor.quantization.min, tensor.quantization.max = -scales, scales
        self.here.tensors.append(tensor)
        return len(self.here.tensors) - 1

    def operator(self, name: str, inputs, outputs, options=None, custom: str | None = None):
        code = getattr(schema.BuiltinOperator, name)
        self.model.operatorCodes.append(
            schema.OperatorCodeT(
                deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=1, customCode=custom
            )
        )
        operator = schema.OperatorT(opcodeIndex=len(self.model.operatorCodes) - 1)
        operator.inputs, operator.outputs = np.int32(inputs), np.int32(outputs)
        operator.intermediates = np.zeros(0, np.int32)
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = options
        self.here.operators.append(operator)

    def signature(self, key: str, inputs: dict, outputs: dict, graph: int = 0):
        maps = [
            [schema.TensorMapT(name=n, tensorIndex=i) for n, i in side.items()]
            for side in (inputs, outputs)
        ]
        entry = schema.SignatureDefT(
            inputs=maps[0], outputs=maps[1], signatureKey=key, subgraphIndex=graph
        )
        self.model.signatureDefs = [*(self.model.signatureDefs or []), entry]

    def metadata(self, name: str, data: bytes):
        self.model.metadata.append(schema.MetadataT(name=name, buffer=self.buffer(data)))

    @property
    def blob(self) -> bytes:
        builder = schema.flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def unpacked(blob: bytes):
    """The tables of a file."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(blob, 0))


def packed(tables) -> bytes:
    """The file of tables."""
    builder = schema.flatbuffers.Builder(1024)
    builder.Finish(tables.Pack(builder), b"TFL3")
    return bytes(builder.Output())
