"""A choice in words and as a table, from its plain record: what to ship, or what would have to give."""

from __future__ import annotations

import math
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from secateur.reporting.formats import (
    DASH,
    byte_count,
    duration,
    finite,
    measure,
    percent,
    points,
    whole,
)

Json = dict[str, Any]

FLAGS = {
    "max_bytes": "--max-bytes",
    "max_gzip": "--max-gzip",
    "max_latency": "--max-latency",
    "max_arena": "--max-arena",
    "max_drop": "--max-drop",
}
KEYS = {
    "max_bytes": "bytes",
    "max_gzip": "gzip_bytes",
    "max_latency": "latency_us",
    "max_arena": "arena_bytes",
    "max_drop": "drop",
}
TITLES = {
    "accuracy": "accuracy",
    "mse": "squared error",
    "drop": "below dense",
    "bytes": "bytes",
    "gzip_bytes": "gzip",
    "latency_us": "latency",
    "arena_bytes": "arena",
}
QUALITIES = {"accuracy": "accuracy", "mse": "squared error"}
PREFERRED = {
    "accuracy": "the most accurate",
    "mse": "the one of the smallest squared error",
    "bytes": "the smallest",
    "gzip_bytes": "the smallest gzipped",
    "latency_us": "the fastest",
    "arena_bytes": "the one of the smallest arena",
}


def sentences(choice: Json) -> list[str]:
    """Say what was chosen, how, and what the test part says of it; or what is nearest.

    >>> sentences({"chosen": None, "budgets": {"max_bytes": 9.0}, "candidates": [{}],
    ...     "nearest": {"name": "pruned", "format": "int8", "bytes": 20.0}, "feasible": 0,
    ...     "needed": {"max_bytes": 20.0}, "ranges": {"bytes": [20.0, 80.0]}, "notes": []})[0]
    'No file holds --max-bytes 9 B.'
    """
    if choice["chosen"] is None:
        return [*_infeasible(choice), *choice["notes"]]
    return [*_feasible(choice), *choice["notes"]]


def front_table(choice: Json) -> Table:
    """The Pareto front: files that no other beats in both `front_by` and validation accuracy."""
    chosen, nearest = choice["chosen"], choice.get("nearest")
    shown = list(choice["front"])
    shown += [one for one in (chosen, nearest) if one is not None and one not in shown]
    by, quality = choice["front_by"], _quality(choice)
    sign = -1.0 if quality == "accuracy" else 1.0
    shown.sort(key=lambda one: (finite(one.get(by)) or 0.0, sign * (finite(one[quality]) or 0.0)))
    keys = [key for key in TITLES if any(one.get(key) is not None for one in shown)]
    titles = _titles(choice)
    counts = {len(one["seeds"]) for one in shown}
    over = f", means over {max(counts)} seeds" if max(counts) > 1 else ", one seed"
    table = Table(
        box=SIMPLE_HEAD,
        padding=0,
        title=f"Pareto front: {TITLES[by]}, validation {QUALITIES[quality]}{over}",
    )
    table.add_column("", width=2)
    table.add_column("file", min_width=30, overflow="fold")
    for key in keys:
        table.add_column(titles[key], justify="right")
    for one in shown:
        mark = ">" if one == chosen else "~" if one == nearest else ""
        off = "" if one in choice["front"] else " (off the front)"
        fewer = f" ({len(one['seeds'])} seeds)" if len(one["seeds"]) < max(counts) else ""
        name = Text(f"{one['name']}, {one['format']}{fewer}{off}")
        table.add_row(mark, name, *[figure(key, one.get(key), quality) for key in keys])
    return table


def figure(key: str, value: Any, quality: str = "accuracy") -> str:
    """Write one figure of a candidate in the unit that people read.

    quality: what the candidates are judged by, which says what a drop is of.

    >>> figure("bytes", 1234.0), figure("drop", 0.25), figure("latency_us", 1500.0)
    ('1,234', '0.25 points', '1.50 ms')
    """
    number = finite(value)
    if number is None:
        return DASH
    if key in QUALITIES:
        return percent(number) if key == "accuracy" else measure(number)
    if key == "latency_us":
        return duration(number / 1e6)
    if key != "drop":
        return whole(number)
    unit = "points" if quality == "accuracy" else "%"
    return f"{points(number).removeprefix('+')} {unit}"


def _titles(choice: Json) -> dict[str, str]:
    return TITLES if _quality(choice) == "accuracy" else {**TITLES, "drop": "above dense"}


def _quality(choice: Json) -> str:
    return str(choice.get("quality") or "accuracy")


def _feasible(choice: Json) -> list[str]:
    chosen, file, test = choice["chosen"], choice["file"], choice["test"]
    seeds = chosen["seeds"]
    several = len(seeds) > 1
    lines = [f"Ship {file['path']} ({chosen['name']}, {chosen['format']})."]
    quality = _quality(choice)
    word = QUALITIES[quality]
    judged = f"validation {word} {figure(quality, chosen[quality])}"
    if chosen["drop"] is not None:
        change = -chosen["drop"] if quality == "accuracy" else chosen["drop"]
        unit = "points" if quality == "accuracy" else "%"
        judged += f", {points(change)} {unit} against the dense network"
    held = _told(choice["budgets"])
    among = f"{choice['feasible']} of {len(choice['candidates'])} files"
    among += f" that hold {held}" if held else ""
    mean = f", mean of {len(seeds)} seeds" if several else ", one seed"
    lines.append(
        f"Chosen on validation data, {PREFERRED[choice['prefer']]} of {among}: {judged}{mean}."
    )
    if several:
        lines.append(
            f"Of its seeds, {file['seed']}: the one whose validation {word} "
            f"({figure(quality, file[quality])}) is nearest to their median."
        )
    sizes = [byte_count(file["bytes"]), f"{byte_count(file['gzip_bytes'])} gzipped"]
    if file["latency_us"] is not None:
        sizes.append(f"{duration(file['latency_us'] / 1e6)} a sample")
    if file["arena_bytes"] is not None:
        sizes.append(f"an arena of {byte_count(file['arena_bytes'])}")
    lines.append(f"It has {', '.join(sizes)}.")
    if test is not None and test[quality] is not None:
        spread = ""
        if several and test["mean"] is not None:
            mean, low, high = (figure(quality, test[key]) for key in ("mean", "lowest", "highest"))
            spread = f"; over its seeds {mean} ({low.removesuffix(' %')}..{high})"
        lines.append(
            f"Test {word} of this file: {figure(quality, test[quality])} on {whole(test['n'])} "
            f"samples{spread}. The test part was read after the choice."
        )
    return lines


def _infeasible(choice: Json) -> list[str]:
    near, budgets, titles = choice["nearest"], choice["budgets"], _titles(choice)
    lines = [f"No file holds {_told(budgets)}."]
    has = ", ".join(
        f"{titles[KEYS[name]]} {_amount(name, near.get(KEYS[name]))}" for name in budgets
    )
    lines.append(f"Nearest: {near['name']}, {near['format']} ({has}).")
    for name, value in choice["needed"].items():
        if len(budgets) == 1:
            lines.append(f"It would take {FLAGS[name]} {_amount(name, value, up=True)}.")
        elif value is None:
            lines.append(f"No {FLAGS[name]} would do: no file holds the other budgets.")
        else:
            lines.append(
                f"With the other budgets kept it would take {FLAGS[name]} "
                f"{_amount(name, value, up=True)}."
            )
    ranges = [
        f"{titles[key]} {figure(key, low, _quality(choice))}..{figure(key, high, _quality(choice))}"
        for key, (low, high) in choice["ranges"].items()
    ]
    lines.append(f"What these files range over: {'; '.join(ranges)}.")
    return lines


def _told(budgets: Json) -> str:
    return " and ".join(f"{FLAGS[name]} {_amount(name, value)}" for name, value in budgets.items())


def _amount(name: str, value: Any, *, up: bool = False) -> str:
    """A budget's value with its unit; up: rounded so that the value itself still holds."""
    number = finite(value)
    if number is None:
        return DASH
    if name == "max_latency":
        return f"{math.ceil(number):,} us" if up else duration(number / 1e6)
    if name == "max_drop":
        return f"{math.ceil(round(100 * number, 9)) / 100:.2f}" if up else f"{number:.2f}"
    return byte_count(math.ceil(number) if up else number)
