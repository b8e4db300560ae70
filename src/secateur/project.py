"""Zeros that stay zero while an optimizer trains: the one mechanism behind every pruning method.

A `Projection` hooks the *instance* of the innermost optimizer for the length of one training:
after each update the masked weights are written `where(keep, weight, +0.0)`. The optimizer's
class, its config and the file it is saved in stay what they were. docs/decisions/001 says why
masks live here and what else was tried.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from secateur.arrays.masks import apply_mask
from secateur.errors import SecateurError
from secateur.plan import promised_zeros
from secateur.promises import Promise
from secateur.weights import Weight, WeightTable, weight_table

MASK = "secateur_mask"  # the name of every mask variable


class Projection:
    """Holds a boolean mask over chosen weights after every update of one optimizer.

    weights: the rows to hold. Until `hold` is called for a path nothing is masked there, so a
    kernel that starts at zero trains normally. Without an optimizer the zeros are written by
    `write_zeros`, for whoever calls it after each update.
    """

    def __init__(self, optimizer: Any, weights: Mapping[str, Weight]):
        self._outer = optimizer
        self._optimizer = innermost(optimizer)
        self.weights = dict(weights)
        self._masks = {
            path: keras.Variable(np.ones(w.shape, bool), dtype="bool", trainable=False, name=MASK)
            for path, w in self.weights.items()
        }
        self._carried: list[Any] = []
        self._held: set[str] = set()

    def attach(self, trainable_variables: list[Any]) -> None:
        """Start holding. Training functions traced before this call do not know of it."""
        release(self._outer)
        optimizer = self._optimizer
        if not self._outer.built:
            self._outer.build(trainable_variables)
        # What is not trained does not move: its zeros need no writing.
        trained = {id(v) for v in trainable_variables}
        masks = {p: m for p, m in self._masks.items() if id(self.weights[p].variable) in trained}
        pairs = [(self.weights[path].variable, mask) for path, mask in masks.items()]
        # `apply` averages the weights before they are projected: the averages (EMA) would keep a
        # trace of every update, and come back dense at the end of `fit` or when swapped in.
        averages = [(self._average_of(variable), mask) for variable, mask in pairs]
        pairs += [(average, mask) for average, mask in averages if average is not None]
        apply, finalize = type(optimizer).apply, type(optimizer).finalize_variable_values

        def project() -> None:
            for variable, mask in pairs:
                variable.assign(masked(variable.value, mask.value))

        def apply_and_project(grads: Any, trainable_variables: Any = None) -> None:
            apply(optimizer, grads, trainable_variables)
            project()

        def finalize_and_project(var_list: Any) -> None:
            finalize(optimizer, var_list)  # with EMA: overwrites the weights with averages
            if optimizer.use_ema and keras.backend.backend() == "jax":
                # Keras 3.15 leaves weight and average one buffer; the next step donates it twice.
                for variable in var_list:
                    variable.assign(ops.copy(variable.value))
            project()

        optimizer.apply = apply_and_project
        optimizer.finalize_variable_values = finalize_and_project
        if keras.backend.backend() == "jax":
            # JAX traces a free variable as a constant: a mask changed later would silently not
            # be seen. What the optimizer owns travels through the compiled step.
            self._carry_masks(list(masks.values()))
        optimizer._secateur_release = self._release

    def hold(self, path: str, keep: np.ndarray, value: np.ndarray) -> None:
        """Zero the weight where `keep` is False, from now on; `value` is what it holds now."""
        variable = self.weights[path].variable
        self._masks[path].assign(keep)
        self._held.add(path)
        variable.assign(apply_mask(value, keep))

    def write_zeros(self) -> None:
        """Zero what is held, now, in the model's weights."""
        for path in self._held:
            variable = self.weights[path].variable
            variable.assign(masked(variable.value, self._masks[path].value))

    def masks(self) -> dict[str, np.ndarray]:
        """Path -> bool array, True = kept, of every weight that is held by now."""
        return {path: ops.convert_to_numpy(self._masks[path].value) for path in sorted(self._held)}

    def _average_of(self, variable: Any) -> Any:
        averages = getattr(self._optimizer, "_model_variables_moving_average", None)
        if not averages:
            return None
        known = self._optimizer._trainable_variables
        return next((a for v, a in zip(known, averages, strict=True) if v is variable), None)

    def _carry_masks(self, masks: list[Any]) -> None:
        """Put the masks among the optimizer's variables, but never into a file."""
        self._carried = masks
        variables = self._optimizer._variables
        variables.extend(masks)
        for owner in {id(o): o for o in (self._outer, self._optimizer)}.values():
            for name in ("save_own_variables", "load_own_variables"):
                setattr(owner, name, _without(variables, masks, getattr(type(owner), name), owner))

    def _release(self) -> None:
        for owner in (self._outer, self._optimizer):
            for name in _HOOKS:
                owner.__dict__.pop(name, None)
        _remove(self._optimizer._variables, self._carried)


def masked(value: Any, keep: Any) -> Any:
    """`value` with +0.0 where `keep` is False (a product would leave -0.0: 14 % of a gzipped file)."""
    return ops.where(keep, value, ops.zeros((), value.dtype))


_HOOKS = (
    "apply",
    "finalize_variable_values",
    "save_own_variables",
    "load_own_variables",
    "_secateur_release",
)


def innermost(optimizer: Any) -> Any:
    """The optimizer that writes the weights (LossScaleOptimizer only passes gradients on)."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def release(optimizer: Any) -> None:
    """Undo whatever projection is attached to an optimizer, also one left by an interruption."""
    undo = getattr(innermost(optimizer), "_secateur_release", None)
    if undo is not None:
        undo()


def _without(variables: list, masks: list, method: Callable, owner: Any) -> Callable:
    @contextlib.contextmanager
    def hidden() -> Iterator[None]:
        _remove(variables, masks)
        try:
            yield
        finally:
            variables.extend(masks)

    def wrapped(store: Any) -> Any:
        with hidden():
            return method(owner, store)

    return wrapped


def _remove(variables: list, unwanted: list) -> None:
    ids = {id(v) for v in unwanted}
    for i in reversed(range(len(variables)) if ids else ()):
        if id(variables[i]) in ids:
            del variables[i]


class ProjectionCallback(keras.callbacks.Callback):
    """Drives a `Projection` from inside `fit`; a method subclasses it with its own masks.

    Masks change at the *beginning* of a step: the mask in force during step t (counted from 0)
    is the one its schedule names for t, whatever the order of callbacks, and Keras's
    asynchronous dispatch stays on. The position is epoch x steps + batch, so a resumed
    training needs no counter.
    """

    def __init__(self, zeros: Mapping[str, np.ndarray] | None = None) -> None:
        """zeros: path -> bool array, True where an earlier step promised a zero; held throughout."""
        super().__init__()
        self.projection: Projection | None = None
        self.masks: dict[str, np.ndarray] = {}
        self.curve: list[tuple[int, float]] = []
        self.notes: list[str] = []
        self.zeros = dict(zeros or {})
        self._epoch = 0
        self._batches_seen = 0
        self._loop: tuple[int, int] | None = None  # steps in all and of one epoch, outside of `fit`

    def weights_to_hold(self, table: WeightTable) -> Mapping[str, Weight]:
        """Path -> row of the weights this training holds; called once, before the first step."""
        raise NotImplementedError

    def masks_at(self, step: int, last: int, projection: Projection) -> None:
        """Call `projection.hold` where a mask changes in steps `step` to `last`. Must be quick.

        They differ where Keras runs several steps in one execution (`steps_per_execution`): the
        masks can only change before it, so they are those of its last step.
        """
        raise NotImplementedError

    def note(self, text: str) -> None:
        """Tell the user something about this training."""
        self.notes.append(text)
        warnings.warn(text, UserWarning, stacklevel=3)

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of one epoch, None when the data set does not know its length."""
        return self._loop[1] if self._loop else (self.params or {}).get("steps")

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole training, None when the data set does not know its length."""
        if self._loop:
            return self._loop[0]
        steps = self.steps_per_epoch
        return None if steps is None else steps * (self.params or {})["epochs"]

    def begin(
        self, model: Any, optimizer: Any = None, loop: tuple[int, int] | None = None
    ) -> Projection:
        """Choose what to hold, and hold what was promised; `loop`: its steps in all, and an epoch's."""
        self._loop = loop
        self.masks, self.curve, self.notes, self._batches_seen = {}, [], [], 0
        table = weight_table(model)
        weights = {**self.weights_to_hold(table), **{path: table[path] for path in self.zeros}}
        self.projection = Projection(optimizer, weights)
        if optimizer is not None:
            self.projection.attach(model.trainable_variables)
        for path, zeros in self.zeros.items():
            self.projection.hold(path, ~zeros, weights[path].read())
        return self.projection

    @property
    def promises(self) -> tuple[Promise, ...]:
        """What a finished training claims of the model's weights: hand them to `export`."""
        return promised_zeros(self.masks, weight_table(self.model))

    def end(self) -> None:
        """Keep the masks for whoever asks, and say so when they were overrun."""
        if self.projection is None:
            return
        self.masks = self.projection.masks()
        lost = sum(
            int(np.count_nonzero(self.projection.weights[path].read()[~keep]))
            for path, keep in self.masks.items()
        )
        if lost:
            self.note(
                f"{lost:,} pruned weights are not zero at the end of training: another callback "
                "put other weights into the model (EarlyStopping with restore_best_weights?); "
                "put the pruning callback last, or prune the restored model again"
            )

    def on_train_begin(self, logs: Any = None) -> None:
        """Attach, and have the training step traced anew so that it knows of the masks."""
        model = self.model
        self.begin(model, model.optimizer)
        model.make_train_function(force=True)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Remember the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Let the method change masks before this step."""
        steps = self.steps_per_epoch
        together = int(self._model.steps_per_execution)
        if steps is None:
            position, last = self._batches_seen, self._batches_seen + together - 1
        else:
            position = self._epoch * steps + batch
            last = min(position + together, (self._epoch + 1) * steps) - 1
        self._batches_seen += together
        if self.projection is not None:
            self.masks_at(position, last, self.projection)

    def on_train_end(self, logs: Any = None) -> None:
        """Detach: the zeros stay, the optimizer is as it was."""
        model = self.model
        self.end()
        release(model.optimizer)
        # The traced step still holds masks; the next fit, test or save starts clean.
        model.train_function = None


class TrainingLoop:
    """Pruning in a training loop of one's own: `step()` after each update of the weights.

    model: a built model. callback: of a method, as for `fit`. steps: updates in all;
    steps_per_epoch: needed for schedules in epochs. Works with any optimizer, Keras's or not: the
    zeros are written into the model's weights by `step`, and the masks of the next step chosen. In
    a stateless JAX loop `step` takes the trainable values and returns them. `first_step`: where a
    resumed loop goes on.

    >>> from secateur.methods.prune import Prune
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
    >>> with TrainingLoop(model, Prune(sparsity=0.8).callback(), steps=10) as loop:
    ...     for _ in range(10):
    ...         _ = model.layers[0].kernel.assign_add(np.ones((4, 5)))  # an optimizer's update
    ...         loop.step()
    >>> int((model.layers[0].get_weights()[0] == 0).sum())
    16
    """

    def __init__(
        self,
        model: Any,
        callback: ProjectionCallback,
        *,
        steps: int,
        steps_per_epoch: int | None = None,
        first_step: int = 0,
    ):
        if not 0 <= first_step < steps:
            raise SecateurError(
                f"a loop of {steps!r} steps that begins at step {first_step!r} received, expected "
                "0 <= first_step < steps; give the updates in all, those done before included"
            )
        self._model, self._callback, self._steps = model, callback, steps
        self._position = first_step
        callback.set_model(model)
        self._projection = callback.begin(model, loop=(steps, steps_per_epoch or steps))
        self._choose()

    def __enter__(self) -> TrainingLoop:
        return self

    def __exit__(self, kind: type | None, *rest: Any) -> None:
        if kind is None:
            self._callback.end()

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """Path -> bool array, True = kept, of every weight held by now."""
        return self._projection.masks()

    def step(self, values: Any = None) -> Any:
        """Write the zeros after an update, then choose the masks of the next step.

        values: the trainable values of a stateless JAX loop, in the order of
        `model.trainable_variables`; they are returned with their zeros. Else the model's own.
        """
        trainable = self._model.trainable_variables
        if values is not None and len(values) != len(trainable):
            raise SecateurError(
                f"{len(values)} values received by step(), expected {len(trainable)}, those of "
                "model.trainable_variables in their order"
            )
        if _traced():
            raise SecateurError(
                "step() was called inside a compiled function (tf.function, jax.jit), which would run "
                "it once and never again; call it after that function, on what it returns"
            )
        for variable, value in zip(trainable, values or (), strict=values is not None):
            variable.assign(value)
        self._projection.write_zeros()
        self._position += 1
        if self._position < self._steps:
            self._choose()
        return None if values is None else [variable.value for variable in trainable]

    def _choose(self) -> None:
        self._callback.masks_at(self._position, self._position, self._projection)


def _traced() -> bool:
    """Whether this runs while a backend compiles: what is written now is written only once."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.inside_function()
    if keras.backend.backend() == "jax":
        import jax.core

        return isinstance(ops.zeros(()), jax.core.Tracer)
    return False
