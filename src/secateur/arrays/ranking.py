"""From weights to masks: a criterion scores them, an allocation shares out, a pattern cuts."""

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.arrays.allocation import Allocation, PerLayer, allocation, uniform
from secateur.arrays.criteria import Criterion, criterion, score
from secateur.arrays.layout import Axes, canonical, restore
from secateur.arrays.patterns import Pattern, pattern
from secateur.errors import SecateurError


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """One weight to be ranked: how to read it, its axes, and what the criterion may ask for.

    zeros: bool array, True where an earlier step promised a zero (None: nowhere). evidence: what
    data gave (`gradient`, `squared_gradient`, `input_norm`), by name.
    """

    path: str
    read: Callable[[], np.ndarray]
    axes: Axes
    zeros: np.ndarray | None = None
    evidence: Mapping[str, np.ndarray]

    def scores(self, by: Criterion, value: np.ndarray, seed: int) -> np.ndarray:
        """Scores of one weight in its own shape; promised zeros score -inf."""
        # The same stream at every update: random masks only ever grow.
        rng = np.random.default_rng([seed, zlib.crc32(self.path.encode())])
        found = np.asarray(score(by, value, rng=rng, **self.evidence))
        if found.shape != value.shape:
            raise SecateurError(
                f"the criterion returned scores of shape {found.shape} for {self.path}, "
                f"expected {value.shape}, one for each weight"
            )
        if np.isnan(found).any():
            raise SecateurError(
                f"{self.path} {value.shape}: {int(np.isnan(found).sum()):,} scores are NaN; the "
                "weights hold NaN (did the training diverge? lower the learning rate) or the "
                "criterion made them"
            )
        return found if self.zeros is None else np.where(self.zeros, -np.inf, found)


@dataclass(frozen=True, kw_only=True)
class Scored(Ranked):
    """A weight whose scores are known: ranked once, cut at any number of sparsities."""

    known: np.ndarray

    def scores(self, by: Criterion, value: np.ndarray, seed: int) -> np.ndarray:
        """The known scores."""
        return self.known


def scored(weight: Ranked, by: str | Criterion = "l1", seed: int = 0) -> Scored:
    """The weight, read and scored now.

    >>> weight = Ranked(path="k", read=lambda: np.array([-3.0]), axes=Axes((), (0,)), evidence={})
    >>> scored(weight).known.tolist()
    [3.0]
    """
    value = weight.read()
    return Scored(
        path=weight.path,
        read=lambda: value,
        axes=weight.axes,
        zeros=weight.zeros,
        evidence={},
        known=weight.scores(criterion(by), value, seed),
    )


def masks(
    weights: Mapping[str, Ranked],
    sparsity: float,
    *,
    by: str | Criterion = "l1",
    shape: str | Pattern = "unstructured",
    share: str | Mapping[str, float] | Allocation = "uniform",
    final: float | None = None,
    seed: int = 0,
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield (path, value, keep) for each weight, `keep` a bool array, True = keep.

    by: criterion. shape: pattern. share: allocation. final: the sparsity that a schedule leads to;
    sparsities given for single layers grow in proportion to it. One weight is held at a time where
    the allocation needs no scores of the others. Raises SecateurError for scores that do not fit.

    >>> weight = Ranked(path="k", read=lambda: np.array([[3.0], [1.0]]), axes=Axes((0,), (1,)), evidence={})
    >>> [keep.tolist() for _, _, keep in masks({"k": weight}, 0.5)]
    [[[True], [False]]]
    """
    rank, cut, divide = criterion(by), pattern(shape), allocation(share)
    scored: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    shares: Mapping[str, float] = dict.fromkeys(weights, sparsity)
    if divide is not uniform:
        for path, weight in weights.items():
            value = weight.read()
            scored[path] = value, canonical(weight.scores(rank, value, seed), weight.axes)
        shares = _shares(divide, cut, {p: s for p, (_, s) in scored.items()}, sparsity, final)
    for path, weight in weights.items():
        if path in scored:
            value, scores = scored.pop(path)
        else:
            value = weight.read()
            scores = canonical(weight.scores(rank, value, seed), weight.axes)
        keep = np.asarray(cut(scores, shares[path]))
        if keep.shape != scores.shape or keep.dtype != bool:
            raise SecateurError(
                f"the pattern returned {keep.dtype} of shape {keep.shape} for {path}, expected bool "
                f"of shape {scores.shape}: True where a weight is kept"
            )
        keep = restore(keep, weight.axes, value.shape)
        yield path, value, keep if weight.zeros is None else keep & ~weight.zeros


def _shares(
    divide: Allocation,
    cut: Pattern,
    scores: dict[str, np.ndarray],
    sparsity: float,
    final: float | None,
) -> dict[str, float]:
    groups: Callable[[np.ndarray], np.ndarray] = getattr(cut, "groups", lambda scores: scores)
    grouped = {path: groups(found) for path, found in scores.items()}
    if isinstance(divide, PerLayer) and final:
        return {path: s * (sparsity / final) for path, s in divide(grouped, final).items()}
    found: Any = divide(grouped, sparsity)
    missing = [path for path in scores if path not in found]
    if missing:
        raise SecateurError(
            f"the allocation returned no sparsity for {', '.join(missing)}, expected one in [0, 1] "
            "for each tensor; fix: return {path: sparsity} with every path it was given"
        )
    return found
