"""The graph of an `.onnx` model: walked, and brought to one order and spelling."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any


def inner_graphs(node: Any) -> Iterator[Any]:
    """The graphs in a node: branches, and bodies of loops."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph, each followed by those of the graphs in it."""
    for node in graph.node:
        yield node
        for inner in inner_graphs(node):
            yield from nodes(inner)


def canonical(proto: Any, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """Return a model's bytes, the same for every model that differs in names and order only.

    tf2onnx counts its names up with every model of a process. Only inputs and outputs keep
    theirs; what no output needs is left out.
    """
    graph = proto.graph
    order = {name: place for place, name in enumerate([*inputs, *outputs])}
    for side in (graph.input, graph.output):
        _replace(side, sorted(side, key=lambda value: order[value.name]))
    _merge_copies(graph)
    _sort(graph)
    _rename(graph, {value.name: value.name for value in (*graph.input, *graph.output)})
    used = {node.domain for node in nodes(graph)}
    imports = sorted((o.domain, o.version) for o in proto.opset_import if o.domain in used | {""})
    del proto.opset_import[:], proto.metadata_props[:]
    for domain, version in imports:
        proto.opset_import.add(domain=domain, version=version)
    proto.producer_name = "secateur"
    for field in ("producer_version", "doc_string", "domain", "model_version"):
        proto.ClearField(field)
    return proto.SerializeToString(deterministic=True)


def squeeze_last(graph: Any) -> None:
    """Move a Squeeze behind a convolution past the bias, factors and ReLU that follow it, in place.

    A Conv1D comes as a convolution in two dimensions and a Squeeze, which keeps runtimes from seeing
    these as one operator.
    """
    import numpy as np
    from onnx import numpy_helper

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    readers = Counter(name for node in nodes(graph) for name in node.input)
    readers.update(value.name for value in graph.output)
    ranks = {
        node.output[0]: constants[node.input[1]].ndim
        for node in graph.node
        if node.op_type == "Conv" and node.input[1] in constants
    }
    order = list(graph.node)
    for squeeze in [node for node in graph.node if node.op_type == "Squeeze"]:
        while squeeze.input[0] in ranks and squeeze.input[-1] in constants:
            source, squeezed, rank = squeeze.input[0], squeeze.output[0], ranks[squeeze.input[0]]
            axes = [int(axis) % rank for axis in constants[squeeze.input[-1]].ravel()]
            takers = [node for node in graph.node if squeezed in node.input]
            others = [name for taker in takers for name in taker.input if name != squeezed]
            known = all(name in constants for name in others)
            if readers[squeezed] != 1 or readers[source] != 1 or not takers or not known:
                break
            (taker,) = takers
            if taker.op_type not in ("Relu", "Clip", "Add", "Mul"):
                break
            if taker.op_type in ("Add", "Mul"):
                value = constants[others[0]]
                if value.ndim > rank - len(axes):
                    break
                aligned = value.reshape((1,) * (rank - len(axes) - value.ndim) + value.shape)
                name = f"{others[0]}:{taker.output[0]}"
                constants[name] = np.expand_dims(aligned, axes)
                graph.initializer.append(numpy_helper.from_array(constants[name], name))
                others = [name]
            result = taker.output[0]
            _replace(taker.input, [source, *others])
            taker.output[0], squeeze.input[0], squeeze.output[0] = squeezed, squeezed, result
            ranks[squeezed] = rank
            order.remove(squeeze)
            order.insert(order.index(taker) + 1, squeeze)
    _replace(graph.node, order)


def _name_dimensions(value: Any) -> None:
    for axis, size in enumerate(value.type.tensor_type.shape.dim):
        if not size.HasField("dim_value"):
            size.dim_param = f"{value.name}_{axis}" if axis or ":" in value.name else "batch"


def _merge_copies(graph: Any) -> None:
    """Keep an Identity only for what leaves a graph a second time, or as it came in.

    In the body of a loop, tf2onnx leaves to chance which of two outputs is the copy of the other.
    """
    copies = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    _replace(graph.node, [node for node in graph.node if node.op_type != "Identity"])
    made = {name for node in graph.node for name in node.output}
    names: dict[str, str] = {}

    def origin(name: str) -> str:
        while name in copies:
            name = copies[name]
        return name

    def now(name: str) -> str:
        return names.get(origin(name), origin(name))

    again = []
    for value in graph.output:
        source = origin(value.name)
        if source in made and source not in names:
            names[source] = value.name
        elif now(source) != value.name:  # a loop may hand on what it was given
            again.append((source, value.name))
    for node in nodes(graph):
        _replace(node.input, map(now, node.input))
        _replace(node.output, map(now, node.output))
        for inner in inner_graphs(node):
            for value in inner.output:
                value.name = now(value.name)
    for source, name in again:
        graph.node.add(op_type="Identity", input=[now(source)], output=[name])
    for inner in (inner for node in graph.node for inner in inner_graphs(node)):
        _merge_copies(inner)


def _sort(graph: Any) -> None:
    """Put the nodes that the outputs need in the order in which these ask for them."""
    makers = {name: node for node in graph.node for name in node.output if name}
    placed: dict[int, Any] = {}
    waiting = [makers[value.name] for value in reversed(graph.output) if value.name in makers]
    while waiting:
        node = waiting[-1]
        needed = [makers[name] for name in _read(node) if name in makers]
        needed = [maker for maker in needed if id(maker) not in placed and maker is not node]
        if needed:
            waiting += reversed(needed)
        else:
            placed.setdefault(id(waiting.pop()), node)
    for inner in (inner for node in placed.values() for inner in inner_graphs(node)):
        _sort(inner)
    _replace(graph.node, placed.values())


def _rename(graph: Any, names: dict[str, str]) -> None:
    """Give each tensor the name of the operator that it is first seen at, and its place there."""
    counts: Counter[str] = Counter()
    for node in nodes(graph):
        node.name = f"{node.op_type}_{counts[node.op_type]}"
        node.ClearField("doc_string")
        if not node.domain:  # set to nothing, or not set
            node.ClearField("domain")
        counts[node.op_type] += 1
        for side, word in ((node.input, "in"), (node.output, "out")):
            for slot, name in enumerate(side):
                names.setdefault(name, f"{node.name}:{word}{slot}" if name else "")
        for place, inner in enumerate(inner_graphs(node)):
            inner.name = f"{node.name}:graph{place}"
            for slot, value in enumerate((*inner.input, *inner.output)):
                names.setdefault(value.name, f"{inner.name}:{slot}")
    for node in nodes(graph):
        _replace(node.input, [names[name] for name in node.input])
        _replace(node.output, [names[name] for name in node.output])
        _replace(node.attribute, sorted(node.attribute, key=lambda attribute: attribute.name))
        del node.metadata_props[:]
    places = {name: place for place, name in enumerate(names)}
    for part in (graph, *(inner for node in nodes(graph) for inner in inner_graphs(node))):
        used = [tensor for tensor in part.initializer if tensor.name in names]
        used.sort(key=lambda tensor: places[tensor.name])
        for tensor in (*used, *part.input, *part.output):
            tensor.name = names.get(tensor.name, tensor.name)
            tensor.ClearField("doc_string")
        for value in (*part.input, *part.output):
            _name_dimensions(value)
        _replace(part.initializer, used)
        del part.value_info[:], part.metadata_props[:]
        part.ClearField("doc_string")


def _read(node: Any) -> list[str]:
    """What a node needs, with the names that the graphs in it take from outside."""
    names = list(node.input)
    for inner in inner_graphs(node):
        own = {value.name for value in (*inner.input, *inner.initializer)}
        own |= {name for one in inner.node for name in one.output}
        needed = [*(name for one in inner.node for name in _read(one))]
        needed += [value.name for value in inner.output]
        names += [name for name in needed if name not in own]
    return names


def _replace(field: Any, values: Iterable[Any]) -> None:
    values = list(values)
    del field[:]
    field.extend(values)
