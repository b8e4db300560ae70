"""A Keras file and the bits and ranges beside it: what a quantize step of a Run handed out."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.errors import SecateurError
from secateur.promises import Promise
from secateur.quantization import QUANTIZATIONS
from secateur.runtimes.keras import load_model
from secateur.substitute import as_in_file
from secateur.weights import weight_table
from secateur.widths import Specification, beside, fingerprint, promised


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A float model, and what its file of integers is made with; `export` takes it as a model.

    >>> import keras
    >>> from secateur.widths import Width
    >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="d")])
    >>> bits = Specification(format="dynamic", widths={"d/kernel": Width(bits=8)})
    >>> [promise.describe() for promise in Quantized(model=net, specification=bits).promises]
    ['at most 8 bits a weight of d/kernel']
    """

    model: Any = field(repr=False)
    specification: Specification

    @property
    def promises(self) -> tuple[Promise, ...]:
        """The bits of each kernel, to be checked on the file's own tensors."""
        return promised(self.specification.widths, weight_table(self.model))

    def as_in_file(self) -> AbstractContextManager[Any]:
        """The model, answering within a `with` as its file does: `evaluate` and `measure` read it so.

        Raises SecateurError where no quantization-aware training left ranges.
        """
        found = self.specification
        activations = QUANTIZATIONS[found.format].activations
        return as_in_file(self.model, found.widths, found.ranges, activations)


def load(path: str | Path) -> Quantized:
    """Read a `.keras` or `.h5` file of a quantize step with the bits and ranges beside it.

    `export(load(path), ["int8"], out, stage=...)` writes the file that the Run wrote, byte for byte.
    Raises SecateurError where the two are missing, damaged, or do not belong together.
    """
    path = Path(path)
    model = load_model(path)
    found = Specification.load(path)
    require_weights(found, model, str(beside(path)))
    return Quantized(model=model, specification=found)


def require_weights(found: Specification, model: Any, place: str) -> None:
    """Refuse bits and ranges (of `place`, for the message) that belong to other weights."""
    table = weight_table(model)
    if found.weights in ("", fingerprint(table)):  # "": never written beside a model
        return
    strange = sorted(set(found.widths) - {weight.path for weight in table})
    what = f"of a model with {', '.join(strange[:3])}" if strange else "of other weights"
    raise SecateurError(
        f"{place} received, which is {what}, expected the bits and ranges of {model.name!r} as it is: "
        "it was changed, or trained on, since; fix: take both from one run, train again with "
        "Quantize(aware=True), or leave the bits and ranges out to take it as a model of floats"
    )
