"""The file to ship: validation data choose among the files of a sweep or a Run, the test part reports.

A candidate is one way to make a file (curve, settings, format), judged by its mean over seeds.
Nothing here reads a test figure before the choice is made; `Choice.test` reads it afterwards.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from secateur.apart import parse_size, quantity
from secateur.candidates import QUALITIES, Candidate, File, candidates
from secateur.errors import SecateurError, nearest

# What each budget limits. Accuracy apart, less is better everywhere.
LIMITS = {
    "max_bytes": "bytes",
    "max_gzip": "gzip_bytes",
    "max_latency": "latency_us",
    "max_arena": "arena_bytes",
    "max_drop": "drop",
}
PREFERENCES = (*QUALITIES, "bytes", "gzip_bytes", "latency_us", "arena_bytes")
TIMES = {"us": 1.0, "ms": 1e3, "s": 1e6}
WORDS = {
    "accuracy": "validation accuracy",
    "mse": "validation squared error",
    "drop": "validation figure of a dense network to compare with",
    "bytes": "bytes",
    "gzip_bytes": "gzipped bytes",
    "latency_us": "latency",
    "arena_bytes": "arena (a .tflite that tflite-micro runs has one)",
}
SLACK = 1e-9  # of a drop: what subtracting or dividing leaves of "exactly half a point"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen, or why nothing could be.

    chosen, file: the candidate and the one file of it to ship, None where no candidate holds every
    budget; then `nearest` exceeds them by the least. needed: for each budget the least that would
    do with the others kept (None: no value would). ranges: lowest and highest of each figure. front:
    the candidates that no other beats in both `front_by` (the first size or time that was limited,
    else gzipped bytes) and `quality` on validation data, smallest first. quality: "accuracy", or
    "mse" where the files answer with quantities.
    """

    chosen: Candidate | None
    file: File | None
    budgets: Mapping[str, float]
    prefer: str
    candidates: Sequence[Candidate] = field(repr=False)
    feasible: int = 0
    nearest: Candidate | None = None
    needed: Mapping[str, float | None] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    front: Sequence[Candidate] = field(default=(), repr=False)
    front_by: str = "gzip_bytes"
    quality: str = "accuracy"
    notes: Sequence[str] = ()

    @functools.cached_property
    def test(self) -> dict[str, Any] | None:
        """Test accuracy (or mse) of the chosen file, and of its candidate over the seeds; read here, first.

        None where nothing was chosen.
        """
        if self.chosen is None or self.file is None:
            return None
        found = [file.row.get(self.quality) for file in self.chosen.files]
        known = [value for value in found if value is not None]
        return {
            self.quality: self.file.row.get(self.quality),
            "n": self.file.row.get("n"),
            "mean": fmean(known) if known else None,
            "lowest": min(known, default=None),
            "highest": max(known, default=None),
            "seeds": len(known),
        }

    def to_record(self) -> dict[str, Any]:
        """Plain JSON data, the test figures of the choice among them."""
        return {
            "format_version": 1,
            "kind": "choice",
            "budgets": dict(self.budgets),
            "prefer": self.prefer,
            "feasible": self.feasible,
            "chosen": None if self.chosen is None else self.chosen.to_record(),
            "file": None if self.file is None else self.file.to_record(),
            "test": self.test,
            "nearest": None if self.nearest is None else self.nearest.to_record(),
            "needed": dict(self.needed),
            "ranges": {key: list(ends) for key, ends in self.ranges.items()},
            "front_by": self.front_by,
            "quality": self.quality,
            "front": [candidate.to_record() for candidate in self.front],
            "candidates": [candidate.to_record() for candidate in self.candidates],
            "notes": list(self.notes),
        }


def choose(
    runs: Any,
    *,
    max_bytes: float | str | None = None,
    max_gzip: float | str | None = None,
    max_latency: float | str | None = None,
    max_arena: float | str | None = None,
    max_drop: float | None = None,
    formats: Sequence[str] = (),
    prefer: str | None = None,
) -> Choice:
    """Choose the file to ship from a sweep, a Run, or several seeds of one.

    runs: a folder, a `Sweep`, a `Run`, or records of either. max_bytes, max_gzip, max_arena: bytes,
    or text as "250kB" and "1MiB". max_latency: seconds, or text as "2ms". max_drop: points of
    accuracy below the dense network; where the network answers with quantities, percent by which
    the mean squared error may be above the dense network's. formats: only these; every format that
    the points have is considered otherwise. prefer: what decides among the files that hold every
    budget: "accuracy" or "mse" (the default), "bytes", "gzip_bytes" (the default where only the drop
    is limited), "latency_us", "arena_bytes"; ties go to the more accurate, then the smaller.

    Every judgement is made on validation data, by the mean over seeds. The file to ship is that of
    the seed whose validation figure is nearest to their median, among those that hold the budgets of
    size and time themselves. Raises SecateurError for records without files or without validation
    figures.

    >>> row = {"row": "x-int8", "stage": "x", "format": "int8", "path": "x.tflite", "bytes": 9}
    >>> row["validation"] = {"accuracy": 0.9}
    >>> run = {"kind": "run", "seed": 0, "rows": [row]}
    >>> choose([run], max_bytes="1kB").file.path
    'x.tflite'
    """
    given = {
        "max_bytes": parse_size(max_bytes, "max_bytes"),
        "max_gzip": parse_size(max_gzip, "max_gzip"),
        "max_latency": parse_time(max_latency),
        "max_arena": parse_size(max_arena, "max_arena"),
        "max_drop": _points(max_drop),
    }
    budgets = {key: value for key, value in given.items() if value is not None}
    if prefer is None and set(budgets) == {"max_drop"}:
        prefer = "gzip_bytes"
    short = {"gzip": "gzip_bytes", "latency": "latency_us", "arena": "arena_bytes"}
    prefer = short.get(prefer or "", prefer)
    if prefer not in (None, *PREFERENCES):
        raise SecateurError(f"prefer {prefer!r} received; {nearest(prefer, PREFERENCES)}")
    arena = "max_arena" in budgets or prefer == "arena_bytes"
    return decide(candidates(runs, formats, arena=arena), budgets, prefer)


def decide(
    every: Sequence[Candidate], budgets: Mapping[str, float], prefer: str | None = None
) -> Choice:
    """Choose among candidates; see `choose`. Raises SecateurError where none was judged at all."""
    quality = quality_of(every)
    if (
        prefer in QUALITIES
        and prefer != quality
        and any(c.value(quality) is not None for c in every)
    ):
        raise SecateurError(
            f"prefer {prefer!r} received, and these files are judged by {quality}; fix: prefer {quality}"
        )
    prefer = prefer or quality
    keys = {LIMITS[name] for name in budgets} | {quality, prefer}
    judged = [c for c in every if all(c.value(key) is not None for key in keys)]
    notes = _unjudged(every, keys)
    if not judged:
        raise SecateurError(
            f"none of {len(every)} candidates can be judged ({'; '.join(notes)}); fix: "
            + _remedy(every, keys, quality)
        )
    feasible = [c for c in judged if _holds(c, budgets) and _shippable(c, budgets)]
    order = functools.partial(_rank, prefer=prefer, quality=quality)
    limited = [LIMITS[name] for name in LIMITS if name in budgets and name != "max_drop"]
    front_by = limited[0] if limited else prefer if prefer != quality else "gzip_bytes"
    chosen = min(feasible, key=order, default=None)
    return Choice(
        chosen=chosen,
        file=None if chosen is None else _median_file(_shippable(chosen, budgets), quality),
        budgets=dict(budgets),
        prefer=prefer,
        candidates=tuple(every),
        feasible=len(feasible),
        nearest=None if feasible else min(judged, key=lambda c: (_excess(c, budgets), order(c))),
        needed={} if feasible else _needed(judged, budgets),
        ranges=_ranges(judged),
        front=pareto_front(judged, front_by, quality),
        front_by=front_by,
        quality=quality,
        notes=notes,
    )


def quality_of(every: Sequence[Candidate]) -> str:
    """What candidates are judged by: "mse" where some have that and none an accuracy, else "accuracy"."""
    found = [key for key in QUALITIES if any(c.value(key) is not None for c in every)]
    return found[0] if found else "accuracy"


def pareto_front(
    every: Sequence[Candidate], size: str = "bytes", quality: str = "accuracy"
) -> tuple[Candidate, ...]:
    """The candidates that no other beats in both size and quality, smallest first."""
    known = [
        (small, _badness(candidate.value(quality), quality), place, candidate)
        for place, candidate in enumerate(every)
        if (small := candidate.value(size)) is not None and candidate.value(quality) is not None
    ]
    front, best = [], math.inf
    for _, worse, _, candidate in sorted(known, key=lambda entry: entry[:3]):
        if worse < best:
            front.append(candidate)
            best = worse
    return tuple(front)


def parse_time(value: float | str | None, name: str = "max_latency") -> float | None:
    """Microseconds from seconds, or from text with its unit: "2ms", "800us".

    >>> parse_time("2ms"), parse_time(0.002)
    (2000.0, 2000.0)
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{value!r}s"
    return quantity(value, TIMES, f"{name} {value!r} received, expected a time as 2ms, 800us")


def _points(value: float | None) -> float | None:
    if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
        raise SecateurError(
            f"max_drop {value!r} received, expected points of accuracy, or percent of squared error, as 0.5"
        )
    return None if value is None else float(value)


def _holds(candidate: Candidate, budgets: Mapping[str, float]) -> bool:
    return all(_over(candidate.value(LIMITS[name]), name, budgets[name]) == 0 for name in budgets)


def _shippable(candidate: Candidate, budgets: Mapping[str, float]) -> list[File]:
    """The files that hold the budgets of size and time themselves, not only in the mean."""
    own = {name: limit for name, limit in budgets.items() if name != "max_drop"}
    return [
        file
        for file in candidate.files
        if all(_over(getattr(file, LIMITS[name]), name, own[name]) == 0 for name in own)
    ]


def _over(value: float | None, name: str, limit: float) -> float:
    """By how much a budget is exceeded: a share of it; for the drop, points."""
    if value is None:
        return math.inf
    if name == "max_drop":
        return max(0.0, value - limit) if value > limit + SLACK else 0.0
    return max(0.0, value / limit - 1)


def _excess(candidate: Candidate, budgets: Mapping[str, float]) -> float:
    """The largest excess over any budget: a point of accuracy counts like the whole of a size."""
    return max(_over(candidate.value(LIMITS[name]), name, budgets[name]) for name in budgets)


def _badness(value: float | None, quality: str) -> float:
    """What sorts the better first."""
    if value is None:
        return math.inf
    return -value if quality == "accuracy" else value


def _rank(candidate: Candidate, prefer: str, quality: str) -> tuple[float, ...]:
    """Ascending: what is preferred, then the more accurate, then the smaller."""
    bad, size = _badness(candidate.value(quality), quality), candidate.value("bytes") or math.inf
    return (bad, size) if prefer == quality else (candidate.value(prefer) or math.inf, bad, size)


def _median_file(files: Sequence[File], quality: str) -> File:
    """The file of the seed nearest to the median; of two as near, that of the lower seed."""
    values = {file.seed: getattr(file, quality) or 0.0 for file in files}
    middle = median(values.values())
    return min(files, key=lambda file: (abs(values[file.seed] - middle), file.seed))


def _needed(judged: Sequence[Candidate], budgets: Mapping[str, float]) -> dict[str, float | None]:
    """For each budget the least value that some candidate holds together with the others."""
    needed: dict[str, float | None] = {}
    for name in budgets:
        others = {other: limit for other, limit in budgets.items() if other != name}
        fitting = [c.value(LIMITS[name]) for c in judged if _holds(c, others)]
        needed[name] = min((v for v in fitting if v is not None), default=None)
    return needed


def _ranges(judged: Sequence[Candidate]) -> dict[str, tuple[float, float]]:
    found = {}
    for key in (*QUALITIES, *LIMITS.values()):
        values = [value for c in judged if (value := c.value(key)) is not None]
        if values:
            found[key] = min(values), max(values)
    return found


def _unjudged(every: Sequence[Candidate], keys: set[str]) -> list[str]:
    """Which candidates could not be compared, and for want of what."""
    notes = []
    for key in sorted(keys):
        missing = [c.format for c in every if c.value(key) is None]
        if missing:
            kinds = ", ".join(dict.fromkeys(missing))
            notes.append(f"{len(missing)} of {len(every)} ({kinds}) have no {WORDS[key]}")
    return notes


def _remedy(every: Sequence[Candidate], keys: set[str], quality: str) -> str:
    if all(c.value(quality) is None for c in every):
        return (
            "make these files again with this secateur, with a validation part and labels (classes are "
            "judged by accuracy, quantities by mse)"
        )
    if "drop" in keys and all(c.value("drop") is None for c in every):
        return 'a curve without steps, [[curves]] name = "dense", to compare with'
    return "leave out the budget that was not measured, or measure it first"
