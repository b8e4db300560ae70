"""How sure a figure is: means over seeds, differences of two networks on the same seeds and images.

Everything here takes plain numbers or point records; accuracies are fractions, differences are in
percentage points. One seed gives no interval over seeds, and none is made up.
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy.special import stdtrit

from secateur.errors import SecateurError
from secateur.reporting.formats import finite

MOST_TESTED = 1 << 28  # test samples whose answers a record may hold

LEVEL = 0.95
SLACK = 1e-9  # what adding and subtracting floats may leave of "exactly x points"

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over `n` seeds and the ends of its 95 % interval; None where one seed has none."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Points by which one is ahead of the other; low and high bound the 95 % interval.

    over: what chance was reckoned with, "seeds and images", "seeds" or "images" (one seed).
    """

    mean: float
    low: float
    high: float
    over: str = "seeds and images"

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ({self.low:+.2f}..{self.high:+.2f})"


def interval(values: Sequence[float]) -> Interval | None:
    """Return the mean of one value a seed with its interval by Student's t; None without values.

    >>> found = interval([0.97, 0.98, 0.99])
    >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3)
    (0.98, 0.955, 1.005)
    >>> interval([0.97]).low is None
    True
    """
    found = [float(value) for value in values]
    if not found:
        return None
    mean = fmean(found)
    if len(found) < 2:
        return Interval(mean=mean, low=None, high=None, n=1)
    half = _quantile(len(found) - 1, LEVEL) * stdev(found) / math.sqrt(len(found))
    return Interval(mean=mean, low=mean - half, high=mean + half, n=len(found))


def difference(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], level: float = LEVEL
) -> Difference:
    """Ours less theirs, in points; each a row of zeros and ones (or means of such) for every seed.

    Two sources of chance, seeds and images, that cross: the variance of the mean is that of the
    seeds' means over their number plus that of the images' means over theirs, which counts what is
    left over twice and so errs to the wide side. Student's t with Satterthwaite's degrees.

    >>> rows = [np.array([1, 1, 0, 1.0]), np.array([1, 1, 1, 0.0])]
    >>> str(difference(rows, rows))
    '+0.00 (+0.00..+0.00)'
    """
    gap = 100.0 * (np.asarray(ours, float) - np.asarray(theirs, float))
    seeds, images = gap.shape
    if seeds < 2:
        raise ValueError("an interval over seeds needs two or more")
    parts = [
        (float(gap.mean(axis=1).var(ddof=1)) / seeds, seeds - 1),
        (float(gap.mean(axis=0).var(ddof=1)) / images, images - 1),
    ]
    return _bounded(float(gap.mean()), parts, level, "seeds and images")


def gap(
    ours: Mapping[int, Record], theirs: Mapping[int, Record], level: float = LEVEL
) -> Difference | None:
    """Return how far ours is ahead on the test set, over the seeds that both have, or None.

    ours, theirs: seed -> point record. Where both say which images were right, images count as
    chance beside seeds; with one seed they alone do. Without either there is no interval: None.

    >>> ours = {0: {"test": {"accuracy": 0.9}}, 1: {"test": {"accuracy": 0.92}}}
    >>> theirs = {0: {"test": {"accuracy": 0.8}}, 1: {"test": {"accuracy": 0.81}}}
    >>> round(gap(ours, theirs).mean, 1), gap(ours, theirs).over
    (10.5, 'seeds')
    """
    seeds = [s for s in ours if s in theirs and _both_read(ours[s], theirs[s])]
    if not seeds:
        return None
    pairs = [(right(ours[seed]), right(theirs[seed])) for seed in seeds]
    rows = [
        (mine, other)
        for mine, other in pairs
        if mine is not None and other is not None and len(mine) == len(other)
    ]
    aligned = len(rows) == len(seeds) and len({len(mine) for mine, _ in rows}) == 1
    if aligned and len(seeds) > 1:
        return difference([mine for mine, _ in rows], [other for _, other in rows], level)
    if aligned:
        change = 100.0 * (rows[0][0].astype(float) - rows[0][1].astype(float))
        n = len(change)
        part = [(float(change.var(ddof=1)) / n, n - 1)] if n > 1 else []
        return _bounded(float(change.mean()), part, level, "images") if part else None
    if len(seeds) < 2:
        return None
    changes = [100.0 * (accuracy(ours[seed]) - accuracy(theirs[seed])) for seed in seeds]
    if changes[0] and len(set(changes)) == 1:
        return None  # seeds that agree to the last image are a small test set, not certainty
    part = [(stdev(changes) ** 2 / len(changes), len(changes) - 1)]
    return _bounded(fmean(changes), part, level, "seeds")


def accuracy(point: Record, part: str = "test") -> float:
    """Return a point's accuracy on a part of the data, NaN where it was not read.

    >>> accuracy({"test": {"accuracy": 0.97}})
    0.97
    """
    found = finite((point.get(part) or {}).get("accuracy"))
    return math.nan if found is None else found


def right(point: Record) -> np.ndarray | None:
    """Return which test images a point classified correctly, or None where it does not say.

    Raises SecateurError where the bits and the accuracy beside them disagree.

    >>> bits = base64.b64encode(zlib.compress(np.packbits([1, 0, 1, 1]).tobytes())).decode()
    >>> right({"test": {"n": 4, "accuracy": 0.75, "right": bits}}).tolist()
    [True, False, True, True]
    """
    test = point.get("test") or {}
    text, n = test.get("right"), test.get("n")
    if not text or not isinstance(n, int):
        return None
    name = f"point {str(point.get('fingerprint'))[:16]}"
    try:
        blob = base64.b64decode(text, validate=True)
        packed = np.frombuffer(zlib.decompressobj().decompress(blob, MOST_TESTED // 8), np.uint8)
    except (ValueError, zlib.error, binascii.Error):
        raise SecateurError(
            f"{name} does not say in readable form which test images were right; expected packed "
            "bits; fix: the record was damaged, compute the point again"
        ) from None
    bits = np.unpackbits(packed)[:n].astype(bool)
    stated = accuracy(point)
    if len(bits) != n or (math.isfinite(stated) and abs(bits.mean() - stated) * n > 0.5):
        raise SecateurError(
            f"{name} has {int(bits.sum())} right of {len(bits)} test images but states an accuracy "
            f"of {stated} of {n}; fix: the record was edited, compute the point again"
        )
    return bits


def _both_read(ours: Record, theirs: Record) -> bool:
    """Whether two points were read on as many images: like is compared with like."""
    counts = [(point.get("test") or {}).get("n") for point in (ours, theirs)]
    return counts[0] == counts[1] and all(math.isfinite(accuracy(p)) for p in (ours, theirs))


def _bounded(
    mean: float, parts: Sequence[tuple[float, int]], level: float, over: str
) -> Difference:
    """An interval from variances of the mean and their degrees of freedom."""
    variance = sum(part for part, _ in parts)
    if not variance:
        return Difference(mean, mean, mean, over)
    degrees = variance**2 / sum(part**2 / free for part, free in parts)
    half = _quantile(degrees, level) * math.sqrt(variance)
    return Difference(mean, mean - half, mean + half, over)


def _quantile(degrees: float, level: float) -> float:
    return float(stdtrit(degrees, 0.5 + level / 2))
