"""A float `.tflite` becomes a quantized one; neither TensorFlow nor Keras takes part.

ai-edge-quantizer writes the file; the ranges of activations are our own, the smallest and largest
values that calibration data give (its own moving average clips: docs/decisions/005).
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.errors import SecateurError
from secateur.runtimes import one_line, quiet
from secateur.stripping import embedded
from secateur.tflite import TfliteFile

Ranges = Mapping[str, tuple[float, float]]  # tensor -> (smallest, largest)


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


QUANTIZATIONS = {
    "float16": Quantization(weights=16),
    "dynamic": Quantization(weights=8),
    "int4": Quantization(weights=4),
    "int8": Quantization(weights=8, activations=8),
    "int16x8": Quantization(weights=8, activations=16),
}
# What an integer format is called when an operator of the file computes in float.
MIXED = {"int8": "mixed", "int16x8": "mixed16x8"}
# Operators with a kernel and a bias; the kernel's axis of outputs.
KERNELS = {"CONV_2D": 0, "FULLY_CONNECTED": 0, "DEPTHWISE_CONV_2D": -1}
BLOCKS = (32, 64, 128, 256)


def prepare() -> None:
    """Import the quantizer; raises `SecateurError` where it is not installed."""
    try:
        importlib.import_module("ai_edge_quantizer.quantizer")
    except ImportError as error:
        raise SecateurError(
            "ai-edge-quantizer is not installed, expected it for writing quantized .tflite files; "
            "fix: pip install 'secateur[litert]'"
        ) from error


def quantize(blob: bytes, how: Quantization, ranges: Ranges | None = None) -> bytes:
    """Return the quantized file of a float one; same file and ranges, same bytes.

    ranges: of every computed float tensor, needed where activations are quantized
    (`secateur.runtimes.litert.ranges` takes them from data). An operator without a kernel for 4-bit
    weights gets 8. Raises `SecateurError` for what the quantizer refuses, with its reason.
    """
    prepare()
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.quantizer import Quantizer

    if how.activations is not None and ranges is None:
        raise SecateurError(
            f"{how} received without ranges, expected the smallest and largest value of every "
            "activation; fix: give calibration data"
        )
    quantizer = Quantizer(bytearray(blob))
    found = None if how.activations is None else _statistics(blob, how, ranges or {})
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the quantizer's own use of the interpreter
            _configure(quantizer, how, qtyping)
            result = quantizer.quantize(found, enable_progress_report=False)
    except Exception as error:  # it raises ValueError, RuntimeError and others, as its passes do
        raise SecateurError(
            f"the model could not be quantized ({one_line(error)}), expected operators that "
            f"{how} exists for; fix: choose another format, or leave the layer in float"
        ) from error
    return embedded(bytes(result.quantized_model))


def _configure(quantizer: Any, how: Quantization, types: Any) -> None:
    every = types.TFLOperationName.ALL_SUPPORTED
    if how.weights == 16:
        config = types.OpQuantizationConfig(
            weight_tensor_config=types.TensorQuantizationConfig(
                num_bits=16, dtype=types.TensorDataType.FLOAT
            ),
            compute_precision=types.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        )
        quantizer.update_quantization_recipe(".*", every, config, "float_casting")
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


def _statistics(blob: bytes, how: Quantization, ranges: Ranges) -> dict[str, dict[str, np.ndarray]]:
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
    return found | _kernel_ranges(file, how, ranges)


def _kernel_ranges(
    file: TfliteFile, how: Quantization, ranges: Ranges
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
        if kernel.data is None or bias.data is None:
            continue
        axis = KERNELS[operator.name]
        values = np.abs(kernel.values())
        others = tuple(a for a in range(values.ndim) if a != axis % values.ndim)
        largest = values.max(axis=others, keepdims=True)
        low, high = ranges[source.name]
        step = max((max(high, 0.0) - min(low, 0.0)) / (2**how.activations - 1), 1e-12)
        # A quarter of what 32 bits hold, so that rounding cannot pass the end.
        least = np.abs(bias.values()) / step / 2**29 * (2 ** (how.weights - 1) - 1)
        least = np.maximum(least.reshape(largest.shape), 1e-6 * values.max())
        if (largest < least).any():
            bound = np.maximum(largest, least).astype(np.float32)
            found[kernel.name] = {"min": -bound, "max": bound}
    return found


def _computed_floats(file: TfliteFile) -> list[str]:
    tensors = [t for o in file.operators for t in (*o.inputs, *o.outputs) if t is not None]
    return list(dict.fromkeys(t.name for t in tensors if t.data is None and t.floating))
