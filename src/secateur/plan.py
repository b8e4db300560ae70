"""What a method says it will do before it does it: the contract that every method keeps.

A method is a frozen config. `plan` is pure: every weight of the model ends as *changed (how)* or
*skipped (why)*. docs/decisions/003 explains how `makes` and `keeps` decide whether one step may
follow another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from secateur.promises import Promise
from secateur.weights import Select, WeightTable


@dataclass(frozen=True, kw_only=True)
class Change:
    """What one step does to one weight: `how` it is changed, or the `reason` why it is not."""

    step: str
    path: str
    shape: tuple[int, ...]
    size: int
    how: str | None = None
    reason: str | None = None

    @property
    def changed(self) -> bool:
        """Whether the step changes this weight."""
        return self.how is not None

    def to_record(self) -> dict[str, Any]:
        """Plain data for run.json."""
        return {
            "step": self.step,
            "path": self.path,
            "shape": list(self.shape),
            "size": self.size,
            "status": "changed" if self.changed else "skipped",
            "how": self.how,
            "reason": self.reason,
        }


class Plan:
    """The changes of one or several steps, in order; prints as a table."""

    def __init__(self, changes: Sequence[Change]):
        self.changes = tuple(changes)

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)

    @property
    def changed(self) -> tuple[str, ...]:
        """Paths of the weights that are changed."""
        return tuple(c.path for c in self.changes if c.changed)

    def __str__(self) -> str:
        """One line a weight: step, path, shape, what happens."""
        lines = []
        for c in self.changes:
            shape = "x".join(map(str, c.shape)) or "scalar"
            lines.append(
                f"{c.step:<12} {c.path:<32} {shape:<16} {c.how or 'skipped: ' + str(c.reason)}"
            )
        return "\n".join(lines)

    __repr__ = __str__


class Method(Protocol):
    """What a recipe step must offer. `kind` names it in a recipe, `stage` names its result.

    makes: kinds of promise that hold once the step is done. keeps: kinds of earlier promise that
    it does not break.
    """

    kind: ClassVar[str]
    stage: ClassVar[str]
    makes: ClassVar[frozenset[str]]
    keeps: ClassVar[frozenset[str]]

    def plan(self, table: WeightTable, *, zeros: Collection[str] = ()) -> Plan:
        """Every weight of the table: changed (how) or skipped (why). Changes nothing.

        zeros: paths to which earlier steps will have given zeros by then.
        """
        ...

    def callback(
        self,
        *,
        seed: int = 0,
        zeros: Mapping[str, np.ndarray] | None = None,
        data: Any = None,
    ) -> Any:
        """A Keras callback that acts during `fit`; None where plain training is all there is.

        Afterwards it has `masks` (path -> True = kept), `curve` (step, sparsity) and `notes`.

        zeros: path -> bool array, True where an earlier step promised a zero. data: training
        samples (x, y) or a list of batches, for methods that look at gradients or activations.
        """
        ...

    def apply(
        self,
        model: Any,
        *,
        seed: int = 0,
        zeros: Mapping[str, np.ndarray] | None = None,
        data: Any = None,
        loss: Any = None,
    ) -> dict[str, np.ndarray]:
        """Act at once on the model's weights, without training; path -> mask, True = kept."""
        ...


def promised_zeros(
    masks: Mapping[str, np.ndarray], table: WeightTable, earlier: Sequence[Promise] = ()
) -> tuple[Promise, ...]:
    """Earlier promises and those of the masks (path -> True = kept) that a step held.

    What the masks claim, not what came out of training: had the zeros been lost on the way, a
    promise read back from the weights would agree with the loss. A kept weight that is zero by
    itself belongs to it too, since in floats the zeros are exactly those promised.
    """
    found = {(p.path, p.kind): p for p in earlier}
    for path, keep in masks.items():
        zeros = ~keep | (table[path].read() == 0)
        found[path, "zeros"] = Promise(path, "zeros", zeros, table[path].shape)
    return tuple(found.values())


def plan_selection(step: str, select: Select, table: WeightTable, how: str) -> Plan:
    """The plan of a method that treats all selected weights alike."""
    reasons = select.reasons(table)
    return Plan(
        [
            Change(
                step=step,
                path=w.path,
                shape=w.shape,
                size=w.size,
                how=how if reasons[w.path] is None else None,
                reason=reasons[w.path],
            )
            for w in table
        ]
    )
