"""Latency of a sweep's networks, taken when nothing else of the sweep runs: once a distinct shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from secateur.datasets import Split
from secateur.grids import Point
from secateur.measurement import measure
from secateur.store import Store
from secateur.subjects import Subject


def time_shapes(
    store: Store,
    named: Mapping[str, Point],
    subject_of: Callable[[Point], Subject],
    say: Callable[[str], None],
) -> None:
    """Write the latency of each point that has a file into its record.

    Zeros make no kernel faster: pruned weights carry the time of the dense network, marked so.
    """
    found = [record for record in map(store.read, named) if record and record.get("file")]
    timed = {_cost(r): r["latency"] for r in found if r["latency"] is not None}
    waiting = [record for record in found if record["latency"] is None]
    for record in sorted(waiting, key=lambda r: r["kind_of"] != "dense"):
        cost, name = _cost(record), record["fingerprint"]
        if cost not in timed:
            data = subject_of(named[name]).data
            split = data.validation or data.train or data.test
            if split is None:
                return
            say(f"timing {record['shape']}, {record['file']['format']}")
            taken = measure(store.folder(name) / record["file"]["path"], Split(split.x[:1]))
            latency = taken.latency or {}
            timed[cost] = {
                "median_us": latency["median_us"],
                "low_us": latency["p10_us"],
                "high_us": latency["p90_us"],
                "threads": latency["threads"],
                "runtime": taken.runtime,
                "shape": record["shape"],
            }
        of = "the dense network" if record["kind_of"] == "weights" else "this network"
        store.write({**record, "latency": {**timed[cost], "of": of}})


def _cost(record: Mapping[str, Any]) -> tuple[str, str]:
    """What decides how long a file takes."""
    return record["shape"], record["file"]["format"]
