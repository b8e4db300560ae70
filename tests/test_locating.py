"""Kernels that a converter multiplied by what stands beside them, or merged, are located in the file."""

import keras
import numpy as np
from keras import layers, ops
from tests.exporting_cases import randomized, refused, values

from secateur.exporting import export
from secateur.runtimes import litert

VECTOR = np.linspace(0.5, 2, 8).astype("float32")


def folding():
    """A branch for each thing that a converter folds into a kernel."""
    keras.utils.set_random_seed(0)
    x, image = keras.Input((6,), name="x"), keras.Input((6, 6, 4), name="image")

    def dense(name, **options):
        return layers.Dense(8, name=name, **options)

    def flat(tensor):
        return layers.Flatten()(tensor)

    hidden = dense("hidden", activation="relu")(x)
    two_sided = layers.BatchNormalization()(dense("two_sided")(layers.BatchNormalization()(hidden)))
    branches = [
        dense("times")(hidden * 30),
        dense("over")(x) / 8,
        dense("vector")(hidden * VECTOR),
        dense("rescaled")(layers.Rescaling(0.1, offset=1.0)(hidden)),
        dense("behind")(dense("hard", activation="hard_sigmoid")(x)),
        dense("mean")(layers.Average()([hidden, layers.ReLU()(two_sided)])),
        ops.sigmoid(dense("inside")(x) * 1.702),
        flat(layers.Conv2D(8, 3, groups=2, name="groups")(image) * VECTOR),
        flat(layers.SeparableConv2D(8, 3, name="separable")(image) * VECTOR),
        flat(layers.DepthwiseConv2D(3, name="depthwise")(image) * 3.0),
        flat(layers.Conv2DTranspose(8, 3, name="transposed")(image) * VECTOR),
    ]
    head = layers.Dense(3, name="head")(layers.Concatenate()(branches))
    rng = np.random.default_rng(0)
    data = {"x": rng.random((64, 6)), "image": rng.random((64, 6, 6, 4))}
    return randomized(keras.Model([x, image], head)), {k: np.float32(v) for k, v in data.items()}


def test_a_kernel_times_what_stands_beside_it_is_located(tmp_path):
    net, data = folding()
    folded = ["times", "over", "vector", "rescaled", "behind", "mean", "inside", "two_sided"]
    folded = [f"{name}/kernel" for name in (*folded, "groups", "depthwise", "transposed")]
    settings = {"stage": "s", "data": data, "calibration": data, "allow_float": True}
    for file in export(net, ["float32", "int8"], tmp_path, **settings):
        kernels = {path: r for path, r in file.tensors.items() if path.endswith("kernel")}
        assert all(record["tensor"] for record in kernels.values())
        assert [path for path in folded if "folded" not in kernels[path]] == []
        if file.format == "float32":
            path = file.path
    # Scaled by mistake, it is located still; but the file computes something else.
    (kernel,) = [
        c.values
        for c in litert.load(path).constants()
        if c.name == kernels["head/kernel"]["tensor"]
    ]
    blob = path.read_bytes()
    assert blob.count(kernel.tobytes()) == 1
    path.write_bytes(blob.replace(kernel.tobytes(), (kernel * np.float32(1.01)).tobytes()))
    refused(path, "float32", net, (), data, "outputs differ from the model's")


def test_a_merged_low_rank_update_is_located(tmp_path):
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(8, 3, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(8, activation="relu", name="dense"),
            layers.Dense(3, name="head"),
        ]
    )
    rng = np.random.default_rng(0)
    for name in ("conv", "dense"):
        layer = net.get_layer(name)
        layer.enable_lora(2)
        layer.lora_kernel_b.assign(rng.normal(0, 0.3, layer.lora_kernel_b.shape))
        assert not np.allclose(values(layer.kernel), values(layer._kernel))
    x = rng.random((32, 6, 6, 2), dtype="float32")
    formats = ["float32", "int8", "keras"]
    for file in export(net, formats, tmp_path, stage="s", data=x, calibration=x):
        for name in ("conv", "dense"):
            record = file.tensors[f"{name}/kernel"]
            assert record["tensor"] and record["merged"]
            assert record.get("error", 0) < 0.02  # of the sum, which is what the file rounds
