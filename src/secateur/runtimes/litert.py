"""LiteRT: `.tflite` files run and read without TensorFlow or Keras.

The only loop over an interpreter in the project. What is inside a file is read from the file
(a flatbuffer) and not from the interpreter, which replaces operators when it optimises.
"""

import importlib
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from secateur import diagnosis
from secateur.arrays.affine import coded, decoded
from secateur.errors import SecateurError
from secateur.outputs import Meanings, of_tflite
from secateur.runtimes import (
    Arrays,
    Constant,
    by_name,
    one_line,
    quiet,
    read,
    trial,
)
from secateur.tflite import TfliteFile


def prepare() -> None:
    """Import the interpreter, so that it does not count as time to load a model.

    Raises `SecateurError` where it is not installed.
    """
    try:
        importlib.import_module("ai_edge_litert.interpreter")
        importlib.import_module("ai_edge_litert.schema_py_generated")
    except ImportError as error:
        raise SecateurError(
            "no LiteRT runtime found, expected the package ai-edge-litert; "
            "fix: pip install 'secateur[litert]'"
        ) from error


def load(path: str | Path | bytes, threads: int = 1, kernels: str = "xnnpack") -> "LiteRTSession":
    """Load a `.tflite` file (or its bytes); raises `SecateurError` if it is not a working one.

    kernels: "xnnpack", fast; or "reference", which compute as a microcontroller's do.
    """
    blob, source = read(path)
    if not isinstance(path, bytes):
        prepare()
        TfliteFile.parse(blob, source)  # what is damaged to the eye needs no process
        trial.require(blob, source, "litert", kernels)
    return LiteRTSession(blob, threads, source, kernels=kernels)


def ranges(blob: bytes, samples: Arrays, batch: int = 32) -> dict[str, tuple[float, float]]:
    """Return tensor -> (smallest, largest) of every float tensor that a file computes from samples."""
    session = LiteRTSession(blob, 1, "the float file", preserve=True)
    return session.ranges(samples, batch)


def tensors(blob: bytes, samples: Arrays) -> dict[str, np.ndarray]:
    """Return tensor -> its values, of every float tensor that a file computes from a few samples."""
    session = LiteRTSession(blob, 1, "the float file", preserve=True)
    return session.tensors(samples)


class LiteRTSession:
    """A loaded `.tflite`; see `secateur.runtimes.Session`.

    `resizable` turns False at the first batch size that the file refuses, when it is allocated or
    run; its own is used then.
    """

    def __init__(
        self,
        blob: bytes,
        threads: int,
        source: str,
        *,
        preserve: bool = False,
        kernels: str = "xnnpack",
    ):
        prepare()
        self._preserve = preserve
        self._kernels = kernels
        self._blob, self._source = blob, source
        self.threads: int | None = threads
        self._file = TfliteFile.parse(blob, source)
        diagnosis.require_right(self._file, source, kernels)
        self._interpreter: Any = None
        self._shapes: dict[str, list[int]] = {}
        self._open()
        self.resizable = True
        kind = {"xnnpack": "XNNPACK", "reference": "reference kernels"}[kernels]
        self.name = f"litert {metadata.version('ai-edge-litert')}, {kind}"
        self.input_names = tuple(self._file.inputs)
        self.output_names = tuple(self._file.outputs)
        self.samples = {
            name: tuple(None if n < 0 else int(n) for n in self._details[i]["shape_signature"][1:])
            for name, i in self._file.inputs.items()
        }
        self.input_shape = self.samples[self.input_names[0]]
        first = self._details[self._file.outputs[self.output_names[0]]]
        self.output_shape = tuple(None if n < 0 else int(n) for n in first["shape_signature"][1:])

    def predict(self, x: Arrays, batch: int = 256) -> Any:
        """Return float32 outputs (n, ...); memory does not grow with n but for the outputs."""
        inputs = by_name(x, self.samples)
        total = len(next(iter(inputs.values())))
        results: dict[str, np.ndarray] = {}
        start = 0
        while start < total:
            part = {name: array[start : start + batch] for name, array in inputs.items()}
            count = len(part[self.input_names[0]])
            fitting = self._fit_batch(part, count)
            if fitting != count:  # a file with a batch of its own: fill up, or take less
                part = {
                    name: np.resize(a[:fitting], (fitting, *a.shape[1:]))
                    for name, a in part.items()
                }
                count = min(count, fitting)
            try:
                self.invoke_once(part)
            except SecateurError:
                if not self.resizable:
                    raise
                self._keep_batch()  # some operators notice no sooner
                continue
            for name, index in self._file.outputs.items():
                values = self._decoded(index)[:count]
                whole = results.setdefault(name, np.empty((total, *values.shape[1:]), np.float32))
                whole[start : start + count] = values
            start += count
        return results if len(self.output_names) > 1 else next(iter(results.values()), np.empty(0))

    def invoke_once(self, x: Arrays) -> None:
        """Run on a batch that fits as it is; raises `SecateurError` where the file cannot."""
        inputs = x if isinstance(x, dict) else by_name(x, self.samples)
        self._resize(inputs)
        for name, array in inputs.items():
            self._interpreter.set_tensor(self._file.inputs[name], self._coded(name, array))
        try:
            self._interpreter.invoke()
        except RuntimeError as error:
            raise self._refused(error) from error

    def ranges(self, samples: Arrays, batch: int) -> dict[str, tuple[float, float]]:
        """Smallest and largest value of each computed float tensor, kept by `preserve`."""
        inputs = by_name(samples, self.samples)
        found: dict[str, tuple[float, float]] = {}
        batch = self._largest_batch(inputs, batch)
        for start in range(0, len(next(iter(inputs.values()))), batch):
            part = {name: array[start : start + batch] for name, array in inputs.items()}
            for name, values in self._computed(part):
                low, high = found.get(name, (np.inf, -np.inf))
                found[name] = min(low, float(values.min())), max(high, float(values.max()))
        return found

    def tensors(self, samples: Arrays) -> dict[str, np.ndarray]:
        """Values (n, ...) of each computed float tensor, kept by `preserve`."""
        inputs = by_name(samples, self.samples)
        count = len(next(iter(inputs.values())))
        batch = self._largest_batch(inputs, count)
        parts: dict[str, list[np.ndarray]] = {}
        for start in range(0, count, batch):
            part = {name: array[start : start + batch] for name, array in inputs.items()}
            for name, values in self._computed(part):
                parts.setdefault(name, []).append(values.copy())
        return {name: np.concatenate(found) for name, found in parts.items()}

    def _computed(self, part: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """Run, then each float tensor that was computed."""
        operators = self._file.operators
        names = {t.name for o in operators for t in (*o.inputs, *o.outputs) if t and t.data is None}
        self.invoke_once(part)
        for detail in self._interpreter.get_tensor_details():
            if detail["name"] in names and detail["dtype"] == np.float32:
                yield detail["name"], self._interpreter.get_tensor(detail["index"])

    @property
    def output_steps(self) -> dict[str, float]:
        """Distance between neighbouring values of each output; 0.0 where it is a float."""
        return {
            name: float(self._details[index]["quantization"][0])
            for name, index in self._file.outputs.items()
        }

    def constants(self) -> list[Constant]:
        """Return weights and biases as they are stored, each tensor once."""
        return self._file.constants()

    def operators(self) -> list[tuple[str, int]]:
        """Return (operator, how many), in order of first appearance."""
        return list(Counter(operator.name for operator in self._file.operators).items())

    def macs(self) -> int | None:
        """Return multiply-accumulates for one sample; None where an operator does not tell."""
        counts = [operator.macs() for operator in self._file.operators]
        if any(count is None for count in counts):
            return None
        rows = int(self._details[self._file.inputs[self.input_names[0]]]["shape"][0])
        return sum(count for count in counts if count is not None) // max(rows, 1)

    def meanings(self) -> Meanings:
        """Return what the outputs mean, by the operators that make them."""
        return of_tflite(self._blob, self._file.outputs)

    def input_coding(self, name: str) -> tuple[Any, float, int] | None:
        """Return dtype, scale and zero point of an input; None where it takes floats."""
        detail = self._details[self._file.inputs[name]]
        return (np.dtype(detail["dtype"]), *detail["quantization"])

    def costs(self) -> dict[str, Any]:
        """Return nothing: on this processor, latency is the cost."""
        return {}

    def _open(self) -> None:
        from ai_edge_litert import interpreter as litert

        options: dict[str, Any] = {"experimental_preserve_all_tensors": self._preserve}
        if self._kernels == "reference":
            options["experimental_op_resolver_type"] = litert.OpResolverType.BUILTIN_REF
        elif self._preserve:  # XNNPACK fuses operators, whose tensors are then not there to be read
            resolver = litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            options["experimental_op_resolver_type"] = resolver
        try:
            with quiet():
                self._interpreter = litert.Interpreter(
                    model_content=self._blob, num_threads=self.threads, **options
                )
                self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise self._refused(error) from error
        details = [*self._interpreter.get_input_details(), *self._interpreter.get_output_details()]
        self._details = {detail["index"]: detail for detail in details}
        self._shapes = {
            name: self._details[index]["shape"].tolist()
            for name, index in self._file.inputs.items()
        }

    def _fit_batch(self, part: dict[str, np.ndarray], wanted: int) -> int:
        """The batch to run with: the one wanted, or the file's own where it takes no other."""
        if self.resizable:
            try:
                self._resize(part)
                return wanted
            except SecateurError:
                self._keep_batch()
        return self._shapes[self.input_names[0]][0]

    def _keep_batch(self) -> None:
        self.resizable = False
        self._open()  # after a refusal the interpreter is of no more use

    def _largest_batch(self, inputs: dict[str, np.ndarray], wanted: int) -> int:
        """The batch wanted, or the file's: a transposed convolution takes others in XNNPACK only."""
        try:
            self.invoke_once({name: array[:wanted] for name, array in inputs.items()})
        except SecateurError:
            self._keep_batch()
            return self._shapes[self.input_names[0]][0]
        return wanted

    def _resize(self, inputs: dict[str, np.ndarray]) -> None:
        shapes = {name: list(array.shape) for name, array in inputs.items()}
        if shapes == self._shapes:
            return
        self._shapes = shapes
        try:
            with quiet():
                for name, shape in shapes.items():
                    self._interpreter.resize_tensor_input(self._file.inputs[name], shape)
                self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise self._refused(error) from error

    def _coded(self, name: str, array: np.ndarray) -> np.ndarray:
        detail = self._details[self._file.inputs[name]]
        return coded(np.asarray(array), detail["dtype"], *detail["quantization"])

    def _decoded(self, index: int) -> np.ndarray:
        return decoded(self._interpreter.get_tensor(index), *self._details[index]["quantization"])

    def _refused(self, error: Exception) -> SecateurError:
        known = diagnosis.refusal(self._file, self._source, self._kernels, one_line(error))
        return known or SecateurError(
            f"{self._source} does not run in LiteRT ({one_line(error)}), expected a file that takes "
            "every batch size; fix: convert the model again"
        )
