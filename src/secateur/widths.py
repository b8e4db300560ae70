"""In how many bits a file stores the kernels of single layers: plain data, from a step to the file.

A quantize step, or `layers=` of `export`, ends as `Width`s by path of a weight; the file that is
written realises them, and promises of kind "bits" are checked on its own tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from secateur.errors import SecateurError
from secateur.promises import Promise
from secateur.records import read_json
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
        if self.bits is not None and (type(self.bits) is not int or self.bits not in BITS):
            raise SecateurError(
                f"bits {self.bits!r} received, expected 4, 8, 16 or float; fix: choose one"
            )
        if self.block is not None and (
            self.bits != 4 or type(self.block) is not int or self.block not in BLOCKS
        ):
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
    them; else calibration data give them. tensors: those that a file of integers was written with,
    by tensor of its float form, where there was one. weights: `fingerprint` of the model that it
    belongs to, where it has been written beside one.
    """

    format: str
    widths: Mapping[str, Width] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    tensors: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    weights: str = ""

    def formats(self, asked: Iterable[str]) -> tuple[str, ...]:
        """The formats of the last stage: this one, and of those asked for Keras's own and ONNX's.

        Keras's hold the float model that the codes were made of; "onnx-int8" has the codes of "int8".

        >>> Specification(format="int8").formats(["keras", "float32", "onnx-int8"])
        ('keras', 'int8', 'onnx-int8')
        """
        asked = tuple(asked)
        onnx = [format for format in asked if format == "onnx-int8" and self.format == "int8"]
        return (*(format for format in asked if format in ("keras", "h5")), self.format, *onnx)

    def to_record(self) -> dict[str, Any]:
        """Plain data.

        >>> Specification(format="int4", widths={"d/kernel": Width(bits=8)}).to_record()["widths"]
        {'d/kernel': {'bits': 8, 'block': None}}
        """
        return {
            "format": self.format,
            "widths": {path: {"bits": w.bits, "block": w.block} for path, w in self.widths.items()},
            "ranges": {key: list(bounds) for key, bounds in self.ranges.items()},
            "tensors": {name: list(bounds) for name, bounds in self.tensors.items()},
            "weights": self.weights,
        }

    @classmethod
    def from_record(cls, record: Any) -> Specification:
        """What `to_record` wrote; raises for a damaged or foreign record.

        >>> found = Specification(format="int8", ranges={"input:0": (0.0, 1.0)})
        >>> Specification.from_record(found.to_record()) == found
        True
        """
        try:
            widths = {path: Width(**width) for path, width in record["widths"].items()}
            ranges, tensors = (
                {key: (float(a), float(b)) for key, (a, b) in record[kind].items()}
                for kind in ("ranges", "tensors")
            )
            # Also refuses NaN, which json reads and no grid can have.
            sound = all(-np.inf < a <= b < np.inf for a, b in (*ranges.values(), *tensors.values()))
            if record["format"] not in STORED or not sound:
                raise ValueError("an unknown format, or a range without order")
            if not isinstance(record["weights"], str):
                raise TypeError("no fingerprint")
            return cls(
                format=record["format"],
                widths=widths,
                ranges=ranges,
                tensors=tensors,
                weights=record["weights"],
            )
        except (AttributeError, KeyError, SecateurError, TypeError, ValueError) as error:
            raise SecateurError(
                f"a damaged record of a quantization received ({error}), expected what to_record "
                "wrote; fix: take it from the folder of an unchanged run"
            ) from error

    @classmethod
    def load(cls, path: str | Path) -> Specification:
        """The specification beside a Keras file that a Run with a quantize step wrote."""
        file = beside(path)
        try:
            return cls.from_record(read_json(file))
        except FileNotFoundError:
            raise SecateurError(
                f"{file} is not there, expected the bits and ranges of {Path(path).name}, which a "
                "quantize step leaves beside its Keras file; fix: keep the two together"
            ) from None
        except (OSError, ValueError) as error:
            raise SecateurError(
                f"{file} cannot be read ({error}), expected the bits and ranges that a quantize "
                "step left; fix: take it from the folder of an unchanged run"
            ) from None


def beside(path: str | Path) -> Path:
    """Where the specification of a Keras file is.

    >>> beside("out/quantized-keras.keras").name
    'quantized-keras.quantization.json'
    """
    return Path(path).with_suffix(BESIDE)


def fingerprint(table: WeightTable) -> str:
    """A hash of all weights and their paths: what bits and ranges belong to."""
    digest = hashlib.sha256()
    for weight in table:
        digest.update(weight.path.encode())
        digest.update(np.ascontiguousarray(weight.read()).tobytes())
    return digest.hexdigest()


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
