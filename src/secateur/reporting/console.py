"""Terminal tables of measured files, inspected models and plans, from their plain records."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Column, Table

# Columns of measured files: heading, and what is shown of a record (None: nothing to show). Two
# lines rather than two columns: all that a runtime tells has to fit beside the others.
_MEASURED: dict[str, Callable[[dict[str, Any]], str | None]] = {
    "accuracy\nand loss": lambda r: _lines(
        _percent(r.get("accuracy") if r.get("label_accuracy") is None else r["label_accuracy"]),
        _figure(r.get("loss")),
    ),
    "mse": lambda r: _figure(r.get("mse")),
    "mae": lambda r: _figure(r.get("mae")),
    "latency\nus": lambda r: _figure((r.get("latency") or {}).get("median_us")),
    "arena\nbytes": lambda r: _number(r.get("arena_bytes")),
    "NPU us\n(est.)": lambda r: _lines(_npu_time(_npu(r)), _left_to_cpu(_npu(r))),
    "weights\n(est.)": lambda r: _npu_bytes(r, "encoded_weight_bytes"),
    "SRAM\n(est.)": lambda r: _npu_bytes(r, "sram_bytes"),
    "flash\n(est.)": lambda r: _npu_bytes(r, "flash_bytes"),
    "DRAM\n(est.)": lambda r: _npu_bytes(r, "dram_bytes"),
}


def measurements(records: list[dict[str, Any]]) -> Table:
    """Measured files side by side, one row for each file and runtime; below, what is not measured.

    A record with `refused` in it says in one line why a runtime did not take its file.
    """
    every = {heading: [of(record) for record in records] for heading, of in _MEASURED.items()}
    shown = {heading: cells for heading, cells in every.items() if any(cells)}
    table = Table(
        Column("file", min_width=10, overflow="fold"),
        Column("runtime", min_width=10, overflow="fold"),
        box=box.SIMPLE,
        padding=0,
        caption=_notes(records) or None,
        caption_justify="left",
    )
    for heading in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    last = None
    for row, record in enumerate(records):
        name = "live model" if record.get("path") is None else Path(record["path"]).name
        size = _lines(
            _measure(_number(record.get("bytes")), "bytes"),
            _measure(_number(record.get("gzip_bytes")), "gzipped"),
            _stripped(record),
            _measure(_percent(record.get("sparsity")), "zeros"),
            _measure(_number(record.get("macs")), "MACs"),
        )
        # The same file in another runtime has the same size: said once.
        file = "" if record.get("path") == last else _lines(name, size) or name
        last = record.get("path") if record.get("bytes") is not None else None
        cells = [cells[row] or "-" for cells in shown.values()]
        table.add_row(escape(file), escape(str(record.get("runtime") or "-")), *cells)
    return table


def _notes(records: list[dict[str, Any]]) -> str:
    counts = list(dict.fromkeys(r["n"] for r in records if r.get("n") is not None))
    notes = [f"measured on {', '.join(f'{n:,}' for n in counts)} samples"] if counts else []
    for record in records:
        runtime = str(record.get("runtime") or "-")
        if record.get("refused"):
            notes.append(f"{runtime} refused: {record['refused']}")
        short = runtime.split()[0]
        notes += [f"{short}: no {k}: {why}" for k, why in (record.get("omitted") or {}).items()]
        if npu := _npu(record):
            notes.append(
                f"{npu['accelerator']}: {npu['label']}; {npu['clock_hz'] / 1e6:,.0f} MHz, "
                f"{npu['system_config']}, {npu['memory_mode']}; sizes in bytes; the time is of the "
                "NPU's operators alone"
            )
            left = list(dict.fromkeys(o["operator"] for o in npu["cpu_operators"]))
            if left:
                notes.append(f"{Path(record['path']).name}: left to the CPU: {', '.join(left)}")
    return escape("\n".join(dict.fromkeys(notes)))


def _lines(*parts: str | None) -> str | None:
    return "\n".join(part for part in parts if part is not None) or None


def _measure(value: str | None, unit: str) -> str | None:
    return None if value is None else f"{value} {unit}"


def _stripped(record: dict[str, Any]) -> str | None:
    """What the file would be without names and metadata, where that is less than it is."""
    bare, packed = record.get("stripped_bytes"), record.get("stripped_gzip_bytes")
    if bare is None or packed is None or bare >= record["bytes"]:
        return None
    return f"{bare:,} / {packed:,} stripped"


def _npu_time(npu: dict[str, Any]) -> str | None:
    return None if npu.get("seconds") is None else _figure(1e6 * npu["seconds"])


def _npu(record: dict[str, Any]) -> dict[str, Any]:
    return record.get("npu") or {}


def _npu_bytes(record: dict[str, Any], key: str) -> str | None:
    # Zero: a memory that the accelerator does not have, or that nothing was put in.
    return _number(_npu(record).get(key) or None)


def _left_to_cpu(npu: dict[str, Any]) -> str | None:
    if not npu or not npu["cpu_operators"]:
        return None
    left = len(npu["cpu_operators"])
    return "all CPU" if left >= npu["operators"] else f"{left} CPU"


def _number(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.2f} %"


def _figure(value: float | None) -> str | None:
    return None if value is None else f"{value:,.4g}"


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
    coded = any(w.get("bits") for w in found["weights"])
    table = Table(
        *("weight", "layer", "role", "shape", "elements"),
        *(("bits",) if coded else ()),
        *("zeros", "min", "mean", "max"),
        title=title,
        caption=escape(found["beside"]) if found.get("beside") else None,
        caption_justify="left",
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
            *((str(w.get("bits") or "-"),) if coded else ()),
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
