"""Accuracy of one dense network at many one-shot sparsities: ranked once, traced once, forward passes only.

The model's own weights are never written: each sparsity hands its arrays to one compiled function.
Unit pruning of a chain of Dense layers is computed at the widths that are left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from keras import ops

from secateur.arrays import criteria, patterns
from secateur.arrays.masks import apply_mask, pack, unpack, unstructured_levels
from secateur.arrays.ranking import Ranked, masks, scored
from secateur.arrays.schedules import Schedule
from secateur.capture import evidence
from secateur.dense_chain import Arrays, Chain, Dead, chain, dead_shares, is_chain
from secateur.errors import Impossible, SecateurError
from secateur.methods.prune import Prune
from secateur.methods.units import PruneUnits, UnitRanking
from secateur.outputs import require_finite
from secateur.passes import Forward, even_batches
from secateur.runtimes.keras import culprit, meanings_of
from secateur.scoring import chosen, score
from secateur.weights import weight_table

Changed = Mapping[str, Callable[[], np.ndarray]]  # path -> how to read the value it gets


@dataclass(frozen=True, kw_only=True)
class OneShotPoint:
    """What one sparsity gives on the samples that were evaluated.

    asked: of the selected weights or units. realised, layers: zeros among all kernels, and in each.
    widths, dead: of a network evaluated at its kept widths. norm_removed: share of the summed
    squared weights of all kernels that became zero. metrics: `accuracy` and `loss`, for quantities
    `mse` and `mae`. right: bool, one a sample; predictions: the class chosen. wall, cpu: seconds for
    cutting, the forward pass and scoring. error: why the sparsity is impossible, else None.
    """

    asked: float
    realised: float | None = None
    layers: Mapping[str, float] = field(default_factory=dict)
    widths: tuple[int, ...] | None = None
    dead: Dead | None = None
    norm_removed: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    right: np.ndarray | None = field(default=None, repr=False)
    predictions: np.ndarray | None = field(default=None, repr=False)
    wall: float = 0.0
    cpu: float = 0.0
    error: str | None = None


def one_shot_curve(
    model: Any,
    method: Prune | PruneUnits,
    sparsities: Sequence[float],
    x: np.ndarray,
    y: np.ndarray,
    *,
    seed: int = 0,
    data: Any = None,
    loss: Any = None,
    outputs: str | None = None,
) -> list[OneShotPoint]:
    """Evaluate `model` on (x, y) at each sparsity of `method`, in the order given; changes nothing.

    The method's own sparsity and schedule are not looked at. data, loss: for methods that look at
    gradients or activations, as for `apply`; outputs: "logits" or "probabilities", None: as the last
    activation, else the loss says. Raises SecateurError for a method that cannot act
    without training; a sparsity that is impossible is a point with an `error`.

    >>> import keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5), keras.layers.Dense(2)])
    >>> x, y = np.ones((6, 4), "float32"), np.array([0, 1] * 3)
    >>> curve = one_shot_curve(model, Prune(sparsity=0.5), (0.0, 0.5), x, y)
    >>> [point.realised for point in curve]
    [0.0, 0.5]
    """
    curve = OneShotCurve(
        model, method, sparsities, seed=seed, data=data, loss=loss, outputs=outputs
    )
    return curve.evaluate(x, y)


class OneShotCurve:
    """One dense network and one method, ranked; `evaluate` reads it on any samples, at any time.

    The arguments are those of `one_shot_curve`. ranking_seconds: wall time of scoring, which all
    sparsities share.

    >>> import keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5), keras.layers.Dense(2)])
    >>> curve = OneShotCurve(model, PruneUnits(sparsity=0.5), (0.2, 0.6))
    >>> x, y = np.ones((6, 4), "float32"), np.array([0, 1] * 3)
    >>> [point.widths for point in curve.evaluate(x, y)]
    [(4, 2), (2, 2)]
    """

    def __init__(
        self,
        model: Any,
        method: Prune | PruneUnits,
        sparsities: Sequence[float],
        *,
        seed: int = 0,
        data: Any = None,
        loss: Any = None,
        outputs: str | None = None,
    ):
        if not isinstance(method, Prune | PruneUnits) or getattr(method, "rewind", None):
            raise SecateurError(
                f"method {getattr(method, 'kind', method)!r} received, expected prune (without rewind) "
                "or units, which act without training; fix: run it as a recipe"
            )
        methods = [_at(method, sparsity) for sparsity in sparsities]
        begun = time.perf_counter()
        self.model = model
        self.meaning = outputs or next(iter(meanings_of(model, loss=loss).values()))
        self._kernels = {
            w.path: w.read() for w in weight_table(model) if w.role in ("kernel", "embedding")
        }
        self._squares = sum(_squares(value) for value in self._kernels.values())
        if isinstance(method, PruneUnits):
            by_units = True
            cut = _units(method.rank(model, data))
        else:
            by_units = isinstance(patterns.pattern(method.pattern), patterns.Units)
            cut = _weights(method, methods, model, seed, data, loss)
        self._chain = chain(model) if by_units and is_chain(model) else None
        self._forward = (
            Forward(_stateless(model)) if self._chain is None else Forward(self._chain.forward)
        )
        self.ranking_seconds = time.perf_counter() - begun
        self._cuts = [self._prepared(sparsity, cut) for sparsity in map(float, sparsities)]

    @property
    def traces(self) -> int | None:
        """How often the backend traced the forward pass by now; None where nothing is traced."""
        return self._forward.traces

    def evaluate(self, x: np.ndarray, y: np.ndarray) -> list[OneShotPoint]:
        """The points on these samples, in the order of the sparsities."""
        if not len(x) or len(x) != len(y):
            raise SecateurError(
                f"{len(x)} samples and {len(y)} labels received, expected as many of each, 1 or more; "
                "fix: give x and y of one data set"
            )
        batches = list(even_batches(self.model, np.asarray(x)))
        return [self._evaluated(cut, batches, np.asarray(y)) for cut in self._cuts]

    def _prepared(self, sparsity: float, cut: Callable[[float], Changed]) -> _Cut:
        """What one sparsity changes, and what there is to say of it before any sample is seen."""
        with clock() as took:
            try:
                changed = cut(sparsity)
                arrays = {path: read() for path, read in changed.items()}
                point = {"asked": sparsity, **self._counted(arrays)}
                small = None
                if self._chain is not None:
                    small, facts = _narrowed(self._chain, arrays)
                    point |= facts
            except Impossible as error:
                return _Cut(point={"asked": sparsity, "error": str(error)}, took=took)
        return _Cut(point=point, took=took, changed=changed, small=small)

    def _evaluated(self, cut: _Cut, batches: list[Any], y: np.ndarray) -> OneShotPoint:
        if "error" in cut.point:
            return OneShotPoint(**cut.point)
        with clock() as took:
            given = (cut.small,) if cut.small is not None else self._values(cut.changed)
            outputs = self._forward.over(batches, len(y), *given)
            require_finite(outputs, lambda rows: self._culprit(batches, int(rows[0])))
            found = judged(outputs, y, self.meaning)
        wall, cpu = (cut.took[key] + took[key] for key in ("wall", "cpu"))
        return OneShotPoint(**cut.point, **found, wall=wall, cpu=cpu)

    def _culprit(self, batches: list[Any], row: int) -> str:
        place, row = divmod(row, len(batches[0]))
        return f"{self.model.name} ({culprit(self.model, [batches[place][row : row + 1]])})"

    def _values(self, changed: Changed) -> tuple[list[Any], list[Any]]:
        """The values of the model's variables, some of them changed."""
        by_variable = {
            id(w.variable): changed[w.path] for w in weight_table(self.model) if w.path in changed
        }

        def value(variable: Any) -> Any:
            read = by_variable.get(id(variable))
            return ops.convert_to_tensor(variable.value if read is None else read())

        model = self.model
        return (
            [value(v) for v in model.trainable_variables],
            [value(v) for v in model.non_trainable_variables],
        )

    def _counted(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Zeros among the kernels, and what of their norm went."""
        layers, zeros, gone = {}, 0, 0.0
        for path, dense in self._kernels.items():
            zero = arrays.get(path, dense) == 0
            if path in arrays and zero.all() and dense.any():
                raise Impossible(
                    f"no weight of {path} {dense.shape} is left, expected one or more; fix: ask for "
                    "less sparsity, or leave this layer out (select)"
                )
            count = int(np.count_nonzero(zero))
            layers[path] = count / zero.size
            zeros += count
            gone += _squares(np.where(zero, dense, np.zeros((), dense.dtype))) if count else 0.0
        size = sum(value.size for value in self._kernels.values())
        norm = gone / self._squares if self._squares else None
        return {"realised": zeros / size, "layers": layers, "norm_removed": norm}


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """One sparsity, cut: what there is to say of it, and what to evaluate."""

    point: Mapping[str, Any]
    took: Mapping[str, float]  # wall and CPU seconds
    changed: Changed = field(default_factory=dict, repr=False)
    small: Arrays | None = field(default=None, repr=False)


def _at(method: Prune | PruneUnits, sparsity: float) -> Prune | PruneUnits:
    """The method at that sparsity, all at once; refuses what it could not be."""
    once = {"schedule": Schedule()} if isinstance(method, Prune) else {}
    return dataclasses.replace(method, sparsity=float(sparsity), **once)


def _units(ranking: UnitRanking) -> Callable[[float], Changed]:
    def cut(sparsity: float) -> Changed:
        arrays = ranking.arrays(ranking.kept(sparsity))
        found: dict[str, np.ndarray] = {}
        for link, (kernel, bias) in zip(ranking.chain.links, arrays, strict=True):
            found |= {link.kernel: kernel} | ({} if link.bias is None else {link.bias: bias})
        return {path: functools.partial(_itself, value) for path, value in found.items()}

    return cut


def _weights(
    method: Prune,
    methods: Sequence[Any],
    model: Any,
    seed: int,
    data: Any,
    loss: Any,
) -> Callable[[float], Changed]:
    """Ranks now; the masks of all sparsities are kept as bits."""
    table = weight_table(model)
    weights = {path: table[path] for path in method.plan(table).changed}
    for weight in weights.values():
        weight.require_finite()
    needs = criteria.needs(criteria.criterion(method.criterion))
    seen = evidence(model, weights, needs, data, loss)
    ranked = {
        path: scored(
            Ranked(path=path, read=w.read, axes=w.axes, evidence=seen.get(path, {})),
            method.criterion,
            seed,
        )
        for path, w in weights.items()
    }
    wanted = [m.final for m in methods]
    plain = isinstance(patterns.pattern(method.pattern), patterns.Unstructured)
    packed: dict[float, dict[str, bytes]] = {sparsity: {} for sparsity in wanted}
    if plain and method.allocation == "uniform":
        for path, weight in ranked.items():
            levels = unstructured_levels(weight.known, wanted)
            for sparsity, keep in zip(wanted, levels, strict=True):
                packed[sparsity][path] = pack(keep)
    else:
        for m in methods:
            for path, _, keep in masks(
                ranked, m.final, by=m.criterion, shape=m.pattern, share=m.allocation,
                final=m.final, seed=seed,
            ):  # fmt: skip
                packed[m.final][path] = pack(keep)

    def masked(path: str, bits: bytes) -> np.ndarray:
        value = ranked[path].read()
        return apply_mask(value, unpack(bits, value.shape))

    def cut(sparsity: float) -> Changed:
        return {path: functools.partial(masked, path, b) for path, b in packed[sparsity].items()}

    return cut


def _narrowed(links: Chain, arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, dict[str, Any]]:
    """The arrays of the kept widths, and what there is to say of them."""
    full = [
        (arrays.get(link.kernel, kernel), arrays.get(link.bias or "", bias))
        for link, (kernel, bias) in zip(links.links, links.read(), strict=True)
    ]
    kept = links.kept_units(full)
    small = links.sliced(full, kept)
    widths = tuple(kernel.shape[1] for kernel, _ in small)
    return small, {"widths": widths, "dead": dead_shares([k.shape for k, _ in full], kept)}


def _stateless(model: Any) -> Callable[..., Any]:
    def forward(trainable: list[Any], non_trainable: list[Any], x: Any) -> Any:
        outputs, _ = model.stateless_call(trainable, non_trainable, x, training=False)
        if isinstance(outputs, list | tuple | dict):
            raise SecateurError(
                f"model {model.name!r} with {len(outputs)} outputs received, expected one; fix: "
                "wrap the output to be read, keras.Model(model.inputs, model.outputs[0])"
            )
        return outputs

    return forward


def judged(outputs: np.ndarray, y: np.ndarray, meaning: str | None = None) -> dict[str, Any]:
    """Return the metrics, and where there are classes predictions and right, one a sample.

    meaning: of the outputs, as for `scoring.score`.

    >>> judged(np.array([[0.2, 0.8], [0.9, 0.1]]), np.array([1, 1]))["right"].tolist()
    [True, False]
    """
    metrics = score(outputs, y, meaning)
    if "accuracy" not in metrics or outputs.ndim != 2:
        return {"metrics": metrics}
    several = outputs.shape[1] > 1 and y.shape == outputs.shape
    labels = y.argmax(-1) if several else y.reshape(-1)
    classes = chosen(outputs, meaning)
    return {"metrics": metrics, "predictions": classes, "right": classes == labels}


@contextlib.contextmanager
def clock() -> Iterator[dict[str, float]]:
    """Wall and CPU seconds of the block, filled in when it ends.

    >>> with clock() as took:
    ...     pass
    >>> sorted(took), took["wall"] >= 0
    (['cpu', 'wall'], True)
    """
    took = {"wall": 0.0, "cpu": 0.0}
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield took
    finally:
        took |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def _squares(value: np.ndarray) -> float:
    flat = np.ravel(value).astype(np.float32, copy=False)
    return float(np.vdot(flat, flat))


def _itself(value: np.ndarray) -> np.ndarray:
    return value
