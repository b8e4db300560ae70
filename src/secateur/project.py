"""Zeros that stay zero while an optimizer trains: the one mechanism behind every pruning method.

A `Projection` is a set of weights and their masks; after each training step the masked weights are
written `where(keep, weight, +0.0)`, within the compiled step (`secateur.hooks`). Model and optimizer
stay what they were. docs/decisions/001 says why masks live here and what else was tried.
"""

from __future__ import annotations

import contextlib
import glob
import io
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
from keras import ops

from secateur.arrays.masks import apply_mask
from secateur.errors import SecateurError
from secateur.hooks import Hooks, hooks_of, masked
from secateur.plan import promised_zeros
from secateur.promises import Promise
from secateur.weights import Weight, WeightTable, weight_table

MASK = "secateur_mask"  # the name of every mask variable


class Projection:
    """Boolean masks over chosen weights, which hold after every step of a training.

    weights: the rows to hold. Until `hold` is called for a path nothing is masked there, so a
    kernel that starts at zero trains normally. Outside of `fit` the zeros are written by
    `write_zeros`, for whoever calls it after each update.
    """

    def __init__(self, weights: Mapping[str, Weight]):
        self.weights = dict(weights)
        self._masks = {
            path: keras.Variable(np.ones(w.shape, bool), dtype="bool", trainable=False, name=MASK)
            for path, w in self.weights.items()
        }
        self._kept: dict[str, np.ndarray] = {}

    def hold(self, path: str, keep: np.ndarray, value: np.ndarray) -> None:
        """Zero the weight where `keep` is False, from now on; `value` is what it holds now."""
        self._masks[path].assign(keep)
        self._kept[path] = np.array(keep, bool)
        self.weights[path].variable.assign(apply_mask(value, keep))

    def pairs(self) -> Iterator[tuple[Any, Any]]:
        """(variable, its mask) of every weight, held by now or later."""
        for path, weight in self.weights.items():
            yield weight.variable, self._masks[path]

    def write_zeros(self) -> None:
        """Zero what is held, now, in the model's weights."""
        for path in self._kept:
            variable = self.weights[path].variable
            variable.assign(masked(variable.value, self._masks[path].value))

    def lost(self) -> int:
        """How many of the weights that are held at zero are not zero."""
        return sum(
            int(np.count_nonzero(np.where(keep, 0, self.weights[path].read())))
            for path, keep in self._kept.items()
        )

    def masks(self) -> dict[str, np.ndarray]:
        """Path -> bool array, True = kept, of every weight that is held by now."""
        return {path: keep.copy() for path, keep in sorted(self._kept.items())}


def innermost(optimizer: Any) -> Any:
    """The optimizer that writes the weights (LossScaleOptimizer only passes gradients on)."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


class ProjectionCallback(keras.callbacks.Callback):
    """Drives a `Projection` from inside `fit`; a method subclasses it with its own masks.

    Any number of them stand in one `fit`, in any order and anywhere among other callbacks. first:
    chooses its masks before those that are not. substitution: what replaces the forward pass.

    Masks change at the *beginning* of a step: the mask in force during step t (counted from 0)
    is the one its schedule names for t, whatever the order of callbacks, and Keras's
    asynchronous dispatch stays on. The position is epoch x steps + batch, so a resumed
    training needs no counter.
    """

    first = False
    substitution: Any = None

    def __init__(self, zeros: Mapping[str, np.ndarray] | None = None) -> None:
        """zeros: path -> bool array, True where an earlier step promised a zero; held throughout."""
        super().__init__()
        self.projection: Projection | None = None
        self.masks: dict[str, np.ndarray] = {}
        self.curve: list[tuple[int, float]] = []
        self.notes: list[str] = []
        self.zeros = dict(zeros or {})
        self._hooks: Hooks | None = None
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

    def begin(self, model: Any, loop: tuple[int, int] | None = None) -> Projection:
        """Choose what to hold, and hold what was promised; `loop`: its steps in all, and an epoch's."""
        self._loop = loop
        self.masks, self.curve, self.notes, self._batches_seen = {}, [], [], 0
        table = weight_table(model)
        weights = {**self.weights_to_hold(table), **{path: table[path] for path in self.zeros}}
        self.projection = Projection(weights)
        for path, zeros in self.zeros.items():
            self.projection.hold(path, ~zeros, weights[path].read())
        return self.projection

    @property
    def promises(self) -> tuple[Promise, ...]:
        """What a finished training claims of the model's weights: hand them to `export`."""
        return promised_zeros(self.masks, weight_table(self.model))

    def end(self) -> None:
        """Keep the masks for whoever asks; what another callback wrote over them is cut, and noted."""
        if self.projection is not None:
            self.settle()
            self.masks = self.projection.masks()

    def settle(self) -> None:
        """Have the zeros hold again, and say so, where they do not."""
        lost = 0 if self.projection is None else self.projection.lost()
        if lost and self.projection is not None:
            self.projection.write_zeros()
            self.note(
                f"{lost:,} pruned weights were not zero after epoch {self._epoch + 1}: another callback "
                "put other weights into the model (EarlyStopping with restore_best_weights?); they are "
                "zero again, and no callback measured the model so: evaluate it, or let others choose "
                "among the epochs after the last mask (start_from_epoch)"
            )

    def after_epoch(self) -> None:
        """Look at the weights after all other callbacks of the epoch."""
        self.settle()

    def compare_checkpoint(self, pattern: str, since: float) -> None:
        """Say so where the last file saved under a name has fewer zeros than the model now."""
        path = _newest(pattern, since)
        if path is None or self.projection is None or not self.masks:
            return
        shapes = {self.projection.weights[held].shape for held in self.masks}
        saved = _sparsity(_arrays(path), shapes)
        live = _sparsity((w.read() for w in weight_table(self.model)), shapes)
        if saved < live:
            self.note(
                f"the checkpoint {path} has {100 * saved:.1f} % zeros in its pruned weights, the model "
                f"{100 * live:.1f} %: it was saved under earlier masks; save the model itself, or prune "
                "the checkpoint again"
            )

    def on_train_begin(self, logs: Any = None) -> None:
        """Join the hooks of this training."""
        self.begin(self.model)
        self._hooks = hooks_of(self)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Remember the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Have all methods of this training change masks before this step."""
        if self._hooks is not None:
            self._hooks.before_step(self, batch)

    def choose(self, batch: int) -> None:
        """Let the method change masks before the step that begins with `batch`."""
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
        """Detach: the zeros stay. Done once more behind the last callback, which may change weights."""
        if self._hooks is not None and self._hooks.callbacks[0] is self:
            self._hooks.conclude()


def _newest(pattern: str, since: float) -> str | None:
    """The file that a `ModelCheckpoint` of this file name wrote last; None before `since`."""
    names = glob.glob(re.sub(r"\{.*?\}", "*", glob.escape(pattern)))  # noqa: PTH207 (absolute ones)
    times = {name: Path(name).stat().st_mtime for name in names}
    written = [name for name, at in times.items() if at >= since - 1]  # of coarse file systems
    return max(written, key=lambda name: times[name], default=None)


def _arrays(path: str) -> list[np.ndarray]:
    """Every array of a file of Keras but the optimizer's; none where it cannot be read."""
    arrays: list[np.ndarray] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and "optimizer" not in name.split("/")[0]:
            arrays.append(np.asarray(item[()]))

    source: Any = path
    with contextlib.suppress(OSError, KeyError, zipfile.BadZipFile):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                source = io.BytesIO(archive.read("model.weights.h5"))
        with h5py.File(source, "r") as file:
            file.visititems(visit)
    return arrays


def _sparsity(arrays: Iterable[np.ndarray], shapes: set[tuple[int, ...]]) -> float:
    """The fraction of zeros in the arrays of these shapes; 1 without any."""
    chosen = [a for a in arrays if a.shape in shapes]
    zeros = sum(a.size - int(np.count_nonzero(a)) for a in chosen)
    return zeros / sum(a.size for a in chosen) if chosen else 1.0


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
        self._projection = callback.begin(model, (steps, steps_per_epoch or steps))
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
