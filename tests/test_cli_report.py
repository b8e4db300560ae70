"""`secateur report` on a real sweep and on a real Run: each form is written, and opened as its reader would."""

import csv
import io
import json
import re
import zipfile
from pathlib import Path

import pytest

from secateur.sweeps import sweep

GRID = {
    "name": "small",
    "model": "lenet-300-100",
    "data": "digits",
    "files": "none",
    "train": {"epochs": 2},
    "curves": [
        {"name": "dense"},
        {
            "name": "weights",
            "steps": [
                {"method": "prune", "sparsity": {"sweep": [0.5, 0.9]}, "train": {"epochs": 0}}
            ],
        },
        {
            "name": "units",
            "steps": [
                {"method": "units", "sparsity": {"sweep": [0.5, 0.999]}, "train": {"epochs": 0}}
            ],
        },
    ],
}
RECIPE = {
    "model": "lenet-300-100",
    "data": "digits",
    "train": {"epochs": 1},
    "steps": [{"method": "prune", "sparsity": 0.5}],
    "export": {"formats": ["keras"]},
}
HEADER = ("--header", "Name=Ada Lovelace", "--header", "Course=Sparsity")
POINTS = 2 * 5


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The folder of a finished sweep."""
    return sweep(
        GRID, out=tmp_path_factory.mktemp("swept") / "runs", seeds=2, load={"limit": 400}
    ).path


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of a finished Run."""
    from secateur import datasets
    from secateur.pipeline import run
    from secateur.recipe import Recipe

    data = datasets.load("digits", limit=300)
    folder = tmp_path_factory.mktemp("ran") / "out"
    return run(None, Recipe.from_dict(RECIPE), data, out=folder, allow_chance=True).path


def records(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("points/*/record.json"))]


# --- a sweep --------------------------------------------------------------------------------------


def test_the_tables_of_a_sweep_hold_every_point(secateur, swept, tmp_path):
    words = ("--csv", "t.csv", "--json", "t.json", "--markdown", "t.md")
    code, out, err = secateur("report", swept, *words)
    assert code == 0, err
    assert "impossible: units at 99.9 %, seed 0" in out and re.search(r"weights +50 % ", out)
    assert all(f"wrote {name}" in out for name in ("t.csv", "t.json", "t.md"))

    rows = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text())))
    truth = {record["fingerprint"]: record for record in records(swept)}
    assert len(rows) == len(truth) == POINTS
    for row in rows:
        record = truth[row["fingerprint"]]
        assert row["status"] == record["status"] and row["curve"] == record["curve"]
        if record["status"] == "done":
            assert float(row["test_accuracy"]) == record["test"]["accuracy"]
            assert float(row["validation_loss"]) == record["validation"]["loss"]
        else:
            assert row["test_accuracy"] == "" and "would be removed" in row["error"]

    found = json.loads((tmp_path / "t.json").read_text())
    assert found["kind"] == "report" and len(found["rows"]) == POINTS
    same = {row["fingerprint"]: row["test_accuracy"] for row in found["rows"]}
    assert same == {name: (r["test"] or {}).get("accuracy") for name, r in truth.items()}

    page = (tmp_path / "t.md").read_text()
    pictures = re.findall(r"!\[.*?\]\(<(.*?)>\)", page)
    assert pictures and all(
        (tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in pictures
    )
    assert page.count("\n| weights |") == 2 and "\n### What has no figures\n" in page


def test_the_page_of_a_sweep(secateur, swept, tmp_path):
    pytest.importorskip("jinja2", reason="install the extra 'report' (jinja2)")
    code, out, err = secateur("report", swept, "--html", "page.html")
    assert code == 0 and "wrote page.html" in out, err
    page = (tmp_path / "page.html").read_text()
    assert "<svg" in page and "units at 99.9 %" in page
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page)  # it needs nothing beside it


def test_the_hand_in_holds_document_and_notebook_and_both_can_be_read(secateur, swept, tmp_path):
    docx = pytest.importorskip("docx", reason="install the extra 'report' (python-docx)")
    nbformat = pytest.importorskip("nbformat", reason="install the extra 'report' (nbformat)")
    code, out, err = secateur("report", swept, "--handin", "ada_london.zip", *HEADER)
    assert code == 0 and "wrote ada_london.zip" in out, err
    with zipfile.ZipFile(tmp_path / "ada_london.zip") as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == ["ada_london.docx", "ada_london.ipynb"]
        word = docx.Document(io.BytesIO(archive.read("ada_london.docx")))
        notebook = nbformat.reads(archive.read("ada_london.ipynb").decode(), as_version=4)
    check_word(word)
    assert len(word.inline_shapes) >= 2
    check_notebook(notebook)
    shown = [
        output["text"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.get("name") == "stdout"
    ]
    assert f"{POINTS} points, {POINTS - 2} of them with figures" in "".join(shown)


def check_word(word):
    lines = [paragraph.text for paragraph in word.paragraphs]
    assert any("Ada Lovelace" in line for line in lines)
    assert any("Course" in line and "Sparsity" in line for line in lines)
    assert any(line.startswith("Email ID") for line in lines)  # missing: a line to fill in
    assert word.tables and len(word.tables[0].rows) > 2


def check_notebook(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert code and outputs
    assert all(cell.execution_count for cell in code)
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "Ada Lovelace" in notebook.cells[0].source


def test_a_store_that_lost_its_description_is_still_a_sweep(secateur, swept, tmp_path):
    import shutil

    shutil.copytree(swept / "points", tmp_path / "moved" / "points")
    code, out, err = secateur("report", "moved")
    assert code == 0 and re.search(r"weights +50 % ", out), err


# --- a Run ----------------------------------------------------------------------------------------


def test_a_run_takes_every_form_too(secateur, ran, tmp_path):
    docx = pytest.importorskip("docx", reason="install the extra 'report' (python-docx)")
    nbformat = pytest.importorskip("nbformat", reason="install the extra 'report' (nbformat)")
    names = ("t.csv", "t.json", "t.md", "p.html", "d.docx", "n.ipynb")
    forms = ("csv", "json", "markdown", "html", "docx", "notebook")
    words = [word for form, name in zip(forms, names, strict=True) for word in (f"--{form}", name)]
    code, out, err = secateur("report", ran, *words, *HEADER)
    assert code == 0, err
    assert all(f"wrote {name}" in out for name in names)
    record = json.loads((ran / "run.json").read_text())
    accuracies = {row["row"]: row["accuracy"] for row in record["rows"]}
    rows = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text())))
    assert {row["row"]: float(row["accuracy"]) for row in rows} == accuracies
    assert json.loads((tmp_path / "t.json").read_text())
    for name in accuracies:
        assert name in (tmp_path / "t.md").read_text() and name in (tmp_path / "p.html").read_text()
    check_word(docx.Document(tmp_path / "d.docx"))
    check_notebook(nbformat.read(tmp_path / "n.ipynb", as_version=4))


# --- what is wrong, in one line -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("SWEPT", "--header", "Name=Ada"), "--header received alone.*--docx"),
        (("SWEPT", "--docx", "d.docx", "--header", "Ada"), "header line 'Ada' received.*NAME=TEXT"),
        (("SWEPT", "--handin", "ada.docx"), "hand-in 'ada.docx' received, expected a .zip"),
        (("SWEPT", "--csv", "no/such/t.csv"), "no/such/t.csv cannot be written"),
        (("nowhere",), "nowhere"),
        (("empty",), "empty holds no run.json"),
        (("hollow",), "hollow holds no points"),
        (("broken",), "record.json cannot be read"),
        (("newer",), "format version 99; expected a point of version 1"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_and_nothing_is_left(
    secateur, swept, tmp_path, words, told
):
    (tmp_path / "empty").mkdir()
    for name, text in (
        ("hollow", None),
        ("broken", "{"),
        ("newer", '{"kind": "point", "format_version": 99}'),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "sweep.json").write_text("{}")
        if text is not None:
            (folder / "points" / "a").mkdir(parents=True)
            (folder / "points" / "a" / "record.json").write_text(text)
    before = set(Path().rglob("*"))
    code, _, err = secateur("report", *[swept if word == "SWEPT" else word for word in words])
    assert code == 1 and re.search(told, err), err
    assert err.startswith("error: ") and err.strip().count("\n") == 0
    assert set(Path().rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        ("report", "ran", "--json", "ran/run.json"),
        ("report", "ran", "--csv", "ran/recipe.toml"),
        ("report", "ran", "--markdown", "ran/pruned-keras.keras"),
        ("report", "swept", "--html", "swept/sweep.json"),
        ("report", "swept", "--docx", "swept/points/a.docx"),
        ("report", "swept", "--notebook", "out.ipynb", "--handin", "out.ipynb"),
        ("choose", "ran", "--json", "ran/run.json"),
        ("choose", "swept", "--figure", "swept/index.json"),
    ],
)
def test_no_output_goes_onto_a_record(words, secateur, swept, ran):
    def contents():
        files = [file for folder in (swept, ran) for file in folder.rglob("*") if file.is_file()]
        return {file: file.read_bytes() for file in files}

    before = contents()
    folders = {"ran": str(ran), "swept": str(swept)}
    parts = [word.partition("/") for word in words]
    code, _, err = secateur(
        *(folders.get(head, head) + slash + rest for head, slash, rest in parts)
    )
    assert code == 1 and len(err.strip().splitlines()) == 1, err
    assert "would overwrite" in err or "is the file of" in err
    assert contents() == before


def test_a_report_in_python_does_not_go_onto_a_record_either(ran):
    from secateur.errors import SecateurError
    from secateur.pipeline import Run

    run = Run(ran, json.loads((ran / "run.json").read_text()))
    with pytest.raises(SecateurError, match="would overwrite a record"):
        run.report(ran / "run.json")
