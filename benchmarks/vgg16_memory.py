"""VGG16 under a head, 75 % zeros: parameters, peak memory and time of pruning, tfmot beside it.

    python benchmarks/vgg16_memory.py --peer PEER_VENV/bin/python
    python benchmarks/vgg16_memory.py --quick --out FILE    # 32x32 images, one round: a smoke test

The network of W2: VGG16 without its top on 224x224x3, Flatten, Dense 512, Dense 12, the base frozen;
27,566,412 parameters. Random weights: only numbers, bytes and times are taken. What is done:

- `at once`: `Prune(sparsity=0.75, select=Select(frozen=True)).apply(model)`, the whole model;
- `callback`: the callback of the same, from its making to the end of the first training step, in
  which it prunes; `plain`: that step without it;
- `wrapper` (tfmot): `prune_low_magnitude` of base and head, the same training step with
  `UpdatePruningStep`, then `strip_pruning`; `plain, tf_keras`: the step without wrappers.

Each measurement is a process of its own, rounds alternate between the sides. Peak memory is the
highest resident set (VmHWM, which Linux lets a process reset) from the start of a phase to its end,
less what the process held at its start, the model included.
One mask update is timed on the first Dense kernel alone, 25,088 x 512 weights, five times a process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from step_overhead import RECORD as _OVERHEAD
from step_overhead import ROOT, installed, instructions

# Standard library only up here: the peer's interpreter runs this file too.

RECORD = _OVERHEAD.parent / "vgg16-memory.json"
SPARSITY, CLASSES, HIDDEN = 0.75, 12, 512
ROUNDS = 3
OURS, PEERS = ("plain", "at once", "callback"), ("plain, tf_keras", "wrapper")


# --- memory and time of a phase -------------------------------------------------------------------


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"error: no {name} in /proc/self/status; this script needs Linux")


class Phases:
    """Seconds and MiB of what happens inside `with phases(name)`."""

    def __init__(self):
        self.found: dict[str, dict[str, float]] = {}

    @contextlib.contextmanager
    def __call__(self, name: str):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
        held = _status("VmRSS")
        begun = time.perf_counter()
        yield
        seconds = time.perf_counter() - begun
        self.found[name] = {
            "seconds": round(seconds, 3),
            "held_mib": round(held, 1),
            "peak_mib": round(max(0.0, _status("VmHWM") - held), 1),
            "kept_mib": round(_status("VmRSS") - held, 1),
        }


def sample(size: int):
    """One image and label."""
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.random((1, size, size, 3), dtype=np.float32), np.array([3])


# --- one process ------------------------------------------------------------------------------------


def ours(spec: dict) -> dict:
    """Prune with Secateur, at once or by a callback."""
    import keras

    import secateur.pipeline
    from secateur import Prune, Select, zoo
    from secateur.weights import weight_table

    keras.utils.set_random_seed(0)
    size = spec["size"]
    model = zoo.vgg16_head((size, size, 3), CLASSES)
    for layer in model.layers:
        layer.supports_jit = False  # the peer does not use XLA either
    before = model.count_params()
    phases, during = Phases(), []
    method = Prune(sparsity=SPARSITY, select=Select(frozen=True))
    if spec["side"] == "at once":
        with phases("prune"):
            method.apply(model)
        during.append(model.count_params())
    else:
        x, y = sample(size)
        model.compile("adam", "sparse_categorical_crossentropy")
        counter = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: during.append(model.count_params())
        )
        with phases("step"):
            pruning = [method.callback()] if spec["side"] == "callback" else []
            model.fit(x, y, batch_size=1, verbose=0, callbacks=[*pruning, counter])
    kernels = [w for w in weight_table(model) if w.role == "kernel"]
    zeros = sum(int((w.read() == 0).sum()) for w in kernels)
    largest = max(kernels, key=lambda w: w.size)
    updates = []
    alone = Prune(sparsity=SPARSITY, select=Select(include=(largest.path,), frozen=True))
    for _ in range(5 if spec["side"] != "plain" else 0):
        largest.variable.assign(keras.random.normal(largest.shape, seed=1))
        begun = time.perf_counter()
        alone.apply(model)
        updates.append(round(time.perf_counter() - begun, 4))
    return {
        "parameters": {"before": before, "during": during[0], "after": model.count_params()},
        "kernels": sum(w.size for w in kernels),
        "zeros": zeros,
        "phases": phases.found,
        "kernel": largest.size,
        "update_seconds": updates,
        "machine": secateur.pipeline.machine(),
        "versions": installed(),
    }


def peer(spec: dict) -> dict:
    """The same with tfmot's wrappers."""
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    size = spec["size"]
    base = keras.applications.VGG16(include_top=False, weights=None, input_shape=(size, size, 3))
    base.trainable = False
    head = [
        keras.layers.Flatten(),
        keras.layers.Dense(HIDDEN, activation="relu"),
        keras.layers.Dense(CLASSES, activation="softmax"),
    ]
    model = keras.Sequential([base, *head])
    before = model.count_params()
    sparsity, phases = tfmot.sparsity.keras, Phases()
    x, y = sample(size)
    if spec["side"] != "wrapper":
        model.compile("adam", "sparse_categorical_crossentropy")
        with phases("step"):
            model.fit(x, y, batch_size=1, verbose=0)
        return _peer_found(model, before, before, phases, None, [])
    schedule = sparsity.ConstantSparsity(SPARSITY, 0, frequency=1)
    with phases("wrap"):
        wrapped = sparsity.prune_low_magnitude(model, pruning_schedule=schedule)
    during = wrapped.count_params()
    wrapped.compile("adam", "sparse_categorical_crossentropy")
    with phases("step"):
        wrapped.fit(x, y, batch_size=1, verbose=0, callbacks=[sparsity.UpdatePruningStep()])
    dense = next(
        layer
        for layer in wrapped.layers
        if isinstance(getattr(layer, "layer", None), keras.layers.Dense)
    )
    kernel = dense.layer.kernel
    updates = []
    dense.pruning_step.assign(1)
    for _ in range(5):
        kernel.assign(tf.random.normal(kernel.shape, seed=1))
        begun = time.perf_counter()
        dense.pruning_obj.conditional_mask_update()
        dense.pruning_obj.weight_mask_op()
        updates.append(round(time.perf_counter() - begun, 4))
    with phases("strip"):
        stripped = sparsity.strip_pruning(wrapped)
    return _peer_found(stripped, before, during, phases, kernel, updates)


def _peer_found(model, before: int, during: int, phases: Phases, kernel, updates: list) -> dict:
    import numpy as np

    kernels = [w.numpy() for w in model.weights if "kernel" in w.name]
    return {
        "parameters": {"before": before, "during": during, "after": model.count_params()},
        "kernels": int(sum(k.size for k in kernels)),
        "zeros": int(sum(np.count_nonzero(k == 0) for k in kernels)),
        "phases": phases.found,
        "kernel": None if kernel is None else int(np.prod(kernel.shape)),
        "update_seconds": updates,
        "versions": installed(),
    }


# --- the parent -------------------------------------------------------------------------------------


def run(python: str, spec: dict) -> dict:
    """One measurement in a process of its own."""
    env = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
        "KERAS_BACKEND": "tensorflow",
        "PYTHONPATH": str(ROOT / "src"),
    }
    if spec["side"] in PEERS:
        env["TF_USE_LEGACY_KERAS"] = "1"
        del env["PYTHONPATH"]
    load = [round(os.getloadavg()[0], 2)]
    done = subprocess.run(
        [python, str(Path(__file__).resolve()), "--worker", json.dumps(spec)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = done.stderr.strip().splitlines()[-15:]
        raise SystemExit("\n".join([*tail, f"error: the process ({spec['side']}) died, see above"]))
    load.append(round(os.getloadavg()[0], 2))
    found = {**spec, **json.loads(done.stdout.splitlines()[-1]), "load": load}
    print(spec["side"], found["phases"], found["update_seconds"], flush=True)
    return found


def medians(runs: list[dict]) -> dict:
    """One side's rounds: medians of times and memory, everything else as the first round had it."""
    first = runs[0]
    phases = {
        name: {
            key: round(statistics.median(r["phases"][name][key] for r in runs), 3) for key in one
        }
        for name, one in first["phases"].items()
    }
    updates = [seconds for r in runs for seconds in r["update_seconds"]]
    kept = ("side", "parameters", "kernels", "zeros", "kernel", "versions")
    return {
        **{key: first[key] for key in kept},
        "rounds": len(runs),
        "phases": phases,
        "update": None
        if not updates
        else {
            "median": round(statistics.median(updates), 4),
            "low": min(updates),
            "high": max(updates),
        },
        "each": [r["phases"] for r in runs],
        "load": [load for r in runs for load in r["load"]],
    }


def main() -> None:
    """Read the command line, measure, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter that has tfmot and tf_keras")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="32x32 images, one round")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        spec = json.loads(given.worker)
        answer = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever a framework prints is not the answer
        print(json.dumps(peer(spec) if spec["side"] in PEERS else ours(spec)), file=answer)
        return
    begun = time.perf_counter()
    sides = dict.fromkeys(OURS, sys.executable)
    if given.peer:
        sides |= dict.fromkeys(PEERS, given.peer)
    runs: dict[str, list[dict]] = {side: [] for side in sides}
    for _ in range(1 if given.quick else ROUNDS):
        for side, python in sides.items():
            runs[side].append(run(python, {"side": side, "size": 32 if given.quick else 224}))
    machine = next(r["machine"] for each in runs.values() for r in each if "machine" in r)
    from datetime import UTC, datetime

    record = {
        "kind": "vgg16-memory",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": given.quick,
        "seconds": round(time.perf_counter() - begun),
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count(),
        "machine": {**machine, "instructions": instructions()},
        "sides": [medians(each) for each in runs.values()],
    }
    out = given.out if given.out or given.quick else RECORD
    if out:
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {out.name} after {record['seconds']} s")


if __name__ == "__main__":
    main()
