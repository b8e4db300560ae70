"""The graph of a Functional or Sequential model as a list of calls, nested models opened.

Whoever must see what flows between layers walks this list. Layers, their names and their weights
are the model's own: nothing is copied, and nothing of the model changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from secateur.errors import SecateurError


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One call of a layer (or of an operation such as `a + b`); values are known by number.

    path: of the layer, as in the table of weights; from a shared layer's second call on with its
    number, `conv:1`. inputs, outputs: numbers of the values that it takes and gives.
    """

    path: str
    layer: Any = field(repr=False)
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    _node: Any = field(repr=False)

    @property
    def kind(self) -> str:
        """The class of the layer, by name."""
        return type(self.layer).__name__

    @property
    def floating(self) -> bool:
        """Whether it gives floats, as one value."""
        outputs = self._node.outputs
        return len(outputs) == 1 and "float" in str(outputs[0].dtype)

    def arguments(self, values: Mapping[int, Any]) -> tuple[tuple, dict[str, Any]]:
        """The arguments of the call, its symbolic tensors replaced by values."""
        tensors = self._node.input_tensors
        return self._node.arguments.fill_in(
            {id(t): values[n] for t, n in zip(tensors, self.inputs, strict=True)}
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """The calls of a model in the order in which they run.

    >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d")])
    >>> [call.path for call in graph_of(net).calls]
    ['d']
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    calls: tuple[Call, ...]
    floating: tuple[bool, ...]  # whether an input takes floats
    _function: Any = field(repr=False)

    def consumers(self) -> dict[int, list[Call | None]]:
        """Value -> the calls that take it; None stands for the model's own outputs."""
        found: dict[int, list[Call | None]] = {}
        for call in self.calls:
            for number in call.inputs:
                found.setdefault(number, []).append(call)
        for number in self.outputs:
            found.setdefault(number, []).append(None)
        return found

    def run(
        self,
        inputs: Any,
        perform: Callable[[Call, tuple, dict[str, Any]], Any],
        enter: Callable[[int, Any], Any] | None = None,
    ) -> Any:
        """The outputs, structured as the model gives them.

        perform: makes a call's outputs of its arguments. enter: what goes in, of (number, input).
        """
        given = self._function._standardize_inputs(inputs)
        values = dict(zip(self.inputs, given, strict=True))
        if enter is not None:
            values = {number: enter(number, value) for number, value in values.items()}
        for call in self.calls:
            args, kwargs = call.arguments(values)
            made = keras.tree.flatten(perform(call, args, kwargs))
            values.update(zip(call.outputs, made, strict=True))
        outputs = [values[number] for number in self.outputs]
        if len(outputs) == 1:
            return outputs[0]
        return keras.tree.pack_sequence_as(self._function._outputs_struct, outputs)


def graph_of(model: Any) -> Graph:
    """The graph of a Functional or Sequential model.

    Raises `SecateurError` for a model whose layers are called by code of its own (subclassed).
    """
    function = _function_of(model)
    if function is None:
        raise SecateurError(
            f"model {getattr(model, 'name', model)!r} ({type(model).__name__}) received, expected a "
            "Functional or Sequential one that is built, whose graph can be read; fix: build it "
            "with keras.Input and keras.Model"
        )
    calls: list[Call] = []
    seen: dict[int, int] = {}
    numbers = iter(range(10**9))
    inputs = tuple(next(numbers) for _ in function.inputs)
    outputs = _opened(function, inputs, "", calls, seen, numbers)
    return Graph(
        inputs=inputs,
        outputs=tuple(outputs),
        calls=tuple(calls),
        floating=tuple("float" in str(t.dtype) for t in function.inputs),
        _function=function,
    )


# The class that keras.Model(inputs, outputs) makes; Keras exports no name of it.
_FUNCTIONAL: Any = type(keras.Model(inputs=(_x := keras.Input((1,))), outputs=_x))


def accepts_training(layer: Any) -> bool:
    """Whether a layer behaves differently in training."""
    return bool(getattr(layer, "_call_has_training_arg", False))


@contextlib.contextmanager
def replaced(layer: Any, **attributes: Any) -> Iterator[None]:
    """Attributes of a layer that are others for a while, past Keras's tracking of them.

    >>> layer = keras.layers.Dense(2, activation="relu")
    >>> with replaced(layer, activation=None):
    ...     layer.activation is None
    True
    """
    before = {name: layer.__dict__[name] for name in attributes}
    layer.__dict__.update(attributes)
    try:
        yield
    finally:
        layer.__dict__.update(before)


@contextlib.contextmanager
def watched(
    layer: Any, at: Callable[[int, Any, bool], Any], taken: int | None, given: int
) -> Iterator[None]:
    """A layer that another one calls, with `at` applied to what goes in and out; given: -1 for not."""
    call = layer.call

    def watching(x: Any, *args: Any, **kwargs: Any) -> Any:
        y = call(x if taken is None else at(taken, x, True), *args, **kwargs)
        return y if given < 0 else at(given, y, True)

    layer.__dict__["call"] = watching  # past Keras's tracking of attributes
    try:
        yield
    finally:
        layer.__dict__.pop("call", None)


def _function_of(model: Any) -> Any:
    """What holds the nodes: the model itself, or the function inside a Sequential one."""
    plain = (keras.Model.call, keras.Sequential.call, _FUNCTIONAL.call)
    if not any(type(model).call is call for call in plain):
        return None  # code of its own runs, whatever graph it was built with
    found = getattr(model, "_functional", None) if isinstance(model, keras.Sequential) else model
    return found if hasattr(found, "_nodes_by_depth") else None


def _opened(
    function: Any,
    inputs: Sequence[int],
    prefix: str,
    calls: list[Call],
    seen: dict[int, int],
    numbers: Any,
) -> list[int]:
    """Append the calls of a function that takes `inputs`; the numbers of its outputs."""
    known = {id(t): number for t, number in zip(function.inputs, inputs, strict=True)}
    for depth in sorted(function._nodes_by_depth, reverse=True):
        for node in function._nodes_by_depth[depth]:
            layer = node.operation
            if not layer or node.is_input:
                continue
            if any(id(t) not in known for t in node.input_tensors):
                continue  # of another call of a shared layer, outside of this function
            taken = tuple(known[id(t)] for t in node.input_tensors)
            inner = _function_of(layer) if isinstance(layer, keras.Model) else None
            if inner is not None and len(inner.inputs) == len(taken):
                given = _opened(inner, taken, f"{prefix}{layer.name}/", calls, seen, numbers)
            else:
                given = [next(numbers) for _ in node.outputs]
                count = seen[id(layer)] = seen.get(id(layer), -1) + 1
                path = f"{prefix}{layer.name}" + (f":{count}" if count else "")
                outputs = tuple(given)
                calls.append(
                    Call(path=path, layer=layer, inputs=taken, outputs=outputs, _node=node)
                )
            known.update(zip((id(t) for t in node.outputs), given, strict=True))
    return [known[id(t)] for t in function.outputs]
