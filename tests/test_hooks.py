"""What acts within a training step: together, beside other callbacks, and not after the training."""

import keras
import numpy as np
import pytest
from keras import layers

from secateur.arrays.schedules import Schedule
from secateur.errors import SecateurError
from secateur.exporting import export
from secateur.methods.keep_zeros import KeepZeros
from secateur.methods.prune import Prune
from secateur.methods.quantize import Quantize
from secateur.methods.rigl import RigL
from secateur.project import TrainingLoop
from secateur.substitute import as_in_file
from secateur.weights import Select, weight_table

BACKEND = keras.backend.backend()
ATTACHED = {"call", "train_step", "test_step", "get_weights", "set_weights", "save_own_variables"}
GRADUAL = Schedule(initial=0.25, end=0.75, every=2, power=1)
ONCE = Schedule(shape="one-shot")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def net():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(16, activation="tanh", name="hidden"),
            layers.Dense(3, name="head"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    return model


def data(n=64):
    rng = np.random.default_rng(0)
    return rng.random((n, 6), dtype=np.float32), rng.integers(0, 3, n)


def fit(model, *callbacks, **settings):
    settings = {"batch_size": 8, "shuffle": False, "verbose": 0, **settings}
    return model.fit(*data(), callbacks=list(callbacks), **settings)


def zeros(model):
    return {w.path: int((w.read() == 0).sum()) for w in weight_table(model) if w.role == "kernel"}


def prune(layer, sparsity=0.5, schedule=ONCE):
    select = Select(include=(layer,))
    return Prune(sparsity=sparsity, schedule=schedule, select=select).callback()


def aware():
    return Quantize(aware=True).callback(data=data())


def rigl(layer):
    method = RigL(sparsity=0.5, allocation="uniform", every=2, select=Select(include=(layer,)))
    return method.callback(data=data())


class Watch(keras.callbacks.Callback):
    """Zeros at the end of every step."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(zeros(self.model))


class At(keras.callbacks.Callback):
    """Does something to the model at one moment of `fit`."""

    def __init__(self, moment, act):
        super().__init__()
        setattr(self, moment, lambda *arguments, **named: act(self.model))


# --- several in one fit ---------------------------------------------------------------------------


TOGETHER = {
    "two that prune": lambda: [prune("hidden"), prune("head", 0.75)],
    "prune, aware": lambda: [prune("hidden"), prune("head", 0.75), aware()],
    "aware, prune": lambda: [aware(), prune("head", 0.75), prune("hidden")],
    "zeros kept, prune": lambda: [KeepZeros().callback(), prune("head", 0.75)],
    "prune, zeros kept": lambda: [prune("head", 0.75), KeepZeros().callback()],
    "exchange, prune": lambda: [rigl("hidden"), prune("head", 0.75)],
}


@pytest.mark.parametrize("which", TOGETHER)
def test_callbacks_compose_in_any_order(which):
    model, watch = net(), Watch()
    if "kept" in which:
        Prune(sparsity=0.5, select=Select(include=("hidden",))).apply(model)
    callbacks = TOGETHER[which]()
    fit(model, watch, *callbacks, epochs=2, validation_data=data(16))
    assert watch.seen == [{"hidden/kernel": 48, "head/kernel": 36}] * 16
    assert zeros(model) == watch.seen[-1]
    held = [path for callback in callbacks for path in callback.masks]
    assert sorted(held) == ["head/kernel", "hidden/kernel"]
    assert not any(callback.notes for callback in callbacks)
    assert not ATTACHED & set(vars(model))
    for callback in callbacks:
        for path, keep in callback.masks.items():
            assert not np.signbit(weight_table(model)[path].read()[~keep]).any()


def test_the_order_of_callbacks_changes_nothing():
    found = []
    for order in (1, -1):
        model = net()
        fit(model, *[prune("hidden"), aware(), prune("head", 0.75, GRADUAL)][::order])
        found.append(model.get_weights())
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_masks_over_the_same_weight_hold_together():
    model = net()
    callbacks = [prune("hidden", 0.75, GRADUAL), prune("hidden", 0.5)]
    fit(model, *callbacks)
    kernel = weight_table(model)["hidden/kernel"].read()
    assert [int((kernel[~c.masks["hidden/kernel"]] != 0).sum()) for c in callbacks] == [0, 0]
    assert zeros(model)["hidden/kernel"] == 72


def test_two_specifications_for_one_file_are_refused():
    model = net()
    with pytest.raises(SecateurError, match="two quantization-aware callbacks received in one fit"):
        fit(model, aware(), aware())
    with pytest.raises(SecateurError, match="quantization-aware callback received by TrainingLoop"):
        TrainingLoop(model, aware(), steps=3)
    fit(model)
    assert not ATTACHED & set(vars(model))


# --- whatever trains ------------------------------------------------------------------------------


class Gan(keras.Model):
    """Two networks, each with an optimizer of its own that Keras knows nothing of."""

    def __init__(self):
        super().__init__()
        self.maker = keras.Sequential(
            [keras.Input((6,)), layers.Dense(8, activation="tanh", name="m1"), layers.Dense(6)]
        )
        self.critic = keras.Sequential(
            [keras.Input((6,)), layers.Dense(16, activation="tanh", name="hidden"), layers.Dense(1)]
        )
        self.compile()
        self.parts = [
            (self.critic, keras.optimizers.SGD(0.1)),
            (self.maker, keras.optimizers.SGD(0.1)),
        ]
        for part, optimizer in self.parts:
            optimizer.build(part.trainable_variables)

    def call(self, x):
        return self.critic(self.maker(x))

    def losses_of(self, x):
        ops, made = keras.ops, self.maker(x)
        fake, real = self.critic(made), self.critic(x)
        return ops.mean(ops.softplus(fake) + ops.softplus(-real)), ops.mean(ops.softplus(-fake))

    def train_step(self, *arguments):
        x, *_ = keras.utils.unpack_x_y_sample_weight(arguments[-1])
        return getattr(self, f"_{BACKEND}")(x, *arguments[:-1])

    def _tensorflow(self, x):
        import tensorflow as tf

        with tf.GradientTape(persistent=True) as tape:
            losses = self.losses_of(x)
        for (part, optimizer), loss in zip(self.parts, losses, strict=True):
            optimizer.apply(tape.gradient(loss, part.trainable_variables), part.trainable_variables)
        return {"loss": losses[0]}

    def _torch(self, x):
        import torch

        losses = self.losses_of(x)
        for (part, optimizer), loss in zip(self.parts, losses, strict=True):
            values = [v.value for v in part.trainable_variables]
            found = torch.autograd.grad(loss, values, retain_graph=True)
            self.pending = [*getattr(self, "pending", []), (optimizer, found, part)]
        with torch.no_grad():
            for optimizer, found, part in self.__dict__.pop("pending"):
                optimizer.apply(found, part.trainable_variables)
        return {"loss": losses[0]}

    def _jax(self, x, state):
        import jax

        trained, *rest = state
        place = {id(v): i for i, v in enumerate(self.trainable_variables)}

        def loss_of(values, number):
            mapping = list(zip(self.trainable_variables, values, strict=True))
            with keras.StatelessScope(state_mapping=mapping):
                return self.losses_of(x)[number]

        trained = list(trained)
        found = [jax.grad(loss_of)(trained, number) for number in (0, 1)]
        for number, (part, optimizer) in enumerate(self.parts):
            own = [place[id(v)] for v in part.trainable_variables]
            values, _ = optimizer.stateless_apply(
                [v.value for v in optimizer.variables],
                [found[number][i] for i in own],
                [trained[i] for i in own],
            )
            for i, value in zip(own, values, strict=True):
                trained[i] = value
        return {"loss": found[0][0].sum()}, (trained, *rest)


@pytest.mark.filterwarnings("ignore:.*optimizer.*:UserWarning")
def test_masks_hold_whatever_optimizer_a_train_step_of_ones_own_uses():
    keras.utils.set_random_seed(1)
    model, watch = Gan(), Watch()
    model(data()[0])
    path = next(w.path for w in weight_table(model) if w.path.endswith("hidden/kernel"))
    before = weight_table(model)[path].read()
    callback = Prune(sparsity=0.75, schedule=GRADUAL, select=Select(include=(path,))).callback()
    model.fit(data()[0], batch_size=8, verbose=0, callbacks=[watch, callback])
    assert [seen[path] for seen in watch.seen] == [24, 24, 40, 40, 56, 56, 72, 72]
    after = weight_table(model)[path].read()
    assert ((after != before) & (after != 0)).sum() == 24


class Elsewhere(keras.Sequential):
    """Trained by code that never calls `train_step`."""

    def make_train_function(self, force=False):
        def function(*arguments):
            if BACKEND != "torch":
                next(arguments[-1])
            kernel = self.layers[0].kernel
            if BACKEND == "jax":
                return {"loss": 0.0}, arguments[0]
            kernel.assign(keras.ops.ones(kernel.shape))
            return {"loss": 0.0}

        self.train_function = function


@pytest.mark.parametrize("steps", [1, 8])
def test_a_training_that_the_hooks_do_not_reach_is_an_error(steps):
    model = Elsewhere([keras.Input((6,)), layers.Dense(16, name="hidden")])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(
        SecateurError, match=r"does not call its train_step.*secateur\.TrainingLoop"
    ):
        fit(model, prune("hidden"), steps_per_epoch=steps)


@pytest.mark.parametrize(
    "act",
    [
        lambda model: model.make_train_function(force=True),
        lambda model: model.train_on_batch(*data(8)),
        lambda model: model.evaluate(*data(8), verbose=0),
    ],
    ids=["traced anew", "a step of its own", "evaluated"],
)
def test_a_callback_that_uses_the_model_in_between_does_not_free_the_masks(act):
    model, watch = net(), Watch()
    fit(model, watch, prune("hidden"), At("on_epoch_begin", act), epochs=2)
    assert [seen["hidden/kernel"] for seen in watch.seen] == [48] * 16


# --- callbacks that change weights ------------------------------------------------------------------


def dense_again(model):
    model.get_layer("hidden").kernel.assign(np.ones((6, 16)))


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("moment", ["on_epoch_end", "on_train_end"])
def test_what_another_callback_writes_is_cut_and_noted(moment, place):
    model, callback = net(), prune("hidden")
    callbacks = [callback]
    callbacks.insert(place, At(moment, dense_again))
    with pytest.warns(UserWarning, match="48 pruned weights were not zero after epoch 1: another"):
        fit(model, *callbacks)
    assert zeros(model)["hidden/kernel"] == 48
    np.testing.assert_array_equal(
        callback.masks["hidden/kernel"], weight_table(model)["hidden/kernel"].read() != 0
    )
    assert len(callback.notes) == 1


def stopping(patience):
    # The loss falls: by this measure the first epoch is the best one.
    return keras.callbacks.EarlyStopping(
        "loss", mode="max", patience=patience, restore_best_weights=True
    )


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("patience", [2, 9], ids=["stopped early", "to its end"])
def test_a_restored_model_has_the_zeros_that_are_claimed(patience, place):
    model, callback = net(), Prune(sparsity=0.8, schedule=GRADUAL).callback()
    callbacks = [callback]
    callbacks.insert(place, stopping(patience))
    with pytest.warns(UserWarning) as warned:
        history = fit(model, *callbacks, epochs=8)
    assert (len(history.epoch) < 8) == (patience == 2)
    assert any("put other weights into the model (EarlyStopping" in str(w.message) for w in warned)
    reached = callback.curve[-1][1]
    assert reached == (0.8 if patience == 9 else pytest.approx(0.525, abs=0.05))
    assert zeros(model) == {
        path: int(reached * size + 0.5)
        for path, size in (("hidden/kernel", 96), ("head/kernel", 48))
    }
    assert {path: int((~keep).sum()) for path, keep in callback.masks.items()} == zeros(model)
    assert any("stopped before the pruning schedule" in n for n in callback.notes) == (
        patience == 2
    )


@pytest.mark.parametrize("place", [0, 1])
def test_a_restored_model_has_the_ranges_of_its_epoch(place):
    x, y = data()
    seen = []

    class Ranges(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(callback.substitution.ranges())

    model, callback = net(), Quantize(aware=True).callback(data=(x, y))
    callbacks = [callback, Ranges()]
    callbacks.insert(2 * place, stopping(9))
    fit(model, *callbacks, epochs=3)
    assert callback.ranges == seen[0] != seen[-1]
    widths, ranges = callback.specification.widths, callback.specification.ranges
    with as_in_file(model, widths, ranges) as quantized:
        assert quantized.predict(x, verbose=0).shape == (64, 3)


@pytest.mark.parametrize("name", ["best.keras", "{epoch}-best.weights.h5"])
def test_a_checkpoint_of_fewer_zeros_is_told(name, tmp_path):
    save = keras.callbacks.ModelCheckpoint(
        str(tmp_path / name),
        monitor="loss",
        mode="max",
        save_best_only=True,
        save_weights_only=name.endswith("h5"),
    )
    model, callback = net(), Prune(sparsity=0.8, schedule=GRADUAL).callback()
    told = r"the checkpoint .*best.* has 38\.9 % zeros in its pruned weights, the model 79\.9 %"
    with pytest.warns(UserWarning, match=told):
        fit(model, callback, save, epochs=4)
    assert len(callback.notes) == 1
    every = keras.callbacks.ModelCheckpoint(str(tmp_path / "last.keras"))
    fit(model, KeepZeros().callback(), every)  # warns of nothing


# --- left behind ------------------------------------------------------------------------------------


def interrupt(model):
    raise KeyboardInterrupt


MOMENTS = [
    "on_train_begin",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_test_batch_begin",
    "on_epoch_end",
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_after_an_interruption_everything_is_as_if_nothing_had_been_attached(moment, tmp_path):
    x, y = data()
    model = net()
    fit(model)
    variables = [v.path for v in model.variables], [v.path for v in model.optimizer.variables]
    with pytest.raises(KeyboardInterrupt):
        fit(model, aware(), prune("hidden"), At(moment, interrupt), validation_data=(x, y))
    assert zeros(model)["hidden/kernel"] == (0 if moment == "on_train_begin" else 48)
    assert ([v.path for v in model.variables], [v.path for v in model.optimizer.variables]) == (
        variables
    )
    plain = net()
    plain.set_weights(model.get_weights())
    np.testing.assert_array_equal(model.predict(x, verbose=0), plain.predict(x, verbose=0))
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(model(x)), keras.ops.convert_to_numpy(plain(x))
    )
    assert model.evaluate(x, y, verbose=0) == plain.evaluate(x, y, verbose=0)
    (artifact,) = export(model, ["keras"], tmp_path, stage="after")
    loaded = keras.models.load_model(artifact.path)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), plain.predict(x, verbose=0))
    if moment == MOMENTS[-1]:
        fit(model, prune("head", 0.75))
        assert zeros(model)["head/kernel"] == 36
    fit(model)
    assert zeros(model) == {"hidden/kernel": 0, "head/kernel": 0}
    assert not ATTACHED & set(vars(model))


def test_between_two_steps_the_model_is_called_in_float():
    x, _ = data()
    model, seen = net(), []

    def look(model):
        plain = net()
        plain.set_weights(model.get_weights())
        seen.append(np.abs(model.predict(x, verbose=0) - plain.predict(x, verbose=0)).max())

    quantized = At("on_epoch_end", look)
    history = fit(model, aware(), quantized, validation_data=data()).history
    assert seen == [0.0]
    # The validation of this training goes through the grids, one of the user's own does not.
    assert history["val_loss"][0] != model.evaluate(*data(), verbose=0)
