"""Codes in a float `.onnx` graph: pairs of QuantizeLinear and DequantizeLinear (QDQ), and stored codes.

Weights stand behind a DequantizeLinear with a scale for each output; a pair stands at each value that
is given a range, and nowhere else. Runtimes make integer operators of what lies between such pairs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.arrays.affine import SMALLEST_BOUND
from secateur.errors import SecateurError

Ranges = Mapping[str, tuple[float, float]]  # tensor -> (smallest, largest)
# Codes of 4 bits are known to ONNX from here on.
OPSET_OF_4_BITS, IR_OF_4_BITS = 21, 10
# The narrowest range, as in training: of constant values, whose grid would have no step.
NARROWEST = 1e-6
# Operators that add a bias.
BIASED = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True, kw_only=True, eq=False)
class Kernel:
    """How a tensor of weights is stored: codes of `bits`, a scale for each output.

    outputs: in the tensor's shape, the number of the output that each value belongs to.
    """

    bits: int
    outputs: np.ndarray


def activation_grid(low: float, high: float) -> tuple[np.float32, int]:
    """Scale and zero point (of uint8) of a range, which is made to hold 0: those of the training.

    >>> scale, zero_point = activation_grid(-0.55, 2.0)
    >>> round(float(scale), 4), zero_point
    (0.01, 55)
    """
    least = np.float32(min(low, 0.0))
    most = max(np.float32(max(high, 0.0)), least + np.float32(NARROWEST))
    scale = np.float32((most - least) / np.float32(255))
    return scale, int(np.clip(np.rint(-least / scale), 0, 255))


def kernel_codes(
    values: np.ndarray, kernel: Kernel, least: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Codes, in the shape of the values, and the scale of each output; rounded half up.

    least: what the scale of an output may not fall below.

    >>> kernel = Kernel(bits=4, outputs=np.array([[0, 1], [0, 1]]))
    >>> codes, scales = kernel_codes(np.float32([[7, 0], [2.4, 3.5]]), kernel)
    >>> codes.tolist(), scales.tolist()
    ([[7, 0], [2, 7]], [1.0, 0.5])
    """
    top = 2 ** (kernel.bits - 1) - 1
    bound = np.zeros(int(kernel.outputs.max(initial=0)) + 1, np.float32)
    np.maximum.at(bound, kernel.outputs.ravel(), np.abs(values).ravel())
    scales = np.maximum(bound, np.float32(SMALLEST_BOUND)) / np.float32(top)
    scales = np.maximum(scales, np.float32(least))
    codes = np.floor(values / scales[kernel.outputs] + np.float32(0.5))
    return np.clip(codes, -top, top).astype(np.int8), scales


def packed(codes: np.ndarray) -> bytes:
    """Codes of 4 bits, two to a byte, the first in the lower half.

    >>> packed(np.int8([1, -1, 7])).hex()
    'f107'
    """
    halves = np.append(codes.ravel(), np.zeros(codes.size % 2, np.int8)).astype(np.uint8) & 15
    return (halves[::2] | halves[1::2] << 4).astype(np.uint8).tobytes()


def insert(proto: Any, ranges: Ranges, kernels: Mapping[str, Kernel]) -> Any:
    """Return a float model with codes in it; the one that is given is not changed.

    ranges: of each tensor that is rounded. kernels: initializer -> how it is stored; 4 bits take
    the model to opset 21. The bias of an operator whose input and kernel are codes becomes int32
    codes, whose scale is the product of theirs. Raises `SecateurError` for a kernel whose outputs
    are not next to each other.
    """
    made = _with_4_bits(proto) if any(k.bits < 8 for k in kernels.values()) else _copy(proto)
    _Insertion(made.graph, ranges, kernels).run()
    return made


class _Insertion:
    """The work of `insert` on one graph."""

    def __init__(self, graph: Any, ranges: Ranges, kernels: Mapping[str, Kernel]):
        from onnx import numpy_helper

        self.graph, self.kernels = graph, kernels
        self.values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.grids = {name: activation_grid(*bounds) for name, bounds in ranges.items()}

    def run(self) -> None:
        biased = [node for node in self.graph.node if self._has_bias(node)]
        least: dict[str, np.ndarray] = {}
        for node in biased:
            source, kernel, bias = node.input[:3]
            # A quarter of what 32 bits hold: an output that pruning left no weight keeps its bias.
            needed = np.abs(self.values[bias]) / self.grids[source][0] / 2**29
            least[kernel] = np.maximum(least.get(kernel, 0.0), needed)
        scales = {}
        for name, kernel in self.kernels.items():
            codes, scales[name] = kernel_codes(self.values[name], kernel, least.get(name, 0.0))
            self._store(name, codes, scales[name])
        for node in biased:
            source, kernel, bias = node.input[:3]
            scale = np.asarray(self.grids[source][0] * scales[kernel], np.float32)
            codes = np.rint(self.values[bias].astype(np.float64) / scale).astype(np.int32)
            name = f"{node.output[0]}:bias"
            stored = self._constant(f"{name}:stored", codes)
            self._dequantize(name, stored, scale, None, 0)
            node.input[2] = name
        self._read_stored()
        for name in self.grids:
            self._round(name)
        self._drop_clipping()
        self._drop_unread()

    def _has_bias(self, node: Any) -> bool:
        """Whether a node adds a bias that can be codes: input and kernel are, an output has a scale."""
        if node.op_type not in BIASED or len(node.input) < 3:
            return False
        source, kernel, bias = node.input[:3]
        if source not in self.grids or kernel not in self.kernels or bias not in self.values:
            return False
        outputs = int(self.kernels[kernel].outputs.max(initial=0)) + 1
        plain = all(a.f == 1.0 for a in node.attribute if a.name in ("alpha", "beta"))
        return plain and self.values[bias].shape == (outputs,)

    def _store(self, name: str, codes: np.ndarray, scales: np.ndarray) -> None:
        """Codes in the place of an initializer, under another name until every reader is known."""
        kernel = self.kernels[name]
        varying = [
            axis for axis in range(codes.ndim) if (np.diff(kernel.outputs, axis=axis) != 0).any()
        ]
        first, last = (varying[0], varying[-1]) if varying else (0, 0)
        if varying != list(range(first, last + 1)) and varying:
            raise SecateurError(
                f"a kernel of shape {codes.shape} whose outputs are its axes {varying} received, "
                "expected axes next to each other, which ONNX has a scale for; fix: leave the layer "
                "out of the quantization"
            )
        shape, axis = codes.shape, first
        if len(varying) > 1:  # a scale for each entry of several axes: as one axis, and back
            shape = (
                math.prod(shape[:first]),
                math.prod(shape[first : last + 1]),
                math.prod(shape[last + 1 :]),
            )
            axis = 1
        order = np.moveaxis(kernel.outputs.reshape(shape), axis, 0).reshape(shape[axis], -1)[:, 0]
        scale = scales[order] if varying else scales[:1].reshape(())
        stored = self._constant(f"{name}:stored", codes.reshape(shape), kernel.bits)
        zeros = self._constant(f"{name}:zeros", np.zeros(scale.shape, np.int8), kernel.bits)
        whole = self._decoded(name)
        flat = whole if shape == codes.shape else f"{name}:flat"
        self._dequantize(flat, stored, scale, zeros, axis)
        if flat != whole:
            target = self._constant(f"{name}:shape", np.array(codes.shape, np.int64))
            self.graph.node.add(op_type="Reshape", input=[flat, target], output=[whole])

    def _read_stored(self) -> None:
        """Have every node read the decoded kernels in the place of the floats."""
        for node in self.graph.node:
            for slot, name in enumerate(node.input):
                if name in self.kernels:
                    node.input[slot] = self._decoded(name)

    def _round(self, name: str) -> None:
        """A pair behind the maker of a tensor; what is read, and given out, keeps the name."""
        raw, codes, decoded = f"{name}:raw", f"{name}:codes", name
        makers = [node for node in self.graph.node if name in node.output]
        if makers:
            outputs = [raw if output == name else output for output in makers[0].output]
            del makers[0].output[:]
            makers[0].output.extend(outputs)
        else:  # the name of an input stays with the input
            raw, decoded = name, f"{name}:decoded"
            for node in self.graph.node:
                inputs = [decoded if read == name else read for read in node.input]
                del node.input[:]
                node.input.extend(inputs)
        scale, zero = self.grids[name]
        scales = self._constant(f"{name}:scale", np.asarray(scale, np.float32))
        zeros = self._constant(f"{name}:zero", np.asarray(zero, np.uint8))
        self.graph.node.add(op_type="QuantizeLinear", input=[raw, scales, zeros], output=[codes])
        self.graph.node.add(
            op_type="DequantizeLinear", input=[codes, scales, zeros], output=[decoded]
        )

    def _dequantize(
        self, name: str, codes: str, scale: np.ndarray, zeros: str | None, axis: int
    ) -> None:
        from onnx import helper

        scales = self._constant(f"{name}:scale", np.asarray(scale, np.float32))
        inputs = [codes, scales] + ([] if zeros is None else [zeros])
        node = helper.make_node("DequantizeLinear", inputs, [name])
        if np.ndim(scale):
            node.attribute.append(helper.make_attribute("axis", axis))
        self.graph.node.append(node)

    def _constant(self, name: str, values: np.ndarray, bits: int = 8) -> str:
        from onnx import TensorProto, helper, numpy_helper

        if bits < 8:
            made = helper.make_tensor(
                name, TensorProto.INT4, values.shape, packed(values), raw=True
            )
        else:
            made = numpy_helper.from_array(np.asarray(values, order="C"), name)
        self.graph.initializer.append(made)
        return name

    def _drop_clipping(self) -> None:
        """Take out each Relu (and Clip) in front of a pair whose codes end where it clips.

        Runtimes see the operator before it and the codes as one of integers then.
        """
        makers = {name: node for node in self.graph.node for name in node.output}
        readers = Counter(name for node in self.graph.node for name in node.input)
        for node in list(self.graph.node):
            name = node.output[0]
            grid = self.grids.get(name.removesuffix(":codes"))
            if node.op_type != "QuantizeLinear" or grid is None:
                continue
            clipping = makers.get(node.input[0])
            if clipping is None or clipping.input[0] not in makers:
                continue
            alone = readers[node.input[0]] == readers[clipping.input[0]] == 1
            if alone and self._ends_within(clipping, *grid):
                node.input[0] = clipping.input[0]
                self.graph.node.remove(clipping)

    def _ends_within(self, clipping: Any, scale: np.float32, zero: int) -> bool:
        """Whether codes of a grid hold nothing that a Relu or Clip would change."""
        if clipping.op_type == "Relu":
            return zero == 0
        if clipping.op_type != "Clip" or len(clipping.input) != 3:
            return False
        low, high = (self.values.get(name) for name in clipping.input[1:])
        if low is None or high is None or low.size != 1 or high.size != 1:
            return False
        return zero == 0 and float(low) == 0.0 and 255 * float(scale) <= float(high) * (1 + 1e-6)

    def _drop_unread(self) -> None:
        read = {name for node in self.graph.node for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in read]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    @staticmethod
    def _decoded(name: str) -> str:
        return f"{name}:decoded"


def _copy(proto: Any) -> Any:
    made = type(proto)()
    made.CopyFrom(proto)
    return made


def _with_4_bits(proto: Any) -> Any:
    """The model in a version of ONNX that knows codes of 4 bits."""
    from onnx import version_converter

    made = version_converter.convert_version(proto, OPSET_OF_4_BITS)
    made.ir_version = max(made.ir_version, IR_OF_4_BITS)
    return made
