"""Networks trained for integers, written as QDQ `.onnx` and held against that training in onnxruntime.

    python benchmarks/qat_onnx.py                      # lab CNN and LeNet-5 on MNIST, some minutes
    python benchmarks/qat_onnx.py mobilenet resnet     # more networks, into the same record
    python benchmarks/qat_onnx.py --quick --out FILE   # digits: a smoke test

The trainings are those of qat_networks.py: one epoch in float, one through the grids, batch 64; 8-bit
weights, and 4-bit ones. Each file is run on the 10,000 test images twice: as onnxruntime runs it by
default, where it makes integer operators of it, and with its optimizations off, in floats.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
from qat_networks import NETWORKS, prepared, trained
from recording import Record, about, save
from recording import load as load_record

RECORD = Path(__file__).resolve().parent / "records" / "qat-onnx.json"
LEVELS = {"default": "ORT_ENABLE_ALL", "off": "ORT_DISABLE_ALL"}
BITS = (8, 4)
BATCH = 250


def opened(path: Path, level: str, dump: Path | None = None) -> Any:
    """A file in onnxruntime at a level of its optimizations; dump: where the optimized one goes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = 4
    if dump is not None:
        options.optimized_model_filepath = str(dump)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def measured(name: str, bits: int, data: Any) -> Record:
    """Everything that is recorded of one network."""
    from secateur.exporting import export
    from secateur.runtimes import onnx
    from secateur.runtimes.keras import KerasSession
    from secateur.substitute import as_in_file

    _, small = trained(name, data, bits)
    x, y = data.test.x, data.test.y
    specification = small.specification
    with as_in_file(small.model, specification.widths, specification.ranges) as quantized:
        expected = KerasSession(quantized).predict(x)
    with tempfile.TemporaryDirectory() as out:
        (artifact,) = export(
            small.model,
            ["onnx-int8"],
            out,
            stage=name,
            promises=small.promises,
            specification=specification,
            data=data.calibration.x,
        )
        dump = Path(out) / "optimized.onnx"
        opened(artifact.path, "ORT_ENABLE_EXTENDED", dump)
        session = onnx.load(artifact.path)
        step = next(iter(session.output_steps.values()))
        levels = {}
        for words, level in LEVELS.items():
            run = opened(artifact.path, level)
            feed = run.get_inputs()[0].name
            parts = [x[start : start + BATCH] for start in range(0, len(x), BATCH)]
            outputs = np.concatenate([run.run(None, {feed: part})[0] for part in parts])
            levels[words] = {
                "accuracy": _accuracy(outputs, y),
                "agreement": float((outputs.argmax(-1) == expected.argmax(-1)).mean()),
                "steps": round(float(np.abs(outputs - expected).max() / step), 3),
                "apart": float((np.abs(outputs - expected) > 0.5 * step).mean()),
            }
        return {
            "network": name,
            "bits": bits,
            "n": len(x),
            "backend": keras.backend.backend(),
            "runtime": session.name,
            "aware_accuracy": _accuracy(expected, y),
            "bytes": artifact.bytes,
            "operators": dict(session.operators()),
            "executed": dict(onnx.load(dump).operators()),
            "levels": levels,
        }


def _accuracy(outputs: np.ndarray, y: np.ndarray) -> float:
    return float((outputs.argmax(-1) == y).mean())


def main() -> None:
    """Read the command line, measure one network after the other, write after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    out = given.out if given.out or given.quick else RECORD
    data = prepared(given.quick, False)
    for name in given.networks or ("lab-cnn", "lenet-5"):
        for bits in BITS:
            found = measured(name, bits, data)
            print(name, bits, found["levels"], flush=True)
            if out is None:
                continue
            record = load_record(out, {"kind": "qat-onnx", "quick": given.quick})
            key = found["network"], found["bits"]
            others = [run for run in record["runs"] if (run["network"], run["bits"]) != key]
            save(out, {**record, **about(), "runs": [*others, found]})


if __name__ == "__main__":
    main()
