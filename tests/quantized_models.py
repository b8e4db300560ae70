"""Small networks for quantization-aware training, and pictures that they can learn."""

import keras
import numpy as np
from keras import layers, ops

SHAPE = (8, 8, 2)


def pictures(n=256):
    """Noise, brighter above or below, and in the first channel or the second: four classes."""
    rng = np.random.default_rng(0)
    x, y = rng.random((n, *SHAPE), dtype=np.float32) / 2, np.arange(n) % 4
    for picture, label in zip(x, y, strict=True):
        rows = slice(0, 4) if label % 2 else slice(4, 8)
        picture[rows, :, label // 2] += 0.5
    return x, y


def _chain(*parts):
    inputs = outputs = keras.Input(SHAPE)
    for part in parts:
        outputs = part(outputs)
    return keras.Model(inputs, outputs)


def _head():
    return layers.Flatten(), layers.Dense(4, name="head")


def plain():
    return _chain(layers.Conv2D(6, 3, activation="relu", name="conv"), *_head())


def normalized():
    """BatchNorm behind every kind that it is folded into, at a pace that a short training follows."""

    def norm():
        return layers.BatchNormalization(momentum=0.8)

    return _chain(
        layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv"),
        norm(),
        layers.ReLU(6.0),
        layers.DepthwiseConv2D(3, depth_multiplier=2, name="depth"),
        norm(),
        layers.SeparableConv2D(8, 3, name="separable"),
        norm(),
        layers.ReLU(),
        layers.Flatten(),
        layers.Dense(16, name="dense"),
        norm(),
        layers.Activation("relu"),
        layers.Dense(4, name="head"),
    )


def residual():
    inputs = keras.Input(SHAPE)
    first = layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(inputs)
    second = layers.Conv2D(8, 3, padding="same", use_bias=False, name="second")(first)
    second = layers.BatchNormalization(momentum=0.8)(second)
    joined = layers.ReLU()(layers.Add()([second, first]))
    return keras.Model(
        inputs, layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(joined))
    )


def joined():
    """Three branches of different ranges in one, one of them a range that the runtime fixes."""
    inputs = keras.Input(SHAPE)
    branches = [
        layers.Conv2D(4, 3, padding="same", activation="relu", name="a")(inputs),
        layers.Conv2D(4, 1, activation="tanh", name="b")(inputs),
        layers.Conv2D(4, 1, name="c")(inputs),
    ]
    return keras.Model(
        inputs, layers.Dense(4, name="head")(layers.Flatten()(layers.Concatenate()(branches)))
    )


def gated():
    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv")(inputs)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Dense(8, activation="sigmoid", name="gate")(gate)
    x = layers.Flatten()(layers.Multiply()([x, gate]))
    return keras.Model(inputs, layers.Dense(4, name="head")(x))


def nested():
    """A convolution in a model of its own, its ReLU outside."""
    base = keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.Conv2D(6, 3, name="conv"),
            layers.BatchNormalization(momentum=0.8),
        ],
        name="base",
    )
    inputs = keras.Input(SHAPE)
    x = layers.ReLU()(base(inputs))
    return keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalMaxPooling2D()(x)))


def shared():
    """One layer called twice, whose outputs have a range each."""
    conv = layers.Conv2D(2, 3, padding="same", name="conv")
    inputs = keras.Input(SHAPE)
    x = layers.ReLU()(conv(layers.ReLU()(conv(inputs))))
    return keras.Model(inputs, layers.Dense(4, name="head")(layers.Flatten()(x)))


def sequence():
    """What reads sequences, with operations that are no layers."""
    inputs = keras.Input(SHAPE)
    x = layers.Reshape((16, 8))(inputs)
    x = layers.Conv1D(8, 3, padding="same", name="conv")(x)
    x = ops.relu(layers.BatchNormalization(momentum=0.8)(x))
    y = layers.EinsumDense("abc,cd->abd", output_shape=(16, 8), bias_axes="d", name="einsum")(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(layers.Flatten()(x + y)))


def attention():
    inputs = keras.Input(SHAPE)
    x = layers.Dense(16, name="embed")(layers.Reshape((8, 16))(inputs))
    x = layers.Add()([x, layers.MultiHeadAttention(2, 8, name="mha")(x, x)])
    return keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalAveragePooling1D()(x)))


def averaged():
    """Averages of codes, which are rounded to the codes of their input."""
    return _chain(
        layers.Conv2D(6, 3, padding="same", activation="relu", name="conv"),
        layers.AveragePooling2D(2),
        layers.Conv2D(8, 3, padding="same", activation="tanh", name="second"),
        layers.AveragePooling2D(2),
        *_head(),
    )


def unfolded():
    """BatchNorm where no kernel is in front of it: a product and a sum."""
    return _chain(
        layers.BatchNormalization(momentum=0.8, name="first"),
        layers.Conv2D(6, 3, activation="relu", name="conv"),
        layers.BatchNormalization(momentum=0.8, name="behind"),
        layers.ReLU(),
        *_head(),
    )


def layered():
    """What several operators compute, some of them for floats only."""
    return _chain(
        layers.Reshape((8, 16)),
        layers.Dense(16, activation="relu", name="embed"),
        layers.LayerNormalization(name="norm"),
        layers.Dense(8, activation="relu", name="dense"),
        *_head(),
    )


def recurrent():
    return _chain(
        layers.Reshape((8, 16)),
        layers.GRU(8, unroll=True, name="gru"),
        layers.Dense(4, name="head"),
    )


MODELS = {
    make.__name__: make
    for make in (
        *(plain, normalized, residual, joined, gated, nested, shared, sequence, attention),
        *(averaged, unfolded, layered, recurrent),
    )
}
MIXED = {"nested", "layered", "recurrent"}  # files with operators for floats


def trained(make, data, epochs=3):
    """The model after a short training in float, compiled."""
    keras.utils.set_random_seed(0)
    model = make()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss, metrics=["accuracy"])
    if epochs:
        model.fit(*data, epochs=epochs, batch_size=32, verbose=0)
    return model
