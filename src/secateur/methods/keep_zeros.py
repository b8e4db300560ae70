"""Any later training of a model that already has zeros, without losing one of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from secateur.errors import SecateurError
from secateur.plan import Change, Plan, plan_selection
from secateur.project import Projection, ProjectionCallback
from secateur.weights import Select, Weight, WeightTable


@dataclass(frozen=True, kw_only=True)
class KeepZeros:
    """Train on and keep every weight that is zero now at zero.

    A weight that is zero throughout (a kernel not trained yet) is left free.

    >>> KeepZeros().callback()  # doctest: +ELLIPSIS
    <secateur.methods.keep_zeros.KeepZerosCallback object at ...>
    """

    kind: ClassVar[str] = "keep-zeros"
    stage: ClassVar[str] = "tuned"
    makes: ClassVar[frozenset[str]] = frozenset()
    keeps: ClassVar[frozenset[str]] = frozenset({"zeros", "shape"})

    select: Select = field(default_factory=Select)

    def plan(self, table: WeightTable, *, zeros: Collection[str] = ()) -> Plan:
        """Which weights have zeros that are held; `zeros`: those that will have some by then."""
        changes = []
        for change in plan_selection(self.kind, self.select, table, "its zeros are kept"):
            count = int((table[change.path].read() == 0).sum()) if change.changed else 0
            if change.changed and change.path not in zeros and count in (0, change.size):
                reason = "no zeros" if count == 0 else "zero throughout"
                change = Change(
                    step=self.kind,
                    path=change.path,
                    shape=change.shape,
                    size=change.size,
                    reason=reason,
                )
            changes.append(change)
        return Plan(changes)

    def callback(
        self,
        *,
        seed: int = 0,
        zeros: Mapping[str, np.ndarray] | None = None,
        data: Any = None,
    ) -> KeepZerosCallback:
        """A callback for your own `model.fit`."""
        return KeepZerosCallback(self, zeros)

    def apply(
        self,
        model: Any,
        *,
        seed: int = 0,
        zeros: Mapping[str, np.ndarray] | None = None,
        data: Any = None,
        loss: Any = None,
    ) -> dict[str, np.ndarray]:
        """Nothing to do without training."""
        return {}


class KeepZerosCallback(ProjectionCallback):
    """Holds the zeros that the model has when training begins; made by `KeepZeros.callback`."""

    first = True  # what another method prunes in the same step is that one's

    def __init__(self, method: KeepZeros, zeros: Mapping[str, np.ndarray] | None = None):
        super().__init__(zeros)
        self.method = method
        self._held = False

    def weights_to_hold(self, table: WeightTable) -> Mapping[str, Weight]:
        """The selected weights that have zeros; none at all is refused."""
        self._held = False
        weights = {path: table[path] for path in self.method.plan(table).changed}
        if not weights and not self.zeros:
            raise SecateurError(
                f"model {self.model.name!r} has no zeros to keep in its selected weights; prune it first"
            )
        return weights

    def masks_at(self, step: int, last: int, projection: Projection) -> None:
        """Read the masks from the weights before the first step (a restored checkpoint included)."""
        if self._held:
            return
        _ = self.model
        for path, weight in projection.weights.items():
            value = weight.read()
            projection.hold(path, value != 0, value)
        self._held = True
