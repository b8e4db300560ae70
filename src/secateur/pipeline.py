"""One Run: baseline, steps, control, export, measure, record. The unit of work everything shares.

A Run is one directory; docs/decisions/004 says what stands in it and in which order it is written.
"""

from __future__ import annotations

import dataclasses
import datetime
import io
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
from rich.console import Console

from secateur import datasets, reporting, zoo
from secateur.artifact import Artifact, refuse_records, versions, write_atomically, write_manifest
from secateur.compression import (
    Stage,
    copy_model,
    require_early_points,
    run_step,
    snapshot_for,
    specified,
    train_control,
)
from secateur.datasets import Data
from secateur.errors import SecateurError
from secateur.exporting import export
from secateur.file_rows import file_row
from secateur.outputs import Meanings, compiled_loss
from secateur.preflight import ends, introduce, require_packages
from secateur.recipe import Recipe
from secateur.rounding_records import kernel_records, quantization_record
from secateur.run_folder import RunFolder, check_inputs, fingerprint, machine
from secateur.runtimes import one_line
from secateur.runtimes.keras import KerasSession, import_modules, load_model, meanings_of
from secateur.seeding import random_states_kept
from secateur.training import Progress, train
from secateur.widths import Specification

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
        files = {r["format"]: r["path"] for r in self.record["rows"] if r["stage"] == stage}
        for format in ("keras", "h5"):
            if format in files:
                return load_model(self.path / files[format])
        raise SecateurError(
            f"{self.path} holds no Keras file of stage {stage!r}; add 'keras' to the recipe's formats"
        )

    def report(self, path: str | Path | None = None) -> Path:
        """Write the HTML page (default: report.html in the Run's directory) and return its path."""
        target = self.path / "report.html" if path is None else Path(path)
        refuse_records({"report": target}, self.path)
        reporting.write_html([self.record], target)
        return target

    def _repr_html_(self) -> str:
        console = Console(record=True, width=110, file=io.StringIO())
        console.print(reporting.rich_table([self.record]))
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


@random_states_kept()
def run(
    model: Any = None,
    recipe: str | Path | Recipe = "lab",
    data: Any = None,
    out: str | Path | None = None,
    *,
    seed: int | None = None,
    imports: Sequence[str] = (),
    overwrite: bool = False,
    allow_chance: bool = False,
    outputs: str | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
    command: str = "",
) -> Run:
    """Carry a model through a recipe and measure every file that comes out.

    model: a built Keras model (left unchanged, taken as trained), a `.keras` / `.h5` file, or the
    name of a built-in one, which is trained first (None: the recipe's). data: whatever
    `load_data` takes (None: the recipe's). out: the Run's directory (None: a new temporary one);
    an unfinished Run found there is carried on, a finished one is returned. imports: modules that
    register custom layers. allow_chance: go on with a model that is no better than chance. outputs:
    what the model gives, "logits" or "probabilities", where neither it nor its loss says so. Raises
    SecateurError before any training when things do not fit.
    """
    started = time.perf_counter()
    say = say or (lambda text: None)
    import_modules(imports)
    inputs = (model, recipe)
    recipe = Recipe.load(recipe)
    if seed is not None:
        recipe = dataclasses.replace(recipe, seed=seed)
    if outputs is not None:
        recipe = recipe.with_outputs(outputs)
    steps = [getattr(step.method, "format", "keras") for step in recipe.steps]
    if out is not None:
        check_inputs(Path(out), recipe, inputs, overwrite=overwrite)
    require_packages((*recipe.export.formats, *steps))
    loaded = _data(data, recipe)
    source, name, untrained = resolve_model(model, recipe, loaded)
    require_early_points(recipe, trained_before=untrained)
    taken, given = ends(source)
    loaded = datasets.fit_to(loaded, taken, given)
    means = meanings_of(source, recipe.train.loss, recipe.train.outputs)
    meaning = next(iter(means.values()))
    plan = recipe.plan(source)
    folder = RunFolder(
        Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="secateur-")),
        fingerprint=fingerprint(recipe, loaded, source, name, untrained=untrained),
        overwrite=overwrite,
    )
    if folder.finished is None:
        if not untrained:
            introduce(source, loaded, say, may_be_chance=allow_chance, meaning=meaning)
        first = _copy(source)
        with folder.begin(name=recipe.name, seed=recipe.seed):
            if folder.finished is None:
                loss = compiled_loss(source)
                work = _Work(
                    folder, recipe, loaded, tuple(imports), loss, progress, say, outputs=means
                )
                about = {
                    "recipe_toml": recipe.as_text(),
                    "command": command,
                    "model": _model_record(source, name),
                    "plan": [change.to_record() for change in plan],
                }
                return Run(folder.path, work.record(first, about, started, train_first=untrained))
    say(f"{folder.path} already holds this finished run (--overwrite computes it again)")
    return Run(folder.path, folder.finished)


def resolve_model(model: Any, recipe: Recipe, data: Data) -> tuple[Any, str, bool]:
    """The built model, its name, and whether it is untrained: a built-in one, given by its name."""
    wanted = model if model is not None else recipe.model
    if wanted is None:
        raise SecateurError(
            "no model: give --model model.keras, or a built-in name: " + ", ".join(zoo.ZOO)
        )
    if not isinstance(wanted, str | Path):
        return wanted, getattr(wanted, "name", type(wanted).__name__), False
    if isinstance(wanted, str) and wanted in zoo.ZOO:
        shape = tuple(data.describe()["shape"])
        with random_states_kept(recipe.seed):
            return zoo.build(wanted, input_shape=shape, classes=data.classes), wanted, True
    path = Path(wanted)
    if not path.suffix and path.name not in zoo.ZOO:
        zoo.build(str(wanted))  # raises, with the nearest built-in name
    if path.suffix == ".tflite":
        raise SecateurError(
            f"{path} is a finished file and cannot be compressed further; "
            "give the Keras model it was made from, or use `secateur measure`"
        )
    return load_model(path, compiled=True), path.stem, False


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
    last: Stage | None = None
    outputs: Meanings = field(default_factory=dict)

    def record(
        self, first: Any, about: dict[str, Any], started: float, *, train_first: bool
    ) -> dict[str, Any]:
        """Carry it out, measure, and write the record that is returned; `about`: what is known before."""
        folder, recipe, text = self.folder, self.recipe, about["recipe_toml"]
        try:
            artifacts = self.carry_out(first, train_first=train_first)
        except SecateurError:
            folder.give_up()
            raise
        for note in self.data.notes:
            self.say(f"{self.data.name}: {note}")
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
            "recipe": recipe.to_record(),
            "versions": versions(),
            "machine": machine(),
            "data": self.data.describe(),
            **about,
            "stages": folder.records,
            "rows": [_row(artifact, self.data, self.say) for artifact in artifacts],
            "quantization": self.quantization(),
            "notes": [note for stage in folder.records for note in stage["notes"]],
        }
        record["seconds"] = round(time.perf_counter() - started, 3)
        write_atomically(folder.path / "recipe.toml", text)
        extra = {k: record[k] for k in ("recipe", "versions", "seed", "fingerprint")}
        write_manifest(folder.path, artifacts, extra)
        return folder.finish(record)

    def carry_out(self, first: Any, *, train_first: bool) -> list[Artifact]:
        """Baseline, steps, control; returns the verified files in the order of the table."""
        recipe = self.recipe
        formats = recipe.export.formats
        baseline = self._stage("baseline", first, lambda model: self._baseline(model, train_first))
        if train_first:
            meaning = next(iter(self.outputs.values()), None)
            introduce(baseline.model, self.data, self.say, may_be_chance=True, meaning=meaning)
        artifacts = self._export(baseline, formats)
        last = baseline
        for number, name in enumerate(recipe.stage_names()):
            previous = last

            def act(model: Any, name=name, number=number, before=previous) -> Stage:
                return run_step(
                    model,
                    recipe,
                    number,
                    self.data,
                    name=name,
                    before=before,
                    loss=self.loss,
                    progress=self.progress,
                )

            last = self._stage(name, copy_model(previous.model), act)
        self.last = last
        if last is not baseline:
            artifacts += self._export_last(last)
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

    def quantization(self) -> dict[str, Any] | None:
        """What the quantize steps left, for the record; None without one."""
        if self.last is None:
            return None
        found, split = specified(self.recipe, [self.last]), self.data.validation or self.data.train
        x = None if split is None else split.x
        return quantization_record(self.last.model, found, self.last.name, x)

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
        history, early = None, snapshot_for(self.recipe, 0)
        if train_first:
            history = train(
                model,
                self.data,
                self.recipe.train,
                seed=1000 * self.recipe.seed,
                callbacks=[] if early is None else [early],
                progress=self.progress,
                label="baseline",
            )
        return Stage(name="baseline", method="train", model=model, history=history, early=early)

    def _export_last(self, stage: Stage) -> list[Artifact]:
        """The last stage in the recipe's formats, or in the one that its quantize steps name."""
        found = specified(self.recipe, [stage])
        formats = self.recipe.export.formats
        if found is not None:
            formats = found.formats(formats)
        return self._export(stage, formats, found)

    def _export(
        self, stage: Stage, formats: Sequence[str], specification: Specification | None = None
    ) -> list[Artifact]:
        split, calibration = self.data.validation or self.data.train, self.data.calibration
        artifacts = export(
            stage.model,
            formats,
            self.folder.path,
            stage=stage.name,
            promises=stage.promises,
            data=None if split is None else split.x[:PARITY_INPUTS],
            imports=self.imports,
            calibration=None if calibration is None else calibration.x,
            specification=specification,
            outputs=self.outputs,
            **self.recipe.export.settings(),
        )
        self.folder.note(artifacts)
        for artifact in artifacts:
            self.say(f"{artifact.path.name}: {artifact.bytes:,} bytes, reloaded and checked")
            for note in artifact.notes:
                self.say(f"{artifact.path.name}: {note}")
        return artifacts


def _copy(model: Any) -> Any:
    try:
        return copy_model(model)
    except SecateurError as error:
        cause = one_line(error.__cause__ or error)
        raise SecateurError(
            f"model {model.name!r} ({type(model).__name__}) cannot be copied from its config "
            f"({cause}), and run always works on a copy: complete get_config of its own layers, "
            "or use compress(model, recipe, data, inplace=True)"
        ) from error


def _data(data: Any, recipe: Recipe) -> Data:
    source = data if data is not None else recipe.data
    if source is None:
        raise SecateurError(
            "no data: give --data (a name such as digits, a .npz file or a folder of images); without "
            "data `secateur inspect` and `secateur export` still work"
        )
    return datasets.load(source, seed=recipe.seed)


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
    return {**file_row(artifact, data), "kernels": kernel_records(artifact)}
