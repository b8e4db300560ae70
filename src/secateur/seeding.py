"""Random numbers: every training draws from its seed, and no global state is left changed by it."""

from __future__ import annotations

import contextlib
import importlib.util
import random
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras.src.backend.common import global_state


@contextlib.contextmanager
def random_states_kept(seed: int | None = None) -> Iterator[None]:
    """Give every global random state back as it was; `seed`: draw from it in the meantime.

    Those of Python, NumPy, Keras, TensorFlow and PyTorch: even a copy of a model draws from Python's.

    >>> np.random.seed(1)
    >>> with random_states_kept(seed=7):
    ...     _ = np.random.random(), random.random()
    >>> bool(np.random.random() == np.random.RandomState(1).random_sample())
    True
    """
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    names = ("global_random_seed", "global_seed_generator")
    of_keras = {name: global_state.get_global_attribute(name) for name in names}
    with _tensorflow_seed_kept(seed is not None), _torch_state_kept():
        try:
            if seed is not None:
                keras.utils.set_random_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
            for name, value in of_keras.items():
                global_state.set_global_attribute(name, value)


@contextlib.contextmanager
def _tensorflow_seed_kept(seeded: bool) -> Iterator[None]:
    """Keras seeds an installed TensorFlow on every backend."""
    if not seeded or importlib.util.find_spec("tensorflow") is None:
        yield
        return
    from tensorflow.python.eager import context

    own = vars(context.context())
    before = {name: own[name] for name in ("_seed", "_rng") if name in own}  # not yet, if unseeded
    try:
        yield
    finally:
        own.pop("_rng", None)
        own |= before


@contextlib.contextmanager
def _torch_state_kept() -> Iterator[None]:
    if keras.backend.backend() != "torch":
        yield
        return
    import torch

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


def random_states(model: Any) -> list[Any]:
    """The generators that Dropout, noise and augmentation keep: variables, but not weights."""
    weights = {id(w) for w in model.weights}
    return [v for v in model.variables if id(v) not in weights]


def seed_layers(model: Any, seed: int) -> None:
    """No global seed reaches the generators that layers keep of their own."""
    for number, state in enumerate(random_states(model)):
        state.assign(np.array([1_000_003 * number + seed, 0]).astype(state.dtype))
