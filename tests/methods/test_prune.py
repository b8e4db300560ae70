"""What `Prune` plans and refuses, and that each of its choices reaches the weights."""

import keras
import numpy as np
import pytest
from keras import layers

from secateur.arrays.schedules import Rewind, Schedule
from secateur.errors import SecateurError
from secateur.methods.prune import Prune
from secateur.weights import Select, weight_table


def model():
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [
            keras.Input((10,)),
            layers.Dense(20, name="first", activation="relu"),
            layers.Dense(20, name="second", activation="relu"),
            layers.Dense(5, name="head"),
            layers.Softmax(),
        ]
    )
    net.compile("sgd", "mse")
    return net


def data():
    rng = np.random.default_rng(0)
    return rng.random((80, 10), dtype=np.float32), rng.random((80, 5), dtype=np.float32)


def zeros(net):
    return {w.path: int((w.read() == 0).sum()) for w in weight_table(net) if w.role == "kernel"}


@pytest.mark.parametrize(
    ("select", "pruned"),
    [
        (Select(), {"first/kernel", "second/kernel", "head/kernel"}),
        (Select(output=False), {"first/kernel", "second/kernel"}),
        (Select(include=("second",)), {"second/kernel"}),
        (Select(include=("*st", "head/kernel")), {"first/kernel", "head/kernel"}),
        (Select(exclude=("head",)), {"first/kernel", "second/kernel"}),
        (Select(classes=("Dense",), min_size=300), {"second/kernel"}),
        (Select(roles=("bias",)), {"first/bias", "second/bias", "head/bias"}),
    ],
)
def test_selection_decides_what_is_pruned_and_the_plan_says_so(select, pruned):
    net = model()
    method = Prune(sparsity=0.5, select=select)
    plan = method.plan(weight_table(net))
    assert set(plan.changed) == pruned
    assert len(plan) == 6
    assert all(c.reason for c in plan if not c.changed)
    before = {w.path: w.read() for w in weight_table(net)}
    method.apply(net)
    for w in weight_table(net):
        if w.path in pruned:
            assert (w.read() == 0).sum() >= w.size // 2
        else:
            np.testing.assert_array_equal(w.read(), before[w.path])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Prune(sparsity=1.2), "sparsity 1.2 received"),
        (lambda: Prune(sparsity=50), "0.5 for 50 %"),
        (lambda: Prune(sparsity=1.0), "leaves no weight"),
        (lambda: Prune(sparsity=0.5, criterion="l3"), "unknown criterion 'l3'"),
        (lambda: Prune(sparsity=0.5, schedule=Schedule(initial=0.6)), "starts at 0.6"),
        (lambda: Select(roles=("kernels",)), "did you mean 'kernel'"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_written(make, message):
    with pytest.raises(SecateurError, match=message):
        make()


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (Select(include=("frist",)), "did you mean 'first'"),
        (Select(exclude=("nothing*",)), "matches no layer"),
        (Select(classes=("Conv2D",)), "no layer of class 'Conv2D'"),
        (Select(min_size=10**6), "matches no weight"),
    ],
)
def test_a_selection_that_matches_nothing_names_what_is_there(select, message):
    with pytest.raises(SecateurError, match=message):
        Prune(sparsity=0.5, select=select).plan(weight_table(model()))


def test_frozen_layers_are_skipped_with_that_reason():
    net = model()
    net.layers[0].trainable = False
    plan = Prune(sparsity=0.5).plan(weight_table(net))
    assert {c.path: c.reason for c in plan}["first/kernel"] == "frozen"


def test_l1_prunes_the_smallest_magnitudes():
    net = model()
    before = weight_table(net)["first/kernel"].read()
    Prune(sparsity=0.3).apply(net)
    after = weight_table(net)["first/kernel"].read()
    assert np.abs(before[after == 0]).max() < np.abs(before[after != 0]).min()


def test_random_masks_only_grow_and_follow_the_seed():
    def mask(sparsity, seed):
        net = model()
        return Prune(sparsity=sparsity, criterion="random").apply(net, seed=seed)["second/kernel"]

    masks = [mask(sparsity, 3) for sparsity in (0.2, 0.5, 0.9)]
    assert (masks[0] >= masks[1]).all()
    assert (masks[1] >= masks[2]).all()
    assert (mask(0.5, 4) != masks[1]).any()


def test_a_users_criterion_is_used_and_its_mistakes_are_named():
    def keep_last(weight):
        return np.arange(weight.size).reshape(weight.shape)

    mask = Prune(sparsity=0.5, criterion=keep_last).apply(model())["second/kernel"]
    assert not mask[:10].any()
    assert mask[10:].all()
    with pytest.raises(SecateurError, match="scores of shape"):
        Prune(sparsity=0.5, criterion=lambda weight: weight.sum(0)).apply(model())
    with pytest.raises(SecateurError, match=r"asks for 'w', expected parameters named weight, rng"):
        Prune(sparsity=0.5, criterion=lambda w: w)


def test_zeros_promised_earlier_stay_whatever_the_scores():
    for sparsity, zeros_wanted in ((0.25, 1), (0.5, 2)):
        net = keras.Sequential([keras.Input((4,)), layers.Dense(1, name="d")])
        net.layers[0].kernel.assign(np.array([[9.0], [1.0], [2.0], [3.0]]))
        held = np.array([[True], [False], [False], [False]])
        keep = Prune(sparsity=sparsity).apply(net, zeros={"d/kernel": held})["d/kernel"].ravel()
        assert keep.tolist() == [False, zeros_wanted == 1, True, True]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Prune(), "needs sparsity"),
        (lambda: Prune(pattern="2:4", sparsity=0.8), "which means 0.5"),
        (lambda: Prune(pattern="2:4", allocation="erk"), "equally sparse"),
        (lambda: Prune(pattern="2x4", sparsity=0.8), "unknown pattern '2x4'"),
        (lambda: Prune(allocation="ERK", sparsity=0.8), "unknown allocation 'ERK'"),
        (lambda: Prune(allocation={"conv": 80}, sparsity=0.8), "80 received for 'conv'"),
        (lambda: Rewind(rounds=0), "rounds=0 received"),
        (lambda: Prune(sparsity=0.8, rewind=Rewind()).callback(), "use compress or run"),
        (
            lambda: Prune(sparsity=0.8, criterion="snip").apply(model()),
            "gradient, which data alone",
        ),
        (
            lambda: Prune(pattern="block 2x2x2", sparsity=0.5).apply(model()),
            "fits none of the selected weights",
        ),
        (
            lambda: Prune(sparsity=0.5, allocation={"secnod": 0.9}).apply(model()),
            "did you mean 'second'",
        ),
    ],
)
def test_choices_that_do_not_go_together_are_refused(make, message):
    with pytest.raises(SecateurError, match=message):
        make()


def test_a_pattern_brings_its_sparsity_and_what_it_does_not_fit_is_skipped_with_the_reason():
    net = keras.Sequential(
        [keras.Input((3,)), layers.Dense(8, name="narrow"), layers.Dense(8, name="wide")]
    )
    method = Prune(pattern="2:4")
    assert method.sparsity == 0.5
    reasons = {c.path: c.reason for c in method.plan(weight_table(net))}
    assert reasons["narrow/kernel"] == "input axis of 3 is shorter than a group of 4"
    method.apply(net)
    assert {"narrow/kernel": 0, "wide/kernel": 32} == zeros(net)
    groups = (weight_table(net)["wide/kernel"].read() != 0).reshape(2, 4, 8).sum(1)
    assert (groups == 2).all()


def test_sparsities_of_single_layers_grow_in_proportion_to_the_schedule():
    net = model()
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            _ = self.model
            seen.append(zeros(net))

    method = Prune(sparsity=0.8, allocation={"second": 0.4}, schedule=Schedule(every=1, power=1))
    net.fit(*data(), batch_size=8, verbose=0, callbacks=[Watch(), method.callback()])
    assert seen[-1] == {"first/kernel": 160, "second/kernel": 160, "head/kernel": 80}
    assert [s["second/kernel"] for s in seen] == [int(400 * 0.4 * t / 9 + 0.5) for t in range(10)]


@pytest.mark.parametrize("allocation", ["global", "lamp", "erk", "erdos-renyi"])
def test_an_allocation_reaches_the_whole_exactly_and_differs_between_layers(allocation):
    net = model()
    keras.utils.set_random_seed(1)
    net.layers[1].kernel.assign(4 * weight_table(net)["second/kernel"].read())
    Prune(sparsity=0.7, allocation=allocation).apply(net)
    found = zeros(net)
    assert sum(found.values()) == round(0.7 * 700)
    assert found["first/kernel"] / 200 != found["second/kernel"] / 400


def test_nan_weights_are_refused_by_name_and_nothing_changes():
    net = model()
    bad = np.array(keras.ops.convert_to_numpy(net.layers[1].kernel))
    bad[0, 0] = np.nan
    net.layers[1].kernel.assign(bad)
    before = [w.read() for w in weight_table(net)]
    with pytest.raises(SecateurError, match="second/kernel"):
        Prune(sparsity=0.5).apply(net)
    with pytest.raises(SecateurError, match="second/kernel .* holds NaN"):
        net.fit(*data(), verbose=0, callbacks=[Prune(sparsity=0.5).callback()])
    for old, w in zip(before, weight_table(net), strict=True):
        np.testing.assert_array_equal(old, w.read())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_training_shorter_than_the_schedule_says_so():
    schedule = Schedule(initial=0.0, begin=0, end=40, every=1, unit="steps")
    with pytest.warns(
        UserWarning, match=r"10 steps, schedule ends at step 40; .* will be reached, not 80 %"
    ):
        net = model()
        net.fit(
            *data(),
            batch_size=8,
            verbose=0,
            callbacks=[Prune(sparsity=0.8, schedule=schedule).callback()],
        )
    assert 0 < zeros(net)["first/kernel"] < 160


@pytest.mark.parametrize(
    "unit, begin, end", [("fraction", 0.2, 0.6), ("steps", 4, 12), ("epochs", 0.4, 1.2)]
)
def test_times_mean_the_same_in_every_unit(unit, begin, end):
    callback = Prune(
        sparsity=0.8, schedule=Schedule(begin=begin, end=end, every=3, unit=unit)
    ).callback()
    model().fit(*data(), batch_size=8, epochs=2, verbose=0, callbacks=[callback])
    assert [step for step, _ in callback.curve] == [4, 7, 10, 12]
    assert callback.curve[-1][1] == 0.8


@pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")
def test_data_of_unknown_length_need_a_schedule_in_steps():
    x, y = data()

    def batches():
        for _ in range(3):
            yield x[:8], y[:8]

    with pytest.raises(SecateurError, match="unit='steps'"):
        model().fit(batches(), shuffle=False, verbose=0, callbacks=[Prune(sparsity=0.8).callback()])
    net = model()
    schedule = Schedule(shape="constant", begin=1, end=2, unit="steps")
    net.fit(
        batches(),
        shuffle=False,
        verbose=0,
        callbacks=[Prune(sparsity=0.8, schedule=schedule).callback()],
    )
    assert zeros(net)["first/kernel"] == 160
