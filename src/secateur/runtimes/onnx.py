"""onnxruntime: `.onnx` files run on the processor, and read without being run.

What is inside a file is read from the file and not from the session, which fuses operators.
"""

import contextlib
import importlib
import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from secateur.arrays.affine import coded, decoded
from secateur.errors import SecateurError
from secateur.onnx_file import OnnxFile
from secateur.outputs import Meanings, of_onnx
from secateur.runtimes import Arrays, Constant, by_name, one_line, quiet, read, require, trial

PROVIDER = "CPUExecutionProvider"


def prepare() -> None:
    """Import the runtime, so that it does not count as time to load a model.

    Raises `SecateurError` where it is not installed.
    """
    for package in ("onnx", "onnxruntime"):
        require(package, "onnx")
        with quiet():  # it tells of graphics cards that it looked for
            importlib.import_module(package)


def load(path: str | Path | bytes, threads: int = 1) -> "OnnxSession":
    """Load an `.onnx` file (or its bytes); raises `SecateurError` if it is not a working one."""
    prepare()
    blob, source = read(path, ".onnx")
    if not isinstance(path, bytes):
        trial.require(blob, source, "onnx")
    return OnnxSession(blob, threads, source)


class OnnxSession:
    """A loaded `.onnx`; see `secateur.runtimes.Session`.

    `samples` and `dtypes` are of every input. A file with a batch size of its own is not `resizable`.
    """

    def __init__(self, blob: bytes, threads: int, source: str):
        self._source, self.threads = source, threads
        self._file = OnnxFile.parse(blob, source)
        self._session: Any = self._opened(blob)
        self.name = f"onnxruntime {importlib.import_module('onnxruntime').__version__}, CPU"
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self.input_names = tuple(value.name for value in inputs)
        self.output_names = tuple(value.name for value in outputs)
        self.dtypes = {value.name: self._dtype(value) for value in inputs}
        shapes = {value.name: self._shape(value) for value in (*inputs, *outputs)}
        self.samples = {name: shapes[name][1:] for name in self.input_names}
        self._batch = next((shapes[n][0] for n in self.input_names if shapes[n][0]), None)
        self.resizable = self._batch is None
        self.input_shape = self.samples[self.input_names[0]]
        self.output_shape = shapes[self.output_names[0]][1:]

    def predict(self, x: Arrays, batch: int = 256) -> Any:
        """Return float32 outputs (n, ...); memory does not grow with n but for the outputs."""
        inputs = by_name(x, self.samples)
        total, step = len(next(iter(inputs.values()))), self._batch or batch
        results: dict[str, np.ndarray] = {}
        for start in range(0, total, step):
            part = {name: array[start : start + step] for name, array in inputs.items()}
            count = len(part[self.input_names[0]])
            if self._batch and count < step:
                part = {n: np.resize(a, (step, *a.shape[1:])) for n, a in part.items()}
            for name, values in zip(self.output_names, self._run(part), strict=True):
                if values.shape[:1] != (step if self._batch else count,):
                    raise self._refused(f"output {name} has shape {values.shape}")
                whole = results.setdefault(name, np.empty((total, *values.shape[1:]), np.float32))
                whole[start : start + count] = decoded(values[:count], *self._file.coding(name))
        return results if len(self.output_names) > 1 else next(iter(results.values()), np.empty(0))

    def invoke_once(self, x: Arrays) -> None:
        """Run on a batch that fits as it is; raises `SecateurError` where the file cannot."""
        self._run(by_name(x, self.samples))

    @property
    def output_steps(self) -> dict[str, float]:
        """Distance between neighbouring values of each output: that of codes it is decoded from."""
        return {name: self._file.step(name) for name in self.output_names}

    def constants(self) -> list[Constant]:
        """Return weights and biases as they are stored, each tensor once."""
        return self._file.constants()

    def operators(self) -> list[tuple[str, int]]:
        """Return (operator, how many), in order of first appearance."""
        return list(Counter(node.op_type for node in self._file.nodes).items())

    def macs(self) -> int | None:
        """Return multiply-accumulates for one sample; None where an operator does not tell."""
        return self._file.macs(self._batch or 1)

    def meanings(self) -> Meanings:
        """Return what the outputs mean, by the operators that make them."""
        return of_onnx(self._file.makers, self._file.is_lowest, self.output_names)

    def input_coding(self, name: str) -> tuple[Any, float, int] | None:
        """Return dtype, scale and zero point of an input; None where it takes floats."""
        return (self.dtypes[name], *self._file.coding(name))

    def costs(self) -> dict[str, Any]:
        """Return nothing: on this processor, latency is the cost."""
        return {}

    def _opened(self, blob: bytes) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads or 0, 1
        options.log_severity_level = 4
        try:
            # What it cannot load it tells of on standard output too.
            with quiet(), contextlib.redirect_stdout(io.StringIO()):
                return onnxruntime.InferenceSession(blob, options, providers=[PROVIDER])
        except Exception as error:  # its own classes, none of them public
            raise self._refused(one_line(error)) from error

    def _run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        fed = {
            name: coded(np.asarray(array), self.dtypes[name], *self._file.coding(name))
            for name, array in inputs.items()
        }
        try:
            return self._session.run(None, fed)
        except Exception as error:
            raise self._refused(one_line(error)) from error

    def _dtype(self, value: Any) -> Any:
        kind = value.type.removeprefix("tensor(").removesuffix(")")
        found = {"float": "float32", "double": "float64"}.get(kind) or kind
        if f"tensor({kind})" != value.type or not hasattr(np, found):
            raise self._refused(f"input {value.name} is a {value.type}")
        return np.dtype(found)

    def _shape(self, value: Any) -> tuple[int | None, ...]:
        if not value.shape:
            raise self._refused(f"{value.name} has no axis for the batch")
        return tuple(n if isinstance(n, int) and n > 0 else None for n in value.shape)

    def _refused(self, cause: str) -> SecateurError:
        return SecateurError(
            f"{self._source} does not run in onnxruntime ({cause}), expected tensors with a row for "
            "each sample, of any number; fix: convert the model again"
        )
