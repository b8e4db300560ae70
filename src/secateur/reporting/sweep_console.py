"""The table of a sweep for the terminal: one for each model and data set, then what has no figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from secateur.reporting.sweep_series import studies
from secateur.reporting.sweep_table import cells, columns, footnote, missing_lines

WIDE_ONLY = ("95 % interval", "loss")  # what a narrow terminal leaves out; every file has it


def rich_tables(records: Sequence[dict[str, Any]], *, wide: bool = True) -> list[Table | str]:
    """Return tables, and lines of text for points that are impossible or failed.

    wide: room for about 110 characters. Raises SecateurError without records.
    """
    parts: list[Table | str] = []
    for study in studies(records):
        table = cells(study)
        if table:
            parts.append(_table(study.title, footnote(study), table, wide))
        parts += missing_lines(study)
    return parts


def _table(title: str, below: str, rows: Sequence[Any], wide: bool) -> Table:
    found = Table(
        box=SIMPLE_HEAD, title=Text(title), caption=Text(below), caption_justify="left", padding=0
    )
    chosen = [column for column in columns(rows) if wide or column[0] not in WIDE_ONLY]
    last = None
    for place, (name, _) in enumerate(chosen):
        least = None if place else 18
        found.add_column(name, justify="right" if place else "left", min_width=least)
    for row in rows:
        # The curve's name once: its points stand below each other.
        texts = [text(row) for _, text in chosen]
        first, last = texts[0] if texts[0] != last else "", texts[0]
        found.add_row(*[Text(text) for text in (first, *texts[1:])])
    return found
