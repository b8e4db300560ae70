"""What stands in a Run's directory after an interruption, a failure, and beside other Runs."""

import functools
import json
import os
from dataclasses import replace
from pathlib import Path

import keras
import pytest
from keras import layers

from secateur import file_rows, pipeline
from secateur.arrays.schedules import Schedule
from secateur.datasets import load
from secateur.errors import SecateurError
from secateur.methods.fine_tune import FineTune
from secateur.methods.prune import Prune
from secateur.methods.quantize import Quantize
from secateur.recipe import Export, Recipe
from secateur.run_folder import RunFolder, check_layout
from secateur.store import Store
from secateur.training import Train

QUICK = Recipe(
    steps=[Prune(sparsity=0.5, schedule=Schedule(shape="one-shot"))],
    train=Train(epochs=1),
    export=Export(formats=("keras",)),
    control=False,
    name="quick",
)
OTHER = replace(QUICK, name="other", export=Export(formats=("h5",)))


@pytest.fixture(scope="module")
def digits():
    return load("digits", limit=100)


@pytest.fixture(scope="module")
def model():
    """Untrained, which `run` below is told not to mind: nothing here is about accuracy."""
    return keras.Sequential([keras.Input((8, 8)), layers.Flatten(), layers.Dense(10)])


run = functools.partial(pipeline.run, allow_chance=True)


def stop(*args, **kwargs):
    raise KeyboardInterrupt


def test_a_folder_with_another_unfinished_run_is_refused_and_can_be_overwritten(
    model, digits, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "run_step", stop)
        with pytest.raises(KeyboardInterrupt):
            run(model, QUICK, digits, out)
    assert (out / "baseline-keras.keras").exists()
    with pytest.raises(SecateurError, match=r"unfinished run \(quick, seed 0\).*--overwrite"):
        run(model, OTHER, digits, out)
    (out / "mine.txt").write_text("not a run's")
    done = run(model, OTHER, digits, out, overwrite=True)
    assert {p.name for p in out.iterdir()} == {
        *("run.json", "manifest.json", "recipe.toml", "mine.txt"),
        *("baseline-h5.h5", "pruned-h5.h5"),
    }
    assert (done.model.layers[-1].get_weights()[0] == 0).mean() == 0.5


def test_overwriting_a_finished_run_removes_its_files_and_no_others(model, digits, tmp_path):
    out = tmp_path / "out"
    run(model, QUICK, digits, out)
    (out / "pruned-mine.keras").write_text("not a run's")
    (tmp_path / "outside.keras").write_text("not a run's")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["files"].append({"path": "../outside.keras"})
    (out / "manifest.json").write_text(json.dumps(manifest))
    run(model, OTHER, digits, out, overwrite=True)
    assert (out / "pruned-mine.keras").exists() and (tmp_path / "outside.keras").exists()
    assert not (out / "pruned-keras.keras").exists() and (out / "pruned-h5.h5").exists()


def test_the_model_of_a_run_is_never_a_file_of_another(model, digits, tmp_path):
    out = tmp_path / "out"
    recipe = replace(QUICK, export=Export(formats=("float32",)))
    done = run(model, recipe, digits, out)
    keras.Sequential([keras.Input((8, 8)), layers.Flatten()]).save(out / "pruned-keras.keras")
    with pytest.raises(SecateurError, match="add 'keras' to the recipe's formats"):
        _ = done.model


def test_a_run_that_fails_before_its_first_stage_does_not_block_the_folder(digits, tmp_path):
    bad = replace(QUICK, train=Train(optimizer="none-such"))
    with pytest.raises(SecateurError, match="none-such"):
        pipeline.run("lenet-300-100", bad, digits, tmp_path / "out")
    pipeline.run("lenet-300-100", QUICK, digits, tmp_path / "out")


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_a_damaged_stage_is_computed_again(model, digits, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "run_step", stop)
        with pytest.raises(KeyboardInterrupt):
            run(model, QUICK, digits, out)
    weights = out / ".stages" / "baseline.npz"
    weights.write_bytes(weights.read_bytes()[:1000])
    said = []
    with pytest.warns(UserWarning, match=r"baseline\.json is damaged \(not a whole \.npz"):
        run(model, QUICK, digits, out, say=said.append)
    assert not any("carried over" in text for text in said)


def test_infinite_numbers_are_written_as_null(digits, tmp_path, monkeypatch):
    def diverging(*args, **kwargs):
        history = train(*args, **kwargs)
        history.metrics["val_loss"] = [float("inf")] * history.epochs
        return history

    train = pipeline.train
    monkeypatch.setattr(pipeline, "train", diverging)
    done = pipeline.run("lenet-300-100", QUICK, digits, tmp_path / "out")
    assert done.record["stages"][0]["history"]["val_loss"] == [None]
    assert json.loads((tmp_path / "out" / "run.json").read_text()) == done.record


def test_folders_that_could_not_be_reported_at_the_end_are_refused_at_the_start(tmp_path):
    def put(name, recipe, seed):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        record = {"recipe": {**recipe.to_record(), "seed": seed}}
        (tmp_path / name / "run.json").write_text(json.dumps(record))
        return tmp_path / Path(name).parts[0]

    own = put("own", QUICK, 0)
    check_layout(own, QUICK, [0])
    with pytest.raises(SecateurError, match="own holds a run of its own"):
        check_layout(own, QUICK, [0, 1])
    for seed in (0, 1, 7):
        several = put(f"several/seed-{seed}", QUICK, seed)
    check_layout(several, QUICK, [0, 1, 2])
    with pytest.raises(SecateurError, match="several holds the runs of several seeds"):
        check_layout(several, QUICK, [0])
    with pytest.raises(SecateurError, match="seed-0 holds a run of another recipe.*--overwrite"):
        check_layout(several, OTHER, [0, 1])
    with pytest.raises(SecateurError, match="seed-7 holds a run of another recipe.*remove"):
        check_layout(several, OTHER, [0, 1], overwrite=True)
    check_layout(tmp_path / "new", QUICK, [0, 1])


def test_overwriting_removes_the_bits_and_ranges_beside_a_keras_file(model, digits, tmp_path):
    quantized = replace(QUICK, steps=[Quantize()], export=Export(formats=("keras",), io="float"))
    out = tmp_path / "out"
    run(model, quantized, digits, out)
    assert (out / "quantized-keras.quantization.json").exists()
    (out / "mine.quantization.json").write_text("not a run's")
    tuned = replace(QUICK, steps=[FineTune()])
    run(model, tuned, digits, out, overwrite=True)
    assert [p.name for p in out.glob("*.json")].count("quantized-keras.quantization.json") == 0
    assert (out / "mine.quantization.json").exists()


def edited(file, change):
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_an_edited_record_is_named_and_the_run_carried_out_again(model, digits, tmp_path):
    out = tmp_path / "out"
    rows = run(model, QUICK, digits, out).record["rows"]
    edited(out / "run.json", lambda record: record["stages"][0].update(history={"loss": "low"}))
    with pytest.warns(UserWarning, match=r"run\.json is damaged \('stages\[0\]\.history\.loss' is"):
        again = run(model, QUICK, digits, out)
    assert [row["row"] for row in again.record["rows"]] == [row["row"] for row in rows]


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_an_edited_stage_is_named_and_computed_again(model, digits, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "run_step", stop)
        with pytest.raises(KeyboardInterrupt):
            run(model, QUICK, digits, out)
    (stage,) = (out / ".stages").glob("baseline.json")
    edited(stage, lambda record: record["stage"].update(sparsity_curve=7))
    with pytest.warns(
        UserWarning, match=r"baseline\.json is damaged \('stage\.sparsity_curve' is 7"
    ):
        assert run(model, QUICK, digits, out).record["complete"]


def test_a_folder_in_which_a_run_works_is_refused_and_free_again_when_it_is_done(
    model, digits, tmp_path
):
    out, refused = tmp_path / "out", []

    def second(text):
        for overwrite in (False, True) if "reloaded and checked" in text else ():
            with pytest.raises(SecateurError) as caught:
                run(model, QUICK, digits, out, seed=1, overwrite=overwrite)
            refused.append(str(caught.value))

    first = run(model, QUICK, digits, out, say=second)
    assert f"quick, seed 0: process {os.getpid()} on " in refused[1]
    assert f"{out} is in use by another run" in refused[1]
    assert "holds another, unfinished run" in refused[0]
    assert json.loads((out / "run.json").read_text())["seed"] == first.record["seed"] == 0
    assert {p.name for p in out.iterdir() if p.suffix != ".keras"} == {
        *("run.json", "manifest.json", "recipe.toml")
    }
    assert run(model, QUICK, digits, out, seed=1, overwrite=True).record["seed"] == 1


def test_a_run_that_another_process_finished_in_the_meantime_is_returned(
    model, digits, tmp_path, monkeypatch
):
    done, copy = [], pipeline._copy

    def meanwhile(source):
        if not done:
            done.append(None)
            done[0] = run(model, QUICK, digits, tmp_path / "out")
        return copy(source)

    monkeypatch.setattr(pipeline, "_copy", meanwhile)
    assert run(model, QUICK, digits, tmp_path / "out").record == done[0].record


def test_a_file_that_is_replaced_while_it_is_measured_is_refused(
    model, digits, tmp_path, monkeypatch
):
    measure = file_rows.measure

    def replaced(path, *arguments, **keys):
        found = measure(path, *arguments, **keys)
        path.write_bytes(b"another run's")
        return found

    monkeypatch.setattr(file_rows, "measure", replaced)
    monkeypatch.setattr(file_rows, "validated", lambda *_: None)
    with pytest.raises(SecateurError, match=r"baseline-keras\.keras was replaced while"):
        run(model, QUICK, digits, tmp_path / "out")
    assert not (tmp_path / "out" / "run.json").exists()


def test_runs_and_sweeps_do_not_share_a_folder(model, digits, tmp_path):
    Store(tmp_path / "runs", create=True)
    with pytest.raises(SecateurError, match="holds a sweep"):
        run(model, QUICK, digits, tmp_path / "runs", overwrite=True)
    (tmp_path / "begun" / "seed-0" / ".stages").mkdir(parents=True)
    with pytest.raises(SecateurError, match="holds a run"):
        Store(tmp_path / "begun" / "seed-0", create=True)
    with pytest.raises(SecateurError, match="several seeds"):
        check_layout(tmp_path / "begun", QUICK, [0])
    with pytest.raises(SecateurError, match="holds a run of its own"):
        check_layout(tmp_path / "begun" / "seed-0", QUICK, [0, 1])


def test_a_run_does_not_write_onto_the_model_or_the_recipe_that_it_reads(digits, model, tmp_path):
    out = tmp_path / "out"
    run(model, QUICK, digits, out)
    own = out / "pruned-keras.keras"
    before = {file: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(SecateurError, match="would overwrite .*pruned-keras"):
        run(own, OTHER, digits, out, overwrite=True)
    other = out / "recipe.toml"
    other.write_text("# mine\n" + QUICK.as_text())
    with pytest.raises(SecateurError, match=r"would overwrite .*recipe\.toml"):
        run(model, other, digits, out, overwrite=True)
    other.write_text(QUICK.as_text())
    run(model, other, digits, out)  # a Run is repeated from its own recipe
    assert {file: file.read_bytes() for file in out.iterdir()} == before


def test_of_two_that_saw_an_empty_folder_one_has_it(tmp_path):
    one, other = (RunFolder(tmp_path / "out", fingerprint=name) for name in ("a", "b"))
    with (
        one.begin(name="first", seed=0),
        pytest.raises(
            SecateurError, match=r"in use by another run \(first, seed 0: process \d+ on"
        ),
        other.begin(name="second", seed=1),
    ):
        pass
    with (
        pytest.raises(SecateurError, match=r"another, unfinished run \(first, seed 0"),
        other.begin(name="second", seed=1),
    ):
        pass
    assert json.loads((tmp_path / "out/.stages/begun.json").read_text())["fingerprint"] == "a"
