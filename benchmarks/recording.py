"""What the accuracy benchmarks share: which test images a model got right, and records that grow.

A record is written after every result, whole or not at all, so an interrupted script carries on.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from step_overhead import installed, instructions

RECORDS = Path(__file__).parent / "records"
Record = dict[str, Any]


def pack(right: np.ndarray) -> str:
    """One bit an image (True: classified correctly), as text; `unpack` is its inverse."""
    bits = np.packbits(np.asarray(right, bool)).tobytes()
    return base64.b64encode(zlib.compress(bits, 9)).decode()


def unpack(text: str, n: int) -> np.ndarray:
    """The bits again."""
    bits = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    return np.unpackbits(bits, count=n).astype(bool)


def correct(model: Any, split: Any) -> np.ndarray:
    """Which images of a split the model classifies correctly."""
    from secateur.runtimes.keras import KerasSession

    outputs = KerasSession(model).predict(split.x)
    return outputs.argmax(axis=1) == split.y


def result(model: Any, split: Any) -> Record:
    """Accuracy on a split and, bit by bit, what it is made of."""
    right = correct(model, split)
    return {"accuracy": round(float(right.mean()), 6), "right": pack(right)}


def zeros(model: Any) -> Record:
    """Zeros and number of the kernels' weights, the whole model's parameters beside."""
    from secateur.weights import weight_table

    kernels = [w.read() for w in weight_table(model) if w.role == "kernel"]
    return {
        "zeros": int(sum((k == 0).sum() for k in kernels)),
        "kernels": int(sum(k.size for k in kernels)),
        "parameters": int(model.count_params()),
    }


def about() -> Record:
    """When, where and with what: the head of a record."""
    from secateur.pipeline import machine

    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {**machine(), "instructions": instructions()},
        "versions": {k: v for k, v in installed().items() if k not in ("jax", "jaxlib", "torch")},
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count(),
    }


def load(file: Path, fresh: Record) -> Record:
    """The record so far; refuses one that was begun with other settings."""
    if not file.exists():
        return {**fresh, **about(), "runs": []}
    held = json.loads(file.read_text(encoding="utf-8"))
    if other := [key for key in fresh if held.get(key) != json.loads(json.dumps(fresh[key]))]:
        raise SystemExit(
            f"error: {file.name} was begun with another {other[0]}; fix: remove it, or give --out"
        )
    return held


def save(file: Path, record: Record) -> None:
    """Write it whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(file)
