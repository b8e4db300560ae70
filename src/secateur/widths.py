"""In how many bits a file stores the kernels of single layers: plain data, from a step to the file.

A quantize step, or `layers=` of `export`, ends as `Width`s by path of a weight; the file that is
written realises them, and promises of kind "bits" are checked on its own tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.errors import SecateurError
from secateur.promises import Promise
from secateur.weights import Select, WeightTable

# What a specification's file is called, in the place of the suffix of the Keras file.
BESIDE = ".quantization.json"
BITS = (4, 8, 16)
BLOCKS = (32, 64, 128, 256)
# Bits of a weight in files of a format; formats that are not here store floats of 32 bits.
STORED = {
    "float16": 16,
    "dynamic": 8,
    "int4": 4,
    "int8": 8,
    "int16x8": 8,
    "onnx-dynamic": 8,
    "onnx-int8": 8,
}


@dataclass(frozen=True, kw_only=True)
class Width:
    """How one kernel is stored.

    bits: 4, 8, 16 (half-precision floats), or None for floats of 32 bits. block: weights of one
    output that share a scale, for 4 bits in fully connected layers.

    >>> print(Width(bits=4, block=32))
    4 bits in blocks of 32
    """

    bits: int | None
    block: int | None = None

    def __post_init__(self) -> None:
        if self.bits is not None and (isinstance(self.bits, bool) or self.bits not in BITS):
            raise SecateurError(
                f"bits {self.bits!r} received, expected 4, 8, 16 or float; fix: choose one"
            )
        if self.block is not None and (self.bits != 4 or self.block not in BLOCKS):
            raise SecateurError(
                f"block {self.block!r} with {self.bits or 'float'} bits received, expected "
                f"{', '.join(map(str, BLOCKS))} with 4 bits; fix: leave the block out"
            )

    def __str__(self) -> str:
        """The width in words."""
        words = "float" if self.bits is None else f"{self.bits} bits"
        return words if self.block is None else f"{words} in blocks of {self.block}"

    @classmethod
    def parse(cls, text: Any) -> Width:
        """A width from 8, "8", "4/32" (4 bits in blocks of 32), "float", None, or a `Width`.

        >>> Width.parse("4/32") == Width(bits=4, block=32)
        True
        """
        if isinstance(text, Width):
            return text
        words = "float" if text is None else str(text).strip()
        bits, slash, block = (part.strip() for part in words.partition("/"))
        if (bits != "float" and not bits.isdecimal()) or (slash and not block.isdecimal()):
            raise SecateurError(
                f"width {text!r} received, expected 4, 8, 16 or float, or 4/32 for 4 bits in "
                "blocks of 32; fix: choose one"
            )
        return cls(bits=None if bits == "float" else int(bits), block=int(block) if slash else None)


@dataclass(frozen=True, kw_only=True)
class Specification:
    """What quantize steps leave for `export`: the format, and widths by path where one is set.

    ranges: of activations, (smallest, largest) by key, where a quantization-aware training found
    them; else calibration data give them.
    """

    format: str
    widths: Mapping[str, Width] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def formats(self, asked: Iterable[str]) -> tuple[str, ...]:
        """The formats of the last stage: this one, and of those asked for Keras's own.

        They hold the float model that the codes were made of.

        >>> Specification(format="int8").formats(["keras", "float32"])
        ('keras', 'int8')
        """
        return (*(format for format in asked if format in ("keras", "h5")), self.format)

    def to_record(self) -> dict[str, Any]:
        """Plain data.

        >>> Specification(format="int4", widths={"d/kernel": Width(bits=8)}).to_record()
        {'format': 'int4', 'widths': {'d/kernel': {'bits': 8, 'block': None}}, 'ranges': {}}
        """
        widths = {path: {"bits": w.bits, "block": w.block} for path, w in self.widths.items()}
        ranges = {key: list(bounds) for key, bounds in self.ranges.items()}
        return {"format": self.format, "widths": widths, "ranges": ranges}

    @classmethod
    def from_record(cls, record: Any) -> Specification:
        """What `to_record` wrote; raises for a damaged or foreign record.

        >>> found = Specification(format="int8", ranges={"input:0": (0.0, 1.0)})
        >>> Specification.from_record(found.to_record()) == found
        True
        """
        try:
            widths = {path: Width(**width) for path, width in record["widths"].items()}
            ranges = {key: (float(a), float(b)) for key, (a, b) in record["ranges"].items()}
            if record["format"] not in STORED or not all(a <= b for a, b in ranges.values()):
                raise ValueError("an unknown format, or a range upside down")
            return cls(format=record["format"], widths=widths, ranges=ranges)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SecateurError(
                f"a damaged record of a quantization received ({error}), expected what to_record "
                "wrote; fix: take it from the folder of an unchanged run"
            ) from error

    @classmethod
    def load(cls, path: str | Path) -> Specification:
        """The specification beside a Keras file that a quantization-aware Run wrote."""
        beside = Path(path).with_suffix(BESIDE)
        try:
            return cls.from_record(json.loads(beside.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise SecateurError(
                f"{beside} cannot be read ({error}), expected the ranges and bits of a "
                "quantization-aware training; fix: keep it beside the Keras file"
            ) from None


def chosen(layers: Mapping[str, Any], table: WeightTable) -> dict[str, Width]:
    """Widths by path of the kernels that patterns name; of two that name one the later counts.

    layers: layer or weight name or glob -> what `Width.parse` takes. Raises `SecateurError` for a
    pattern that matches no kernel.

    >>> import keras
    >>> from secateur.weights import weight_table
    >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    >>> chosen({"head": "4"}, weight_table(net))
    {'head/kernel': Width(bits=4, block=None)}
    """
    found: dict[str, Width] = {}
    for pattern, text in layers.items():
        width = Width.parse(text)
        reasons = Select(include=(pattern,), frozen=True).reasons(table)
        found |= {path: width for path, reason in reasons.items() if reason is None}
    return found


def promised(widths: Mapping[str, Width], table: WeightTable) -> tuple[Promise, ...]:
    """A promise of kind "bits" for each kernel that is not left in float."""
    return tuple(
        Promise(path, "bits", width.bits, table[path].shape)
        for path, width in widths.items()
        if width.bits is not None
    )
