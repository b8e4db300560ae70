"""What acts within the training steps of one model, for the length of one `fit`.

Every callback of Secateur in one `fit` joins the same `Hooks`: kernels and activations are replaced
while a step runs, masks are written after it, in one order whatever the order of the callbacks.
Between two steps nothing of the model differs, and whatever calls for a step next finds Keras's own.
docs/decisions/001 says why it is done here.
"""

from __future__ import annotations

import contextlib
import inspect
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from secateur.capture import without_gradients
from secateur.errors import SecateurError

_NAME = "_secateur_hooks"


def masked(value: Any, keep: Any) -> Any:
    """`value` with +0.0 where `keep` is False (a product would leave -0.0: 14 % of a gzipped file)."""
    return ops.where(keep, value, ops.zeros((), value.dtype))


def hooks_of(callback: Any) -> Hooks:
    """What the callbacks of the `fit` that runs now share; made by the first of them."""
    model = callback.model
    hooks = model.__dict__.get(_NAME)
    if hooks is None:
        hooks = Hooks(model, _list_of(callback))
    hooks.add(callback)
    return hooks


def detach(model: Any) -> None:
    """Take off whatever a training put onto a model, also one that was interrupted."""
    hooks = model.__dict__.get(_NAME)
    if hooks is not None:
        hooks.detach()


class Hooks:
    """The step functions of one model in one `fit`, with what its callbacks add to each step.

    callbacks: those of Secateur in the order of the list; `others`: the whole list, as Keras holds it.
    """

    def __init__(self, model: Any, others: keras.callbacks.CallbackList | None):
        self.model = model
        self.callbacks: list[Any] = []
        self.others = others
        self._functions: dict[str, Any] = {}
        self._carried: list[Any] = []
        self._pairs: list[tuple[Any, Any]] = []
        self._ran = False
        self._begun = 0
        self._since = time.time()
        model.__dict__[_NAME] = self
        self._guard("train")
        if others is not None:
            others.callbacks[:] = [c for c in others.callbacks if not isinstance(c, _Last)]
            last = _Last(self)
            last.set_model(model)
            last.set_params(others.params)
            others.callbacks.append(last)  # Keras goes through this very list

    def add(self, callback: Any) -> None:
        """Join; the step functions are made anew with it."""
        if callback.substitution is not None and self._substitution is not None:
            self.detach()
            raise SecateurError(
                "two quantization-aware callbacks received in one fit, expected one: a file has one "
                "specification; fix: one callback(specification=...) with the widths of both, or a "
                "recipe with two steps"
            )
        self.callbacks.append(callback)
        self.retrace()

    @property
    def _ordered(self) -> list[Any]:
        """Those that hold what is there before those that choose; see `ProjectionCallback.first`."""
        return sorted(self.callbacks, key=lambda callback: not callback.first)

    @property
    def _ranges_first(self) -> list[Any]:
        """Ranges are known by the weights that they belong to, which a mask may change."""
        return sorted(self._ordered, key=lambda callback: callback.substitution is None)

    def before_step(self, callback: Any, batch: int) -> None:
        """Have all callbacks choose their masks, once a step, and the step run with the hooks."""
        if callback is not self.callbacks[0]:
            return
        if self._begun and not self._ran:
            raise self._unreached()
        self._begun += 1
        for each in self._ordered:
            each.choose(batch)
        model = self.model
        if model.__dict__.get(_NAME) is not self:  # another training in between took them off
            model.__dict__[_NAME] = self
            self._guard("train")
        own = self._functions.get("train")
        if own is None or own is not model.train_function:
            own = self._functions["train"] = self._made("train")
            model.train_function = own

    def before_validation(self) -> None:
        """Have the samples of this validation answered as a step would see them."""
        if self._substitution is None:
            return
        model = self.model
        plain = model.test_function
        if "test" not in self._functions:
            self._functions["test"] = self._made("test")
        self._functions["plain test"] = plain
        model.test_function = self._functions["test"]
        self._guard("test")

    def after_validation(self) -> None:
        """Give the model its own test function back."""
        if "plain test" in self._functions:
            self.model.test_function = self._functions.pop("plain test")
            self.model.__dict__.pop("make_test_function", None)

    def after_epoch(self) -> None:
        """Look whether the masks hold, after all other callbacks."""
        if self._begun and not self._ran:
            raise self._unreached()
        for callback in self._ranges_first:
            callback.after_epoch()

    def conclude(self) -> None:
        """Claim what the model holds; done again where other callbacks may have changed it since."""
        if self._begun and not self._ran:
            self.detach()
            raise self._unreached()
        try:
            for callback in self._ranges_first:
                callback.end()
            _part_averages(self.model)
        finally:
            # The traced step still holds masks; the next fit, test or save starts clean.
            self.detach()

    def look_at_files(self) -> None:
        """Compare what checkpoints of this training hold with what is claimed."""
        saving = keras.callbacks.ModelCheckpoint
        for other in [] if self.others is None else self.others.callbacks:
            if isinstance(other, saving):
                for callback in self.callbacks:
                    callback.compare_checkpoint(other.filepath, self._since)

    def detach(self) -> None:
        """Take everything off the model."""
        names = (_NAME, "make_train_function", "make_test_function")
        for name in names:
            self.model.__dict__.pop(name, None)
        for kind in ("train", "test"):
            if getattr(self.model, f"{kind}_function", None) in self._functions.values():
                setattr(self.model, f"{kind}_function", None)
        self._functions = {}

    def retrace(self) -> None:
        """Have the training step traced anew: what acts within it has changed."""
        self._functions.pop("train", None)

    @property
    def _substitution(self) -> Any:
        found = [c.substitution for c in self.callbacks if c.substitution is not None]
        return found[0] if found else None

    def _guard(self, kind: str) -> None:
        """Detach before another `fit` or `evaluate` begins: each asks for its function first.

        An interrupted `fit` calls no callback any more, so that nobody else could.
        """
        name = f"make_{kind}_function"
        make = getattr(type(self.model), name)

        def asked(force: bool = False) -> Any:
            if not force:
                self.detach()
            return make(self.model, force)

        self.model.__dict__[name] = asked

    def _made(self, kind: str) -> Callable:
        """The function that Keras makes of a step, with the hooks in the step."""
        model, name = self.model, f"{kind}_step"
        if kind == "train":
            self._pairs = _pairs(model, self._ordered)
        jax = keras.backend.backend() == "jax"
        masks = {id(mask): mask for _, mask in self._pairs}
        state = [self._substitution.state] if self._substitution is not None else []
        carried = [*masks.values(), *state] if jax else []
        step = self._stepping(getattr(model, name), carried, projects=kind == "train")
        before = getattr(model, f"{kind}_function")
        with _replaced(model, name, step), _tracked(model, carried):
            getattr(type(model), f"make_{kind}_function")(model, True)
            at = _index(model.non_trainable_variables, carried)
        made = getattr(model, f"{kind}_function")
        setattr(model, f"{kind}_function", before)

        def function(*arguments: Any) -> Any:
            with _replaced(model, name, step):
                if carried:
                    return _carrying(made, carried, at, *arguments)
                try:
                    return made(*arguments)
                except BaseException:
                    if not jax:
                        self._project()  # of a step that was interrupted half way
                    raise

        return function

    def _stepping(self, original: Callable, carried: list[Any], *, projects: bool) -> Callable:
        model, substitution = self.model, self._substitution
        call = None if substitution is None else substitution.call

        def step(*arguments: Any) -> Any:
            self._ran = self._ran or projects
            with _replaced(model, "call", call), _tracked(model, carried):
                result = original(*arguments)
                if projects and keras.backend.backend() == "jax":
                    logs, state = result
                    return logs, self._projected(state)
            if projects:
                self._project()
            return result

        return step

    def _project(self) -> None:
        with without_gradients():
            for variable, mask in self._pairs:
                variable.assign(masked(variable.value, mask.value))

    def _projected(self, state: tuple) -> tuple:
        """The values after a step of JAX, masked; the masks travel among them.

        JAX traces a free variable as a constant: a mask changed later would silently not be seen.
        """
        model = self.model
        optimizer = getattr(model.optimizer, "variables", [])
        owners = (model.trainable_variables, model.non_trainable_variables, optimizer)
        place = {id(v): (row, i) for row, own in enumerate(owners) for i, v in enumerate(own)}
        values = [list(row) for row in state]
        for variable, mask in self._pairs:
            if id(variable) in place:
                (row, i), (of_masks, number) = place[id(variable)], place[id(mask)]
                values[row][i] = masked(values[row][i], values[of_masks][number])
        return tuple(values)

    def _unreached(self) -> SecateurError:
        return SecateurError(
            f"model {self.model.name!r} ({type(self.model).__name__}) was trained by code that does "
            "not call its train_step, where masks and grids act, expected fit to call it; fix: "
            "train with secateur.TrainingLoop, calling step() after each update"
        )


class _Last(keras.callbacks.Callback):
    """Stands behind all callbacks of a `fit`, whatever they do to the weights."""

    def __init__(self, hooks: Hooks):
        super().__init__()
        self._hooks = hooks

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._hooks.after_epoch()

    def on_train_end(self, logs: Any = None) -> None:
        self._hooks.conclude()
        self._hooks.look_at_files()


def digest(model: Any) -> int:
    """A number that weights are known again by."""
    found = 0
    for value in model.get_weights():
        found = zlib.crc32(value.tobytes(), found)
    return found


def _list_of(callback: Any) -> keras.callbacks.CallbackList | None:
    """The list that calls a callback's `on_train_begin` now; None where something else does.

    Keras hands no callback its list, and nothing else knows which other callbacks there are.
    """
    frame = inspect.currentframe()
    while frame is not None:
        owner: Any = frame.f_locals.get("self")
        if isinstance(owner, keras.callbacks.CallbackList) and callback in owner.callbacks:
            return owner
        frame = frame.f_back
    return None


def _pairs(model: Any, callbacks: list[Any]) -> list[tuple[Any, Any]]:
    """(variable, mask) of all that is held: weights, and the averages that optimizers keep of them.

    An optimizer averages the weights before they are masked: the averages (EMA) would keep a trace of
    every update, and come back dense at the end of `fit` or when swapped in.
    """
    averages: dict[int, list[Any]] = {}
    for optimizer in _averaging(model):
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        kept = getattr(optimizer, "_model_variables_moving_average", [])
        for variable, average in zip(optimizer._trainable_variables, kept, strict=False):
            averages.setdefault(id(variable), []).append(average)
    pairs = []
    for projection in (c.projection for c in callbacks if c.projection is not None):
        for variable, mask in projection.pairs():
            pairs += [(v, mask) for v in (variable, *averages.get(id(variable), ()))]
    return pairs


def _averaging(model: Any) -> list[Any]:
    """The compiled optimizer and those within it that keep averages of the weights."""
    waiting, found = [model.optimizer], []
    while waiting:
        one = waiting.pop()
        if getattr(one, "use_ema", False):
            found.append(one)
        waiting += getattr(one, "_inner_optimizers", [])
        waiting += [one.inner_optimizer] if hasattr(one, "inner_optimizer") else []
    return found


def _part_averages(model: Any) -> None:
    """Keras 3.15 leaves weight and average one buffer on JAX; the next step donates it twice."""
    if keras.backend.backend() == "jax" and _averaging(model):
        for variable in model.trainable_variables:
            variable.assign(ops.copy(variable.value))


@contextlib.contextmanager
def _replaced(model: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of the instance, past Keras's tracking; None leaves it as it is."""
    if value is None:
        yield
        return
    own = vars(model)
    before = own.get(name)
    own[name] = value
    try:
        yield
    finally:
        if before is None:
            own.pop(name, None)
        else:
            own[name] = before


@contextlib.contextmanager
def _tracked(model: Any, variables: list[Any]) -> Iterator[None]:
    """Variables as the model's own, which is what JAX carries through a compiled step."""
    if not variables:
        yield
        return
    model._tracker.unlock()
    for variable in variables:
        model._track_variable(variable)
    model._tracker.lock()
    try:
        yield
    finally:
        for variable in variables:
            model._untrack_variable(variable)


def _index(variables: list[Any], carried: list[Any]) -> int:
    return next((i for i, v in enumerate(variables) if carried and v is carried[0]), 0)


def _carrying(made: Callable, carried: list[Any], at: int, state: tuple, iterator: Any) -> Any:
    """Call a compiled step of JAX with values that the model does not own."""
    trained, frozen, *rest = state
    stop = at + len(carried)
    frozen = [*frozen[:at], *(v.value for v in carried), *frozen[at:]]
    logs, (trained, frozen, *rest) = made((trained, frozen, *rest), iterator)
    for variable, value in zip(carried, frozen[at:stop], strict=True):
        variable._value = value  # the one that went in was donated
    return logs, (trained, [*frozen[:at], *frozen[stop:]], *rest)
