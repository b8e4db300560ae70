"""Does a change of structure leave every number as it was? A set of small runs, hashed.

    python benchmarks/same_numbers.py before.json              # on the old tree
    python benchmarks/same_numbers.py after.json before.json   # on the new: 1 where anything differs

Networks of some thousand weights on the bundled digits, on the backend that `KERAS_BACKEND` names:
each method, quantization-aware training, every format, a run, a sweep, and their reports. What is
measured with a clock is left out. Uses the public names and the command line only,
so that it runs on any arrangement of the modules. Compare on one machine: another processor rounds
otherwise.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import secateur as sc

TIMED = {
    *("latency", "load_ms", "seconds", "created", "machine", "cost", "command", "versions"),
    *("latency_us", "cpu_seconds", "wall_seconds", "fingerprint"),
}
GRID = {
    "name": "small",
    "train": {"epochs": 2},
    "files": "none",
    "curves": [
        {"name": "dense"},
        {
            "name": "one-shot",
            "steps": [
                {"method": "prune", "sparsity": {"sweep": [0.5, 0.9]}, "train": {"epochs": 0}}
            ],
        },
        {
            "name": "trained",
            "steps": [
                {"method": "prune", "sparsity": {"sweep": [0.5, 0.9]}, "train": {"epochs": 2}}
            ],
        },
        {
            "name": "units",
            "steps": [{"method": "units", "sparsity": {"sweep": [0.5]}, "train": {"epochs": 0}}],
        },
    ],
}


def digest(*contents: Any) -> str:
    """A short hash of bytes, texts and arrays."""
    total = hashlib.sha256()
    for content in contents:
        if isinstance(content, str):
            content = content.encode()
        total.update(content if isinstance(content, bytes) else np.ascontiguousarray(content))
    return total.hexdigest()[:16]


def untimed(record: Any) -> Any:
    """A record without what a clock or this machine says."""
    if isinstance(record, dict):
        return {key: untimed(value) for key, value in record.items() if key not in TIMED}
    return [untimed(value) for value in record] if isinstance(record, list) else record


def network(seed: int = 0) -> Any:
    """A convolution with BatchNorm and two Dense layers."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8)),
            layers.Reshape((8, 8, 1)),
            layers.Conv2D(8, 3, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(24, activation="relu", name="hidden"),
            layers.Dense(10, activation="softmax", name="out"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def steps() -> dict[str, list[Any]]:
    """Recipes by name."""
    schedule = sc.Schedule(initial=0.3, every=5)
    return {
        "gradual": [sc.Prune(sparsity=0.8, schedule=schedule)],
        "global": [sc.Prune(sparsity=0.8, allocation="global")],
        "taylor": [sc.Prune(sparsity=0.8, criterion="taylor", allocation="lamp")],
        "2:4": [sc.Prune(pattern="2:4")],
        "rigl": [sc.RigL(sparsity=0.8)],
        "pruned, tuned": [sc.Prune(sparsity=0.8), sc.KeepZeros()],
        "aware": [sc.Prune(sparsity=0.8), sc.Quantize(aware=True)],
        "fine-tuned": [sc.FineTune()],
    }


def methods(data: Any) -> dict[str, str]:
    """Weights and promises after each recipe."""
    hashes = {}
    for name, methods in steps().items():
        train = sc.Train(epochs=2, batch_size=64)
        small = sc.compress(network(), sc.Recipe(steps=methods, train=train), data)
        zeros = [(p.path, getattr(p, "kind", type(p).__name__)) for p in small.promises]
        hashes[f"weights: {name}"] = digest(*small.model.get_weights())
        hashes[f"promises: {name}"] = digest(str(sorted(map(str, zeros))))
    return hashes


def files(data: Any, folder: Path) -> dict[str, str]:
    """Every format that this backend writes, and what is measured of it."""
    model = network()
    model.fit(data.train.x, data.train.y, epochs=3, verbose=0)
    formats = ["keras", "h5"]
    if keras.backend.backend() == "tensorflow":
        formats += ["float32", "float16", "dynamic", "int8", "int16x8", "int4"]
        formats += ["onnx", "onnx-dynamic", "onnx-int8"]
    hashes = {}
    x = data.train.x[:300]
    for artifact in sc.export(model, formats, folder, stage="m", calibration=x, data=x):
        measured = untimed(sc.measure(artifact.path, data.test, latency=False).to_record())
        measured["path"] = None
        if "onnx" not in artifact.format:  # the names inside differ from process to process
            hashes[f"bytes: {artifact.format}"] = artifact.sha256[:16]
        hashes[f"measured: {artifact.format}"] = digest(json.dumps(measured, sort_keys=True))
        hashes[f"parity: {artifact.format}"] = digest(json.dumps(dict(artifact.parity)))
    return hashes


def command(*words: Any) -> str:
    """The standard output of `secateur WORDS`."""
    line = [sys.executable, "-m", "secateur", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: {done.stderr[-2000:]}")
    return done.stdout


def runs(folder: Path) -> dict[str, str]:
    """A run of the built-in demo with fewer epochs, a sweep, and the reports of both."""
    hashes = {}
    formats = ["keras", "float32", "dynamic"]
    if keras.backend.backend() != "tensorflow":
        formats = ["keras", "h5"]
    recipe = sc.Recipe(
        steps=[sc.Prune(sparsity=0.9)],
        train=sc.Train(epochs=3),
        export=sc.Export(formats=formats),
    )
    out, swept = folder / "run", folder / "sweep"
    sc.run("lenet-300-100", recipe, data="digits", out=out)
    sc.sweep(GRID, "lenet-300-100", "digits", seeds=2, out=swept)
    for name, path in (("run", out), ("sweep", swept)):
        for form in ("json", "csv", "markdown"):
            page = folder / f"{name}.{form}"
            command("report", path, f"--{form}", page)
        record = untimed(json.loads((folder / f"{name}.json").read_text()))
        hashes[f"{name}: report"] = digest(json.dumps(record, sort_keys=True))
        hashes[f"{name}: columns"] = digest((folder / f"{name}.csv").read_text().splitlines()[0])
    record = json.loads((out / "run.json").read_text())
    hashes["run: record"] = digest(json.dumps(untimed(record), sort_keys=True))
    hashes["run: keys"] = digest(str(sorted(record)))
    for row in record["rows"]:
        hashes[f"run: {row['row']}"] = digest((out / row["path"]).read_bytes())
    return hashes


def main(to: str, before: str | None = None) -> int:
    """Write the hashes; with older ones, name what differs."""
    data = sc.load_data("digits")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hashes = {**methods(data), **files(data, folder / "files"), **runs(folder)}
    Path(to).write_text(json.dumps(hashes, indent=1) + "\n")
    if before is None:
        return 0
    old = json.loads(Path(before).read_text())
    differ = sorted(k for k in old.keys() | hashes.keys() if old.get(k) != hashes.get(k))
    print(f"{len(hashes) - len(differ)} equal, {len(differ)} differ: {', '.join(differ) or 'none'}")
    return bool(differ)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
