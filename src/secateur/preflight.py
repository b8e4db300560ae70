"""What is looked at before a Run does any work: that it can be done, and is worth doing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from secateur.artifact import FORMATS
from secateur.datasets import Data, Split
from secateur.errors import SecateurError
from secateur.locating import TRACED, multiplies_nothing
from secateur.measurement import answers
from secateur.outputs import Meanings
from secateur.quantization import QUANTIZATIONS
from secateur.runtimes.keras import KerasSession, operations, signature
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
    accuracy, at_chance, omitted = _against_chance(model, split, meaning)
    for metric, why in omitted.items():
        say(f"{metric} is not computed: {why}")
    if accuracy is None:
        return
    say(f"baseline accuracy {100 * accuracy:.2f} % on {len(split):,} {part} samples")
    if not at_chance:
        return
    if may_be_chance:
        say("that is no better than chance: train longer, or with another learning rate")
        return
    raise SecateurError(at_chance)


def inputs_of(source: Any) -> Any:
    """The inputs of arrays, {name: inputs}, a pair (x, y), a `Split`, or a `Data`'s not for training."""
    if isinstance(source, Data):
        source = source.validation or source.train or source.test
    if isinstance(source, tuple):
        source = Split(*map(np.asarray, source))
    return source.x if isinstance(source, Split) else source


def calibration_samples(
    model: Any, source: Any, meanings: Meanings, *, may_be_chance: bool
) -> tuple[Any, Any]:
    """Inputs to calibrate with and, where a `Data` has others, inputs to compare files on.

    source: as for `inputs_of`. Unless `may_be_chance`, raises `SecateurError` for inputs that the
    model does not seem to be trained on: 8-bit pixels where nothing in it scales them, or those
    whose labels it knows no better than chance.
    """
    inputs, others, labelled = inputs_of(source), None, None
    unscaled = getattr(inputs, "dtype", None) == np.uint8 and bool(np.max(inputs) > 1)
    if isinstance(source, Data):
        unscaled, labelled = source.unscaled, source.validation or source.train or source.test
        labelled = labelled if source.classes else None
        if source.calibration is not None:
            inputs, others = source.calibration.x, inputs
    elif isinstance(source, tuple | Split):
        split = source if isinstance(source, Split) else Split(*map(np.asarray, source))
        labelled = split if split.y is not None and split.y.dtype.kind in "iu" else None
    if may_be_chance:
        return inputs, others
    if unscaled and not scales_inputs(model):
        raise SecateurError(
            f"8-bit calibration data (0..255) received, and nothing in model {model.name!r} scales "
            "its inputs, expected data as it was trained on; fix: --scale 255 (x / 255) if that was "
            "[0, 1], --scale 1 (x.astype('float32')) if it was 0..255"
        )
    if labelled is not None and labelled.y is not None and len(model.outputs) == 1:
        meaning = next(iter(meanings.values()), None)
        _, at_chance, _ = _against_chance(model, labelled, meaning)
        if at_chance:
            raise SecateurError(f"calibration data: {at_chance}")
    return inputs, others


def scales_inputs(model: Any) -> bool:
    """Whether something before the first kernel may scale the inputs; true of inputs that are integers.

    >>> import keras
    >>> layers = [keras.Input((4,)), keras.layers.Rescaling(1 / 255), keras.layers.Dense(2)]
    >>> scales_inputs(keras.Sequential(layers)), scales_inputs(keras.Sequential(layers[::2]))
    (True, False)
    """
    if not all("float" in tensor.dtype for tensor in signature(model)[0].values()):
        return True
    for operation in operations(model):
        if not multiplies_nothing(operation):
            return True
        if type(operation).__name__ in TRACED:
            return False
    return False


def _against_chance(
    model: Any, split: Split, meaning: str | None
) -> tuple[float | None, str, dict[str, str]]:
    """Accuracy, what to say where it is no better than chance (else ""), and metrics left out."""
    outputs, y = answers(KerasSession(model), split.x, model.name), np.asarray(split.y)
    accuracy, omitted = score(outputs, y, meaning).get("accuracy"), left_out(outputs, y, meaning)
    if accuracy is None:
        return None, "", omitted
    one_hot = y.ndim > 1 and y.shape[-1] > 1
    labels = y.argmax(-1) if one_hot else y.reshape(-1)
    chance = float(np.unique(labels, return_counts=True)[1].max() / len(labels))
    if accuracy > chance + 2 * math.sqrt(chance * (1 - chance) / len(labels)):
        return accuracy, "", omitted
    at_chance = (
        f"the model is at chance level ({100 * accuracy:.1f} % correct, the largest class alone is "
        f"{100 * chance:.1f} %) on inputs from {float(split.x.min()):g} to {float(split.x.max()):g}: it "
        "was trained on scaled inputs (try --scale 255), with the labels in another order, or was never "
        "trained; --allow-chance (allow_chance=True) goes on all the same"
    )
    return accuracy, at_chance, omitted
