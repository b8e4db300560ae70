"""`measure` of 10,000 images beside the usual loop of one image at a time.

    python benchmarks/measure_loop.py                       # some minutes
    python benchmarks/measure_loop.py --quick --out FILE    # 200 images, one round: a smoke test

Both read a `.tflite` of an untrained network and answer how many MNIST test images it classifies
correctly, on one thread:

- loop: `ai_edge_litert.interpreter.Interpreter`, then for each image `set_tensor`, `invoke`,
  `get_tensor` and `argmax`, as tutorials write it;
- measure: `secateur.measure(file, test images, latency=False)`, which also counts weights and zeros,
  gzips the file, strips it and tries it in a process of its own first;
- predict: the batched runs of `measure` alone, the file loaded.

Every file and side has ROUNDS processes of its own, which take turns, and runs three times in each.
Time is CPU time of the process and its children, which a busy machine changes less than the wall's;
the wall's best is kept beside it. Peak memory is the highest resident set above what was held before, images
included, for 1,000 images and for 10,000 and 60,000: flat means that it does not grow with them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from step_overhead import ROOT, instructions
from vgg16_memory import Phases

RECORD = Path(__file__).parent / "records" / "measure-loop.json"
NETWORKS = ("lab-cnn", "challenge-mlp")
FORMATS = ("float32", "dynamic")
SIDES = ("loop", "measure", "predict")
ROUNDS = 2
COUNTS = (1_000, 10_000, 60_000)


def loop(path: Path, x, y) -> float:
    """Accuracy, as the tutorials measure it."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    answer = interpreter.get_output_details()[0]["index"]
    right = 0
    for image, label in zip(x, y, strict=True):
        interpreter.set_tensor(source, image[None])
        interpreter.invoke()
        right += int(interpreter.get_tensor(answer)[0].argmax() == label)
    return right / len(y)


def whole(path: Path, x, y) -> float:
    """Accuracy by `measure`, which measures more than that."""
    from secateur import measure

    return measure(path, (x, y), latency=False).accuracy


def batched(path: Path, x, y) -> float:
    """Accuracy by the session of `measure`, loading included."""
    from secateur.runtimes import litert

    outputs = litert.load(path.read_bytes()).predict(x)
    return float((outputs.argmax(axis=1) == y).mean())


def worker(spec: dict) -> dict:
    """Time one side of one file, and its memory for more and more images."""
    import numpy as np

    from secateur import datasets

    data = datasets.load("mnist", validation_split=0.0)
    side = {"loop": loop, "measure": whole, "predict": batched}[spec["side"]]
    x, y = data.test.x[: spec["n"]], data.test.y[: spec["n"]]
    path, taken, walls = Path(spec["file"]), [], []
    side(path, x[:10], y[:10])  # imports, and what a process does once
    for _ in range(spec["rounds"]):
        used, begun = cpu_seconds(), time.perf_counter()
        accuracy = side(path, x, y)
        walls.append(time.perf_counter() - begun)
        taken.append(cpu_seconds() - used)
    several = -(-max(spec["counts"]) // len(x))
    many, labels = np.concatenate([x] * several), np.concatenate([y] * several)
    peaks = {}
    for count in spec["counts"]:
        phases = Phases()
        with phases("side"):
            side(path, many[:count], labels[:count])
        peaks[str(count)] = phases.found["side"]["peak_mib"]
    return {"accuracy": round(accuracy, 6), "seconds": taken, "wall": walls, "peak_mib": peaks}


def cpu_seconds() -> float:
    """CPU time of this process and of the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def run(spec: dict) -> dict:
    """One side of one file in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    load = [round(os.getloadavg()[0], 2)]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(spec)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = done.stderr.strip().splitlines()[-15:]
        raise SystemExit("\n".join([*tail, f"error: the process ({spec['side']}) died, see above"]))
    found = json.loads(done.stdout.splitlines()[-1])
    return {**found, "load": [*load, round(os.getloadavg()[0], 2)]}


def files(folder: Path) -> dict[tuple[str, str], Path]:
    """Each network in each format; untrained, for a training changes no time."""
    import keras

    from secateur import export, zoo

    found = {}
    for name in NETWORKS:
        keras.utils.set_random_seed(0)
        for artifact in export(zoo.build(name), FORMATS, folder, stage=name):
            found[name, artifact.format] = artifact.path
    return found


def main() -> None:
    """Read the command line, measure, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="200 images, one round")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(worker(json.loads(given.worker))))
        return
    from recording import about, save

    from secateur.artifact import versions

    begun = time.perf_counter()
    n, rounds = (200, 1) if given.quick else (10_000, ROUNDS)
    counts = [200, 400] if given.quick else COUNTS
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for (name, format), path in files(Path(folder)).items():
            spec = {"file": str(path), "n": n, "rounds": 3, "counts": counts}
            rounds_of: dict[str, list[dict]] = {side: [] for side in SIDES}
            for _ in range(rounds):  # the sides take turns
                for side in SIDES:
                    # The loop holds one image, whatever their number.
                    asked = counts[:1] if side == "loop" else counts
                    rounds_of[side].append(run({**spec, "side": side, "counts": asked}))
            for side, each in rounds_of.items():
                seconds = [s for one in each for s in one["seconds"]]
                rows.append(
                    {
                        "network": name,
                        "format": format,
                        "side": side,
                        "accuracy": each[0]["accuracy"],
                        "seconds": {
                            "median": round(statistics.median(seconds), 4),
                            "low": round(min(seconds), 4),
                            "high": round(max(seconds), 4),
                            "runs": len(seconds),
                        },
                        "wall_seconds": round(min(w for one in each for w in one["wall"]), 4),
                        "peak_mib": {
                            k: round(statistics.median(o["peak_mib"][k] for o in each), 1)
                            for k in each[0]["peak_mib"]
                        },
                        "load": [load for one in each for load in one["load"]],
                    }
                )
                print(rows[-1], flush=True)
    record = {"kind": "measure-loop", **about(), "quick": given.quick, "n": n, "rows": rows}
    record |= {"seconds": round(time.perf_counter() - begun), "threads": 1}
    record["machine"]["instructions"] = instructions()
    record["versions"] = versions()
    out = given.out if given.out or given.quick else RECORD
    if out:
        save(out, record)
        print(f"wrote {out.name} after {record['seconds']} s")


if __name__ == "__main__":
    main()
