"""The network and the data that points of a sweep start from, before anything is trained."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from secateur import datasets
from secateur.compression import snapshot_for
from secateur.datasets import Data
from secateur.errors import SecateurError
from secateur.grids import Point, fingerprint
from secateur.pipeline import resolve_model
from secateur.recipe import Export
from secateur.run_folder import fingerprint as model_fingerprint
from secateur.runtimes.keras import meanings_of


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The network and the data of some points, as they are before anything is trained.

    untrained: a built-in network, which each seed trains from its own start.
    """

    model: Any = field(repr=False)
    name: str
    data: Data = field(repr=False)
    untrained: bool

    @classmethod
    def of(cls, point: Point, model: Any, data: Data) -> Subject:
        """The network that a point names, or `model`, and the data folded to what it takes."""
        built, name, untrained = resolve_model(model, point.recipe, data)
        if len(built.inputs) != 1 or len(built.outputs) != 1:
            raise SecateurError(
                f"model {name!r} has {len(built.inputs)} inputs and {len(built.outputs)} outputs, "
                "expected one of each; fix: sweep over a model with a single output"
            )
        fitted = datasets.fit_to(data, built.input_shape[1:], built.output_shape[1:])
        return cls(model=built, name=name, data=fitted, untrained=untrained)

    def meaning(self, point: Point) -> str | None:
        """What the outputs mean: by the recipe, the last activation or the compiled loss."""
        settings = point.recipe.train
        return next(iter(meanings_of(self.model, settings.loss, settings.outputs).values()))

    def identity(self, point: Point) -> str:
        """A fingerprint of what the points of one dense network share."""
        early = snapshot_for(point.recipe, 0)
        recipe = dataclasses.replace(
            point.recipe, steps=(), export=Export(), name="dense", description=""
        )
        found = model_fingerprint(
            recipe, self.data, self.model, self.name, untrained=self.untrained
        )
        return fingerprint(found, None if early is None else early.epoch)
