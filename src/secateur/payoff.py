"""Where compression pays: one model at several sparsities, in every format, on every target.

Zeros come at once, by magnitude, and nothing is trained: the question is size and speed. Records are
plain; `secateur.reporting.targets` makes tables and answers of them.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateur.compression import copy_model
from secateur.datasets import Data, Split, fit_to, load
from secateur.errors import SecateurError, nearest
from secateur.exporting import export
from secateur.measurement import Measurement, meanings, measure, time_one
from secateur.methods.prune import Prune
from secateur.outputs import Meanings
from secateur.promises import Promise
from secateur.runtimes import Runtime, runtime
from secateur.runtimes.keras import load as load_session
from secateur.weights import Select, weight_table

SPARSITIES = (0.5, 0.8, 0.9)
TARGETS = ("litert", "onnx", "tflm", "vela:ethos-u55-128", "vela:ethos-u65-512")
# What each runtime is given: the formats that it may have a use for.
FORMATS = {
    "litert": ("float32", "sparse", "int8"),
    "onnx": ("onnx", "onnx-int8"),
    "tflm": ("float32", "int8"),
    "vela": ("int8",),
}
# Rounds of timing, each of every file; what a round gives a file (seconds). Eleven ratios bound
# their median with 98.8 % confidence, whatever their distribution.
ROUNDS, SECONDS = 11, 0.04
PARITY_SAMPLES = 500

Record = dict[str, Any]
Progress = Callable[[str, int, int, str], None]  # label, done, total, text


def targets(
    model: Any,
    data: Any,
    *,
    sparsities: Sequence[float] = SPARSITIES,
    runtimes: Sequence[str] = TARGETS,
    out: str | Path | None = None,
    limit: int = 1000,
    imports: Sequence[str] = (),
    outputs: str | None = None,
    progress: Progress | None = None,
) -> list[Record]:
    """Measure a model as it is and with zeros, in floats and int8, on every target.

    Args:
        model: a `.keras` or `.h5` file, or a Functional or Sequential model, which is not changed.
        data: whatever `load_data` takes. The calibration part gives int8 its ranges, the test part
            the sample that is timed and the accuracy.
        sparsities: fractions in (0, 1). Every kernel and embedding, frozen ones too, loses its
            smallest weights in one shot. Nothing is trained afterwards, so an accuracy is no more
            than a lower bound of what pruning costs.
        runtimes: "litert", "onnx", "tflm" and "vela:ACCELERATOR".
        out: a folder for the files, which are otherwise removed.
        limit: samples of the test part for the accuracy.
        imports: modules that register the model's own layers.
        outputs: "logits" or "probabilities", where neither the model nor its loss says what they are.
        progress: called as (label, done, total, text); what it raises ends the work.

    Returns a record for each target, format and sparsity (0.0: the model as it is): bytes,
    gzip_bytes, parameters, zeros, accuracy and n, `latency` (median microseconds at batch 1 with
    one thread, and those of each round, in which all files take turns; `again_us` is the first
    file a second time: the noise), arena_bytes, `npu` (Vela's estimate), None where the target has
    no such number, and `reason`: why there is none at all. Raises `SecateurError` for a model or data
    that fit no target, and where nothing could be measured.

    >>> import keras
    >>> net = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, name="d")])
    >>> found = targets(net, "digits", sparsities=(0.8,), runtimes=["vela:ethos-u55-128"])
    >>> [(r["format"], r["sparsity"], r["reason"]) for r in found]
    [('int8', 0.0, None), ('int8', 0.8, None)]
    >>> found[1]["npu"]["flash_bytes"] < found[0]["npu"]["flash_bytes"]
    True
    """
    ladder, wanted = check(model, sparsities, runtimes)
    if limit < 1:
        raise SecateurError(f"limit={limit!r} received, expected 1 sample or more")
    session: Any = load_session(model)
    dense, path = session.model, Path(model) if isinstance(model, str | Path) else None
    means = meanings(session, path, outputs)
    samples = fit_to(load(data), session.input_shape, session.output_shape)
    _require_dense(dense, ladder[1])
    tell = progress or (lambda *_: None)
    with contextlib.ExitStack() as stack:
        if out is None:
            out = stack.enter_context(tempfile.TemporaryDirectory(prefix="secateur-targets-"))
        study = _Study(wanted, ladder, Path(out), samples, limit, tuple(imports), tell, means)
        records = study.records(dense)
    if all(record["reason"] for record in records):
        raise SecateurError(f"no target could be measured: {records[0]['reason']}")
    return records


def check(
    model: Any, sparsities: Sequence[float], runtimes: Sequence[str]
) -> tuple[tuple[float, ...], dict[str, Runtime]]:
    """Return the sparsities from 0.0 up and the runtimes by name; raises before anything is read.

    >>> check("net.keras", (0.8, 0.5), ["litert"])[0]
    (0.0, 0.5, 0.8)
    >>> check("net.tflite", (0.8,), ["litert"])
    Traceback (most recent call last):
    ...
    secateur.errors.SecateurError: net.tflite received, expected a .keras or .h5 model: a finished...
    """
    if isinstance(model, str | Path) and Path(model).suffix.lower() in (".tflite", ".onnx"):
        raise SecateurError(
            f"{model} received, expected a .keras or .h5 model: a finished file is measured as it "
            "is, never pruned; fix: give the model it was made of, or use `secateur measure`"
        )
    wanted = {spec.strip(): _target(spec) for spec in runtimes}
    ladder = (0.0, *sorted({_sparsity(value) for value in sparsities}))
    if not wanted or len(ladder) < 2:
        raise SecateurError(
            f"sparsities={tuple(sparsities)!r} and runtimes={tuple(runtimes)!r} received, expected "
            "one or more of each; fix: leave them out for the usual ones"
        )
    return ladder, wanted


@dataclass(frozen=True)
class _Study:
    """What all steps share: the targets, the sparsities, and where the files go."""

    wanted: Mapping[str, Runtime]
    ladder: tuple[float, ...]
    out: Path
    data: Data
    limit: int
    imports: tuple[str, ...]
    tell: Progress
    outputs: Meanings

    def records(self, dense: Any) -> list[Record]:
        missing = {spec: _missing(target) for spec, target in self.wanted.items()}
        files = self._files(dense, [s for s, why in missing.items() if why is None])
        rows = [
            (spec, format, sparsity)
            for spec, target in self.wanted.items()
            for format in FORMATS[target.name]
            for sparsity in self.ladder
            if sparsity or format != "sparse"  # with no zeros to encode it is the float32 file
        ]
        records = []
        for done, (spec, format, sparsity) in enumerate(rows):
            self.tell("measured", done, len(rows), f"{spec} {format} {100 * sparsity:g} %")
            found = missing[spec] or files[format, sparsity]
            records.append({
                "target": spec,
                "format": format,
                "sparsity": sparsity,
                **self._measured(spec, found),
            })  # fmt: skip
        self.tell("measured", len(rows), len(rows), "")
        self._time(records)
        return records

    def _files(self, dense: Any, specs: Sequence[str]) -> dict[tuple[str, float], Path | str]:
        """(format, sparsity) -> the file, or why there is none."""
        names = dict.fromkeys(f for spec in specs for f in FORMATS[self.wanted[spec].name])
        found: dict[tuple[str, float], Path | str] = {}
        for done, sparsity in enumerate(self.ladder):
            stage = f"zeros-{100 * sparsity:g}" if sparsity else "dense"
            self.tell("written", done, len(self.ladder), stage)
            model, promises = _pruned(dense, sparsity)
            formats = [name for name in names if sparsity or name != "sparse"]
            for format, made in self._exported(model, formats, stage, promises).items():
                found[format, sparsity] = made
        self.tell("written", len(self.ladder), len(self.ladder), "")
        return found

    def _exported(
        self, model: Any, formats: Sequence[str], stage: str, promises: Sequence[Promise]
    ) -> dict[str, Path | str]:
        """Each format's file. All at once, and one by one where one of them fails: it alone is lost."""
        if not formats:
            return {}
        seen = next(s for s in (self.data.validation, self.data.train, self.data.test) if s)
        calibration = None if self.data.calibration is None else self.data.calibration.x
        try:
            made = export(
                model,
                formats,
                self.out,
                stage=stage,
                promises=promises,
                data=seen.x[:PARITY_SAMPLES],
                imports=self.imports,
                calibration=calibration,
                outputs=self.outputs,
            )
        except SecateurError as error:
            if len(formats) == 1:
                return {formats[0]: str(error)}
            one_by_one = [self._exported(model, [name], stage, promises) for name in formats]
            return {name: made for found in one_by_one for name, made in found.items()}
        return {artifact.format: artifact.path for artifact in made}

    def _measured(self, spec: str, file: Path | str) -> Record:
        found, reason = Measurement(), file if isinstance(file, str) else None
        if isinstance(file, Path):
            # Where the interpreter runs anyway; the others compute the same integers, slowly.
            data = self._test() if self.wanted[spec].name in ("litert", "onnx") else None
            try:
                found = measure(file, data, runtime=spec, latency=False, outputs=self.outputs)
            except SecateurError as error:
                reason = str(error).replace(str(file), file.name)
        names = ("bytes", "gzip_bytes", "parameters", "zeros", "accuracy", "n")
        return {
            "file": file.name if isinstance(file, Path) else None,
            **{name: getattr(found, name) for name in names},
            "latency": None,
            "arena_bytes": found.arena_bytes,
            "npu": None if found.npu is None else dict(found.npu),
            "reason": reason,
        }

    def _test(self) -> Split | None:
        test = self.data.test
        if test is None:
            return None
        return Split(test.x[: self.limit], None if test.y is None else test.y[: self.limit])

    def _time(self, records: Sequence[Record]) -> None:
        """Give the records their latency: every file once a round, loaded anew, in changing order."""
        split = self.data.test or self.data.train
        timed = [
            r for r in records if r["reason"] is None and _has_latency(self.wanted[r["target"]])
        ]
        if split is None or not timed:
            return
        # A file loaded twice tells what a difference between two files is worth.
        jobs = [(record, "times_us") for record in timed]
        jobs += [(record, "again_us") for record in timed if record["sparsity"] == 0.0]
        for record in timed:
            again = None if record["sparsity"] else []
            record["latency"] = {"us": 0.0, "times_us": [], "again_us": again}
        total, sample = ROUNDS * len(jobs), split.x[:1]
        for done, (record, slot) in enumerate(_rounds(jobs)):
            text = f"{record['target']} {record['file']}"
            self.tell("timed", done, total, text)
            target, path = self.wanted[record["target"]], self.out / record["file"]
            # A `.tflite` as bytes: it has run before and needs no trial in a process of its own.
            session = target.load(path if path.suffix == ".onnx" else path.read_bytes())
            median = time_one(session, sample, seconds=SECONDS)["median_us"]
            record["latency"][slot].append(round(float(median or 0.0), 3))
        for record in timed:
            record["latency"]["us"] = float(np.median(record["latency"]["times_us"]))
        self.tell("timed", total, total, "")


def _rounds(jobs: Sequence[Any]) -> Iterator[Any]:
    """Every job in each round, in an order of its own: no file is always the one after the same."""
    rng = np.random.default_rng(0)
    for _ in range(ROUNDS):
        for index in rng.permutation(len(jobs)):
            yield jobs[index]


def _has_latency(target: Runtime) -> bool:
    return "latency" not in target.kind.omitted


def _target(spec: str) -> Runtime:
    found = runtime(spec)
    if found.name not in FORMATS:
        raise SecateurError(
            f"target {spec!r} received, expected where files run; {nearest(found.name, FORMATS)}"
        )
    return found


def _missing(target: Runtime) -> str | None:
    try:
        target.prepare()
    except SecateurError as error:
        return str(error)
    return None


def _sparsity(value: float) -> float:
    if Prune(sparsity=value).final == 0.0:
        raise SecateurError(
            "sparsity 0 received, expected fractions in (0, 1), as 0.8; fix: leave it out, the "
            "model as it is stands beside the others anyway"
        )
    return float(value)


def _require_dense(model: Any, least: float) -> None:
    """Refuse a model that has the zeros already: it cannot be compared with what it was before."""
    kernels = [weight.read() for weight in _prunable(model)]
    zeros = sum(int(np.count_nonzero(kernel == 0)) for kernel in kernels)
    share = zeros / sum(kernel.size for kernel in kernels)
    if share >= least:
        raise SecateurError(
            f"a model with {100 * share:.1f} % zeros in its kernels received, expected one from before "
            f"pruning, to be compared with {100 * least:g} % zeros; fix: give the dense model, or "
            "larger sparsities"
        )


def _prunable(model: Any) -> list[Any]:
    table = weight_table(model)
    reasons = Select(frozen=True).reasons(table)
    return [table[path] for path, reason in reasons.items() if reason is None]


def _pruned(dense: Any, sparsity: float) -> tuple[Any, list[Promise]]:
    """A copy with so many zeros, and the claim that they will be in every file."""
    if not sparsity:
        return dense, []
    model = copy_model(dense)
    masks = Prune(sparsity=sparsity, select=Select(frozen=True)).apply(model)
    return model, [Promise(path, "zeros", ~keep, keep.shape) for path, keep in masks.items()]
