"""A model to files that are believed: reloaded, invoked, compared and checked before they get a name.

Every file is written under a temporary name, run in its own runtime at batch 1 and n, compared
with the model on data, searched for each weight, and its promises are checked on its own tensors.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateur import conversion
from secateur.artifact import FORMATS, Artifact, describe, staged
from secateur.errors import SecateurError, nearest
from secateur.promises import Finding, Promise, check, require
from secateur.quantization import MIXED, QUANTIZATIONS
from secateur.runtimes import Constant, Session, runtime_for
from secateur.runtimes.keras import KerasSession, leaves, save_model
from secateur.tflite import TfliteFile
from secateur.weights import Weight, weight_table


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far the outputs of a file may be from the model's.

    `largest`: of the absolute differences, relative to the largest output. `rms`: of the
    differences, relative to the standard deviation of the outputs; None: not looked at.
    `agreement`: share of samples with the same largest output; two samples may always differ.
    """

    largest: float
    rms: float | None
    agreement: float


TOLERANCES = {
    # The same operations on the same weights: only the order of additions may differ.
    "keras": Tolerance(largest=1e-5, rms=None, agreement=0.99),
    "h5": Tolerance(largest=1e-5, rms=None, agreement=0.99),
    # Other kernels and folded normalizations, in float: 1.4e-6 at most over eight kinds of
    # network. No rms: it is rounding over next to nothing where an untrained network answers
    # nearly the same to everything (2e-4 measured on a correct file).
    "float32": Tolerance(largest=1e-4, rms=None, agreement=0.99),
    # The same floats, zeros encoded.
    "sparse": Tolerance(largest=1e-4, rms=None, agreement=0.99),
    # Weights rounded to 11 bits of mantissa.
    "float16": Tolerance(largest=0.05, rms=0.02, agreement=0.97),
    # Weights and activations rounded to 8 bits: rms 0.016, agreement 0.95 at worst over the same
    # networks, trained and not; permuted classes or a wrong tensor give an rms of about 1.
    "dynamic": Tolerance(largest=1.0, rms=0.15, agreement=0.8),
    "int8": Tolerance(largest=1.0, rms=0.25, agreement=0.8),
    "int16x8": Tolerance(largest=1.0, rms=0.15, agreement=0.8),
    # 15 levels for a weight.
    "int4": Tolerance(largest=1.0, rms=0.5, agreement=0.6),
}

# Samples for the comparison, and how many at a time: enough for a share, little for the memory.
SAMPLES, BATCH = 256, 32


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a format puts the axes of a Keras weight: axis `source` moves to `target`.

    Shapes may gain or merge axes on the way; the order of the elements is what counts.
    `channels`: the axes, in Keras's layout, along which a factor may have been folded.
    """

    name: str
    ranks: tuple[int, ...]
    source: int = 0
    target: int = 0
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
    Layout(name="as in Keras", ranks=(1, 2, 3, 4, 5)),
)

# Layers whose kernels every format stores whole; of others (recurrent, custom) only what was
# promised must be found, since a converter may cut or merge them.
TRACED = {
    *("Dense", "EinsumDense", "Embedding", "Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D"),
    *("DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D", "Conv1DTranspose"),
    "Conv2DTranspose",
}
# Layers that converters fold into their neighbours' weights, as a factor for each channel.
FOLDED = {"BatchNormalization", "Normalization", "Rescaling"}


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What `verify` found: the tensor of each weight, the parity of outputs, checked promises."""

    tensors: Mapping[str, Mapping[str, Any]]
    parity: Mapping[str, float]
    findings: tuple[Finding, ...]


def export(
    model: Any,
    formats: Sequence[str],
    out: str | Path,
    *,
    stage: str,
    promises: Sequence[Promise] = (),
    data: Any = None,
    imports: Sequence[str] = (),
    calibration: Any = None,
    allow_float: bool = False,
    progress: Callable[[str], None] | None = None,
) -> list[Artifact]:
    """Write a model as `<out>/<stage>-<format><suffix>`, each file verified, or none at all.

    Args:
        model: a Functional or Sequential model; it is not changed.
        formats: of "keras", "h5", "float32", "sparse", "float16", "dynamic", "int4", "int8", "int16x8".
        out: a folder, made if it is not there.
        stage: what the model is, for the file's name ("baseline", "pruned").
        promises: what must be true of the weights in every file.
        data: inputs (n, ...) for the comparison; None: random ones from seed 0.
        imports: modules that register the model's own layers.
        calibration: inputs (n, ...) of training, from which integer formats take their ranges.
        allow_float: keep an integer file in which an operator computes in float, named "mixed".
        progress: called with the name of each file before it is written.

    Raises `SecateurError` with the cause where a file cannot be written, or does not verify.
    """
    for format in formats:
        if format not in FORMATS:
            raise SecateurError(f"unknown format {format!r}; {nearest(format, FORMATS)}")
    _require_finite(model)
    compiled = [format for format in formats if FORMATS[format] == ".tflite"]
    blobs: dict[str, bytes] = {}
    if compiled:
        blobs = conversion.to_litert(model, compiled, imports=imports, calibration=calibration)
    names = {format: _named(format, blobs.get(format), allow_float) for format in formats}
    written: dict[Path, tuple[str, Verified]] = {}
    with ExitStack() as all_or_none:
        for format in formats:
            path = Path(out) / f"{stage}-{names[format]}{FORMATS[format]}"
            if progress:
                progress(path.name)
            temporary = all_or_none.enter_context(staged(path))
            if format in blobs:
                temporary.write_bytes(blobs[format])
            else:
                save_model(model, temporary)
            try:
                found = verify(temporary, format, model, promises, data)
                written[path] = names[format], found
            except SecateurError as error:
                told = str(error).replace(str(temporary), str(path))
                raise SecateurError(told) from error
    return [
        describe(path, format=format, stage=stage, parity=found.parity, tensors=found.tensors)
        for path, (format, found) in written.items()
    ]


def _named(format: str, blob: bytes | None, allow_float: bool) -> str:
    """What a file may be called: one that computes partly in float is no integer file."""
    if blob is None or format not in MIXED:
        return format
    floats = TfliteFile.parse(blob, format).float_operators()
    if floats and not allow_float:
        raise SecateurError(
            f"an {format} file with {', '.join(floats)} in float received, expected integers "
            f"throughout; fix: replace these layers, choose dynamic, or allow it (--allow-float) as "
            f"a file named {MIXED[format]}"
        )
    return MIXED[format] if floats else format


def verify(
    path: str | Path,
    format: str,
    model: Any,
    promises: Sequence[Promise] = (),
    data: Any = None,
) -> Verified:
    """Reload a file and hold it against the model it came from; see `export` for the arguments.

    Raises `SecateurError` where it does not run at batch 1 and n, its outputs differ by more than
    `TOLERANCES[format]`, a weight is not found among its tensors, or a promise is broken.
    """
    try:
        session = runtime_for(path).load(path, 1)
        parity = _compared(session, model, format, data)
        found = _located(session.constants(), model, {promise.path for promise in promises})
        findings = tuple(found[promise.path].check(promise) for promise in promises)
        require(findings)
    except SecateurError as error:
        told = str(error)
        raise SecateurError(told if str(path) in told else f"{path}: {told}") from error
    tensors = {place: match.to_record(format) for place, match in found.items()}
    return Verified(tensors=tensors, parity=parity, findings=findings)


def compare(
    reference: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    format: str,
    steps: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return the parity of outputs, {name: (n, ...)}, the worst over them, or raise.

    steps: distance between neighbouring values of an output that is coded; where outputs hardly
    vary, two of them may be all there is to see, and are not held against the file.

    >>> logits = {"out": np.array([[1.0, 0.0], [0.0, 1.0]])}
    >>> compare(logits, logits, "float32")["agreement"]
    1.0
    >>> compare(logits, {"out": logits["out"][:, ::-1]}, "float32")
    Traceback (most recent call last):
    ...
    secateur.errors.SecateurError: outputs differ from the model's (largest difference 1 ...
    """
    allowed, parity = TOLERANCES[format], {"largest": 0.0, "relative_rms": 0.0, "agreement": 1.0}
    n = len(next(iter(reference.values())))
    for name, expected in reference.items():
        given = outputs[name]
        if given.shape != expected.shape or not np.isfinite(given).all():
            raise SecateurError(
                f"output {name} of shape {given.shape} received"
                f"{'' if np.isfinite(given).all() else ' with NaN or infinity in it'}, expected "
                f"{expected.shape}, finite; fix: convert the model again"
            )
        difference = np.abs(given.astype(np.float64) - expected)
        beyond = np.maximum(difference - 2 * (steps or {}).get(name, 0.0), 0.0)
        rms = np.sqrt(np.mean(np.square(beyond)))
        spread, size = float(np.std(expected)), float(np.abs(expected).max())
        parity["largest"] = max(parity["largest"], difference.max() / (size or 1.0))
        parity["relative_rms"] = max(parity["relative_rms"], rms / (spread or size or 1.0))
        if expected.ndim > 1 and expected.shape[-1] > 1:
            chosen = np.take_along_axis(expected, given.argmax(-1)[..., None], -1)[..., 0]
            same = chosen >= expected.max(-1) - 1e-6 * size  # of equal outputs any will do
            parity["agreement"] = min(parity["agreement"], np.mean(same))
    parity = {name: float(value) for name, value in parity.items()}
    if (
        parity["largest"] > allowed.largest
        or (allowed.rms is not None and parity["relative_rms"] > allowed.rms)
        or (1 - parity["agreement"]) * n > (1 - allowed.agreement) * n + 2
    ):
        raise SecateurError(
            f"outputs differ from the model's (largest difference {parity['largest']:.2g} of the "
            f"largest output, rms {parity['relative_rms']:.2g}, agreement "
            f"{parity['agreement']:.3f} over {n} samples), expected {allowed} for {format}; "
            "fix: export again, or choose another format"
        )
    return parity


def _compared(session: Session, model: Any, format: str, data: Any) -> dict[str, float]:
    """Parity with the model at batch n; batch 1 must give what batch n gives."""
    live = KerasSession(model)
    if data is None:
        samples = conversion.random_inputs(model, SAMPLES // 4)
    else:
        given = data if isinstance(data, Mapping) else {live.input_names[0]: np.asarray(data)}
        samples = {name: array[:SAMPLES] for name, array in given.items()}
    outputs = _outputs(session, samples, BATCH)
    parity = compare(_outputs(live, samples, BATCH), outputs, format, session.output_steps)
    alone = _outputs(session, {name: array[:3] for name, array in samples.items()}, 1)
    if not session.resizable:
        raise SecateurError(
            "the file runs at one batch size only, expected every size; fix: replace the layer "
            "that fixes the batch size (a reshape across it)"
        )
    compare({name: array[:3] for name, array in outputs.items()}, alone, "float32")
    return {**parity, "n": len(next(iter(samples.values())))}


def _outputs(session: Session, samples: dict[str, np.ndarray], batch: int) -> dict[str, np.ndarray]:
    outputs = session.predict(samples, batch=batch)
    return outputs if isinstance(outputs, dict) else {session.output_names[0]: outputs}


@dataclass(frozen=True, kw_only=True)
class _Match:
    """A weight and the tensor of the file that holds it, times `factor` if one was folded in."""

    weight: Weight
    constant: Constant | None = None
    layout: Layout = LAYOUTS[-1]
    factor: np.ndarray | None = None

    def to_record(self, format: str) -> dict[str, Any]:
        if self.constant is None:
            reason = "not located by its values as one tensor; outputs were compared"
            return {"tensor": None, "reason": reason}
        dtype = str(self.constant.values.dtype)
        record = {"tensor": self.constant.name, "dtype": dtype, "layout": self.layout.name}
        if self.factor is not None:
            record["folded"] = "times a factor for each channel"
        how = QUANTIZATIONS.get(format)
        if how and how.weights <= 8 and not self.constant.coded and self.weight.role == "kernel":
            record["skipped"] = "left in float by the quantizer"
        return record

    def check(self, promise: Promise) -> Finding:
        if self.constant is None:  # _located raises for a promised weight that is not there
            raise AssertionError(promise.path)
        values = self.layout.back(self.constant.centred(), self.weight.shape)
        # A half-precision float may round to zero too.
        coded = self.constant.coded or values.dtype == np.float16
        if self.factor is not None and not coded:
            values = values + 0.0  # a negative factor makes -0.0 of a zero
            coded = not self.factor.all()  # and 0 makes zeros of a whole channel
        return check(promise, values, coded=coded)


def _located(constants: Sequence[Constant], model: Any, promised: set[str]) -> dict[str, _Match]:
    """Each weight of the model with its tensor in the file, by layout and value, never by name."""
    by_size: dict[int, list[Constant]] = {}
    for constant in constants:
        by_size.setdefault(constant.values.size, []).append(constant)
    foldable = any(type(layer).__name__ in FOLDED for layer in leaves(model))
    found, lost = {}, []
    for weight in weight_table(model):
        with np.errstate(all="ignore"):  # a damaged file may hold anything: inf, or nearly
            match = _find(weight, by_size.get(weight.size, []), foldable)
        traced = weight.layer_class in TRACED and weight.role in ("kernel", "embedding")
        traced = traced and not (foldable and _thin(weight))
        if match is None and (traced or weight.path in promised):
            lost.append(f"{weight.path} {weight.shape}")
        found[weight.path] = match or _Match(weight=weight)
    lost += sorted(promised - set(found))
    if lost:
        raise SecateurError(
            f"{', '.join(lost)} not found among the tensors of the file, expected every kernel of "
            "the model with its values; fix: the file is damaged or of another model, export again"
        )
    return found


def _find(weight: Weight, candidates: Sequence[Constant], foldable: bool) -> _Match | None:
    values = np.asarray(weight.read())
    layouts = [layout for layout in LAYOUTS if values.ndim in layout.ranks]
    for constant, layout in itertools.product(candidates, layouts):
        stored, slack = _stored(constant, layout, values.shape)
        # Half a step is what rounding may cost.
        if (np.abs(stored - values) <= 0.501 * slack).all():
            return _Match(weight=weight, constant=constant, layout=layout)
    for constant, layout in itertools.product(candidates if foldable else (), layouts):
        stored, slack = _stored(constant, layout, values.shape)
        # The factor is estimated from rounded values: that may cost as much again.
        slack = slack + 1e-5 * np.abs(stored).max(initial=0)
        for channels in layout.channels:
            factor = _factor(values, stored, channels)
            # With a factor for each element anything fits, save for where the zeros are.
            telling = values.size >= 2 * factor.size or _same_zeros(values, stored, constant.coded)
            if telling and (np.abs(stored - factor * values) <= slack).all():
                return _Match(weight=weight, constant=constant, layout=layout, factor=factor)
    return None


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


def _require_finite(model: Any) -> None:
    broken = [row.path for row in weight_table(model) if not np.isfinite(row.read()).all()]
    if broken:
        raise SecateurError(
            f"NaN or infinity received in {', '.join(broken)}, expected finite weights; "
            "fix: train again with a smaller learning rate, or from an earlier checkpoint"
        )
