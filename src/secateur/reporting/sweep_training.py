"""How the networks of a sweep were trained: loss and accuracy epoch by epoch, a line for each curve and k.

One sparsity is drawn strongly and the others faintly, so that a chart holds every training and can
still be read. Only lines are drawn, no marks: ten curves at ten sparsities stay some kilobytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from secateur.reporting import charts
from secateur.reporting.figures import METRIC_ORDER, MOST_CURVES, epoch_means, epochs_chart, words
from secateur.reporting.formats import finite
from secateur.reporting.sweep_figures import style
from secateur.reporting.sweep_plots import STONE, TONES, EpochLine
from secateur.reporting.sweep_series import SCRATCH, Series, Study
from secateur.reporting.sweep_statistics import Record
from secateur.reporting.sweep_words import k_text

FIRST_SHOWN = (
    0.9  # where training usually tells the curves apart; the nearest k to it is shown first
)


@dataclass(frozen=True, kw_only=True)
class Training:
    """One metric over the epochs of one training, a mean over seeds; epochs count from the first of all.

    number: the curve's place in the study, None for the dense network's own training, whose k is
    None too. joined: whether the first point is the end of the dense training.
    """

    name: str
    number: int | None
    k: float | None
    validation: bool
    points: Sequence[charts.Point]
    joined: bool = False


def metrics(study: Study) -> list[str]:
    """The metrics that the trainings kept, loss and accuracy first, without "val_" before them."""
    names = dict.fromkeys(
        key.removeprefix("val_")
        for record in study.records
        for history in (record.get("history") or {}).values()
        for key in history or {}
    )
    order = sorted(names, key=lambda n: METRIC_ORDER.index(n) if n in METRIC_ORDER else 9)
    return order[:MOST_CURVES]


def levels(study: Study) -> list[float]:
    """Every k at which something was trained, in order."""
    return sorted({k for series in study.curves for k in series.points if _history(series, k)})


def first_shown(study: Study) -> float | None:
    """The k that is drawn strongly at first; None where nothing but dense networks was trained."""
    return min(levels(study), key=lambda k: (abs(k - FIRST_SHOWN), k), default=None)


def trainings(study: Study, metric: str) -> list[Training]:
    """The dense network's training and that of each curve at each k, on training data, then on validation."""
    found = []
    for key, validation in ((metric, False), (f"val_{metric}", True)):
        stem, _ = epoch_means(_series(_dense_records(study), "dense", key))
        if stem:
            found.append(
                Training(name="dense", number=None, k=None, validation=validation, points=stem)
            )
        for number, series in enumerate(study.curves):
            for k in sorted(series.points):
                records = list(series.points[k].values())
                begin = 0 if series.kind == SCRATCH else int(series.before or 0)
                points, _ = epoch_means(_series(records, "after", key), begin)
                end = [point for point in stem if point[0] == begin] if points else []
                if points:
                    found.append(
                        Training(
                            name=series.name, number=number, k=k, validation=validation,
                            points=[*end, *points], joined=bool(end),
                        )
                    )  # fmt: skip
    return found


def figure(study: Study) -> dict[str, Any] | None:
    """Prepare the page's figure: a chart a metric, the k to choose from, a legend; None without any."""
    every, shown = levels(study), first_shown(study)
    drawn = {}
    for metric in metrics(study):
        found = trainings(study, metric)
        held_out = any(one.validation for one in found)
        lines = [_line(one, every, shown, dashed=held_out and not one.validation) for one in found]
        label = f"{words(metric)} for each epoch, a line for each curve and sparsity"
        svg = epochs_chart(metric, lines, label)
        if svg:
            drawn[words(metric)] = svg, found
    if not drawn:
        return None
    told = [one for _, found in drawn.values() for one in found]
    numbers = {one.number for one in told}
    return {
        "charts": [{"name": name.capitalize(), "svg": svg} for name, (svg, _) in drawn.items()],
        "levels": [
            {"place": place, "text": k_text(k), "shown": k == shown}
            for place, k in enumerate(every)
        ],
        "legend": [
            {"name": series.name, "style": style(number), "number": number}
            for number, series in enumerate(study.curves)
            if number in numbers
        ],
        "dense": None in numbers,
        "both": len({one.validation for one in told}) == 2,
    }


def plot_lines(study: Study, metric: str = "loss") -> list[EpochLine]:
    """What a document draws of it: the dense training and every curve's at the k that is shown first."""
    shown = first_shown(study)
    return [
        EpochLine(
            name=f"{one.name}, {'validation' if one.validation else 'training'}",
            points=one.points,
            tone=STONE if one.number is None else TONES[one.number % len(TONES)],
            dash="-" if one.validation else "--",
        )
        for one in trainings(study, metric)
        if one.k in (None, shown)
    ]


def caption(study: Study) -> str:
    """Say what the document's figure shows."""
    shown = first_shown(study)
    at = "" if shown is None else f", of the curves those at {k_text(shown)}"
    mean = ", mean over seeds" if len(study.seeds) > 1 else ""
    return f"Loss for each epoch{at}: training dashed, validation solid{mean}."


def _line(one: Training, every: Sequence[float], shown: float | None, dashed: bool) -> charts.Line:
    tone = "base"
    if one.number is not None and one.k is not None:
        tone = f"{style(one.number)} at-{every.index(one.k)}" + ("" if one.k == shown else " aside")
    kind = "validation" if one.validation else "training"
    at = "" if one.k is None else f" at {k_text(one.k)}"
    return charts.Line(
        name=f"{one.name}{at}, {kind}",
        style=tone,
        points=one.points,
        dashed=dashed,
        joined=int(one.joined),
        bare=True,
    )


def _history(series: Series, k: float) -> bool:
    return any((r.get("history") or {}).get("after") for r in series.points[k].values())


def _dense_records(study: Study) -> list[Record]:
    """A record a seed that tells of the dense training: any of them does, the dense one's first."""
    found: dict[int, Record] = {}
    points = [
        r for series in study.curves for seeds in series.points.values() for r in seeds.values()
    ]
    for record in [*study.dense.values(), *points]:
        if record.get("kind_of") != SCRATCH and (record.get("history") or {}).get("dense"):
            found.setdefault(record["seed"], record)
    return [found[seed] for seed in sorted(found)]


def _series(records: Sequence[Record], part: str, key: str) -> list[list[float | None]]:
    """The metric of each seed that kept it, one value an epoch."""
    found = [((r.get("history") or {}).get(part) or {}).get(key) or [] for r in records]
    return [[finite(number) for number in one] for one in found if one]
