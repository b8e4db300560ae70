"""A float `.tflite` becomes a quantized one; neither TensorFlow nor Keras takes part.

ai-edge-quantizer writes the file; the ranges of activations are our own, the smallest and largest
values that calibration data give (its own moving average clips: docs/decisions/005).
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.blocks import with_normal_scales
from secateur.errors import SecateurError, nearest
from secateur.runtimes import one_line, quiet
from secateur.stripping import embedded
from secateur.tflite import Operator, TfliteFile
from secateur.widths import STORED, Width

Ranges = Mapping[str, tuple[float, float]]  # tensor -> (smallest, largest)
IO = ("int", "float")  # what integer formats take in and give out


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How a file stores weights and computes.

    weights: bits of a weight, 16 meaning half-precision floats. activations: bits between
    operators, None for floats. block: weights that share a scale along the inputs (None: those of
    one output). io: inputs and outputs of the file as "int" codes or as "float".
    """

    weights: int
    activations: int | None = None
    block: int | None = None
    io: str = "int"

    def __post_init__(self) -> None:
        if self.io not in IO:
            raise SecateurError(f"unknown io {self.io!r}; {nearest(self.io, IO)}")


_ACTIVATIONS = {"float16": None, "dynamic": None, "int4": None, "int8": 8, "int16x8": 16}
QUANTIZATIONS = {
    format: Quantization(weights=STORED[format], activations=bits)
    for format, bits in _ACTIVATIONS.items()
}
# What an integer format is called when an operator of the file computes in float.
MIXED = {"int8": "mixed", "int16x8": "mixed16x8"}
# Operators with a kernel and a bias; the kernel's axis of outputs.
KERNELS = {"CONV_2D": 0, "FULLY_CONNECTED": 0, "DEPTHWISE_CONV_2D": -1}


def prepare() -> None:
    """Import the quantizer; raises `SecateurError` where it is not installed."""
    try:
        importlib.import_module("ai_edge_quantizer.quantizer")
    except ImportError as error:
        raise SecateurError(
            "ai-edge-quantizer is not installed, expected it for writing quantized .tflite files; "
            "fix: pip install 'secateur[litert]'"
        ) from error


def quantize(
    blob: bytes,
    how: Quantization,
    ranges: Ranges | None = None,
    widths: Mapping[str, Width] | None = None,
    floats: Collection[str] = (),
) -> bytes:
    """Return the quantized file of a float one; same file and ranges, same bytes.

    ranges: of every computed float tensor, needed where activations are quantized
    (`secateur.runtimes.litert.ranges` takes them from data). widths: tensor of a kernel -> its width,
    where that is another than `how` says. An operator without a kernel for 4-bit weights gets 8.
    floats: tensors that are computed in float where activations are quantized.
    Raises `SecateurError` for what the quantizer refuses, with its reason.
    """
    prepare()
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.quantizer import Quantizer

    if how.activations is not None and ranges is None:
        raise SecateurError(
            f"{how} received without ranges, expected the smallest and largest value of every "
            "activation; fix: give calibration data"
        )
    quantizer, widths = Quantizer(bytearray(blob)), widths or {}
    file = TfliteFile.parse(blob, "the float file")
    single = _single(file, how, widths)
    if how.activations is not None:
        kept = [o for o in file.operators if any(t.name in floats for t in o.outputs)]
        single += [(operator, Width(bits=None)) for operator in kept]
    found = None if how.activations is None else _statistics(blob, how, ranges or {}, widths)
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the quantizer's own use of the interpreter
            _configure(quantizer, how, qtyping)
            for operator, width in single:
                _configure_one(quantizer, how, qtyping, operator, width)
            result = quantizer.quantize(found, enable_progress_report=False)
    except Exception as error:  # it raises ValueError, RuntimeError and others, as its passes do
        raise SecateurError(
            f"the model could not be quantized ({one_line(error)}), expected operators that "
            f"{how} exists for; fix: choose another format, or leave the layer in float"
        ) from error
    made = embedded(bytes(result.quantized_model))
    if how.block is None and not any(width.block for _, width in single):
        return made
    return with_normal_scales(made, {c.name: c.values for c in file.constants()})


def _configure(quantizer: Any, how: Quantization, types: Any) -> None:
    every = types.TFLOperationName.ALL_SUPPORTED
    if how.weights == 16:
        quantizer.update_quantization_recipe(".*", every, _half(types), "float_casting")
        return
    scales = types.QuantGranularity.CHANNELWISE
    if how.block is not None:
        scales = types.QuantGranularity[f"BLOCKWISE_{how.block}"]

    def add(operator: Any, bits: int, granularity: Any) -> None:
        if how.activations is None:
            quantizer.add_dynamic_config(".*", operator, bits, granularity)
        else:
            quantizer.add_static_config(".*", operator, how.activations, bits, granularity)

    if how.weights < 8:
        # First everything at 8 bits: what has no kernel for 4 would silently stay in float.
        add(every, 8, types.QuantGranularity.CHANNELWISE)
        add(types.TFLOperationName.FULLY_CONNECTED, how.weights, scales)
        for name in ("CONV_2D", "EMBEDDING_LOOKUP"):  # blocks exist for fully connected layers
            granularity = types.QuantGranularity.CHANNELWISE
            add(types.TFLOperationName[name], how.weights, granularity)
    else:
        add(every, how.weights, scales)
    if how.activations is not None and how.io == "float":
        for name in ("INPUT", "OUTPUT"):
            quantizer.update_quantization_recipe(
                ".*", types.TFLOperationName[name], algorithm_key="no_quantize"
            )


def _half(types: Any) -> Any:
    """Weights as half-precision floats, computed with as floats."""
    return types.OpQuantizationConfig(
        weight_tensor_config=types.TensorQuantizationConfig(
            num_bits=16, dtype=types.TensorDataType.FLOAT
        ),
        compute_precision=types.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )


def _single(
    file: TfliteFile, how: Quantization, widths: Mapping[str, Width]
) -> list[tuple[Operator, Width]]:
    """The operators that a kernel with a width of its own feeds, found by its tensor."""
    found = []
    for operator in file.operators:
        names = [t.name for t in operator.inputs if t is not None and t.data is not None]
        for width in dict.fromkeys(widths[name] for name in names if name in widths):
            kernel = next(t for t in operator.inputs if t is not None and t.name in widths)
            if width.bits == 16 and how.activations is not None:
                raise SecateurError(
                    f"16 bits received for '{kernel.name}' in a file of integers, expected 4, 8 or "
                    "float; fix: choose one, or the format float16 or dynamic"
                )
            if how.weights == 16 and width.bits not in (16, None):
                raise SecateurError(
                    f"{width} received for '{kernel.name}' in a float16 file, expected 16 bits or "
                    "float; fix: choose the format dynamic or int4"
                )
            size = kernel.shape[-1]
            blocks = operator.name == "FULLY_CONNECTED" and how.activations is None
            if width.block is not None and (not blocks or size % width.block):
                raise SecateurError(
                    f"{width} received for '{kernel.name}' {kernel.shape} of {operator.name}, expected "
                    "a fully connected layer whose inputs are a multiple of the block, in a file "
                    "that computes activations in float (int4, dynamic); fix: leave the block out"
                )
            found.append((operator, width))
    return found


def _configure_one(
    quantizer: Any, how: Quantization, types: Any, operator: Operator, width: Width
) -> None:
    """One operator's own setting: it goes before the general one, unless it has no kernel for it."""
    scope = f"^{re.escape(';'.join(t.name for t in operator.outputs))};$"
    every = types.TFLOperationName.ALL_SUPPORTED  # of this scope, which is one operator's
    scales = types.QuantGranularity.CHANNELWISE
    if width.block is not None:
        scales = types.QuantGranularity[f"BLOCKWISE_{width.block}"]
    if width.bits is None:
        quantizer.update_quantization_recipe(scope, every, algorithm_key="no_quantize")
    elif width.bits == 16:
        quantizer.update_quantization_recipe(scope, every, _half(types), "float_casting")
    elif how.activations is None:
        quantizer.add_dynamic_config(scope, every, width.bits, scales)
    else:
        quantizer.add_static_config(scope, every, how.activations, width.bits, scales)


def _statistics(
    blob: bytes, how: Quantization, ranges: Ranges, widths: Mapping[str, Width]
) -> dict[str, dict[str, np.ndarray]]:
    """What the quantizer takes: a range for each computed tensor, and for kernels that need one."""
    file = TfliteFile.parse(blob, "the float file")
    computed = _computed_floats(file)
    if "" in computed:
        raise SecateurError(
            "a file without tensor names received (stripped?), expected the converter's; "
            "fix: quantize first and strip afterwards"
        )
    missing = [name for name in computed if name not in ranges]
    if missing:
        raise SecateurError(
            f"no range for {', '.join(missing[:3])} received, expected one for each of "
            f"{len(computed)} tensors; fix: take the ranges from this very file"
        )
    bad = [n for n in computed if not np.isfinite(ranges[n]).all() or ranges[n][0] > ranges[n][1]]
    if bad:
        raise SecateurError(
            f"the range {ranges[bad[0]]} of {bad[0]} received, expected finite numbers, the smaller "
            "first; fix: the calibration data or the model hold NaN or infinity"
        )
    found = {
        name: {
            "min": np.array([ranges[name][0]], np.float32),
            "max": np.array([ranges[name][1]], np.float32),
        }
        for name in computed
    }
    return found | _kernel_ranges(file, how, ranges, widths)


def _kernel_ranges(
    file: TfliteFile, how: Quantization, ranges: Ranges, widths: Mapping[str, Width]
) -> dict[str, dict[str, np.ndarray]]:
    """Ranges of the kernels in which an output's weights are so small that its bias would not fit.

    A bias is stored in steps of (input's step) x (weights' step). Where pruning left an output no
    weight, the quantizer takes next to nothing for their step, and the bias saturates: the output
    loses it (0.0393 became 0.0001).
    """
    found = {}
    for operator in file.operators:
        if operator.name not in KERNELS or len(operator.inputs) < 3 or how.activations is None:
            continue
        source, kernel, bias = operator.inputs[:3]
        if source is None or kernel is None or bias is None:
            continue
        bits = widths[kernel.name].bits if kernel.name in widths else how.weights
        if kernel.data is None or bias.data is None or bits is None:
            continue
        axis = KERNELS[operator.name]
        values = np.abs(kernel.values())
        others = tuple(a for a in range(values.ndim) if a != axis % values.ndim)
        largest = values.max(axis=others, keepdims=True)
        low, high = ranges[source.name]
        step = max((max(high, 0.0) - min(low, 0.0)) / (2**how.activations - 1), 1e-12)
        # A quarter of what 32 bits hold, so that rounding cannot pass the end.
        least = np.abs(bias.values()) / step / 2**29 * (2 ** (bits - 1) - 1)
        least = np.maximum(least.reshape(largest.shape), 1e-6 * values.max())
        if (largest < least).any():
            bound = np.maximum(largest, least).astype(np.float32)
            found[kernel.name] = {"min": -bound, "max": bound}
    return found


def _computed_floats(file: TfliteFile) -> list[str]:
    tensors = [t for o in file.operators for t in (*o.inputs, *o.outputs) if t is not None]
    return list(dict.fromkeys(t.name for t in tensors if t.data is None and t.floating))
