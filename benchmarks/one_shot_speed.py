"""One-shot curves of the pruning challenge: the usual notebook's loop beside `one_shot_curve`.

    python benchmarks/one_shot_speed.py                          # three backends, some minutes each
    python benchmarks/one_shot_speed.py --quick --backends tensorflow --out FILE

Twenty points on MNIST's 10,000 test images: ten sparsities, weights by magnitude and units by the L2
norm of their incoming weights, of the challenge MLP after one epoch. The logits layer is left alone.

- The usual way: the dense weights are copied, `np.percentile` of each kernel gives a threshold, what
  lies below becomes zero, `set_weights`, `evaluate` at batch 64.
- Ours: `one_shot_curve`, once for weights and once for units, with everything it does: ranking, its
  tracing or compiling, the forward passes, loss and accuracy. Nothing is kept from one repetition to
  the next, while the usual way's `evaluate` stays traced from the second on.

Both in one process on one backend, in turns; which goes first alternates. The first pair (imports,
the usual way's tracing) stands in the record as `first` and is not counted. A ratio is of one pair;
the record holds their median with a 95 % interval (percentile bootstrap). CPU seconds count all
threads. `most_images_apart`: of ours from the usual way, whose threshold may prune one weight more or
less than the exact count, and from `evaluate` of the same masks. The record is written after every backend and keeps the rows of those not asked for.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from step_overhead import BACKENDS, ROOT, installed, instructions, interval

RECORD = ROOT / "benchmarks" / "records" / "one-shot-speed.json"
PERCENT = (0, 25, 50, 60, 70, 80, 90, 95, 97, 99)
KINDS = ("weights", "units")
PAIRS = 7
Curves = dict[str, list[float]]  # kind -> accuracies


def usual(model: Any, dense: list[Any], x: Any, y: Any) -> Curves:
    """Twenty points as the published notebooks compute them (but with copies, not in place)."""
    import numpy as np

    found: Curves = {kind: [] for kind in KINDS}
    for kind in KINDS:
        for k in PERCENT:
            weights = [w.copy() for w in dense]
            for kernel in weights[:-1]:
                if kind == "weights":
                    kernel[np.abs(kernel) < np.percentile(np.abs(kernel), k)] = 0
                else:
                    norms = np.linalg.norm(kernel, axis=0)
                    kernel[:, norms < np.percentile(norms, k)] = 0
            model.set_weights(weights)
            found[kind].append(model.evaluate(x, y, batch_size=64, verbose=0)[1])
    model.set_weights(dense)
    return found


def methods() -> dict[str, Any]:
    """What prunes weights, and what prunes units."""
    from secateur.methods.prune import Prune
    from secateur.methods.units import PruneUnits
    from secateur.weights import Select

    hidden = Select(output=False)
    return {"weights": Prune(sparsity=0.5, select=hidden), "units": PruneUnits(sparsity=0.5)}


def same_masks(model: Any, dense: list[Any], x: Any, y: Any) -> Curves:
    """`evaluate` of the masks that ours chooses: exact counts, where a percentile may be one off."""
    found: Curves = {kind: [] for kind in KINDS}
    for kind, method in methods().items():
        for k in PERCENT:
            model.set_weights(dense)
            dataclasses.replace(method, sparsity=k / 100).apply(model)
            found[kind].append(model.evaluate(x, y, batch_size=64, verbose=0)[1])
    model.set_weights(dense)
    return found


def images_apart(a: Curves, b: Curves, images: int) -> int:
    """By how many images two accuracies of the same point differ at most."""
    gaps = [abs(p - q) for kind in KINDS for p, q in zip(a[kind], b[kind], strict=True)]
    return round(max(gaps) * images)


def ours(model: Any, x: Any, y: Any) -> tuple[Curves, dict[str, int | None]]:
    """The same points, and how often a forward pass was traced for them."""
    from secateur.one_shot import OneShotCurve

    found: Curves = {}
    traces = {}
    for kind, method in methods().items():
        curve = OneShotCurve(model, method, [k / 100 for k in PERCENT])
        found[kind] = [point.metrics["accuracy"] for point in curve.evaluate(x, y)]
        traces[kind] = curve.traces
    return found, traces


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result, wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return result, {name: round(value, 4) for name, value in taken.items()}


def work(pairs: int, limit: int | None) -> dict[str, Any]:
    """All pairs of this process's backend; one row of the record."""
    import keras

    from secateur import zoo
    from secateur.datasets import load
    from secateur.pipeline import machine

    data = load("mnist", limit=limit)
    keras.utils.set_random_seed(0)
    model = zoo.build("challenge-mlp")
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(data.train.x, data.train.y, batch_size=64, epochs=1, verbose=0)
    dense, (x, y) = model.get_weights(), (data.test.x, data.test.y)

    taken: dict[str, list[dict[str, float]]] = {"usual": [], "ours": []}
    load_before = os.getloadavg()[0]
    theirs: Curves = {}
    mine: Curves = {}
    traces: dict[str, int | None] = {}
    for number in range(pairs + 1):
        for side in ("usual", "ours") if number % 2 else ("ours", "usual"):
            if side == "usual":
                theirs, seconds = timed(lambda: usual(model, dense, x, y))
            else:
                (mine, traces), seconds = timed(lambda: ours(model, x, y))
            taken[side].append(seconds)
    first = {side: found.pop(0) for side, found in taken.items()}
    ratios = {
        name: [a[name] / b[name] for a, b in zip(taken["ours"], taken["usual"], strict=True)]
        for name in ("wall", "cpu")
    }
    return {
        "backend": keras.backend.backend(),
        "model": "challenge-mlp",
        "images": len(y),
        "points": len(KINDS) * len(PERCENT),
        "pairs": pairs,
        "ratio_wall": interval(ratios["wall"]),
        "ratio_cpu": interval(ratios["cpu"]),
        "seconds": {
            side: {name: interval([t[name] for t in found]) for name in ("wall", "cpu")}
            for side, found in taken.items()
        },
        "least_wall": {side: min(t["wall"] for t in found) for side, found in taken.items()},
        "first": first,
        "most_images_apart": {
            "usual": images_apart(mine, theirs, len(y)),
            "same_masks": images_apart(mine, same_masks(model, dense, x, y), len(y)),
        },
        "accuracy": {"percent": list(PERCENT), **{k: [round(a, 6) for a in mine[k]] for k in KINDS}},
        "traces": traces,
        "load": [round(load_before, 2), round(os.getloadavg()[0], 2)],
        "ratios": {name: [round(r, 4) for r in found] for name, found in ratios.items()},
        "versions": installed(),
        "machine": machine(),
    }  # fmt: skip


def run_backend(backend: str, pairs: int, limit: int | None) -> dict[str, Any]:
    """One process for one backend."""
    command = [sys.executable, __file__, "--worker", "--pairs", str(pairs)]
    command += [] if limit is None else ["--limit", str(limit)]
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Read the command line, time, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", default=",".join(BACKENDS), help="comma-separated")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--out", type=Path, help=f"default: {RECORD.relative_to(ROOT)}")
    parser.add_argument("--quick", action="store_true", help="a smoke test; writes --out only")
    parser.add_argument("--limit", type=int, help="images of each part (default: all)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(work(given.pairs, given.limit)))
        return
    pairs, limit = (1, given.limit or 1000) if given.quick else (given.pairs, given.limit)
    if unknown := set(given.backends.split(",")) - set(BACKENDS):
        parser.error(f"unknown backend {sorted(unknown)[0]}; known: {', '.join(BACKENDS)}")
    out = given.out if given.out or given.quick else RECORD
    for backend in given.backends.split(","):
        row = run_backend(backend, pairs, limit)
        wall = row["ratio_wall"]
        print(
            f"{backend}: {wall['median']:.3f} [{wall['low']:.3f}, {wall['high']:.3f}] of the wall "
            f"time, {row['ratio_cpu']['median']:.3f} of the CPU time, {row['pairs']} pairs; at most "
            f"{row['most_images_apart']} images apart; load {row['load']}",
            flush=True,
        )
        if out:
            write(out, row, given.quick)


def write(out: Path, row: dict[str, Any], quick: bool) -> None:
    """Put one backend's row into the record, those of the others stay."""
    held = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.exists() else []
    about = {"machine": {**row.pop("machine"), "instructions": instructions()}}
    rows = [r for r in held if r["backend"] != row["backend"]] + [row]
    record = {
        "kind": "one-shot-speed",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        **about,
        "rows": sorted(rows, key=lambda r: BACKENDS.index(r["backend"])),
    }
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
