"""One Run: baseline, steps, control, export, measure, record. The unit of work everything shares.

A Run is one directory; docs/decisions/004 says what stands in it and in which order it is written.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import io
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console

from secateur import datasets, reporting, zoo
from secateur.artifact import Artifact, versions, write_atomically, write_manifest
from secateur.compression import Stage, copy_model, run_step, train_control
from secateur.datasets import Data
from secateur.errors import SecateurError
from secateur.exporting import export
from secateur.measurement import accuracy, measure
from secateur.recipe import Recipe
from secateur.run_folder import RunFolder
from secateur.runtimes.keras import KerasSession, load_model
from secateur.training import Progress, compiled_loss, train

FORMAT_VERSION = 1
PARITY_INPUTS = 500
Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """A finished Run: its directory and its record.

    In a notebook it shows as the table of its rows; `run.report("page.html")` writes the page.
    """

    path: Path
    record: dict[str, Any] = field(repr=False)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row for each file measured, as plain data."""
        return reporting.rows([self.record])

    @property
    def headline(self) -> str:
        """The result in one sentence."""
        return reporting.headline([self.record])

    @property
    def model(self) -> Any:
        """The compressed Keras model, loaded from the file of the last step's stage."""
        stage = [s["name"] for s in self.record["stages"] if s["method"] != "control"][-1]
        for file in (self.path / f"{stage}-keras.keras", self.path / f"{stage}-h5.h5"):
            if file.exists():
                return load_model(file)
        raise SecateurError(
            f"{self.path} holds no Keras file of stage {stage!r}; add 'keras' to the recipe's formats"
        )

    def report(self, path: str | Path | None = None) -> Path:
        """Write the HTML page (default: report.html in the Run's directory) and return its path."""
        target = self.path / "report.html" if path is None else Path(path)
        reporting.write_html([self.record], target)
        return target

    def _repr_html_(self) -> str:
        console = Console(record=True, width=110, file=io.StringIO())
        console.print(reporting.rich_table([self.record]))
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def run(
    model: Any = None,
    recipe: str | Path | Recipe = "lab",
    data: Any = None,
    out: str | Path | None = None,
    *,
    seed: int | None = None,
    imports: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
    say: Say | None = None,
    command: str = "",
) -> Run:
    """Carry a model through a recipe and measure every file that comes out.

    model: a built Keras model (left unchanged, taken as trained), a `.keras` / `.h5` file, or the
    name of a built-in one, which is trained first (None: the recipe's). data: whatever
    `load_data` takes (None: the recipe's). out: the Run's directory (None: a new temporary one);
    an unfinished Run found there is carried on, a finished one is returned. imports: modules that
    register custom layers. Raises SecateurError before any training when things do not fit.
    """
    started = time.perf_counter()
    say = say or (lambda text: None)
    recipe = Recipe.load(recipe)
    if seed is not None:
        recipe = dataclasses.replace(recipe, seed=seed)
    loaded = _data(data, recipe)
    source, name = resolve_model(model, recipe, loaded)
    loaded = datasets.fit_to(loaded, source.input_shape[1:], source.output_shape[1:])
    plan = recipe.plan(source)
    folder = RunFolder(
        Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="secateur-")),
        fingerprint=_fingerprint(recipe, source, name, loaded),
        overwrite=overwrite,
    )
    if folder.finished is not None:
        say(f"{folder.path} already holds this finished run (--overwrite computes it again)")
        return Run(folder.path, folder.finished)
    work = _Work(folder, recipe, loaded, tuple(imports), compiled_loss(source), progress, say)
    artifacts = work.carry_out(source, train_first=name in zoo.ZOO)
    record = {
        "format_version": FORMAT_VERSION,
        "kind": "run",
        "name": recipe.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "complete": True,
        "seconds": 0.0,
        "seed": recipe.seed,
        "backend": keras.backend.backend(),
        "fingerprint": folder.fingerprint,
        "recipe": recipe.to_dict(),
        "recipe_toml": recipe.to_toml(),
        "command": command,
        "versions": versions(),
        "machine": machine(),
        "data": loaded.describe(),
        "model": _model_record(source, name),
        "plan": [change.to_record() for change in plan],
        "stages": folder.records,
        "rows": [_row(artifact, loaded, say) for artifact in artifacts],
        "notes": [note for stage in folder.records for note in stage["notes"]],
    }
    record["seconds"] = round(time.perf_counter() - started, 3)
    write_atomically(folder.path / "recipe.toml", recipe.to_toml())
    extra = {k: record[k] for k in ("recipe", "versions", "seed", "fingerprint")}
    write_manifest(folder.path, artifacts, extra)
    folder.finish(record)
    return Run(folder.path, record)


def resolve_model(model: Any, recipe: Recipe, data: Data) -> tuple[Any, str]:
    """The built model and its name; a name from the zoo stands for an untrained one."""
    wanted = model if model is not None else recipe.model
    if wanted is None:
        raise SecateurError(
            "no model: give --model model.keras, or a built-in name: " + ", ".join(zoo.ZOO)
        )
    if not isinstance(wanted, str | Path):
        if not getattr(wanted, "built", False):
            raise SecateurError(f"model {wanted.name!r} is not built; call it once on data first")
        return wanted, wanted.name
    if str(wanted) in zoo.ZOO:
        keras.utils.set_random_seed(recipe.seed)
        shape = tuple(data.describe()["shape"])
        return zoo.build(str(wanted), input_shape=shape, classes=data.classes), str(wanted)
    path = Path(wanted)
    if not path.suffix:
        zoo.build(str(wanted))  # raises, with the nearest built-in name
    if path.suffix == ".tflite":
        raise SecateurError(
            f"{path} is a finished file and cannot be compressed further; "
            "give the Keras model it was made from, or use `secateur measure`"
        )
    return load_model(path, compiled=True), path.stem


@dataclass
class _Work:
    """What the stages of one Run share."""

    folder: RunFolder
    recipe: Recipe
    data: Data
    imports: tuple[str, ...]
    loss: Any
    progress: Progress | None
    say: Say

    def carry_out(self, source: Any, *, train_first: bool) -> list[Artifact]:
        """Baseline, steps, control; returns the verified files in the order of the table."""
        recipe = self.recipe
        formats = recipe.export.formats
        baseline = self._stage(
            "baseline", copy_model(source), lambda model: self._baseline(model, train_first)
        )
        self._introduce(baseline.model, train_first)
        artifacts = self._export(baseline, formats)
        last = baseline
        for number, (name, step) in enumerate(zip(recipe.stage_names(), recipe.steps, strict=True)):
            previous = last

            def act(model: Any, step=step, name=name, number=number, before=previous) -> Stage:
                return run_step(
                    model,
                    step,
                    recipe,
                    self.data,
                    name=name,
                    number=number,
                    promises=before.promises,
                    loss=self.loss,
                    progress=self.progress,
                )

            last = self._stage(name, copy_model(previous.model), act)
        if last is not baseline:
            artifacts += self._export(last, formats)
        if recipe.control and any(recipe.train_of(s).epochs for s in recipe.steps):
            control = self._stage(
                "control",
                copy_model(baseline.model),
                lambda model: train_control(
                    model, recipe, self.data, loss=self.loss, progress=self.progress
                ),
            )
            artifacts += self._export(control, ("keras",))
        return artifacts

    def _stage(self, name: str, model: Any, act: Callable[[Any], Stage]) -> Stage:
        stage = self.folder.restore(name, model)
        if stage is not None:
            self.say(f"{name}: carried over from the interrupted run")
            return stage
        stage = act(model)
        self.folder.keep(stage)
        for note in stage.notes:
            self.say(note)
        return stage

    def _baseline(self, model: Any, train_first: bool) -> Stage:
        history = None
        if train_first:
            history = train(
                model,
                self.data,
                self.recipe.train,
                seed=1000 * self.recipe.seed,
                progress=self.progress,
                label="baseline",
            )
        return Stage(name="baseline", method="train", model=model, history=history)

    def _introduce(self, model: Any, trained_here: bool) -> None:
        """Say how good the baseline is before anything else; refuse a model at chance level."""
        split = self.data.validation or self.data.train
        if split is None or split.y is None or not self.data.classes:
            return
        found = accuracy(KerasSession(model).predict(split.x), split.y)
        if found is None:
            return
        self.say(f"baseline accuracy {100 * found:.2f} % on {len(split):,} validation samples")
        labels = split.y if split.y.ndim == 1 else split.y.argmax(-1)
        chance = float(np.unique(labels, return_counts=True)[1].max() / len(labels))
        if found > chance + 2 * math.sqrt(chance * (1 - chance) / len(labels)):
            return
        if trained_here:
            self.say("that is no better than chance: train longer, or with another learning rate")
            return
        low, high = float(split.x.min()), float(split.x.max())
        raise SecateurError(
            f"the model is at chance level ({100 * found:.1f} % correct, the largest class alone is "
            f"{100 * chance:.1f} %) on inputs from {low:g} to {high:g}; was it trained on scaled "
            "inputs (try --scale 255), or with the labels in another order?"
        )

    def _export(self, stage: Stage, formats: Sequence[str]) -> list[Artifact]:
        split = self.data.validation or self.data.train
        artifacts = export(
            stage.model,
            formats,
            self.folder.path,
            stage=stage.name,
            promises=stage.promises,
            data=None if split is None else split.x[:PARITY_INPUTS],
            imports=self.imports,
        )
        for artifact in artifacts:
            self.say(f"{artifact.path.name}: {artifact.bytes:,} bytes, reloaded and checked")
        return artifacts


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


def _data(data: Any, recipe: Recipe) -> Data:
    source = data if data is not None else recipe.data
    if source is None:
        raise SecateurError(
            "no data: give --data (a name such as digits, or a .npz file); without data "
            "`secateur inspect` and `secateur export` still work"
        )
    return datasets.load(source, seed=recipe.seed)


def _fingerprint(recipe: Recipe, model: Any, name: str, data: Data) -> str:
    digest = hashlib.sha256()
    parts = [recipe.to_dict(), data.describe(), keras.backend.backend(), versions(), name]
    digest.update(json.dumps(parts, sort_keys=True, default=str).encode())
    if name not in zoo.ZOO:  # names that Keras numbers would differ from process to process
        digest.update(json.dumps(model.get_config(), sort_keys=True, default=str).encode())
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


def _model_record(model: Any, name: str) -> dict[str, Any]:
    parameters = sum(math.prod(v.shape) for v in model.weights)
    trainable = sum(math.prod(v.shape) for v in model.trainable_weights)
    return {
        "name": name,
        "parameters": parameters,
        "trainable": trainable,
        "non_trainable": parameters - trainable,
        "macs": KerasSession(model).macs(),
    }


def _row(artifact: Artifact, data: Data, say: Say) -> dict[str, Any]:
    say(f"measuring {artifact.path.name}")
    measured = measure(artifact.path, data).to_record()
    row = f"{artifact.stage}-{artifact.format}"
    measured |= {"path": artifact.path.name, "format": artifact.format}
    return {**measured, "row": row, "stage": artifact.stage, "parity": dict(artifact.parity)}
