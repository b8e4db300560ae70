"""Plain chains of Dense layers (an MLP): widths, dead units, and the network of the kept widths.

Flatten, Dropout and activation layers may stand between. Removal on any other graph is not done
here. `Chain.forward` computes with arrays that are handed over, so a network of other widths is
evaluated without building a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from secateur.errors import Impossible, SecateurError
from secateur.seeding import random_states_kept
from secateur.weights import weight_table

Arrays = list[tuple[Any, Any]]  # (kernel, bias or None) of each Dense layer
Kept = list[np.ndarray]  # bool, True = kept, for each hidden Dense layer

# What passes each unit on by itself, in inference at least.
_IDLE = (layers.Dropout, layers.GaussianDropout, layers.GaussianNoise, layers.AlphaDropout)
_ACTIVATIONS = (
    layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Softmax, layers.Identity,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Link:
    """One Dense layer and the weightless ones behind it; paths of its kernel and its bias."""

    dense: Any = field(repr=False)
    after: tuple[Any, ...] = field(repr=False)
    kernel: str
    bias: str | None

    def activate(self, outputs: Any) -> Any:
        """What the next layer gets of the sums of this one."""
        if self.dense.activation is not None:
            outputs = self.dense.activation(outputs)
        for layer in self.after:
            outputs = _pass(layer, outputs)
        return outputs

    def probe(self, values: np.ndarray) -> np.ndarray:
        """`activate` of a NumPy row of single units."""
        row = ops.convert_to_tensor(np.asarray(values, self.dense.compute_dtype)[None])
        return np.asarray(ops.convert_to_numpy(self.activate(row)), np.float64)[0]


@dataclass(frozen=True, kw_only=True)
class Dead:
    """Shares of all kernel weights that lead into dead units, out of them, and either."""

    incoming: float
    outgoing: float
    network: float


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The Dense layers of a model in their order, and the weightless layers before the first."""

    model: Any = field(repr=False)
    before: tuple[Any, ...] = field(repr=False)
    links: tuple[Link, ...]

    def read(self) -> Arrays:
        """Kernel and bias of each layer, as NumPy arrays."""
        return [
            (
                ops.convert_to_numpy(link.dense.kernel.value),
                None if link.bias is None else ops.convert_to_numpy(link.dense.bias.value),
            )
            for link in self.links
        ]

    def forward(self, arrays: Arrays, x: Any) -> Any:
        """Outputs for a batch, with these arrays of any widths instead of the model's."""
        for layer in self.before:
            x = layer(x)
        for link, (kernel, bias) in zip(self.links, arrays, strict=True):
            x = link.activate(_sums(link.dense.compute_dtype, x, kernel, bias))
        return x

    def activations(self, arrays: Arrays, x: np.ndarray) -> list[np.ndarray]:
        """What each hidden layer passes on, (samples, units), as NumPy arrays."""
        found, x = [], ops.convert_to_tensor(x)
        for layer in self.before:
            x = layer(x)
        for link, (kernel, bias) in zip(self.links[:-1], arrays[:-1], strict=True):
            x = link.activate(_sums(link.dense.compute_dtype, x, kernel, bias))
            found.append(ops.convert_to_numpy(x))
        return found

    def kept_units(self, arrays: Arrays) -> Kept:
        """Units of the hidden layers without which the network's outputs are the same.

        A unit goes when no weight leads out of it, or none into it (it then gives the same for
        every sample, which is zero, or which the next layer's bias can take up).
        """
        kept = []
        for number, link in enumerate(self.links[:-1]):
            kernel, (after, next_bias) = arrays[number][0], arrays[number + 1]
            unused = ~after.any(axis=1)
            constant = ~kernel.any(axis=0)
            if next_bias is None and constant.any():
                constant &= self._constants(link, arrays[number]) == 0
            kept.append(~(unused | constant))
        return kept

    def sliced(self, arrays: Arrays, kept: Kept) -> Arrays:
        """The arrays of the kept units; what a removed unit gives to every sample goes into a bias.

        Raises SecateurError when a layer keeps none, or the numbers do not fit.
        """
        _require_fitting(self, arrays, kept)
        full = list(arrays)
        for number, (link, keep) in enumerate(zip(self.links[:-1], kept, strict=True)):
            kernel, (after, next_bias) = full[number][0], full[number + 1]
            idle = ~keep & ~kernel.any(axis=0)
            if next_bias is not None and idle.any():
                given = self._constants(link, full[number])[idle] @ after[idle].astype(np.float64)
                full[number + 1] = after, (next_bias + given).astype(next_bias.dtype)
        everything = np.ones(len(arrays[0][0]), bool), np.ones(arrays[-1][0].shape[1], bool)
        sides = [everything[0], *kept, everything[1]]
        return [
            (kernel[rows][:, columns], None if bias is None else bias[columns])
            for (kernel, bias), rows, columns in zip(full, sides[:-1], sides[1:], strict=True)
        ]

    def _constants(self, link: Link, arrays: tuple[Any, Any]) -> np.ndarray:
        """What each unit of a layer gives while no weight leads into it."""
        kernel, bias = arrays
        return link.probe(np.zeros(kernel.shape[1]) if bias is None else bias)


def chain(model: Any) -> Chain:
    """The Dense layers of a model that is a plain chain of them.

    Raises SecateurError naming the layer that makes it something else: a branch, a layer used
    twice, a convolution, a hidden activation that mixes units.

    >>> model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="a"), layers.Dense(2, name="b")])
    >>> [link.kernel for link in chain(model).links]
    ['a/kernel', 'b/kernel']
    """
    before: list[Any] = []
    found: list[tuple[Any, list[Any]]] = []
    for layer in _in_order(model):
        if type(layer) is layers.Dense:
            if layer.quantization_mode or layer.lora_enabled:
                raise _refused(layer, "its kernel is quantized or has a LoRA part", "remove that")
            found.append((layer, []))
        elif not (isinstance(layer, (*_IDLE, *_ACTIVATIONS)) or _flattens(layer, bool(found))):
            raise _refused(layer, "it is neither Dense nor an activation, Dropout or Flatten")
        else:
            (found[-1][1] if found else before).append(layer)
    if not found:
        raise SecateurError(
            f"model {model.name!r} without a Dense layer received, expected a chain of them; fix: "
            "prune its weights instead"
        )
    paths = {id(w.variable): w.path for w in weight_table(model)}
    links = tuple(
        Link(
            dense=dense,
            after=tuple(after),
            kernel=paths[id(dense.kernel)],
            bias=None if dense.bias is None else paths[id(dense.bias)],
        )
        for dense, after in found
    )
    for link in links[:-1]:
        _require_single_units(link)
    return Chain(model=model, before=tuple(before), links=links)


def is_chain(model: Any) -> bool:
    """Whether `chain` takes the model.

    >>> is_chain(keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(2, 3)]))
    False
    """
    try:
        chain(model)
    except SecateurError:
        return False
    return True


def widths(model: Any) -> tuple[int, ...]:
    """Units of each Dense layer of a chain.

    >>> widths(keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(2)]))
    (3, 2)
    """
    return tuple(link.dense.units for link in chain(model).links)


def dead_weights(model: Any) -> Dead:
    """Shares of a chain's kernel weights that lead into units which could be removed, and out of them.

    >>> model = keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.Dense(2)])
    >>> kernel, bias = model.layers[0].get_weights()
    >>> model.layers[0].set_weights([kernel * [1, 0, 0, 0], bias])
    >>> dead_weights(model)
    Dead(incoming=0.5, outgoing=0.25, network=0.75)
    """
    found = chain(model)
    arrays = found.read()
    return dead_shares([kernel.shape for kernel, _ in arrays], found.kept_units(arrays))


def dead_shares(shapes: Sequence[tuple[int, int]], kept: Kept) -> Dead:
    """`dead_weights` of kernels of these shapes, (in, out), when their hidden layers keep these units.

    >>> dead_shares([(4, 4), (4, 2)], [np.array([True, False, False, False])]).network
    0.75
    """
    total = sum(rows * columns for rows, columns in shapes)
    alive = [int(keep.sum()) for keep in kept]
    ins = [shapes[0][0], *alive]
    outs = [*alive, shapes[-1][1]]
    into = sum(rows * (columns - n) for (rows, columns), n in zip(shapes, outs, strict=True))
    out_of = sum((rows - n) * columns for (rows, columns), n in zip(shapes, ins, strict=True))
    left = sum(a * b for a, b in zip(ins, outs, strict=True))
    return Dead(incoming=into / total, outgoing=out_of / total, network=1 - left / total)


@random_states_kept()
def narrow(model: Any, kept: Kept | None = None) -> Any:
    """The Keras model of a chain's kept units, with sliced weights; uncompiled, same layer names.

    kept: bool, True = kept, for each hidden Dense layer; None: every unit without which the
    outputs are the same. Raises SecateurError for a model that is no chain, and when a layer
    would keep no unit.

    >>> model = keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.Dense(2)])
    >>> narrow(model, [np.array([True, False, True, True])]).count_params()
    23
    """
    found = chain(model)
    arrays = found.read()
    small = found.sliced(arrays, found.kept_units(arrays) if kept is None else kept)
    sizes = {
        id(k.dense): kernel.shape[1] for k, (kernel, _) in zip(found.links, small, strict=True)
    }
    copies = [
        type(layer).from_config(
            {**layer.get_config(), **({"units": sizes[id(layer)]} if id(layer) in sizes else {})}
        )
        for layer in _in_order(model)
    ]
    first = model.inputs[0]
    start = keras.Input(
        first.shape[1:], dtype=first.dtype, name=first._keras_history.operation.name
    )
    built = keras.Sequential([start, *copies], name=model.name)
    built.set_weights([a for pair in small for a in pair if a is not None])
    return built


def require_units(path: str, left: int, units: int) -> None:
    """Refuse to leave a layer without a unit: raises `Impossible`.

    >>> require_units("dense/kernel", 1, 2)
    """
    if not left:
        raise Impossible(
            f"all {units} units of {path} would be removed, expected 1 or more to stay; "
            "fix: ask for less sparsity, or leave the layer out (select)"
        )


def _sums(dtype: str, x: Any, kernel: Any, bias: Any) -> Any:
    """A Dense layer before its activation, in its compute dtype."""
    x = ops.matmul(ops.cast(x, dtype), ops.cast(kernel, dtype))
    return x if bias is None else x + ops.cast(bias, dtype)


def _pass(layer: Any, x: Any) -> Any:
    return x if isinstance(layer, (*_IDLE, layers.Flatten)) else layer(x)


def _in_order(model: Any) -> list[Any]:
    """The layers of a model between its one input and its one output, in order, without the input."""
    if isinstance(model, keras.Sequential) and model.built:
        return list(model.layers)
    if len(getattr(model, "inputs", None) or ()) != 1 or len(model.outputs) != 1:
        raise SecateurError(
            f"model {model.name!r} received, expected one input and one output; fix: build it first, "
            "or prune its weights instead"
        )
    found: list[Any] = []
    tensor = model.outputs[0]
    while True:
        operation, index, _ = tensor._keras_history
        node = operation._inbound_nodes[index]
        if tensor is model.inputs[0] or node.is_input:
            return found[::-1]
        if len(node.input_tensors) != 1 or operation in found:
            raise _refused(operation, "it joins branches, or is used twice")
        found.append(operation)
        tensor = node.input_tensors[0]


def _flattens(layer: Any, later: bool) -> bool:
    """Whether a layer only flattens the input (behind a Dense: what is flat already)."""
    return type(layer) is layers.Flatten and (not later or len(layer.input.shape) == 2)


def _require_single_units(link: Link) -> None:
    """Refuse what mixes the units of a hidden layer: one could not be taken out alone."""
    units = link.dense.units
    values = np.linspace(-2.0, 2.0, units)
    try:
        apart = np.concatenate([link.probe(values[i : i + 1]) for i in (0, units // 2, units - 1)])
        alone = np.allclose(link.probe(values)[[0, units // 2, units - 1]], apart, atol=1e-3)
    except Exception:  # a function of the user's that wants all the units
        alone = False
    if not alone and units > 1:
        raise _refused(link.dense, "the activation behind it mixes its units")


def _require_fitting(chain: Chain, arrays: Arrays, kept: Kept) -> None:
    units = [kernel.shape[1] for kernel, _ in arrays[:-1]]
    if [(k.dtype, k.shape) for k in map(np.asarray, kept)] != [
        (np.dtype(bool), (n,)) for n in units
    ]:
        raise SecateurError(
            f"kept of shapes {[np.shape(k) for k in kept]} received, expected bool arrays of "
            f"{units}, one for each hidden Dense layer; fix: True where a unit stays"
        )
    for link, keep in zip(chain.links, kept, strict=False):
        require_units(link.kernel, int(np.sum(keep)), len(keep))


def _refused(
    layer: Any, why: str, fix: str = "prune its weights instead of its units"
) -> SecateurError:
    return SecateurError(
        f"layer {layer.name!r} ({type(layer).__name__}) received in a chain of Dense layers: {why}; "
        f"fix: {fix}"
    )
