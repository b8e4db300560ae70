"""Importance scores of single weights: functions `f(weight, rng) -> scores`, larger = keep.

A criterion is one pure function and one row of `CRITERIA`; it neither ranks nor prunes.
"""

from collections.abc import Callable

import numpy as np

from secateur.errors import SecateurError, nearest

Criterion = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def l1(weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Score a weight by its magnitude, shape and dtype kept (Han et al. 2015, arXiv:1506.02626).

    >>> l1(np.array([-2.0, 0.5]), np.random.default_rng(0)).tolist()
    [2.0, 0.5]
    """
    return np.abs(weight)


def random_(weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Score weights at random, float32 in [0, 1), shape kept: the control for any other criterion.

    >>> random_(np.zeros((2, 3)), np.random.default_rng(0)).shape
    (2, 3)
    """
    return rng.random(weight.shape, dtype=np.float32)


CRITERIA: dict[str, Criterion] = {"l1": l1, "random": random_}


def criterion(name: str | Criterion) -> Criterion:
    """Return the criterion of that name, or the user's own function as it is.

    Raises `SecateurError` for an unknown name, with the nearest known one.

    >>> criterion("l1") is l1
    True
    """
    if callable(name):
        return name
    if name not in CRITERIA:
        raise SecateurError(
            f"unknown criterion {name!r}, expected a name or a function (weight, rng) -> scores; "
            f"{nearest(name, CRITERIA)}"
        )
    return CRITERIA[name]
