"""Models, promises and refusals that the tests of exporting share."""

import keras
import numpy as np
import pytest

from secateur import zoo
from secateur.artifact import FORMATS
from secateur.errors import SecateurError
from secateur.exporting import export
from secateur.promises import Promise
from secateur.verification import verify

EVERY = tuple(FORMATS)
# How a kernel of the lab CNN is stored; the values that are read are int8 for 4 bits too.
STORED = {
    **dict.fromkeys(("keras", "h5", "float32", "sparse", "onnx"), "float32"),
    "float16": "float16",
    **dict.fromkeys(("dynamic", "int4", "int8", "int16x8", "onnx-dynamic", "onnx-int8"), "int8"),
}


def values(variable):
    return np.array(keras.ops.convert_to_numpy(variable))


def pruned(net, share=0.8):
    """Sets the smallest weights of each kernel to zero; returns the promises."""
    promises = []
    for layer in net.layers:
        if hasattr(layer, "kernel"):
            kernel = values(layer.kernel)
            zeros = np.zeros(kernel.size, bool)
            zeros[np.argsort(np.abs(kernel), axis=None)[: int(share * kernel.size)]] = True
            zeros = zeros.reshape(kernel.shape)
            layer.kernel.assign(np.where(zeros, 0, kernel))
            promises.append(Promise(f"{layer.name}/kernel", "zeros", zeros, kernel.shape))
    return promises


def left_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def randomized(net):
    """BatchNorm statistics as after training, with negative factors among them."""
    rng = np.random.default_rng(3)
    for weight in net.weights:
        if weight.name in ("gamma", "beta", "moving_mean", "moving_variance"):
            sign = 1 if weight.name == "moving_variance" else rng.choice([-1, 1], weight.shape)
            weight.assign(rng.uniform(0.5, 1.5, weight.shape) * sign)
        elif weight.name == "bias":
            weight.assign(rng.normal(0, 0.1, weight.shape))
    return net


def refused(path, format, model, promises, x, match):
    with pytest.raises(SecateurError, match=match) as error:
        verify(path, format, model, promises, x)
    assert "\n" not in str(error.value) and path.name in str(error.value)


def samples():
    return np.random.default_rng(0).random((64, 28, 28), dtype="float32")


def exported(out):
    """A pruned lab CNN, its promises, and its verified files by format."""
    keras.utils.set_random_seed(0)
    model = zoo.build("lab-cnn")
    for weight in model.weights:
        weight.assign(values(weight) + 0.01)
    promises = pruned(model)
    kernel = values(model.layers[-1].kernel)
    kernel[tuple(np.argwhere(kernel)[0])] = 1e-6  # of those kept, one that rounds to code 0
    model.layers[-1].kernel.assign(kernel)
    artifacts = export(
        model, EVERY, out, stage="pruned", promises=promises, data=samples(), calibration=samples()
    )
    return model, promises, {artifact.format: artifact for artifact in artifacts}, out
