"""A file is held against the model it came from: run at batch 1 and n, compared, its promises checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from secateur import conversion
from secateur.errors import SecateurError
from secateur.locating import located
from secateur.measurement import answers
from secateur.promises import Finding, Promise, require
from secateur.runtimes import Session, runtime_for
from secateur.runtimes.keras import KerasSession, signature


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
    # Weights and activations rounded to 8 bits: rms 0.016, agreement 0.95 at worst over networks
    # trained and not, but 0.33 and 0.89 on a MobileNet after a few steps, which answers nearly the
    # same to everything. Permuted classes or a wrong tensor give an rms above 1. What rounding
    # costs is for the accuracy to say; here it is told from a file that computes something else.
    "dynamic": Tolerance(largest=1.0, rms=0.5, agreement=0.8),
    "int8": Tolerance(largest=1.0, rms=0.5, agreement=0.8),
    "int16x8": Tolerance(largest=1.0, rms=0.15, agreement=0.8),
    # As their namesakes; "onnx-dynamic" takes the range of each tensor over the whole batch.
    "onnx": Tolerance(largest=1e-4, rms=None, agreement=0.99),
    "onnx-dynamic": Tolerance(largest=1.0, rms=0.5, agreement=0.8),
    "onnx-int8": Tolerance(largest=1.0, rms=0.5, agreement=0.8),
    # 15 levels for a weight.
    "int4": Tolerance(largest=1.0, rms=0.5, agreement=0.6),
}

# Formats whose activations are coded by a range over the whole batch.
BATCH_RANGES = {"onnx-dynamic"}
# Formats whose activations are coded by ranges of data: noise would leave them, and prove nothing.
DATA_RANGES = {"int8", "int16x8", "onnx-int8"}

# Two steps of a coded output are excused where the codes resolve it: that many between 0 and its
# largest value, or the step that an operator has by its nature (SOFTMAX and LOGISTIC, TANH). Else
# calibration may have been on data of another range, and the excuse ends at a part of the spread.
RESOLVED, FIXED_STEPS, EXCUSED = 64, (1 / 256, 1 / 128), 0.5

NOT_COMPARED = (
    "run on random inputs, not compared on data: give data= (--data) like those of training"
)

# Samples for the comparison, and how many at a time: enough for a share, little for the memory.
SAMPLES, BATCH = 256, 32
# Input values at a time: of large images few fit, for their activations take the memory.
VALUES = 1 << 20

# Whether classes changed places is looked at where there are enough samples to tell them apart,
# and not so many classes that a table of all pairs does not fit.
ROWS, CLASSES = 16, 2000


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What `verify` found: the tensor of each weight, the parity of outputs, checked promises.

    parity: {} where there was nothing to compare on; notes say why.
    """

    tensors: Mapping[str, Mapping[str, Any]]
    parity: Mapping[str, float]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()


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
        parity, notes = _compared(session, model, format, data)
        found = located(session.constants(), model, {p.path for p in promises if p.kind != "bits"})
        findings = tuple(found[promise.path].check(promise, format) for promise in promises)
        require(findings)
    except SecateurError as error:
        told = str(error)
        raise SecateurError(told if str(path) in told else f"{path}: {told}") from error
    tensors = {place: match.to_record(format) for place, match in found.items()}
    return Verified(tensors=tensors, parity=parity, findings=findings, notes=notes)


def compare(
    reference: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    format: str,
    steps: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return the parity of outputs, {name: (n, ...)}, the worst over them, or raise.

    steps: distance between neighbouring values of an output that is coded. Two of them are not held
    against the file (`excused`); the figures returned are those of the whole difference.

    >>> logits = {"out": np.array([[1.0, 0.0], [0.0, 1.0]])}
    >>> compare(logits, logits, "float32")["agreement"]
    1.0
    >>> compare(logits, {"out": logits["out"][:, ::-1]}, "float32")
    Traceback (most recent call last):
    ...
    secateur.errors.SecateurError: outputs differ from the model's (largest difference 1 ...
    """
    allowed, parity = TOLERANCES[format], {"largest": 0.0, "relative_rms": 0.0, "agreement": 1.0}
    n, alike, beyond = len(next(iter(reference.values()))), 1.0, 0.0  # what no code excuses
    if missing := sorted(set(reference) - set(outputs)):
        raise SecateurError(
            f"outputs {', '.join(outputs)} received, expected {', '.join(missing)} among them; "
            "fix: export the model again"
        )
    for name, expected in reference.items():
        given = outputs[name]
        if given.shape != expected.shape or not np.isfinite(given).all():
            raise SecateurError(
                f"output {name} of shape {given.shape} received"
                f"{'' if np.isfinite(given).all() else ' with NaN or infinity in it'}, expected "
                f"{expected.shape}, finite; fix: convert the model again"
            )
        difference = np.abs(given.astype(np.float64) - expected)
        unseen = excused((steps or {}).get(name, 0.0), expected)
        spread, size = float(np.std(expected)), float(np.abs(expected).max())
        parity["largest"] = max(parity["largest"], difference.max() / (size or 1.0))
        for_all, for_rest = (
            np.sqrt(np.mean(np.square(d))) / (spread or size or 1.0)
            for d in (difference, np.maximum(difference - unseen, 0.0))
        )
        parity["relative_rms"], beyond = max(parity["relative_rms"], for_all), max(beyond, for_rest)
        if expected.ndim > 1 and expected.shape[-1] > 1:
            chosen = np.take_along_axis(expected, given.argmax(-1)[..., None], -1)[..., 0]
            short = expected.max(-1) - chosen - 1e-6 * size  # of equal outputs any will do
            parity["agreement"] = min(parity["agreement"], np.mean(short <= 0))
            alike = min(alike, np.mean(short <= unseen))
    if told := exchanged(reference, outputs):
        raise SecateurError(
            f"{told} received, expected the model's order; fix: export the model again, or give "
            "the last layer its order"
        )
    parity = {name: float(value) for name, value in parity.items()}
    if (
        parity["largest"] > allowed.largest
        or (allowed.rms is not None and beyond > allowed.rms)
        or (1 - alike) * n > (1 - allowed.agreement) * n + 2
    ):
        raise SecateurError(
            f"outputs differ from the model's (largest difference {parity['largest']:.2g} of the "
            f"largest output, rms {parity['relative_rms']:.2g}, agreement "
            f"{parity['agreement']:.3f} over {n} samples), expected {allowed} for {format}; "
            "fix: export again, or choose another format"
        )
    return parity


def excused(step: float, expected: np.ndarray) -> float:
    """How far a coded output may be off because of its step alone.

    >>> logits = np.array([[-20.0, 20.0]])
    >>> excused(0.1, logits), excused(30.0, logits)  # codes for outputs 200 times as large
    (0.2, 10.0)
    """
    resolved = RESOLVED * step <= float(np.abs(expected).max(initial=0)) or step in FIXED_STEPS
    return 2 * step if resolved else min(2 * step, EXCUSED * float(np.std(expected)))


def exchanged(reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> str:
    """Which outputs, or classes of one, come in another's place, in words; "" where none do.

    Two of ten classes can change places within the tolerance of 8 bits. Noise cannot look like it:
    what an output does from sample to sample would have to be another's.

    >>> a = np.arange(32.0)
    >>> exchanged({"out": np.stack([a, a % 3], 1)}, {"out": np.stack([a % 3, a], 1)})
    'output out with class 1 in the place of 0, 0 in the place of 1'
    """
    for name, expected in reference.items():
        for other, rival in reference.items():
            if other != name and rival.shape == expected.shape:
                columns = [a.reshape(-1, 1) for a in (outputs[name], expected, rival)]
                if _places(columns[0], np.concatenate(columns[1:], 1)) == {0: 1}:
                    return f"output {other} in the place of {name}"
    for name, expected in reference.items():
        if expected.ndim > 1 and 1 < expected.shape[-1] <= CLASSES:
            rows = [a.reshape(-1, expected.shape[-1]) for a in (outputs[name], expected)]
            if places := _places(*rows):
                told = [f"{b} in the place of {a}" for a, b in sorted(places.items())]
                more = f" and {len(told) - 4} others" if len(told) > 4 else ""
                return f"output {name} with class {', '.join(told[:4])}{more}"
    return ""


def _places(given: np.ndarray, expected: np.ndarray) -> dict[int, int]:
    """{column of `given`: the other column of `expected` that it is}, both (n, k); {} where none is.

    A constant and a factor are left out of it: where outputs hardly vary, or all vary alike, a
    rounded one lies as near to others as to its own.
    """
    if len(expected) < ROWS:
        return {}
    given, expected = (a - a.mean(0, dtype=np.float64) for a in (given, expected))
    power, products = np.square(expected).sum(0), given.T @ expected
    size = np.square(given).sum(0)[:, None]
    apart = size + power - 2 * products
    unlike = size - np.square(products) / np.where(power == 0, 1, power)  # times any factor
    rows, columns = linear_sum_assignment(apart)
    chosen, found = dict(zip(rows.tolist(), columns.tolist(), strict=True)), {}
    while chosen:
        first, column = chosen.popitem()
        cycle = {first: column}
        while column in chosen:
            cycle[column] = chosen.pop(column)
            column = cycle[column]
        own = np.mean([unlike[a, a] for a in cycle])
        others = np.mean([apart[a, b] for a, b in cycle.items()])
        if own > 0.25 * power.mean() and others < own / 9:
            found |= cycle
    return found


def _compared(
    session: Session, model: Any, format: str, data: Any
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Parity with the model at batch n, and notes on it; batch 1 must give what batch n gives."""
    live = KerasSession(model)
    if data is None:
        samples = conversion.random_inputs(model, SAMPLES // 4)
    else:
        given = data if isinstance(data, Mapping) else {live.input_names[0]: data}
        samples = {name: np.asarray(array)[:SAMPLES] for name, array in given.items()}
        for name, tensor in signature(model)[0].items():  # 8-bit pixels are values, not codes
            if name in samples and "float" in tensor.dtype:
                samples[name] = samples[name].astype(np.float32)
    largest = max(array[0].size for array in samples.values())
    batch = max(2, min(BATCH, VALUES // max(largest, 1)))
    outputs = _outputs(session, samples, batch)
    parity, notes = {}, (NOT_COMPARED,)
    if data is not None or format not in DATA_RANGES:
        reference, steps = _outputs(live, samples, batch), session.output_steps
        parity = {
            **compare(reference, outputs, format, steps),
            "n": len(next(iter(samples.values()))),
        }
        notes = _coarse(reference, steps)
    alone = _outputs(session, {name: array[:3] for name, array in samples.items()}, 1)
    if not session.resizable:
        raise SecateurError(
            "the file runs at one batch size only, expected every size; fix: replace the layer "
            "that fixes the batch size (a reshape across it)"
        )
    # Ranges that are taken over a batch make its samples depend on each other.
    alike = format if format in BATCH_RANGES else "float32"
    compare({name: array[:3] for name, array in outputs.items()}, alone, alike)
    return parity, notes


def _coarse(reference: Mapping[str, np.ndarray], steps: Mapping[str, float]) -> tuple[str, ...]:
    """Says so where an output's codes cannot tell the model's answers apart, though the file is sound."""
    return tuple(
        f"output {name}: its codes are {steps[name]:.2g} apart and the model's outputs spread by "
        f"{np.std(expected):.2g}: they hardly tell its answers apart, and the comparison says little"
        for name, expected in reference.items()
        if steps.get(name, 0.0) > np.std(expected)
    )


def _outputs(session: Session, samples: dict[str, np.ndarray], batch: int) -> dict[str, np.ndarray]:
    outputs = answers(session, samples, session.name, batch=batch)
    return outputs if isinstance(outputs, dict) else {session.output_names[0]: outputs}
