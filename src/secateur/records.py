"""Records on disk as plain data: JSON, TOML and `.npz` read within limits, and checked for types.

A record may be cut off, edited or made by somebody else: what is read here is damaged or sound, so
that the code behind needs no second look at the types of the keys.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
import tomllib
import zipfile
import zlib
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from secateur.apart import FACTOR, FILE_MEMORY, FREE, MEMORY, memory_limit
from secateur.errors import SecateurError

DEPTH = 50  # of lists and tables in each other; the deepest record has ten
# Bytes of memory for one of the text: what a record takes as Python's objects, and its copies.
UNFOLDED = 32
ARRAYS = 8 << 30  # bytes that the arrays of a `.npz` may fill
NUMBER = (int, float)
ANY = object
# A dotted key of more parts than tables may be deep, which takes TOML's reader for ever.
_DOTTED = re.compile(rf"(?:[\w'\"-]+[ \t]*\.[ \t]*){{{2 * DEPTH}}}")

# What records hold, as far as it is read: a type, types, [each element], [first, second] where there
# are two, {str: each value}, or
# {key: value}, where any key may be missing or null but those that end in "!".
_DATA = {
    "name": str, "sizes": {str: NUMBER}, "shape": [NUMBER], "dtype": str, "classes": NUMBER,
    "notes": [str], "sha256": str,
}  # fmt: skip
_MODEL = {
    "name": str, "parameters": NUMBER, "trainable": NUMBER, "non_trainable": NUMBER, "macs": NUMBER,
}  # fmt: skip
_MACHINE = {"cpu": str, "cores": NUMBER, "system": str, "python": str}
_SCORES = {"n": NUMBER, "accuracy": NUMBER, "loss": NUMBER, "mse": NUMBER, "right": str}
_LATENCY = {
    "median_us": NUMBER, "p10_us": NUMBER, "p90_us": NUMBER, "threads": NUMBER, "runs": NUMBER,
    "batch": NUMBER, "low_us": NUMBER, "high_us": NUMBER, "of": str, "shape": str,
}  # fmt: skip
_ROW = {
    "path": str, "format!": str, "runtime": str, "threads": NUMBER, "bytes": NUMBER,
    "gzip_bytes": NUMBER, "stripped_bytes": NUMBER, "stripped_gzip_bytes": NUMBER,
    "sparsity": NUMBER, "macs": NUMBER, "n": NUMBER, "accuracy": NUMBER, "loss": NUMBER,
    "mse": NUMBER, "mae": NUMBER, "latency": _LATENCY, "load_ms": NUMBER, "arena_bytes": NUMBER,
    "parity": {str: (*NUMBER, str)}, "validation": _SCORES, "omitted": {str: str},
    "kernels": {str: {"bits": NUMBER, "error": NUMBER}}, "npu": {"cpu_operators": [dict]},
}  # fmt: skip
_WEIGHT = {
    "path": str, "role": str, "class": str, "shape": [NUMBER], "size": NUMBER, "zeros": NUMBER,
    "first": [NUMBER], "histogram": {"edges": [NUMBER], "counts": [NUMBER]},
}  # fmt: skip
_STAGE = {
    "name!": str, "method": str, "history": {str: [NUMBER]}, "epochs": NUMBER, "steps": NUMBER,
    "seconds": NUMBER, "sparsity_curve": [[NUMBER, NUMBER]], "weights": [_WEIGHT], "notes": [str],
    "promises": [{"path": str, "kind": str}], "ranges": {str: [NUMBER, NUMBER]},
}  # fmt: skip
_RANGE = {"key": str, **dict.fromkeys(("low", "high", "step", "error", "clipped"), NUMBER)}
_OF_BOTH = {
    "seed!": int, "created": str, "data": _DATA, "model": _MODEL, "machine": _MACHINE,
    "backend": str, "versions": {str: str}, "notes": [str], "fingerprint": str,
}  # fmt: skip
RUN = {
    **_OF_BOTH, "name!": str, "command": str, "recipe_toml": str, "seconds": NUMBER,
    "recipe!": {str: ANY}, "rows!": [{**_ROW, "row!": str, "stage!": str}], "stages!": [_STAGE],
    "plan": [{"step": str, "path": str, "shape": [NUMBER], "size": NUMBER, "status": str}],
    "quantization": {"format": str, "stage": str, "ranges": [_RANGE]},
}  # fmt: skip
POINT = {
    **_OF_BOTH, "curve!": str, "status!": str, "grid": str, "error": str, "kind_of": str,
    "settings": {str: ANY}, "recipe": {"steps": [dict]}, "rows": [_ROW],
    "sparsity!": {"asked": NUMBER, "realised": NUMBER}, "epochs": {str: NUMBER},
    "history": {str: {str: [NUMBER]}}, "norm_removed": NUMBER, "shape": str,
    "seconds": {str: NUMBER},
    "validation": _SCORES, "test": {**_SCORES, "read_in": str}, "latency": _LATENCY,
    "file": {"bytes": NUMBER, "gzip_bytes": NUMBER, "format": str, "of": str},
}  # fmt: skip
STAGE = {
    "fingerprint!": str, "promises!": [dict], "early": NUMBER,
    "stage!": {
        **{key.rstrip("!") + "!": kind for key, kind in _STAGE.items() if key != "ranges"},
        "ranges": {str: [NUMBER, NUMBER]},
    },
}  # fmt: skip

BEGUN = {"fingerprint!": str, "files!": [str], "name": str, "seed": int}


def read_json(path: Path) -> Any:
    """What a JSON file holds; NaN and infinity are None.

    Raises OSError where it cannot be read, and ValueError with the reason where it is damaged, too
    deep or too large.
    """
    return parse_json(read_text(path))


def parse_json(text: str) -> Any:
    """What JSON text holds, as `read_json` reads it.

    >>> parse_json('{"loss": NaN}')
    {'loss': None}
    >>> parse_json("[" * 100_000)
    Traceback (most recent call last):
    ...
    ValueError: nested more than 50 deep
    """
    try:
        found = json.loads(
            text,
            parse_constant=lambda _: None,
            parse_float=lambda digits: _finite(float(digits)),
            parse_int=_integer,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno} is no JSON: {error.msg}") from None
    except RecursionError:
        raise _too_deep() from None
    return _shallow(found)


def read_toml(path: Path) -> Any:
    """What a TOML file holds; raises as `read_json` does."""
    return parse_toml(read_text(path))


def parse_toml(text: str) -> Any:
    """What TOML text holds.

    >>> parse_toml("seed = 0")
    {'seed': 0}
    """
    if _DOTTED.search(text):
        raise _too_deep()
    try:
        return _shallow(tomllib.loads(text))
    except RecursionError:
        raise _too_deep() from None


def read_npz(path: Path, wanted: Container[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` by name; `wanted`: only these of them.

    Raises OSError where it cannot be read, and ValueError with the reason where it is damaged,
    holds objects, or declares more than its bytes unpack to or than fits in memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            every = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            names = [name for name in every if wanted is None or name in wanted]
            total = sum(_declared(archive, every[name]) for name in names)
            packed = path.stat().st_size
            most = memory_limit(min(ARRAYS, FREE + FACTOR * packed))
            if total > most:
                raise ValueError(
                    f"{total:,} bytes declared in a file of {packed:,}, at most {most:,.0f} are "
                    f"read; --max-memory, or {MEMORY}, raises the limit"
                )
        # Opened here: of a damaged file np.load itself leaves the handle open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except zipfile.BadZipFile:
        raise ValueError("not a whole .npz archive") from None
    except (
        EOFError,
        KeyError,
        NotImplementedError,
        RuntimeError,
        SyntaxError,
        zlib.error,
    ) as error:
        raise ValueError(str(error) or type(error).__name__) from None


def _declared(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Bytes of the array that a member of a `.npz` declares, which its own must be enough for."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        first = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    size = math.prod(shape) * dtype.itemsize
    if size > info.file_size and not dtype.hasobject:
        raise ValueError(
            f"{info.filename} declares shape {shape}, {size:,} bytes, and holds {info.file_size:,}"
        )
    return size


@contextmanager
def of_file(path: str | Path) -> Iterator[None]:
    """Name the file, within a `with`, in an error about what it holds."""
    try:
        yield
    except SecateurError as error:
        raise type(error)(f"{path}: {error}") from error


def mismatch(value: Any, expected: Any, where: str = "") -> str | None:
    """The first key of a record that is of another type than expected, in words; None without one.

    >>> mismatch({"rows": [{"row": "a", "bytes": "12"}]}, {"rows!": [{"bytes": (int, float)}]})
    "'rows[0].bytes' is '12', expected a number"
    """
    if isinstance(expected, list):
        if not isinstance(value, list):
            return _wrong(value, "a list", where)
        if len(expected) > 1 and len(value) != len(expected):
            return _wrong(value, f"a list of {len(expected)}", where)
        items = ((f"{where}[{place}]", one, expected[0]) for place, one in enumerate(value))
        return _first(items)
    if isinstance(expected, dict):
        if not isinstance(value, Mapping):
            return _wrong(value, "a table", where)
        dot = where and f"{where}."
        if str in expected:
            return _first((f"{dot}{key}", one, expected[str]) for key, one in value.items())
        for key in expected:
            if key.endswith("!") and value.get(key[:-1]) is None:
                return f"{dot + key[:-1]!r} is missing"
        kinds = {key.rstrip("!"): kind for key, kind in expected.items()}
        return _first((f"{dot}{key}", value[key], kinds[key]) for key in kinds if key in value)
    types = expected if isinstance(expected, tuple) else (expected,)
    if isinstance(value, bool) and bool not in types and object not in types:
        return _wrong(value, _WORDS[types[0]], where)
    return None if isinstance(value, expected) else _wrong(value, _WORDS[types[0]], where)


_WORDS = {int: "a number", str: "text", dict: "a table", list: "a list", bool: "true or false"}


def _first(items: Any) -> str | None:
    """The first mismatch; null stands for what was not taken, everywhere."""
    found = (mismatch(one, kind, where) for where, one, kind in items if one is not None)
    return next((text for text in found if text), None)


def _wrong(value: Any, expected: str, where: str) -> str:
    return f"{where or 'the record'!r} is {reprlib.repr(value)}, expected {expected}"


def read_text(path: Path) -> str:
    """The text of a file that is to be parsed; raises OSError, or ValueError with the reason."""
    limit = memory_limit(FILE_MEMORY) / UNFOLDED
    if path.exists() and not path.is_file():  # a pipe would never end
        raise ValueError("not a regular file")
    if path.stat().st_size > limit:
        raise ValueError(
            f"{path.stat().st_size:,} bytes, more than {limit:,.0f} that fit in memory as a record; "
            f"--max-memory, or {MEMORY}, raises the limit"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError("not a text file in UTF-8") from None


def _shallow(found: Any) -> Any:
    level, depth = [found], 0
    while level:
        depth += 1
        if depth > DEPTH:
            raise _too_deep()
        level = [
            one
            for value in level
            if isinstance(value, dict | list)
            for one in (value.values() if isinstance(value, dict) else value)
        ]
    return found


def _too_deep() -> ValueError:
    return ValueError(f"nested more than {DEPTH} deep")


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _integer(digits: str) -> int:
    if len(digits) > 19:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)
