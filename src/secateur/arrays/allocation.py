"""How sparse each tensor becomes so that the whole has one sparsity: `f(scores, sparsity)`.

`scores` maps the path of each tensor to its scores (or the scores of a pattern's groups) as
(..., in, out), larger = keep, -inf = already promised to be zero. The result maps each path to a
sparsity that `masks.zeros_count` turns into the exact count. What is counted is entries of
`scores`: weights, or groups.
"""

import fnmatch
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from secateur.arrays.masks import refuse_nan, unstructured, zeros_count
from secateur.errors import SecateurError, nearest

Scores = Mapping[str, np.ndarray]
Allocation = Callable[[Scores, float], dict[str, float]]


def uniform(scores: Scores, sparsity: float) -> dict[str, float]:
    """Give every tensor the same sparsity (Zhu & Gupta 2017, arXiv:1710.01878).

    >>> uniform({"a": np.ones((2, 3)), "b": np.ones((3, 4))}, 0.5)
    {'a': 0.5, 'b': 0.5}
    """
    zeros_count(0, sparsity)
    return dict.fromkeys(scores, sparsity)


def global_(scores: Scores, sparsity: float) -> dict[str, float]:
    """Rank the scores of all tensors together (Frankle & Carbin 2019, arXiv:1803.03635).

    Exactly `zeros_count` entries are pruned in all; of equal scores those of the first tensor go
    first, then the lowest index. A tensor of small scores may lose everything.

    >>> global_({"a": np.array([[1.0, 2.0]]), "b": np.array([[3.0, 4.0]])}, 0.75)
    {'a': 1.0, 'b': 0.5}
    """
    flat = [np.ravel(tensor) for tensor in scores.values()]
    pruned = ~unstructured(np.concatenate([*flat, np.zeros(0, np.float32)]), sparsity)
    ends = np.cumsum([tensor.size for tensor in flat])
    counts = [int(np.count_nonzero(part)) for part in np.split(pruned, ends)]
    return {
        path: _share(count, scores[path].size)
        for path, count in zip(scores, counts[:-1], strict=True)
    }


def erdos_renyi(scores: Scores, sparsity: float) -> dict[str, float]:
    """Density proportional to (in + out) / (in * out) (SET, Mocanu et al. 2018, arXiv:1707.04780).

    Small tensors stay denser than large ones. A tensor that would become more than dense stays
    dense and the others share what is left; the total is `zeros_count` of all entries, or what is
    promised already where that is more.

    >>> shares = erdos_renyi({"a": np.ones((20, 20)), "b": np.ones((4, 4))}, 0.75)
    >>> {path: round(share, 3) for path, share in shares.items()}
    {'a': 0.78, 'b': 0.0}
    """
    return _by_density(scores, sparsity, lambda shape: sum(shape[-2:]) / math.prod(shape[-2:]))


def erk(scores: Scores, sparsity: float) -> dict[str, float]:
    """Erdos-Renyi with the kernel's spatial axes (RigL, Evci et al. 2020, arXiv:1911.11134).

    Density proportional to (in + out + height + width) / (in * out * height * width), otherwise as
    `erdos_renyi`; the same for kernels without spatial axes.

    >>> shares = erk({"a": np.ones((3, 3, 4, 8)), "b": np.ones((1, 1, 8, 8))}, 0.5)
    >>> {path: round(share, 3) for path, share in shares.items()}
    {'a': 0.611, 'b': 0.0}
    """
    return _by_density(scores, sparsity, lambda shape: sum(shape) / math.prod(shape))


def lamp(scores: Scores, sparsity: float) -> dict[str, float]:
    """Rank the `lamp_scores` of all tensors together (LAMP, Lee et al. 2021, arXiv:2010.07611).

    Exactly `zeros_count` entries are pruned in all, but for the largest of each tensor, which
    always stays. Raises `SecateurError` for negative scores: LAMP reads magnitudes.

    >>> lamp({"a": np.array([[1.0, 2.0]]), "b": np.array([[30.0, 40.0]])}, 0.5)
    {'a': 0.5, 'b': 0.5}
    """
    ranked = {path: lamp_scores(tensor) for path, tensor in scores.items()}
    total = sum(tensor.size for tensor in ranked.values())
    wanted = zeros_count(total, sparsity)
    # The score of a largest weight is 1; equal smaller ones never come after it in a stable sort.
    tops = sum(bool((tensor > -np.inf).any()) for tensor in ranked.values())
    return global_(
        {path: np.sort(tensor, axis=None) for path, tensor in ranked.items()},
        _share(min(wanted, total - tops), total),
    )


def lamp_scores(scores: np.ndarray) -> np.ndarray:
    """Each score squared, over the sum of squares of itself and all larger; float64, shape kept.

    Of equal scores the one of lowest index counts as smaller. A promised zero (-inf) stays -inf.

    >>> lamp_scores(np.array([[1.0, 3.0], [2.0, -np.inf]])).round(4).tolist()
    [[0.0714, 1.0], [0.3077, -inf]]
    """
    flat = np.ravel(scores).astype(np.float64)
    refuse_nan(flat)
    alive = np.flatnonzero(flat > -np.inf)
    order = alive[np.argsort(flat[alive], kind="stable")]
    ranked = flat[order]
    if ranked.size and ranked[0] < 0:
        raise SecateurError(
            f"the score {ranked[0]:g} received for allocation lamp, expected magnitudes of 0 or "
            "more; fix: choose criterion l1, or allocation global"
        )
    # Scaled by the largest: the squares of float64 scores would otherwise overflow.
    largest = np.finfo(np.float64).max
    ranked = (
        np.minimum(ranked, largest) / min(largest, ranked[-1] or 1.0) if ranked.size else ranked
    )
    squares = np.square(ranked)
    rest = np.cumsum(squares[::-1])[::-1]
    flat[order] = np.divide(squares, rest, out=np.zeros_like(rest), where=rest > 0)
    flat[order[-1:]] = 1.0  # also where every score is 0
    return flat.reshape(np.shape(scores))


ALLOCATIONS: dict[str, Allocation] = {
    "uniform": uniform,
    "global": global_,
    "erdos-renyi": erdos_renyi,
    "erk": erk,
    "lamp": lamp,
}


@dataclass(frozen=True)
class PerLayer:
    """A sparsity for each tensor, by name: what `allocation` makes of a mapping.

    sparsities: (name or glob, sparsity) pairs, the first that matches wins. A name is that of the
    weight (`conv/kernel`), of its layer (`conv`), or the last part of the layer's in nested models.
    Tensors without a match take the overall sparsity. Raises `SecateurError` for a sparsity outside
    [0, 1), and when called for a name that matches nothing.

    >>> given = PerLayer((("conv*", 0.5),))
    >>> given({"conv1/kernel": np.ones((2, 3)), "d/kernel": np.ones((3, 2))}, 0.9)
    {'conv1/kernel': 0.5, 'd/kernel': 0.9}
    """

    sparsities: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        for name, sparsity in self.sparsities:
            number = isinstance(sparsity, int | float) and not isinstance(sparsity, bool)
            if not number or not 0.0 <= sparsity < 1.0:
                raise SecateurError(
                    f"sparsity {sparsity!r} received for {name!r}, expected a fraction of zeros in "
                    "[0, 1); fix: 0.5 for half"
                )

    def __call__(self, scores: Scores, sparsity: float) -> dict[str, float]:
        """Return the sparsity of each tensor."""
        zeros_count(0, sparsity)
        names = {path: _names(path) for path in scores}
        for wanted, _ in self.sparsities:
            if not any(_matches(known, wanted) for known in names.values()):
                known = dict.fromkeys(name for parts in names.values() for name in parts)
                raise SecateurError(
                    f"{wanted!r} received in a per-layer sparsity, expected a layer or weight that "
                    f"is pruned; fix: {nearest(wanted, known)}"
                )
        return {
            path: next((s for wanted, s in self.sparsities if _matches(known, wanted)), sparsity)
            for path, known in names.items()
        }

    def __str__(self) -> str:
        return f"per layer ({', '.join(f'{name} {s:g}' for name, s in self.sparsities)})"


def allocation(spec: str | Mapping[str, float] | Allocation) -> Allocation:
    """Return the allocation of that name, a `PerLayer` for a mapping, a user's function as it is.

    Raises `SecateurError` for an unknown name, with the nearest known one.

    >>> allocation("erk") is erk, allocation({"conv*": 0.5})
    (True, PerLayer(sparsities=(('conv*', 0.5),)))
    """
    if callable(spec):
        return spec
    if isinstance(spec, Mapping):
        return PerLayer(tuple(spec.items()))
    if not isinstance(spec, str) or spec not in ALLOCATIONS:
        raise SecateurError(
            f"unknown allocation {spec!r}, expected a name, a mapping of layers to sparsities or a "
            f"function (scores, sparsity) -> sparsities; fix: {nearest(spec, ALLOCATIONS)}"
        )
    return ALLOCATIONS[spec]


def describe(spec: str | Mapping[str, float] | Allocation) -> str:
    """Return the name of an allocation, what a mapping says, or a user's function's own name.

    >>> describe(global_), describe({"conv*": 0.5, "head": 0.9})
    ('global', 'per layer (conv* 0.5, head 0.9)')
    """
    known = allocation(spec)
    if isinstance(known, PerLayer):
        return str(known)
    names = [name for name, built_in in ALLOCATIONS.items() if built_in is known]
    return names[0] if names else getattr(known, "__name__", type(known).__name__)


def _share(count: int, size: int) -> float:
    """The sparsity that `zeros_count` turns back into `count`."""
    return count / size if size else 0.0


def _by_density(
    scores: Scores, sparsity: float, density: Callable[[tuple[int, ...]], float]
) -> dict[str, float]:
    """Densities in proportion to `density(shape)`, none above what is not promised to be zero."""
    for tensor in scores.values():
        refuse_nan(tensor)
    sizes = {path: tensor.size for path, tensor in scores.items()}
    most = {path: int(np.count_nonzero(tensor > -np.inf)) for path, tensor in scores.items()}
    parts = {
        path: tensor.size * density((1,) * (2 - tensor.ndim) + tensor.shape) if tensor.size else 0.0
        for path, tensor in scores.items()
    }
    total = sum(sizes.values())
    keep = min(total - zeros_count(total, sparsity), sum(most.values()))
    kept = _divided(keep, parts, most)
    return {path: _share(size - kept[path], size) for path, size in sizes.items()}


def _divided(count: int, parts: dict[str, float], most: dict[str, int]) -> dict[str, int]:
    """`count` in proportion to `parts`, at most `most` each, in whole numbers that add up."""

    def rounded(scale: float) -> dict[str, int]:
        return {p: min(most[p], math.floor(part * scale + 0.5)) for p, part in parts.items()}

    # Bisected rather than rounded and repaired: so no tensor's count falls as `count` grows, and
    # masks only close while a schedule proceeds.
    low, high = 0.0, max(((most[p] + 1) / part for p, part in parts.items() if part), default=1.0)
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if sum(rounded(middle).values()) <= count else (low, middle)
    kept, above = rounded(low), rounded(high)
    for path in parts:  # those that round up at the same scale, the first tensors first
        kept[path] += min(above[path] - kept[path], count - sum(kept.values()))
    return kept


def _names(path: str) -> tuple[str, ...]:
    """What a user may call the weight: its path, its layer, the layer's own name."""
    layer = path.rsplit("/", 1)[0]
    return path, layer, layer.rsplit("/", 1)[-1]


def _matches(names: tuple[str, ...], wanted: str) -> bool:
    return any(fnmatch.fnmatchcase(name, wanted) for name in names)
