"""The pruning challenge: the built-in grid on MNIST and Fashion-MNIST, its points as records.

    python benchmarks/challenge.py --data mnist --out runs/           # hours; carries on where it was
    python benchmarks/challenge.py --data fashion-mnist --trained 0 --out runs/
    python benchmarks/challenge.py --data mnist --out runs/ --collect # copies the finished points
    python benchmarks/challenge.py --quick --out runs/                # digits, one seed: a smoke test

Curves that need no training after the dense network's are taken for every seed, the others for those
of `--trained`. One record a data set and seed, `records/challenge-<data>-seed-<n>.json`: what all its points share
stands once, and what docs/results.md does not read is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recording import save

# results.py reads `points_of` here: nothing at the top may start Keras.
if TYPE_CHECKING:
    from secateur.grids import Curve, Grid

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
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--trained", type=int, nargs="*", default=[0, 1, 2])
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
        for grid, seeds in _parts(given.seeds, given.trained):
            sweep(grid, data=given.data, seeds=seeds, out=given.out, say=_say)
    for seed, record in collected(Store(given.out).records()).items():
        file = RECORDS / f"challenge-{given.data}-seed-{seed}.json"
        save(file, record)
        print(f"wrote {file.name}: {len(record['points'])} points")


def _parts(seeds: list[int], trained: list[int]) -> list[tuple[Grid, list[int]]]:
    """The whole grid for the seeds that are trained on, what needs no training for the others."""
    from secateur.grids import Grid

    grid = Grid.load("challenge")
    # Files do not depend on the seed's number: seed 0 writes them for all.
    whole = dataclasses.replace(grid, files=grid.files if 0 in trained else "none")
    cheap = [curve for curve in grid.curves if _untrained(curve)]
    at_once = dataclasses.replace(grid, curves=cheap, files="none", text="")
    others = [seed for seed in seeds if seed not in trained]
    return [(g, s) for g, s in ((whole, trained), (at_once, others)) if s]


def _untrained(curve: Curve) -> bool:
    steps = curve.keys.get("steps", ())
    return "from_scratch" not in curve.keys and all(s["train"]["epochs"] == 0 for s in steps)


def _say(text: str) -> None:
    print(text, flush=True)


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
