"""Values as a file of integers gives them back, inside a forward pass that is trained.

The grids are those of the files: value = (code - zero point) * scale, codes rounded half up.
Gradients pass as if nothing were rounded, and not at all where a value lies outside of the range.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from secateur.arrays.affine import SMALLEST_BOUND
from secateur.passes import fused

# The narrowest range: of constant values, whose grid would have no step.
NARROWEST = 1e-6
# Weights of a kernel from which on compiling its grid pays.
WORTH_FUSING = 2**16
# What is taken for a half of a step.
NEARLY = 1e-3


def kernel_steps(kernel: Any, bits: int, axes: Sequence[int]) -> Any:
    """The step of a kernel's symmetric grid for each entry of `axes`, to be spread over the kernel.

    The largest magnitude has the largest code, so that no weight lies outside of the range.

    >>> ops.convert_to_numpy(kernel_steps(ops.array([[7.0], [2.4]]), 4, (1,))).tolist()
    [[1.0]]
    """
    kernel = ops.convert_to_tensor(kernel)
    shared = tuple(axis for axis in range(len(kernel.shape)) if axis not in axes)
    fixed = ops.cast(ops.stop_gradient(kernel), "float32")
    return _for_size(_steps, kernel)(fixed, bits, shared)


def quantized_kernel(kernel: Any, steps: Any) -> Any:
    """A kernel on the grid of its `kernel_steps`; zeros stay zeros, and gradients pass.

    >>> kernel = ops.array([[7.0], [2.4]])
    >>> ops.convert_to_numpy(quantized_kernel(kernel, kernel_steps(kernel, 4, (1,)))).tolist()
    [[7.0], [2.0]]
    """
    kernel = ops.convert_to_tensor(kernel)
    on_grid = _for_size(_on_grid, kernel)

    # Not kernel + (rounded - kernel), which is three passes over the weights more, and inexact.
    @ops.custom_gradient
    def straight_through(values: Any) -> Any:
        def grad(*args: Any, upstream: Any = None) -> Any:
            return args[0] if upstream is None else upstream

        return on_grid(values, steps), grad

    # The cast reads what may be a variable, which a custom gradient would take for one of its own.
    return ops.cast(straight_through(ops.cast(kernel, "float32")), kernel.dtype)


def quantized_bias(bias: Any, low: Any, high: Any, steps: Any) -> Any:
    """A bias as 32 bits hold it, in steps of (step of the input's range) x (step of its weights).

    low, high: of an input of 8 bits. steps: of the kernel. Where these are not one for each entry of
    the bias, it stays what it is.

    >>> ops.convert_to_numpy(quantized_bias(ops.array([0.7]), 0.0, 255.0, ops.array([[0.5]]))).tolist()
    [0.5]
    """
    bias = ops.convert_to_tensor(bias)
    if math.prod(steps.shape) != math.prod(bias.shape):
        return bias
    step = ops.reshape(steps, bias.shape) * ((high - low) / 255)
    fixed = ops.cast(ops.stop_gradient(bias), "float32")
    return bias + ops.cast(ops.floor(fixed / step + 0.5) * step - fixed, bias.dtype)


def quantized_values(values: Any, low: Any, high: Any, bits: int) -> Any:
    """Activations on the grid of a range, which holds 0: asymmetric at 8 bits, symmetric at 16."""
    if bits > 8:
        high = ops.maximum(ops.abs(low), ops.abs(high))
        low = -high
    return keras.quantizers.fake_quant_with_min_max_vars(
        values, low, high, num_bits=bits, narrow_range=bits > 8
    )


def averaged_values(values: Any, low: Any, high: Any, bits: int) -> Any:
    """Averages of values on a grid, as LiteRT rounds them to that grid: halves away from code 0.

    Its codes are signed, so that nearly all of what comes out of a ReLU is rounded down. Gradients pass.

    >>> halves = ops.array([63.5, 191.5])  # codes -64.5 and 63.5
    >>> ops.convert_to_numpy(averaged_values(halves, 0.0, 255.0, 8)).tolist()
    [63.0, 192.0]
    """
    values = ops.convert_to_tensor(values)
    low, high = (ops.cast(bound, "float32") for bound in (low, high))
    if bits > 8:
        step, shift = ops.maximum(ops.abs(low), ops.abs(high)) / (2 ** (bits - 1) - 1), 0.0
    else:
        step = (high - low) / (2**bits - 1)
        shift = ops.floor(0.5 - low / step) - 2 ** (bits - 1)  # the code of 0.0
    codes = ops.cast(ops.stop_gradient(values), "float32") / step + shift
    # A half that floats missed by a little is one: averages of fewer than 500 codes come no nearer.
    codes = ops.sign(codes) * ops.floor(ops.abs(codes) + 0.5 + NEARLY)
    rounded = (codes - shift) * step
    return values + ops.stop_gradient(ops.cast(rounded, values.dtype) - values)


def widened(low: Any, high: Any) -> tuple[Any, Any]:
    """A range made to hold 0, as every grid does, and wide enough to have a step.

    >>> [round(float(bound), 3) for bound in widened(ops.array(0.5), ops.array(2.0))]
    [0.0, 2.0]
    """
    low = ops.minimum(low, 0.0)
    return low, ops.maximum(ops.maximum(high, 0.0), low + NARROWEST)


def _steps(values: Any, bits: int, shared: tuple[int, ...]) -> Any:
    bound = ops.max(ops.abs(values), axis=shared, keepdims=True) if shared else ops.abs(values)
    bound = ops.maximum(bound, SMALLEST_BOUND)
    # By a number that XLA does not know: for a constant it multiplies, a bit beside the file's step.
    return bound / (0 * bound + (2 ** (bits - 1) - 1))


def _on_grid(values: Any, steps: Any) -> Any:
    return ops.floor(values / steps + 0.5) * steps


def _for_size(function: Callable[..., Any], kernel: Any) -> Callable[..., Any]:
    """Compiled where the kernel is large enough for that to pay."""
    shape = tuple(kernel.shape)
    return _fused(function, shape) if math.prod(shape) >= WORTH_FUSING else function


@functools.cache
def _fused(function: Callable[..., Any], shape: tuple[int, ...]) -> Callable[..., Any]:
    """Kept for each shape: a step that runs eagerly compiles it once, not every time."""
    return fused(function)
