"""Which values of a model become tensors of an integer file, and so have a range of codes each.

A file computes a convolution, its BatchNorm and its ReLU as one operator: what lies between them
is no tensor. `points_of` reads from the graph where the tensors are, and which of them share a
range because their operators demand it; `forward` runs the model with something done at each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
from keras import ops

from secateur.graph import Call, Graph, accepts_training, graph_of, replaced, watched

# Operators with a kernel. BatchNorm may be folded into it, and ReLU is computed along with it.
LINEAR = {
    *("Dense", "EinsumDense", "Conv1D", "Conv2D", "DepthwiseConv1D", "DepthwiseConv2D"),
    *("SeparableConv1D", "SeparableConv2D", "Conv1DTranspose", "Conv2DTranspose"),
}
FOLDING = LINEAR - {"EinsumDense"}
SEPARABLE = {"SeparableConv1D", "SeparableConv2D"}
# What gives out some of the values that it takes: their range is that of its input.
PASSING = {
    *("MaxPooling1D", "MaxPooling2D", "GlobalMaxPooling1D", "GlobalMaxPooling2D", "Flatten"),
    *("Reshape", "Permute", "Dropout", "SpatialDropout1D", "SpatialDropout2D", "Identity"),
    *("ZeroPadding1D", "ZeroPadding2D", "Cropping1D", "Cropping2D", "ActivityRegularization"),
    *("GaussianNoise", "GaussianDropout", "RepeatVector", "UpSampling1D", "UpSampling2D"),
    *("Transpose", "Squeeze", "ExpandDims", "GetItem", "Split", "Swapaxes"),
}
# What averages: rounded anew, to the codes of its input.
AVERAGING = {"AveragePooling1D", "AveragePooling2D"}
# Operators that compute a ReLU along with their own result.
FUSING = {"Add", "Subtract", "Multiply", "BatchNormalization"}
JOINING = {"Concatenate"}
# Activations whose range the runtimes fix.
FIXED = {
    "sigmoid": (0.0, 255 / 256),
    "softmax": (0.0, 255 / 256),
    "tanh": (-1.0, 127 / 128),
}
FUSED = ("relu", "relu6")

Point = Callable[[int, Any, bool], Any]  # (number, value, whether it is the range's own) -> value
Kernels = Callable[[Call, Any], Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """The tensors of a model that have a range: `keys` name them, by number.

    fixed: number -> the range that the runtimes demand; positive: numbers of ranges that begin at 0.
    entering: value that the model takes -> number. By path of a call, the number: after, of what
    comes out; before, of what goes into its activation; inside, of what is between the halves of a
    separable convolution; passing, of what has the range of its input. within: the layers that an
    attention layer calls, with the numbers of what goes in (None: known) and out. owned: paths (and inputs)
    whose values decide the range, where others share it. folded: path of a convolution -> the call
    of its BatchNorm.
    """

    graph: Graph = field(repr=False)
    keys: tuple[str, ...]
    fixed: Mapping[int, tuple[float, float]]
    after: Mapping[str, int]
    before: Mapping[str, int]
    inside: Mapping[str, int]
    passing: Mapping[str, int]
    within: Mapping[str, tuple[tuple[Any, int | None, int], ...]]
    owned: frozenset[str]
    positive: frozenset[int]
    folded: Mapping[str, Call]
    entering: Mapping[int, int]

    @property
    def absorbed(self) -> frozenset[str]:
        """Paths of the BatchNorms that are computed by what is before them."""
        return frozenset(call.path for call in self.folded.values())


def points_of(model: Any) -> Points:
    """Read where a model's tensors are; raises `SecateurError` for a model without a graph.

    >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), keras.layers.ReLU(name="r")])
    >>> points_of(net).keys[1:]
    ('r',)
    """
    graph = graph_of(model)
    consumers = graph.consumers()
    times: dict[int, int] = {}
    for call in graph.calls:
        times[id(call.layer)] = times.get(id(call.layer), 0) + 1

    def alone(number: int) -> Call | None:
        takers = consumers.get(number, [])
        return takers[0] if len(takers) == 1 else None

    folded: dict[str, Call] = {}
    for call in graph.calls:
        taker = alone(call.outputs[0]) if call.kind in FOLDING else None
        if taker is not None and _folds(call, taker) and times[id(call.layer)] == 1:
            if times[id(taker.layer)] == 1:
                folded[call.path] = taker
    absorbed = {call.path for call in folded.values()}

    def continued(call: Call) -> bool:
        """Whether its output is no tensor, since what takes it is computed along with it."""
        taker = alone(call.outputs[0])
        if taker is None:
            return False
        if call.path in folded:
            return True
        fusing = call.kind in LINEAR | FUSING and _activation(call) == "linear"
        return fusing and _is_relu(taker)

    slots = _Slots()
    source: dict[int, int] = {}  # value -> number of its range
    before, inside, after, through = {}, {}, {}, {}
    within: dict[str, tuple[tuple[Any, int | None, int], ...]] = {}
    made = {call.outputs[0]: call for call in graph.calls}
    moved: dict[str, str] = {}  # path of what makes a range -> of what is rounded in its place
    owned: set[str] = set()
    positive: set[int] = set()  # numbers of ranges that begin at 0
    entering: dict[int, int] = {}
    for number, floating in zip(graph.inputs, graph.floating, strict=True):
        if floating:  # Keras numbers the names of inputs through the process: counted here
            entering[number] = source[number] = slots.new(f"input:{number}")
            owned.add(f"input:{number}")
    for call in graph.calls:
        if not call.floating:
            continue
        out, first = call.outputs[0], call.inputs[0] if call.inputs else -1
        if call.kind in PASSING or (_activation(call) == "linear" and call.kind == "Activation"):
            if first in source:
                source[out] = source[first]
                maker = made.get(first)
                if (
                    maker is not None
                    and _delays(call)
                    and after.get(maker.path) in positive
                    and alone(first)
                ):
                    moved[maker.path] = call.path
                    owned -= {maker.path}
                    owned.add(call.path)
                    through[maker.path] = after.pop(maker.path)
                    after[call.path] = source[out]
                else:
                    through[call.path] = source[out]
            continue
        if call.kind in AVERAGING and first in source:
            after[call.path] = source[out] = source[first]
            continue
        if call.kind in SEPARABLE:
            inside[call.path] = slots.new(f"{call.path}/depthwise")
        if call.kind == "MultiHeadAttention":
            within[call.path] = tuple(_attention(call, slots))
        activation = _activation(call)
        if call.kind in LINEAR and activation not in ("linear", *FUSED):
            before[call.path] = slots.new(f"{call.path}/linear")
        if continued(call):
            continue
        number = slots.new(call.path, FIXED.get(_last_activation(call)))
        after[call.path] = source[out] = number
        owned.add(call.path)
        if _last_activation(call) in FUSED or _is_relu(call):
            positive.add(number)
        if call.kind in JOINING:
            for value in call.inputs:
                if value in source:
                    owned -= {moved.get(key, key) for key in slots.join(source[value], number)}
    keys, renamed = slots.compact()

    def final(found: Mapping[Any, int]) -> dict[Any, int]:
        return {key: renamed[slots.root(number)] for key, number in found.items()}

    return Points(
        graph=graph,
        keys=keys,
        fixed={renamed[n]: r for n, r in slots.fixed.items() if slots.root(n) == n},
        after=final(after),
        before=final(before),
        inside=final(inside),
        passing=final(through),
        within={
            path: tuple(
                (
                    part,
                    None if taken is None else renamed[taken],
                    -1 if given < 0 else renamed[given],
                )
                for part, taken, given in parts
            )
            for path, parts in within.items()
        },
        owned=frozenset(owned),
        positive=frozenset(renamed[n] for n in positive if slots.root(n) == n),
        folded=folded if absorbed else {},
        entering=final(entering),
    )


def forward(
    points: Points,
    inputs: Any,
    *,
    at: Point,
    training: bool | None = None,
    kernels: Kernels | None = None,
    frozen: bool = True,
    passing: Callable[[int, Any], Any] | None = None,
) -> Any:
    """The outputs of the model, with `at` applied to each value that has a range.

    kernels: (call, factor) -> a context in which the layer has other kernels; factor: what
    BatchNorm multiplies each output with, to be taken into the kernel. None: the layers as they
    are. frozen: BatchNorm keeps its statistics in training, and is computed as the file does.
    passing: told the values that have the range of what they come from.
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
            elif path in points.inside:
                if kernels is not None:
                    stack.enter_context(kernels(call, None))
                y = _separable(layer, args[0], points.inside[path], at)
            else:
                if kernels is not None:
                    stack.enter_context(kernels(call, None))
                for part, taken, given in points.within.get(path, ()):
                    stack.enter_context(watched(part, at, taken, given))
                y = layer(*args, **kwargs)
        if number is not None:
            y = layer.activation(at(number, y, True))
        if path in points.after:
            y = at(points.after[path], y, path in points.owned)
        elif passing is not None and path in points.passing:
            passing(points.passing[path], y)
        return y

    def enter(number: int, value: Any) -> Any:
        found = points.entering.get(number)
        own = f"input:{number}" in points.owned
        return value if found is None else at(found, value, own)

    return points.graph.run(inputs, perform, enter)


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
    deviation = ops.sqrt(ops.convert_to_tensor(norm.moving_variance) + norm.epsilon)
    gamma = ops.ones_like(deviation) if norm.gamma is None else ops.convert_to_tensor(norm.gamma)
    factor = gamma / deviation
    # Dense looks at its bias, convolutions at whether they use one.
    with kernels(call, factor), replaced(layer, use_bias=False, bias=None):
        if call.path in points.inside:
            y = _separable(layer, args[0], points.inside[call.path], at)
        else:
            y = layer(*args)
    shape = [1] * len(y.shape)
    shape[norm.axis] = -1
    bias = 0.0 if layer.bias is None else ops.convert_to_tensor(layer.bias)
    if training and not frozen and norm.trainable:
        divisor = ops.reshape(ops.where(factor == 0, 1.0, factor), shape)
        return norm(y / divisor + ops.reshape(bias + ops.zeros_like(factor), shape), training=True)
    shift = (bias - ops.convert_to_tensor(norm.moving_mean)) * factor
    if norm.beta is not None:
        shift = shift + ops.convert_to_tensor(norm.beta)
    return y + ops.reshape(shift, shape)


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


def _attention(call: Call, slots: _Slots) -> list[tuple[Any, int | None, int]]:
    """The projections inside of an attention layer; the last one takes what attention gives."""
    layer, path = call.layer, call.path
    parts = {"query": "_query_dense", "key": "_key_dense", "value": "_value_dense"}
    found: list[tuple[Any, int | None, int]] = [
        (getattr(layer, name), None, slots.new(f"{path}/{key}")) for key, name in parts.items()
    ]
    # What it gives is the output of the whole layer, which has its range anyway.
    return [*found, (layer._output_dense, slots.new(f"{path}/attended"), -1)]


def _delays(call: Call) -> bool:
    """Whether rounding can wait until after it: the largest of rounded values is the rounded largest."""
    return call.kind.startswith(("MaxPooling", "GlobalMaxPooling"))


def _folds(call: Call, taker: Call) -> bool:
    """Whether a BatchNorm can be folded into what is before it."""
    if taker.kind != "BatchNormalization" or _activation(call) != "linear":
        return False
    rank = len(taker._node.outputs[0].shape)
    first = getattr(call.layer, "data_format", None) == "channels_first"
    return taker.layer.axis % rank == (1 if first else rank - 1)


def _activation(call: Call) -> str:
    """The name of a layer's activation; "linear" where it has none."""
    found = getattr(call.layer, "activation", None)
    return "linear" if found is None else getattr(found, "__name__", type(found).__name__)


def _last_activation(call: Call) -> str:
    """The name of the activation that the outputs leave through, of layers and of operations."""
    if call.kind in ("Softmax", "Sigmoid", "Tanh"):
        return call.kind.lower()
    return _activation(call)


def _is_relu(call: Call) -> bool:
    """Whether it is computed along with what is before it."""
    if call.kind == "ReLU":
        layer = call.layer
        plain = not layer.negative_slope and not layer.threshold
        return plain and layer.max_value in (None, 6, 6.0)
    return call.kind in ("Relu", "Relu6") or (
        call.kind == "Activation" and _activation(call) in FUSED
    )


class _Slots:
    """Ranges while they are being handed out: some turn out to be one."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._parent: list[int] = []
        self.fixed: dict[int, tuple[float, float]] = {}

    def new(self, key: str, fixed: tuple[float, float] | None = None) -> int:
        self._keys.append(key)
        self._parent.append(len(self._parent))
        if fixed is not None:
            self.fixed[len(self._keys) - 1] = fixed
        return len(self._keys) - 1

    def root(self, number: int) -> int:
        while self._parent[number] != number:
            number = self._parent[number]
        return number

    def join(self, number: int, into: int) -> set[str]:
        """Give an input of a concatenation the range of its result, unless the runtime fixes it.

        Returns the key that decides no range any more.
        """
        if self.root(number) in self.fixed:
            return set()
        self._parent[self.root(number)] = self.root(into)
        return {self._keys[number]}

    def compact(self) -> tuple[tuple[str, ...], dict[int, int]]:
        roots = [n for n in range(len(self._keys)) if self.root(n) == n]
        return tuple(self._keys[n] for n in roots), {n: i for i, n in enumerate(roots)}
