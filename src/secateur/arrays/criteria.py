"""Importance scores of single weights: pure functions of the weight and of evidence, larger = keep.

A criterion asks for what it needs by the names of its parameters (`EVIDENCE`); `score` gives it
just that. It is one function and one row of `CRITERIA`; it neither ranks nor prunes.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from secateur.errors import SecateurError, nearest

Criterion = Callable[..., np.ndarray]

# parameter -> what it receives
EVIDENCE: dict[str, str] = {
    "weight": "the weight itself",
    "rng": "a np.random.Generator",
    "gradient": "the mean over batches of the loss gradient, shape of the weight",
    "squared_gradient": "the mean over batches of the squared batch gradient, shape of the weight",
    "input_norm": "the L2 norm of each of the layer's inputs, broadcastable to the weight",
}
FROM_DATA = frozenset({"gradient", "squared_gradient", "input_norm"})


def l1(weight: np.ndarray) -> np.ndarray:
    """Score a weight by its magnitude, shape kept (Han et al. 2015, arXiv:1506.02626).

    >>> l1(np.array([-2.0, 0.5])).tolist()
    [2.0, 0.5]
    """
    return np.abs(_real(weight))


def l2(weight: np.ndarray) -> np.ndarray:
    """Score a weight by its square, float64, shape kept (He et al. 2018, arXiv:1808.06866).

    Ranks single weights as `l1` does; differs once a pattern pools scores over blocks or units,
    where one large weight counts for more than several small ones.

    >>> l2(np.array([-2.0, 0.5])).tolist()
    [4.0, 0.25]
    """
    # In float64 the squares of float32 values are exact: no two different weights tie, none is 0.
    return np.square(_real(weight), dtype=np.float64)


def random_(weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Score weights at random, float32 in [0, 1), shape kept: the control for any other criterion.

    >>> random_(np.zeros((2, 3)), np.random.default_rng(0)).shape
    (2, 3)
    """
    return rng.random(weight.shape, dtype=np.float32)


def snip(weight: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Score |gradient * weight|, how much the loss moves (SNIP, Lee et al. 2019, arXiv:1810.02340).

    The paper divides by the sum over the whole network, which changes no ranking.

    >>> snip(np.array([-2.0, 0.5]), np.array([0.25, 3.0])).tolist()
    [0.5, 1.5]
    """
    return np.abs(_real(gradient) * _real(weight))


def taylor(weight: np.ndarray, squared_gradient: np.ndarray) -> np.ndarray:
    """Score weight^2 * gradient^2, mean over batches, float64 (Molchanov 2019, arXiv:1906.10771).

    >>> taylor(np.array([-2.0, 0.5]), np.array([0.25, 4.0])).tolist()
    [1.0, 1.0]
    """
    # Float64: late in a training squared gradients near 1e-40 are common.
    return np.square(_real(weight), dtype=np.float64) * _real(squared_gradient)


def wanda(weight: np.ndarray, input_norm: np.ndarray) -> np.ndarray:
    """Score |weight| * norm of its input, shape of the weight (Sun et al. 2023, arXiv:2306.11695).

    The paper ranks within each output; here the pattern says what is ranked against what.

    >>> wanda(np.array([[-2.0, 1.0], [0.5, 3.0]]), np.array([[1.0], [8.0]])).tolist()
    [[2.0, 1.0], [4.0, 24.0]]
    """
    return np.abs(_real(weight)) * _real(input_norm)


CRITERIA: dict[str, Criterion] = {
    "l1": l1,
    "l2": l2,
    "random": random_,
    "snip": snip,
    "taylor": taylor,
    "wanda": wanda,
}


def criterion(name: str | Criterion) -> Criterion:
    """Return the criterion of that name, or the user's own function as it is.

    Raises `SecateurError` for an unknown name, with the nearest known one, and for a function that
    asks for what nobody can give.

    >>> criterion("l1") is l1
    True
    """
    if callable(name):
        needs(name)
        return name
    if not isinstance(name, str) or name not in CRITERIA:
        raise SecateurError(
            f"unknown criterion {name!r}, expected a name or a function (weight, ...) -> scores; "
            f"fix: {nearest(name, CRITERIA)}"
        )
    return CRITERIA[name]


def needs(criterion: Criterion) -> frozenset[str]:
    """Return which of `EVIDENCE` a criterion asks for, by the names of its parameters.

    Parameters of other names must have defaults, and what a partial fixes is not asked for. Raises
    `SecateurError` for an unknown name without a default, with the known names.

    >>> sorted(needs(lambda weight, gradient, power=2: gradient**power))
    ['gradient', 'weight']
    """
    return frozenset(parameter.name for parameter in _asked(criterion))


def score(criterion: Criterion, weight: np.ndarray, **evidence: Any) -> np.ndarray:
    """Call a criterion with just what it asks for; its scores, larger = keep.

    Evidence (see `EVIDENCE`) that is None counts as missing. Raises `SecateurError` when the
    criterion asks for evidence that is missing.

    >>> score(snip, np.array([-2.0, 0.5]), gradient=np.array([0.25, 3.0]), rng=None).tolist()
    [0.5, 1.5]
    """
    given = {"weight": weight, **evidence}
    asked = _asked(criterion)
    for parameter in asked:
        if given.get(parameter.name) is None:
            raise SecateurError(_missing(parameter.name, describe(criterion)))
    by_place = [given[p.name] for p in asked if p.kind is p.POSITIONAL_ONLY]
    by_name = {p.name: given[p.name] for p in asked if p.kind is not p.POSITIONAL_ONLY}
    return np.asarray(criterion(*by_place, **by_name))


def describe(criterion: str | Criterion) -> str:
    """Return the name of a criterion: a built-in's as recipes write it, a function's own.

    >>> describe(random_), describe("l1")
    ('random', 'l1')
    """
    if isinstance(criterion, str):
        return criterion
    names = [name for name, known in CRITERIA.items() if known is criterion]
    return names[0] if names else getattr(criterion, "__name__", type(criterion).__name__)


def _asked(criterion: Criterion) -> list[inspect.Parameter]:
    """The parameters that evidence fills, in their order."""
    try:
        parameters = inspect.signature(criterion).parameters.values()
    except (TypeError, ValueError) as error:
        raise SecateurError(
            f"criterion {describe(criterion)} received, which shows no signature, expected a "
            "function (weight, ...) -> scores; fix: wrap it, as lambda weight: ..."
        ) from error
    fixed = criterion.keywords if isinstance(criterion, functools.partial) else {}
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    for parameter in named:
        if parameter.name not in EVIDENCE and parameter.default is parameter.empty:
            raise SecateurError(
                f"criterion {describe(criterion)} asks for {parameter.name!r}, expected parameters "
                f"named {', '.join(EVIDENCE)}; fix: rename it, or give it a default"
            )
    return [p for p in named if p.name in EVIDENCE and p.name not in fixed]


def _missing(name: str, criterion: str) -> str:
    fix = "pass data=(x, y)" if name in FROM_DATA else f"pass {name}"
    return (
        f"no {name} received for criterion {criterion}, expected {EVIDENCE[name]}; fix: {fix}"
        f"{', from which it is computed, or choose l1' if name in FROM_DATA else ''}"
    )


def _real(array: np.ndarray) -> np.ndarray:
    """At least float32: float16 and bfloat16 would overflow, or tie scores that differ."""
    return np.asarray(array, np.result_type(array.dtype, np.float32))
