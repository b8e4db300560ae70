"""Paths, roles and outputs of real models; the paths survive copying and saving."""

import keras
import pytest
from keras import layers

from secateur.compression import copy_model
from secateur.errors import SecateurError
from secateur.weights import Select, weight_table


def nested():
    base = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(name="bn"),
        ],
        name="base",
    )
    inputs = keras.Input((8, 8, 1))
    x = layers.GlobalAveragePooling2D()(base(inputs))
    x = layers.Dense(6, name="hidden")(x)
    logits = layers.Dense(3, name="logits")(x)
    return keras.Model(inputs, layers.Activation("softmax")(logits), name="whole")


def test_paths_roles_and_the_output_layer_of_a_nested_model():
    table = weight_table(nested())
    assert {w.path: w.role for w in table} == {
        "base/conv/kernel": "kernel",
        "base/conv/bias": "bias",
        "base/bn/gamma": "norm",
        "base/bn/beta": "norm",
        "base/bn/moving_mean": "norm",
        "base/bn/moving_variance": "norm",
        "hidden/kernel": "kernel",
        "hidden/bias": "bias",
        "logits/kernel": "kernel",
        "logits/bias": "bias",
    }
    # The activation after the last Dense has no weights: the output layer is the Dense.
    assert {w.path for w in table if w.output} == {"logits/kernel", "logits/bias"}


def test_a_shared_layer_appears_once():
    shared = layers.Dense(4, name="shared")
    a, b = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([a, b], layers.Dense(1, name="head")(layers.add([shared(a), shared(b)])))
    assert [w.path for w in weight_table(model)].count("shared/kernel") == 1


def test_paths_do_not_change_when_the_model_is_copied_or_saved(tmp_path):
    model = nested()
    paths = [w.path for w in weight_table(model)]
    assert [w.path for w in weight_table(copy_model(model))] == paths
    model.save(tmp_path / "m.keras")
    assert [w.path for w in weight_table(keras.saving.load_model(tmp_path / "m.keras"))] == paths


def test_an_unbuilt_model_and_an_unknown_path_are_named():
    with pytest.raises(SecateurError, match="no weights yet"):
        weight_table(keras.Sequential([layers.Dense(3)]))
    with pytest.raises(SecateurError, match="did you mean .*hidden/kernel"):
        _ = weight_table(nested())["hidden/kernle"]


def test_a_selector_takes_one_name_without_a_tuple():
    assert Select(include="conv") == Select(include=("conv",))
