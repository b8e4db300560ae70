"""What a `.tflite` file says, read from its bytes (a flatbuffer): operators, tensors, names.

Not read from an interpreter, which replaces operators when it optimises. Nothing is executed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.errors import SecateurError
from secateur.runtimes import Constant, one_line
from secateur.tflite_storage import LARGEST, densified, require_encoding, unpacked

# Slots of int32 biases: every other int32 constant is a shape, an axis or a padding.
BIAS_SLOTS = {
    "CONV_2D": 2,
    "CONV_3D": 2,
    "DEPTHWISE_CONV_2D": 2,
    "FULLY_CONNECTED": 2,
    "TRANSPOSE_CONV": 3,
}
# Operators whose work the shapes of their tensors do not tell.
OPAQUE = frozenset(
    "CALL CUSTOM DELEGATE IF LSTM RFFT2D RNN STABLEHLO SVDF WHILE CONV_3D_TRANSPOSE".split()
)
DTYPES = {
    "FLOAT32": np.float32,
    "FLOAT16": np.float16,
    "FLOAT64": np.float64,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
}
# Types that hold several codes in a byte: bits of one.
PACKED = {"INT4": 4, "INT2": 2}


@dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor: shape, type (as the schema names it), and its bytes where it is a constant."""

    name: str
    shape: tuple[int, ...]
    type: str
    data: np.ndarray | None  # raw bytes; None: computed when the model runs
    quantization: Any
    sparsity: Any
    scales: np.ndarray | None = None  # (out, blocks), of blocks that have a scale each

    @property
    def floating(self) -> bool:
        """Whether it holds floats."""
        return self.type.startswith(("FLOAT", "BFLOAT"))

    def values(self) -> np.ndarray:
        """The stored values in the tensor's shape: packed codes unpacked, a sparse encoding made dense.

        Raises `SecateurError` for a type that has no NumPy equivalent, and for a computed tensor.
        """
        if self.data is None or (self.type not in DTYPES and self.type not in PACKED):
            kind = "no values" if self.data is None else f"type {self.type}"
            raise SecateurError(
                f"tensor {self.name} is stored with {kind}, expected one of "
                f"{', '.join((*DTYPES, *PACKED)).lower()}; fix: convert the model without it"
            )
        if self.type in PACKED:
            count = math.prod(self.shape) if self.sparsity is None else None
            found = unpacked(self.data, PACKED[self.type], count)
        else:
            found = self.data.view(DTYPES[self.type])
        if self.sparsity is not None:
            return densified(found, self.sparsity, self.shape)
        return found.reshape(self.shape)

    def constant(self, operator: str, slot: int) -> Constant:
        """The tensor as a constant that feeds `slot` of an operator."""
        values, quantization = self.values(), self.quantization
        bits = PACKED.get(self.type)
        if self.scales is not None:
            scale = np.repeat(self.scales, values.shape[-1] // self.scales.shape[-1], axis=-1)
            zero_point = np.zeros(1, np.int64)
            return Constant(self.name, values, scale, zero_point, None, operator, slot, bits)
        if quantization is None or not quantization.ScaleLength():
            return Constant(self.name, values, None, None, None, operator, slot, bits)
        scale = quantization.ScaleAsNumpy()
        zero_point = (
            quantization.ZeroPointAsNumpy()
            if quantization.ZeroPointLength()
            else np.zeros(len(scale), np.int64)
        )
        axis = int(quantization.QuantizedDimension())
        return Constant(self.name, values, scale, zero_point, axis, operator, slot, bits)


@dataclass(frozen=True, eq=False)
class Operator:
    """One operator with its tensors; an input may be left out (None).

    bias_type: of a bias beside codes, as the options declare it; "FLOAT32" where they do not.
    """

    name: str
    inputs: list[Tensor | None]
    outputs: list[Tensor]
    bias_type: str = "FLOAT32"

    def macs(self) -> int | None:
        """Multiply-accumulates; weights are (out, h, w, in), (1, h, w, out) for DEPTHWISE."""
        if OPAQUE & {self.name, *self.name.split("_")}:
            return None
        shapes: list[tuple[int, ...]] = [t.shape if t else () for t in self.inputs]
        out: tuple[int, ...] = self.outputs[0].shape if self.outputs else ()
        per_output = {
            "CONV_2D": lambda: math.prod(shapes[1][1:]),
            "CONV_3D": lambda: math.prod(shapes[1][:-1]),
            "DEPTHWISE_CONV_2D": lambda: math.prod(shapes[1][1:3]),
            "FULLY_CONNECTED": lambda: shapes[1][-1],
            "BATCH_MATMUL": lambda: math.prod(shapes[0][-2:]) // max(math.prod(out[-2:-1]), 1),
        }
        if self.name == "FULLY_CONNECTED":
            rows = math.prod(shapes[0]) * shapes[1][0], math.prod(out) * shapes[1][-1]
            if rows[0] != rows[1]:  # behind a reshape whose target is computed, sizes are made up
                return None
        if self.name == "TRANSPOSE_CONV":  # (output shape, weights, input)
            return math.prod(shapes[2]) * math.prod(shapes[1][:3])
        return math.prod(out) * per_output[self.name]() if self.name in per_output else 0


@dataclass(frozen=True, eq=False)
class TfliteFile:
    """What a flatbuffer says: operators with their tensors, inputs and outputs by name."""

    operators: list[Operator]
    inputs: dict[str, int]
    outputs: dict[str, int]

    @classmethod
    def parse(cls, blob: bytes, source: str) -> "TfliteFile":
        """Read a file's bytes; `source` names it in the `SecateurError` for anything damaged."""
        from ai_edge_litert import schema_py_generated as schema

        if blob[4:8] != b"TFL3":
            raise SecateurError(
                f"{source} is not a .tflite file, expected one that a converter wrote; "
                "fix: convert the model again"
            )
        names = {
            code: name for name, code in vars(schema.BuiltinOperator).items() if name[0] != "_"
        }
        types = {code: name for name, code in vars(schema.TensorType).items() if name[0] != "_"}
        try:
            model = schema.Model.GetRootAs(blob, 0)
            _require_bounded(model, len(blob))
            return cls(
                list(_operators(model, names, types)),
                _interface(model, "Inputs"),
                _interface(model, "Outputs"),
            )
        except Exception as error:  # a damaged flatbuffer raises whatever its bytes point to
            raise SecateurError(
                f"{source} is damaged ({one_line(error)}), expected an unchanged .tflite file; "
                "fix: convert the model again"
            ) from error

    def float_operators(self) -> list[str]:
        """Names of the operators that compute in float, each once; changing the type is not computing."""
        found = [
            operator.name
            for operator in self.operators
            if operator.name not in ("QUANTIZE", "DEQUANTIZE")
            and any(t is not None and t.floating for t in (*operator.inputs, *operator.outputs))
        ]
        return list(dict.fromkeys(found))

    def constants(self) -> list[Constant]:
        """Return weights and biases as they are stored, each tensor once."""
        found: dict[int, Constant] = {}
        for operator in self.operators:
            for slot, tensor in enumerate(operator.inputs):
                if tensor is None or tensor.data is None or id(tensor) in found:
                    continue
                if tensor.type in ("INT32", "INT64", "BOOL", "STRING"):
                    scaled = tensor.quantization is not None and tensor.quantization.ScaleLength()
                    if BIAS_SLOTS.get(operator.name) != slot or not (
                        scaled or tensor.type == "INT32"
                    ):
                        continue
                found[id(tensor)] = tensor.constant(operator.name, slot)
        return list(found.values())


def _operators(model: Any, names: dict, types: dict) -> Iterator[Operator]:
    for g in range(model.SubgraphsLength()):
        graph = model.Subgraphs(g)
        tensors = [_tensor(model, graph, i, types) for i in range(graph.TensorsLength())]
        for tensor in tensors:
            _require_whole(tensor)
        for i in range(graph.OperatorsLength()):
            operator = graph.Operators(i)
            code = model.OperatorCodes(operator.OpcodeIndex())
            # Files written before the 128th operator carry their code in the old field.
            name = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            inputs = [operator.Inputs(k) for k in range(operator.InputsLength())]
            outputs = [operator.Outputs(k) for k in range(operator.OutputsLength())]
            if min(inputs, default=0) < -1 or min(outputs, default=0) < 0:  # Python counts back
                raise ValueError(f"{name} of a tensor with a negative number")
            if any(tensors[k].data is not None for k in outputs):
                raise ValueError(f"{name} computes a constant")
            yield Operator(
                name,
                [tensors[k] if k >= 0 else None for k in inputs],
                [tensors[k] for k in outputs],
                types[_bias_type(name, operator.BuiltinOptions())],
            )


def _bias_type(name: str, table: Any) -> int:
    """The type of a bias that an operator's options declare; without it, kernels take their own."""
    from ai_edge_litert import schema_py_generated as schema

    kinds = {"CONV_2D": schema.Conv2DOptions, "FULLY_CONNECTED": schema.FullyConnectedOptions}
    if name not in kinds or table is None:
        return schema.TensorType.FLOAT32
    options = kinds[name]()
    options.Init(table.Bytes, table.Pos)
    return options.QuantizedBiasType()


def _require_bounded(model: Any, size: int) -> None:
    """Raise for what lies outside of the file, and for lists that would keep a reader busy.

    Lists may be shared: together they can hold far more than the `size` bytes of the file.
    """
    outside = model.ExternalBuffersLength() + model.ExternalBufferGroupsLength()
    buffers = [model.Buffers(k) for k in range(model.BuffersLength())]
    outside += sum(b.Offset() > 1 and b.Offset() + b.Size() > size for b in buffers)
    entries = 0
    for g in range(model.SubgraphsLength()):
        graph = model.Subgraphs(g)
        for i in range(graph.OperatorsLength()):
            operator = graph.Operators(i)
            entries += 1 + operator.InputsLength() + operator.OutputsLength()
            outside += operator.LargeCustomOptionsOffset() > 1
        entries += sum(1 + graph.Tensors(k).ShapeLength() for k in range(graph.TensorsLength()))
        if entries > size:
            raise ValueError(f"lists of {entries:,} entries in {size:,} bytes")
    if outside:
        raise ValueError(f"{outside} of its parts lie outside of it")


def _require_whole(tensor: Tensor) -> None:
    """Raise for a constant whose bytes are not those of its shape and type."""
    if any(n < 0 for n in tensor.shape):
        raise ValueError(f"tensor {tensor.name} of shape {tensor.shape}")
    if tensor.data is None or (tensor.type not in DTYPES and tensor.type not in PACKED):
        return
    bits = PACKED.get(tensor.type) or 8 * np.dtype(DTYPES[tensor.type]).itemsize
    count, stored = math.prod(tensor.shape), tensor.data.size
    if tensor.sparsity is not None:
        if count > LARGEST or stored * 8 > (count + 1) * bits + 7:
            raise ValueError(f"tensor {tensor.name} of shape {tensor.shape} from {stored:,} bytes")
        require_encoding(tensor.sparsity, tensor.shape, stored * 8 // bits, tensor.name)
    elif stored != -(-count * bits // 8):
        raise ValueError(f"tensor {tensor.name} of shape {tensor.shape} in {stored:,} bytes")


def _tensor(model: Any, graph: Any, place: int, types: dict) -> Tensor:
    tensor = graph.Tensors(place)
    if not 0 <= tensor.Buffer() < model.BuffersLength():
        raise ValueError(f"buffer {tensor.Buffer()} of {model.BuffersLength()}")
    buffer = model.Buffers(tensor.Buffer())
    shape = tuple(tensor.Shape(k) for k in range(tensor.ShapeLength()))
    return Tensor(
        name=tensor.Name().decode(errors="replace") if tensor.Name() else "",
        shape=shape,
        type=types[tensor.Type()],
        data=_data(model, buffer),
        quantization=tensor.Quantization(),
        sparsity=tensor.Sparsity(),
        scales=_block_scales(model, graph, tensor.Quantization(), shape),
    )


def _block_scales(
    model: Any, graph: Any, quantization: Any, shape: tuple[int, ...]
) -> np.ndarray | None:
    """The scales (out, blocks) of a kernel quantized in blocks, which are a tensor of their own."""
    from ai_edge_litert import schema_py_generated as schema

    kind = schema.QuantizationDetails.BlockwiseQuantization
    if quantization is None or quantization.DetailsType() != kind:
        return None
    details, table = schema.BlockwiseQuantization(), quantization.Details()
    details.Init(table.Bytes, table.Pos)
    if not 0 <= details.Scales() < graph.TensorsLength():
        raise ValueError(f"scales in tensor {details.Scales()} of {graph.TensorsLength()}")
    stored = graph.Tensors(details.Scales())
    kinds = {schema.TensorType.FLOAT16: np.float16, schema.TensorType.FLOAT32: np.float32}
    data = None
    if 0 <= stored.Buffer() < model.BuffersLength():
        data = _data(model, model.Buffers(stored.Buffer()))
    blocks = -(-shape[-1] // max(details.BlockSize(), 1)) if shape else 0
    count = math.prod((*shape[:-1], blocks))
    dtype = kinds.get(stored.Type())
    if dtype is None or data is None or not blocks or shape[-1] % blocks:
        raise ValueError(f"scales of blocks of {details.BlockSize()} for shape {shape}")
    if data.size != count * np.dtype(dtype).itemsize:
        raise ValueError(f"{data.size:,} bytes for {count:,} scales of blocks")
    return data.view(dtype).astype(np.float32).reshape(*shape[:-1], blocks)


def _data(model: Any, buffer: Any) -> np.ndarray | None:
    """The bytes of a buffer: in the flatbuffer, or behind it, where writers of large files put them."""
    if buffer.Offset() > 1:
        return np.frombuffer(model._tab.Bytes, np.uint8, buffer.Size(), buffer.Offset())
    return buffer.DataAsNumpy() if buffer.DataLength() else None


def _interface(model: Any, side: str) -> dict[str, int]:
    """Name -> tensor of the inputs or outputs, in the order of the graph that is run, the first.

    Names are the signature's where the file has one for that graph: it lists them by the alphabet,
    and firmware counts them as the graph does. Tensors without a name are called input, input_1, ...
    and output, output_1, ...
    """
    graph = model.Subgraphs(0)
    indices = [getattr(graph, side)(i) for i in range(getattr(graph, f"{side}Length")())]
    signatures = (model.SignatureDefs(k) for k in range(model.SignatureDefsLength()))
    for signature in (s for s in signatures if s.SubgraphIndex() == 0):
        entries = [
            getattr(signature, side)(i) for i in range(getattr(signature, f"{side}Length")())
        ]
        _require_sides(graph, side, [entry.TensorIndex() for entry in entries])
        entries.sort(key=lambda entry: indices.index(entry.TensorIndex()))
        return {entry.Name().decode(): entry.TensorIndex() for entry in entries}
    _require_sides(graph, side, indices)
    word, found = side.removesuffix("s").lower(), {}
    for place, index in enumerate(indices):
        name = graph.Tensors(index).Name()  # a stripped file has none
        found[name.decode() if name else f"{word}_{place}" if place else word] = index
    return found


def _require_sides(graph: Any, side: str, indices: list[int]) -> None:
    """Raise for inputs (outputs) that are none of the graph's, or of no tensor."""
    given = {getattr(graph, side)(i) for i in range(getattr(graph, f"{side}Length")())}
    there = all(0 <= index < graph.TensorsLength() for index in given)
    if not there or not set(indices) <= given:
        raise ValueError(f"{side.lower()} {sorted(indices)} of {sorted(given)}")
