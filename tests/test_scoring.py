"""Accuracy, loss and errors: checked by hand and against Keras's own, and nothing read from values."""

import keras
import numpy as np
import pytest

from secateur import scoring
from secateur.errors import SecateurError
from secateur.scoring import left_out, score

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (50, 8)).astype("float32")
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
LABELS = RNG.integers(0, 8, 50)
ONE_HOT = np.eye(8)[LABELS]


@pytest.mark.parametrize("y", [LABELS, LABELS[:, None], ONE_HOT, ONE_HOT.astype("int8")])
@pytest.mark.parametrize("meaning", ["logits", "linear", "probabilities"])
def test_classes_against_keras(meaning, y):
    outputs = PROBABILITIES if meaning == "probabilities" else LOGITS
    found = score(outputs, y, meaning)
    expected = keras.losses.SparseCategoricalCrossentropy(from_logits=outputs is LOGITS)
    assert found["loss"] == pytest.approx(float(expected(LABELS, outputs)), rel=1e-5)
    assert found["accuracy"] == np.mean(outputs.argmax(-1) == LABELS)
    top = keras.metrics.sparse_top_k_categorical_accuracy(LABELS, outputs, k=5)
    assert found["top5"] == pytest.approx(np.mean(keras.ops.convert_to_numpy(top)))


@pytest.mark.parametrize("y_shape", [(-1,), (-1, 1)])
@pytest.mark.parametrize("dtype", ["int64", "float32", "bool"])
@pytest.mark.parametrize("from_logits", [True, False])
def test_yes_or_no_against_keras(y_shape, dtype, from_logits):
    logits = RNG.normal(0, 3, (40, 1))
    outputs = logits if from_logits else 1 / (1 + np.exp(-logits))
    y = RNG.integers(0, 2, 40)
    meaning = "logits" if from_logits else "probabilities"
    found = score(outputs, y.reshape(y_shape).astype(dtype), meaning)
    expected = keras.losses.BinaryCrossentropy(from_logits=from_logits)
    assert found["loss"] == pytest.approx(float(expected(y[:, None], outputs)), rel=1e-4)
    assert found["accuracy"] == np.mean((logits[:, 0] > 0) == y)
    assert set(found) == {"accuracy", "loss"}


@pytest.mark.parametrize("columns", [1, 3])
def test_regression_against_numpy(columns):
    outputs, y = RNG.normal(0, 1, (30, columns)), RNG.normal(0, 1, (30, columns))
    found = score(outputs, y[:, 0] if columns == 1 else y)
    assert found == {
        "mse": pytest.approx(((outputs - y) ** 2).mean()),
        "mae": pytest.approx(np.abs(outputs - y).mean()),
    }


def test_metrics_by_hand():
    outputs = np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]])
    assert scoring.cross_entropy(outputs, [0, 1], False) == pytest.approx(
        -np.log([0.5, 0.2]).mean()
    )
    assert scoring.accuracy(outputs, [0, 1]) == 0.5
    # a tie for the second place is not a second place
    assert scoring.top_k(outputs, np.array([1, 2]), 2) == 0.5
    certain = np.array([[1.0, 0.0]])
    assert scoring.cross_entropy(certain, [1], False) == pytest.approx(-np.log(1e-7), rel=1e-5)


def test_from_logits_can_be_said():
    outputs = np.array([[0.5, 0.5]])
    assert scoring.cross_entropy(outputs, [0], from_logits=True) == pytest.approx(np.log(2))
    outputs = np.array([[0.1, 0.9]])
    assert scoring.cross_entropy(outputs, [1], True) == pytest.approx(
        np.log(1 + np.exp(-0.8)), rel=1e-6
    )


@pytest.mark.parametrize(
    ("outputs", "y"),
    [
        (np.zeros((3, 4)), np.zeros(2, int)),
        (np.zeros((3, 4)), np.zeros((3, 2), int)),
        (np.zeros((3, 1)), np.array([0.5, 1.5])),
        (np.zeros((3, 4)), np.array([0.5, 1.5, 2.5])),
    ],
)
def test_labels_that_do_not_fit_are_refused_with_both_shapes(outputs, y):
    with pytest.raises(SecateurError, match=r"labels of shape .* for outputs of shape \(3, "):
        score(outputs, y)


def test_several_labels_at_once_against_keras():
    outputs = 1 / (1 + np.exp(-LOGITS))
    y = RNG.integers(0, 2, (50, 8))
    for labels in (y, y.astype(bool), y.astype("float32")):
        found = score(outputs, labels, "probabilities")
        expected = keras.losses.BinaryCrossentropy()(y, outputs)
        assert found["loss"] == pytest.approx(float(expected), rel=1e-4)
        assert found["label_accuracy"] == np.mean((outputs > 0.5) == y)
        assert found["mse"] == pytest.approx(np.square(outputs - y).mean())
        assert "accuracy" not in found and "top5" not in found
        of_logits = score(LOGITS, labels, "logits")
        assert of_logits == pytest.approx(
            {**found, "mse": of_logits["mse"], "mae": of_logits["mae"]}, rel=1e-4
        )


@pytest.mark.parametrize("labels", [RNG.integers(0, 2, (50, 8)), RNG.integers(0, 9, (50, 8))])
def test_whole_numbers_for_each_output_are_quantities_where_outputs_are(labels):
    found = score(LOGITS, labels)
    assert set(found) == {"mse", "mae"}
    assert found["mae"] == pytest.approx(np.abs(LOGITS - labels).mean())


@pytest.mark.parametrize("sums_to", [0.988, 1.008])
def test_probabilities_of_coarse_codes_are_divided_by_their_sum(sums_to):
    """The rows of an int8 softmax do not sum to 1, which once made logits of them."""
    outputs = PROBABILITIES * sums_to
    expected = keras.losses.CategoricalCrossentropy()(ONE_HOT, outputs)
    assert score(outputs, LABELS, "probabilities")["loss"] == pytest.approx(
        float(expected), rel=1e-5
    )


def test_one_logit_in_0_1_is_a_yes():
    """Keras says so with `threshold=0.0`, which is what a logit is compared with."""
    outputs, y = np.linspace(0.05, 0.45, 9)[:, None].astype("float32"), np.ones(9, int)
    metric = keras.metrics.BinaryAccuracy(threshold=0.0)
    metric.update_state(y[:, None], outputs)
    assert score(outputs, y, "logits")["accuracy"] == float(metric.result()) == 1.0
    assert score(outputs, y, "linear") == score(outputs, y, "logits")
    assert score(outputs, y, "probabilities")["accuracy"] == 0.0


def test_without_a_meaning_nothing_is_guessed():
    assert set(score(PROBABILITIES, LABELS)) == {"accuracy", "top5"}
    assert set(left_out(PROBABILITIES, LABELS, None)) == {"loss"}
    one, y = PROBABILITIES[:, :1], LABELS % 2
    assert score(one, y) == {}
    assert set(why := left_out(one, y, None)) == {"accuracy", "loss"}
    assert "--outputs logits" in why["accuracy"]
    with pytest.raises(SecateurError, match="--outputs logits or"):
        scoring.accuracy(one, y)


def test_probabilities_that_are_none_give_no_loss():
    assert set(score(LOGITS, LABELS, "probabilities")) == {"accuracy", "top5"}
    (why,) = left_out(LOGITS, LABELS, "probabilities").values()
    assert "said to be probabilities" in why and "--outputs logits" in why


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("y", [np.zeros(50, int), LOGITS])
def test_outputs_that_are_not_finite_are_no_answer(bad, y):
    outputs = LOGITS.copy()
    outputs[7] = bad
    with pytest.raises(SecateurError, match="NaN or infinity in the outputs for 1 of 50 samples"):
        score(outputs, y, "logits")
