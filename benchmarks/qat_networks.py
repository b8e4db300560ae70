"""Five networks trained for their int8 files, and the files held against that training.

    python benchmarks/qat_networks.py                              # TensorFlow, all of MNIST
    KERAS_BACKEND=jax python benchmarks/qat_networks.py --short    # 6,000 images, 5 epochs; torch likewise
    python benchmarks/qat_networks.py --quick --out FILE           # digits: a smoke test

One epoch in float, one through the grids (short: five each), batch 64. Each file (integers or floats
in and out) is run on the 10,000 test images and compared with the model *as it was trained*. A process
has one backend; its results go into the record in the place of those that it held for the same network
and backend.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers
from recording import Record, about, save
from recording import load as load_record

RECORD = Path(__file__).resolve().parent / "records" / "qat-networks.json"
SHORT, EPOCHS = 6000, 5  # images and epochs of a short training
TINY = 200  # test images for TFLM, which takes one at a time


def mobilenet(shape: tuple[int, ...]) -> Any:
    """Four depthwise-separable blocks (Howard et al. 2017, arXiv:1704.04861), narrow."""

    def normed(x: Any, layer: Any) -> Any:
        return layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.9)(layer(x)))

    inputs = keras.Input(shape, name="image")
    x = layers.Reshape((*shape, 1))(inputs)
    x = normed(x, layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False))
    for width, strides in ((16, 1), (24, 2), (24, 1), (32, 2)):
        x = normed(x, layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False))
        x = normed(x, layers.Conv2D(width, 1, use_bias=False))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x), name="mobilenet")


def resnet(shape: tuple[int, ...]) -> Any:
    """Three residual blocks with BatchNorm (He et al. 2015, arXiv:1512.03385), two with a projection."""

    def conv(x: Any, width: int, size: int = 3, strides: int = 1) -> Any:
        x = layers.Conv2D(width, size, strides=strides, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    inputs = keras.Input(shape, name="image")
    x = layers.ReLU()(conv(layers.Reshape((*shape, 1))(inputs), 8, strides=2))
    for width, strides in ((8, 1), (16, 2), (24, 2)):
        y = layers.ReLU()(conv(x, width, strides=strides))
        y = conv(y, width)
        if width != x.shape[-1]:
            x = conv(x, width, 1, strides)
        x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x), name="resnet")


def transformer(shape: tuple[int, ...]) -> Any:
    """One block over the rows of an image: attention and a hidden layer with GELU, each behind a
    LayerNormalization (Xiong et al. 2020, arXiv:2002.04745)."""
    inputs = keras.Input(shape, name="image")
    x = layers.Dense(32)(inputs)
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 16)(y, y)])
    y = layers.Dense(64, activation="gelu")(layers.LayerNormalization()(x))
    x = layers.LayerNormalization()(layers.Add()([x, layers.Dense(32)(y)]))
    return keras.Model(inputs, layers.Dense(10)(layers.Flatten()(x)), name="transformer")


def from_zoo(name: str) -> Any:
    """A reference model, by its name."""

    def make(shape: tuple[int, ...]) -> Any:
        from secateur.zoo import ZOO

        return ZOO[name](shape)

    return make


NETWORKS = {
    **{name: from_zoo(name) for name in ("lab-cnn", "lenet-5")},
    **{make.__name__: make for make in (mobilenet, resnet, transformer)},
}


def trained(name: str, data: Any, bits: int | None = None, epochs: int = 1) -> tuple[Any, Any]:
    """The model after `epochs` in float, and what as many through the grids make of it."""
    from secateur.compression import compress
    from secateur.methods.quantize import Quantize
    from secateur.recipe import Recipe
    from secateur.training import Train

    keras.utils.set_random_seed(0)
    model = NETWORKS[name](data.train.x.shape[1:])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    model.fit(data.train.x, data.train.y, epochs=epochs, batch_size=64, verbose=0)
    recipe = Recipe(
        steps=[Quantize(aware=True, bits=bits)],
        train=Train(epochs=epochs, batch_size=64, learning_rate=1e-3, decay="cosine"),
        control=False,
    )
    return model, compress(model, recipe, data)


def measured(name: str, data: Any, epochs: int = 1) -> Record:
    """Everything that is recorded of one network on this backend."""
    from secateur.exporting import export
    from secateur.runtimes.keras import KerasSession
    from secateur.substitute import as_in_file

    model, small = trained(name, data, epochs=epochs)
    x, y = data.test.x, data.test.y
    specification = small.specification
    with as_in_file(small.model, specification.widths, specification.ranges) as quantized:
        expected = KerasSession(quantized).predict(x)
    files = []
    with tempfile.TemporaryDirectory() as out:
        for io in ("int", "float"):
            (artifact,) = export(
                small.model,
                [specification.format],
                out,
                stage=io,
                promises=small.promises,
                specification=specification,
                calibration=data.calibration.x,
                data=data.calibration.x,
                io=io,
                allow_float=True,
            )
            files.append({"io": io, **of_file(artifact, expected, x, y)})
            print(name, files[-1], flush=True)
    return {
        "network": name,
        "backend": keras.backend.backend(),
        "version": keras.__version__,
        "trained_on": len(data.train),
        "epochs": epochs,
        "parameters": model.count_params(),
        "float_accuracy": _accuracy(KerasSession(model).predict(x), y),
        "aware_accuracy": _accuracy(expected, y),
        "files": files,
    }


def of_file(artifact: Any, expected: np.ndarray, x: np.ndarray, y: np.ndarray) -> Record:
    """What a file answers in each runtime beside what was `expected` of it, and its sizes."""
    from secateur.artifact import gzip_bytes
    from secateur.errors import SecateurError
    from secateur.runtimes import litert, tflm, vela
    from secateur.tflite import TfliteFile

    blob = artifact.path.read_bytes()
    found: Record = {
        "format": artifact.format,
        "bytes": artifact.bytes,
        "gzip_bytes": gzip_bytes(blob),
        "float_operators": TfliteFile.parse(blob, artifact.path.name).float_operators(),
    }
    for kernels in ("xnnpack", "reference"):
        session = litert.load(artifact.path, kernels=kernels)
        found[kernels] = _beside(session, expected, x, y)
    try:
        found["tflm"] = _beside(tflm.load(blob), expected[:TINY], x[:TINY], y[:TINY])
    except SecateurError as error:
        found["tflm"] = {"refused": _without_place(error)}
    try:
        estimate = vela.estimate(blob)
        found["vela"] = {
            "seconds": estimate.seconds,
            "operators": estimate.operators,
            "cpu": sorted({one["operator"] for one in estimate.cpu_operators}),
        }
    except SecateurError as error:
        found["vela"] = {"refused": _without_place(error)}
    return found


def _beside(session: Any, expected: np.ndarray, x: np.ndarray, y: np.ndarray) -> Record:
    outputs = session.predict(x)
    apart = np.abs(outputs - expected)
    step = next(iter(session.output_steps.values())) or None
    return {
        "n": len(x),
        "accuracy": _accuracy(outputs, y),
        "agreement": float((outputs.argmax(-1) == expected.argmax(-1)).mean()),
        "largest": float(apart.max()),
        "steps": None if step is None else round(float(apart.max() / step), 3),
    }


def _accuracy(outputs: np.ndarray, y: np.ndarray) -> float:
    return float((outputs.argmax(-1) == y).mean())


def _without_place(error: Exception) -> str:
    return str(error).splitlines()[0][:300]


def prepared(quick: bool, short: bool) -> Any:
    """The data: MNIST, a part of it, or digits enlarged to the least that LeNet-5 takes."""
    from secateur import datasets

    if quick:
        data = datasets.load("digits")
        parts = (data.train, data.validation, data.calibration, data.test)
        large = [datasets.Split(np.kron(s.x, np.ones((1, 2, 2), np.float32)), s.y) for s in parts]
        return datasets.Data("digits", *large, classes=10)
    data = datasets.load("mnist")
    if short:
        some = datasets.Split(data.train.x[:SHORT], data.train.y[:SHORT])
        return datasets.Data("mnist", some, data.validation, data.calibration, data.test, 10)
    return data


def main() -> None:
    """Read the command line, measure one network after the other, write after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--short", action="store_true", help=f"{SHORT:,} images, {EPOCHS} epochs")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    out = given.out if given.out or given.quick else RECORD
    data = prepared(given.quick, given.short)
    for name in given.networks or NETWORKS:
        found = measured(name, data, EPOCHS if given.short else 1)
        print(name, found["aware_accuracy"], flush=True)
        if out is None:
            continue
        record = load_record(out, {"kind": "qat-networks", "quick": given.quick})
        key = found["network"], found["backend"]
        others = [run for run in record["runs"] if (run["network"], run["backend"]) != key]
        save(out, {**record, **about(), "runs": [*others, found]})


if __name__ == "__main__":
    main()
