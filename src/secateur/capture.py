"""What methods need to see of a model at work: gradients and the norms of what flows into a layer.

Computed on batches that the caller hands over, on every backend; nothing of the model changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from secateur.arrays.criteria import FROM_DATA
from secateur.datasets import Data, Split
from secateur.errors import SecateurError
from secateur.weights import Weight

Batch = tuple[Any, Any]
Evidence = Mapping[str, np.ndarray]  # what a criterion may ask for, by name


def evidence(
    model: Any,
    weights: Mapping[str, Weight],
    needs: Collection[str],
    data: Any,
    loss: Any = None,
) -> dict[str, Evidence]:
    """Path -> what a criterion needs of a weight and data alone can tell; nothing when it needs none.

    data: as `pairs_of` takes them. loss: None takes the compiled one. Raises SecateurError when data
    are needed and there are none.
    """
    wanted = FROM_DATA & set(needs)
    if not wanted:
        return {}
    if data is None:
        raise SecateurError(
            f"the criterion needs {' and '.join(sorted(wanted))}, which data alone can tell; give "
            "data=(x, y), a few hundred training samples, to callback() or apply()"
        )
    batches = batches_given(data)
    rows = list(weights.values())
    found: dict[str, dict[str, np.ndarray]] = {path: {} for path in weights}
    if wanted & {"gradient", "squared_gradient"}:
        loss = loss if loss is not None else getattr(model, "loss", None)
        for path, (mean, squares) in gradients(model, loss, rows, batches).items():
            found[path] |= {"gradient": mean, "squared_gradient": squares}
    if "input_norm" in wanted:
        for path, norm in input_norms(model, rows, batches).items():
            found[path]["input_norm"] = norm
    return {path: {k: v for k, v in seen.items() if k in wanted} for path, seen in found.items()}


def pairs_of(data: Any) -> list[Batch]:
    """The (x, y) pairs that a caller gave: one, a list of them, or a `Data`'s training part.

    Raises SecateurError for anything else.

    >>> [x.shape for x, y in pairs_of((np.zeros((5, 2)), np.zeros(5)))]
    [(5, 2)]
    """
    if isinstance(data, Data):
        data = data.train
        if data is None:
            raise SecateurError(
                "data without a training part received, expected one: the test part is read by the "
                "final measurement alone; fix: give data=(x, y), training samples"
            )
    if isinstance(data, Split):
        data = (data.x, data.y)
    pairs = data if isinstance(data, list) else [data]
    odd = next((p for p in pairs if not isinstance(p, tuple | list) or len(p) != 2), None)
    if odd is None and pairs:
        return [(x, y) for x, y in pairs]
    of = "" if not isinstance(data, list) else f" of {type(odd).__name__}" if pairs else ", empty"
    length = f" of length {len(odd)}" if isinstance(odd, tuple) else ""
    raise SecateurError(
        f"data {type(data).__name__}{of}{length} received, expected (x, y), a list of such batches or "
        "what load_data gives; fix: data=(x_train, y_train), some hundred training samples"
    )


def batches_given(data: Any) -> list[Batch]:
    """The batches that a caller gave as a list, or the first ones of what `pairs_of` takes besides."""
    pairs = pairs_of(data)
    return pairs if isinstance(data, list) else batches_of(*pairs[0])


def batches_of(x: np.ndarray, y: Any, *, size: int = 64, limit: int = 16) -> list[Batch]:
    """The first `limit` batches of `size` samples of arrays, as a list that can be read again.

    >>> [len(x) for x, y in batches_of(np.zeros((100, 3)), np.zeros(100))]
    [64, 36]
    """
    stop = min(len(x), size * limit)
    starts = range(0, stop, size)
    return [
        (x[i : min(i + size, stop)], None if y is None else y[i : min(i + size, stop)])
        for i in starts
    ]


def gradients(
    model: Any, loss: Any, weights: Sequence[Weight], batches: Iterable[Batch]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Path -> (mean gradient, mean squared gradient) of the loss over batches, each of the weight's shape.

    loss: a Keras loss or its name. The model runs as in inference (no Dropout, BatchNorm with its
    moving statistics), so the result is the same at every call. Frozen weights have gradients too.
    Raises SecateurError without labels, or without a loss.
    """
    loss = keras.losses.get(loss)
    if loss is None:
        raise SecateurError(
            "gradients need a loss, and the model has none; compile it with one, or give loss=..."
        )
    compute = _GRADIENTS[keras.backend.backend()]

    def mean_loss(y_true: Any, y_pred: Any) -> Any:
        return ops.mean(loss(y_true, y_pred))  # a loss named by text gives one value a sample

    variables = [w.variable for w in weights]
    first = [np.zeros(w.shape, np.float32) for w in weights]
    second = [np.zeros(w.shape, np.float32) for w in weights]
    count = 0
    for x, y in batches:
        if y is None:
            raise SecateurError(
                "batches without labels received; gradients of the loss need them: give data=(x, y)"
            )
        for i, gradient in enumerate(compute(model, mean_loss, variables, x, y)):
            found = np.asarray(ops.convert_to_numpy(gradient), np.float32)
            first[i] += found
            second[i] += found * found
        count += 1
    if not count:
        raise SecateurError("no batch received, gradients need at least one: give data=(x, y)")
    return {
        w.path: (total / count, squares / count)
        for w, total, squares in zip(weights, first, second, strict=True)
    }


def input_norms(
    model: Any, weights: Sequence[Weight], batches: Iterable[Batch]
) -> dict[str, np.ndarray]:
    """Path -> L2 norm of each input of the weight over all samples, broadcastable to its shape.

    The norm of an input channel runs over samples and positions (Sun et al. 2023,
    arXiv:2306.11695). Raises SecateurError for a weight whose inputs no layer call shows (the
    kernels of a recurrent cell, the pointwise half of a separable convolution).
    """
    squares: dict[str, Any] = {}
    by_owner: dict[int, list[Weight]] = {}
    for weight in weights:
        _require_visible_inputs(weight)
        by_owner.setdefault(id(weight.owner), []).append(weight)
    owners = {id(w.owner): w.owner for w in weights}

    def see(key: int, inputs: Any, reverse: bool) -> None:
        for weight in by_owner[key]:
            if weight.role == "embedding" and reverse != _is_reverse(weight):
                continue  # a ReversibleEmbedding is called on tokens, and in reverse on vectors
            found = _squared_sums(weight, ops.convert_to_numpy(inputs))
            squares[weight.path] = squares.get(weight.path, 0.0) + found

    with _watched(owners, see), without_gradients():
        for x, _ in batches:
            model(x, training=False)
    unseen = [w.path for w in weights if w.path not in squares]
    if unseen:
        raise SecateurError(
            f"{', '.join(unseen)}: the layer was not called on the data given, so its inputs have no "
            "norm; give batches that reach it, or leave it out of the selection"
        )
    return {path: np.sqrt(found) for path, found in squares.items()}


@contextlib.contextmanager
def without_gradients() -> Iterator[None]:
    """Forward passes that record nothing (PyTorch would keep every activation)."""
    if keras.backend.backend() != "torch":
        yield
        return
    import torch

    with torch.no_grad():
        yield


@contextlib.contextmanager
def _watched(owners: dict[int, Any], see: Callable[[int, Any, bool], None]) -> Iterator[None]:
    """Show the first argument of every call of the layers, and `reverse`, while the context is open."""

    def watching(key: int, call: Callable) -> Callable:
        def watched(*args: Any, **kwargs: Any) -> Any:
            inputs = next(iter((*args, *kwargs.values())))  # a user's layer names it as it likes
            reverse = args[1] if len(args) > 1 else kwargs.get("reverse", False)
            see(key, inputs, reverse is True)
            return call(*args, **kwargs)

        return watched

    for key, owner in owners.items():
        owner.__dict__["call"] = watching(key, owner.call)  # past Keras's tracking of attributes
    try:
        yield
    finally:
        for owner in owners.values():
            owner.__dict__.pop("call", None)


def _require_visible_inputs(weight: Weight) -> None:
    name, kind = weight.path.rsplit("/", 1)[-1], type(weight.owner).__name__
    if not weight.in_cell and name not in ("pointwise_kernel", "recurrent_kernel"):
        return
    raise SecateurError(
        f"{weight.path} {weight.shape}: the inputs of this kernel are made inside {kind}, where they "
        "cannot be read; use another criterion (l1, snip, taylor), or leave it out of the selection"
    )


def _squared_sums(weight: Weight, inputs: np.ndarray) -> np.ndarray:
    """Sum of squares of each input of the weight, shaped to broadcast against the weight."""
    rank = len(weight.shape)
    if weight.role == "embedding" and not _is_reverse(
        weight
    ):  # its inputs are one-hot rows: a norm is a count
        counts = np.bincount(inputs.astype(np.int64).ravel(), minlength=weight.shape[0])
        return counts[: weight.shape[0], None].astype(np.float64)
    squares = np.square(np.asarray(inputs, np.float64))
    if getattr(weight.owner, "data_format", None) == "channels_first":
        squares = np.moveaxis(squares, 1, -1)
    if "equation" in vars(weight.owner):
        return _einsum_sums(weight, squares)
    axis = weight.axes.inputs[0] if weight.axes.inputs else weight.axes.outputs[0]
    channels = squares.sum(axis=tuple(range(squares.ndim - 1)))
    if weight.shape[axis] != len(channels):  # a grouped convolution: each group sees its own part
        channels = channels.reshape(-1, weight.shape[axis]).mean(0)
    return channels.reshape([-1 if i == axis else 1 for i in range(rank)])


def _is_reverse(weight: Weight) -> bool:
    """Whether it turns vectors back into tokens (ReversibleEmbedding)."""
    return weight.path.endswith("/reverse_embeddings")


def _einsum_sums(weight: Weight, squares: np.ndarray) -> np.ndarray:
    sides, _ = weight.owner.equation.replace("...", "").split("->")
    letters, kernel = sides.split(",")
    # The letters of the input stand at its end where the equation begins with an ellipsis.
    offset = squares.ndim - len(letters)
    # Summed over, or of an input of its own (`abc,bcd->abd`: a matrix for each position b).
    shared = [i for i, letter in enumerate(kernel) if letter in letters]
    kept = [offset + letters.index(kernel[i]) for i in shared]
    rest = tuple(axis for axis in range(squares.ndim) if axis not in kept)
    sums = np.transpose(squares, (*rest, *kept)).sum(axis=tuple(range(len(rest))))
    shape = [size if i in shared else 1 for i, size in enumerate(weight.shape)]
    return sums.reshape(shape)


def _tensorflow(model: Any, loss: Any, variables: Sequence[Any], x: Any, y: Any) -> list[Any]:
    import tensorflow as tf

    values = [v.value for v in variables]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        for value in values:
            tape.watch(value)
        total = loss(y, model(x, training=False))
    found = tape.gradient(total, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return [tf.convert_to_tensor(g) for g in found]  # an embedding's are slices


def _jax(model: Any, loss: Any, variables: Sequence[Any], x: Any, y: Any) -> list[Any]:
    import jax

    def total(values: list[Any]) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return loss(y, model(x, training=False))

    return jax.grad(total)([v.value for v in variables])


def _torch(model: Any, loss: Any, variables: Sequence[Any], x: Any, y: Any) -> list[Any]:
    import torch

    values = [v.value for v in variables]
    before = [value.requires_grad for value in values]
    try:
        for value in values:
            value.requires_grad_(True)
        with torch.enable_grad():
            total = loss(y, model(x, training=False))
            found = torch.autograd.grad(total, values, allow_unused=True)
    finally:
        for value, flag in zip(values, before, strict=True):
            value.requires_grad_(flag)
    return [torch.zeros_like(v) if g is None else g for g, v in zip(found, values, strict=True)]


_GRADIENTS: dict[str, Callable[..., list[Any]]] = {
    "tensorflow": _tensorflow,
    "jax": _jax,
    "torch": _torch,
}
