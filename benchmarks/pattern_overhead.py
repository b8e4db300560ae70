"""What each pattern adds to a training step, on each backend: ratios, all patterns side by side.

    python benchmarks/pattern_overhead.py                    # three backends, minutes each
    python benchmarks/pattern_overhead.py --quick --backends tensorflow --out FILE

The challenge MLP at batch 64, measured as `step_overhead.py` does and with its workers: a pattern is
a process with two interleaved fits, plain and pruned, and the patterns of a backend take turns. One
mask update in 100 steps. Zeros from 50 % to 80 %, but for 2:4, which is 50 % from the first update.
A process that has slept while the others ran takes its first pair for warming up; it is not counted.
The record is written after every backend and keeps the rows of those not asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from step_overhead import BACKENDS, EPOCH, EVERY, ROOT, Worker, instructions, summary

RECORD = ROOT / "benchmarks" / "records" / "pattern-overhead.json"
PATTERNS = ("unstructured", "block 16x1", "2:4", "units")
MODEL, BATCH, PAIRS = "challenge-mlp", 64, 10


def run_backend(backend: str, patterns: list[str], size: dict) -> list[dict]:
    """Time every pattern on one backend; returns one record a pattern."""
    load = [round(os.getloadavg()[0], 2)]
    shared = {"side": "secateur", "backend": backend, "model": MODEL, "batch": BATCH, **size}
    workers = [Worker(sys.executable, {**shared, "pattern": pattern}) for pattern in patterns]
    try:
        hellos = [worker.hear() for worker in workers]
        for number in range(size["pairs"]):
            turn = number % len(workers)
            for worker in [*workers[turn:], *workers[:turn]]:
                worker.time_pair()
                worker.pairs.pop()  # it has slept: whichever fit goes first pays for that
                worker.time_pair()
    finally:
        for worker in workers:
            worker.close()
    load.append(round(os.getloadavg()[0], 2))
    return [
        {"pattern": worker.spec["pattern"], **summary(worker, hello, load)}
        for worker, hello in zip(workers, hellos, strict=True)
    ]


def main() -> None:
    """Read the command line, time, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", default=",".join(BACKENDS), help="comma-separated")
    parser.add_argument("--patterns", default=",".join(PATTERNS), help="comma-separated")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--out", type=Path, help=f"default: {RECORD.relative_to(ROOT)}")
    parser.add_argument("--quick", action="store_true", help="a smoke test; writes --out only")
    given = parser.parse_args()
    size = {"every": EVERY, "epoch": EPOCH, "pairs": given.pairs}
    if given.quick:
        size = {"every": 20, "epoch": 4, "pairs": 2}
    out = given.out if given.out or given.quick else RECORD
    wanted = given.backends.split(",")
    held = json.loads(out.read_text(encoding="utf-8"))["rows"] if out and out.exists() else []
    rows = [row for row in held if row["backend"] not in wanted]
    for backend in wanted:
        begun = time.perf_counter()
        found = run_backend(backend, given.patterns.split(","), size)
        for row in found:
            ratio = row["ratio"]
            print(
                f"{backend:10} {row['pattern']:12} {ratio['median']:.3f} "
                f"[{ratio['low']:.3f}, {ratio['high']:.3f}]  update {row['update_ms']:.1f} ms  "
                f"load {row['load']}  {time.perf_counter() - begun:.0f} s",
                flush=True,
            )
        machine = found[0]["machine"]
        rows += [{key: value for key, value in row.items() if key != "machine"} for row in found]
        record = {
            "kind": "pattern-overhead",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "quick": given.quick,
            "machine": {**machine, "instructions": instructions()},
            "rows": sorted(rows, key=lambda row: BACKENDS.index(row["backend"])),
        }
        if out:
            out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            print(f"wrote {out.name}", flush=True)


if __name__ == "__main__":
    main()
