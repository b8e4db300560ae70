"""One point of a sweep, computed: the dense network it starts from, what is done to it, what it gives.

Plain functions from data to plain records; nothing here knows a store, a lock or another process.
The test part is taken away before anything is trained or chosen, and read once, at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from secateur.arrays.masks import zeros_count
from secateur.artifact import plain
from secateur.capture import batches_of
from secateur.compression import Stage, copy_model, run_step, snapshot_for, specified
from secateur.datasets import Data, Split
from secateur.dense_chain import chain, dead_weights, is_chain, narrow, require_units
from secateur.errors import Impossible
from secateur.exporting import export
from secateur.file_rows import file_row
from secateur.grids import Point, fingerprint
from secateur.measurement import answers
from secateur.methods.prune import Prune
from secateur.methods.units import PruneUnits
from secateur.one_shot import OneShotCurve, clock, judged
from secateur.outputs import compiled_loss
from secateur.pipeline import PARITY_INPUTS
from secateur.point_records import (
    asked,
    epochs_of,
    joined_histories,
    new_record,
    packed,
    shape_of,
    unfinished,
)
from secateur.runtimes.keras import KerasSession, signature
from secateur.scoring import score
from secateur.seeding import random_states_kept
from secateur.subjects import Subject
from secateur.training import Progress, Snapshot, train
from secateur.weights import weight_table

BATCH = 1000  # images a forward pass: large batches keep matrix products busy


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A trained dense network: its weights, its early point for rewinding, and its record."""

    weights: list[np.ndarray] = field(repr=False)
    record: Mapping[str, Any] = field(repr=False)
    early: Snapshot | None = field(default=None, repr=False)

    def to_arrays(self) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Arrays and a plain record that `from_arrays` reads."""
        early = self.early
        kept = [] if early is None else [early.weights or [], early.optimizer or []]
        counts = {"weights": len(self.weights), "early": [len(part) for part in kept]}
        epoch = None if early is None else early.epoch
        arrays = [*self.weights, *(array for part in kept for array in part)]
        return arrays, {**self.record, "arrays": counts, "early_epoch": epoch}

    @classmethod
    def from_arrays(cls, arrays: Sequence[np.ndarray], record: Mapping[str, Any]) -> Dense:
        """The network that `to_arrays` took apart."""
        count, early = record["arrays"]["weights"], None
        if record["early_epoch"] is not None:
            split = count + record["arrays"]["early"][0]
            early = Snapshot(record["early_epoch"])
            early.weights, early.optimizer = list(arrays[count:split]), list(arrays[split:])
        return cls(weights=list(arrays[:count]), record=record, early=early)


def train_dense(point: Point, subject: Subject, progress: Progress | None = None) -> Dense:
    """Train the dense network that a point starts from; one that came trained is taken as it is."""
    early = snapshot_for(point.recipe, 0)
    model = copy_model(subject.model)
    history: dict[str, list[float]] = {}
    with clock() as took:
        if subject.untrained:
            found = train(
                model,
                dataclasses.replace(subject.data, test=None),
                point.recipe.train,
                seed=1000 * point.seed,
                callbacks=[] if early is None else [early],
                progress=progress,
                label=f"dense, seed {point.seed}",
            )
            history = found.metrics
    record = {
        "epochs": point.recipe.train.epochs if subject.untrained else 0,
        "history": history,
        "seconds": _seconds(took),
        "validation": _evaluated(model, subject.data.validation, subject.meaning(point))[0],
    }
    return Dense(weights=model.get_weights(), record=plain(record), early=early)


def compute(
    point: Point,
    identity: str,
    subject: Subject,
    dense: Dense,
    *,
    folder: Path | None = None,
    imports: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return a point's record; folder: where its files go, None for none.

    Raises SecateurError where the point cannot be had (`Impossible`) or fails.
    """
    model = _started(point, subject, dense)
    before = {w.path: w.read() for w in weight_table(model) if w.role in ("kernel", "embedding")}
    data = dataclasses.replace(subject.data, test=None)
    with clock() as took:
        stage, history = _carried_out(point, model, subject, dense, data, progress)
        zeros = _zeros(stage.model, before)
    found = new_record(point, identity, subject)
    found["sparsity"] |= zeros.pop("sparsity")
    found |= zeros
    found["epochs"] = epochs_of(point, int(dense.record["epochs"]))
    found["history"] = {"dense": dense.record["history"], "after": history}
    found["notes"] = list(stage.notes)
    meaning = subject.meaning(point)
    found["validation"] = _evaluated(stage.model, subject.data.validation, meaning)[0]
    small = stage.model
    if found["kind_of"] == "units" and is_chain(small):
        found["sparsity"]["dead"] = dataclasses.asdict(dead_weights(small))
        # What a device would run: the network of the kept widths, whose outputs are the same.
        small = narrow(small)
    if found["kind_of"] == "scratch":
        left = sum(w.size for w in weight_table(small) if w.role == "kernel")
        every = sum(w.size for w in weight_table(subject.model) if w.role == "kernel")
        dead = {"incoming": None, "outgoing": None, "network": 1 - left / every}
        found["sparsity"]["dead"] = dead
    found["shape"] = shape_of(small)
    found |= _files(point, stage, small, subject, folder, imports)
    found["test"] = _test(stage.model, subject.data.test, meaning)
    # The dense network's own point carries what its training took.
    found["seconds"] = (
        dict(dense.record["seconds"]) if found["kind_of"] == "dense" else _seconds(took)
    )
    return plain(found)


def compute_group(
    group: Sequence[Point],
    identity: str,
    subject: Subject,
    dense: Dense,
    *,
    folder: Path | None = None,
    imports: Sequence[str] = (),
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Return the records of points that are computed together: several of one `one_shot_key`, or one.

    folder, imports, progress: of the point that stands alone, as for `compute`.
    """
    if one_shot_key(group[0], subject) is not None:
        return compute_one_shot(group, identity, subject, dense)
    (point,) = group
    record = compute(
        point, identity, subject, dense, folder=folder, imports=imports, progress=progress
    )
    return [record]


def one_shot_key(point: Point, subject: Subject) -> str | None:
    """What points that differ in their sparsity alone share, if forward passes are all they need.

    None where something trains, files are written, or BatchNorm statistics are taken anew.
    """
    steps = point.recipe.steps
    if len(steps) != 1 or point.files or not isinstance(steps[0].method, Prune | PruneUnits):
        return None
    method, settings = steps[0].method, point.recipe.train_of(steps[0])
    normalized = any(
        isinstance(layer, keras.layers.BatchNormalization)
        for layer in subject.model._flatten_layers()
    )
    if settings.epochs or getattr(method, "rewind", None) or normalized:
        return None
    plain_step = {**point.recipe.to_record()["steps"][0], "sparsity": None}
    return fingerprint(point.curve, point.seed, point.recipe.model, point.recipe.data, plain_step)


def compute_one_shot(
    group: Sequence[Point], identity: str, subject: Subject, dense: Dense
) -> list[dict[str, Any]]:
    """Return the records of points that `one_shot_key` puts together: ranked once, traced once."""
    model = copy_model(subject.model)
    model.set_weights(dense.weights)
    step = group[0].recipe.steps[0]
    train_part = subject.data.train
    samples = None
    if getattr(step.method, "needs_data", False) and train_part is not None:
        samples = batches_of(train_part.x, train_part.y)
    curve = OneShotCurve(
        model,
        step.method,
        [asked(point) for point in group],
        seed=group[0].seed,
        data=samples,
        loss=compiled_loss(subject.model),
        outputs=subject.meaning(group[0]),
    )
    read = {
        part: None if split is None or split.y is None else curve.evaluate(split.x, split.y)
        for part in ("validation", "test")
        for split in [getattr(subject.data, part)]
    }
    found = []
    for place, point in enumerate(group):
        parts = {part: None if got is None else got[place] for part, got in read.items()}
        given = parts["test"] or parts["validation"]
        error = None if given is None else given.error
        if error is not None:
            found.append(unfinished(point, identity, subject, Impossible(error)))
            continue
        found.append(plain(_one_shot_record(point, identity, subject, dense, parts)))
    return found


def _one_shot_record(
    point: Point, identity: str, subject: Subject, dense: Dense, parts: Mapping[str, Any]
) -> dict[str, Any]:
    found = new_record(point, identity, subject)
    given = parts["test"] or parts["validation"]
    if given is not None:
        dead = None if given.dead is None else dataclasses.asdict(given.dead)
        found["sparsity"] |= {"realised": given.realised, "layers": given.layers, "dead": dead}
        found["norm_removed"] = given.norm_removed
        found["shape"] = shape_of(subject.model, given.widths)
        found["seconds"] = {"wall": round(given.wall, 4), "cpu": round(given.cpu, 4)}
    for part, got in parts.items():
        found[part] = None
        if got is not None:
            found[part] = {"n": len(getattr(subject.data, part)), **got.metrics}
    if parts["test"] is not None and parts["test"].right is not None:
        found["test"] |= {"right": packed(parts["test"].right), "read_in": "keras"}
    found["epochs"] = epochs_of(point, int(dense.record["epochs"]))
    found["history"] = {"dense": dense.record["history"], "after": {}}
    return found | {"notes": [], "rows": [], "file": None, "latency": None}


def _started(point: Point, subject: Subject, dense: Dense) -> Any:
    """The network that a point acts on: the dense one's copy, or a small one with a start of its own."""
    model = copy_model(subject.model)
    if point.scratch is None:
        model.set_weights(dense.weights)
        return model
    kept = []
    for link in chain(model).links[:-1]:
        units = link.dense.units
        left = units - zeros_count(units, point.scratch.sparsity)
        require_units(link.kernel, left, units)
        kept.append(np.arange(units) < left)
    small = narrow(model, kept)
    with random_states_kept(1000 * point.seed):
        for link in chain(small).links:
            link.dense.kernel.assign(link.dense.kernel_initializer(link.dense.kernel.shape))
            if link.bias is not None:
                link.dense.bias.assign(link.dense.bias_initializer(link.dense.bias.shape))
    return small


def _carried_out(
    point: Point, model: Any, subject: Subject, dense: Dense, data: Data, progress: Progress | None
) -> tuple[Stage, dict[str, list[float | None]]]:
    """The last stage, and the history of all that was trained for it."""
    if point.scratch is not None:
        settings = dataclasses.replace(point.recipe.train, epochs=point.scratch.epochs)
        label = f"from scratch, seed {point.seed}"
        history = train(
            model, data, settings, seed=1000 * point.seed, progress=progress, label=label
        )
        stage = Stage(name="scratch", method="train", model=model, history=history)
        return stage, joined_histories([history.metrics])
    stage = Stage(name="baseline", method="train", model=model, early=dense.early)
    histories = []
    for number, name in enumerate(point.recipe.stage_names()):
        stage = run_step(
            model,
            point.recipe,
            number,
            data,
            name=name,
            before=stage,
            loss=compiled_loss(subject.model),
            progress=progress,
        )
        histories += [] if stage.history is None else [stage.history.metrics]
    return stage, joined_histories(histories)


def _zeros(model: Any, before: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Realised sparsity and the share of the weight norm that went, over all kernels."""
    layers, zeros, size, gone, norm = {}, 0, 0, 0.0, 0.0
    for weight in weight_table(model):
        if weight.path not in before:
            continue
        value, old = weight.read(), before[weight.path].astype(np.float64)
        zero = value == 0
        if zero.all():
            raise Impossible(
                f"no weight of {weight.path} {value.shape} is left, expected at least one; "
                "fix: a lower sparsity, or leave this layer out"
            )
        layers[weight.path] = float(zero.mean())
        zeros, size = zeros + int(zero.sum()), size + value.size
        gone, norm = gone + float((old[zero] ** 2).sum()), norm + float((old**2).sum())
    realised = zeros / size if size else 0.0
    return {
        "sparsity": {"realised": realised, "layers": layers},
        "norm_removed": gone / norm if norm else None,
    }


def _evaluated(
    model: Any, split: Split | None, meaning: str | None
) -> tuple[dict[str, Any] | None, Any]:
    if split is None or split.y is None:
        return None, None
    outputs = answers(KerasSession(model), split.x, model.name, batch=BATCH)
    return {"n": len(split), **score(outputs, split.y, meaning)}, outputs


def _test(model: Any, split: Split | None, meaning: str | None) -> dict[str, Any] | None:
    found, outputs = _evaluated(model, split, meaning)
    if found is None or split is None or split.y is None or "accuracy" not in found:
        return found
    return {
        **found,
        "right": packed(judged(outputs, split.y, meaning)["right"]),
        "read_in": "keras",
    }


def _files(
    point: Point,
    stage: Stage,
    model: Any,
    subject: Subject,
    folder: Path | None,
    imports: Sequence[str],
) -> dict[str, Any]:
    """Rows of the files that the point writes, measured in their runtime."""
    if not point.files or folder is None:
        return {"rows": [], "file": None, "latency": None}
    split = subject.data.validation or subject.data.train
    calibration = subject.data.calibration
    # A narrowed network has kernels of other shapes: per-layer widths are of the full one.
    specification = specified(point.recipe, [stage])
    formats = point.recipe.export.formats
    if specification is not None:
        formats = specification.formats(formats)
    artifacts = export(
        model,
        formats,
        folder,
        stage=stage.name,
        promises=stage.promises if model is stage.model else (),
        data=None if split is None else split.x[:PARITY_INPUTS],
        imports=imports,
        calibration=None if calibration is None else calibration.x,
        specification=specification if model is stage.model else None,
        outputs=dict.fromkeys(signature(model)[1], subject.meaning(point)),
        **point.recipe.export.settings(),
    )
    rows = [file_row(artifact, subject.data, latency=False) for artifact in artifacts]
    first = next((r for r in rows if r["path"].endswith(".tflite")), rows[0] if rows else None)
    file = None
    if first is not None:
        file = {key: first[key] for key in ("format", "bytes", "gzip_bytes", "path")}
        file["of"] = "this network"
    return {"rows": rows, "file": file, "latency": None}


def _seconds(took: Mapping[str, float]) -> dict[str, float]:
    return {key: round(value, 3) for key, value in took.items()}
