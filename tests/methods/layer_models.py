"""The tiny models of layer_cases.py: layers and models as users write them, and how they are put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

TOKENS = 10

# --- layers and models of a user ------------------------------------------------------------------


class Mixer(layers.Layer):
    """Declares one of its two matrices."""

    def build(self, shape):
        self.mix = self.add_weight(shape=(shape[-1], 3), name="mix")
        self.gate = self.add_weight(shape=(shape[-1], 3), name="gate")

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.mix) * keras.ops.sigmoid(
            keras.ops.matmul(inputs, self.gate)
        )

    def get_prunable_weights(self):
        return [self.mix]


class Silent(layers.Layer):
    """Declares nothing, and its weight has a name of its own."""

    def build(self, shape):
        self.mix = self.add_weight(shape=(shape[-1], 3), name="mix")

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.mix)


class ScaledDense(layers.Dense):
    """A Dense with something around it."""

    def call(self, inputs):
        return 2.0 * super().call(inputs)


class Minimal(layers.Layer):
    """A recurrent cell by what it does, not by its name."""

    state_size = output_size = 4

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 4), name="kernel")

    def call(self, inputs, states):
        output = keras.ops.tanh(keras.ops.matmul(inputs, self.kernel) + states[0])
        return output, [output]


class Block(layers.Layer):
    """A layer of layers, called by keyword."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.wide = layers.Dense(6, name="wide", activation="tanh")
        self.narrow = layers.Dense(4, name="narrow")

    def build(self, shape):
        self.wide.build(shape)
        self.narrow.build((*shape[:-1], 6))

    def call(self, inputs):
        return self.narrow(inputs=self.wide(inputs))


class Subclassed(keras.Model):
    """Layers alone."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = layers.Dense(5, name="hidden", activation="tanh")
        self.head = layers.Dense(3, name="head")

    def call(self, inputs):
        return self.head(self.hidden(inputs))


class Owner(keras.Model):
    """A layer, and two weights of the model's own, one of them declared."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = layers.Dense(4, name="hidden", activation="tanh")

    def build(self, shape):
        self.hidden.build(shape)
        self.mix = self.add_weight(shape=(4, 3), name="mix")
        self.shift = self.add_weight(shape=(4, 3), name="shift")

    def call(self, inputs):
        hidden = self.hidden(inputs)
        return keras.ops.matmul(hidden, self.mix) + keras.ops.matmul(hidden, self.shift)

    def get_prunable_weights(self):
        return [self.mix]


# --- how the models are put together --------------------------------------------------------------


def chain(shape: tuple[int, ...], *parts: layers.Layer, name: str = "model") -> keras.Model:
    return keras.Sequential([keras.Input(shape), *parts], name=name)


def of(shape: tuple[int, ...], make: Callable[[], Any], **kwargs: Any) -> dict[str, Any]:
    """`x` and `build` of a model of one layer."""
    return {"x": shape, "build": lambda: chain(shape, make()), **kwargs}


def tokens() -> keras.Model:
    inputs = keras.Input((6,), dtype="int32")
    rows = layers.Embedding(TOKENS, 4, name="embedding")(inputs)
    return keras.Model(inputs, layers.GlobalAveragePooling1D()(rows), name="model")


def untied() -> keras.Model:
    inputs = keras.Input((6,), dtype="int32")
    embedding = layers.ReversibleEmbedding(TOKENS, 4, tie_weights=False, name="embedding")
    return keras.Model(inputs, embedding(embedding(inputs), reverse=True), name="model")


def attention(layer: Callable[..., layers.Layer], **arguments: int) -> Callable[[], keras.Model]:
    def build() -> keras.Model:
        x = keras.Input((4, 6))
        y = layer(**arguments, name="attention")(query=x, value=x, key=x)
        return keras.Model(x, y, name="model")

    return build


def nested() -> keras.Model:
    inner = chain((4,), layers.Dense(5, name="dense", activation="tanh"), name="inner")
    middle = chain((4,), inner, layers.Dense(4, name="dense", activation="tanh"), name="middle")
    x = keras.Input((4,))
    outer = keras.Model(x, layers.Dense(3, name="dense")(middle(x)), name="outer")
    return chain((4,), outer, layers.Dense(2, name="head"))


def shared_layer() -> keras.Model:
    x = keras.Input((4,))
    shared = layers.Dense(4, name="shared", activation="tanh")
    return keras.Model(x, layers.Dense(3, name="head")(shared(shared(x))), name="model")


def shared_model() -> keras.Model:
    a, b = keras.Input((4,)), keras.Input((4,))
    tower = chain((4,), layers.Dense(5, name="dense", activation="tanh"), name="tower")
    x = keras.Input((2, 4))
    pair = keras.Model([a, b], layers.Subtract()([tower(a), tower(b)]), name="pair")
    return keras.Model(x, layers.Dense(3, name="head")(pair([x[:, 0], x[:, 1]])), name="model")


def normalized() -> keras.Model:
    def norm(name: str) -> layers.Layer:
        return layers.BatchNormalization(name=name)

    return chain(
        (5, 5, 4), norm("before"), layers.Conv2D(4, 3, name="conv"), norm("between"),
        layers.ReLU(), layers.Dense(3, name="dense"), norm("after"),
    )  # fmt: skip


def built(model: keras.Model, shape: tuple[int, ...]) -> keras.Model:
    model(np.zeros((1, *shape), "float32"))
    return model


def stacked() -> layers.Layer:
    cells = [layers.LSTMCell(3, name="lower"), layers.GRUCell(4, name="upper")]
    return layers.RNN(layers.StackedRNNCells(cells, name="cells"), name="rnn")
