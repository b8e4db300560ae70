"""The pages of docs/ are executed, print what they show, and type no number of their own."""

import json
import os
import re
import shutil
import statistics

import pytest
from tests.documents import ROOT, blocks, execute, page, snippets

PAGES = (
    "docs/concepts.md",
    "docs/exporting.md",
    "docs/extending.md",
    "docs/migrating-from-tfmot.md",
    "docs/sweeps.md",
)

pytestmark = pytest.mark.skipif(
    os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow", reason="shown on TensorFlow"
)


@pytest.mark.parametrize("name", PAGES)
def test_code_runs_and_prints_what_the_page_shows(name, tmp_path):
    """A snippet that prints must show it: no output is left for the reader to guess."""
    shutil.copytree(ROOT / "docs" / "figures", tmp_path / "docs" / "figures")
    count = 0
    for snippet, printed in execute(name, tmp_path):
        assert printed.rstrip() == (snippet.shown or "").rstrip(), f"{name}, line {snippet.line}"
        count += 1
    assert count >= 4


@pytest.mark.parametrize("name", PAGES)
def test_code_that_is_not_executed_is_the_old_toolkits(name):
    for block in blocks(page(name), "py"):
        assert "tfmot" in block


NUMBER = re.compile(r"(?<![\w.,:/-])\d[\d,]*(?:\.\d+)?(?![\w:]|\.\w)")


def value(number):
    return float(number.replace(",", ""))


def prose(section):
    """The text between code blocks, without links' targets and code in the line."""
    text = re.sub(r"^```.*?^```$", "", section, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`|\]\([^)]*\)", " ", text)


def test_every_number_of_the_concepts_is_printed_beside_it():
    """In the same section: a figure in the text that no snippet gives is a figure that can be wrong."""
    sections = re.split(r"^## ", page("docs/concepts.md"), flags=re.MULTILINE)[1:]
    assert len(sections) >= 5
    checked = 0
    for section in sections:
        shown = " ".join(s.shown or "" for s in snippets(section))
        printed = {value(number) for number in NUMBER.findall(shown)}
        for number in NUMBER.findall(prose(section)):
            title = section.splitlines()[0]
            assert value(number) in printed, f"{number} in section {title!r}"
            checked += 1
    assert checked >= 20


def test_the_figures_of_quantization_in_training_are_those_of_the_record():
    """Means over seeds of what docs/concepts.md prints without computing it."""
    shown = json.loads((ROOT / "docs" / "figures" / "quantization-aware.json").read_text())
    record = json.loads((ROOT / "benchmarks" / "records" / "qat-lab.json").read_text())
    rows = {
        "float, one epoch": ("qat", "baseline-float32"),
        "float, two epochs": ("qat", "control-keras"),
        "int8 after training, one epoch": ("qat", "baseline-int8"),
        "int8 in training, two epochs": ("qat", "quantized-int8"),
        "80 % zeros, then int8 in training, four epochs": ("prune, then qat", "quantized-int8"),
    }
    assert set(shown) == {"source", *rows}
    for name, (recipe, row) in rows.items():
        runs = [run for run in record["runs"] if run["recipe"] == recipe]
        found = [one for run in runs for one in run["rows"] if one["row"] == row]
        assert len(found) == 3
        means = {
            "accuracy": round(100 * statistics.fmean(one["accuracy"] for one in found), 2),
            "bytes": round(statistics.fmean(one["bytes"] for one in found)),
            "gzip": round(statistics.fmean(one["gzip_bytes"] for one in found)),
        }
        assert shown[name] == {key: means[key] for key in shown[name]}, name


@pytest.mark.parametrize("name", (*PAGES, "README.md", "CONTRIBUTING.md"))
def test_links_lead_somewhere(name):
    folder = (ROOT / name).parent
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page(name))
    assert targets
    missing = [t for t in targets if "://" not in t and not (folder / t).exists()]
    assert missing == []
