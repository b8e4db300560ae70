"""Finding, reading and checking the run.json files that Runs leave on disk. Nothing is computed here."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateur.errors import SecateurError
from secateur.records import RUN, mismatch, read_json

FORMAT_VERSION = 1


def load_runs(path: str | Path) -> list[dict[str, Any]]:
    """Read one Run, or the Runs of one recipe that differ by seed, as plain dicts in order of seed.

    `path` is a Run folder (it holds a run.json), a run.json, or a folder of Run folders. Numbers that
    JSON cannot state (NaN, infinity) come back as None. Raises SecateurError for a file that is
    missing, cut off, incomplete or of another version, and for Runs that cannot be averaged.

    >>> load_runs("no/such/folder")
    Traceback (most recent call last):
    ...
    secateur.errors.SecateurError: no/such/folder does not exist; expected a Run folder, \
a run.json or a folder of Runs; fix: name the folder given to `secateur run ... --out`
    """
    files = _find(Path(path))
    runs = [_load(file) for file in files]
    check_runs(runs, [str(file.parent) for file in files])
    order = sorted(range(len(runs)), key=lambda index: runs[index]["seed"])
    return [runs[index] for index in order]


def check_runs(runs: Sequence[dict[str, Any]], places: Sequence[str] | None = None) -> None:
    """Refuse Runs whose mean over seeds would mean nothing: other recipe, data, model, backend, same seed."""
    if not runs:
        raise SecateurError("received no Run; expected at least one; fix: run a recipe first")
    names = list(places or [f"Run {index + 1}" for index in range(len(runs))])
    for name, run in zip(names, runs, strict=True):
        for part, first, other in _differences(runs[0], run):
            raise SecateurError(
                f"{names[0]} and {name} differ in {part} ({first} and {other}); expected Runs that "
                "differ by seed alone; fix: report them one at a time"
            )
    seeds: dict[int, str] = {}
    for name, run in zip(names, runs, strict=True):
        if run["seed"] in seeds:
            raise SecateurError(
                f"{seeds[run['seed']]} and {name} have the same seed {run['seed']}; expected one Run "
                "a seed, so that the spread is a spread over seeds; fix: remove one"
            )
        seeds[run["seed"]] = name


def _find(path: Path) -> list[Path]:
    try:
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise SecateurError(
                f"{path} does not exist; expected a Run folder, a run.json or a folder of Runs; "
                "fix: name the folder given to `secateur run ... --out`"
            )
        own = path / "run.json"
        inner = sorted(path.glob("*/run.json"))
        if own.is_file() and inner:
            raise SecateurError(
                f"{path} holds a run.json of its own and {len(inner)} Runs in folders; expected one "
                f"or the other; fix: name the Run to report, e.g. {inner[0].parent}"
            )
        if own.is_file():
            return [own]
    except OSError as error:
        raise SecateurError(
            f"{path} cannot be read ({error.strerror}); fix: its permissions"
        ) from None
    if not inner:
        raise SecateurError(
            f"{path} holds no run.json, nor does a folder in it; expected what `secateur run ... "
            "--out` leaves; fix: name that folder, or run again if the Run was interrupted"
        )
    return inner


def _load(file: Path) -> dict[str, Any]:
    try:
        run = read_json(file)
    except OSError as error:
        raise SecateurError(
            f"{file} cannot be read ({error.strerror}); fix: its permissions"
        ) from None
    except ValueError as error:
        raise SecateurError(
            f"{file} is no complete JSON ({error}); expected the record of a Run; fix: the file was "
            "cut off or edited, run the recipe again"
        ) from None
    if not isinstance(run, dict) or run.get("kind") != "run":
        raise SecateurError(
            f'{file} is JSON of another kind; expected "kind": "run"; fix: name a run.json that '
            "`secateur run` wrote"
        )
    version = run.get("format_version")
    if version != FORMAT_VERSION:
        raise SecateurError(
            f"{file} has format version {version}; this secateur reads {FORMAT_VERSION}; fix: "
            "install the secateur that wrote it, or run the recipe again"
        )
    if not run.get("complete"):
        raise SecateurError(
            f"{file} is incomplete: the Run stopped before its end; expected a finished Run; fix: "
            f"run it again ({run.get('command') or 'secateur run'})"
        )
    wrong = mismatch(run, RUN)
    if wrong is not None:
        raise SecateurError(
            f"{file} was edited or damaged: {wrong}; fix: run the recipe again (--overwrite)"
        )
    return run


def _differences(first: dict[str, Any], other: dict[str, Any]):
    """Yield (what, first, other) for each way in which two Runs differ beyond the seed."""
    for part in ("name", "backend"):
        if first.get(part) != other.get(part):
            yield part, first.get(part), other.get(part)
    for key in sorted({*first["recipe"], *other["recipe"]} - {"seed"}):
        if first["recipe"].get(key) != other["recipe"].get(key):
            yield f"recipe key {key!r}", first["recipe"].get(key), other["recipe"].get(key)
    for part, keys in (
        ("data", ("name", "sizes", "shape", "dtype", "sha256")),
        ("model", ("name", "parameters")),
    ):
        facts = [run.get(part) or {} for run in (first, other)]
        for key in keys:
            one, two = (_unnumbered(fact.get(key)) for fact in facts)
            if one != two:
                yield f"{part} {key}", one, two
    notes = [_seedless_notes(run) for run in (first, other)]  # scaling is told there alone
    if notes[0] != notes[1]:
        apart = [sorted(set(a) - set(b)) for a, b in (notes, notes[::-1])]
        yield "data notes", *("; ".join(only) or "nothing" for only in apart)
    # Means over different sets of seeds, row by row, could not be compared with each other.
    row_names = [sorted(row["row"] for row in run["rows"]) for run in (first, other)]
    if row_names[0] != row_names[1]:
        yield "rows", *(", ".join(names) for names in row_names)


def _unnumbered(fact: Any) -> Any:
    """Keras numbers the names it gives within a process: one model built twice has two names."""
    return re.sub(r"_\d+$", "", fact) if isinstance(fact, str) else fact


def _seedless_notes(run: dict[str, Any]) -> list[str]:
    notes = (run.get("data") or {}).get("notes") or []
    return [re.sub(r"\bseed \d+", "seed", str(note)) for note in notes]
