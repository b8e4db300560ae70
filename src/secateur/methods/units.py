"""Whole units of a chain of Dense layers removed at once, the next layer repaired without training."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from keras import ops

from secateur.arrays.masks import apply_mask, unstructured, zeros_count
from secateur.arrays.repair import RIDGE, resolve_next, unit_scores
from secateur.capture import pairs_of
from secateur.dense_chain import Arrays, Chain, Kept, chain, require_units
from secateur.errors import SecateurError, nearest
from secateur.plan import Change, Plan
from secateur.project import Projection, ProjectionCallback
from secateur.weights import Select, Weight, WeightTable, weight_table

SCORES = ("l2", "activation")
REPAIRS = ("least-squares",)


@dataclass(frozen=True, kw_only=True)
class PruneUnits:
    """Remove the least important units of each selected Dense layer, in one shot.

    What leads into a removed unit becomes zero, its bias too; the output layer keeps its units. The
    model must be a plain chain of Dense layers; `secateur.dense_chain.narrow` builds the network of
    the kept widths.

    sparsity: fraction of the units, in [0, 1). score: "l2" (of the incoming weights) or
    "activation" (RMS activation x L2 norm of the outgoing weights). repair: "least-squares" solves
    each next layer anew, so that the kept units give what all gave; None leaves it as it is.
    samples: of the training data, at most, for what looks at activations. ridge: how much the
    repair holds on to the old weights. select: which kernels.

    >>> import keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(10), keras.layers.Dense(2)])
    >>> (keep,) = PruneUnits(sparsity=0.8).apply(model).values()
    >>> int(keep.any(axis=0).sum())
    2
    """

    kind: ClassVar[str] = "units"
    stage: ClassVar[str] = "pruned"
    makes: ClassVar[frozenset[str]] = frozenset({"zeros"})
    keeps: ClassVar[frozenset[str]] = frozenset({"shape"})  # a repair fills earlier zeros

    sparsity: float
    score: str = "l2"
    repair: str | None = None
    samples: int = 1000
    ridge: float = RIDGE
    select: Select = field(default_factory=lambda: Select(output=False))

    def __post_init__(self) -> None:
        zeros_count(0, self.sparsity)
        if self.sparsity == 1.0:
            raise SecateurError("sparsity 1.0 leaves no unit; give a fraction below 1, as 0.9")
        if self.score not in SCORES:
            raise SecateurError(
                f"score {self.score!r} received, expected one of {', '.join(SCORES)}; fix: "
                f"{nearest(self.score, SCORES)}"
            )
        if self.repair is not None and self.repair not in REPAIRS:
            raise SecateurError(
                f"repair {self.repair!r} received, expected {REPAIRS[0]!r}; fix: leave it out for none"
            )
        if self.samples < 1:
            raise SecateurError(f"samples {self.samples!r} received, expected 1 or more; fix: 1000")
        if not self.ridge >= 0.0:
            raise SecateurError(
                f"ridge {self.ridge!r} received, expected 0 or more; fix: {RIDGE:g}"
            )

    @property
    def final(self) -> float:
        """The fraction of units that is removed."""
        return float(self.sparsity)

    @property
    def needs_data(self) -> bool:
        """Whether activations are looked at."""
        return self.score == "activation" or self.repair is not None

    def plan(self, table: WeightTable, *, zeros: Collection[str] = ()) -> Plan:
        """Which kernels lose units, which are solved anew, and why the others stay."""
        reasons = self.select.reasons(table)
        cut, solved, changes = False, False, []
        for w in table:
            how, reason = None, reasons[w.path]
            if w.role == "kernel":
                solved = cut and self.repair is not None  # by the layer before
                reason = reason or _unfit(w)
                cut = reason is None
                words = [f"{100 * self.final:g} % of its units, {self.score}"] * cut
                words += [f"solved anew by {self.repair}"] * solved
                how = ", ".join(words) or None
            elif w.role == "bias" and (cut or solved):
                words = ["zero where its unit is removed"] * cut + ["solved anew"] * solved
                how = ", ".join(words)
            change = Change(step=self.kind, path=w.path, shape=w.shape, size=w.size)
            changes.append(_decided(change, how, reason))
        if not any(c.changed for c in changes):
            raise SecateurError(
                f"the selection holds no hidden Dense kernel: {self.select}; `secateur inspect` lists "
                "the weights"
            )
        return Plan(changes)

    def callback(
        self,
        *,
        seed: int = 0,
        zeros: Mapping[str, np.ndarray] | None = None,
        data: Any = None,
    ) -> PruneUnitsCallback:
        """A callback for your own `model.fit`: removes units before the first step, holds the zeros."""
        _refuse_zeros(zeros)
        return PruneUnitsCallback(self, data)

    def apply(
        self,
        model: Any,
        *,
        seed: int = 0,
        zeros: Mapping[str, np.ndarray] | None = None,
        data: Any = None,
        loss: Any = None,
    ) -> dict[str, np.ndarray]:
        """Remove the units at once (in place); the masks of the kernels, True = kept.

        data: (x, y), a list of such batches or what `load_data` gives (its training part), for what
        looks at activations. Raises SecateurError (`Impossible`) when a layer would lose all its
        units; the model is then as it was.
        """
        _refuse_zeros(zeros)
        ranking = self.rank(model, data)
        kept = ranking.kept(self.final)
        arrays = ranking.arrays(kept)
        for link, (kernel, bias) in zip(ranking.chain.links, arrays, strict=True):
            link.dense.kernel.assign(kernel)
            if bias is not None:
                link.dense.bias.assign(bias)
        return ranking.masks(kept)

    def rank(self, model: Any, data: Any = None) -> UnitRanking:
        """Score the units once, for any sparsity; changes nothing.

        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(10), keras.layers.Dense(2)])
        >>> ranking = PruneUnits(sparsity=0.5).rank(model)
        >>> [int(keep.sum()) for keep in ranking.kept(0.9)]
        [1]
        """
        found = chain(model)
        table = weight_table(model)
        selected = {
            path
            for path, reason in self.select.reasons(table).items()
            if reason is None and _unfit(table[path]) is None
        }
        self.plan(table)  # refuses a selection without a hidden kernel
        for path in selected:
            table[path].require_finite()
        return UnitRanking(self, found, selected, _samples(data, self))


class UnitRanking:
    """The units of one model, scored: which stay at a sparsity, and the arrays that are then right.

    Made by `PruneUnits.rank`. chain: the model's Dense layers, as they were.
    """

    def __init__(
        self, method: PruneUnits, chain: Chain, selected: Collection[str], x: np.ndarray | None
    ):
        self.method, self.chain = method, chain
        self._dense = chain.read()
        self._x = x
        self._hidden = [] if x is None else chain.activations(self._dense, x)
        # What each layer behind a hidden one sums up in the dense network: what a repair aims at.
        self._sums = [
            values @ kernel + (0 if bias is None else bias)
            for values, (kernel, bias) in zip(self._hidden, self._dense[1:], strict=False)
            if method.repair is not None
        ]
        self._cut = [link.kernel in selected for link in chain.links[:-1]]
        self._scores = [self._score(number) for number in range(len(self._cut))]

    def kept(self, sparsity: float) -> Kept:
        """Bool, True = kept, for each hidden layer; exact counts. Raises where none would stay."""
        kept = []
        for link, scores, cut in zip(self.chain.links, self._scores, self._cut, strict=False):
            keep = unstructured(scores, sparsity) if cut else np.ones(len(scores), bool)
            require_units(link.kernel, int(keep.sum()), len(keep))
            kept.append(keep)
        return kept

    def masks(self, kept: Kept) -> dict[str, np.ndarray]:
        """Path -> bool array, True = kept, of the kernels that lose units."""
        return {
            link.kernel: np.broadcast_to(keep, kernel.shape).copy()
            for link, (kernel, _), keep, cut in zip(
                self.chain.links, self._dense, kept, self._cut, strict=False
            )
            if cut
        }

    def arrays(self, kept: Kept) -> Arrays:
        """Kernel and bias of every layer at full width: zeros written, next layers repaired."""
        arrays = list(self._dense)
        if self.method.repair is not None:
            arrays = self._repaired(arrays, kept)
        masks = self.masks(kept)
        for number, link in enumerate(self.chain.links):
            kernel, bias = arrays[number]
            if link.kernel in masks:
                kernel = apply_mask(kernel, masks[link.kernel])
            if bias is not None and number < len(kept):
                bias = apply_mask(bias, kept[number])
            arrays[number] = kernel, bias
        return arrays

    def _repaired(self, arrays: Arrays, kept: Kept) -> Arrays:
        """Each layer behind a cut one solved anew, from what the cut network gives to the dense sums.

        From the first on, so that a layer makes good what is still missing of those before it.
        """
        arrays = list(arrays)
        values = ops.convert_to_tensor(self._x)
        for layer in self.chain.before:
            values = layer(values)
        values = np.asarray(ops.convert_to_numpy(values))
        for number, (keep, cut) in enumerate(zip(kept, self._cut, strict=True)):
            kernel, bias = arrays[number]
            sums = values @ kernel + (0 if bias is None else bias)
            sums[:, ~keep] = 0
            link = self.chain.links[number]
            values = ops.convert_to_numpy(link.activate(ops.convert_to_tensor(sums)))
            if not cut or all(k.all() for k in kept[: number + 1]):
                continue
            everything = np.ones(len(self._dense[-1][0][0]), bool)
            stay = kept[number + 1] if number + 1 < len(kept) else everything
            arrays[number + 1] = self._solved(number, values, keep, stay)
        return arrays

    def _solved(
        self, number: int, values: np.ndarray, keep: np.ndarray, stay: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Kernel and bias behind hidden layer `number`, which gives `values`, for the units that stay."""
        kernel, bias = self._dense[number + 1]
        kernel, bias = kernel.copy(), None if bias is None else bias.copy()
        # A removed unit may still give something, the same to every sample: sigmoid(0).
        targets = self._sums[number] - values[:, ~keep] @ kernel[~keep]
        rows, shift = resolve_next(
            values,
            keep,
            kernel[:, stay],
            None if bias is None else bias[stay],
            targets=targets[:, stay],
            ridge=self.method.ridge,
        )
        kernel[np.ix_(keep, stay)] = rows
        if bias is not None:
            bias[stay] = shift
        return kernel, bias

    def _score(self, number: int) -> np.ndarray:
        if self.method.score == "activation":
            return unit_scores(self._hidden[number], self._dense[number + 1][0])
        return np.linalg.norm(self._dense[number][0].astype(np.float64), axis=0)


class PruneUnitsCallback(ProjectionCallback):
    """Removes units before the first step of `fit` and holds the zeros; see `PruneUnits.callback`."""

    def __init__(self, method: PruneUnits, data: Any = None):
        super().__init__()
        self.method = method
        self._data = data
        self._done = False

    def weights_to_hold(self, table: WeightTable) -> Mapping[str, Weight]:
        """The kernels that get zeros."""
        self._done = False
        kernels = (path for path in self.method.plan(table).changed if table[path].role == "kernel")
        return {path: table[path] for path in kernels}

    def masks_at(self, step: int, last: int, projection: Projection) -> None:
        """Remove the units, once."""
        if self._done:
            return
        masks = self.method.apply(self.model, data=self._data)
        for path, keep in masks.items():
            projection.hold(path, keep, projection.weights[path].read())
        self.curve.append((step, self.method.final))
        self._done = True


def _unfit(weight: Weight) -> str | None:
    """Why a selected weight has no units to remove."""
    if weight.output:
        return "output layer"
    return None if weight.layer_class == "Dense" else f"class {weight.layer_class} is not Dense"


def _decided(change: Change, how: str | None, reason: str | None) -> Change:
    return dataclasses.replace(change, how=how, reason=None if how else reason)


def _refuse_zeros(zeros: Mapping[str, np.ndarray] | None) -> None:
    if zeros:
        raise SecateurError(
            f"zeros promised earlier in {', '.join(zeros)} received, expected none: units are removed "
            "first; fix: put this step before the step that made them"
        )


def _samples(data: Any, method: PruneUnits) -> np.ndarray | None:
    """The first samples of the data; None where nothing looks at them."""
    if not method.needs_data:
        return None
    if data is None:
        raise SecateurError(
            f"score {method.score!r} with repair {method.repair!r} looks at activations, and no data "
            "was received; fix: give data=(x, y), about 1,000 training samples"
        )
    return np.concatenate([np.asarray(x) for x, _ in pairs_of(data)])[: method.samples]
