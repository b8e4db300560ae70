"""Many sparsities of one dense network give what setting the weights and evaluating gives, in one trace."""

import dataclasses
import functools
import time

import keras
import numpy as np
import pytest
from keras import layers

from secateur.arrays.masks import unstructured, unstructured_levels
from secateur.compression import copy_model
from secateur.datasets import load
from secateur.errors import SecateurError
from secateur.methods.keep_zeros import KeepZeros
from secateur.methods.prune import Prune
from secateur.methods.units import PruneUnits
from secateur.one_shot import OneShotCurve, one_shot_curve
from secateur.passes import Forward, even_batches
from secateur.weights import Select, weight_table

HIDDEN = Select(output=False)
LOSS = "sparse_categorical_crossentropy"
SPARSITIES = (0.0, 0.6, 0.95)
METHODS = {
    "weights": Prune(sparsity=0.5, select=HIDDEN),
    "global": Prune(sparsity=0.5, allocation="global"),
    "random": Prune(sparsity=0.5, criterion="random", select=HIDDEN),
    "snip": Prune(sparsity=0.5, criterion="snip", select=HIDDEN),
    "blocks": Prune(sparsity=0.5, pattern="block 4x1", select=HIDDEN),
    "units": Prune(sparsity=0.5, pattern="units", criterion="l2", select=HIDDEN),
    "units, l2": PruneUnits(sparsity=0.5),
    "units, repaired": PruneUnits(sparsity=0.5, score="activation", repair="least-squares"),
}
UNITS = ("units", "units, l2", "units, repaired")


@functools.cache
def digits():
    data = load("digits")
    return data.train.x, data.train.y, data.test.x, data.test.y


@functools.cache
def trained(bias=True):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8)),
            layers.Flatten(),
            layers.Dense(80, activation="relu", use_bias=bias),
            layers.Dense(40, activation="relu", use_bias=bias),
            layers.Dense(10, activation="softmax", use_bias=bias),
        ]
    )
    model.compile("adam", LOSS, metrics=["accuracy"])
    model.fit(*digits()[:2], batch_size=32, epochs=3, verbose=0)
    return model


def samples():
    return digits()[0][:500], digits()[1][:500]


def usual(copy, dense, method, sparsity, x, y):
    """What one does by hand: set the weights, prune, evaluate. (loss, accuracy), zeros by kernel."""
    copy.set_weights(dense)
    once = dataclasses.replace(method, sparsity=sparsity)
    once.apply(copy, seed=3, data=samples(), loss=LOSS)
    zeros = {
        w.path: float((w.read() == 0).mean()) for w in weight_table(copy) if w.role == "kernel"
    }
    return copy.evaluate(x, y, batch_size=64, verbose=0), zeros


@pytest.mark.parametrize(
    ("name", "bias"),
    [*((name, False) for name in METHODS), *((name, True) for name in ("weights", *UNITS))],
)
def test_every_point_equals_the_usual_way(name, bias):
    model, method, (_, _, x, y) = trained(bias), METHODS[name], digits()
    before = model.get_weights()
    curve = one_shot_curve(model, method, SPARSITIES, x, y, seed=3, data=samples())
    assert [point.asked for point in curve] == list(SPARSITIES)
    kernels = {w.path: w.read() for w in weight_table(model) if w.role == "kernel"}
    total = sum(float((k.astype(float) ** 2).sum()) for k in kernels.values())
    accuracies = []
    copy = copy_model(model)
    copy.compile(loss=LOSS, metrics=["accuracy"])
    for point, sparsity in zip(curve, SPARSITIES, strict=True):
        (loss, accuracy), zeros = usual(copy, before, method, sparsity, x, y)
        assert point.error is None
        assert abs(point.metrics["accuracy"] - accuracy) <= 2 / len(y) + 1e-6
        assert point.metrics["loss"] == pytest.approx(loss, rel=2e-3, abs=1e-5)
        assert point.layers == zeros
        assert point.right.mean() == pytest.approx(point.metrics["accuracy"])
        outputs = keras.ops.convert_to_numpy(copy(x))
        assert np.sum(point.predictions != outputs.argmax(-1)) <= 2
        assert np.array_equal(point.right, point.predictions == y)
        pruned = weight_table(copy)
        gone = sum(float((k[pruned[p].read() == 0].astype(float) ** 2).sum()) for p, k in kernels.items())  # fmt: skip
        assert point.norm_removed == pytest.approx(gone / total, abs=1e-5)
        assert point.realised == pytest.approx(sum(z * kernels[p].size for p, z in zeros.items())
                                               / sum(k.size for k in kernels.values()))  # fmt: skip
        assert (point.widths is None) == (name not in UNITS)
        assert point.wall > 0 and point.cpu >= 0
        accuracies.append(accuracy)
    assert (
        accuracies[0] > 0.85 and accuracies[-1] < accuracies[0] - 0.05
    )  # there was something to see
    for mine, was in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, was)


def test_units_are_computed_at_their_kept_widths():
    x, y = digits()[2:]
    curve = one_shot_curve(trained(), METHODS["units, repaired"], (0.0, 0.6), x, y, data=samples())
    assert [point.widths for point in curve] == [(80, 40, 10), (32, 16, 10)]
    assert curve[1].dead.incoming == pytest.approx(0.6 * (64 * 80 + 80 * 40) / (64 * 80 + 80 * 40 + 400))  # fmt: skip
    assert curve[0].dead.network == 0


@pytest.fixture
def calls(monkeypatch):
    """How often Python went through the output layer: once a trace, or once a pass where none is made."""
    count = []
    softmax = keras.activations.softmax

    def counted(x, axis=-1):
        count.append(1)
        return softmax(x, axis)

    monkeypatch.setattr(trained().layers[-1], "activation", counted)
    return count


def test_one_trace_for_all_sparsities(backend, calls):
    model, (_, _, x, y) = trained(), digits()
    curve = OneShotCurve(model, METHODS["weights"], np.linspace(0, 0.9, 10))
    calls.clear()
    curve.evaluate(x, y)
    if backend == "torch":  # runs each operation as it comes: nothing is traced, ten passes are ten
        assert (len(calls), curve.traces) == (10, None)
        return
    assert (len(calls), curve.traces) == (1, 1)
    curve.evaluate(x, y)  # and none when read again
    assert (len(calls), curve.traces) == (1, 1)


def test_at_most_one_trace_for_each_width(backend, calls):
    model, (_, _, x, y) = trained(), digits()
    curve = OneShotCurve(model, METHODS["units, l2"], (0.0, 0.2, 0.2, 0.4, 0.6, 0.8))
    calls.clear()
    curve.evaluate(x, y)
    expected = {"tensorflow": 2, "jax": 5, "torch": None}[backend]
    assert curve.traces == expected
    assert len(calls) == (expected or 6)
    curve.evaluate(x, y)
    assert curve.traces == expected


def test_an_uneven_rest_makes_no_second_trace(backend, monkeypatch):
    monkeypatch.setattr("secateur.passes.MEMORY", 80 * 4 * 70)
    model, (x, y) = trained(), (part[:353] for part in digits()[2:])
    sizes = [len(batch) for batch in even_batches(model, x)]
    assert len(set(sizes)) == 1 and 1 < len(sizes) and sum(sizes) > len(x), sizes
    curve = OneShotCurve(model, METHODS["weights"], SPARSITIES)
    small = curve.evaluate(x, y)
    assert curve.traces in (1, None)
    monkeypatch.undo()
    for a, b in zip(small, curve.evaluate(x, y), strict=True):
        assert len(a.right) == len(y) and np.sum(a.right != b.right) <= 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("name", ["weights", "units, repaired"])
def test_an_interruption_leaves_the_network_as_it_was(name, error, monkeypatch):
    model, (_, _, x, y) = trained(), digits()
    before, passes, over = model.get_weights(), [], Forward.over

    def interrupted(self, *args):
        passes.append(1)
        if len(passes) == 3:
            raise error
        return over(self, *args)

    monkeypatch.setattr(Forward, "over", interrupted)
    with pytest.raises(error):
        one_shot_curve(model, METHODS[name], SPARSITIES, x, y, data=samples())
    assert len(passes) == 3
    for mine, was in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, was)


@pytest.mark.parametrize("name", ["weights", "units, repaired", "random"])
def test_the_order_of_sparsities_is_no_matter(name):
    model, (_, _, x, y) = trained(), digits()
    up = one_shot_curve(model, METHODS[name], SPARSITIES, x, y, data=samples())
    down = one_shot_curve(model, METHODS[name], SPARSITIES[::-1], x, y, data=samples())
    for a, b in zip(up, down[::-1], strict=True):
        assert a.layers == b.layers and np.array_equal(a.right, b.right)


def test_impossible_sparsities_are_points_and_the_others_go_on():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(2, "relu"), layers.Dense(3, "softmax")]
    )
    x, y = np.ones((5, 4), "float32"), np.array([0, 1, 2, 0, 1])
    for method in (PruneUnits(sparsity=0.5), METHODS["weights"], METHODS["units"]):
        curve = one_shot_curve(model, method, (0.0, 0.99, 0.5), x, y)
        assert [point.error is None for point in curve] == [True, False, True]
        assert curve[1].metrics == {} and curve[1].right is None and curve[1].realised is None
        assert "expected" in curve[1].error and "\n" not in curve[1].error
        assert curve[2].metrics["loss"] > 0


def test_any_network_and_kind_of_label():
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).random((70, 8, 8), "float32")
    conv = [
        layers.Reshape((8, 8, 1)), layers.Conv2D(4, 3), layers.BatchNormalization(),
        layers.ReLU(), layers.Flatten(),
    ]  # fmt: skip
    for head, loss, y in (
        (layers.Dense(1, "sigmoid"), "binary_crossentropy", np.arange(70) % 2),
        (layers.Dense(2), "mse", x[:, 0, :2]),
        (layers.Dense(3, "softmax"), "categorical_crossentropy", np.eye(3)[np.arange(70) % 3]),
    ):
        model = keras.Sequential([keras.Input((8, 8)), *conv, head])
        model.compile(loss=loss)
        method = Prune(sparsity=0.5)
        for point in one_shot_curve(model, method, (0.2, 0.7), x, y):
            copy = copy_model(model)
            Prune(sparsity=point.asked).apply(copy)
            copy.compile(loss=loss)
            found = point.metrics["mse" if loss == "mse" else "loss"]
            assert found == pytest.approx(copy.evaluate(x, y, verbose=0), rel=1e-3)
            if loss == "mse":
                assert point.right is None
            else:
                assert point.right.mean() == pytest.approx(point.metrics["accuracy"])


def test_what_cannot_act_without_training_is_refused():
    model, (_, _, x, y) = trained(), digits()
    with pytest.raises(SecateurError, match="keep-zeros.*run it as a recipe"):
        one_shot_curve(model, KeepZeros(), (0.5,), x, y)
    with pytest.raises(SecateurError, match=r"0.8 for 80 %"):
        one_shot_curve(model, METHODS["weights"], (0.5, 80), x, y)
    with pytest.raises(SecateurError, match="leaves no weight"):
        one_shot_curve(model, METHODS["weights"], (0.5, 1.0), x, y)
    with pytest.raises(SecateurError, match="as many of each"):
        one_shot_curve(model, METHODS["weights"], (0.5,), x, y[:-1])
    with pytest.raises(SecateurError, match="no data was received"):
        one_shot_curve(model, METHODS["units, repaired"], (0.5,), x, y)


def test_levels_are_the_masks_of_each_sparsity_alone():
    rng = np.random.default_rng(0)
    for scores in (rng.random((30, 7)), rng.integers(0, 3, (30, 7)), np.zeros((4, 5)),
                   np.where(rng.random((30, 7)) < 0.6, -np.inf, rng.random((30, 7)))):  # fmt: skip
        sparsities = (0.9, 0.0, 0.5, 0.5, 1.0, 0.01)
        for sparsity, keep in zip(sparsities, unstructured_levels(scores, sparsities), strict=True):
            order = np.argsort(scores, axis=None, kind="stable")
            expected = np.ones(scores.size, bool)
            expected[order[: int(np.floor(sparsity * scores.size + 0.5))]] = False
            np.testing.assert_array_equal(keep.ravel(), expected)
            np.testing.assert_array_equal(keep, unstructured(scores, sparsity))


def test_seconds_cover_the_work(monkeypatch):
    over = Forward.over

    def slow(self, *args):
        time.sleep(0.02)
        return over(self, *args)

    monkeypatch.setattr(Forward, "over", slow)
    curve = one_shot_curve(trained(), METHODS["weights"], (0.5,), *digits()[2:])
    assert curve[0].wall >= 0.02
