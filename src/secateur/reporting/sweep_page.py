"""The HTML page of a sweep: findings first, then figures, table, what is missing and how it was measured."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from secateur.reporting.files import write_text
from secateur.reporting.page import fill, typeset
from secateur.reporting.sweep_compare import MAX_DROP
from secateur.reporting.sweep_figures import figures, legend
from secateur.reporting.sweep_findings import Finding, findings, lead
from secateur.reporting.sweep_lines import AXES, SPARSITIES
from secateur.reporting.sweep_series import DONE, Study, studies
from secateur.reporting.sweep_statistics import Record
from secateur.reporting.sweep_table import cells, columns, footnote, method_lines, missing_lines
from secateur.reporting.sweep_training import figure as training_figure


def write_sweep_html(
    records: Sequence[Record], path: str | Path, max_drop: float = MAX_DROP
) -> Path:
    """Write the report of a sweep's point records as one self-contained page.

    max_drop: points of accuracy that a "free" sparsity may lose. Raises SecateurError when Jinja2
    is missing, no record is there or the file cannot be written.
    """
    return write_text(path, render(records, max_drop))


def render(records: Sequence[Record], max_drop: float = MAX_DROP) -> str:
    """Return the page as text."""
    found = studies(records)
    several = len(found) > 1
    head = (
        lead(found[0], max_drop)
        if not several
        else "Accuracy against sparsity: " + ", ".join(study.title for study in found)
    )
    context: dict[str, Any] = {
        "name": _name(records),
        "lead": head,
        "lead_marked": escape(typeset(head)),
        "detail": "" if several else typeset(_detail(found[0])),
        "eyebrow": _eyebrow(records, found),
        "version": next((v["secateur"] for r in records if "secateur" in (v := _versions(r))), ""),
        "several": several,
        "axes": AXES,
        "sparsities": SPARSITIES,
        "points": len(records),
        "studies": [_prepared(study, max_drop) for study in found],
    }
    context["sections"] = _sections(context["studies"], several)
    return fill(
        "sweep.html.j2",
        context,
        filters={},
        styles=("page.css", "sweep.css"),
        scripts=("page.js", "sweep.js"),
    )


def _prepared(study: Study, max_drop: float) -> dict[str, Any]:
    table = cells(study)
    chosen = columns(table)
    rows = [[typeset(text(cell)) for _, text in chosen] for cell in table]
    return {
        "title": study.title,
        "findings": [
            Finding(topic=f.topic, text=typeset(f.text), hypothesis=f.hypothesis)
            for f in findings(study, max_drop)
        ],
        "figures": figures(study),
        "legend": legend(study),
        "training": training_figure(study),
        "bands": len(study.seeds) > 1,
        "columns": [title for title, _ in chosen],
        "groups": [list(members) for _, members in groupby(rows, key=lambda row: row[0])],
        "footnote": typeset(footnote(study)),
        "missing": missing_lines(study),
        "method": [typeset(line) for line in method_lines(study)],
    }


def _sections(prepared: Sequence[dict[str, Any]], several: bool) -> list[tuple[str, str]]:
    if several:
        return [(f"study-{n}", study["title"]) for n, study in enumerate(prepared)]
    one = prepared[0]
    listed = [
        ("findings-0", "Findings", True),
        ("figures-0", "Against sparsity", bool(one["figures"])),
        ("training-0", "Training", bool(one["training"])),
        ("table-0", "The table", True),
        ("missing-0", "What has no figures", bool(one["missing"])),
        ("method-0", "How it was measured", True),
    ]
    return [(key, title) for key, title, shown in listed if shown]


def _name(records: Sequence[Record]) -> str:
    return ", ".join(sorted({str(record.get("grid") or "sweep") for record in records}))


def _detail(study: Study) -> str:
    done = sum(record["status"] == DONE for record in study.records)
    text = f"{study.title}: {done} networks measured on the test set"
    return text + (f", {len(study.missing)} without figures" if study.missing else "") + "."


def _eyebrow(records: Sequence[Record], found: Sequence[Study]) -> list[str]:
    days = sorted({str(record["created"])[:10] for record in records if record.get("created")})
    seeds = {seed for study in found for seed in study.seeds}
    return [
        _name(records),
        *(study.title for study in found),
        "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds",
        *([" to ".join(dict.fromkeys([days[0], days[-1]]))] if days else []),
    ]


def _versions(record: Record) -> dict[str, Any]:
    return record.get("versions") or {}
