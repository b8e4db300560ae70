"""Which weights hurt: one alone is pruned or quantized, and the model asked again on validation data.

The weights of a copy are written, measured and put back in place, so one compiled prediction serves
every point. Records are plain; `secateur.reporting.sensitivity` draws them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from secateur.arrays import affine, criteria, patterns
from secateur.arrays.layout import canonical, restore
from secateur.arrays.masks import apply_mask
from secateur.arrays.ranking import Ranked
from secateur.arrays.schedules import Schedule
from secateur.capture import Evidence, batches_of, evidence, without_gradients
from secateur.compression import copy_model
from secateur.datasets import Data, Split, fit_to, load
from secateur.errors import SecateurError
from secateur.measurement import answers
from secateur.methods.prune import Prune
from secateur.outputs import asked, compiled_loss
from secateur.runtimes.keras import KerasSession, leaves, meanings_of
from secateur.scoring import score
from secateur.training import infer_loss
from secateur.weights import Select, Weight, weight_table

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
BITS = (8, 4)
LAYER_SAMPLES = 128  # for the errors of single layers: outputs have many values for each sample

Record = dict[str, Any]
Progress = Callable[[str, int, int, str], None]  # label, done, total, text


def pruning_sensitivity(
    model: Any,
    data: Any,
    *,
    sparsities: Sequence[float] = SPARSITIES,
    method: Prune | None = None,
    select: Select | None = None,
    limit: int = 1000,
    seed: int = 0,
    outputs: str | None = None,
    progress: Progress | None = None,
) -> list[Record]:
    """Prune one weight alone at each sparsity, without training; how well the model still answers.

    Args:
        model: a Functional or Sequential model; it is not changed.
        data: whatever `load_data` takes. Its validation part is measured on, never the test part.
        sparsities: the ladder, fractions in [0, 1); an N:M pattern brings its own.
        method: criterion, pattern and `select` are taken from it; None: magnitude, single weights.
        select: which weights, instead of the method's; those that the pattern does not fit are left
            out, and `method.plan` says why.
        limit: validation samples, chosen by `seed`.
        seed: of the split, where `data` have no validation part yet, and of random criteria.
        outputs: "logits" or "probabilities", where neither the model nor its loss says what they are.
        progress: called as (label, done, total, text); what it raises ends the work.

    Returns the baseline (`path` None) and a record for each weight and sparsity: path, shape, size,
    sparsity, zeros, n, accuracy, loss, mse, `drop` of the accuracy against the baseline (a share: 0.1
    is ten points) and `output_error`, the RMS of the change of the model's outputs over their RMS.
    What the labels do not allow is None; without labels, or with several outputs, that is all but
    `output_error`. A drop below 1 / sqrt(n) is noise.

    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, name="d")])
    >>> found = pruning_sensitivity(model, "digits", sparsities=(0.5,), limit=50)
    >>> [(r["path"], r["sparsity"], r["zeros"], r["n"]) for r in found]
    [(None, 0.0, 0, 50), ('d/kernel', 0.5, 320, 50)]
    """
    prototype = method or Prune(sparsity=max(SPARSITIES))
    if select is not None:
        prototype = dataclasses.replace(prototype, select=select)
    cut = patterns.pattern(prototype.pattern)
    if isinstance(cut, patterns.NofM) and tuple(sparsities) == SPARSITIES:
        sparsities = (cut.final,)
    ladder = sorted({_checked(prototype, sparsity) for sparsity in sparsities})
    if not ladder:
        raise SecateurError("sparsities=() received, expected fractions, as (0.5, 0.8)")
    trial = _Trial.of(model, data, limit, seed, outputs)
    table = weight_table(trial.model)
    weights = {path: table[path] for path in prototype.plan(table).changed}
    if not weights:
        raise SecateurError(
            f"pattern {patterns.describe(prototype.pattern)!r} fits none of the selected weights; "
            "`secateur inspect --recipe` says why"
        )
    seen = _evidence(prototype, trial, weights, compiled_loss(model))
    records = [trial.baseline("pruning") | {"sparsity": 0.0, "zeros": 0}]
    points = len(weights) * len(ladder)
    for weight in weights.values():
        value = weight.read()
        ranked = Ranked(
            path=weight.path,
            read=lambda value=value: value,
            axes=weight.axes,
            evidence=seen.get(weight.path, {}),
        )
        # Ranked once: only the cut moves along the ladder.
        by = criteria.criterion(prototype.criterion)
        scores = canonical(ranked.scores(by, value, seed), weight.axes)
        for sparsity in ladder:
            if progress is not None:
                progress("pruned alone", len(records) - 1, points, f"{weight.path} {sparsity:g}")
            keep = restore(np.asarray(cut(scores, sparsity)), weight.axes, value.shape)
            pruned = apply_mask(value, keep)
            records.append({
                **trial.record("pruning", weight, value, pruned),
                "sparsity": sparsity,
                "zeros": int(np.count_nonzero(pruned == 0)),
            })  # fmt: skip
    if progress is not None:
        progress("pruned alone", points, points, "")
    return records


def quantization_sensitivity(
    model: Any,
    data: Any,
    *,
    bits: Sequence[int] = BITS,
    select: Select | None = None,
    limit: int = 1000,
    seed: int = 0,
    outputs: str | None = None,
    progress: Progress | None = None,
) -> list[Record]:
    """Round one weight alone to the grid that files use, in float arithmetic; what it costs.

    Symmetric, a scale for each output of a kernel and for each row of an embedding ("per output",
    "per row": `scale`); activations stay in float. Files keep 8 bits where an operator has no kernel
    for 4 (a depthwise convolution). Arguments as in `pruning_sensitivity`; select: kernels and
    embeddings, frozen ones too, unless given.

    Returns the baseline and a record for each weight and number of bits, with what
    `pruning_sensitivity` says of accuracy and outputs, and three errors, each an RMS of the
    difference over an RMS of the float values: `error` of the weight (`sqnr_db`: the same as a
    signal-to-noise ratio, None where nothing was lost), `layer_error` of the output of `layer` when
    it is given what it gets in the float model, on the first 128 of the samples (None where its
    call cannot be seen), and `output_error` of the model's.

    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, name="d")])
    >>> found = quantization_sensitivity(model, "digits", bits=(8,), limit=50)
    >>> found[1]["path"], found[1]["scale"], found[1]["error"] < 0.01 < found[1]["sqnr_db"]
    ('d/kernel', 'per output', True)
    """
    widths = sorted(set(bits), reverse=True)
    if not widths:
        raise SecateurError("bits=() received, expected whole numbers from 2 to 16, as (8, 4)")
    for width in widths:
        affine.symmetric_scales(np.zeros(1), width, ())  # refuse it before the model is copied
    trial = _Trial.of(model, data, limit, seed, outputs)
    table = weight_table(trial.model)
    reasons = (select or Select(frozen=True)).reasons(table)
    weights = [table[path] for path, reason in reasons.items() if reason is None]
    for weight in weights:
        weight.require_finite()

    def rounded(weight: Weight, width: int) -> np.ndarray:
        return affine.fake_quantized(weight.read(), width, _scaled_axes(weight))

    layer_errors = _layer_errors(trial, weights, widths, rounded)
    records = [trial.baseline("quantization") | {"bits": None, "scale": None}]
    points = len(weights) * len(widths)
    for weight in weights:
        value = weight.read()
        for width in widths:
            if progress is not None:
                text = f"{weight.path} {width} bits"
                progress("quantized alone", len(records) - 1, points, text)
            changed = rounded(weight, width)
            error = affine.relative_rms(changed, value)
            records.append({
                **trial.record("quantization", weight, value, changed),
                "bits": int(width),
                "scale": "per row" if weight.role == "embedding" else "per output",
                "error": error,
                "sqnr_db": affine.decibels(error),
                "layer_error": layer_errors.get((weight.path, width)),
            })  # fmt: skip
    if progress is not None:
        progress("quantized alone", points, points, "")
    return records


@dataclass(frozen=True)
class _Trial:
    """A copy to try things on, the samples it is asked, and what it answered untouched."""

    model: Any
    session: KerasSession
    data: Data
    samples: Split
    outputs: Any
    quality: Mapping[str, float | None]
    meaning: str | None

    @classmethod
    def of(cls, model: Any, data: Any, limit: int, seed: int, word: str | None) -> _Trial:
        asked(word)
        if limit < 1:
            raise SecateurError(f"limit={limit!r} received, expected 1 sample or more")
        found = load(data, seed=seed)
        validation = found.validation
        if validation is None:
            raise SecateurError(
                f"data {found.name} without a validation part received, expected one: layers are "
                "compared on it, not on the test part; fix: give training samples, and "
                "validation_split above 0"
            )
        copy = copy_model(model)
        session = KerasSession(copy)
        found = fit_to(found, session.input_shape, session.output_shape)
        validation = found.validation or validation
        rows = np.sort(np.random.default_rng(seed).permutation(len(validation))[:limit])
        samples = Split(validation.x[rows], None if validation.y is None else validation.y[rows])
        outputs = answers(session, samples.x, model.name)
        meaning = word or next(iter(meanings_of(model).values()))
        quality = _quality(outputs, samples.y, meaning)
        return cls(copy, session, found, samples, outputs, quality, meaning)

    def baseline(self, kind: str) -> Record:
        return self._record(kind, None, self.quality, 0.0)

    def record(self, kind: str, weight: Weight, value: Any, changed: Any) -> Record:
        """The record of one weight written as `changed`; the copy holds `value` again afterwards."""
        with _written(weight, value, changed):
            outputs = self.session.predict(self.samples.x)
        worst = _output_error(outputs, self.outputs)
        return self._record(kind, weight, _quality(outputs, self.samples.y, self.meaning), worst)

    def _record(
        self, kind: str, weight: Weight | None, quality: Mapping[str, Any], error: float | None
    ) -> Record:
        before, after = self.quality["accuracy"], quality["accuracy"]
        return {
            "kind": kind,
            "path": None if weight is None else weight.path,
            "layer": None if weight is None else weight.layer,
            "shape": None if weight is None else list(weight.shape),
            "size": None if weight is None else weight.size,
            "n": len(self.samples),
            **quality,
            "drop": None if before is None or after is None else before - after,
            "output_error": error,
        }


@contextlib.contextmanager
def _written(weight: Weight, value: Any, changed: Any) -> Iterator[None]:
    try:
        weight.variable.assign(changed)
        yield
    finally:
        weight.variable.assign(value)


def _quality(outputs: Any, y: np.ndarray | None, meaning: str | None) -> dict[str, float | None]:
    """Accuracy, loss and squared error, None where labels or outputs do not allow them."""
    found: dict[str, float] = {}
    # A weight may be so bad for a model that its outputs overflow; JSON has no such number.
    if y is not None and isinstance(outputs, np.ndarray) and np.isfinite(outputs).all():
        found = score(outputs, y, meaning)
    accuracy = found.get("accuracy", found.get("label_accuracy"))
    numbers = {"accuracy": accuracy, "loss": found.get("loss"), "mse": found.get("mse")}
    return {k: v if v is not None and np.isfinite(v) else None for k, v in numbers.items()}


def _output_error(outputs: Any, before: Any) -> float | None:
    """The largest over the outputs; None where one has no finite answer, or had none but zeros."""
    pairs = [(outputs, before)]
    if isinstance(before, Mapping):
        pairs = [(outputs[name], before[name]) for name in before]
    errors = [affine.relative_rms(after, reference) for after, reference in pairs]
    numbers = [error for error in errors if error is not None and np.isfinite(error)]
    return max(numbers) if len(numbers) == len(errors) else None


def _checked(prototype: Prune, sparsity: float) -> float:
    """The sparsity, refused as `Prune` itself refuses it."""
    one = dataclasses.replace(
        prototype, sparsity=sparsity, schedule=Schedule(), allocation="uniform", rewind=None
    )
    return one.final


def _evidence(
    prototype: Prune, trial: _Trial, weights: Mapping[str, Weight], loss: Any
) -> Mapping[str, Evidence]:
    """What the criterion wants of training data, all of it before the first weight is written."""
    needs = criteria.needs(criteria.criterion(prototype.criterion))
    train = trial.data.train
    if not prototype.needs_data or train is None:
        return evidence(trial.model, weights, needs, None)
    if loss is None and train.y is not None and {"gradient", "squared_gradient"} & set(needs):
        loss = infer_loss(trial.model, train.x, train.y, trial.meaning)
    return evidence(trial.model, weights, needs, batches_of(train.x, train.y), loss)


def _scaled_axes(weight: Weight) -> tuple[int, ...]:
    """The axes along which files give each entry a scale: outputs, or the rows that are looked up."""
    return (0,) if weight.role == "embedding" else weight.axes.outputs


def _layer_errors(
    trial: _Trial,
    weights: Sequence[Weight],
    widths: Sequence[int],
    rounded: Callable[[Weight, int], np.ndarray],
) -> dict[tuple[str, int], float | None]:
    """(path, bits) -> relative RMS of its layer's outputs, on the inputs that the float model gives it."""
    by_layer: dict[int, list[Weight]] = {}
    layers = leaves(trial.model)
    for weight in weights:
        # The whole layer, not the owner of the weight: a recurrent cell runs inside a loop, where
        # nothing can be read.
        home = next((one for one in layers if _holds(one, weight)), None)
        if home is not None:
            by_layer.setdefault(id(home), []).append(weight)
    sums: dict[tuple[str, int], list[float]] = {}

    def compare(key: int, call: Callable[[], Any], outputs: Any) -> None:
        before = _floats(outputs)
        for weight in by_layer[key]:
            value = weight.read()
            for width in widths:
                with _written(weight, value, rounded(weight, width)):
                    after = _floats(call())
                total = sums.setdefault((weight.path, width), [0.0, 0.0])
                for new, old in zip(after, before, strict=True):
                    total[0] += float(np.square(new - old).sum())
                    total[1] += float(np.square(old).sum())

    watched = [one for one in layers if id(one) in by_layer]
    with _watching(watched, compare), without_gradients():
        for x, _ in batches_of(trial.samples.x[:LAYER_SAMPLES], None):
            trial.model(x, training=False)
    return {key: affine.ratio(*total) for key, total in sums.items()}


@contextlib.contextmanager
def _watching(layers: Sequence[Any], see: Callable[[int, Callable, Any], None]) -> Iterator[None]:
    """Show every call of the layers, as something to call again, and what it returned."""

    def watching(key: int, call: Callable) -> Callable:
        def watched(*args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs)
            see(key, lambda: call(*args, **kwargs), outputs)
            return outputs

        return watched

    for layer in layers:
        layer.__dict__["call"] = watching(id(layer), layer.call)  # past Keras's tracking
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("call", None)


def _holds(layer: Any, weight: Weight) -> bool:
    return any(variable is weight.variable for variable in layer.variables)


def _floats(outputs: Any) -> list[np.ndarray]:
    arrays = [ops.convert_to_numpy(tensor) for tensor in keras.tree.flatten(outputs)]
    return [np.asarray(array, np.float64) for array in arrays if array.dtype.kind != "b"]
