"""Which tensor of a float `.tflite` each range of a training belongs to: found by values, never by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from secateur.errors import SecateurError
from secateur.fusing import Points, forward, points_of
from secateur.runtimes import litert

SAMPLES = 4
CLOSE = 1e-4  # of the largest value: other kernels, folded normalizations


def tensor_ranges(
    blob: bytes,
    model: Any,
    ranges: Mapping[str, tuple[float, float]],
    samples: Any,
    calibrated: Mapping[str, tuple[float, float]],
) -> dict[str, tuple[float, float]]:
    """Tensor -> range: the training's where it has one, else the calibrated one.

    blob: the float file of the model. samples: inputs (n, ...) or {name: inputs}; the first few
    are run through both. A tensor with the values of one that has a range (a reshape) gets it too.
    Raises `SecateurError` for ranges of another model, and where a range finds no tensor.
    """
    points = points_of(model)
    unknown = sorted(set(ranges) - set(points.keys))
    missing = [key for key in points.keys if key not in ranges]
    if unknown or missing:
        raise SecateurError(
            f"ranges of another model received ({', '.join([*unknown, *missing][:3])}), expected "
            f"one for each of {len(points.keys)} values of {model.name!r}; fix: train it anew"
        )
    few = keras.tree.map_structure(lambda array: np.asarray(array)[:SAMPLES], samples)
    wanted = values_of(points, model, few)
    found = litert.tensors(blob, few)
    placed: dict[str, str] = {}
    for key in sorted(wanted, key=points.keys.index, reverse=True):
        for values in wanted[key]:
            for name, tensor in found.items():
                if name not in placed and _same(values, tensor):
                    placed[name] = key
    return {name: ranges[placed[name]] if name in placed else r for name, r in calibrated.items()}


def values_of(points: Points, model: Any, samples: Any) -> dict[str, list[np.ndarray]]:
    """Key -> the values, in float, of each place that has this range."""
    found: dict[str, list[np.ndarray]] = {}

    def at(number: int, value: Any, own: bool = False) -> Any:
        array = np.asarray(ops.convert_to_numpy(value), np.float32)
        found.setdefault(points.keys[number], []).append(array)
        return value

    if isinstance(samples, Mapping):
        from secateur.runtimes.keras import pack, signature

        samples = pack(model, [samples[name] for name in signature(model)[0]])
    inputs = keras.tree.map_structure(ops.convert_to_tensor, samples)
    forward(points, inputs, at=at, training=False, passing=at)
    return found


def _same(values: np.ndarray, tensor: np.ndarray) -> bool:
    """Whether two arrays hold the same numbers in the same order, whatever their shapes."""
    if values.size != tensor.size:
        return False
    scale = max(float(np.abs(values).max(initial=0.0)), 1e-6)
    return bool((np.abs(values.ravel() - tensor.ravel()) <= CLOSE * scale).all())
