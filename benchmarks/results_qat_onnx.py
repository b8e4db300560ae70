"""The section of docs/results.md on files in ONNX held against their quantization-aware training."""

from __future__ import annotations

from collections.abc import Iterable

from results_parts import Record, markdown_table, missing, provenance, smoke, verdict

POINTS, AGREEMENT = 0.1, 0.995  # asked: of accuracy, in points at most; of predictions, at least
LEVELS = {"default": "onnxruntime as it is", "off": "its optimizations off"}


def in_onnx(record: Record | None) -> Iterable[str]:
    """Tables of the files and of the targets."""
    yield "## ONNX files held against their quantization-aware training"
    if record is None:
        yield missing("qat-onnx.json", "python benchmarks/qat_onnx.py")
        return
    yield from smoke(record)
    runs = record["runs"]
    yield markdown_table(
        [
            *("network", "bits of weights", "bytes", "trained"),
            *(f"{words}: accuracy, agreement, apart" for words in LEVELS.values()),
            "operators that onnxruntime makes of it",
        ],
        map(_file, runs),
    )
    yield markdown_table(
        ["target", "asked", "reached", "met"], [line for run in runs for line in _targets(run)]
    )
    yield (
        "`onnx-int8` of a quantize step with `aware = true`, on MNIST's test images "
        f"({max(run['n'] for run in runs):,}), beside the model as it was trained (one epoch in float, "
        "one through the grids, batch 64, one seed). Apart: the outputs that are not the model's code, "
        "and the most steps between the two. With its optimizations off onnxruntime computes the pairs "
        f"of the file in floats. Nothing was chosen on these images. {_runtimes(runs)}"
        + provenance(record, [record["created"]])
    )


def _runtimes(runs: list[Record]) -> str:
    names = dict.fromkeys(run["runtime"] for run in runs if "runtime" in run)
    return f"Run in {', '.join(names)}. " if names else ""


def _points(run: Record, level: str) -> float:
    return 100 * (run["levels"][level]["accuracy"] - run["aware_accuracy"])


def _file(run: Record) -> list[str]:
    return [
        run["network"],
        str(run["bits"]),
        f"{run['bytes']:,}",
        f"{100 * run['aware_accuracy']:.2f} %",
        *(_level(run, level) for level in LEVELS),
        ", ".join(f"{count} {name}" for name, count in run["executed"].items()),
    ]


def _level(run: Record, level: str) -> str:
    found = run["levels"][level]
    apart = f"{100 * found['apart']:.3f} % by at most {found['steps']:.0f}"
    return f"{_points(run, level):+.2f} points, {100 * found['agreement']:.2f} %, {apart}"


def _targets(run: Record) -> Iterable[list[str]]:
    points = max(abs(_points(run, level)) for level in LEVELS)
    agreement = min(run["levels"][level]["agreement"] for level in LEVELS)
    label = f"{run['network']}, {run['bits']} bits"
    yield [
        f"{label}: accuracy, points apart",
        f"at most {POINTS}",
        f"{points:.2f}",
        verdict(round(points, 6) <= POINTS),
    ]
    yield [
        f"{label}: identical predictions",
        f"at least {100 * AGREEMENT:.1f} %",
        f"{100 * agreement:.2f} %",
        verdict(agreement >= AGREEMENT),
    ]
