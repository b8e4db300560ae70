"""The README's code is executed, its recipe loads, and its commands exist."""

import os
import shlex

import pytest
from tests.documents import blocks, execute, page

from secateur.recipe import Recipe

README = page("README.md")


@pytest.mark.skipif(
    os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow", reason="shown on TensorFlow"
)
def test_the_python_code_runs_as_it_stands(tmp_path):
    assert "\n".join(blocks(README, "python")).count("sc.") > 10
    printed = [text for _, text in execute("README.md", tmp_path)]
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "pruned.keras").exists()
    assert "points" in printed[0]
    assert (tmp_path / "sweep.html").exists()
    rows = [line.split() for line in printed[-1].splitlines()]
    assert [(row[0], row[1]) for row in rows[:2]] == [("dense", "0.0"), ("one-shot", "0.5")]
    assert len(rows) == 8 and all(0 < float(row[-1]) <= 1 for row in rows)


def test_the_recipe_loads():
    (text,) = blocks(README, "toml")
    assert Recipe.from_toml(text).stage_names() == ("pruned",)


def test_every_command_shown_exists_with_its_options():
    import typer
    from typer.main import get_command

    from secateur.cli import app

    commands = get_command(app)
    shown = [
        line
        for block in blocks(README, "")
        for line in block.splitlines()
        if line.startswith("secateur ")
    ]
    assert len(shown) >= 7
    for line in shown:
        words = shlex.split(line, comments=True)
        command = commands.get_command(typer.Context(commands), words[1])
        assert command is not None, line
        known = {option for parameter in command.params for option in parameter.opts}
        assert {w for w in words if w.startswith("--")} <= known, line
