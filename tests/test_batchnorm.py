"""BatchNorm statistics taken anew: by hand on small nets, and what they save on a pruned frozen base."""

import keras
import numpy as np
import pytest
from keras import layers

import secateur
from secateur.arrays.schedules import Schedule
from secateur.compression import compress, copy_model
from secateur.datasets import load
from secateur.errors import SecateurError
from secateur.methods.prune import Prune
from secateur.recipe import Recipe
from secateur.training import Train, reestimate_batchnorm
from secateur.weights import Select, weight_table


def statistics(layer):
    return (
        keras.ops.convert_to_numpy(layer.moving_mean.value),
        keras.ops.convert_to_numpy(layer.moving_variance.value),
    )


def two_stages():
    """x -> bn1 -> doubled -> Dropout -> bn2, small enough to follow on paper."""
    return keras.Sequential(
        [
            keras.Input((2,)),
            layers.BatchNormalization(name="bn1", momentum=0.9, epsilon=1e-3),
            layers.Dense(
                2,
                name="double",
                use_bias=False,
                kernel_initializer=keras.initializers.Identity(2.0),
            ),
            layers.Dropout(0.9, name="drop"),
            layers.BatchNormalization(name="bn2", momentum=0.8),
        ]
    )


X = np.array([[0, 1], [2, 3], [4, 9], [6, 3], [1, 1]], "float32")
PARTS = [X[:2], X[2:4], X[4:]]


def test_statistics_are_the_mean_over_batches_of_each_batchs_mean_and_variance():
    model = two_stages()
    assert secateur.reestimate_batchnorm(model, X, batch_size=2) == 2
    mean, variance = statistics(model.get_layer("bn1"))
    np.testing.assert_allclose(mean, np.mean([p.mean(0) for p in PARTS], 0), rtol=1e-6)
    np.testing.assert_allclose(variance, np.mean([p.var(0) for p in PARTS], 0), rtol=1e-6)
    # The second layer sees what the first makes of each batch, and Dropout lets all of it through.
    inside = [2 * (p - p.mean(0)) / np.sqrt(p.var(0) + 1e-3) for p in PARTS]
    mean, variance = statistics(model.get_layer("bn2"))
    np.testing.assert_allclose(mean, np.mean([p.mean(0) for p in inside], 0), atol=1e-5)
    np.testing.assert_allclose(variance, np.mean([p.var(0) for p in inside], 0), rtol=1e-4)
    assert [model.get_layer(n).momentum for n in ("bn1", "bn2")] == [0.9, 0.8]


def test_no_more_batches_are_read_than_asked_for():
    model = two_stages()
    reestimate_batchnorm(model, X, batch_size=2, batches=2)
    mean, _ = statistics(model.get_layer("bn1"))
    np.testing.assert_allclose(mean, X[:4].mean(0), rtol=1e-6)


def test_frozen_layers_are_included_and_left_frozen_and_no_weight_moves():
    model = two_stages()
    model.trainable = False
    model.get_layer("double").trainable = True
    weights = {w.path: w.read() for w in weight_table(model) if w.role != "norm"}
    flags = [v.trainable for v in model.variables]
    trainable = [v.path for v in model.trainable_variables]
    assert reestimate_batchnorm(model, X) == 2
    mean, variance = statistics(model.get_layer("bn1"))
    np.testing.assert_allclose(mean, X.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance, X.var(0), rtol=1e-6)
    assert [v.trainable for v in model.variables] == flags
    assert [v.path for v in model.trainable_variables] == trainable
    assert not model.get_layer("bn1").trainable
    for path, value in weights.items():
        np.testing.assert_array_equal(weight_table(model)[path].read(), value)
    for name in ("bn1", "bn2"):
        layer = model.get_layer(name)
        assert "call" not in vars(layer)
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer.gamma.value), 1)
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer.beta.value), 0)


def test_a_single_frozen_variable_of_a_layer_stays_the_only_one():
    model = two_stages()
    model.get_layer("bn1").gamma.trainable = False
    before = [v.path for v in model.trainable_variables]
    reestimate_batchnorm(model, X)
    assert [v.path for v in model.trainable_variables] == before


def test_afterwards_the_layers_behave_as_before():
    model = two_stages()
    reestimate_batchnorm(model, X)
    before = model.get_weights()
    model(X, training=False)
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    model.compile("sgd", "mse")
    model.fit(X, X, batch_size=5, verbose=0)
    mean, _ = statistics(model.get_layer("bn1"))
    # One training step: a tenth of the way from the statistics to those of the same batch.
    np.testing.assert_allclose(mean, X.mean(0), rtol=1e-5)


def test_everything_is_put_back_when_the_forward_pass_fails():
    class Fails(layers.Layer):
        calls = 0

        def call(self, inputs):
            self.calls += 1
            if self.calls > 2:  # while building, and once more
                raise RuntimeError("no")
            return inputs

    fails = Fails()
    model = keras.Sequential([keras.Input((2,)), layers.BatchNormalization(name="bn1"), fails])
    layer = model.get_layer("bn1")
    layer.trainable = False
    before = statistics(layer)
    fails.calls = 1
    with pytest.raises(RuntimeError):
        reestimate_batchnorm(model, X, batch_size=2)
    assert (layer.momentum, layer.trainable, "call" in vars(layer)) == (0.99, False, False)
    for one, two in zip(before, statistics(layer), strict=True):
        np.testing.assert_array_equal(one, two)


def test_layers_before_a_weight_keep_theirs():
    model = two_stages()
    assert reestimate_batchnorm(model, X, after="double/kernel") == 1
    mean, variance = statistics(model.get_layer("bn1"))
    np.testing.assert_array_equal(mean, 0)
    np.testing.assert_array_equal(variance, 1)
    # The first one stays in inference mode: the second sees x through its old statistics.
    mean, _ = statistics(model.get_layer("bn2"))
    np.testing.assert_allclose(mean, 2 * X.mean(0) / np.sqrt(1 + 1e-3), rtol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: reestimate_batchnorm(two_stages(), X, after="doubel/kernel"), "did you mean"),
        (lambda: reestimate_batchnorm(two_stages(), X[:0]), "0 samples received"),
        (lambda: reestimate_batchnorm(two_stages(), X, batches=0), "0 batches of 64"),
        (lambda: reestimate_batchnorm(keras.Sequential([layers.Dense(2)]), X), "build it first"),
        (lambda: Train(batchnorm="reestimate"), "expected one of re-estimate, keep"),
    ],
)
def test_wrong_use_is_refused(wrong, message):
    with pytest.raises(SecateurError, match=message):
        wrong()


def test_nested_models_shared_layers_and_models_without_any():
    shared = layers.BatchNormalization(name="shared")
    inner = keras.Sequential(
        [keras.Input((2,)), layers.BatchNormalization(name="inside")], name="base"
    )
    x = keras.Input((2,))
    left, right = shared(x), shared(layers.Rescaling(3.0)(x))
    model = keras.Model(x, inner(layers.Add()([left, right])))
    assert reestimate_batchnorm(model, X, batch_size=2) == 2
    # Called twice a batch, on x and on 3 x: the mean over all its calls.
    mean, _ = statistics(shared)
    np.testing.assert_allclose(mean, 2 * np.mean([p.mean(0) for p in PARTS], 0), rtol=1e-5)
    assert (statistics(inner.get_layer("inside"))[1] != 1).all()
    plain = keras.Sequential([keras.Input((2,)), layers.Dense(2)])
    assert reestimate_batchnorm(plain, X) == 0


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """PyTorch's threads wait for each other longer than batches of this size take."""
    if keras.backend.backend() != "torch":
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    return load("digits", limit=800)


@pytest.fixture(scope="module")
def trained(digits):
    """A convolutional base with BatchNorm, trained, then frozen under a head of its own."""
    keras.utils.set_random_seed(0)
    base = [keras.Input((8, 8, 1))]
    for number, width in enumerate((8, 16, 16)):
        base += [
            layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"conv{number}"),
            layers.BatchNormalization(name=f"bn{number}", momentum=0.9),
            layers.ReLU(),
        ]
    base = keras.Sequential([*base, layers.GlobalAveragePooling2D()], name="base")
    model = keras.Sequential(
        [keras.Input((8, 8)), layers.Reshape((8, 8, 1)), base, layers.Dense(10, name="head")]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(digits.train.x, digits.train.y, batch_size=32, epochs=6, verbose=0)
    base.trainable = False
    model.compile("adam", loss)
    return model


def accuracy(model, data):
    logits = keras.ops.convert_to_numpy(model(data.test.x, training=False))
    return float((logits.argmax(-1) == data.test.y).mean())


PRUNE = Prune(
    sparsity=0.7,
    schedule=Schedule(shape="one-shot"),
    select=Select(include=("base/*",), frozen=True),
)


def test_a_pruned_frozen_base_collapses_and_comes_back(trained, digits):
    dense = accuracy(trained, digits)
    assert dense > 0.8
    model = copy_model(trained)
    assert not model.get_layer("base").trainable_variables
    PRUNE.apply(model)
    kernels = {w.path: w.read() for w in weight_table(model) if w.role == "kernel"}
    assert (kernels["base/conv2/kernel"] == 0).mean() == pytest.approx(0.7, abs=1e-3)
    collapsed = accuracy(model, digits)
    assert secateur.reestimate_batchnorm(model, digits.train.x) == 3
    settled = accuracy(model, digits)
    assert settled > collapsed + 0.15, (dense, collapsed, settled)
    for path, value in kernels.items():
        np.testing.assert_array_equal(weight_table(model)[path].read(), value)


def test_it_is_on_by_default_when_a_recipe_is_carried_out(trained, digits):
    found = {}
    for choice in ("default", "keep"):
        given = {} if choice == "default" else {"batchnorm": choice}
        recipe = Recipe(steps=[PRUNE], train=Train(epochs=0, **given))
        model = compress(trained, recipe, digits).model
        found[choice] = (
            accuracy(model, digits),
            statistics(model.get_layer("base").get_layer("bn2")),
        )
    assert found["default"][0] > found["keep"][0] + 0.15
    before = statistics(trained.get_layer("base").get_layer("bn2"))
    np.testing.assert_array_equal(found["keep"][1][0], before[0])
    assert (found["default"][1][0] != before[0]).any()
