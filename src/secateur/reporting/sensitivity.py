"""Which weights hurt: a table, one sentence and a page, from the plain records of `sensitivity`.

A record with path None is the baseline. `kind` "pruning" has `sparsity`, "quantization" `bits`.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Column, Table

from secateur.reporting.figures import shape_text
from secateur.reporting.files import write_text
from secateur.reporting.formats import DASH, finite, percent, points, whole

Record = dict[str, Any]

LEVELS = {"pruning": "sparsity", "quantization": "bits"}
TITLES = {"pruning": "One weight pruned alone", "quantization": "One weight quantized alone"}
MOST_NAMED = 5  # weights in a sentence, lines with a colour of their own


@dataclass(frozen=True)
class Ranking:
    """The records of one kind: the weights by harm, each with its records from mild to harsh."""

    kind: str
    baseline: Record
    weights: dict[str, list[Record]]

    @property
    def noise(self) -> float:
        """The drop of an accuracy that so many samples cannot tell from none."""
        return 1 / math.sqrt(self.baseline["n"])

    @property
    def levels(self) -> list[Any]:
        """Sparsities or bits, from mild to harsh."""
        key = LEVELS[self.kind]
        found = {record[key] for records in self.weights.values() for record in records}
        return sorted(found, reverse=key == "bits")

    @property
    def labelled(self) -> bool:
        """Whether every point has an accuracy."""
        return all(r["drop"] is not None for records in self.weights.values() for r in records)

    def at(self, level: Any, key: str) -> dict[str, float | None]:
        """Path -> a number of its record at one level."""
        found = {}
        for path, records in self.weights.items():
            record = next((r for r in records if r[LEVELS[self.kind]] == level), {})
            found[path] = finite(record.get(key))
        return found


def rankings(records: Sequence[Record]) -> list[Ranking]:
    """Sort the records of each kind by harm: mean drop over all levels, then loss, then outputs.

    >>> base = {"kind": "pruning", "path": None, "n": 100, "drop": 0.0, "loss": 1.0}
    >>> mild = base | {"path": "a", "sparsity": 0.5, "output_error": 0.1}
    >>> harsh = mild | {"path": "b", "drop": 0.4}
    >>> list(rankings([base, mild, harsh])[0].weights)
    ['b', 'a']
    """
    found = []
    for kind, level in LEVELS.items():
        mine = [record for record in records if record["kind"] == kind]
        baseline = next((record for record in mine if record["path"] is None), None)
        grouped: dict[str, list[Record]] = {}
        for record in mine:
            if record["path"] is not None:
                grouped.setdefault(record["path"], []).append(record)
        if baseline is None or not grouped:
            continue
        for rows in grouped.values():
            rows.sort(key=lambda r: r[level], reverse=level == "bits")
        order = sorted(grouped, key=lambda path: _harm(grouped[path]), reverse=True)
        found.append(Ranking(kind, baseline, {path: grouped[path] for path in order}))
    return found


def _harm(records: Sequence[Record]) -> tuple[float, ...]:
    def mean(key: str) -> float:
        # A point without a number overflowed: nothing is worse.
        return fmean(math.inf if (v := finite(r.get(key))) is None else v for r in records)

    return mean("drop"), mean("loss"), mean("output_error")


def level_text(kind: str, level: Any) -> str:
    """Write a sparsity or a number of bits.

    >>> level_text("pruning", 0.975), level_text("pruning", 0.8), level_text("quantization", 4)
    ('97.5 %', '80 %', '4 bits')
    """
    return f"{round(100 * level, 4):g} %" if kind == "pruning" else f"{level} bits"


# --- the table ------------------------------------------------------------------------------------


def grid(ranking: Ranking) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: a row for each weight, the most harmful first."""
    headings = ["weight", "shape", "weights"]
    columns: list[list[str]] = []
    for level in ranking.levels:
        name = level_text(ranking.kind, level)
        if ranking.labelled:
            headings.append(f"{name}\npoints")
            columns.append([cost_text(drop) for drop in ranking.at(level, "drop").values()])
        if ranking.kind == "quantization":
            headings += [f"{name}\nweight, dB", f"{name}\nlayer's error"]
            exact = ranking.at(level, "error").values()
            noises = zip(ranking.at(level, "sqnr_db").values(), exact, strict=True)
            columns.append(["exact" if e == 0 else decibels_text(db) for db, e in noises])
            columns.append([error_text(e) for e in ranking.at(level, "layer_error").values()])
        if not ranking.labelled:
            headings.append(f"{name}\noutputs' error")
            columns.append([error_text(e) for e in ranking.at(level, "output_error").values()])
    rows = []
    for index, (path, records) in enumerate(ranking.weights.items()):
        first = records[0]
        texts = [path, shape_text(first["shape"]), whole(first["size"])]
        rows.append([*texts, *(column[index] for column in columns)])
    return headings, rows


def tables(records: Sequence[Record]) -> list[Table]:
    """A table for the terminal for each kind, sorted by harm."""
    found = []
    for ranking in rankings(records):
        headings, rows = grid(ranking)
        table = Table(
            Column("weight", overflow="fold", min_width=12),
            *(Column(heading, justify="right", no_wrap=True) for heading in headings[1:]),
            box=SIMPLE,
            padding=(0, 1, 0, 0),
            title=TITLES[ranking.kind],
            title_justify="left",
            caption=caption(ranking),
            caption_justify="left",
        )
        for row in rows:
            table.add_row(*map(escape, row))
        found.append(table)
    return found


def caption(ranking: Ranking) -> str:
    """What the numbers of the table are."""
    n = whole(ranking.baseline["n"])
    if not ranking.labelled:
        return (
            f"{n} validation samples; errors of outputs and layers are the RMS of the change over "
            "the RMS of the float values; the others stay as they are"
        )
    return (
        f"points of accuracy against {percent(ranking.baseline['accuracy'])} on {n} validation "
        f"samples, which tell no less than {_points(ranking.noise)} points; the others stay as "
        "they are, nothing is trained"
    )


def write_csv(records: Sequence[Record], path: str | Path) -> Path:
    """Write every record as a line, shapes as 3x3x1x12; raises SecateurError as `write_text`."""
    names = list(dict.fromkeys(key for record in records for key in record))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    for record in records:
        shape = record.get("shape")
        flat = None if shape is None else "x".join(map(str, shape))
        writer.writerow({**record, "shape": flat})
    return write_text(path, stream.getvalue())


# --- the sentence ---------------------------------------------------------------------------------


def findings(records: Sequence[Record]) -> str:
    """Say which weights hurt, as far as so many samples can tell; a sentence for each kind."""
    return " ".join(_finding(r) if r.labelled else _unlabelled(r) for r in rankings(records))


def _finding(ranking: Ranking) -> str:
    kind, noise, n = ranking.kind, ranking.noise, whole(ranking.baseline["n"])
    drops = {level: _numbers(ranking.at(level, "drop")) for level in ranking.levels}
    drops = {level: found for level, found in drops.items() if found}
    # A hair of tolerance: 0.9 - 0.8 is not the 0.1 that ten samples cannot tell.
    if max(max(found.values()) for found in drops.values()) <= noise + 1e-9:
        harshest = level_text(kind, ranking.levels[-1])
        done = f"pruned to {harshest}" if kind == "pruning" else f"rounded to {harshest}"
        return (
            f"No weight {done} alone costs more than {_points(noise)} points, the least that {n} "
            "samples can tell."
        )
    if len(ranking.weights) == 1:
        return _one(ranking)

    def spread(level: Any) -> float:
        return max(drops[level].values()) - min(drops[level].values())

    level = max(drops, key=lambda one: round(spread(one), 9))  # of equals the mildest
    found, name = drops[level], level_text(kind, level)
    worst = max(found.values())
    top = sorted((p for p in found if worst - found[p] <= noise + 1e-9), key=lambda p: -found[p])
    rest = {path: drop for path, drop in found.items() if path not in top}
    if not rest:
        return (
            f"At {name} each weight alone costs between {_points(min(found.values()))} and "
            f"{_points(worst)} points, too close for {n} samples to tell them apart."
        )
    several = len(top) > 1
    amount = _points(worst)
    if several:
        amount = f"{_points(found[top[-1]])} to {amount}"
    text = f"{_listed(top)} at {name} {'each alone cost' if several else 'alone costs'} {amount} points"
    text += f" (too close for {n} samples to tell them apart)" if several else ""
    highest = max(rest.values())
    text += (
        f", {next(iter(rest))} " if len(rest) == 1 else f", each of the other {len(rest)} at most "
    )
    text += _points(highest)
    if highest <= noise + 1e-9:
        text += f" (less than the {_points(noise)} that {n} samples can tell)"
        return f"{text}{_advice(ranking, top) if kind == 'pruning' else ''}."
    # Curves may cross: then no level speaks for the others.
    for other, values in drops.items():
        above = max(values, key=lambda p: values[p])
        if above in rest and values[above] - max(values.get(p, 0.0) for p in top) > noise + 1e-9:
            gap = f"{_points(values[above])} to {_points(max(values.get(p, 0.0) for p in top))}"
            return f"{text}; at {level_text(kind, other)} it is {above} that costs more, {gap}."
    return f"{text}."


def _one(ranking: Ranking) -> str:
    """The finding where there is nothing to compare with: where the harm begins."""
    path, records = next(iter(ranking.weights.items()))
    level = LEVELS[ranking.kind]
    first = next(r for r in records if r["drop"] > ranking.noise + 1e-9)
    name = level_text(ranking.kind, first[level])
    return f"{path}, the only one looked at, costs {_points(first['drop'])} points at {name}."


def _advice(ranking: Ranking, top: Sequence[str]) -> str:
    """What a recipe may do about them, as far as their size makes it worth while."""
    sizes = {path: records[0]["size"] for path, records in ranking.weights.items()}
    share = sum(sizes[path] for path in top) / sum(sizes.values())
    it, holds = ("them", "they hold") if len(top) > 1 else ("it", "it holds")
    if share <= 0.5 and len(top) > MOST_NAMED:
        return ""
    if share <= 0.5:
        names = ", ".join(f'"{path}"' for path in top)
        return (
            f"; {holds} {percent(share, 1)} of these weights: leave {it} out with "
            f"select = {{ exclude = [{names}] }}"
        )
    safe = [s for s in ranking.levels if all(_harmless(ranking, path, s) for path in top)]
    less = f" ({level_text('pruning', safe[-1])} alone costs nothing that shows)" if safe else ""
    return f"; {holds} {percent(share, 1)} of these weights: prune {it} less{less}"


def _harmless(ranking: Ranking, path: str, level: float) -> bool:
    """Whether a weight costs nothing that shows up to this sparsity."""
    drops = [r["drop"] for r in ranking.weights[path] if r["sparsity"] <= level]
    return all(drop <= ranking.noise + 1e-9 for drop in drops)


def _unlabelled(ranking: Ranking) -> str:
    level = ranking.levels[-1]
    found = _numbers(ranking.at(level, "output_error"))
    if not found:
        return ""
    most, least = max(found, key=lambda p: found[p]), min(found, key=lambda p: found[p])
    name = level_text(ranking.kind, level)
    text = f"{most} at {name} alone changes the outputs by {error_text(found[most])} (relative RMS)"
    if len(found) == 1:
        return f"{text}."
    if error_text(found[most]) == error_text(found[least]):
        return f"At {name} each weight alone changes the outputs by {error_text(found[most])}."
    return f"{text}, {least} by {error_text(found[least])}."


def _numbers(found: dict[str, float | None]) -> dict[str, float]:
    return {path: value for path, value in found.items() if value is not None}


def _listed(names: Sequence[str]) -> str:
    if len(names) > 3:
        return f"{', '.join(names[:2])} and {len(names) - 2} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _points(share: float) -> str:
    """A share as points of a percentage, without a sign where there is none."""
    return points(100 * share, 1).lstrip("+")


def cost_text(drop: float | None) -> str:
    """Write a drop as the points that were won or, with a minus, lost.

    >>> cost_text(0.123), cost_text(-0.001)
    ('-12.3', '+0.1')
    """
    return DASH if drop is None else points(-100 * drop, 1)


def error_text(error: float | None) -> str:
    """Write a relative RMS in percent, with two significant digits where it is small.

    >>> error_text(0.00123), error_text(0.4567), error_text(0.0)
    ('0.12 %', '45.7 %', '0 %')
    """
    if error is None:
        return DASH
    return f"{100 * error:.1f} %" if error >= 0.01 else f"{100 * error:.2g} %"


def decibels_text(value: float | None) -> str:
    """Write a signal-to-noise ratio.

    >>> decibels_text(41.06)
    '41.1'
    """
    return DASH if value is None else f"{value:.1f}"
