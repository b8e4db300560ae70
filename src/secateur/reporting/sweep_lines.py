"""What the figures of a sweep draw: for each curve its points over k and their bands, as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from secateur.reporting.sweep_series import DENSE, OF_DENSE, SCRATCH, Series, Study, value
from secateur.reporting.sweep_statistics import Interval, Record, interval
from secateur.reporting.sweep_table import mean

METRICS = {"accuracy": "Accuracy", "loss": "Loss", "time": "Time of one image"}
AXES = {"zoomed": "zoomed near 100 %", "even": "even steps"}
SPARSITIES = {"asked": "asked of the deleted weights", "realised": "realised in the whole network"}
KEYS = {"accuracy": "test.accuracy", "loss": "test.loss", "time": "latency.median_us"}
MOST = 0.9999  # a zoomed axis has no end: what is drawn there at most
TICKS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a figure: (sparsity, mean) and (sparsity, low, high); borrowed: the dense figures."""

    name: str
    number: int
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]]
    borrowed: bool = False


def curves(study: Study, metric: str, sparsity: str = "asked") -> list[Curve]:
    """Return a line for each curve that has the metric; `number` is its place in the study.

    metric: a key of METRICS. sparsity: "asked" or "realised" is what lies on the x axis. Time has
    a line a kind, numbered as the first curve of that kind.
    """
    if metric == "time":
        members = [(_first(study, series), series) for series in _by_shape(study)]
    else:
        members = list(enumerate(study.curves))
    found = []
    for number, series in members:
        line = _curve(series, number, metric, sparsity)
        if line.points:
            found.append(line)
    return found


def dense_level(study: Study, metric: str) -> Interval | None:
    """Return the level of the dense network, drawn as a line across."""
    return _level(list(study.dense.values()), metric)


def zoomed(sparsity: float) -> float:
    """Place a sparsity on an axis on which each tenth of what is left is as wide.

    >>> [round(zoomed(k), 6) for k in (0.0, 0.9, 0.99)]
    [0.0, 1.0, 2.0]
    """
    return math.log10(1.0 / (1.0 - min(max(sparsity, 0.0), MOST)))


def end(lines: Sequence[Curve]) -> float:
    """Return the largest sparsity that is drawn."""
    return max((x for line in lines for x, _ in line.points), default=1.0)


def marks(last: float) -> list[float]:
    """Return the sparsities that a zoomed axis names, up to the last one drawn."""
    return [tick for tick in TICKS if tick <= last + 1e-9]


def _by_shape(study: Study) -> list[Series]:
    """One curve a kind: time is the shape's, however the weights in it came to be."""
    kinds: dict[str, dict[float, dict[int, Record]]] = {}
    for series in study.curves:
        for k, records in series.points.items():
            timed = {seed: one for seed, one in records.items() if one.get("latency")}
            if timed:
                kinds.setdefault(series.kind, {}).setdefault(k, {}).update(timed)
    return [Series(name=kind, kind=kind, points=points) for kind, points in kinds.items()]


def _first(study: Study, series: Series) -> int:
    return next(n for n, one in enumerate(study.curves) if one.kind == series.kind)


def _curve(series: Series, number: int, metric: str, sparsity: str) -> Curve:
    points, band, borrowed = [], [], False
    for k in sorted(series.points):
        records = list(series.points[k].values())
        level = _level(records, metric)
        x = k if sparsity == "asked" else mean(records, "sparsity.realised")
        unplaced = x is None or (sparsity == "realised" and series.kind == SCRATCH and not x)
        if level is None or x is None or unplaced or (series.kind == DENSE and not x):
            continue
        points.append((x, level.mean))
        if level.low is not None and level.high is not None:
            band.append((x, level.low, level.high))
        if metric == "time":
            borrowed |= any((r.get("latency") or {}).get("of") == OF_DENSE for r in records)
    order = sorted(range(len(points)), key=lambda index: points[index])
    return Curve(
        name=series.name,
        number=number,
        points=[points[index] for index in order],
        band=sorted(band) if len(band) == len(points) else (),
        borrowed=borrowed,
    )


def _level(records: Sequence[Record], metric: str) -> Interval | None:
    numbers = [found for r in records if (found := value(r, KEYS[metric])) is not None]
    level = interval(numbers)
    if level is None:
        return None
    if metric == "time":  # once for each shape: its spread is that of the timing
        low, high = mean(records, "latency.low_us"), mean(records, "latency.high_us")
        return Interval(mean=level.mean, low=low, high=high, n=level.n)
    if level.low is None or level.high is None:
        return level
    top = 1.0 if metric == "accuracy" else math.inf
    return Interval(mean=level.mean, low=max(level.low, 0.0), high=min(level.high, top), n=level.n)
