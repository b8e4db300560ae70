"""The grids of integer files: value = (code - zero_point) * scale.

Those of weights are symmetric: the zero point is 0, so that a pruned zero stays a zero. Inputs and
outputs have any (`coded`, `decoded`).
"""

from typing import Any

import numpy as np

from secateur.errors import SecateurError

# Of a channel without weights: nothing is divided by zero, and its zeros stay zeros.
SMALLEST_BOUND = 1e-9


def symmetric_scales(weight: np.ndarray, bits: int, axes: tuple[int, ...]) -> np.ndarray:
    """Return the step of the grid for each entry of `axes`, broadcastable against the weight.

    The largest magnitude gets the largest code, max|w| / (2 ** (bits - 1) - 1): 127 codes on each
    side of zero at 8 bits, 7 at 4. Raises `SecateurError` for bits outside 2 to 16, for an axis
    that the weight lacks, and for NaN or infinity.

    >>> symmetric_scales(np.array([[1.0, -0.5], [0.0, 3.5]]), 4, (1,)).round(4).tolist()
    [[0.1429, 0.5]]
    """
    if isinstance(bits, bool) or not isinstance(bits, int | np.integer) or not 2 <= bits <= 16:
        raise SecateurError(
            f"bits={bits!r} received, expected a whole number from 2 to 16; fix: 8, or 4"
        )
    if not all(0 <= axis < weight.ndim for axis in axes):
        raise SecateurError(
            f"axes {axes} received for a weight of shape {weight.shape}, expected axes from 0 to "
            f"{weight.ndim - 1}; fix: name those that have a scale each, as its outputs"
        )
    if not np.isfinite(weight).all():
        raise SecateurError(
            f"a weight of shape {weight.shape} with NaN or infinity received, expected finite "
            "numbers; fix: load a sound model"
        )
    shared = tuple(axis for axis in range(weight.ndim) if axis not in axes)
    largest = np.abs(_wide(weight)).max(axis=shared, keepdims=True, initial=0.0)
    return np.maximum(largest, SMALLEST_BOUND) / (2 ** (int(bits) - 1) - 1)


def fake_quantized(weight: np.ndarray, bits: int, axes: tuple[int, ...]) -> np.ndarray:
    """Return the weight as an integer file gives it back: on its grid, in its own shape and dtype.

    axes: those along which every entry has a scale of its own (a kernel's outputs); (): one scale.
    Rounded half to even in float32, as the files' quantizer does. Raises as `symmetric_scales`.

    >>> fake_quantized(np.array([[0.7, 0.0], [0.24, 0.0]]), 4, (1,)).round(4).tolist()
    [[0.7, 0.0], [0.2, 0.0]]
    """
    scales = symmetric_scales(weight, bits, axes)
    # + 0.0: a small negative weight becomes the code 0, and the code 0 has no sign.
    return ((np.rint(_wide(weight) / scales) + 0.0) * scales).astype(weight.dtype)


def relative_rms(value: np.ndarray, reference: np.ndarray) -> float | None:
    """Return the RMS of the difference over the RMS of the reference; None where that is 0 and it not.

    >>> relative_rms(np.array([3.0, 5.0]), np.array([3.0, 4.0]))
    0.2
    """
    reference = np.asarray(reference, np.float64)
    return ratio(float(np.square(value - reference).sum()), float(np.square(reference).sum()))


def ratio(squares: float, of: float) -> float | None:
    """Return the root of a ratio of two sums of squares: 0 without error, None where it has no size.

    >>> ratio(1.0, 4.0), ratio(0.0, 0.0), ratio(1.0, 0.0)
    (0.5, 0.0, None)
    """
    if squares == 0.0:
        return 0.0
    return float(np.sqrt(squares / of)) if of > 0 else None


def decibels(error: float | None) -> float | None:
    """Return a relative RMS as a signal-to-noise ratio in dB; None where there is no noise at all.

    >>> decibels(0.1), decibels(0.0)
    (20.0, None)
    """
    return -20 * float(np.log10(error)) if error else None


def _wide(weight: np.ndarray) -> np.ndarray:
    """In float32 or wider: a half-precision weight divided in its own type would round twice."""
    return np.asarray(weight, np.result_type(weight.dtype, np.float32))


def coded(array: np.ndarray, dtype: Any, scale: float, zero_point: int) -> np.ndarray:
    """Return values of a model's input as the file takes them: as codes where `scale` is not 0.

    Whole numbers are values too: pixels of 0 to 255 are quantized like any. Raises `SecateurError`
    where an input of whole numbers without a scale would round values, or wrap them.

    >>> coded(np.array([0.0, 0.5, 9.0]), np.int8, 0.5, -1)
    array([-1,  0, 17], dtype=int8)
    >>> coded(np.uint8([0, 9]), np.int8, 0.5, -1)
    array([-1, 17], dtype=int8)
    """
    if not np.issubdtype(dtype, np.integer):
        return np.ascontiguousarray(array, dtype)
    if not scale:
        _require_whole(array, np.dtype(dtype))
        return np.ascontiguousarray(array, dtype)
    limits = np.iinfo(dtype)
    codes = np.clip(np.round(array / scale) + zero_point, limits.min, limits.max)
    return np.ascontiguousarray(codes, dtype)


def values_of(codes: np.ndarray, coding: tuple[Any, float, int] | None, name: str) -> np.ndarray:
    """Return the values that codes of an input stand for; `coding`: dtype, scale and zero point.

    >>> values_of(np.int8([-1, 17]), (np.dtype("int8"), 0.5, -1), "x")
    array([0., 9.])
    """
    if coding is None or not coding[1]:
        raise SecateurError(
            f"codes received for input {name}, which has none, expected values; fix: leave codes out"
        )
    dtype, scale, zero_point = coding
    _require_whole(codes, dtype)
    return (codes.astype(np.float64) - zero_point) * scale


def _require_whole(array: np.ndarray, dtype: np.dtype) -> None:
    """Refuse what a dtype of whole numbers would round, or wrap around."""
    limits = np.iinfo(dtype)
    low, high = (array.min(), array.max()) if array.size else (0, 0)
    whole = array.dtype.kind in "biu" or bool((np.trunc(array) == array).all())
    if not whole or low < limits.min or high > limits.max:
        raise SecateurError(
            f"values from {low:g} to {high:g} ({array.dtype}) received for an input of {dtype} without "
            f"a scale, expected whole numbers from {limits.min} to {limits.max}; fix: give the numbers "
            "as they are, not divided (--scale 1)"
        )


def decoded(values: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """Return outputs as floats; as they are where `scale` is 0.

    >>> decoded(np.array([-1, 17], np.int8), 0.5, -1)
    array([0., 9.], dtype=float32)
    """
    return (values.astype(np.float32) - zero_point) * scale if scale else values
