"""What a runtime offers to exporting and measuring: one module per runtime, loaded when needed.

A runtime module has `prepare()`, which says what is not installed, and `load(path, threads) ->
Session`, with a third argument where it has options. Only these modules run a compiled model.
"""

import importlib
import importlib.util
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from secateur.errors import SecateurError, nearest
from secateur.outputs import Meanings


@dataclass(frozen=True)
class Kind:
    """What is known of a runtime before its module is imported.

    The first of `options` is what it takes when none is named; `omitted` says which numbers it
    does not give, and why.
    """

    suffixes: tuple[str, ...]
    options: tuple[str, ...] = ()
    omitted: Mapping[str, str] = field(default_factory=dict)


# The first that takes a suffix is the one such files are run in when none is named.
RUNTIMES = {
    "litert": Kind((".tflite",), ("xnnpack", "reference")),
    "onnx": Kind((".onnx",)),
    "keras": Kind((".keras", ".h5")),
    "tflm": Kind(
        (".tflite",),
        omitted={"latency": "its time on this processor says nothing about a microcontroller's"},
    ),
    "vela": Kind(
        (".tflite",),
        (
            *("ethos-u55-128", "ethos-u55-32", "ethos-u55-64", "ethos-u55-256"),
            *("ethos-u65-256", "ethos-u65-512", "ethos-u85-128", "ethos-u85-256"),
            *("ethos-u85-512", "ethos-u85-1024", "ethos-u85-2048"),
        ),
        omitted={
            "accuracy": "Vela compiles and does not run; litert:reference computes the same integers",
            "latency": "estimated for the NPU instead",
        },
    ),
}

Arrays = np.ndarray | Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor of weights as it is stored, and the operator (layer) and slot that it feeds.

    `scale` and `zero_point` have one entry, or one for each index of `axis`, or one for each value;
    None: not coded. `packed`: bits of a value where several share a byte.
    """

    name: str
    values: np.ndarray
    scale: np.ndarray | None
    zero_point: np.ndarray | None
    axis: int | None
    operator: str
    slot: int
    packed: int | None = None

    @property
    def bits(self) -> int:
        """Bits that a value takes in the file."""
        return self.packed or 8 * self.values.dtype.itemsize

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
        if per_channel.shape == self.values.shape:
            return per_channel
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

    def meanings(self) -> Meanings:
        """Return what the numbers of each output mean, as far as what ends the model says it."""
        ...

    def input_coding(self, name: str) -> tuple[Any, float, int] | None:
        """Return dtype, scale and zero point of an input's codes; None where it takes no codes."""
        ...

    def costs(self) -> dict[str, Any]:
        """Return what running it takes of the target, as fields of a `Measurement`; else {}."""
        ...


@dataclass(frozen=True)
class Runtime:
    """A runtime chosen by name, with its option: what `runtime` returns."""

    name: str
    option: str | None = None

    @property
    def kind(self) -> Kind:
        """What is known of it without importing it."""
        return RUNTIMES[self.name]

    def prepare(self) -> None:
        """Import what it needs; raises `SecateurError` naming the extra that brings it."""
        self._module().prepare()

    def load(self, path: Any, threads: int = 1) -> Session:
        """Load a file; raises `SecateurError` for one that is not of its kind, or does not run."""
        suffixes = self.kind.suffixes
        if isinstance(path, str | Path):
            given, fits = str(path), Path(path).suffix.lower() in suffixes
        else:
            kind = ".tflite" if isinstance(path, bytes) else ".keras"
            given, fits = f"a {type(path).__name__}", kind in suffixes
        if not fits:
            raise SecateurError(
                f"{given} received for the runtime {self.name}, expected a {_or(suffixes)} file; "
                "fix: convert it, or name another runtime"
            )
        option = () if self.option is None else (self.option,)
        return self._module().load(path, threads, *option)

    def _module(self) -> ModuleType:
        return importlib.import_module(f"secateur.runtimes.{self.name}")


def runtime(spec: str) -> Runtime:
    """Return a runtime by its name, or its name, a colon and its option.

    >>> runtime("vela:ethos-u65-256")
    Runtime(name='vela', option='ethos-u65-256')
    >>> runtime("litert")
    Runtime(name='litert', option='xnnpack')
    >>> runtime("tflmm")
    Traceback (most recent call last):
    ...
    secateur.errors.SecateurError: unknown runtime 'tflmm'; did you mean 'tflm'?
    """
    name, colon, option = (part.strip() for part in spec.partition(":"))
    if name not in RUNTIMES:
        raise SecateurError(f"unknown runtime {name!r}; {nearest(name, RUNTIMES)}")
    options = RUNTIMES[name].options
    if not colon:
        return Runtime(name, options[0] if options else None)
    if not options:
        raise SecateurError(
            f"runtime {spec!r} received, expected no option after {name}; fix: write {name}"
        )
    if option not in options:
        raise SecateurError(f"unknown option in {spec!r}; {nearest(option, options)}")
    return Runtime(name, option)


def runtime_for(path: str | Path) -> ModuleType:
    """Return the runtime module for a file, by its suffix; raises `SecateurError` for others.

    >>> runtime_for("model.pb")
    Traceback (most recent call last):
    ...
    secateur.errors.SecateurError: model.pb received, expected a .tflite, .onnx, .keras or .h5...
    """
    return own_runtime(path)._module()


def own_runtime(path: str | Path) -> Runtime:
    """Return the runtime of a file by its suffix, for measuring it when none is named.

    >>> own_runtime("model.tflite")
    Runtime(name='litert', option='xnnpack')
    """
    suffix = Path(path).suffix.lower()
    for name, kind in RUNTIMES.items():
        if suffix in kind.suffixes:
            return runtime(name)
    known = dict.fromkeys(suffix for kind in RUNTIMES.values() for suffix in kind.suffixes)
    raise SecateurError(
        f"{path} received, expected a {_or(tuple(known))} file; "
        "fix: convert it, or give the file its right suffix"
    )


def require(package: str, extra: str, where: str = "") -> None:
    """Raise `SecateurError` with what to install where a package is not there.

    >>> require("numpy", "micro")
    """
    try:
        found = importlib.util.find_spec(package) is not None
    except ValueError:  # what a module that was set to None raises
        found = False
    if not found:
        raise SecateurError(
            f"{package} is not installed, expected it for this runtime; "
            f"fix: pip install 'secateur[{extra}]'{where}"
        )


def read(path: str | Path | bytes, suffix: str = ".tflite") -> tuple[bytes, str]:
    """Return a file's bytes and what to call it in a message."""
    if isinstance(path, bytes):
        return path, "the converted model"
    try:
        if Path(path).exists() and not Path(path).is_file():  # a pipe would never end
            raise OSError(None, "not a regular file")
        return Path(path).read_bytes(), str(path)
    except OSError as error:
        raise SecateurError(
            f"{path} could not be read ({error.strerror}), expected a {suffix} file; "
            "fix: check the path"
        ) from error


def ending(returncode: int) -> str:
    """Return how a process ended, in words.

    >>> ending(-11), ending(1)
    ('crashed with SIGSEGV', 'stopped with status 1')
    """
    if returncode >= 0:
        return f"stopped with status {returncode}"
    try:
        return f"crashed with {signal.Signals(-returncode).name}"
    except ValueError:
        return f"crashed with signal {-returncode}"


def _or(words: tuple[str, ...]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def by_name(x: Arrays, shapes: Mapping[str, tuple[int | None, ...]]) -> dict[str, np.ndarray]:
    """Return inputs as {name: array}, checked against per-sample shapes (None: any size).

    >>> by_name(np.zeros((5, 3)), {"img": (3,)})["img"].shape
    (5, 3)
    """
    named = dict(x) if isinstance(x, Mapping) else {next(iter(shapes)): np.asarray(x)}
    if set(named) != set(shapes):
        raise SecateurError(
            f"inputs {sorted(named)} received, expected {list(shapes)}; "
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
