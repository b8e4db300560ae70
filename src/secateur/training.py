"""The only place that calls `fit`: optimizer, loss, seed, history, progress and Ctrl-C."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from secateur.capture import without_gradients
from secateur.datasets import Data
from secateur.errors import SecateurError
from secateur.hooks import detach
from secateur.outputs import (
    ACTIVATIONS,
    LOGITS,
    PROBABILITIES,
    activation_of,
    asked,
    of_loss,
    settled,
)
from secateur.seeding import random_states_kept, seed_layers
from secateur.weights import weight_table

DECAYS = ("none", "cosine")
BATCHNORM = ("re-estimate", "keep")
Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Train:
    """How a model is trained: the `[train]` block of a recipe.

    optimizer: a Keras name ("adam", "sgd", ...). learning_rate: None takes the optimizer's own.
    decay: "none", or "cosine" to zero over the training. batch_size in samples, epochs whole
    passes (0: no training). loss: a Keras name; None takes the compiled one, else infers it.
    outputs: "logits" or "probabilities"; None reads it from the last activation or the loss.
    batchnorm: "re-estimate" its statistics after a step that pruned, or "keep" those of training.
    "auto" means None, which TOML cannot write.

    >>> Train(epochs=2, learning_rate="auto").learning_rate is None
    True
    """

    optimizer: str = "adam"
    learning_rate: float | None = None
    decay: str = "none"
    batch_size: int = 32
    epochs: int = 1
    loss: str | None = None
    outputs: str | None = None
    batchnorm: str = "re-estimate"

    def __post_init__(self) -> None:
        for name in ("learning_rate", "loss", "outputs"):
            if getattr(self, name) == "auto":
                object.__setattr__(self, name, None)
        for name, known in (("decay", DECAYS), ("batchnorm", BATCHNORM)):
            if getattr(self, name) not in known:
                raise SecateurError(
                    f"{name} {getattr(self, name)!r} received, expected one of {', '.join(known)}"
                )
        asked(self.outputs)
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
            raise SecateurError(
                f"learning_rate {self.learning_rate!r} received, expected a number above 0, as 0.001"
            )
        for name, least in (("batch_size", 1), ("epochs", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise SecateurError(
                    f"{name} {value!r} received, expected a whole number of at least {least}"
                )


@dataclass(frozen=True, kw_only=True)
class History:
    """What one training did: metric -> value per epoch, how many steps, how long."""

    metrics: dict[str, list[float]]
    epochs: int
    steps: int
    seconds: float


class Snapshot(keras.callbacks.Callback):
    """Weights and optimizer as they are after `epoch` epochs of a training (a fraction counts steps).

    weights, optimizer: lists of arrays, None until that point is reached.
    """

    def __init__(self, epoch: float = 0.0):
        super().__init__()
        self.epoch = epoch
        self.weights: list[np.ndarray] | None = None
        self.optimizer: list[np.ndarray] | None = None
        self._done = 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Take it before the step that follows the point."""
        if self.weights is None and self._done >= int(self.epoch * self.params["steps"] + 0.5):
            self.take(self.model)
        self._done += 1

    def take(self, model: Any) -> None:
        """Take it now."""
        self.weights = model.get_weights()
        self.optimizer = [keras.ops.convert_to_numpy(v.value) for v in model.optimizer.variables]

    def restore(self, model: Any) -> None:
        """Put weights and, where it is the same optimizer, its state back into a compiled model."""
        if self.weights is None or self.optimizer is None:
            raise SecateurError(
                f"the training before ended before epoch {self.epoch:g}, to which it should be "
                "rewound; rewind to an earlier point, or train longer"
            )
        model.set_weights(self.weights)
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        variables = model.optimizer.variables
        if [tuple(v.shape) for v in variables] == [v.shape for v in self.optimizer]:
            for variable, value in zip(variables, self.optimizer, strict=True):
                variable.assign(value)


def train(
    model: Any,
    data: Data,
    settings: Train,
    *,
    seed: int,
    loss: Any = None,
    callbacks: Sequence[Any] = (),
    start: Snapshot | None = None,
    progress: Progress | None = None,
    label: str = "train",
) -> History:
    """Train `model` in place on `data.train`, watching `data.validation`.

    The seed decides initial optimizer state, dropout and shuffling. loss: overrides the settings.
    start: weights, optimizer and epoch to go on from.
    Raises SecateurError without labels, for an unknown optimizer, or when the loss becomes NaN.
    After Ctrl-C the weights are those of the last finished step and nothing stays attached.
    """
    split = data.train
    if split is None:
        raise SecateurError(
            f"data {data.name!r} has a test part only, training needs another; give x_train, y_train"
        )
    if split.y is None:
        raise SecateurError(
            f"data {data.name!r} has no labels, training needs them; "
            "give y, or set epochs = 0 to act on the weights alone"
        )
    with random_states_kept(seed):
        seed_layers(model, seed)
        steps_per_epoch = -(-len(split) // settings.batch_size)
        steps = steps_per_epoch * settings.epochs
        first = 0 if start is None else int(start.epoch)
        loss = loss if loss is not None else _named_loss(settings.loss)
        loss = loss if loss is not None else infer_loss(model, split.x, split.y, settings.outputs)
        # Compiling anew also drops a training step that was traced with other callbacks.
        model.compile(optimizer=_optimizer(settings, steps), loss=loss, metrics=_metrics(loss))
        if start is not None:
            start.restore(model)
        watch = [*callbacks, keras.callbacks.TerminateOnNaN()]
        if progress is not None:
            watch.append(_Reporter(progress, label, steps - first * steps_per_epoch))
        validation = data.validation
        begun = time.perf_counter()
        try:
            history = model.fit(
                split.x,
                split.y,
                batch_size=settings.batch_size,
                epochs=settings.epochs,
                initial_epoch=first,
                shuffle=True,
                validation_data=None if validation is None else (validation.x, validation.y),
                validation_batch_size=500,
                callbacks=watch,
                verbose=0,
            )
        finally:
            detach(model)
    seconds = time.perf_counter() - begun
    metrics = {name: [float(v) for v in values] for name, values in history.history.items()}
    if not np.isfinite(metrics.get("loss", [0.0])).all():
        raise SecateurError(
            f"the loss became NaN while training {model.name!r} ({settings}); "
            "lower learning_rate, or scale the inputs"
        )
    epochs = settings.epochs - first
    return History(metrics=metrics, epochs=epochs, steps=epochs * steps_per_epoch, seconds=seconds)


def reestimate_batchnorm(
    model: Any,
    x: np.ndarray,
    *,
    batch_size: int = 64,
    batches: int = 40,
    after: str | None = None,
) -> int:
    """Take the statistics of BatchNorm layers anew from inputs `x`; the number of layers.

    Pruned weights give other activations than those the moving averages describe. Each layer's
    become the mean over `batches` batches of training inputs, frozen layers' too; no weight is
    trained and nothing else (Dropout) leaves inference mode. after: path of a weight; layers before
    it keep theirs.

    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization(name="bn")])
    >>> reestimate_batchnorm(model, np.full((8, 3), 5.0, "float32"))
    1
    >>> float(model.layers[0].moving_mean[0])
    5.0
    """
    layers = _batchnorms(model, after)
    if not layers:
        return 0
    if not len(x) or batches < 1 or batch_size < 1:
        raise SecateurError(
            f"{len(x):,} samples received in {batches} batches of {batch_size}, expected at least one "
            "batch to take statistics from; give training inputs"
        )
    flags = [(v, v.trainable) for layer in layers for v in layer.variables]
    statistics = [
        (v, keras.ops.convert_to_numpy(v.value))
        for layer in layers
        for v in layer.non_trainable_variables
    ]
    settings = [(layer, layer.momentum, layer.trainable) for layer in layers]
    try:
        for layer in layers:
            layer.trainable = True  # a frozen one does not update, whatever it is called with
            layer.__dict__["call"] = functools.partial(_average, layer, layer.call, [0])
        with without_gradients():
            for begin in range(0, min(len(x), batch_size * batches), batch_size):
                model(x[begin : begin + batch_size], training=False)
    except BaseException:
        for variable, value in statistics:
            variable.assign(value)
        raise
    finally:
        for layer, momentum, trainable in settings:
            layer.__dict__.pop("call", None)
            layer.momentum, layer.trainable = momentum, trainable
        for variable, trainable in flags:
            variable.trainable = trainable  # a layer's own flag overwrites those of its weights
    return len(layers)


def _batchnorms(model: Any, after: str | None) -> list[Any]:
    found: dict[int, Any] = {}
    table = weight_table(model)
    first = None if after is None else table[after].path  # refuses a path that is not there
    reached = first is None
    for weight in table:
        reached = reached or weight.path == first
        if reached and isinstance(weight.owner, keras.layers.BatchNormalization):
            found.setdefault(id(weight.owner), weight.owner)
    return list(found.values())


def _average(
    layer: Any, call: Callable, calls: list[int], inputs: Any, training: Any = None, **kwargs: Any
) -> Any:
    """One call in training mode that takes part in the mean; a shared layer is called more often."""
    layer.momentum = calls[0] / (calls[0] + 1)
    calls[0] += 1
    return call(inputs, training=True, **kwargs)


def infer_loss(model: Any, x: np.ndarray, y: np.ndarray, meaning: str | None = None) -> Any:
    """The Keras loss that fits the model's output and the labels.

    Whole-number labels (n,) with k >= 2 outputs: sparse cross-entropy; one-hot (n, k): cross-
    entropy; labels 0 / 1 with one output: binary; floats of the output's shape: mean squared
    error. meaning: of the outputs (`runtimes.keras.meanings_of`); None: read from the last activation.
    Raises SecateurError, naming both shapes, when nothing fits, and where nothing says whether the
    outputs are logits or probabilities.
    """
    outputs = keras.ops.convert_to_numpy(model(x[:32], training=False))
    y = np.asarray(y)
    units = outputs.shape[-1] if outputs.ndim > 1 else 1
    whole = np.issubdtype(y.dtype, np.integer) or y.dtype == bool
    labels = np.squeeze(y, -1) if y.ndim == 2 and y.shape[-1] == 1 else y
    activation = activation_of(model.outputs[0]) if getattr(model, "outputs", None) else None
    meaning = meaning or settled(ACTIVATIONS.get(activation or ""))
    if whole and labels.ndim == 1 and units >= 2:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=_logits(model, meaning))
    if labels.ndim == 1 and units == 1 and set(np.unique(labels[:10_000]).tolist()) <= {0, 1}:
        return keras.losses.BinaryCrossentropy(from_logits=_logits(model, meaning))
    one_hot = y.ndim == 2 and units >= 2 and y.shape == (len(y), units) and _rows_are_one_hot(y)
    if one_hot and activation == "sigmoid":
        return keras.losses.BinaryCrossentropy()
    if one_hot:
        return keras.losses.CategoricalCrossentropy(from_logits=_logits(model, meaning))
    if y.shape[1:] == outputs.shape[1:] or (labels.ndim == 1 and units == 1):
        return keras.losses.MeanSquaredError()
    raise SecateurError(
        f"no loss fits labels of shape {y.shape} ({y.dtype}) to outputs of shape "
        f"{(None, *outputs.shape[1:])}; give `loss` in the recipe's [train] block, or labels of "
        "that shape"
    )


def _logits(model: Any, meaning: str | None) -> bool:
    if meaning is None:
        raise SecateurError(
            f"outputs of {model.name!r} received that nothing says to be logits or probabilities, "
            'expected a last activation or a compiled loss that does; fix: outputs = "logits" (or '
            '"probabilities") in the recipe\'s [train] block, or --outputs'
        )
    return meaning != PROBABILITIES


def _rows_are_one_hot(y: np.ndarray) -> bool:
    return bool(np.isin(y, (0, 1)).all() and (y.sum(-1) == 1).all())


def _named_loss(name: str | None) -> Any:
    if name is None:
        return None
    try:
        return keras.losses.get(name)
    except ValueError:
        raise SecateurError(
            f"loss {name!r} received, expected a Keras name such as sparse_categorical_crossentropy, "
            "categorical_crossentropy, binary_crossentropy or mse"
        ) from None


def _optimizer(settings: Train, steps: int) -> Any:
    try:
        optimizer = keras.optimizers.get(settings.optimizer)
    except ValueError:
        raise SecateurError(
            f"optimizer {settings.optimizer!r} received, expected a Keras name: adam, adamw, sgd, rmsprop"
        ) from None
    config = optimizer.get_config()
    if settings.learning_rate is not None:
        config["learning_rate"] = settings.learning_rate
    if settings.decay == "cosine":
        config["learning_rate"] = keras.optimizers.schedules.CosineDecay(
            float(config["learning_rate"]), max(1, steps)
        )
    return type(optimizer).from_config(config)


def _metrics(loss: Any) -> list[Any]:
    name = loss if isinstance(loss, str) else type(loss).__name__
    if isinstance(loss, keras.losses.BinaryCrossentropy) and of_loss(loss) == LOGITS:
        # Keras's "accuracy" compares with 0.5 whatever the loss takes the outputs for.
        return [keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)]
    return ["accuracy"] if "crossentropy" in name.lower() else ["mae"]


class _Reporter(keras.callbacks.Callback):
    """Passes on how far training is; hooks the beginning of a batch, which stays asynchronous."""

    def __init__(self, progress: Progress, label: str, steps: int):
        super().__init__()
        self._progress, self._label, self._steps = progress, label, steps
        self._done = 0
        self._text = ""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._done += 1
        if self._done % max(1, self._steps // 100) == 0:
            self._progress(self._label, self._done, self._steps, self._text)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        shown = {k: v for k, v in (logs or {}).items() if k in ("loss", "accuracy", "val_accuracy")}
        self._text = "  ".join(f"{k} {v:.4f}" for k, v in shown.items())
        self._progress(self._label, self._done, self._steps, self._text)
