"""A chain of Dense layers: recognised, its dead units counted, built at the widths that are kept."""

import keras
import numpy as np
import pytest
from keras import layers

from secateur.dense_chain import chain, dead_weights, is_chain, narrow, widths
from secateur.errors import Impossible, SecateurError
from secateur.methods.prune import Prune
from secateur.runtimes.keras import load_model, save_model
from secateur.weights import Select

HIDDEN = Select(output=False)
rng = np.random.default_rng(0)
X = rng.normal(size=(40, 6, 2)).astype("float32")


def mlp(activation="relu", bias=True, functional=False):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 2), name="image")
    parts = [
        layers.Flatten(),
        layers.Dense(30, activation=activation, use_bias=bias, name="one"),
        layers.Dropout(0.5),
        layers.Dense(20, use_bias=bias, name="two"),
        layers.Activation(activation),
        layers.Dense(10, activation=activation, use_bias=bias, name="three"),
        layers.Dense(4, activation="softmax", use_bias=bias, name="head"),
    ]
    if functional:
        y = inputs
        for part in parts:
            y = part(y)
        model = keras.Model(inputs, y, name="mlp")
    else:
        model = keras.Sequential([inputs, *parts], name="mlp")
    shapes = [w.shape for w in model.get_weights()]
    model.set_weights([np.random.default_rng(7).normal(size=s) / 2 for s in shapes])
    return model


def predict(model, x=X):
    return keras.ops.convert_to_numpy(model(x, training=False))


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_the_narrow_network_gives_what_the_masked_one_gives(activation, bias, functional):
    model = mlp(activation, bias, functional)
    dense = predict(model)
    Prune(sparsity=0.7, pattern="units", select=HIDDEN).apply(model)
    masked = predict(model)
    assert np.abs(masked - dense).max() > 0.05  # else equality below would show nothing
    small = narrow(model)
    # sigmoid(0) is a half for every sample, which only a bias could take up
    removable = bias or activation != "sigmoid"
    assert widths(small) == ((9, 6, 3, 4) if removable else (30, 20, 10, 4))
    np.testing.assert_allclose(predict(small), masked, atol=1e-5)
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers
                                                     if not isinstance(layer, layers.InputLayer)]  # fmt: skip


def test_the_narrow_network_is_saved_and_loaded_by_keras_alone(tmp_path):
    model = mlp()
    Prune(sparsity=0.5, pattern="units", select=HIDDEN).apply(model)
    small = narrow(model)
    assert small.count_params() == 12 * 15 + 15 + 15 * 10 + 10 + 10 * 5 + 5 + 5 * 4 + 4
    save_model(small, tmp_path / "small.keras")
    again = load_model(tmp_path / "small.keras")
    np.testing.assert_allclose(predict(again), predict(model), atol=1e-5)
    small.compile("adam", "sparse_categorical_crossentropy")
    small.fit(X, np.arange(40) % 4, epochs=1, verbose=0)


def test_units_that_nothing_leads_out_of_go_too():
    model = mlp()
    kernel, bias = model.get_layer("two").get_weights()
    kernel[3:] = 0
    model.get_layer("two").set_weights([kernel, bias])
    small = narrow(model)
    assert widths(small) == (3, 20, 10, 4)
    np.testing.assert_allclose(predict(small), predict(model), atol=1e-5)


def test_units_of_ones_own_choice_are_sliced():
    model = mlp(bias=False)
    kept = [np.arange(30) % 2 == 0, np.ones(20, bool), np.arange(10) < 4]
    weights = model.get_weights()
    for before, found in zip(
        [weights[0][:, kept[0]], weights[1][kept[0]], weights[2][:, kept[2]], weights[3][kept[2]]],
        narrow(model, kept).get_weights(),
        strict=True,
    ):
        np.testing.assert_array_equal(found, before)


def test_dead_weights_by_hand_and_as_the_challenge_has_them():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((784,)), *(layers.Dense(n, "relu", False) for n in (1000, 1000, 500, 200)),
         layers.Dense(10, use_bias=False)]
    )  # fmt: skip
    assert dead_weights(model).network == 0
    Prune(sparsity=0.8, pattern="units", criterion="l2", select=HIDDEN).apply(model)
    found = dead_weights(model)
    # 200, 200, 100 and 40 units stay: 221,200 of 2,386,000 weights
    assert found.network == pytest.approx(1 - 221_200 / 2_386_000, abs=1e-12)
    assert found.incoming == pytest.approx(0.8 * 2_384_000 / 2_386_000, abs=1e-12)
    assert found.outgoing == pytest.approx(0.8 * 1_602_000 / 2_386_000, abs=1e-12)
    assert narrow(model).count_params() == 221_200


def test_weights_alone_pruned_leave_no_dead_unit():
    model = mlp()
    Prune(sparsity=0.5, select=HIDDEN).apply(model)
    assert widths(narrow(model)) == (30, 20, 10, 4)
    assert dead_weights(model).network == 0


def branched():
    x = keras.Input((4,))
    y = layers.Add(name="sum")([layers.Dense(4, name="a")(x), layers.Dense(4, name="b")(x)])
    return keras.Model(x, layers.Dense(2)(y))


def shared():
    x = keras.Input((4,))
    twice = layers.Dense(4, name="twice")
    return keras.Model(x, layers.Dense(2)(twice(twice(x))))


def sequence(*parts, shape=(4,)):
    return keras.Sequential([keras.Input(shape), *parts])


class Odd(layers.Dense):
    """A user's."""


CASES = {
    "convolution": (lambda: sequence(layers.Conv2D(2, 3, name="conv"), shape=(8, 8, 1)), "conv"),
    "branch": (branched, "sum"),
    "shared": (shared, "twice"),
    "batchnorm": (lambda: sequence(layers.Dense(4), layers.BatchNormalization(name="bn")), "bn"),
    "softmax inside": (
        lambda: sequence(layers.Dense(4, "softmax", name="soft"), layers.Dense(2)),
        "soft.*mixes its units",
    ),
    "softmax layer": (
        lambda: sequence(layers.Dense(4, name="soft"), layers.Softmax(), layers.Dense(2)),
        "soft.*mixes its units",
    ),
    "flatten behind": (
        lambda: sequence(layers.Dense(4), layers.Flatten(name="flat"), layers.Dense(2), shape=(3, 4)),
        "flat",
    ),
    "subclass": (lambda: sequence(Odd(4, name="odd")), "odd"),
    "nested": (lambda: sequence(sequence(layers.Dense(4)), layers.Dense(2)), "Sequential"),
    "no dense": (lambda: sequence(layers.ReLU()), "without a Dense layer"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_no_chain_is_refused_by_the_layer_that_makes_it_so(name):
    build, told = CASES[name]
    model = build()
    assert not is_chain(model)
    with pytest.raises(SecateurError, match=told) as error:
        chain(model)
    assert "fix:" in str(error.value)


def test_a_layer_that_keeps_no_unit_is_impossible():
    model = mlp()
    kept = [np.zeros(30, bool), np.ones(20, bool), np.ones(10, bool)]
    with pytest.raises(Impossible, match="all 30 units of one/kernel"):
        narrow(model, kept)
    with pytest.raises(SecateurError, match="one for each hidden Dense layer"):
        narrow(model, kept[:2])
