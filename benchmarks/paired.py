"""Who leads in points of accuracy, and of whom that can be said beyond chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateur.reporting.sweep_statistics import Difference, difference

__all__ = ["Difference", "difference", "ranking"]


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
