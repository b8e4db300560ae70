"""Kinds of training that pruning must survive: precisions, frozen weights, checkpoints, two devices."""

import os
import subprocess
import sys
import textwrap
import warnings

import keras
import numpy as np
import pytest
from keras import layers

from secateur.arrays.masks import unstructured, zeros_count
from secateur.arrays.schedules import Schedule
from secateur.methods.prune import Prune
from secateur.project import innermost
from secateur.weights import Select, weight_table

BACKEND = keras.backend.backend()
STEPS = 8
SIZES = {"hidden/kernel": 96, "head/kernel": 48}
SCHEDULE = Schedule(initial=0.25, end=0.75, every=2, power=1)


@pytest.fixture
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


def net():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(16, activation="tanh", name="hidden"),
            layers.Dense(3, name="head"),
        ]
    )


def compiled(model, optimizer=None):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(0.01), loss)
    return model


def data(n=8 * STEPS):
    rng = np.random.default_rng(0)
    return rng.random((n, 6), dtype=np.float32), rng.integers(0, 3, n)


def fit(model, *callbacks, epochs=1):
    x, y = data()
    return model.fit(
        x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks)
    )


def read(model):
    return {w.path: w.read() for w in weight_table(model) if w.role == "kernel"}


def zeros(model):
    return {path: int((value == 0).sum()) for path, value in read(model).items()}


def asked(step, steps=STEPS, schedule=SCHEDULE, final=0.8):
    table = schedule.resolve(steps, STEPS)
    return {p: zeros_count(n, table.value(table.latest(step), final)) for p, n in SIZES.items()}


class Watch(keras.callbacks.Callback):
    """What the weights are at the end of every step."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append({path: np.array(value) for path, value in read(self.model).items()})

    @property
    def zeros(self):
        return [{p: int((value == 0).sum()) for p, value in seen.items()} for seen in self.seen]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"], indirect=True)
def test_zeros_are_exact_in_low_precision(policy):
    # Not Adam: in pure bfloat16 its beta of 0.999 is 1, and nothing trains, pruned or not.
    model = compiled(net(), keras.optimizers.SGD(0.5, momentum=0.5))
    scaled = innermost(model.optimizer) is not model.optimizer
    assert scaled == (policy == "mixed_float16")  # Keras scales the loss of its own accord
    kept_in = "bfloat16" if policy == "bfloat16" else "float32"
    assert all(str(value.dtype) == kept_in for value in read(model).values())
    before, watch = read(model), Watch()
    fit(model, watch, Prune(sparsity=0.8, schedule=SCHEDULE).callback())
    assert watch.zeros == [asked(step) for step in range(STEPS)]
    for seen in watch.seen:
        assert not any(
            np.signbit(value[value == 0].astype("float32")).any() for value in seen.values()
        )
    for path, value in read(model).items():
        assert str(value.dtype) == kept_in
        assert ((value != before[path]) & (value != 0)).any()  # what is kept does train


@pytest.mark.parametrize("policy", ["bfloat16"], indirect=True)
def test_masks_of_low_precision_weights_keep_their_count_where_magnitudes_are_equal(policy):
    model = compiled(net())
    coarse = np.round(read(model)["hidden/kernel"].astype("float32") * 8) / 8
    model.get_layer("hidden").kernel.assign(coarse + 0.125)
    before = np.abs(read(model)["hidden/kernel"].astype("float32"))
    assert len(np.unique(before)) < 12
    callback = Prune(sparsity=0.3, schedule=Schedule(shape="one-shot")).callback()
    fit(model, callback)
    np.testing.assert_array_equal(callback.masks["hidden/kernel"], unstructured(before, 0.3))


OPTIMIZERS = {
    "loss scaling over gradient accumulation": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(0.01, gradient_accumulation_steps=2)
    ),
    "EMA, global clipnorm, weight decay": lambda: keras.optimizers.AdamW(
        0.01, weight_decay=0.1, global_clipnorm=0.5, use_ema=True, ema_overwrite_frequency=3
    ),
    "loss scaling over EMA and clipnorm": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1, momentum=0.9, clipnorm=0.5, use_ema=True)
    ),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_frozen_weight_is_pruned_on_request_and_never_moves(optimizer):
    model = net()
    model.get_layer("hidden").trainable = False
    compiled(model, OPTIMIZERS[optimizer]())
    before, watch = read(model), Watch()
    method = Prune(sparsity=0.8, schedule=SCHEDULE, select=Select(frozen=True))
    plan = {c.path: c for c in method.plan(weight_table(model))}
    assert plan["hidden/kernel"].changed
    callback = method.callback()
    fit(model, watch, callback)
    assert watch.zeros == [asked(step) for step in range(STEPS)]
    for seen in [*watch.seen, read(model)]:
        frozen = seen["hidden/kernel"]
        np.testing.assert_array_equal(frozen, np.where(frozen == 0, 0, before["hidden/kernel"]))
    assert zeros(model) == asked(STEPS - 1) == {"hidden/kernel": 77, "head/kernel": 38}
    trained = read(model)["head/kernel"]
    assert (trained != before["head/kernel"])[trained != 0].all()
    assert set(callback.masks) == set(SIZES)


def test_without_asking_for_it_a_frozen_weight_is_reported_and_stays_dense():
    model = net()
    model.get_layer("hidden").trainable = False
    compiled(model)
    before = read(model)["hidden/kernel"]
    method = Prune(sparsity=0.8, schedule=SCHEDULE)
    plan = {c.path: c.reason for c in method.plan(weight_table(model))}
    assert plan["hidden/kernel"] == "frozen"
    fit(model, method.callback())
    np.testing.assert_array_equal(read(model)["hidden/kernel"], before)
    assert zeros(model)["head/kernel"] == 38


@pytest.mark.parametrize("where", ["here", pytest.param("elsewhere", marks=pytest.mark.slow)])
def test_checkpoints_of_any_step_are_as_sparse_as_the_schedule_says(
    where, tmp_path, monkeypatch, capsys
):
    model = compiled(net(), keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW(0.01)))
    save = keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}-{batch}.keras"), save_freq=3)
    fit(model, Prune(sparsity=0.8, schedule=SCHEDULE).callback(), save, epochs=2)
    done = {p.name: [*map(int, p.stem.split("-"))] for p in tmp_path.iterdir()}
    done = {name: STEPS * (epoch - 1) + batch for name, (epoch, batch) in done.items()}
    names = sorted(done, key=done.get)
    assert len(names) == 5
    script = f"""
        import warnings, keras
        warnings.simplefilter("error", UserWarning)  # Keras warns when optimizer variables do not fit
        numpy = lambda v: keras.ops.convert_to_numpy(v.value)
        for name in {names!r}:
            model = keras.saving.load_model(name)
            assert type(model) is keras.Sequential, type(model)
            assert type(model.optimizer) is keras.optimizers.LossScaleOptimizer
            inner = model.optimizer.inner_optimizer
            slots = [float(abs(numpy(v)).sum()) for v in inner.variables[2:]]
            assert len(slots) == 8 and all(slots), slots  # two moments of four weights
            zeros = [int((numpy(layer.kernel) == 0).sum()) for layer in model.layers]
            print(int(numpy(inner.iterations)), *zeros)
    """
    if where == "here":
        monkeypatch.chdir(tmp_path)
        with warnings.catch_warnings():
            exec(textwrap.dedent(script), {})  # the same words as in the other process
        result = capsys.readouterr().out
    else:
        alone = "import sys; assert not any(m.startswith('secateur') for m in sys.modules)"
        result = plain_python(textwrap.dedent(script) + alone, tmp_path)
    expected = [[done[n], *asked(done[n] - 1, 2 * STEPS).values()] for n in names]
    assert len({tuple(row[1:]) for row in expected}) == 5  # each at another point of the schedule
    assert [[*map(int, line.split())] for line in result.splitlines()] == expected


def test_early_stopping_after_the_masks_were_final_stays_sparse():
    model = compiled(net())
    stop = keras.callbacks.EarlyStopping(
        "loss", mode="max", patience=1, start_from_epoch=0, restore_best_weights=True
    )
    callback = Prune(sparsity=0.8, schedule=Schedule(shape="one-shot")).callback()
    history = fit(model, stop, callback, epochs=6)
    assert len(history.epoch) < 6
    assert zeros(model) == {"hidden/kernel": 77, "head/kernel": 38}
    for path, value in read(model).items():
        np.testing.assert_array_equal(value != 0, callback.masks[path])
    assert callback.notes == []


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution works on JAX alone")
def test_two_devices_find_the_masks_of_one(tmp_path):
    script = """
        import sys
        import keras, jax, numpy as np
        from secateur import Prune, Schedule
        rng = np.random.default_rng(0)
        x, y = rng.random((128, 6), dtype=np.float32), rng.integers(0, 3, 128)

        class Count(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                counts.append([int((l.kernel.numpy() == 0).sum()) for l in self.model.layers])

        found = []
        for devices in (1, 2):
            if devices == 2:
                both = keras.distribution.list_devices()
                assert len(both) == 2, both
                keras.distribution.set_distribution(
                    keras.distribution.DataParallel(devices=both, auto_shard_dataset=False)
                )
            keras.utils.set_random_seed(1)
            model = keras.Sequential([
                keras.Input((6,)),
                keras.layers.Dense(16, activation="tanh", name="hidden"),
                keras.layers.Dense(3, name="head"),
            ])
            model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
            callback = Prune(sparsity=0.8, schedule=Schedule(every=2)).callback()
            counts = []
            model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0,
                      callbacks=[callback, Count()])
            kernel = model.layers[0].kernel.value
            assert len(kernel.sharding.device_set) == devices, kernel.sharding
            found.append((callback.masks, [w.numpy() for w in model.weights], counts))
        (masks, weights, zeros), (masks2, weights2, zeros2) = found
        assert zeros == zeros2 and zeros[-1] == [77, 38] and zeros[0] != zeros[-1], (zeros, zeros2)
        for path in masks:
            np.testing.assert_array_equal(masks[path], masks2[path])
        for one, two in zip(weights, weights2):
            np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)
            np.testing.assert_array_equal(one == 0, two == 0)
        print("same")
    """
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    assert plain_python(script, tmp_path, env).split() == ["same"]


def plain_python(script, folder, env=None):
    result = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, **(env or {})},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
