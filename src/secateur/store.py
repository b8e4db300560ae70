"""Where a sweep keeps what it has done: one directory for each point, and who works on what.

The files are the truth: `points/<name>/record.json` is written whole or not at all, and a point
with a finished record is never computed again. A claim is a lock of the operating system, which
dies with its process, so that a killed sweep leaves nothing to clean up. docs/decisions/006.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from secateur.artifact import locked, read_record, write_atomically, write_json_atomically
from secateur.errors import SecateurError
from secateur.records import POINT, mismatch, read_json, read_npz

FORMAT_VERSION = 1
NAME = 16  # characters of a fingerprint that name a directory


class Store:
    """A sweep's directory.

    Raises SecateurError for a folder that holds something else, or a store of another version.

    >>> import tempfile
    >>> store = Store(Path(tempfile.mkdtemp()) / "runs", create=True)
    >>> point = {"curve": "dense", "seed": 0, "sparsity": {}, "status": "done"}
    >>> store.write({"fingerprint": "a" * 64, **point})
    >>> store.read("a" * 64)["status"]
    'done'
    """

    def __init__(self, path: str | Path, *, create: bool = False):
        self.path = Path(path)
        if (self.path / "run.json").exists() or (self.path / ".stages").exists():
            raise SecateurError(
                f"{self.path} holds a run, expected a sweep or an empty folder; fix: "
                "choose another --out"
            )
        found = read_record(self.path / "sweep.json")
        if found is None and (self.path / "sweep.json").exists():
            raise SecateurError(
                f"{self.path / 'sweep.json'} is damaged, expected what a sweep wrote; fix: delete "
                "that file and give the same sweep command, the finished points are kept"
            )
        if found is None and not create:
            raise SecateurError(
                f"{self.path} holds no sweep, expected sweep.json in it; fix: name the --out folder "
                "of `secateur sweep`"
            )
        if found is None:
            found = {"format_version": FORMAT_VERSION, "kind": "sweep"}
            write_json_atomically(self.path / "sweep.json", found)
        version = found.get("format_version")
        if version != FORMAT_VERSION:
            raise SecateurError(
                f"{self.path} holds a store of version {version}, this secateur reads version "
                f"{FORMAT_VERSION}; fix: use the secateur that wrote it, or another --out"
            )
        self.about = found

    def describe(self, **found: Any) -> None:
        """Write what the sweep is (grid, seeds) beside its points."""
        self.about = {**self.about, **found}
        write_json_atomically(self.path / "sweep.json", self.about)

    def folder(self, fingerprint: str) -> Path:
        """The directory of a point."""
        return self.path / "points" / fingerprint[:NAME]

    def read(self, fingerprint: str) -> dict[str, Any] | None:
        """The record of a point; None where there is none, or it is damaged or another's.

        Raises SecateurError for a record that another version of this package wrote.
        """
        file = self.folder(fingerprint) / "record.json"
        try:
            record = read_json(file)
        except OSError:
            return None
        except ValueError as error:
            return _damaged(file, str(error))
        name = record.get("fingerprint") if isinstance(record, dict) else None
        if name != fingerprint:
            ours = isinstance(name, str) and name[:NAME] == file.parent.name
            return None if ours else _damaged(file, "it is not the record of this point")
        version = record.get("format_version", FORMAT_VERSION)
        if version != FORMAT_VERSION:
            raise SecateurError(
                f"{file.parent} holds a point of version {version}, this secateur reads "
                f"version {FORMAT_VERSION}; fix: use the secateur that wrote it, or another --out"
            )
        wrong = mismatch(record, POINT)
        return record if wrong is None else _damaged(file, wrong)

    def write(self, record: dict[str, Any]) -> None:
        """Write a point's record, whole or not at all."""
        folder = self.folder(record["fingerprint"])
        write_json_atomically(folder / "record.json", record)
        (folder / "begun.json").unlink(missing_ok=True)

    def begin(self, fingerprint: str) -> None:
        """Say that this process, which holds the claim, computes the point now.

        What an earlier attempt left unfinished goes first: no file of it passes for one of ours.
        """
        shutil.rmtree(self.folder(fingerprint), ignore_errors=True)
        write_json_atomically(self.folder(fingerprint) / "begun.json", {"pid": os.getpid()})

    def begun(self, fingerprint: str) -> int | None:
        """The process that began the point last, alive or not."""
        pid = (read_record(self.folder(fingerprint) / "begun.json") or {}).get("pid")
        return pid if isinstance(pid, int) else None

    def forget(self, fingerprint: str) -> None:
        """Drop a point, so that it is computed again; one that another process has claimed stays."""
        with self.claim(fingerprint) as ours:
            if ours:
                shutil.rmtree(self.folder(fingerprint), ignore_errors=True)

    def records(self) -> list[dict[str, Any]]:
        """Every point's record, in the order of their names; damaged ones are left out."""
        files = sorted((self.path / "points").glob("*/record.json"))
        found = [(file, (read_record(file) or {}).get("fingerprint")) for file in files]
        # Never a path to somewhere else, whatever an edited file says.
        names = [n for f, n in found if isinstance(n, str) and n[:NAME] == f.parent.name]
        records = [self.read(name) for name in names]
        return [record for record in records if record is not None]

    @contextmanager
    def claim(self, fingerprint: str) -> Iterator[bool]:
        """Yield whether the point is ours while the block lasts; other processes then pass it by."""
        with locked(self.path / "locks" / f"{fingerprint[:NAME]}.lock", wait=False) as ours:
            yield ours

    def shared(
        self,
        fingerprint: str,
        compute: Callable[[], tuple[list[np.ndarray], dict[str, Any]]],
    ) -> tuple[list[np.ndarray], dict[str, Any]]:
        """The arrays and record of what several points share, computed by whoever comes first.

        Others wait for it, and take over where the one that computes dies.
        """
        folder = self.path / "dense" / fingerprint[:NAME]
        found = self.kept(fingerprint)
        if found is not None:
            return found
        with locked(self.path / "locks" / f"dense-{fingerprint[:NAME]}.lock", wait=True):
            found = self.kept(fingerprint)
            if found is None:
                shutil.rmtree(folder, ignore_errors=True)  # what a killed process left half done
                arrays, record = compute()
                found = arrays, {**record, "fingerprint": fingerprint}
                # The record last: with it the arrays count.
                write_atomically(folder / "weights.npz", lambda path: _save(path, arrays))
                write_json_atomically(folder / "record.json", found[1])
        return found

    def kept(self, fingerprint: str) -> tuple[list[np.ndarray], dict[str, Any]] | None:
        """What `shared` has computed before; None where nobody has."""
        return _read_shared(self.path / "dense" / fingerprint[:NAME], fingerprint)

    def index(self) -> dict[str, Any]:
        """Fingerprint -> status, curve and seed, from the records; also written as index.json.

        A cache for people and scripts that list a store; nothing here reads it.
        """
        keys = ("status", "curve", "seed", "settings")
        found = {r["fingerprint"]: {key: r.get(key) for key in keys} for r in self.records()}
        write_json_atomically(self.path / "index.json", found)
        return found


def _save(path: Path, arrays: list[np.ndarray]) -> None:
    named: dict[str, Any] = {f"{i:06d}": array for i, array in enumerate(arrays)}
    np.savez(path, **named)


def _read_shared(folder: Path, fingerprint: str) -> tuple[list[np.ndarray], dict[str, Any]] | None:
    record = read_record(folder / "record.json")
    if record is None or record.get("fingerprint") != fingerprint:
        return None
    with contextlib.suppress(OSError, ValueError):
        arrays = read_npz(folder / "weights.npz")
        return [arrays[key] for key in sorted(arrays)], record
    return None


def _damaged(file: Path, why: str) -> None:
    warnings.warn(f"{file} is damaged ({why}); the point is computed again", stacklevel=3)
