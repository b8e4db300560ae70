"""Every post-training format of three networks: bytes, accuracy, agreement with float, latency.

    python benchmarks/format_matrix.py                      # seeds 0 1 2, the whole of MNIST
    python benchmarks/format_matrix.py --quick --out DIR    # 600 images, a smoke test: add --networks lab-cnn

The lab CNN, LeNet-5 and a MobileNet (alpha 0.25, images padded to 32x32x1) are trained on MNIST as
BUDGETS says, exported dense in every format and, pruned to 80 % in one epoch more, as float32 and
sparse. Ranges of activations come from 500 training images. Accuracy is that of the file in LiteRT
on the whole test set; agreement is the share of test images on which it answers as the float32 file
of the same network and stage does. Latency is of one image on one thread: the files of a network
take turns, the median of ROUNDS medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
from pathlib import Path

import keras
import numpy as np
from recording import RECORDS, load, pack, save

from secateur import Prune, Recipe, Schedule, Select, Step, Train, compress, datasets, export, zoo
from secateur import measure as measured
from secateur.artifact import versions
from secateur.datasets import Data, Split
from secateur.measurement import time_one
from secateur.runtimes import litert
from secateur.training import train

DENSE = ("float32", "float16", "dynamic", "int8", "int16x8", "int4")
PRUNED = ("float32", "sparse")
SPARSITY, ROUNDS = 0.8, 3
BUDGETS = {
    "lab-cnn": {"epochs": 1, "batch_size": 32},
    "lenet-5": {"epochs": 2, "batch_size": 128, "learning_rate": 0.002, "decay": "cosine"},
    "mobilenet": {"epochs": 3, "batch_size": 128, "learning_rate": 0.004, "decay": "cosine"},
}
PRUNING = {"epochs": 1, "batch_size": 128, "learning_rate": 0.002, "decay": "cosine"}
# Kernels of 9 weights a channel have nothing to spare.
SELECT = {"mobilenet": Select(exclude=("*conv_dw_*", "*conv1*"))}


def network(name: str) -> keras.Model:
    """The untrained network, without XLA, whose convolutions take twice as long on a CPU."""
    if name == "mobilenet":
        model = zoo.mobilenet_head((32, 32, 1), 10, alpha=0.25, frozen=False)
    else:
        model = zoo.build(name)
    model.layers[0].supports_jit = False
    return model


def images(data: Data, name: str) -> Data:
    """The data as the network takes them: for the MobileNet with a border of two black pixels."""
    if name != "mobilenet":
        return data
    parts = {part: getattr(data, part) for part in datasets.SPLITS}
    padded = {
        part: Split(np.pad(split.x, ((0, 0), (2, 2), (2, 2)))[..., None], split.y)
        for part, split in parts.items()
        if split
    }
    return dataclasses.replace(data, **padded)


def files(name: str, seed: int, data: Data, folder: Path) -> list:
    """Train, prune and write every file of a network, each verified."""
    keras.utils.set_random_seed(seed)
    model = network(name)
    train(model, data, Train(**BUDGETS[name]), seed=1000 * seed)
    calibration, held = data.calibration.x, data.validation.x[:500]
    written = export(model, DENSE, folder, stage="dense", calibration=calibration, data=held)
    method = Prune(
        sparsity=SPARSITY,
        schedule=Schedule(initial=0.5, end=0.7, every=10),
        select=SELECT.get(name, Select()),
    )
    recipe = Recipe(steps=[Step(method=method, train=Train(**PRUNING))], seed=seed)
    small = compress(model, recipe, data, inplace=True)
    return written + export(
        small.model, PRUNED, folder, stage="pruned", promises=small.promises, data=held
    )


def rows(artifacts: list, test: Split) -> list[dict]:
    """What each file costs and how it answers, beside the float32 file of its stage."""
    sessions = [litert.load(artifact.path) for artifact in artifacts]
    latencies: list[list[dict]] = [[] for _ in sessions]
    for _ in range(ROUNDS):
        for session, taken in zip(sessions, latencies, strict=True):
            taken.append(time_one(session, test.x[:1]))
    found, floats = [], {}
    for artifact, session, taken in zip(artifacts, sessions, latencies, strict=True):
        answers = session.predict(test.x).argmax(axis=1)
        reference = floats.setdefault(artifact.stage, answers)
        assert artifact.stage in floats and (artifact.format == "float32") == (reference is answers)
        right = answers == test.y
        costs = measured(artifact.path).to_record()
        sizes = ("bytes", "gzip_bytes", "stripped_bytes", "stripped_gzip_bytes", "parameters")
        found.append(
            {
                "stage": artifact.stage,
                "format": artifact.format,
                **{key: costs[key] for key in (*sizes, "zeros")},
                "accuracy": round(float(right.mean()), 6),
                "agreement": round(float((answers == reference).mean()), 6),
                "latency_us": round(statistics.median(one["median_us"] for one in taken), 2),
                "cpu_us": round(statistics.median(one["cpu_median_us"] for one in taken), 2),
                "right": pack(right),
            }
        )
    return found


def main() -> None:
    """Measure what the records lack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--networks", nargs="*", default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--out", type=Path, default=RECORDS)
    parser.add_argument("--quick", action="store_true", help="600 images")
    given = parser.parse_args()
    if given.quick and given.out == RECORDS:
        parser.error("--quick needs --out: its figures mean nothing")
    for seed in given.seeds:
        file = given.out / f"format-matrix-seed-{seed}.json"
        settings = {"budgets": BUDGETS, "pruning": PRUNING, "sparsity": SPARSITY}
        record = load(file, {"seed": seed, "quick": given.quick, **settings})
        known = {run["network"] for run in record["runs"]}
        data = datasets.load("mnist", seed=seed, limit=600 if given.quick else None)
        record |= {"n": len(data.test), "versions": versions(), "load": record.get("load", [])}
        for name in (name for name in given.networks if name not in known):
            fitting = images(data, name)
            with tempfile.TemporaryDirectory() as folder:
                made = files(name, seed, fitting, Path(folder))
                runs = rows(made, fitting.test)
            record["runs"] += [{"network": name, **row} for row in runs]
            record["load"].append(round(os.getloadavg()[0], 2))
            save(file, record)
            for row in runs:
                print(seed, name, {k: v for k, v in row.items() if k != "right"}, flush=True)


if __name__ == "__main__":
    main()
