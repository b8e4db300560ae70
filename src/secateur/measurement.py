"""What a model or a file costs and how well it answers: numbers read from the finished thing.

Metrics are NumPy on the outputs of the file's own runtime. Measuring a `.tflite` imports neither
TensorFlow nor Keras, and nothing here knows how a model was compressed.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateur.artifact import gzip_bytes
from secateur.datasets import Data, Split, fit_to
from secateur.errors import SecateurError
from secateur.runtimes import Session, own_runtime
from secateur.runtimes import runtime as named_runtime
from secateur.stripping import strip

LATENCY_SECONDS, LATENCY_RUNS = 0.5, 1000


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Numbers of one model or file; None where one was not taken.

    `sparsity` is the share of zeros among all weights and biases; `latency` is in microseconds at
    batch 1, on the wall and (`cpu_`) in CPU time of all threads; `threads` is None where the
    backend chooses them. `label_accuracy` is the share of right answers over all samples and labels
    where a sample may have several labels at once. `metrics` are Keras metrics. `arena_bytes` is
    the RAM that a microcontroller needs for tensors, `npu` an estimate for an accelerator, and
    `omitted` says of what the runtime does not give why not. `stripped_bytes` are those of the same
    file without names, metadata and signatures.
    """

    path: str | None = None
    format: str | None = None
    runtime: str | None = None
    threads: int | None = None
    bytes: int | None = None
    gzip_bytes: int | None = None
    stripped_bytes: int | None = None
    stripped_gzip_bytes: int | None = None
    parameters: int | None = None
    zeros: int | None = None
    nonzero: int | None = None
    sparsity: float | None = None
    macs: int | None = None
    n: int | None = None
    accuracy: float | None = None
    label_accuracy: float | None = None
    loss: float | None = None
    top5: float | None = None
    mse: float | None = None
    mae: float | None = None
    latency: Mapping[str, float | None] | None = None
    load_ms: float | None = None
    metrics: Mapping[str, float] | None = None
    arena_bytes: int | None = None
    arena: Mapping[str, int] | None = None
    npu: Mapping[str, Any] | None = None
    omitted: Mapping[str, str] | None = None

    def to_record(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)


def measure(
    subject: Any,
    data: Data | Split | tuple[Any, Any] | None = None,
    *,
    threads: int = 1,
    latency: bool = True,
    batch: int = 256,
    metrics: Sequence[Any] = (),
    runtime: str | None = None,
) -> Measurement:
    """Measure a `.tflite`, `.keras` or `.h5` file in a runtime, or a live Keras model.

    Args:
        subject: a path, or a model.
        data: a `Data`, whose test part is read and folded to what the model takes, or a `Split`:
            or a pair (x, y) of arrays. Inputs are (n, ...), labels integers (n,), one-hot (n, k),
            several of k at once (n, k), 0 / 1 for a single output, or floats for regression.
            Without labels (y None), or without data, less is measured.
        threads: for LiteRT; Keras's backends choose their own.
        latency: whether to time batches of one real sample (about half a second).
        batch: samples at a time, where the file allows it.
        metrics: `keras.metrics.Metric` objects, fed with labels and outputs.
        runtime: its name, and its option after a colon: "litert:reference", "tflm",
            "vela:ethos-u55-128"; None: the file's own, LiteRT with XNNPACK or Keras.

    Raises `SecateurError` for a file that does not run and for data that do not fit it.
    """
    data = _given(data)
    path = Path(subject) if isinstance(subject, str | Path) else None
    chosen = named_runtime(runtime) if runtime else own_runtime(path or "live.keras")
    chosen.prepare()
    begun = time.perf_counter()
    session: Session = chosen.load(path or subject, threads)
    load_ms = (time.perf_counter() - begun) * 1e3
    found: dict[str, Any] = {
        "format": path.suffix[1:].lower() if path else "live",
        "runtime": session.name,
        "threads": session.threads,
        "macs": session.macs(),
        **count(session),
        **session.costs(),
        "omitted": dict(chosen.kind.omitted) or None,
    }
    runs, timed = ("accuracy" not in chosen.kind.omitted, "latency" not in chosen.kind.omitted)
    if path:
        content = path.read_bytes()
        found |= {"path": str(path), "bytes": len(content), "gzip_bytes": gzip_bytes(content)}
        if path.suffix.lower() == ".tflite":
            bare = _stripped(content, path)
            found |= {"stripped_bytes": len(bare), "stripped_gzip_bytes": gzip_bytes(bare)}
        found["load_ms"] = load_ms if timed else None
    if isinstance(data, Data) and runs:
        data = fit_to(data, session.input_shape, session.output_shape).test
    if isinstance(data, Split) and len(data) and runs:
        outputs = session.predict(data.x, batch=batch)
        found["n"] = len(data)
        if data.y is not None:
            found |= score(_single(outputs), data.y)
            if metrics:
                found["metrics"] = {m.name: _keras_metric(m, outputs, data.y) for m in metrics}
        if latency and timed:
            found["latency"] = time_one(session, data.x[:1])
    return Measurement(**found)


def _stripped(content: bytes, path: Path) -> bytes:
    try:
        return strip(content)
    except SecateurError as error:
        raise SecateurError(f"{path}: {error}") from error


def count(session: Session) -> dict[str, Any]:
    """Return parameters, zeros, nonzero and sparsity of all weights and biases.

    A code that equals its zero point is a zero.
    """
    constants = session.constants()
    parameters = sum(constant.values.size for constant in constants)
    nonzero = sum(int(np.count_nonzero(constant.centred())) for constant in constants)
    return {
        "parameters": parameters,
        "zeros": parameters - nonzero,
        "nonzero": nonzero,
        "sparsity": (parameters - nonzero) / parameters if parameters else None,
    }


def time_one(
    session: Session, sample: np.ndarray, *, seconds: float = LATENCY_SECONDS
) -> dict[str, float | None]:
    """Return latency of one sample in microseconds: median, p10, p90 over the runs that fit `seconds`.

    CPU time above wall time means several threads; wall above CPU, that the machine was busy.
    """
    wall, cpu = [], []
    for _ in range(5):  # the first runs allocate, and compile where a backend does
        session.invoke_once(sample)
    end = time.perf_counter() + seconds
    while len(wall) < LATENCY_RUNS and (len(wall) < 5 or time.perf_counter() < end):
        cpu_begun, begun = time.process_time_ns(), time.perf_counter_ns()
        session.invoke_once(sample)
        wall.append(time.perf_counter_ns() - begun)
        cpu.append(time.process_time_ns() - cpu_begun)
    low, middle, high = np.percentile(wall, [10, 50, 90]) / 1e3
    return {
        "median_us": float(middle),
        "p10_us": float(low),
        "p90_us": float(high),
        "cpu_median_us": float(np.median(cpu) / 1e3),
        "runs": len(wall),
        "batch": 1,
        "threads": session.threads,
    }


def score(outputs: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Return what the labels allow: accuracy, loss (and top5), or mse and mae for regression.

    Several labels at once, 0 / 1 for each of k outputs in [0, 1], give `label_accuracy`, the mean
    binary cross-entropy as `loss`, mse and mae.

    >>> score(np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([0, 0]))["accuracy"]
    0.5
    >>> score(np.array([[2.5]]), np.array([2.0]))
    {'mse': 0.25, 'mae': 0.5}
    >>> score(np.array([[0.9, 0.6], [0.2, 0.4]]), np.array([[1, 1], [0, 1]]))["label_accuracy"]
    0.75
    """
    outputs, y = np.asarray(outputs), np.asarray(y)
    if is_regression(outputs, y):
        found = {"mse": mse(outputs, y), "mae": mae(outputs, y)}
        return found | (_of_labels(outputs, y) if _several_labels(outputs, y) else {})
    found = {"accuracy": accuracy(outputs, y), "loss": cross_entropy(outputs, y)}
    if outputs.shape[-1] > 5:
        found["top5"] = top_k(outputs, y, 5)
    return found


def is_regression(outputs: np.ndarray, y: np.ndarray) -> bool:
    """Whether labels are quantities: no class numbers, no one-hot rows, no 0 / 1 for one output.

    >>> is_regression(np.zeros((2, 3)), np.array([0, 2])), is_regression(np.zeros((1, 1)), [7])
    (False, True)
    """
    y = np.asarray(y)
    if outputs.ndim > 1 and outputs.shape[-1] > 1:
        numbers = y.dtype.kind in "biu" and y.shape != outputs.shape
        return not (numbers or _one_hot(outputs, y))
    return not bool(np.isin(y, (0, 1)).all())


def accuracy(outputs: np.ndarray, y: np.ndarray) -> float:
    """Return the share of samples whose largest output is the label; one output is a yes or no.

    >>> accuracy(np.array([[0.2, 0.8], [0.9, 0.1]]), np.array([[0, 1], [0, 1]]))
    0.5
    >>> accuracy(np.array([[3.0], [-1.0]]), np.array([1, 1]))
    0.5
    """
    chosen, labels = _binary(outputs), _classes(outputs, y)
    return float(np.mean(chosen.argmax(-1) == labels))


def top_k(outputs: np.ndarray, y: np.ndarray, k: int) -> float:
    """Return the share of samples whose label is among the k largest outputs.

    >>> top_k(np.array([[3.0, 2.0, 1.0]]), np.array([1]), 2)
    1.0
    """
    labels = _classes(outputs, y)
    of_label = np.take_along_axis(outputs, labels[..., None], -1)
    # Ties count against the model: k outputs that are all equal name no label.
    return float(np.mean((outputs >= of_label).sum(-1) <= k))


def cross_entropy(outputs: np.ndarray, y: np.ndarray, from_logits: bool | None = None) -> float:
    """Return the mean negative log probability of the label, in nats.

    `from_logits` None: decided by `are_probabilities`. Probabilities are clipped at 1e-7 as Keras
    does.

    >>> round(cross_entropy(np.array([[0.25, 0.75]]), np.array([1])), 4)
    0.2877
    >>> round(cross_entropy(np.array([[0.0, 0.0]]), np.array([1])), 4)
    0.6931
    """
    outputs = np.asarray(outputs, np.float64)
    if from_logits is None:
        from_logits = not are_probabilities(outputs)
    if not from_logits:
        outputs = np.log(np.clip(_binary(outputs, False), 1e-7, 1 - 1e-7))
    else:
        outputs = _binary(outputs, True)
    outputs = outputs - outputs.max(-1, keepdims=True)
    log_sum = np.log(np.exp(outputs).sum(-1))
    labels = _classes(outputs, y)
    of_label = np.take_along_axis(outputs, labels[..., None], -1)[..., 0]
    return float(np.mean(log_sum - of_label))


def are_probabilities(outputs: np.ndarray) -> bool:
    """Return whether outputs (n, ..., k) are probabilities: in [0, 1], and rows of several sum to 1.

    A sum may be off by 1e-3: what a softmax in float16 may cost. Anything else are logits.

    >>> are_probabilities(np.array([[0.25, 0.75]])), are_probabilities(np.array([[0.25, 0.25]]))
    (True, False)
    >>> are_probabilities(np.array([[0.25], [0.9]])), are_probabilities(np.array([[-2.0], [1.0]]))
    (True, False)
    """
    outputs = np.asarray(outputs, np.float64)
    several = outputs.ndim > 1 and outputs.shape[-1] > 1
    sums = outputs.sum(-1) if several else np.ones(1)
    return _within_0_1(outputs) and bool((np.abs(sums - 1) <= 1e-3).all())


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


def _binary(outputs: np.ndarray, from_logits: bool | None = None) -> np.ndarray:
    """One output as two: (1 - p, p), or (0, logit); several are returned as they are."""
    outputs = np.asarray(outputs)
    if outputs.ndim > 1 and outputs.shape[-1] > 1:
        return outputs
    outputs = outputs.reshape(len(outputs), -1)
    if from_logits is None:
        from_logits = not are_probabilities(outputs)
    return np.concatenate([np.zeros_like(outputs) if from_logits else 1 - outputs, outputs], -1)


def _given(data: Any) -> Data | Split | None:
    if data is None or isinstance(data, Data | Split):
        return data
    if isinstance(data, tuple) and len(data) == 2:
        x, y = data
        return Split(np.asarray(x), None if y is None else np.asarray(y))
    raise SecateurError(
        f"data of {type(data).__name__} received, expected a Data, a Split or a pair (x, y) of "
        "arrays; fix: pass (x, y), or secateur.datasets.load(...)"
    )


def _several_labels(outputs: np.ndarray, y: np.ndarray) -> bool:
    """Whether each of several outputs is a yes or no of its own, and in [0, 1]."""
    if outputs.shape != y.shape or not np.isin(y, (0, 1)).all():
        return False
    return outputs.ndim > 1 and outputs.shape[-1] > 1 and _within_0_1(outputs)


def _of_labels(outputs: np.ndarray, y: np.ndarray) -> dict[str, float]:
    p, right = np.clip(outputs.astype(np.float64), 1e-7, 1 - 1e-7), (outputs > 0.5) == (y == 1)
    loss = -np.log(np.where(y == 1, p, 1 - p)).mean()
    return {"label_accuracy": float(right.mean()), "loss": float(loss)}


def _within_0_1(outputs: np.ndarray) -> bool:
    return bool(((outputs >= 0) & (outputs <= 1)).all())


def _one_hot(outputs: np.ndarray, y: np.ndarray) -> bool:
    if y.shape != outputs.shape or not np.isin(y, (0, 1)).all():
        return False
    return bool((y.sum(-1) == 1).all())


def _classes(outputs: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Labels as class numbers, one fewer dimension than the outputs; raises if they do not fit."""
    outputs, y = np.asarray(outputs), np.asarray(y)
    several = outputs.ndim > 1 and outputs.shape[-1] > 1
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


def _single(outputs: Any) -> np.ndarray:
    if isinstance(outputs, Mapping):
        raise SecateurError(
            f"a model with {len(outputs)} outputs ({', '.join(outputs)}) received with labels, "
            "expected one output; fix: measure it without labels, or one output at a time"
        )
    return outputs


def _keras_metric(metric: Any, outputs: np.ndarray, y: np.ndarray) -> float:
    metric.reset_state()
    metric.update_state(y, outputs)
    return float(metric.result())
