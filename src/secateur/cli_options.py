"""What the commands share: consoles, options, and the quiet import of a framework."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from secateur.errors import SecateurError

if TYPE_CHECKING:
    from secateur.datasets import Data

out = Console()
err = Console(stderr=True)

DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="digits, mnist, fashion-mnist, plant-leaves; a .npz with x_train, y_train, x_test, "
        "y_test; or a folder of images: train/<class>/*.jpg and test/<class>/*.jpg, or "
        "<class>/*.jpg.",
    ),
]
ImageSizeOption = Annotated[
    str | None,
    typer.Option("--image-size", help="Resize the images of a folder to HEIGHTxWIDTH, as 96x96."),
]
ScaleOption = Annotated[
    str | None,
    typer.Option(
        "--scale", help="Divide inputs by this number (255), or auto. Named data are scaled."
    ),
]
AllowChanceOption = Annotated[
    bool, typer.Option("--allow-chance", help="Go on with a model no better than chance.")
]
ImportOption = Annotated[
    list[str] | None,
    typer.Option("--import", help="Python module that registers custom layers; may be repeated."),
]
OutputsOption = Annotated[
    str | None,
    typer.Option(
        "--outputs",
        help="What the model gives, logits or probabilities, where neither its last activation, its "
        "loss nor the manifest beside it says so.",
    ),
]

LayerOption = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        help="Width of single layers in quantized .tflite files: a name or glob, =, and 4, 8, 16, "
        "float, or 4/32 for 4 bits in blocks of 32. May be repeated; the last that names a layer "
        "counts.",
    ),
]


def as_scale(text: str | None) -> float | str | None:
    """The divisor that --scale names; raises `SecateurError` for what is none."""
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise SecateurError(
            f"--scale {text!r} received, expected a number such as 255, or auto"
        ) from None


def as_image_size(text: str | None) -> tuple[int, int] | None:
    """Height and width that --image-size names; raises `SecateurError` for what is none."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) for side in sides):
        raise SecateurError(f"--image-size {text!r} received, expected HEIGHTxWIDTH, as 96x96")
    return int(sides[0]), int(sides[1])


def tell_notes(data: Data, *parts: str) -> None:
    """Print what the reader of the data noted, but for the splits that are not used: all but `parts`."""
    unused = tuple(
        f"{part}:" for part in ("train", "validation", "calibration", "test") if part not in parts
    )
    for note in data.notes:
        if not note.startswith(unused):
            err.print(f"{data.name}: {note}", highlight=False, markup=False, soft_wrap=True)


def as_layers(texts: list[str] | None) -> dict[str, str]:
    """The widths that --layer names, by pattern; raises `SecateurError` for what is no pair.

    >>> as_layers(["dense*=4/32", "head=float"])
    {'dense*': '4/32', 'head': 'float'}
    """
    found: dict[str, str] = {}
    for text in texts or ():
        pattern, equals, width = (part.strip() for part in text.rpartition("="))
        if not (pattern and equals and width):
            raise SecateurError(
                f"--layer {text!r} received, expected LAYER=WIDTH, as 'dense*=4'; fix: name a layer "
                "or a glob, then 4, 8, 16, float, or 4/32"
            )
        found.pop(pattern, None)  # named again: it counts from here
        found[pattern] = width
    return found


@contextmanager
def frameworks() -> Iterator[None]:
    """Import Keras and its backend without their start-up noise; say which extra is missing."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from secateur.runtimes import quiet

    try:
        with quiet():
            import keras  # noqa: F401

            # TensorFlow advises users of tf.function, which nobody here calls.
            logging.getLogger("tensorflow").setLevel(logging.ERROR)
            yield
    except ModuleNotFoundError as error:
        backend = os.environ.get("KERAS_BACKEND", "tensorflow")
        extra = {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch", "jinja2": "report"}
        wanted = extra.get(error.name or "", backend)
        raise SecateurError(
            f"{error.name} is not installed; pip install 'secateur[{wanted}]' "
            "(KERAS_BACKEND chooses tensorflow, jax or torch)"
        ) from None


def import_all(modules: list[str] | None) -> None:
    """Import the modules that --import names, those of the current directory included."""
    from secateur.runtimes.keras import import_modules

    # A console script does not look into the current directory, where users keep their layers.
    if modules and "" not in sys.path:
        sys.path.insert(0, "")
    import_modules(modules or ())
