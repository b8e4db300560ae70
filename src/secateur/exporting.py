"""A model to files that are believed: reloaded, invoked, compared and checked before they get a name.

Every file is written under a temporary name, run in its own runtime at batch 1 and n, compared
with the model on data, searched for each weight, and its promises are checked on its own tensors.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateur import conversion
from secateur.artifact import Artifact, describe, staged
from secateur.errors import SecateurError
from secateur.promises import Finding, Promise, require
from secateur.runtimes import Session, runtime_for
from secateur.runtimes.keras import KerasSession, save_model

FORMATS = {"keras": ".keras", "h5": ".h5", "float32": ".tflite", "dynamic": ".tflite"}


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far the outputs of a file may be from the model's.

    `largest`: of the absolute differences, relative to the largest output. `rms`: of the
    differences, relative to the outputs' standard deviation. `agreement`: share of equal argmax.
    """

    largest: float
    rms: float
    agreement: float


TOLERANCES = {
    # The same kernels on the same weights: only the order of additions may differ.
    "keras": Tolerance(largest=1e-5, rms=1e-5, agreement=0.99),
    "h5": Tolerance(largest=1e-5, rms=1e-5, agreement=0.99),
    # Other kernels and folded normalizations, in float: rounding, 1e-6 to 1e-5 as measured.
    "float32": Tolerance(largest=1e-4, rms=1e-4, agreement=0.99),
    # Rounding weights and activations to 8 bits.
    "dynamic": Tolerance(largest=1.0, rms=0.15, agreement=0.8),
}

# Samples for the comparison, and how many at a time: enough for a share, little for the memory.
SAMPLES, BATCH = 256, 32


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a format puts the axes of a Keras weight: axis `source` moves to `target`.

    Shapes may gain or merge axes on the way; the order of the elements is what counts.
    `channels` are the axes, in Keras's layout, along which normalizations are folded.
    """

    name: str
    ranks: tuple[int, ...]
    source: int = 0
    target: int = 0
    channels: tuple[int, ...] = (-1,)

    def back(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return a tensor of the file in Keras's layout, which has `shape`.

        >>> LAYOUTS[0].back(np.array([[1, 2, 3], [4, 5, 6]]), (3, 2)).tolist()
        [[1, 4], [2, 5], [3, 6]]
        """
        moved = np.moveaxis(np.empty(shape, np.bool_), self.source, self.target).shape
        return np.moveaxis(array.reshape(moved), self.target, self.source)


LAYOUTS = (
    Layout(name="(..., in, out) -> (out, ..., in)", ranks=(2, 3, 4, 5), source=-1, target=0),
    Layout(
        name="(..., in, multiplier) -> (1, ..., in * multiplier)", ranks=(3, 4), channels=(-2, -1)
    ),
    Layout(name="(..., out, in) -> (out, ..., in)", ranks=(3, 4), source=-2, channels=(-2,)),
    Layout(
        name="(in, ..., out) -> (... * out, in)", ranks=(3, 4), source=0, target=-1, channels=(1, 2)
    ),
    Layout(name="as in Keras", ranks=(1, 2, 3, 4, 5)),
)

# Layers whose kernels every format stores whole; of others (recurrent, custom) only what was
# promised must be found, since a converter may cut or merge them.
TRACED = {
    *("Dense", "EinsumDense", "Embedding", "Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D"),
    *("DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D", "Conv1DTranspose"),
    "Conv2DTranspose",
}
# Layers that converters fold into the weights before them, as a factor for each output channel.
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
    progress: Callable[[str], None] | None = None,
) -> list[Artifact]:
    """Write a model as `<out>/<stage>-<format><suffix>`, each file verified, or none at all.

    Args:
        model: a Functional or Sequential model; it is not changed.
        formats: of "keras", "h5", "float32", "dynamic".
        out: a folder, made if it is not there.
        stage: what the model is, for the file's name ("baseline", "pruned").
        promises: what must be true of the weights in every file.
        data: inputs (n, ...) for the comparison; None: random ones from seed 0.
        imports: modules that register the model's own layers.
        progress: called with the name of each file before it is written.

    Raises `SecateurError` with the cause where a file cannot be written, or does not verify.
    """
    for format in formats:
        if format not in FORMATS:
            near = difflib.get_close_matches(format, FORMATS, n=1) or list(FORMATS)
            raise SecateurError(
                f"format {format!r} received, expected of {', '.join(FORMATS)}; "
                f"fix: did you mean {' or '.join(near)}?"
            )
    _require_finite(model)
    compiled = [format for format in formats if FORMATS[format] == ".tflite"]
    blobs = conversion.to_litert(model, compiled, imports=imports) if compiled else {}
    written: dict[Path, tuple[str, Verified]] = {}
    with ExitStack() as all_or_none:
        for format in formats:
            path = Path(out) / f"{stage}-{format}{FORMATS[format]}"
            if progress:
                progress(path.name)
            temporary = all_or_none.enter_context(staged(path))
            if format in blobs:
                temporary.write_bytes(blobs[format])
            else:
                save_model(model, temporary)
            try:
                written[path] = format, verify(temporary, format, model, promises, data)
            except SecateurError as error:
                told = str(error).replace(str(temporary), str(path))
                raise SecateurError(told) from error
    return [
        describe(path, format=format, stage=stage, parity=found.parity, tensors=found.tensors)
        for path, (format, found) in written.items()
    ]


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
        findings = tuple(_checked(promise, model, found) for promise in promises)
        require(findings)
    except SecateurError as error:
        told = str(error)
        raise SecateurError(told if str(path) in told else f"{path}: {told}") from error
    tensors = {place: match.to_record(format) for place, match in found.items()}
    return Verified(tensors=tensors, parity=parity, findings=findings)


def compare(
    reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], format: str
) -> dict[str, float]:
    """Return the parity of outputs, {name: (n, ...)}, the worst over them, or raise.

    >>> logits = {"out": np.array([[1.0, 0.0], [0.0, 1.0]])}
    >>> compare(logits, logits, "float32")["agreement"]
    1.0
    >>> compare(logits, {"out": logits["out"][:, ::-1]}, "float32")
    Traceback (most recent call last):
    ...
    secateur.errors.SecateurError: outputs differ from the model's (largest difference 1 ...
    """
    allowed, parity = TOLERANCES[format], {"largest": 0.0, "relative_rms": 0.0, "agreement": 1.0}
    for name, expected in reference.items():
        given = outputs[name]
        if given.shape != expected.shape or not np.isfinite(given).all():
            raise SecateurError(
                f"output {name} of shape {given.shape} received"
                f"{'' if np.isfinite(given).all() else ' with NaN or infinity in it'}, expected "
                f"{expected.shape}, finite; fix: convert the model again"
            )
        difference = np.abs(given.astype(np.float64) - expected)
        rms = np.sqrt(np.mean(np.square(difference)))
        spread, size = float(np.std(expected)), float(np.abs(expected).max())
        parity["largest"] = max(parity["largest"], difference.max() / (size or 1.0))
        parity["relative_rms"] = max(parity["relative_rms"], rms / (spread or size or 1.0))
        if expected.ndim > 1 and expected.shape[-1] > 1:
            same = np.mean(given.argmax(-1) == expected.argmax(-1))
            parity["agreement"] = min(parity["agreement"], same)
    parity = {name: float(value) for name, value in parity.items()}
    if (
        parity["largest"] > allowed.largest
        or parity["relative_rms"] > allowed.rms
        or parity["agreement"] < allowed.agreement
    ):
        raise SecateurError(
            f"outputs differ from the model's (largest difference {parity['largest']:.2g} of the "
            f"largest output, rms {parity['relative_rms']:.2g}, agreement "
            f"{parity['agreement']:.3f}), expected at most {allowed.largest:g}, {allowed.rms:g} and "
            f"at least {allowed.agreement:g} for {format}; fix: choose another format"
        )
    return parity


def _compared(session: Session, model: Any, format: str, data: Any) -> dict[str, float]:
    """Parity with the model at batch n, and of batch 1 with batch n."""
    if data is None:
        samples = conversion.random_inputs(model, SAMPLES // 4)
    elif isinstance(data, Mapping):
        samples = {name: array[:SAMPLES] for name, array in data.items()}
    else:
        samples = {session.input_names[0]: np.asarray(data)[:SAMPLES]}
    n = len(next(iter(samples.values())))
    reference = _by_output(KerasSession(model), samples, BATCH)
    outputs = _by_output(session, samples, BATCH)
    if not session.resizable:
        raise SecateurError(
            "the file runs at one batch size only, expected every size; fix: replace the layer "
            "that fixes the batch size (a reshape across it)"
        )
    if session.output_names != tuple(reference):
        outputs = {name: outputs[name] for name in reference if name in outputs} or outputs
    parity = compare(reference, outputs, format)
    few = {name: array[:3] for name, array in samples.items()}
    alone = _by_output(session, few, 1)
    compare({name: array[:3] for name, array in outputs.items()}, alone, format)
    return {**parity, "n": n}
