"""What quantization-aware training cannot make sense of is said, and nothing is left half-done."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers
from tests import quantized_models as nets

from secateur.compression import compress
from secateur.errors import SecateurError
from secateur.exporting import export
from secateur.methods.quantize import Quantize
from secateur.pipeline import run
from secateur.recipe import Export, Recipe
from secateur.runtimes import litert
from secateur.substitute import as_in_file
from secateur.training import Train

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def as_before(model, weights):
    """Whether nothing of a substitution is left on a model, and its weights are these."""
    assert not {"call", "get_weights", "set_weights"} & set(vars(model))
    assert not any(v.name == "secateur_ranges" for v in model.variables)
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_model_that_was_never_trained_is_refused_by_a_run(tmp_path):
    x, y = nets.pictures()
    model = nets.trained(nets.plain, (x, y), epochs=0)
    recipe = Recipe(steps=[Quantize(aware=True)], export=Export(formats=("keras",)))
    with pytest.raises(SecateurError, match="at chance level .* or was never trained"):
        run(model, recipe, (x, y), tmp_path / "out")
    assert not (tmp_path / "out" / "run.json").exists()


def test_weights_that_are_not_numbers_are_named_before_anything_is_attached():
    x, y = nets.pictures(64)
    model = nets.trained(nets.plain, (x, y), epochs=0)
    kernel = model.get_layer("head").kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    before = model.get_weights()
    with pytest.raises(SecateurError, match=r"head/kernel .* holds NaN or infinity"):
        model.fit(x, y, verbose=0, callbacks=[Quantize(aware=True).callback(data=(x, y))])
    as_before(model, before)


@pytest.mark.parametrize("data", ["given", "first step"])
def test_a_training_that_diverges_is_named_and_the_model_is_called_in_float_again(data):
    x, y = nets.pictures(64)
    model = nets.trained(nets.plain, (x, y), epochs=0)
    model.optimizer.learning_rate = 1e30
    callback = Quantize(aware=True).callback(data=(x, y) if data == "given" else None)
    with pytest.raises(SecateurError, match="became NaN or infinite in training.*learning_rate"):
        model.fit(x, y, epochs=3, verbose=0, callbacks=[callback])
    as_before(model, model.get_weights())


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ((8, 8, 3), r"\(n, 8, 8, 3\) received, expected \(n, 8, 8, 2\)"),
        ((8, 8), r"\(n, 8, 8\) received, expected \(n, 8, 8, 2\)"),
        ((128,), r"\(n, 128\) received"),
    ],
)
def test_data_of_another_shape_are_named_before_anything_is_attached(wrong, told):
    x, y = nets.pictures(64)
    model = nets.trained(nets.plain, (x, y), epochs=0)
    before = model.get_weights()
    bad = np.zeros((64, *wrong), np.float32)
    with pytest.raises(SecateurError, match=f"{told}.*; fix: give data"):
        model.fit(x, y, verbose=0, callbacks=[Quantize(aware=True).callback(data=(bad, y))])
    as_before(model, before)


def test_calibration_of_another_shape_is_refused_and_no_file_is_left(tmp_path):
    x, y = nets.pictures(64)
    model = nets.trained(nets.plain, (x, y), epochs=0)
    callback = Quantize(aware=True).callback(data=(x, y))
    model.fit(x, y, verbose=0, callbacks=[callback])
    with pytest.raises(SecateurError, match=r"\(8, 8, 3\)|shape"):
        export(
            model,
            ["keras", "int8"],
            tmp_path,
            stage="bad",
            specification=callback.specification,
            calibration=np.zeros((8, 8, 8, 3), np.float32),
        )
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_are_always_zero_are_said_and_the_file_still_agrees(tmp_path):
    x, y = nets.pictures(64)
    dark = np.zeros_like(x)
    model = nets.trained(nets.plain, (x, y), epochs=1)
    callback = Quantize(aware=True).callback(data=(dark, y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(dark, y, verbose=0, callbacks=[callback])
    assert any("of input:0" in n and "were constant throughout" in n for n in callback.notes)
    (file,) = export(
        model,
        ["int8"],
        tmp_path,
        stage="dark",
        specification=callback.specification,
        calibration=dark,
        data=dark,
    )
    assert np.isfinite(litert.load(file.path).predict(dark)).all()


@keras.saving.register_keras_serializable("tests")
class Doubled(layers.Layer):
    """A layer that no table of ours knows."""

    def call(self, x):
        return x + x


def test_a_layer_never_seen_is_trained_through_and_exported_or_named(tmp_path):
    x, y = nets.pictures(64)
    inputs = keras.Input(nets.SHAPE)
    hidden = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    outputs = layers.Dense(4, name="head")(layers.Flatten()(Doubled(name="own")(hidden)))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(5e-3), LOSS)
    callback = Quantize(aware=True).callback(data=(x, y))
    model.fit(x, y, epochs=2, batch_size=32, verbose=0, callbacks=[callback])
    (file,) = export(
        model,
        ["int8"],
        tmp_path,
        stage="own",
        specification=callback.specification,
        calibration=x,
        data=x,
        imports=["tests.test_quantize_bad_input"],
    )
    assert file.parity["agreement"] == 1.0


def test_a_step_without_data_or_epochs_is_refused_and_the_model_is_as_it_was():
    data = nets.pictures(64)
    model = nets.trained(nets.plain, data, epochs=0)
    before = model.get_weights()
    recipe = Recipe(steps=[Quantize(aware=True)], train=Train(epochs=1))
    with pytest.raises(SecateurError, match="aware = true received without training"):
        compress(model, recipe, inplace=True)
    as_before(model, before)


@pytest.mark.parametrize("behind", [True, False])
def test_weights_that_another_callback_puts_back_go_with_ranges(behind):
    """EarlyStopping keeps all weights and puts them back: the ranges are none of them."""
    x, y = nets.pictures(64)
    model = nets.trained(nets.plain, (x, y), epochs=0)
    aware = Quantize(aware=True).callback(data=(x, y))
    kept = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kept.append((self.model.get_weights(), dict(aware.substitution.ranges())))

    # "max" of a loss that falls: the first epoch is the best.
    stop = keras.callbacks.EarlyStopping("loss", mode="max", patience=9, restore_best_weights=True)
    callbacks = [stop, Watch(), aware] if behind else [aware, Watch(), stop]
    count = len(model.weights)
    model.fit(x, y, epochs=3, batch_size=32, verbose=0, callbacks=callbacks)
    assert len(model.weights) == count == len(kept[0][0])
    as_before(model, kept[0][0])
    assert kept[0][1] != kept[2][1]
    assert aware.ranges == kept[0][1]
    assert aware.specification.ranges == aware.ranges
    with as_in_file(model, aware.specification.widths, aware.ranges) as inside:
        assert np.isfinite(inside.predict(x, verbose=0)).all()


def test_a_checkpoint_taken_meanwhile_can_be_put_back_later():
    x, y = nets.pictures(64)
    model = nets.trained(nets.plain, (x, y), epochs=0)
    kept = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda e, logs: kept.append(model.get_weights())
    )
    model.fit(x, y, verbose=0, callbacks=[Quantize(aware=True).callback(data=(x, y)), watch])
    model.set_weights([0 * value for value in kept[0]])
    model.set_weights(kept[0])
    as_before(model, kept[0])
