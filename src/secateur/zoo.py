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


def lenet_5_caffe(input_shape: tuple[int, ...] = (28, 28), classes: int = 10) -> keras.Model:
    """Return LeNet-5 as Caffe has it: two convolutions without ReLU, Dense 500 with it, logits.

    Images (28, 28), or (height, width, channels), of 16x16 or more: 431,080 parameters by default
    (Caffe, examples/mnist).

    >>> lenet_5_caffe().count_params()
    431080
    """
    _require_images(input_shape, smallest=16)
    image = input_shape if len(input_shape) == 3 else (*input_shape, 1)
    return keras.Sequential(
        [
            keras.Input(input_shape, name="image"),
            *([layers.Reshape(image, name="reshape")] if image != input_shape else []),
            layers.Conv2D(20, 5, name="conv2d"),
            layers.MaxPooling2D(2, name="max_pooling2d"),
            layers.Conv2D(50, 5, name="conv2d_1"),
            layers.MaxPooling2D(2, name="max_pooling2d_1"),
            layers.Flatten(name="flatten"),
            layers.Dense(500, activation="relu", name="dense"),
            layers.Dense(classes, name="dense_1"),
        ],
        name="lenet-5",
    )


def vgg16_head(
    input_shape: tuple[int, ...] = (224, 224, 3),
    classes: int = 10,
    *,
    weights: str | None = None,
    frozen: bool = True,
) -> keras.Model:
    """Return VGG16 without its top as one layer, "vgg16", then Flatten, Dense 512, Dense, softmax.

    `weights`: None for random ones, the path of a weights file, or "imagenet", which Keras
    downloads; a frozen base needs trained ones to be of use. `frozen` keeps the base out of
    training. Images of 32x32 or more, 1 or 3 channels; nothing is preprocessed. 27,566,412
    parameters at 224x224x3 with 12 classes, of which 12,851,724 train. Raises `SecateurError` for
    weights that do not fit.

    >>> vgg16_head((32, 32, 3), classes=12).output_shape
    (None, 12)
    """
    base = _base(keras.applications.VGG16, "vgg16", input_shape, weights, frozen)
    head = [
        layers.Flatten(name="flatten"),
        layers.Dense(512, activation="relu", name="dense"),
        layers.Dense(classes, activation="softmax", name="dense_1"),
    ]
    return keras.Sequential(
        [keras.Input(input_shape, name="image"), base, *head], name="vgg16-head"
    )


def mobilenet_head(
    input_shape: tuple[int, ...] = (96, 96, 3),
    classes: int = 10,
    *,
    alpha: float = 0.25,
    weights: str | None = None,
    frozen: bool = True,
) -> keras.Model:
    """Return MobileNet without its top as one layer, "mobilenet", and a head of two Dense layers.

    The head: global average pooling, Dense 128 with ReLU, dropout 0.2, Dense with softmax.
    `alpha` is the width of the base; `weights` and `frozen` as for `vgg16_head`. Images of 32x32
    or more, 1 or 3 channels; nothing is preprocessed. 252,730 parameters by default.

    >>> mobilenet_head((32, 32, 3)).count_params()
    252730
    """
    if not 1 / 32 <= alpha <= 32:  # below, the first convolution has no filter
        raise SecateurError(f"alpha={alpha!r} received, expected 1/32 to 32; fix: try 0.25")
    base = _base(
        keras.applications.MobileNet, "mobilenet", input_shape, weights, frozen, alpha=alpha
    )
    head = [
        layers.GlobalAveragePooling2D(name="global_average_pooling2d"),
        layers.Dense(128, activation="relu", name="dense"),
        layers.Dropout(0.2, name="dropout"),
        layers.Dense(classes, activation="softmax", name="dense_1"),
    ]
    return keras.Sequential(
        [keras.Input(input_shape, name="image"), base, *head], name="mobilenet-head"
    )


ZOO: dict[str, Callable[..., keras.Model]] = {
    "lab-cnn": lab_cnn,
    "lenet-300-100": lenet_300_100,
    "challenge-mlp": challenge_mlp,
    "lenet-5": lenet_5_caffe,
    "vgg16-head": vgg16_head,
    "mobilenet-head": mobilenet_head,
}


def build(
    name: str, input_shape: tuple[int, ...] | None = None, classes: int | None = None
) -> keras.Model:
    """Return the reference model of that name, by default for its own input shape and 10 classes.

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


def _base(
    application: Callable[..., keras.Model],
    name: str,
    input_shape: tuple[int, ...],
    weights: str | None,
    frozen: bool,
    **options: float,
) -> keras.Model:
    """Return a model of keras.applications without its top, to be a layer of that name."""
    _require_images(input_shape, smallest=32)
    if len(input_shape) != 3 or input_shape[2] not in (1, 3):
        raise SecateurError(
            f"input shape {tuple(input_shape)} received, expected (height, width, channels) with "
            "1 or 3 channels; fix: reshape the images, or use lab-cnn or lenet-5"
        )
    image = keras.Input(input_shape, name="image")
    try:
        base = application(
            include_top=False,
            weights=None if weights is None else str(weights),
            input_tensor=image,
            input_shape=tuple(input_shape),
            name=name,
            **options,
        )
    except Exception as error:  # of the file and of the download, a dozen kinds
        if weights is None:
            raise
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SecateurError(
            f"weights {str(weights)!r} received, expected None, 'imagenet' or a file of {name} "
            f"weights without its top ({why}); fix: check the path, or leave weights out"
        ) from error
    base.trainable = not frozen
    return base


def _require_images(input_shape: tuple[int, ...], smallest: int = 4) -> None:
    # What convolutions and poolings leave something of: 4x4 of a 3x3 convolution and one pooling.
    if len(input_shape) not in (2, 3) or min(input_shape[:2]) < smallest:
        raise SecateurError(
            f"input shape {tuple(input_shape)} received, expected (height, width) or (height, "
            f"width, channels) of {smallest}x{smallest} or more; fix: use lenet-300-100 for other "
            "inputs"
        )
