"""Word document, notebook, hand-in, CSV and Markdown, opened and read as their readers would."""

import csv
import io
import json
import shutil
import subprocess
import zipfile

import pytest
from tests.reporting.records_example import example_runs
from tests.reporting.sweep_example import example_points, failed_point, impossible_point

from secateur.errors import SecateurError
from secateur.reporting import document, notebook
from secateur.reporting.handin import parse_header, write_csv, write_handin, write_markdown
from secateur.reporting.story import story

docx = pytest.importorskip("docx", reason="install the extra 'report' (python-docx)")
nbformat = pytest.importorskip("nbformat", reason="install the extra 'report' (nbformat)")
pytest.importorskip("ipykernel", reason="install the extra 'report' (ipykernel)")

HEADER = {"Name": "Ada Lovelace", "Email ID": "ada@example.org", "Course": "Sparsity"}


@pytest.fixture(scope="module")
def points():
    return [*example_points(3), impossible_point(), failed_point()]


@pytest.fixture(scope="module")
def handin(points, tmp_path_factory):
    return write_handin(points, tmp_path_factory.mktemp("out") / "ada_analytical.zip", HEADER)


@pytest.fixture(scope="module")
def word(handin):
    with zipfile.ZipFile(handin) as archive:
        return docx.Document(io.BytesIO(archive.read("ada_analytical.docx")))


@pytest.fixture(scope="module")
def told(handin):
    with zipfile.ZipFile(handin) as archive:
        return nbformat.reads(archive.read("ada_analytical.ipynb").decode(), as_version=4)


def texts(opened):
    return [line.text for line in opened.paragraphs]


# --- the hand-in ----------------------------------------------------------------------------------


def test_the_zip_holds_document_and_notebook_and_nothing_else(handin):
    with zipfile.ZipFile(handin) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["ada_analytical.docx", "ada_analytical.ipynb"]


def test_the_same_points_make_the_same_zip(handin, points, tmp_path):
    again = write_handin(points[::-1], tmp_path / "ada_analytical.zip", HEADER)
    assert again.read_bytes() == handin.read_bytes()


def test_a_hand_in_is_a_zip(points, tmp_path):
    with pytest.raises(SecateurError, match=r"expected a \.zip"):
        write_handin(points, tmp_path / "ada.docx")
    assert list(tmp_path.iterdir()) == []


# --- the document ---------------------------------------------------------------------------------


def test_missing_header_lines_stay_to_be_filled_in(word):
    lines = texts(word)[:5]
    assert lines[0] == "Name: Ada Lovelace" and lines[3] == "Email ID: ada@example.org"
    assert lines[1] == "College/graduating year/GPA: \t" and lines[2] == "Phone number: \t"
    assert lines[4] == "Course: Sparsity"


def test_the_document_has_findings_figures_table_and_method(word, points):
    text = "\n".join(texts(word)).replace("\N{NO-BREAK SPACE}", " ")
    assert text.index("What was found") < text.index("Figure 1") < text.index("How it was measured")
    assert "The curves part at 70 %" in text and "MemoryError" in text
    assert len(word.inline_shapes) == 4  # accuracy, loss, time, training
    assert all(shape._inline.docPr.get("descr") for shape in word.inline_shapes)
    (table,) = word.tables
    assert table.rows[0].cells[0].text == "curve" and table.rows[1].cells[0].text == "dense"
    assert len(table.rows) == 1 + 1 + len({(p["curve"], p["sparsity"]["asked"]) for p in points
                                           if p["status"] == "done" and p["curve"] != "dense"})  # fmt: skip


def test_the_document_of_runs(tmp_path):
    path = document.write_docx(example_runs(3), tmp_path / "lab.docx")
    opened = docx.Document(str(path))
    text = "\n".join(texts(opened)).replace("\N{NO-BREAK SPACE}", " ")
    assert "9.5 times smaller gzipped" in text and "What is the dense control?" in text
    assert len(opened.inline_shapes) == 3
    assert [row.cells[0].text for row in opened.tables[0].rows][:2] == ["row", "baseline-h5"]


def test_names_with_markup_stay_text(points, tmp_path):
    odd = [p | {"grid": "<b>&x</b>"} for p in points]
    path = document.write_docx(odd, tmp_path / "odd.docx", {"Name": "A & B <c>"})
    assert texts(docx.Document(str(path)))[0] == "Name: A & B <c>"


def test_the_document_becomes_pages(handin, tmp_path):
    """What a reader with another program sees: it opens in LibreOffice."""
    office = shutil.which("soffice")
    if office is None:
        pytest.skip("soffice not found; install the system package libreoffice-writer")
    with zipfile.ZipFile(handin) as archive:
        archive.extractall(tmp_path)
    subprocess.run(
        [office, "--headless", f"-env:UserInstallation={(tmp_path / 'profile').as_uri()}",
         "--convert-to", "pdf", "--outdir", str(tmp_path), str(tmp_path / "ada_analytical.docx")],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert (tmp_path / "ada_analytical.pdf").read_bytes().startswith(b"%PDF")


# --- the notebook ---------------------------------------------------------------------------------


def test_every_cell_was_run_and_has_its_outputs(told):
    nbformat.validate(told)
    code = [cell for cell in told.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    images = [out for cell in code for out in cell.outputs if "image/png" in out.get("data", {})]
    assert len(images) == 3
    assert not [out for cell in code for out in cell.outputs if out.output_type == "error"]
    assert not [out for cell in code for out in cell.outputs if out.get("name") == "stderr"]


def test_the_notebook_reckons_what_the_findings_say(told):
    printed = "".join(out.text for cell in told.cells if cell.cell_type == "code"
                      for out in cell.outputs if out.output_type == "stream")  # fmt: skip
    assert "116 points, 114 of them with figures" in printed
    assert "weights, one-shot                  70.0% to 70.0%" in printed
    words = "\n".join(cell.source for cell in told.cells if cell.cell_type == "markdown")
    assert "70 % of the weights" in words and "part at 70 %" in words
    assert "**Name:** Ada Lovelace" in words and "**Phone number:**" in words


def test_the_notebook_of_runs_and_of_data_full_of_quotes(points, tmp_path):
    runs = notebook.write_notebook(example_runs(1), tmp_path / "lab.ipynb")
    opened = nbformat.read(runs, as_version=4)
    assert "pruned-dynamic" in json.dumps(opened.cells)
    assert "Name" not in opened.cells[0].source
    odd = failed_point() | {"error": 'cannot load "x\\y", """quoted"""', "curve": "u", "seed": 7}
    cells = notebook.sources(story([*points, odd], pictures=False))
    code = next(text for kind, text in cells if kind == "code" and "DATA = " in text)
    found: dict = {}
    exec(code, found)
    assert odd["error"] in {point["error"] for point in found["points"]}


def test_a_cell_that_fails_is_one_line(points, monkeypatch, tmp_path):
    monkeypatch.setattr(notebook, "sources", lambda *_: [("code", "1 / 0")])
    with pytest.raises(SecateurError, match="ZeroDivisionError"):
        notebook.write_notebook(points, tmp_path / "x.ipynb")
    assert list(tmp_path.iterdir()) == []


# --- CSV, Markdown, header ------------------------------------------------------------------------


def test_csv_gives_every_figure_back(points, tmp_path):
    path = write_csv(points, tmp_path / "table.csv")
    table = list(csv.DictReader(io.StringIO(path.read_text(), newline="")))
    assert len(table) == len(points)
    found = {row["fingerprint"]: row for row in table}
    for point in points:
        row = found[point["fingerprint"]]
        if point["status"] == "done":
            assert float(row["test_accuracy"]) == point["test"]["accuracy"]
            assert float(row["asked"]) == point["sparsity"]["asked"]
        else:
            assert row["test_accuracy"] == "" and row["error"] == point["error"]
    lab = write_csv(example_runs(3), tmp_path / "lab.csv")
    assert lab.read_text().startswith("row,stage,format")


def test_markdown_has_findings_figures_and_table(points, tmp_path):
    path = write_markdown(points, tmp_path / "report.md")
    text = path.read_text()
    assert "part at 70 %" in text and "](<report-accuracy.png>)" in text
    for name in ("accuracy", "loss", "time", "training"):
        assert (tmp_path / f"report-{name}.png").read_bytes().startswith(b"\x89PNG")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.count("|") for line in rows}) == 1 and len(rows) > 30
    assert write_markdown(example_runs(1), tmp_path / "lab.md").read_text().startswith("# lab")


def test_header_lines_are_read_or_refused():
    assert parse_header(["Name=A=B", " GPA = 4"]) == {"Name": "A=B", "GPA": "4"}
    for wrong in ("Name", "=x"):
        with pytest.raises(SecateurError, match="NAME=TEXT"):
            parse_header([wrong])


def test_points_and_runs_are_not_mixed(points):
    with pytest.raises(SecateurError, match="not both"):
        story([points[0], example_runs(1)[0]])
