"""What a document, a notebook or a hand-in tells: the same parts, whether of a sweep or of Runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from secateur.errors import SecateurError
from secateur.reporting import run_plots, sweep_plots, sweep_training, words
from secateur.reporting.aggregation import rows
from secateur.reporting.sentence import headline
from secateur.reporting.sweep_compare import MAX_DROP
from secateur.reporting.sweep_findings import findings, lead
from secateur.reporting.sweep_lines import METRICS
from secateur.reporting.sweep_series import Study, csv_text, studies
from secateur.reporting.sweep_table import cells, columns, footnote, method_lines, missing_lines
from secateur.reporting.table import columns as run_columns
from secateur.reporting.table import footnote as run_footnote

Json = dict[str, Any]
# The columns of a page's width; the others stand in the CSV.
LEFT_OUT = ("seeds", "bytes")
RUN_COLUMNS = ("row", "bytes", "smaller", "gzip", "gzip smaller", "accuracy", "lowest..highest",
               "points", "mse", "zeros", "latency")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure as PNG with what stands below it."""

    name: str
    caption: str
    png: bytes


@dataclass(frozen=True, kw_only=True)
class Part:
    """One study: findings under their heading, pictures, a table as text (its first row are the titles), and the method."""

    title: str
    heading: str
    findings: Sequence[str]
    pictures: Sequence[Picture]
    table: Sequence[Sequence[str]]
    footnote: str
    missing: Sequence[str]
    method: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Story:
    """Everything that is told: kind is "point" (a sweep) or "run"; data is the CSV behind it."""

    kind: str
    title: str
    lead: str
    parts: Sequence[Part]
    data: str
    created: str


def record_kind(records: Sequence[Json]) -> str:
    """Return "point" or "run", which all records must be.

    >>> record_kind([{"kind": "run"}])
    'run'
    """
    kinds = {str(record.get("kind", "run")) for record in records}
    if len(kinds) != 1 or not kinds <= {"point", "run"}:
        raise SecateurError(
            f"received records of kind {', '.join(sorted(kinds)) or 'none'}; expected points of a sweep "
            "or Runs, not both; fix: report one folder at a time"
        )
    return kinds.pop()


def story(records: Sequence[Json], max_drop: float = MAX_DROP, *, pictures: bool = True) -> Story:
    """Tell the records of a sweep, or Runs that differ by seed.

    max_drop: points of accuracy that a "free" sparsity may lose. pictures: draw the figures, which
    needs Matplotlib.
    """
    kind = record_kind(records)
    created = max((str(record.get("created") or "") for record in records), default="")
    if kind == "run":
        return Story(
            kind=kind,
            title=str(records[0].get("name", "Run")),
            lead=headline(records),
            parts=[_run_part(records, pictures)],
            data=rows_csv(records),
            created=created,
        )
    found = studies(records)
    grids = ", ".join(sorted({str(record.get("grid") or "sweep") for record in records}))
    return Story(
        kind=kind,
        title=grids,
        lead=". ".join(_lead(study, max_drop, len(found) > 1) for study in found) + ".",
        parts=[_part(study, max_drop, pictures) for study in found],
        data=csv_text(records),
        created=created,
    )


def rows_csv(runs: Sequence[Json]) -> str:
    """Write the aggregated rows of Runs as CSV text."""
    table = rows(runs)
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(
        stream, fieldnames=list(table[0]) if table else ["row"], lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(table)
    return stream.getvalue()


def _lead(study: Study, max_drop: float, several: bool) -> str:
    text = lead(study, max_drop)
    return f"{study.title}: {text}" if several and not text.startswith(study.title) else text


def _part(study: Study, max_drop: float, pictures: bool) -> Part:
    table = cells(study)
    chosen = [column for column in columns(table) if column[0] not in LEFT_OUT]
    drawn = []
    for metric in METRICS if pictures else ():
        png = sweep_plots.plot(study, metric)
        if png is not None:
            caption = sweep_plots.caption(study, metric)
            drawn.append(Picture(name=metric, caption=caption, png=png))
    png = sweep_plots.plot_epochs(sweep_training.plot_lines(study)) if pictures else None
    if png is not None:
        caption = sweep_training.caption(study)
        drawn.append(Picture(name="training", caption=caption, png=png))
    return Part(
        title=study.title,
        heading="What was found",
        findings=[one.text for one in findings(study, max_drop)],
        pictures=drawn,
        table=[[title for title, _ in chosen]]
        + [[text(cell) for _, text in chosen] for cell in table],
        footnote=footnote(study),
        missing=missing_lines(study),
        method=method_lines(study),
    )


def _run_part(runs: Sequence[Json], pictures: bool) -> Part:
    table = rows(runs)
    chosen = [column for column in run_columns(table) if column[0] in RUN_COLUMNS]
    model, data = runs[0].get("model") or {}, runs[0].get("data") or {}
    named = [str(one["name"]) for one in (model, data) if one.get("name")]
    drawn = [Picture(name=name, caption=caption, png=png)
             for name, caption, png in run_plots.plots(runs)] if pictures else []  # fmt: skip
    return Part(
        title=" on ".join(named) or str(runs[0].get("name", "Run")),
        heading="How to read this",
        findings=[f"{question} {answer}" for question, answer in words.reading(runs, table)],
        pictures=drawn,
        table=[[title for title, _ in chosen]]
        + [[text(row) for _, text in chosen] for row in table],
        footnote=run_footnote(runs, table),
        missing=[],
        method=["; ".join(f"{term} {text}" for term, text in words.provenance(runs)) + "."],
    )
