"""From the rows of one or several Runs to one row each: mean and range over seeds, ratios, differences.

Like is compared with like: raw bytes with raw bytes, gzip with gzip, and only over the seeds that
both sides have. Differences are taken per seed and then averaged.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePath
from statistics import fmean, median
from typing import Any

from secateur.reporting.formats import finite

BASELINE, CONTROL = "baseline", "control"
REFERENCE_ORDER = ("float32", "h5", "keras", "onnx")
QUALITIES = ("accuracy", "mse")
AVERAGED = (
    "stripped_bytes", "stripped_gzip_bytes", "label_accuracy", "loss", "top5", "mse", "mae", "parameters", "zeros", "nonzero", "sparsity", "macs", "load_ms",
)  # fmt: skip

Run = dict[str, Any]
Row = dict[str, Any]


def rows(runs: Sequence[Run]) -> list[Row]:
    """Aggregate the Runs' rows by name, in the order in which the Runs list them.

    Each row holds, as plain numbers or None: `bytes` and `gzip_bytes`; `times_smaller` and `percent`
    (raw against raw) and `times_smaller_gzip` and `percent_gzip` (gzip against gzip), against the row
    that `reference` names, a file of the same `container` where there is one; `accuracy` in [0, 1]; `points` and `points_control`, in percentage points,
    against the baseline and the dense control; `sparsity`, `latency_us` and more. `*_min` and `*_max`
    are None with a single seed: one seed has no spread.

    >>> rows([{"seed": 0, "rows": [{"row": "baseline-float32", "stage": "baseline",
    ...     "format": "float32", "bytes": 85040, "accuracy": 0.96}]}])[0]["times_smaller"]
    1.0
    """
    names = list(dict.fromkeys(row["row"] for run in runs for row in run["rows"]))
    return [_aggregate(runs, name) for name in names]


def container(row: Row) -> str:
    """Name the kind of file that a row is, by its suffix: what each costs beside the weights differs.

    >>> container({"format": "int8"}), container({"format": "onnx-int8"}), container({"path": "a/b.h5"})
    ('.tflite', '.onnx', '.h5')
    """
    if suffix := PurePath(row.get("path") or "").suffix:
        return suffix
    form = str(row["format"])
    if form in ("h5", "keras"):
        return f".{form}"
    return ".onnx" if form.startswith("onnx") else ".tflite"


def reference_row(runs: Sequence[Run], row: Row) -> str | None:
    """Name the baseline's row that a row's size is compared with, the only place that chooses it.

    A file of the same container, the float one where there is one, then one of the same format; only
    where the baseline has no such file one of another container, which whoever writes must say.
    """
    order = (*REFERENCE_ORDER, row["format"])

    def sized(other: Row) -> bool:
        return finite(other.get("bytes")) is not None

    like = _preferred(
        runs, BASELINE, lambda other: sized(other) and container(other) == container(row), order
    )
    return like or _preferred(runs, BASELINE, sized)


def references(table: Sequence[Row]) -> str:
    """Say what the sizes of a table are compared with, for below it; "" where nothing is.

    >>> references([{"row": "pruned-int8", "reference": "baseline-keras", "same_container": False}])
    'against baseline-keras (another kind of file than pruned-int8)'
    """
    by_reference: dict[str, list[str]] = {}
    for row in table:
        if row["reference"] is not None:
            unlike = by_reference.setdefault(row["reference"], [])
            unlike += [] if row["same_container"] else [row["row"]]
    told = [
        f"{name} (another kind of file than {', '.join(unlike)})" if unlike else name
        for name, unlike in by_reference.items()
    ]
    same = "the baseline's file of the same kind, " if len(told) > 1 else ""
    return f"against {same}{', '.join(told)}" if told else ""


def quality_row(runs: Sequence[Run], stage: str, quality: str) -> str | None:
    """Name the row of a stage whose `quality` others are compared with, in the same order of formats."""
    return _preferred(runs, stage, lambda row: finite(row.get(quality)) is not None)


def values(runs: Sequence[Run], name: str | None, key: str) -> dict[int, float]:
    """Return a row's value for each position in `runs` that has one; `key` may be dotted."""
    found = {}
    for index, run in enumerate(runs):
        for row in run["rows"]:
            if row["row"] == name and (value := finite(_get(row, key))) is not None:
                found[index] = value
    return found


def ratio(above: dict[int, float], below: dict[int, float]) -> float | None:
    """Divide two means over the seeds that both have."""
    shared = above.keys() & below.keys()
    bottom = fmean(below[seed] for seed in shared) if shared else 0.0
    return fmean(above[seed] for seed in shared) / bottom if bottom else None


def differences(left: dict[int, float], right: dict[int, float]) -> list[float]:
    """Subtract seed by seed, over the seeds that both have."""
    return [left[seed] - right[seed] for seed in sorted(left.keys() & right.keys())]


def comparable(runs: Sequence[Run], name: str | None, other: str | None) -> bool:
    """Say whether two rows were measured on the same number of samples, seed by seed."""
    ours, theirs = values(runs, name, "n"), values(runs, other, "n")
    return all(ours[seed] == theirs[seed] for seed in ours.keys() & theirs.keys())


def _aggregate(runs: Sequence[Run], name: str) -> Row:
    present = [row for run in runs for row in run["rows"] if row["row"] == name]
    first = present[0]
    reference = reference_row(runs, first)
    others = (row for run in runs for row in run["rows"] if row["row"] == reference)
    accuracy = values(runs, name, "accuracy")
    latency = values(runs, name, "latency.median_us")
    record: Row = {
        "row": name,
        "stage": first["stage"],
        "format": first["format"],
        "runtime": _common(row.get("runtime") for row in present),
        "threads": _common(row.get("threads") for row in present),
        "seeds": len(present),
        "n": _common(row.get("n") for row in present),
        "container": container(first),
        "reference": reference,
        "same_container": all(container(other) == container(first) for other in others),
    }
    for key, short in (("bytes", ""), ("gzip_bytes", "_gzip")):
        own, compared = values(runs, name, key), values(runs, reference, key)
        smaller = ratio(compared, own)
        record |= _with_range(key, own.values())
        record[f"times_smaller{short}"] = smaller
        record[f"percent{short}"] = 100 / smaller if smaller else None
    record |= _with_range("accuracy", accuracy.values())
    for stage, key in ((BASELINE, "points"), (CONTROL, "points_control")):
        other = quality_row(runs, stage, "accuracy")
        of_interest = stage == BASELINE or first["stage"] not in (BASELINE, CONTROL)
        gaps = differences(accuracy, values(runs, other, "accuracy"))
        usable = of_interest and comparable(runs, name, other)
        record |= _with_range(key, [100 * gap for gap in gaps] if usable else [])
    record |= {key: _mean(values(runs, name, key).values()) for key in AVERAGED}
    record["latency_us"] = median(latency.values()) if latency else None
    record["agreement"] = _mean(values(runs, name, "parity.agreement").values())
    record["relative_rms"] = _mean(values(runs, name, "parity.relative_rms").values())
    return record


def _with_range(key: str, numbers: Iterable[float]) -> Row:
    found = list(numbers)
    several = len(found) > 1
    return {
        key: _mean(found),
        f"{key}_min": min(found) if several else None,
        f"{key}_max": max(found) if several else None,
    }


def _preferred(
    runs: Sequence[Run],
    stage: str,
    usable: Callable[[Row], bool],
    order: Sequence[str] = REFERENCE_ORDER,
) -> str | None:
    """Pick a stage's row by format; one that every Run has goes before one that some lack."""
    candidates: dict[str, tuple[int, int]] = {}
    for run in runs:
        for row in run["rows"]:
            if row["stage"] == stage and usable(row):
                known = row["format"] in order
                rank = order.index(row["format"]) if known else len(order)
                missing, _ = candidates.get(row["row"], (len(runs), rank))
                candidates[row["row"]] = (missing - 1, rank)
    return min(candidates, key=candidates.__getitem__, default=None)


def _mean(numbers: Iterable[float]) -> float | None:
    found = list(numbers)
    if not found:
        return None
    if all(number == found[0] for number in found):
        return found[0]  # fmean of equal floats may differ from them in the last bit
    return fmean(found)


def _common(items: Iterable[Any]) -> Any:
    found = list(items)
    return found[0] if all(item == found[0] for item in found) else None


def _get(row: Row, key: str) -> Any:
    value: Any = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
