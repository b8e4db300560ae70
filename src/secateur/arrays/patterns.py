"""Which zeros stand together: callables `f(scores, sparsity) -> keep` over canonical scores.

Scores are (..., in, out) as `layout.canonical` makes them, larger = keep, -inf = already promised
to be zero; `keep` is bool, True = kept. The built-in patterns also show their `groups`: one score
for each group of weights that lives or dies together, for rankings across tensors.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from secateur.arrays.masks import refuse_nan, unstructured, zeros_count
from secateur.errors import SecateurError, nearest

Pattern = Callable[[np.ndarray, float], np.ndarray]

POOLINGS = ("mean", "max")
GRAMMAR = "'unstructured', 'units', '2:4', 'block 16x1' or 'block 3x3x1x1 max'"


@dataclass(frozen=True)
class Unstructured:
    """Zeros anywhere (Han et al. 2015, arXiv:1506.02626).

    >>> Unstructured()(np.array([[3.0, 1.0], [2.0, 4.0]]), 0.5).tolist()
    [[True, False], [False, True]]
    """

    def __call__(self, scores: np.ndarray, sparsity: float) -> np.ndarray:
        """Keep the largest scores; exactly `zeros_count` weights are pruned."""
        return unstructured(scores, sparsity)

    def groups(self, scores: np.ndarray) -> np.ndarray:
        """Return the scores themselves: each weight is its own group."""
        return scores

    def __str__(self) -> str:
        return "unstructured"


@dataclass(frozen=True)
class Block:
    """Whole blocks of zeros, for kernels that skip them (Narang et al. 2017, arXiv:1711.02782).

    shape: extents over the last axes of (..., in, out); axes before them count as 1. pooling: how a
    block's scores become one, "mean" or "max". Partial blocks at ragged edges pool only the cells
    they have; a promised zero (-inf) pools as 0, a block of nothing else as -inf. LiteRT's 1x16
    blocks lie in kernels of [out, in]: here they are (16, 1).

    >>> Block((2, 1))(np.array([[1.0, 2.0], [2.0, 2.0], [9.0, 0.0]]), 0.5).tolist()
    [[False, True], [False, True], [True, False]]
    """

    shape: tuple[int, ...]
    pooling: str = "mean"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if not self.shape or not all(type(n) is int and n > 0 for n in self.shape):
            raise SecateurError(
                f"block shape {self.shape} received, expected whole extents of 1 or more; "
                "fix: Block((16, 1)) is 16 inputs of one output"
            )
        if self.pooling not in POOLINGS:
            raise SecateurError(
                f"block pooling {self.pooling!r} received, expected one of {', '.join(POOLINGS)}; "
                f"fix: {nearest(self.pooling, POOLINGS)}"
            )

    def __call__(self, scores: np.ndarray, sparsity: float) -> np.ndarray:
        """Keep the blocks of largest score; exactly `zeros_count` of the blocks are pruned."""
        extents = self._extents(scores.shape)
        return _spread(unstructured(self.groups(scores), sparsity), extents, scores.shape)

    def groups(self, scores: np.ndarray) -> np.ndarray:
        """Return one score a block: as many axes as `scores`, each divided by its extent, up."""
        return _pooled(scores, self._extents(scores.shape), self.pooling)

    def __str__(self) -> str:
        text = f"block {'x'.join(map(str, self.shape))}"
        return text if self.pooling == "mean" else f"{text} {self.pooling}"

    def _extents(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if reason := check_fits(self, shape):
            raise SecateurError(
                f"{self} received for scores of shape {shape}: {reason}; "
                f"fix: give {len(shape)} extents at most, as {Block(self.shape[-len(shape) :])}"
            )
        return (1,) * (len(shape) - len(self.shape)) + self.shape


@dataclass(frozen=True)
class NofM:
    """N of each M consecutive inputs stay, as 2:4 (Mishra et al. 2021, arXiv:2104.08378).

    Groups run along the input axis (-2); a last, partial group of r keeps min(n, r). Below the
    sparsity of the pattern, as at the beginning of a schedule, the lowest scores among the weights
    that the N:M mask prunes are pruned; never is more pruned than that mask does.

    >>> NofM(2, 4)(np.array([[3.0], [1.0], [2.0], [4.0]]), 0.5).ravel().tolist()
    [True, False, False, True]
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not (type(self.n) is int and type(self.m) is int and 0 < self.n < self.m):
            raise SecateurError(
                f"{self.n}:{self.m} received, expected N:M with 1 <= N < M; "
                "fix: '2:4' keeps two of each four weights"
            )

    @property
    def final(self) -> float:
        """The sparsity of whole groups, 1 - n/m."""
        return 1 - self.n / self.m

    def __call__(self, scores: np.ndarray, sparsity: float) -> np.ndarray:
        """Keep n of each m; below the final sparsity exactly `zeros_count` weights are pruned."""
        wanted = zeros_count(scores.size, sparsity)
        refuse_nan(scores)
        keep = self._final_mask(scores)
        pruned = np.flatnonzero(~keep)
        if sparsity >= self.final or wanted >= pruned.size:
            return keep
        first = unstructured(np.ravel(scores)[pruned], wanted / pruned.size)
        keep.flat[pruned[first]] = True
        return keep

    def groups(self, scores: np.ndarray) -> np.ndarray:
        """Return the scores themselves: weights are pruned one by one, within their group."""
        return scores

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def _final_mask(self, scores: np.ndarray) -> np.ndarray:
        inputs = np.moveaxis(scores, -2, -1)
        whole = inputs.shape[-1] // self.m * self.m
        groups = inputs[..., :whole].reshape(*inputs.shape[:-1], -(-whole // self.m), self.m)
        parts = (
            _largest(groups, self.n).reshape(*inputs.shape[:-1], whole),
            _largest(inputs[..., whole:], self.n),
        )
        return np.ascontiguousarray(np.moveaxis(np.concatenate(parts, -1), -1, -2))


@dataclass(frozen=True)
class Units:
    """Whole outputs (the last axis) are zero: filters, neurons (Li et al. 2017, arXiv:1608.08710).

    A unit's score is the mean over everything that feeds it; a promised zero (-inf) counts as 0, a
    unit of nothing else as -inf.

    >>> Units()(np.array([[3.0, 1.0], [1.0, 2.0]]), 0.5).tolist()
    [[True, False], [True, False]]
    """

    def __call__(self, scores: np.ndarray, sparsity: float) -> np.ndarray:
        """Keep the units of largest score; exactly `zeros_count` of the units are pruned."""
        return np.broadcast_to(unstructured(self.groups(scores), sparsity), scores.shape).copy()

    def groups(self, scores: np.ndarray) -> np.ndarray:
        """Return one score a unit, shape (out,)."""
        if not scores.size:
            return np.full(scores.shape[-1], -np.inf)
        return _pooled(scores, (*scores.shape[:-1], 1), "mean").reshape(-1)

    def __str__(self) -> str:
        return "units"


def pattern(spec: str | Pattern) -> Pattern:
    """Return the pattern that a text names, or a pattern or a user's function as it is.

    Texts: 'unstructured', 'units', '2:4', 'block 16x1' or 'block 3x3x1x1 max'. Raises
    `SecateurError` for any other, with the nearest.

    >>> pattern("2:4"), pattern("block 3x3x1x1 max")
    (NofM(n=2, m=4), Block(shape=(3, 3, 1, 1), pooling='max'))
    """
    if callable(spec):
        return spec
    named: dict[str, Pattern] = {"unstructured": Unstructured(), "units": Units()}
    text = str(spec)
    if text in named:
        return named[text]
    if found := re.fullmatch(r"(\d+):(\d+)", text):
        return NofM(int(found[1]), int(found[2]))
    if found := re.fullmatch(r"block (\d+(?:x\d+)*)(?: (\w+))?", text):
        return Block(tuple(int(extent) for extent in found[1].split("x")), found[2] or "mean")
    raise SecateurError(
        f"unknown pattern {spec!r}, expected {GRAMMAR}, or a function (scores, sparsity) -> keep; "
        f"fix: {nearest(spec, [*named, '2:4', 'block 16x1'])}"
    )


def describe(spec: str | Pattern) -> str:
    """Return the text that `pattern` reads; a user's function by its own name.

    >>> describe(Block((16, 1))), describe(NofM(1, 4))
    ('block 16x1', '1:4')
    """
    known = pattern(spec)
    if isinstance(known, Unstructured | Block | NofM | Units):
        return str(known)
    return getattr(known, "__name__", type(known).__name__)


def check_fits(pattern: Pattern, shape: tuple[int, ...]) -> str | None:
    """Return why a pattern cannot apply to a canonical shape (..., in, out); None: it can.

    >>> check_fits(NofM(2, 4), (3, 3, 3, 16))
    'input axis of 3 is shorter than a group of 4'
    """
    if isinstance(pattern, NofM) and shape[-2] < pattern.m:
        return f"input axis of {shape[-2]} is shorter than a group of {pattern.m}"
    if isinstance(pattern, Block) and len(pattern.shape) > len(shape):
        return f"a block of {len(pattern.shape)} axes has more than the weight's {len(shape)}"
    return None


def _largest(groups: np.ndarray, n: int) -> np.ndarray:
    """Keep the n largest along the last axis; of equal scores the lowest index goes first."""
    keep = np.ones(groups.shape, bool)
    order = np.argsort(groups, axis=-1, kind="stable")
    np.put_along_axis(keep, order[..., : max(0, groups.shape[-1] - n)], False, axis=-1)
    return keep


def _pooled(scores: np.ndarray, extents: tuple[int, ...], pooling: str) -> np.ndarray:
    """One score a block, float; edges pool only real cells. The mean is summed in float64."""
    scores = np.asarray(scores, np.result_type(scores.dtype, np.float32))
    promised = np.isneginf(scores)
    scores = np.where(promised, 0, scores)
    if pooling == "max":
        pooled = _blocks(scores, extents, -np.inf).max(axis=-1, initial=-np.inf)
    else:
        cells = _blocks(np.ones(scores.shape, np.int32), extents, 0).sum(axis=-1)
        total = _blocks(scores, extents, 0).sum(axis=-1, dtype=np.float64)
        pooled = total / np.maximum(cells, 1)
    dead = _blocks(promised, extents, True).all(axis=-1)
    return np.where(dead, -np.inf, pooled)


def _blocks(array: np.ndarray, extents: tuple[int, ...], edge: float) -> np.ndarray:
    """Shape (*grid, cells of a block): ragged edges filled up with `edge`."""
    grid = [-(-size // extent) for size, extent in zip(array.shape, extents, strict=True)]
    missing = [
        (0, count * extent - size)
        for count, extent, size in zip(grid, extents, array.shape, strict=True)
    ]
    padded = np.pad(array, missing, constant_values=edge) if any(m for _, m in missing) else array
    split = padded.reshape([n for pair in zip(grid, extents, strict=True) for n in pair])
    apart = [*range(0, split.ndim, 2), *range(1, split.ndim, 2)]
    return split.transpose(apart).reshape(*grid, int(np.prod(extents)))


def _spread(keep: np.ndarray, extents: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Each block's verdict on all of its cells, cut to `shape`."""
    for axis, extent in enumerate(extents):
        keep = np.repeat(keep, extent, axis) if extent > 1 else keep
    return np.ascontiguousarray(keep[tuple(slice(size) for size in shape)])
