"""The README's code is executed, its recipe loads, and its commands exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from secateur.recipe import Recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.skipif(
    os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow", reason="shown on TensorFlow"
)
def test_the_python_code_runs_as_it_stands(tmp_path):
    code = "\n".join(blocks("python"))
    assert code.count("sc.") > 10
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "pruned.keras").exists()
    assert "points" in result.stdout


def test_the_recipe_loads():
    (text,) = blocks("toml")
    assert Recipe.from_toml(text).stage_names() == ("pruned",)


def test_every_command_shown_exists_with_its_options():
    import typer
    from typer.main import get_command

    from secateur.cli import app

    commands = get_command(app)
    shown = [
        line for block in blocks("") for line in block.splitlines() if line.startswith("secateur ")
    ]
    assert len(shown) >= 7
    for line in shown:
        words = shlex.split(line, comments=True)
        command = commands.get_command(typer.Context(commands), words[1])
        assert command is not None, line
        known = {option for parameter in command.params for option in parameter.opts}
        assert {w for w in words if w.startswith("--")} <= known, line
