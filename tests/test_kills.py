"""Killed at random moments, again and again: resumed or absent, never half, the same tables."""

import json
import os

import pytest
from tests.killing import GRID, Command, contents, kill_at_random, require_whole

RECIPE = """
name = "small"
model = "lenet-300-100"
data = "digits"
control = false
[train]
epochs = 1
[[steps]]
method = "prune"
sparsity = 0.5
train = { epochs = 1 }
[export]
formats = ["h5", "float32", "dynamic"]
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ["KERAS_BACKEND"] != "tensorflow", reason="processes on files: no backend's own"
    ),
]


def check(out, whole):
    require_whole(out)
    expected = contents(whole)
    for path in out.glob("*"):
        if path.suffix in (".h5", ".tflite") and not path.name.startswith("."):
            assert path.read_bytes() == expected[path.name], f"{path.name} is half a file"


def same(out, whole):
    found, expected = (contents(folder) for folder in (out, whole))
    for pages in (found, expected):
        pages.pop("report.html", None)  # with times
    assert found == expected


def test_a_run(tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    words = ["run", "recipe.toml", "--limit", 400, "--out", "OUT"]
    kill_at_random(tmp_path, words, seed=0, check=check, same=same)


def test_a_sweep_of_two_workers(tmp_path):
    def table(out):
        return {n: record for n, record in contents(out).items() if n.endswith("record.json")}

    def still(out, whole):
        require_whole(out)
        files = out.glob("points/*/record.json")
        kept = {path: json.loads(path.read_text())["created"] for path in files}
        assert finished.get(out, {}).items() <= kept.items(), "a finished point was computed again"
        finished[out] = kept

    def equal(out, whole):
        assert table(out) == table(whole) and len(table(out)) == 7
        assert {r["status"] for n, r in table(out).items() if n.startswith("points")} == {"done"}
        assert not [path for path in out.rglob(".*")], "a killed process left half a file"

    finished = {}
    (tmp_path / "grid.toml").write_text(GRID)
    words = ["sweep", "grid.toml", "--limit", 400, "--workers", 2, "--out", "OUT"]
    kill_at_random(tmp_path, words, seed=1, check=still, same=equal)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ran")
    (folder / "recipe.toml").write_text(RECIPE)
    with Command(folder, ["run", "recipe.toml", "--limit", 400, "--out", "out"]) as command:
        assert command.ends(600)
    return folder / "out"


def test_an_export(ran, tmp_path):
    words = [
        "export",
        ran / "pruned-h5.h5",
        "--formats",
        "h5,float32,dynamic,float16",
        "--out",
        "OUT",
    ]
    kill_at_random(tmp_path, words, seed=2, check=check, same=same)


def test_a_report(ran, tmp_path):
    names = ("page.html", "t.csv", "t.md", "t.json", "t.docx")

    def prepare(out):
        out.mkdir()
        for name in names:
            (out / name).write_text('"an older one"')

    def old_or_new(out, whole):
        for name in names:
            data = (out / name).read_bytes()
            assert data in (b'"an older one"', (whole / name).read_bytes()), name

    def new(out, whole):
        for name in names:
            assert (out / name).read_bytes() == (whole / name).read_bytes(), name

    options = ("--html", "--csv", "--markdown", "--json", "--docx")
    paths = (f"OUT/{name}" for name in names)
    words = ["report", ran, *(word for pair in zip(options, paths, strict=True) for word in pair)]
    before = contents(ran)
    kill_at_random(tmp_path, words, seed=3, check=old_or_new, same=new, prepare=prepare)
    assert contents(ran) == before


def test_two_runs_at_once_in_one_folder(tmp_path):
    """Not killed, but of the same kind: one Run is whole, the other one says why it is not."""
    (tmp_path / "recipe.toml").write_text(RECIPE)
    words = ["run", "recipe.toml", "--limit", 400, "--out", "out", "--seed"]
    folders = [tmp_path / str(seed) for seed in (0, 1)]  # for the lines alone
    for folder in folders:
        folder.mkdir()
    words[1], words[5] = tmp_path / words[1], tmp_path / words[5]
    with Command(folders[0], [*words, 0]) as one, Command(folders[1], [*words, 1]) as other:
        codes = [command.process.wait(600) for command in (one, other)]
    assert sorted(codes) == [0, 1]
    lines = (folders[codes.index(1)] / "lines.txt").read_text().splitlines()
    said = [line for line in lines if line.startswith("error: ")]
    assert len(said) == 1 and ("in use by another run" in said[0] or "holds another" in said[0])
    require_whole(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert record["seed"] == manifest["seed"] == codes.index(0)
    assert record["fingerprint"] == manifest["fingerprint"]
    sizes = {entry["path"]: entry["bytes"] for entry in manifest["files"]}
    assert {row["path"]: row["bytes"] for row in record["rows"]} == sizes
