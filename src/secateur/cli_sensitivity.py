"""The command that asks which weights hurt."""

from __future__ import annotations

import json
from collections.abc import Callable
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


def sensitivity(
    model: Annotated[Path, typer.Argument(help="A .keras or .h5 file.")],
    data: DataOption = None,
    prune: Annotated[
        str | None, typer.Option(help="Comma-separated sparsities, as 0.5,0.8,0.9.")
    ] = None,
    bits: Annotated[str | None, typer.Option(help="Comma-separated bits, as 8,4.")] = None,
    limit: Annotated[int, typer.Option(help="Use this many validation samples.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the validation split.")] = 0,
    scale: ScaleOption = None,
    image_size: ImageSizeOption = None,
    outputs: OutputsOption = None,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained page.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the records.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the records as CSV.")] = None,
    imports: ImportOption = None,
) -> None:
    """Which weights hurt: accuracy when one alone is pruned, or quantized.

    Without --prune and --bits: both, 0.5,0.7,0.8,0.9,0.95 and 8,4. Measured on samples held out
    of the training part, never on the test part; nothing is trained.

    Examples:
      secateur sensitivity model.keras --data mnist

      secateur sensitivity model.keras --data mnist --prune 0.5,0.8,0.9 --html sensitivity.html
    """
    from secateur.artifact import refuse_records

    if data is None:
        raise SecateurError("no --data received, expected validation samples; fix: --data digits")
    ladder = None if prune is None else _numbers("--prune", prune, float, "0.5,0.8")
    widths = None if bits is None else _numbers("--bits", bits, int, "8,4")
    options = {"--html": html, "--json": as_json, "--csv": csv}
    for path in options.values():
        if path is not None and not path.absolute().parent.is_dir():
            raise SecateurError(f"{path}: no folder {path.parent}; fix: make it, or name another")
    refuse_records(options, inputs=(model, data))
    with frameworks():
        from secateur import datasets
        from secateur import sensitivity as measured
        from secateur.measurement import meanings
        from secateur.runtimes.keras import KerasSession, load_model
    import_all(imports)
    from secateur.progress import live_progress
    from secateur.reporting import sensitivity as told
    from secateur.reporting.sensitivity_page import write_html

    loaded = load_model(model, compiled=True)  # its loss, for criteria that ask for gradients
    samples = datasets.load(
        data, scale=as_scale(scale), image_size=as_image_size(image_size), seed=seed
    )
    means = meanings(KerasSession(loaded), model, outputs)
    both = ladder is None and widths is None
    records: list[dict[str, Any]] = []
    with live_progress(err) as (progress, _):
        asked: dict[str, Any] = {"limit": limit, "seed": seed, "progress": progress}
        asked["outputs"] = next(iter(means.values()))
        if both or ladder is not None:
            sparsities = ladder or measured.SPARSITIES
            records += measured.pruning_sensitivity(loaded, samples, sparsities=sparsities, **asked)
        if both or widths is not None:
            records += measured.quantization_sensitivity(
                loaded, samples, bits=widths or measured.BITS, **asked
            )
    for table in told.tables(records):
        out.print(table)
    tell_notes(samples, "validation")
    sentence = told.findings(records)
    out.print(sentence, highlight=False, markup=False)
    detail = f"{samples.name}: {', '.join(n for n in samples.notes if n.startswith('validation'))}"
    if html is not None:
        write_html(records, html, model.name, detail)
    if as_json is not None:
        from secateur.reporting.files import write_text

        found = {
            "format_version": 1,
            "kind": "sensitivity",
            "model": str(model),
            "data": samples.describe(),
            "seed": seed,
            "finding": sentence,
            "records": records,
        }
        write_text(as_json, json.dumps(found, indent=2, allow_nan=False) + "\n")
    if csv is not None:
        told.write_csv(records, csv)
    for path in (html, as_json, csv):
        if path is not None:
            out.print(f"wrote {path}", highlight=False, markup=False)


def _numbers(option: str, text: str, kind: Callable[[str], Any], example: str) -> list[Any]:
    try:
        return [kind(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise SecateurError(
            f"{option} {text!r} received, expected numbers with commas between, as {example}"
        ) from None
