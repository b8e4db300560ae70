"""Pruning by importance: gradual while training, or in one shot; any criterion, pattern, allocation."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from secateur.arrays import allocation as allocations
from secateur.arrays import criteria, patterns
from secateur.arrays.layout import canonical
from secateur.arrays.masks import apply_mask, zeros_count
from secateur.arrays.ranking import Ranked, masks
from secateur.arrays.schedules import Rewind, Schedule, Timetable
from secateur.capture import Evidence, evidence
from secateur.errors import SecateurError
from secateur.plan import Change, Plan, plan_selection
from secateur.project import Projection, ProjectionCallback
from secateur.weights import Select, Weight, WeightTable, weight_table


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Set the least important weights to zero and hold them there.

    sparsity: the fraction of zeros to end at, in [0, 1); an N:M pattern brings its own. schedule:
    when and how fast (default: the cubic of Zhu & Gupta 2017, arXiv:1710.01878, over the whole
    training). criterion: "l1" (magnitude, Han et al. 2015, arXiv:1506.02626), "l2", "random",
    "snip", "taylor", "wanda", or a function of `weight` and what else it names. pattern:
    "unstructured", "units", "2:4", "block 16x1", or a function (scores, sparsity) -> keep.
    allocation: "uniform", "global", "erdos-renyi", "erk", "lamp", {layer: sparsity}, or a function
    (scores, sparsity) -> {path: sparsity}. rewind: prune in rounds, each trained again from an
    early point, instead of by the schedule (in a recipe). select: which weights.

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

    sparsity: float | None = None
    schedule: Schedule = field(default_factory=Schedule)
    criterion: str | criteria.Criterion = "l1"
    pattern: str | patterns.Pattern = "unstructured"
    allocation: str | Mapping[str, float] | allocations.Allocation = "uniform"
    rewind: Rewind | None = None
    select: Select = field(default_factory=Select)

    def __post_init__(self) -> None:
        criteria.needs(criteria.criterion(self.criterion))
        cut = patterns.pattern(self.pattern)
        divide = allocations.allocation(self.allocation)
        if isinstance(cut, patterns.NofM):
            self._settle_on(cut)
            if divide is not allocations.uniform:
                raise SecateurError(
                    f"allocation {allocations.describe(self.allocation)!r} received with pattern "
                    f"{cut}, which makes every weight equally sparse; leave the allocation out"
                )
        if self.sparsity is None:
            raise SecateurError("Prune needs sparsity, the fraction of zeros to end at, as 0.8")
        zeros_count(0, self.sparsity)
        if self.sparsity == 1.0:
            raise SecateurError("sparsity 1.0 leaves no weight; give a fraction below 1, as 0.9")
        if self.schedule.initial > self.sparsity:
            raise SecateurError(
                f"the schedule starts at {self.schedule.initial:g}, above the final sparsity "
                f"{self.sparsity:g}; lower `initial`"
            )

    @property
    def final(self) -> float:
        """The sparsity that the schedule ends at."""
        return float(self.sparsity or 0.0)

    @property
    def needs_data(self) -> bool:
        """Whether the criterion looks at gradients or activations."""
        return bool(criteria.FROM_DATA & criteria.needs(criteria.criterion(self.criterion)))

    def plan(self, table: WeightTable, *, zeros: Collection[str] = ()) -> Plan:
        """Which weights become sparse, and why the others do not."""
        cut = patterns.pattern(self.pattern)
        plan = plan_selection(self.kind, self.select, table, self._how())
        return Plan([_fitting(c, table[c.path], cut) if c.changed else c for c in plan])

    def callback(
        self,
        *,
        seed: int = 0,
        zeros: Mapping[str, np.ndarray] | None = None,
        data: Any = None,
    ) -> PruneCallback:
        """A callback for your own `model.fit`; the model's class, names and file stay as they are.

        data: (x, y) or a list of such batches, for criteria that look at gradients or activations.
        """
        if self.rewind is not None:
            raise SecateurError(
                "Prune with rewind trains several times, which one fit cannot; use compress or run, "
                "or leave rewind out"
            )
        return PruneCallback(self, seed=seed, zeros=zeros, data=data)

    def apply(
        self,
        model: Any,
        *,
        seed: int = 0,
        zeros: Mapping[str, np.ndarray] | None = None,
        data: Any = None,
        loss: Any = None,
    ) -> dict[str, np.ndarray]:
        """Prune at once to the final sparsity, without training (in place); the masks, True = kept.

        data, loss: for criteria that look at gradients or activations; loss None: the compiled one.
        """
        weights = _selected(self, weight_table(model))
        seen = evidence(
            model, weights, criteria.needs(criteria.criterion(self.criterion)), data, loss
        )
        masks = self.masks(weights, self.final, seed, zeros or {}, seen)
        # All of them before the first weight is written: a refusal leaves the model as it was.
        found = {weight.path: keep for weight, _, keep in masks}
        for path, keep in found.items():
            weights[path].variable.assign(apply_mask(weights[path].read(), keep))
        return found

    def masks(
        self,
        weights: Mapping[str, Weight],
        sparsity: float,
        seed: int,
        zeros: Mapping[str, np.ndarray],
        seen: Mapping[str, Evidence],
    ) -> Iterator[tuple[Weight, np.ndarray, np.ndarray]]:
        """Yield (weight, value, keep), True = keep, at `sparsity`; `zeros` stay zero."""
        ranked = {
            path: Ranked(
                path=path,
                read=w.read,
                axes=w.axes,
                zeros=zeros.get(path),
                evidence=seen.get(path, {}),
            )
            for path, w in weights.items()
        }
        for path, value, keep in masks(
            ranked,
            sparsity,
            by=self.criterion,
            shape=self.pattern,
            share=self.allocation,
            final=self.final,
            seed=seed,
        ):
            yield weights[path], value, keep

    def _settle_on(self, cut: patterns.NofM) -> None:
        if self.sparsity is None:
            object.__setattr__(self, "sparsity", cut.final)
        elif self.sparsity != cut.final:
            raise SecateurError(
                f"sparsity {self.sparsity!r} received with pattern {cut}, which means "
                f"{cut.final:g}; leave the sparsity out, or choose another pattern"
            )

    def _how(self) -> str:
        words = [
            f"{100 * self.final:g} % zeros",
            criteria.describe(self.criterion),
            patterns.describe(self.pattern),
        ]
        if self.allocation != "uniform":
            words.append(allocations.describe(self.allocation))
        if self.rewind is not None:
            return ", ".join(
                [*words, f"{self.rewind.rounds} rounds, rewound to epoch {self.rewind.to:g}"]
            )
        shape = self.schedule.shape
        return ", ".join([*words, shape if isinstance(shape, str) else _called(shape)])


class PruneCallback(ProjectionCallback):
    """Prunes while `fit` trains; made by `Prune.callback`.

    curve: (step, sparsity asked for) at each update. notes: what the user should know.
    """

    def __init__(
        self,
        method: Prune,
        *,
        seed: int,
        zeros: Mapping[str, np.ndarray] | None,
        data: Any = None,
    ):
        super().__init__(zeros)
        self.method = method
        self._seed = seed
        self._data = data
        self._needs = criteria.needs(criteria.criterion(method.criterion))
        self._selected: dict[str, Weight] = {}
        self._timetable: Timetable | None = None
        self._last: int | None = None
        self._short = False  # whether it was noted that the final sparsity is not reached

    def weights_to_hold(self, table: WeightTable) -> Mapping[str, Weight]:
        """The selected weights; resolves the schedule against this training."""
        self._timetable = self._resolve()
        self._last = None
        self._selected = _selected(self.method, table)
        for weight in self._selected.values():
            weight.require_finite()
        return self._selected

    def masks_at(self, step: int, last: int, projection: Projection) -> None:
        """Choose new masks when the timetable names a new update."""
        timetable = self._timetable
        update = timetable.latest(last) if timetable is not None else None
        if timetable is None or update is None or update == self._last:
            return
        model = self.model  # on JAX: brings the weights of the running epoch up to date
        self._last = update
        sparsity = timetable.value(update, self.method.final)
        seen = evidence(model, self._selected, self._needs, self._data)
        for weight, value, keep in self.method.masks(
            self._selected, sparsity, self._seed, self.zeros, seen
        ):
            projection.hold(weight.path, keep, value)
        self.curve.append((step, sparsity))

    def end(self) -> None:
        """Say so when training ended before the schedule did."""
        super().end()
        reached = self.curve[-1][1] if self.curve else 0.0
        if reached < self.method.final and not self._short:
            self._short = True
            self.note(
                f"training stopped before the pruning schedule ended: {100 * reached:.1f} % zeros "
                f"reached, {100 * self.method.final:g} % asked for"
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
        self._short = timetable.cut_off
        if self._short:
            last = timetable.latest(total - 1)
            reached = 0.0 if last is None else timetable.value(last, self.method.final)
            self.note(
                f"training is shorter than the pruning schedule: {total:,} steps, schedule ends at "
                f"step {timetable.end:,}; {100 * reached:.1f} % zeros will be reached, not "
                f"{100 * self.method.final:g} % (give `end` as a fraction, or train longer)"
            )
        return timetable


def _selected(method: Prune, table: WeightTable) -> dict[str, Weight]:
    changed = {path: table[path] for path in method.plan(table).changed}
    if not changed:
        cut = patterns.describe(method.pattern)
        raise SecateurError(
            f"pattern {cut!r} fits none of the selected weights; `secateur inspect --recipe` says why"
        )
    return changed


def _fitting(change: Change, weight: Weight, cut: patterns.Pattern) -> Change:
    """The change, or why the pattern does not apply to this weight."""
    shape = canonical(np.broadcast_to(np.zeros((), bool), weight.shape), weight.axes).shape
    reason = patterns.check_fits(cut, shape)
    if isinstance(cut, patterns.Units) and weight.in_cell:
        reason = "a unit of a recurrent layer spans several weights"
    return change if reason is None else dataclasses.replace(change, how=None, reason=reason)


def _called(function: Any) -> str:
    """A function's own name (a partial has none)."""
    return getattr(function, "__name__", repr(function))
