"""Made-up point records of the challenge, with the levels of real runs: what reports are tested on.

The images that a network gets right follow from one hidden difficulty an image, so that networks
agree on most images, as real ones do, and accuracies are exactly what the bits say.
"""

import base64
import copy
import hashlib
import json
import zlib
from typing import Any

import numpy as np

IMAGES = 2000
KS = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)
TRAINED = (0.8, 0.9, 0.95, 0.99)
DENSE_ACCURACY = 0.979
# curve -> (kind, epochs of the dense training, epochs after, recipe steps, accuracy at each k)
CURVES: dict[str, tuple] = {
    "weights, one-shot": (
        "weights", 10, 0, [{"method": "prune", "criterion": "l1"}],
        dict(zip(KS, (0.979, 0.9792, 0.9786, 0.9772, 0.972, 0.944, 0.811, 0.515, 0.177), strict=True)),
    ),
    "units, one-shot": (
        "units", 10, 0, [{"method": "prune", "criterion": "l2", "pattern": "units"}],
        dict(zip(KS, (0.979, 0.979, 0.9774, 0.969, 0.890, 0.493, 0.287, 0.177, 0.162), strict=True)),
    ),
    "units, repaired": (
        "units", 10, 0, [{"method": "units", "repair": "least-squares"}],
        {0.5: 0.9785, 0.8: 0.969, 0.9: 0.943, 0.95: 0.715},
    ),
    "weights + 1 epoch": (
        "weights", 10, 1, [{"method": "prune", "criterion": "l1"}, {"method": "keep-zeros"}],
        dict(zip(TRAINED, (0.984, 0.985, 0.982, 0.930), strict=True)),
    ),
    "units + 1 epoch": (
        "units", 10, 1, [{"method": "prune", "pattern": "units"}, {"method": "keep-zeros"}],
        {0.8: 0.977, 0.9: 0.971, 0.95: 0.955},
    ),
    "random weights + 1 epoch": (
        "weights", 10, 1, [{"method": "prune", "criterion": "random"}, {"method": "keep-zeros"}],
        dict(zip(TRAINED, (0.972, 0.955, 0.91, 0.52), strict=True)),
    ),
    "small network from scratch": (
        "scratch", 0, 10, [], dict(zip(TRAINED, (0.977, 0.974, 0.967, 0.824), strict=True)),
    ),
}  # fmt: skip
NORM = {"weights": 0.16, "units": 0.72}  # share of the squared weights that goes at 80 %
SIZES = {0.5: (3_174_636, 2_947_060, 35.9), 0.8: (887_436, 823_666, 15.8), 0.9: (381_036, 352_999, 7.7)}  # fmt: skip


def example_points(
    seeds: int = 3, without: tuple = (), data: str = "mnist"
) -> list[dict[str, Any]]:
    """Every point of the challenge; `without`: names of curves left out."""
    points = [_point("dense", "dense", 0.0, seed, (10, 0), [], DENSE_ACCURACY, data)
              for seed in range(seeds) if "dense" not in without]  # fmt: skip
    for curve, (kind, before, after, steps, levels) in CURVES.items():
        if curve in without:
            continue
        for k, level in levels.items():
            points += [
                _point(curve, kind, k, seed, (before, after), steps, level, data)
                for seed in range(seeds)
            ]
    return points


def impossible_point(seed: int = 0) -> dict[str, Any]:
    """99 % of the units of a layer that has too few."""
    return _unmeasured("units, one-shot", seed, "impossible",
                       "dense_3 has 2 units, 99 % of them would leave none")  # fmt: skip


def failed_point(seed: int = 0) -> dict[str, Any]:
    """A point whose process was killed for memory."""
    return _unmeasured("weights + 1 epoch", seed, "failed", "MemoryError: 4 GiB asked, 2 GiB left")


def with_accuracy(point: dict[str, Any], level: float) -> dict[str, Any]:
    """The same point, had it reached another accuracy on test and validation."""
    changed = copy.deepcopy(point)
    changed["test"] |= _read(level, point["seed"], _noise(point["curve"], point["seed"]))
    changed["validation"]["accuracy"] = level
    return changed


def _unmeasured(curve: str, seed: int, status: str, error: str) -> dict[str, Any]:
    kind, before, after, steps, _ = CURVES[curve]
    point = _point(curve, kind, 0.985, seed, (before, after), steps, 0.5, "mnist")
    empty = (
        "norm_removed",
        "validation",
        "test",
        "history",
        "seconds",
        "file",
        "latency",
        "epochs",
    )
    return point | dict.fromkeys(empty) | {"status": status, "error": error}


def _point(curve, kind, k, seed, epochs, steps, level, data) -> dict[str, Any]:
    before, after = epochs
    spread = 0.0015 + (0.03 if 0.2 < level < 0.93 else 0.0) * (kind in ("units", "weights"))
    drawn = np.random.default_rng(_number(curve, seed, "level")).uniform(-1.5, 1.5)
    wobble = spread * float(drawn)
    level = float(np.clip(level + wobble, 0.1, 0.9995))
    settings = {} if kind == "dense" else {"steps.0.sparsity": k}
    name = json.dumps([curve, k, seed, data])
    size = SIZES.get(k) if kind in ("units", "scratch") else None
    of = "the dense network" if size is None and kind != "dense" else "this network"
    raw, packed, micro = size or (9_546_556, 8_858_796, 148.6)
    if kind == "weights":
        packed = round(8_858_796 * (1.06 * (1 - k) + 0.03 * k))
    timed = kind in ("dense", "weights") or size is not None
    dead = {"incoming": k, "outgoing": 0.94 * k, "network": 1 - (1 - k) ** 1.5} if kind == "units" else None  # fmt: skip
    norm = 1 - (1 - NORM[kind]) ** (k / 0.8) ** (4 if kind == "weights" else 1) if kind in NORM else None  # fmt: skip
    return {
        "format_version": 1, "kind": "point", "fingerprint": hashlib.sha256(name.encode()).hexdigest(),
        "grid": "challenge", "curve": curve, "seed": seed, "status": "done", "error": None,
        "created": "2026-11-20T10:00:00+00:00", "settings": settings,
        "recipe": {"name": "challenge", "steps": [{**step, "sparsity": k} for step in steps]},
        "model": {"name": "challenge-mlp", "parameters": 2_386_000},
        "data": {"name": data, "sizes": {"train": 54_000, "validation": 6000, "test": IMAGES}},
        "backend": "tensorflow", "versions": {"secateur": "0.1.0", "keras": "3.15.1", "numpy": "2.4.6"},
        "machine": {"cpu": "AMD EPYC", "cores": 2, "system": "Linux x86_64", "python": "3.11.7"},
        "epochs": {"dense": before, "after": after, "total": before + after},
        "sparsity": {"asked": k, "realised": 0.0 if kind in ("dense", "scratch") else 0.9992 * k,
                     "layers": {"dense/kernel": k}, "dead": dead},
        "kind_of": kind, "norm_removed": norm,
        "validation": {"n": 6000, "accuracy": level, "loss": 2.3 * (1 - level)},
        "test": _read(level, seed, _noise(curve, seed)) | {"read_in": "keras"},
        "history": {"dense": _learned(10, 0.9, DENSE_ACCURACY, wobble),
                    "after": _learned(after, level - 0.06, level, wobble)},
        "seconds": {"wall": 1.2, "cpu": 2.1}, "rows": [],
        "file": {"format": "float32", "bytes": raw, "gzip_bytes": packed,
                 "of": "this network" if kind == "weights" else of} if timed else None,
        "latency": {"median_us": micro, "low_us": 0.99 * micro, "high_us": 1.01 * micro, "threads": 1,
                    "runtime": "litert", "shape": "784-1000-1000-500-200-10", "of": of} if timed else None,
    }  # fmt: skip


def _learned(epochs: int, first: float, last: float, wobble: float) -> dict[str, list[float]]:
    """A training that comes half-way nearer to its end at each epoch; none for no epoch."""
    accuracy = [last - (last - first) * 0.5**n + wobble / 10 for n in range(epochs)]
    losses = [2.3 * (1 - value) for value in accuracy]
    found = {"loss": losses, "accuracy": accuracy}
    return (
        {
            key: [value + shift for value in values]
            for prefix, shift in (("", 0.0), ("val_", -0.004))
            for key, values in ((prefix + name, listed) for name, listed in found.items())
        }
        if epochs
        else {}
    )


def _read(level: float, seed: int, noise: np.ndarray) -> dict[str, Any]:
    difficulty = np.random.default_rng(1).random(IMAGES) + noise
    right = np.zeros(IMAGES, bool)
    right[np.argsort(difficulty, kind="stable")[: round(level * IMAGES)]] = True
    bits = base64.b64encode(zlib.compress(np.packbits(right).tobytes(), 9)).decode()
    accuracy = float(right.mean())
    return {
        "n": IMAGES,
        "accuracy": accuracy,
        "loss": round(2.3 * (1 - accuracy) ** 0.9, 6),
        "right": bits,
    }


def _noise(curve: str, seed: int) -> np.ndarray:
    return np.random.default_rng(_number(curve, seed, "noise")).normal(0, 0.01, IMAGES)


def _number(*parts: Any) -> int:
    return int(hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8], 16)
