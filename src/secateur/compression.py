"""A model and a recipe become a compressed model with the promises that it keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from secateur.arrays.schedules import Rewind
from secateur.capture import batches_of
from secateur.copying import copy_model
from secateur.datasets import Data, fit_to, load
from secateur.errors import SecateurError
from secateur.methods.keep_zeros import KeepZeros
from secateur.outputs import compiled_loss
from secateur.plan import Plan, promised_zeros
from secateur.promises import Promise, check, require
from secateur.recipe import Recipe
from secateur.seeding import random_states_kept
from secateur.training import (
    History,
    Progress,
    Snapshot,
    Train,
    infer_loss,
    reestimate_batchnorm,
    train,
)
from secateur.weights import weight_table
from secateur.widths import Specification, promised


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one step left behind: the model, its promises, how it was trained."""

    name: str
    method: str
    model: Any = field(repr=False)
    promises: tuple[Promise, ...] = field(default=(), repr=False)
    history: History | None = None
    curve: tuple[tuple[int, float], ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict, repr=False)
    early: Snapshot | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """A compressed model: an ordinary Keras model, what it promises, and how it came about.

    specification: what quantize steps leave for `export`, which takes it as `specification=`.
    """

    model: Any = field(repr=False)
    promises: tuple[Promise, ...] = field(repr=False)
    stages: tuple[Stage, ...]
    plan: Plan = field(repr=False)
    recipe: Recipe = field(repr=False)
    specification: Specification | None = field(default=None, repr=False)


@random_states_kept()
def compress(
    model: Any,
    recipe: Recipe,
    data: Any = None,
    *,
    inplace: bool = False,
    progress: Progress | None = None,
) -> Compressed:
    """Carry out a recipe's steps on a copy of `model` (or on the model itself, `inplace=True`).

    data: whatever `load_data` takes, needed where a step trains; without data every step acts at
    once on the weights. The model that was passed in is unchanged when anything fails.

    >>> import keras
    >>> from secateur.methods.prune import Prune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, name="d")])
    >>> small = compress(model, Recipe(steps=[Prune(sparsity=0.5)]))
    >>> [p.describe() for p in small.promises]
    ['zeros at 10 of 20 weights of d/kernel']
    """
    plan = recipe.plan(model)
    if data is not None:
        data = load(data, seed=recipe.seed)
        if getattr(model, "inputs", None) and len(model.inputs) == len(model.outputs) == 1:
            data = fit_to(data, model.input_shape[1:], model.output_shape[1:])
    loss = compiled_loss(model)
    require_early_points(recipe, trained_before=False)
    before = model.get_weights() if inplace else None
    try:
        current = model if inplace else copy_model(model)
        stages: list[Stage] = []
        for number, name in enumerate(recipe.stage_names()):
            stages.append(
                run_step(
                    current,
                    recipe,
                    number,
                    data,
                    name=name,
                    before=stages[-1] if stages else None,
                    loss=loss,
                    progress=progress,
                )
            )
        promises = stages[-1].promises if stages else ()
    except BaseException:
        if before is not None:
            model.set_weights(before)
        raise
    return Compressed(
        model=current,
        promises=promises,
        stages=tuple(stages),
        plan=plan,
        recipe=recipe,
        specification=specified(recipe, stages),
    )


def run_step(
    model: Any,
    recipe: Recipe,
    number: int,
    data: Data | None,
    *,
    name: str,
    before: Stage | None = None,
    loss: Any = None,
    progress: Progress | None = None,
) -> Stage:
    """Carry out step `number` of a recipe on `model` in place, then check every promise so far.

    before: the stage it starts from. BatchNorm statistics are taken anew where weights before
    them changed.
    """
    step = recipe.steps[number]
    method, settings = step.method, recipe.train_of(step)
    promises = () if before is None else before.promises
    zeros = {p.path: p.value for p in promises if p.kind == "zeros"}
    samples = _samples(method, data)
    if settings.epochs and data is not None:
        work = _Training(
            model=model,
            data=data,
            settings=settings,
            seed=step_seed(recipe.seed, number),
            loss=None if settings.loss else loss,
            progress=progress,
            label=name,
        )
        early = snapshot_for(recipe, number + 1)
        if getattr(method, "rewind", None):
            start = None if before is None else before.early
            masks, history, curve = _rounds(method, work, recipe.seed, zeros, start, samples)
            notes: tuple[str, ...] = ()
            callback = None
        else:
            callback = _callback(method, recipe, number, model, zeros, samples)
            history = work([callback], early)
            masks, curve, notes = {}, (), ()
            if callback is not None:
                masks, curve, notes = callback.masks, tuple(callback.curve), tuple(callback.notes)
    else:
        history, early, curve, notes, callback = None, None, (), (), None
        masks = method.apply(
            model,
            seed=recipe.seed,
            zeros=zeros,
            data=samples,
            loss=_loss_for(model, loss, settings, samples),
        )
    if "zeros" in method.makes:
        promises = promised_zeros(masks, weight_table(model), promises)
    if "bits" in method.makes:
        promises = _with_bits(promises, recipe, number, model)
    ranges = getattr(callback, "ranges", None)
    if getattr(method, "trains", True) and ranges is None:
        settle_batchnorm(model, recipe, settings, data)
    check_promises(model, promises)
    return Stage(
        name=name,
        method=method.kind,
        model=model,
        promises=promises,
        history=history,
        curve=curve,
        notes=notes,
        ranges=ranges or (before.ranges if before is not None else {}),
        early=early,
    )


def specified(recipe: Recipe, stages: Sequence[Stage]) -> Specification | None:
    """What export shall do with the last stage: widths of the quantize steps, ranges of a training."""
    if not stages:
        return None
    found = recipe.specification(weight_table(stages[-1].model))
    return None if found is None else dataclasses.replace(found, ranges=stages[-1].ranges)


def _callback(
    method: Any,
    recipe: Recipe,
    number: int,
    model: Any,
    zeros: Mapping[str, np.ndarray],
    samples: Any,
) -> Any:
    """A step's callback; a quantization-aware one trains through the widths of all steps so far."""
    settings: dict[str, Any] = {"seed": recipe.seed, "zeros": zeros, "data": samples}
    if getattr(method, "aware", False):
        settings["specification"] = recipe.specification(weight_table(model), number + 1)
    return method.callback(**settings)


def _with_bits(
    promises: Sequence[Promise], recipe: Recipe, number: int, model: Any
) -> tuple[Promise, ...]:
    """Promises of earlier steps, and of the bits that the steps up to `number` say together."""
    table = weight_table(model)
    found = recipe.specification(table, number + 1)
    others = tuple(promise for promise in promises if promise.kind != "bits")
    return others if found is None else (*others, *promised(found.widths, table))


@dataclass(frozen=True, kw_only=True)
class _Training:
    """One step's training, to be done once or in rounds."""

    model: Any
    data: Data
    settings: Train
    seed: int
    loss: Any
    progress: Progress | None
    label: str

    def __call__(
        self, callbacks: Sequence[Any], early: Snapshot | None, start: Snapshot | None = None
    ) -> History:
        return train(
            self.model,
            self.data,
            self.settings,
            seed=self.seed,
            loss=self.loss,
            callbacks=[c for c in (*callbacks, early) if c is not None],
            start=start,
            progress=self.progress,
            label=self.label,
        )


def _rounds(
    method: Any,
    work: _Training,
    seed: int,
    zeros: Mapping[str, np.ndarray],
    early: Snapshot | None,
    samples: Any,
) -> tuple[dict[str, np.ndarray], History, tuple[tuple[int, float], ...]]:
    """Prune, rewind, train; each round a little sparser: masks, history, curve of (step, sparsity)."""
    if early is None:
        raise SecateurError("no early point to rewind to")
    rewind: Rewind = method.rewind
    histories: list[History] = []
    curve = []
    masks: dict[str, np.ndarray] = {}
    for sparsity in rewind.sparsities(method.final):
        held = {**zeros, **{path: ~keep for path, keep in masks.items()}}
        once = dataclasses.replace(method, sparsity=sparsity, rewind=None)
        loss = _loss_for(work.model, work.loss, work.settings, samples)
        masks = once.apply(work.model, seed=seed, zeros=held, data=samples, loss=loss)
        curve.append((sum(h.steps for h in histories), sparsity))
        held = {**zeros, **{path: ~keep for path, keep in masks.items()}}
        histories.append(work([KeepZeros().callback(zeros=held)], None, early))
    return masks, _joined(histories), tuple(curve)


def snapshot_for(recipe: Recipe, number: int) -> Snapshot | None:
    """What the training before step `number` must remember, when that step rewinds."""
    rewind = (
        getattr(recipe.steps[number].method, "rewind", None) if number < len(recipe.steps) else None
    )
    return None if rewind is None else Snapshot(rewind.to)


def require_early_points(recipe: Recipe, *, trained_before: bool) -> None:
    """Refuse a step that rewinds where no training before it could remember an early point."""
    for number, step in enumerate(recipe.steps):
        rewind = getattr(step.method, "rewind", None)
        if rewind is None:
            continue
        earlier = recipe.train_of(recipe.steps[number - 1]) if number else recipe.train
        if not number and not trained_before:
            raise SecateurError(
                f"step {number + 1} ({step.method.kind}) rewinds to epoch {rewind.to:g} of the training "
                "before it, and there is none: put a fine-tune step, the dense training, before it, or "
                "run a built-in model, whose training belongs to the run"
            )
        if rewind.to >= min(earlier.epochs, recipe.train_of(step).epochs):
            raise SecateurError(
                f"step {number + 1} ({step.method.kind}) rewinds to epoch {rewind.to:g}, but the "
                f"training before it has {earlier.epochs} and its own {recipe.train_of(step).epochs}; "
                "rewind to an earlier point, or train longer"
            )


def settle_batchnorm(model: Any, recipe: Recipe, settings: Train, data: Data | None) -> None:
    """Take BatchNorm statistics anew behind the first weight that the recipe changes."""
    if settings.batchnorm != "re-estimate" or data is None or data.train is None:
        return
    pruned = {
        path
        for step in recipe.steps
        if "zeros" in step.method.makes
        for path in step.method.plan(weight_table(model)).changed
    }
    first = next((w.path for w in weight_table(model) if w.path in pruned), None)
    if first is not None:
        reestimate_batchnorm(model, data.train.x, after=first)


def _samples(method: Any, data: Data | None) -> Any:
    """Training batches for methods that look at gradients or activations."""
    if data is None or data.train is None or not getattr(method, "needs_data", False):
        return None
    return batches_of(data.train.x, data.train.y)


def _loss_for(model: Any, loss: Any, settings: Train, samples: Any) -> Any:
    """The loss of a step that acts without training: named, compiled, else inferred."""
    if settings.loss or loss is not None or not samples or samples[0][1] is None:
        return settings.loss or loss
    return infer_loss(model, *samples[0], meaning=settings.outputs)


def train_control(
    model: Any,
    recipe: Recipe,
    data: Data,
    *,
    loss: Any = None,
    progress: Progress | None = None,
) -> Stage:
    """Train the dense model in place exactly as long as the steps did, with nothing pruned.

    Same optimizer, batches and seeds: the only difference is the method.
    """
    histories = []
    for number, step in enumerate(recipe.steps):
        settings = recipe.train_of(step)
        if settings.epochs:
            settings = dataclasses.replace(settings, epochs=recipe.epochs_of(step))
            histories.append(
                train(
                    model,
                    data,
                    settings,
                    seed=step_seed(recipe.seed, number),
                    loss=None if settings.loss else loss,
                    progress=progress,
                    label="control",
                )
            )
            settle_batchnorm(model, recipe, settings, data)
    history = _joined(histories) if histories else None
    return Stage(name="control", method="control", model=model, history=history)


def check_promises(model: Any, promises: Sequence[Promise]) -> None:
    """Check every promise on the live weights; raises SecateurError naming the broken ones."""
    table = weight_table(model)
    require([check(p, table[p.path].read()) for p in promises])


def step_seed(seed: int, number: int) -> int:
    """A training seed of its own for each step, so that a resumed run repeats it exactly."""
    return 1000 * seed + number + 1


def _joined(histories: Sequence[History]) -> History:
    names = set.intersection(*(set(h.metrics) for h in histories))
    return History(
        metrics={n: [v for h in histories for v in h.metrics[n]] for n in sorted(names)},
        epochs=sum(h.epochs for h in histories),
        steps=sum(h.steps for h in histories),
        seconds=sum(h.seconds for h in histories),
    )
