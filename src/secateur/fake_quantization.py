"""Values as a file of integers gives them back, inside a forward pass that is trained.

The grids are those of the files: value = (code - zero point) * scale, codes rounded half up.
Gradients pass as if nothing were rounded, and not at all where a value lies outside of the range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from secateur.arrays.affine import SMALLEST_BOUND

# The narrowest range: of constant values, whose grid would have no step.
NARROWEST = 1e-6


def quantized_kernel(kernel: Any, bits: int, axes: Sequence[int]) -> Any:
    """A kernel on its symmetric grid, with a scale for each entry of `axes`; zeros stay zeros.

    The largest magnitude has the largest code, so that no weight lies outside of the range.

    >>> ops.convert_to_numpy(quantized_kernel(ops.array([[7.0], [2.4]]), 4, (1,))).tolist()
    [[7.0], [2.0]]
    """
    kernel = ops.convert_to_tensor(kernel)
    fixed = ops.cast(ops.stop_gradient(kernel), "float32")
    shared = tuple(axis for axis in range(len(kernel.shape)) if axis not in axes)
    bound = ops.max(ops.abs(fixed), axis=shared, keepdims=True) if shared else ops.abs(fixed)
    scale = ops.maximum(bound, SMALLEST_BOUND) / (2 ** (bits - 1) - 1)
    rounded = ops.floor(fixed / scale + 0.5) * scale
    return kernel + ops.cast(rounded - fixed, kernel.dtype)


def quantized_values(values: Any, low: Any, high: Any, bits: int) -> Any:
    """Activations on the grid of a range, which holds 0: asymmetric at 8 bits, symmetric at 16."""
    if bits > 8:
        high = ops.maximum(ops.abs(low), ops.abs(high))
        low = -high
    return keras.quantizers.fake_quant_with_min_max_vars(
        values, low, high, num_bits=bits, narrow_range=bits > 8
    )


def widened(low: Any, high: Any) -> tuple[Any, Any]:
    """A range made to hold 0, as every grid does, and wide enough to have a step.

    >>> [round(float(bound), 3) for bound in widened(ops.array(0.5), ops.array(2.0))]
    [0.0, 2.0]
    """
    low = ops.minimum(low, 0.0)
    return low, ops.maximum(ops.maximum(high, 0.0), low + NARROWEST)
