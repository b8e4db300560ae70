"""A float `.onnx` file gets the grids of a quantization-aware training: tensors are found by values.

Ranges that a training left are its own; without any they are taken from calibration data. What has no
range (LayerNormalization, the scores within attention) stays float, as the training computed it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from secateur.errors import SecateurError
from secateur.fusing import Points, points_of
from secateur.locating import Match, located
from secateur.matching import SAMPLES, require_ranges, same_values, values_of
from secateur.onnx_file import OnnxFile
from secateur.onnx_quantization import Kernel, Ranges, insert
from secateur.runtimes import onnx as runtime
from secateur.widths import Width

# Operators whose kernels can be codes.
KERNELS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "Gather", "Reshape", "Transpose")
# Computed along with the operator before them: between the two is no tensor.
FUSED = ("Relu", "Clip", "Add")
Samples = Mapping[str, np.ndarray]


def as_trained(
    proto: Any,
    model: Any,
    widths: Mapping[str, Width],
    ranges: Ranges,
    batches: Sequence[Samples],
) -> Any:
    """Return a float `.onnx` model of a Keras model with the codes of its training in it.

    Args:
        proto: the file's; normalizations may be folded into its weights.
        model: that it was converted from.
        widths: path of a kernel -> 4 or 8 bits; others stay floats.
        ranges: of activations, as the training left them; empty: those of the batches.
        batches: inputs by name (n, ...), with the names of the file; of the first a few are run
            through both.

    Raises `SecateurError` for ranges of another model, and for a kernel that cannot be codes.
    """
    points = points_of(model)
    found = dict(ranges) if ranges else _calibrated(points, model, batches)
    require_ranges(points, found, model)
    few = {name: array[:SAMPLES] for name, array in batches[0].items()}
    placed = tensor_keys(proto, points, model, few)
    bounds = {name: found[key] for name, key in placed.items()}
    return insert(proto, bounds, kernels_of(proto, model, widths))


def tensor_keys(proto: Any, points: Points, model: Any, samples: Samples) -> dict[str, str]:
    """Tensor of the file -> the key of the range that it has; others have none.

    A tensor has the values of the model's, in Keras's order or with the channels in front.
    """
    wanted, _ = values_of(points, model, samples)
    tensors = values_in(proto, samples)
    placed: dict[str, str] = {}
    for key in sorted(wanted, key=points.keys.index, reverse=True):
        for values in wanted[key]:
            orders = [values] + ([np.moveaxis(values, -1, 1)] if values.ndim > 2 else [])
            for name, tensor in tensors.items():
                if name not in placed and any(same_values(order, tensor) for order in orders):
                    placed[name] = key
    readers: dict[str, list[Any]] = {value.name: [] for value in proto.graph.output}
    given_out = set(readers)
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def continued(name: str) -> bool:
        """Whether its only reader is computed along with its maker, and gives the same values."""
        takers = readers.get(name, [])
        if len(takers) != 1 or name in given_out or takers[0].op_type not in FUSED:
            return False
        return placed.get(takers[0].output[0]) == placed[name]

    return {name: key for name, key in placed.items() if not continued(name)}


def values_in(proto: Any, samples: Samples) -> dict[str, np.ndarray]:
    """Each float tensor of the file that depends on its inputs, by name, for these samples."""
    import onnx
    import onnxruntime

    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    names = [name for node in whole.graph.node for name in node.output if name]
    del whole.graph.output[:]
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        whole.SerializeToString(), options, providers=[runtime.PROVIDER]
    )
    found = dict(samples) | dict(zip(names, session.run(None, dict(samples)), strict=True))
    computed = set(samples)
    for node in proto.graph.node:
        if computed & set(node.input):
            computed |= set(node.output)
    return {name: a for name, a in found.items() if name in computed and a.dtype == np.float32}


def kernels_of(proto: Any, model: Any, widths: Mapping[str, Width]) -> dict[str, Kernel]:
    """Initializer -> how it is stored, for the kernels of a model that have 4 or 8 bits."""
    asked = {path: width for path, width in widths.items() if width.bits in (4, 8)}
    constants = OnnxFile.parse(proto.SerializeToString(), "the float file").constants()
    found = located(constants, model, {path for path, width in asked.items() if width.bits == 4})
    initializers = {tensor.name for tensor in proto.graph.initializer}
    kernels: dict[str, Kernel] = {}
    owners: dict[str, str] = {}
    for path, width in asked.items():
        match = found.get(path)
        if match is None or match.constant is None:
            continue
        name = match.constant.name
        if name not in initializers or match.constant.operator not in KERNELS:
            raise SecateurError(
                f"{path} as {width} received, which {match.constant.operator} takes as floats in an "
                "onnx-int8 file, expected kernels of dense layers, convolutions and embeddings; "
                f"fix: leave it out of the quantize step (select = {{ exclude = [...] }})"
            )
        other = owners.setdefault(name, path)
        if asked[other] != width:
            raise SecateurError(
                f"{path} received as {width} and {other} as {asked[other]}, expected one width, "
                "since they have the same values; fix: choose the same for both"
            )
        kernels[name] = Kernel(bits=int(width.bits or 8), outputs=_outputs(match))
    return kernels


def _outputs(match: Match) -> np.ndarray:
    """For each value of a tensor of the file the number of the output whose scale it has."""
    shape, axes = match.weight.shape, match.weight.axes.outputs
    sizes = [n if axis in axes else 1 for axis, n in enumerate(shape)]
    numbers = np.broadcast_to(np.arange(math.prod(sizes)).reshape(sizes), shape)
    moved = np.moveaxis(numbers, match.layout.source, match.layout.target)
    return moved if match.constant is None else moved.reshape(match.constant.values.shape)


def _calibrated(
    points: Points, model: Any, batches: Sequence[Samples]
) -> dict[str, tuple[float, float]]:
    """Key -> the smallest and largest value in any batch, of the model in float."""
    found: dict[str, tuple[float, float]] = {}
    for batch in batches:
        for key, places in values_of(points, model, batch)[0].items():
            low, high = found.get(key, (0.0, 0.0))
            for values in places:
                low, high = min(low, float(values.min())), max(high, float(values.max()))
            found[key] = low, high
    return found | {points.keys[number]: bounds for number, bounds in points.fixed.items()}
