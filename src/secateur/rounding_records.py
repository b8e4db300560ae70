"""What rounding costs, layer by layer, as plain data for the record of a Run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import ops

from secateur.arrays.affine import ratio
from secateur.artifact import Artifact
from secateur.capture import without_gradients
from secateur.fake_quantization import quantized_values, widened
from secateur.fusing import points_of
from secateur.quantization import QUANTIZATIONS
from secateur.simulation import forward
from secateur.widths import Specification

# Samples that activations are looked at on, and how many at a time.
SAMPLES, BATCH = 64, 8


def kernel_records(artifact: Artifact) -> dict[str, dict[str, Any]]:
    """Path -> bits and relative RMS error of each kernel that a file stores as codes; {} of floats."""
    return {
        path: {"bits": found["bits"], "error": found["error"]}
        for path, found in artifact.tensors.items()
        if "error" in found
    }


def quantization_record(
    model: Any, specification: Specification | None, stage: str, x: Any
) -> dict[str, Any] | None:
    """What a quantize step left: format, stage, whether trained, and its ranges; None without one."""
    if specification is None:
        return None
    bits = QUANTIZATIONS[specification.format].activations
    ranges = [] if bits is None else range_records(model, specification.ranges, x, bits)
    return {
        "format": specification.format,
        "stage": stage,
        "aware": bool(specification.ranges),
        "ranges": ranges,
    }


def range_records(
    model: Any, ranges: Mapping[str, tuple[float, float]], x: Any, bits: int = 8
) -> list[dict[str, Any]]:
    """For each range that a training left: its ends, its step, and what it costs on inputs x (n, ...).

    error: RMS of the rounded values less the float ones, relative to the float ones'; clipped: share
    of values outside. Both are of the float model's values and None without inputs.

    >>> import keras
    >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="d")])
    >>> bounds = {"input:0": (0.0, 0.5), "d": (-1.0, 1.0)}
    >>> found = range_records(net, bounds, np.array([[0.0, 0.5], [0.5, 1.0]], np.float32))
    >>> found[0]["key"], found[0]["clipped"], round(found[0]["step"], 4)
    ('input:0', 0.25, 0.002)
    """
    if not ranges:
        return []
    points = points_of(model)
    totals = np.zeros((len(points.keys), 4))  # squares of errors, of values; outside, values

    def at(number: int, value: Any, *_: Any) -> Any:
        bounds = ranges.get(points.keys[number])
        if bounds is not None:
            low, high = (float(end) for end in widened(*map(ops.convert_to_tensor, bounds)))
            floats = ops.cast(value, "float32")
            rounded = ops.convert_to_numpy(quantized_values(floats, low, high, bits))
            floats = ops.convert_to_numpy(floats).astype(np.float64)
            slack = 0.5 * (high - low) / (2**bits - 1)
            outside = (floats < low - slack) | (floats > high + slack)
            errors = np.square(rounded - floats).sum()
            totals[number] += errors, np.square(floats).sum(), outside.sum(), floats.size
        return value

    inputs = np.asarray(x)[:SAMPLES] if x is not None else np.zeros((0, 1))
    with without_gradients():
        for start in range(0, len(inputs), BATCH):
            batch = ops.convert_to_tensor(inputs[start : start + BATCH])
            forward(points, batch, at=at, training=False)
    records = []
    for key, (errors, squares, outside, count) in zip(points.keys, totals.tolist(), strict=True):
        if key not in ranges:
            continue
        low, high = ranges[key]
        records.append({
            "key": key,
            "low": low,
            "high": high,
            "step": (high - low) / (2**bits - 1),
            "error": ratio(errors, squares) if count else None,
            "clipped": outside / count if count else None,
        })  # fmt: skip
    return records
