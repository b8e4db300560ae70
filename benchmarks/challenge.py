"""The pruning challenge: the built-in grid on MNIST and Fashion-MNIST, its points as records.

    python benchmarks/challenge.py --data mnist --out runs/           # hours; carries on where it was
    python benchmarks/challenge.py --data mnist --out runs/ --collect # copies the finished points
    python benchmarks/challenge.py --quick --out runs/                # digits, one seed: a smoke test

One record a data set and seed, `records/challenge-<data>-seed-<n>.json`: what all its points share
stands once, and what docs/results.md does not read is left out.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from recording import save

RECORDS = Path(__file__).resolve().parent / "records"
SHARED = ("machine", "versions", "data", "backend", "model", "grid")
# Per layer, per file and per epoch figures stay in the store.
DROPPED = ("rows", "notes", "history")


def collected(points: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Seed -> record of a sweep's finished points."""
    by_seed = defaultdict(list)
    for point in points:
        by_seed[point["seed"]].append(point)
    return {seed: _record(found) for seed, found in sorted(by_seed.items())}


def points_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The points again, as the reports take them."""
    shared = {key: record[key] for key in SHARED}
    empty = {"rows": [], "notes": [], "history": None}
    return [{**shared, **empty, "kind": "point", **point} for point in record["points"]]


def _record(points: list[dict[str, Any]]) -> dict[str, Any]:
    first = points[0]
    data = {**first["data"], "notes": []}
    kept = sorted(points, key=lambda p: (p["curve"], p["sparsity"]["asked"]))
    return {
        "kind": "challenge",
        "quick": False,
        "created": max(p["created"] for p in points),
        **{key: first[key] for key in SHARED},
        "data": data,
        "points": [_trimmed(point) for point in kept],
    }


def _trimmed(point: dict[str, Any]) -> dict[str, Any]:
    found = {k: v for k, v in point.items() if k not in (*SHARED, *DROPPED, "kind")}
    found["sparsity"] = {**point["sparsity"], "layers": {}}
    if point["file"]:
        found["file"] = {k: v for k, v in point["file"].items() if k != "path"}
    return found


def main() -> None:
    """Read the command line, sweep, write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="the sweep's store")
    parser.add_argument("--collect", action="store_true", help="compute nothing")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    from secateur.store import Store
    from secateur.sweeps import sweep

    if given.quick:
        sweep(_quick(), seeds=1, out=given.out, say=print)
        print(json.dumps(sorted(collected(Store(given.out).records()))))
        return
    if not given.collect:
        sweep("challenge", data=given.data, seeds=given.seeds, out=given.out, say=print)
    for seed, record in collected(Store(given.out).records()).items():
        file = RECORDS / f"challenge-{given.data}-seed-{seed}.json"
        save(file, record)
        print(f"wrote {file.name}: {len(record['points'])} points")


def _quick() -> dict[str, Any]:
    step = {"method": "prune", "sparsity": {"sweep": [0.5, 0.9]}, "train": {"epochs": 0}}
    return {
        "name": "quick",
        "model": "lenet-300-100",
        "data": "digits",
        "train": {"epochs": 1},
        "files": "none",
        "curves": [{"name": "dense"}, {"name": "weights, one-shot", "steps": [step]}],
    }


if __name__ == "__main__":
    main()
