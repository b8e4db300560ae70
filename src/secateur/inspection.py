"""What is in a model or a file: counts, roles, values, sparsity; two of them side by side."""

from __future__ import annotations

import math
import zipfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from secateur.artifact import gzip_bytes
from secateur.errors import SecateurError
from secateur.weights import WeightTable, weight_table
from secateur.widths import Specification, beside, fingerprint

BINS = 40
FIRST_VALUES = 16


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A model or a file in numbers: counts of elements, and a record for each weight.

    bytes, gzip_bytes: of the file, None for a live model. optimizer_elements: elements of
    optimizer state kept in the file, or by the optimizer of a live model, beside the parameters;
    Keras's `summary()` adds them, and counters, to its total. trainable, non_trainable: None for a `.tflite`, which does
    not say. beside: what the bits and ranges beside a Keras file are, in words; None where there
    are none. A weight's `bits` are those of a quantized file: its own, or what stands beside.
    """

    name: str
    parameters: int
    trainable: int | None
    non_trainable: int | None
    nonzero: int
    bytes: int | None = None
    gzip_bytes: int | None = None
    optimizer_elements: int = 0
    beside: str | None = None
    weights: tuple[dict[str, Any], ...] = field(default=(), repr=False)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over all parameters, in [0, 1]."""
        return 1 - self.nonzero / self.parameters if self.parameters else 0.0

    def to_record(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "sparsity": self.sparsity}


def inspect(subject: Any) -> Inspection:
    """Look into a live Keras model, or a `.keras`, `.h5` or `.tflite` file.

    >>> import keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    >>> inspect(model).parameters
    10
    """
    if not isinstance(subject, str | Path):
        return _of_model(subject, subject.name, optimizer_elements=_slots(subject))
    path = Path(subject)
    if path.suffix.lower() == ".tflite":
        return _of_tflite(path)
    from secateur.runtimes.keras import load_model

    model = load_model(path)
    blob = path.read_bytes()
    found = _of_model(
        model,
        path.name,
        bytes=len(blob),
        gzip_bytes=gzip_bytes(blob),
        optimizer_elements=_optimizer_elements(path),
    )
    return _with_bits(found, path, weight_table(model)) if beside(path).is_file() else found


def weight_records(table: WeightTable) -> list[dict[str, Any]]:
    """For each weight: path, role, shape, zeros, first values, histogram of its non-zero values."""
    return [
        _record(w.path, w.role, w.layer_class, w.trainable, np.asarray(w.read(), np.float32))
        for w in table
    ]


def differences(before: Inspection, after: Inspection) -> list[str]:
    """Why two inspections differ (or do not), in sentences that their numbers support."""
    found = []
    if before.parameters != after.parameters:
        found.append(_other_parameters(before, after))
    elif before.nonzero != after.nonzero:
        where = "second" if after.nonzero < before.nonzero else "first"
        found.append(
            f"The parameter count is the same ({after.parameters:,}): a weight that is zero is still "
            f"a weight. {abs(before.nonzero - after.nonzero):,} more of them are zero in the {where}."
        )
    elif before.optimizer_elements == after.optimizer_elements:
        found.append("Both hold the same number of parameters, zeros and optimizer state.")
    for label, one in (("first", before), ("second", after)):
        if one.optimizer_elements:
            found.append(
                f"The {label} {'model' if one.bytes is None else 'file'} also keeps "
                f"{one.optimizer_elements:,} elements of optimizer state "
                f"({4 * one.optimizer_elements:,} bytes as float32), which no runtime needs."
            )
    same_size = None not in (before.bytes, after.bytes) and abs(
        (before.bytes or 0) - (after.bytes or 0)
    ) <= 0.02 * (before.bytes or 1)
    if same_size and after.nonzero != before.nonzero and before.parameters == after.parameters:
        found.append(
            "The raw files are equally large, within 2 %: a zero takes as many bytes as any other "
            f"number. Compressed by gzip it is {before.gzip_bytes:,} bytes in the first, "
            f"{after.gzip_bytes:,} in the second."
        )
    for label, one in (("first", before), ("second", after)):
        if one.non_trainable:
            found.append(
                f"{one.non_trainable:,} parameters of the {label} are non-trainable "
                "(frozen layers, or BatchNormalization's moving statistics)."
            )
    return found


def _other_parameters(before: Inspection, after: Inspection) -> str:
    counts = f"{after.parameters:,} parameters instead of {before.parameters:,}"
    if (before.trainable is None) != (after.trainable is None):
        return (
            f"{counts}: a converter leaves out biases of zeros, folds normalizations into the weights "
            "beside them and renames them, so weights are not compared one by one."
        )
    paths = {w["path"]: w for w in before.weights}
    changed = [w["path"] for w in after.weights if paths.get(w["path"], w)["shape"] != w["shape"]]
    missing = [p for p in paths if p not in {w["path"] for w in after.weights}]
    parts = [f"{len(changed)} weights changed shape"] if changed else []
    parts += [f"{len(missing)} weights are gone"] if missing else []
    return counts + (f": {', '.join(parts)}." if parts else ": the networks differ.")


def _of_model(model: Any, name: str, **file: Any) -> Inspection:
    table = weight_table(model)
    records = weight_records(table)
    trainable = sum(w.size for w in table if w.trainable)
    parameters = sum(w.size for w in table)
    return Inspection(
        name=name,
        parameters=parameters,
        trainable=trainable,
        non_trainable=parameters - trainable,
        nonzero=parameters - sum(r["zeros"] for r in records),
        weights=tuple(records),
        **file,
    )


def _with_bits(found: Inspection, path: Path, table: WeightTable) -> Inspection:
    """The inspection of a Keras file with the bits that stand beside it, if they are its own."""
    name = beside(path).name
    try:
        told = Specification.load(path)
    except SecateurError as error:
        return replace(found, beside=str(error))
    if told.weights != fingerprint(table):
        return replace(found, beside=f"{name}: bits and ranges of other weights than these")
    ranges = f"{len(told.ranges)} ranges of a quantization-aware training"
    words = f"{name}: {told.format}, {ranges if told.ranges else 'quantized after training'}"
    bits = {path: width.bits or 32 for path, width in told.widths.items()}
    weights = tuple({**w, "bits": bits.get(w["path"])} for w in found.weights)
    return replace(found, beside=words, weights=weights)


def _of_tflite(path: Path) -> Inspection:
    from secateur.runtimes import litert

    constants = litert.load(path).constants()
    blob = path.read_bytes()
    records = [
        {
            **_record(
                c.name,
                "bias" if c.values.ndim == 1 else "kernel",
                c.operator,
                None,
                c.dequantized(),
            ),
            "zeros": int((c.centred() == 0).sum()),
            "bits": c.bits,
        }
        for c in constants
    ]
    parameters = sum(r["size"] for r in records)
    return Inspection(
        name=path.name,
        parameters=parameters,
        trainable=None,
        non_trainable=None,
        nonzero=parameters - sum(r["zeros"] for r in records),
        bytes=len(blob),
        gzip_bytes=gzip_bytes(blob),
        weights=tuple(records),
    )


def _record(
    path: str, role: str, layer_class: str, trainable: bool | None, values: np.ndarray
) -> dict[str, Any]:
    flat = values.ravel()
    zeros = int((flat == 0).sum())
    finite = flat[np.isfinite(flat)]
    nonzero = finite[finite != 0]
    largest = float(np.abs(nonzero).max()) if nonzero.size else 1.0
    counts, edges = np.histogram(nonzero, bins=BINS, range=(-largest, largest))
    return {
        "path": path,
        "role": role,
        "class": layer_class,
        "trainable": trainable,
        "shape": list(values.shape),
        "size": int(flat.size),
        "zeros": zeros,
        "sparsity": zeros / flat.size if flat.size else 0.0,
        "min": float(finite.min()) if finite.size else None,
        "max": float(finite.max()) if finite.size else None,
        "mean": float(finite.mean()) if finite.size else None,
        "not_finite": int(flat.size - finite.size),
        "first": [float(v) for v in finite[:FIRST_VALUES]],
        "histogram": {"edges": [float(e) for e in edges], "counts": [int(c) for c in counts]},
    }


def _slots(model: Any) -> int:
    """Elements of the optimizer's slots of a live model, counters and masks left out."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or not optimizer.built:
        return 0
    # On JAX the masks of a pruning travel with the optimizer while it trains: the only booleans.
    slots = [v for v in optimizer.variables if len(v.shape) and v.dtype != "bool"]
    return sum(math.prod(v.shape) for v in slots)


def _optimizer_elements(path: Path) -> int:
    """Elements of optimizer slots in a `.h5` or `.keras` file (counters left out)."""
    import h5py

    def count(group: Any) -> int:
        sizes: list[int] = []
        group.visititems(
            lambda _, item: (
                sizes.append(item.size) if isinstance(item, h5py.Dataset) and item.ndim else None
            )
        )
        return sum(sizes)

    try:
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as inner:
                with h5py.File(inner, "r") as file:
                    return count(file["optimizer"]) if "optimizer" in file else 0
        with h5py.File(path, "r") as file:
            return count(file["optimizer_weights"]) if "optimizer_weights" in file else 0
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise SecateurError(f"{path} is damaged: {error}") from None
