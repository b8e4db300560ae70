"""A model run with something done at each value that is a tensor of its integer file.

`fusing.points_of` says where these values are; what is done at them is up to the caller: rounding
(`substitute`), or looking at them (`matching`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from secateur.fusing import AVERAGING, Points
from secateur.graph import Call, accepts_training, replaced, watched

# (number, value, whether it is the range's own, whether it is an average of codes) -> value
Point = Callable[..., Any]
# (call, factor) -> context; what it gives rounds the bias, or what a BatchNorm multiplies and adds
Kernels = Callable[[Call, Any], Any]


def forward(
    points: Points,
    inputs: Any,
    *,
    at: Point,
    training: bool | None = None,
    kernels: Kernels | None = None,
    frozen: bool = True,
    passing: Callable[[int, Any], Any] | None = None,
    told: Callable[[Call, Any], None] | None = None,
) -> Any:
    """The outputs of the model, with `at` applied to each value that has a range.

    kernels: (call, factor) -> a context in which the layer has other kernels; factor: what
    BatchNorm multiplies each output with, to be taken into the kernel. None: the layers as they
    are. frozen: BatchNorm keeps its statistics in training, and is computed as the file does.
    passing: told the values that have the range of what they come from. told: of each call and
    what it gives.
    """
    absorbed = points.absorbed

    def perform(call: Call, args: tuple, kwargs: dict[str, Any]) -> Any:
        layer, path = call.layer, call.path
        norm = isinstance(layer, keras.layers.BatchNormalization)
        if accepts_training(layer):
            kwargs = {**kwargs, "training": bool(training) and not (norm and frozen)}
        number = points.before.get(path)
        with contextlib.ExitStack() as stack:
            if number is not None:
                stack.enter_context(replaced(layer, activation=None))
            if kernels is not None and path in absorbed:
                y = args[0]
            elif kernels is not None and path in points.folded:
                y = _folded(call, args, points, at, kernels, training, frozen)
            elif norm and path in points.inside:
                rounded = None if kernels is None else stack.enter_context(kernels(call, None))
                moving = bool(training) and not frozen
                y = _scaled(call, args[0], points.inside[path], at, rounded, moving)
            elif path in points.inside:
                if kernels is not None:
                    stack.enter_context(kernels(call, None))
                y = _separable(layer, args[0], points.inside[path], at)
            else:
                if kernels is not None:
                    stack.enter_context(kernels(call, None))
                for part, taken, given in points.within.get(path, ()):
                    stack.enter_context(watched(part, at, taken, given))
                if path in points.scores:
                    stack.enter_context(_attending(layer, points.scores[path], at))
                y = layer(*args, **kwargs)
        if number is not None:
            y = layer.activation(at(number, y, True))
        if path in points.after:
            y = at(points.after[path], y, path in points.owned, call.kind in AVERAGING)
        elif passing is not None and path in points.passing:
            passing(points.passing[path], y)
        if told is not None:
            told(call, y)
        return y

    def enter(number: int, value: Any) -> Any:
        found = points.entering.get(number)
        own = f"input:{number}" in points.owned
        return value if found is None else at(found, value, own)

    return points.graph.run(inputs, perform, enter)


def masked_as(x: Any, y: Any) -> Any:
    """A value with the mask of the one that it was made of, where Keras keeps one on it."""
    mask = getattr(x, "_keras_mask", None)
    if mask is not None:
        with contextlib.suppress(AttributeError):
            y._keras_mask = mask
    return y


def _factor(norm: Any) -> Any:
    """What a BatchNorm with the statistics that it has multiplies each channel with."""
    deviation = ops.sqrt(ops.convert_to_tensor(norm.moving_variance) + norm.epsilon)
    gamma = ops.ones_like(deviation) if norm.gamma is None else ops.convert_to_tensor(norm.gamma)
    return gamma / deviation


def _shift(norm: Any, factor: Any, bias: Any = 0.0) -> Any:
    """What it adds to each channel, to what has this bias."""
    shift = (bias - ops.convert_to_tensor(norm.moving_mean)) * factor
    return shift if norm.beta is None else shift + ops.convert_to_tensor(norm.beta)


def _channels(norm: Any, y: Any) -> list[int]:
    """The shape in which one number for each channel is spread over a value."""
    shape = [1] * len(y.shape)
    shape[norm.axis] = -1
    return shape


def _folded(
    call: Call,
    args: tuple,
    points: Points,
    at: Point,
    kernels: Kernels,
    training: bool | None,
    frozen: bool,
) -> Any:
    """A layer and its BatchNorm: the kernel holds the factor, as in the file.

    While statistics move, they are taken of the layer's own outputs: its kernel with the factor of
    the moving ones, as the file has it, and that factor taken out again (Krishnamoorthi 2018,
    arXiv:1806.08342, the simple form).
    """
    layer, norm = call.layer, points.folded[call.path].layer
    factor = _factor(norm)
    # Dense looks at its bias, convolutions at whether they use one.
    with kernels(call, factor) as rounded, replaced(layer, use_bias=False, bias=None):
        if call.path in points.inside:
            y = _separable(layer, args[0], points.inside[call.path], at)
        else:
            y = layer(*args)
    shape = _channels(norm, y)
    bias = 0.0 if layer.bias is None else ops.convert_to_tensor(layer.bias)
    if training and not frozen and norm.trainable:
        divisor = ops.reshape(ops.where(factor == 0, 1.0, factor), shape)
        return norm(y / divisor + ops.reshape(bias + ops.zeros_like(factor), shape), training=True)
    return y + ops.reshape(rounded(_shift(norm, factor, bias)), shape)


def _scaled(
    call: Call, x: Any, number: int, at: Point, rounded: Callable[[Any], Any] | None, moving: bool
) -> Any:
    """A BatchNorm of its own as the product and the sum that a file has."""
    norm = call.layer
    factor, shape = _factor(norm), _channels(norm, x)
    shift = _shift(norm, factor)
    if rounded is not None:
        factor, shift = rounded(factor), rounded(shift)
    product = at(number, x * ops.reshape(factor, shape), True)
    if moving and norm.trainable:
        divisor = ops.reshape(ops.where(factor == 0, 1.0, factor), shape)
        return norm(product / divisor, training=True, mask=getattr(x, "_keras_mask", None))
    return masked_as(x, product + ops.reshape(shift, shape))


def _separable(layer: Any, x: Any, number: int, at: Point) -> Any:
    """A separable convolution as the two that a file has, with the value between them."""
    settings = {"data_format": layer.data_format, "dilation_rate": layer.dilation_rate}
    y = ops.depthwise_conv(
        x, layer.depthwise_kernel, strides=layer.strides, padding=layer.padding, **settings
    )
    y = at(number, y, True)
    y = ops.conv(y, layer.pointwise_kernel, strides=1, padding="valid", **settings)
    if layer.use_bias:
        y = y + ops.reshape(layer.bias, (1,) * (len(y.shape) - 1) + (-1,))
    return y if layer.activation is None else layer.activation(y)


@contextlib.contextmanager
def _attending(layer: Any, numbers: tuple[int, int, int], at: Point) -> Iterator[None]:
    """An attention layer with the scores, the scaled scores and the weights of the values as points.

    What Keras computes in one call is written out as the file has it.
    """
    products, scaled, weights = numbers
    whole = layer._compute_attention

    def compute(
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any = None,
        training: Any = None,
        *more: Any,
    ) -> tuple[Any, Any]:
        if attention_mask is not None:  # one that came along with the values
            return whole(query, key, value, attention_mask, training, *more)
        scores = at(products, ops.einsum("BTNH,BSNH->BNTS", query, key), True)
        scores = at(scaled, scores * layer._inverse_sqrt_key_dim, False)
        shares = at(weights, ops.softmax(scores, axis=-1), True)
        return ops.einsum("BNTS,BSNH->BTNH", shares, value), None

    layer.__dict__["_compute_attention"] = compute  # past Keras's tracking of attributes
    try:
        yield
    finally:
        layer.__dict__.pop("_compute_attention", None)
