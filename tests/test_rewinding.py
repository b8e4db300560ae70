"""Rewinding in a Run: the early point belongs to the baseline's training and survives an interruption."""

import keras
import numpy as np
import pytest
from keras import layers

from secateur import compression, pipeline
from secateur.arrays.schedules import Rewind
from secateur.datasets import load
from secateur.errors import SecateurError
from secateur.methods.fine_tune import FineTune
from secateur.methods.prune import Prune
from secateur.recipe import Export, Recipe
from secateur.training import Snapshot, Train
from secateur.weights import Select, weight_table

RECIPE = Recipe(
    steps=[Prune(sparsity=0.9, rewind=Rewind(rounds=2, to=1), select=Select(output=False))],
    train=Train(epochs=2),
    export=Export(formats=("keras",)),
)


@pytest.fixture(scope="module")
def digits():
    return load("digits", limit=400)


def weights(run):
    return {w.path: w.read() for w in weight_table(run.model)}


@pytest.mark.slow
def test_an_interrupted_run_keeps_the_early_point_and_ends_with_the_same_weights(digits, tmp_path):
    whole = pipeline.run("lenet-300-100", RECIPE, digits, tmp_path / "whole")
    said = []

    def interrupt(text):
        if text.startswith("baseline-keras.keras"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.run("lenet-300-100", RECIPE, digits, tmp_path / "cut", say=interrupt)
    resumed = pipeline.run("lenet-300-100", RECIPE, digits, tmp_path / "cut", say=said.append)
    assert "baseline: carried over from the interrupted run" in said
    for path, value in weights(whole).items():
        np.testing.assert_array_equal(weights(resumed)[path], value)
    assert (weights(whole)["dense/kernel"] == 0).sum() == round(0.9 * 64 * 300)
    stages = {s["name"]: s for s in whole.record["stages"]}
    # Two rounds of one epoch each, from the end of the first epoch: as long for the control.
    assert stages["pruned"]["epochs"] == stages["control"]["epochs"] == 2
    curve = [value for _, value in stages["pruned"]["sparsity_curve"]]
    np.testing.assert_allclose(curve, [1 - np.sqrt(0.1), 0.9])


def test_every_round_starts_from_the_early_weights_and_optimizer(digits, monkeypatch):
    begun = []
    train = compression.train

    def spied(model, data, settings, *, start=None, callbacks=(), **kwargs):
        taken = [c for c in callbacks if isinstance(c, Snapshot)]
        done = train(model, data, settings, start=start, callbacks=callbacks, **kwargs)
        begun.append((start, taken, int(model.optimizer.iterations)))
        return done

    monkeypatch.setattr(compression, "train", spied)
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((8, 8)), layers.Flatten(), layers.Dense(10, name="d")])
    steps = [FineTune(), Prune(sparsity=0.75, rewind=Rewind(rounds=2, to=0.5))]
    small = compression.compress(net, Recipe(steps=steps, train=Train(epochs=2)), digits)
    (dense, one), (first, _), (second, _) = ((b[0], b[1]) for b in begun)
    assert dense is None
    assert first is second is one[0]
    assert one[0].weights is not None
    steps_per_epoch = begun[0][2] // 2
    assert int(one[0].optimizer[0]) == round(0.5 * steps_per_epoch)  # the optimizer's own counter
    assert [b[2] for b in begun[1:]] == [int(one[0].optimizer[0]) + 2 * steps_per_epoch] * 2
    assert (weight_table(small.model)["d/kernel"].read() == 0).sum() == 480


def test_a_model_without_a_training_of_its_own_here_cannot_be_rewound(digits, tmp_path):
    net = keras.Sequential([keras.Input((8, 8)), layers.Flatten(), *map(layers.Dense, (9, 10))])
    for call in (
        lambda: compression.compress(net, RECIPE, digits),
        lambda: pipeline.run(net, RECIPE, digits, tmp_path, allow_chance=True),
    ):
        with pytest.raises(SecateurError, match="put a fine-tune step, the dense training, before"):
            call()
    late = Recipe(steps=[Prune(sparsity=0.5, rewind=Rewind(to=2))], train=Train(epochs=2))
    with pytest.raises(SecateurError, match="rewinds to epoch 2, but the training before it has 2"):
        pipeline.run("lenet-300-100", late, digits, tmp_path)
    assert not list(tmp_path.iterdir())
