"""The directory of one Run while it is being made: finished stages survive an interruption.

`.stages/begun.json` says from the start whose directory it is, each finished stage leaves its
weights and record beside it, and `run.json` is written last: a directory with a `run.json` is a
finished Run, one without can be carried on. docs/decisions/004 gives the reasons.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from secateur.artifact import (
    FORMATS,
    RECORDS,
    Artifact,
    locked,
    own_files,
    plain,
    read_record,
    refuse_inputs,
    staged,
    versions,
    write_json_atomically,
)
from secateur.compression import Stage
from secateur.datasets import Data
from secateur.errors import SecateurError
from secateur.inspection import weight_records
from secateur.promises import Promise
from secateur.recipe import Recipe
from secateur.records import BEGUN, RUN, STAGE, mismatch, read_npz
from secateur.training import History, Snapshot
from secateur.weights import weight_table


class RunFolder:
    """One Run's directory. fingerprint: of everything that decides the result.

    finished: the record of this very Run when it is already there, else None. Nothing is written
    before `begin`. Raises SecateurError for a directory that holds a different Run, finished or
    not, unless `overwrite`.
    """

    def __init__(self, path: Path, *, fingerprint: str, overwrite: bool = False):
        self.path = path
        self.fingerprint = fingerprint
        self.finished: dict[str, Any] | None = None
        self.records: list[dict[str, Any]] = []
        self._stages = path / ".stages"
        self._overwrite = overwrite
        self._begun: dict[str, Any] = {"fingerprint": fingerprint, "files": []}
        self._look()

    def _look(self) -> None:
        """Take over what stands there, if it is of this very Run."""
        path, fingerprint = self.path, self.fingerprint
        if (path / "sweep.json").exists():
            raise SecateurError(
                f"{path} holds a sweep, expected a run or an empty folder; fix: choose another --out"
            )
        if self._overwrite:
            return
        record, begun = read_record(path / "run.json"), read_record(self._stages / "begun.json")
        if record is not None:
            if record.get("fingerprint") != fingerprint:
                raise SecateurError(
                    f"{path} holds another run ({_whose(record)}, or made from other data, weights "
                    "or versions); choose another --out, or --overwrite"
                )
            wrong = mismatch(record, RUN)
            if wrong is not None:
                _warn_damaged(path / "run.json", wrong, "the run is carried out again")
            self.finished = record if wrong is None else None
        elif begun is not None and mismatch(begun, BEGUN) is None:
            if begun["fingerprint"] != fingerprint:
                raise SecateurError(
                    f"{path} holds another, unfinished run ({_whose(begun)}); carry that one on "
                    "with its own command, choose another --out, or discard it with --overwrite"
                )
            self._begun = begun

    @contextmanager
    def begin(self, *, name: str, seed: int) -> Iterator[None]:
        """Claim the directory for the block, which shows that it can be written; discard what was there.

        `finished` may be set in the block: another process did this very Run in the meantime. Raises
        SecateurError where another process works in the directory.
        """
        lock = self.path / ".lock"
        with locked(lock, wait=False) as ours:
            if not ours:
                raise SecateurError(
                    f"{self.path} is in use by another run ({self._holder()}); wait for it to end, "
                    "or choose another --out"
                )
            try:
                self._claim(name, seed)
                yield
            finally:
                with contextlib.suppress(OSError):
                    lock.unlink()

    def _claim(self, name: str, seed: int) -> None:
        self._look()  # again, as it cannot change from now on
        if self.finished is not None:
            return
        try:
            if self._overwrite:
                self._clear()
            self._stages.mkdir(exist_ok=True)
        except OSError as error:
            raise SecateurError(
                f"cannot write to {self.path} ({error.strerror}); choose another --out"
            ) from None
        holder = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%H:%M:%S")}
        self._begun |= {"name": name, "seed": seed, **holder}
        write_json_atomically(self._stages / "begun.json", self._begun)

    def _holder(self) -> str:
        begun = read_record(self._stages / "begun.json") or {}
        return (
            f"{_whose(begun)}: process {begun.get('pid')} on {begun.get('host')}, since "
            f"{begun.get('since')}"
        )

    def note(self, artifacts: Iterable[Artifact]) -> None:
        """Remember files that were written, so that an overwriting Run finds them."""
        names = {*self._begun["files"], *(artifact.path.name for artifact in artifacts)}
        self._begun["files"] = sorted(names)
        write_json_atomically(self._stages / "begun.json", self._begun)

    def give_up(self) -> None:
        """Release the directory when nothing was finished that could be carried on."""
        if not self.records and not self._begun["files"]:
            shutil.rmtree(self._stages, ignore_errors=True)

    def restore(self, name: str, model: Any) -> Stage | None:
        """A stage that an earlier, interrupted call finished; its weights are put into `model`."""
        found = read_record(self._stages / f"{name}.json")
        if found is None or found.get("fingerprint") != self.fingerprint:
            return None
        try:
            wrong = mismatch(found, STAGE)
            if wrong is not None:
                raise ValueError(wrong)
            promises = tuple(Promise.from_record(p) for p in found["promises"])
            early = self._early(name, found.get("early"))
            model.set_weights(self._read_arrays(f"{name}.npz"))
        except (OSError, ValueError) as error:
            _warn_damaged(self._stages / f"{name}.json", error, "the stage is computed again")
            return None
        record = found["stage"]
        self.records.append(record)
        history = None
        if record["epochs"]:
            history = History(
                metrics=record["history"],
                epochs=record["epochs"],
                steps=record["steps"],
                seconds=record["seconds"],
            )
        return Stage(
            name=name,
            method=record["method"],
            model=model,
            promises=promises,
            history=history,
            curve=tuple((s, v) for s, v in record["sparsity_curve"]),
            notes=tuple(record["notes"]),
            ranges={key: (low, high) for key, (low, high) in record.get("ranges", {}).items()},
            early=early,
        )

    def keep(self, stage: Stage) -> None:
        """Write a finished stage: weights first, then the record that makes them count."""
        record = plain(_stage_record(stage))
        self.records.append(record)
        self._write_arrays(f"{stage.name}.npz", stage.model.get_weights())
        early = stage.early
        if early is not None:
            self._write_arrays(f"{stage.name}-early.npz", early.weights or ())
            self._write_arrays(f"{stage.name}-early-optimizer.npz", early.optimizer or ())
        write_json_atomically(
            self._stages / f"{stage.name}.json",
            {
                "fingerprint": self.fingerprint,
                "stage": record,
                "promises": [p.to_record() for p in stage.promises],
                "early": None if early is None else early.epoch,
            },
        )

    def _write_arrays(self, name: str, arrays: Iterable[np.ndarray]) -> None:
        with staged(self._stages / name) as temporary:
            # Not a positional list: np.savez names those arr_0 ... in an order of its own.
            named: dict[str, Any] = {f"{i:06d}": array for i, array in enumerate(arrays)}
            np.savez(temporary, **named)

    def _early(self, name: str, epoch: float | None) -> Snapshot | None:
        if epoch is None:
            return None
        early = Snapshot(epoch)
        early.weights = self._read_arrays(f"{name}-early.npz")
        early.optimizer = self._read_arrays(f"{name}-early-optimizer.npz")
        return early

    def _read_arrays(self, name: str) -> list[np.ndarray]:
        return list(read_npz(self._stages / name).values())

    def finish(self, record: dict[str, Any]) -> dict[str, Any]:
        """Write `run.json` and return what it says; what only served to carry the Run on goes."""
        record = plain(record)
        write_json_atomically(self.path / "run.json", record)
        shutil.rmtree(self._stages, ignore_errors=True)
        return record

    def _clear(self) -> None:
        files = sorted(own_files(self.path))
        # First, so that a half-cleared directory does not pass for a finished Run.
        (self.path / "run.json").unlink(missing_ok=True)
        for name in (*files, "manifest.json"):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self._stages, ignore_errors=True)


def fingerprint(recipe: Recipe, data: Data, model: Any, name: str, *, untrained: bool) -> str:
    """A hash of everything that decides a Run's result; untrained: a built-in model, from a seed."""
    digest = hashlib.sha256()
    parts = [recipe.to_record(), data.describe(), keras.backend.backend(), versions(), name]
    digest.update(json.dumps(parts, sort_keys=True, default=str).encode())
    if not untrained:  # names that Keras numbers would differ from process to process
        digest.update(json.dumps(model.get_config(), sort_keys=True, default=str).encode())
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


def machine() -> dict[str, Any]:
    """What the numbers were taken on: processor, cores, system, Python."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    return {
        "cpu": cpu or platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def check_layout(
    out: Path, recipe: Recipe, seeds: Sequence[int], *, overwrite: bool = False
) -> None:
    """Refuse a folder in which these Runs could not be reported together with what it holds.

    Raises SecateurError before any work, instead of a report that fails after hours of it.
    """
    inner = sorted(out.glob("*/run.json"))
    begun = sorted(
        {file.parent for name in ("run.json", ".stages") for file in out.glob(f"*/{name}")}
    )
    if len(seeds) > 1 and ((out / "run.json").exists() or (out / ".stages").exists()):
        raise SecateurError(
            f"{out} holds a run of its own, beside which several seeds cannot be "
            "reported; choose another --out"
        )
    if len(seeds) == 1 and begun:
        raise SecateurError(
            f"{out} holds the runs of several seeds ({begun[0].name}, ...), beside which one "
            "run cannot be reported; choose another --out"
        )
    wanted = {f"seed-{seed}" for seed in seeds}
    for file in inner:
        own = file.parent.name in wanted
        found = (read_record(file) or {}).get("recipe")
        same = isinstance(found, dict) and {**found, "seed": 0} == {**recipe.to_record(), "seed": 0}
        if not same and not (own and overwrite):
            raise SecateurError(
                f"{file.parent} holds a run of another recipe, which cannot be reported together "
                f"with these; choose another --out, or {'--overwrite' if own else 'remove it'}"
            )


def check_inputs(
    out: Path, recipe: Recipe, inputs: Sequence[Any], *, overwrite: bool = False
) -> None:
    """Refuse a folder in which a Run would write onto, or discard, a file that it reads.

    inputs: paths among which may be names and models. Raises SecateurError before any work.
    """
    names = set(RECORDS) | (own_files(out) if overwrite else set())
    for stage in ("baseline", *recipe.stage_names(), "control"):
        for format, suffix in FORMATS.items():
            names.add(f"{stage}-{format}{suffix}")
    if (out / "recipe.toml").is_file() and recipe.as_text() == (out / "recipe.toml").read_text():
        names.discard("recipe.toml")  # its own, from which it is repeated
    paths = [path for path in inputs if isinstance(path, str | Path)]
    refuse_inputs({f"the run's {name}:": out / name for name in sorted(names)}, paths)


def _whose(record: dict[str, Any]) -> str:
    return f"{record.get('name')}, seed {record.get('seed')}"


def _stage_record(stage: Stage) -> dict[str, Any]:
    history = stage.history
    promises = [p.to_record() for p in stage.promises]
    return {
        "name": stage.name,
        "method": stage.method,
        "history": {} if history is None else history.metrics,
        "epochs": 0 if history is None else history.epochs,
        "steps": 0 if history is None else history.steps,
        "seconds": 0.0 if history is None else round(history.seconds, 3),
        "sparsity_curve": [[step, value] for step, value in stage.curve],
        "weights": weight_records(weight_table(stage.model)),
        "promises": [{k: v for k, v in p.items() if k != "positions"} for p in promises],
        "notes": list(stage.notes),
        "ranges": {key: list(bounds) for key, bounds in stage.ranges.items()},
    }


def _warn_damaged(file: Path, why: object, then: str) -> None:
    warnings.warn(f"{file} is damaged ({why}); {then}", stacklevel=3)
