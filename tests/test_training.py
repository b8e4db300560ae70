"""The one caller of `fit`: losses inferred, seeds honoured, mistakes named, nothing left attached."""

import keras
import numpy as np
import pytest
from keras import layers

from secateur.datasets import load
from secateur.errors import SecateurError
from secateur.methods.prune import Prune
from secateur.outputs import compiled_loss
from secateur.training import Train, infer_loss, train

RNG = np.random.default_rng(0)
X = RNG.random((120, 6), dtype=np.float32)
CLASSES = RNG.integers(0, 3, 120)


def net(units=3, activation=None):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="relu"),
            layers.Dense(units, activation=activation),
        ]
    )


@pytest.mark.parametrize(
    ("model", "y", "loss", "from_logits"),
    [
        (net(), CLASSES, "SparseCategoricalCrossentropy", True),
        (net(activation="softmax"), CLASSES, "SparseCategoricalCrossentropy", False),
        (net(), CLASSES[:, None], "SparseCategoricalCrossentropy", True),
        (net(), np.eye(3, dtype=np.float32)[CLASSES], "CategoricalCrossentropy", True),
        (net(activation="softmax"), np.eye(3)[CLASSES], "CategoricalCrossentropy", False),
        (net(activation="sigmoid"), np.eye(3)[CLASSES], "BinaryCrossentropy", False),
        (net(1), CLASSES % 2, "BinaryCrossentropy", True),
        (net(1, "sigmoid"), CLASSES % 2, "BinaryCrossentropy", False),
        (net(1), RNG.random(120, dtype=np.float32), "MeanSquaredError", None),
        (net(3), RNG.random((120, 3), dtype=np.float32), "MeanSquaredError", None),
    ],
)
def test_the_loss_is_inferred_from_output_and_labels(model, y, loss, from_logits):
    found = infer_loss(model, X, y)
    assert type(found).__name__ == loss
    assert (
        getattr(found, "_fn_kwargs", {}).get("from_logits", found.get_config().get("from_logits"))
        == from_logits
    )


def test_labels_that_fit_no_loss_are_refused_with_both_shapes():
    with pytest.raises(
        SecateurError, match=r"labels of shape \(120, 5\).*outputs of shape \(None, 3\)"
    ):
        infer_loss(net(), X, RNG.random((120, 5)))


def test_a_softmax_layer_and_a_nested_model_are_seen_through():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(3), layers.Softmax()])
    outer = keras.Sequential([keras.Input((6,)), inner])
    assert not infer_loss(outer, X, CLASSES).get_config()["from_logits"]


def test_the_same_seed_gives_the_same_weights_and_another_one_does_not():
    data = load((X, CLASSES))
    weights = []
    for seed in (1, 1, 2):
        model = net()
        train(model, data, Train(epochs=2, batch_size=16), seed=seed)
        weights.append(np.concatenate([w.ravel() for w in model.get_weights()]))
    np.testing.assert_array_equal(weights[0], weights[1])
    assert (weights[0] != weights[2]).any()


def test_history_progress_and_steps():
    calls = []
    history = train(
        net(),
        load((X, CLASSES)),
        Train(epochs=2, batch_size=16, optimizer="sgd", learning_rate=0.1, decay="cosine"),
        seed=0,
        progress=lambda *a: calls.append(a),
        label="stage",
    )
    assert history.steps == 2 * -(-86 // 16) == 12
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(history.metrics)
    assert len(history.metrics["loss"]) == 2
    assert calls[-1][:3] == ("stage", 12, 12)
    assert "loss" in calls[-1][3]


def test_the_compiled_loss_is_found_only_when_there_is_one():
    model = net()
    assert compiled_loss(model) is None
    model.compile("sgd", "mse")
    assert compiled_loss(model) == "mse"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(batch_size=0), "batch_size 0 received"),
        (dict(epochs=-1), "epochs -1 received"),
        (dict(learning_rate=0.0), "learning_rate 0.0 received"),
        (dict(decay="linear"), "decay 'linear' received"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(SecateurError, match=message):
        Train(**settings)


def test_unknown_optimizer_missing_labels_and_divergence_are_one_line():
    data = load((X, CLASSES))
    with pytest.raises(SecateurError, match="optimizer 'adamm' received"):
        train(net(), data, Train(optimizer="adamm"), seed=0)
    with pytest.raises(SecateurError, match="has no labels"):
        train(net(), load((X, None)), Train(), seed=0)
    with pytest.raises(SecateurError, match="the loss became NaN"):
        train(
            net(1),
            load((X, X[:, 0] * 1e6)),
            Train(optimizer="sgd", learning_rate=1e30, epochs=3),
            seed=0,
        )


class _Interrupt(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            raise KeyboardInterrupt


def test_ctrl_c_leaves_the_model_sparse_and_nothing_attached():
    model = net()
    data = load((X, CLASSES))
    method = Prune(sparsity=0.5)
    from secateur.arrays.schedules import Schedule

    method = Prune(sparsity=0.5, schedule=Schedule(shape="one-shot"))
    with pytest.raises(KeyboardInterrupt):
        train(
            model, data, Train(batch_size=16), seed=0, callbacks=[method.callback(), _Interrupt()]
        )
    assert "apply" not in vars(model.optimizer)
    assert int((keras.ops.convert_to_numpy(model.layers[0].kernel) == 0).sum()) == 24
