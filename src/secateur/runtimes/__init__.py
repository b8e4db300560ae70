"""What a runtime offers to exporting and measuring: one module per runtime, loaded when needed.

A runtime module has `load(path, threads) -> Session`. Only these modules run a compiled model.
"""

import importlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from secateur.errors import SecateurError

RUNTIMES = {".tflite": "litert", ".keras": "keras", ".h5": "keras"}

Arrays = np.ndarray | Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor of weights as it is stored, and the operator (layer) and slot that it feeds.

    `scale` and `zero_point` have one entry, or one for each index of `axis`; None: not coded.
    """

    name: str
    values: np.ndarray
    scale: np.ndarray | None
    zero_point: np.ndarray | None
    axis: int | None
    operator: str
    slot: int

    @property
    def coded(self) -> bool:
        """Whether the values are codes: (code - zero_point) * scale is the weight."""
        return self.scale is not None

    def centred(self) -> np.ndarray:
        """The codes less their zero point (0 is a zero weight); floats as they are.

        >>> Constant("w", np.int8([3, 5]), np.ones(1), np.array([3]), None, "ADD", 1).centred()
        array([0, 2], dtype=int32)
        """
        if self.zero_point is None:
            return self.values
        return self.values.astype(np.int32) - self._along_axis(self.zero_point).astype(np.int32)

    def step(self) -> np.ndarray | float:
        """The distance between neighbouring values, broadcastable to them; 0.0 for float32."""
        if self.values.dtype == np.float16:
            return np.spacing(np.abs(self.values)).astype(np.float32)
        return 0.0 if self.scale is None else self._along_axis(self.scale)

    def dequantized(self) -> np.ndarray:
        """The weights as floats, in the layout of the file.

        >>> Constant("w", np.int8([-2]), np.array([0.5]), np.array([0]), 0, "ADD", 1).dequantized()
        array([-1.], dtype=float32)
        """
        if self.scale is None:
            return self.values
        return (self.centred() * self.step()).astype(np.float32)

    def _along_axis(self, per_channel: np.ndarray) -> np.ndarray:
        if per_channel.size == 1:
            return per_channel.reshape(())
        shape = [1] * self.values.ndim
        shape[self.axis or 0] = per_channel.size
        return per_channel.reshape(shape)


class Session(Protocol):
    """A loaded model: what every runtime can do with it.

    `threads` is None where the runtime decides; `input_shape` is that of one sample of the first
    input (None: any size). With several inputs or outputs, arrays travel as {name: array}.
    """

    name: str
    threads: int | None
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    input_shape: tuple[int | None, ...]
    output_shape: tuple[int | None, ...]
    resizable: bool

    def predict(self, x: Arrays, batch: int = 256) -> Any:
        """Return float32 outputs (n, ...) for n samples, `batch` at a time."""
        ...

    def invoke_once(self, x: Arrays) -> None:
        """Run once on what is given, results dropped: what latency is taken of."""
        ...

    def constants(self) -> list[Constant]:
        """Return the tensors of weights and biases, each once."""
        ...

    @property
    def output_steps(self) -> Mapping[str, float]:
        """Distance between neighbouring values of each output; 0.0 where it is a float."""
        ...

    def operators(self) -> list[tuple[str, int]]:
        """Return (operator, how many), in order of first appearance."""
        ...

    def macs(self) -> int | None:
        """Return multiply-accumulates for one sample; None where an operator is not known."""
        ...


def runtime_for(path: str | Path) -> ModuleType:
    """Return the runtime module for a file, by its suffix; raises `SecateurError` for others.

    >>> runtime_for("model.onnx")
    Traceback (most recent call last):
    ...
    secateur.errors.SecateurError: model.onnx received, expected a .tflite, .keras or .h5 file...
    """
    suffix = Path(path).suffix.lower()
    if suffix not in RUNTIMES:
        raise SecateurError(
            f"{path} received, expected a .tflite, .keras or .h5 file; "
            "fix: convert it, or give the file its right suffix"
        )
    return importlib.import_module(f"secateur.runtimes.{RUNTIMES[suffix]}")


def by_name(x: Arrays, shapes: Mapping[str, tuple[int | None, ...]]) -> dict[str, np.ndarray]:
    """Return inputs as {name: array}, checked against per-sample shapes (None: any size).

    >>> by_name(np.zeros((5, 3)), {"img": (3,)})["img"].shape
    (5, 3)
    """
    named = dict(x) if isinstance(x, Mapping) else {next(iter(shapes)): np.asarray(x)}
    if set(named) != set(shapes):
        raise SecateurError(
            f"inputs {sorted(named)} received, expected {sorted(shapes)}; "
            "fix: pass a dictionary with one array for each input"
        )
    for name, shape in shapes.items():
        given = named[name].shape[1:]
        if len(given) != len(shape) or any(
            b is not None and a != b for a, b in zip(given, shape, strict=True)
        ):
            raise SecateurError(
                f"samples of shape {given} received for {name}, expected {shape}; "
                "fix: reshape the data to what the model takes"
            )
    return {name: named[name] for name in shapes}


def one_line(error: BaseException) -> str:
    """Return the line of an exception that names the cause, at most 300 characters.

    >>> one_line(ValueError("Could not convert: error: 'tf.Foo' op is unknown"))
    "Could not convert: error: 'tf.Foo' op is unknown"
    """
    # Keras wraps what went wrong once for each nested model, with the whole configuration.
    text = str(error).rpartition("Exception encountered: ")[2].partition(" Full object config")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "error:" in line.lower()]
    return ([*telling, *lines] or [type(error).__name__])[0][:300]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what C++ writes to standard error from the user; exceptions carry the same words.

    Python's own `sys.stderr` cannot do this: the native libraries write to descriptor 2.
    """
    try:
        saved = os.dup(2)
    except OSError:  # no standard error at all: nothing to keep quiet
        yield
        return
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
