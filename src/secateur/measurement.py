"""What a model or a file costs and how well it answers: numbers read from the finished thing.

Metrics (`scoring`) are NumPy on the outputs of the file's own runtime. Measuring a `.tflite` imports neither
TensorFlow nor Keras, and nothing here knows how a model was compressed.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateur.arrays.affine import values_of
from secateur.artifact import gzip_bytes, plain
from secateur.datasets import Data, Split, fit_to
from secateur.errors import SecateurError
from secateur.outputs import Meanings, asked, of_manifest, require_finite, settled
from secateur.runtimes import Session, own_runtime
from secateur.runtimes import runtime as named_runtime
from secateur.scoring import left_out, score
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
    `omitted` says of what is not given why not. `stripped_bytes` are those of the same file without
    names, metadata and signatures. `outputs` says what the numbers of each output mean (`measure`),
    `notes` what the reader of the data noted.
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
    outputs: Meanings | None = None
    notes: tuple[str, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """Return plain JSON data; None for a number that is not finite."""
        return plain(asdict(self))


def measure(
    subject: Any,
    data: Data | Split | tuple[Any, Any] | None = None,
    *,
    threads: int = 1,
    latency: bool = True,
    batch: int = 256,
    metrics: Sequence[Any] = (),
    runtime: str | None = None,
    outputs: str | Meanings | None = None,
    codes: bool = False,
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
        outputs: what the numbers that come out mean, "logits" or "probabilities", or {output: word}.
            None: as the last activation says, else the loss the model was compiled with, or the
            manifest beside the file; a last layer without activation gives logits. Where nothing
            says it, loss and the accuracy of a single output are omitted, and `omitted` says so.
        codes: inputs are codes of an integer file, not values, which it would quantize itself.

    Raises `SecateurError` for a file that does not run, for data that do not fit it, and for outputs
    with NaN or infinity in them.
    """
    data = _given(data)
    asked(outputs)
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
        fitted = fit_to(data, session.input_shape, session.output_shape)
        data, found["notes"] = fitted.test, fitted.notes
    if isinstance(data, Split) and len(data) and runs:
        x = data.x
        if codes:
            name = session.input_names[0]
            x = values_of(x, session.input_coding(name), name)
        answered = answers(session, x, str(path) if path else "the model", batch=batch)
        found |= {"n": len(data), "outputs": meanings(session, path, outputs)}
        if data.y is not None:
            found |= _judged(_single(answered), data.y, found)
            if metrics:
                found["metrics"] = {m.name: _keras_metric(m, answered, data.y) for m in metrics}
        if latency and timed:
            found["latency"] = time_one(session, x[:1])
    return Measurement(**found)


def answers(session: Session, x: Any, source: str, *, batch: int = 256) -> Any:
    """Return a session's outputs; raises `SecateurError` for NaN and infinity, naming who gave them.

    A Keras model's weight or layer; else `source`, the file.
    """
    outputs = session.predict(x, batch=batch)

    def culprit(rows: np.ndarray) -> str:
        named = getattr(session, "culprit", None)
        few = rows[:4]
        some = {k: v[few] for k, v in x.items()} if isinstance(x, Mapping) else np.asarray(x)[few]
        return source if named is None else f"{source} ({named(some)})"

    require_finite(outputs, culprit)
    # A ReLU makes 0 of NaN: outputs may be finite whatever a broken weight would have given.
    broken = [
        constant.name
        for constant in session.constants()
        if constant.values.dtype.kind == "f" and np.isnan(constant.values).any()
    ]
    if broken:
        raise SecateurError(
            f"NaN received in {', '.join(broken[:3])} of {source}, expected numbers in all weights; "
            "fix: train again with a lower learning rate, or take an earlier checkpoint"
        )
    return outputs


def meanings(
    session: Session, path: Path | None = None, outputs: str | Meanings | None = None
) -> dict[str, str | None]:
    """Return what each output means: as the user says, as it ends, or as the manifest says."""
    known, words = session.meanings(), asked(outputs, session.output_names)
    said = outputs if isinstance(outputs, Mapping) else of_manifest(path) if path else None
    return {name: settled(known.get(name), said, name, words.get(name)) for name in known}


def _judged(outputs: np.ndarray, y: np.ndarray, found: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics, and beside what the runtime omits what could not be said."""
    meaning = next(iter(found["outputs"].values()), None)
    omitted = {**(found["omitted"] or {}), **left_out(outputs, y, meaning)}
    return {**score(outputs, y, meaning), "omitted": omitted or None}


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
