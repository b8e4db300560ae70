"""Which axes of a weight run over inputs and outputs; one canonical order (*others, in, out)."""

from dataclasses import dataclass

import numpy as np

from secateur.errors import SecateurError


@dataclass(frozen=True)
class Axes:
    """The axes of a weight that run over the layer's inputs and over its outputs.

    Any other axes are spatial, or count separate weights. A Conv2D kernel (kh, kw, in, out) is
    `Axes((2,), (3,))`, a depthwise one (kh, kw, in, multiplier) `Axes((), (2, 3))`, the output
    kernel of an attention (heads, key, d) `Axes((0, 1), (2,))`. Raises `SecateurError` for an axis
    that is negative or named twice.

    >>> Axes((0,), (1,))
    Axes(inputs=(0,), outputs=(1,))
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def __post_init__(self) -> None:
        named = (*self.inputs, *self.outputs)
        if min(named, default=0) < 0 or len(set(named)) < len(named):
            raise SecateurError(
                f"inputs={self.inputs}, outputs={self.outputs} received, expected each axis once, "
                "counted from 0; fix: Axes((0,), (1,)) is a Dense kernel"
            )


def canonical(array: np.ndarray, axes: Axes) -> np.ndarray:
    """Return `array` as (*others, in, out): input axes merged into one, output axes into another.

    Without input axes `in` is 1, without output axes `out` is 1; the other axes come first, in
    their order. Raises `SecateurError` when the array lacks a named axis.

    >>> canonical(np.zeros((3, 3, 8, 16)), Axes((3,), (2,))).shape
    (3, 3, 16, 8)
    >>> canonical(np.zeros((3, 3, 8, 2)), Axes((), (2, 3))).shape
    (3, 3, 1, 16)
    """
    ordered = np.transpose(array, _order(array.shape, axes))
    return ordered.reshape(_merged(array.shape, axes))


def restore(array: np.ndarray, axes: Axes, shape: tuple[int, ...]) -> np.ndarray:
    """Return a canonical array in the weight's own `shape`: the exact inverse of `canonical`.

    Raises `SecateurError` when the array is not the canonical form of that shape.

    >>> restore(np.zeros((3, 3, 16, 8)), Axes((3,), (2,)), (3, 3, 8, 16)).shape
    (3, 3, 8, 16)
    """
    order = _order(shape, axes)
    if array.shape != (expected := _merged(shape, axes)):
        raise SecateurError(
            f"an array of shape {array.shape} received for a weight of shape {tuple(shape)}, "
            f"expected {expected}; fix: return one value for each entry of the canonical array"
        )
    return array.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


def _order(shape: tuple[int, ...], axes: Axes) -> list[int]:
    """The axes in canonical order, before they are merged."""
    named = (*axes.inputs, *axes.outputs)
    if max(named, default=0) >= max(1, len(shape)):
        raise SecateurError(
            f"a weight of shape {tuple(shape)} received, expected axis {max(named)} as {axes} "
            "names it; fix: give the axes of this weight"
        )
    return [*(axis for axis in range(len(shape)) if axis not in named), *named]


def _merged(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    """The canonical shape; products, because -1 cannot stand beside an axis of length 0."""
    sizes = [shape[axis] for axis in _order(shape, axes)]
    ins, outs = len(axes.inputs), len(axes.outputs)
    others = sizes[: len(sizes) - ins - outs]
    merged = sizes[len(others) : len(others) + ins], sizes[len(others) + ins :]
    return (*others, *(int(np.prod(part, dtype=int)) for part in merged))
