"""The command line: every command is one library call. Nothing heavy is imported before it runs."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from secateur.errors import SecateurError
from secateur.progress import live_progress

app = typer.Typer(
    name="secateur",
    help="Prune and quantize a Keras 3 model, write the files that a device runs, and measure them.",
    epilog="Start with: secateur run demo --out out   (one minute, bundled data). "
    "--debug after any command shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
# Typer keeps the base class of its usage errors to itself.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[2]
_out = Console()
_err = Console(stderr=True)

DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="digits, mnist, fashion-mnist, plant-leaves; a .npz with x_train, y_train, x_test, "
        "y_test; or a folder of images: train/<class>/*.jpg and test/<class>/*.jpg, or "
        "<class>/*.jpg.",
    ),
]
ImageSizeOption = Annotated[
    str | None,
    typer.Option("--image-size", help="Resize the images of a folder to HEIGHTxWIDTH, as 96x96."),
]
ScaleOption = Annotated[
    str | None,
    typer.Option(
        "--scale", help="Divide inputs by this number (255), or auto. Named data are scaled."
    ),
]
ImportOption = Annotated[
    list[str] | None,
    typer.Option("--import", help="Python module that registers custom layers; may be repeated."),
]


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
    seed: Annotated[int | None, typer.Option(help="Overrides the recipe's seed.")] = None,
    seeds: Annotated[
        int, typer.Option(help="Repeat with this many seeds, each in its own folder.")
    ] = 1,
    imports: ImportOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Discard the run found in --out.")
    ] = False,
    allow_chance: Annotated[
        bool, typer.Option("--allow-chance", help="Go on with a model no better than chance.")
    ] = False,
) -> None:
    """Carry a model through a recipe: train, compress, export, reload, measure, report.

    Examples:
      secateur run lab --data mnist --out out/

      secateur run my-recipe.toml --model model.keras --data data.npz --out out/
    """
    with _frameworks():
        from secateur import datasets, pipeline
        from secateur.recipe import Recipe
        from secateur.run_folder import check_layout
    _import_all(imports)
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
    for number in numbers:
        folder = out if seeds == 1 else out / f"seed-{number}"
        if seeds > 1:
            _out.print(f"[bold]seed {number}[/bold]")
        with live_progress(_err) as (progress, say):
            pipeline.run(
                model,
                loaded,
                datasets.load(
                    source,
                    scale=_scale(scale),
                    image_size=_image_size(image_size),
                    seed=number,
                    validation_split=validation_split,
                    limit=limit,
                ),
                folder,
                seed=number,
                imports=tuple(imports or ()),
                overwrite=overwrite,
                allow_chance=allow_chance,
                progress=progress,
                say=say,
                command=shlex.join(["secateur", *sys.argv[1:]]),
            )
    page = out / "report.html" if find_spec("jinja2") else None
    _show(out, html=page)
    if page is None:
        again = shlex.join(["secateur", "report", str(out), "--html", str(out / "report.html")])
        _out.print(f"no page: pip install 'secateur[report]', then {again}", markup=False)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A .keras or .h5 file.")],
    formats: Annotated[
        str, typer.Option(help="Comma-separated: keras, h5, float32, dynamic.")
    ] = "float32,dynamic",
    out: Annotated[Path, typer.Option(help="Directory for the files.")] = Path("out"),
    imports: ImportOption = None,
) -> None:
    """Write the files that a runtime loads, each reloaded and checked. Needs no data."""
    if (out / "run.json").exists() or (out / ".stages").exists():
        raise SecateurError(
            f"{out} holds a run, whose manifest would be lost; choose another --out"
        )
    with _frameworks():
        from secateur.artifact import write_manifest
        from secateur.exporting import export as export_model
        from secateur.runtimes.keras import load_model
    _import_all(imports)
    wanted = [name.strip() for name in formats.split(",") if name.strip()]
    artifacts = export_model(
        load_model(model), wanted, out, stage=model.stem, imports=tuple(imports or ())
    )
    write_manifest(out, artifacts)
    for artifact in artifacts:
        _out.print(
            f"{artifact.path}: {artifact.bytes:,} bytes, reloaded; outputs differ from the model's by "
            f"{artifact.parity['relative_rms']:.1e} (relative RMS)",
            highlight=False,
        )


@app.command()
def measure(
    files: Annotated[list[Path], typer.Argument(help=".tflite, .keras or .h5 files.")],
    data: DataOption = None,
    scale: ScaleOption = None,
    image_size: ImageSizeOption = None,
    limit: Annotated[int | None, typer.Option(help="Use only this many test samples.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of the runtime.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain records.")] = False,
    imports: ImportOption = None,
) -> None:
    """Bytes, gzip, zeros, accuracy and loss in the file's own runtime, latency.

    Example: secateur measure out/pruned-dynamic.tflite --data mnist
    """
    from secateur import datasets
    from secateur.measurement import measure as measure_file

    if any(f.suffix != ".tflite" for f in files):
        with _frameworks():
            import keras  # noqa: F401 - here, so that its start-up noise stays hidden
        _import_all(imports)
    loaded = None
    if data is not None:
        loaded = datasets.load(
            data, scale=_scale(scale), image_size=_image_size(image_size), limit=limit
        )
    records = []
    for file in files:
        measured = measure_file(file, loaded, threads=threads)
        records.append({**measured.to_record(), "path": str(file)})
    if as_json:
        print(json.dumps(records, indent=2))
        return
    from secateur.reporting.console import measurements

    _out.print(measurements(records))


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
    with _frameworks():
        from secateur import inspection
    _import_all(imports)
    from secateur.reporting import console

    found = [inspection.inspect(file) for file in files]
    if len(found) == 2:
        _out.print(console.side_by_side([f.to_record() for f in found]))
        for sentence in inspection.differences(*found):
            _out.print(sentence, highlight=False)
        return
    _out.print(console.weights(found[0].to_record()))
    if recipe is not None:
        with _frameworks():
            from secateur.recipe import Recipe
            from secateur.runtimes.keras import load_model
        plan = Recipe.load(recipe).plan(load_model(files[0]))
        _out.print(console.plan([change.to_record() for change in plan], recipe))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Directory of a run, or of several seeds of one.")],
    html: Annotated[Path | None, typer.Option(help="Write a self-contained page.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table as CSV.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table as Markdown.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the rows as JSON.")] = None,
) -> None:
    """Show a finished run again: table, HTML page, CSV, Markdown, JSON."""
    _show(folder, html=html, csv=csv, markdown=markdown, as_json=as_json)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe's text.")] = None,
) -> None:
    """The built-in recipes, each explained; with a name its text, to copy and change."""
    from secateur.recipes import builtin_recipes, explanation

    known = builtin_recipes()
    if name is None:
        for recipe, text in known.items():
            _out.print(f"[bold]{recipe}[/bold]  {escape(explanation(text))}\n", highlight=False)
        _out.print("secateur recipes NAME prints one; secateur run NAME --out out/ runs it.")
        return
    if name not in known:
        raise SecateurError(f"no recipe {name!r}; known: {', '.join(known)}")
    print(known[name])


def main() -> None:
    """Run the command line; errors a user can cause are one line and a non-zero exit."""
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        code = app(arguments, standalone_mode=False) or 0
    except SecateurError as error:
        if debug:
            raise
        _fail(str(error))
    except Exception as error:
        if isinstance(error, _USAGE_ERROR):
            usage: Any = error
            usage.show()
            raise SystemExit(usage.exit_code) from None
        if debug:
            raise
        text = str(error).strip().splitlines()
        _fail(
            f"unexpected {type(error).__name__}: {text[0] if text else ''} "
            "(please report it; --debug shows where)"
        )
    if code == 130:  # Typer's word for Ctrl-C
        same = "the same command" + " without --overwrite" * ("--overwrite" in arguments)
        kept = f"; what was finished is kept, {same} carries on" if arguments[:1] == ["run"] else ""
        _fail(f"interrupted{kept}", code=130)
    raise SystemExit(code)


def _fail(text: str, code: int = 1) -> NoReturn:
    _err.print(f"[bold red]error:[/bold red] {escape(' '.join(text.split()))}", soft_wrap=True)
    raise SystemExit(code)


def _scale(text: str | None) -> float | str | None:
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise SecateurError(
            f"--scale {text!r} received, expected a number such as 255, or auto"
        ) from None


def _image_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) for side in sides):
        raise SecateurError(f"--image-size {text!r} received, expected HEIGHTxWIDTH, as 96x96")
    return int(sides[0]), int(sides[1])


@contextmanager
def _frameworks() -> Iterator[None]:
    """Import Keras and its backend without their start-up noise; say which extra is missing."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from secateur.runtimes import quiet

    try:
        with quiet():
            import keras  # noqa: F401

            # TensorFlow advises users of tf.function, which nobody here calls.
            logging.getLogger("tensorflow").setLevel(logging.ERROR)
            yield
    except ModuleNotFoundError as error:
        backend = os.environ.get("KERAS_BACKEND", "tensorflow")
        extra = {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch", "jinja2": "report"}
        wanted = extra.get(error.name or "", backend)
        raise SecateurError(
            f"{error.name} is not installed; pip install 'secateur[{wanted}]' "
            "(KERAS_BACKEND chooses tensorflow, jax or torch)"
        ) from None


def _import_all(modules: list[str] | None) -> None:
    from secateur.runtimes.keras import import_modules

    # A console script does not look into the current directory, where users keep their layers.
    if modules and "" not in sys.path:
        sys.path.insert(0, "")
    import_modules(modules or ())


def _show(
    folder: Path,
    *,
    html: Path | None = None,
    csv: Path | None = None,
    markdown: Path | None = None,
    as_json: Path | None = None,
) -> None:
    from secateur import reporting

    runs = reporting.load_runs(folder)
    _out.print(reporting.rich_table(runs))
    _out.print(reporting.headline(runs), highlight=False, markup=False)
    writers = (
        (html, reporting.write_html),
        (csv, reporting.write_csv),
        (markdown, reporting.write_markdown),
        (as_json, reporting.write_json),
    )
    for path, write in writers:
        if path is not None:
            write(runs, path)
            _out.print(f"wrote {path}", highlight=False, markup=False)
