"""The table of a report: for the terminal (Rich), as CSV, as JSON and as Markdown."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from secateur.reporting.aggregation import Row, Run, references, rows
from secateur.reporting.files import write_text
from secateur.reporting.formats import (
    DASH,
    duration,
    measure,
    percent,
    points,
    times,
    whole,
)
from secateur.reporting.rounding import rounding
from secateur.reporting.sentence import headline

Column = tuple[str, Callable[[Row], str]]


# What a narrow terminal leaves out; every file and every wider terminal has it.
WIDE_ONLY = {"percent", "percent_gzip", "accuracy_min", "stripped_bytes", "stripped_gzip_bytes"}
WIDE, MEDIUM = 160, 100


def columns(table: Sequence[Row], wide: bool = True) -> list[Column]:
    """Choose the columns that this table has figures for, as (title, row -> text)."""
    candidates: list[tuple[str, str, Callable[[Row], str]]] = [
        ("bytes", "bytes", lambda row: whole(row["bytes"])),
        ("smaller" if wide else "times", "times_smaller", lambda row: _times(row["times_smaller"])),
        ("of baseline", "percent", lambda row: _percent(row["percent"])),
        ("gzip", "gzip_bytes", lambda row: whole(row["gzip_bytes"])),
        (
            "gzip smaller" if wide else "times",
            "times_smaller_gzip",
            lambda row: _times(row["times_smaller_gzip"]),
        ),
        ("gzip of baseline", "percent_gzip", lambda row: _percent(row["percent_gzip"])),
        ("stripped", "stripped_bytes", lambda row: whole(row["stripped_bytes"])),
        ("stripped gzip", "stripped_gzip_bytes", lambda row: whole(row["stripped_gzip_bytes"])),
        ("accuracy", "accuracy", lambda row: percent(row["accuracy"])),
        ("lowest..highest", "accuracy_min", spread),
        ("points", "points", lambda row: points(row["points"])),
        ("mse", "mse", lambda row: measure(row["mse"])),
        ("zeros", "sparsity", lambda row: percent(row["sparsity"], 1)),
        ("latency", "latency_us", latency),
    ]
    chosen: list[Column] = [("row", lambda row: row["row"])]
    for title, key, text in candidates:
        if any(row[key] is not None for row in table) and (wide or key not in WIDE_ONLY):
            chosen.append((title, text))
    return chosen


def spread(row: Row) -> str:
    """Write the range of the accuracy over seeds, or a dash where one seed gives none."""
    low, high = row["accuracy_min"], row["accuracy_max"]
    return DASH if low is None else f"{percent(low).removesuffix(' %')}..{percent(high)}"


def latency(row: Row) -> str:
    """Write the median latency of one sample."""
    return DASH if row["latency_us"] is None else duration(row["latency_us"] / 1e6)


def footnote(runs: Sequence[Run], table: Sequence[Row]) -> str:
    """Say what the columns of the table are relative to and how they were taken."""
    parts = []
    if against := references(table):
        parts.append(f"times smaller, of baseline: {against}, raw with raw and gzip with gzip")
    if any(row["points"] is not None for row in table):
        parts.append("points: percentage points against the baseline")
    if len(runs) > 1:
        parts.append(f"mean of {len(runs)} seeds, with the lowest and highest")
    return "; ".join(parts).capitalize() + "." if parts else ""


class ResultTable:
    """The table for the terminal; it leaves columns out where the terminal is narrow."""

    def __init__(self, runs: Sequence[Run]):
        """Aggregate the Runs once, whatever the width turns out to be."""
        self.title = str(runs[0].get("name", "")) if runs else ""
        self.table = rows(runs)
        self.footnote = footnote(runs, self.table)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table, then what its columns mean."""
        chosen = columns(self.table, wide=options.max_width >= WIDE)
        # Names come from recipes and layers: as Text, "[red]" in one stays what it is.
        grid = Table(
            title=Text(self.title),
            title_justify="left",
            box=SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, int(options.max_width >= MEDIUM)),
        )
        for title, _ in chosen:
            name = title == "row"
            grid.add_column(title, justify="left" if name else "right", no_wrap=True)
        previous = None
        for row in self.table:
            if previous not in (None, row["stage"]):
                grid.add_section()
            previous = row["stage"]
            grid.add_row(*(Text(text(row)) for _, text in chosen))
        yield grid
        yield Text(self.footnote, style="dim")


def rich_table(runs: Sequence[Run]) -> ResultTable:
    """Build the table for the terminal; print it with `rich.print`."""
    return ResultTable(runs)


def write_csv(runs: Sequence[Run], path: str | Path) -> Path:
    """Write every figure of `rows(runs)` as CSV, unrounded; an empty cell is a figure not taken."""
    table = rows(runs)
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, fieldnames=list(table[0]) if table else ["row"])
    writer.writeheader()
    writer.writerows(table)
    return write_text(path, stream.getvalue())


def write_json(runs: Sequence[Run], path: str | Path) -> Path:
    """Write the sentence, the rows and what is needed to repeat them as JSON."""
    first = runs[0]
    report: dict[str, Any] = {
        "format_version": 1,
        "kind": "report",
        "name": first.get("name"),
        "headline": headline(runs),
        "seeds": [run["seed"] for run in runs],
        "rows": rows(runs),
        "command": first.get("command"),
        "versions": first.get("versions"),
    }
    return write_text(
        path, json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )


def write_markdown(runs: Sequence[Run], path: str | Path) -> Path:
    """Write the sentence and the table as Markdown."""
    table = rows(runs)
    chosen = columns(table)
    lines = [
        f"# {markdown_cell(runs[0].get('name', 'Run'))}",
        "",
        markdown_cell(headline(runs)),
        "",
        markdown_line(title for title, _ in chosen),
        markdown_line("---" if title == "row" else "---:" for title, _ in chosen),
        *(markdown_line(markdown_cell(text(row)) for _, text in chosen) for row in table),
        "",
        markdown_cell(footnote(runs, table)),
    ]
    lines += _quantization(rounding(runs, table))
    command = runs[0].get("command")
    if command:
        lines += ["", "To repeat it:", "", *(f"    {line}" for line in str(command).splitlines())]
    return write_text(path, "\n".join(lines) + "\n")


def _quantization(found: dict[str, Any] | None) -> list[str]:
    """The lines on quantization: float beside quantized, errors of kernels, ranges of activations."""
    if found is None:
        return []
    how = "in training" if found["aware"] else "after training"
    lines = ["", f"## Quantization ({found['format']}, {how})"]
    sides = ("row", "what", "bytes", "gzip", "quality", "points")
    ranges = ("key", "low", "high", "step", "error", "clipped")
    for heads, texts in (
        (
            ("row", "what it is", "bytes", "gzip", "test set", "points to baseline"),
            [[side[key] for key in sides] for side in found["sides"]],
        ),
        (
            ("error of the kernel", *found["files"]),
            [[kernel["path"], *kernel["cells"]] for kernel in found["kernels"]],
        ),
        (
            ("range of", "smallest", "largest", "step", "error", "clipped"),
            [[one[key] for key in ranges] for one in found["ranges"]],
        ),
    ):
        if texts:
            lines += ["", markdown_line(map(markdown_cell, heads))]
            lines.append(markdown_line("---:" if place else "---" for place in range(len(heads))))
            lines += [markdown_line(map(markdown_cell, row)) for row in texts]
    return lines


def markdown_line(cells: Iterable[str]) -> str:
    """Write one row of a Markdown table from cells that are Markdown already."""
    return f"| {' | '.join(cells)} |"


def markdown_cell(text: Any) -> str:
    """Keep names that contain Markdown or HTML from becoming either."""
    flat = " ".join(str(text).split())
    for character in "\\`*[]|":
        flat = flat.replace(character, f"\\{character}")
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _times(ratio: float | None) -> str:
    return DASH if ratio is None else f"{times(ratio)}x"


def _percent(number: float | None) -> str:
    return DASH if number is None else percent(number / 100, 1)
