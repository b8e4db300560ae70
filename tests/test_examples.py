"""Each script and notebook of examples/ runs at a tiny size, and its tables say what the files say."""

import json
import os
import re
import runpy
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from tests.documents import ROOT

from secateur.arrays.masks import zeros_count
from secateur.artifact import gzip_bytes
from secateur.inspection import inspect

EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.skipif(
    os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow", reason="shown on TensorFlow"
)


def run_here(name, *arguments, monkeypatch, capsys):
    """The script in this process, which has loaded its framework already; what it printed."""
    import keras

    keras.utils.clear_session()
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def run_alone(name, *arguments):
    """The script in a process of its own; what it printed."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def numbers(text):
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\.?\d*", text)]


def table(printed, names):
    """First word of a line -> the numbers after it."""
    rows = {}
    for line in printed.splitlines():
        first, _, rest = line.partition(" ")
        if re.fullmatch(names, first):
            rows[first] = numbers(rest)
    return rows


@pytest.fixture
def photos(tmp_path):
    """Two classes of small images that differ in brightness."""
    pillow = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 10)):
        for label, name in enumerate(("dark", "light")):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 100, (32, 32, 3)) + 120 * label
                pillow.fromarray(pixels.astype("uint8")).save(folder / f"{number}.png")
    return tmp_path / "photos"


def check_files(rows, out):
    """Bytes and gzip of each row are those of the file that bears its name."""
    for name, (size, gzipped, *_) in rows.items():
        data = (out / name).read_bytes()
        assert (size, gzipped) == (len(data), gzip_bytes(data)), name


def test_lab(tmp_path, monkeypatch, capsys):
    options = ("--data", "digits", "--limit", 200, "--epochs", 1, "--out", tmp_path)
    printed = run_here("lab.py", *options, monkeypatch=monkeypatch, capsys=capsys)
    rows = table(printed, r"\w+-\w+\.(h5|tflite)")
    assert len(rows) == 9
    check_files(rows, tmp_path)
    assert {parameters for *_, parameters, _ in rows.values()} == {1210}
    left = 1210 - zeros_count(108, 0.8) - zeros_count(1080, 0.8)
    for file in ("pruned-h5.h5", "pruned-float32.tflite"):
        assert rows[file][-1] == left
    assert rows["baseline-h5.h5"][-1] == rows["control-h5.h5"][-1] == 1210
    assert rows["baseline-h5.h5"][0] == rows["pruned-h5.h5"][0]  # the raw file does not shrink
    assert f"total 1,210, trainable 1,210, non-zero {left}." in printed
    large, small = rows["baseline-float32.tflite"], rows["pruned-dynamic.tflite"]
    assert f"{large[1] / small[1]:.1f} times smaller" in printed
    cost = rows["control-h5.h5"][2] - rows["pruned-h5.h5"][2]
    assert f"pruning cost {cost:.2f} points" in printed
    before, after = (numbers(line) for line in printed.splitlines() if "first weights" in line)
    assert 0 not in before[:1] and after.count(0) > before.count(0)


@pytest.mark.slow
def test_article(tmp_path, monkeypatch, capsys):
    options = ("--data", "digits", "--limit", 200, "--epochs", 1, "--out", tmp_path)
    printed = run_here("article.py", *options, monkeypatch=monkeypatch, capsys=capsys)
    assert "baseline: 1,210 parameters, 1,210 of them not zero" in printed
    assert "pruned: 1,210 parameters, 260 of them not zero" in printed
    assert re.search(r"conv2d/kernel +86 of +108 zero", printed)
    assert re.search(r"dense/kernel +864 of +1,080 zero", printed)
    rows = table(printed, r"(baseline|pruned|control)-\w+")
    assert len(rows) == 9
    files = {path.stem: path for path in tmp_path.glob("*-*.*")}
    check_files({files[name].name: row for name, row in rows.items()}, tmp_path)
    assert all(row[3] > 0 and row[4] > 0 for row in rows.values())  # load and latency were measured
    dense, both = rows["baseline-float32"], rows["pruned-dynamic"]
    assert f"{dense[1] / both[1]:.1f} times gzipped, {dense[0] / both[0]:.1f} times raw" in printed
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_transfer_mobilenet(photos, tmp_path):
    options = ("--weights", "none", "--image-size", 32, "--epochs", 1, "--out", tmp_path)
    printed = run_alone("transfer_mobilenet.py", photos, *options)
    rows = table(printed, r"\w+-\w+\.(h5|tflite)")
    assert len(rows) == 9
    check_files(rows, tmp_path)
    found = inspect(tmp_path / "pruned-h5.h5")
    assert rows["pruned-h5.h5"][-2:] == [found.parameters, found.nonzero]
    assert rows["pruned-h5.h5"][-2] == rows["baseline-h5.h5"][-2] == rows["control-h5.h5"][-2]
    kernels = [weight for weight in found.weights if weight["role"] == "kernel"]
    depthwise = [weight for weight in kernels if "conv_dw_" in weight["path"]]
    assert len(depthwise) == 13
    for weight in kernels:
        share = 0.0 if weight in depthwise else 0.4
        assert weight["zeros"] == zeros_count(weight["size"], share), weight["path"]
    assert re.search(r"27 BatchNorm layers: accuracy [\d.]+% before, [\d.]+% after", printed)


@pytest.mark.slow
def test_transfer_vgg16(photos, tmp_path):
    options = ("--weights", "none", "--image-size", 32, "--epochs", 1, "--out", tmp_path)
    printed = run_alone("transfer_vgg16.py", photos, *options)
    head = 512 * 512 + 512 + 512 * 2 + 2
    rows = table(printed, r"given|pruned")
    assert rows["given"][:2] == rows["pruned"][:2] == [14_714_688 + head, head]
    found = inspect(tmp_path / "pruned-keras.keras")
    assert rows["pruned"][2] == found.nonzero
    for weight in found.weights:
        if weight["path"] in ("dense/kernel", "dense_1/kernel"):
            assert weight["zeros"] == zeros_count(weight["size"], 0.75)
        elif weight["role"] == "kernel":
            assert weight["zeros"] < 5  # a random initial value may be 0
    assert "left alone: 13 frozen kernels" in printed
    files = {path.stem: path for path in tmp_path.glob("*-*.*")}
    sizes = table(printed, r"(baseline|pruned|control)-\w+")
    assert len(sizes) == 7
    for name, (megabytes, mebibytes, *_) in sizes.items():
        size = files[name].stat().st_size
        assert megabytes == pytest.approx(size / 1e6, abs=0.01)
        assert mebibytes == pytest.approx(size / 2**20, abs=0.01)


# --- the notebook of the pruning challenge ---------------------------------------------------------

EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient

found = nbformat.read(sys.argv[1], as_version=4)
try:
    NotebookClient(found, timeout=600, kernel_name="python3").execute()
finally:
    nbformat.write(found, "executed.ipynb")
"""


def test_the_challenge_is_committed_without_outputs():
    """Figures belong to a run; those of a full one stand in docs/results.md."""
    cells = json.loads((EXAMPLES / "challenge.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 10
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_the_challenge_is_told_from_grid_to_hand_in(tmp_path):
    pytest.importorskip("nbclient", reason="install the extra 'report' (nbclient)")
    pytest.importorskip("docx", reason="install the extra 'report' (python-docx)")
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, EXAMPLES / "challenge.ipynb"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "SECATEUR_EXAMPLE": "small"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cells = json.loads((tmp_path / "executed.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    printed = "".join(
        "".join(output["text"]) for output in outputs if output.get("name") == "stdout"
    )
    records = [
        json.loads(path.read_text())
        for path in tmp_path.glob("challenge-runs/points/*/record.json")
    ]
    assert {record["status"] for record in records} == {"done"}
    assert f"{len(records)} points: dense, weights, one-shot" in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    # The notebook's own arithmetic, held against the records.
    points = {(r["curve"], r["sparsity"]["asked"], r["seed"]): r for r in records}
    gaps = [
        100
        * (
            points["weights, one-shot", 0.9, seed]["test"]["accuracy"]
            - points["units, one-shot", 0.9, seed]["test"]["accuracy"]
        )
        for seed in (0, 1)
    ]
    table = printed.partition("weights against units, nothing trained after\n")[2].splitlines()
    assert numbers(table[1])[0] == 90
    assert float(table[1].split()[1]) == pytest.approx(np.mean(gaps), abs=0.006)
    totals = {
        r["epochs"]["total"] for r in records if r["curve"].endswith(("10 epochs after", "scratch"))
    }
    assert totals == {5} and "epochs in all: 5 and 5" in printed
    shipped = re.search(r"Ship (\S+) \(", printed)
    assert shipped and (tmp_path / shipped[1]).is_file()
    assert "The test part was read after the choice" in printed
    with zipfile.ZipFile(tmp_path / "firstname_collegename.zip") as archive:
        names = [f"firstname_collegename.{suffix}" for suffix in ("docx", "ipynb")]
        assert archive.namelist() == names
    assert "<svg" in (tmp_path / "challenge.html").read_text()
