"""Paths, roles and outputs of real models; the paths survive copying and saving."""

import keras
import numpy as np
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


@keras.saving.register_keras_serializable("paths")
class Block(layers.Layer):
    """A user's layer of layers, which Keras numbers through the whole process."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = layers.Dense(5), layers.Dense(4)

    def build(self, shape):
        self.first.build(shape)
        self.second.build((*shape[:-1], 5))

    def call(self, x):
        return self.second(self.first(x))

    def get_config(self):
        return super().get_config()


@keras.saving.register_keras_serializable("paths")
class Net(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.head = layers.Dense(5), layers.Dense(2)

    def call(self, x):
        return self.head(self.hidden(x))


def test_layers_without_a_name_inside_others_are_counted_there(tmp_path):
    model = keras.Sequential([keras.Input((4,)), Block(name="block"), layers.Dense(2, name="d")])
    paths = [w.path for w in weight_table(model) if w.role == "kernel"]
    assert paths == ["block/dense/kernel", "block/dense_1/kernel", "d/kernel"]
    assert [w.path for w in weight_table(copy_model(model)) if w.role == "kernel"] == paths


def test_a_subclassed_model_is_copied_and_keeps_its_paths_when_loaded(tmp_path):
    model = Net()
    x = np.ones((2, 3), "float32")
    outputs = keras.ops.convert_to_numpy(model(x))
    paths = [w.path for w in weight_table(model)]
    assert paths[0] == "dense/kernel" and paths[-1] == "dense_1/bias"
    model.save(tmp_path / "net.keras")
    for other in (copy_model(model), keras.saving.load_model(tmp_path / "net.keras")):
        assert [w.path for w in weight_table(other)] == paths
        np.testing.assert_allclose(keras.ops.convert_to_numpy(other(x)), outputs, rtol=1e-6)
