"""How well outputs answer, in NumPy: accuracy, loss and errors against labels. Knows no model and no file.

Accuracy of several outputs is that of the largest, whatever they mean. A loss, and the yes or no of a
single output, need to know: `meaning` is "logits", "probabilities", "linear" (logits where there are
classes), or None, for which they are left out. Nothing is concluded from the values.
"""

from typing import Any

import numpy as np

from secateur.errors import SecateurError
from secateur.outputs import LINEAR, LOGITS, MEANINGS, PROBABILITIES, require_finite

# Probabilities of a coded file may be a few steps outside of [0, 1]; what lies further is none.
MARGIN = 0.05
UNSAID = (
    "nothing says whether the outputs are logits or probabilities; fix: say it, --outputs logits or "
    "--outputs probabilities (outputs= in Python)"
)


def score(outputs: np.ndarray, y: np.ndarray, meaning: str | None = None) -> dict[str, float]:
    """Return what labels and meaning allow: accuracy, loss (and top5), or mse and mae for regression.

    Several labels at once, 0 / 1 for each of k outputs, give `label_accuracy`, the mean binary
    cross-entropy as `loss`, mse and mae. What is left out for lack of a meaning `left_out` says.
    Raises `SecateurError` for labels that do not fit and outputs that are not finite.

    >>> score(np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([0, 0]))
    {'accuracy': 0.5}
    >>> round(score(np.array([[2.0, 0.0]]), np.array([0]), "logits")["loss"], 4)
    0.1269
    >>> score(np.array([[2.5]]), np.array([2.0]))
    {'mse': 0.25, 'mae': 0.5}
    >>> y = np.array([[1, 1], [0, 1]])
    >>> score(np.array([[0.9, 0.6], [0.2, 0.4]]), y, "probabilities")["label_accuracy"]
    0.75
    """
    outputs, y = np.asarray(outputs), np.asarray(y)
    require_finite(outputs, lambda rows: f"sample {rows[0]} on")
    unsaid = left_out(outputs, y, meaning)
    if is_regression(outputs, y):
        errors = {"mse": mse(outputs, y), "mae": mae(outputs, y)}
        judged = _several_labels(outputs, y) and not unsaid
        return errors | (_of_labels(outputs, y, meaning == LOGITS) if judged else {})
    metrics = {}
    _classes(outputs, y)  # refuses labels that do not fit, whatever is left out
    if "accuracy" not in unsaid:
        metrics["accuracy"] = accuracy(outputs, y, meaning)
    if "loss" not in unsaid:
        metrics["loss"] = cross_entropy(outputs, y, from_logits=meaning != PROBABILITIES)
    if outputs.shape[-1] > 5:
        metrics["top5"] = top_k(outputs, y, 5)
    return metrics


def left_out(outputs: np.ndarray, y: np.ndarray, meaning: str | None) -> dict[str, str]:
    """Return metric -> why `score` does not give it, though the labels would allow it.

    >>> list(left_out(np.array([[0.3]]), np.array([1]), None))
    ['accuracy', 'loss']
    >>> list(left_out(np.array([[0.3, 2.0]]), np.array([1]), "probabilities"))
    ['loss']
    """
    outputs, y = np.asarray(outputs), np.asarray(y)
    by_label = _several_labels(outputs, y)
    if is_regression(outputs, y) and not by_label:
        return {}
    if meaning is None or (by_label and meaning == LINEAR):
        of_one = not _several(outputs)
        return dict.fromkeys(
            ["label_accuracy"] * by_label + ["accuracy"] * of_one + ["loss"], UNSAID
        )
    low, high = float(outputs.min(initial=0)), float(outputs.max(initial=0))
    if meaning == PROBABILITIES and (low < -MARGIN or high > 1 + MARGIN):
        why = (
            f"outputs from {low:.3g} to {high:.3g} received, said to be probabilities, expected numbers "
            "in [0, 1]; fix: --outputs logits (outputs= in Python), or a loss with from_logits=True"
        )
        return dict.fromkeys(["label_accuracy"] * by_label + ["loss"], why)
    return {}


def is_regression(outputs: np.ndarray, y: np.ndarray) -> bool:
    """Whether labels are quantities: no class numbers, no one-hot rows, no 0 / 1 for one output.

    >>> is_regression(np.zeros((2, 3)), np.array([0, 2])), is_regression(np.zeros((1, 1)), [7])
    (False, True)
    """
    y = np.asarray(y)
    if _several(outputs):
        numbers = y.dtype.kind in "biu" and y.shape != outputs.shape
        return not (numbers or _one_hot(outputs, y))
    return not bool(np.isin(y, (0, 1)).all())


def accuracy(outputs: np.ndarray, y: np.ndarray, meaning: str | None = None) -> float:
    """Return the share of samples whose largest output is the label; one output is a yes or no.

    One output says yes where that is the likelier: a probability above 0.5, a logit above 0. That is
    Keras's `BinaryAccuracy(threshold=0.0)` for logits; its "accuracy" compares with 0.5 whatever the
    loss is. Raises `SecateurError` for one output whose meaning is not known.

    >>> accuracy(np.array([[0.2, 0.8], [0.9, 0.1]]), np.array([[0, 1], [0, 1]]))
    0.5
    >>> accuracy(np.array([[0.3]]), [1], "logits"), accuracy(np.array([[0.3]]), [1], "probabilities")
    (1.0, 0.0)
    """
    return float(np.mean(chosen(outputs, meaning) == _classes(outputs, y)))


def chosen(outputs: np.ndarray, meaning: str | None = None) -> np.ndarray:
    """Return the class that each row of outputs names; raises as `accuracy` does.

    >>> chosen(np.array([[0.3], [-0.1]]), "logits").tolist(), chosen(np.eye(2)).tolist()
    ([1, 0], [0, 1])
    """
    outputs = np.asarray(outputs)
    if _several(outputs):
        return outputs.argmax(-1)
    if meaning not in (*MEANINGS, LINEAR):
        raise SecateurError(f"one output for each sample received: {UNSAID}")
    return (outputs.reshape(len(outputs)) > (0.5 if meaning == PROBABILITIES else 0.0)).astype(int)


def top_k(outputs: np.ndarray, y: np.ndarray, k: int) -> float:
    """Return the share of samples whose label is among the k largest outputs.

    >>> top_k(np.array([[3.0, 2.0, 1.0]]), np.array([1]), 2)
    1.0
    """
    labels = _classes(outputs, y)
    of_label = np.take_along_axis(outputs, labels[..., None], -1)
    # Ties count against the model: k outputs that are all equal name no label.
    return float(np.mean((outputs >= of_label).sum(-1) <= k))


def cross_entropy(outputs: np.ndarray, y: np.ndarray, from_logits: bool) -> float:
    """Return the mean negative log probability of the label, in nats.

    Probabilities are clipped at 1e-7, and those of several outputs divided by their sum, as Keras
    does: the codes of a softmax in int8 sum to 0.99 .. 1.01.

    >>> round(cross_entropy(np.array([[0.25, 0.75]]), np.array([1]), from_logits=False), 4)
    0.2877
    >>> round(cross_entropy(np.array([[0.0, 0.0]]), np.array([1]), from_logits=True), 4)
    0.6931
    """
    outputs = np.asarray(outputs, np.float64)
    if not _several(outputs):  # one output as two: (1 - p, p), or (0, logit)
        outputs = outputs.reshape(len(outputs), -1)
        other = np.zeros_like(outputs) if from_logits else 1 - outputs
        outputs = np.concatenate([other, outputs], -1)
    if from_logits:
        outputs = outputs - outputs.max(-1, keepdims=True)
        logs = outputs - np.log(np.exp(outputs).sum(-1, keepdims=True))
    else:
        sums = outputs.sum(-1, keepdims=True)
        logs = np.log(np.clip(outputs / np.where(sums > 0, sums, 1), 1e-7, 1 - 1e-7))
    labels = _classes(outputs, y)
    return -float(np.mean(np.take_along_axis(logs, labels[..., None], -1)))


def mse(outputs: np.ndarray, y: np.ndarray) -> float:
    """Return the mean squared error.

    >>> mse(np.array([[1.0], [3.0]]), np.array([1.0, 1.0]))
    2.0
    """
    return float(np.mean(np.square(_error(outputs, y))))


def mae(outputs: np.ndarray, y: np.ndarray) -> float:
    """Return the mean absolute error.

    >>> mae(np.array([[1.0], [3.0]]), np.array([1.0, 1.0]))
    1.0
    """
    return float(np.mean(np.abs(_error(outputs, y))))


def _error(outputs: np.ndarray, y: np.ndarray) -> np.ndarray:
    outputs, y = np.asarray(outputs, np.float64), np.asarray(y, np.float64)
    if outputs.size != y.size or len(outputs) != len(y):
        raise _unfit(outputs, y)
    return outputs - y.reshape(outputs.shape)  # never (n, 1) - (n,): that would be (n, n)


def _several(outputs: np.ndarray) -> bool:
    return outputs.ndim > 1 and outputs.shape[-1] > 1


def _several_labels(outputs: np.ndarray, y: np.ndarray) -> bool:
    """Whether each of several outputs may be a yes or no of its own."""
    if not _several(outputs) or outputs.shape != y.shape or not np.isin(y, (0, 1)).all():
        return False
    return not _one_hot(outputs, y)


def _of_labels(outputs: np.ndarray, y: np.ndarray, from_logits: bool) -> dict[str, float]:
    right = (outputs > (0.0 if from_logits else 0.5)) == (y == 1)
    flat = outputs.reshape(-1, 1)
    loss = cross_entropy(flat, y.reshape(-1), from_logits)
    return {"label_accuracy": float(right.mean()), "loss": loss}


def _one_hot(outputs: np.ndarray, y: np.ndarray) -> bool:
    if y.shape != outputs.shape or not np.isin(y, (0, 1)).all():
        return False
    return bool((y.sum(-1) == 1).all())


def _classes(outputs: np.ndarray, y: Any) -> np.ndarray:
    """Labels as class numbers, one fewer dimension than the outputs; raises if they do not fit."""
    outputs, y = np.asarray(outputs), np.asarray(y)
    several = _several(outputs)
    if several and _one_hot(outputs, y):
        return y.argmax(-1)
    expected = outputs.shape[:-1] if several else (len(outputs),)
    if y.shape not in (expected, (*expected, 1)):
        raise _unfit(outputs, y)
    labels, limit = y.reshape(expected).astype(np.int64), outputs.shape[-1] if several else 2
    if labels.size and not (0 <= labels.min() and labels.max() < limit):
        raise SecateurError(
            f"labels from {labels.min()} to {labels.max()} received, expected 0 to {limit - 1} for "
            f"{limit} classes; fix: number the labels from 0, or check the model's last layer"
        )
    return labels


def _unfit(outputs: np.ndarray, y: np.ndarray) -> SecateurError:
    return SecateurError(
        f"labels of shape {y.shape} received for outputs of shape {outputs.shape}, expected one "
        "label, or one row of the outputs' size, for each sample; fix: check labels and model"
    )
