"""Which values of a model become tensors of an integer file, and so have a range of codes each.

A file computes a convolution, its BatchNorm and its ReLU as one operator: what lies between them
is no tensor. `points_of` reads from the graph where the tensors are, and which of them share a
range because their operators demand it; `simulation.forward` runs the model with something done at each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from secateur.graph import Call, Graph, graph_of

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
# What is computed in float from what goes in to what comes out, in training as in the file, and why.
_ROOT = "its root and its variance have no operators of integers"
_CELL = "its states would be rounded anew at every step of time"
_MASK = "scores that a mask makes huge leave no codes for the others"
FLOATING = {
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "GroupNormalization"), _ROOT),
    **dict.fromkeys(("UnitNormalization",), _ROOT),
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional"), _CELL),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """The tensors of a model that have a range: `keys` name them, by number.

    fixed: number -> the range that the runtimes demand; positive: numbers of ranges that begin at 0.
    entering: value that the model takes -> number. By path of a call, the number: after, of what
    comes out; before, of what goes into its activation; inside, of what is between the halves of a
    separable convolution, or between the product and the sum of a BatchNorm; passing, of what has the
    range of its input. taken: by path of a call and identity of the layer with the kernel, of what
    this layer takes. within: the layers that an attention layer calls, with the numbers of what goes
    in (None: known) and out; scores: of its scores, the scaled ones, and the weights of the values.
    owned: paths (and inputs) whose values decide the range, where others share it. folded: path of a
    convolution -> the call of its BatchNorm. floats: path of a call that is computed in
    float -> why. multiples:
    number -> the range that it is a multiple of, and the factor: both have the same codes.
    """

    graph: Graph = field(repr=False)
    keys: tuple[str, ...]
    fixed: Mapping[int, tuple[float, float]]
    after: Mapping[str, int]
    before: Mapping[str, int]
    inside: Mapping[str, int]
    passing: Mapping[str, int]
    taken: Mapping[tuple[str, int], int]
    within: Mapping[str, tuple[tuple[Any, int | None, int], ...]]
    scores: Mapping[str, tuple[int, int, int]]
    owned: frozenset[str]
    positive: frozenset[int]
    folded: Mapping[str, Call]
    entering: Mapping[int, int]
    floats: Mapping[str, str]
    multiples: Mapping[int, tuple[int, float]]

    def told_floats(self) -> str:
        """What stays in float and why, in words; "" where nothing does."""
        reasons: dict[str, list[str]] = {}
        for path, why in self.floats.items():
            reasons.setdefault(why, []).append(path)
        return "; ".join(f"{', '.join(paths)} ({why})" for why, paths in reasons.items())

    @property
    def absorbed(self) -> frozenset[str]:
        """Paths of the BatchNorms that are computed by what is before them."""
        return frozenset(call.path for call in self.folded.values())


def points_of(model: Any) -> Points:
    """Read where a model's tensors are; raises `SecateurError` for a model without a graph.

    >>> import keras
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
    scores: dict[str, tuple[int, int, int]] = {}
    multiplied: dict[str, float] = {}
    taken: dict[tuple[str, int], int] = {}
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
        if call.kind in LINEAR and first in source:
            taken[call.path, id(call.layer)] = source[first]
        if call.kind in SEPARABLE:
            inside[call.path] = slots.new(f"{call.path}/depthwise")
            taken[call.path, id(call.layer)] = inside[call.path]  # of the half with the bias
        if call.kind == "BatchNormalization" and call.path not in absorbed:
            inside[call.path] = slots.new(f"{call.path}/product")
        if call.kind == "MultiHeadAttention":
            within[call.path] = tuple(_attention(call, slots))
            for (part, between, _), value in zip(within[call.path], _attended(call), strict=True):
                known = source.get(value) if between is None else between
                if known is not None:
                    taken[call.path, id(part)] = known
            if _attends_plainly(call):
                scores[call.path] = _scores(call, slots)
                multiplied[call.path] = float(call.layer._inverse_sqrt_key_dim)
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
        taken=final(taken),
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
        scores={path: (renamed[a], renamed[b], renamed[c]) for path, (a, b, c) in scores.items()},
        owned=frozenset(owned),
        positive=frozenset(renamed[n] for n in positive if slots.root(n) == n),
        folded=folded if absorbed else {},
        entering=final(entering),
        floats={
            call.path: FLOATING.get(call.kind, _MASK)
            for call in graph.calls
            if call.kind in FLOATING or (call.path in within and call.path not in scores)
        },
        multiples={
            renamed[b]: (renamed[a], multiplied[path]) for path, (a, b, _) in scores.items()
        },
    )


def _attention(call: Call, slots: _Slots) -> list[tuple[Any, int | None, int]]:
    """The projections inside of an attention layer; the last one takes what attention gives."""
    layer, path = call.layer, call.path
    parts = {"query": "_query_dense", "key": "_key_dense", "value": "_value_dense"}
    found: list[tuple[Any, int | None, int]] = [
        (getattr(layer, name), None, slots.new(f"{path}/{key}")) for key, name in parts.items()
    ]
    # What it gives is the output of the whole layer, which has its range anyway.
    return [*found, (layer._output_dense, slots.new(f"{path}/attended"), -1)]


def _attended(call: Call) -> tuple[int, ...]:
    """The values that the query, the key and the value of an attention layer are; -1: none of the graph's."""
    arguments = call._node.arguments
    known = {id(t): n for t, n in zip(call._node.input_tensors, call.inputs, strict=True)}
    named = {
        **dict(zip(("query", "value", "key"), arguments.args, strict=False)),
        **arguments.kwargs,
    }
    query, value = (known.get(id(named.get(name)), -1) for name in ("query", "value"))
    key = named.get("key")
    return query, value if key is None else known.get(id(key), -1), value, -1


def _attends_plainly(call: Call) -> bool:
    """Whether it computes nothing but the scores, their softmax, and the sum of the values."""
    layer = call.layer
    kwargs = call._node.arguments.kwargs
    asked = ("attention_mask", "use_causal_mask", "return_attention_scores")
    masked = any(kwargs.get(name) is not None and kwargs.get(name) is not False for name in asked)
    plain = not layer._dropout and layer._sliding_window is None and not layer._use_gate
    return plain and not masked and len(call._node.outputs[0].shape) == 3


def _scores(call: Call, slots: _Slots) -> tuple[int, int, int]:
    """What an attention layer computes between its projections."""
    return (
        slots.new(f"{call.path}/products"),
        slots.new(f"{call.path}/scores"),
        slots.new(f"{call.path}/weights", FIXED["softmax"]),
    )


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
