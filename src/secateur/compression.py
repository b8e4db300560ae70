"""A model and a recipe become a compressed model with the promises that it keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from secateur.datasets import Data, fit_to, load
from secateur.errors import SecateurError
from secateur.plan import Plan
from secateur.promises import Promise, check, require
from secateur.recipe import Recipe, Step
from secateur.training import History, Progress, compiled_loss, random_states, train
from secateur.weights import WeightTable, weight_table


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


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """A compressed model: an ordinary Keras model, what it promises, and how it came about."""

    model: Any = field(repr=False)
    promises: tuple[Promise, ...] = field(repr=False)
    stages: tuple[Stage, ...]
    plan: Plan = field(repr=False)
    recipe: Recipe = field(repr=False)


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
    before = model.get_weights() if inplace else None
    try:
        current = model if inplace else copy_model(model)
        promises: tuple[Promise, ...] = ()
        stages = []
        for number, (name, step) in enumerate(zip(recipe.stage_names(), recipe.steps, strict=True)):
            stage = run_step(
                current,
                step,
                recipe,
                data,
                name=name,
                number=number,
                promises=promises,
                loss=loss,
                progress=progress,
            )
            promises = stage.promises
            stages.append(stage)
    except BaseException:
        if before is not None:
            model.set_weights(before)
        raise
    return Compressed(
        model=current, promises=promises, stages=tuple(stages), plan=plan, recipe=recipe
    )


def run_step(
    model: Any,
    step: Step,
    recipe: Recipe,
    data: Data | None,
    *,
    name: str,
    number: int,
    promises: tuple[Promise, ...] = (),
    loss: Any = None,
    progress: Progress | None = None,
) -> Stage:
    """Carry out one step on `model` in place, then check every promise made so far."""
    method, settings = step.method, recipe.train_of(step)
    zeros = {p.path: p.value for p in promises if p.kind == "zeros"}
    history, curve, notes = None, (), ()
    masks: Mapping[str, np.ndarray] = {}
    if settings.epochs and data is not None:
        callback = method.callback(seed=recipe.seed, zeros=zeros)
        history = train(
            model,
            data,
            settings,
            seed=step_seed(recipe.seed, number),
            loss=None if settings.loss else loss,
            callbacks=[] if callback is None else [callback],
            progress=progress,
            label=name,
        )
        if callback is not None:
            masks, curve, notes = callback.masks, tuple(callback.curve), tuple(callback.notes)
    else:
        masks = method.apply(model, seed=recipe.seed, zeros=zeros)
    if "zeros" in method.makes:
        promises = _with_zeros(promises, masks, weight_table(model))
    check_promises(model, promises)
    return Stage(
        name=name,
        method=method.kind,
        model=model,
        promises=promises,
        history=history,
        curve=curve,
        notes=notes,
    )


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
    history = _joined(histories) if histories else None
    return Stage(name="control", method="control", model=model, history=history)


def copy_model(model: Any) -> Any:
    """An uncompiled copy with the same names and weights; refuses what cannot be cloned."""
    layers = {type(layer).__name__: type(layer) for layer in model._flatten_layers()}
    custom = {n: c for n, c in layers.items() if not c.__module__.startswith("keras.")}
    try:
        with keras.saving.custom_object_scope(custom):
            copy = type(model).from_config(model.get_config())
        if not copy.built:
            copy.build(model.input_shape)
        copy.set_weights(model.get_weights())
        for mine, theirs in zip(random_states(copy), random_states(model), strict=False):
            mine.assign(theirs)  # Dropout's: not among the weights, and drawn anew by from_config
    except Exception as error:
        raise SecateurError(
            f"model {model.name!r} ({type(model).__name__}) cannot be copied from its config "
            f"({_first_line(error)}); pass inplace=True to compress the model itself"
        ) from error
    return copy


def check_promises(model: Any, promises: Sequence[Promise]) -> None:
    """Check every promise on the live weights; raises SecateurError naming the broken ones."""
    table = weight_table(model)
    require([check(p, table[p.path].read()) for p in promises])


def step_seed(seed: int, number: int) -> int:
    """A training seed of its own for each step, so that a resumed run repeats it exactly."""
    return 1000 * seed + number + 1


def _with_zeros(
    earlier: Sequence[Promise], masks: Mapping[str, np.ndarray], table: WeightTable
) -> tuple[Promise, ...]:
    """Earlier promises and those of the masks that a step held.

    What the masks claim, not what came out of training: had the zeros been lost on the way, a
    promise read back from the weights would agree with the loss. A kept weight that is zero by
    itself belongs to it too, since in floats the zeros are exactly those promised.
    """
    found = {(p.path, p.kind): p for p in earlier}
    for path, keep in masks.items():
        zeros = ~keep | (table[path].read() == 0)
        found[path, "zeros"] = Promise(path, "zeros", zeros, table[path].shape)
    return tuple(found.values())


def _joined(histories: Sequence[History]) -> History:
    names = set.intersection(*(set(h.metrics) for h in histories))
    return History(
        metrics={n: [v for h in histories for v in h.metrics[n]] for n in sorted(names)},
        epochs=sum(h.epochs for h in histories),
        steps=sum(h.steps for h in histories),
        seconds=sum(h.seconds for h in histories),
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
