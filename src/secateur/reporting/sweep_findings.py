"""What a sweep found, in sentences: each is computed from the points, or it is not there.

Differences are of accuracy on test images, in points, paired by seed and image; "clear" means that
the 95 % interval leaves zero out. Which k is chosen is decided on validation data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from secateur.reporting.formats import percent, times
from secateur.reporting.sweep_compare import (
    MAX_DROP,
    above_dense,
    free,
    gaps,
    parting,
    pick,
    told_apart,
    trained,
    untrained,
)
from secateur.reporting.sweep_series import SCRATCH, UNITS, WEIGHTS, Series, Study, own, value
from secateur.reporting.sweep_statistics import Difference, accuracy, interval
from secateur.reporting.sweep_words import (
    by_text,
    count_text,
    epochs_text,
    k_text,
    ks_text,
    lost_text,
    one_seed,
    range_text,
    rounded_up,
    sentence,
    signed_text,
    size_text,
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding: what it is about, its words, and whether it is a hypothesis beside evidence."""

    topic: str
    text: str
    hypothesis: bool = False


def findings(study: Study, max_drop: float = MAX_DROP) -> list[Finding]:
    """Say what a study shows, about 200 words where every curve of the challenge is there.

    max_drop: points that "free" may lose. What the points do not support is not said.
    """
    rules: list[Callable[[Study, float], Finding | None]] = [
        _dense, _free, _parting, _training, _repair, _above, _ways, _scratch, _speed, _why_apart, _why_so_much,
    ]  # fmt: skip
    return [found for rule in rules if (found := rule(study, max_drop)) is not None]


def lead(study: Study, max_drop: float = MAX_DROP) -> str:
    """Say in one sentence how much can go, for the head of a page."""
    allowed = []
    for series in untrained(study):
        found = free(series, study, max_drop)
        if found is not None and found.low > 0:
            allowed.append(f"{range_text(found.low, found.high)} of the {series.kind}")
    if not allowed:
        return f"{study.title}: accuracy against sparsity"
    return (
        f"{' or '.join(allowed)} can be deleted without training for at most {max_drop:g} points "
        "of accuracy"
    )


def _dense(study: Study, max_drop: float) -> Finding | None:
    reached = interval([a for p in study.dense.values() if math.isfinite(a := accuracy(p))])
    if reached is None:
        return None
    epochs = value(next(iter(study.dense.values())), "epochs.total")
    trained_for = f" after {epochs_text(epochs)}" if epochs else ""
    seeds = f"mean of {reached.n} seeds" if reached.n > 1 else "one seed"
    return Finding(topic="dense", text=f"Dense: {percent(reached.mean)}{trained_for}, {seeds}.")


def _free(study: Study, max_drop: float) -> Finding | None:
    parts, none = [], []
    for series in untrained(study):
        found = free(series, study, max_drop)
        if found is None:
            continue
        if not found.high:
            none.append(series.kind)
            continue
        notes = [] if found.beyond is None else [f"{k_text(found.beyond)} is too much"]
        notes += [] if found.cost is None else [f"on test images {lost_text(found.cost)}"]
        aside = f" ({'; '.join(notes)})" if notes else ""
        parts.append(f"{range_text(found.low, found.high)} of the {series.kind}{aside}")
    texts = []
    if parts:
        texts.append(
            f"without further training, at most {max_drop:g} points of validation accuracy go with "
            f"{' or '.join(parts)}"
        )
    if none:
        texts.append(
            f"no k tried for the {' and the '.join(none)} loses as little as {max_drop:g} points on "
            "validation data"
        )
    return Finding(topic="free", text=sentence("; ".join(texts))) if texts else None


def _parting(study: Study, max_drop: float) -> Finding | None:
    pair = untrained(study)
    if len(pair) < 2:
        return None
    weights, units = pair
    found = gaps(units, weights)
    if not found:
        return None
    at = parting(units, weights)
    if at is None:
        widest = max(found, key=lambda k: abs(found[k].mean))
        return Finding(
            topic="parting",
            text=sentence(
                f"{one_seed(found)}at no k tried can weight and unit pruning be told apart "
                f"(widest at {k_text(widest)}: {signed_text(found[widest])})"
            ),
        )
    side = "behind" if found[at].mean < 0 else "ahead"
    text = (
        f"{one_seed(found)}the curves part at {k_text(at)}: units are {size_text(found[at])} {side}"
    )
    same = [k for k in found if found[k].clear and (found[k].mean > 0) == (found[at].mean > 0)]
    widest = max(same, key=lambda k: abs(found[k].mean), default=at)
    if widest != at:
        text += f", {abs(found[widest].mean):.1f} at {k_text(widest)}"
    smaller = [abs(found[k].mean) for k in found if k < at]
    if smaller:
        text += f"; before, the means are within {rounded_up(max(smaller))} points"
    return Finding(topic="parting", text=sentence(text))


def _training(study: Study, max_drop: float) -> Finding | None:
    gains: dict[float, list[str]] = {}
    others, allowed, spent = [], [], []
    for bare in untrained(study):
        for series in trained(study, bare.kind)[:1]:
            gained = gaps(series, bare)
            clear = told_apart(series, bare)
            k = max(clear, key=lambda k: abs(clear[k].mean), default=0.0)
            if clear and clear[k].mean > 0:
                place = f"{size_text(clear[k])} at {k_text(k)} of the {bare.kind}"
                gains.setdefault(series.after or 0.0, []).append(place)
            elif clear:
                others.append(
                    f"{_more(series)} cost the {bare.kind} {size_text(clear[k])} at {k_text(k)}"
                )
            elif gained:
                others.append(f"{_more(series)} changed nothing about the {bare.kind} that can be told "
                              "from chance")  # fmt: skip
            found = free(series, study, max_drop) if gained else None
            if found is not None and found.high:
                allowed.append(f"{range_text(found.low, found.high)} of the {bare.kind}")
                spent.append((series.epochs, series.before))
    texts = [
        f"{count_text(after)} more epoch{'' if after == 1 else 's'} gave back {', '.join(places)}"
        for after, places in gains.items()
    ] + others
    if not texts:
        return None
    if allowed:
        texts.append(f"then {' and '.join(allowed)} can go at that price")
        if len(set(spent)) == 1 and None not in spent[0]:
            texts[-1] += (
                f" ({count_text(spent[0][0])} epochs in all, dense {count_text(spent[0][1])})"
            )
    return Finding(topic="training", text=sentence("; ".join(texts)))


def _more(series: Series) -> str:
    return f"{count_text(series.after)} more epoch{'' if series.after == 1 else 's'}"


def _repair(study: Study, max_drop: float) -> Finding | None:
    bare = next(iter(pick(study, UNITS, after=0)), None)
    repaired = next(iter(pick(study, UNITS, after=0, repaired=True)), None)
    clear = told_apart(repaired, bare) if bare and repaired else {}
    if not clear:
        return None
    k = max(clear, key=lambda k: abs(clear[k].mean))
    verb = "gives back" if clear[k].mean > 0 else "costs"
    return Finding(
        topic="repair",
        text=f"Solving the next layer again, without training, {verb} {size_text(clear[k])} at "
        f"{k_text(k)} of the units.",
    )


def _above(study: Study, max_drop: float) -> Finding | None:
    """A pruned network above the dense one, and what it had that the dense one had not."""
    best = above_dense([*trained(study, WEIGHTS), *trained(study, UNITS)], study)
    if best is None:
        return None
    series, k, found = best
    return Finding(
        topic="above dense",
        text=f"Best: {k_text(k)} of the {series.kind} gone, {size_text(found)} above dense, but trained "
        f"{epochs_text(series.after)} longer.",
    )


def _ways(study: Study, max_drop: float) -> Finding | None:
    """Which of several ways of training to the same budget is ahead, at the largest k that tells."""
    for kind in (WEIGHTS, UNITS):
        curves = trained(study, kind)
        for one in reversed(curves):
            for other in curves:
                if other is one or other.after != one.after:
                    continue
                found = told_apart(one, other)
                ahead = [k for k in found if found[k].mean > 0]
                if ahead:
                    k = max(ahead)
                    return Finding(
                        topic="ways",
                        text=f"Of two ways to spend {epochs_text(one.after)} more, \N{LEFT DOUBLE QUOTATION MARK}"
                        f"{one.name}\N{RIGHT DOUBLE QUOTATION MARK} is {size_text(found[k])} ahead of "
                        f"\N{LEFT DOUBLE QUOTATION MARK}{other.name}\N{RIGHT DOUBLE QUOTATION MARK} at {k_text(k)}.",
                    )
    return None


def _scratch(study: Study, max_drop: float) -> Finding | None:
    small = pick(study, SCRATCH)
    repaired = [series for series in pick(study, UNITS, repaired=True) if series.after]
    others = [*trained(study, UNITS), *repaired] or trained(study, WEIGHTS)
    if not small or not others:
        return None
    other = min(others, key=lambda s: abs((s.epochs or 0) - (small[0].epochs or 0)))
    found = gaps(small[0], other)
    if not found:
        return None
    clear = told_apart(small[0], other)
    ahead = [k for k in clear if clear[k].mean > 0]
    behind = [k for k in clear if clear[k].mean < 0]
    unclear = [k for k in found if k not in clear]
    parts = [
        f"ahead at {ks_text(ahead)}{by_text(found, ahead)}" if ahead else "",
        f"behind at {ks_text(behind)}{by_text(found, behind)}" if behind else "",
        f"not told apart at {ks_text(unclear)}" if unclear else "",
    ]
    known = small[0].epochs and other.epochs
    budgets = [
        f" ({text(one.epochs)})" if known else ""
        for one, text in ((small[0], epochs_text), (other, count_text))
    ]
    return Finding(
        topic="scratch",
        text=f"Small networks from scratch{budgets[0]} against pruned, "
        f"{'repaired, ' * other.repaired}trained {other.kind}{budgets[1]}: "
        f"{', '.join(part for part in parts if part)}.",
    )


def _speed(study: Study, max_drop: float) -> Finding | None:
    dense = _timed(list(study.dense.values()))
    parts = []
    for series in pick(study, UNITS) + pick(study, UNITS, repaired=True):
        timings = {k: t for k in series.asked if (t := _timed(list(series.points[k].values())))}
        if dense and timings:
            allowed = free(series, study, max_drop)
            k = max((k for k in timings if allowed and k <= allowed.low), default=max(timings))
            parts.append(_faster(timings[k], dense, k))
            break
    weights = [p for s in pick(study, WEIGHTS) for k in s.asked for p in s.points[k].values()]
    if dense and any(p.get("latency") and not own(p, "latency") for p in weights):
        parts.append("deleting single weights leaves the dense shape, whose time is shown")
    return Finding(topic="speed", text=sentence("; ".join(parts))) if parts else None


def _timed(points: Sequence[dict]) -> tuple[float, float, float] | None:
    """Median, lowest and highest time of one image over points that were timed themselves."""
    own_times = [p for p in points if own(p, "latency")]
    keys = ("latency.median_us", "latency.low_us", "latency.high_us")
    found = [tuple(value(p, key) for key in keys) for p in own_times]
    full = [one for one in found if None not in one]
    if not full:
        return None
    middle, low, high = (sorted(one[i] or 0.0 for one in full) for i in range(3))
    return middle[len(middle) // 2], low[0], high[-1]


def _faster(ours: tuple, dense: tuple, k: float) -> str:
    pair = f"{ours[0]:.1f} against {dense[0]:.1f} us"
    if ours[2] < dense[1]:
        return f"without {k_text(k)} of its units the network is {times(dense[0] / ours[0])} times faster ({pair})"
    if ours[1] > dense[2]:
        return f"without {k_text(k)} of its units the network is {times(ours[0] / dense[0])} times slower ({pair})"
    return f"without {k_text(k)} of its units the network is not told apart in speed ({pair})"


def _why_apart(study: Study, max_drop: float) -> Finding | None:
    pair = untrained(study)
    if len(pair) < 2:
        return None
    weights, units = pair
    at = parting(units, weights)
    if at is None:
        return None
    norms = [_mean(series, at, "norm_removed") for series in (weights, units)]
    ahead = gaps(units, weights)[at].mean > 0
    if None in norms or norms[0] == norms[1]:
        return None
    evidence = f"at {k_text(at)} units hold {percent(norms[1], 0)} of the squared weights"
    singly = percent(norms[0], 0)
    dead, zeros = _mean(units, at, "sparsity.dead.network"), _mean(weights, at, "sparsity.realised")
    if dead is not None and zeros is not None and dead > zeros:
        evidence += f" and leave {percent(dead, 0)} of all weights dead"
        singly += f" and {percent(zeros, 0)}"
    evidence += f", single weights {singly}"
    if ((norms[1] or 0.0) > (norms[0] or 0.0)) == ahead:
        return Finding(
            topic="why apart", text=f"The share of the norm does not explain the gap: {evidence}."
        )
    return Finding(
        topic="why apart",
        text=f"Hypothesis: they differ because units take more along: {evidence}.",
        hypothesis=True,
    )


def _why_so_much(study: Study, max_drop: float) -> Finding | None:
    bare = next(iter(pick(study, WEIGHTS, after=0)), None)
    allowed = free(bare, study, max_drop) if bare else None
    parts = []
    if bare and allowed and allowed.low > 0:
        norm = _mean(bare, allowed.low, "norm_removed")
        if norm is not None and norm < allowed.low / 2:
            parts.append(
                f"the smallest {k_text(allowed.low)} hold {percent(norm, 0)} of the squared weights"
            )
    chance = _against_chance(study)
    if chance is not None:
        k, lost, told, after = chance
        if not told or lost.mean <= 0:
            side = f"{size_text(lost)} better" if told else "not told apart from them"
            return Finding(
                topic="why so much",
                text=f"That the smallest weights matter least is not seen here: at {k_text(k)} weights "
                f"drawn by lot{after} are {side}.",
            )
        parts.append(f"as many drawn by lot{after} end {lost.mean:.1f} points lower at {k_text(k)}")
    if not parts:
        return None
    return Finding(
        topic="why so much",
        text=f"Hypothesis: so much can go because most weights hardly matter; {', '.join(parts)}.",
        hypothesis=True,
    )


def _against_chance(study: Study) -> tuple[float, Difference, bool, str] | None:
    """The k at which magnitude and lot differ most at the same budget, and whether beyond chance."""
    for lot in pick(study, WEIGHTS, random=True):
        for chosen in pick(study, WEIGHTS, after=lot.after):
            found = gaps(chosen, lot)
            if found:
                clear = told_apart(chosen, lot)
                k = max(clear, key=lambda k: abs(clear[k].mean)) if clear else min(found)
                after = f", trained {epochs_text(lot.after)}," if lot.after else ""
                return k, found[k], k in clear, after
    return None


def _mean(series: Series, k: float, dotted: str) -> float | None:
    found = interval([v for p in series.points[k].values() if (v := value(p, dotted)) is not None])
    return None if found is None else found.mean
