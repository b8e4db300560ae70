"""Where compression pays: three networks as they are and with zeros, on every target.

    python benchmarks/targets.py                          # some minutes; needs MNIST, extras onnx, micro
    python benchmarks/targets.py --models lenet-5
    python benchmarks/targets.py --quick --out DIR        # untrained, three rounds: a smoke test

lab CNN and LeNet-5 on MNIST; MobileNet at a quarter of its width, with its head, on MNIST padded to
32x32, nothing of it frozen. Each is trained for a few epochs and then given to `secateur.targets`:
zeros in one shot, no training afterwards, so that accuracies are no results. A record a model.
"""

from __future__ import annotations

import argparse
import os
from importlib import metadata
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
from recording import RECORDS, Record, about, save

from secateur import Train, datasets, payoff, zoo
from secateur.reporting.targets import summary
from secateur.training import train

SEED = 0
# Name: the shape of an image, epochs, and how many pixels of nothing are put around it.
MODELS = {
    "lab-cnn": ((28, 28), 2, 0),
    "lenet-5": ((28, 28), 1, 0),
    "mobilenet-head": ((32, 32, 1), 2, 2),
}
BATCH = 128
# What decides the numbers beside what every record names.
RUNTIMES = ("ai-edge-litert", "ai-edge-quantizer", "onnxruntime", "tflite-micro", "ethos-u-vela")


def images(shape: tuple[int, ...], pad: int) -> datasets.Data:
    """MNIST in the shape that the network takes."""
    data = datasets.load("mnist", seed=SEED)
    if not pad:
        return data

    def framed(split: datasets.Split) -> datasets.Split:
        x = np.pad(split.x, ((0, 0), (pad, pad), (pad, pad)))
        return datasets.Split(x.reshape(len(x), *shape), split.y)

    parts = {name: framed(getattr(data, name)) for name in datasets.SPLITS}
    return datasets.Data(data.name, **parts, classes=data.classes, notes=data.notes)


def run(name: str, quick: bool) -> Record:
    """Train one network, give it to every target."""
    shape, epochs, pad = MODELS[name]
    keras.utils.set_random_seed(SEED)
    options = {"frozen": False} if name == "mobilenet-head" else {}
    model = zoo.ZOO[name](input_shape=shape, **options)
    data = images(shape, pad)
    settings = Train(batch_size=BATCH, epochs=epochs, learning_rate=0.001)
    if not quick:
        train(model, data, settings, seed=SEED)
    load = [round(os.getloadavg()[0], 2)]
    records = payoff.targets(model, data, sparsities=(0.8,) if quick else payoff.SPARSITIES)
    load.append(round(os.getloadavg()[0], 2))
    for record in records:
        if record["npu"]:
            record["npu"]["cpu_operators"] = len(record["npu"]["cpu_operators"])
    head = about()
    head["versions"] |= {package: metadata.version(package) for package in RUNTIMES}
    return {
        "kind": "targets",
        "quick": quick,
        "model": name,
        "input_shape": list(shape),
        "parameters": int(model.count_params()),
        "epochs": epochs,
        "batch": BATCH,
        "learning_rate": settings.learning_rate,
        "seed": SEED,
        "rounds": payoff.ROUNDS,
        "load": load,
        **head,
        "records": records,
    }


def main() -> None:
    """Read the command line, measure, write a record for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated")
    parser.add_argument("--out", type=Path, help="folder for the records")
    parser.add_argument("--quick", action="store_true", help="a smoke test; writes --out only")
    given = parser.parse_args()
    if given.quick:
        payoff.ROUNDS = 3
    folder = given.out if given.out or given.quick else RECORDS
    for name in given.models.split(","):
        record = run(name, given.quick)
        print(f"{name}: {summary(record['records'])}", flush=True)
        if folder:
            save(folder / f"targets-{name}.json", record)
            print(f"wrote targets-{name}.json", flush=True)


if __name__ == "__main__":
    main()
