"""The reference models: small, well known, of exact size. Seed Keras before building one.

Layers bear the names that a fresh process would give them, so that a path such as `dense/kernel`
means the same layer in every process and however many models were built before.
"""

from collections.abc import Callable

import keras
from keras import layers

from secateur.errors import SecateurError, nearest


def lab_cnn(input_shape: tuple[int, ...] = (28, 28), classes: int = 10) -> keras.Model:
    """Return the network of the pruning lab: one convolution, one Dense layer, logits.

    Images (28, 28), or (height, width, channels): 20,410 parameters by default (TensorFlow Model
    Optimization, "Pruning in Keras example").

    >>> lab_cnn().count_params()
    20410
    """
    _require_images(input_shape)
    image = input_shape if len(input_shape) == 3 else (*input_shape, 1)
    return keras.Sequential(
        [
            keras.Input(input_shape, name="image"),
            *([layers.Reshape(image, name="reshape")] if image != input_shape else []),
            layers.Conv2D(12, 3, activation="relu", name="conv2d"),
            layers.MaxPooling2D(2, name="max_pooling2d"),
            layers.Flatten(name="flatten"),
            layers.Dense(classes, name="dense"),
        ],
        name="lab-cnn",
    )


def lenet_300_100(input_shape: tuple[int, ...] = (28, 28), classes: int = 10) -> keras.Model:
    """Return LeNet-300-100, two hidden ReLU layers and logits (LeCun et al. 1998, Proc. IEEE 86).

    266,610 parameters on 28x28 inputs, 50,610 on 8x8.

    >>> lenet_300_100((8, 8)).count_params()
    50610
    """
    return _mlp("lenet-300-100", input_shape, (300, 100), classes)


def challenge_mlp(input_shape: tuple[int, ...] = (28, 28), classes: int = 10) -> keras.Model:
    """Return the network of the pruning challenge: 1000-1000-500-200, no biases, softmax.

    2,386,000 parameters on 28x28 inputs, all of them in five kernels.

    >>> challenge_mlp().count_params()
    2386000
    """
    hidden = (1000, 1000, 500, 200)
    return _mlp("challenge-mlp", input_shape, hidden, classes, bias=False, output="softmax")


ZOO: dict[str, Callable[..., keras.Model]] = {
    "lab-cnn": lab_cnn,
    "lenet-300-100": lenet_300_100,
    "challenge-mlp": challenge_mlp,
}


def build(
    name: str, input_shape: tuple[int, ...] | None = None, classes: int | None = None
) -> keras.Model:
    """Return the reference model of that name, by default for 28x28 inputs and 10 classes.

    Raises `SecateurError` for an unknown name, with the nearest known one, and for an input that
    the model cannot take.

    >>> build("lenet-300-100", (8, 8)).output_shape
    (None, 10)
    """
    if name not in ZOO:
        raise SecateurError(
            f"model {name!r} received, expected a .keras file or a built-in name; "
            f"{nearest(name, ZOO)}"
        )
    given = {"input_shape": input_shape and tuple(input_shape), "classes": classes}
    return ZOO[name](**{key: value for key, value in given.items() if value is not None})


def _mlp(
    name: str,
    input_shape: tuple[int, ...],
    hidden: tuple[int, ...],
    classes: int,
    *,
    bias: bool = True,
    output: str | None = None,
) -> keras.Model:
    dense = [
        layers.Dense(
            units,
            activation="relu" if number < len(hidden) else output,
            use_bias=bias,
            name=f"dense_{number}" if number else "dense",
        )
        for number, units in enumerate((*hidden, classes))
    ]
    return keras.Sequential(
        [keras.Input(input_shape, name="image"), layers.Flatten(name="flatten"), *dense], name=name
    )


def _require_images(input_shape: tuple[int, ...]) -> None:
    # A 3x3 convolution and a 2x2 pooling leave something of an image of 4x4 and more.
    if len(input_shape) not in (2, 3) or min(input_shape[:2]) < 4:
        raise SecateurError(
            f"input shape {tuple(input_shape)} received, expected (height, width) or (height, "
            "width, channels) of 4x4 or more; fix: use lenet-300-100 for other inputs"
        )
