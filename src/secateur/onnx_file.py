"""What an `.onnx` file says, read without running it: nodes, tensors, how weights are coded."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.errors import SecateurError
from secateur.onnx_graph import inner_graphs, nodes
from secateur.runtimes import Constant, one_line

# Slots with codes: those of their scale and zero point, and the axis that has a scale each.
CODES = {
    "DequantizeLinear": {0: (1, 2, 1)},
    "DynamicQuantizeLSTM": {1: (8, 9, -1), 2: (10, 11, -1)},
    "QLinearConv": {3: (4, 5, 0)},
    "QLinearMatMul": {0: (1, 2, -2), 3: (4, 5, -1)},
}
# Operators on codes whose scale comes later, in a multiplication: zero point, axis.
SCALED_LATER = {"MatMulInteger": (3, -1), "ConvInteger": (3, 0)}
# Slots of scales: floats that are no weights.
SCALES = {
    "QuantizeLinear": (1,),
    "DequantizeLinear": (1,),
    "DynamicQuantizeLSTM": (8, 10),
    "QLinearConv": (1, 4, 6),
    "QLinearMatMul": (1, 4, 6),
}
# LSTMs: axes of the gates in the slots of kernels and biases; and ONNX's gates (input, output,
# forget, cell) in Keras's order (input, forget, cell, output).
LSTMS = {"LSTM": {1: 1, 2: 1, 3: 1}, "DynamicQuantizeLSTM": {1: 2, 2: 2, 3: 1}}
GATES = (0, 2, 3, 1)
# Operators that move elements and do not compute.
MOVING = {"Gather", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
# Operators whose work the shapes of their tensors do not tell.
OPAQUE = set("Attention DFT DeformConv Det GRU If LSTM Loop RNN STFT Scan".split())


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """What a file says: its nodes, those of inner graphs too, and its tensors by name."""

    model: Any
    nodes: list[Any]
    tensors: dict[str, Any]
    makers: dict[str, Any]
    readers: dict[str, list[tuple[Any, int]]]

    @classmethod
    def parse(cls, blob: bytes, source: str) -> "OnnxFile":
        """Read a file's bytes; `source` names it in the `SecateurError` for anything damaged."""
        import onnx

        try:
            model = onnx.load_model_from_string(blob)
            if not model.graph.node or not model.graph.output:
                raise ValueError("it has no operators")
            every = list(nodes(model.graph))
            graphs = [model.graph, *(inner for node in every for inner in inner_graphs(node))]
            tensors = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
            for node in every:
                if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                    tensors[node.output[0]] = node.attribute[0].t
            outside = [t.name for t in tensors.values() if t.data_location == t.EXTERNAL]
            outside += [t.values.name for graph in graphs for t in graph.sparse_initializer]
        except Exception as error:  # a damaged file raises whatever its bytes say
            raise SecateurError(
                f"{source} is damaged or no .onnx file ({one_line(error)}), expected one that a "
                "converter wrote; fix: convert the model again"
            ) from error
        if outside:
            raise SecateurError(
                f"{source} keeps {outside[0]} in another file or a sparse encoding, expected every "
                "weight whole inside; fix: save the model as one file of dense tensors"
            )
        makers = {name: node for node in every for name in node.output}
        readers: dict[str, list[tuple[Any, int]]] = {}
        for node in every:
            for slot, name in enumerate(node.input):
                readers.setdefault(name, []).append((node, slot))
        return cls(model, every, tensors, makers, readers)

    def constants(self) -> list[Constant]:
        """Return weights and biases as they are stored, each tensor once.

        An LSTM's come apart, one for each direction, with the gates in Keras's order.
        """
        skipped = {
            node.input[slot]
            for node in self.nodes
            for slot in SCALES.get(node.op_type, ())
            if slot < len(node.input)
        }
        skipped |= {name for node in self.nodes if (name := self._later_scale(node))}
        found: dict[str, list[Constant]] = {}
        for node in self.nodes:
            for slot, name in enumerate(node.input):
                if name in self.tensors and name not in found and name not in skipped:
                    constant = self._constant(node, slot, name)
                    if constant is not None:
                        found[name] = self._directions(node, slot, name) or [constant]
        return [constant for parts in found.values() for constant in parts]

    def coding(self, name: str) -> tuple[float, int]:
        """Scale and zero point of an input, or output, of codes; (0.0, 0) where it is none."""
        readers, maker = self.readers.get(name, []), self.makers.get(name)
        node = maker if maker is not None else (readers[0][0] if len(readers) == 1 else None)
        if node is None or node.op_type != (
            "DequantizeLinear" if maker is None else "QuantizeLinear"
        ):
            return 0.0, 0
        scale, zero_point = self._scales(node.input[1], [*node.input, ""][2])
        if node.input[1] not in self.tensors or scale.size != 1:
            return 0.0, 0
        return float(scale.reshape(())), int(zero_point.reshape(()))

    def is_lowest(self, node: Any) -> bool:
        """Whether the zero point of a `QuantizeLinear` is its lowest code: it gives no value below 0."""
        zero_point = (
            self._values(node.input[2])
            if node.input[2:3] and node.input[2] in self.tensors
            else None
        )
        return zero_point is None or (
            zero_point.dtype.kind in "iu"
            and bool((zero_point == np.iinfo(zero_point.dtype).min).any())
        )

    def step(self, name: str) -> float:
        """The step of the codes that an output is decoded from; 0.0 where it is computed in float."""
        maker = self.makers.get(name)
        while maker is not None and maker.op_type in MOVING:
            maker = self.makers.get(maker.input[0])
        if maker is None or maker.op_type != "DequantizeLinear":
            return 0.0
        scale = maker.input[1]
        return float(self._values(scale).max(initial=0)) if scale in self.tensors else 0.0

    def macs(self, batch: int) -> int | None:
        """Multiply-accumulates for one sample, from the shapes at a batch size."""
        if any(node.op_type in OPAQUE or node.domain not in ("", "ai.onnx") for node in self.nodes):
            return None
        working = [node for node in self.nodes if node.op_type in WORK]
        try:
            shapes = self._shapes(batch) if working else {}
            counts = [
                WORK[node.op_type](
                    node, [shapes[n] for n in node.input if n], shapes[node.output[0]]
                )
                for node in working
            ]
        except Exception:  # a shape that is not known, or does not fit; inference raises its own
            return None
        return sum(counts) // batch

    def _shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors, where they are known."""
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for value in model.graph.input:
            if value.type.tensor_type.shape.dim:
                value.type.tensor_type.shape.dim[0].dim_value = batch
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        shapes = {name: tuple(tensor.dims) for name, tensor in self.tensors.items()}
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            sizes = value.type.tensor_type.shape.dim
            if all(size.HasField("dim_value") for size in sizes):
                shapes[value.name] = tuple(size.dim_value for size in sizes)
        return shapes

    def _constant(self, node: Any, slot: int, name: str) -> Constant | None:
        """A tensor as what it is to the node that reads it; None: no weight (a shape, an axis)."""
        values, coding = self._values(name), self._coding(node, slot)
        packed = 4 if self.tensors[name].data_type in _of_4_bits() else None
        while node.op_type == "DequantizeLinear" and node.output[0] in self.readers:
            node, slot = self.readers[node.output[0]][0]
        if coding is None:
            floating = np.issubdtype(values.dtype, np.floating)
            return (
                Constant(name, values, None, None, None, node.op_type, slot) if floating else None
            )
        scale, zero_point, axis = coding
        if node.op_type == "DynamicQuantizeLSTM":  # (directions,) or (directions, outputs)
            scale, zero_point = (
                np.expand_dims(a, tuple(range(1, 4 - a.ndim))) for a in (scale, zero_point)
            )
        if scale.ndim > 1:  # one for each block, which a `Constant` cannot tell: as floats
            scale, zero_point = (_spread(a, values.shape) for a in (scale, zero_point))
            with np.errstate(all="ignore"):  # a damaged file may hold anything
                floats = ((values.astype(np.int32) - zero_point) * scale).astype(np.float32)
            return Constant(name, floats, None, None, None, node.op_type, slot)
        along = None if scale.size == 1 else axis % values.ndim
        scale, zero_point = scale.reshape(-1), zero_point.reshape(-1)
        return Constant(name, values, scale, zero_point, along, node.op_type, slot, packed)

    def _directions(self, node: Any, slot: int, name: str) -> list[Constant]:
        """An LSTM's kernels (or biases), one for each direction; none for anything else."""
        axis = LSTMS.get(node.op_type, {}).get(slot)
        values, coding = self._values(name), self._coding(node, slot)
        if axis is None or values.ndim != 2 + (slot != 3) or values.shape[axis] % 8:
            return []
        if slot == 3:  # those of the input and those of the state, one behind the other
            values = values.reshape(2 * len(values), -1)
        scales = zeros = [None] * len(values)
        if coding is not None:
            scales, zeros = (a.reshape(len(values), -1) for a in coding[:2])
        parts = []
        for place, part in enumerate(values):
            ordered = _in_keras_order(part, axis - 1)
            scale, zero_point = (
                a if a is None or a.size == 1 else _in_keras_order(a, 0)
                for a in (scales[place], zeros[place])
            )
            along = None if scale is None or scale.size == 1 else axis - 1
            called = name if len(values) == 1 else f"{name}[{place}]"
            parts.append(Constant(called, ordered, scale, zero_point, along, node.op_type, slot))
        return parts

    def _coding(self, node: Any, slot: int) -> tuple[np.ndarray, np.ndarray, int] | None:
        """Scale, zero point and axis of the codes in a slot; None where they are not codes."""
        if slot in CODES.get(node.op_type, {}):
            scale, zero_point, axis = CODES[node.op_type][slot]
            axis = next((a.i for a in node.attribute if a.name == "axis"), axis)
            names = [*node.input, ""]
            return *self._scales(names[scale], names[zero_point]), axis
        if node.op_type in SCALED_LATER and slot == 1:
            zero_point, axis = SCALED_LATER[node.op_type]
            return *self._scales(self._later_scale(node), [*node.input, "", ""][zero_point]), axis
        if node.op_type == "QLinearConv" and slot == 8:
            of_input, of_kernel = (self._values(node.input[place]) for place in (1, 4))
            scale = np.asarray(of_input * of_kernel, np.float32)
            return scale, np.zeros(scale.shape, np.int32), 0
        for reader, place in self.readers.get(node.output[0], ()) if slot == 0 else ():
            if node.op_type in MOVING and reader.op_type in (*MOVING, "DequantizeLinear"):
                found = self._coding(reader, place)
                return found if found is not None and found[0].size == 1 else None
        return None

    def _scales(self, scale: str | None, zero_point: str) -> tuple[np.ndarray, np.ndarray]:
        found = self._values(scale) if scale in self.tensors else np.ones(())
        zeros = self._values(zero_point) if zero_point in self.tensors else np.zeros(found.shape)
        return np.asarray(found, np.float32), np.asarray(zeros, np.int32)

    def _later_scale(self, node: Any) -> str | None:
        """The scale of the kernel of integer arithmetic: result, cast, times (input's x kernel's)."""
        if node.op_type not in SCALED_LATER:
            return None
        names = [node.output[0]]
        for operator in ("Cast", "Mul"):
            readers = [reader for name in names for reader, _ in self.readers.get(name, ())]
            readers = [reader for reader in readers if reader.op_type == operator]
            if not readers:
                return None
            before, names = names, list(readers[0].output)
        product = next(name for name in readers[0].input if name not in before)
        maker = self.makers.get(product)
        # Last: the input may have a constant scale too, where it was looked up in codes.
        factors = reversed(maker.input if maker else ())
        return next((name for name in factors if name in self.tensors), None)

    def _values(self, name: str) -> np.ndarray:
        from onnx import numpy_helper

        values = numpy_helper.to_array(self.tensors[name])
        if values.dtype.kind in "fiub":
            return values
        return values.astype(np.int8 if "int" in str(values.dtype) else np.float32)


def _of_4_bits() -> tuple[int, ...]:
    from onnx import TensorProto

    return TensorProto.INT4, TensorProto.UINT4


def _in_keras_order(gates: np.ndarray, axis: int) -> np.ndarray:
    """An LSTM's four gates, one behind the other along an axis, as Keras has them."""
    parts = np.split(gates, 4, axis)
    return np.concatenate([parts[gate] for gate in GATES], axis)


def _spread(blocks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What is stored for each block, for each element of them."""
    for axis, size in enumerate(shape):
        length = -(-size // blocks.shape[axis])
        blocks = np.repeat(blocks, length, axis).take(range(size), axis)
    return blocks


Shapes = list[tuple[int, ...]]


def _product(node: Any, shapes: Shapes, out: tuple[int, ...]) -> int:
    return math.prod(out) * shapes[0][-1]


def _gemm(node: Any, shapes: Shapes, out: tuple[int, ...]) -> int:
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(out) * shapes[0][0 if transposed else 1]


def _einsum(node: Any, shapes: Shapes, out: tuple[int, ...]) -> int:
    """Every combination of the indices once: two factors, no ellipsis."""
    equation = node.attribute[0].s.decode().replace(" ", "")
    first, second = equation.partition("->")[0].split(",")
    sizes = {
        index: n
        for word, shape in zip((first, second), shapes, strict=True)
        for index, n in zip(word, shape, strict=True)
    }
    return math.prod(sizes.values())


# Multiply-accumulates of a node from the shapes of its inputs and its output.
WORK = {
    "Conv": lambda node, shapes, out: math.prod(out) * math.prod(shapes[1][1:]),
    "ConvInteger": lambda node, shapes, out: math.prod(out) * math.prod(shapes[1][1:]),
    "ConvTranspose": lambda node, shapes, out: math.prod(shapes[0]) * math.prod(shapes[1][1:]),
    "QLinearConv": lambda node, shapes, out: math.prod(out) * math.prod(shapes[3][1:]),
    "Gemm": _gemm,
    "MatMul": _product,
    "MatMulInteger": _product,
    "QLinearMatMul": _product,
    "Einsum": _einsum,
}
