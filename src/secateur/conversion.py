"""A Keras model to the bytes of a `.tflite` file, whatever backend holds the model.

TensorFlow's converter does it: in this process when Keras runs on TensorFlow, else in a clean one
(`python -m secateur.conversion`), because a process has one Keras backend for its whole life.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secateur import quantization
from secateur.apart import Cost, Limits, run_python
from secateur.errors import SecateurError
from secateur.locating import placed
from secateur.matching import matched
from secateur.quantization import QUANTIZATIONS, quantize
from secateur.runtimes import litert, one_line, quiet
from secateur.runtimes.keras import load_model, pack, save_model, signature
from secateur.tflite import TfliteFile
from secateur.widths import Width

# What the converter writes; every other format is made of the float file.
CONVERTED = ("float32", "sparse")
FORMATS = (*CONVERTED, *QUANTIZATIONS)
# Marks the one line of the child process that is meant for the user.
REFUSED = "secateur: "


def to_litert(
    model: Any,
    formats: Sequence[str] = ("float32",),
    *,
    imports: Sequence[str] = (),
    calibration: Any = None,
    io: str = "int",
    widths: Mapping[str, Width] | None = None,
    trained: Mapping[str, tuple[float, float]] | None = None,
    known: Mapping[str, tuple[float, float]] | None = None,
    limits: Limits | None = None,
    spent: Callable[[Cost], None] | None = None,
    ranged: Callable[[Mapping[str, tuple[float, float]]], None] | None = None,
) -> dict[str, bytes]:
    """Return {format: `.tflite` file} of a Functional or Sequential model; same model, same bytes.

    Args:
        model: it is not changed.
        formats: of "float32", "sparse" (zeros encoded), "float16", "dynamic" (int8 weights, float
            activations), "int4" (the same with 4 bits), "int8" and "int16x8" (integers throughout).
        imports: modules that register the model's own layers; the clean process imports them.
        io: "int" or "float", what the last two take in and give out.
        calibration: inputs (n, ...) or {name: inputs}, from which the last two take their ranges.
        widths: path of a kernel -> its width in the quantized formats, where that is another.
        trained: ranges that a quantization-aware training left, for the last two; calibration data
            give those of the tensors that it knows nothing of.
        known: ranges by tensor that an earlier conversion of this model told, for the last two where
            there are no calibration data.
        limits: of the clean process, if it takes one; None: those of the environment.
        spent: told what the clean process took.
        ranged: told the range of each tensor, where the last two are among the formats.

    Raises `SecateurError` where TensorFlow or LiteRT is missing, or cannot convert the model.
    """
    for format in formats:
        if format not in FORMATS:
            raise SecateurError(
                f"format {format!r} received, expected one of {', '.join(FORMATS)}; fix: choose one"
            )
    if importlib.util.find_spec("tensorflow") is None:
        raise SecateurError(
            "TensorFlow is not installed, expected it for writing .tflite files whatever the "
            "backend of the model; fix: pip install 'secateur[tensorflow]'"
        )
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise SecateurError(
            "ai-edge-litert is not installed, expected it for finishing and running .tflite files; "
            "fix: pip install 'secateur[litert]'"
        )
    quantized = [format for format in formats if format not in CONVERTED]
    if quantized:
        quantization.prepare()
    calibrated = [f for f in quantized if QUANTIZATIONS[f].activations is not None]
    if calibrated and calibration is None and not known:
        raise SecateurError(
            f"{' and '.join(calibrated)} received without calibration data, expected a few hundred "
            "inputs like those of training, for the ranges of activations; fix: give calibration="
            "x (--calibration data.npz)"
        )
    wanted = [f for f in CONVERTED if f in formats or (f == "float32" and quantized)]
    made = _converted(model, wanted, imports, limits, spent)
    constants = litert.load(made["float32"]).constants() if widths and quantized else []
    ranges = None
    floats: frozenset[str] = frozenset()
    if calibrated and calibration is not None:
        ranges = litert.ranges(made["float32"], calibration)
    elif calibrated and known:
        ranges = _remembered(made["float32"], known)
    if ranges is not None and trained:
        samples = random_inputs(model, 4) if calibration is None else calibration
        found = matched(made["float32"], model, trained, samples, ranges)
        floats, ranges = found.floats, found.ranges if calibration is not None else ranges
    if ranges is not None and ranged is not None:
        ranged(ranges)
    for format in quantized:
        how = dataclasses.replace(QUANTIZATIONS[format], io=io)
        own = {
            path: width
            for path, width in (widths or {}).items()
            if width != Width(bits=how.weights, block=how.block)
        }
        tensors = placed(constants, model, own) if own else {}
        try:
            made[format] = quantize(
                made["float32"], how, ranges, {tensors[path]: own[path] for path in tensors}, floats
            )
        except SecateurError as error:  # a user knows paths, not the converter's names
            told = str(error)
            for path, tensor in tensors.items():
                told = told.replace(f"'{tensor}'", path)
            raise SecateurError(told) from error.__cause__
    return {format: made[format] for format in formats}


def _remembered(
    blob: bytes, known: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """The ranges of an earlier conversion, which must be those of this file's own tensors."""
    file = TfliteFile.parse(blob, "the float file")
    computed = {
        tensor.name
        for operator in file.operators
        for tensor in (*operator.inputs, *operator.outputs)
        if tensor is not None and tensor.data is None and tensor.floating
    }
    if missing := sorted(computed - set(known)):
        raise SecateurError(
            f"no range for {', '.join(missing[:3])} received, expected one for each of "
            f"{len(computed)} tensors: they were written by another version of TensorFlow, or for "
            "another model; fix: give calibration data"
        )
    return {name: known[name] for name in computed}


def _converted(
    model: Any,
    formats: Sequence[str],
    imports: Sequence[str],
    limits: Limits | None,
    spent: Callable[[Cost], None] | None,
) -> dict[str, bytes]:
    import keras

    if keras.backend.backend() == "tensorflow":
        return {format: convert(model, format) for format in formats}
    try:
        # Saving a model imports TensorFlow where it is installed, whatever the backend.
        with quiet(), tempfile.TemporaryDirectory() as name:
            return in_clean_process(model, formats, imports, Path(name), limits=limits, spent=spent)
    except OSError as error:
        raise SecateurError(
            f"the temporary folder {tempfile.gettempdir()} could not be used "
            f"({error.strerror or error}), expected room for the model; "
            "fix: free some space, or name another folder in TMPDIR"
        ) from error


def convert(model: Any, format: str) -> bytes:
    """Convert in this process, whose Keras backend must be TensorFlow; see `to_litert`."""
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations of the converter, aimed at us
            fixed = batch_free(_traced(model, 1, format))
            return fixed if _takes_any_batch(fixed, model) else _traced(model, None, format)
    except SecateurError:
        raise
    except Exception as error:  # the converter raises whatever its passes raise
        cause, fix = _cause(error), "replace the layer that the message names"
        if "TensorList" in cause:
            fix = "build recurrent layers with unroll=True, the weights stay the same"
        raise SecateurError(
            f"model {model.name!r} could not be converted ({cause}), expected layers that "
            f"LiteRT has operators for, at any batch size; fix: {fix}"
        ) from error


def batch_free(blob: bytes) -> bytes:
    """Return the file with a leading 1 in the target of each RESHAPE replaced by -1.

    Traced at batch 1, a model has clean operators and its batch size baked into RESHAPE. With -1
    nothing changes at batch 1, and at batch n the count of elements makes it n. Traced without a
    batch size the file is 1.4 kB longer, with SHAPE, STRIDED_SLICE and PACK before each RESHAPE.
    """
    from ai_edge_litert import schema_py_generated as schema

    writable = bytearray(blob)  # NumPy views of it are written through, byte for byte in place
    model = schema.Model.GetRootAs(writable, 0)
    for g in range(model.SubgraphsLength()):
        graph = model.Subgraphs(g)
        for i in range(graph.OperatorsLength()):
            operator = graph.Operators(i)
            code = model.OperatorCodes(operator.OpcodeIndex())
            if code.BuiltinCode() != schema.BuiltinOperator.RESHAPE:
                continue
            if options := operator.BuiltinOptions():
                reshape = schema.ReshapeOptions()
                reshape.Init(options.Bytes, options.Pos)
                if reshape.NewShapeLength():
                    _free(reshape.NewShapeAsNumpy())
            if operator.InputsLength() > 1:
                buffer = model.Buffers(graph.Tensors(operator.Inputs(1)).Buffer())
                if buffer.DataLength():
                    _free(buffer.DataAsNumpy().view(np.int32))
    return bytes(writable)


def random_inputs(model: Any, n: int) -> dict[str, np.ndarray]:
    """Return n samples from seed 0 for each input: floats in [0, 1), integers 0 or 1.

    A dimension of any size is taken as 8.
    """
    rng = np.random.default_rng(0)
    samples = {}
    for name, tensor in signature(model)[0].items():
        shape = [n, *(8 if size is None else size for size in tensor.shape[1:])]
        floating = "float" in tensor.dtype
        values = rng.random(shape) if floating else rng.integers(0, 2, shape)
        samples[name] = values.astype(tensor.dtype if tensor.dtype != "bfloat16" else np.float32)
    return samples


def _traced(model: Any, batch: int | None, format: str) -> bytes:
    import keras
    import tensorflow as tf

    inputs, outputs = signature(model)
    specs = [
        tf.TensorSpec([batch, *tensor.shape[1:]], tensor.dtype, name=name)
        for name, tensor in inputs.items()
    ]

    def named(*arrays: Any) -> dict[str, Any]:
        found = keras.tree.flatten(model(pack(model, list(arrays)), training=False))
        return dict(zip(outputs, found, strict=True))

    function = tf.function(named, input_signature=specs).get_concrete_function()
    # What the converter saves beside the function; variables that are not tracked are left out of
    # the file. Frozen into the graph instead, each of them is copied over and over (VGG16: 2.9 GB).
    tracked: Any = tf.Module()
    tracked.variables_of_the_model = [variable.value for variable in model.variables]
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], tracked)
    if format == "sparse":
        converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    return _ordered(bytes(converter.convert()), list(inputs), list(outputs))


def _ordered(blob: bytes, *names: list[str]) -> bytes:
    """Return the file with its inputs and outputs in the model's order, by which firmware counts them.

    The converter has an order of its own, in which output(0) may be any. Written in place.
    """
    from ai_edge_litert import schema_py_generated as schema

    writable = bytearray(blob)
    model, file = schema.Model.GetRootAs(writable, 0), TfliteFile.parse(blob, "the float file")
    for side, tensors, wanted in zip(
        ("Inputs", "Outputs"), (file.inputs, file.outputs), names, strict=True
    ):
        indices = getattr(model.Subgraphs(0), f"{side}AsNumpy")()
        ordered = [tensors[name] for name in wanted if name in tensors]
        if sorted(ordered) == sorted(indices):  # an input that nothing reads may not be there
            indices[:] = ordered
    return bytes(writable)


def _cause(error: Exception) -> str:
    """What the converter says of an operator, out of pages of call sites."""
    told = re.search(r"'tf\.\w+' op [^\n]*", str(error))
    return told.group()[:200] if told else one_line(error)


def _free(shape: np.ndarray) -> None:
    if shape.size and shape[0] == 1 and -1 not in shape:
        shape[0] = -1


def _takes_any_batch(blob: bytes, model: Any) -> bool:
    """Whether three samples together give what they give one by one."""
    samples = random_inputs(model, 3)
    session = litert.load(blob)
    together = session.predict(samples, batch=3)
    one_by_one = session.predict(samples, batch=1)
    if not session.resizable:
        return False
    if isinstance(together, np.ndarray):
        together, one_by_one = {"": together}, {"": one_by_one}
    return all(np.allclose(together[k], one_by_one[k], 1e-3, 1e-4, True) for k in together)


def in_clean_process(
    model: Any,
    formats: Sequence[str],
    imports: Sequence[str],
    folder: Path,
    module: str = "secateur.conversion",
    *,
    limits: Limits | None = None,
    spent: Callable[[Cost], None] | None = None,
) -> dict[str, bytes]:
    """Convert in a process of its own that runs Keras on TensorFlow, by the `main` of `module`.

    `folder` holds the files that pass between the processes. Raises `OSError` where it is full.
    limits: None takes those of the environment. spent: told what the process took.
    """
    save_model(model, folder / "model.keras")
    command = [module, str(folder), *formats]
    command += [word for name in imports for word in ("--import", name)]
    environment = {
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    limits = limits or Limits.of_environment()
    done, cost = run_python(command, limits, "the converter", environment)
    if spent is not None:
        spent(cost)
    if done.returncode == 0:
        return {format: (folder / format).read_bytes() for format in formats}
    told = [line for line in done.stdout.splitlines() if line.startswith(REFUSED)]
    if told:
        message = told[-1].removeprefix(REFUSED)
        raise SecateurError(message.replace(str(folder / "model.keras"), f"model {model.name!r}"))
    last = ([line for line in done.stderr.splitlines() if line.strip()] or ["no message"])[-1]
    raise SecateurError(
        f"the converter's process stopped with status {done.returncode} ({last.strip()[:300]}), "
        "expected a file; fix: check the TensorFlow installation and the memory left"
    )


def main(
    arguments: Sequence[str] | None = None,
    convert: Callable[[Any, str], bytes] = convert,
    formats: Sequence[str] = CONVERTED,
) -> int:
    """Convert FOLDER/model.keras to FOLDER/FORMAT, once for each format.

    A refusal is one line on standard output and status 1.
    """
    parser = argparse.ArgumentParser(prog="python -m secateur.conversion")
    parser.add_argument("folder", type=Path)
    parser.add_argument("formats", nargs="+", choices=formats)
    parser.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE")
    options = parser.parse_args(arguments)
    try:
        for name in options.imports:
            importlib.import_module(name)
        model = load_model(options.folder / "model.keras")
        for format in options.formats:
            (options.folder / format).write_bytes(convert(model, format))
    except SecateurError as error:
        print(f"{REFUSED}{error}")
        return 1
    except ImportError as error:
        print(f"{REFUSED}{one_line(error)}; fix: --import takes modules that Python can import")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
