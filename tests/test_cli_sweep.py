"""`secateur sweep` and `secateur choose` as a user meets them, on small real sweeps."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from secateur import points
from secateur.sweeps import sweep

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "160"}
GRID = """
name = "small"
model = "lenet-300-100"
data = "digits"
[train]
epochs = 2
[export]
formats = ["keras"]
[[curves]]
name = "dense"
[[curves]]
name = "pruned"
steps = [{ method = "prune", sparsity = { sweep = [0.5, 0.8] }, train = { epochs = 0 } }]
[[curves]]
name = "units"
steps = [{ method = "prune", pattern = "units", sparsity = { sweep = [0.999] }, train = { epochs = 0 }, select = { output = false } }]
"""
DIVERGING = """
name = "diverging"
model = "lenet-300-100"
data = "digits"
files = "none"
[train]
epochs = 1
[[steps]]
method = "prune"
sparsity = 0.5
schedule = { shape = "one-shot" }
train = { epochs = 1, learning_rate = { sweep = [0.001, 1e30] } }
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The folder of a finished sweep, in `runs`, and of its grid."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "grid.toml").write_text(GRID)
    sweep(folder / "grid.toml", out=folder / "runs", load={"limit": 300})
    return folder


def test_a_sweep_shows_its_points_its_table_and_how_to_go_on(secateur, tmp_path):
    (tmp_path / "grid.toml").write_text(GRID)
    words = ("sweep", "grid.toml", "--limit", 300, "--out", "runs")
    code, out, err = secateur(*words, "--dry-run")
    assert code == 0 and "4 points, 0 finished, 4 to do" in out and not (tmp_path / "runs").exists()
    code, out, err = secateur(*words)
    assert code == 0
    shown = out + err
    assert re.search(r"dense, seed 0: \d+\.\d\d %", shown)
    assert re.search(r"units, sparsity=0.999, seed 0: impossible \(no weight of dense", shown)
    assert re.search(r"dense +\S+ +\S+ +1 +\d+\.\d\d %", out)
    assert re.search(r"pruned +50 % +50\.\d % +1 +\d", out)
    assert "impossible: units at 99.9 %, seed 0" in out
    assert "secateur report runs --html runs/report.html" in out and "--retry" not in out
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "runs").glob("points/*/record.json")}
    code, again, err = secateur(*words, "--seeds", 1)
    assert code == 0 and "4 of 4 points are finished already" in again + err
    assert {f: f.stat().st_mtime_ns for f in before} == before and len(before) == 4
    code, out, _ = secateur(*words, "--dry-run", "--seeds", 2)
    assert "8 points, 4 finished, 4 to do" in out and out.count("to do") == 5


def test_a_point_that_fails_is_recorded_and_retried_on_request_only(
    secateur, tmp_path, monkeypatch
):
    (tmp_path / "grid.toml").write_text(DIVERGING)
    words = ("sweep", "grid.toml", "--limit", 200, "--out", "runs")
    code, out, err = secateur(*words)
    assert code == 0
    assert "learning_rate=1e+30, seed 0: failed (the loss became NaN" in (out + err).replace(
        "\n", " "
    )
    assert "1 failed: the same command with --retry" in out
    records = {p: json.loads(p.read_text()) for p in tmp_path.glob("runs/points/*/record.json")}
    assert sorted(r["status"] for r in records.values()) == ["done", "failed"]
    assert all("\n" not in (r["error"] or "") for r in records.values())
    (failed,) = [p for p, r in records.items() if r["status"] == "failed"]
    calls, real = [], points.compute

    def counted(point, *arguments, **keys):
        calls.append(point.label)
        return real(point, *arguments, **keys)

    monkeypatch.setattr(points, "compute", counted)
    secateur(*words)
    assert calls == []
    stamp = failed.stat().st_mtime_ns
    secateur(*words, "--retry")
    assert calls == ["diverging, learning_rate=1e+30, seed 0"] and failed.stat().st_mtime_ns > stamp


def test_a_ctrl_c_that_a_framework_turned_into_an_error_ends_the_sweep(
    secateur, tmp_path, monkeypatch
):
    """TensorFlow's device scope complains when an interrupt lands in it; that is no failed point."""

    def interrupted(*arguments, **keys):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("Exiting device scope without proper scope nesting")  # noqa: B904

    monkeypatch.setattr(points, "compute", interrupted)
    (tmp_path / "grid.toml").write_text(DIVERGING)
    code, _, err = secateur("sweep", "grid.toml", "--limit", 200, "--out", "runs")
    assert code == 130 and "the same command carries on" in err
    assert not list(tmp_path.glob("runs/points/*/record.json"))


@pytest.mark.slow
def test_ctrl_c_leaves_a_state_that_resumes(tmp_path):
    (tmp_path / "grid.toml").write_text(GRID.replace("epochs = 2", "epochs = 20"))
    words = [
        sys.executable,
        "-m",
        "secateur",
        "sweep",
        "grid.toml",
        "--out",
        "runs",
        "--seeds",
        "3",
    ]
    keys = {"cwd": tmp_path, "env": ENVIRONMENT, "text": True}
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **keys)
    end = time.monotonic() + 120
    while not list(tmp_path.glob("runs/points/*/record.json")) and time.monotonic() < end:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    told, _ = running.communicate(timeout=60)
    finished = set(tmp_path.glob("runs/points/*/record.json"))
    assert running.returncode == 130, told
    assert "what was finished is kept, the same command carries on" in told
    assert 0 < len(finished) < 12
    done = subprocess.run(words, capture_output=True, check=True, **keys)
    assert f"{len(finished)} of 12 points are finished already" in done.stdout + done.stderr
    assert len(set(tmp_path.glob("runs/points/*/record.json"))) == 12


# --- choose ---------------------------------------------------------------------------------------


def test_choose_names_the_file_and_writes_figure_and_json(secateur, swept, tmp_path):
    folder = swept
    words = (
        "choose",
        folder / "runs",
        "--max-drop",
        20,
        "--json",
        "c.json",
        "--figure",
        "front.svg",
    )
    code, out, err = secateur(*words)
    assert code == 0, err
    choice = json.loads((tmp_path / "c.json").read_text())
    path = Path(choice["file"]["path"])
    assert path.is_file() and f"Ship {path}" in out
    record = json.loads((path.parent / "record.json").read_text())
    row = record["rows"][0]
    assert choice["test"]["accuracy"] == row["accuracy"]
    assert choice["file"]["accuracy"] == row["validation"]["accuracy"]
    assert row["validation"]["n"] == 30 and row["n"] == record["test"]["n"]
    assert (tmp_path / "front.svg").read_text().lstrip().startswith("<?xml")
    code, out, _ = secateur("choose", folder / "runs", "--max-bytes", "1kB", "--max-drop", 50)
    assert code == 1 and "No file holds --max-bytes 1,000 B" in out and "it would take" in out


@pytest.mark.slow
def test_choose_reads_a_run_and_several_seeds_of_one(secateur, tmp_path):
    (tmp_path / "recipe.toml").write_text("""
model = "lenet-300-100"
data = "digits"
[train]
epochs = 2
[[steps]]
method = "prune"
sparsity = 0.5
train = { epochs = 1 }
[export]
formats = ["keras", "h5"]
""")
    words = ("run", "recipe.toml", "--limit", 300, "--seeds", 2, "--out", "out")
    assert secateur(*words)[0] == 0
    code, out, err = secateur("choose", "out", "--max-drop", 30, "--format", "h5")
    assert code == 0, err
    assert re.search(r"Ship out/seed-\d/\w+-h5.h5 \((pruned|baseline), h5\)", out)
    assert "mean of 2 seeds" in out and "control" not in out
    code, out, err = secateur("choose", "out/seed-1", "--max-bytes", "1MiB")
    assert code == 0 and "Ship out/seed-1/" in out and "one seed" in out


@pytest.mark.skipif(os.environ["KERAS_BACKEND"] != "tensorflow", reason="conversion: one backend")
def test_the_ladder_climbs_a_model_never_seen_and_a_file_is_chosen_from_it(secateur, tmp_path):
    import keras
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 12)).astype("float32")
    y = (x[:, 0] + x[:, 1] > 0).astype("int64")
    np.savez(tmp_path / "my.npz", x_train=x[:300], y_train=y[:300], x_test=x[300:], y_test=y[300:])
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((12,)), keras.layers.Dense(24, "relu"), keras.layers.Dense(2)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    model.fit(x[:300], y[:300], epochs=8, verbose=0)
    model.save(tmp_path / "my.keras")
    text = (ROOT / "src/secateur/recipes/ladder.toml").read_text()
    assert "[0.5, 0.7, 0.8, 0.9, 0.95]" in text
    short = text.replace("[0.5, 0.7, 0.8, 0.9, 0.95]", "[0.5]").replace("epochs = 5", "epochs = 1")
    (tmp_path / "short.toml").write_text(short)
    code, out, err = secateur("sweep", "short.toml", "--model", "my.keras", "--data", "my.npz")
    assert code == 0, err
    files = {p.name for p in tmp_path.glob("runs/points/*/*.tflite")}
    assert files == {
        f"{s}-{f}.tflite" for s in ("baseline", "pruned") for f in ("float32", "dynamic", "int8")
    }
    records = [json.loads(p.read_text()) for p in tmp_path.glob("runs/points/*/record.json")]
    assert {r["epochs"]["dense"] for r in records} == {0}  # it was given: it is taken as trained
    code, out, err = secateur("choose", "runs", "--max-drop", 10, "--max-bytes", "10kB")
    assert code == 0 and "Test accuracy of this file" in out


# --- what is wrong, in one line -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("sweep", "lab"), "'lab' is one recipe.*secateur run lab"),
        (("sweep", "laddr"), "did you mean 'ladder'"),
        (("run", "ladder"), "is a grid of several recipes.*secateur sweep ladder"),
        (("run", "grid.toml"), "secateur sweep grid.toml"),
        (("sweep", "grid.toml", "--seeds", 0), "--seeds 0 received"),
        (("sweep", "grid.toml", "--workers", 0), "0 workers received"),
        (("sweep", "grid.toml", "--data", "nothing.npz"), "nothing.npz"),
        (("sweep", "grid.toml", "--model", "nothing.keras"), "nothing.keras"),
        (
            ("sweep", "swept.toml", "--data", "digits"),
            "--data digits received, and two sweeps `data`",
        ),
        (("sweep", "grid.toml", "--out", "run"), "holds a run"),
        (("sweep", "grid.toml", "--out", "newer"), "store of version 99"),
        (("choose", "nowhere"), "does not exist"),
        (("choose", "empty"), "holds no run.json"),
        (("choose", "empty", "--max-bytes", "lots"), "max_bytes 'lots' received"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_before_any_work(secateur, tmp_path, words, told):
    (tmp_path / "grid.toml").write_text(GRID)
    two = 'name = "two"\ndata = { sweep = ["digits", "mnist"] }\nmodel = "lenet-300-100"\n'
    (tmp_path / "swept.toml").write_text(two)
    for name, file, text in (
        ("run", "run.json", "{}"),
        ("newer", "sweep.json", '{"format_version": 99}'),
        ("empty", "notes.txt", ""),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
    code, out, err = secateur(*words)
    assert code == 1 and re.search(told, err), (out, err)
    assert err.strip().count("\n") == 0 and err.strip().startswith("error: ")
    assert not list(tmp_path.glob("**/points"))


def test_recipes_lists_grids_and_prints_one(secateur):
    code, out, _ = secateur("recipes")
    assert code == 0
    for name in ("lab", "ladder (grid)", "challenge (grid)"):
        assert f"\n{name}  " in f"\n{out}"
    assert secateur("recipes", "ladder")[1].startswith("# A ladder for a model never seen before")
    assert (
        "known: demo, lab, lab-pruned-qat, lab-qat, challenge, ladder"
        in secateur("recipes", "nothing")[2]
    )
