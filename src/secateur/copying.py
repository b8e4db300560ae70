"""Copies of models: every step works on one, so that the caller's model stays what it was."""

from __future__ import annotations

from typing import Any

import keras

from secateur.errors import SecateurError
from secateur.seeding import random_states, random_states_kept


@random_states_kept()
def copy_model(model: Any) -> Any:
    """An uncompiled copy with the same names and weights; refuses what cannot be cloned."""
    layers = {type(layer).__name__: type(layer) for layer in model._flatten_layers()}
    custom = {n: c for n, c in layers.items() if not c.__module__.startswith("keras.")}
    try:
        with keras.saving.custom_object_scope(custom):
            copy = type(model).from_config(model.get_config())
        if not copy.built:
            copy.build_from_config(model.get_build_config())
            copy.built = True  # a subclassed model was traced, which Keras does not count
        copy.set_weights(model.get_weights())
        for mine, theirs in zip(random_states(copy), random_states(model), strict=False):
            mine.assign(theirs)  # Dropout's: not among the weights, and drawn anew by from_config
    except Exception as error:
        raise SecateurError(
            f"model {model.name!r} ({type(model).__name__}) cannot be copied from its config "
            f"({_first_line(error)}); pass inplace=True to compress the model itself"
        ) from error
    return copy


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
