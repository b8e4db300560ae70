"""The page as text: complete, escaped, self-contained."""

import html.parser
import re
import sys

import pytest
from tests.reporting.records_example import example_run, example_runs

from secateur.errors import SecateurError
from secateur.reporting import html_available, write_html

pytest.importorskip("jinja2", reason="install the extra 'report' (Jinja2)")

EVIL = "<script>alert(1)</script>"
VOID = {"meta", "link", "input", "br", "hr", "img"}


class Outline(html.parser.HTMLParser):
    """Checks that tags nest, and collects what tests ask for."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:], self.getpos())
        self.open.pop()

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data)


def page(runs, tmp_path):
    return write_html(runs, tmp_path / "page.html").read_text(encoding="utf-8")


def outline(text):
    found = Outline()
    found.feed(text)
    found.close()
    assert not found.open
    return found


def visible(text):
    return re.sub(r"\s+", " ", " ".join(outline(text).text)).replace("\N{MINUS SIGN}", "-")


@pytest.mark.parametrize("seeds", [1, 3])
def test_it_opens_on_the_sentence_and_holds_every_section(tmp_path, seeds):
    text = page(example_runs(seeds), tmp_path)
    found = outline(text)
    headings = [tag for tag, _ in found.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1
    ids = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    sections = "result table layers weights training plan files data reading repeat".split()
    assert set(sections) <= set(ids)
    links = {attrs["href"][1:] for tag, attrs in found.tags if tag == "a"}
    assert links <= set(ids)
    for said in (
        "9.5 times smaller",
        "role bias is not selected",
        "16,224 of 20,280",
        "dense control",
    ):
        assert said in visible(text)
    assert ("to +0.77" in visible(text)) == (seeds == 3)


def test_it_asks_for_nothing_from_outside(tmp_path):
    text = page(example_runs(1), tmp_path)
    for tag, attrs in outline(text).tags:
        assert not {"src", "srcset", "action", "onclick", "onload"} & attrs.keys(), tag
        assert attrs.get("href", "#").startswith(("#", "data:")), (tag, attrs)
    assert "@import" not in text
    assert "url(" not in text
    assert "default-src 'none'" in text


def test_strings_from_models_and_recipes_are_text(tmp_path):
    runs = example_runs(2)
    for run in runs:
        run["name"] = run["recipe_toml"] = run["command"] = run["backend"] = EVIL
        run["notes"] = [EVIL]
        run["data"] |= {"name": EVIL, "notes": [EVIL], "dtype": EVIL}
        run["machine"]["cpu"] = run["model"]["name"] = run["versions"][EVIL] = EVIL
        for entry in run["plan"]:
            entry |= {"path": EVIL, "reason": EVIL, "how": EVIL, "step": EVIL}
        for stage in run["stages"]:
            stage["history"][f"val_{EVIL}"] = [1.0]
            for weight in stage["weights"]:
                weight["path"] = EVIL
        for row in run["rows"]:
            row |= {"runtime": EVIL, "row": f"{row['row']}{EVIL}"}
        run["stages"][1]["name"] = f"pruned{EVIL}"
    text = page(runs, tmp_path)
    assert EVIL not in text
    scripts = [attrs for tag, attrs in outline(text).tags if tag == "script"]
    assert len(scripts) == 1
    assert visible(text).count(EVIL) > 20


def test_tables_name_their_columns_and_drawings_say_what_they_show(tmp_path):
    found = outline(page(example_runs(3), tmp_path))
    for tag, attrs in found.tags:
        if tag == "th":
            assert attrs.get("scope") in {"col", "row", "colgroup"}
        if tag == "svg" and attrs.get("role") == "img":
            assert attrs["aria-label"].strip()
    drawings = [attrs for tag, attrs in found.tags if tag == "svg" and attrs.get("role") == "img"]
    assert len(drawings) > 20


def test_no_drawing_holds_a_number_that_is_none(tmp_path):
    runs = example_runs(3)
    for run in runs:
        run["stages"][0]["history"]["loss"] = [None]
        run["stages"][1]["history"]["val_loss"] = [float("nan"), 0.2]
        run["stages"][1]["weights"][0]["first"][3] = float("nan")
        run["stages"][1]["weights"][2]["histogram"]["counts"][2] = None
    text = page(runs, tmp_path)
    assert not re.search(r"[\"> (](nan|inf|None|Undefined)\b", text)


def emptied(run):
    """A record with only what load_runs asks for."""
    keep = ("format_version", "kind", "name", "complete", "seed", "recipe", "rows")
    rows = [{key: row[key] for key in ("row", "stage", "format")} for row in run["rows"]]
    stages = [{"name": stage["name"]} for stage in run["stages"]]
    return {key: run[key] for key in keep} | {"rows": rows, "stages": stages}


def test_a_bare_record_still_makes_a_page(tmp_path):
    text = page([emptied(example_run())], tmp_path)
    assert "no file to report" in visible(text)
    run = emptied(example_run())
    run["rows"] = run["stages"] = []
    outline(page([run], tmp_path))


def test_without_labels_without_control_without_data(tmp_path):
    run = example_run()
    run["rows"] = [row | {"accuracy": None, "n": None} for row in run["rows"][:-1]]
    run["stages"] = run["stages"][:2]
    run["data"] = None
    said = visible(page([run], tmp_path))
    assert "accuracy was not measured" in said
    assert "This report has none" in said
    assert "How sure" not in said
    assert "points" not in said


def test_the_recipe_and_the_command_are_left_as_they_are(tmp_path):
    run = example_run()
    run["command"] = "secateur run lab --scale -1 --out 'a b'"
    run["recipe_toml"] = 'x = -1\ny = "50 % of 8 B"\n'
    found = outline(page([run], tmp_path))
    assert run["command"] in found.text
    assert run["recipe_toml"] in found.text


def test_jinja2_missing_is_one_line_with_the_fix(tmp_path, monkeypatch):
    assert html_available()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert not html_available()
    with pytest.raises(SecateurError, match=r"pip install 'secateur\[report\]'"):
        write_html(example_runs(1), tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_the_same_record_makes_the_same_page(tmp_path):
    assert page(example_runs(3), tmp_path) == page(example_runs(3), tmp_path)


def test_a_zero_that_nobody_made_is_not_shown_as_pruned(tmp_path):
    run = example_run()
    bias = run["stages"][1]["weights"][1]
    bias |= {"zeros": 1, "sparsity": 1 / 12}
    found = outline(page([run], tmp_path))
    assert "".join(found.text).count("first 16, before") == 2
    layers = [
        a["class"] for t, a in found.tags if t == "div" and "layer" in a.get("class", "").split()
    ]
    assert layers == ["layer", "layer quiet", "layer", "layer quiet"]


def test_latency_says_who_chose_the_threads(tmp_path):
    run = example_run()
    for row in run["rows"]:
        row["latency"] = dict(run["rows"][1]["latency"], threads=None)
    said = visible(page([run], tmp_path))
    assert "batch 1, threads chosen by the backend, 300 runs" in said
