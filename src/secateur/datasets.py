"""Data for training, choosing and measuring: found, checked, scaled and kept apart. No framework.

Four splits, each with one use. `train` trains; `validation`, taken out of the training part by
seed, chooses; `calibration`, inputs of `train` without labels, gives activation ranges; `test` is
read by the final measurement and by nothing else, and is the same whatever the seed.
"""

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateur import sources
from secateur.records import of_file
from secateur.streams import Pair, refused

CALIBRATION = 500  # activation ranges settle after a few hundred samples
UNSCALED = "x left in 0..255; scale=255 (--scale 255) divides it"
SPLITS = ("train", "validation", "calibration", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs `x` (n, ...) and targets `y` (n, ...) or None; raises when their lengths differ.

    >>> len(Split(np.zeros((5, 8, 8)), np.zeros(5, int)))
    5
    """

    x: np.ndarray
    y: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Refuse what no loop over batches could read."""
        rows = self.x.shape[:1]
        if rows in ((), (0,)):
            raise refused(f"x of shape {self.x.shape}", "a sample or more", "check what fills x")
        if self.y is not None and self.y.shape[:1] != rows:
            received = f"{len(self.x):,} samples with y of shape {self.y.shape}"
            raise refused(received, "a label for each sample", "give x and y of the same samples")

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.x)


@dataclass(frozen=True, eq=False)
class Data:
    """The splits of one data set; `train` or `test` is there, any other may be None.

    `classes` is None for regression and unlabelled data. `notes` say how each split was made.
    `sha256` is of the source's arrays before splitting and scaling: the same for every seed.
    """

    name: str
    train: Split | None
    validation: Split | None
    calibration: Split | None
    test: Split | None
    classes: int | None = None
    notes: tuple[str, ...] = ()
    sha256: str = ""

    def __post_init__(self) -> None:
        """Refuse parts that no one model could take."""
        shapes = [split.x.shape[1:] for split in (self.train, self.test) if split]
        if len(set(shapes)) != 1:
            received = (
                f"samples of shapes {' and '.join(map(str, shapes)) or 'none'} in {self.name}"
            )
            raise refused(received, "one shape in training and test part", "reshape one of them")

    @property
    def unscaled(self) -> bool:
        """Whether inputs are 8-bit values that nobody said how to scale."""
        return UNSCALED in self.notes

    def describe(self) -> dict[str, Any]:
        """Return name, sizes, per-sample shape, dtype, classes, notes and sha256 as JSON data.

        >>> load((np.zeros((10, 4)), np.arange(10) % 2)).describe()["sizes"]
        {'train': 7, 'validation': 1, 'calibration': 7, 'test': 2}
        """
        splits = {name: getattr(self, name) for name in SPLITS}
        given = [split for split in splits.values() if split is not None]
        return {
            "name": self.name,
            "sizes": {name: len(split) if split else 0 for name, split in splits.items()},
            "shape": list(given[0].x.shape[1:]),
            "dtype": str(given[0].x.dtype),
            "classes": self.classes,
            "notes": list(self.notes),
            "sha256": self.sha256 or _digest(a for part in given for a in (part.x, part.y)),
        }


def load(
    spec: Any,
    *,
    scale: float | str | None = None,
    seed: int = 0,
    validation_split: float = 0.1,
    limit: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> Data:
    """Return the data set `spec` names or holds, split four ways.

    `spec`: "digits" (scikit-learn's, 8x8), "mnist", "fashion-mnist", "plant-leaves" (Plant
    Seedlings as JPEG, 96x96, 12 species); the path of a `.npz` with x_train, y_train, x_test,
    y_test, or x, y (labels may be missing); a folder of images, train/<class>/* and
    test/<class>/*, or <class>/*; arrays (x, y), or ((x_train, y_train), (x_test, y_test)); a
    `tf.data.Dataset`, `DataLoader` or `PyDataset` of x or (x, y), or (train, test) of them; a
    `Data`, returned as it is. Data without a test part give a fifth of it, by a fixed split that
    keeps the shares of the classes.

    `scale` divides x; "auto" divides 8-bit inputs by 255; None scales the named data sets and
    folders of images only. `limit` keeps that many samples of the training and of the test part.
    `image_size` (height, width): resize images to it; without it all must have one size. Floats
    and 8-bit inputs become float32, wider integers (tokens) stay; channels stay where they are.
    Data sets of a framework are gathered in memory, once: what they augment at random stands
    still, so augment in the model. Nothing is downloaded, and no pickle is read. Raises
    `SecateurError` for what is missing, damaged, empty, infinite, too large for memory, not
    finite or not numeric.

    >>> data = load("digits", seed=1)
    >>> data.train.x.shape, len(data.validation), len(data.test), data.classes
    ((1293, 8, 8), 144, 360, 10)
    """
    if isinstance(spec, Data):
        return spec
    if not 0.0 <= validation_split < 1.0:
        raise refused(f"validation_split={validation_split!r}", "a fraction in [0, 1)", "try 0.1")
    if limit is not None and limit < 1:
        raise refused(f"limit={limit!r}", "1 sample or more", "leave it out to use all")
    source = sources.read(spec, image_size)
    train, test = source.train, source.test
    arrays = [array for pair in (train, test) if pair for array in pair if array is not None]
    with of_file(spec) if isinstance(spec, str | Path) else contextlib.nullcontext():
        for pair in filter(None, (train, test)):
            Split(*pair)  # refuses what has no samples, or not a label for each
    divisor, notes = _scaling(scale, source.scale, arrays[0].dtype)
    notes = [*source.notes, *notes]
    if train is not None and test is None:
        train, test = _hold_out(train)
        seen = "" if source.named else "; a model trained on these arrays before has seen them"
        notes.append(f"test: {len(test[0]):,} samples held out, the same whatever the seed{seen}")
    elif test is not None:
        notes.append(f"test: the data's own test part of {len(test[0]):,} samples")
    if train is not None and test is not None and (twice := _repeated(train[0], test[0])):
        notes.append(
            f"test: {twice:,} of {len(test[0]):,} samples stand in the training part too, value for "
            "value: what is measured on them was seen in training"
        )
    splits: dict[str, Split | None] = dict.fromkeys(SPLITS)
    if test is not None:
        # Chosen, for a prefix of a user's file is often one class; by a fixed seed, for all runs.
        rows = np.sort(np.random.default_rng(0).permutation(len(test[0]))[:limit])
        if len(rows) < len(test[0]):
            notes.append(f"test limited to {len(rows):,} samples, the same whatever the seed")
        splits["test"] = _split(test, rows, divisor)
    if train is not None:
        order = np.random.default_rng(seed).permutation(len(train[0]))[:limit]
        if len(order) < len(train[0]):
            notes.append(f"training part limited to {len(order):,} of {len(train[0]):,} samples")
        aside = min(math.floor(validation_split * len(order) + 0.5), len(order) - 1)
        if aside:
            splits["validation"] = _split(train, order[:aside], divisor)
            taken = f"validation: {aside:,} of {len(order):,} training samples"
            notes.append(f"{taken}, taken out by a shuffle with seed {seed}")
        splits["train"] = _split(train, order[aside:], divisor)
        inputs = splits["train"].x[:CALIBRATION]
        splits["calibration"] = Split(inputs)
        notes.append(f"calibration: the inputs of {len(inputs):,} training samples, no labels")
    else:
        notes.append("train: no samples, these data can be measured on but not trained on")
    labels = [pair[1] for pair in (train, test) if pair and pair[1] is not None]
    return Data(
        name=source.name,
        **splits,
        classes=_classes(labels),
        notes=tuple(notes),
        sha256=_digest(arrays),
    )


def fit_to(data: Data, input_shape: tuple, output_shape: tuple) -> Data:
    """Return the data as a model with these per-sample shapes takes it, or say why it cannot.

    Axes of size 1 are added or dropped and samples are flattened or folded, with a note; axes are
    never exchanged. Integer labels must be below the last axis of `output_shape`. None in a shape
    accepts any size.

    >>> fit_to(load("digits"), (64,), (10,)).test.x.shape
    (360, 64)
    """
    splits = {name: getattr(data, name) for name in SPLITS if getattr(data, name) is not None}
    shape, wanted = next(iter(splits.values())).x.shape[1:], tuple(input_shape)
    for name, split in splits.items():
        if split.y is not None:
            _check_targets(split.y, tuple(output_shape) or (1,), f"{data.name} ({name})")
    if _accepts(wanted, shape):
        return data
    # Folding keeps the order of the values: only a flat end, or axes of size 1, make that harmless.
    bare = [[size for size in axes if size != 1] for axes in (shape, wanted)]
    same_values = None not in wanted and math.prod(shape) == math.prod(wanted)
    if not same_values or (bare[0] != bare[1] and 1 not in (len(shape), len(wanted))):
        fix = "resize or transpose x, or build the model for these samples"
        raise refused(f"samples of {data.name}, shape {shape},", f"the model's {wanted}", fix)
    folded = {name: Split(s.x.reshape(len(s), *wanted), s.y) for name, s in splits.items()}
    note = f"x reshaped from {shape} to {wanted} for the model"
    return dataclasses.replace(data, **folded, notes=(*data.notes, note))


def _hold_out(pair: Pair) -> tuple[Pair | None, Pair]:
    """Every fifth sample of a fixed shuffle, sorted by class: stratified, blind to the seed."""
    x, y = pair
    order = np.random.default_rng(0).permutation(len(x))
    if y is not None and y.ndim == 1 and y.dtype.kind in "iu":
        order = order[np.argsort(y[order], kind="stable")]
    held = np.zeros(len(x), bool)
    held[order[::5]] = True
    return (None if held.all() else _take(pair, ~held)), _take(pair, held)


def _repeated(train: np.ndarray, test: np.ndarray) -> int:
    """How many samples of `test` are also samples of `train`, byte for byte."""
    if train.shape[1:] != test.shape[1:]:
        return 0  # `Data` says so
    dtype = np.result_type(train, test)

    def digests(x: np.ndarray) -> Iterator[bytes]:
        for start in range(0, len(x), 1024):
            rows = np.ascontiguousarray(x[start : start + 1024], dtype) + dtype.type(
                0
            )  # -0.0 is 0.0
            for row in rows:
                yield hashlib.blake2b(row.tobytes(), digest_size=16).digest()

    seen = set(digests(train))
    return sum(digest in seen for digest in digests(test))


def _split(pair: Pair, rows: np.ndarray, divisor: float) -> Split:
    x, y = _take(pair, rows)
    if divisor != 1.0 or x.dtype.kind == "f" or x.dtype.itemsize == 1:
        x = x.astype(np.float32)
    if divisor != 1.0:
        x /= np.float32(divisor)
    return Split(x, y)


def _take(pair: Pair, rows: np.ndarray) -> Pair:
    return pair[0][rows], None if pair[1] is None else pair[1][rows]


def _scaling(scale: Any, own: float | None, dtype: np.dtype) -> tuple[float, list[str]]:
    """Return what x is divided by, and the notes that say so; `own`: the source's own divisor."""
    if scale is None and own is None:
        return 1.0, [UNSCALED] if dtype == np.uint8 else []
    if scale in (None, "auto"):
        scale = own or (255.0 if dtype == np.uint8 else 1.0)
    try:
        divisor = float(scale)
    except (TypeError, ValueError):
        divisor = math.nan
    if not (math.isfinite(divisor) and divisor > 0):
        fix = "255 for 8-bit images, 1 for none"
        raise refused(f"scale={scale!r}", "a positive number to divide x by, or 'auto'", fix)
    return divisor, [] if divisor == 1.0 else [f"x divided by {divisor:g}"]


def _accepts(wanted: tuple, shape: tuple) -> bool:
    """Whether a per-sample shape fits; None accepts any size."""
    return len(wanted) == len(shape) and all(
        want in (None, size) for want, size in zip(wanted, shape, strict=True)
    )


def _check_targets(y: np.ndarray, outputs: tuple, where: str) -> None:
    shape, count = y.shape[1:], outputs[-1]
    if y.dtype.kind in "iu" and _accepts(outputs[:-1], shape):
        limit = max(count or math.inf, 2)  # one output tells two classes apart
        wrong = [int(label) for label in (y.max(), y.min()) if not 0 <= label < limit]
        if wrong:
            expected = f"0..{limit - 1}: the model has {count} output{'s' * (count != 1)}"
            fix = "number the classes from 0, or build the model with an output for each"
            regression = ", or give float targets for regression" * (count == 1)
            raise refused(f"label {wrong[0]} in {where}", expected, fix + regression)
    elif not (_accepts(outputs, shape) or (shape, outputs) == ((), (1,))):
        expected = f"integer labels, or the model's output shape {outputs}"
        fix = "give y as class numbers (n,), or one-hot with a column for each output"
        raise refused(f"targets of shape {shape} ({y.dtype}) in {where}", expected, fix)


def _classes(labels: list[np.ndarray]) -> int | None:
    if all(y.dtype.kind in "iu" and y.ndim == 1 for y in labels):
        return max((int(y.max()) + 1 for y in labels), default=None)
    columns = labels[0].shape[1] if labels[0].ndim == 2 else 1
    binary = all(((y == 0) | (y == 1)).all() for y in labels)
    one_hot = binary and (columns == 1 or all((y.sum(axis=1) == 1).all() for y in labels))
    return max(columns, 2) if one_hot else None


def _digest(arrays: Iterable[np.ndarray | None]) -> str:
    sha256 = hashlib.sha256()
    for array in arrays:
        if array is not None:
            sha256.update(f"{array.dtype.str}{array.shape}".encode())
            sha256.update(np.ascontiguousarray(array).data)
    return sha256.hexdigest()
