"""How numbers are written for people: bytes, ratios, percent, points, times. No record is read here."""

import math
from typing import Any

DASH = "\N{EN DASH}"


def finite(value: Any) -> float | None:
    """Return `value` as a float, or None where there is no usable number (missing, NaN, infinite).

    >>> finite(3), finite(None), finite(float("nan"))
    (3.0, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def whole(value: Any) -> str:
    """Write a count with thousands separated.

    >>> whole(20410)
    '20,410'
    """
    number = finite(value)
    return DASH if number is None else f"{round(number):,}"


def byte_count(value: Any) -> str:
    """Write a number of bytes exactly.

    >>> byte_count(24384)
    '24,384 B'
    """
    return DASH if finite(value) is None else f"{whole(value)} B"


def binary_size(value: Any) -> str:
    """Write a number of bytes in KiB, MiB or GiB; nothing below one KiB, where bytes say it best.

    >>> binary_size(24384)
    '23.8 KiB'
    """
    number = finite(value)
    if number is None or number < 1024:
        return ""
    for unit in ("KiB", "MiB", "GiB"):
        number /= 1024
        if number < 1000 or unit == "GiB":
            break
    return f"{number:.1f} {unit}"


def percent(share: Any, digits: int = 2) -> str:
    """Write a share as a percentage.

    >>> percent(0.9650)
    '96.50 %'
    """
    number = finite(share)
    return DASH if number is None else f"{_plain_zero(number * 100, digits)} %"


def points(value: Any, digits: int = 2) -> str:
    """Write a difference of two percentages, always with its sign.

    >>> points(0.45), points(-1.034), points(0.0)
    ('+0.45', '-1.03', '0.00')
    """
    number = finite(value)
    if number is None:
        return DASH
    text = f"{number:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def times(ratio: Any) -> str:
    """Write a ratio of sizes: one decimal, two where it is below 1, none where that is false precision.

    >>> times(9.5137), times(0.8593), times(120.4)
    ('9.5', '0.86', '120')
    """
    number = finite(ratio)
    if number is None:
        return DASH
    return f"{number:.{2 if number < 0.995 else 1 if number < 99.95 else 0}f}"


def measure(value: Any) -> str:
    """Write a loss or an error with four significant digits.

    >>> measure(0.123456)
    '0.1235'
    """
    number = finite(value)
    return DASH if number is None else f"{number:.4g}"


def duration(seconds: Any) -> str:
    """Write a length of time in the unit a person would choose.

    >>> duration(0.0000134), duration(0.0042), duration(4.63), duration(125)
    ('13.4 us', '4.20 ms', '4.6 s', '2 min 5 s')
    """
    number = finite(seconds)
    if number is None:
        return DASH
    if number < 1e-3:
        return f"{number * 1e6:.{1 if number < 1e-4 else 0}f} us"
    if number < 1:
        return f"{number * 1e3:.{2 if number < 0.01 else 1}f} ms"
    if number < 60:
        return f"{number:.1f} s"
    minutes, rest = divmod(round(number), 60)
    return f"{minutes} min {rest} s"


def weight_value(value: Any) -> str:
    """Write one weight in at most six characters, so that sixteen fit beside each other.

    >>> weight_value(-0.12345), weight_value(0.0), weight_value(0.0004), weight_value(12.3)
    ('-0.12', '0', '4e-04', '12.3')
    """
    number = finite(value)
    if number is None:
        return "?"
    if number == 0:
        return "0"
    size = abs(number)
    if size < 0.001 or size >= 1000:
        return f"{number:.0e}"
    return f"{number:.{3 if size < 0.0095 else 2 if size < 9.995 else 1}f}"


def _plain_zero(number: float, digits: int) -> str:
    text = f"{number:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text
