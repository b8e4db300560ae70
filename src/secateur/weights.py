"""What a model is made of: one row for each weight, and the selector that picks rows.

A row carries a path that does not change when the model is copied, saved or reloaded
(`layer/kernel`, `base/conv1/kernel` in a nested model), so plans, promises and reports name
weights by it. Nothing here changes a weight.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from secateur.arrays.layout import Axes
from secateur.errors import SecateurError, nearest

ROLES = ("kernel", "embedding", "bias", "norm", "other")


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One variable of a model: where it is, what part it plays, and the variable itself.

    layer: path of the layer in its model; owner: the innermost layer that computes with the
    variable (the cell of an LSTM, the query projection of an attention layer). axes: which of its
    axes run over inputs and over outputs.
    """

    path: str
    layer: str
    layer_class: str
    role: str
    shape: tuple[int, ...]
    trainable: bool
    output: bool
    axes: Axes
    owner: Any = field(repr=False, compare=False)
    variable: Any = field(repr=False, compare=False)

    @property
    def size(self) -> int:
        """Number of elements."""
        total = 1
        for n in self.shape:
            total *= n
        return total

    @property
    def in_cell(self) -> bool:
        """Whether a recurrent cell computes with it, Keras's or a user's: inside a loop over time."""
        return hasattr(self.owner, "state_size")

    @property
    def lora(self) -> bool:
        """Whether the layer adds a low-rank update (Keras's `enable_lora`) to it."""
        own = (getattr(self.owner, name, None) for name in ("_kernel", "_embeddings"))
        return bool(getattr(self.owner, "lora_enabled", False)) and any(
            variable is self.variable for variable in own
        )

    def read(self, *, merged: bool = False) -> Any:
        """The values as a NumPy array of `shape`; merged: with the low-rank update added."""
        import keras

        if merged and self.lora:
            name = "embeddings" if self.role == "embedding" else "kernel"
            return keras.ops.convert_to_numpy(getattr(self.owner, name))
        return keras.ops.convert_to_numpy(self.variable.value)

    def require_finite(self) -> None:
        """Refuse a weight that holds NaN or infinity: no score of it would mean anything."""
        import numpy as np

        if not np.isfinite(self.read()).all():
            raise SecateurError(
                f"{self.path} {self.shape} holds NaN or infinity before training; load a sound model"
            )


class WeightTable:
    """The weights of a model in layer order, found by path.

    >>> import keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    >>> [w.path for w in weight_table(model)]
    ['head/kernel', 'head/bias']
    """

    def __init__(self, rows: Iterable[Weight]):
        self._rows = {row.path: row for row in rows}

    def __iter__(self) -> Iterator[Weight]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, path: str) -> Weight:
        if path not in self._rows:
            raise SecateurError(
                f"no weight named {path!r}; {nearest(path, self._rows)} (`secateur inspect` lists them)"
            )
        return self._rows[path]

    def __contains__(self, path: str) -> bool:
        return path in self._rows


def weight_table(model: Any) -> WeightTable:
    """The table of every weight of a built model (variables shared by layers appear once).

    Raises SecateurError for a model that has not been built.
    """
    if not getattr(model, "built", False):
        raise SecateurError(
            f"model {getattr(model, 'name', model)!r} has no weights yet; "
            "build it first: call it once on data, or start it with keras.Input(shape)"
        )
    outputs = {id(v) for layer in _output_layers(model) for v in layer.variables}
    rows: dict[int, Weight] = {}
    taken: set[str] = set()
    for place, layer in _layers(model):
        owners = _owners(layer)
        for variable in layer.variables:
            if id(variable) in rows or _is_rng_state(variable):
                continue
            name, owner = owners.get(id(variable), (variable.name, layer))
            path = _unique(f"{place}/{name}", taken)
            rows[id(variable)] = Weight(
                path=path,
                layer=place,
                layer_class=type(layer).__name__,
                role="kernel" if _is_declared(owner, variable) else _role(variable.name),
                shape=tuple(variable.shape),
                trainable=bool(variable.trainable and layer.trainable and owner.trainable),
                output=id(variable) in outputs,
                axes=_axes(owner, variable.name, len(variable.shape)),
                owner=owner,
                variable=variable,
            )
    return WeightTable(rows.values())


@dataclass(frozen=True, kw_only=True)
class Select:
    """Which weights a method may touch; a selection that matches nothing is refused.

    include, exclude: layer or weight names or globs (`conv*`, `head/kernel`); exclude wins.
    roles: parts played by the weight (`kernel`, `embedding`, `bias`, `norm`, `other`). A layer of
    your own declares its kernels by a method `get_prunable_weights()` that returns the variables.
    classes: layer classes (`Dense`); empty means any.
    output: False leaves the output layer out. min_size: smaller weights are left out.
    frozen: True takes weights that are not trainable too; no training can repair those.

    >>> Select(include=("conv*",), output=False).include
    ('conv*',)
    """

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    roles: tuple[str, ...] = ("kernel", "embedding")
    classes: tuple[str, ...] = ()
    output: bool = True
    min_size: int = 1
    frozen: bool = False

    def __post_init__(self) -> None:
        for name in ("include", "exclude", "roles", "classes"):
            value = getattr(self, name)
            if isinstance(value, str):
                value = (value,)
            object.__setattr__(self, name, tuple(value))
        for role in self.roles:
            if role not in ROLES:
                raise SecateurError(f"unknown role {role!r}; {nearest(role, ROLES)}")

    def reasons(self, table: WeightTable) -> dict[str, str | None]:
        """Path -> None where the weight is selected, else the reason why not.

        Raises SecateurError when nothing is selected or a pattern matches no name at all.
        """
        self._refuse_dead_patterns(table)
        found = {w.path: self._reason(w) for w in table}
        if not any(reason is None for reason in found.values()):
            raise SecateurError(
                f"the selection matches no weight: {self}; `secateur inspect` lists the weights"
            )
        return found

    def _reason(self, w: Weight) -> str | None:
        names = (w.path, w.layer, w.layer.rsplit("/", 1)[-1])
        if w.role not in self.roles:
            return f"role {w.role} is not selected"
        if not w.trainable and not self.frozen:
            return "frozen"
        if _matches(names, self.exclude):
            return "excluded"
        if not _matches(names, self.include):
            return "not included"
        if self.classes and not {w.layer_class, type(w.owner).__name__} & set(self.classes):
            return f"class {w.layer_class} is not selected"
        if not self.output and w.output:
            return "output layer"
        if w.size < self.min_size:
            return f"fewer than {self.min_size:,} elements"
        return None

    def _refuse_dead_patterns(self, table: WeightTable) -> None:
        names = {n for w in table for n in (w.path, w.layer, w.layer.rsplit("/", 1)[-1])}
        for pattern in (*self.include, *self.exclude):
            if not any(fnmatch.fnmatchcase(n, pattern) for n in names):
                raise SecateurError(
                    f"{pattern!r} matches no layer or weight; {nearest(pattern, names)}"
                )
        classes = {name for w in table for name in (w.layer_class, type(w.owner).__name__)}
        for wanted in self.classes:
            if wanted not in classes:
                raise SecateurError(f"no layer of class {wanted!r}; {nearest(wanted, classes)}")


def _layers(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each layer of a model with its path, nested models opened; last the model, for its own weights."""
    import keras

    # The names of a Functional model's layers are in its config. Those that Keras gave the layers
    # of a subclassed one are counted through the process, and anew when it is loaded.
    fixed = bool(getattr(model, "outputs", None)) or isinstance(model, keras.Sequential)
    names = [layer.name for layer in model.layers] if fixed else _local_names(model.layers)
    for layer, name in zip(model.layers, names, strict=True):
        if isinstance(layer, keras.Model):
            yield from _layers(layer, f"{prefix}{name}/")
        else:
            yield prefix + name, layer
    # Weights that a subclassed model owns itself belong to no layer.
    owned = {id(v) for layer in model.layers for v in layer.variables}
    if any(id(v) not in owned for v in model.variables if not _is_rng_state(v)):
        yield prefix + model.name, model


def _local_names(layers: Sequence[Any]) -> list[str]:
    """Names within one parent: those that Keras numbered through the process are counted here anew."""
    names: list[str] = []
    counts: dict[str, int] = {}
    for layer in layers:
        automatic = to_snake_case(type(layer).__name__)
        name = layer.name
        if re.fullmatch(rf"{automatic}(_\d+)?", name):
            count = counts[automatic] = counts.get(automatic, -1) + 1
            name = f"{automatic}_{count}" if count else automatic
        names.append(name)
    return names


def to_snake_case(name: str) -> str:
    """The name that Keras derives from a class.

    >>> to_snake_case("Conv2DTranspose"), to_snake_case("LSTMCell")
    ('conv2d_transpose', 'lstm_cell')
    """
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _output_layers(model: Any) -> list[Any]:
    """The layers that own the last weights before each output."""
    import keras

    if isinstance(model, keras.Sequential) or not getattr(model, "outputs", None):
        with_weights = [layer for layer in model.layers if layer.weights]
        return [_innermost_output(layer) for layer in with_weights[-1:]]
    found = []
    for tensor in model.outputs:
        operation = tensor._keras_history.operation
        # An activation or reshape after the last Dense is not where the logits' weights are.
        while not getattr(operation, "weights", None) and operation._inbound_nodes:
            sources = operation._inbound_nodes[0].input_tensors
            if not sources:
                break
            operation = sources[0]._keras_history.operation
        found.append(_innermost_output(operation))
    return found


def _innermost_output(layer: Any) -> Any:
    import keras

    while isinstance(layer, keras.Model):
        inner = _output_layers(layer)
        if not inner:
            break
        layer = inner[-1]
    return layer


def _role(name: str) -> str:
    if name.endswith("kernel"):
        return "kernel"
    if name.startswith("embedding") or name.endswith("embeddings"):  # "reverse_embeddings"
        return "embedding"
    if name.endswith("bias"):
        return "bias"
    if name in ("gamma", "beta", "moving_mean", "moving_variance", "scale"):
        return "norm"
    return "other"


def _is_declared(owner: Any, variable: Any) -> bool:
    declare = getattr(owner, "get_prunable_weights", None)
    return declare is not None and any(v is variable for v in declare())


def _owners(layer: Any) -> dict[int, tuple[str, Any]]:
    """Identity of a variable -> its name in the layer (`query/kernel`), the innermost layer that holds it.

    Named by where it hangs, not by Keras's `variable.path`: that tells where it was *built*, and a
    layer built before it was wrapped (`TimeDistributed(model)`) knows nothing of the wrapper.
    """
    found: dict[int, tuple[str, Any]] = {}
    seen: set[int] = set()

    def visit(part: Any, trail: str) -> None:
        seen.add(id(part))
        for inner, name in zip(part._layers, _local_names(part._layers), strict=True):
            if id(inner) not in seen:
                visit(inner, f"{trail}{name}/")
        for variable in (*part._trainable_variables, *part._non_trainable_variables):
            found.setdefault(id(variable), (trail + variable.name, part))

    visit(layer, "")
    return found


def _axes(owner: Any, name: str, rank: int) -> Axes:
    """Which axes of a kernel run over inputs and outputs, by the layer's class."""
    kind = type(owner).__name__
    ancestors = {cls.__name__ for cls in type(owner).__mro__}
    if rank < 2:
        return Axes(inputs=(), outputs=tuple(range(rank)))
    if "EinsumDense" in ancestors and name == "kernel":
        return _einsum_axes(owner.equation, rank)
    if "BaseDepthwiseConv" in ancestors or name == "depthwise_kernel":
        return Axes(inputs=(), outputs=(rank - 2, rank - 1))
    if "BaseConvTranspose" in ancestors or kind.endswith("Transpose"):
        return Axes(inputs=(rank - 1,), outputs=(rank - 2,))
    return Axes(inputs=(rank - 2,), outputs=(rank - 1,))


def _einsum_axes(equation: str, rank: int) -> Axes:
    """`abc,cde->abde`: the kernel's letters that are summed over are inputs, c; d and e outputs."""
    sides, result = equation.replace("...", "").split("->")
    inputs, kernel = sides.split(",")
    summed = tuple(i for i in range(rank) if kernel[i] in inputs and kernel[i] not in result)
    made = tuple(i for i in range(rank) if kernel[i] in result and kernel[i] not in inputs)
    return Axes(inputs=summed, outputs=made)


def _is_rng_state(variable: Any) -> bool:
    return variable.name == "seed_generator_state"


def _unique(path: str, taken: set[str]) -> str:
    candidate, n = path, 1
    while candidate in taken:
        n += 1
        candidate = f"{path}_{n}"
    taken.add(candidate)
    return candidate


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) for name in names for p in patterns)
