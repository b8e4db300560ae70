"""What a point of a sweep is recorded as: plain data, named by what decides them.

The same keys for every point; what was not taken, or cannot be had, is None.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from secateur.artifact import plain, versions
from secateur.dense_chain import chain, is_chain
from secateur.errors import Impossible, SecateurError
from secateur.grids import Point, fingerprint
from secateur.methods.units import PruneUnits
from secateur.run_folder import machine
from secateur.subjects import Subject

FORMAT_VERSION = 1
# What a computed point has and one that could not be computed lacks.
TAKEN = (
    "epochs",
    "history",
    "norm_removed",
    "shape",
    "validation",
    "test",
    "file",
    "latency",
    "seconds",
)


def new_record(point: Point, identity: str, subject: Subject) -> dict[str, Any]:
    """What is known of a point before it is computed."""
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
        **dict.fromkeys(TAKEN),
        "notes": [],
        "rows": [],
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
    units = any(m.kind == PruneUnits.kind or getattr(m, "pattern", "") == "units" for m in pruning)
    return "units" if units else "weights"


def asked(point: Point) -> float:
    """The sparsity that a point asks for: of its last step that has one, 0 without any."""
    if point.scratch is not None:
        return point.scratch.sparsity
    found = [getattr(step.method, "sparsity", None) for step in point.recipe.steps]
    return float(next((s for s in reversed(found) if s is not None), 0.0))


def epochs_of(point: Point, before: int) -> dict[str, int]:
    """Gradient epochs of a point; before: of its dense network's training."""
    after = sum(point.recipe.epochs_of(step) for step in point.recipe.steps)
    if point.scratch is not None:
        before, after = 0, point.scratch.epochs
    return {"dense": before, "after": after, "total": before + after}


def joined_histories(
    histories: Sequence[Mapping[str, Sequence[float]]],
) -> dict[str, list[float | None]]:
    """The metrics of trainings that followed each other as one, None where one did not take it.

    >>> joined_histories([{"loss": [0.5, 0.4]}, {"loss": [0.3], "val_loss": [0.6]}])
    {'loss': [0.5, 0.4, 0.3], 'val_loss': [None, None, 0.6]}
    """
    names = dict.fromkeys(name for history in histories for name in history)
    found: dict[str, list[float | None]] = {name: [] for name in names}
    for history in histories:
        epochs = max(map(len, history.values()), default=0)
        for name in names:
            values = list(history.get(name, ()))
            found[name] += [*values, *[None] * (epochs - len(values))]
    return found


def unfinished(
    point: Point, identity: str, subject: Subject, error: BaseException
) -> dict[str, Any]:
    """The record of a point that could not be computed: its status and one line of cause."""
    told = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, SecateurError):
        told = f"{type(error).__name__}: {told}"
    found = new_record(point, identity, subject)
    found["status"] = "impossible" if isinstance(error, Impossible) else "failed"
    return plain({**found, "error": told})


def packed(right: np.ndarray) -> str:
    """One bit a sample, as text."""
    return base64.b64encode(zlib.compress(np.packbits(right).tobytes(), 9)).decode()


def shape_of(model: Any, widths: Sequence[int] | None = None) -> str:
    """A name for networks that cost the same: the widths of a chain, else the model's name."""
    if not is_chain(model):
        return model.name
    links = chain(model).links
    inner = [link.dense.units for link in links] if widths is None else list(widths)
    return "-".join(map(str, [links[0].dense.kernel.shape[0], *inner]))
