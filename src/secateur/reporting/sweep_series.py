"""The point records of a sweep, sorted: studies (one model on one data set), their curves, their k.

k is the asked sparsity, a fraction here and percent in what people read.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.errors import SecateurError
from secateur.records import POINT, mismatch, read_json
from secateur.reporting.formats import finite
from secateur.reporting.sweep_statistics import Record

FORMAT_VERSION = 1
DONE, IMPOSSIBLE, FAILED = "done", "impossible", "failed"
DENSE, WEIGHTS, UNITS, SCRATCH = "dense", "weights", "units", "scratch"
OF_DENSE = "the dense network"
# Column of a point's row -> where its record has the number.
COLUMNS = {
    "asked": "sparsity.asked", "realised": "sparsity.realised",
    "dead_incoming": "sparsity.dead.incoming", "dead_outgoing": "sparsity.dead.outgoing",
    "dead_network": "sparsity.dead.network", "norm_removed": "norm_removed",
    "epochs_dense": "epochs.dense", "epochs_after": "epochs.after", "epochs": "epochs.total",
    **{f"{part}_{name}": f"{part}.{name}" for part in ("validation", "test")
       for name in ("n", "accuracy", "loss", "mse", "mae")},
    "bytes": "file.bytes", "gzip_bytes": "file.gzip_bytes", "latency_us": "latency.median_us",
    "latency_low_us": "latency.low_us", "latency_high_us": "latency.high_us",
    "threads": "latency.threads", "wall_seconds": "seconds.wall", "cpu_seconds": "seconds.cpu",
}  # fmt: skip
# Counts; of epochs there may be parts.
WHOLE = ("epochs_dense", "epochs_after", "epochs", "validation_n", "test_n", "bytes", "gzip_bytes",
         "threads")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve: `points[k][seed]` is a finished point. kind: weights, units, scratch or dense.

    before, after: gradient epochs of the dense training and since. random: which weights go is
    drawn by lot. repaired: the next layer was solved again. trials: settings other than sparsity.
    """

    name: str
    kind: str
    points: Mapping[float, Mapping[int, Record]]
    before: float | None = None
    after: float | None = None
    random: bool = False
    repaired: bool = False

    @property
    def asked(self) -> list[float]:
        """Every k above 0 of this curve, in order."""
        return sorted(k for k in self.points if k > 0)

    @property
    def epochs(self) -> float | None:
        """Gradient epochs in all, dense training included."""
        if self.before is None or self.after is None:
            return None
        return self.before + self.after


@dataclass(frozen=True, kw_only=True)
class Study:
    """All that one model on one data set and backend gave: curves, dense networks, what was not done.

    dense: seed -> point of the dense network that the curves start from.
    """

    title: str
    curves: Sequence[Series]
    dense: Mapping[int, Record]
    missing: Sequence[Record] = ()
    records: Sequence[Record] = field(default=(), repr=False)

    @property
    def seeds(self) -> list[int]:
        """Every seed of a finished point."""
        return sorted({point["seed"] for point in self.records if point["status"] == DONE})


def studies(records: Sequence[Record]) -> list[Study]:
    """Sort point records into studies; the order is that of names, seeds and k, not of the files.

    Raises SecateurError without records, and for a record that is no finished point's.

    >>> studies([])
    Traceback (most recent call last):
    ...
    secateur.errors.SecateurError: received no point; expected the records of a sweep; fix: run \
`secateur sweep` first
    """
    if not records:
        raise SecateurError(
            "received no point; expected the records of a sweep; fix: run `secateur sweep` first"
        )
    for record in records:
        _check(record)
    keys = [_key(record) for record in records]
    words = [sorted({key[part] for key in keys if key[part]}) for part in range(3)]
    found = []
    for key in sorted(set(keys)):
        own = sorted(
            (record for record, other in zip(records, keys, strict=True) if other == key),
            key=_order,
        )
        shown = [key[0], f"on {key[1]}"] + ([f"({key[2]})"] if len(words[2]) > 1 else [])
        found.append(_study(" ".join(shown), own))
    return found


def point_row(record: Record) -> dict[str, Any]:
    """Lay one point record out flat: the row of `Sweep.rows`, of CSV and of JSON.

    Names are the same for every point, but for the values that its grid swept, named by their path, at
    the end.

    >>> point_row({"curve": "units", "status": "done", "test": {"accuracy": 0.9}})["test_accuracy"]
    0.9
    """
    row: dict[str, Any] = {
        "model": (record.get("model") or {}).get("name"),
        "data": (record.get("data") or {}).get("name"),
        "curve": record.get("curve"),
        "kind": record.get("kind_of"),
        "seed": record.get("seed"),
        "status": record.get("status"),
    }
    for name, dotted in COLUMNS.items():
        found = value(record, dotted)
        whole = found is not None and name in WHOLE and found == int(found)
        row[name] = int(found) if whole and found is not None else found
    row["format"] = (record.get("file") or {}).get("format")
    row["bytes_of"] = (record.get("file") or {}).get("of")
    row["latency_of"] = (record.get("latency") or {}).get("of")
    row["shape"] = (record.get("latency") or {}).get("shape")
    row["read_in"] = (record.get("test") or {}).get("read_in")
    row["backend"] = record.get("backend")
    row["error"] = record.get("error")
    row["fingerprint"] = record.get("fingerprint")
    return row | dict(record.get("settings") or {})


def frame(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Lay point records out flat, a `point_row` each, in a fixed order.

    >>> frame([{"curve": "b", "seed": 0}, {"curve": "a", "seed": 0}])[0]["curve"]
    'a'
    """
    return [point_row(record) for record in sorted(records, key=_order)]


def csv_text(records: Sequence[Record]) -> str:
    """Write the frame as CSV, unrounded; an empty cell is a figure that was not taken."""
    table = frame(records)
    names = list(dict.fromkeys(name for row in table for name in row))
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow({name: csv_cell(found) for name, found in row.items()})
    return stream.getvalue()


def csv_cell(found: Any) -> Any:
    """Return what a cell holds: lists, tables and truths as JSON, the rest as it is.

    >>> csv_cell([2, 4]), csv_cell(True), csv_cell(0.5)
    ('[2, 4]', 'true', 0.5)
    """
    return _text(found) if isinstance(found, bool | list | tuple | dict) else found


def load_points(path: str | Path) -> list[Record]:
    """Read every point record of a sweep's folder (`points/*/record.json`).

    Raises SecateurError where there is none, or one is damaged or of another version.

    >>> load_points("no/such/folder")
    Traceback (most recent call last):
    ...
    secateur.errors.SecateurError: no/such/folder holds no points/*/record.json; expected what \
`secateur sweep ... --out` leaves; fix: name that folder
    """
    files = sorted(Path(path).glob("points/*/record.json"))
    if not files:
        raise SecateurError(
            f"{path} holds no points/*/record.json; expected what `secateur sweep ... --out` leaves; "
            "fix: name that folder"
        )
    found = []
    for file in files:
        try:
            record = read_json(file)
        except (OSError, ValueError) as error:
            raise SecateurError(
                f"{file} cannot be read ({error}); expected the record of a point; fix: give the "
                "sweep's command again, which computes it again and keeps the rest"
            ) from None
        if not isinstance(record, dict):
            record = {}
        _check(record, str(file))
        found.append(record)
    return found


def value(point: Record, dotted: str) -> float | None:
    """Return a number deep in a record, None where it is missing or not finite.

    >>> value({"latency": {"median_us": 15.8}}, "latency.median_us"), value({}, "file.bytes")
    (15.8, None)
    """
    found: Any = point
    for part in dotted.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return finite(found)


def own(point: Record, part: str) -> bool:
    """Whether a point's `file` or `latency` is of its own network and not of the dense one."""
    return bool(point.get(part)) and point[part].get("of") != OF_DENSE


def _check(record: Record, name: str | None = None) -> None:
    name = name or f"record {str(record.get('fingerprint'))[:16]}"
    if record.get("kind") != "point" or record.get("format_version") != FORMAT_VERSION:
        raise SecateurError(
            f"{name} is of kind {record.get('kind')!r}, format version "
            f"{record.get('format_version')}; expected a point of version {FORMAT_VERSION}; fix: "
            "report it with the secateur that wrote it"
        )
    wrong = mismatch(record, POINT)
    if wrong is not None:
        raise SecateurError(
            f"{name} was edited or damaged: {wrong}; fix: give the sweep's command again, which "
            "computes it again and keeps the rest"
        )


def _key(record: Record) -> tuple[str, str, str]:
    model, data = record.get("model") or {}, record.get("data") or {}
    return (
        str(model.get("name") or "model"),
        str(data.get("name") or "data"),
        str(record.get("backend") or ""),
    )


def _order(record: Record) -> tuple:
    asked = value(record, "sparsity.asked")
    return (
        *_key(record), *_nature(record), str(record.get("curve")), -1.0 if asked is None else asked,
        record.get("seed", 0), str(record.get("fingerprint")),
    )  # fmt: skip


def _nature(record: Record) -> tuple[int, bool, float, bool]:
    """Weights, units, small networks; within a kind the untrained first, chance last."""
    kinds = (DENSE, WEIGHTS, UNITS, SCRATCH)
    kind = record.get("kind_of")
    steps = (record.get("recipe") or {}).get("steps") or []
    return (
        kinds.index(kind) if kind in kinds else len(kinds),
        any(step.get("criterion") == "random" for step in steps),
        value(record, "epochs.after") or 0.0,
        any(step.get("repair") for step in steps),
    )


def _study(title: str, records: Sequence[Record]) -> Study:
    done = [record for record in records if record["status"] == DONE]
    names = _names(records)
    members: dict[str, list[Record]] = {}
    for record in done:
        members.setdefault(names[id(record)], []).append(record)
    curves = [_series(name, points) for name, points in members.items()]
    starts = [one for one in curves if one.kind == DENSE and not one.after and not one.asked]
    dense: dict[int, Record] = {}
    for one in starts:
        dense |= {seed: point for k in one.points.values() for seed, point in k.items()}
    return Study(
        title=title,
        curves=[one for one in curves if one not in starts],
        dense=dense,
        missing=[record for record in records if record["status"] != DONE],
        records=records,
    )


def _series(name: str, points: Sequence[Record]) -> Series:
    # k = 0 of a curve is the dense network: the others say what the curve is
    first = next((point for point in points if point.get("kind_of") != DENSE), points[0])
    by_k: dict[float, dict[int, Record]] = {}
    for point in points:
        asked = value(point, "sparsity.asked") or 0.0
        seeds = by_k.setdefault(asked, {})
        if point["seed"] in seeds:
            raise SecateurError(
                f"curve {name!r} has two points of seed {point['seed']} at sparsity {asked:g}, "
                f"{str(seeds[point['seed']].get('fingerprint'))[:16]} and "
                f"{str(point.get('fingerprint'))[:16]}; expected one; fix: report one grid at a time"
            )
        seeds[point["seed"]] = point
    _, random, _, repaired = _nature(first)
    return Series(
        name=name,
        kind=str(first.get("kind_of") or WEIGHTS),
        points=by_k,
        before=value(first, "epochs.dense"),
        after=value(first, "epochs.after"),
        random=random,
        repaired=repaired,
    )


def _names(records: Sequence[Record]) -> dict[int, str]:
    """Name each record's curve: the grid's name, and what else was swept in it beside sparsity."""
    swept: dict[str, dict[str, set[str]]] = {}
    for record in records:
        for path, found in _settings(record):
            swept.setdefault(record["curve"], {}).setdefault(path, set()).add(_text(found))
    names = {}
    for record in records:
        several = swept.get(record["curve"], {})
        words = [
            f"{path.rsplit('.', 1)[-1]} {_text(found)}"
            for path, found in _settings(record)
            if len(several[path]) > 1
        ]
        names[id(record)] = ", ".join([record["curve"], *words])
    return names


def _settings(record: Record) -> Iterable[tuple[str, Any]]:
    for path, found in (record.get("settings") or {}).items():
        if path.rsplit(".", 1)[-1] not in ("sparsity", "seed", "model", "data"):
            yield path, found


def _text(found: Any) -> str:
    return found if isinstance(found, str) else json.dumps(found, sort_keys=True)
