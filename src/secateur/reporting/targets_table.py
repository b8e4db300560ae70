"""The tables of `secateur targets`, from its records: one for each target."""

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Column, Table

from secateur.reporting.formats import DASH, percent, whole
from secateur.reporting.targets import (
    COSTS,
    Record,
    compared,
    dense_row,
    full_name,
    level_text,
    ratio_text,
)


def grid(records: Sequence[Record], target: str) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of one target: a row for each format and sparsity, each with its ratio."""
    rows = [r for r in records if r["target"] == target and r["reason"] is None]
    costs = [
        cost
        for cost in COSTS
        if target.split(":")[0] in cost.targets and any(cost.of(r) is not None for r in rows)
    ]
    labelled = any(r["accuracy"] is not None for r in rows)
    headings = ["format", "zeros", *(cost.name for cost in costs), *["accuracy"] * labelled]
    cells = []
    for row in rows:
        dense = dense_row(records, target, row["format"])
        found = [row["format"], level_text(row["sparsity"]) if row["sparsity"] else "dense"]
        for cost in costs:
            value = cost.of(row)
            text = DASH if value is None else cost.text(value)
            if row["sparsity"] and dense is not None and (ratio := compared(cost, row, dense)):
                text += f" ({ratio_text(ratio.value)})"
            found.append(text)
        cells.append(found + [percent(row["accuracy"], 1)] * labelled)
    return headings, cells


def tables(records: Sequence[Record]) -> list[Table]:
    """A table for the terminal for each target; in brackets the share of the dense file's number."""
    found = []
    for target in dict.fromkeys(record["target"] for record in records):
        headings, rows = grid(records, target)
        if not rows:
            continue
        table = Table(
            *(Column(h, justify="right" if n > 1 else "left") for n, h in enumerate(headings)),
            box=SIMPLE,
            padding=(0, 1, 0, 0),
            title=full_name(target, records),
            title_justify="left",
        )
        for row in rows:
            table.add_row(*map(escape, row))
        found.append(table)
    return found


def caption(records: Sequence[Record]) -> str:
    """What the numbers are, and what the accuracy is not."""
    rounds = next((len(r["latency"]["times_us"]) for r in records if r["latency"]), None)
    parts = ["in brackets: the share of the dense file's number"]
    if rounds:
        parts.append(
            f"times: batch 1, one thread, median of {rounds} rounds in which all take turns; noise: one "
            "file timed twice, no less than 1 % either way"
        )
    n = next((r["n"] for r in records if r["accuracy"] is not None), None)
    if n:
        parts.append(
            f"accuracy: {whole(n)} test samples, zeros in one shot and no training afterwards; "
            "what a pruned model that was trained on would reach is another question"
        )
    return "; ".join(parts)
