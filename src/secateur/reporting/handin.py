"""Tables, Markdown and the zip to hand in, of a sweep's points or of Runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.errors import SecateurError
from secateur.reporting import table
from secateur.reporting.document import docx_bytes, pack
from secateur.reporting.files import write_bytes, write_text
from secateur.reporting.notebook import notebook_text
from secateur.reporting.story import Part, record_kind, story
from secateur.reporting.sweep_compare import MAX_DROP
from secateur.reporting.sweep_series import csv_text
from secateur.reporting.table import markdown_cell, markdown_line

Json = dict[str, Any]


def write_handin(
    records: Sequence[Json],
    path: str | Path,
    header: Mapping[str, str] | None = None,
    max_drop: float = MAX_DROP,
) -> Path:
    """Write a zip with the Word document and the executed notebook; both bear the zip's name.

    path: usually firstname_collegename.zip. header: the lines at the top of both, e.g. {"Name":
    "..."}; the four usual ones that are missing stay as lines to fill in. Raises SecateurError for
    another suffix, a missing package or a file that cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".zip":
        raise SecateurError(
            f"hand-in {path.name!r} received, expected a .zip; fix: name it firstname_collegename.zip"
        )
    told = story(records, max_drop)
    members = {
        f"{path.stem}.docx": docx_bytes(told, header),
        f"{path.stem}.ipynb": notebook_text(told, header or {}, max_drop).encode(),
    }
    return write_bytes(path, pack(members))


def parse_header(lines: Sequence[str]) -> dict[str, str]:
    """Read header lines as they are given on the command line.

    >>> parse_header(["Name=Ada", "Email ID=a@b.c"])
    {'Name': 'Ada', 'Email ID': 'a@b.c'}
    """
    found = {}
    for line in lines:
        name, sign, text = line.partition("=")
        if not sign or not name.strip():
            raise SecateurError(
                f'header line {line!r} received, expected NAME=TEXT; fix: --header "Name=..."'
            )
        found[name.strip()] = text.strip()
    return found


def write_csv(records: Sequence[Json], path: str | Path) -> Path:
    """Write a row a point of a sweep, or the rows of Runs, as CSV: unrounded, empty where not taken."""
    if record_kind(records) == "run":
        return table.write_csv(records, path)
    return write_text(path, csv_text(records))


def write_markdown(
    records: Sequence[Json], path: str | Path, max_drop: float = MAX_DROP, *, pictures: bool = True
) -> Path:
    """Write findings, figures and table as Markdown; Runs as `table.write_markdown` does.

    pictures: a sweep's figures are written as PNG beside it, `<stem>-<figure>.png`.
    """
    path = Path(path)
    if record_kind(records) == "run":
        return table.write_markdown(records, path)
    told = story(records, max_drop, pictures=pictures)
    lines = [f"# {markdown_cell(told.title)}", "", markdown_cell(told.lead)]
    for number, part in enumerate(told.parts):
        suffix = f"-{number + 1}" if len(told.parts) > 1 else ""
        links = []
        for picture in part.pictures:
            name = f"{path.stem}{suffix}-{picture.name}.png"
            write_bytes(path.with_name(name), picture.png)
            links += [f"![{markdown_cell(picture.caption)}](<{name}>)", ""]
        lines += ["", *_part(part, links, 2)]
    return write_text(path, "\n".join(lines).rstrip() + "\n")


def _part(part: Part, links: Sequence[str], level: int) -> list[str]:
    mark = "#" * level
    lines = [f"{mark} {markdown_cell(part.title)}", "", *_bullets(part.findings), "", *links]
    first, *rest = part.table
    lines += [
        markdown_line(map(markdown_cell, first)),
        markdown_line(["---", *["---:"] * (len(first) - 1)]),
        *(markdown_line(map(markdown_cell, row)) for row in rest),
        "",
        markdown_cell(part.footnote),
        "",
    ]
    if part.missing:
        lines += [f"{mark}# What has no figures", "", *_bullets(part.missing), ""]
    return [*lines, f"{mark}# How it was measured", "", *_bullets(part.method)]


def _bullets(lines: Sequence[str]) -> list[str]:
    return [f"- {markdown_cell(line)}" for line in lines]
