"""A model to files that are believed: reloaded, invoked, compared and checked before they get a name.

Every file is written under a temporary name, run in its own runtime at batch 1 and n, compared
with the model on data, searched for each weight, and its promises are checked on its own tensors.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from secateur import conversion, onnx_export, stripping
from secateur.apart import Cost
from secateur.artifact import FORMATS, Artifact, describe, staged
from secateur.errors import SecateurError, nearest
from secateur.firmware import c_header, c_name
from secateur.fusing import points_of
from secateur.loading import Quantized, require_weights
from secateur.outputs import Meanings, asked, compiled_loss, of_model
from secateur.preflight import calibration_samples, inputs_of
from secateur.promises import Promise
from secateur.quantization import IO, MIXED, QUANTIZATIONS
from secateur.runtimes import litert
from secateur.runtimes.keras import operations, save_model, signature
from secateur.substitute import as_in_file
from secateur.tflite import TfliteFile
from secateur.verification import Verified, verify
from secateur.weights import weight_table
from secateur.widths import (
    STORED,
    Specification,
    Width,
    beside,
    chosen,
    fingerprint,
    promised,
)

AS_SELECTED = "left in float as selected"


def export(
    model: Any,
    formats: Sequence[str],
    out: str | Path,
    *,
    stage: str,
    promises: Sequence[Promise] = (),
    data: Any = None,
    imports: Sequence[str] = (),
    calibration: Any = None,
    io: str = "int",
    allow_float: bool = False,
    strip: bool = False,
    header: bool = False,
    layers: Mapping[str, Any] | None = None,
    specification: Specification | None = None,
    progress: Callable[[str], None] | None = None,
    allow_chance: bool = False,
    outputs: str | Meanings | None = None,
) -> list[Artifact]:
    """Write a model as `<out>/<stage>-<format><suffix>`, each file verified, or none at all.

    Args:
        model: a Functional or Sequential model, or what `load` returned; it is not changed.
        formats: of "keras", "h5", "float32", "sparse", "float16", "dynamic", "int4", "int8", "int16x8".
        out: a folder, made if it is not there.
        stage: what the model is, for the file's name ("baseline", "pruned").
        promises: what must be true of the weights in every file.
        data: inputs (n, ...) for the comparison; None: those of the calibration, else random ones,
            on which files of ranges (int8, int16x8, onnx-int8) are run and not compared.
        imports: modules that register the model's own layers.
        calibration: inputs (n, ...) of training, from which integer formats take their ranges; or
            (x, y), a `Split` or a `Data`, of which others are compared on than calibrate.
        io: "int" or "float", what integer formats take in and give out.
        allow_float: keep an integer file in which an operator computes in float, named "mixed".
        strip: leave names, metadata and signatures out of `.tflite` files (same outputs).
        header: write a C header beside each `.tflite` file.
        layers: layer or weight name or glob -> its width in the quantized `.tflite` files, where that
            is another than the format's: 4, 8, 16, "float", or "4/32" for 4 bits in blocks of 32.
            A later pattern goes before an earlier one.
        specification: what a quantize step left (`Compressed.specification`), for its format
            and "onnx-int8".
        progress: called with the name of each file before it is written.
        allow_chance: calibrate with data that the model does not seem to be trained on: whose labels
            it knows no better than chance, or 8-bit pixels that nothing scales.
        outputs: what the numbers that come out mean, for the manifest, as in `measure`; None: as the
            last activation says, else the loss that the model was compiled with.

    Raises `SecateurError` with the cause where a file cannot be written, or does not verify.
    """
    formats = (formats,) if isinstance(formats, str) else tuple(formats)
    for format in formats:
        if format not in FORMATS:
            raise SecateurError(f"unknown format {format!r}; {nearest(format, FORMATS)}")
    if io not in IO:
        raise SecateurError(f"unknown io {io!r}; {nearest(io, IO)}")
    if isinstance(model, Quantized):
        promises = (*promises, *(() if layers else model.promises))
        model, specification = model.model, specification or model.specification
    _require_finite(model)
    if any(FORMATS[format] in (".tflite", ".onnx") for format in formats):
        _require_float(model)
    ends = of_model(signature(model)[1], compiled_loss(model)) if outputs is None else outputs
    meanings = {**ends} if isinstance(ends, Mapping) else asked(ends, signature(model)[1])
    calibration, data, compared_on = _samples(
        model, calibration, data, meanings, may_be_chance=allow_chance
    )
    widths = _chosen(layers, formats, model)
    if layers:
        specification = None  # other bits than those that its ranges belong to
    trained: Mapping[str, tuple[float, float]] = {}
    ranges: dict[str, tuple[float, float]] = {}
    if specification is not None:
        require_weights(specification, model, "a specification")
        widths, trained = dict(specification.widths), specification.ranges
        ranges |= specification.tensors
    if layers:
        promises = (*promises, *promised(widths, weight_table(model)))
    notes_of_all: list[str] = []
    compiled = [format for format in formats if FORMATS[format] == ".tflite"]
    blobs: dict[str, bytes] = {}
    if compiled:
        blobs = conversion.to_litert(
            model,
            compiled,
            imports=imports,
            calibration=calibration,
            io=io,
            widths=widths,
            trained=trained,
            known=ranges,
            spent=lambda cost: notes_of_all.append(_told(cost)),
            ranged=ranges.update,
        )
    onnx = [format for format in formats if FORMATS[format] == ".onnx"]
    if onnx:
        blobs |= onnx_export.to_onnx(
            model, onnx, imports=imports, calibration=calibration, widths=widths, trained=trained
        )
    floats = [path for path, width in widths.items() if width.bits is None]
    names = {format: _named(format, blobs.get(format), allow_float, floats) for format in formats}
    written: dict[Path, tuple[str, Verified, tuple[str, ...]]] = {}
    with ExitStack() as all_or_none:
        for format in formats:
            path = Path(out) / f"{stage}-{names[format]}{FORMATS[format]}"
            if progress:
                progress(path.name)
            temporary = all_or_none.enter_context(staged(path))
            if format in blobs:
                temporary.write_bytes(blobs[format])
            else:
                save_model(model, temporary)
                if specification is not None:  # a plain Keras file knows of no bits and ranges
                    record = _described(specification, model, ranges)
                    all_or_none.enter_context(staged(beside(path))).write_text(record, "utf-8")
            try:
                with _reference(model, format, widths, trained):
                    found = verify(temporary, format, model, promises, data)
            except SecateurError as error:
                told = str(error).replace(str(temporary), str(path))
                raise SecateurError(told) from error
            tensors = _with_skipped(found.tensors, format, promises, floats)
            notes = (
                *found.notes,
                *_left_in_float(tensors),
                *_not_sparse(format, blobs.get(format)),
            )
            if trained and names[format] in MIXED.values():
                notes += (f"computed in float as in training: {points_of(model).told_floats()}",)
            if format in compiled:
                notes, notes_of_all = (*notes, *notes_of_all), []
            if format in compiled and strip:
                # Last: by then every weight has been found by its tensor's name.
                temporary.write_bytes(_stripped(blobs[format], model))
            if format not in blobs and specification is not None:
                notes += (f"{beside(path).name}: its bits and ranges, which secateur.load() reads",)
            if format in compiled and header:
                target = path.with_suffix(".h")
                text = c_header(temporary.read_bytes(), path.stem)
                all_or_none.enter_context(staged(target)).write_text(text, encoding="utf-8")
                notes += (f"{target}: the array is called {c_name(path.stem)}_tflite",)
            parity = {**found.parity, "on": compared_on} if found.parity else {}
            found = dataclasses.replace(found, tensors=tensors, parity=parity)
            written[path] = names[format], found, notes
    for path, (format, *_) in written.items():
        if format in ("keras", "h5") and specification is None:
            beside(path).unlink(missing_ok=True)  # of the file that stood here before
    return [
        describe(
            path,
            format=format,
            stage=stage,
            parity=found.parity,
            tensors=found.tensors,
            notes=notes,
            outputs=meanings,
        )
        for path, (format, found, notes) in written.items()
    ]


def _samples(
    model: Any, calibration: Any, data: Any, meanings: Meanings, *, may_be_chance: bool
) -> tuple[Any, Any, str]:
    """Inputs to calibrate with, inputs to compare on (None: random ones), and what these are."""
    others = None
    if calibration is not None:
        calibration, others = calibration_samples(
            model, calibration, meanings, may_be_chance=may_be_chance
        )
    if data is not None:
        return calibration, inputs_of(data), "data"
    if others is not None:
        return calibration, others, "data held out from the calibration"
    return (
        calibration,
        calibration,
        "random inputs" if calibration is None else "the calibration data",
    )


def _described(
    specification: Specification, model: Any, ranges: Mapping[str, tuple[float, float]]
) -> str:
    """What stands beside a Keras file: all that its quantized file takes, and whose it is."""
    found = dataclasses.replace(
        specification, tensors=ranges, weights=fingerprint(weight_table(model))
    )
    return json.dumps(found.to_record(), indent=1, allow_nan=False)


def _reference(
    model: Any,
    format: str,
    widths: Mapping[str, Width],
    trained: Mapping[str, tuple[float, float]],
) -> Any:
    """What a file is compared with: the model as it was trained, through the grids of such a file."""
    bits = QUANTIZATIONS[format].activations if format in QUANTIZATIONS else None
    if format == "onnx-int8":
        bits = 8
    if not trained or bits is None:
        return nullcontext()
    return as_in_file(model, widths, trained, bits)


def _stripped(blob: bytes, model: Any) -> bytes:
    """The stripped file, which must answer as the whole one does, bit for bit."""
    inputs, outputs = signature(model)
    small = stripping.strip(blob, keep_signature=len(inputs) > 1 or len(outputs) > 1)
    samples = conversion.random_inputs(model, 4)
    whole, bare = (litert.load(b).predict(_renamed(samples, b)) for b in (blob, small))
    flat = [list(found.values()) if isinstance(found, dict) else [found] for found in (whole, bare)]
    if not all(a.tobytes() == b.tobytes() for a, b in zip(*flat, strict=True)):
        raise SecateurError(
            "the stripped file answers differently from the whole one, expected the same bits; "
            "fix: leave --strip out, and please report it"
        )
    return small


def _renamed(samples: dict[str, np.ndarray], blob: bytes) -> dict[str, np.ndarray]:
    """Samples under the names of a file; by their place where it has none, which is the model's."""
    names = litert.load(blob).input_names
    if set(names) == set(samples):
        return samples
    return dict(zip(names, samples.values(), strict=True))


def _chosen(
    layers: Mapping[str, Any] | None, formats: Sequence[str], model: Any
) -> dict[str, Width]:
    """The widths of single kernels; refused where no file could have them."""
    widths = chosen(layers or {}, weight_table(model))
    others = [format for format in formats if format in STORED and format not in QUANTIZATIONS]
    if widths and (others or not any(format in QUANTIZATIONS for format in formats)):
        raise SecateurError(
            f"widths of layers received with {', '.join(formats)}, expected formats that have them: "
            f"{', '.join(QUANTIZATIONS)}; fix: name these, or leave the layers out"
        )
    return widths


def _told(cost: Cost) -> str:
    return f"converted by TensorFlow in a process of its own: {cost}"


def _with_skipped(
    tensors: Mapping[str, Mapping[str, Any]],
    format: str,
    promises: Sequence[Promise],
    floats: Sequence[str],
) -> dict[str, Mapping[str, Any]]:
    """The records of the tensors, with why a kernel is float: selected so, or the format's nature."""
    found = dict(tensors)
    for path in floats:
        if "skipped" in found[path]:
            found[path] = {**found[path], "skipped": AS_SELECTED}
    if format not in STORED:
        for promise in promises:
            if promise.kind == "bits":
                why = f"{format} stores floats: at most {promise.value} bits are not expected of it"
                found[promise.path] = {**found[promise.path], "skipped": why}
    return found


def _left_in_float(tensors: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    kinds: dict[str, list[str]] = {}
    for path, record in tensors.items():
        if record.get("skipped", "").startswith("left in float"):
            kinds.setdefault(record["skipped"], []).append(path)
    return tuple(f"{kind}: {', '.join(paths)}" for kind, paths in kinds.items())


def _not_sparse(format: str, blob: bytes | None) -> tuple[str, ...]:
    """Says so where a file that should hold zeros encoded holds none, and is the float32 file."""
    if format != "sparse" or blob is None:
        return ()
    operators = TfliteFile.parse(blob, format).operators
    if any(t is not None and t.sparsity is not None for o in operators for t in o.inputs):
        return ()
    return (
        "nothing was encoded as sparse: no kernel has enough zeros for the encoding to pay; the "
        "file is as large as float32",
    )


def _named(format: str, blob: bytes | None, allow_float: bool, selected: Sequence[str] = ()) -> str:
    """What a file may be called: one that computes partly in float is no integer file."""
    if blob is None or format not in MIXED:
        return format
    floats = TfliteFile.parse(blob, format).float_operators()
    if floats and not allow_float:
        chosen_so = f" ({', '.join(selected)} left in float as selected)" if selected else ""
        raise SecateurError(
            f"an {format} file with {', '.join(floats)} in float received{chosen_so}, expected "
            f"integers throughout; fix: replace these layers, choose dynamic, or allow it (--allow-float) as "
            f"a file named {MIXED[format]}"
        )
    return MIXED[format] if floats else format


def _require_finite(model: Any) -> None:
    broken = [row.path for row in weight_table(model) if not np.isfinite(row.read()).all()]
    if broken:
        raise SecateurError(
            f"NaN or infinity received in {', '.join(broken)}, expected finite weights; "
            "fix: train again with a smaller learning rate, or from an earlier checkpoint"
        )


def _require_float(model: Any) -> None:
    """Keras's own `quantize` leaves codes that a converter makes no operators of."""
    coded = [o for o in operations(model) if getattr(o, "quantization_mode", None)]
    if coded:
        raise SecateurError(
            f"{', '.join(o.name for o in coded)} received as quantized by Keras "
            f"({coded[0].quantization_mode}), expected floats, of which a file's codes are made; "
            "fix: export the model as it was before, in a format such as dynamic or int8"
        )
