"""A finished file as a row of a table: what is reported of it, and apart from that what may choose.

The test part is in the row itself. `validation` is the same file in the same runtime on the
validation part: whoever chooses among files reads that alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secateur.artifact import Artifact, sha256
from secateur.datasets import Data, fit_to
from secateur.errors import SecateurError
from secateur.measurement import answers, meanings, measure
from secateur.outputs import Meanings
from secateur.runtimes import own_runtime
from secateur.scoring import score

BATCH = 256


def file_row(artifact: Artifact, data: Data, *, latency: bool = True) -> dict[str, Any]:
    """Measure a file; the row is named `<stage>-<format>`.

    Raises:
        SecateurError: the file is not the one that the artifact describes, or did not stay it.
    """
    require_same(artifact)
    measured = measure(
        artifact.path, data, latency=latency, batch=BATCH, outputs=artifact.outputs
    ).to_record()
    measured.pop("notes")  # the record of the whole says what was read
    row = {
        **measured,
        "path": artifact.path.name,
        "format": artifact.format,
        "row": f"{artifact.stage}-{artifact.format}",
        "stage": artifact.stage,
        "parity": dict(artifact.parity),
        "validation": validated(artifact.path, data, artifact.outputs),
    }
    require_same(artifact)
    return row


def require_same(artifact: Artifact) -> None:
    """Raise SecateurError where a file is not, or no longer, the one that its manifest names.

    Whoever else writes there: what is measured is what has that hash.
    """
    path = artifact.path
    if not path.is_file() or sha256(path) != artifact.sha256:
        raise SecateurError(
            f"{path} was replaced while it was measured, expected the file with sha256 "
            f"{artifact.sha256[:12]}...; fix: let one process at a time write there, and give the "
            "command again"
        )


def validated(path: Path, data: Data, outputs: Meanings | None = None) -> dict[str, Any] | None:
    """How well a file answers on the validation part, in its own runtime; None without labels.

    outputs: what they mean, as `measure` takes it.
    """
    if data.validation is None or data.validation.y is None:
        return None
    runtime = own_runtime(path)
    runtime.prepare()
    session = runtime.load(path, 1)
    split = fit_to(data, session.input_shape, session.output_shape).validation
    if split is None or split.y is None:
        return None
    answered = answers(session, split.x, str(path), batch=BATCH)
    meaning = next(iter(meanings(session, path, outputs).values()), None)
    return {"n": len(split), **score(answered, split.y, meaning)}
