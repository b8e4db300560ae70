"""LiteRT for Microcontrollers (tflite-micro): the kernels of the chip, and the RAM they need.

A file is tried in a process of its own before this one loads it: on a damaged file the
interpreter reads past the end of its memory, which no exception tells.
"""

import importlib
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from secateur.apart import Limits, run_python
from secateur.arrays.affine import coded, decoded
from secateur.errors import SecateurError
from secateur.outputs import Meanings, of_tflite
from secateur.runtimes import (
    Arrays,
    Constant,
    by_name,
    ending,
    litert,
    one_line,
    quiet,
    read,
    require,
)
from secateur.tflite import DTYPES, TfliteFile

SECONDS = 120  # for a first run
ALLOCATION = re.compile(r"Arena allocation (total|head|tail) (\d+) bytes")
MISSING = re.compile(r"Didn't find op for builtin opcode '(\w+)'")
FAILED = re.compile(r"Node (\w+) \(number \d+\) failed to (\w+)")
# An operator that every build has and that reads no options: put in the place of one that is
# missing, it lets the interpreter go on to the next.
STAND_IN = "LOGISTIC"


def prepare() -> None:
    """Import the interpreter; raises `SecateurError` where it is not installed."""
    require("tflite_micro", "micro", " (Linux on x86-64: it has no other wheels)")
    litert.prepare()  # whose schema reads the file
    importlib.import_module("tflite_micro")


def load(path: str | Path | bytes, threads: int = 1) -> "TflmSession":
    """Load a `.tflite` file (or its bytes); `threads` is ignored, a microcontroller has one.

    Raises `SecateurError` naming the operators that it has no kernel for.
    """
    del threads
    blob, source = read(path)
    return TflmSession(blob, source)


class TflmSession:
    """A loaded `.tflite`; see `secateur.runtimes.Session`. `arena` is in bytes: total, head, tail.

    The file's own batch, nearly always 1, is the only one there is.
    """

    threads: int | None = 1
    resizable = False

    def __init__(self, blob: bytes, source: str):
        prepare()
        self._source, self._blob = source, blob
        self._file = TfliteFile.parse(blob, source)
        size = _arena_size(self._file, blob)
        self.arena = _tried(blob, size, source)
        from tflite_micro import runtime

        with quiet():
            self._interpreter = runtime.Interpreter.from_bytes(blob, arena_size=size)
        self.name = f"tflm {metadata.version('tflite-micro')}"
        inputs, outputs = _order(blob)
        self._inputs = {name: inputs.index(k) for name, k in self._file.inputs.items()}
        self._outputs = {name: outputs.index(k) for name, k in self._file.outputs.items()}
        details = self._interpreter.get_input_details
        self._input_details = {name: details(k) for name, k in self._inputs.items()}
        details = self._interpreter.get_output_details
        self._output_details = {name: details(k) for name, k in self._outputs.items()}
        self.input_names, self.output_names = tuple(self._inputs), tuple(self._outputs)
        self._samples = {name: _sample(detail) for name, detail in self._input_details.items()}
        self.input_shape = self._samples[self.input_names[0]]
        self.output_shape = _sample(self._output_details[self.output_names[0]])
        self._rows = int(next(iter(self._input_details.values()))["shape"][0])

    def predict(self, x: Arrays, batch: int = 256) -> Any:
        """Return float32 outputs (n, ...); `batch` is how many samples are coded at a time."""
        inputs = by_name(x, self._samples)
        total = len(next(iter(inputs.values())))
        results: dict[str, np.ndarray] = {}
        step = max(batch // self._rows, 1) * self._rows
        for start in range(0, total, step):
            part = {name: self._coded(name, a[start : start + step]) for name, a in inputs.items()}
            with quiet():
                for row in range(0, min(step, total - start), self._rows):
                    self._run({name: array[row : row + self._rows] for name, array in part.items()})
                    place = start + row
                    for name in self.output_names:
                        values = self._decoded(name)[: total - place]
                        if name not in results:
                            results[name] = np.empty((total, *values.shape[1:]), np.float32)
                        results[name][place : place + len(values)] = values
        return results if len(self.output_names) > 1 else next(iter(results.values()), np.empty(0))

    def invoke_once(self, x: Arrays) -> None:
        """Run on the first samples, as many as the file takes."""
        inputs = by_name(x, self._samples)
        with quiet():
            self._run({name: self._coded(name, a[: self._rows]) for name, a in inputs.items()})

    @property
    def output_steps(self) -> Mapping[str, float]:
        """Distance between neighbouring values of each output; 0.0 where it is a float."""
        return {name: _quantization(detail)[0] for name, detail in self._output_details.items()}

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
        return sum(count for count in counts if count is not None) // self._rows

    def meanings(self) -> Meanings:
        """Return what the outputs mean, by the operators that make them."""
        return of_tflite(self._blob, self._file.outputs)

    def input_coding(self, name: str) -> tuple[Any, float, int] | None:
        """Return dtype, scale and zero point of an input; the scale is 0 where it takes floats."""
        detail = self._input_details[name]
        return (np.dtype(detail["dtype"]), *_quantization(detail))

    def costs(self) -> dict[str, Any]:
        """Return the arena: the RAM that the chip must have for tensors, beside the file itself."""
        head, tail = self.arena["head"], self.arena["tail"]
        return {"arena_bytes": self.arena["total"], "arena": {"head": head, "tail": tail}}

    def _run(self, inputs: dict[str, np.ndarray]) -> None:
        self._interpreter.reset()  # a sample must not see what a recurrent layer kept of the last
        for name, array in inputs.items():
            if len(array) < self._rows:
                array = np.resize(array, (self._rows, *array.shape[1:]))
            # Each time: the memory of the inputs is used again for what is computed from them.
            self._interpreter.set_input(array, self._inputs[name])
        try:
            self._interpreter.invoke()
        except RuntimeError as error:
            raise SecateurError(
                f"{self._source} stopped in TFLM ({one_line(error)}), expected inputs that its "
                "operators take; fix: check the data, or convert the model again"
            ) from error

    def _coded(self, name: str, array: np.ndarray) -> np.ndarray:
        detail = self._input_details[name]
        return coded(np.asarray(array), detail["dtype"], *_quantization(detail))

    def _decoded(self, name: str) -> np.ndarray:
        values = self._interpreter.get_output(self._outputs[name])
        return decoded(values, *_quantization(self._output_details[name]))


def _sample(detail: dict[str, Any]) -> tuple[int | None, ...]:
    return tuple(int(n) for n in detail["shape"][1:])


def _quantization(detail: dict[str, Any]) -> tuple[float, int]:
    found = detail["quantization_parameters"]
    if not len(found["scales"]):
        return 0.0, 0
    return float(found["scales"][0]), int(found["zero_points"][0])


def _order(blob: bytes) -> tuple[list[int], list[int]]:
    """The tensors of the inputs and outputs in the order in which the interpreter counts them."""
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.Model.GetRootAs(blob, 0).Subgraphs(0)
    inputs = [graph.Inputs(k) for k in range(graph.InputsLength())]
    return inputs, [graph.Outputs(k) for k in range(graph.OutputsLength())]


def _arena_size(file: TfliteFile, blob: bytes) -> int:
    """Memory to offer, in bytes: enough for all tensors at once; how much of it is used is measured.

    The interpreter's own choice, ten times the file, is too little for a small net on large images.
    """
    tensors = {id(t): t for o in file.operators for t in (*o.inputs, *o.outputs) if t is not None}
    computed = [t for t in tensors.values() if t.data is None]
    needed = sum(
        math.prod(max(n, 1) for n in t.shape) * np.dtype(DTYPES.get(t.type, np.int64)).itemsize
        for t in computed
    )
    # Codes of 4 bits are unpacked in the arena. Rounded: a size that is no multiple of 16 is
    # added to what is measured.
    return (2 * needed + 4 * len(blob) + (1 << 20)) // 16 * 16


def _tried(blob: bytes, size: int, source: str) -> dict[str, int]:
    """Load and run the file once in another process; the arena in bytes, or `SecateurError`."""
    code, text = _trial(blob, size)
    if code == 0:
        return {part: int(found) for part, found in ALLOCATION.findall(text)}
    missing = _missing(blob, size, text)
    if missing:
        raise SecateurError(
            f"{source} has operators that TFLM has no kernel for ({', '.join(missing)}), expected "
            "those of its list; fix: replace the layers they come from"
        )
    failed = FAILED.search(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if failed:
        why = next((line for line in lines if not FAILED.search(line)), "")
        raise SecateurError(
            f"{source} has an operator that TFLM cannot {failed[2]} as it stands ({failed[1]}: "
            f"{why[:200]}), expected types and shapes that it has kernels for; "
            "fix: export the model as int8, or replace the layer"
        )
    said = f": {lines[-1][:200]}" if code > 0 and lines else ""
    raise SecateurError(
        f"{source} does not run in TFLM (its process {ending(code)}{said}), expected an unchanged "
        ".tflite file; fix: convert the model again, as int8"
    )


def _trial(blob: bytes, size: int) -> tuple[int, str]:
    arguments, limits = ["secateur.runtimes.tflm", str(size)], Limits.of_file(len(blob), SECONDS)
    done, _ = run_python(arguments, limits, "a first run in TFLM", input=blob)
    return done.returncode, done.stderr + done.stdout


def _missing(blob: bytes, size: int, text: str) -> list[str]:
    """Every operator without a kernel: the interpreter names one and stops, so each is replaced."""
    from ai_edge_litert import schema_py_generated as schema

    found: list[str] = []
    changed = bytearray(blob)
    while (match := MISSING.search(text)) and match[1] not in found:
        found.append(match[1])
        model = schema.Model.GetRootAs(changed, 0)
        for k in range(model.OperatorCodesLength()):
            code = model.OperatorCodes(k)
            number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            if number == getattr(schema.BuiltinOperator, match[1], None):
                _replace(changed, code, getattr(schema.BuiltinOperator, STAND_IN))
        text = _trial(bytes(changed), size)[1]
    return found


def _replace(blob: bytearray, code: Any, number: int) -> None:
    """Overwrite the fields of an OperatorCode that hold its number: one byte, and four."""
    table = code._tab
    for field, width in ((4, 1), (10, 4)):
        if offset := table.Offset(field):
            start = table.Pos + offset
            blob[start : start + width] = number.to_bytes(width, "little")


def main() -> int:
    """Run the file on standard input once; the interpreter reports to the standard streams."""
    from tflite_micro import runtime

    blob = sys.stdin.buffer.read()
    try:
        interpreter = runtime.Interpreter.from_bytes(blob, arena_size=int(sys.argv[1]))
        for k in range(len(_order(blob)[0])):
            detail = interpreter.get_input_details(k)
            interpreter.set_input(np.ones(detail["shape"], detail["dtype"]), k)
        interpreter.invoke()
        interpreter.print_allocations()
    except Exception as error:  # a damaged file raises whatever its bytes point to
        print(one_line(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
