"""Which tensor of a file each weight of a model became: found by layout and value, never by name."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.arrays.affine import relative_rms
from secateur.errors import SecateurError
from secateur.promises import Finding, Promise, check
from secateur.runtimes import Constant
from secateur.runtimes.keras import operations
from secateur.weights import Weight, weight_table
from secateur.widths import STORED, Width


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a format puts the axes of a Keras weight: axis `source` moves to `target`.

    Shapes may gain or merge axes on the way; the order of the elements is what counts.
    `channels`: the axes, in Keras's layout, along which a factor may have been folded.
    """

    name: str
    ranks: tuple[int, ...]
    source: int | tuple[int, ...] = 0
    target: int | tuple[int, ...] = 0
    channels: tuple[tuple[int, ...], ...] = ((-1,),)

    def back(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return a tensor of the file in Keras's layout, which has `shape`.

        >>> LAYOUTS[0].back(np.array([[1, 2, 3], [4, 5, 6]]), (3, 2)).tolist()
        [[1, 4], [2, 5], [3, 6]]
        """
        moved = np.moveaxis(np.empty(shape, np.bool_), self.source, self.target).shape
        return np.moveaxis(array.reshape(moved), self.target, self.source)


LAYOUTS = (
    # Of a normalization between two Dense layers, the factor goes into the inputs of the second.
    Layout(
        name="(..., in, out) -> (out, ..., in)",
        ranks=(2, 3, 4, 5),
        source=-1,
        channels=((-1,), (-2,)),
    ),
    Layout(
        name="(..., in, multiplier) -> (1, ..., in * multiplier)",
        ranks=(3, 4),
        channels=((-2, -1),),
    ),
    Layout(name="(..., out, in) -> (out, ..., in)", ranks=(3, 4), source=-2, channels=((-2,),)),
    Layout(name="(in, ..., out) -> (... * out, in)", ranks=(3, 4), target=-1, channels=((1, 2),)),
    # ONNX's; the first is a transposed convolution's too, whose outputs are Keras's axis -2.
    Layout(
        name="(..., in, out) -> (out, in, ...)",
        ranks=(3, 4, 5),
        source=(-1, -2),
        target=(0, 1),
        channels=((-1,), (-2,)),
    ),
    Layout(
        name="(..., in, multiplier) -> (in * multiplier, 1, ...)",
        ranks=(3, 4),
        source=(-2, -1),
        target=(0, 1),
        channels=((-2, -1),),
    ),
    Layout(name="as in Keras", ranks=(1, 2, 3, 4, 5)),
)

# Least squares for inputs and outputs in turn, each time nearer by a factor or given up.
TURNS = 50

# Layers whose kernels every format stores whole; of others (recurrent, custom) only what was
# promised must be found, since a converter may cut or merge them.
TRACED = {
    *("Dense", "EinsumDense", "Embedding", "Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D"),
    *("DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D", "Conv1DTranspose"),
    "Conv2DTranspose",
}
# Converters fold a multiplication into its neighbours' weights, as a factor for each channel: of a
# normalization, of `h * 30`, of an activation such as hard_sigmoid. Here is what multiplies nothing.
PLAIN_ACTIVATIONS = {"linear", "relu", "sigmoid", "softmax", "tanh"}
PLAIN_LAYERS = TRACED | {
    *("Activation", "Add", "Concatenate", "Dropout", "Flatten", "Identity", "InputLayer"),
    *("Permute", "ReLU", "RepeatVector", "Reshape", "Softmax", "ZeroPadding1D", "ZeroPadding2D"),
    *("AveragePooling1D", "AveragePooling2D", "GlobalAveragePooling1D", "GlobalAveragePooling2D"),
    *("GlobalMaxPooling1D", "GlobalMaxPooling2D", "MaxPooling1D", "MaxPooling2D"),
    # What a cell multiplies inside its loop, by its own state, is no constant.
    *("LSTM", "GRU", "SimpleRNN", "Bidirectional", "Masking"),
}


@dataclass(frozen=True, kw_only=True)
class Match:
    """A weight and the tensor of the file that holds it, times `factor` if one was folded in.

    merged: the tensor holds the sum of the weight and its LoRA update.
    """

    weight: Weight
    constant: Constant | None = None
    layout: Layout = LAYOUTS[-1]
    factor: np.ndarray | None = None
    merged: bool = False

    def to_record(self, format: str) -> dict[str, Any]:
        """Plain data: the tensor, its type and layout, or why there is none.

        error: RMS of what rounding changed, relative to that of the kernel, where there are codes.
        """
        if self.constant is None:
            reason = "not located by its values as one tensor; outputs were compared"
            return {"tensor": None, "reason": reason}
        dtype, bits = str(self.constant.values.dtype), self.constant.bits
        record: dict[str, Any] = {"tensor": self.constant.name, "dtype": dtype, "bits": bits}
        record["layout"] = self.layout.name
        if self.factor is not None:
            record["folded"] = "times a factor for each channel"
        if self.merged:
            record["merged"] = "with its LoRA update"
        if self.constant.coded and self.weight.role in ("kernel", "embedding"):
            expected = np.asarray(self.weight.read(merged=self.merged), np.float64)
            expected = expected if self.factor is None else expected * self.factor
            stored = self.layout.back(self.constant.dequantized(), self.weight.shape)
            record["error"] = relative_rms(stored, expected)
        coded = STORED.get(format, 32) <= 8 and self.weight.role in ("kernel", "embedding")
        if coded and not self.constant.coded:
            record["skipped"] = "left in float by the quantizer"
        return record

    def check(self, promise: Promise, format: str = "") -> Finding:
        """Check a promise of the weight on the tensor's own values.

        format: of the file; where it stores floats by nature nothing is said of bits.
        """
        if self.constant is None:
            if promise.kind != "bits":  # `located` raises for one that is not there
                raise AssertionError(promise.path)
            return Finding(promise, True, "skipped: not located as one tensor", 0)
        values = self.layout.back(self.constant.centred(), self.weight.shape)
        # A half-precision float may round to zero too.
        coded = self.constant.coded or values.dtype == np.float16
        if promise.kind == "bits":
            bits = self.constant.bits if format in STORED else None
            return check(promise, values, coded=coded, bits=bits)
        if self.factor is not None and not coded:
            values = values + 0.0  # a negative factor makes -0.0 of a zero
            coded = not self.factor.all()  # and 0 makes zeros of a whole channel
        return check(promise, values, coded=coded)


def located(constants: Sequence[Constant], model: Any, promised: set[str]) -> dict[str, Match]:
    """Each weight of the model with its tensor in the file, by layout and value, never by name."""
    by_size: dict[int, list[Constant]] = {}
    for constant in constants:
        by_size.setdefault(constant.values.size, []).append(constant)
    foldable = not all(map(multiplies_nothing, operations(model)))
    found, lost = {}, []
    for weight in weight_table(model):
        with np.errstate(all="ignore"):  # a damaged file may hold anything: inf, or nearly
            match = _find(weight, by_size.get(weight.size, []), foldable)
        traced = weight.layer_class in TRACED and weight.role in ("kernel", "embedding")
        traced = traced and not (foldable and _thin(weight))
        if match is None and (traced or weight.path in promised):
            lost.append(f"{weight.path} {weight.shape}")
        found[weight.path] = match or Match(weight=weight)
    lost += sorted(promised - set(found))
    if lost:
        raise SecateurError(
            f"{', '.join(lost)} not found among the tensors of the file, expected every kernel of "
            "the model with its values; fix: the file is damaged or of another model, export again"
        )
    return found


def multiplies_nothing(operation: Any) -> bool:
    """Whether a layer or operation multiplies by nothing that could be folded into a neighbour."""
    activation = getattr(operation, "activation", None)
    return (
        type(operation).__name__ in PLAIN_LAYERS
        and type(operation).__module__.startswith("keras.")
        and (activation is None or getattr(activation, "__name__", "") in PLAIN_ACTIVATIONS)
    )


def placed(
    constants: Sequence[Constant], model: Any, widths: Mapping[str, Width]
) -> dict[str, str]:
    """The name of the tensor in the float file by path of the weight that has a width of its own.

    Raises `SecateurError` for a weight that is no tensor of its own (8 bits are what it has anyway,
    or less), and for two that are one and shall have different widths.
    """
    required = {path for path, width in widths.items() if width.bits != 8}
    found, tensors = located(constants, model, required), {}
    owners: dict[str, str] = {}
    for path, width in widths.items():
        constant = found[path].constant
        if constant is None:
            continue
        other = owners.setdefault(constant.name, path)
        if widths[other] != width:
            raise SecateurError(
                f"{path} received as {width} and {other} as {widths[other]}, expected one width, "
                "since they have the same values; fix: choose the same for both"
            )
        tensors[path] = constant.name
    return tensors


def _find(weight: Weight, candidates: Sequence[Constant], foldable: bool) -> Match | None:
    for merged in (False, True) if weight.lora else (False,):
        values = np.asarray(weight.read(merged=merged))
        for compare in (_equal, *((_scaled, _scaled_twice) if foldable else ())):
            for constant, layout in itertools.product(candidates, LAYOUTS):
                if values.ndim not in layout.ranks:
                    continue
                stored, slack = _stored(constant, layout, values.shape)
                fits, factor = compare(values, stored, slack, layout, constant.coded)
                if fits:
                    return Match(
                        weight=weight,
                        constant=constant,
                        layout=layout,
                        factor=factor,
                        merged=merged,
                    )
    return None


def _equal(
    values: np.ndarray, stored: np.ndarray, slack: np.ndarray, layout: Layout, coded: bool
) -> tuple[bool, np.ndarray | None]:
    # Half a step is what rounding may cost.
    return bool((np.abs(stored - values) <= 0.501 * slack).all()), None


def _scaled(
    values: np.ndarray, stored: np.ndarray, slack: np.ndarray, layout: Layout, coded: bool
) -> tuple[bool, np.ndarray | None]:
    """Whether a factor for each channel makes one of the other."""
    # The factor is estimated from rounded values: that may cost as much again.
    slack = slack + 1e-5 * np.abs(stored).max(initial=0)
    for channels in layout.channels:
        factor = _factor(values, stored, channels)
        # With a factor for each element anything fits, save for where the zeros are.
        telling = values.size >= 2 * factor.size or _same_zeros(values, stored, coded)
        if telling and (np.abs(stored - factor * values) <= slack).all():
            return True, factor
    return False, None


def _scaled_twice(
    values: np.ndarray, stored: np.ndarray, slack: np.ndarray, layout: Layout, coded: bool
) -> tuple[bool, np.ndarray | None]:
    """Whether factors for inputs and outputs do: of a normalization before and one after a layer."""
    if len(layout.channels) < 2 or values.size < 2 * sum(values.shape[-2:]):
        return False, None
    slack = slack + 1e-5 * np.abs(stored).max(initial=0)
    factor, apart = np.ones(()), np.inf
    for _ in range(TURNS):
        for channels in layout.channels:
            factor = factor * _factor(factor * values, stored, channels)
        before, apart = apart, np.sqrt(np.mean(np.square(stored - factor * values)))
        if (np.abs(stored - factor * values) <= slack).all():
            return True, factor
        if apart > 0.9 * before:  # it comes no nearer
            break
    return False, None


def _thin(weight: Weight) -> bool:
    """Whether a kernel has one element for each channel: no values that a factor leaves telling."""
    channels = weight.shape[-2:] if len(weight.shape) > 1 else weight.shape
    depthwise = weight.layer_class.startswith("DepthwiseConv") or "depthwise" in weight.path
    return weight.size < 2 * (math.prod(channels) if depthwise else max(channels, default=1))


def _same_zeros(values: np.ndarray, stored: np.ndarray, coded: bool) -> bool:
    """Whether a kernel and a tensor are zero in the same places; codes may round more to zero."""
    zeros, found = values == 0, stored == 0
    if values.ndim < 2 or zeros.all() or not zeros.any() or found.all():
        return False
    return bool((found >= zeros).all() if coded else (found == zeros).all())


def _stored(
    constant: Constant, layout: Layout, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """A tensor of the file as floats, and the step of its codes, in Keras's layout."""
    step = np.broadcast_to(constant.step(), constant.values.shape)
    return layout.back(constant.dequantized(), shape), layout.back(step, shape)


def _factor(values: np.ndarray, stored: np.ndarray, channels: tuple[int, ...]) -> np.ndarray:
    """The factor for each channel that brings `values` closest to `stored`, by least squares."""
    kept = {axis % values.ndim for axis in channels}
    others = tuple(axis for axis in range(values.ndim) if axis not in kept)
    power = np.sum(np.square(values), others, keepdims=True)
    return np.sum(values * stored, others, keepdims=True) / np.where(power == 0, 1, power)
