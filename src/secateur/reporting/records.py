"""Finding, reading and checking the run.json files that Runs leave on disk. Nothing is computed here."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateur.errors import SecateurError
from secateur.reporting.formats import finite

FORMAT_VERSION = 1
REQUIRED = {"name": str, "seed": int, "recipe": dict, "rows": list, "stages": list}


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
        text = file.read_text(encoding="utf-8")
        run = json.loads(text, parse_constant=lambda _: None, parse_float=_parse_float)
    except OSError as error:
        raise SecateurError(
            f"{file} cannot be read ({error.strerror}); fix: its permissions"
        ) from None
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "not UTF-8"
        raise SecateurError(
            f"{file} is no complete JSON ({where}); expected the record of a Run; fix: the file was "
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
    _check_fields(file, run)
    return run


def _check_fields(file: Path, run: dict[str, Any]) -> None:
    for key, kind in REQUIRED.items():
        if not isinstance(run.get(key), kind):
            raise SecateurError(
                f"{file} has no usable {key!r} ({type(run.get(key)).__name__}); expected "
                f"{kind.__name__}; fix: the file was edited, run the recipe again"
            )
    for key, needed in (("rows", ("row", "stage", "format")), ("stages", ("name",))):
        for entry in run[key]:
            if not isinstance(entry, dict) or any(
                not isinstance(entry.get(name), str) for name in needed
            ):
                raise SecateurError(
                    f"{file} has an entry in {key!r} without {' / '.join(needed)}; expected text in "
                    "each; fix: the file was edited, run the recipe again"
                )


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


def _parse_float(text: str) -> float | None:
    return finite(float(text))
