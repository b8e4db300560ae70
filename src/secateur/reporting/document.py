"""The Word document of a sweep or of Runs: header lines, findings, figures, table, method."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from secateur.errors import SecateurError
from secateur.reporting.files import write_bytes
from secateur.reporting.page import typeset
from secateur.reporting.story import Part, Story, story

# The lines that a hand-in opens on; one that is not given stays as an empty line to fill in.
HEADER = ("Name", "College/graduating year/GPA", "Phone number", "Email ID")
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip knows


def write_docx(
    records: Sequence[dict[str, Any]],
    path: str | Path,
    header: Mapping[str, str] | None = None,
    max_drop: float = 0.5,
) -> Path:
    """Write the Word document of a sweep's points, or of Runs; the same records, the same bytes.

    header: lines at the top, e.g. {"Name": "..."}. max_drop: points that a "free" k may lose.
    Raises SecateurError when python-docx or Matplotlib is missing or the file cannot be written.
    """
    return write_bytes(path, docx_bytes(story(records, max_drop), header))


def docx_bytes(told: Story, header: Mapping[str, str] | None = None) -> bytes:
    """Return the document of a story."""
    try:
        import docx
    except ImportError:
        raise SecateurError("documents need python-docx: pip install 'secateur[report]'") from None
    from docx.shared import Cm, Pt

    document = docx.Document()
    page = document.sections[0]
    page.page_width, page.page_height = Cm(21.0), Cm(29.7)
    page.left_margin = page.right_margin = Cm(2.0)
    page.top_margin = page.bottom_margin = Cm(1.8)
    document.styles["Normal"].font.size = Pt(10.5)  # type: ignore[union-attr]
    _header(document, header or {})
    document.add_heading(typeset(told.title), level=1)
    document.add_paragraph(typeset(told.lead)).runs[0].bold = True
    for part in told.parts:
        _part(document, part, several=len(told.parts) > 1)
    _properties(document, told)
    stream = io.BytesIO()
    document.save(stream)
    return pack(_members(stream.getvalue()))


def header_lines(header: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the lines of the top: the usual four, filled in where they are given, then others.

    >>> header_lines({"Name": "Ada", "Course": "Sparsity"})[::4]
    [('Name', 'Ada'), ('Course', 'Sparsity')]
    """
    others = [name for name in header if name not in HEADER]
    return [(name, " ".join(str(header.get(name, "")).split())) for name in (*HEADER, *others)]


def pack(members: Mapping[str, bytes]) -> bytes:
    """Return a zip of the members whose bytes depend on nothing else.

    >>> pack({"a.txt": b"1"}) == pack({"a.txt": b"1"})
    True
    """
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            entry.create_system = 3
            archive.writestr(entry, content)
    return stream.getvalue()


def _members(packed: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _header(document: Any, header: Mapping[str, str]) -> None:
    from docx.enum.text import WD_TAB_LEADER
    from docx.shared import Cm, Pt

    for name, text in header_lines(header):
        line = document.add_paragraph()
        line.paragraph_format.space_after = Pt(4)
        line.add_run(f"{name}: ").bold = True
        if text:
            line.add_run(text)
            continue
        line.paragraph_format.tab_stops.add_tab_stop(Cm(17.0), leader=WD_TAB_LEADER.LINES)
        line.add_run("\t")


def _part(document: Any, part: Part, several: bool) -> None:
    if several:
        document.add_heading(typeset(part.title), level=2)
    level = 3 if several else 2
    document.add_heading(part.heading, level=level)
    for text in part.findings or ["The finished points support no finding yet."]:
        document.add_paragraph(typeset(text), style="List Bullet")
    _pictures(document, part, level)
    document.add_heading("The table", level=level)
    _table(document, part.table)
    _note(document, part.footnote)
    if part.missing:
        document.add_heading("What has no figures", level=level)
        for line in part.missing:
            document.add_paragraph(typeset(line), style="List Bullet")
    document.add_heading("How it was measured", level=level)
    for line in part.method:
        document.add_paragraph(typeset(line), style="List Bullet")


def _pictures(document: Any, part: Part, level: int) -> None:
    from docx.shared import Cm

    if part.pictures:
        document.add_heading("Figures", level=level)
    for number, picture in enumerate(part.pictures, start=1):
        shape = document.add_picture(io.BytesIO(picture.png), width=Cm(14.6))
        shape._inline.docPr.set("descr", picture.caption)  # what a screen reader says
        document.paragraphs[-1].paragraph_format.keep_with_next = True
        _note(document, f"Figure {number}. {picture.caption}")


def _note(document: Any, text: str) -> None:
    from docx.shared import Pt

    run = document.add_paragraph().add_run(typeset(text))
    run.italic, run.font.size = True, Pt(9)


def _table(document: Any, rows: Sequence[Sequence[str]]) -> None:
    from docx.enum.text import WD_ALIGN_PARAGRAPH
    from docx.oxml import OxmlElement
    from docx.oxml.ns import qn
    from docx.shared import Cm, Pt

    longest = [max(len(text) for text in column) for column in zip(*rows, strict=True)]
    shares = [max(length, 5) + 3 for length in longest]
    widths = [Cm(17.0 * share / sum(shares)) for share in shares]
    grid = document.add_table(rows=len(rows), cols=len(longest), style="Light Shading")
    grid.autofit = False
    for column, width in zip(grid.columns, widths, strict=True):
        column.width = width
    for row, texts in zip(grid.rows, rows, strict=True):
        row._tr.get_or_add_trPr().append(OxmlElement("w:cantSplit"))
        for place, (cell, text) in enumerate(zip(row.cells, texts, strict=True)):
            cell.width = widths[place]
            line = cell.paragraphs[0]
            line.paragraph_format.space_after = Pt(0)
            line.alignment = WD_ALIGN_PARAGRAPH.RIGHT if place else WD_ALIGN_PARAGRAPH.LEFT
            run = line.add_run(typeset(text))
            run.font.size = Pt(7)
            run.bold = texts is rows[0] or None
    look = grid._tbl.tblPr.find(qn("w:tblLook"))
    if look is not None:
        look.set(qn("w:val"), "06A0")
        look.set(qn("w:noHBand"), "1")  # rows lie close enough to be followed without bands
    repeated = OxmlElement("w:tblHeader")  # the titles stand on every page
    repeated.set(qn("w:val"), "true")
    grid.rows[0]._tr.get_or_add_trPr().append(repeated)
    margins = OxmlElement("w:tblCellMar")
    for side in ("left", "right"):
        edge = OxmlElement(f"w:{side}")
        edge.set(qn("w:w"), "45")
        edge.set(qn("w:type"), "dxa")
        margins.append(edge)
    grid._tbl.tblPr.append(margins)


def _properties(document: Any, told: Story) -> None:
    """Say what the document is; its dates are the records', or two writings would differ."""
    facts = document.core_properties
    facts.author, facts.comments = "", "Written by Secateur from its records."
    facts.title = told.title
    try:
        moment = datetime.fromisoformat(told.created).replace(tzinfo=None)
    except ValueError:
        moment = datetime(*EPOCH)
    facts.created = facts.modified = moment
