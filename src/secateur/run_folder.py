"""The directory of one Run while it is being made: finished stages survive an interruption.

Each finished stage leaves its weights and record under `.stages/`; `run.json` is written last, so
a directory with a `run.json` is a finished Run and a directory without one can be carried on.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from secateur.artifact import staged, write_json_atomically
from secateur.compression import Stage
from secateur.errors import SecateurError
from secateur.inspection import weight_records
from secateur.promises import Promise
from secateur.training import History
from secateur.weights import weight_table


class RunFolder:
    """One Run's directory. fingerprint: of everything that decides the result.

    finished: the record of this very Run when it is already there, else None. Raises
    SecateurError for a directory that holds a different Run, unless `overwrite`.
    """

    def __init__(self, path: Path, *, fingerprint: str, overwrite: bool = False):
        self.path = path
        self.fingerprint = fingerprint
        self.finished: dict[str, Any] | None = None
        self._stages = path / ".stages"
        self.records: list[dict[str, Any]] = []
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SecateurError(
                f"cannot write to {path} ({error.strerror}); choose another --out"
            ) from None
        if overwrite:
            self._clear()
            return
        record = _read(path / "run.json")
        if record is None:
            return
        if record.get("fingerprint") != fingerprint:
            raise SecateurError(
                f"{path} holds another run ({record.get('name')}, seed {record.get('seed')}, or made "
                "from other data, weights or versions); choose another --out, or --overwrite"
            )
        self.finished = record

    def restore(self, name: str, model: Any) -> Stage | None:
        """A stage that an earlier, interrupted call finished; its weights are put into `model`."""
        found = _read(self._stages / f"{name}.json")
        if found is None or found.get("fingerprint") != self.fingerprint:
            return None
        try:
            with np.load(self._stages / f"{name}.npz") as weights:
                model.set_weights([weights[key] for key in weights.files])
            promises = tuple(Promise.from_record(p) for p in found["promises"])
        except (OSError, ValueError, KeyError):
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
        )

    def keep(self, stage: Stage) -> None:
        """Write a finished stage: weights first, then the record that makes them count."""
        record = _stage_record(stage)
        self.records.append(record)
        try:
            self._stages.mkdir(exist_ok=True)
        except OSError as error:
            raise SecateurError(f"cannot write to {self.path} ({error.strerror})") from None
        with staged(self._stages / f"{stage.name}.npz") as temporary:
            # Not a positional list: np.savez names those arr_0 ... in an order of its own.
            values = {f"{i:06d}": w for i, w in enumerate(stage.model.get_weights())}
            np.savez(temporary, allow_pickle=False, **values)
        write_json_atomically(
            self._stages / f"{stage.name}.json",
            {
                "fingerprint": self.fingerprint,
                "stage": record,
                "promises": [p.to_record() for p in stage.promises],
            },
        )

    def finish(self, record: dict[str, Any]) -> None:
        """Write `run.json`: the Run is complete; what only served to carry it on goes."""
        write_json_atomically(self.path / "run.json", record)
        shutil.rmtree(self._stages, ignore_errors=True)

    def _clear(self) -> None:
        for name in ("run.json", "manifest.json"):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self._stages, ignore_errors=True)


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
    }


def _read(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else None
    return None
