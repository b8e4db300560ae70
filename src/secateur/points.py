"""One point of a sweep, computed: the dense network it starts from, what is done to it, what it gives.

Plain functions from data to plain records; nothing here knows a store, a lock or another process.
The test part is taken away before anything is trained or chosen, and read once, at the end.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import math
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from secateur import datasets
from secateur.artifact import versions
from secateur.compression import Stage, copy_model, run_step, snapshot_for
from secateur.datasets import Data, Split
from secateur.errors import SecateurError
from secateur.exporting import export
from secateur.grids import Point, fingerprint
from secateur.measurement import measure, score
from secateur.recipe import Export
from secateur.pipeline import PARITY_INPUTS, resolve_model
from secateur.run_folder import fingerprint as model_fingerprint
from secateur.run_folder import machine, plain
from secateur.runtimes.keras import KerasSession
from secateur.training import Progress, Snapshot, compiled_loss, train
from secateur.weights import weight_table

FORMAT_VERSION = 1
BATCH = 1000  # images a forward pass: large batches keep matrix products busy


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The network and the data of some points, as they are before anything is trained.

    untrained: a built-in network, which each seed trains from its own start.
    """

    model: Any = field(repr=False)
    name: str
    data: Data = field(repr=False)
    untrained: bool

    @classmethod
    def of(cls, point: Point, model: Any, data: Data) -> Subject:
        """The network that a point names, or `model`, and the data folded to what it takes."""
        built, name, untrained = resolve_model(model, point.recipe, data)
        if len(built.inputs) != 1 or len(built.outputs) != 1:
            raise SecateurError(
                f"model {name!r} has {len(built.inputs)} inputs and {len(built.outputs)} outputs, "
                "expected one of each; fix: sweep over a model with a single output"
            )
        fitted = datasets.fit_to(data, built.input_shape[1:], built.output_shape[1:])
        return cls(model=built, name=name, data=fitted, untrained=untrained)

    def identity(self, point: Point) -> str:
        """A fingerprint of what the points of one dense network share."""
        early = snapshot_for(point.recipe, 0)
        recipe = dataclasses.replace(
            point.recipe, steps=(), export=Export(), name="dense", description=""
        )
        found = model_fingerprint(
            recipe, self.data, self.model, self.name, untrained=self.untrained
        )
        return fingerprint(found, None if early is None else early.epoch)


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
    with _clock() as took:
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
        "seconds": took,
        "validation": _evaluated(model, subject.data.validation)[0],
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
    model = copy_model(subject.model)
    model.set_weights(dense.weights)
    before = {w.path: w.read() for w in weight_table(model) if w.role in ("kernel", "embedding")}
    data = dataclasses.replace(subject.data, test=None)
    with _clock() as took:
        stage = _carried_out(point, model, subject, dense, data, progress)
        zeros = _zeros(stage.model, before)
    found = _record(point, identity, subject)
    found["sparsity"] |= zeros.pop("sparsity")
    found |= zeros
    found["epochs"] = _epochs(point, dense)
    found["history"] = {
        "dense": dense.record["history"],
        "after": {} if stage.history is None else stage.history.metrics,
    }
    found["notes"] = list(stage.notes)
    found["validation"] = _evaluated(stage.model, subject.data.validation)[0]
    found |= _files(point, stage, subject, folder, imports)
    found["test"] = _test(stage.model, subject.data.test)
    found["seconds"] = took
    return plain(found)


def unfinished(
    point: Point, identity: str, subject: Subject, error: BaseException
) -> dict[str, Any]:
    """The record of a point that could not be computed: its status and one line of cause."""
    told = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, SecateurError):
        told = f"{type(error).__name__}: {told}"
    found = _record(point, identity, subject)
    found["status"] = "impossible" if isinstance(error, Impossible) else "failed"
    return plain({**found, "error": told})


class Impossible(SecateurError):
    """A point that no computation can give, such as 99 % of two units."""


def _carried_out(
    point: Point, model: Any, subject: Subject, dense: Dense, data: Data, progress: Progress | None
) -> Stage:
    stage = Stage(name="baseline", method="train", model=model, early=dense.early)
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
    return stage


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


def _record(point: Point, identity: str, subject: Subject) -> dict[str, Any]:
    model = subject.model
    parameters = sum(math.prod(v.shape) for v in model.weights)
    return {
        "format_version": FORMAT_VERSION,
        "kind": "point",
        "fingerprint": fingerprint_of(point, identity),
        "grid": point.grid,
        "curve": point.curve,
        "seed": point.seed,
        "status": "done",
        "error": None,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": dict(point.settings),
        "recipe": point.recipe.to_record(),
        "model": {"name": subject.name, "parameters": parameters},
        "data": subject.data.describe(),
        "backend": keras.backend.backend(),
        "versions": versions(),
        "machine": machine(),
        "kind_of": kind_of(point),
        "sparsity": {"asked": asked(point), "realised": None, "layers": {}, "dead": None},
    }


def fingerprint_of(point: Point, identity: str) -> str:
    """A hash of everything that decides a point's result; `identity` is its dense network's."""
    scratch = None if point.scratch is None else dataclasses.asdict(point.scratch)
    recipe = {**point.recipe.to_record(), "name": "", "description": ""}
    return fingerprint(identity, recipe, scratch, point.files)


def kind_of(point: Point) -> str:
    """What is removed: "weights" or "units"; "scratch" for a small network, "dense" for nothing."""
    if point.scratch is not None:
        return "scratch"
    methods = [step.method for step in point.recipe.steps]
    pruning = [m for m in methods if "zeros" in m.makes]
    if not pruning or asked(point) == 0:
        return "dense"
    units = any(m.kind == "units" or getattr(m, "pattern", None) == "units" for m in pruning)
    return "units" if units else "weights"


def asked(point: Point) -> float:
    """The sparsity that a point asks for: of its last step that has one, 0 without any."""
    if point.scratch is not None:
        return point.scratch.sparsity
    found = [getattr(step.method, "sparsity", None) for step in point.recipe.steps]
    return float(next((s for s in reversed(found) if s is not None), 0.0))


def _epochs(point: Point, dense: Dense) -> dict[str, int]:
    after = sum(point.recipe.epochs_of(step) for step in point.recipe.steps)
    before = int(dense.record["epochs"])
    return {"dense": before, "after": after, "total": before + after}


def _evaluated(model: Any, split: Split | None) -> tuple[dict[str, Any] | None, Any]:
    if split is None or split.y is None:
        return None, None
    outputs = KerasSession(model).predict(split.x, batch=BATCH)
    return {"n": len(split), **score(outputs, split.y)}, outputs


def _test(model: Any, split: Split | None) -> dict[str, Any] | None:
    found, outputs = _evaluated(model, split)
    if found is None or split is None or "accuracy" not in found:
        return found
    labels = split.y if split.y.ndim == 1 else split.y.argmax(-1)
    many = outputs.ndim > 1 and outputs.shape[-1] > 1
    right = outputs.argmax(-1) == labels if many else (outputs.reshape(-1) > 0.5) == labels
    packed = base64.b64encode(zlib.compress(np.packbits(right).tobytes(), 9)).decode()
    return {**found, "right": packed, "read_in": "keras"}


def _files(
    point: Point, stage: Stage, subject: Subject, folder: Path | None, imports: Sequence[str]
) -> dict[str, Any]:
    """Rows of the files that the point writes, measured in their runtime."""
    if not point.files or folder is None:
        return {"rows": [], "file": None, "latency": None}
    split = subject.data.validation or subject.data.train
    calibration = subject.data.calibration
    artifacts = export(
        stage.model,
        point.recipe.export.formats,
        folder,
        stage=stage.name,
        promises=stage.promises,
        data=None if split is None else split.x[:PARITY_INPUTS],
        imports=imports,
        calibration=None if calibration is None else calibration.x,
        **point.recipe.export.settings(),
    )
    rows = []
    for artifact in artifacts:
        measured = measure(artifact.path, subject.data, latency=False).to_record()
        measured |= {"path": artifact.path.name, "format": artifact.format}
        row = f"{artifact.stage}-{artifact.format}"
        rows.append({**measured, "row": row, "stage": artifact.stage})
    first = next((r for r in rows if r["path"].endswith(".tflite")), rows[0] if rows else None)
    file = None
    if first is not None:
        file = {key: first[key] for key in ("format", "bytes", "gzip_bytes", "path")}
        file["of"] = "this network"
    return {"rows": rows, "file": file, "latency": None}


@contextmanager
def _clock() -> Iterator[dict[str, float]]:
    """Wall and CPU seconds of the block, filled in when it ends."""
    took = {"wall": 0.0, "cpu": 0.0}
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield took
    finally:
        took["wall"] = round(time.perf_counter() - wall, 3)
        took["cpu"] = round(time.process_time() - cpu, 3)
