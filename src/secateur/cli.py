"""The command line: every command is one library call. Nothing heavy is imported before it runs."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape

from secateur import (
    cli_files,
    cli_report,
    cli_sensitivity,
    cli_sweep,
    cli_targets,
    interrupts,
)
from secateur.apart import OPTIONS
from secateur.cli_options import (
    AllowChanceOption,
    DataOption,
    ImageSizeOption,
    ImportOption,
    OutputsOption,
    ScaleOption,
    as_image_size,
    as_scale,
    frameworks,
    import_all,
)
from secateur.cli_options import err as _err
from secateur.cli_options import out as _out
from secateur.errors import SecateurError
from secateur.progress import live_progress

app = typer.Typer(
    name="secateur",
    help="Prune and quantize a Keras 3 model, write the files that a device runs, and measure them.",
    epilog="Start with: secateur run demo --out out   (one minute, bundled data). "
    "After any command, --debug shows the traceback of an error, --max-memory 8GB and --max-seconds 600 "
    "set the limits within which files are read, first run and converted.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(cli_files.export)
app.command()(cli_files.measure)
app.command()(cli_sensitivity.sensitivity)
app.command()(cli_targets.targets)
app.command()(cli_sweep.sweep)
app.command()(cli_sweep.choose)
app.command()(cli_report.report)
# Typer keeps the base class of its usage errors to itself.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[2]


@app.command()
def run(
    recipe: Annotated[
        str, typer.Argument(help="A built-in recipe (see `recipes`) or a .toml file.")
    ],
    model: Annotated[
        str | None, typer.Option(help="Trained .keras or .h5 file, or a built-in name (lab-cnn).")
    ] = None,
    data: DataOption = None,
    out: Annotated[
        Path, typer.Option(help="Directory of the run; an interrupted one is carried on.")
    ] = Path("out"),
    scale: ScaleOption = None,
    image_size: ImageSizeOption = None,
    limit: Annotated[
        int | None, typer.Option(help="Use only this many samples of each part.")
    ] = None,
    validation_split: Annotated[
        float, typer.Option(help="Share of the training part kept apart for choosing.")
    ] = 0.1,
    outputs: OutputsOption = None,
    seed: Annotated[int | None, typer.Option(help="Overrides the recipe's seed.")] = None,
    seeds: Annotated[
        int, typer.Option(help="Repeat with this many seeds, each in its own folder.")
    ] = 1,
    imports: ImportOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Discard the run found in --out.")
    ] = False,
    allow_chance: AllowChanceOption = False,
) -> None:
    """Carry a model through a recipe: train, compress, export, reload, measure, report.

    Examples:
      secateur run lab --data mnist --out out/

      secateur run my-recipe.toml --model model.keras --data data.npz --out out/
    """
    with frameworks():
        from secateur import datasets, pipeline
        from secateur.grids import refuse_grid
        from secateur.recipe import Recipe
        from secateur.run_folder import check_inputs, check_layout
    import_all(imports)
    refuse_grid(recipe)
    loaded = Recipe.load(recipe)
    source = data or loaded.data
    if source is None:
        raise SecateurError(
            f"recipe {loaded.name!r} names no data; give --data digits, or a .npz file"
        )
    first = loaded.seed if seed is None else seed
    if seeds < 1:
        raise SecateurError(f"--seeds {seeds} received, expected at least 1")
    numbers = range(first, first + seeds)
    check_layout(out, loaded, numbers, overwrite=overwrite)
    folders = [out if seeds == 1 else out / f"seed-{number}" for number in numbers]
    for folder in folders:
        check_inputs(folder, loaded, (recipe, model), overwrite=overwrite)
    for number, folder in zip(numbers, folders, strict=True):
        if seeds > 1:
            _out.print(f"[bold]seed {number}[/bold]")
        with live_progress(_err) as (progress, say):
            pipeline.run(
                model,
                loaded,
                datasets.load(
                    source,
                    scale=as_scale(scale),
                    image_size=as_image_size(image_size),
                    seed=number,
                    validation_split=validation_split,
                    limit=limit,
                ),
                folder,
                seed=number,
                imports=tuple(imports or ()),
                overwrite=overwrite,
                allow_chance=allow_chance,
                outputs=outputs,
                progress=progress,
                say=say,
                command=shlex.join(["secateur", *sys.argv[1:]]),
            )
    page = out / "report.html" if find_spec("jinja2") else None
    cli_report.show(out, html=page)
    if page is None:
        again = shlex.join(["secateur", "report", str(out), "--html", str(out / "report.html")])
        _out.print(f"no page: pip install 'secateur[report]', then {again}", markup=False)


@app.command()
def inspect(
    files: Annotated[list[Path], typer.Argument(help="One model, or two to set side by side.")],
    recipe: Annotated[
        str | None, typer.Option(help="Show what this recipe would do (dry run).")
    ] = None,
    imports: ImportOption = None,
) -> None:
    """Weights, roles, shapes, sparsity and values; with --recipe what would be changed.

    Examples:
      secateur inspect model.keras --recipe lab

      secateur inspect before.h5 after.keras
    """
    if len(files) > 2:
        raise SecateurError(f"{len(files)} files received, expected one, or two to compare")
    with frameworks():
        from secateur import inspection
    import_all(imports)
    from secateur.reporting import console

    found = [inspection.inspect(file) for file in files]
    if len(found) == 2:
        _out.print(console.side_by_side([f.to_record() for f in found]))
        for sentence in inspection.differences(*found):
            _out.print(sentence, highlight=False)
        return
    _out.print(console.weights(found[0].to_record()))
    if recipe is not None:
        with frameworks():
            from secateur.recipe import Recipe
            from secateur.runtimes.keras import load_model
        plan = Recipe.load(recipe).plan(load_model(files[0]))
        _out.print(console.plan([change.to_record() for change in plan], recipe))


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe's text.")] = None,
) -> None:
    """The built-in recipes and grids, each explained; with a name its text, to copy and change."""
    from secateur.recipes import builtin_grids, builtin_recipes, explanation

    recipes, grids = builtin_recipes(), builtin_grids()
    known = {**recipes, **grids}
    if name is None:
        for kind, texts in (("", recipes), (" (grid)", grids)):
            for own, text in texts.items():
                _out.print(
                    f"[bold]{own}[/bold]{kind}  {escape(explanation(text))}\n", highlight=False
                )
        _out.print(
            "secateur recipes NAME prints one; secateur run NAME --out out/ runs a recipe, "
            "secateur sweep NAME --out runs/ a grid."
        )
        return
    if name not in known:
        raise SecateurError(f"no recipe {name!r}; known: {', '.join(known)}")
    print(known[name])


def main() -> None:
    """Run the command line; errors a user can cause are one line and a non-zero exit."""
    words = _without_limits(sys.argv[1:])
    arguments = [word for word in words if word != "--debug"]
    debug = len(arguments) < len(words)
    warnings.showwarning = _warn
    try:
        code = app(arguments, standalone_mode=False) or 0
    except Exception as error:
        if debug:
            raise
        code = 130 if interrupts.received() else _explain(error)
    if code == 130 or interrupts.received():  # 130: Typer's word for Ctrl-C
        if interrupts.unwound():
            _fail(interrupts.line(arguments), code=interrupts.code())
        code = interrupts.code()
    raise SystemExit(code)


def _explain(error: Exception) -> NoReturn:
    """Say in one line what went wrong, and leave."""
    if isinstance(error, SecateurError):
        _fail(str(error))
    if isinstance(error, _USAGE_ERROR):
        usage: Any = error
        usage.show()
        raise SystemExit(usage.exit_code) from None
    text = str(error).strip().splitlines()
    _fail(
        f"unexpected {type(error).__name__}: {text[0] if text else ''} "
        "(please report it; --debug shows where)"
    )


def _without_limits(words: list[str]) -> list[str]:
    """The words of a command without the limits, which are set for this process and those below."""
    left, waiting = [], list(words)
    while waiting:
        option, equals, value = waiting.pop(0).partition("=")
        if option in OPTIONS and (equals or waiting):
            os.environ[OPTIONS[option]] = value if equals else waiting.pop(0)
        else:
            left.append(option + equals + value)
    return left


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as a user reads it: without the module and the line that raised it."""
    _err.print(f"warning: {escape(str(message))}", soft_wrap=True)


def _fail(text: str, code: int = 1) -> NoReturn:
    line = " ".join(text.split())
    if len(line) > 1200:  # a value of thousands of characters hides what is wrong with it
        line = f"{line[:800]} ... {line[-300:]}"
    _err.print(f"[bold red]error:[/bold red] {escape(line)}", soft_wrap=True)
    raise SystemExit(code)
