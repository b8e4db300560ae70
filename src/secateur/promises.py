"""What a finished step claims about the weights, and the one checker of such claims.

A promise is checked on arrays in Keras's layout, wherever they come from: the live model, a
reloaded `.keras`, or the tensors inside a `.tflite`. This module knows no model and no file.
"""

import base64
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.arrays import masks
from secateur.errors import SecateurError

KINDS = ("zeros", "shape", "bits")


@dataclass(frozen=True, eq=False)
class Promise:
    """One claim about the weight at `path`, which has `shape`.

    Kind "zeros": `value` is a bool array of that shape, True where the weight must be zero. Kind
    "shape": `value` is the shape itself. Kind "bits": `value` is how many bits a weight takes in a
    quantized file at most. Raises `SecateurError` for a value that is none of these.

    >>> Promise("dense/kernel", "zeros", np.array([[True, False]]), (1, 2)).describe()
    'zeros at 1 of 2 weights of dense/kernel'
    """

    path: str
    kind: str
    value: Any
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse a claim that could not be checked."""
        if self.kind not in KINDS:
            raise SecateurError(
                f"promise of kind {self.kind!r} for {self.path} received, expected one of "
                f"{', '.join(KINDS)}; fix: use a kind that this version can check"
            )
        if self.kind == "bits":
            if isinstance(self.value, bool) or not isinstance(self.value, int) or self.value < 1:
                raise SecateurError(
                    f"promise 'bits' for {self.path} received with the value {self.value!r}, "
                    "expected a whole number of bits; fix: give 4, 8 or 16"
                )
            return
        found = np.shape(self.value) if self.kind == "zeros" else tuple(self.value)
        typed = self.kind == "shape" or np.asarray(self.value).dtype == bool
        if found != tuple(self.shape) or not typed:
            raise SecateurError(
                f"promise '{self.kind}' for {self.path} received with a value of shape {found}, "
                f"expected {'bool, ' if self.kind == 'zeros' else ''}{tuple(self.shape)}; "
                "fix: give the value in the weight's own layout"
            )

    @property
    def size(self) -> int:
        """Number of weights under the promise."""
        return math.prod(self.shape)

    @property
    def count(self) -> int:
        """Number of weights promised to be zero; 0 for other kinds."""
        return int(np.count_nonzero(self.value)) if self.kind == "zeros" else 0

    def describe(self) -> str:
        """Return the claim as a phrase.

        >>> Promise("dense/kernel", "shape", (8, 10), (8, 10)).describe()
        'shape (8, 10) of dense/kernel'
        """
        if self.kind == "shape":
            return f"shape {self.shape} of {self.path}"
        if self.kind == "bits":
            return f"at most {self.value} bits a weight of {self.path}"
        return f"zeros at {self.count:,} of {self.size:,} weights of {self.path}"

    def to_record(self) -> dict[str, Any]:
        """Return the claim as plain JSON data; "positions" (kind "zeros") are packed, in base64.

        >>> Promise("k", "zeros", np.array([True, False]), (2,)).to_record()["count"]
        1
        """
        record: dict[str, Any] = {
            "path": self.path,
            "kind": self.kind,
            "count": self.count,
            "size": self.size,
            "shape": list(self.shape),
        }
        if self.kind == "zeros":
            packed = zlib.compress(masks.pack(self.value), 9)
            record["positions"] = base64.b64encode(packed).decode("ascii")
        if self.kind == "bits":
            record["bits"] = self.value
        return record

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Promise":
        """Return the promise that `to_record` wrote; raises for a damaged or foreign record.

        >>> record = Promise("k", "zeros", np.array([True, False]), (2,)).to_record()
        >>> Promise.from_record(record).value.tolist()
        [True, False]
        """
        try:
            path, kind = str(record["path"]), str(record["kind"])
            shape = tuple(int(size) for size in record["shape"])
            value: Any = shape
            if kind == "zeros":
                value = _positions(record["positions"], shape)
            elif kind == "bits":
                value = record["bits"]
            promise = cls(path, kind, value, shape)
            counted = (promise.count, promise.size) == (record["count"], record["size"])
        except (KeyError, TypeError, ValueError, zlib.error) as error:
            raise _damaged(record, str(error) or type(error).__name__) from error
        if not counted:
            raise _damaged(record, "its counts contradict its positions")
        return promise


@dataclass(frozen=True)
class Finding:
    """What `check` found: `broken` positions of the promise, and zeros it did not promise."""

    promise: Promise
    ok: bool
    detail: str
    extra_zeros: int
    broken: int = 0


def check(
    promise: Promise, array: np.ndarray, *, coded: bool = False, bits: int | None = None
) -> Finding:
    """Check a promise on the weight's array, in Keras's layout; raises nothing.

    Floats: zero at the promised positions and nowhere else, every promised zero a +0.0. `coded`:
    integer codes less their zero point, zero at least at the promised positions; small weights may
    round to code 0 and are counted in `extra_zeros`. `bits`: what a weight takes in the file; None
    where weights are floats by nature (the live model), and nothing was promised of bits.

    >>> promise = Promise("k", "zeros", np.array([True, False, False]), (3,))
    >>> check(promise, np.array([0, 0, 3], np.int8), coded=True).extra_zeros
    1
    >>> check(promise, np.array([0.5, 1.0, 2.0])).detail
    '1 of 1 promised zeros not zero, first at (0,)'
    """
    array = np.asarray(array)
    if array.shape != tuple(promise.shape):
        detail = f"shape {array.shape} found, {tuple(promise.shape)} promised"
        return Finding(promise, False, detail, 0, promise.count)
    if promise.kind == "shape":
        return Finding(promise, True, f"shape {array.shape}", 0)
    if promise.kind == "bits":
        return _stored(promise, array, bits)
    zero = array == 0
    extra = zero & ~promise.value
    extra_zeros = int(np.count_nonzero(extra))
    # A list of (what went wrong, where); the first two cannot overlap, -0.0 equals 0.
    faults = [("not zero", promise.value & ~zero)]
    if not coded:
        faults.append(("-0.0", promise.value & zero & np.signbit(array)))
    broken = sum(int(np.count_nonzero(where)) for _, where in faults)
    details = [
        f"{np.count_nonzero(where):,} of {promise.count:,} promised zeros {fault}, "
        f"first at {_first(where)}"
        for fault, where in faults
        if where.any()
    ]
    if extra_zeros and not coded:
        details.append(f"{extra_zeros:,} zeros that were not promised, first at {_first(extra)}")
    if details:
        return Finding(promise, False, "; ".join(details), extra_zeros, broken)
    rounded = f", {extra_zeros:,} more rounded to zero" if extra_zeros else ""
    return Finding(promise, True, f"{promise.count:,} zeros in place{rounded}", extra_zeros)


def require(findings: Iterable[Finding]) -> None:
    """Raise one `SecateurError` that names every broken promise; return when there is none.

    >>> require([check(Promise("k", "shape", (2,), (2,)), np.ones(2))])
    """
    findings = tuple(findings)
    broken = [f"{f.promise.describe()}: {f.detail}" for f in findings if not f.ok]
    if broken:
        fix = "leave these weights alone afterwards, or run the step that made the promise last"
        if all(f.ok or f.promise.kind == "bits" for f in findings):
            fix = "leave these weights out of the selection, or give them 8 bits"
        raise SecateurError(
            f"{len(broken)} broken promise{'s' * (len(broken) > 1)} received "
            f"({'; '.join(broken)}), expected every earlier claim to hold; fix: {fix}"
        )


def _stored(promise: Promise, array: np.ndarray, bits: int | None) -> Finding:
    """Whether the weights take as few bits as promised; `array`: their codes."""
    if bits is None:
        return Finding(promise, True, "skipped: weights are floats here by nature", 0)
    ok = bits <= promise.value
    broken = 0 if ok else promise.size
    if ok and array.dtype.kind in "iu":  # codes beyond what the bits hold were not read from them
        broken = int(np.count_nonzero(np.abs(array.astype(np.int64)) > 2**bits))
        ok = broken == 0
    return Finding(promise, ok, f"{bits} bits a weight found", 0, broken)


def _positions(text: str, shape: tuple[int, ...]) -> np.ndarray:
    expected = -(-math.prod(shape) // 8)
    # Bounded: a forged record must not fill the memory.
    packed = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), expected + 1)
    return masks.unpack(packed, shape)


def _damaged(record: Any, why: str) -> SecateurError:
    path = record.get("path", "?") if isinstance(record, dict) else "?"
    return SecateurError(
        f"a damaged record of the promise for {path} received ({why}), expected what to_record "
        "wrote; fix: take it from an unchanged run.json or manifest.json"
    )


def _first(where: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(where)), where.shape))
