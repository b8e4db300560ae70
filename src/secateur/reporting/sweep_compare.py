"""Which k is free, where two curves part, which curves belong together: choices over a study's points.

Choices are made on validation data, differences are told on test images, in points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from secateur.reporting.sweep_series import UNITS, WEIGHTS, Series, Study
from secateur.reporting.sweep_statistics import (
    LEVEL,
    SLACK,
    Difference,
    Interval,
    accuracy,
    gap,
    interval,
)

MAX_DROP = 0.5  # points
Gaps = dict[float, Difference]


@dataclass(frozen=True, kw_only=True)
class Free:
    """The largest k of each seed that loses at most `max_drop` points against dense on validation.

    chosen: seed -> k, 0 where none of those tried qualifies. beyond: the next k tried after the
    highest chosen, None where there is none. cost: points lost on test images at the chosen k.
    """

    chosen: dict[int, float]
    beyond: float | None
    cost: Interval | None

    @property
    def low(self) -> float:
        """The k of the seed that allows least."""
        return min(self.chosen.values())

    @property
    def high(self) -> float:
        """The k of the seed that allows most."""
        return max(self.chosen.values())


def free(series: Series, study: Study, max_drop: float = MAX_DROP) -> Free | None:
    """Choose on validation data, for each seed, the largest k that loses at most `max_drop` points.

    None where no seed has validation figures of both the curve and the dense network.
    """
    chosen: dict[int, float] = {}
    for seed, dense in study.dense.items():
        before = accuracy(dense, "validation")
        own_points = {k: accuracy(p[seed], "validation") for k in series.asked
                      if seed in (p := series.points[k])}  # fmt: skip
        read = {k: found for k, found in own_points.items() if math.isfinite(found)}
        if read and math.isfinite(before):
            fits = [k for k, found in read.items() if 100 * (before - found) <= max_drop + SLACK]
            chosen[seed] = max(fits, default=0.0)
    if not chosen:
        return None
    costs = [
        100 * (accuracy(study.dense[seed]) - accuracy(series.points[k][seed])) if k else 0.0
        for seed, k in chosen.items()
    ]
    known = [cost for cost in costs if math.isfinite(cost)]
    highest = max(chosen.values())
    return Free(
        chosen=chosen,
        beyond=next((k for k in series.asked if k > highest), None),
        cost=interval(known) if len(known) == len(costs) else None,
    )


def gaps(ours: Series, theirs: Series, level: float = LEVEL) -> Gaps:
    """Compare two curves at every k that both have, over the seeds that both have."""
    shared = [k for k in ours.asked if k in theirs.points]
    found = {k: gap(ours.points[k], theirs.points[k], level) for k in shared}
    return {k: one for k, one in found.items() if one is not None}


def told_apart(ours: Series, theirs: Series) -> Gaps:
    """Return the k at which two curves differ beyond chance, though several k were looked at.

    All k share the 5 % of chance; the intervals returned are of 95 % each.
    """
    each = gaps(ours, theirs)
    together = gaps(ours, theirs, shared_level(len(each)))
    return {k: one for k, one in each.items() if k in together and together[k].clear}


def above_dense(curves: Sequence[Series], study: Study) -> tuple[Series, float, Difference] | None:
    """Return the curve and k furthest above the dense network beyond chance, None without one."""
    looked_at = [(series, k) for series in curves for k in series.asked]
    level, best = shared_level(len(looked_at)), None
    for series, k in looked_at:
        each = gap(series.points[k], study.dense)
        together = gap(series.points[k], study.dense, level)
        if each and together and together.low > 0 and (best is None or each.mean > best[2].mean):
            best = series, k, each
    return best


def shared_level(number: int) -> float:
    """Return the level at which so many intervals together leave 5 % to chance.

    >>> round(shared_level(5), 6)
    0.99
    """
    return 1 - (1 - LEVEL) / max(number, 1)


def parting(ours: Series, theirs: Series) -> float | None:
    """Return the first k from which two curves are told apart, None where they never are.

    Among many k one clears zero by luck: the next k must clear it on the same side, and the last
    k, which has no next, by an interval that all the k share (level 1 - 0.05 / their number).
    """
    found = gaps(ours, theirs)
    ks = sorted(found)
    for k, following in pairwise(ks):
        ahead, then = found[k], found[following]
        if ahead.clear and then.clear and (ahead.mean > 0) == (then.mean > 0):
            return k
    if not ks:
        return None
    last = gap(ours.points[ks[-1]], theirs.points[ks[-1]], shared_level(len(ks)))
    return ks[-1] if last is not None and last.clear else None


def pick(study: Study, kind: str, **facts: Any) -> list[Series]:
    """Return the curves of a kind, not drawn by lot and not repaired unless asked for."""
    wanted = {"random": False, "repaired": False} | facts
    return [
        series
        for series in study.curves
        if series.kind == kind
        and all(getattr(series, name) == expected for name, expected in wanted.items())
    ]


def trained(study: Study, kind: str, *, random: bool = False) -> list[Series]:
    """Return the curves of a kind that trained after pruning, the shortest training first."""
    found = [s for s in pick(study, kind, random=random) if s.after]
    return sorted(found, key=lambda series: (series.after or 0.0, series.name))


def untrained(study: Study) -> list[Series]:
    """Return the first curve of weights and of units that nothing was done to after deleting."""
    found = [pick(study, kind, after=0) for kind in (WEIGHTS, UNITS)]
    return [curves[0] for curves in found if curves]
