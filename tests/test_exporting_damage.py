"""No file gets a name that is not the model: damage of every kind is refused."""

import zipfile

import h5py
import keras
import numpy as np
import pytest
from tests.exporting_cases import EVERY, STORED, exported, left_in, refused, samples, values

from secateur import exporting
from secateur.errors import SecateurError
from secateur.exporting import FORMATS, export
from secateur.runtimes import litert
from secateur.tflite import TfliteFile


@pytest.fixture(scope="module")
def x():
    return samples()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("out"))


def flip(path, array, index, value=None):
    """Changes one element of an array in a file, found by its bytes: its lowest bit, or to `value`."""
    changed = np.array(array)
    if value is None:
        changed.view(np.uint8).reshape(*array.shape, -1)[(*index, 0)] ^= 1
    else:
        changed[index] = value
    if path.suffix == ".tflite":
        blob = path.read_bytes()
        assert blob.count(array.tobytes()) == 1
        path.write_bytes(blob.replace(array.tobytes(), changed.tobytes()))
    elif path.suffix == ".h5":
        write_in_h5(path, array, changed)
    else:
        folder = path.parent / "unpacked"
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        write_in_h5(folder / "model.weights.h5", array, changed)
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("metadata.json", "config.json", "model.weights.h5"):
                archive.write(folder / name, name)


def write_in_h5(path, array, changed):
    with h5py.File(path, "r+") as file:
        same = []
        file.visititems(
            lambda _, item: (
                same.append(item)
                if isinstance(item, h5py.Dataset) and np.array_equal(item[()], array)
                else None
            )
        )
        assert len(same) == 1
        same[0][...] = changed


def stored(model, format, artifact):
    """The last kernel as the file holds it."""
    if not FORMATS[format] == ".tflite":
        return values(model.layers[-1].kernel)
    name = artifact.tensors["dense/kernel"]["tensor"]
    (found,) = [c for c in litert.load(artifact.path).constants() if c.name == name]
    return found.values


# Formats in which a kernel stands as its array's bytes; the others have a test of their own.
PLAIN = [f for f in EVERY if f not in ("sparse", "int4") and not f.startswith("onnx")]


@pytest.fixture(params=PLAIN)
def copied(request, made, tmp_path):
    """A copy of each exported file, to be damaged."""
    model, promises, artifacts, _ = made
    artifact = artifacts[request.param]
    path = tmp_path / artifact.path.name
    path.write_bytes(artifact.path.read_bytes())
    return path, request.param, model, promises, stored(model, request.param, artifact)


def test_the_lowest_bit_of_one_weight_is_noticed(copied, x):
    """No comparison of outputs could see it: for floats it is the 24th binary digit."""
    path, format, model, promises, kernel = copied
    index = np.unravel_index(np.abs(kernel.astype(float)).argmax(), kernel.shape)
    if STORED[format] == "int8":
        flip(path, kernel, index, 100)  # one step is within rounding; from +-127 to 100 is not
    else:
        flip(path, kernel, index)
    refused(path, format, model, promises, x, r"dense/kernel \(2028, 10\) not found")


def test_a_zero_that_is_none_any_more_is_noticed(copied, x):
    """A tiny one: within half a step for codes only as code 0, in floats at no size."""
    path, format, model, promises, kernel = copied
    index = tuple(np.argwhere(kernel == 0)[0])
    tiny = {"int8": 1, "float16": np.float16(6e-8), "float32": np.float32(1e-30)}
    flip(path, kernel, index, tiny[STORED[format]])
    refused(path, format, model, promises, x, "dense/kernel .* not found")


def test_a_broken_promise_is_refused_where_model_and_file_agree(made, x, tmp_path):
    """The model itself lost a zero after the promise was made: its files are refused as well."""
    model, promises, *_ = made
    again = keras.models.clone_model(model)
    again.set_weights(model.get_weights())
    kernel = values(again.layers[-1].kernel)
    kernel[tuple(np.argwhere(promises[1].value)[0])] = 0.05
    again.layers[-1].kernel.assign(kernel)
    for format in ("keras", "dynamic"):
        out = tmp_path / format
        with pytest.raises(SecateurError, match=r"1 broken promise .*16,224 of 20,280") as error:
            export(again, [format], out, stage="pruned", promises=promises, data=x)
        assert f"{format}/pruned-{format}" in str(error.value)
        assert left_in(out) == []


def test_permuted_classes_are_caught_by_the_outputs(copied, x):
    """Every weight is there, in another row, and every zero too: the file runs and is wrong."""
    path, format, model, promises, _ = copied
    if FORMATS[format] == ".tflite":
        order = np.roll(np.arange(10), 1)
        blob = path.read_bytes()
        last = [c for c in litert.load(path).constants() if c.values.shape[0] == 10]
        assert len(last) == 2
        for constant in last:
            arrays = [constant.values]
            if constant.coded:
                arrays.append(constant.scale)
            for array in arrays:
                assert array.tobytes() in blob
                blob = blob.replace(array.tobytes(), array[order].tobytes())
        path.write_bytes(blob)
    else:
        changed = keras.models.clone_model(model)
        *first, last, bias = model.get_weights()
        changed.set_weights([*first, np.roll(last, 1, -1), np.roll(bias, 1)])
        changed.save(path)
    refused(path, format, model, promises, x, "class 9 in the place of 0, 0 in the place of 1")


@pytest.mark.parametrize("format", ["sparse", "int4"])
def test_one_wrong_byte_in_packed_or_encoded_weights_is_noticed(format, made, tmp_path, x):
    model, promises, artifacts, _ = made
    path = tmp_path / artifacts[format].path.name
    blob = bytearray(artifacts[format].path.read_bytes())
    tensors = [t for o in TfliteFile.parse(bytes(blob), "").operators for t in o.inputs if t]
    (kernel,) = [t for t in tensors if t.shape == (10, 2028) and t.data is not None]
    place = bytes(blob).find(kernel.data.tobytes())
    blob[place + int(np.flatnonzero(kernel.data)[100])] ^= 0x44
    path.write_bytes(blob)
    refused(path, format, model, promises, x, r"dense/kernel \(2028, 10\) not found")


def test_cut_and_foreign_files_are_refused(copied, x):
    path, format, model, promises, _ = copied
    path.write_bytes(path.read_bytes()[:5000])
    refused(path, format, model, promises, x, "damaged|does not run|could not be loaded")


def test_a_file_that_runs_at_one_batch_size_only_is_refused(made, x, monkeypatch):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("makes the broken file with TensorFlow's own converter, in this process")
    model, promises, artifacts, _ = made
    path = artifacts["float32"].path.with_name("fixed.tflite")
    path.write_bytes(exporting.conversion._traced(model, 1, "float32"))
    refused(path, "float32", model, promises, x, "runs at one batch size only")
    path.unlink()


def test_nothing_is_left_of_a_file_that_does_not_verify(made, x, tmp_path, monkeypatch):
    """The last format fails: the first ones, already verified, do not get their names either."""
    model, *_ = made
    (tmp_path / "pruned-keras.keras").write_bytes(b"older")

    def damaged(*args, **kwargs):
        blobs = original(*args, **kwargs)
        kernel = values(model.layers[-1].kernel).T.copy()
        return {
            format: blob.replace(kernel.tobytes(), (kernel * 1.01).tobytes())
            for format, blob in blobs.items()
        }

    original = exporting.conversion.to_litert
    monkeypatch.setattr(exporting.conversion, "to_litert", damaged)
    with pytest.raises(SecateurError, match=r"pruned-float32.tflite"):
        export(model, ["keras", "float32"], tmp_path, stage="pruned", data=x)
    assert left_in(tmp_path) == ["pruned-keras.keras"]
    assert (tmp_path / "pruned-keras.keras").read_bytes() == b"older"


def test_a_factor_is_accepted_only_where_something_can_be_folded(made, x, tmp_path):
    model, _, artifacts, _ = made
    source = artifacts["float32"].path
    path = tmp_path / source.name
    kernel = values(model.layers[1].kernel)
    stored = np.moveaxis(kernel, -1, 0).copy()
    path.write_bytes(
        source.read_bytes().replace(stored.tobytes(), (stored * np.float32(1 + 1e-5)).tobytes())
    )
    refused(path, "float32", model, (), x, "conv2d/kernel .* not found")
