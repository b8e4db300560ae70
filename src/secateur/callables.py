"""A function as text: its name, and a hash of what it does, the same in every process."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Iterable, Mapping
from types import CodeType
from typing import Any

import numpy as np


def called(function: Any) -> str:
    """The name of a function, a partial or an object that is called.

    >>> called(len)
    'len'
    """
    inner = getattr(function, "func", None)
    if isinstance(function, functools.partial):
        return f"partial of {called(inner)}"
    return getattr(function, "__name__", type(function).__name__)


def identity(function: Any) -> str:
    """Name and hash of a function: its byte code and what it closes over, not what it calls."""
    digest = hashlib.sha256("\n".join(_traits(function)).encode()).hexdigest()
    return f"{called(function)} (function, code {digest[:12]})"


def _traits(value: Any, depth: int = 8) -> list[str]:
    """What tells two functions apart, without addresses, which differ between processes."""
    if depth == 0:  # a function can hold itself
        return [type(value).__qualname__]
    parts: Iterable[Any]
    if isinstance(value, CodeType):
        parts = (value.co_code, value.co_names, value.co_varnames, value.co_consts)
    elif isinstance(value, functools.partial):
        parts = (value.func, value.args, value.keywords)
    elif inspect.isfunction(value):
        held = inspect.getclosurevars(value).nonlocals
        parts = (value.__code__, value.__defaults__, value.__kwdefaults__, held)
    elif inspect.ismethod(value):
        parts = (value.__func__, value.__self__)
    elif isinstance(value, Mapping):
        parts = sorted(value.items(), key=repr)
    elif isinstance(value, set | frozenset):
        parts = sorted(value, key=repr)
    elif isinstance(value, list | tuple):
        parts = value
    elif isinstance(value, np.ndarray):  # its repr leaves elements out
        return [f"{value.dtype}{value.shape}", value.tobytes().hex()]
    elif callable(value) and hasattr(value, "__dict__") and not isinstance(value, type):
        parts = (type(value).__qualname__, type(value).__call__, vars(value))
    else:
        return [re.sub(r" at 0x[0-9a-f]+", "", repr(value))]
    traits = [trait for part in parts for trait in _traits(part, depth - 1)]
    return [f"{type(value).__name__} {len(traits)}", *traits]
