"""A model to files that are believed: reloaded, invoked, compared and checked before they get a name.

Every file is written under a temporary name, run in its own runtime at batch 1 and n, compared
with the model on data, searched for each weight, and its promises are checked on its own tensors.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from secateur import conversion
from secateur.artifact import FORMATS, Artifact, describe, staged
from secateur.errors import SecateurError, nearest
from secateur.promises import Promise
from secateur.quantization import MIXED
from secateur.runtimes.keras import save_model
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
    allow_float: bool = False,
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
        allow_float: keep an integer file in which an operator computes in float, named "mixed".
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
        blobs = conversion.to_litert(model, compiled, imports=imports, calibration=calibration)
    names = {format: _named(format, blobs.get(format), allow_float) for format in formats}
    written: dict[Path, tuple[str, Verified]] = {}
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
                written[path] = names[format], found
            except SecateurError as error:
                told = str(error).replace(str(temporary), str(path))
                raise SecateurError(told) from error
    return [
        describe(path, format=format, stage=stage, parity=found.parity, tensors=found.tensors)
        for path, (format, found) in written.items()
    ]


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
