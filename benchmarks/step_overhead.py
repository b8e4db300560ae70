"""What a training step costs with pruning, over the same step without: ratios, tfmot beside ours.

    python benchmarks/step_overhead.py --peer PEER_VENV/bin/python   # minutes for each backend
    python benchmarks/step_overhead.py --peer ... --what aware       # quantization-aware training instead
    python benchmarks/step_overhead.py --quick --backends tensorflow # a smoke test

Cases: the lab CNN at batch 32 and 128, the challenge MLP at batch 64; Adam, accuracy as a metric,
random data (only times are taken), zeros from 50 % to 80 %, masks updated every 100 steps.

How it is made fair:

- Real `model.fit`, each library with its own defaults (ours: XLA where Keras chooses it; the peer
  runs in tf_keras, which does not), plain against pruned. Same seeds, data and callbacks on both
  sides, but for the pruning. Plain and pruned are always of one process, one framework, one Keras:
  a ratio compares nothing else, and times of different processes are never compared.
- Each process runs two long fits, plain and pruned, in two threads of which only one ever runs. A
  light callback hands over at every 25th batch, so slices of 25 steps alternate (which of the two
  goes first alternates as well), and both fits have been traced once, before anything is timed.
  Four slices of each fit, 100 steps plain and 100 pruned, make one pair.
- The processes (one a backend, one for the peer) alternate too: the parent asks one after the
  other for a pair, over their standard input and output. One that is not asked sleeps.
- The pruned 100 steps hold exactly one mask update. The schedule lasts to the end, for it is the
  updates that cost. Every slice ends by waiting for the work of its last step (JAX returns
  earlier); plain pays for that too.
- Not counted, but run: the first pair (tracing, caches), and the pairs with an epoch's end.
- The plain step's time stands in the record because a ratio depends on it: where TensorFlow's
  plain step is slow (no AVX-512: oneDNN is off by default), the same addition weighs less.

The result of a case is the median of the pairs' ratios with a 95 % interval (percentile bootstrap).
The mask update's time is the step that holds it less the median of the pair's other pruned steps.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

# Standard library only up here: the peer's interpreter runs this file too.

ROOT = Path(__file__).resolve().parents[1]
RECORDS = {
    what: ROOT / "benchmarks" / "records" / f"{name}.json"
    for what, name in (("pruned", "step-overhead"), ("aware", "qat-overhead"))
}
RECORD = RECORDS["pruned"]
BACKENDS = ("tensorflow", "jax", "torch")
# (model, batch, pairs): so many pairs that each case takes about as long as the others
CASES = (("lab-cnn", 32, 30), ("lab-cnn", 128, 12), ("challenge-mlp", 64, 10))
EVERY, PARTS, WARM, EPOCH = (
    100,
    4,
    1,
    10,
)  # steps in a pair; slices in it; uncounted; pairs an epoch
INITIAL, FINAL = 0.5, 0.8
PACKAGES = (
    "secateur", "keras", "tensorflow", "jax", "jaxlib", "torch", "tf_keras",
    "tensorflow-model-optimization", "numpy",
)  # fmt: skip


# --- statistics -----------------------------------------------------------------------------------


def interval(values: list[float], resamples: int = 10_000) -> dict[str, float]:
    """Median with a 95 % percentile bootstrap interval; the same values give the same interval."""
    source = random.Random(0)
    medians = sorted(
        statistics.median(source.choices(values, k=len(values))) for _ in range(resamples)
    )
    low, high = medians[int(0.025 * resamples)], medians[int(0.975 * resamples) - 1]
    return {
        "median": round(statistics.median(values), 4),
        "low": round(low, 4),
        "high": round(high, 4),
    }


def update_times(slices: list[list[float]]) -> list[float]:
    """What the step with the mask update takes beyond the other steps, for each pruned 100 steps.

    Which step that is differs (ours: the first, tfmot: the last) and is found, not told: it is the
    one that is longest in the median over all pairs.
    """
    positions = [statistics.median(column) for column in zip(*slices, strict=True)]
    where = positions.index(max(positions))
    return [
        steps[where] - statistics.median(steps[:where] + steps[where + 1 :]) for steps in slices
    ]


# --- one process: two fits, one at a time -----------------------------------------------------------


class Lane:
    """A `fit` in a thread of its own that runs one slice when told to, and sleeps otherwise."""

    def __init__(self, begin_fit):
        self._go: queue.SimpleQueue = queue.SimpleQueue()
        self._back: queue.SimpleQueue = queue.SimpleQueue()
        self._begin_fit = begin_fit
        threading.Thread(target=self._run, daemon=True).start()
        self._result()  # up to the first batch: building and seeding never overlap

    def slice(self) -> list[float]:
        """Run one slice; returns the time of each of its steps in seconds."""
        self._go.put(None)
        stamps = self._result()
        return [after - before for before, after in pairwise(stamps)]

    def hand_over(self, stamps: list[float]) -> None:
        """Called by the fit's thread at the end of a slice; returns when the next may begin."""
        self._back.put(stamps)
        self._go.get()

    def _result(self):
        found = self._back.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def _run(self) -> None:
        try:
            self._begin_fit(self)
            raise RuntimeError("the fit ended before the benchmark did")
        except BaseException as error:  # raised again where the result is waited for
            self._back.put(error)


def stopwatch(base: type, lane: Lane, length: int, wait):
    """A callback that stamps the begin of each batch and hands over every `length` batches."""

    class Stopwatch(base):
        _supports_tf_logs = True  # tf_keras: else it would turn logs into arrays at every batch

        def __init__(self):
            super().__init__()
            self.batches, self.stamps = 0, []

        def on_train_batch_begin(self, batch, logs=None):
            if self.batches % length == 0:
                wait(self._model if hasattr(self, "_model") else None)
                lane.hand_over([*self.stamps, time.perf_counter()])
                self.stamps = []
            self.batches += 1
            self.stamps.append(time.perf_counter())

    return Stopwatch()


def random_data(samples: int):
    """The same images and labels in every process; only their shapes matter."""
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.random((samples, 28, 28), dtype=np.float32)
    return x, rng.integers(0, 10, samples)


class Ours:
    """Secateur on whatever Keras backend the process has."""

    def __init__(self):
        import keras

        import secateur.pipeline

        self.keras = keras
        self.machine = secateur.pipeline.machine()

    def model(self, name: str, what: str, steps: int, every: int, pattern: str):
        from secateur import Prune, Quantize, Schedule, zoo

        self.keras.utils.set_random_seed(0)
        model = zoo.build(name)
        if what == "aware":
            return model, [Quantize(aware=True).callback()]
        schedule = Schedule(initial=INITIAL, end=steps - every, every=every, unit="steps")
        final = FINAL if pattern != "2:4" else None  # which brings its own
        method = Prune(sparsity=final, schedule=schedule, pattern=pattern)
        return model, [method.callback()] if what == "pruned" else []

    def compile(self, model, from_logits: bool) -> None:
        loss = self.keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
        model.compile("adam", loss, metrics=["accuracy"])

    def wait(self, model) -> None:
        """Until the last step's work is done: JAX returns before, and the other lane would pay."""
        if self.keras.backend.backend() == "jax":
            import jax

            # not callback.model, which would also copy the state back into the model
            jax.block_until_ready(getattr(model, "_jax_state", None))

    @property
    def threads(self) -> int:
        if self.keras.backend.backend() == "torch":
            import torch

            return torch.get_num_threads()
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


class Peer:
    """tensorflow-model-optimization on tf_keras; layer by layer the same networks."""

    machine = None

    def __init__(self):
        import tf_keras

        self.keras = tf_keras

    def model(self, name: str, what: str, steps: int, every: int, pattern: str):
        import tensorflow_model_optimization as tfmot

        self.keras.utils.set_random_seed(0)
        model = self.keras.Sequential([self.keras.Input((28, 28)), *self._layers(name)])
        if what == "plain":
            return model, []
        if what == "aware":
            return tfmot.quantization.keras.quantize_model(model), []
        sparsity = tfmot.sparsity.keras
        schedule = sparsity.PolynomialDecay(INITIAL, FINAL, 0, steps, frequency=every)
        pruning = sparsity.prune_low_magnitude(model, pruning_schedule=schedule)
        return pruning, [sparsity.UpdatePruningStep()]

    def _layers(self, name: str) -> list:
        layers = self.keras.layers
        if name == "lab-cnn":
            return [
                layers.Reshape((28, 28, 1)),
                layers.Conv2D(12, 3, activation="relu"),
                layers.MaxPooling2D(2),
                layers.Flatten(),
                layers.Dense(10),
            ]
        hidden = [
            layers.Dense(units, activation="relu", use_bias=False)
            for units in (1000, 1000, 500, 200)
        ]
        return [
            layers.Flatten(),
            *hidden,
            layers.Dense(10, activation="softmax", use_bias=False),
        ]

    def compile(self, model, from_logits: bool) -> None:
        loss = self.keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
        model.compile("adam", loss, metrics=["accuracy"])

    def wait(self, model) -> None:
        """TensorFlow on the CPU has finished a step when `fit` goes on."""

    @property
    def threads(self) -> int:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def work(spec: dict) -> None:
    """A worker: one line of JSON out when ready, then one for each line in; ends with its input."""
    answer = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a framework prints is not part of the protocol
    library = Peer() if spec["side"] == "tfmot" else Ours()
    every, epoch = spec["every"], spec["epoch"]
    units = WARM + spec["pairs"] * epoch // (epoch - 1) + epoch
    epochs = -(-units // epoch)
    x, y = random_data(every * epoch * spec["batch"])
    known: dict = {}

    def fit(what: str):
        def begin(lane: Lane) -> None:
            steps = epochs * epoch * every
            model, callbacks = library.model(
                spec["model"], what, steps, every, spec.get("pattern", "unstructured")
            )
            library.compile(model, from_logits=spec["model"] == "lab-cnn")
            known["jit"] = bool(getattr(model, "jit_compile", False))
            # The stopwatch comes first: an update falls into the slice whose first step it precedes.
            base = library.keras.callbacks.Callback
            watch = stopwatch(base, lane, every // PARTS, library.wait)
            model.fit(
                x,
                y,
                batch_size=spec["batch"],
                epochs=epochs,
                callbacks=[watch, *callbacks],
                verbose=0,
            )

        return begin

    plain, pruned = Lane(fit("plain")), Lane(fit(spec.get("what", "pruned")))
    done = 0

    def pair(swap: bool) -> dict[str, list[float]]:
        nonlocal done
        done += 1
        times: dict[str, list[float]] = {"plain": [], "pruned": []}
        lanes = [("plain", plain), ("pruned", pruned)]
        for part in range(PARTS):
            for name, lane in reversed(lanes) if swap ^ part % 2 else lanes:
                times[name] += lane.slice()
        return times

    for _ in range(WARM):
        pair(False)
    hello = {
        "threads": library.threads,
        "machine": library.machine,
        "versions": installed(),
        **known,
    }
    print(json.dumps(hello), file=answer)
    for number, _ in enumerate(sys.stdin):
        while done % epoch == epoch - 1:  # the end of an epoch falls into this pair
            pair(False)
        print(json.dumps(pair(number % 2 == 1)), file=answer)
    answer.close()
    os._exit(0)  # the two fits are left in the middle, on purpose


def installed() -> dict[str, str]:
    """Versions of what matters here, of the interpreter that runs this."""
    from importlib import metadata

    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    if "secateur" not in found:
        with contextlib.suppress(ImportError):  # run from the sources
            from secateur import __version__

            found["secateur"] = __version__
    return found


def instructions() -> list[str]:
    """What decides which kernels a framework takes, as far as Linux tells."""
    info = Path("/proc/cpuinfo")
    known = info.read_text(encoding="utf-8").split() if info.exists() else []
    return [name for name in ("avx2", "avx512f", "avx512_vnni", "amx_tile") if name in known]


# --- the parent -------------------------------------------------------------------------------------


class Worker:
    """A process that times pairs on demand."""

    def __init__(self, python: str, spec: dict):
        self.spec = spec
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [python, str(Path(__file__).resolve()), "--worker", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=self._environment(),
        )
        self.pairs: list[dict] = []

    def _environment(self) -> dict[str, str]:
        env = {
            **os.environ,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "",
            "JAX_PLATFORMS": "cpu",
            "KERAS_BACKEND": self.spec["backend"],
            "PYTHONPATH": str(ROOT / "src"),
        }
        if self.spec["side"] == "tfmot":
            env["TF_USE_LEGACY_KERAS"] = "1"
            del env["PYTHONPATH"]
        return env

    def hear(self) -> dict:
        """Wait for the next line."""
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._log.seek(0)
        text = self._log.read().decode(errors="replace").strip().splitlines()
        name = f"{self.spec['side']} on {self.spec['backend']}"
        raise SystemExit("\n".join([*text[-15:], f"error: the worker ({name}) died, see above"]))

    def time_pair(self) -> None:
        """Have one pair timed; nothing else runs meanwhile."""
        self._process.stdin.write("pair\n")
        self._process.stdin.flush()
        self.pairs.append(self.hear())

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def run_case(case: tuple[str, int, int], sides: list[tuple[str, str, str]], size: dict) -> list:
    """Time one case on every side at once; returns one record a side."""
    model, batch, pairs = case
    load = [round(os.getloadavg()[0], 2)]
    shared = {"model": model, "batch": batch, "pairs": pairs, **size}
    workers = [
        Worker(python, {"side": side, "backend": backend, **shared})
        for side, backend, python in sides
    ]
    try:
        hellos = [worker.hear() for worker in workers]
        for number in range(pairs):
            turn = number % len(workers)
            for worker in [*workers[turn:], *workers[:turn]]:
                worker.time_pair()
    finally:
        for worker in workers:
            worker.close()
    load.append(round(os.getloadavg()[0], 2))
    return [summary(worker, hello, load) for worker, hello in zip(workers, hellos, strict=True)]


def summary(worker: Worker, hello: dict, load: list[float]) -> dict:
    """One side of one case, as it stands in the record."""
    spec, pairs = worker.spec, worker.pairs
    ratios = [round(sum(p["pruned"]) / sum(p["plain"]), 4) for p in pairs]
    updates = [1e3 * seconds for seconds in update_times([p["pruned"] for p in pairs])]
    plain = statistics.median(sum(p["plain"]) / len(p["plain"]) for p in pairs)
    return {
        **{key: spec[key] for key in ("model", "batch", "side", "backend")},
        "every": spec["every"],
        "pairs": len(pairs),
        "ratio": interval(ratios),
        "update_ms": round(statistics.median(updates), 3),
        "plain_step_ms": round(1e3 * plain, 3),
        "threads": hello["threads"],
        "jit": hello["jit"],
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
        "load": load,
        "versions": hello["versions"],
        "machine": hello["machine"],
        "ratios": ratios,
    }


def main() -> None:
    """Read the command line, time, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", default=",".join(BACKENDS), help="comma-separated")
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter that has tfmot and tf_keras")
    parser.add_argument("--cases", help="e.g. lab-cnn-32,challenge-mlp-64 (default: all)")
    parser.add_argument("--what", choices=sorted(RECORDS), default="pruned")
    parser.add_argument("--pairs", type=int, help="pairs of each case (default: 30, 12, 10)")
    parser.add_argument("--out", type=Path, help="default: the record in benchmarks/records")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test; prints, writes --out only"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(json.loads(given.worker))
        return
    size = {"every": 20, "epoch": 4} if given.quick else {"every": EVERY, "epoch": EPOCH}
    size["what"] = given.what
    cases = {f"{model}-{batch}": (model, batch, pairs) for model, batch, pairs in CASES}
    wanted = given.cases.split(",") if given.cases else list(cases)
    if given.quick and not given.cases:
        wanted = wanted[:1]
    if unknown := set(wanted) - set(cases):
        parser.error(f"unknown case {sorted(unknown)[0]}; known: {', '.join(cases)}")
    backends = given.backends.split(",")
    if unknown := set(backends) - set(BACKENDS):
        parser.error(f"unknown backend {sorted(unknown)[0]}; known: {', '.join(BACKENDS)}")
    sides = [("secateur", backend, sys.executable) for backend in backends]
    if given.peer:
        sides.append(("tfmot", "tensorflow", given.peer))

    begun = time.perf_counter()
    rows: list[dict] = []
    for name in wanted:
        model, batch, pairs = cases[name]
        pairs = given.pairs or (4 if given.quick else pairs)
        found = run_case((model, batch, pairs), sides, size)
        for row in found:
            ratio = row["ratio"]
            print(
                f"{name}: {row['side']} on {row['backend']}: {ratio['median']:.3f} "
                f"[{ratio['low']:.3f}, {ratio['high']:.3f}], {row['pairs']} pairs, "
                f"one update {row['update_ms']:.1f} ms (plain step {row['plain_step_ms']:.2f} ms)",
                flush=True,
            )
        rows += found
    machine = next(row["machine"] for row in rows if row["machine"])
    record = {
        "kind": RECORDS[given.what].stem,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": given.quick,
        "seconds": round(time.perf_counter() - begun),
        "machine": {**machine, "instructions": instructions()},
        "rows": [{key: value for key, value in row.items() if key != "machine"} for row in rows],
    }
    out = given.out if given.out or given.quick else RECORDS[given.what]
    if out:
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {out.name} after {record['seconds']} s")


if __name__ == "__main__":
    main()
