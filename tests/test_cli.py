"""The command line as a user meets it: what it shows, and one line for everything that is wrong."""

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from secateur import cli
from secateur.errors import SecateurError

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "160"}


def shell(*words, cwd, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "secateur", *map(str, words)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        **kwargs,
    )


RECIPE = """
[train]
epochs = 2
[[steps]]
method = "prune"
sparsity = 0.8
schedule = { end = 0.5, every = 5 }
[export]
formats = ["keras", "float32", "dynamic"]
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A user's own model, trained on raw 0..16 digits, with its data in Keras's layout."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("user")
    digits = load_digits()
    x, y = digits.images.astype("uint8"), digits.target
    np.savez(
        folder / "data.npz", x_train=x[:1400], y_train=y[:1400], x_test=x[1400:], y_test=y[1400:]
    )
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Rescaling(1 / 16),
            layers.Conv2D(8, 3, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(10, activation="softmax", name="head"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x[:1400, ..., None], y[:1400], epochs=12, verbose=0)
    model.save(folder / "model.keras")
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


def test_a_users_model_and_data_go_through_a_recipe_of_their_own(secateur, trained, tmp_path):
    code, out, err = secateur(
        "run", trained / "recipe.toml", "--model", trained / "model.keras",
        "--data", trained / "data.npz", "--out", "out",
    )  # fmt: skip
    assert code == 0, err
    assert "baseline accuracy" in err
    for row in ("baseline-float32", "pruned-dynamic", "control-keras"):
        assert row in out
    assert "wrote out/report.html" in out
    assert (tmp_path / "out" / "report.html").exists()

    code, out, _ = secateur(
        "report",
        "out",
        "--html",
        "p.html",
        "--csv",
        "t.csv",
        "--markdown",
        "t.md",
        "--json",
        "t.json",
    )
    assert code == 0
    assert all(
        (tmp_path / name).stat().st_size > 100 for name in ("p.html", "t.csv", "t.md", "t.json")
    )

    code, out, _ = secateur(
        "measure",
        "out/pruned-dynamic.tflite",
        "out/pruned-keras.keras",
        "--data",
        trained / "data.npz",
        "--json",
    )
    first, second = json.loads(out)
    assert first["n"] == second["n"] == 397
    assert abs(first["accuracy"] - second["accuracy"]) < 0.02
    assert first["bytes"] == (tmp_path / "out/pruned-dynamic.tflite").stat().st_size

    code, out, _ = secateur("inspect", "out/baseline-keras.keras", "out/pruned-keras.keras")
    assert code == 0
    assert "The parameter count is the same" in out


def test_what_the_reader_of_the_data_noted_is_said(secateur, trained, tmp_path):
    """Pixels left as they are, samples that were trained on: each was noted, and `measure` was silent."""
    held = np.load(trained / "data.npz")
    x, y = held["x_train"], held["y_train"]
    np.savez(tmp_path / "twice.npz", x_train=x, y_train=y, x_test=x[:50], y_test=y[:50])
    np.savez(tmp_path / "one.npz", x=x, y=y)
    model = trained / "model.keras"
    for words, file in ((("measure", model, "--json"), "twice.npz"),
                        (("export", model, "--formats", "keras"), "twice.npz"),
                        (("run", trained / "recipe.toml", "--model", model), "twice.npz")):  # fmt: skip
        code, _, err = secateur(*words, "--data", file)
        assert code == 0, err
        assert "twice.npz: x left in 0..255; scale=255 (--scale 255) divides it" in err
        assert "test: 50 of 50 samples stand in the training part too" in err
    _, _, err = secateur("measure", model, "--data", "one.npz")
    assert "a model trained on these arrays before has seen them" in err and "scale" in err
    assert "calibration:" not in err


def test_what_outputs_mean_is_asked_for_where_nothing_says_it(secateur, tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1, name="end")])
    model.layers[0].set_weights([np.full((4, 1), 0.1), np.zeros(1)])
    model.compile("sgd", "mse")
    model.save(tmp_path / "m.keras")
    x = np.random.default_rng(0).random((20, 4), dtype="float32")
    np.savez(tmp_path / "d.npz", x_test=x, y_test=np.ones(20, int))
    code, out, _ = secateur("measure", "m.keras", "--data", "d.npz")
    assert code == 0 and "no accuracy: nothing says whether" in " ".join(out.split())
    words = "m.keras", "--data", "d.npz", "--outputs"
    for command in (("measure", "--json"), ("export", "--formats", "float32")):
        code, out, err = secateur(command[0], *words, "logit", *command[1:])
        assert code == 1 and "expected logits or probabilities" in err
        code, out, err = secateur(command[0], *words, "logits", *command[1:])
        assert code == 0, err
    (entry,) = json.loads((tmp_path / "out" / "manifest.json").read_text())["files"]
    assert entry["outputs"] == {"end": "logits"}
    code, out, _ = secateur("measure", "out/m-float32.tflite", "--data", "d.npz", "--json")
    assert json.loads(out)[0]["accuracy"] == 1.0


def test_outputs_that_are_nan_are_an_error_and_never_json(secateur, tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="end")])
    model.layers[0].kernel.assign(np.full((4, 2), np.nan))
    model.save(tmp_path / "m.keras")
    np.savez(tmp_path / "d.npz", x_test=np.ones((5, 4), "float32"), y_test=np.zeros(5, int))
    code, out, err = secateur("measure", "m.keras", "--data", "d.npz", "--json")
    assert (code, out) == (1, "") and "weight end/kernel (4, 2)" in err
    code, out, err = secateur("measure", "m.keras", "m.keras", "--data", "d.npz", "--json")
    assert code == 1 and "NaN" not in out.replace("NaN or infinity", "")
    assert len(json.loads(out)) == 2


def test_inspect_shows_weights_and_what_a_recipe_would_do_without_data(secateur, trained):
    code, out, _ = secateur("inspect", trained / "model.keras", "--recipe", trained / "recipe.toml")
    assert code == 0
    assert "conv/kernel" in out
    assert "3x3x1x8" in out
    assert "80 % zeros, l1, unstructured" in out
    assert "skipped: role bias is not selected" in out


def test_export_needs_no_data(secateur, trained, tmp_path):
    code, out, err = secateur(
        "export", trained / "model.keras", "--formats", "float32,dynamic", "--out", "files"
    )
    assert code == 0, err
    assert "of 64 samples of random inputs" in " ".join(out.split())
    assert {p.name for p in (tmp_path / "files").iterdir()} == {
        "model-float32.tflite",
        "model-dynamic.tflite",
        "manifest.json",
    }


def test_export_takes_widths_of_single_layers(secateur, trained, tmp_path):
    arguments = ["export", trained / "model.keras", "--formats", "int4", "--out", "files"]
    code, out, err = secateur(*arguments, "--layer", "*=8", "--layer", "head=float")
    assert code == 0, err
    assert "left in float as selected: head/kernel" in " ".join(out.split())
    (file,) = json.loads((tmp_path / "files" / "manifest.json").read_text())["files"]
    bits = {path: record["bits"] for path, record in file["tensors"].items() if "kernel" in path}
    assert bits.pop("head/kernel") == 32 and set(bits.values()) == {8}
    for text, message in (
        ("head", "--layer 'head' received, expected LAYER=WIDTH"),
        ("haed=4", "'haed' matches no layer or weight; did you mean 'head'"),
        ("head=7", "bits 7 received"),
    ):
        code, _, err = secateur(*arguments, "--layer", text)
        assert code == 1 and message in " ".join(err.split()), err


def test_recipes_are_listed_explained_and_printed(secateur):
    code, out, _ = secateur("recipes")
    assert code == 0
    assert "lab" in out and "dense model with the same extra training" in " ".join(out.split())
    code, out, _ = secateur("recipes", "lab")
    assert 'method = "prune"' in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "lbb"], "did you mean 'lab'"),
        (["run", "demo", "--model", "none.keras"], "none.keras is not a file"),
        (["run", "demo", "--data", "none.npz"], "none.npz"),
        (["run", "demo", "--scale", "huge"], "--scale 'huge' received"),
        (["run", "demo", "--import", "no_such_module"], "no_such_module"),
        (["run", "demo", "--seeds", "0"], "--seeds 0 received"),
        (["measure", "none.tflite"], "none.tflite"),
        (["measure", "text.tflite"], "text.tflite"),
        (["inspect", "text.keras"], "text.keras"),
        (["inspect", "a.h5", "b.h5", "c.h5"], "3 files received"),
        (["report", "nowhere"], "nowhere"),
        (["export", "text.keras"], "text.keras"),
        (["recipes", "nothing"], "known: demo, lab"),
        (["run", "bad.toml", "--data", "digits", "--model", "lenet-300-100"], "did you mean 'sparsity'"),
        (["run", "demo", "--data", "nan.npz"], "NaN"),
        (["run", "demo", "--data", "labels.npz", "--model", "ten.keras"], "label 12"),
        (["run", "demo", "--data", "object.npz"], "object.npz"),
        (["run", "demo", "--out", "seeds"], "seeds holds the runs of several seeds"),
        (["run", "demo", "--seeds", "2", "--out", "single"], "single holds a run of its own"),
        (["export", "ten.keras", "--out", "single"], "single holds a run"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_with_an_exit_code(secateur, tmp_path, words, message):
    (tmp_path / "text.tflite").write_text("not a model")
    (tmp_path / "text.keras").write_text("not a model")
    (tmp_path / "bad.toml").write_text('[[steps]]\nmethod = "prune"\nsparcity = 0.5\n')
    x, y = np.zeros((60, 8, 8), np.float32), np.arange(60) % 10
    np.savez(tmp_path / "nan.npz", x=np.where(np.arange(60)[:, None, None] == 7, np.nan, x), y=y)
    np.savez(tmp_path / "labels.npz", x=x, y=np.where(y == 9, 12, y))
    np.savez(tmp_path / "object.npz", x=np.array([{}, []], dtype=object), y=y[:2])
    for folder in ("single", "seeds/seed-0"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "run.json").write_text("{}")
    keras.Sequential([keras.Input((8, 8)), layers.Flatten(), layers.Dense(10)]).save("ten.keras")
    code, _, err = secateur(*words)
    assert code == 1
    assert message in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / "out").exists()


def test_the_page_is_left_out_with_one_line_where_jinja2_is_missing(
    secateur, trained, tmp_path, monkeypatch
):
    from secateur import pipeline

    def find(name):
        return None if name == "jinja2" else real(name)

    real = cli.find_spec
    monkeypatch.setattr(cli, "find_spec", find)
    (tmp_path / "quick.toml").write_text(RECIPE.replace("epochs = 2", "epochs = 1"))
    words = ["run", "quick.toml", "--model", trained / "model.keras",
             "--data", trained / "data.npz", "--out", "out dir"]  # fmt: skip
    code, out, err = secateur(*words)
    assert code == 0, err
    assert "pip install 'secateur[report]'" in out
    assert not (tmp_path / "out dir" / "report.html").exists()
    record = json.loads((tmp_path / "out dir" / "run.json").read_text())
    assert shlex.split(record["command"]) == ["secateur", *map(str, words)]
    assert pipeline.Run(tmp_path / "out dir", record).model.name


@pytest.mark.parametrize(
    ("words", "carries_on"),
    [
        (["run", "demo"], "the same command carries on"),
        (["run", "demo", "--overwrite"], "the same command without --overwrite carries on"),
        (["recipes"], ""),
    ],
)
def test_ctrl_c_promises_only_what_is_true(words, carries_on, secateur, monkeypatch):
    monkeypatch.setattr(cli, "app", lambda *args, **kwargs: 130)  # Typer's word for it
    code, _, err = secateur(*words)
    assert code == 130
    assert "interrupted" in err
    assert carries_on in err
    assert ("carries on" in err) == bool(carries_on)


def test_a_model_at_chance_level_goes_on_when_told_to(secateur, trained, tmp_path):
    keras.Sequential([keras.Input((8, 8)), layers.Flatten(), layers.Dense(10)]).save("new.keras")
    (tmp_path / "quick.toml").write_text(
        RECIPE.replace("epochs = 2", "epochs = 1").replace(', "float32", "dynamic"', "")
    )
    words = ["run", "quick.toml", "--model", "new.keras", "--data", trained / "data.npz"]
    assert secateur(*words)[0] == 1
    assert not (tmp_path / "out").exists()
    code, _, err = secateur(*words, "--allow-chance")
    assert code == 0, err


def test_nan_weights_and_a_model_at_chance_level_stop_before_anything_is_written(
    secateur, tmp_path
):
    model = keras.Sequential([keras.Input((8, 8)), layers.Flatten(), layers.Dense(10)])
    model.save(tmp_path / "untrained.keras")
    code, _, err = secateur("run", "demo", "--model", "untrained.keras")
    assert code == 1
    assert "at chance level" in err and "--scale" in err
    assert not [p for p in (tmp_path / "out").glob("*") if p.name != ".stages"]
    kernel = np.array(model.get_weights()[0])
    kernel[0, 0] = np.nan
    model.layers[-1].set_weights([kernel, model.get_weights()[1]])
    model.save(tmp_path / "nan.keras")
    code, _, err = secateur("export", "nan.keras", "--out", "files")
    assert code == 1
    assert "NaN" in err
    assert not (tmp_path / "files").exists() or not list((tmp_path / "files").iterdir())


@pytest.mark.parametrize("words", [("--max-memory", "much"), ("--max-memory=much",)])
def test_limits_are_options_of_every_command(tmp_path, words):
    (tmp_path / "x.h5").write_bytes(b"x")
    result = shell("inspect", *words, "x.h5", cwd=tmp_path)
    assert result.returncode == 1
    assert "SECATEUR_MAX_MEMORY='much' received, expected a number of bytes as 8GB" in result.stderr


def test_debug_shows_the_traceback(secateur):
    with pytest.raises(SecateurError, match="did you mean 'lab'"):  # as Python prints it
        secateur("run", "lbb", "--debug")
    code, _, err = secateur("run", "lbb")
    assert code == 1 and "Traceback" not in err


LAYER = """
import keras

@keras.saving.register_keras_serializable("mine")
class Doubled(keras.layers.Layer):
    def call(self, x):
        return 2 * x
"""


def test_a_custom_layer_comes_by_import_also_into_the_conversion(secateur, tmp_path, monkeypatch):
    def forgotten():
        keras.saving.get_custom_objects().pop("mine>Doubled")
        del sys.modules["mylayers"]

    (tmp_path / "mylayers.py").write_text(LAYER)
    monkeypatch.syspath_prepend(tmp_path)
    doubled = importlib.import_module("mylayers").Doubled()
    net = [keras.Input((8, 8)), layers.Flatten(), doubled, layers.Dense(10)]
    keras.Sequential(net).save(tmp_path / "custom.keras")
    forgotten()
    code, _, err = secateur("export", "custom.keras")
    assert code == 1
    assert "--import" in err
    code, _, err = secateur("export", "custom.keras", "--import", "mylayers")
    forgotten()
    assert code == 0, err
    assert (tmp_path / "out" / "custom-dynamic.tflite").exists()


def test_code_in_a_file_is_not_run(secateur, tmp_path):
    model = keras.Sequential([keras.Input((3,)), layers.Lambda(lambda x: x), layers.Dense(1)])
    model.save(tmp_path / "lambda.keras")
    code, _, err = secateur("inspect", "lambda.keras")
    assert code == 1
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_the_same_command_carries_on(tmp_path):
    command = [sys.executable, "-m", "secateur", "run", "demo", "--out", "out"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    marker = tmp_path / "out" / ".stages" / "baseline.json"
    for _ in range(3000):
        if marker.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()  # where it did not end, it would go on behind the tests
    assert process.returncode == 130, err
    assert "carries on" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "run.json").exists()
    assert not [p for p in (tmp_path / "out").rglob("*") if "tmp" in p.name]
    done = shell("run", "demo", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "baseline: carried over" in done.stderr


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path):
    script = (
        "import resource, sys, secateur.cli as cli; from secateur import pipeline; "
        "import keras; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "sys.argv = ['secateur', 'run', 'demo', '--out', 'out']; cli.main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert "out" in result.stderr.strip().splitlines()[-1]
    assert not [
        p for p in (tmp_path / "out").rglob("*") if p.is_file() and p.stat().st_size >= 100_000
    ]
    assert not (tmp_path / "out" / "run.json").exists()


def test_measuring_a_tflite_from_the_command_line_imports_no_framework(secateur, trained, tmp_path):
    secateur("export", trained / "model.keras", "--formats", "float32", "--out", "files")
    script = (
        "import sys, contextlib, secateur.cli as cli; sys.argv = ['secateur', *sys.argv[1:]]\n"
        "with contextlib.suppress(SystemExit): cli.main()\n"
        "assert not {'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules), 'heavy'"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "measure", "files/model-float32.tflite", "--data", str(trained / "data.npz")],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "accuracy" in result.stdout
