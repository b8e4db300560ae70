"""LiteRT: `.tflite` files run and read without TensorFlow or Keras.

The only loop over an interpreter in the project. What is inside a file is read from the file
(a flatbuffer) and not from the interpreter, which replaces operators when it optimises.
"""

import importlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from secateur.errors import SecateurError
from secateur.runtimes import Arrays, Constant, by_name, one_line, quiet

# Slots of int32 biases: every other int32 constant is a shape, an axis or a padding.
BIAS_SLOTS = {
    "CONV_2D": 2,
    "CONV_3D": 2,
    "DEPTHWISE_CONV_2D": 2,
    "FULLY_CONNECTED": 2,
    "TRANSPOSE_CONV": 3,
}
# Operators whose work the shapes of their tensors do not tell.
OPAQUE = ("CALL", "CONV_3D_TRANSPOSE", "CUSTOM", "IF", "LSTM", "RNN", "SVDF", "WHILE")
DTYPES = {
    "FLOAT32": np.float32,
    "FLOAT16": np.float16,
    "FLOAT64": np.float64,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT16": np.int16,
    "INT32": np.int32,
}


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


def load(path: str | Path | bytes, threads: int = 1) -> "LiteRTSession":
    """Load a `.tflite` file (or its bytes); raises `SecateurError` if it is not a working one."""
    if isinstance(path, bytes):
        return LiteRTSession(path, threads, "the converted model")
    try:
        return LiteRTSession(Path(path).read_bytes(), threads, str(path))
    except OSError as error:
        raise SecateurError(
            f"{path} could not be read ({error.strerror}), expected a .tflite file; "
            "fix: check the path"
        ) from error


class LiteRTSession:
    """A loaded `.tflite`; see `secateur.runtimes.Session`.

    `resizable` turns False at the first batch size that the file refuses; its own is used then.
    """

    def __init__(self, blob: bytes, threads: int, source: str):
        prepare()
        self._blob, self._source = blob, source
        self.threads: int | None = threads
        self._file = _File.parse(blob, source)
        self._interpreter: Any = None
        self._shapes: dict[str, list[int]] = {}
        self._open()
        self.resizable = True
        self.name = f"litert {metadata.version('ai-edge-litert')}, XNNPACK"
        self.input_names = tuple(self._file.inputs)
        self.output_names = tuple(self._file.outputs)
        self._samples = {
            name: tuple(None if n < 0 else int(n) for n in self._details[i]["shape_signature"][1:])
            for name, i in self._file.inputs.items()
        }
        self.input_shape = self._samples[self.input_names[0]]
        first = self._details[self._file.outputs[self.output_names[0]]]
        self.output_shape = tuple(None if n < 0 else int(n) for n in first["shape_signature"][1:])

    def predict(self, x: Arrays, batch: int = 256) -> Any:
        """Return float32 outputs (n, ...); memory does not grow with n but for the outputs."""
        inputs = by_name(x, self._samples)
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
            self.invoke_once(part)
            for name, index in self._file.outputs.items():
                values = self._decoded(index)[:count]
                whole = results.setdefault(name, np.empty((total, *values.shape[1:]), np.float32))
                whole[start : start + count] = values
            start += count
        return results if len(self.output_names) > 1 else next(iter(results.values()), np.empty(0))

    def invoke_once(self, x: Arrays) -> None:
        """Run on a batch that fits as it is; raises `SecateurError` where the file cannot."""
        inputs = x if isinstance(x, dict) else by_name(x, self._samples)
        self._resize(inputs)
        for name, array in inputs.items():
            self._interpreter.set_tensor(self._file.inputs[name], self._coded(name, array))
        try:
            self._interpreter.invoke()
        except RuntimeError as error:
            raise self._refused(error) from error

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

    def _open(self) -> None:
        from ai_edge_litert.interpreter import Interpreter

        try:
            with quiet():
                self._interpreter = Interpreter(model_content=self._blob, num_threads=self.threads)
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
                self.resizable = False
                self._open()  # after a refused allocation the interpreter is of no more use
        return self._shapes[self.input_names[0]][0]

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
        scale, zero_point = detail["quantization"]
        if scale and np.issubdtype(array.dtype, np.floating):
            limits = np.iinfo(detail["dtype"])
            array = np.clip(np.round(array / scale) + zero_point, limits.min, limits.max)
        return np.ascontiguousarray(array, detail["dtype"])

    def _decoded(self, index: int) -> np.ndarray:
        scale, zero_point = self._details[index]["quantization"]
        values = self._interpreter.get_tensor(index)
        return (values.astype(np.float32) - zero_point) * scale if scale else values

    def _refused(self, error: Exception) -> SecateurError:
        return SecateurError(
            f"{self._source} does not run in LiteRT ({one_line(error)}), expected a file that takes "
            "every batch size; fix: convert the model again"
        )


@dataclass(frozen=True, eq=False)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    type: str
    data: np.ndarray | None  # raw bytes; None: computed when the model runs
    quantization: Any
    sparse: bool

    def constant(self, operator: str, slot: int) -> Constant:
        if self.type not in DTYPES or self.sparse or self.data is None:
            kind = "a sparse encoding" if self.sparse else f"type {self.type}"
            raise SecateurError(
                f"tensor {self.name} is stored with {kind}, expected one of "
                f"{', '.join(DTYPES).lower()}; fix: convert the model without it"
            )
        values = self.data.view(DTYPES[self.type]).reshape(self.shape)
        quantization = self.quantization
        if quantization is None or not quantization.ScaleLength():
            return Constant(self.name, values, None, None, None, operator, slot)
        scale = quantization.ScaleAsNumpy()
        zero_point = (
            quantization.ZeroPointAsNumpy()
            if quantization.ZeroPointLength()
            else np.zeros(len(scale), np.int64)
        )
        axis = int(quantization.QuantizedDimension())
        return Constant(self.name, values, scale, zero_point, axis, operator, slot)


@dataclass(frozen=True, eq=False)
class _Operator:
    name: str
    inputs: list[_Tensor | None]
    outputs: list[_Tensor]

    def macs(self) -> int | None:
        """Multiply-accumulates; weights are (out, h, w, in), (1, h, w, out) for DEPTHWISE."""
        if any(word in self.name for word in OPAQUE):
            return None
        shapes: list[tuple[int, ...]] = [t.shape if t else () for t in self.inputs]
        out = self.outputs[0].shape if self.outputs else ()
        per_output = {
            "CONV_2D": lambda: math.prod(shapes[1][1:]),
            "CONV_3D": lambda: math.prod(shapes[1][:-1]),
            "DEPTHWISE_CONV_2D": lambda: math.prod(shapes[1][1:3]),
            "FULLY_CONNECTED": lambda: shapes[1][-1],
            "BATCH_MATMUL": lambda: math.prod(shapes[0]) * math.prod(out[-1:]) // math.prod(out),
        }
        if self.name == "TRANSPOSE_CONV":  # (output shape, weights, input)
            return math.prod(shapes[2]) * math.prod(shapes[1][:3])
        return math.prod(out) * per_output[self.name]() if self.name in per_output else 0


@dataclass(frozen=True, eq=False)
class _File:
    """What a flatbuffer says: operators with their tensors, inputs and outputs by name."""

    operators: list[_Operator]
    inputs: dict[str, int]
    outputs: dict[str, int]

    @classmethod
    def parse(cls, blob: bytes, source: str) -> "_File":
        from ai_edge_litert import schema_py_generated as schema

        if blob[4:8] != b"TFL3":
            raise SecateurError(
                f"{source} is not a .tflite file, expected one that a converter wrote; "
                "fix: convert the model again"
            )
        names = {
            code: name for name, code in vars(schema.BuiltinOperator).items() if name[0] != "_"
        }
        types = {code: name for name, code in vars(schema.TensorType).items() if name[0] != "_"}
        try:
            model = schema.Model.GetRootAs(blob, 0)
            return cls(
                list(_operators(model, names, types)),
                _interface(model, "Inputs"),
                _interface(model, "Outputs"),
            )
        except Exception as error:  # a damaged flatbuffer raises whatever its bytes point to
            raise SecateurError(
                f"{source} is damaged ({one_line(error)}), expected an unchanged .tflite file; "
                "fix: convert the model again"
            ) from error

    def constants(self) -> list[Constant]:
        found: dict[int, Constant] = {}
        for operator in self.operators:
            for slot, tensor in enumerate(operator.inputs):
                if tensor is None or tensor.data is None or id(tensor) in found:
                    continue
                if tensor.type in ("INT32", "INT64", "BOOL", "STRING"):
                    if tensor.type != "INT32" or BIAS_SLOTS.get(operator.name) != slot:
                        continue
                found[id(tensor)] = tensor.constant(operator.name, slot)
        return list(found.values())


def _operators(model: Any, names: dict, types: dict) -> Iterator[_Operator]:
    for g in range(model.SubgraphsLength()):
        graph = model.Subgraphs(g)
        tensors = [_tensor(model, graph.Tensors(i), types) for i in range(graph.TensorsLength())]
        for i in range(graph.OperatorsLength()):
            operator = graph.Operators(i)
            code = model.OperatorCodes(operator.OpcodeIndex())
            # Files written before the 128th operator carry their code in the old field.
            name = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            inputs = [operator.Inputs(k) for k in range(operator.InputsLength())]
            outputs = [operator.Outputs(k) for k in range(operator.OutputsLength())]
            yield _Operator(
                name,
                [tensors[k] if k >= 0 else None for k in inputs],
                [tensors[k] for k in outputs],
            )


def _tensor(model: Any, tensor: Any, types: dict) -> _Tensor:
    buffer = model.Buffers(tensor.Buffer())
    return _Tensor(
        name=tensor.Name().decode(errors="replace") if tensor.Name() else "",
        shape=tuple(tensor.Shape(k) for k in range(tensor.ShapeLength())),
        type=types[tensor.Type()],
        data=buffer.DataAsNumpy() if buffer.DataLength() else None,
        quantization=tensor.Quantization(),
        sparse=tensor.Sparsity() is not None,
    )


def _interface(model: Any, side: str) -> dict[str, int]:
    """Name -> tensor of the inputs or outputs, by the signature where the file has one."""
    if model.SignatureDefsLength():
        signature = model.SignatureDefs(0)
        entries = [
            getattr(signature, side)(i) for i in range(getattr(signature, f"{side}Length")())
        ]
        return {entry.Name().decode(): entry.TensorIndex() for entry in entries}
    graph = model.Subgraphs(0)
    indices = [getattr(graph, side)(i) for i in range(getattr(graph, f"{side}Length")())]
    return {graph.Tensors(index).Name().decode(): index for index in indices}
