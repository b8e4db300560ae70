"""Keras 2 `.h5` files that Keras 3 refuses over a key it dropped are mended, and it is said."""

import json
import os
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from secateur.errors import SecateurError
from secateur.runtimes import keras as runtime
from secateur.runtimes import keras2, litert

layers = keras.layers
INITIALIZER = {"class_name": "GlorotUniform", "config": {"seed": None}}
SEPARABLE = {
    "groups": 1,
    "kernel_initializer": INITIALIZER,
    "kernel_regularizer": None,
    "kernel_constraint": None,
}


def keras2_file(path, model, changes):
    """A file as Keras 2 left it: the model's own, with `changes` in the settings of each class."""
    model.save(path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        for part in keras2._parts(config):
            if isinstance(part.get("config"), dict):
                part["config"].update(changes.get(part.get("class_name"), {}))
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = "2.4.0"
    return path


def net(*inside, shape=(8, 8, 4)):
    model = keras.Sequential([keras.Input(shape), *inside])
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(0, 0.3, weight.shape))
    return model


CASES = {
    "DepthwiseConv2D": (lambda: net(layers.DepthwiseConv2D(3)), {"groups": 1}),
    "DepthwiseConv1D": (lambda: net(layers.DepthwiseConv1D(3), shape=(8, 2)), {"groups": 1}),
    "Conv2DTranspose": (lambda: net(layers.Conv2DTranspose(3, 2)), {"groups": 1}),
    "SeparableConv2D": (lambda: net(layers.SeparableConv2D(3, 3)), SEPARABLE),
    "LSTM": (lambda: net(layers.LSTM(3), shape=(5, 2)), {"time_major": False}),
    "GRU": (
        lambda: net(layers.Bidirectional(layers.GRU(3)), shape=(5, 2)),
        {"time_major": False},
    ),
    "RandomFlip": (lambda: net(layers.RandomFlip()), {"rng_type": "stateful"}),
    "SpatialDropout2D": (
        lambda: net(layers.SpatialDropout2D(0.5)),
        {"trainable": True, "noise_shape": None},
    ),
    "Attention": (
        lambda: keras.Model(
            a := [keras.Input((3, 2), name="q"), keras.Input((4, 2), name="v")],
            layers.Attention()(a),
        ),
        {"score_mode": "dot"},
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5:UserWarning")
def test_a_mended_model_is_the_one_that_was_saved(name, tmp_path):
    build, extra = CASES[name]
    model = build()
    path = keras2_file(tmp_path / "old.h5", model, {name: extra})
    before = path.read_bytes()
    with pytest.raises((TypeError, ValueError)):
        keras.saving.load_model(path, compile=False)  # else there is nothing to mend
    with pytest.warns(UserWarning, match=r"old\.h5: mended on load: ") as said:
        again = runtime.load_model(path)
    assert len(said) == 1 and f"{name} " in str(said[0].message)
    assert all(repr(key) in str(said[0].message) for key in extra)
    assert path.read_bytes() == before
    for mine, theirs in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    x = [np.random.default_rng(1).random((3, *i.shape[1:]), "float32") for i in model.inputs]
    x = x if len(x) > 1 else x[0]
    np.testing.assert_array_equal(model.predict(x, verbose=0), again.predict(x, verbose=0))


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("DepthwiseConv2D", {"groups": 2}),
        ("DepthwiseConv2D", {"groups": True}),
        ("DepthwiseConv2D", {"groups": 1, "more": 1}),
        ("LSTM", {"time_major": True}),
    ],
)
def test_what_may_mean_something_is_refused_as_before(name, extra, tmp_path, recwarn):
    path = keras2_file(tmp_path / "old.h5", CASES[name][0](), {name: extra})
    with pytest.raises(SecateurError, match=rf"old\.h5 could not be loaded.*{list(extra)[-1]}"):
        runtime.load_model(path)


def test_the_number_of_layers_is_told_and_a_model_in_a_model_is_mended(tmp_path):
    x = keras.Input((8, 8, 4))
    inner = keras.Model(x, layers.DepthwiseConv2D(3)(x), name="inner")
    outer = keras.Model(y := keras.Input((8, 8, 4)), layers.DepthwiseConv2D(2)(inner(y)))
    path = keras2_file(tmp_path / "old.h5", outer, {"DepthwiseConv2D": {"groups": 1}})
    with pytest.warns(UserWarning, match=r"DepthwiseConv2D 'groups' dropped \(2 layers\)"):
        runtime.load_model(path)


def test_slashes_in_names_become_underscores(tmp_path):
    x = keras.Input((4,))
    y = layers.Dense(3, name="block_dense")(x)
    model = keras.Model(x, layers.Add(name="sum")([y, layers.Dense(3, name="side")(y)]))
    path = keras2_file(tmp_path / "old.h5", model, {})
    with h5py.File(path, "r+") as file:
        text = file.attrs["model_config"]
        file.attrs["model_config"] = text.replace("block_dense", "block/dense")
    with pytest.warns(UserWarning, match=r"'/' in names is '_' \(1 layer\)"):
        again = runtime.load_model(path)
    x = np.random.default_rng(0).random((3, 4), "float32")
    np.testing.assert_array_equal(model.predict(x, verbose=0), again.predict(x, verbose=0))


def test_an_activation_that_keras_3_computes_otherwise_is_told(tmp_path):
    model = net(layers.Dense(3, activation="hard_sigmoid"), shape=(4,))
    path = keras2_file(tmp_path / "old.h5", model, {})
    with pytest.warns(UserWarning, match=r"hard_sigmoid is 0.2 x \+ 0.5 in Keras 2"):
        runtime.load_model(path)


def test_a_file_of_keras_3_is_loaded_without_a_word(tmp_path):
    model = net(layers.DepthwiseConv2D(3, activation="hard_sigmoid"))
    model.save(tmp_path / "new.h5")
    runtime.load_model(tmp_path / "new.h5")


def models():
    folder = os.environ.get("SECATEUR_MODELS")
    if not folder:
        pytest.skip("SECATEUR_MODELS names no folder with the models of MLPerf Tiny")
    return Path(folder)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_reference_model_is_its_own_published_float_file(compiled):
    with pytest.warns(UserWarning, match=r"vww_96\.h5: mended .*'groups' dropped \(13 layers\)"):
        model = runtime.load_model(models() / "vww_96.h5", compiled=compiled)
    assert model.compiled == compiled
    x = np.random.default_rng(0).random((16, 96, 96, 3), dtype="float32")
    outputs = litert.load(models() / "vww_96_float.tflite").predict(x)
    np.testing.assert_allclose(model.predict(x, verbose=0), outputs, rtol=0, atol=1e-5)


def test_the_other_reference_model_needs_no_mending():
    assert runtime.load_model(models() / "ad01.h5").count_params() == 269_992
