"""Masks from scores: which weights stay, with exact counts whatever the ties; masks as bytes.

A mask is a bool array, True = keep. Sparsity is the fraction of zeros in [0, 1].
"""

import math
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from secateur.errors import SecateurError


def zeros_count(size: int, sparsity: float) -> int:
    """Return how many of `size` weights are zero at `sparsity`: floor(sparsity * size + 0.5).

    Raises `SecateurError` for a sparsity outside [0, 1].

    >>> zeros_count(108, 0.8), zeros_count(20_280, 0.8)
    (86, 16224)
    """
    if not 0.0 <= sparsity <= 1.0:
        fix = f"{sparsity / 100:g} for {sparsity:g} %" if 1 < sparsity <= 100 else "0.5 for half"
        raise SecateurError(
            f"sparsity {sparsity!r} received, expected a fraction of zeros in [0, 1]; fix: {fix}"
        )
    return math.floor(sparsity * size + 0.5)


def unstructured(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """Keep the weights with the largest scores; bool, shape of `scores`, True = keep.

    Exactly `zeros_count` entries are False: those that a stable ascending argsort of the flattened
    scores puts first, so of equal scores the lowest flat index goes first. Computed with a
    partition, about ten times faster than that sort. Raises `SecateurError` for NaN scores.

    >>> unstructured(np.array([3.0, 1.0, 1.0, 1.0]), 0.5).tolist()
    [True, False, False, True]
    """
    return next(unstructured_levels(scores, (sparsity,)))


def unstructured_levels(scores: np.ndarray, sparsities: Sequence[float]) -> Iterator[np.ndarray]:
    """Yield the mask of `unstructured` at each sparsity, in the order given; ranked once for all.

    >>> [keep.tolist() for keep in unstructured_levels(np.array([3.0, 1.0, 2.0]), (0.6, 0.4))]
    [[True, False, False], [True, False, True]]
    """
    flat = np.ravel(scores)
    counts = [zeros_count(flat.size, sparsity) for sparsity in sparsities]
    refuse_nan(flat)
    thresholds = _ranked(flat, {pruned - 1 for pruned in counts if pruned})
    for pruned in counts:
        if pruned == 0:
            yield np.ones(np.shape(scores), bool)
            continue
        threshold = thresholds[pruned - 1]
        keep = flat > threshold
        ties = np.flatnonzero(flat == threshold)
        pruned_ties = pruned - (flat.size - np.count_nonzero(keep) - ties.size)
        keep[ties[pruned_ties:]] = True
        yield keep.reshape(np.shape(scores))


def refuse_nan(scores: np.ndarray) -> None:
    """Raise `SecateurError` when a score is NaN: it would rank anywhere.

    >>> refuse_nan(np.array([1.0, -np.inf]))
    """
    if nan := np.count_nonzero(np.isnan(scores)):
        raise SecateurError(
            f"{nan:,} NaN among {np.size(scores):,} scores received, expected numbers; "
            "fix: repair the NaN weights, or the criterion that made them"
        )


def apply_mask(weight: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Return `weight` with +0.0 where `keep` is False; shape and dtype kept, kept values untouched.

    Written with `where`: a product leaves -0.0, which costs 14 % of a gzipped file. Raises
    `SecateurError` when the shapes differ.

    >>> apply_mask(np.array([-1.5, 2.0]), np.array([False, True])).tolist()
    [0.0, 2.0]
    """
    if weight.shape != keep.shape:
        raise SecateurError(
            f"a mask of shape {keep.shape} received for a weight of shape {weight.shape}, expected "
            "equal shapes; fix: a criterion must return one score for each weight"
        )
    return np.where(keep, weight, np.zeros((), weight.dtype))


def pack(mask: np.ndarray) -> bytes:
    """Return a bool array as bytes, 8 entries a byte, flat index 0 in the highest bit.

    >>> pack(np.array([True, False, True])).hex()
    'a0'
    """
    return np.packbits(np.asarray(mask, bool)).tobytes()


def unpack(packed: bytes, shape: Sequence[int]) -> np.ndarray:
    """Return the bool array of `shape` that `pack` packed; raises when the length does not fit.

    >>> unpack(bytes.fromhex("a0"), (3,)).tolist()
    [True, False, True]
    """
    size = math.prod(shape)
    if len(packed) != -(-size // 8):
        raise SecateurError(
            f"{len(packed):,} bytes received for a mask of shape {tuple(shape)}, expected "
            f"{-(-size // 8):,}; fix: take the mask from an undamaged record"
        )
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=size).astype(bool).reshape(shape)


def _ranked(flat: np.ndarray, ranks: Collection[int]) -> dict[int, np.generic]:
    """Return rank -> the value at it in the ascending sort of `flat`."""
    if not ranks:
        return {}
    smallest = flat.min()
    # The weights of an earlier mask all score 0, and a partition of many equal values is ten times
    # slower than one of distinct values (2.4 M, 80 % zeros: 98 against 10 ms): rank them by count.
    rest = flat[flat > smallest]
    equal = flat.size - rest.size
    above = sorted(rank - equal for rank in ranks if rank >= equal)
    parted = np.partition(rest, above) if above else rest
    return {rank: parted[rank - equal] if rank >= equal else smallest for rank in ranks}


def regrown(
    magnitude: np.ndarray, keep: np.ndarray, growth: np.ndarray, fraction: float
) -> np.ndarray:
    """Return a mask with as many kept: the smallest kept magnitudes out, the largest growth in.

    floor(fraction * kept + 0.5) weights are exchanged, as far as there are pruned ones to take
    their place; of equal scores the lowest index goes first and comes last. Raises `SecateurError`
    for a fraction outside [0, 1].

    >>> regrown(np.array([3.0, 1.0, 0.0, 0.0]), np.array([True, True, False, False]),
    ...         np.array([0.0, 0.0, 1.0, 2.0]), 0.5).tolist()
    [True, False, False, True]
    """
    kept, free = np.flatnonzero(keep), np.flatnonzero(~keep)
    count = min(zeros_count(kept.size, fraction), free.size)
    new = np.array(keep, bool)
    if count == 0:
        return new
    stays = unstructured(np.ravel(magnitude)[kept], count / kept.size)
    comes = unstructured(np.ravel(growth)[free], (free.size - count) / free.size)
    new.flat[kept[~stays]] = False
    new.flat[free[comes]] = True
    return new
