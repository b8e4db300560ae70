"""The table of a sweep: a row for each curve and k, its figures as means over seeds, as plain text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.reporting.formats import DASH, duration, finite, measure, percent, points, whole
from secateur.reporting.sweep_series import DENSE, DONE, SCRATCH, Series, Study, own, value
from secateur.reporting.sweep_statistics import (
    Difference,
    Interval,
    Record,
    accuracy,
    gap,
    interval,
)
from secateur.reporting.sweep_words import count_text, k_text, sentence


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One curve at one k: means over the seeds, None where nothing was taken.

    points: against the dense network of the same seeds. own_size, own_time: whether bytes and time
    are of this network; otherwise they are the dense network's.
    """

    curve: str
    kind: str
    asked: float
    realised: float | None
    seeds: int
    accuracy: Interval | None
    points: Difference | None
    loss: Interval | None
    epochs: float | None
    bytes: float | None
    gzip_bytes: float | None
    own_size: bool
    latency_us: float | None
    own_time: bool


def cells(study: Study) -> list[Cell]:
    """Aggregate a study: the dense network first, then its curves, each by rising k."""
    found = []
    if study.dense:
        dense = Series(name="dense", kind=DENSE, points={0.0: study.dense})
        found.append(_cell(dense, 0.0, study))
    for series in study.curves:
        found += [_cell(series, k, study) for k in sorted(series.points)]
    return found


def mean(records: Sequence[Record], dotted: str) -> float | None:
    """Return the mean of a number deep in the records that have it; equal values stay what they are."""
    found = [number for record in records if (number := value(record, dotted)) is not None]
    if not found:
        return None
    return found[0] if len(set(found)) == 1 else math.fsum(found) / len(found)


Column = tuple[str, Callable[[Cell], str]]


def columns(table: Sequence[Cell]) -> list[Column]:
    """Choose the columns that a table has figures for, as (title, cell -> text)."""
    candidates: list[tuple[str, Callable[[Cell], Any], Callable[[Cell], str]]] = [
        ("asked", lambda c: c.asked or None, lambda c: k_text(c.asked) if c.asked else DASH),
        ("realised", lambda c: c.realised or None, _realised),
        ("seeds", lambda c: c.seeds, lambda c: str(c.seeds)),
        ("accuracy", lambda c: c.accuracy, lambda c: percent(c.accuracy and c.accuracy.mean)),
        ("95 % interval", lambda c: c.accuracy and c.accuracy.low, lambda c: ends(c.accuracy)),
        ("points to dense", lambda c: c.points, lambda c: points(c.points and c.points.mean)),
        ("loss", lambda c: c.loss, lambda c: measure(c.loss and c.loss.mean)),
        (
            "epochs",
            lambda c: c.epochs,
            lambda c: DASH if c.epochs is None else count_text(c.epochs),
        ),
        ("bytes", lambda c: c.bytes, lambda c: _marked(whole(c.bytes), c.own_size)),
        ("gzip", lambda c: c.gzip_bytes, lambda c: _marked(whole(c.gzip_bytes), c.own_size)),
        ("time", lambda c: c.latency_us, lambda c: _marked(micro(c.latency_us), c.own_time)),
    ]
    chosen: list[Column] = [("curve", lambda c: c.curve)]
    return chosen + [
        (title, text)
        for title, key, text in candidates
        if any(key(cell) is not None for cell in table)
    ]


def ends(found: Interval | None) -> str:
    """Write the ends of an interval of accuracy, within what an accuracy can be.

    >>> ends(Interval(mean=0.98, low=0.95, high=1.005, n=3))
    '95.00..100.00 %'
    """
    if found is None or found.low is None or found.high is None:
        return DASH
    low, high = max(found.low, 0.0), min(found.high, 1.0)
    return f"{percent(low).removesuffix(' %')}..{percent(high)}"


def micro(latency_us: Any) -> str:
    """Write a latency given in microseconds."""
    number = finite(latency_us)
    return DASH if number is None else duration(number / 1e6)


def footnote(study: Study) -> str:
    """Say how the table's figures were taken."""
    table = cells(study)
    parts = [
        "accuracy and loss on test images, read once; mean over seeds with the 95 % interval of "
        "Student's t (one seed has none)",
        "points: percentage points to the dense networks of the same seeds",
        "epochs: gradient epochs in all, dense training included",
    ]
    if any(cell.latency_us is not None for cell in table):
        parts.append("time: median latency of one image")
    if any((c.latency_us is not None and not c.own_time)
           or (c.bytes is not None and not c.own_size) for c in table):  # fmt: skip
        parts.append("*: the dense network's, whose shape it has")
    return sentence("; ".join(parts))


def missing_lines(study: Study) -> list[str]:
    """List the points that have no figures: the impossible ones, then those that failed."""
    lines = []
    for record in sorted(study.missing, key=lambda one: one["status"] != "impossible"):
        asked = value(record, "sparsity.asked")
        at = "" if asked is None else f" at {k_text(asked)}"
        lines.append(
            f"{record['status']}: {record['curve']}{at}, seed {record['seed']}"
            f" ({record.get('error') or 'no reason recorded'})"
        )
    return lines


def method_lines(study: Study) -> list[str]:
    """Say how it was measured: seeds, budgets, data, threads, machine, versions."""
    done = [record for record in study.records if record["status"] == DONE]
    if not done:
        return ["No point of this study was finished."]
    first = done[0]
    sizes = (first.get("data") or {}).get("sizes") or {}
    listed = ", ".join(f"{whole(size)} {name}" for name, size in sizes.items())
    timed = next((record["latency"] for record in done if record.get("latency")), None)
    machine = first.get("machine") or {}
    facts = [
        f"Seeds: {', '.join(map(str, study.seeds))}; a seed decides the start, the order of the images "
        "and what is drawn by lot. Curves are compared on the same seeds and test images.",
        f"Data: {(first.get('data') or {}).get('name')}{f' ({listed})' if listed else ''}. Every "
        "choice of k was made on validation data; the test set was read once, at the end.",
        *(_budget(study)),
    ]
    if timed:
        threads = timed.get("threads")
        facts.append(
            f"Time: {timed.get('runtime')}, one image at a time, {threads} "
            f"thread{'' if threads == 1 else 's'}; measured once for each shape of network."
        )
    facts.append(
        "Differences: 95 % intervals over seeds and test images, paired. Two curves part at the first "
        "k whose interval leaves zero out and that of the next k as well; other findings look at "
        "several k and name none unless all of them together leave 5 % to chance."
    )
    words = [machine.get("cpu"), f"{machine['cores']} cores" if machine.get("cores") else None,
             machine.get("system"), f"backend {first.get('backend')}"]  # fmt: skip
    versions = [f"{name} {number}" for name, number in (first.get("versions") or {}).items()]
    facts.append(f"Machine: {', '.join(str(word) for word in [*words, *versions] if word)}.")
    return facts


def _budget(study: Study) -> list[str]:
    groups: dict[float, list[str]] = {}
    for series in study.curves:
        if series.epochs is not None:
            groups.setdefault(series.epochs, []).append(series.name)
    listed = [f"{count_text(epochs)} for {', '.join(names)}" for epochs, names in groups.items()]
    return [f"Gradient epochs, dense training included: {'; '.join(listed)}."] if listed else []


def _cell(series: Series, k: float, study: Study) -> Cell:
    seeds = series.points[k]
    records = list(seeds.values())
    read = [a for record in records if math.isfinite(a := accuracy(record))]
    losses = [loss for record in records if (loss := value(record, "test.loss")) is not None]
    realised = mean(records, "sparsity.realised")
    return Cell(
        curve=series.name,
        kind=series.kind,
        asked=k,
        realised=None if series.kind == SCRATCH and not realised else realised,
        seeds=len(records),
        accuracy=interval(read),
        points=None if series.kind == DENSE and not series.after else gap(seeds, study.dense),
        loss=interval(losses),
        epochs=mean(records, "epochs.total"),
        bytes=mean(records, "file.bytes"),
        gzip_bytes=mean(records, "file.gzip_bytes"),
        own_size=all(own(record, "file") for record in records if record.get("file")),
        latency_us=mean(records, "latency.median_us"),
        own_time=all(own(record, "latency") for record in records if record.get("latency")),
    )


def _realised(cell: Cell) -> str:
    return DASH if cell.realised is None or not cell.asked else percent(cell.realised, 1)


def _marked(text: str, own_network: bool) -> str:
    return text if own_network or text == DASH else f"{text}*"
