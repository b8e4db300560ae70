"""Training through a `Substitution`: attached for the length of one `fit`, taken off afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from secateur.capture import batches_of
from secateur.errors import SecateurError
from secateur.hooks import digest
from secateur.project import Projection, ProjectionCallback
from secateur.quantization import QUANTIZATIONS
from secateur.substitute import Ranges, Substitution, restore
from secateur.weights import Weight, WeightTable, weight_table
from secateur.widths import Specification


class SubstitutionCallback(ProjectionCallback):
    """Trains a model in `fit` through the grids of the file that it will become.

    specification: format and widths. freeze: the part of the training after which BatchNorm keeps
    its statistics, in [0, 1]. zeros: promised by an earlier step; they are held. data: batches to
    take the first ranges from; without them the first step of the training gives them. specify:
    makes the specification of the model's weights, where none is given.

    The model goes through the grids within the steps of `fit` and its validation; whoever calls it
    in between (`predict` in another callback) has the float model. Afterwards `ranges` and
    `specification` hold what `export` takes. Weights of an earlier epoch that another callback puts
    back (EarlyStopping) come with the ranges of that epoch.
    """

    def __init__(
        self,
        specification: Specification | None,
        *,
        freeze: float = 0.5,
        zeros: Mapping[str, np.ndarray] | None = None,
        data: Any = None,
        specify: Callable[[WeightTable], Specification] | None = None,
    ):
        super().__init__(zeros)
        self.specification = self._given = specification
        self.ranges: Ranges = {}
        self.substitution: Substitution | None = None
        self._freeze, self._data, self._specify = freeze, data, specify
        self._ranges_of: dict[int, Ranges] = {}  # of an epoch's weights, by their digest
        self._constant: list[str] = []

    def weights_to_hold(self, table: WeightTable) -> Mapping[str, Weight]:
        """None beside the promised zeros."""
        return {}

    def begin(self, model: Any, loop: tuple[int, int] | None = None) -> Projection:
        """Hold the promised zeros; refused in a loop of one's own, which calls the model itself."""
        if loop is not None:
            raise SecateurError(
                "a quantization-aware callback received by TrainingLoop, expected one that prunes: "
                "the grids act within the steps of fit; fix: model.fit(..., callbacks=[callback])"
            )
        return super().begin(model)

    def on_train_begin(self, logs: Any = None) -> None:
        """Take first ranges from data, attach, and have the training step traced anew."""
        model = self.model
        restore(model)
        table = weight_table(model)
        if self._specify is not None and self._given is None:
            self.specification = self._specify(table)
        if self.specification is None:
            raise SecateurError(
                "no specification received, expected what the file shall hold; fix: make the "
                "callback with Quantize(aware=True).callback()"
            )
        for weight in table:
            weight.require_finite()
        how = QUANTIZATIONS[self.specification.format]
        self.substitution = Substitution(
            model, self.specification.widths, activations=how.activations
        )
        batches = _inputs(self._data)
        for batch in batches:
            _require_shape(model, batch)
        self.substitution.start_from(batches)
        self.substitution.frozen = self._freeze <= 0
        self.substitution.begin()
        self.ranges, self._ranges_of, self._constant = {}, {}, []
        super().on_train_begin(logs)
        if told := self.substitution.points.told_floats():
            self.notes.append(f"computed in float, in training as in the file: {told}")
        if self.substitution.outside:
            self.notes.append(
                f"trained in float, quantized afterwards: {', '.join(self.substitution.outside)} "
                "(layers that call others by code of their own)"
            )

    def on_test_begin(self, logs: Any = None) -> None:
        """Have the validation of this training go through the grids."""
        if self._hooks is not None:
            self._hooks.before_validation()

    def on_test_end(self, logs: Any = None) -> None:
        """Leave the model its own way to be evaluated."""
        if self._hooks is not None:
            self._hooks.after_validation()

    def after_epoch(self) -> None:
        """Remember the ranges that belong to these weights, for whoever puts them back."""
        if self.substitution is not None:
            self._ranges_of[digest(self.model)] = self.substitution.ranges()
        super().after_epoch()

    def masks_at(self, step: int, last: int, projection: Projection) -> None:
        """Freeze the statistics of BatchNorm when it is time; the step is traced anew for it."""
        found, total = self.substitution, self.total_steps
        if found is None or found.frozen or not found.normalizes:
            return
        if total is None:
            self.note(
                "the data set does not know its length: BatchNorm keeps its statistics from the "
                "first step; pass steps_per_epoch to fit to let them move at first"
            )
        elif step < self._freeze * total:
            return
        found.frozen = True
        if self._hooks is not None:
            self._hooks.retrace()

    def end(self) -> None:
        """Read the ranges that belong to the model's weights."""
        found = self.substitution
        if found is not None and self.specification is not None:
            if found.observed:
                known = self._ranges_of.get(digest(self.model))
                self.ranges = known or self.ranges or found.ranges()
                self.specification = Specification(
                    format=self.specification.format,
                    widths=self.specification.widths,
                    ranges=self.ranges,
                )
            _require_sound(found)
            constant = found.constant()
            if constant and not self._constant:
                self._constant = constant
                self.note(
                    f"activations of {', '.join(constant)} were constant throughout the training: "
                    "their range has no extent, and the layers after them learn nothing from them"
                )
        super().end()


def _require_sound(found: Substitution) -> None:
    bad = [key for key, bounds in found.ranges().items() if not np.isfinite(bounds).all()]
    if bad:
        raise SecateurError(
            f"activations of {bad[0]} became NaN or infinite in training, expected finite numbers; "
            "fix: lower learning_rate, or look for NaN in the data"
        )


def _require_shape(model: Any, batch: Any) -> None:
    """Refuse samples that the model does not take, before a layer somewhere within it does."""
    if len(model.inputs) > 1 or isinstance(batch, Mapping | list | tuple):
        return  # by name or by place: the model itself knows best
    wanted, found = tuple(model.inputs[0].shape[1:]), tuple(np.shape(batch)[1:])
    # Keras adds a last axis of 1, or takes it off.
    sizes = [s[:-1] if len(s) > 1 and s[-1] == 1 else s for s in (wanted, found)]
    same = len(sizes[0]) == len(sizes[1])
    fits = same and all(w in (None, f) for w, f in zip(*sizes, strict=True))
    if not fits:
        raise SecateurError(
            f"data for the first ranges of shape {_with_n(found)} received, expected "
            f"{_with_n(wanted)} of {model.name!r}; fix: give data=(x, y) as fit takes them"
        )


def _with_n(shape: Sequence[int | None]) -> str:
    return f"(n, {', '.join('any' if size is None else str(size) for size in shape)})"


def _inputs(data: Any) -> Sequence[Any]:
    """Batches of inputs alone, of (x, y) or of a list of such batches."""
    if data is None:
        return []
    if isinstance(data, tuple):
        data = batches_of(*data)
    return [batch[0] if isinstance(batch, tuple) else batch for batch in data]
