"""The table in the terminal and in files."""

import csv
import io
import json

import pytest
from rich.console import Console
from tests.reporting.records_example import example_run, example_runs

from secateur.errors import SecateurError
from secateur.reporting import rich_table, rows, write_csv, write_html, write_json, write_markdown


def printed(runs, width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(rich_table(runs))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_narrow_terminal_shows_whole_figures():
    text = printed(example_runs(3), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    for figure in ("pruned-dynamic", "24,472", "8,130", "9.5x", "96.50 %", "+0.45", "80.2 %"):
        assert figure in text
    assert "of the same kind, baseline-h5, baseline-float32" in " ".join(text.split())


def test_a_wide_terminal_shows_the_range_and_the_percentage():
    text = printed(example_runs(3), 180)
    assert "96.07..96.91 %" in text
    assert "28.8 %" in text
    assert ".." not in printed(example_runs(1), 180)


def test_markup_in_a_name_is_shown_not_obeyed():
    run = example_run()
    run["name"] = "[red]x[/red]"
    run["rows"][0]["row"] = "[bold]row[/bold]"
    text = printed([run], 180)
    assert "[red]x[/red]" in text
    assert "[bold]row[/bold]" in text


def test_columns_without_figures_are_left_out():
    run = example_run()
    for row in run["rows"]:
        row.update(accuracy=None, latency=None)
    text = printed([run], 180)
    assert "accuracy" not in text
    assert "latency" not in text


def test_csv_holds_the_unrounded_rows(tmp_path):
    path = write_csv(example_runs(3), tmp_path / "t.csv")
    with path.open(newline="", encoding="utf-8") as stream:
        table = {row["row"]: row for row in csv.DictReader(stream)}
    expected = {row["row"]: row for row in rows(example_runs(3))}
    assert table.keys() == expected.keys()
    small = table["pruned-dynamic"]
    assert float(small["accuracy"]) == expected["pruned-dynamic"]["accuracy"]
    assert small["latency_us"] == "13.4"
    assert small["mse"] == ""


def test_json_holds_the_sentence_and_strict_numbers(tmp_path):
    run = example_run()
    run["rows"][0]["loss"] = float("nan")
    path = write_json([run], tmp_path / "t.json")
    report = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert report["headline"].startswith("9.5 times smaller")
    assert report["rows"] == rows([run])
    assert report["seeds"] == [0]
    assert report["versions"]["keras"] == "3.15.1"


def test_markdown_is_one_table_whatever_the_names(tmp_path):
    runs = example_runs(3)
    for run in runs:
        run["rows"][0]["row"] = "a|b<script>\n`c`"
    text = write_markdown(runs, tmp_path / "t.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    unescaped = [line.replace("\\|", "").count("|") for line in lines]
    assert len(lines) == 2 + len(rows(runs))
    assert len(set(unescaped)) == 1
    assert "<script>" not in text
    assert "secateur run lab" in text


@pytest.mark.parametrize("write", [write_csv, write_json, write_markdown, write_html])
def test_what_cannot_be_written_says_so_and_leaves_nothing(tmp_path, write):
    with pytest.raises(SecateurError, match=r"cannot be written \(No such file or directory\)"):
        write(example_runs(1), tmp_path / "missing" / "file")
    folder = tmp_path / "taken"
    folder.mkdir()
    with pytest.raises(SecateurError, match="cannot be written"):
        write(example_runs(1), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
