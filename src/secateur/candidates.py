"""Candidates to ship, read from records: one for each way that a sweep or a Run made files.

A candidate is a curve, its settings and a format (of a Run: a stage and a format); it has a file a
seed. Of a record only sizes, times and validation figures are read here, never a test figure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from secateur.errors import SecateurError, nearest
from secateur.measurement import measure
from secateur.records import read_json
from secateur.reporting.records import load_runs
from secateur.reporting.sweep_series import load_points

# A file of these answers as the network in memory does, which export checks.
SAME_ANSWERS = ("keras", "h5", "float32", "sparse", "onnx")
REFERENCES = ("float32", "h5", "keras", "onnx")
# What a network's answers are judged by: classes by accuracy, quantities by their squared error.
QUALITIES = ("accuracy", "mse")
# What is told of a candidate; each but accuracy is better when it is less.
FIGURES = (*QUALITIES, "bytes", "gzip_bytes", "latency_us", "arena_bytes", "drop")
Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class File:
    """One candidate's file of one seed, judged on validation data.

    accuracy: a fraction; mse: mean squared error, where there are no classes. dense: the same of the
    dense network. latency_us: of this format; arena_bytes: of a `.tflite`.
    """

    seed: int
    accuracy: float | None
    mse: float | None
    dense: float | None
    bytes: float | None
    gzip_bytes: float | None
    latency_us: float | None
    arena_bytes: float | None
    path: str
    row: Mapping[str, Any] = field(repr=False)

    def to_record(self) -> dict[str, Any]:
        """Plain JSON data, without the row, which holds test figures."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "row"}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to make a file and, seed by seed, the files it gave."""

    name: str
    format: str
    files: tuple[File, ...] = field(repr=False)

    @property
    def accuracy(self) -> float | None:
        """Mean validation accuracy over the seeds."""
        return _mean([file.accuracy for file in self.files])

    @property
    def drop(self) -> float | None:
        """What validation says is lost against the dense networks of the same seeds.

        Points of accuracy; for quantities by how many percent the squared error is larger.
        """
        gaps = [_gap(file) for file in self.files]
        return _mean(gaps)

    def value(self, key: str) -> float | None:
        """The mean over the seeds of what a budget limits or a preference orders by."""
        if key in ("accuracy", "drop"):
            return getattr(self, key)
        return _mean([getattr(file, key) for file in self.files])

    def to_record(self) -> dict[str, Any]:
        """Plain JSON data."""
        keys = FIGURES
        found = {"name": self.name, "format": self.format, "seeds": [f.seed for f in self.files]}
        return found | {key: self.value(key) for key in keys}


def candidates(runs: Any, formats: Sequence[str] = (), *, arena: bool = False) -> list[Candidate]:
    """Every candidate of a folder, a `Sweep`, a `Run`, or records; those of `formats` alone if given.

    arena: also ask tflite-micro for the memory that a `.tflite` needs, where no record says it.
    Raises SecateurError where there are no files, or none in these formats.
    """
    entries = list(_entries(runs))
    known = list(dict.fromkeys(row["format"] for _, _, row, _, _ in entries))
    for name in formats:
        if name not in known:
            raise SecateurError(f"no file of format {name!r}; {nearest(name, known)}")
    groups: dict[tuple[str, str], dict[int, File]] = {}
    for name, seed, row, folder, figures in entries:
        if formats and row["format"] not in formats:
            continue
        file = _file(seed, row, folder, figures)
        if arena and file.arena_bytes is None:
            file = replace(file, arena_bytes=_arena(file.path))
        groups.setdefault((name, row["format"]), {})[seed] = file
    return [
        Candidate(name=name, format=kind, files=tuple(files[s] for s in sorted(files)))
        for (name, kind), files in groups.items()
    ]


# (name, seed, row, folder, figures): figures hold what stands beside a row in its record.
Entry = tuple[str, int, Record, Path | None, dict[str, Any]]


def _entries(runs: Any) -> Iterator[Entry]:
    records, root = _records(runs)
    if not records:
        raise SecateurError("received no record; expected those of a sweep or a Run")
    if records[0].get("kind") == "point":
        found = list(_of_points(records, root))
    else:
        found = [entry for record, folder in zip(records, _folders(records, root), strict=True)
                 for entry in _of_run(record, folder)]  # fmt: skip
    if not found:
        raise SecateurError(
            f"{root or 'these records'} hold no measured file, expected at least one to choose; fix: "
            'a grid with files = "all" and formats in its [export]'
        )
    yield from found


def _records(runs: Any) -> tuple[list[Record], Path | None]:
    if isinstance(runs, str | Path):
        path = Path(runs)
        if (path / "points").is_dir():
            return list(load_points(path)), path
        return list(load_runs(path)), path if path.is_dir() else path.parent
    path = getattr(runs, "path", None)
    if path is not None and hasattr(runs, "records"):
        return list(runs.records), Path(path)
    if path is not None and hasattr(runs, "record"):
        return [runs.record], Path(path)
    return list(runs), None


def _folders(records: Sequence[Record], root: Path | None) -> list[Path | None]:
    """The folder of each Run: the one that was named, or the one in it with the same seed."""
    seeds = [record["seed"] for record in records]
    if len(set(seeds)) < len(seeds):
        raise SecateurError(
            f"Runs of seeds {seeds} received, expected each seed once; fix: choose from one recipe's"
        )
    if root is None or (root / "run.json").exists():
        return [root for _ in records]
    found = {}
    for file in root.glob("*/run.json"):
        found[read_json(file)["seed"]] = file.parent
    return [found.get(seed) for seed in seeds]


def _of_points(records: Sequence[Record], root: Path | None) -> Iterator[Entry]:
    done = [record for record in records if record.get("status") == "done"]
    # A store may hold a point twice, of this version of a package and of an older: the last counts.
    done.sort(key=lambda record: record.get("created") or "")
    several = len({_subject(record) for record in done}) > 1
    dense = {
        (_subject(record), record["seed"]): record.get("validation")
        for record in done
        if record.get("kind_of") == "dense" and not (record.get("epochs") or {}).get("after")
    }
    for record in done:
        name = ", ".join([record["curve"], *map(_setting, (record.get("settings") or {}).items())])
        name = f"{' on '.join(_subject(record)[:2])}: {name}" if several else name
        folder = None if root is None else root / "points" / record["fingerprint"][:16]
        figures = {
            "network": record.get("validation"),
            "dense": dense.get((_subject(record), record["seed"])),
            "latency": record.get("latency"),
            "timed": (record.get("file") or {}).get("format"),
        }
        for row in record.get("rows") or ():
            yield name, record["seed"], row, folder, figures


def _of_run(record: Record, folder: Path | None) -> Iterator[Entry]:
    rows = [row for row in record["rows"] if row.get("bytes") is not None]
    baseline = [row for row in rows if row["stage"] == "baseline" and row.get("validation")]
    known = [row for kind in REFERENCES for row in baseline if row["format"] == kind]
    dense = known[0]["validation"] if known else None
    for row in rows:
        if row["stage"] != "control":  # there to compare with, not to ship
            yield row["stage"], record["seed"], row, folder, {"dense": dense}


def _file(seed: int, row: Record, folder: Path | None, figures: Record) -> File:
    judged = row.get("validation")
    if judged is None and row["format"] in SAME_ANSWERS:
        judged = figures.get("network")
    accuracy = (judged or {}).get("accuracy")
    mse = (judged or {}).get("mse") if accuracy is None else None
    dense = (figures.get("dense") or {}).get("accuracy" if mse is None else "mse")
    latency = row.get("latency")
    if latency is None and row["format"] == figures.get("timed"):
        latency = figures.get("latency")
    name = str(row["path"])
    return File(
        seed=seed,
        accuracy=accuracy,
        mse=mse,
        dense=dense,
        bytes=row.get("bytes"),
        gzip_bytes=row.get("gzip_bytes"),
        latency_us=(latency or {}).get("median_us"),
        arena_bytes=row.get("arena_bytes"),
        path=name if folder is None else str(folder / name),
        row=row,
    )


def _arena(path: str) -> float | None:
    """What a microcontroller would need; None where it has no kernels for this file."""
    if not path.endswith(".tflite") or not Path(path).is_file():
        return None
    try:
        return measure(path, runtime="tflm", latency=False).arena_bytes
    except SecateurError as error:
        if "not installed" in str(error):
            raise
        return None


def _subject(record: Record) -> tuple[str, str, str]:
    model, data = record.get("model") or {}, record.get("data") or {}
    return str(model.get("name")), str(data.get("name")), str(record.get("backend"))


def _setting(item: tuple[str, Any]) -> str:
    return f"{item[0].rsplit('.', 1)[-1]} {item[1]}"


def _gap(file: File) -> float | None:
    if file.dense is None:
        return None
    if file.accuracy is not None:
        return 100 * (file.dense - file.accuracy)
    # A network without any error has no share of it to lose.
    return 100 * (file.mse / file.dense - 1) if file.mse is not None and file.dense else None


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of values that all seeds have; None where one is missing."""
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None
