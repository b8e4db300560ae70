"""Mutants of the files that Secateur reads: damaged at random, or made by somebody who means harm.

`mutate(blob, suffix, rng, marker)` gives another file of the same kind from the bytes of a sound
one. `marker` is a path that code in the file would create, were it ever run.
"""

import base64
import contextlib
import copy
import io
import json
import marshal
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import tomli_w

# --- bytes ----------------------------------------------------------------------------------------


def cut(blob, rng):
    return blob[: rng.integers(len(blob))]


def flipped(blob, rng, most=8):
    array = np.frombuffer(blob, np.uint8).copy()
    for place in rng.integers(len(blob), size=rng.integers(1, most + 1)):
        array[place] ^= 1 << rng.integers(8)
    return array.tobytes()


def one_bit(blob, rng):
    return flipped(blob, rng, 1)


def zeroed(blob, rng):
    place, width = rng.integers(len(blob)), rng.integers(1, 200)
    return blob[:place] + bytes(len(blob[place : place + width])) + blob[place + width :]


def swapped(blob, rng):
    width = int(rng.integers(4, 120))
    first, second = sorted(rng.integers(0, len(blob) - width, 2).tolist())
    second = max(second, first + width)
    a, b = blob[first : first + width], blob[second : second + width]
    return blob[:first] + b + blob[first + width : second] + a + blob[second + width :]


def repointed(blob, rng):
    """A word, which may be an offset, a length or a size, set to a large one."""
    place = 4 * rng.integers(len(blob) // 4)
    value = rng.choice([2**31 - 1, 2**32 - 1, 2**30, 2**31, len(blob), len(blob) - 4, 65536, 0])
    return blob[:place] + int(value).to_bytes(4, "little") + blob[place + 4 :]


DAMAGES = (cut, one_bit, flipped, zeroed, swapped, repointed)


def damage(blob, rng):
    return DAMAGES[rng.integers(len(DAMAGES))](blob, rng)


# --- code that a file may carry -------------------------------------------------------------------


def payload(marker):
    """Compiled code that leaves a file behind, as a Lambda layer of Keras carries it."""
    source = compile(f"lambda x: [open({str(marker)!r}, 'w'), x][1]", "bad", "eval")
    (code,) = [c for c in source.co_consts if hasattr(c, "co_code")]
    return base64.b64encode(marshal.dumps(code)).decode()


class Pickled:
    """What leaves a file behind when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


# --- plain data: JSON and TOML --------------------------------------------------------------------

VALUES = (
    None, True, False, 0, -1, 1, 3, 10**6, 2**63, 10**30, -0.5, 0.5, 1e308, 1e-320, "", "x", "é\u0000",
    "../../../outside", "/outside", "x" * 3000, [], {}, [[]], [None], ["x"], [1, "x", None], {"x": 1},
    {"": {}}, [0.5] * 40,
)  # fmt: skip


def _places(value):
    """(container, key) of everything in plain data."""
    found, waiting = [], [value]
    while waiting:
        one = waiting.pop()
        keys = range(len(one)) if isinstance(one, list) else list(one)
        for key in keys:
            found.append((one, key))
            if isinstance(one[key], dict | list) and one[key]:
                waiting.append(one[key])
    return found


def edited(data, rng, values=VALUES):
    """Plain data with one to three values swapped for another type or size, dropped or renamed."""
    data = copy.deepcopy(data)
    for _ in range(rng.integers(1, 4)):
        places = _places(data)
        if not places:
            break
        owner, key = places[rng.integers(len(places))]
        kind = rng.integers(6)
        if kind == 0:
            del owner[key]
        elif kind == 1 and isinstance(owner, dict):
            owner[f"{key}x"] = owner.pop(key)
        elif kind == 2:
            owner[key] = [owner[key]]
        elif kind == 3:  # a value from elsewhere in the same record
            other, name = places[rng.integers(len(places))]
            owner[key] = copy.deepcopy(
                other.get(name) if isinstance(other, dict) else other[name - 1 : name]
            )
        else:
            owner[key] = copy.deepcopy(values[rng.integers(len(values))])
    return data


def _text_tricks(text, rng, deep):
    tricks = (
        lambda: text.replace("0.", "NaN", 1).encode(),
        lambda: text.replace(":", f": {deep}", 1).replace("=", f"= {deep}", 1).encode(),
        lambda: text.encode("utf-16"),
        lambda: text.encode() + b"\xff\xfe",
        lambda: text.replace("e", "\\ud800", 3).encode(),
        lambda: text.replace("1", "9" * 5000, 1).encode(),
        lambda: b"",
    )
    return tricks[rng.integers(len(tricks))]()


def mutate_json(blob, rng, marker):
    if rng.random() < 0.8:
        return json.dumps(edited(json.loads(blob), rng)).encode()
    if rng.random() < 0.5:
        return damage(blob, rng)
    return _text_tricks(blob.decode(), rng, "[" * 100_000 + "]" * 100_000)


def mutate_toml(blob, rng, marker):
    if rng.random() < 0.7:
        with contextlib.suppress(TypeError, ValueError):  # what TOML has no word for, such as None
            return tomli_w.dumps(edited(tomllib.loads(blob.decode()), rng)).encode()
    if rng.random() < 0.5:
        return damage(blob, rng)
    return _text_tricks(blob.decode(), rng, "[" * 100_000 + "]" * 100_000)


# --- archives: .keras and .npz --------------------------------------------------------------------


def packed(path, parts, kind=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def parts_of(path):
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def _archive(parts, kind=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    packed(stream, parts, kind)
    return stream.getvalue()


def _hostile_layer(rng, marker):
    code = payload(marker)
    layers = (
        {"module": "keras.layers", "class_name": "Lambda", "registered_name": None,
         "config": {"name": "l", "function": {"class_name": "__lambda__", "config": {"code": code}}}},
        {"class_name": "Lambda", "config": {"name": "l", "function": [code, None, None],
                                            "function_type": "lambda"}},
        {"module": "os", "class_name": "system", "registered_name": "system",
         "config": f"touch {marker}"},
        {"module": "subprocess", "class_name": "Popen", "registered_name": None,
         "config": {"args": ["touch", str(marker)]}},
        {"module": "builtins", "class_name": "function", "registered_name": "function",
         "config": "exec"},
    )  # fmt: skip
    return layers[rng.integers(len(layers))]


def _model_config(config, rng, marker):
    """A model's configuration changed: any value, or its sizes, or a layer that would run code."""
    if rng.random() < 0.25:
        layers = config["config"]["layers"]
        layers.insert(int(rng.integers(1, len(layers))), _hostile_layer(rng, marker))
        return json.dumps(config)
    if rng.random() < 0.2:
        sizes = [(o, k) for o, k in _places(config) if type(o[k]) is int]
        owner, key = sizes[rng.integers(len(sizes))]
        owner[key] = int(rng.choice([0, -1, 10**4, 2 * 10**6, 2**31, 2**62]))
        return json.dumps(config)
    if rng.random() < 0.1:
        return "[" * 100_000 + "]" * 100_000
    return json.dumps(edited(config, rng))


def mutate_keras(blob, rng, marker):
    if rng.random() < 0.3:
        return damage(blob, rng)
    parts = parts_of(io.BytesIO(blob))
    kind = rng.integers(8)
    if kind < 4:
        config = json.loads(parts["config.json"])
        parts["config.json"] = _model_config(config, rng, marker)
    elif kind == 4:
        parts["model.weights.h5"] = damage(parts["model.weights.h5"], rng)
    elif kind == 5:
        del parts[list(parts)[rng.integers(len(parts))]]
    elif kind == 6:
        name = ("../../outside", "/tmp/outside", "assets/../../../outside", "assets/x")
        parts |= dict.fromkeys(name, b"x")
    else:
        zeros = bytes(1 << 24)
        parts |= {f"assets/{k}": zeros for k in range(rng.integers(1, 40))}
        return _archive(parts, zipfile.ZIP_DEFLATED)
    return _archive(parts)


def mutate_npz(blob, rng, marker):
    if rng.random() < 0.3:
        return damage(blob, rng)
    parts = parts_of(io.BytesIO(blob))
    name = list(parts)[rng.integers(len(parts))]
    array = np.load(io.BytesIO(parts[name]))
    kind = rng.integers(9)
    if kind == 0:  # a shape of gigabytes, in the length that the header has
        header = parts[name]
        shape = str(array.shape).encode()
        large = b"(%d,)" % int(rng.choice([10**9, 2**40, 2**62]))
        parts[name] = header.replace(shape, large.ljust(max(len(shape), len(large))), 1)
    elif kind == 1:
        parts[name] = _saved(np.array([Pickled(marker)], dtype=object), allow_pickle=True)
    elif kind == 2:
        parts["../../outside.npy"] = parts.pop(name)
    elif kind == 3:
        del parts[name]
    elif kind == 4:
        parts[name] = _saved(np.full(array.shape, np.nan))
    elif kind == 5:
        parts[name] = _saved(array.astype(str))
    elif kind == 6:
        parts[name] = _saved(array[: rng.integers(len(array))])
    elif kind == 7:
        parts[name] = _saved(np.zeros((200_000_000,), np.uint8))
        return _archive(parts, zipfile.ZIP_DEFLATED)
    else:
        parts[name] = _saved(array.reshape(-1)) if rng.random() < 0.5 else damage(parts[name], rng)
    return _archive(parts)


def _saved(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


# --- .h5, .tflite, .onnx --------------------------------------------------------------------------


def mutate_h5(blob, rng, marker):
    import h5py

    if rng.random() < 0.4:
        return damage(blob, rng)
    stream = io.BytesIO(blob)
    with h5py.File(stream, "r+") as file:
        kind = rng.integers(6)
        if kind < 3:
            config = _model_config(json.loads(file.attrs["model_config"]), rng, marker)
            if len(config) < 60_000:  # what an attribute holds
                file.attrs["model_config"] = config
            if rng.random() < 0.5:
                file.attrs["keras_version"] = "2.4.0"
        elif kind == 3:
            file["model_weights"]["x"] = h5py.ExternalLink("/etc/passwd", "/")
        elif kind == 4:
            outside = [("/etc/passwd", 0, 400)]
            file["model_weights"].create_dataset("x", (100,), "float32", external=outside)
        else:
            file["model_weights"].create_dataset("x", (2**20, 2**20), "float32")
    return stream.getvalue()


TFLITE_VALUES = (-1, 0, 1, 2, 3, 7, -2, 100, 127, 255, 2**16, 2**31 - 1, -(2**31), 2**30)


def rewritten_tflite(blob, rng):
    """A `.tflite` file that holds together and says something else: a few fields changed."""
    from ai_edge_litert import schema_py_generated as schema

    while True:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(blob, 0))
        for _ in range(rng.integers(1, 3)):
            fields = list(_fields(model))
            owner, key = fields[rng.integers(len(fields))]
            value, old = int(rng.choice(TFLITE_VALUES)), getattr(owner, key)
            if isinstance(old, np.ndarray):
                value = np.array(old)
                if value.size and rng.random() < 0.6:
                    value.flat[rng.integers(value.size)] = np.array(
                        rng.choice(TFLITE_VALUES)
                    ).astype(value.dtype)
                else:
                    value = value[: rng.integers(value.size + 1)]
            setattr(owner, key, type(old)(value) if isinstance(old, bool | float) else value)
        builder = schema.flatbuffers.Builder(1024)
        try:
            builder.Finish(model.Pack(builder), b"TFL3")
        except Exception:  # a value that the field cannot hold
            continue
        return bytes(builder.Output())


def _fields(table):
    """Every number and every vector in a tree of tables."""
    for key, value in vars(table).items():
        if isinstance(value, bool | int | float | np.ndarray):
            yield table, key
        elif isinstance(value, list):
            for one in value:
                if hasattr(one, "__dict__"):
                    yield from _fields(one)
        elif hasattr(value, "__dict__"):
            yield from _fields(value)


def mutate_tflite(blob, rng, marker):
    return damage(blob, rng) if rng.random() < 0.5 else rewritten_tflite(blob, rng)


def mutate_onnx(blob, rng, marker):
    import onnx

    if rng.random() < 0.4:
        return damage(blob, rng)
    model = onnx.load_model_from_string(blob)
    graph, kind = model.graph, rng.integers(7)
    node = graph.node[rng.integers(len(graph.node))]
    tensor = graph.initializer[rng.integers(len(graph.initializer))]
    if kind == 0:
        node.op_type = str(rng.choice(["Loop", "Tile", "Expand", "Range", "ConstantOfShape", "x"]))
    elif kind == 1 and node.input:
        node.input[rng.integers(len(node.input))] = str(rng.choice([tensor.name, "x", ""]))
    elif kind == 2 and tensor.dims:
        tensor.dims[rng.integers(len(tensor.dims))] = int(rng.choice([-1, 0, 7, 2**40, 2**62]))
    elif kind == 3:
        tensor.data_location = tensor.EXTERNAL
        tensor.external_data.add(key="location", value=str(rng.choice(["/etc/passwd", "../x"])))
    elif kind == 4 and node.attribute:
        attribute = node.attribute[rng.integers(len(node.attribute))]
        attribute.i = int(rng.choice([-1, 10**9, 2**62]))
        attribute.ints.extend([10**9] * int(rng.integers(3)))
    elif kind == 5:
        value = (graph.input if rng.random() < 0.5 else graph.output)[0].type.tensor_type
        value.elem_type = int(rng.integers(0, 24))
    else:
        return onnx_bomb(BOMBS[rng.integers(len(BOMBS))])
    return model.SerializeToString()


BOMBS = ("Loop", "ConstantOfShape", "Expand", "Tile", "Resize")


def onnx_bomb(kind):
    """A `.onnx` of few bytes that takes x (n, 4), and loops for ever or asks for gigabytes."""
    from onnx import TensorProto, helper

    def ints(name, values):
        return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)

    def value(name, shape, kind=TensorProto.FLOAT):
        return helper.make_tensor_value_info(name, kind, shape)

    def node(kind, inputs, output, **attributes):
        return helper.make_node(kind, inputs, [output], **attributes)

    start, sizes = [], []
    if kind == "Loop":
        inner = [node("Identity", ["c"], "d"), node("Identity", ["v"], "w")]
        taken = [value("i", [], TensorProto.INT64), value("c", [], TensorProto.BOOL)]
        given = [value("d", [], TensorProto.BOOL), value("w", [None, 4])]
        body = helper.make_graph(inner, "body", [*taken, value("v", [None, 4])], given)
        start = [node("Loop", ["", "true", "x"], "y", body=body)]
        sizes = [helper.make_tensor("true", TensorProto.BOOL, [], [True])]
    else:
        sizes = [ints("axes", [1])]
        if kind == "ConstantOfShape":
            sizes.append(ints("s", [1, 1_200_000_000]))
            one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
            start = [node(kind, ["s"], "z", value=one)]
        elif kind == "Expand":
            sizes += [ints("s", [300_000_000, 1, 4])]
            start = [node(kind, ["x", "s"], "e"), node("Transpose", ["e"], "z", perm=[1, 0, 2])]
        elif kind == "Tile":
            sizes.append(ints("s", [1, 300_000_000]))
            start = [node(kind, ["x", "s"], "z")]
        else:
            scales = helper.make_tensor("s", TensorProto.FLOAT, [2], [1.0, 3e8])
            sizes.append(scales)
            start = [node(kind, ["x", "", "s"], "z")]
        start.append(node("ReduceSum", ["z", "axes"], "r", keepdims=int(kind != "Expand")))
        start.append(node("Add", ["x", "r"], "y"))
    graph = helper.make_graph(
        start, "bomb", [value("x", [None, 4])], [value("y", [None, 4])], sizes
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model.SerializeToString()


MUTATIONS = {
    ".keras": mutate_keras,
    ".h5": mutate_h5,
    ".tflite": mutate_tflite,
    ".onnx": mutate_onnx,
    ".npz": mutate_npz,
    ".toml": mutate_toml,
    ".json": mutate_json,
}


def mutate(blob, suffix, rng, marker):
    """Another file of the same kind, made from the bytes of a sound one."""
    return MUTATIONS[suffix](blob, rng, marker)
