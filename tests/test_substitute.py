"""A model is called through the grids of a file while a substitution is attached, and not after."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers
from tests import quantized_models as nets

from secateur.errors import SecateurError
from secateur.fusing import points_of
from secateur.graph import graph_of
from secateur.methods.quantize import Quantize
from secateur.substitute import Substitution, as_in_file, restore
from secateur.weights import weight_table


def widths_of(model):
    return Quantize().specify(weight_table(model)).widths


def names_of(model):
    return [(type(layer).__name__, layer.name) for layer in model.layers]


def test_while_it_is_attached_nothing_of_the_model_changes_but_its_answers(tmp_path):
    x, y = nets.pictures(64)
    model = nets.trained(nets.normalized, (x, y), epochs=1)
    before, names = model.predict(x, verbose=0), names_of(model)
    weights, count = model.get_weights(), len(model.weights)
    substitution = Substitution(model, widths_of(model))
    substitution.start_from([x])
    substitution.attach()
    inside = model.predict(x, verbose=0)
    assert names_of(model) == names
    assert 1e-4 < np.abs(inside - before).max() < 0.5 * np.abs(before).max()
    for suffix in (".keras", ".weights.h5"):
        path = tmp_path / f"live{suffix}"
        if suffix == ".keras":
            model.save(path)
            loaded = keras.models.load_model(path)
        else:
            model.save_weights(path)
            loaded = nets.normalized()
            loaded.load_weights(path)
        # Plain Keras opens what a live model is saved in: it is the float model.
        np.testing.assert_allclose(loaded.predict(x, verbose=0), before, atol=1e-5)
    model.load_weights(tmp_path / "live.weights.h5")
    restore(model)
    restore(model)  # a second time does nothing
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)
    assert len(model.weights) == count and "call" not in vars(model)
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_ranges_start_from_data_and_follow_them():
    x, _ = nets.pictures(64)
    model = nets.plain()
    substitution = Substitution(model, {}, momentum=0.9)
    assert not substitution.observed
    substitution.start_from([x[:32], 2 * x[32:]])
    low, high = substitution.ranges()["input:0"]
    expected = (x[:32].max() + 2 * x[32:].max()) / 2
    assert low == 0 and high == pytest.approx(expected, rel=1e-5)
    substitution.attach()
    for count in range(3, 40):
        model(x, training=True)
        rate = max(0.1, 1 / count)  # of the first ones each counts alike
        expected += rate * (x.max() - expected)
        assert substitution.ranges()["input:0"][1] == pytest.approx(expected, rel=1e-4)
    frozen = substitution.ranges()
    model(5 * x, training=False)
    assert substitution.ranges() == frozen
    restore(model)


def test_without_data_the_first_step_gives_the_ranges():
    x, y = nets.pictures(64)
    model = nets.trained(nets.joined, (x, y), epochs=0)
    callback = Quantize(aware=True).callback()
    model.fit(x, y, epochs=1, batch_size=64, verbose=0, callbacks=[callback])
    assert callback.ranges["input:0"] == pytest.approx((0.0, x.max()))
    low, high = (
        callback.ranges["concatenate"]
        if "concatenate" in callback.ranges
        else next(
            bounds for key, bounds in callback.ranges.items() if key.startswith("concatenate")
        )
    )
    assert low < 0 < high


def test_where_the_tensors_of_a_file_are():
    points = points_of(nets.residual())
    kinds = [key.rstrip("_0123456789") for key in points.keys]
    # No tensor between a convolution and its BatchNorm, nor between the sum and its ReLU.
    assert kinds == [
        "input:",
        "first",
        "batch_normalization",
        "re_lu",
        "global_average_pooling2d",
        "head",
    ]
    assert list(points.folded) == ["second"]


def test_branches_that_are_joined_share_a_range_unless_the_runtime_fixes_it():
    points = points_of(nets.joined())
    place = {key.rstrip("_0123456789"): number for number, key in enumerate(points.keys)}
    assert points.after["a"] == points.after["c"] == place["concatenate"]
    assert points.fixed[points.after["b"]] == (-1.0, 127 / 128)
    assert "a" not in points.owned and "a" not in points.keys


def test_scaled_scores_have_the_codes_of_the_products():
    x, _ = nets.pictures(32)
    model = nets.attention()
    substitution = Substitution(model, widths_of(model))
    substitution.start_from([x])
    substitution.attach()
    model(x, training=True)
    restore(model)
    ranges = substitution.ranges()
    assert ranges["mha/weights"] == (0.0, 255 / 256)
    for scaled, whole in zip(ranges["mha/scores"], ranges["mha/products"], strict=True):
        assert scaled == pytest.approx(whole / np.sqrt(8), rel=1e-6)
    assert ranges["mha/products"][0] < 0 < ranges["mha/products"][1]


def test_scores_under_a_mask_stay_float():
    inputs = keras.Input((6, 8))
    y = layers.MultiHeadAttention(2, 4, name="mha")(inputs, inputs, use_causal_mask=True)
    points = points_of(keras.Model(inputs, y))
    assert "mha/products" not in points.keys and "mha/attended" in points.keys
    assert points.told_floats() == (
        "mha (scores that a mask makes huge leave no codes for the others)"
    )


def test_nested_and_shared_layers_are_named_by_their_place():
    assert {c.path for c in graph_of(nets.nested()).calls} >= {"base/conv", "head"}
    paths = [c.path for c in graph_of(nets.shared()).calls]
    assert "conv" in paths and "conv:1" in paths
    assert not points_of(nets.shared()).folded


def test_a_subclassed_model_is_refused():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = Own()
    model(np.zeros((1, 3), np.float32))
    with pytest.raises(SecateurError, match="expected a Functional or Sequential one"):
        points_of(model)


def test_what_is_trained_in_float_is_named_with_its_reason():
    x, y = nets.pictures(32)
    model = keras.Sequential(
        [
            keras.Input(nets.SHAPE),
            layers.Reshape((8, 16)),
            layers.LayerNormalization(name="norm"),
            layers.GRU(3, name="gru"),
            layers.Dense(4, name="head"),
        ]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    callback = Quantize(aware=True).callback(data=(x, y))
    model.fit(x, y, verbose=0, callbacks=[callback])
    (note,) = callback.notes
    assert note == (
        "computed in float, in training as in the file: norm (its root and its variance have no "
        "operators of integers); gru (its states would be rounded anew at every step of time)"
    )
    assert list(callback.specification.widths) == ["head/kernel"]


def test_ranges_of_another_model_are_refused():
    with (
        pytest.raises(SecateurError, match="no range for .* received, expected those that"),
        as_in_file(nets.plain(), {}, {"input:0": (0.0, 1.0)}),
    ):
        pass


def test_nan_in_the_data_is_named_with_its_place_and_nothing_is_half_done():
    x, y = nets.pictures(64)
    model = nets.trained(nets.plain, (x, y), epochs=0)
    before = model.get_weights()
    with pytest.raises(SecateurError, match="activations of input:0 that are NaN"):
        model.fit(
            x,
            y,
            verbose=0,
            callbacks=[Quantize(aware=True).callback(data=(np.full_like(x, np.nan), y))],
        )
    assert "call" not in vars(model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_an_interrupted_training_is_taken_off_by_the_next():
    x, y = nets.pictures(64)
    model = nets.trained(nets.plain, (x, y), epochs=0)

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, verbose=0, callbacks=[Quantize(aware=True).callback(data=(x, y)), Stop()])
    callback = Quantize(aware=True).callback(data=(x, y))
    model.fit(x, y, verbose=0, callbacks=[callback])
    assert "call" not in vars(model) and callback.ranges
    assert not any(v.name == "secateur_ranges" for v in model.variables)


def test_batchnorm_moves_at_first_and_is_frozen_after_the_stated_part():
    x, y = nets.pictures(128)
    model = nets.trained(nets.normalized, (x, y), epochs=1)
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            norm = next(v for v in self.model.variables if v.name == "moving_mean")
            seen.append(keras.ops.convert_to_numpy(norm.value).copy())

    callback = Quantize(aware=True, freeze=0.5).callback(data=(x, y))
    model.fit(x, y, epochs=2, batch_size=32, verbose=0, callbacks=[callback, Watch()])
    moved = [not np.array_equal(a, b) for a, b in itertools.pairwise(seen)]
    assert moved == [True] * 3 + [False] * 4
