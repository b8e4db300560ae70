"""A synthetic record of the lab (MNIST), with the published figures of the old toolkit as values.

Everything is drawn from a seeded generator of the standard library: the record looks like what a Run
leaves, and no test depends on training anything.
"""

import random
from typing import Any

ACCURACY = {
    "baseline": (0.9568, 0.9634, 0.9614),
    "pruned": (0.9606, 0.9652, 0.9690),
    "control": (0.9749, 0.9742, 0.9767),
}
KERNELS = {"conv2d/kernel": ([3, 3, 1, 12], 0.28, 86), "dense/kernel": ([2028, 10], 0.06, 16224)}
SIZES = {  # row: (bytes, gzip bytes, sparsity, stage, format, runtime)
    "baseline-h5": (98968, 77833, 0.0, "baseline", "h5", "keras 3.15.1, tensorflow"),
    "baseline-float32": (85040, 77373, 0.0, "baseline", "float32", "litert 2.3.0, XNNPACK"),
    "baseline-dynamic": (24384, 19612, 0.0071, "baseline", "dynamic", "litert 2.3.0, XNNPACK"),
    "pruned-h5": (98928, 24235, 0.7999, "pruned", "h5", "keras 3.15.1, tensorflow"),
    "pruned-float32": (85124, 23302, 0.7999, "pruned", "float32", "litert 2.3.0, XNNPACK"),
    "pruned-dynamic": (24472, 8133, 0.8021, "pruned", "dynamic", "litert 2.3.0, XNNPACK"),
}
RECIPE_TOML = """\
# The lab: train, prune 50 % -> 80 % during two epochs, quantize, measure.
name = "lab"
seed = 0

[train]
optimizer = "adam"
batch = 32
epochs = 1

[[step]]
method = "prune"
sparsity = 0.8
criterion = "l1"
schedule = { shape = "polynomial", initial = 0.5, power = 3.0 }
train = { batch = 128, epochs = 2 }

[export]
formats = ["h5", "float32", "dynamic"]
"""


def example_runs(seeds: int = 3) -> list[dict[str, Any]]:
    return [example_run(seed) for seed in range(seeds)]


def example_run(seed: int = 0) -> dict[str, Any]:
    source = random.Random(seed)
    weights = {path: _draw(source, path) for path in KERNELS}
    pruned = {path: _prune(source, values, KERNELS[path][2]) for path, values in weights.items()}
    return {
        "format_version": 1,
        "kind": "run",
        "name": "lab",
        "created": f"2026-03-0{1 + seed % 9}T09:12:44+00:00",
        "complete": True,
        "seconds": 31.4 + seed,
        "seed": seed,
        "backend": "tensorflow",
        "recipe": {"name": "lab", "seed": seed, "step": [{"method": "prune", "sparsity": 0.8}]},
        "recipe_toml": RECIPE_TOML.replace("seed = 0", f"seed = {seed}"),
        "command": f"secateur run lab --data mnist --seed {seed} --out out",
        "versions": {
            "secateur": "0.1.0",
            "keras": "3.15.1",
            "tensorflow": "2.21.0",
            "ai-edge-litert": "2.3.0",
            "numpy": "2.2.6",
        },
        "machine": {
            "cpu": "AMD EPYC 9R14",
            "cores": 2,
            "system": "Linux x86_64",
            "python": "3.11.7",
        },
        "data": {
            "name": "mnist",
            "sizes": {"train": 53500, "validation": 6000, "calibration": 500, "test": 10000},
            "shape": [28, 28],
            "dtype": "float32",
            "classes": 10,
            "notes": [
                "pixels divided by 255",
                f"validation: 10 % of the training part, shuffled by seed {seed}",
                "calibration: 500 inputs of the training part, never from validation",
                "test: the 10,000 images that MNIST ships apart, used for the final figures alone",
            ],
            "sha256": "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
        },
        "model": {
            "name": "lab-cnn",
            "parameters": 20410,
            "trainable": 20410,
            "non_trainable": 0,
            "macs": 93408,
        },
        "plan": [
            {
                "step": "prune",
                "path": "conv2d/kernel",
                "shape": [3, 3, 1, 12],
                "size": 108,
                "status": "changed",
                "how": "80 % zeros, l1, unstructured",
                "reason": None,
            },
            {
                "step": "prune",
                "path": "conv2d/bias",
                "shape": [12],
                "size": 12,
                "status": "skipped",
                "how": None,
                "reason": "role bias is not selected",
            },
            {
                "step": "prune",
                "path": "dense/kernel",
                "shape": [2028, 10],
                "size": 20280,
                "status": "changed",
                "how": "80 % zeros, l1, unstructured",
                "reason": None,
            },
            {
                "step": "prune",
                "path": "dense/bias",
                "shape": [10],
                "size": 10,
                "status": "skipped",
                "how": None,
                "reason": "role bias is not selected",
            },
        ],
        "stages": [
            _stage(
                "baseline",
                "train",
                source,
                1,
                1688,
                [0.31],
                weights,
                0.905,
                ACCURACY["baseline"][seed % 3],
            ),
            _stage(
                "pruned",
                "prune",
                source,
                2,
                844,
                [0.21, 0.13],
                pruned,
                0.949,
                ACCURACY["pruned"][seed % 3],
                curve=_curve(),
            ),
            _stage(
                "control",
                "control",
                source,
                2,
                844,
                [0.12, 0.09],
                weights,
                0.972,
                ACCURACY["control"][seed % 3],
            ),
        ],
        "rows": _rows(seed, source),
        "notes": ["The schedule ends at step 843 of 844: the last update reached 80 % exactly."],
    }


def _draw(source: random.Random, path: str) -> list[float]:
    shape, scale, _ = KERNELS[path]
    size = 1
    for side in shape:
        size *= side
    return [source.gauss(0.0, scale) for _ in range(size)]


def _prune(source: random.Random, values: list[float], zeros: int) -> list[float]:
    order = sorted(range(len(values)), key=lambda index: abs(values[index]))
    dropped = set(order[:zeros])
    return [
        0.0 if i in dropped else value * source.uniform(1.0, 1.25) for i, value in enumerate(values)
    ]


def _curve() -> list[list[float]]:
    updates = [*range(0, 843, 100), 843]
    return [[step, 0.8 + (0.5 - 0.8) * (1 - step / 843) ** 3] for step in updates]


def _histogram(values: list[float]) -> dict[str, Any]:
    low, high = min(values), max(values)
    width = (high - low) / 40
    counts = [0] * 40
    for value in values:
        counts[min(39, int((value - low) / width))] += 1
    return {"edges": [low + width * i for i in range(41)], "counts": counts}


def _weight(path: str, role: str, shape: list[int], values: list[float]) -> dict[str, Any]:
    zeros = sum(value == 0 for value in values)
    return {
        "path": path,
        "role": role,
        "shape": shape,
        "size": len(values),
        "zeros": zeros,
        "sparsity": zeros / len(values),
        "first": values[:16],
        "histogram": _histogram(values),
    }


def _stage(
    name, method, source, epochs, steps, losses, weights, start, end, curve=None
) -> dict[str, Any]:
    accuracies = [start + (end - start) * (epoch + 1) / epochs for epoch in range(epochs)]
    jitter = [source.uniform(-0.002, 0.002) for _ in range(epochs)]
    kernels = [
        _weight(path, "kernel", KERNELS[path][0], values) for path, values in weights.items()
    ]
    biases = [
        _weight(path, "bias", [size], [source.gauss(0, 0.02) for _ in range(size)])
        for path, size in (("conv2d/bias", 12), ("dense/bias", 10))
    ]
    promised = [
        {
            "path": path,
            "kind": "zeros",
            "count": KERNELS[path][2],
            "size": len(values),
            "shape": [len(values)],
        }
        for path, values in weights.items()
    ]
    return {
        "name": name,
        "method": method,
        "history": {
            "loss": [loss + shift for loss, shift in zip(losses, jitter, strict=True)],
            "accuracy": [value - 0.004 for value in accuracies],
            "val_loss": [loss * 0.93 + shift for loss, shift in zip(losses, jitter, strict=True)],
            "val_accuracy": accuracies,
        },
        "epochs": epochs,
        "steps": steps,
        "seconds": 4.7 * epochs,
        "sparsity_curve": curve or [],
        "weights": [kernels[0], biases[0], kernels[1], biases[1]],
        "promises": promised if name == "pruned" else [],
    }


def _rows(seed: int, source: random.Random) -> list[dict[str, Any]]:
    table = []
    for name, (size, packed, sparsity, stage, form, runtime) in SIZES.items():
        litert = runtime.startswith("litert")
        table.append({
            "row": name, "stage": stage, "format": form, "path": f"{name}.{'h5' if form == 'h5' else 'tflite'}",
            "runtime": runtime, "threads": 1, "bytes": size, "gzip_bytes": packed + source.randint(-60, 60),
            "parameters": 20410, "zeros": round(sparsity * 20410), "nonzero": 20410 - round(sparsity * 20410),
            "sparsity": sparsity, "macs": 93408, "n": 10000,
            "accuracy": ACCURACY[stage][seed % 3] + (0.0001 if form == "dynamic" else 0.0), "loss": 0.131,
            "top5": 0.9991, "mse": None, "mae": None,
            "latency": {"median_us": 13.4, "p10_us": 12.9, "p90_us": 15.2, "cpu_median_us": 13.1,
                        "runs": 300, "batch": 1, "threads": 1} if litert else None,
            "load_ms": 0.8 if litert else 41.0,
            "parity": {"relative_rms": 0.0093 if form == "dynamic" else 1.4e-7,
                       "agreement": 0.998 if form == "dynamic" else 1.0, "n": 500},
        })  # fmt: skip
    table.append({
        "row": "control-keras", "stage": "control", "format": "keras", "path": "control-keras.keras",
        "runtime": "keras 3.15.1, tensorflow", "threads": 1, "bytes": 257480, "gzip_bytes": 229312,
        "parameters": 20410, "zeros": 0, "nonzero": 20410, "sparsity": 0.0, "macs": 93408, "n": 10000,
        "accuracy": ACCURACY["control"][seed % 3], "loss": 0.089, "top5": 0.9996, "mse": None, "mae": None,
        "latency": None, "load_ms": 44.0, "parity": None,
    })  # fmt: skip
    return table
