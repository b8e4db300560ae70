"""What is looked at before a Run does any work: that it can be done, and is worth doing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from secateur.artifact import FORMATS
from secateur.datasets import Data
from secateur.errors import SecateurError
from secateur.measurement import answers
from secateur.quantization import QUANTIZATIONS
from secateur.runtimes.keras import KerasSession, signature
from secateur.scoring import left_out, score

Say = Callable[[str], None]


def require_packages(formats: Sequence[str]) -> None:
    """Refuse at the start what would otherwise fail at the first export, after the training."""
    files = [f for f in formats if FORMATS[f] == ".tflite"]
    wanted = ", ".join(files)
    needed = {"tensorflow": "TensorFlow", "ai_edge_litert": "the LiteRT runtime"}
    if any(f in QUANTIZATIONS for f in files):
        needed["ai_edge_quantizer"] = "the LiteRT quantizer"
    for module, title in needed.items():
        if wanted and find_spec(module) is None:
            extra = "tensorflow" if module == "tensorflow" else "litert"
            raise SecateurError(
                f"{title} is not installed, and writing {wanted} files takes it; "
                f"pip install 'secateur[{extra}]', or leave these formats out of the recipe"
            )


def ends(model: Any) -> tuple[tuple, tuple]:
    """The shapes of one sample and of its output; refuses what `run` cannot feed."""
    wanted = "run needs a built Functional or Sequential model with one input and one output"
    name = f"{getattr(model, 'name', '')!r} ({type(model).__name__})"
    if not getattr(model, "built", False):
        raise SecateurError(f"model {name} is not built; {wanted}; call it once on data first")
    try:
        inputs, outputs = (list(side.values()) for side in signature(model))
    except SecateurError:
        raise SecateurError(
            f"model {name} does not know its inputs; {wanted}; wrap it: keras.Model(x, model(x)) "
            "with x = keras.Input(shape)"
        ) from None
    if len(inputs) != 1 or len(outputs) != 1:
        sides = ((inputs, "input"), (outputs, "output"))
        counts = [f"{len(side)} {word}{'s' * (len(side) != 1)}" for side, word in sides]
        raise SecateurError(
            f"model {name} has {' and '.join(counts)}; {wanted} (export takes more)"
        )
    return tuple(inputs[0].shape[1:]), tuple(outputs[0].shape[1:])


def introduce(
    model: Any, data: Data, say: Say, *, may_be_chance: bool, meaning: str | None
) -> None:
    """Say how good a model is before anything else; refuse one at chance level.

    meaning: of its outputs (`runtimes.keras.meanings_of`).
    """
    part = "training" if data.validation is None else "validation"
    split = data.validation or data.train
    if split is None or split.y is None or not data.classes:
        return
    outputs = answers(KerasSession(model), split.x, model.name)
    found = score(outputs, split.y, meaning).get("accuracy")
    for metric, why in left_out(outputs, split.y, meaning).items():
        say(f"{metric} is not computed: {why}")
    if found is None:
        return
    say(f"baseline accuracy {100 * found:.2f} % on {len(split):,} {part} samples")
    one_hot = split.y.ndim > 1 and split.y.shape[-1] > 1
    labels = split.y.argmax(-1) if one_hot else split.y.reshape(-1)
    chance = float(np.unique(labels, return_counts=True)[1].max() / len(labels))
    if found > chance + 2 * math.sqrt(chance * (1 - chance) / len(labels)):
        return
    if may_be_chance:
        say("that is no better than chance: train longer, or with another learning rate")
        return
    low, high = float(split.x.min()), float(split.x.max())
    raise SecateurError(
        f"the model is at chance level ({100 * found:.1f} % correct, the largest class alone is "
        f"{100 * chance:.1f} %) on inputs from {low:g} to {high:g}: it was trained on scaled inputs "
        "(try --scale 255), with the labels in another order, or was never trained; "
        "--allow-chance (allow_chance=True) goes on all the same"
    )
