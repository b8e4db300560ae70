"""A model to files that are believed: reloaded, invoked, compared and checked before they get a name.

Every file is written under a temporary name, run in its own runtime at batch 1 and n, compared
with the model on data, searched for each weight, and its promises are checked on its own tensors.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from secateur import conversion, onnx_export, stripping
from secateur.artifact import FORMATS, Artifact, describe, staged
from secateur.errors import SecateurError, nearest
from secateur.firmware import c_header, c_name
from secateur.promises import Promise
from secateur.quantization import MIXED
from secateur.runtimes import litert
from secateur.runtimes.keras import save_model, signature
from secateur.tflite import TfliteFile
from secateur.verification import Verified, verify
from secateur.weights import weight_table


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
    progress: Callable[[str], None] | None = None,
) -> list[Artifact]:
    """Write a model as `<out>/<stage>-<format><suffix>`, each file verified, or none at all.

    Args:
        model: a Functional or Sequential model; it is not changed.
        formats: of "keras", "h5", "float32", "sparse", "float16", "dynamic", "int4", "int8", "int16x8".
        out: a folder, made if it is not there.
        stage: what the model is, for the file's name ("baseline", "pruned").
        promises: what must be true of the weights in every file.
        data: inputs (n, ...) for the comparison; None: random ones from seed 0.
        imports: modules that register the model's own layers.
        calibration: inputs (n, ...) of training, from which integer formats take their ranges.
        io: "int" or "float", what integer formats take in and give out.
        allow_float: keep an integer file in which an operator computes in float, named "mixed".
        strip: leave names, metadata and signatures out of `.tflite` files (same outputs).
        header: write a C header beside each `.tflite` file.
        progress: called with the name of each file before it is written.

    Raises `SecateurError` with the cause where a file cannot be written, or does not verify.
    """
    for format in formats:
        if format not in FORMATS:
            raise SecateurError(f"unknown format {format!r}; {nearest(format, FORMATS)}")
    _require_finite(model)
    compiled = [format for format in formats if FORMATS[format] == ".tflite"]
    blobs: dict[str, bytes] = {}
    if compiled:
        blobs = conversion.to_litert(
            model, compiled, imports=imports, calibration=calibration, io=io
        )
    onnx = [format for format in formats if FORMATS[format] == ".onnx"]
    if onnx:
        blobs |= onnx_export.to_onnx(model, onnx, imports=imports, calibration=calibration)
    names = {format: _named(format, blobs.get(format), allow_float) for format in formats}
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
            try:
                found = verify(temporary, format, model, promises, data)
            except SecateurError as error:
                told = str(error).replace(str(temporary), str(path))
                raise SecateurError(told) from error
            notes = _left_in_float(found)
            if format in compiled and strip:
                # Last: by then every weight has been found by its tensor's name.
                temporary.write_bytes(_stripped(blobs[format], model))
            if format in compiled and header:
                target = path.with_suffix(".h")
                beside = all_or_none.enter_context(staged(target))
                beside.write_text(c_header(temporary.read_bytes(), path.stem), encoding="utf-8")
                notes += (f"{target}: the array is called {c_name(path.stem)}_tflite",)
            written[path] = names[format], found, notes
    return [
        describe(
            path,
            format=format,
            stage=stage,
            parity=found.parity,
            tensors=found.tensors,
            notes=notes,
        )
        for path, (format, found, notes) in written.items()
    ]


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
    return dict(zip(litert.load(blob).input_names, samples.values(), strict=True))


def _left_in_float(found: Verified) -> tuple[str, ...]:
    left = [path for path, record in found.tensors.items() if "skipped" in record]
    return (f"left in float by the quantizer: {', '.join(left)}",) if left else ()


def _named(format: str, blob: bytes | None, allow_float: bool) -> str:
    """What a file may be called: one that computes partly in float is no integer file."""
    if blob is None or format not in MIXED:
        return format
    floats = TfliteFile.parse(blob, format).float_operators()
    if floats and not allow_float:
        raise SecateurError(
            f"an {format} file with {', '.join(floats)} in float received, expected integers "
            f"throughout; fix: replace these layers, choose dynamic, or allow it (--allow-float) as "
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
