"""Pruning in training loops of one's own: a tape, a stateless JAX step, a `torch.optim` loop."""

import copy

import keras
import numpy as np
import pytest
from keras import layers

from secateur.arrays.masks import zeros_count
from secateur.arrays.schedules import Rewind, Schedule
from secateur.errors import SecateurError
from secateur.methods.keep_zeros import KeepZeros
from secateur.methods.prune import Prune
from secateur.methods.rigl import RigL
from secateur.project import TrainingLoop
from secateur.weights import Select, weight_table

BACKEND = keras.backend.backend()
STEPS = 12
SIZES = {"hidden/kernel": 96, "head/kernel": 48}
SCHEDULE = Schedule(initial=0.5, end=0.6, every=2, power=1)


def net(seed=1):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(16, activation="tanh", name="hidden"),
            layers.Dense(3, name="head"),
        ]
    )


def data(n=32):
    rng = np.random.default_rng(0)
    return rng.random((n, 6), dtype=np.float32), rng.integers(0, 3, n)


def batches(steps=STEPS):
    x, y = data(8 * steps)
    return [(x[i : i + 8], y[i : i + 8]) for i in range(0, len(x), 8)]


def read(model):
    return {w.path: w.read() for w in weight_table(model) if w.role == "kernel"}


def zeros(model):
    return {path: int((value == 0).sum()) for path, value in read(model).items()}


def asked(step, schedule=SCHEDULE, final=0.8):
    table = schedule.resolve(STEPS, STEPS)
    return {p: zeros_count(n, table.value(table.latest(step), final)) for p, n in SIZES.items()}


def loss_of(logits, labels):
    """By hand: no loss object, no `compile`, nothing of `fit`."""
    ops = keras.ops
    return -ops.mean(ops.sum(ops.one_hot(labels, 3) * ops.log_softmax(logits), -1))


class Tape:
    """GradientTape and a Keras optimizer in a `tf.function`, traced once, before any mask."""

    def __init__(self, model, name):
        import tensorflow as tf

        self.model, self.optimizer = model, _keras_optimizer(name)
        self.optimizer.build(model.trainable_variables)

        @tf.function
        def update(x, y):
            with tf.GradientTape() as tape:
                loss = loss_of(model(x, training=True), y)
            found = tape.gradient(loss, model.trainable_variables)
            self.optimizer.apply_gradients(zip(found, model.trainable_variables, strict=True))

        self.update = update

    def __call__(self, loop, x, y):
        self.update(x, y)
        loop.step()

    def state(self):
        return self.model.get_weights(), [
            keras.ops.convert_to_numpy(v.value) for v in self.optimizer.variables
        ]

    def load(self, state):
        self.model.set_weights(state[0])
        for variable, value in zip(self.optimizer.variables, state[1], strict=True):
            variable.assign(value)


class Stateless:
    """`stateless_call`, `stateless_apply` and the values in one's own hands, in a `jax.jit`."""

    def __init__(self, model, name):
        import jax

        self.model, optimizer = model, _keras_optimizer(name)
        optimizer.build(model.trainable_variables)
        self.values = [v.value for v in model.trainable_variables]
        self.slots = [v.value for v in optimizer.variables]

        def loss(values, frozen, x, y):
            return loss_of(model.stateless_call(values, frozen, x, training=True)[0], y)

        @jax.jit
        def update(values, frozen, slots, x, y):
            return optimizer.stateless_apply(slots, jax.grad(loss)(values, frozen, x, y), values)

        self.update = update

    def __call__(self, loop, x, y):
        frozen = [v.value for v in self.model.non_trainable_variables]
        values, self.slots = self.update(self.values, frozen, self.slots, x, y)
        self.values = loop.step(values)

    def state(self):
        return self.model.get_weights(), list(self.slots)

    def load(self, state):
        self.model.set_weights(state[0])
        self.values, self.slots = [v.value for v in self.model.trainable_variables], state[1]


class Torch:
    """An optimizer of PyTorch's own, which Keras knows nothing of."""

    def __init__(self, model, name):
        import torch

        self.model = model
        parameters = [v.value for v in model.trainable_variables]
        self.optimizer = (
            torch.optim.Adam(parameters, lr=0.01)
            if name == "adam"
            else torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        )

    def __call__(self, loop, x, y):
        import torch

        self.optimizer.zero_grad()
        loss_of(self.model(torch.as_tensor(x), training=True), torch.as_tensor(y)).backward()
        self.optimizer.step()
        loop.step()

    def state(self):
        return self.model.get_weights(), copy.deepcopy(self.optimizer.state_dict())

    def load(self, state):
        self.model.set_weights(state[0])
        self.optimizer.load_state_dict(state[1])


def _keras_optimizer(name):
    if name == "adam":
        return keras.optimizers.Adam(0.01)
    return keras.optimizers.SGD(0.1, momentum=0.9)


Driver = {"tensorflow": Tape, "jax": Stateless, "torch": Torch}[BACKEND]
optimizers = pytest.mark.parametrize("optimizer", ["adam", "sgd with momentum"])


@optimizers
def test_every_step_runs_under_the_mask_that_the_schedule_names_for_it(optimizer):
    model = net()
    train = Driver(model, optimizer)
    masks, before = [], read(model)
    callback = Prune(sparsity=0.8, schedule=SCHEDULE).callback()
    with TrainingLoop(model, callback, steps=STEPS) as loop:
        for step, (x, y) in enumerate(batches()):
            assert zeros(model) == asked(step)
            masks.append(loop.masks)
            train(loop, x, y)
            for path, value in read(model).items():
                assert (value[~masks[-1][path]] == 0).all(), (step, path)
                assert not np.signbit(value[value == 0]).any()
    assert zeros(model) == asked(STEPS - 1) == {"hidden/kernel": 77, "head/kernel": 38}
    changes = [
        step
        for step in range(1, STEPS)
        if (masks[step]["hidden/kernel"] != masks[step - 1]["hidden/kernel"]).any()
    ]
    assert changes == [2, 4, 6, 7]
    assert callback.notes == []
    for path, value in read(model).items():
        kept = callback.masks[path]
        np.testing.assert_array_equal(kept, value != 0)
        # Not all of them: a hidden unit whose outputs are pruned has no gradient.
        assert (value != before[path])[kept].mean() > 0.6, path


@optimizers
def test_a_resumed_loop_ends_with_the_weights_of_one_that_was_never_interrupted(optimizer):
    method = Prune(sparsity=0.8, schedule=SCHEDULE)
    model = net()
    train = Driver(model, optimizer)
    with TrainingLoop(model, method.callback(), steps=STEPS) as loop:
        for step, (x, y) in enumerate(batches()):
            if step == 5:
                state = copy.deepcopy(train.state())
            train(loop, x, y)
    other = net(seed=2)
    train = Driver(other, optimizer)
    train.load(state)
    with TrainingLoop(other, method.callback(), steps=STEPS, first_step=5) as again:
        for x, y in batches()[5:]:
            train(again, x, y)
    for path, value in read(model).items():
        np.testing.assert_array_equal(value, read(other)[path])
        np.testing.assert_array_equal(loop.masks[path], again.masks[path])


def test_zeros_are_kept_in_a_loop():
    model = net()
    Prune(sparsity=0.7).apply(model)
    held = {path: value == 0 for path, value in read(model).items()}
    train = Driver(model, "adam")
    with TrainingLoop(model, KeepZeros().callback(), steps=3) as loop:
        for x, y in batches(3):
            train(loop, x, y)
            for path, value in read(model).items():
                np.testing.assert_array_equal(value == 0, held[path])


def test_a_frozen_weight_is_pruned_in_a_loop_and_its_other_values_do_not_move():
    model = net()
    model.get_layer("hidden").trainable = False
    before = read(model)["hidden/kernel"]
    method = Prune(sparsity=0.8, schedule=SCHEDULE, select=Select(frozen=True))
    train = Driver(model, "adam")
    with TrainingLoop(model, method.callback(), steps=STEPS) as loop:
        for step, (x, y) in enumerate(batches()):
            assert zeros(model) == asked(step)
            train(loop, x, y)
    after = read(model)["hidden/kernel"]
    np.testing.assert_array_equal(after, np.where(after == 0, 0, before))


def test_weights_are_exchanged_in_a_loop():
    model = net()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)  # for the loss alone: it says where to grow
    train, masks = Driver(model, "adam"), []
    method = RigL(sparsity=0.75, allocation="uniform", every=3, end=1.0)
    with TrainingLoop(model, method.callback(data=data()), steps=STEPS) as loop:
        for x, y in batches():
            masks.append(loop.masks["hidden/kernel"])
            train(loop, x, y)
            assert {p: int((~m).sum()) for p, m in loop.masks.items()} == {
                "hidden/kernel": 72,
                "head/kernel": 36,
            }
    changed = [s for s in range(1, STEPS) if (masks[s] != masks[s - 1]).any()]
    assert changed == [3, 6, 9]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_loop_that_ends_early_says_so():
    model = net()
    callback = Prune(sparsity=0.8, schedule=SCHEDULE).callback()
    with (
        pytest.warns(UserWarning, match="stopped before the pruning schedule ended"),
        TrainingLoop(model, callback, steps=STEPS) as loop,
    ):
        loop.step()


def test_zeros_are_held_after_the_last_step_that_was_announced():
    model = net()
    train = Driver(model, "adam")
    with TrainingLoop(model, Prune(sparsity=0.5).callback(), steps=2) as loop:
        for x, y in batches(4):
            train(loop, x, y)
            assert zeros(model) == {"hidden/kernel": 48, "head/kernel": 24}


def _unbuilt():
    return TrainingLoop(
        keras.Sequential([layers.Dense(2)]), Prune(sparsity=0.5).callback(), steps=2
    )


def _looped(method=None, **given):
    return TrainingLoop(net(), method or Prune(sparsity=0.5).callback(), **{"steps": 3, **given})


def _exchange_without_a_loss():
    loop = _looped(RigL(sparsity=0.5, every=1).callback(data=data()))
    loop.step()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (_unbuilt, "has no weights yet; build it first"),
        (lambda: _looped(steps=0), "loop of 0 steps .* expected 0 <= first_step < steps"),
        (lambda: _looped(first_step=3), "begins at step 3 received"),
        (lambda: _looped(first_step=-1), "begins at step -1 received"),
        (lambda: _looped().step([np.zeros(2)]), r"1 values received by step\(\), expected 4"),
        (lambda: _looped(KeepZeros().callback()), "no zeros to keep"),
        (lambda: Prune(sparsity=0.5, rewind=Rewind()).callback(), "trains several times"),
        (_exchange_without_a_loss, "gradients need a loss, and the model has none"),
    ],
)
def test_wrong_use_is_refused_in_one_line(wrong, message):
    with pytest.raises(SecateurError, match=message) as caught:
        wrong()
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch runs such a loop without compiling it")
def test_a_step_inside_a_compiled_function_is_refused():
    model = net()
    loop = TrainingLoop(model, Prune(sparsity=0.5).callback(), steps=3)
    before = zeros(model)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        inside = tf.function(lambda: loop.step(), autograph=False)
    else:
        import jax

        values = [v.value for v in model.trainable_variables]

        def inside():
            jax.jit(lambda v: loop.step(v))(values)

    with pytest.raises(SecateurError, match="inside a compiled function"):
        inside()
    assert zeros(model) == before
