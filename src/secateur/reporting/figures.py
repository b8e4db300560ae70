"""What the figures of the page show: from Runs to the numbers, words and SVG of each section."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from statistics import fmean
from typing import Any

from secateur.reporting import charts
from secateur.reporting.aggregation import (
    BASELINE,
    CONTROL,
    QUALITIES,
    Row,
    Run,
    quality_row,
    values,
)
from secateur.reporting.formats import (
    byte_count,
    finite,
    measure,
    percent,
    weight_value,
    whole,
)
from secateur.reporting.sentence import subject_row

STYLES = {BASELINE: "base", CONTROL: "ctrl"}
STAGE_NAMES = {CONTROL: "dense control"}
METRIC_ORDER = ("loss", "accuracy")
MOST_CURVES = 3

Json = dict[str, Any]


def results(runs: Sequence[Run], table: Sequence[Row]) -> Json | None:
    """Prepare the opening figure: a bar for each file's size, a dot for each seed's accuracy."""
    sized = [row for row in table if row["bytes"] is not None and row["stage"] != CONTROL]
    widest = max((row["bytes"] for row in sized), default=0) or 1
    size = {row["row"]: row["bytes"] for row in table}
    quality = next((q for q in QUALITIES if any(row[q] is not None for row in table)), None)
    found = {row["row"]: values(runs, row["row"], quality) for row in table} if quality else {}
    low, high = _domain([dot for dots in found.values() for dot in dots.values()], quality)
    rule = found.get(quality_row(runs, BASELINE, quality) or "", {}) if quality else {}
    entries = []
    for row in table:
        bar = ""
        if row in sized:
            bar = charts.size_bar(
                row["bytes"] / widest,
                None if row["gzip_bytes"] is None else row["gzip_bytes"] / widest,
                (size.get(row["reference"]) or row["bytes"]) / widest,
                STYLES.get(row["stage"], "cut"),
                f"{row['row']}: {byte_count(row['bytes'])}, gzipped {byte_count(row['gzip_bytes'])}",
            )
        dots, strip = list(found.get(row["row"], {}).values()), ""
        if dots and quality:
            strip = charts.dot_strip(
                [_share(dot, low, high) for dot in dots],
                _share(fmean(dots), low, high),
                _share(fmean(rule.values()), low, high) if rule else None,
                STYLES.get(row["stage"], "cut"),
                f"{row['row']}: {', '.join(level(dot, quality) for dot in dots)}",
            )
        if bar or strip:
            entries.append({"row": row, "bar": bar, "strip": strip, "style": style(row["stage"])})
    if not entries:
        return None
    scale = [level(edge, quality) for edge in (low, high)] if quality and found else None
    return {"entries": entries, "quality": quality, "scale": scale, "rule": bool(rule)}


def stem(table: Sequence[Row]) -> str:
    """Prepare the rule under the sentence: a stem cut to what is left of the reference, by gzip."""
    row = subject_row(table)
    reference = next((one for one in table if row and one["row"] == row["reference"]), None)
    if row is None or reference is None:
        return ""
    packed = row["percent_gzip"] is not None
    share = row["percent_gzip" if packed else "percent"]
    if share is None or share >= 99.5:
        return ""
    key = "gzip_bytes" if packed else "bytes"
    return charts.stem_rule(
        share / 100,
        f"{row['row']} is {percent(share / 100, 1)} of {reference['row']}: {byte_count(row[key])} of "
        f"{byte_count(reference[key])}{' gzipped' if packed else ''}",
    )


def layers(run: Run) -> list[Json]:
    """Prepare sparsity, histogram and first values of each weight of the last compressed stage."""
    stage = last_compressed(run)
    if stage is None:
        return []
    before = {
        weight.get("path"): weight for weight in (_stage(run, BASELINE) or {}).get("weights") or []
    }
    changed = {e.get("path") for e in run.get("plan") or [] if e.get("status") == "changed"}
    prepared = []
    for weight in stage.get("weights") or []:
        path, old = str(weight.get("path")), before.get(weight.get("path")) or {}
        # A bias may hold a zero of its own: that is no doing of the plan.
        touched = path in changed if run.get("plan") else bool(weight.get("zeros"))
        size, zeros = finite(weight.get("size")) or 0.0, finite(weight.get("zeros")) or 0.0
        kept = 1 - zeros / size if size else 1.0
        prepared.append({
            "path": path,
            "shape": shape_text(weight.get("shape")),
            "size": size,
            "zeros": zeros,
            "sparsity": percent(1 - kept),
            "touched": touched,
            "bar": charts.kept_bar(kept, f"{path}: {whole(zeros)} zeros of {whole(size)} weights"),
            "histogram": _histogram(path, old, weight) if touched else "",
            "grids": _grids(old, weight) if touched else [],
        })  # fmt: skip
    return prepared


def curves(runs: Sequence[Run]) -> list[Json]:
    """Prepare a chart for each metric of the training: each stage from where the one before it ended.

    The dense control branches off at the end of the baseline.
    """
    names = dict.fromkeys(
        key.removeprefix("val_")
        for run in runs
        for stage in run["stages"]
        for key in stage.get("history") or {}
    )
    ordered = sorted(names, key=lambda n: METRIC_ORDER.index(n) if n in METRIC_ORDER else 9)
    prepared = []
    for name in ordered[:MOST_CURVES]:
        lines = [*_metric_lines(runs, name, dashed=True), *_metric_lines(runs, f"val_{name}")]
        svg = epochs_chart(
            name, lines, f"{words(name)} for each epoch, training and validation, by stage"
        )
        if svg:
            prepared.append({"name": words(name), "svg": svg})
    return prepared


def epochs_chart(name: str, lines: Sequence[charts.Line], label: str) -> str:
    """Draw a metric over the epochs of training; nothing where no line has a point.

    name: the metric's key. label: what a screen reader says.
    """
    heights = [y for line in lines for _, y in line.points]
    heights += [edge for line in lines for _, low, high in line.band for edge in (low, high)]
    if not heights:
        return ""
    share = "acc" in name and 0 <= min(heights) and max(heights) <= 1
    last = max(x for line in lines for x, _ in line.points)
    y_ticks = charts.ticks(min(heights), min(max(heights), 1.0) if share else max(heights))
    digits = 1 if share and y_ticks[1] - y_ticks[0] < 0.01 else 0

    def text(value: float) -> str:  # what the pointer reads is finer than the axis
        return percent(value, digits if value in y_ticks else 2) if share else measure(value)

    return charts.line_chart(
        lines,
        x=charts.Axis(ticks=_epoch_ticks(int(last)), text=whole, label="epoch", end=max(last, 2.0)),
        y=charts.Axis(ticks=y_ticks, text=text),
        label=label,
    )


def epoch_means(
    series: Sequence[Sequence[float | None]], offset: int = 0
) -> tuple[list[charts.Point], list[tuple[float, float, float]]]:
    """Average one value an epoch over seeds, as long as all have one: (epoch, mean), (epoch, low, high).

    offset: epochs that went before. An epoch without a finite value is left out.

    >>> epoch_means([[0.25, 0.5], [0.75, 0.5, 0.2]], 5)[0]
    [(6.0, 0.5), (7.0, 0.5)]
    """
    points, band = [], []
    for epoch in range(min(map(len, series), default=0)):
        found = [value for one in series if (value := one[epoch]) is not None]
        if found:
            points.append((float(offset + epoch + 1), fmean(found)))
            band.append((float(offset + epoch + 1), min(found), max(found)))
    return points, band


def sparsity_curve(run: Run) -> Json | None:
    """Prepare the chart of the zeros over the steps of the last stage that made any."""
    made = [stage for stage in run["stages"] if stage.get("sparsity_curve")]
    stage = made[-1] if made else {}
    points = [
        (x, y)
        for pair in stage.get("sparsity_curve") or []
        if (x := finite(pair[0])) is not None and (y := finite(pair[1])) is not None
    ]
    if not points:
        return None
    end = max(finite(stage.get("steps")) or 0.0, points[-1][0])
    marks = charts.Line(name="zeros", style="cut", points=points, steps=True)
    tail = charts.Line(
        name="zeros", style="cut", points=[points[-1], (end, points[-1][1])], joined=2, steps=True
    )
    svg = charts.line_chart(
        [marks, tail],
        x=charts.Axis(
            ticks=[tick for tick in charts.ticks(0, end, 4) if tick <= end],
            text=whole,
            label="step",
            end=end,
        ),
        y=charts.Axis(
            ticks=charts.ticks(0, max(y for _, y in points), 4), text=partial(percent, digits=0)
        ),
        label=f"share of zeros over the steps of stage {stage['name']}, from "
        f"{percent(points[0][1])} to {percent(points[-1][1])}",
    )
    return {"stage": stage["name"], "svg": svg, "updates": len(points)}


def splits(data: Json) -> Json | None:
    """Prepare the parts of the data: how many samples each and their proportions."""
    sizes = data.get("sizes") or {}
    named = [(str(name), number) for name, value in sizes.items() if (number := finite(value))]
    # Calibration inputs are some of the training inputs: counted beside, not among the parts.
    apart = [(name, size) for name, size in named if name != "calibration"]
    total = sum(size for _, size in apart)
    if not total:
        return None
    bar = charts.split_bar([(f"{name}: {whole(size)}", size / total) for name, size in apart])
    calibration = next((whole(size) for name, size in named if name == "calibration"), None)
    parts = [{"name": name, "size": whole(size)} for name, size in apart]
    return {"bar": bar, "parts": parts, "calibration": calibration}


def last_compressed(run: Run) -> Json | None:
    """Return the last stage that is neither the baseline nor the dense control."""
    found = [stage for stage in run["stages"] if stage["name"] not in (BASELINE, CONTROL)]
    return found[-1] if found else None


def style(stage: str) -> str:
    """Return the CSS class of a stage's colour."""
    return STYLES.get(stage, "cut")


def level(value: float | None, quality: str) -> str:
    """Write a quality in its own unit."""
    return percent(value) if quality == "accuracy" else measure(value)


def words(name: str) -> str:
    """Write a metric's key as words."""
    return name.replace("_", " ")


def shape_text(shape: Any) -> str:
    """Write a shape with multiplication signs."""
    if not isinstance(shape, list | tuple):
        return ""
    return " \N{MULTIPLICATION SIGN} ".join(whole(side) for side in shape)


def _metric_lines(runs: Sequence[Run], key: str, dashed: bool = False) -> list[charts.Line]:
    lines = []
    ended: tuple[int, charts.Point | None] = (0, None)  # of the stage before: epochs, last point
    baseline = ended
    for index, stage in enumerate(runs[0]["stages"]):
        series = [_history(run, index, key) for run in runs]
        length = min(len(one) for one in series)
        offset, stem = baseline if stage["name"] == CONTROL else ended
        points, band = epoch_means(series, offset)
        joined = [stem] if stem and points else []
        if points:
            kind = "training" if dashed else "validation"
            lines.append(
                charts.Line(
                    name=f"{STAGE_NAMES.get(stage['name'], stage['name'])}, {kind}",
                    style=style(stage["name"]),
                    points=[*joined, *points],
                    band=band if len(runs) > 1 and not dashed else (),
                    dashed=dashed,
                    joined=len(joined),
                )
            )
        if points and stage["name"] != CONTROL:
            ended = offset + length, points[-1]
            baseline = ended if stage["name"] == BASELINE else baseline
    return lines


def _history(run: Run, index: int, key: str) -> list[float | None]:
    stages = run["stages"]
    history = (stages[index].get("history") or {}) if index < len(stages) else {}
    return [finite(value) for value in history.get(key) or []]


def _epoch_ticks(last: int) -> list[float]:
    step = max(1, -(-last // 8))
    inner = list(range(1, last + 1, step))
    return [float(epoch) for epoch in (inner if last > 1 else [0, 1, 2])]


def _histogram(path: str, old: Json, new: Json) -> str:
    before, after = _bins(old), _bins(new)
    zeros = int(finite(new.get("zeros")) or 0)
    if after is not None:
        edges, counts = after
        # The record counts exact zeros in the bin of 0; they are drawn as a stem instead.
        for index, (left, right) in enumerate(pairwise(edges)):
            if left <= 0 < right or (index == len(counts) - 1 and right == 0):
                counts[index] = max(0.0, counts[index] - zeros)
    if before is None and after is None:
        return ""
    label = (
        f"distribution of the values of {path} before and after, {whole(zeros)} exact zeros after"
    )
    return charts.histogram(before, after, zeros, label=label, number=weight_value)


def _bins(weight: Json) -> tuple[list[float], list[float]] | None:
    record = weight.get("histogram") or {}
    edges = [finite(edge) for edge in record.get("edges") or []]
    counts = [finite(count) for count in record.get("counts") or []]
    if len(edges) < 2 or len(counts) != len(edges) - 1:
        return None
    if any(edge is None for edge in edges) or any(count is None for count in counts):
        return None
    return [edge or 0.0 for edge in edges], [count or 0.0 for count in counts]


def _grids(old: Json, new: Json) -> list[Json]:
    pairs = [("before", old.get("first") or []), ("after", new.get("first") or [])]
    sizes = [abs(n) for _, first in pairs for value in first if (n := finite(value)) is not None]
    largest = max(sizes, default=0.0) or 1.0
    return [
        {
            "when": when,
            "cells": [
                {
                    "text": weight_value(value),
                    "exact": "no number" if finite(value) is None else repr(value),
                    "zero": finite(value) == 0,
                    "share": round(abs(finite(value) or 0.0) / largest, 3),
                }
                for value in first[:16]
            ],
        }
        for when, first in pairs
        if first
    ]


def _stage(run: Run, name: str) -> Json | None:
    return next((stage for stage in run["stages"] if stage["name"] == name), None)


def _domain(numbers: Sequence[float], quality: str | None) -> tuple[float, float]:
    """Choose round ends for the strips; no accuracy scale leaves [0, 1]."""
    if not numbers:
        return 0.0, 1.0
    low, high = min(numbers), max(numbers)
    if quality == "accuracy" and high - low < 0.01:
        low, high = low - 0.005, high + 0.005
    edges = charts.ticks(low, high, 3)
    if quality == "accuracy":
        return max(edges[0], 0.0), min(edges[-1], 1.0)
    return edges[0], edges[-1]


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5
