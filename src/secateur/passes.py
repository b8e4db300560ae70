"""Forward passes alone: a function traced once, run over large batches of one size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from secateur.capture import without_gradients

MEMORY = 64 * 2**20  # bytes of the widest layer's outputs for one batch


class Forward:
    """A function of tensors, compiled where the backend does that, called for one batch after another.

    >>> forward = Forward(lambda scale, x: x * scale)
    >>> batches = [ops.ones((2, 1)), ops.ones((2, 1))]
    >>> forward.over(batches, 3, ops.convert_to_tensor(2.0)).ravel().tolist()
    [2.0, 2.0, 2.0]
    """

    def __init__(self, function: Callable[..., Any]):
        self._backend = keras.backend.backend()
        self._function: Any = function
        if self._backend == "tensorflow":
            import tensorflow as tf

            # Of arguments of other shapes it makes one more graph, for all of them.
            self._function = tf.function(function, reduce_retracing=True)
        elif self._backend == "jax":
            import jax

            self._function = jax.jit(function)

    @property
    def traces(self) -> int | None:
        """How often the function was traced by now; None where the backend runs it as it is."""
        if self._backend == "tensorflow":
            return self._function.experimental_get_tracing_count()
        return self._function._cache_size() if self._backend == "jax" else None

    def over(self, batches: Sequence[Any], n: int, *given: Any) -> np.ndarray:
        """The outputs for the first n samples of the batches; `given` comes before each batch."""
        given = keras.tree.map_structure(
            lambda value: None if value is None else ops.convert_to_tensor(value), given
        )
        with without_gradients():
            parts = [ops.convert_to_numpy(self._function(*given, batch)) for batch in batches]
        return (parts[0] if len(parts) == 1 else np.concatenate(parts))[:n]


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors, its elementwise operations made one loop on TensorFlow too.

    TensorFlow runs each of them over all the memory unless XLA compiles them; JAX compiles the whole
    step anyway, and PyTorch would need a C++ compiler.

    >>> ops.convert_to_numpy(fused(lambda x: ops.abs(x) + 1)(ops.array([-1.0]))).tolist()
    [2.0]
    """
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    return tf.function(function, jit_compile=True)


def even_batches(model: Any, x: np.ndarray) -> Iterator[Any]:
    """Tensors of large batches of one size, the last one filled up with its own last sample.

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    >>> [tuple(batch.shape) for batch in even_batches(model, np.zeros((5, 2), "float32"))]
    [(5, 2)]
    """
    fits = max(32, MEMORY // max(1, 4 * _widest(model)))
    size = math.ceil(len(x) / math.ceil(len(x) / fits))
    for start in range(0, len(x), size):
        part = x[start : start + size]
        lacking = size - len(part)
        if lacking:
            part = np.concatenate([part, np.repeat(part[-1:], lacking, axis=0)])
        yield ops.convert_to_tensor(part)


def _widest(model: Any) -> int:
    """Numbers a sample that the widest layer gives; a guess where layers do not tell."""
    found = [MEMORY // 4 // 256]
    try:
        shapes = [layer.output.shape for layer in model._flatten_layers(include_self=False)]
    except (AttributeError, ValueError):  # subclassed, or a layer that is called more than once
        return found[0]
    return max(math.prod(n or 1 for n in shape[1:]) for shape in shapes)
