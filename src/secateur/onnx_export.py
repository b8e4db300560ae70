"""A Keras model to the bytes of `.onnx` files, whatever backend holds the model.

tf2onnx writes the float file: in this process when Keras runs on TensorFlow, else in a clean one
(`python -m secateur.onnx_export`). onnxruntime quantizes it, with neither TensorFlow nor Keras.
"""

import importlib.util
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from secateur import conversion
from secateur.errors import SecateurError
from secateur.onnx_graph import canonical, nodes, squeeze_last
from secateur.onnx_matching import as_trained
from secateur.onnx_quantization import Ranges
from secateur.runtimes import Arrays, by_name, one_line, quiet
from secateur.runtimes import onnx as runtime
from secateur.runtimes.keras import pack, signature
from secateur.widths import Width

FORMATS = ("onnx", "onnx-dynamic", "onnx-int8")
# The newest that tf2onnx writes, and what onnxruntime has run since version 1.14.
OPSET = 18
# What writing takes, and the extra that brings it.
NEEDED = {
    "tensorflow": "tensorflow",
    "tf2onnx": "onnx",
    "onnx": "onnx",
    "onnxruntime": "onnx",
}
BATCH = 32


def to_onnx(
    model: Any,
    formats: Sequence[str] = ("onnx",),
    *,
    imports: Sequence[str] = (),
    calibration: Any = None,
    widths: Mapping[str, Width] | None = None,
    trained: Ranges | None = None,
) -> dict[str, bytes]:
    """Return {format: `.onnx` file} of a Functional or Sequential model; same model, same bytes.

    Args:
        model: it is not changed.
        formats: of "onnx" (float), "onnx-dynamic" (int8 weights, activations coded as they come)
            and "onnx-int8" (QDQ: int8 weights and activations, a scale for each channel).
        imports: modules that register the model's own layers; the clean process imports them.
        calibration: inputs (n, ...) or {name: inputs}, from which "onnx-int8" takes its ranges.
        widths: path of a kernel -> 4 or 8 bits (else float) in "onnx-int8", as a quantize step says.
        trained: ranges that a quantization-aware training left, for "onnx-int8": no calibration
            is needed, and the file has the grids of the training.

    Raises `SecateurError` where a package is missing, or the model cannot be converted.
    """
    for format in formats:
        if format not in FORMATS:
            raise SecateurError(
                f"format {format!r} received, expected one of {', '.join(FORMATS)}; fix: choose one"
            )
    require_packages()
    if "onnx-int8" in formats and calibration is None and not trained:
        raise SecateurError(
            "onnx-int8 received without calibration data, expected a few hundred inputs like those "
            "of training, for the ranges of activations; fix: give calibration=x "
            "(--calibration data.npz)"
        )
    try:
        made = {"onnx": _converted(model, imports)}
        for format in formats:
            if format == "onnx-int8" and (widths or trained):
                samples = conversion.random_inputs(model, 4) if calibration is None else calibration
                made[format] = specified(made["onnx"], model, widths or {}, trained or {}, samples)
            elif format != "onnx":
                made[format] = quantize(made["onnx"], format, calibration)
    except OSError as error:
        raise SecateurError(
            f"the temporary folder {tempfile.gettempdir()} could not be used "
            f"({error.strerror or error}), expected room for the model; "
            "fix: free some space, or name another folder in TMPDIR"
        ) from error
    return {format: made[format] for format in formats}


def require_packages() -> None:
    """Raise `SecateurError` with what to install where something that writes `.onnx` is missing."""
    for package, extra in NEEDED.items():
        if importlib.util.find_spec(package) is None:
            raise SecateurError(
                f"{package} is not installed, expected it for writing .onnx files whatever the "
                f"backend of the model; fix: pip install 'secateur[{extra}]'"
            )


def convert(model: Any, format: str = "onnx") -> bytes:
    """Convert to float in this process, whose Keras backend must be TensorFlow; see `to_onnx`."""
    import keras
    import tensorflow as tf

    inputs, outputs = signature(model)
    specs = [
        tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype, name=name)
        for name, tensor in inputs.items()
    ]

    def named(*arrays: Any) -> dict[str, Any]:
        flat = keras.tree.flatten(model(pack(model, list(arrays)), training=False))
        return dict(zip(outputs, flat, strict=True))

    try:
        with silent():
            from tf2onnx import utils
            from tf2onnx.convert import from_function

            utils.INTERNAL_NAME = 1  # its optimizers go by the names, which count up
            proto, _ = from_function(
                tf.function(named, input_signature=specs),
                specs,
                opset=OPSET,
                custom_op_handlers={"Erfc": (_erfc, [])},
            )
        proto.graph.name = model.name
        _require_known(proto)
        return canonical(proto, list(inputs), list(outputs))
    except OSError:  # no room: nothing is wrong with the model
        raise
    except Exception as error:  # tf2onnx raises whatever its passes raise
        raise SecateurError(
            f"model {model.name!r} could not be converted ({one_line(error)}), expected layers "
            "that ONNX has operators for, at any batch size; fix: replace the layer that the "
            "message names"
        ) from error


def quantize(blob: bytes, format: str, calibration: Any = None) -> bytes:
    """Return the quantized file of a float one, by onnxruntime; same file and data, same bytes.

    Raises `SecateurError` for what the quantizer refuses, with its reason.
    """
    import onnx

    proto = onnx.load_model_from_string(blob)
    inputs, outputs = ([value.name for value in s] for s in (proto.graph.input, proto.graph.output))
    batches = _batches(blob, calibration) if format == "onnx-int8" else None
    try:
        with silent(), tempfile.TemporaryDirectory() as name:
            path = Path(name) / "quantized.onnx"
            if batches is None:
                _dynamic(proto, path)
            else:
                _static(_folded(blob, Path(name) / "folded.onnx"), path, batches)
            return canonical(onnx.load(path), inputs, outputs)
    except OSError:
        raise
    except Exception as error:  # it raises ValueError, RuntimeError and others, as its passes do
        raise SecateurError(
            f"the model could not be quantized ({one_line(error)}), expected operators that "
            f"{format} exists for; fix: choose another format"
        ) from error


def specified(
    blob: bytes, model: Any, widths: Mapping[str, Width], ranges: Ranges, samples: Any
) -> bytes:
    """Return the "onnx-int8" file of a quantize step: its widths, the ranges of its training.

    blob: the float file of the model. ranges: empty: those of the samples, inputs (n, ...) or
    {name: inputs}, of which the first few are run through model and file in any case. Raises
    `SecateurError` for ranges of another model, and for kernels that cannot be codes.
    """
    import onnx

    batches = _batches(blob, samples)
    proto = onnx.load_model_from_string(blob)
    inputs, outputs = ([value.name for value in s] for s in (proto.graph.input, proto.graph.output))
    try:
        with silent(), tempfile.TemporaryDirectory() as name:
            squeeze_last(proto.graph)
            folded = _folded(proto.SerializeToString(), Path(name) / "folded.onnx")
            made = as_trained(folded, model, widths, ranges, batches)
            return canonical(made, inputs, outputs)
    except (OSError, SecateurError):
        raise
    except Exception as error:  # of onnx's converter of versions, and of the runtime
        raise SecateurError(
            f"the codes of model {model.name!r} could not be written ({one_line(error)}), expected "
            "operators that ONNX has in the version with 4 bits too; fix: choose 8 bits, or int8"
        ) from error


@contextmanager
def silent() -> Iterator[None]:
    """Keep warnings, logs and what C++ writes to standard error from the user."""
    before = logging.root.manager.disable
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def _converted(model: Any, imports: Sequence[str]) -> bytes:
    import keras

    if keras.backend.backend() == "tensorflow":
        return convert(model)
    # Saving a model imports TensorFlow where it is installed, whatever the backend.
    with quiet(), tempfile.TemporaryDirectory() as name:
        made = conversion.in_clean_process(model, ["onnx"], imports, Path(name), __name__)
    return made["onnx"]


def _erfc(context: Any, node: Any, name: str, arguments: Any) -> None:
    """1 - erf(x): TensorFlow's exact GELU has it, and tf2onnx does not know it."""
    from tf2onnx.utils import make_name

    shape, dtype = context.get_shape(node.output[0]), context.get_dtype(node.output[0])
    context.remove_node(node.name)
    erf = context.make_node("Erf", [node.input[0]], shapes=[shape], dtypes=[dtype])
    one = context.make_const(make_name("one"), np.ones((), _numpy(dtype)))
    context.make_node(
        "Sub", [one.output[0], erf.output[0]], outputs=node.output, shapes=[shape], dtypes=[dtype]
    )


def _numpy(dtype: int) -> Any:
    from onnx import helper

    return helper.tensor_dtype_to_np_dtype(dtype)


def _require_known(proto: Any) -> None:
    """tf2onnx leaves operators that it does not know in the file, under TensorFlow's names."""
    from onnx import defs

    for node in nodes(proto.graph):
        if node.domain in ("", "ai.onnx") and not defs.has(node.op_type, OPSET, ""):
            raise ValueError(f"no ONNX operator for TensorFlow's {node.op_type}")


def _dynamic(proto: Any, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(proto, path, per_channel=True, weight_type=QuantType.QInt8)


def _static(proto: Any, path: Path, batches: Sequence[Mapping[str, np.ndarray]]) -> None:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._rest = iter(batches)

        def get_next(self) -> Any:
            return next(self._rest, None)

    quantization.quantize_static(
        proto,
        path,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )


def _folded(blob: bytes, path: Path) -> Any:
    """The float model with normalizations in the weights, as ONNX's own operators.

    Else each would be two more operators, on codes of 8 bits, between a convolution and its ReLU.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(blob, options, providers=[runtime.PROVIDER])
    return onnx.load(path)


def _batches(blob: bytes, calibration: Arrays) -> list[dict[str, np.ndarray]]:
    session = runtime.load(blob)
    given = by_name(calibration, session.samples)
    samples = {name: np.asarray(array, session.dtypes[name]) for name, array in given.items()}
    bad = [name for name, array in samples.items() if not len(array) or not _finite(array)]
    if bad:
        raise SecateurError(
            f"calibration data for {', '.join(bad)} received that are empty or hold NaN or "
            "infinity, expected a few hundred inputs like those of training; fix: choose others"
        )
    count = min(len(array) for array in samples.values())
    return [
        {name: array[start : min(start + BATCH, count)] for name, array in samples.items()}
        for start in range(0, count, BATCH)
    ]


def _finite(array: np.ndarray) -> bool:
    return not np.issubdtype(array.dtype, np.floating) or bool(np.isfinite(array).all())


if __name__ == "__main__":
    sys.exit(conversion.main(convert=convert, formats=("onnx",)))
