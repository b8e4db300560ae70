"""What quantization did, layer by layer: float beside quantized, errors of kernels, ranges of activations."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from secateur.reporting import charts
from secateur.reporting.aggregation import BASELINE, CONTROL, Row, Run
from secateur.reporting.formats import DASH, byte_count, finite, measure, percent, points

Json = dict[str, Any]
FLOATS = ("keras", "h5", "float32", "float16", "sparse")
MOST = 40  # rows of a table; the others are counted


def rounding(runs: Sequence[Run], table: Sequence[Row]) -> Json | None:
    """Prepare the section on quantization; None where no step of the recipe quantizes.

    sides: rows to be read side by side. kernels: for each the bits and the error in each file that
    codes it, means over seeds. ranges: of the first seed, with what rounding costs there.
    """
    told = runs[0].get("quantization")
    if not isinstance(told, dict):
        return None
    files = [row["row"] for row in table if _kernels(runs[0], row["row"])]
    paths = dict.fromkeys(path for name in files for path in _kernels(runs[0], name))
    found = [one for one in told.get("ranges") or [] if isinstance(one, dict) and one.get("key")]
    ends = [abs(end) for one in found for end in (_end(one, "low"), _end(one, "high"))]
    widest = max(ends, default=0.0) or 1.0
    return {
        "aware": bool(told.get("aware")),
        "stage": str(told.get("stage")),
        "format": str(told.get("format")),
        "sides": [_side(row, told) for row in table if _shown(row, told)],
        "files": files,
        "kernels": [
            {"path": path, "cells": [_cell(runs, name, path) for name in files]}
            for path in list(paths)[:MOST]
        ],
        "ranges": [_range(one, widest) for one in found[:MOST]],
        "left_out": max(0, len(paths) - MOST) + max(0, len(found) - MOST),
    }


def _kernels(run: Run, name: str) -> Json:
    rows = (row for row in run["rows"] if row["row"] == name)
    return next((row.get("kernels") or {} for row in rows), {})


def _shown(row: Row, told: Json) -> bool:
    """Whether a row belongs to the comparison: floats once a stage, and the quantized files."""
    if row["stage"] == BASELINE:
        return row["format"] in ("float32", told.get("format"))
    return row["stage"] in (CONTROL, told.get("stage"))


def _side(row: Row, told: Json) -> Json:
    """One file of the comparison, and what it is in words."""
    floats, stage = row["format"] in FLOATS, row["stage"]
    if stage == BASELINE:
        what = "float" if floats else "quantized after training"
    elif stage == CONTROL:
        what = "dense, float, trained as long"
    elif told.get("aware"):
        what = "that training, weights in float" if floats else "quantized in training"
    else:
        what = "the weights before" if floats else "quantized after training"
    accuracy = percent(row["accuracy"]) if row["accuracy"] is not None else measure(row["mse"])
    return {
        "row": row["row"],
        "stage": stage,
        "what": what,
        "bytes": byte_count(row["bytes"]),
        "gzip": byte_count(row["gzip_bytes"]),
        "quality": accuracy,
        "points": points(row["points"]),
    }


def _cell(runs: Sequence[Run], name: str, path: str) -> str:
    """Bits and error of a kernel in a file: the mean over the seeds that have it."""
    found = [record for run in runs if (record := _kernels(run, name).get(path))]
    errors = [error for record in found if (error := finite(record.get("error"))) is not None]
    if not found:
        return DASH
    bits = found[0].get("bits")
    return f"{percent(fmean(errors), 2) if errors else DASH} at {bits} bits"


def _range(one: Json, widest: float) -> Json:
    low, high = _end(one, "low"), _end(one, "high")
    return {
        "key": str(one["key"]),
        "low": measure(low),
        "high": measure(high),
        "step": measure(one.get("step")),
        "error": percent(one.get("error")),
        "clipped": percent(one.get("clipped")),
        "strip": charts.range_strip(
            low, high, widest, f"{one['key']}: from {measure(low)} to {measure(high)}"
        ),
    }


def _end(one: Json, key: str) -> float:
    return finite(one.get(key)) or 0.0
