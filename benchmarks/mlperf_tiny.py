"""Two models of MLPerf Tiny as int8: bytes, arena and NPU time beside the published files.

    SECATEUR_MODELS=FOLDER python benchmarks/mlperf_tiny.py

FOLDER holds `ad01.h5` and `vww_96.h5` (github.com/mlcommons/tiny) and, if they are to be measured as
well, the published `ad01_int8.tflite` and `vww_96_int8.tflite`. Ranges of activations come from
seeded noise, so no accuracy is claimed; bytes, the arena of tflite-micro and Vela's estimate hardly
depend on the ranges. Where the bytes of a file lie is read from the file: constants (weights, biases,
shapes), scales and zero points, and the rest, which is the container. `one scale a kernel` is made of
the same float file and ranges by ai-edge-quantizer; it shows what scales for each output cost.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
from recording import RECORDS, about, save

from secateur import export, measure
from secateur.artifact import versions
from secateur.conversion import to_litert
from secateur.runtimes import litert
from secateur.runtimes.keras import load_model, signature
from secateur.stripping import embedded, strip

RECORD = RECORDS / "mlperf-tiny.json"
MODELS = ("ad01", "vww_96")
ACCELERATOR = "ethos-u55-128"
SAMPLES = 100


def noise(model: object) -> np.ndarray:
    """Inputs of seeded noise: images in [0, 1), vectors of a standard normal distribution."""
    (tensor,) = signature(model)[0].values()
    rng, shape = np.random.default_rng(0), (SAMPLES, *tensor.shape[1:])
    values = rng.random(shape) if len(shape) > 2 else rng.standard_normal(shape)
    return values.astype(np.float32)


def anatomy(blob: bytes) -> dict[str, int]:
    """Where the bytes of a file lie; what several tensors share is counted once."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(blob, 0)
    buffers = [model.Buffers(i).DataLength() for i in range(model.BuffersLength())]
    scales: dict[int, int] = {}
    points: dict[int, int] = {}
    for g in range(model.SubgraphsLength()):
        graph = model.Subgraphs(g)
        for t in range(graph.TensorsLength()):
            found = graph.Tensors(t).Quantization()
            if found is None or not found.ScaleLength():
                continue
            for vector, known in (
                (found.ScaleAsNumpy(), scales),
                (found.ZeroPointAsNumpy(), points),
            ):
                if isinstance(vector, np.ndarray):
                    # Where it lies in the file tells a shared vector from an equal one.
                    known[vector.__array_interface__["data"][0]] = vector.nbytes
    return {
        "constant_bytes": sum(buffers),
        "scale_bytes": sum(scales.values()),
        "zero_point_bytes": sum(points.values()),
        "scales": sum(scales.values()) // 4,
    }


def one_scale_a_kernel(blob: bytes, samples: np.ndarray) -> bytes:
    """The int8 file of a float one with a single scale for each kernel."""
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.quantizer import Quantizer

    quantizer = Quantizer(bytearray(blob))
    every = qtyping.TFLOperationName.ALL_SUPPORTED
    quantizer.add_static_config(".*", every, 8, 8, qtyping.QuantGranularity.TENSORWISE)
    found = {
        name: {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}
        for name, (low, high) in litert.ranges(blob, samples).items()
    }
    result = quantizer.quantize(found, enable_progress_report=False).quantized_model
    return embedded(bytes(result))


def row(model: str, side: str, path: Path) -> dict:
    """What a file costs: itself, in tflite-micro, and on the NPU as Vela estimates it."""
    plain = measure(path)
    arena = measure(path, runtime="tflm")
    npu = measure(path, runtime=f"vela:{ACCELERATOR}").npu or {}
    kept = ("seconds", "flash_bytes", "sram_bytes", "encoded_weight_bytes", "original_weight_bytes")
    return {
        "model": model,
        "side": side,
        "bytes": plain.bytes,
        "gzip_bytes": plain.gzip_bytes,
        "parameters": plain.parameters,
        "arena_bytes": arena.arena_bytes,
        "npu": {key: npu[key] for key in kept} | {"left": len(npu["cpu_operators"])},
        **anatomy(path.read_bytes()),
        "label": npu["label"],
    }


def main() -> None:
    """Measure both models and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RECORD)
    parser.add_argument("--models", type=Path, default=os.environ.get("SECATEUR_MODELS"))
    given = parser.parse_args()
    if given.models is None:
        parser.error("no folder with ad01.h5 and vww_96.h5; fix: SECATEUR_MODELS=FOLDER")
    rows = []
    for name in MODELS:
        published = given.models / f"{name}_int8.tflite"
        if published.exists():
            rows.append(row(name, "published", published))
        model = load_model(given.models / f"{name}.h5")
        samples = noise(model)
        with tempfile.TemporaryDirectory() as folder:
            (file,) = export(model, ["int8"], folder, stage=name, calibration=samples)
            whole = file.path.read_bytes()
            single = one_scale_a_kernel(to_litert(model, ["float32"])["float32"], samples)
            for side, blob in (("secateur", whole), ("one scale a kernel", single)):
                for title, content in ((side, blob), (f"{side}, stripped", strip(blob))):
                    path = Path(folder) / f"{title}.tflite"
                    path.write_bytes(content)
                    rows.append(row(name, title, path))
    for one in rows:
        print(one, flush=True)
    save(
        given.out,
        {"kind": "mlperf-tiny", **about(), "versions": versions(), "quick": False, "rows": rows},
    )


if __name__ == "__main__":
    main()
