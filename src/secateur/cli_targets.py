"""The command that asks where compression pays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli_options import (
    DataOption,
    ImageSizeOption,
    ImportOption,
    OutputsOption,
    ScaleOption,
    as_image_size,
    as_scale,
    err,
    frameworks,
    import_all,
    out,
    tell_notes,
)
from secateur.errors import SecateurError

RECORD = "targets.json"


def targets(
    model: Annotated[Path, typer.Argument(help="A .keras or .h5 file, not pruned yet.")],
    data: DataOption = None,
    sparsity: Annotated[
        str, typer.Option(help="Comma-separated shares of zeros, as 0.5,0.8,0.9.")
    ] = "0.5,0.8,0.9",
    target: Annotated[
        str,
        typer.Option(
            help="Comma-separated: litert, litert:reference, onnx, tflm, vela:ACCELERATOR."
        ),
    ] = "litert,onnx,tflm,vela:ethos-u55-128,vela:ethos-u65-512",
    limit: Annotated[int, typer.Option(help="Test samples for the accuracies.")] = 1000,
    folder: Annotated[
        Path | None, typer.Option("--out", help=f"Keep the files here, and {RECORD}.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain records.")] = False,
    scale: ScaleOption = None,
    image_size: ImageSizeOption = None,
    outputs: OutputsOption = None,
    imports: ImportOption = None,
) -> None:
    """Where compression pays: is the pruned model smaller, is it faster, on each target?

    The model as it is, with zeros, in int8, and in int8 with zeros: file and gzip bytes, latency in
    LiteRT and onnxruntime, RAM in tflite-micro, time and memory on Arm's Ethos-U as its compiler
    Vela estimates them. Zeros come in one shot and nothing is trained: the question is size and
    speed, not accuracy. A target that is not installed, or that cannot run the model, says why.

    Examples:
      secateur targets model.keras --data mnist

      secateur targets model.keras --data data.npz --sparsity 0.8 --target litert,vela:ethos-u55-256

      secateur targets model.keras --data mnist --out files/ --json > targets.json
    """
    if data is None:
        raise SecateurError(
            "no --data received, expected samples for calibration and timing; fix: --data digits"
        )
    ladder = _shares(sparsity)
    if folder is not None and ((folder / "run.json").exists() or (folder / ".stages").exists()):
        raise SecateurError(f"{folder} holds a run; choose another --out")
    with frameworks():
        from secateur import datasets, payoff
    import_all(imports)
    from secateur.progress import live_progress
    from secateur.reporting import targets as told

    payoff.check(model, ladder, names := _names(target))  # before anything is read
    samples = datasets.load(data, scale=as_scale(scale), image_size=as_image_size(image_size))
    with live_progress(err) as (progress, _):
        records = payoff.targets(
            model,
            samples,
            sparsities=ladder,
            runtimes=names,
            out=folder,
            limit=limit,
            imports=tuple(imports or ()),
            outputs=outputs,
            progress=progress,
        )
    tell_notes(samples, "calibration", "test")
    found = {
        "format_version": 1,
        "kind": "targets",
        "model": model.name,
        "data": samples.describe(),
        "summary": told.summary(records),
        "answers": told.answers(records),
        "records": records,
    }
    text = json.dumps(found, indent=2, allow_nan=False)
    if folder is not None:
        from secateur.reporting.files import write_text

        write_text(folder / RECORD, text + "\n")
    if as_json:
        print(text)
        return
    _show(records)
    if folder is not None:
        out.print(f"wrote {folder / RECORD}", highlight=False, markup=False)


def _show(records: list[dict[str, Any]]) -> None:
    from secateur.reporting import targets as told
    from secateur.reporting.targets_table import caption, tables

    for table in tables(records):
        out.print(table)
    out.print(f"({caption(records)})\n", highlight=False, markup=False)
    for name, lines in told.answers(records).items():
        out.print(told.full_name(name, records), highlight=False, markup=False)
        for line in lines:
            out.print(f"- {line}", highlight=False, markup=False)
    out.print(f"\n{told.summary(records)}", highlight=False, markup=False)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _shares(text: str) -> list[float]:
    try:
        return [float(word) for word in _names(text)]
    except ValueError:
        raise SecateurError(
            f"--sparsity {text!r} received, expected numbers with commas between, as 0.5,0.8"
        ) from None
