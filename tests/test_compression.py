"""`compress`: a new model with its promises; the one passed in is never touched by accident."""

import random

import keras
import numpy as np
import pytest
from keras import layers

from secateur import compression
from secateur.arrays.schedules import Schedule
from secateur.compression import check_promises, compress, copy_model, train_control
from secateur.datasets import load
from secateur.errors import SecateurError
from secateur.methods.keep_zeros import KeepZeros
from secateur.methods.prune import Prune
from secateur.pipeline import resolve_model
from secateur.recipe import Recipe, Step
from secateur.runtimes.keras import load_model
from secateur.training import Train, train
from secateur.weights import Select, weight_table

RNG = np.random.default_rng(0)
DATA = load((RNG.random((120, 6), dtype=np.float32), RNG.integers(0, 3, 120)))
FAST = Train(batch_size=16, epochs=1)


def net():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), name="x")
    x = layers.Dense(8, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, layers.Dense(3, name="head")(x), name="net")


def snapshot(model):
    return [w.copy() for w in model.get_weights()]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_steps_follow_each_other_and_every_promise_holds_at_the_end():
    model = net()
    before = snapshot(model)
    recipe = Recipe(steps=[Prune(sparsity=0.5), KeepZeros(), Prune(sparsity=0.75)], train=FAST)
    small = compress(model, recipe, DATA)
    assert same(snapshot(model), before)
    assert [s.name for s in small.stages] == ["pruned", "tuned", "pruned-2"]
    assert {p.path: p.count for p in small.promises} == {"hidden/kernel": 36, "head/kernel": 18}
    # What was zero after the first step is still zero after the third.
    first = {p.path: p.value for p in small.stages[0].promises}
    for path, value in first.items():
        assert (weight_table(small.model)[path].read()[value] == 0).all()
    assert [w.name for w in small.model.layers] == [w.name for w in model.layers]


def test_zeros_of_an_earlier_step_are_held_while_a_later_one_works_on_other_weights():
    hidden, head = Select(include=("hidden",)), Select(include=("head",))
    late = Schedule(begin=0.6, shape="one-shot")
    for second in (
        Prune(sparsity=0.5, select=head),
        KeepZeros(select=head),
        Prune(sparsity=0.75, select=hidden, schedule=late),
    ):
        recipe = Recipe(steps=[Prune(sparsity=0.5, select=hidden), second], train=FAST)
        small = compress(net(), recipe, DATA)
        first = {p.path: p.value for p in small.stages[0].promises}["hidden/kernel"]
        assert (weight_table(small.model)["hidden/kernel"].read()[first] == 0).all()


def test_zeros_lost_on_the_way_are_an_error_not_a_smaller_promise(monkeypatch):
    def losing(model, *arguments, **settings):
        history = train(model, *arguments, **settings)
        model.get_layer("hidden").kernel.assign(np.ones((6, 8)))
        return history

    monkeypatch.setattr(compression, "train", losing)
    with pytest.raises(SecateurError, match="zeros at 24 of 48 weights of hidden/kernel"):
        compress(net(), Recipe(steps=[Prune(sparsity=0.5)], train=FAST), DATA)


def draws():
    """The next number of every global source."""
    found = [random.random(), np.random.random(), float(keras.random.uniform(()))]  # noqa: NPY002
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        found.append(float(tf.random.uniform(())))
    if keras.backend.backend() == "torch":
        import torch

        found.append(float(torch.rand(())))
    return found


def test_global_random_states_are_left_as_they_were(tmp_path):
    model, recipe = net(), Recipe(steps=[Prune(sparsity=0.5)], train=FAST)
    model.save(tmp_path / "net.keras")
    keras.utils.set_random_seed(5)
    expected = [draws() for _ in range(6)]
    keras.utils.set_random_seed(5)
    found = [draws()]
    for act in (
        lambda: compress(model, recipe, DATA),
        lambda: compress(model, Recipe(steps=[Prune(sparsity=0.5)])),
        lambda: train_control(copy_model(model), recipe, DATA),
        lambda: resolve_model("challenge-mlp", recipe, DATA),
        lambda: load_model(tmp_path / "net.keras"),
    ):
        act()
        found.append(draws())
    assert found == expected


def test_dropout_follows_the_seed_whatever_process_built_it():
    found = []
    for seed in (3, 3, 4):
        keras.utils.set_random_seed(len(found))  # what the process drew before must not matter
        dropout = layers.Dropout(0.5)
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((6,)), layers.Dense(8), dropout, layers.Dense(3)])
        recipe = Recipe(steps=[Prune(sparsity=0.5)], train=FAST, seed=seed)
        found.append(compress(model, recipe, DATA).model.get_weights())
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_data_may_be_arrays_and_are_folded_for_the_model():
    x, y = DATA.train.x.reshape(-1, 2, 3), DATA.train.y
    small = compress(net(), Recipe(steps=[Prune(sparsity=0.5)], train=FAST), (x, y))
    assert small.stages[0].history is not None


def test_without_data_every_step_acts_at_once():
    small = compress(net(), Recipe(steps=[Prune(sparsity=0.5)]))
    assert small.stages[0].history is None
    assert {p.count for p in small.promises} == {24, 12}


def test_a_failing_call_leaves_the_model_bit_for_bit(monkeypatch):
    for inplace in (False, True):
        model = net()
        before = snapshot(model)

        def stop(self, epoch, logs=None):
            raise RuntimeError("disk on fire")

        monkeypatch.setattr(keras.callbacks.TerminateOnNaN, "on_epoch_end", stop, raising=False)
        with pytest.raises(RuntimeError):
            compress(model, Recipe(steps=[Prune(sparsity=0.5)], train=FAST), DATA, inplace=inplace)
        assert same(snapshot(model), before)


def test_inplace_changes_the_model_itself():
    model = net()
    small = compress(model, Recipe(steps=[Prune(sparsity=0.5)]), inplace=True)
    assert small.model is model
    assert int((weight_table(model)["hidden/kernel"].read() == 0).sum()) == 24


class Sub(keras.Model):
    def __init__(self, width):
        super().__init__()
        self.width = width  # not in get_config: cannot be cloned
        self.inner = layers.Dense(width, name="inner")

    def call(self, x):
        return self.inner(x)


def test_a_model_that_cannot_be_cloned_must_be_passed_inplace():
    model = Sub(4)
    model(np.zeros((1, 6), np.float32))
    with pytest.raises(SecateurError, match="inplace=True"):
        compress(model, Recipe(steps=[Prune(sparsity=0.5)]))
    compress(model, Recipe(steps=[Prune(sparsity=0.5)]), inplace=True)
    assert int((weight_table(model)["inner/kernel"].read() == 0).sum()) == 12


class Scaled(layers.Dense):
    """A user's layer that was never registered."""


def test_a_users_unregistered_layer_is_copied():
    model = keras.Sequential([keras.Input((6,)), Scaled(3, name="mine")])
    copy = copy_model(model)
    assert type(copy.layers[0]) is Scaled
    assert same(snapshot(copy), snapshot(model))


def test_a_broken_promise_is_found_and_named():
    small = compress(net(), Recipe(steps=[Prune(sparsity=0.5)]))
    kernel = weight_table(small.model)["hidden/kernel"]
    kernel.variable.assign(np.where(kernel.read() == 0, 0.5, kernel.read()))
    with pytest.raises(SecateurError, match="zeros at 24 of 48 weights of hidden/kernel"):
        check_promises(small.model, small.promises)


def test_a_step_may_train_differently_and_the_schedule_follows_its_training():
    step = Step(
        method=Prune(sparsity=0.5, schedule=Schedule(every=1)), train=Train(batch_size=8, epochs=2)
    )
    small = compress(net(), Recipe(steps=[step], train=FAST), DATA)
    assert small.stages[0].history.steps == 2 * -(-len(DATA.train) // 8)
    assert small.stages[0].curve[-1][1] == 0.5
