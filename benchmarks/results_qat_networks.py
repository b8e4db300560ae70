"""The section of docs/results.md on five networks trained for their files, on three backends."""

from __future__ import annotations

from collections.abc import Iterable

from results_parts import Record, bullets, markdown_table, missing, provenance, smoke, verdict

POINTS, AGREEMENT = 0.1, 0.995  # asked: of accuracy, in points at most; of predictions, at least
KERNELS = {"xnnpack": "XNNPACK", "reference": "reference kernels"}
NETWORKS = ("lab-cnn", "lenet-5", "mobilenet", "resnet", "transformer")
ORDER = ("tensorflow", "jax", "torch")
SHOWN = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}


def networks(record: Record | None) -> Iterable[str]:
    """Tables of the trainings and of their files, the targets, and who refused what."""
    yield "## Files held against their quantization-aware training"
    if record is None:
        yield missing("qat-networks.json", "python benchmarks/qat_networks.py")
        return
    yield from smoke(record)
    found = {run["network"] for run in record["runs"]}
    names = [name for name in NETWORKS if name in found]
    runs = sorted(
        record["runs"], key=lambda r: (names.index(r["network"]), ORDER.index(r["backend"]))
    )
    yield markdown_table(
        [
            *(
                "network",
                "backend",
                "images, epochs",
                "parameters",
                "float",
                "trained for the file",
            ),
            *("file", "bytes", "gzip"),
        ],
        map(_training, runs),
    )
    yield markdown_table(
        [
            *("network", "backend", "in and out"),
            *(f"{words}: accuracy, agreement" for words in KERNELS.values()),
            *("apart, at most", "TFLM, agreement", "Ethos-U (Vela)"),
        ],
        [_file(run, file) for run in runs for file in run["files"]],
    )
    yield markdown_table(
        ["target", "asked", "reached", "met"],
        [line for name in names for line in _targets(name, _of(runs, name))],
    )
    told = list(dict.fromkeys(line for run in runs for line in _refusals(run)))
    if told:
        yield bullets(told)
    yield (
        "Accuracy and agreement on MNIST's 10,000 test images, of the file beside the model as it was "
        "trained (as many epochs in float as through the grids, batch 64, one seed); TFLM on the first "
        f"{_tiny(runs)} of them. Apart: of the outputs, in steps of the output's codes where it has "
        "codes. Nothing was chosen on these images. " + provenance(record, [record["created"]])
    )


def _of(runs: list[Record], name: str) -> list[Record]:
    return [run for run in runs if run["network"] == name]


def _tiny(runs: list[Record]) -> int:
    counts = [f["tflm"]["n"] for run in runs for f in run["files"] if "n" in f["tflm"]]
    return max(counts, default=0)


def _training(run: Record) -> list[str]:
    file = run["files"][0]
    return [
        run["network"],
        SHOWN[run["backend"]],
        f"{run['trained_on']:,}, {run.get('epochs', 1)}",
        f"{run['parameters']:,}",
        f"{100 * run['float_accuracy']:.2f} %",
        f"{100 * run['aware_accuracy']:.2f} %",
        f"`{file['format']}`",
        f"{file['bytes']:,}",
        f"{file['gzip_bytes']:,}",
    ]


def _points(run: Record, found: Record) -> float:
    """By how many points of accuracy a file differs from its training."""
    return 100 * (found["accuracy"] - run["aware_accuracy"])


def _file(run: Record, file: Record) -> list[str]:
    apart = [file[kernels] for kernels in KERNELS]
    steps = [found["steps"] for found in apart]
    most = max(found["largest"] for found in apart)
    return [
        run["network"],
        SHOWN[run["backend"]],
        {"int": "integers", "float": "floats"}[file["io"]],
        *(f"{_points(run, a):+.2f} points, {100 * a['agreement']:.2f} %" for a in apart),
        f"{most:.2g}" if None in steps else _steps(max(steps)),
        "refused" if "refused" in file["tflm"] else f"{100 * file['tflm']['agreement']:.1f} %",
        _vela(file["vela"]),
    ]


def _steps(count: float) -> str:
    return "1 step" if round(count) == 1 else f"{count:.0f} steps"


def _vela(found: Record) -> str:
    if "refused" in found:
        return "refused"
    left = f", {', '.join(found['cpu'])} on the CPU" if found["cpu"] else ""
    return f"{1e3 * found['seconds']:.2f} ms{left}"


def _targets(name: str, runs: list[Record]) -> Iterable[list[str]]:
    found = [(run, file[kernels]) for run in runs for file in run["files"] for kernels in KERNELS]
    points = max(abs(_points(run, one)) for run, one in found)
    agreement = min(one["agreement"] for _, one in found)
    many = ", ".join(SHOWN[run["backend"]] for run in runs)
    missed = [SHOWN[name] for name in ORDER if name not in {run["backend"] for run in runs}]
    whole, partly = not missed, f"yes; not measured on {' and '.join(missed)}"
    yield [
        f"{name}: accuracy, points apart ({many})",
        f"at most {POINTS}",
        f"{points:.2f}",
        verdict(round(points, 6) <= POINTS, whole, partly),
    ]
    yield [
        f"{name}: identical predictions",
        f"at least {100 * AGREEMENT:.1f} %",
        f"{100 * agreement:.2f} %",
        verdict(agreement >= AGREEMENT, whole, partly),
    ]


def _refusals(run: Record) -> Iterable[str]:
    for file in run["files"]:
        if file["float_operators"]:
            yield f"{run['network']}: in float {', '.join(file['float_operators'])}"
        for runtime in ("tflm", "vela"):
            if "refused" in file[runtime]:
                yield f"{run['network']}, {runtime}: {file[runtime]['refused']}"
