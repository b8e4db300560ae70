"""Terminal tables of measured files, inspected models and plans, from their plain records."""

from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table


def measurements(records: list[dict[str, Any]]) -> Table:
    """Measured files side by side, one column each."""
    columns = [k for k in records[0] if k != "path" and any(r.get(k) is not None for r in records)]
    table = Table("", *[Path(r["path"]).name for r in records])
    for key in columns:
        table.add_row(key.replace("_", " "), *[_cell(key, r.get(key)) for r in records])
    return table


def _cell(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_cell(k, v)}" for k, v in value.items() if v is not None)
    if isinstance(value, float):
        percent = key in ("accuracy", "label_accuracy", "top5", "sparsity")
        return f"{100 * value:.2f} %" if percent else f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else "-" if value is None else str(value)


def weights(found: dict[str, Any]) -> Table:
    """Every weight of an inspected model or file."""
    title = f"{found['name']}: {found['parameters']:,} parameters"
    if found["trainable"] is not None:
        title += f" ({found['trainable']:,} trainable, {found['non_trainable']:,} not)"
    title += f", {100 * found['sparsity']:.2f} % zeros"
    if found["bytes"] is not None:
        title += f", {found['bytes']:,} bytes ({found['gzip_bytes']:,} gzipped)"
    table = Table(
        "weight", "layer", "role", "shape", "elements", "zeros", "min", "mean", "max", title=title
    )
    for w in found["weights"]:
        values = ["-" if w[k] is None else f"{w[k]:.4g}" for k in ("min", "mean", "max")]
        note = f"  ({w['not_finite']:,} NaN or infinite)" if w["not_finite"] else ""
        table.add_row(
            escape(w["path"]) + note,
            w["class"],
            w["role"],
            "x".join(map(str, w["shape"])),
            f"{w['size']:,}",
            f"{w['zeros']:,} ({100 * w['sparsity']:.1f} %)",
            *values,
        )
    return table


def side_by_side(found: list[dict[str, Any]]) -> Table:
    """Two inspected models or files in numbers."""
    table = Table("", *[f["name"] for f in found])
    for key in ("parameters", "trainable", "non_trainable", "nonzero", "optimizer_elements"):
        table.add_row(key.replace("_", " "), *[_cell(key, f[key]) for f in found])
    table.add_row("zeros", *[f"{100 * f['sparsity']:.2f} %" for f in found])
    for key in ("bytes", "gzip_bytes"):
        values = [f[key] for f in found]
        shown = [
            "-" if v is None else f"{v:,} ({v / 1e6:.3f} MB, {v / 2**20:.3f} MiB)" for v in values
        ]
        table.add_row(key.replace("_", " "), *shown)
    return table


def plan(changes: list[dict[str, Any]], recipe: str) -> Table:
    """What a recipe would do to every weight."""
    table = Table(
        "step", "weight", "elements", "what happens", title=f"what {recipe} would do (dry run)"
    )
    for change in changes:
        what = (
            change["how"]
            if change["how"]
            else f"[dim]skipped: {escape(str(change['reason']))}[/dim]"
        )
        table.add_row(change["step"], escape(change["path"]), f"{change['size']:,}", what)
    return table
