"""Magnitude (or random, or your own) pruning: gradual while training, or in one shot."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from secateur.arrays.criteria import Criterion, criterion
from secateur.arrays.masks import apply_mask, unstructured, zeros_count
from secateur.arrays.schedules import Schedule, Timetable
from secateur.errors import SecateurError
from secateur.plan import Plan, plan_selection
from secateur.project import Projection, ProjectionCallback
from secateur.weights import Select, Weight, WeightTable, weight_table


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Set the least important weights of each selected tensor to zero and hold them there.

    sparsity: the fraction of zeros to end at, in [0, 1). schedule: when and how fast
    (default: the cubic of Zhu & Gupta 2017, arXiv:1710.01878, over the whole training).
    criterion: "l1" (magnitude, Han et al. 2015, arXiv:1506.02626), "random", or a function
    (weight, rng) -> scores. select: which weights.

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, name="d")])
    >>> model.compile("sgd", "mse")
    >>> x, y = np.ones((8, 4)), np.ones((8, 5))
    >>> _ = model.fit(x, y, verbose=0, callbacks=[Prune(sparsity=0.8).callback()])
    >>> int((model.layers[0].kernel.numpy() == 0).sum())
    16
    """

    kind: ClassVar[str] = "prune"
    stage: ClassVar[str] = "pruned"
    makes: ClassVar[frozenset[str]] = frozenset({"zeros"})
    keeps: ClassVar[frozenset[str]] = frozenset({"zeros", "shape"})

    sparsity: float
    schedule: Schedule = field(default_factory=Schedule)
    criterion: str | Criterion = "l1"
    select: Select = field(default_factory=Select)

    def __post_init__(self) -> None:
        zeros_count(0, self.sparsity)
        if self.sparsity == 1.0:
            raise SecateurError("sparsity 1.0 leaves no weight; give a fraction below 1, as 0.9")
        if self.schedule.initial > self.sparsity:
            raise SecateurError(
                f"the schedule starts at {self.schedule.initial:g}, above the final sparsity "
                f"{self.sparsity:g}; lower `initial`"
            )
        criterion(self.criterion)

    def plan(self, table: WeightTable, *, zeros: Collection[str] = ()) -> Plan:
        """Which weights become sparse, and why the others do not."""
        name = _name(self.criterion)
        how = f"{100 * self.sparsity:g} % zeros, {name}, unstructured, {_name(self.schedule.shape)}"
        return plan_selection(self.kind, self.select, table, how)

    def callback(
        self, *, seed: int = 0, zeros: Mapping[str, np.ndarray] | None = None
    ) -> PruneCallback:
        """A callback for your own `model.fit`; the model's class, names and file stay as they are."""
        return PruneCallback(self, seed=seed, zeros=zeros)

    def apply(
        self, model: Any, *, seed: int = 0, zeros: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Prune at once to the final sparsity, without training (in place); the masks, True = kept."""
        table = weight_table(model)
        changed = [(w, w.read()) for w in _selected(self, table)]
        kept = [
            self.mask(w.path, v, self.sparsity, seed, (zeros or {}).get(w.path)) for w, v in changed
        ]
        for (weight, value), keep in zip(changed, kept, strict=True):
            weight.variable.assign(apply_mask(value, keep))
        return {w.path: keep for (w, _), keep in zip(changed, kept, strict=True)}

    def mask(
        self, path: str, value: np.ndarray, sparsity: float, seed: int, zeros: np.ndarray | None
    ) -> np.ndarray:
        """Bool array, True = keep: the mask of one weight at `sparsity`; `zeros` stay zero."""
        # The same stream at every update: random masks only ever grow.
        rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
        scores = np.asarray(criterion(self.criterion)(value, rng))
        if scores.shape != value.shape:
            raise SecateurError(
                f"the criterion returned scores of shape {scores.shape} for {path}, "
                f"expected {value.shape}, one for each weight"
            )
        if np.isnan(scores).any():
            raise SecateurError(
                f"{path} {value.shape}: {int(np.isnan(scores).sum()):,} scores are NaN; the weights "
                "hold NaN (did the training diverge? lower the learning rate) or the criterion made them"
            )
        if zeros is None:
            return unstructured(scores, sparsity)
        scores = np.where(zeros, -np.inf, scores)
        return unstructured(scores, sparsity) & ~zeros


class PruneCallback(ProjectionCallback):
    """Prunes while `fit` trains; made by `Prune.callback`.

    curve: (step, sparsity asked for) at each update. notes: what the user should know.
    """

    def __init__(self, method: Prune, *, seed: int, zeros: Mapping[str, np.ndarray] | None):
        super().__init__(zeros)
        self.method = method
        self._seed = seed
        self._selected: dict[str, Weight] = {}
        self._timetable: Timetable | None = None
        self._last: int | None = None

    def weights_to_hold(self, table: WeightTable) -> Mapping[str, Weight]:
        """The selected weights; resolves the schedule against this training."""
        self._timetable = self._resolve()
        self._last = None
        self._selected = {w.path: w for w in _selected(self.method, table)}
        for weight in self._selected.values():
            if not np.isfinite(weight.read()).all():
                raise SecateurError(
                    f"{weight.path} {weight.shape} holds NaN or infinity before training; "
                    "load a sound model"
                )
        return self._selected

    def masks_at(self, step: int, last: int, projection: Projection) -> None:
        """Choose new masks when the timetable names a new update."""
        timetable = self._timetable
        update = timetable.latest(last) if timetable is not None else None
        if timetable is None or update is None or update == self._last:
            return
        _ = self.model  # on JAX: brings the weights of the running epoch up to date
        self._last = update
        sparsity = timetable.value(update, self.method.sparsity)
        for path, weight in self._selected.items():
            value = weight.read()
            keep = self.method.mask(path, value, sparsity, self._seed, self.zeros.get(path))
            projection.hold(path, keep, value)
        self.curve.append((step, sparsity))

    def on_train_end(self, logs: Any = None) -> None:
        """Detach, and say so when training ended before the schedule did."""
        super().on_train_end(logs)
        reached = self.curve[-1][1] if self.curve else 0.0
        if reached < self.method.sparsity and not self.notes:
            self.note(
                f"training stopped before the pruning schedule ended: {100 * reached:.1f} % zeros "
                f"reached, {100 * self.method.sparsity:g} % asked for"
            )

    def _resolve(self) -> Timetable:
        schedule, total = self.method.schedule, self.total_steps
        if total is None:
            if schedule.unit != "steps":
                raise SecateurError(
                    "the data set does not know its length, so a schedule in "
                    f"{schedule.unit} cannot be placed; use Schedule(unit='steps', ...) "
                    "or pass steps_per_epoch to fit"
                )
            total = int(schedule.begin if schedule.shape == "one-shot" else schedule.end) + 1
        timetable = schedule.resolve(total, self.steps_per_epoch or total)
        if timetable.cut_off:
            last = timetable.latest(total - 1)
            reached = 0.0 if last is None else timetable.value(last, self.method.sparsity)
            self.note(
                f"training is shorter than the pruning schedule: {total:,} steps, schedule ends at "
                f"step {timetable.end:,}; {100 * reached:.1f} % zeros will be reached, not "
                f"{100 * self.method.sparsity:g} % (give `end` as a fraction, or train longer)"
            )
        return timetable


def _selected(method: Prune, table: WeightTable) -> list[Weight]:
    return [table[path] for path in method.plan(table).changed]


def _name(choice: Any) -> str:
    """A built-in's name, or a function's own (a partial has none)."""
    return choice if isinstance(choice, str) else getattr(choice, "__name__", repr(choice))
