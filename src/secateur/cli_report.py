"""`secateur report`: what a Run, several seeds of one, or a sweep has found, in any form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli_options import out as _out
from secateur.errors import SecateurError


def report(
    folder: Annotated[
        Path, typer.Argument(help="Directory of a run, of several seeds of one, or of a sweep.")
    ],
    html: Annotated[Path | None, typer.Option(help="Write a self-contained page.")] = None,
    docx: Annotated[Path | None, typer.Option(help="Write a Word document.")] = None,
    notebook: Annotated[
        Path | None, typer.Option(help="Write an executed notebook (.ipynb).")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table as CSV.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write it as Markdown, a sweep's figures beside it.")
    ] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the rows as JSON.")] = None,
    handin: Annotated[
        Path | None,
        typer.Option(help="Write document and notebook into firstname_collegename.zip."),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(help='A line at the top of document and notebook, "Name=..."; repeat it.'),
    ] = None,
) -> None:
    """Show what was found again: table, HTML page, Word document, notebook, CSV, Markdown, JSON.

    Examples:
      secateur report out/ --html page.html

      secateur report runs/ --docx report.docx --notebook report.ipynb --csv table.csv

      secateur report runs/ --handin ada_london.zip --header "Name=Ada" --header "Email ID=a@b.c"
    """
    from secateur.artifact import refuse_records

    if header and not (docx or notebook or handin):
        raise SecateurError(
            "--header received alone, expected a document to write it into; fix: add --docx, "
            "--notebook or --handin"
        )
    forms = {
        "html": html,
        "docx": docx,
        "notebook": notebook,
        "csv": csv,
        "markdown": markdown,
        "as_json": as_json,
        "handin": handin,
    }
    options = {f"--{form.removeprefix('as_')}": path for form, path in forms.items()}
    refuse_records(options, folder)
    show(folder, header=header or [], **forms)


def show(folder: Path, *, header: list[str] | None = None, **paths: Path | None) -> None:
    """Print a folder's table and headline, and write what is asked for: {form: path or None}."""
    from secateur import reporting

    if (folder / "sweep.json").exists() or (folder / "points").is_dir():
        from secateur.reporting.sweep_console import rich_tables
        from secateur.reporting.sweep_page import write_sweep_html
        from secateur.reporting.sweep_series import load_points

        records = load_points(folder)
        for part in rich_tables(records, wide=_out.width >= 110):
            if isinstance(part, str):
                _out.print(part, highlight=False, markup=False)
            else:
                _out.print(part)
        write_page: Callable[..., Any] = write_sweep_html
    else:
        records = reporting.load_runs(folder)
        _out.print(reporting.rich_table(records))
        _out.print(reporting.headline(records), highlight=False, markup=False)
        write_page = reporting.write_html
    for form, path in paths.items():
        if path is not None:
            _write(form, records, path, header or [], write_page)
            _out.print(f"wrote {path}", highlight=False, markup=False)


def _write(
    form: str, records: list[Any], path: Path, header: list[str], write_page: Callable[..., Any]
) -> None:
    """One form, whose package is imported only where it is asked for."""
    from secateur.reporting import document, handin, notebook, sweep_series, table
    from secateur.reporting.files import write_text

    lines = handin.parse_header(header)
    if form == "html":
        write_page(records, path)
    elif form == "docx":
        document.write_docx(records, path, lines)
    elif form == "notebook":
        notebook.write_notebook(records, path, lines)
    elif form == "handin":
        handin.write_handin(records, path, lines)
    elif form == "csv":
        handin.write_csv(records, path)
    elif form == "markdown":
        handin.write_markdown(records, path)
    elif records[0].get("kind") == "point":
        found = {"format_version": 1, "kind": "report", "rows": sweep_series.frame(records)}
        write_text(path, json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        table.write_json(records, path)
