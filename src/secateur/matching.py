"""Which tensor of a float `.tflite` each range of a training belongs to: found by values, never by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from secateur.errors import SecateurError
from secateur.fusing import Points, points_of
from secateur.graph import Call
from secateur.runtimes import litert
from secateur.simulation import forward
from secateur.tflite import Operator, TfliteFile

SAMPLES = 4
# Operators that give the values that they take, in another order or shape.
MOVING = {"RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS"}
CLOSE = 1e-4  # of the largest value: other kernels, folded normalizations


@dataclass(frozen=True, kw_only=True)
class Matched:
    """What a training says of a float file.

    ranges: tensor -> range, the training's where it has one, else the calibrated one. floats:
    tensors whose operators compute in float, as they did in training.
    """

    ranges: Mapping[str, tuple[float, float]]
    floats: frozenset[str]


def matched(
    blob: bytes,
    model: Any,
    ranges: Mapping[str, tuple[float, float]],
    samples: Any,
    calibrated: Mapping[str, tuple[float, float]],
) -> Matched:
    """Find the tensors of the float file of a model that its training's ranges belong to.

    blob: the float file of the model. samples: inputs (n, ...) or {name: inputs}; the first few
    are run through both. A tensor with the values of one that has a range (a reshape) gets it too.
    Raises `SecateurError` for ranges of another model.
    """
    points = points_of(model)
    require_ranges(points, ranges, model)
    few = keras.tree.map_structure(lambda array: np.asarray(array)[:SAMPLES], samples)
    wanted, spans = values_of(points, model, few)
    found = litert.tensors(blob, few)
    placed: dict[str, str] = {}
    for key in sorted(wanted, key=points.keys.index, reverse=True):
        for values in wanted[key]:
            for name, tensor in found.items():
                if name not in placed and same_values(values, tensor):
                    placed[name] = key
    operators = TfliteFile.parse(blob, "the float file").operators
    _pass_on(operators, placed)
    ends = {
        name for name, tensor in found.items() if any(same_values(span, tensor) for span in spans)
    }
    return Matched(
        ranges={
            name: ranges[placed[name]] if name in placed else r for name, r in calibrated.items()
        },
        floats=_between(operators, ends, placed),
    )


def require_ranges(points: Points, ranges: Mapping[str, Any], model: Any) -> None:
    """Refuse ranges that are not one for each value of this model."""
    unknown = sorted(set(ranges) - set(points.keys))
    missing = [key for key in points.keys if key not in ranges]
    if unknown or missing:
        raise SecateurError(
            f"ranges of another model received ({', '.join([*unknown, *missing][:3])}), expected "
            f"one for each of {len(points.keys)} values of {model.name!r}; fix: train it anew"
        )


def _pass_on(operators: Sequence[Operator], placed: dict[str, str]) -> None:
    """What only moves values about has one range on both sides."""
    sides = [(o.inputs[0], o.outputs[0]) for o in operators if o.name in MOVING and o.inputs[0]]
    changed = True
    while changed:
        changed = False
        for a, b in (*sides, *((b, a) for a, b in sides)):
            if a is not None and b is not None and a.name in placed and b.name not in placed:
                placed[b.name], changed = placed[a.name], True


def _between(
    operators: Sequence[Operator], ends: Collection[str], placed: Mapping[str, str]
) -> frozenset[str]:
    """Outputs of the operators that lead to `ends`, back to tensors that have a range."""
    makers = {t.name: o for o in operators for t in o.outputs}
    found: set[str] = set()
    left = [name for name in ends if name in makers and makers[name].name not in MOVING]
    while left:
        operator = makers[left.pop()]
        found |= {t.name for t in operator.outputs}
        for tensor in operator.inputs:
            if tensor is None or tensor.data is not None or tensor.name not in makers:
                continue
            if tensor.name not in placed and tensor.name not in found:
                left.append(tensor.name)
    return frozenset(found)


def values_of(
    points: Points, model: Any, samples: Any
) -> tuple[dict[str, list[np.ndarray]], list[np.ndarray]]:
    """Key -> the values, in float, of each place that has this range; and what comes out of floats."""
    found: dict[str, list[np.ndarray]] = {}
    spans: list[np.ndarray] = []

    def told(call: Call, value: Any) -> None:
        if call.path in points.floats and call.path not in points.within:
            spans.append(np.asarray(ops.convert_to_numpy(value), np.float32))

    def at(number: int, value: Any, own: bool = False, averages: bool = False) -> Any:
        array = np.asarray(ops.convert_to_numpy(value), np.float32)
        found.setdefault(points.keys[number], []).append(array)
        return value

    if isinstance(samples, Mapping):
        from secateur.runtimes.keras import pack, signature

        samples = pack(model, [samples[name] for name in signature(model)[0]])
    inputs = keras.tree.map_structure(ops.convert_to_tensor, samples)
    forward(points, inputs, at=at, training=False, passing=at, told=told)
    for path in points.within:
        if path in points.floats:  # of attention the projections are integers all the same
            spans += found[f"{path}/attended"]
    return found, spans


def same_values(values: np.ndarray, tensor: np.ndarray) -> bool:
    """Whether two arrays hold the same numbers in the same order, whatever their shapes."""
    if values.size != tensor.size:
        return False
    scale = max(float(np.abs(values).max(initial=0.0)), 1e-6)
    return bool((np.abs(values.ravel() - tensor.ravel()) <= CLOSE * scale).all())
