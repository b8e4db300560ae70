"""Whole Runs on real data: what is written, what is carried on, what is refused."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from secateur import pipeline, preflight, zoo
from secateur.arrays.schedules import Schedule
from secateur.datasets import load
from secateur.errors import SecateurError
from secateur.methods.prune import Prune
from secateur.outputs import compiled_loss
from secateur.recipe import Export, Recipe
from secateur.training import Train

ROOT = Path(__file__).parent.parent
SMALL = Recipe(
    steps=[Prune(sparsity=0.8, schedule=Schedule(end=0.5, every=5))],
    train=Train(epochs=3),
    export=Export(formats=("keras", "float32", "dynamic")),
    name="small",
)
QUICK = Recipe(
    steps=[Prune(sparsity=0.5, schedule=Schedule(shape="one-shot"))],
    train=Train(epochs=1),
    export=Export(formats=("keras",)),
    control=False,
    name="quick",
)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, digits):
    said = []
    out = tmp_path_factory.mktemp("run")
    run = pipeline.run("lenet-300-100", SMALL, digits, out, say=said.append)
    return run, said


def test_a_run_leaves_a_record_a_manifest_and_verified_files(finished):
    run, _ = finished
    names = {p.name for p in run.path.iterdir()}
    stages = ("baseline", "pruned")
    assert names == {"run.json", "manifest.json", "recipe.toml", "control-keras.keras"} | {
        f"{s}-{f}" for s in stages for f in ("keras.keras", "float32.tflite", "dynamic.tflite")
    }
    assert json.loads((run.path / "run.json").read_text()) == run.record
    manifest = json.loads((run.path / "manifest.json").read_text())
    import hashlib

    for file in manifest["files"]:
        content = (run.path / file["path"]).read_bytes()
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
        assert file["bytes"] == len(content)


def test_the_rows_say_what_the_files_are(finished):
    run, _ = finished
    rows = {r["row"]: r for r in run.record["rows"]}
    assert set(rows) == {
        *(f"{s}-{f}" for s in ("baseline", "pruned") for f in ("keras", "float32", "dynamic")),
        "control-keras",
    }
    assert all(r["n"] == 360 and 0.8 < r["accuracy"] <= 1 for r in rows.values())
    # 0.8 of 19,200 + 30,000 + 1,000, each rounded for itself
    kernels = {
        w["path"]: w["zeros"] for w in run.record["stages"][1]["weights"] if w["role"] == "kernel"
    }
    assert sorted(kernels.values()) == [800, 15_360, 24_000]
    assert 0 <= rows["pruned-float32"]["zeros"] - 40_160 <= 410  # a bias may be zero by itself
    assert rows["pruned-dynamic"]["zeros"] >= 40_160
    assert rows["pruned-dynamic"]["gzip_bytes"] < 0.5 * rows["baseline-dynamic"]["gzip_bytes"]
    assert abs(rows["pruned-float32"]["accuracy"] - rows["pruned-keras"]["accuracy"]) <= 1 / 360
    assert rows["pruned-float32"]["parameters"] == rows["baseline-float32"]["parameters"] == 50_610


def test_the_baseline_is_introduced_before_anything_else(finished):
    _, said = finished
    assert said[0].startswith("baseline accuracy")


def test_the_control_trains_as_long_as_the_steps(finished):
    run, _ = finished
    stages = {s["name"]: s for s in run.record["stages"]}
    assert stages["control"]["steps"] == stages["pruned"]["steps"] == 3 * 41
    assert all(
        w["zeros"] < 0.1 * w["size"] for w in stages["control"]["weights"] if w["role"] == "kernel"
    )


def test_the_model_of_a_run_is_the_pruned_one_and_opens_in_plain_keras(finished):
    run, _ = finished
    kernels = [
        keras.ops.convert_to_numpy(v) for v in run.model.trainable_weights if v.name == "kernel"
    ]
    assert [int((k == 0).sum()) for k in kernels] == [15_360, 24_000, 800]
    script = (
        "import sys, keras; keras.saving.load_model(sys.argv[1]); "
        "assert not any(m.startswith('secateur') for m in sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(run.path / "pruned-keras.keras")],
        check=True,
        capture_output=True,
    )


def test_a_finished_run_is_returned_and_a_different_one_is_not_overwritten(finished, digits):
    run, _ = finished
    said = []
    again = pipeline.run("lenet-300-100", SMALL, digits, run.path, say=said.append)
    assert again.record == run.record
    assert "already holds" in said[0]
    with pytest.raises(SecateurError, match="holds another run .*--overwrite"):
        pipeline.run("lenet-300-100", SMALL, digits, run.path, seed=5)


def test_the_page_and_the_notebook_view(finished, tmp_path):
    run, _ = finished
    page = run.report(tmp_path / "page.html")
    assert "<html" in page.read_text(encoding="utf-8")
    assert "pruned" in run._repr_html_()
    assert "smaller" in run.headline


def test_the_same_seed_repeats_every_weight_and_another_seed_does_not(finished, digits, tmp_path):
    run, _ = finished
    recipe = Recipe(**{**SMALL.__dict__, "export": Export(formats=("keras",)), "control": False})
    weights = {}
    for name, seed in (("same", 0), ("other", 1)):
        data = load("digits", seed=seed)
        model = pipeline.run("lenet-300-100", recipe, data, tmp_path / name, seed=seed).model
        weights[name] = model.get_weights()
    first = run.model.get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(first, weights["same"], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, weights["other"], strict=True))


SCRIPT = """
import sys
from secateur import pipeline, zoo
from secateur.datasets import load
from tests.test_pipeline import SMALL
run = pipeline.run("lenet-300-100", SMALL, load("digits"), sys.argv[1], say=lambda t: print(t, flush=True))
"""


@pytest.mark.slow
def test_a_killed_run_is_carried_on_and_ends_with_the_same_weights(finished, tmp_path):
    run, _ = finished
    out = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", SCRIPT, str(out)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    marker = out / ".stages" / "pruned.json"
    for _ in range(3000):  # a minute is little where other processes work too
        if marker.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert marker.exists()
    assert not (out / "run.json").exists()
    said = []
    again = pipeline.run("lenet-300-100", SMALL, load("digits"), out, say=said.append)
    assert "pruned: carried over from the interrupted run" in said
    assert not (out / ".stages").exists()
    rows, first = ({r["row"]: r["sha256"] for r in _files(x)} for x in (again, run))
    assert {k: v for k, v in rows.items() if k.endswith(".tflite")} == {
        k: v for k, v in first.items() if k.endswith(".tflite")
    }


def _files(run):
    manifest = json.loads((run.path / "manifest.json").read_text())
    return [{"row": f["path"], "sha256": f["sha256"]} for f in manifest["files"]]


def own_model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10, name="head")]
    )


def test_a_model_at_chance_level_stops_with_a_hint(digits, tmp_path):
    with pytest.raises(SecateurError, match=r"at chance level .*--scale"):
        pipeline.run(own_model(), SMALL, digits, tmp_path / "chance")


def test_a_users_model_is_taken_as_trained_and_left_unchanged(digits, tmp_path):
    model = own_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    model.fit(digits.train.x[..., None], digits.train.y, epochs=10, verbose=0)
    before = [w.copy() for w in model.get_weights()]
    recipe = dataclasses.replace(QUICK, export=Export(formats=("keras", "float32")))
    run = pipeline.run(model, recipe, digits, tmp_path / "own")
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    baseline = next(s for s in run.record["stages"] if s["name"] == "baseline")
    assert baseline["epochs"] == 0
    assert any("(8, 8, 1)" in note or "8" in note for note in run.record["data"]["notes"])


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("lab-cn", "digits", "lab-cnn"),
        ("missing.keras", "digits", "missing.keras is not a file"),
        ("finished.tflite", "digits", "finished file"),
        ("lenet-300-100", "digit", "digits"),
        (None, "digits", "no model"),
    ],
)
def test_wrong_inputs_are_named(model, data, message, tmp_path):
    with pytest.raises(SecateurError, match=message):
        pipeline.run(model, SMALL, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_does_not_fit_the_data_names_both_shapes(digits, tmp_path):
    model = keras.Sequential([keras.Input((5,)), layers.Dense(10)])
    with pytest.raises(SecateurError, match=r"\(8, 8\).*\(5,\)"):
        pipeline.run(model, SMALL, digits, tmp_path / "out")
    with pytest.raises(SecateurError, match="label"):
        three = keras.Sequential([keras.Input((8, 8)), layers.Flatten(), layers.Dense(3)])
        pipeline.run(three, SMALL, digits, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unwritable_directory_is_one_line(digits, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SecateurError, match="cannot write to"):
        pipeline.run("lenet-300-100", SMALL, digits, tmp_path / "file" / "out")


def test_the_loss_a_file_was_compiled_with_is_used(digits, tmp_path):
    model = own_model()
    model.compile("adam", "poisson")
    model.save(tmp_path / "compiled.keras")
    loaded, name, untrained = pipeline.resolve_model(tmp_path / "compiled.keras", SMALL, digits)
    assert (compiled_loss(loaded), name, untrained) == ("poisson", "compiled", False)
    bare = keras.Sequential([keras.Input((8, 8)), layers.Flatten(), layers.Dense(10)])
    bare.save(tmp_path / "bare.keras")
    assert compiled_loss(pipeline.resolve_model(tmp_path / "bare.keras", SMALL, digits)[0]) is None


# --- whose weights a run starts from ----------------------------------------------------------------


def test_only_a_built_in_name_given_as_text_stands_for_an_untrained_model(digits, tmp_path):
    keras.utils.set_random_seed(3)
    model = zoo.build("lenet-300-100", input_shape=(8, 8), classes=10)
    trained = [w + 1 for w in model.get_weights()]
    model.set_weights(trained)
    assert model.name == "lenet-300-100"  # as the zoo names it
    model.save(tmp_path / "lenet-300-100.keras")
    for given in (model, tmp_path / "lenet-300-100.keras", str(tmp_path / "lenet-300-100.keras")):
        found, name, untrained = pipeline.resolve_model(given, QUICK, digits)
        assert (name, untrained) == ("lenet-300-100", False)
        assert all(np.array_equal(a, b) for a, b in zip(found.get_weights(), trained, strict=True))
    assert pipeline.resolve_model("lenet-300-100", QUICK, digits)[1:] == ("lenet-300-100", True)


def test_a_trained_model_that_bears_a_built_in_name_is_not_trained_again(digits, tmp_path):
    model = keras.Sequential(
        [keras.Input((8, 8)), layers.Flatten(), layers.Dense(10)], name="lab-cnn"
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(digits.train.x, digits.train.y, epochs=8, verbose=0)
    run = pipeline.run(model, QUICK, digits, tmp_path / "out")
    baseline = run.record["stages"][0]
    assert baseline["epochs"] == 0
    saved = keras.saving.load_model(tmp_path / "out" / "baseline-keras.keras")
    assert all(
        np.array_equal(a, b) for a, b in zip(model.get_weights(), saved.get_weights(), strict=True)
    )


# --- chance level -----------------------------------------------------------------------------------


def yes_or_no(seed=0):
    """Half the digits against the other half: labels 0.0 and 1.0 in one column."""
    data = load("digits", seed=seed)
    x, y = data.train.x, (data.train.y[:, None] >= 5).astype("float32")
    return x, y


def test_float_labels_in_one_column_are_judged_as_yes_and_no(tmp_path):
    x, y = yes_or_no()
    model = keras.Sequential(
        [
            keras.Input((8, 8)),
            layers.Flatten(),
            layers.Dense(32, "relu"),
            layers.Dense(1, "sigmoid"),
        ]
    )
    model.compile("adam", "binary_crossentropy")
    model.fit(x, y, epochs=10, verbose=0)
    said = []
    run = pipeline.run(model, QUICK, (x, y), tmp_path / "out", say=said.append)
    assert "validation samples" in said[0]
    assert all(r["accuracy"] > 0.7 for r in run.record["rows"])
    # and one that says yes to everything is found out
    model.set_weights([np.zeros_like(w) for w in model.get_weights()])
    with pytest.raises(SecateurError, match="at chance level"):
        pipeline.run(model, QUICK, (x, y), tmp_path / "other")


def same_answer_to_everything():
    model = own_model()
    model.set_weights([np.zeros_like(w) for w in model.get_weights()])
    return model


def test_the_stop_at_chance_level_has_a_way_out_and_leaves_nothing(digits, tmp_path):
    with pytest.raises(SecateurError, match=r"or was never trained.*--allow-chance"):
        pipeline.run(same_answer_to_everything(), QUICK, digits, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    said = []
    pipeline.run(
        same_answer_to_everything(),
        QUICK,
        digits,
        tmp_path / "out",
        allow_chance=True,
        say=said.append,
    )
    assert any("no better than chance" in text for text in said)


def test_without_a_validation_part_the_samples_are_called_by_their_name(tmp_path):
    data = load("digits", validation_split=0.0)
    said = []
    with pytest.raises(SecateurError, match="at chance level"):
        pipeline.run(same_answer_to_everything(), QUICK, data, tmp_path / "out", say=said.append)
    assert said[0].endswith("on 1,437 training samples")


# --- functions in a recipe --------------------------------------------------------------------------


def square(weight, rng, power=2):
    return np.abs(weight) ** power


def test_a_users_functions_run_and_are_recorded_by_name(digits, tmp_path):
    def recipe(power):
        criterion = functools.partial(square, power=power)
        schedule = Schedule(shape=lambda progress: progress, every=5)
        return Recipe(
            **{
                **QUICK.__dict__,
                "steps": [Prune(sparsity=0.5, criterion=criterion, schedule=schedule)],
            }
        )

    run = pipeline.run("lenet-300-100", recipe(2), digits, tmp_path / "out")
    step = run.record["recipe"]["steps"][0]
    assert step["criterion"].startswith("partial of square (function")
    assert step["schedule"]["shape"].startswith("<lambda> (function")
    assert run.record["recipe_toml"].startswith("# Not to be repeated from this file alone")
    again = pipeline.run("lenet-300-100", recipe(2), digits, tmp_path / "out")
    assert again.record == run.record
    with pytest.raises(SecateurError, match="holds another run"):
        pipeline.run("lenet-300-100", recipe(3), digits, tmp_path / "out")


# --- what can be known before any training ----------------------------------------------------------


def test_modules_named_by_imports_are_imported_first(digits, tmp_path, monkeypatch):
    (tmp_path / "module_of_mine.py").write_text("loaded = True")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SecateurError, match="no model"):
        pipeline.run(None, SMALL, digits, tmp_path / "out", imports=["module_of_mine"])
    assert sys.modules["module_of_mine"].loaded
    (tmp_path / "broken_of_mine.py").write_text("1 / 0")
    for name, message in (("no_such_module", "No module named"), ("broken_of_mine", "division")):
        with pytest.raises(SecateurError, match=f"{name}.*{message}"):
            pipeline.run("lab-cnn", SMALL, digits, tmp_path / "out", imports=[name])


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("missing", "extra"), [("tensorflow", "tensorflow"), ("ai_edge_litert", "litert")]
)
def test_a_missing_package_is_named_before_any_training(
    missing, extra, digits, tmp_path, monkeypatch
):
    def find(name):
        return None if name == missing else object()

    monkeypatch.setattr(preflight, "find_spec", find)
    monkeypatch.setattr(pipeline, "train", interrupted)
    with pytest.raises(SecateurError, match=rf"float32, dynamic.*secateur\[{extra}\]"):
        pipeline.run("lenet-300-100", SMALL, digits, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(KeyboardInterrupt):  # a recipe without such files needs neither
        pipeline.run("lenet-300-100", QUICK, digits, tmp_path / "out")


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = layers.Dense(10)

    def call(self, x):
        return self.head(keras.ops.reshape(x, (-1, 64)))


def refused_models():
    x, z = keras.Input((8, 8)), keras.Input((8, 8))
    flat = layers.Flatten()(x)
    two_in = keras.Model([x, z], layers.Dense(10)(layers.Flatten()(layers.Add()([x, z]))))
    two_out = keras.Model(x, [layers.Dense(10)(flat), layers.Dense(2)(flat)])
    subclassed = Subclassed()
    subclassed(np.zeros((1, 8, 8), "float32"))
    return [
        (two_in, "2 inputs and 1 output"),
        (two_out, "1 input and 2 outputs"),
        (subclassed, "Subclassed"),
        (keras.Sequential([layers.Dense(10)]), "not built"),
        ({"a": 1}, "dict"),
    ]


@pytest.mark.parametrize("number", range(5))
def test_a_model_that_run_cannot_take_is_one_clear_line(number, digits, tmp_path):
    model, message = refused_models()[number]
    with pytest.raises(SecateurError, match=message) as caught:
        pipeline.run(model, QUICK, digits, tmp_path / "out")
    assert "a built Functional or Sequential model with one input" in str(caught.value)
    assert not (tmp_path / "out").exists()


class Unclonable(layers.Layer):
    def __init__(self, secret):
        super().__init__()

    def call(self, x):
        return x

    def get_config(self):
        return {}


def test_a_model_that_cannot_be_copied_is_told_what_run_can_do(digits, tmp_path):
    model = keras.Sequential(
        [keras.Input((8, 8)), layers.Flatten(), Unclonable(1), layers.Dense(10)]
    )
    with pytest.raises(SecateurError, match=r"cannot be copied.*secret.*get_config") as caught:
        pipeline.run(model, QUICK, digits, tmp_path / "out", allow_chance=True)
    assert "compress(" in str(caught.value)
    assert "pass inplace=True" not in str(caught.value)
    assert not (tmp_path / "out").exists()
