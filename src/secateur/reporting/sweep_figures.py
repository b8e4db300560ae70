"""The figures of a sweep's page: inline SVG for each metric, axis and sparsity; a script shows one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.reporting import charts
from secateur.reporting.formats import measure, percent
from secateur.reporting.sweep_lines import (
    AXES,
    METRICS,
    SPARSITIES,
    Curve,
    curves,
    dense_level,
    end,
    marks,
    zoomed,
)
from secateur.reporting.sweep_series import Study
from secateur.reporting.sweep_statistics import Interval
from secateur.reporting.sweep_words import k_text

COLOURS = 8  # classes curve-0 to curve-7 of sweep.css; more curves begin again, dashed


def figures(study: Study) -> list[dict[str, Any]]:
    """Prepare a figure for each metric that the study has: its charts, one for each axis and sparsity."""
    prepared = []
    for metric, title in METRICS.items():
        charts_of = []
        for sparsity in SPARSITIES:
            lines = curves(study, metric, sparsity)
            for axis in AXES if lines else ():
                svg = chart(lines, dense_level(study, metric), metric, axis, sparsity)
                charts_of.append({"axis": axis, "sparsity": sparsity, "svg": svg})
        if charts_of:
            borrowed = any(line.borrowed for line in curves(study, metric))
            prepared.append(
                {"metric": metric, "title": title, "charts": charts_of, "borrowed": borrowed}
            )
    return prepared


def legend(study: Study) -> list[dict[str, Any]]:
    """List the curves with the class of their colour."""
    drawn = {line.number for metric in METRICS for line in curves(study, metric)}
    return [
        {"name": series.name, "style": style(number), "number": number}
        for number, series in enumerate(study.curves)
        if number in drawn
    ]


def style(number: int) -> str:
    """Return the classes of a curve: its own, and its colour's."""
    return f"curve-{number} tone-{number % COLOURS}" + (" again" if number >= COLOURS else "")


def chart(
    lines: Sequence[Curve], dense: Interval | None, metric: str, axis: str, sparsity: str
) -> str:
    """Draw one metric of every curve against sparsity, the dense network as a line across."""
    place = zoomed if axis == "zoomed" else float
    last = end(lines)
    stop = last if axis == "zoomed" else 1.0
    drawn = [_line(line, place) for line in lines]
    heights = [y for line in drawn for _, y in line.points]
    heights += [edge for line in drawn for _, low, high in line.band for edge in (low, high)]
    if dense is not None:
        heights.append(dense.mean)
        ends = (place(0.0), place(stop))
        band = (
            [(x, dense.low, dense.high) for x in ends]
            if dense.low is not None and dense.high is not None
            else ()
        )
        across = [(x, dense.mean) for x in ends]
        drawn.insert(0, charts.Line(name="dense", style="base", points=across, band=band, joined=2))
    ticks = marks(last) if axis == "zoomed" else [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    return charts.line_chart(
        drawn,
        x=charts.Axis(
            ticks=[place(tick) for tick in ticks],
            text=_zoomed_text if axis == "zoomed" else k_text,
            label=f"sparsity, {sparsity}",
            end=place(stop),
        ),
        y=_height_axis(metric, heights),
        label=f"{METRICS[metric]} against {sparsity} sparsity, a line for each curve",
    )


def _line(line: Curve, place) -> charts.Line:
    return charts.Line(
        name=line.name,
        style=style(line.number),
        points=[(place(x), y) for x, y in line.points],
        band=[(place(x), low, high) for x, low, high in line.band],
        dashed=line.borrowed,
    )


def _height_axis(metric: str, heights: Sequence[float]) -> charts.Axis:
    low = 0.0 if metric == "time" else min(heights)
    ticks = charts.ticks(low, max(heights))
    if metric != "accuracy":
        return charts.Axis(ticks=ticks, text=_micro if metric == "time" else measure)
    ticks = [tick for tick in ticks if tick <= 1.0]
    digits = 1 if len(ticks) > 1 and ticks[1] - ticks[0] < 0.01 else 0

    def text(share: float) -> str:  # what the pointer reads is finer than the axis
        return percent(share, digits if share in ticks else 2)

    return charts.Axis(ticks=ticks, text=text, end=max(ticks[-1], *heights))


def _micro(number: float) -> str:
    return f"{number:,.4g} us"


def _zoomed_text(place: float) -> str:
    return k_text(1.0 - 10.0**-place)
