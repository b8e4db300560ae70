"""Units removed at once: which, what becomes zero, what a repair gives back, what is refused."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
from keras import layers

from secateur import recipe as recipes
from secateur.compression import compress, copy_model
from secateur.datasets import Data, Split, load
from secateur.dense_chain import narrow, widths
from secateur.errors import Impossible, SecateurError
from secateur.methods.keep_zeros import KeepZeros
from secateur.methods.prune import Prune
from secateur.methods.units import PruneUnits
from secateur.promises import check
from secateur.recipe import Recipe, Step
from secateur.training import Train
from secateur.weights import Select, weight_table

REPAIRED = {"score": "activation", "repair": "least-squares"}


@functools.cache
def digits():
    data = load("digits")
    return data.train.x, data.train.y, data.test.x, data.test.y


@functools.cache
def trained(bias=True):
    keras.utils.set_random_seed(0)
    model = net(bias)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*digits()[:2], batch_size=32, epochs=4, verbose=0)
    return model


def net(bias=True, activation="relu"):
    return keras.Sequential(
        [
            keras.Input((8, 8)),
            layers.Flatten(),
            layers.Dense(80, activation=activation, use_bias=bias, name="one"),
            layers.Dense(40, activation=activation, use_bias=bias, name="two"),
            layers.Dense(10, activation="softmax", use_bias=bias, name="head"),
        ]
    )


def samples():
    return digits()[0][:1000], digits()[1][:1000]


def accuracy(model):
    outputs = keras.ops.convert_to_numpy(model(digits()[2], training=False))
    return float((outputs.argmax(-1) == digits()[3]).mean())


def pruned(model, **settings):
    copy = copy_model(model)
    masks = PruneUnits(**settings).apply(copy, data=samples())
    return copy, masks


def test_l2_removes_what_prune_by_units_removes():
    mine, masks = pruned(trained(False), sparsity=0.6)
    theirs = copy_model(trained(False))
    Prune(sparsity=0.6, pattern="units", criterion="l2", select=Select(output=False)).apply(theirs)
    assert set(masks) == {"one/kernel", "two/kernel"}
    for a, b in zip(mine.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    # exact counts, also where a fraction is half: floor(0.6 * 80 + 0.5), floor(0.6 * 40 + 0.5)
    assert [int(keep.any(axis=0).sum()) for keep in masks.values()] == [32, 16]


@pytest.mark.parametrize("settings", [{}, REPAIRED], ids=["l2", "repaired"])
def test_a_removed_unit_has_neither_weights_nor_bias_and_the_logits_keep_theirs(settings):
    model, masks = pruned(trained(), sparsity=0.6, **settings)
    for layer in ("one", "two"):
        keep = masks[f"{layer}/kernel"].all(axis=0)
        assert np.array_equal(masks[f"{layer}/kernel"], np.broadcast_to(keep, masks[f"{layer}/kernel"].shape))  # fmt: skip
        kernel, bias = model.get_layer(layer).get_weights()
        assert not kernel[:, ~keep].any() and not bias[~keep].any()
        assert kernel[:, keep].any(axis=0).all() and bias[keep].any()
    assert model.get_layer("head").get_weights()[0].any(axis=0).all()
    small = narrow(model)
    assert widths(small) == (32, 16, 10)
    x = digits()[2]
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(small(x)), keras.ops.convert_to_numpy(model(x)), atol=1e-5
    )


@pytest.mark.parametrize("bias", [True, False])
def test_the_repair_gives_back_most_of_what_removal_cost(bias):
    model = trained(bias)
    by = {
        name: accuracy(pruned(model, sparsity=0.8, **settings)[0])
        for name, settings in {
            "l2": {},
            "scored": {"score": "activation"},
            "solved": {"repair": "least-squares"},
            "both": REPAIRED,
        }.items()
    }
    dense = accuracy(model)
    assert dense > 0.9
    assert by["l2"] < dense - 0.1, by
    for name in ("solved", "both"):
        assert dense - by[name] < 0.5 * (dense - by["l2"]), by


def test_a_later_layer_makes_good_what_an_earlier_one_lost():
    """Aimed at the dense network's sums, not at those of the network cut so far."""
    model, x = trained(), samples()[0]
    ranking = PruneUnits(sparsity=0.7, **REPAIRED).rank(model, samples())
    kept = ranking.kept(0.7)
    wanted = ranking.chain.activations(ranking.chain.read(), x)[1]
    arrays = ranking.arrays(kept)
    error = np.square(ranking.chain.activations(arrays, x)[1] - wanted)[:, kept[1]].mean()
    masked = PruneUnits(sparsity=0.7, score="activation").rank(model, samples()).arrays(kept)
    assert error < 0.3 * np.square(ranking.chain.activations(masked, x)[1] - wanted)[:, kept[1]].mean()  # fmt: skip


def test_nothing_removed_changes_nothing_and_nothing_is_trained():
    model = trained()
    copy, _ = pruned(model, sparsity=0.0, **REPAIRED)
    for a, b in zip(copy.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_sigmoid_units_are_repaired_around_what_they_still_give():
    keras.utils.set_random_seed(0)
    model = net(activation="sigmoid")
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(*digits()[:2], batch_size=32, epochs=8, verbose=0)
    copy, _ = pruned(model, sparsity=0.7, **REPAIRED)
    assert accuracy(model) > 0.9 and accuracy(copy) > accuracy(model) - 0.1
    x = digits()[2]
    assert widths(narrow(copy)) == (24, 12, 10)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(narrow(copy)(x)), keras.ops.convert_to_numpy(copy(x)), atol=1e-5
    )


def test_the_plan_accounts_for_every_weight():
    table = weight_table(trained())
    plan = PruneUnits(sparsity=0.8, **REPAIRED).plan(table)
    assert [c.path for c in plan] == [w.path for w in table]
    said = {c.path: c.how or f"skipped: {c.reason}" for c in plan}
    assert said == {
        "one/kernel": "80 % of its units, activation",
        "one/bias": "zero where its unit is removed",
        "two/kernel": "80 % of its units, activation, solved anew by least-squares",
        "two/bias": "zero where its unit is removed, solved anew",
        "head/kernel": "solved anew by least-squares",
        "head/bias": "solved anew",
    }
    # What the plan says is what happens.
    copy, _ = pruned(trained(), sparsity=0.8, **REPAIRED)
    before = {w.path: w.read() for w in table}
    assert all((w.read() != before[w.path]).any() for w in weight_table(copy))

    plan = PruneUnits(sparsity=0.8, select=Select(include=("one", "head"))).plan(table)
    assert plan.changed == ("one/kernel", "one/bias")
    reasons = {c.path: c.reason for c in plan if not c.changed}
    assert reasons["head/kernel"] == "output layer" and reasons["two/kernel"] == "not included"


def test_only_selected_layers_lose_units():
    copy, masks = pruned(trained(), sparsity=0.5, select=Select(include=("two",)), **REPAIRED)
    assert set(masks) == {"two/kernel"}
    assert widths(narrow(copy)) == (80, 20, 10)


def test_a_recipe_carries_it_from_toml_to_promises(monkeypatch):
    monkeypatch.setitem(recipes.METHODS, PruneUnits.kind, PruneUnits)
    step = Step(method=PruneUnits(sparsity=0.8, samples=500, **REPAIRED), train=Train(epochs=0))
    tune = Step(method=KeepZeros(), train=Train(epochs=1, batch_size=32))
    recipe = Recipe(steps=[step, tune])
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    x, y, tx, ty = digits()
    data = Data("digits", Split(x, y), None, None, Split(tx, ty))
    small = compress(trained(), recipe, data)
    assert [stage.name for stage in small.stages] == ["pruned", "tuned"]
    assert {p.path for p in small.promises} == {"one/kernel", "two/kernel"}
    table = weight_table(small.model)
    assert all(check(p, table[p.path].read()).ok for p in small.promises)
    assert widths(narrow(small.model)) == (16, 8, 10)
    assert accuracy(small.model) > 0.85


class Watch(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.zeros = []

    def on_train_batch_end(self, batch, logs=None):
        kernels = [w.read() for w in weight_table(self.model) if w.role == "kernel"]
        self.zeros.append([int((~k.any(axis=0)).sum()) for k in kernels])


def test_in_fit_units_go_before_the_first_step_and_stay_away():
    model = copy_model(trained())
    head = model.get_layer("head").get_weights()[0]
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    callback, watch = PruneUnits(sparsity=0.8, **REPAIRED).callback(data=samples()), Watch()
    model.fit(*samples(), batch_size=250, verbose=0, callbacks=[callback, watch])
    assert watch.zeros == [[64, 32, 0]] * 4
    # The rate is 0: what is there at the end is what the repair wrote.
    once, _ = pruned(trained(), sparsity=0.8, **REPAIRED)
    for a, b in zip(model.get_weights(), once.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert (head != model.get_layer("head").get_weights()[0]).any()
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    callback, watch = PruneUnits(sparsity=0.8).callback(), Watch()
    model.fit(*samples(), batch_size=250, epochs=2, verbose=0, callbacks=[callback, watch])
    assert watch.zeros == [[64, 32, 0]] * 8
    assert callback.curve == [(0, 0.8)] and set(callback.masks) == {"one/kernel", "two/kernel"}


def test_the_last_unit_is_never_removed():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="two"), layers.Dense(3)])
    before = model.get_weights()
    with pytest.raises(Impossible, match="all 2 units of two/kernel would be removed"):
        PruneUnits(sparsity=0.99).apply(model)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_data_may_be_what_load_data_gives_its_training_part():
    data = load("digits")
    method = PruneUnits(sparsity=0.5, **REPAIRED)
    found = []
    for given in (data, data.train, (data.train.x, data.train.y), [(data.train.x, data.train.y)]):
        model = copy_model(trained())
        method.apply(model, data=given)
        found.append(model.get_weights())
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (lambda: dataclasses.replace(load("digits"), train=None), "without a training part"),
        (lambda: np.zeros((9, 8, 8)), "data ndarray received"),
        (lambda: [np.zeros((9, 8, 8))], "data list of ndarray received"),
        (lambda: [], "data list, empty received"),
        (lambda: (np.zeros((9, 8, 8)),), "data tuple of length 1 received"),
        (lambda: "digits", "data str received"),
    ],
)
def test_data_of_another_kind_are_refused_in_one_line(given, told):
    before = trained().get_weights()
    with pytest.raises(SecateurError, match=rf"{told}.*expected .*fix: ") as error:
        PruneUnits(sparsity=0.5, **REPAIRED).apply(trained(), data=given())
    assert "\n" not in str(error.value)
    for now, then in zip(trained().get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_what_cannot_be_meant_is_refused_in_one_line():
    cases = {
        "1.0 leaves no unit": lambda: PruneUnits(sparsity=1.0),
        "0.8 for 80 %": lambda: PruneUnits(sparsity=80),
        "did you mean 'activation'": lambda: PruneUnits(sparsity=0.5, score="activations"),
        "expected 'least-squares'": lambda: PruneUnits(sparsity=0.5, repair="ridge"),
        "samples 0": lambda: PruneUnits(sparsity=0.5, samples=0),
        "ridge -1": lambda: PruneUnits(sparsity=0.5, ridge=-1),
        "no data was received": lambda: PruneUnits(sparsity=0.5, **REPAIRED).apply(trained()),
        "zeros promised earlier": lambda: PruneUnits(sparsity=0.5).apply(
            trained(), zeros={"one/kernel": np.ones((64, 80), bool)}
        ),
        "no hidden Dense kernel": lambda: PruneUnits(
            sparsity=0.5, select=Select(include=("head",))
        ).apply(trained()),
        "would break the promise 'zeros'": lambda: Recipe(
            steps=[Prune(sparsity=0.5), PruneUnits(sparsity=0.5)]
        ),
    }
    for told, call in cases.items():
        with pytest.raises(SecateurError, match=told) as error:
            call()
        assert "\n" not in str(error.value)
