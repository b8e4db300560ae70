"""RigL keeps its sparsity at every step and moves its zeros; pruning in rounds rewinds to a point."""

import keras
import numpy as np
import pytest
from keras import layers

from secateur import compression
from secateur.arrays.schedules import Rewind, Schedule
from secateur.capture import batches_of, gradients
from secateur.compression import compress
from secateur.datasets import Data, Split, load
from secateur.errors import SecateurError
from secateur.methods.fine_tune import FineTune
from secateur.methods.keep_zeros import KeepZeros
from secateur.methods.prune import Prune
from secateur.methods.rigl import RigL
from secateur.recipe import Recipe
from secateur.training import Snapshot, Train
from secateur.weights import weight_table

STEPS = 10
SIZES = {"hidden/kernel": 240, "head/kernel": 120}
ZEROS = {"hidden/kernel": 192, "head/kernel": 96}
ONCE = Schedule(shape="one-shot")
NONE = (None, None, None)


def net():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(40, activation="tanh", name="hidden"),
            layers.Dense(3, name="head"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # With momentum: a weight grown into a unit whose last output goes in the same exchange has no
    # gradient, and only what it was pushed by before moves it.
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    return model


def data(n=8 * STEPS):
    rng = np.random.default_rng(0)
    return rng.random((n, 6), dtype=np.float32), rng.integers(0, 3, n)


def kernels(model):
    return {w.path: w.read() for w in weight_table(model) if w.role == "kernel"}


class Watch(keras.callbacks.Callback):
    """Weights and masks of every step, before and after its update; stands behind the one watched."""

    def __init__(self, watched):
        super().__init__()
        self.watched = watched
        self.masks, self.before, self.after, self.biases = [], [], [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.before.append(kernels(self.model))
        self.masks.append(self.watched.projection.masks())

    def on_train_batch_end(self, batch, logs=None):
        self.after.append(kernels(self.model))
        self.biases.append({layer.name: layer.bias.numpy() for layer in self.model.layers})


def trained(epochs=2, **settings):
    model = net()
    method = RigL(**{"sparsity": 0.8, "every": 4, "allocation": "uniform", **settings})
    callback = method.callback(data=data())
    watch = Watch(callback)
    x, y = data()
    model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, callbacks=[callback, watch])
    return callback, watch


@pytest.fixture(scope="module")
def run():
    """20 steps with updates before steps 4, 8 and 12; after 75 % of the training there are none."""
    return trained()


def test_sparsity_is_exact_at_every_step(run):
    callback, watch = run
    for masks in (*watch.masks, callback.masks):
        assert {p: int((~m).sum()) for p, m in masks.items()} == ZEROS
    for step, found in enumerate(watch.after):
        for path, value in found.items():
            np.testing.assert_array_equal(value != 0, watch.masks[step][path], err_msg=f"{step}")
            assert not np.signbit(value[value == 0]).any()
    assert len(watch.after) == 20
    assert callback.notes == []


def test_as_many_are_exchanged_as_the_cosine_says_and_none_after_the_end(run):
    callback, watch = run
    found = {}
    for step in range(1, 20):
        was, now = watch.masks[step - 1]["hidden/kernel"], watch.masks[step]["hidden/kernel"]
        if grown := int((now & ~was).sum()):
            found[step] = grown
            assert int((was & ~now).sum()) == grown
    # 48 are kept; 0.15 * (1 + cos(pi * step / 19 / 0.75)) of them move.
    assert found == {4: 12, 8: 6, 12: 1}
    assert [step for step, _ in callback.curve] == [0, 4, 8, 12]


def test_a_grown_weight_begins_at_positive_zero_and_leaves_it_with_its_next_update(run):
    _, watch = run
    for step in (4, 8, 12):
        for path in ZEROS:
            grown = watch.masks[step][path] & ~watch.masks[step - 1][path]
            begins = watch.before[step][path][grown]
            assert (begins == 0).all() and not np.signbit(begins).any()
            assert (watch.after[step][path][grown] != 0).all()
            dropped = ~watch.masks[step][path] & watch.masks[step - 1][path]
            magnitude = np.abs(watch.after[step - 1][path])
            stayed = watch.masks[step][path] & watch.masks[step - 1][path]
            assert magnitude[dropped].max(initial=0) <= magnitude[stayed].min()


def test_weights_grow_where_the_gradient_is_largest(run):
    _, watch = run
    model = net()
    table = weight_table(model)
    for path, value in watch.after[3].items():
        table[path].variable.assign(value)
    for layer in model.layers:  # biases as they were then
        layer.bias.assign(watch.biases[3][layer.name])
    x, y = data()
    batch = batches_of(x, y)[1:2]  # each exchange reads the next batch
    found = gradients(model, model.loss, [table["hidden/kernel"]], batch)["hidden/kernel"][0]
    was, now = watch.masks[3]["hidden/kernel"], watch.masks[4]["hidden/kernel"]
    growth = np.abs(found)
    assert growth[now & ~was].min() >= growth[~now & ~was].max()


def test_layers_share_the_zeros_as_erk_says():
    _, watch = trained(epochs=1, allocation="erk")
    # 72 of 360 stay, in proportion to 6 + 40 and 40 + 3: 37 and 35.
    for masks in watch.masks:
        assert {p: int(m.sum()) for p, m in masks.items()} == {
            "hidden/kernel": 37,
            "head/kernel": 35,
        }
    assert any(
        (masks["head/kernel"] != watch.masks[0]["head/kernel"]).any() for masks in watch.masks
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: RigL(sparsity=0.8).callback(), "needs data for them; give callback.data="),
        (lambda: RigL(sparsity=1.0), "leaves no weight"),
        (lambda: RigL(sparsity=80), "0.8 for 80 %"),
        (lambda: RigL(sparsity=0.8, fraction=1.5), "fraction 1.5 received"),
        (lambda: RigL(sparsity=0.8, end=-1), "end -1 received"),
        (lambda: RigL(sparsity=0.8, every=0), "every 0 received"),
        (lambda: RigL(sparsity=0.8, allocation="erck"), "did you mean 'erk'"),
        (lambda: _unknown_length(), "does not know its length, so RigL"),
    ],
)
def test_what_cannot_work_is_refused(wrong, message):
    with pytest.raises(SecateurError, match=message):
        wrong()


def _unknown_length():
    x, y = data()
    model = net()
    endless = ((x[:8], y[:8]) for _ in range(4))
    model.fit(
        endless, verbose=0, shuffle=False, callbacks=[RigL(sparsity=0.8).callback(data=(x, y))]
    )


def test_the_promise_holds_after_compressing_and_in_a_later_training():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8)),
            layers.Flatten(),
            layers.Dense(32, activation="relu", name="hidden"),
            layers.Dense(10, name="head"),
        ]
    )
    digits = load("digits", limit=640)
    steps = [RigL(sparsity=0.8, every=5), KeepZeros()]
    small = compress(model, Recipe(steps=steps, train=Train(epochs=2, batch_size=64)), digits)
    assert [stage.name for stage in small.stages] == ["pruned", "tuned"]
    assert len(small.stages[0].curve) > 2
    zeros = {p.path: p.value for p in small.promises}
    # 2,368 weights, 474 stay: in proportion to 64 + 32 and 32 + 10.
    assert {p: int(z.sum()) for p, z in zeros.items()} == {
        "hidden/kernel": 1718,
        "head/kernel": 176,
    }
    for path, where in zeros.items():
        np.testing.assert_array_equal(weight_table(small.model)[path].read() == 0, where)


class Early(keras.callbacks.Callback):
    """Weights and the optimizer's counter before the first step of a training."""

    def __init__(self):
        super().__init__()
        self.weights = None

    def on_train_batch_begin(self, batch, logs=None):
        if self.weights is None:
            self.weights = kernels(self.model)
            self.iterations = int(self.model.optimizer.iterations)


@pytest.mark.parametrize(
    "before",
    [
        "dense",
        "pruned",
    ],
)
def test_each_round_of_rewinding_begins_with_the_survivors_as_they_were_early(before, monkeypatch):
    begun, snapshots = [], []
    train = compression.train

    def spied(model, data, settings, *, start=None, callbacks=(), **kwargs):
        early = Early()
        done = train(model, data, settings, start=start, callbacks=[*callbacks, early], **kwargs)
        begun.append(early)
        snapshots.extend(c for c in callbacks if isinstance(c, Snapshot))
        return done

    monkeypatch.setattr(compression, "train", spied)
    first = FineTune() if before == "dense" else Prune(sparsity=0.5, schedule=ONCE)
    steps = [first, Prune(sparsity=0.875, rewind=Rewind(rounds=2, to=1))]
    x, y = data()
    settings = Train(epochs=2, batch_size=8, optimizer="adam")
    model = net()
    small = compress(model, Recipe(steps=steps, train=settings), Data("small", Split(x, y), *NONE))
    (snapshot,) = snapshots
    names = [w.path for w in weight_table(small.model)]
    early = dict(zip(names, snapshot.weights, strict=True))
    counts = []
    for round_ in begun[1:]:
        assert round_.iterations == STEPS  # the optimizer too, back at the end of the first epoch
        for path, value in round_.weights.items():
            np.testing.assert_array_equal(value, np.where(value == 0, 0, early[path]))
        counts.append(int((round_.weights["hidden/kernel"] == 0).sum()))
    # Of 240: 1 - sqrt(1/8) first, then 7/8.
    assert counts == [155, 210]
    for path, size in SIZES.items():
        final = weight_table(small.model)[path].read()
        assert int((final == 0).sum()) == 7 * size // 8
        assert (final != early[path])[final != 0].mean() > 0.5


def test_rewinding_without_an_earlier_training_names_the_fix():
    recipe = Recipe(steps=[Prune(sparsity=0.5, rewind=Rewind(to=0))], train=Train(epochs=1))
    with pytest.raises(SecateurError, match="put a fine-tune step, the dense training, before it"):
        compress(net(), recipe, data())
