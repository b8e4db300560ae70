"""Zeros inside `fit`: read at the end of every step, on whichever backend this process runs."""

import subprocess
import sys
import textwrap
import warnings

import keras
import numpy as np
import pytest
from keras import layers

from secateur.arrays.schedules import Schedule
from secateur.errors import SecateurError
from secateur.methods.keep_zeros import KeepZeros
from secateur.methods.prune import Prune
from secateur.project import innermost
from secateur.weights import Select

BACKEND = keras.backend.backend()
STEPS = 10
EXACT = {"conv/kernel": 86, "dense/kernel": 16_224}

OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "sgd with momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "weight decay, clipping, EMA": lambda: keras.optimizers.AdamW(
        0.01, weight_decay=0.1, global_clipnorm=1.0, use_ema=True, ema_momentum=0.9
    ),
    "EMA written back while training": lambda: keras.optimizers.Adam(
        0.01, use_ema=True, ema_overwrite_frequency=3
    ),
    "gradient accumulation": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
    "loss scaling": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
}


def lab(activation="relu"):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((28, 28)),
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(12, 3, activation=activation, name="conv"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(10, name="dense"),
        ]
    )


def functional():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,), name="x")
    hidden = layers.Dense(8, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, layers.Dense(3, name="head")(hidden), name="small")


def images(n=32 * STEPS, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((n, 28, 28), dtype=np.float32), rng.integers(0, 10, n)


def compiled(model, optimizer="adam", **kwargs):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"], **kwargs)
    return model


def kernels(model):
    found = {}
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            found[f"{layer.name}/kernel"] = keras.ops.convert_to_numpy(layer.kernel)
    return found


class Watch(keras.callbacks.Callback):
    """Reads the weights at the end of every step; stands before the pruning callback on purpose."""

    def __init__(self):
        super().__init__()
        self.zeros, self.negative_zeros = [], 0

    def on_train_batch_end(self, batch, logs=None):
        found = kernels(self.model)
        self.zeros.append({path: int((w == 0).sum()) for path, w in found.items()})
        self.negative_zeros += sum(int(np.signbit(w[w == 0]).any()) for w in found.values())


def growing():
    return Prune(sparsity=0.8, schedule=Schedule(initial=0.5, end=0.5, every=2))


@pytest.mark.parametrize("per_execution", [1, 4])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_are_positive_zero_at_the_end_of_every_step(name, per_execution):
    if per_execution > 1 and BACKEND == "torch":
        pytest.skip("Keras demands steps_per_execution=1 on PyTorch")
    model = compiled(lab(), OPTIMIZERS[name](), steps_per_execution=per_execution)
    before = model.get_config(), [w.path for w in model.weights], model.count_params()
    x, y = images()
    watch, callback = Watch(), growing().callback()
    model.fit(x, y, batch_size=32, epochs=2, verbose=0, callbacks=[watch, callback])
    updates = dict(callback.curve)
    asked = 0.0
    for step, zeros in enumerate(watch.zeros):
        position = step * per_execution if per_execution > 1 else step
        asked = max([asked, *(v for s, v in updates.items() if s <= position)])
        assert zeros == {
            p: int(asked * n + 0.5) for p, n in (("conv/kernel", 108), ("dense/kernel", 20_280))
        }
    assert watch.zeros[-1] == EXACT
    assert watch.negative_zeros == 0
    final = kernels(model)
    assert {path: int((w == 0).sum()) for path, w in final.items()} == EXACT
    assert not any(np.signbit(w[w == 0]).any() for w in final.values())
    assert (model.get_config(), [w.path for w in model.weights], model.count_params()) == before


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_with_and_without_compilation(jit):
    if jit and BACKEND == "torch":
        model, x = functional(), np.random.default_rng(0).random((64, 6), dtype=np.float32)
        y = np.arange(64) % 3
    else:
        model, (x, y) = lab(), images()
    watch = Watch()
    compiled(model, jit_compile=jit)
    with warnings.catch_warnings():
        if jit and BACKEND == "torch":
            warnings.simplefilter("ignore")  # torch.compile's own, of several kinds
        model.fit(x, y, batch_size=16, verbose=0, callbacks=[watch, growing().callback()])
    wanted = {p: int(0.8 * w.size + 0.5) for p, w in kernels(model).items()}
    assert watch.zeros[-1] == wanted
    assert watch.zeros == sorted(watch.zeros, key=lambda z: sum(z.values()))


def test_a_model_that_was_trained_before_is_traced_anew():
    model = compiled(lab())
    x, y = images()
    model.fit(x, y, batch_size=32, verbose=0)  # leaves a compiled step without masks
    watch = Watch()
    model.fit(
        x,
        y,
        batch_size=32,
        verbose=0,
        callbacks=[watch, Prune(sparsity=0.8, schedule=Schedule(shape="one-shot")).callback()],
    )
    assert watch.zeros == [EXACT] * STEPS


def test_kept_weights_do_train_and_pruned_ones_do_not_come_back_in_a_plain_callback():
    model = compiled(lab())
    x, y = images()
    callback = Prune(sparsity=0.8, schedule=Schedule(shape="one-shot")).callback()
    before = kernels(model)["dense/kernel"]
    model.fit(x, y, batch_size=32, verbose=0, callbacks=[callback])
    after = kernels(model)["dense/kernel"]
    moved = (after != before) & (after != 0)
    assert moved.sum() > 0.3 * (after != 0).sum()  # dead units do not move
    # Without the callback they do come back: the mask is held by it alone, and it let go.
    model.fit(x, y, batch_size=32, verbose=0)
    assert (kernels(model)["dense/kernel"] == 0).sum() < 16_224


def test_a_kernel_that_starts_at_zero_trains_under_pruning():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, name="first", kernel_initializer="zeros", bias_initializer="ones"),
            layers.Dense(3, name="head"),
        ]
    )
    rng = np.random.default_rng(0)
    x, y = rng.random((160, 6), dtype=np.float32), rng.integers(0, 3, 160)
    compiled(model, keras.optimizers.SGD(0.1))
    schedule = Schedule(begin=0.5, shape="one-shot")
    method = Prune(sparsity=0.5, schedule=schedule, select=Select(include=("first",)))
    model.fit(x, y, batch_size=16, verbose=0, callbacks=[method.callback()])
    kernel = kernels(model)["first/kernel"]
    assert (kernel == 0).sum() == 24
    # Masked from the very first step, when every score is equal: half of it must still train.
    model.layers[0].kernel.assign(np.zeros((6, 8)))
    method = Prune(
        sparsity=0.5, schedule=Schedule(shape="one-shot"), select=Select(include=("first",))
    )
    model.fit(x, y, batch_size=16, verbose=0, callbacks=[method.callback()])
    assert (kernels(model)["first/kernel"] == 0).sum() == 24


def test_keep_zeros_holds_what_is_there_in_any_later_fit():
    model = compiled(lab())
    x, y = images()
    Prune(sparsity=0.8).apply(model)
    held = {path: w == 0 for path, w in kernels(model).items()}
    watch = Watch()
    model.fit(x, y, batch_size=32, epochs=2, verbose=0, callbacks=[watch, KeepZeros().callback()])
    assert watch.zeros == [EXACT] * (2 * STEPS)
    for path, w in kernels(model).items():
        np.testing.assert_array_equal(w == 0, held[path])


def test_keep_zeros_refuses_a_model_without_zeros():
    model = compiled(lab())
    with pytest.raises(SecateurError, match="no zeros to keep"):
        model.fit(*images(64), verbose=0, callbacks=[KeepZeros().callback()])


def test_the_optimizer_is_as_it_was_after_training():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
    model = compiled(lab(), optimizer)
    x, y = images(64)
    model.fit(x, y, verbose=0)
    before, config = [v.path for v in optimizer.variables], optimizer.get_config()
    model.fit(x, y, verbose=0, callbacks=[growing().callback()])
    assert [v.path for v in optimizer.variables] == before
    assert optimizer.get_config() == config
    for one in (optimizer, innermost(optimizer)):
        assert "apply" not in vars(one)
        assert "save_own_variables" not in vars(one)


class Interrupt(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 5:
            raise KeyboardInterrupt


def test_an_interrupted_training_can_be_followed_by_another():
    model = compiled(lab())
    x, y = images()
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, batch_size=32, verbose=0, callbacks=[growing().callback(), Interrupt()])
    watch = Watch()
    method = Prune(sparsity=0.8, schedule=Schedule(shape="one-shot"))
    model.fit(x, y, batch_size=32, verbose=0, callbacks=[watch, method.callback()])
    assert watch.zeros == [EXACT] * STEPS
    assert "apply" not in vars(model.optimizer)


@pytest.mark.skipif(BACKEND == "torch", reason="Keras demands steps_per_execution=1 on PyTorch")
@pytest.mark.parametrize("steps", [8, 10])
def test_the_default_schedule_reaches_its_end_with_several_steps_in_one_execution(steps):
    model = compiled(lab(), steps_per_execution=4)
    watch = Watch()
    callback = Prune(sparsity=0.8).callback()
    model.fit(*images(32 * steps), batch_size=32, epochs=2, verbose=0, callbacks=[watch, callback])
    assert watch.zeros[-1] == EXACT
    assert callback.notes == []


def test_a_callback_can_be_used_again():
    callback = growing().callback()
    for _ in range(2):
        model = compiled(lab())
        model.fit(*images(), batch_size=32, verbose=0, callbacks=[callback])
        assert [step for step, _ in callback.curve] == [0, 2, 4, 5]
    assert {path: int((~keep).sum()) for path, keep in callback.masks.items()} == EXACT


def test_averaged_weights_swapped_in_for_evaluation_are_as_sparse():
    model = compiled(lab(), keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9))
    x, y = images()
    watch = Watch()
    watch.on_epoch_end = lambda epoch, logs=None: watch.on_train_batch_end(0)
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    method = Prune(sparsity=0.8, schedule=Schedule(shape="one-shot", begin=0.5))
    model.fit(x, y, batch_size=32, verbose=0, callbacks=[method.callback(), swap, watch])
    # The averages still remember what the weights were before the mask.
    assert watch.zeros[-1] == EXACT


def test_a_checkpoint_written_while_pruning_opens_in_plain_keras_with_its_optimizer(tmp_path):
    model = compiled(lab(), keras.optimizers.Adam(0.01))
    x, y = images()
    path = tmp_path / "checkpoint.keras"
    save = keras.callbacks.ModelCheckpoint(str(path), save_freq=7)
    model.fit(x, y, batch_size=32, verbose=0, callbacks=[growing().callback(), save])
    script = f"""
        import sys, warnings, keras, numpy as np
        warnings.simplefilter("error", UserWarning)  # Keras warns when optimizer variables do not fit
        model = keras.saving.load_model({str(path)!r})
        assert not any(name.startswith("secateur") for name in sys.modules)
        zeros = [int((keras.ops.convert_to_numpy(l.kernel) == 0).sum()) for l in model.layers if hasattr(l, "kernel")]
        momenta = [float(np.abs(keras.ops.convert_to_numpy(v)).sum()) for v in model.optimizer.variables[2:]]
        assert all(m > 0 for m in momenta), momenta
        print(type(model.optimizer).__name__, int(keras.ops.convert_to_numpy(model.optimizer.iterations)), *zeros)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    # Saved after step index 6, when the schedule's last update (step 5) had reached 80 %.
    assert result.stdout.split()[-4:] == ["Adam", "7", "86", "16224"]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_training_resumed_in_the_middle_of_the_schedule_ends_with_the_same_zeros():
    x, y = images()
    whole = compiled(lab(), keras.optimizers.SGD(0.05))
    method = Prune(sparsity=0.8, schedule=Schedule(every=1))
    whole.fit(
        x, y, batch_size=32, epochs=4, shuffle=False, verbose=0, callbacks=[method.callback()]
    )
    parts = compiled(lab(), keras.optimizers.SGD(0.05))
    for first, last in ((0, 2), (2, 4)):
        callback = method.callback()

        class Stop(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None, last=last):
                self.model.stop_training = epoch == last - 1

        with (
            pytest.warns(UserWarning, match="before the pruning schedule") if last == 2 else _none()
        ):
            parts.fit(
                x, y, batch_size=32, epochs=4, initial_epoch=first, shuffle=False, verbose=0,
                callbacks=[callback, Stop()],
            )  # fmt: skip
    for path, w in kernels(whole).items():
        np.testing.assert_array_equal(w == 0, kernels(parts)[path] == 0)
        np.testing.assert_allclose(w, kernels(parts)[path], atol=1e-5)


class _none:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False
