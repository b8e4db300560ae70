"""Differences of accuracies over the same test images and the same seeds, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True)
class Difference:
    """Points by which one is ahead of the other; low and high bound the 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ({self.low:+.2f}..{self.high:+.2f})"


def difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> Difference:
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
    mean = float(gap.mean())
    parts = [
        (float(gap.mean(axis=1).var(ddof=1)) / seeds, seeds - 1),
        (float(gap.mean(axis=0).var(ddof=1)) / images, images - 1),
    ]
    variance = sum(part for part, _ in parts)
    if not variance:
        return Difference(mean, mean, mean)
    degrees = variance**2 / sum(part**2 / free for part, free in parts)
    half = float(stdtrit(degrees, 0.975)) * math.sqrt(variance)
    return Difference(mean, mean - half, mean + half)


def ranking(levels: dict[str, Sequence[np.ndarray]], show: dict[str, str]) -> str:
    """One sentence: who leads, and of whom that can be said beyond chance."""
    means = {name: float(np.mean(rows)) for name, rows in levels.items()}
    first, *others = sorted(means, key=lambda name: -means[name])
    gaps = {other: difference(levels[first], levels[other]) for other in others}
    beaten = [f"{show[o]} by {gap.mean:.2f} ({gap.low:.2f}..{gap.high:.2f})"
              for o, gap in gaps.items() if gap.clear]  # fmt: skip
    close = [f"{show[o]} ({gap})" for o, gap in gaps.items() if not gap.clear]
    if not beaten:
        return f"{show[first]} has the highest mean, but is not told apart from {_and(close)}"
    text = f"{show[first]} is ahead of {_and(beaten)} points"
    return text + (f"; not told apart from it: {_and(close)}" if close else "")


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
