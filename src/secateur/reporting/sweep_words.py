"""How a sweep's figures are put into words: k in percent, differences with their intervals, epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from secateur.reporting.formats import whole
from secateur.reporting.sweep_compare import Gaps
from secateur.reporting.sweep_statistics import Difference, Interval


def k_text(k: float) -> str:
    """Write one k in percent.

    >>> k_text(0.975)
    '97.5 %'
    """
    return f"{100 * k:.4g} %"


def ks_text(ks: Sequence[float]) -> str:
    """Write several k in percent, in order."""
    return f"{', '.join(f'{100 * k:.4g}' for k in sorted(ks))} %"


def range_text(low: float, high: float) -> str:
    """Write the lowest and the highest k over seeds."""
    return k_text(low) if low == high else f"{100 * low:.4g} to {k_text(high)} (by seed)"


def size_text(found: Difference) -> str:
    """A difference without its sign, its interval beside it."""
    ends = (found.low, found.high) if found.mean >= 0 else (-found.high, -found.low)
    return f"{abs(found.mean):.1f} points ({tenth(ends[0])} to {tenth(ends[1])})"


def signed_text(found: Difference) -> str:
    """Write a difference with its sign and interval."""
    return f"{found.mean:+.1f} points, {found.low:+.1f} to {found.high:+.1f}"


def by_text(found: Gaps, ks: Sequence[float]) -> str:
    """Write how large the differences at some k are."""
    sizes = [abs(found[k].mean) for k in ks]
    spread = f"{min(sizes):.1f}" if len(sizes) == 1 else f"{min(sizes):.1f} to {max(sizes):.1f}"
    return f" by {spread} points"


def lost_text(cost: Interval) -> str:
    """Write the points lost with their interval."""
    if cost.low is None or cost.high is None:
        return tenth(cost.mean)
    return f"{tenth(cost.mean)}, {tenth(cost.low)} to {tenth(cost.high)}"


def tenth(number: float) -> str:
    """Write a number of points with one decimal, zero without a sign."""
    text = f"{number:.1f}"
    return "0.0" if text == "-0.0" else text


def rounded_up(number: float) -> str:
    """Round up to a tenth: "within" must stay true."""
    return f"{math.ceil(10 * number - 1e-9) / 10:.1f}"


def one_seed(found: Gaps) -> str:
    """Say so where differences rest on one seed."""
    return "" if any(one.over != "images" for one in found.values()) else "with one seed, "


def epochs_text(count: float | None) -> str:
    """Write a number of epochs."""
    return f"{count_text(count)} epoch{'' if count == 1 else 's'}"


def count_text(count: float | None) -> str:
    """Write a count that may be a fraction."""
    return whole(count) if count is None or float(count).is_integer() else f"{count:.2g}"


def sentence(text: str) -> str:
    """Give words a capital and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
