"""Checks for parts of your own: a criterion, a pattern, an allocation, a schedule.

Each takes the part, calls it as a training would and raises `SecateurError` with the first thing
that is wrong; it returns nothing. They need no test framework. docs/extending.md shows each in use.
"""

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from secateur.arrays import allocation as allocations
from secateur.arrays import criteria, patterns
from secateur.arrays.masks import zeros_count
from secateur.arrays.patterns import NofM, Pattern
from secateur.arrays.schedules import Schedule
from secateur.errors import SecateurError

__all__ = ["check_allocation", "check_criterion", "check_pattern", "check_schedule"]

# Kernels of Dense, Conv1D, Conv2D and Conv3D, and a vector.
WEIGHT_SHAPES = ((7,), (6, 5), (3, 4, 6), (3, 3, 4, 6), (2, 2, 2, 3, 4))
# As patterns see them, (..., in, out); the last leave no pattern a whole number of groups.
SCORE_SHAPES = ((16, 8), (3, 3, 8, 12), (2, 2, 2, 4, 6), (5, 4, 7), (13, 5), (1, 12))
SPARSITIES = (0.0, 0.1, 0.25, 0.5, 0.66, 0.9, 1.0)


def check_criterion(
    criterion: str | criteria.Criterion,
    *,
    shapes: Sequence[tuple[int, ...]] = WEIGHT_SHAPES,
) -> None:
    """Check a criterion: one finite number for each weight, decided by what it is given alone.

    It may ask for what `secateur.arrays.criteria.EVIDENCE` names. It is called with weights of
    several ranks and precisions, random, all zero and all equal; it must give scores of the weight's
    shape, the same for the same generator, and leave its arguments as they were. shapes: of the
    weights, for a criterion that is made for certain ranks.

    >>> check_criterion(lambda weight, gradient: abs(weight) + abs(gradient))
    >>> check_criterion(lambda weight: weight.sum(axis=0))
    Traceback (most recent call last):
    ...
    secateur.errors.SecateurError: criterion <lambda> received, which returned shape () for ...
    """
    rank = criteria.criterion(criterion)
    name = f"criterion {criteria.describe(criterion)}"
    for shape in shapes:
        for how, weight in _weights(shape):
            where = f"{how} weights of shape {shape} ({weight.dtype})"
            given = {"weight": weight, **_evidence(shape)}
            before = {key: array.tobytes() for key, array in given.items()}

            def scores(given: dict[str, np.ndarray] = given, where: str = where) -> np.ndarray:
                return _called(
                    lambda: criteria.score(rank, **given, rng=np.random.default_rng(3)), name, where
                )

            found = scores()
            if found.shape != shape:
                _refuse(
                    f"{name} received, which returned shape {found.shape} for {where}",
                    f"{shape}, a score for each weight",
                    "reduce with keepdims=True and broadcast to weight.shape",
                )
            if found.dtype.kind not in "biuf" and found.dtype.name != "bfloat16":
                _refuse(f"{name} received, which returned {found.dtype} for {where}", "numbers")
            if not np.isfinite(found.astype(np.float64)).all():
                _refuse(
                    f"{name} received, which returned NaN or infinity for {where}",
                    "finite scores",
                    "guard divisions and logarithms, and compute in float32 or wider",
                )
            if before != {key: array.tobytes() for key, array in given.items()}:
                _refuse(
                    f"{name} received, which changed its arguments for {where}",
                    "arguments left as they were",
                    "write no `*=` or `[...] =`; work on a copy",
                )
            if not np.array_equal(found, scores()):
                _refuse(
                    f"{name} received, which returned two results for the same {where}",
                    "scores that repeat",
                    "draw from the parameter `rng` and from no other generator",
                )


def check_pattern(
    pattern: str | Pattern,
    *,
    zeros: Callable[[tuple[int, ...], float], int] | None = None,
    exact: bool = True,
    grows: bool = True,
    shapes: Sequence[tuple[int, ...]] = SCORE_SHAPES,
) -> None:
    """Check a pattern: a bool mask of the scores' shape, with as many zeros as asked.

    It is called with random, equal and zero scores, and with promised zeros (-inf) where it pruned
    before, which must be pruned again within the count. A pattern with `groups` is counted in groups
    that are wholly pruned, any other in weights.

    Args:
        pattern: a text as a recipe has it, or a function (scores, sparsity) -> keep.
        zeros: (shape, sparsity) -> the zeros that it reaches, where not every count is possible.
        exact: False leaves the count of zeros unchecked.
        grows: whether more sparsity must prune all that less does, and more.
        shapes: (..., in, out) of the scores, for a pattern that is made for certain ones.

    >>> check_pattern("block 4x1")
    >>> check_pattern(lambda scores, sparsity: scores > sparsity)
    Traceback (most recent call last):
    ...
    secateur.errors.SecateurError: pattern <lambda> received, which pruned ...
    """
    cut = patterns.pattern(pattern)
    name = f"pattern {patterns.describe(pattern)}"
    fitting = [shape for shape in shapes if patterns.check_fits(cut, shape) is None]
    if not fitting:
        _refuse(f"shapes {tuple(shapes)} received, none of which fits {name}", "one that does")
    for shape in fitting:
        for how, scores in _scores(shape):
            looser = np.ones(shape, bool)
            for sparsity in SPARSITIES:
                where = f"{how} scores of shape {shape} at sparsity {sparsity:g}"
                keep = _mask(cut, scores, sparsity, name, where)
                if exact:
                    _check_count(
                        cut, keep, sparsity, zeros, f"{name} received, which pruned", where
                    )
                if grows and (keep & ~looser).any():
                    _refuse(
                        f"{name} received, which keeps at sparsity {sparsity:g} what it pruned at "
                        f"less ({where})",
                        "masks that only close while sparsity rises",
                        "rank once and cut that ranking, or say grows=False",
                    )
                looser = keep
                _check_promised(cut, scores, keep, sparsity, name, where)


def check_allocation(
    allocation: str | allocations.Allocation,
    *,
    total: bool = True,
    grows: bool = True,
) -> None:
    """Check an allocation: a sparsity in [0, 1] for every tensor, and the total that was asked for.

    It is called with random, equal and zero scores, with promised zeros (-inf), and with one tensor
    alone. total: False where it means another total than the one asked for; else it is met within
    one weight a tensor, or what is promised already where that is more. grows: whether no tensor
    may become less sparse while the total rises, so that masks only close during a schedule.

    >>> check_allocation("erk")
    >>> check_allocation(lambda scores, sparsity: {path: 0.5 for path in scores})
    Traceback (most recent call last):
    ...
    secateur.errors.SecateurError: allocation <lambda> received, which gives ... zeros ...
    """
    divide = allocations.allocation(allocation)
    name = f"allocation {allocations.describe(allocation)}"
    for how, scores in _tensors():
        size = sum(tensor.size for tensor in scores.values())
        promised = sum(int(np.isneginf(tensor).sum()) for tensor in scores.values())
        before: dict[str, float] = dict.fromkeys(scores, 0.0)
        for sparsity in SPARSITIES[:-1]:
            where = f"{len(scores)} tensors with {how} scores at sparsity {sparsity:g}"
            shares = _shares(divide, scores, sparsity, name, where)
            zeros = sum(zeros_count(scores[path].size, share) for path, share in shares.items())
            wanted = zeros_count(size, sparsity)
            if total and not wanted - len(scores) <= zeros <= max(wanted, promised) + len(scores):
                _refuse(
                    f"{name} received, which gives {zeros} zeros of {size} for {where}",
                    f"{wanted}, within one a tensor",
                    "scale the sparsities so that they add up, or say total=False",
                )
            less = [path for path in shares if shares[path] < before[path] - 1e-9]
            if grows and less:
                _refuse(
                    f"{name} received, which makes {less[0]} less sparse for {where} than for a "
                    "lower total",
                    "sparsities that rise with the total",
                    "rank once, or say grows=False",
                )
            before = shares


def check_schedule(
    shape: str | Callable[[float], float] | Schedule,
    *,
    from_initial: bool = True,
    to_final: bool = True,
    rises: bool = True,
) -> None:
    """Check the shape of a schedule: progress in [0, 1] to a share in [0, 1] of the way.

    from_initial: whether it starts at share 0, the initial sparsity. to_final: whether it ends at
    share 1; the last update reaches the final sparsity in any case, by a jump if need be. rises:
    whether it may never fall, so that masks only close.

    >>> check_schedule(lambda progress: progress**2)
    >>> check_schedule(lambda progress: 0.5 + progress / 2)
    Traceback (most recent call last):
    ...
    secateur.errors.SecateurError: schedule <lambda> received, which starts at share 0.5, ...
    """
    schedule = shape if isinstance(shape, Schedule) else Schedule(shape=shape)
    given = schedule.shape
    label = given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)
    name = f"schedule {label}"
    times = sorted({*np.linspace(0, 1, 101).tolist(), 1 / 3, 2**-30, 1 - 2**-30})
    shares = [schedule.share(progress) for progress in times]
    if from_initial and abs(shares[0]) > 1e-9:
        _refuse(
            f"{name} received, which starts at share {shares[0]:g}",
            "0, the initial sparsity",
            "subtract what it is at 0 and scale, or say from_initial=False",
        )
    if to_final and abs(shares[-1] - 1) > 1e-9:
        _refuse(
            f"{name} received, which ends at share {shares[-1]:g}",
            "1, the final sparsity",
            "divide by what it is at 1, or say to_final=False",
        )
    for i in range(1, len(times)):
        if rises and shares[i] < shares[i - 1] - 1e-9:
            _refuse(
                f"{name} received, which falls from {shares[i - 1]:g} to {shares[i]:g} at progress "
                f"{times[i]:g}",
                "shares that never fall",
                "or say rises=False",
            )
    if shares != [schedule.share(progress) for progress in times]:
        _refuse(f"{name} received, which returned two results for one progress", "a pure function")


def _refuse(received: str, expected: str, fix: str = "return that") -> None:
    raise SecateurError(f"{received}, expected {expected}; fix: {fix}")


def _called(call: Callable[[], Any], name: str, where: str) -> Any:
    """What a part returns; what it raises of its own is named with what it was given."""
    try:
        with np.errstate(all="ignore"):  # what overflows is told by what it returns
            return call()
    except SecateurError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise SecateurError(
            f"{name} received, which failed ({why}) for {where}, expected a result; "
            "fix: let it take any such input, or give the shapes that it is made for"
        ) from error


def _weights(shape: tuple[int, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """Weights as a training has them; float16 and bfloat16 where it runs in mixed precision."""
    rng = np.random.default_rng(0)
    # Keras brings it, and hands out bfloat16 arrays of its type.
    bfloat16 = importlib.import_module("ml_dtypes").bfloat16
    for dtype in (np.float32, np.float64, np.float16, bfloat16):
        yield "random", rng.standard_normal(shape).astype(dtype)
    for value in (0.0, -0.25, 300.0):  # the square of 300 is no float16
        for dtype in (np.float32, np.float16):
            yield f"all {value:g}", np.full(shape, value, dtype)


def _evidence(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """What data would tell, float32 as `capture` computes it."""
    rng = np.random.default_rng(1)
    gradient = rng.standard_normal(shape).astype(np.float32)
    inputs = tuple(n if axis == len(shape) - 2 else 1 for axis, n in enumerate(shape))
    return {
        "gradient": gradient,
        "squared_gradient": np.square(gradient),
        "input_norm": rng.random(inputs).astype(np.float32),
    }


def _scores(shape: tuple[int, ...]) -> Iterator[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    yield "random", rng.random(shape, np.float32)
    yield "random float64", rng.random(shape)
    yield "equal", np.full(shape, 0.5, np.float32)
    yield "zero", np.zeros(shape, np.float32)


def _mask(cut: Pattern, scores: np.ndarray, sparsity: float, name: str, where: str) -> np.ndarray:
    before = scores.tobytes()
    keep = np.asarray(_called(lambda: cut(scores, sparsity), name, where))
    if keep.dtype != bool or keep.shape != scores.shape:
        _refuse(
            f"{name} received, which returned {keep.dtype} of shape {keep.shape} for {where}",
            f"bool of shape {scores.shape}, True where a weight is kept",
        )
    if scores.tobytes() != before:
        _refuse(
            f"{name} received, which changed the {where}",
            "scores left as they were",
            "write no `*=` or `[...] =`; work on a copy",
        )
    if not np.array_equal(keep, np.asarray(cut(scores, sparsity))):
        _refuse(
            f"{name} received, which returned two masks for the same {where}", "one that repeats"
        )
    return keep


def _check_count(
    cut: Pattern,
    keep: np.ndarray,
    sparsity: float,
    zeros: Callable[[tuple[int, ...], float], int] | None,
    received: str,
    where: str,
) -> None:
    found, kind = int(np.count_nonzero(~keep)), "weights"
    wanted = zeros_count(keep.size, sparsity)
    if zeros is not None:
        wanted = zeros(keep.shape, sparsity)
    elif isinstance(cut, NofM):
        wanted = min(wanted, int(np.count_nonzero(~cut(np.zeros(keep.shape), 1.0))))
    elif (groups := getattr(cut, "groups", None)) is not None:
        kept = np.asarray(groups(keep.astype(np.float32)))
        found, kind = int(np.count_nonzero(kept == 0)), "groups"
        wanted = zeros_count(kept.size, sparsity)
    if found != wanted:
        _refuse(
            f"{received} {found} {kind} for {where}",
            f"{wanted}",
            "cut by rank instead of by value, or say which counts it reaches: zeros=function, "
            "or exact=False",
        )


def _check_promised(
    cut: Pattern, scores: np.ndarray, keep: np.ndarray, sparsity: float, name: str, where: str
) -> None:
    """What an earlier step of the same pattern promised to be zero is pruned first."""
    promised = np.where(keep, scores, -np.inf).astype(scores.dtype)
    again = _mask(cut, promised, sparsity, name, f"{where}, some -inf")
    if (again & ~keep).any():
        _refuse(
            f"{name} received, which keeps scores of -inf for {where}",
            "promised zeros pruned first",
            "let -inf rank below every other score, also where scores are pooled",
        )


def _tensors() -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    rng = np.random.default_rng(4)
    shapes = {"conv/kernel": (3, 3, 4, 8), "dense/kernel": (40, 12), "head/kernel": (12, 5)}
    random = {path: rng.random(shape, np.float32) for path, shape in shapes.items()}
    yield "random", random
    yield "equal", {path: np.ones(shape, np.float32) for path, shape in shapes.items()}
    yield "zero", {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    yield (
        "partly promised (-inf)",
        {path: np.where(tensor < 0.2, -np.inf, tensor) for path, tensor in random.items()},
    )
    yield "random", {"dense/kernel": random["dense/kernel"]}


def _shares(
    divide: allocations.Allocation,
    scores: dict[str, np.ndarray],
    sparsity: float,
    name: str,
    where: str,
) -> dict[str, float]:
    before = {path: tensor.tobytes() for path, tensor in scores.items()}
    found: Any = _called(lambda: divide(scores, sparsity), name, where)
    if not isinstance(found, Mapping) or set(found) != set(scores):
        got = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        _refuse(
            f"{name} received, which returned {got or 'nothing'} for {where}",
            f"a mapping with {', '.join(scores)}",
            "return {path: sparsity} with every path it was given and no other",
        )
    for path, share in found.items():
        number = isinstance(share, int | float | np.integer | np.floating)
        if not number or not math.isfinite(share) or not 0.0 <= share <= 1.0:
            _refuse(
                f"{name} received, which returned {share!r} for {path} ({where})",
                "a fraction of zeros in [0, 1]",
                "clip it, and share out what is left among the others",
            )
    if {path: tensor.tobytes() for path, tensor in scores.items()} != before:
        _refuse(
            f"{name} received, which changed the scores of {where}",
            "scores left as they were",
            "write no `*=` or `[...] =`; work on a copy",
        )
    if found != _called(lambda: divide(scores, sparsity), name, where):
        _refuse(f"{name} received, which returned two results for {where}", "one that repeats")
    return {path: float(share) for path, share in found.items()}
