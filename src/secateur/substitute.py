"""What the forward pass sees instead of a model's own weights and activations.

A `Substitution` replaces how one model *instance* is called, for as long as it is attached: its
kernels and values pass through the grids of an integer file. Layers, names, weights, and the file
that the model is saved in stay what they were. docs/decisions/007 says what else was tried.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from secateur.capture import without_gradients
from secateur.errors import SecateurError
from secateur.fake_quantization import (
    averaged_values,
    kernel_steps,
    quantized_bias,
    quantized_kernel,
    quantized_values,
    widened,
)
from secateur.fusing import Points, points_of
from secateur.graph import Call, replaced
from secateur.passes import Forward
from secateur.simulation import forward, masked_as
from secateur.weights import Weight, WeightTable, weight_table
from secateur.widths import Width

RANGES = "secateur_ranges"  # the name of the variable that holds them
Ranges = dict[str, tuple[float, float]]
_HOOKS = ("call", "_secateur_restore")


class Substitution:
    """Kernels and activations of one model as a file of integers would have them.

    widths: path of a kernel -> its width; others stay floats. activations: bits, or None for
    floats. ranges: by key, as an earlier training left them; None: they start from data.
    momentum: of the moving average of ranges, which has no bias towards its start: the first
    observations count alike. `outside`: paths of kernels that a file rounds and this does not.
    """

    def __init__(
        self,
        model: Any,
        widths: Mapping[str, Width],
        *,
        activations: int | None = 8,
        ranges: Mapping[str, Sequence[float]] | None = None,
        momentum: float = 0.99,
    ):
        self.model = model
        self.points = points_of(model)
        self.frozen = False
        self._bits, self._momentum = activations, momentum
        self._kernels = _slots(self.points, weight_table(model), widths)
        reached = {row[2].path for rows in self._kernels.values() for row in rows}
        self.outside = [p for p, w in widths.items() if w.bits in (4, 8) and p not in reached]
        count = len(self.points.keys)
        # One row for each range; the last row counts the observations.
        start = np.zeros((count + 1, 2), np.float32)
        for number, key in enumerate(self.points.keys):
            if ranges and key in ranges:
                start[number] = ranges[key]
                start[-1] = 1 / (1 - momentum)  # settled: what follows moves it slowly
        self.state = keras.Variable(start, trainable=False, name=RANGES)  # of the ranges
        self._fresh = True

    @property
    def normalizes(self) -> bool:
        """Whether a BatchNorm takes part, whose statistics can be frozen."""
        return any(call.kind == "BatchNormalization" for call in self.points.graph.calls)

    @property
    def observed(self) -> bool:
        """Whether any range has been taken from data."""
        return float(ops.convert_to_numpy(self.state.value)[-1, 0]) > 0

    def attach(self) -> None:
        """Have the model called through the grids; functions traced before do not know of it."""
        restore(self.model)
        self.begin()
        self.model.__dict__["call"] = self.call
        self.model.__dict__["_secateur_restore"] = self._restore
        _forget_functions(self.model)

    def begin(self) -> None:
        """Take ranges that no data gave from the first step."""
        self._fresh = not self.observed

    def start_from(self, batches: Sequence[Any]) -> None:
        """Take the first ranges: the mean over batches of the smallest and largest value."""
        if self._bits is None or not batches or not self.points.keys:
            return
        found = _observed(self.points, batches)
        if not np.isfinite(found).all():
            number = int(np.argwhere(~np.isfinite(found))[0][1])
            raise SecateurError(
                f"activations of {self.points.keys[number]} that are NaN or infinite received, "
                "expected finite numbers; fix: look for NaN in the data, or load a sound model"
            )
        start = np.concatenate([found.mean(0), np.full((1, 2), len(found))])
        self.state.assign(start.astype(np.float32))

    def ranges(self) -> Ranges:
        """Key of each tensor -> (smallest, largest), as they are now; empty where values are floats."""
        if self._bits is None:
            return {}
        found = ops.convert_to_numpy(self.state.value)

        def bounds(number: int) -> tuple[float, float]:
            source, factor = self.points.multiples.get(number, (number, 1.0))
            known = (float(factor * found[source, 0]), float(factor * found[source, 1]))
            return self.points.fixed.get(number, known)

        return {key: bounds(number) for number, key in enumerate(self.points.keys)}

    def constant(self) -> list[str]:
        """Keys of ranges without extent: values that never were anything but 0."""
        return [key for key, (low, high) in self.ranges().items() if high - low < 1e-5]

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """What the model gives through the grids; in training the ranges follow the values."""
        points, keys = self.points, len(self.points.keys)
        tracked = bool(training) and self._bits is not None and keys > 0
        state = ops.convert_to_tensor(self.state)
        count = state[-1, 0]
        low, high = widened(state[:-1, 0], state[:-1, 1])
        lows, highs = ops.unstack(low, keys), ops.unstack(high, keys)
        least, most = list(lows), list(highs)  # of this step, where it tells

        def bounds_of(number: int) -> tuple[Any, Any]:
            source, factor = points.multiples.get(number, (number, 1.0))
            known = factor * lows[source], factor * highs[source]
            low, high = points.fixed.get(number, known)
            return ops.convert_to_tensor(low), ops.convert_to_tensor(high)

        def at(number: int, value: Any, own: bool, averages: bool = False) -> Any:
            if self._bits is None:
                return value
            bounds = bounds_of(number)
            if averages:  # of codes, in the range of these codes
                return averaged_values(value, *bounds, self._bits)
            if number in points.fixed:
                return self._quantized(value, *bounds)
            if tracked and (own or self._fresh):
                seen = ops.cast(ops.stop_gradient(value), "float32")
                smallest = lows[number] if number in points.positive else ops.min(seen)
                found = smallest, ops.max(seen)
                if own:
                    least[number], most[number] = found
                if self._fresh:  # the first step has no ranges but its own
                    found = widened(*found)
                    bounds = tuple(
                        ops.where(count > 0, a, b) for a, b in zip(bounds, found, strict=True)
                    )
            return self._quantized(value, *bounds)

        outputs = forward(
            points,
            inputs,
            at=at,
            training=training,
            kernels=functools.partial(self._quantized_kernels, bounds_of),
            frozen=self.frozen,
        )
        if tracked:
            rate = ops.maximum(1 - self._momentum, 1 / (count + 1))
            seen = widened(ops.stack(least), ops.stack(most))
            moved = ops.stack(
                [low + rate * (seen[0] - low), high + rate * (seen[1] - high)], axis=1
            )
            self.state.assign(ops.concatenate([moved, state[-1:] + 1]))
        return outputs

    def _quantized(self, value: Any, low: Any, high: Any) -> Any:
        return masked_as(value, quantized_values(value, low, high, self._bits or 8))

    @contextlib.contextmanager
    def _quantized_kernels(
        self, bounds: Callable[[int], tuple[Any, Any]], call: Call, factor: Any
    ) -> Iterator[Callable[[Any], Any]]:
        """The layer with its kernels and biases on their grids; gives what rounds others of its biases.

        bounds: of the range of a number. factor: what BatchNorm multiplies the kernels with.
        """
        rounded = self._constant if call.kind == "BatchNormalization" else _as_it_is
        with contextlib.ExitStack() as stack:
            for owner, name, weight, bits in self._kernels.get(id(call.layer), ()):
                kernel = ops.convert_to_tensor(weight.variable)
                half = _depthwise_half(weight)
                if factor is not None and not half:
                    kernel = kernel * _along(weight, factor)
                if bits is not None:
                    steps = kernel_steps(kernel, bits, weight.axes.outputs)
                    taken = self.points.taken.get((call.path, id(owner)))
                    if self._bits == 8 and taken is not None and not half:
                        rounded = functools.partial(_rounded_bias, (*bounds(taken), steps))
                        bias = vars(owner).get("bias")
                        if bias is not None:
                            stack.enter_context(replaced(owner, bias=rounded(bias)))
                    kernel = quantized_kernel(kernel, steps)
                stack.enter_context(replaced(owner, **{name: kernel}))
            yield rounded

    def _constant(self, value: Any) -> Any:
        """Numbers that a file adds or multiplies with: one grid for all of them."""
        if self._bits is None:
            return value
        low, high = widened(ops.min(ops.stop_gradient(value)), ops.max(ops.stop_gradient(value)))
        return quantized_values(value, low, high, self._bits)

    def _restore(self) -> None:
        for name in _HOOKS:
            self.model.__dict__.pop(name, None)
        _forget_functions(self.model)


def restore(model: Any) -> None:
    """Take off whatever substitution a model has, also one left by an interruption."""
    undo = model.__dict__.get("_secateur_restore")
    if undo is not None:
        undo()


@contextlib.contextmanager
def as_in_file(
    model: Any,
    widths: Mapping[str, Width],
    ranges: Mapping[str, Sequence[float]],
    activations: int | None = 8,
) -> Iterator[Any]:
    """The model, answering for a while as its file of integers does.

    >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="d")])
    >>> with as_in_file(net, {"d/kernel": Width(bits=8)}, {}, activations=None) as quantized:
    ...     quantized.predict(np.ones((3, 2)), verbose=0).shape
    (3, 1)
    """
    substitution = Substitution(model, widths, activations=activations, ranges=ranges)
    if activations is not None:
        missing = [key for key in substitution.points.keys if key not in ranges]
        if missing:
            raise SecateurError(
                f"no range for {', '.join(missing[:3])} received, expected those that a "
                "quantization-aware training of this very model left; fix: train it with "
                "Quantize(aware=True)"
            )
    substitution.attach()
    try:
        yield model
    finally:
        restore(model)


def _as_it_is(value: Any) -> Any:
    return value


def _rounded_bias(grid: tuple, bias: Any) -> Any:
    return quantized_bias(bias, *grid)


def _slots(
    points: Points, table: WeightTable, widths: Mapping[str, Width]
) -> dict[int, list[tuple[Any, str, Weight, int | None]]]:
    """Layer -> its kernels: who holds each under which name, its row, and its bits.

    A kernel that BatchNorm is folded into is there without bits too.
    """
    rows = {id(w.variable): w for w in table if w.role in ("kernel", "embedding")}
    folded = {id(call.layer) for call in points.graph.calls if call.path in points.folded}
    found: dict[int, list[tuple[Any, str, Weight, int | None]]] = {}
    for layer in {id(call.layer): call.layer for call in points.graph.calls}.values():
        for owner in _parts(layer):
            for name, value in list(vars(owner).items()):
                weight = rows.get(id(value))
                if weight is None or weight.in_cell:
                    continue
                width = widths.get(weight.path)
                bits = None if width is None or width.bits == 16 else width.bits
                if bits is not None or id(layer) in folded:
                    found.setdefault(id(layer), []).append((owner, name, weight, bits))
    return found


def _parts(layer: Any) -> list[Any]:
    """A layer and those inside of it, each once."""
    inner = layer._flatten_layers() if hasattr(layer, "_flatten_layers") else [layer]
    return list({id(part): part for part in inner}.values())


def _depthwise_half(weight: Weight) -> bool:
    """Whether it is the half of a separable convolution that BatchNorm is not folded into."""
    return weight.path.endswith("/depthwise_kernel")


def _along(weight: Weight, factor: Any) -> Any:
    """A factor for each output, shaped to multiply the kernel."""
    outputs = weight.axes.outputs
    return ops.reshape(factor, [n if a in outputs else 1 for a, n in enumerate(weight.shape)])


def _observed(points: Points, batches: Sequence[Any]) -> np.ndarray:
    """(batches, ranges, 2): smallest and largest value of each range, of the model in float."""
    count = len(points.keys)

    def extremes(x: Any) -> Any:
        found: dict[int, tuple[Any, Any]] = {}

        def at(number: int, value: Any, own: bool, averages: bool = False) -> Any:
            if own and number not in points.fixed:
                seen = ops.cast(value, "float32")
                low, high = widened(ops.min(seen), ops.max(seen))
                # A smallest value knows of no NaN on every backend.
                sound = ops.all(ops.isfinite(seen))
                found[number] = ops.where(sound, low, np.nan), ops.where(sound, high, np.nan)
            return value

        forward(points, x, at=at, training=False)
        zero = ops.zeros(())
        return ops.stack([ops.stack(found.get(n, (zero, zero))) for n in range(count)])

    compiled = Forward(extremes)
    with without_gradients():
        rows = [ops.convert_to_numpy(compiled._function(_tensors(x))) for x in batches]
    return np.stack(rows)


def _tensors(x: Any) -> Any:
    return keras.tree.map_structure(ops.convert_to_tensor, x)


def _forget_functions(model: Any) -> None:
    model.train_function = model.test_function = model.predict_function = None
