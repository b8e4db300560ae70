"""The commands over many points: `sweep` computes them, `choose` picks the file to ship."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from secateur.cli_options import (
    DataOption,
    ImageSizeOption,
    ImportOption,
    ScaleOption,
    as_image_size,
    as_scale,
    err,
    frameworks,
    import_all,
    out,
)
from secateur.errors import SecateurError


def sweep(
    grid: Annotated[str, typer.Argument(help="A built-in grid (see `recipes`) or a .toml file.")],
    model: Annotated[
        str | None, typer.Option(help="Trained .keras or .h5 file, or a built-in name (lab-cnn).")
    ] = None,
    data: DataOption = None,
    seeds: Annotated[
        int | None, typer.Option(help="Seeds 0, 1, ... instead of the grid's own.")
    ] = None,
    out_folder: Annotated[
        Path, typer.Option("--out", help="Folder of the sweep; what is finished there stays.")
    ] = Path("runs"),
    workers: Annotated[int, typer.Option(help="Processes that share the points.")] = 1,
    cluster: Annotated[
        str | None, typer.Option(help="A Ray cluster that computes them: ray://host:10001.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Compute failed points again.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the points and which are finished.")
    ] = False,
    scale: ScaleOption = None,
    image_size: ImageSizeOption = None,
    limit: Annotated[
        int | None, typer.Option(help="Use only this many samples of each part.")
    ] = None,
    validation_split: Annotated[
        float, typer.Option(help="Share of the training part kept apart for choosing.")
    ] = 0.1,
    imports: ImportOption = None,
) -> None:
    """Compute every point of a grid, each once; interrupt it whenever you like.

    Examples:
      secateur sweep challenge --data fashion-mnist --seeds 5 --out runs/

      secateur sweep ladder --model model.keras --data data.npz --out runs/
    """
    if seeds is not None and seeds < 1:
        raise SecateurError(f"--seeds {seeds} received, expected at least 1")
    load: dict[str, Any] = {
        "scale": as_scale(scale),
        "image_size": as_image_size(image_size),
        "limit": limit,
        "validation_split": validation_split,
    }
    with frameworks():
        from secateur.grids import Grid
        from secateur.sweeps import sweep as carry_out
    import_all(imports)
    loaded = Grid.load(grid)
    _refuse_twice(loaded, model=model, data=data)
    if dry_run:
        _list_points(loaded, model, data, seeds, out_folder, load)
        return
    from secateur.progress import live_progress

    with live_progress(err, estimate=False) as (progress, say):
        found = carry_out(
            loaded,
            model,
            data,
            out=out_folder,
            seeds=seeds,
            workers=workers,
            cluster=cluster,
            retry=retry,
            imports=tuple(imports or ()),
            load=load,
            progress=progress,
            say=say,
        )
    _show(found.records, out_folder)


def choose(
    runs: Annotated[
        Path, typer.Argument(help="Folder of a sweep, a run, or several seeds of one.")
    ],
    max_bytes: Annotated[str | None, typer.Option(help="Of the file: 250kB, 1MiB, 300000.")] = None,
    max_gzip: Annotated[str | None, typer.Option(help="Of the file gzipped.")] = None,
    max_latency: Annotated[str | None, typer.Option(help="Of one sample: 2ms, 800us.")] = None,
    max_arena: Annotated[
        str | None, typer.Option(help="RAM that a microcontroller needs: 64kB.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Points of accuracy below the dense network: 0.5; for quantities percent of squared error above."
        ),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="Only this format, not all; may be repeated."),
    ] = None,
    prefer: Annotated[
        str | None,
        typer.Option(help="accuracy (mse), bytes, gzip, latency or arena, among files that fit."),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Write the Pareto front as .png, .svg or .pdf.")
    ] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the choice.")] = None,
) -> None:
    """The file to ship under budgets, or what would have to give.

    Validation data choose, by the mean over seeds; the test part reports afterwards.

    Examples:
      secateur choose runs/ --max-bytes 250kB --max-drop 0.5
    """
    from secateur.artifact import refuse_records
    from secateur.choosing import choose as chosen_of
    from secateur.reporting import choice as told

    refuse_records({"--figure": figure, "--json": as_json}, runs)
    found = chosen_of(
        runs,
        max_bytes=max_bytes,
        max_gzip=max_gzip,
        max_latency=max_latency,
        max_arena=max_arena,
        max_drop=max_drop,
        formats=tuple(formats or ()),
        prefer=prefer,
    )
    record = found.to_record()
    out.print(told.front_table(record))
    for sentence in told.sentences(record):
        out.print(sentence, highlight=False, markup=False, soft_wrap=True)
    if figure is not None:
        from secateur.reporting.pareto import write_pareto

        write_pareto(record, figure)
    if as_json is not None:
        from secateur.reporting.files import write_text

        write_text(as_json, json.dumps(record, indent=2, allow_nan=False) + "\n")
    for path in (figure, as_json):
        if path is not None:
            out.print(f"wrote {path}", highlight=False, markup=False)
    if found.chosen is None:
        raise typer.Exit(1)


def _refuse_twice(grid: Any, **given: str | None) -> None:
    """Refuse an option that would stand in for values which the grid sweeps."""
    swept = {path for point in grid.points() for path in point.settings}
    for name, value in given.items():
        if value is not None and name in swept:
            raise SecateurError(
                f"--{name} {value} received, and {grid.name} sweeps `{name}`, expected one of them; "
                f"fix: leave --{name} out"
            )


def _list_points(
    grid: Any, model: Any, data: Any, seeds: int | None, folder: Path, load: dict[str, Any]
) -> None:
    from secateur.store import Store
    from secateur.sweeps import Work

    numbers = tuple(grid.seeds if seeds is None else range(seeds))
    work = Work(grid=grid, model=model, data=data, seeds=numbers, load=load)
    named = work.named()
    store = Store(folder) if (folder / "sweep.json").exists() else None
    table = Table("point", "curve", "settings", "seed", "status", box=SIMPLE_HEAD)
    finished = 0
    for place, point in enumerate(work.points()):
        record = None if store is None else store.read(named[place])
        finished += record is not None
        settings = ", ".join(f"{p.rsplit('.', 1)[-1]} {v}" for p, v in point.settings.items())
        status = "to do" if record is None else record["status"]
        table.add_row(named[place][:16], point.curve, settings or "-", str(point.seed), status)
    out.print(table)
    out.print(
        f"{len(named)} points, {finished} finished, {len(named) - finished} to do; nothing was "
        "computed (--dry-run).",
        highlight=False,
        markup=False,
    )


def _show(records: list[dict[str, Any]], folder: Path) -> None:
    from secateur.reporting.sweep_console import rich_tables

    for part in rich_tables(records, wide=out.width >= 110):
        out.print(part, highlight=False, markup=False) if isinstance(part, str) else out.print(part)
    page = shlex.join(["secateur", "report", str(folder), "--html", str(folder / "report.html")])
    out.print(f"the report: {page}", highlight=False, markup=False, soft_wrap=True)
    failed = sum(record["status"] == "failed" for record in records)
    if failed:
        again = "the same command with --retry computes them again"
        out.print(f"{failed} failed: {again}", highlight=False, markup=False, soft_wrap=True)
