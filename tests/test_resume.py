"""A training that was interrupted and resumed ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from keras import layers

from secateur.arrays.schedules import Schedule
from secateur.methods.keep_zeros import KeepZeros
from secateur.methods.prune import Prune
from secateur.methods.rigl import RigL
from secateur.weights import weight_table

STEPS, EPOCHS = 6, 4
GRADUAL = Schedule(initial=0.2, end=0.9, every=4)


def data():
    rng = np.random.default_rng(0)
    return rng.random((8 * STEPS, 6), dtype=np.float32), rng.integers(0, 3, 8 * STEPS)


METHODS = {
    "gradual l1": lambda: Prune(sparsity=0.8, schedule=GRADUAL).callback(),
    "random": lambda: Prune(sparsity=0.8, schedule=GRADUAL, criterion="random").callback(seed=3),
    "taylor": lambda: Prune(sparsity=0.8, schedule=GRADUAL, criterion="taylor").callback(
        data=data()
    ),
    "keep zeros": lambda: KeepZeros().callback(),
    "RigL, resumed between updates": lambda: RigL(sparsity=0.75, every=5).callback(data=data()),
    "RigL, resumed at an update": lambda: RigL(sparsity=0.75, every=6).callback(data=data()),
}


def net(seed=1, optimizer=None):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(16, activation="tanh", name="hidden"),
            layers.Dense(3, name="head"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(0.01), loss)
    return model


def fit(model, *callbacks, **kwargs):
    x, y = data()
    kwargs = {"epochs": EPOCHS, "shuffle": False, "batch_size": 8, "verbose": 0, **kwargs}
    return model.fit(x, y, callbacks=list(callbacks), **kwargs)


def kernels(model):
    return {w.path: w.read() for w in weight_table(model) if w.role == "kernel"}


class Stopped(Exception):
    pass


class Break(keras.callbacks.Callback):
    """Ends the training by an exception, after update `after`."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def on_train_batch_end(self, batch, logs=None):
        self.after -= 1
        if not self.after:
            raise Stopped


class Masks(keras.callbacks.Callback):
    """Step -> which weights are zero at its end."""

    def __init__(self):
        super().__init__()
        self.epoch, self.seen = 0, {}

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.seen[STEPS * self.epoch + batch] = {p: w == 0 for p, w in kernels(self.model).items()}


def interrupted(folder, method, save_freq, after, *, first=True):
    """A training that broke, resumed in a new model by the same call: the model, and what was seen."""
    seen = Masks()
    for again in (False, True):
        # Another seed: what is not restored would show.
        model = net(seed=7 if again else 1)
        prepare(model, method)
        backup = keras.callbacks.BackupAndRestore(str(folder / "backup"), save_freq=save_freq)
        callback = METHODS[method]()
        order = [callback, backup] if first else [backup, callback]
        if again:
            fit(model, *order, seen)
        else:
            with pytest.raises(Stopped):
                fit(model, *order, Break(after))
    return model, callback, seen.seen


def prepare(model, method):
    if method == "keep zeros":
        Prune(sparsity=0.6, criterion="random").apply(model, seed=5)


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_training_gives_the_same_weights_and_masks(method, tmp_path):
    whole, seen = net(), Masks()
    prepare(whole, method)
    callback = METHODS[method]()
    fit(whole, callback, seen)
    # Broken in the third epoch; Keras goes back to the end of the second.
    resumed, other, found = interrupted(tmp_path, method, "epoch", 2 * STEPS + 4)
    assert min(found) == 2 * STEPS
    for step, zeros in found.items():
        for path, where in zeros.items():
            np.testing.assert_array_equal(where, seen.seen[step][path], err_msg=f"{path} {step}")
    for one, two in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert set(callback.masks) == set(other.masks)
    for path, mask in callback.masks.items():
        np.testing.assert_array_equal(mask, other.masks[path])
    if method != "keep zeros":
        steps = [step for step, _ in callback.curve]
        assert any(step >= 2 * STEPS for step in steps)  # broken before the schedule was over


def test_the_order_of_callbacks_does_not_matter(tmp_path):
    whole = net()
    fit(whole, METHODS["gradual l1"]())
    resumed, _, _ = interrupted(tmp_path, "gradual l1", "epoch", 2 * STEPS + 4, first=False)
    for one, two in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_backup_within_an_epoch_runs_that_epoch_again_under_its_own_masks(tmp_path):
    # Keras restores the weights of the last backup and begins its epoch anew, pruning or not: such a
    # training is longer than one that was never interrupted. Its masks are those of its steps.
    whole, seen = net(), Masks()
    fit(whole, METHODS["gradual l1"](), seen)
    resumed, callback, found = interrupted(tmp_path, "gradual l1", 4, 2 * STEPS + 5)
    assert min(found) == 2 * STEPS
    counts = {s: {p: int(z.sum()) for p, z in zeros.items()} for s, zeros in seen.seen.items()}
    again = {s: {p: int(z.sum()) for p, z in zeros.items()} for s, zeros in found.items()}
    assert again == {step: counts[step] for step in again}
    assert {p: int((w == 0).sum()) for p, w in kernels(resumed).items()} == {
        "hidden/kernel": 77,
        "head/kernel": 38,
    }
    assert callback.notes == []


def test_a_model_file_and_initial_epoch_resume_a_training_too(tmp_path):
    whole = net()
    keep = keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.keras"))
    fit(whole, METHODS["gradual l1"](), keep)
    resumed = keras.saving.load_model(tmp_path / "2.keras")
    fit(resumed, METHODS["gradual l1"](), initial_epoch=2)
    for one, two in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.slow
def test_a_training_whose_process_was_killed_is_resumed_in_another(tmp_path):
    script = """
        import os, signal, sys
        import keras, numpy as np
        from secateur import Prune, Schedule
        kill_at, out = int(sys.argv[1]), sys.argv[2]
        rng = np.random.default_rng(0)
        x, y = rng.random((48, 6), dtype=np.float32), rng.integers(0, 3, 48)
        keras.utils.set_random_seed(1)
        model = keras.Sequential([
            keras.Input((6,)),
            keras.layers.Dense(16, activation="tanh", name="hidden"),
            keras.layers.Dense(3, name="head"),
        ])
        model.compile(keras.optimizers.Adam(0.01),
                      keras.losses.SparseCategoricalCrossentropy(from_logits=True))

        class Kill(keras.callbacks.Callback):
            done = 0

            def on_train_batch_end(self, batch, logs=None):
                self.done += 1
                if self.done == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        callbacks = [Prune(sparsity=0.8, schedule=Schedule(initial=0.2, end=0.9, every=4)).callback()]
        if kill_at >= 0:
            callbacks.append(keras.callbacks.BackupAndRestore("backup"))
        model.fit(x, y, batch_size=8, epochs=4, shuffle=False, verbose=0,
                  callbacks=[*callbacks, Kill()])
        np.savez(out, *model.get_weights())
    """

    def run(kill_at, out):
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), str(kill_at), out],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=dict(os.environ),
        )
        return result.returncode

    assert run(2 * STEPS + 4, "never.npz") == -signal.SIGKILL
    assert (tmp_path / "backup").exists()
    assert run(0, "resumed.npz") == 0
    assert run(-1, "whole.npz") == 0
    assert not (tmp_path / "never.npz").exists()
    with np.load(tmp_path / "resumed.npz") as resumed, np.load(tmp_path / "whole.npz") as whole:
        for name in whole.files:
            np.testing.assert_array_equal(resumed[name], whole[name])
        assert int((whole["arr_0"] == 0).sum()) == 77
