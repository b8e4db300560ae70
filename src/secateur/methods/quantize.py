"""Quantization as a step, after training or aware of it: a specification is left for export."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from secateur.errors import SecateurError, nearest
from secateur.plan import Change, Plan
from secateur.quantization import QUANTIZATIONS
from secateur.substitute_training import SubstitutionCallback
from secateur.weights import Select, Weight, WeightTable
from secateur.widths import Specification, Width

# Layers whose operators have kernels for 4-bit weights; others get 8 bits instead.
FOUR_BITS = {"Dense", "Conv1D", "Conv2D", "EinsumDense"}
# Layers that no integer operator exists for, whatever the format.
FLOAT = {"Conv3D", "Conv3DTranspose"}


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Say in how many bits the file of this step stores the selected kernels.

    format: of the file, a name of `secateur.quantization.QUANTIZATIONS`. bits: of a selected
    kernel, if not the format's own. block: weights that share a scale, for 4 bits in Dense layers.
    otherwise: bits of the kernels that neither this step nor an earlier one selects; None: floats.
    select: frozen weights belong to it too, since no training has to change them.
    aware: train through the grids of the file, which are then the ones that it has; freeze: the
    part of that training, in [0, 1], after which BatchNorm keeps its statistics.

    Several such steps make one file: a later one decides anew for what it selects.

    >>> Quantize(format="int4", block=32).width
    Width(bits=4, block=32)
    """

    kind: ClassVar[str] = "quantize"
    stage: ClassVar[str] = "quantized"
    makes: ClassVar[frozenset[str]] = frozenset({"bits"})
    keeps: ClassVar[frozenset[str]] = frozenset({"zeros", "shape", "bits"})

    format: str = "int8"
    bits: int | None = None
    block: int | None = None
    otherwise: int | None = None
    select: Select = field(default_factory=Select)
    aware: bool = False
    freeze: float = 0.5

    def __post_init__(self) -> None:
        if self.format not in QUANTIZATIONS:
            raise SecateurError(
                f"unknown format {self.format!r}; {nearest(self.format, QUANTIZATIONS)}"
            )
        wanted = [self.width] + ([] if self.otherwise is None else [Width(bits=self.otherwise)])
        integers = QUANTIZATIONS[self.format].activations is not None
        for width in wanted:
            if width.bits == 16 and integers:
                raise SecateurError(
                    f"16 bits received for the format {self.format}, expected 4 or 8 in a file of "
                    "integers; fix: choose one, or the format float16"
                )
            if width.block is not None and integers:
                raise SecateurError(
                    f"block {width.block} received for the format {self.format}, expected int4 or "
                    "dynamic, which compute activations in float; fix: leave the block out"
                )
        if self.aware and (self.block is not None or self.width.bits == 16):
            raise SecateurError(
                f"{self.width} received with aware = true, expected 4 or 8 bits with a scale for each "
                "output; fix: leave aware out, or choose the bits"
            )
        if not 0 <= self.freeze <= 1:
            raise SecateurError(
                f"freeze {self.freeze!r} received, expected a part of the training in [0, 1]; fix: 0.5"
            )

    @property
    def trains(self) -> bool:
        """Whether a training belongs to it."""
        return self.aware

    @property
    def needs_data(self) -> bool:
        """Whether it looks at samples: for the first ranges of activations."""
        return self.aware

    @property
    def width(self) -> Width:
        """The width that is asked for."""
        bits = QUANTIZATIONS[self.format].weights if self.bits is None else self.bits
        return Width(bits=bits, block=self.block)

    def plan(self, table: WeightTable, *, zeros: Collection[str] = ()) -> Plan:
        """The width of each selected kernel, and why the others have none."""
        reasons = dataclasses.replace(self.select, frozen=True).reasons(table)
        changes = []
        for w in table:
            how, reason = None, reasons[w.path]
            if reason is None:
                width, reason = self._fitting(w)
                how = self._how(width) if reason is None else None
            elif self.otherwise is not None and w.role in ("kernel", "embedding"):
                reason = f"{reason}: {self.otherwise} bits, or what an earlier step says"
            changes.append(
                Change(
                    step=self.kind, path=w.path, shape=w.shape, size=w.size, how=how, reason=reason
                )
            )
        return Plan(changes)

    def specify(self, table: WeightTable, earlier: Specification | None = None) -> Specification:
        """What export shall do: the widths of this step over those of earlier ones."""
        known = {} if earlier is None else dict(earlier.widths)
        selected = set(self.plan(table).changed)
        for w in table:
            if w.role not in ("kernel", "embedding") or self._fitting(w)[1] is not None:
                continue
            if w.path in selected:
                known[w.path] = self._fitting(w)[0]
            elif w.path not in known:
                known[w.path] = Width(bits=self.otherwise)
        return Specification(format=self._joined(earlier, known), widths=known)

    def callback(
        self,
        *,
        seed: int = 0,
        zeros: Mapping[str, np.ndarray] | None = None,
        data: Any = None,
        specification: Specification | None = None,
    ) -> SubstitutionCallback | None:
        """A callback for your own `model.fit` where `aware`; None where nothing is trained.

        data: (x, y) or a list of such batches, for the first ranges; without it the first step of
        the training gives them. specification: of all steps so far; None: of this one alone.
        Afterwards its `specification` is what `export` takes.
        """
        if not self.aware:
            return None
        return SubstitutionCallback(
            specification, freeze=self.freeze, zeros=zeros, data=data, specify=self.specify
        )

    def apply(
        self,
        model: Any,
        *,
        seed: int = 0,
        zeros: Mapping[str, np.ndarray] | None = None,
        data: Any = None,
        loss: Any = None,
    ) -> dict[str, np.ndarray]:
        """The floats stay as they are: only the file has codes. Refused where training belongs to it."""
        if self.aware:
            raise SecateurError(
                "a quantize step with aware = true received without training, expected data and "
                "epochs of at least 1; fix: give them, or leave aware out to quantize after training"
            )
        return {}

    def _fitting(self, w: Weight) -> tuple[Width, str | None]:
        """The width that this kernel can have, and why none."""
        width = self.width
        in_float = QUANTIZATIONS[self.format].activations is None
        if w.layer_class in FLOAT and width.bits != 16:
            return width, f"no integer operator for {w.layer_class}"
        if self.aware and w.in_cell and not in_float:
            return width, "recurrent layers are trained, and computed, in float"
        if w.role == "embedding" and in_float and width.bits != 16:
            return width, f"lookups stay float in {self.format} files"
        kinds = {w.layer_class, type(w.owner).__name__}
        pointwise = w.path.endswith("pointwise_kernel")  # of a separable convolution
        if width.bits == 4 and not (kinds & FOUR_BITS or pointwise):
            return Width(bits=8), None
        inputs = w.shape[0] if len(w.shape) == 2 else 0
        if width.block is not None and (w.layer_class != "Dense" or inputs % width.block):
            return Width(bits=width.bits), None
        return width, None

    def _how(self, width: Width) -> str:
        activations = QUANTIZATIONS[self.format].activations
        words = f"{width}, activations {f'{activations} bits' if activations else 'float'}"
        if width.bits != self.width.bits:
            return f"{words} (no operator with {self.width.bits} bits)"
        return words if width == self.width else f"{words} (blocks do not fit)"

    def _joined(self, earlier: Specification | None, widths: Mapping[str, Width]) -> str:
        """One format for the steps so far: the one with the fewest bits; refused if they differ."""
        if earlier is None or earlier.format == self.format:
            formats = [self.format]
        else:
            formats = [earlier.format, self.format]
        kinds = {QUANTIZATIONS[format].activations for format in formats}
        if len(kinds) > 1:
            raise SecateurError(
                f"quantize steps with the formats {' and '.join(formats)} received, expected one kind "
                "of activations in one file; fix: give both steps the same format, and bits"
            )
        if kinds == {None}:
            bits = {width.bits for width in widths.values()} - {None}
            return "int4" if 4 in bits else "float16" if bits == {16} else "dynamic"
        return formats[-1]
