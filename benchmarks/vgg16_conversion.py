"""VGG16 under a head, 75 % zeros, to `.tflite`: bytes, peak memory and time, the old route beside it.

    python benchmarks/vgg16_conversion.py --peer PEER_VENV/bin/python
    python benchmarks/vgg16_conversion.py --quick --out FILE    # 32x32 images, one round

The network of W2, 27,566,412 parameters, random weights of which each kernel keeps its largest
quarter. For every format a process of its own, rounds alternate between the sides:

- `secateur`: `secateur.conversion.to_litert` of the Keras 3 model, what `export` converts with;
- `converter`: `tf.lite.TFLiteConverter.from_keras_model` of the tf_keras model, the old route, with
  the optimizations that its users set (EXPERIMENTAL_SPARSITY, DEFAULT);
- `command`: `secateur export model.keras --formats FORMAT` from its start to its end: TensorFlow
  loaded, the model read, the file run and compared with the model, every weight searched in it.

Peak memory is the highest resident set of the process while it converts (VmHWM, set back before):
TensorFlow, the model and what converting adds. What was held before is given beside it. Time is that
of all cores together, which a busy machine changes less than the wall's. JAX is kept out of ours:
TensorFlow imports it wherever it is installed, 190 MB that the peer's environment has not.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from step_overhead import ROOT, installed, instructions
from vgg16_memory import CLASSES, HIDDEN, SPARSITY, Phases

# Standard library only up here: the peer's interpreter runs this file too.

RECORD = Path(__file__).parent / "records" / "vgg16-conversion.json"
ROUNDS = 3
FORMATS = ("float32", "sparse", "dynamic")
SIDES = ("secateur", "command", "converter")
# A small process between: a child is born with the memory that its parent holds.
WRAPPER = (
    "import resource, subprocess, sys; "
    "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL); "
    "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
    "print(used.ru_maxrss, used.ru_utime + used.ru_stime); sys.exit(done.returncode)"
)
COMMAND = "import sys; sys.modules['jax'] = None; from secateur.cli import main; main()"


# --- one process ----------------------------------------------------------------------------------


def pruned(size: int):
    """The network with its zeros, in Keras 3."""
    import keras

    from secateur import Prune, Select, zoo

    keras.utils.set_random_seed(0)
    model = zoo.vgg16_head((size, size, 3), CLASSES)
    Prune(sparsity=SPARSITY, select=Select(frozen=True)).apply(model)
    return model


def secateur(spec: dict) -> dict:
    """Convert with Secateur, in this process."""
    from secateur.conversion import to_litert

    model = pruned(spec["size"])
    blob, taken = watched(lambda: to_litert(model, [spec["format"]])[spec["format"]])
    return {"parameters": model.count_params(), **sizes(blob), **taken}


def command(spec: dict) -> dict:
    """The command in a process of its own; this one has only made the model."""
    from secateur.runtimes.keras import save_model

    with tempfile.TemporaryDirectory() as name:
        model = pruned(spec["size"])
        save_model(model, Path(name) / "model.keras")
        words = ["-c", COMMAND, "export", "model.keras", "--formats", spec["format"]]
        done = subprocess.run(
            [sys.executable, "-c", WRAPPER, sys.executable, *words, "--out", "out"],
            cwd=name,
            check=True,
            capture_output=True,
            text=True,
        )
        (file,) = (Path(name) / "out").glob("*.tflite")
        found = sizes(file.read_bytes())
    highest, seconds = map(float, done.stdout.split()[-2:])
    found |= {"seconds": round(seconds, 3), "held_mib": 0.0, "peak_mib": round(highest / 1024, 1)}
    return {"parameters": model.count_params(), **found}


def converter(spec: dict) -> dict:
    """The old route: tf_keras and TensorFlow's own front end."""
    import numpy as np
    import tensorflow as tf
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    shape = (spec["size"], spec["size"], 3)
    base = keras.applications.VGG16(include_top=False, weights=None, input_shape=shape)
    base.trainable = False
    head = [
        keras.layers.Flatten(),
        keras.layers.Dense(HIDDEN, activation="relu"),
        keras.layers.Dense(CLASSES, activation="softmax"),
    ]
    model = keras.Sequential([base, *head])
    for variable in model.weights:
        if "kernel" in variable.name:
            value = variable.numpy()
            least = np.quantile(np.abs(value), SPARSITY)
            variable.assign(np.where(np.abs(value) > least, value, np.float32(0)))
            del value
    chosen = {
        "float32": [],
        "sparse": [tf.lite.Optimize.EXPERIMENTAL_SPARSITY],
        "dynamic": [tf.lite.Optimize.DEFAULT],
    }

    def old() -> bytes:
        route = tf.lite.TFLiteConverter.from_keras_model(model)
        route.optimizations = chosen[spec["format"]]
        return route.convert()

    blob, taken = watched(old)
    return {"parameters": model.count_params(), **sizes(blob), **taken}


def watched(convert: Callable[[], bytes]) -> tuple[bytes, dict]:
    """The file, the CPU seconds it took, what was held before and the highest in all, in MiB."""
    phases, begun = Phases(), time.process_time()
    with phases("convert"):
        blob = convert()
    found = phases.found["convert"]
    return blob, {
        "seconds": round(time.process_time() - begun, 3),
        "held_mib": found["held_mib"],
        "peak_mib": round(found["held_mib"] + found["peak_mib"], 1),
    }


def sizes(blob: bytes) -> dict:
    """Bytes as they are, and through gzip."""
    return {"bytes": len(blob), "gzip_bytes": len(gzip.compress(blob, 9, mtime=0))}


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
    if spec["side"] == "converter":
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
    print({key: value for key, value in found.items() if key != "versions"}, flush=True)
    return found


def medians(rounds: list[dict]) -> dict:
    """One side and format: medians of time and memory, the file as the first round made it."""
    first = rounds[0]
    kept = ("side", "format", "parameters", "bytes", "gzip_bytes", "versions")
    taken = ("seconds", "held_mib", "peak_mib")
    return {
        **{key: first[key] for key in kept},
        **{key: round(statistics.median(r[key] for r in rounds), 3) for key in taken},
        "each": [{key: r[key] for key in taken} for r in rounds],
        "same_bytes": len({r["bytes"] for r in rounds}) == 1,
        "load": [load for r in rounds for load in r["load"]],
    }


def main() -> None:
    """Read the command line, measure, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter that has tf_keras")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="32x32 images, one round")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        spec = json.loads(given.worker)
        answer = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever a framework prints is not the answer
        sys.modules["jax"] = None  # pyright: ignore[reportArgumentType]
        found = {"secateur": secateur, "command": command, "converter": converter}[spec["side"]]
        print(json.dumps({**found(spec), "versions": installed()}), file=answer)
        return
    begun = time.perf_counter()
    pythons = dict.fromkeys(SIDES, sys.executable)
    if given.peer:
        pythons["converter"] = given.peer
    else:
        del pythons["converter"]
    size = 32 if given.quick else 224
    runs: dict[tuple, list[dict]] = {(side, f): [] for f in FORMATS for side in pythons}
    for _ in range(1 if given.quick else given.rounds):
        for side, format in runs:
            spec = {"side": side, "format": format, "size": size}
            runs[side, format].append(run(pythons[side], spec))
    from recording import about, save

    record = {
        "kind": "vgg16-conversion",
        **about(),
        "quick": given.quick,
        "seconds": round(time.perf_counter() - begun),
        "rows": [medians(each) for each in runs.values()],
    }
    record["machine"]["instructions"] = instructions()
    out = given.out if given.out or given.quick else RECORD
    if out:
        save(out, record)
        print(f"wrote {out.name} after {record['seconds']} s")


if __name__ == "__main__":
    main()
