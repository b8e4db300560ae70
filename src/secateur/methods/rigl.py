"""Sparse training that moves its zeros: drop the smallest weights, grow where gradients are largest."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from secateur.arrays import allocation as allocations
from secateur.arrays.masks import apply_mask, regrown, zeros_count
from secateur.arrays.ranking import Ranked, masks
from secateur.capture import batches_given, gradients
from secateur.errors import SecateurError
from secateur.plan import Plan, plan_selection
from secateur.project import Projection, ProjectionCallback
from secateur.weights import Select, Weight, WeightTable, weight_table


@dataclass(frozen=True, kw_only=True)
class RigL:
    """Train at constant sparsity and exchange some weights as it goes (Evci et al. 2020, arXiv:1911.11134).

    sparsity: the fraction of zeros throughout. allocation: how it is shared out, as in `Prune`.
    fraction: of the kept weights exchanged at the first update; it falls to zero by a cosine.
    every: steps between updates. end: share of the training after which the masks stay. The first
    masks are those of the largest magnitudes, so a resumed training finds its own again, where every
    weight that it kept has left zero. A grown weight starts at zero and moves with its next update.
    select: which weights.

    >>> RigL(sparsity=0.9).share_at(0), RigL(sparsity=0.9).share_at(0.75)
    (0.3, 0.0)
    """

    kind: ClassVar[str] = "rigl"
    stage: ClassVar[str] = "pruned"
    makes: ClassVar[frozenset[str]] = frozenset({"zeros"})
    keeps: ClassVar[frozenset[str]] = frozenset({"shape"})
    needs_data: ClassVar[bool] = True

    sparsity: float
    allocation: str | Mapping[str, float] | allocations.Allocation = "erk"
    fraction: float = 0.3
    every: int = 100
    end: float = 0.75
    select: Select = field(default_factory=Select)

    def __post_init__(self) -> None:
        zeros_count(0, self.sparsity)
        allocations.allocation(self.allocation)
        if self.sparsity == 1.0:
            raise SecateurError("sparsity 1.0 leaves no weight; give a fraction below 1, as 0.9")
        for name in ("fraction", "end"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise SecateurError(
                    f"{name} {getattr(self, name)!r} received, expected a share in [0, 1], as 0.3"
                )
        if self.every < 1:
            raise SecateurError(f"every {self.every!r} received, expected 1 step or more, as 100")

    def share_at(self, progress: float) -> float:
        """The fraction of the kept weights exchanged at `progress` in [0, 1] of the training."""
        if progress >= self.end:
            return 0.0
        return self.fraction / 2 * (1 + math.cos(math.pi * progress / self.end))

    def plan(self, table: WeightTable, *, zeros: Collection[str] = ()) -> Plan:
        """Which weights are trained sparsely, and why the others are not."""
        how = (
            f"{100 * self.sparsity:g} % zeros, exchanged while training, "
            f"{allocations.describe(self.allocation)}"
        )
        return plan_selection(self.kind, self.select, table, how)

    def callback(
        self,
        *,
        seed: int = 0,
        zeros: Mapping[str, np.ndarray] | None = None,
        data: Any = None,
    ) -> RigLCallback:
        """A callback for your own `model.fit`. data: (x, y) or batches, for the gradients."""
        return RigLCallback(self, seed=seed, data=data)

    def apply(
        self,
        model: Any,
        *,
        seed: int = 0,
        zeros: Mapping[str, np.ndarray] | None = None,
        data: Any = None,
        loss: Any = None,
    ) -> dict[str, np.ndarray]:
        """Without training there is nothing to exchange: the first masks, by magnitude."""
        weights = self.selected(weight_table(model))
        found = {path: keep for path, _, keep in self.first_masks(weights, seed)}
        for path, keep in found.items():
            weights[path].variable.assign(apply_mask(weights[path].read(), keep))
        return found

    def selected(self, table: WeightTable) -> dict[str, Weight]:
        """Path -> row of the weights it trains sparsely."""
        return {path: table[path] for path in self.plan(table).changed}

    def first_masks(self, weights: Mapping[str, Weight], seed: int) -> Any:
        """Yield (path, value, keep) by magnitude, before anything is exchanged."""
        ranked = {
            p: Ranked(path=p, read=w.read, axes=w.axes, evidence={}) for p, w in weights.items()
        }
        return masks(ranked, self.sparsity, share=self.allocation, final=self.sparsity, seed=seed)


class RigLCallback(ProjectionCallback):
    """Exchanges weights while `fit` trains; made by `RigL.callback`.

    curve: (step, sparsity) at each update.
    """

    def __init__(self, method: RigL, *, seed: int, data: Any):
        super().__init__()
        self.method = method
        self._seed = seed
        if data is None:
            raise SecateurError(
                "RigL grows weights where gradients are largest and needs data for them; "
                "give callback(data=(x, y)), a few hundred training samples"
            )
        self._batches = batches_given(data)
        self._selected: dict[str, Weight] = {}
        self._keep: dict[str, np.ndarray] = {}
        self._update = -1

    def weights_to_hold(self, table: WeightTable) -> Mapping[str, Weight]:
        """The selected weights."""
        if self.total_steps is None:
            raise SecateurError(
                "the data set does not know its length, so RigL cannot tell when its masks shall stay "
                f"(end {self.method.end:g} of the training); pass steps_per_epoch to fit"
            )
        self._selected, self._keep, self._update = self.method.selected(table), {}, -1
        for weight in self._selected.values():
            weight.require_finite()
        return self._selected

    def masks_at(self, step: int, last: int, projection: Projection) -> None:
        """The first masks at the first step, an exchange at every update."""
        update = last // self.method.every
        if update == self._update:
            return
        model, first = self.model, self._update < 0
        self._update = update
        if first:
            self._begin(projection)
            # A training that is resumed at an update does not miss it.
            due = step > 0 and update > (step - 1) // self.method.every
        else:
            due = True
        share = self.method.share_at(last / max(1, (self.total_steps or 1) - 1)) if due else 0.0
        if share:
            self._exchange(model, share, projection)
        if share or first:
            self.curve.append((step, self.method.sparsity))

    def _begin(self, projection: Projection) -> None:
        for path, value, keep in self.method.first_masks(self._selected, self._seed):
            self._keep[path] = keep
            projection.hold(path, keep, value)

    def _exchange(self, model: Any, share: float, projection: Projection) -> None:
        # One batch an update, as the training itself would see it; each its turn.
        batch = [self._batches[self._update % len(self._batches)]]
        found = gradients(model, getattr(model, "loss", None), list(self._selected.values()), batch)
        for path, weight in self._selected.items():
            value, before = weight.read(), self._keep[path]
            keep = regrown(np.abs(value), before, np.abs(found[path][0]), share)
            self._keep[path] = keep
            projection.hold(path, keep, apply_mask(value, before))
