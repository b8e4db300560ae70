"""Latency of a sweep's files, taken when nothing else of the sweep runs: once a distinct shape and format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from secateur.datasets import Split
from secateur.errors import SecateurError
from secateur.grids import Point
from secateur.measurement import measure
from secateur.store import Store
from secateur.subjects import Subject

Latency = dict[str, Any]


def time_shapes(
    store: Store,
    named: Mapping[str, Point],
    subject_of: Callable[[Point], Subject],
    say: Callable[[str], None],
) -> None:
    """Write the latency of every file into the rows of its point's record, and one beside them.

    Zeros make no kernel faster: pruned weights carry the time of the dense network, marked so. A
    file that no runtime here can time is told of and left without.
    """
    found = [record for record in map(store.read, named) if record and record.get("file")]
    timed: dict[tuple[str, str], Latency | None] = {}
    for record in found:
        kept = [(row["format"], row.get("latency")) for row in record["rows"]]
        for kind, latency in [(record["file"]["format"], record["latency"]), *kept]:
            if latency is not None:
                timed[record["shape"], kind] = {k: v for k, v in latency.items() if k != "of"}
    for record in sorted(found, key=lambda r: r["kind_of"] != "dense"):
        if record["latency"] and all(row.get("latency") for row in record["rows"]):
            continue
        data = subject_of(named[record["fingerprint"]]).data
        split = data.validation or data.train or data.test
        if split is None:
            return
        folder, of = store.folder(record["fingerprint"]), _whose(record)
        rows = []
        for row in record["rows"]:
            cost = record["shape"], row["format"]
            if cost not in timed:
                say(f"timing {record['shape']}, {row['format']}")
                timed[cost] = _timed(folder / row["path"], Split(split.x[:1]), record["shape"], say)
            latency = timed[cost]
            rows.append({**row, "latency": None if latency is None else {**latency, "of": of}})
        latency = timed.get((record["shape"], record["file"]["format"]))
        beside = None if latency is None else {**latency, "of": of}
        store.write({**record, "rows": rows, "latency": beside})


def _whose(record: Mapping[str, Any]) -> str:
    return "the dense network" if record["kind_of"] == "weights" else "this network"


def _timed(path: Any, sample: Split, shape: str, say: Callable[[str], None]) -> Latency | None:
    try:
        taken = measure(path, sample)
    except SecateurError as error:
        say(f"no time of {shape}, {path.name}: {error}")
        return None
    latency = taken.latency or {}
    return {
        "median_us": latency["median_us"],
        "low_us": latency["p10_us"],
        "high_us": latency["p90_us"],
        "threads": latency["threads"],
        "runtime": taken.runtime,
        "shape": shape,
    }
