"""A Keras file and the bits and ranges beside it: from the two alone the same file comes out."""

import json
import shutil

import keras
import numpy as np
import pytest
from tests import quantized_models as nets

import secateur as sc
from secateur.errors import SecateurError
from secateur.runtimes.keras import save_model
from secateur.widths import beside


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A network trained through the grids of int8, with what was exported of it."""
    data = nets.pictures(64)
    model = nets.trained(nets.plain, data, epochs=1)
    callback = sc.Quantize(aware=True).callback(data=data)
    model.fit(*data, epochs=1, batch_size=32, verbose=0, callbacks=[callback])
    folder = tmp_path_factory.mktemp("made")
    sc.export(
        model,
        ["keras", "int8"],
        folder,
        stage="aware",
        specification=callback.specification,
        calibration=data[0],
    )
    return folder, callback.specification, data


@pytest.fixture
def copied(made, tmp_path):
    """The Keras file and what is beside it, to be spoiled."""
    for file in made[0].glob("aware-keras.*"):
        shutil.copy(file, tmp_path)
    return tmp_path / "aware-keras.keras"


def test_the_same_file_comes_out_byte_for_byte_without_calibration_data(made, tmp_path):
    folder, specification, _ = made
    found = sc.load(folder / "aware-keras.keras")
    assert found.specification.ranges == specification.ranges
    assert found.specification.widths == specification.widths
    artifacts = sc.export(found, ["keras", "int8"], tmp_path, stage="again")
    assert artifacts[1].path.read_bytes() == (folder / "aware-int8.tflite").read_bytes()
    assert all(t["bits"] == 8 for p, t in artifacts[1].tensors.items() if p.endswith("kernel"))
    error = artifacts[1].tensors["head/kernel"]["error"]  # a step of 8 bits is 1/127 of the largest
    assert 0.001 < error < 0.01 and "error" not in artifacts[1].tensors["head/bias"]
    assert "again-keras.quantization.json" in artifacts[0].notes[0]
    again = sc.load(artifacts[0].path)  # what is written of it can be loaded in its turn
    assert again.specification == found.specification


def test_it_answers_as_the_file_within_a_block_and_as_floats_outside(made):
    folder, _, (x, y) = made
    found = sc.load(folder / "aware-keras.keras")
    floats = found.model.predict(x, verbose=0)
    with found.as_in_file() as model:
        inside = model.predict(x, verbose=0)
        accuracy = sc.measure(model, (x, y), latency=False).accuracy
    assert np.abs(inside - floats).max() > 1e-4
    np.testing.assert_array_equal(found.model.predict(x, verbose=0), floats)
    file = sc.measure(folder / "aware-int8.tflite", (x, y), latency=False)
    assert accuracy == file.accuracy


def test_plain_keras_opens_it_as_the_float_model(made):
    folder, _, (x, _) = made
    plain = keras.models.load_model(folder / "aware-keras.keras", compile=False)
    ours = sc.load(folder / "aware-keras.keras").model
    np.testing.assert_array_equal(plain.predict(x, verbose=0), ours.predict(x, verbose=0))


def test_a_missing_companion_is_named(copied):
    beside(copied).unlink()
    with pytest.raises(SecateurError, match=r"aware-keras\.quantization\.json is not there.*keep"):
        sc.load(copied)
    with pytest.raises(SecateurError, match=r"none\.keras is not a file"):
        sc.load(copied.with_name("none.keras"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: "{",
        lambda record: "[]",
        lambda record: json.dumps({**record, "format": "int3"}),
        lambda record: json.dumps({k: v for k, v in record.items() if k != "ranges"}),
        lambda record: json.dumps({**record, "ranges": {"input:0": [1.0, 0.0]}}),
        lambda record: json.dumps({**record, "ranges": {"input:0": [0.0, float("nan")]}}),
        lambda record: json.dumps({**record, "widths": {"conv/kernel": {"bits": 5}}}),
        lambda record: json.dumps({**record, "weights": None}),
        lambda record: "\x00\xff",
    ],
)
def test_a_damaged_companion_is_refused(copied, spoil):
    record = json.loads(beside(copied).read_text())
    beside(copied).write_text(spoil(record), encoding="latin-1")
    with pytest.raises(SecateurError, match="quantization.json cannot be read .*fix: take it from"):
        sc.load(copied)


def test_a_companion_of_other_weights_is_refused(copied):
    model = keras.models.load_model(copied, compile=False)
    model.get_layer("head").bias.assign_add(np.full(4, 1e-3, np.float32))
    save_model(model, copied)
    with pytest.raises(SecateurError, match="is of other weights, expected .*trained on, since"):
        sc.load(copied)


def test_a_companion_of_another_model_is_refused(copied):
    save_model(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), copied)
    with pytest.raises(SecateurError, match="is of a model with conv/kernel, head/kernel"):
        sc.load(copied)


def test_what_was_loaded_and_trained_on_is_refused_by_export(copied, tmp_path):
    found = sc.load(copied)
    found.model.get_layer("head").bias.assign_add(np.full(4, 1e-3, np.float32))
    with pytest.raises(SecateurError, match="a specification received, which is of other weights"):
        sc.export(found, ["int8"], tmp_path / "new", stage="changed")
    assert not (tmp_path / "new").exists()


def test_a_plain_model_leaves_no_old_companion_beside_its_file(copied, tmp_path):
    model = keras.models.load_model(copied, compile=False)
    sc.export(model, ["keras"], tmp_path, stage="aware")
    assert not beside(copied).exists()


def test_bits_of_an_export_go_before_those_beside_the_file(copied, tmp_path):
    (file,) = sc.export(
        sc.load(copied), ["dynamic"], tmp_path, stage="other", layers={"head": "float"}
    )
    assert file.tensors["head/kernel"]["bits"] == 32


def test_the_command_uses_what_is_beside_the_file_and_says_so(secateur, made, copied, tmp_path):
    code, out, err = secateur("export", copied, "--out", "made")
    assert code == 0, err
    assert "aware-keras.quantization.json: bits and ranges of int8, used" in out
    assert "aware-keras-int8.tflite: reloaded and run; not compared on data" in out
    ours = (tmp_path / "made" / "aware-keras-int8.tflite").read_bytes()
    assert ours == (made[0] / "aware-int8.tflite").read_bytes()
    assert (tmp_path / "made" / "aware-keras-float32.tflite").exists()
    code, out, err = secateur("export", copied, "--formats", "dynamic", "--layer", "head=float")
    assert code == 0, err
    assert "quantization.json: not used, --layer says other bits" in out
    beside(copied).write_text("{")
    code, _, err = secateur("export", copied, "--formats", "int8")
    assert code == 1 and "quantization.json cannot be read" in err
    beside(copied).unlink()
    code, _, err = secateur("export", copied, "--formats", "int8")
    assert code == 1 and "without calibration data" in err


def test_inspect_shows_bits_and_what_stands_beside_the_file(secateur, made, copied):
    def bits(path):
        found = sc.inspect(path)
        return {
            w["path"]: w.get("bits") for w in found.weights if w["role"] == "kernel"
        }, found.beside

    assert bits(copied) == (
        {"conv/kernel": 8, "head/kernel": 8},
        "aware-keras.quantization.json: int8, 3 ranges of a quantization-aware training",
    )
    file = sc.inspect(made[0] / "aware-int8.tflite")
    assert [w["bits"] for w in file.weights if w["role"] == "kernel"] == [8, 8]
    assert [w["bits"] for w in file.weights if w["role"] == "bias"] == [32, 32]
    code, out, err = secateur("inspect", copied)
    assert code == 0, err
    assert "bits" in out and "3 ranges of a quantization-aware training" in out
    _, out, _ = secateur("inspect", made[0] / "aware-int8.tflite")
    assert "bits" in out
    model = keras.models.load_model(copied, compile=False)
    model.get_layer("head").bias.assign_add(np.ones(4, np.float32))
    save_model(model, copied)
    assert bits(copied)[1].endswith("bits and ranges of other weights than these")
    beside(copied).write_text("{")
    assert "cannot be read" in bits(copied)[1]
    beside(copied).unlink()
    assert bits(copied) == ({"conv/kernel": None, "head/kernel": None}, None)
    assert "bits" not in secateur("inspect", copied)[1]


def test_the_file_of_a_point_of_a_sweep_has_the_ranges_of_its_training(tmp_path):
    step = {"method": "quantize", "aware": True, "train": {"epochs": 1}}
    grid = {
        **{"name": "aware", "model": "lenet-300-100", "data": "digits", "train": {"epochs": 1}},
        "files": "all",
        "export": {"formats": ["keras"]},
        "curves": [{"name": "aware", "steps": [step]}],
    }
    (record,) = sc.sweep(grid, out=tmp_path).records
    assert [row["format"] for row in record["rows"]] == ["keras", "int8"]
    (kept,) = tmp_path.glob("points/*/quantized-keras.keras")
    assert "input:0" in sc.load(kept).specification.ranges


@pytest.mark.slow
@pytest.mark.parametrize("name", ["normalized", "attention"])
def test_tensors_that_the_training_knows_nothing_of_keep_their_calibrated_ranges(name, tmp_path):
    data = nets.pictures(64)
    model = nets.trained(nets.MODELS[name], data, epochs=1)
    callback = sc.Quantize(aware=True).callback(data=data)
    model.fit(*data, epochs=1, batch_size=32, verbose=0, callbacks=[callback])
    settings = {"specification": callback.specification, "calibration": data[0]}
    made = sc.export(model, ["keras", "int8"], tmp_path, stage="made", **settings, allow_float=True)
    found = sc.load(made[0].path)
    assert len(found.specification.tensors) >= len(callback.ranges)
    (again,) = sc.export(found, ["int8"], tmp_path, stage="again", allow_float=True)
    assert again.sha256 == made[1].sha256
