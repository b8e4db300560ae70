"""Plain training on, with nothing held: before pruning, or as a step that may move every weight."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from secateur.plan import Plan, plan_selection
from secateur.weights import Select, WeightTable


@dataclass(frozen=True, kw_only=True)
class FineTune:
    """Train on without holding anything; after pruning use `KeepZeros`, which a recipe insists on.

    >>> FineTune.keeps
    frozenset({'shape'})
    """

    kind: ClassVar[str] = "fine-tune"
    stage: ClassVar[str] = "fine-tuned"
    makes: ClassVar[frozenset[str]] = frozenset()
    keeps: ClassVar[frozenset[str]] = frozenset({"shape"})

    select: Select = field(
        default_factory=lambda: Select(roles=("kernel", "embedding", "bias", "norm", "other"))
    )

    def plan(self, table: WeightTable, *, zeros: Collection[str] = ()) -> Plan:
        """Every trainable weight is trained."""
        return plan_selection(self.kind, self.select, table, "trained")

    def callback(
        self,
        *,
        seed: int = 0,
        zeros: Mapping[str, np.ndarray] | None = None,
        data: Any = None,
    ) -> None:
        """Plain training needs none."""
        return None

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
