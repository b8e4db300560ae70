"""What the numbers that a model gives mean: logits or probabilities. Read, never guessed from values.

A softmax or sigmoid that ends a model or file says so itself. Else what was said of it counts: the
loss it is trained with, or the manifest beside a file. "linear" is a last layer without activation:
logits where there are classes. None: nothing says it, and the user is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from secateur.artifact import sha256
from secateur.errors import SecateurError, nearest
from secateur.records import read_json

LOGITS, PROBABILITIES, LINEAR = "logits", "probabilities", "linear"
MEANINGS = (LOGITS, PROBABILITIES)
Meanings = Mapping[str, str | None]  # output name -> what its numbers mean

# What each of these names is the last word of; any other activation says nothing.
ACTIVATIONS = {
    "softmax": PROBABILITIES,
    "sigmoid": PROBABILITIES,
    "hard_sigmoid": PROBABILITIES,
    "sparsemax": PROBABILITIES,
    "log_softmax": LOGITS,
    "linear": LINEAR,
}
# Keras operations and layers, and operators of `.tflite` and `.onnx` files, that are an activation.
SQUASHING = {
    **dict.fromkeys(("Softmax", "SOFTMAX", "QLinearSoftmax"), "softmax"),
    **dict.fromkeys(("Sigmoid", "LOGISTIC", "QLinearSigmoid"), "sigmoid"),
    "HardSigmoid": "hard_sigmoid",
    "Sparsemax": "sparsemax",
    **dict.fromkeys(("LogSoftmax", "LOG_SOFTMAX"), "log_softmax"),
}
# That move, code or average numbers: what goes in is what comes out.
CARRYING = {
    *("Reshape", "Flatten", "Permute", "Dropout", "Identity", "Squeeze", "Cast", "ExpandDims"),
    *("Transpose", "Concatenate", "Average", "Mean", "GetItem", "GlobalAveragePooling1D"),
    *("GlobalAveragePooling2D", "GlobalAveragePooling3D", "UpSampling2D", "Cropping2D"),
    *("QUANTIZE", "DEQUANTIZE", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "CONCATENATION"),
    *("MEAN", "AVERAGE_POOL_2D", "STRIDED_SLICE", "SLICE"),
    *("QuantizeLinear", "DequantizeLinear", "Unsqueeze", "Concat", "ReduceMean"),
    *("GlobalAveragePool", "Slice"),
}
# That leave a linear result linear.
AFFINE = {
    *("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Rescaling", "BatchNormalization"),
    *("ADD", "SUB", "MUL", "DIV", "Sub", "Mul", "Div"),
}
# That compute a linear result whatever goes in, unless an activation is part of them.
PRODUCTS = {
    *("Dense", "EinsumDense", "Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D", "DepthwiseConv2D"),
    *("SeparableConv1D", "SeparableConv2D", "Conv1DTranspose", "Conv2DTranspose"),
    *("Conv3DTranspose", "Matmul", "Einsum", "Dot", "Conv", "DepthwiseConv", "SeparableConv"),
    *("FULLY_CONNECTED", "CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"),
    "BATCH_MATMUL",
    *("Gemm", "MatMul", "ConvTranspose", "MatMulInteger", "ConvInteger", "QLinearMatMul"),
    *("QLinearConv", "MatMulNBits"),
}

POSITIVE = "positive"  # codes of no value below 0: of a linear result, they may be a ReLU
DEPTH = 100  # operators that are looked at behind one another


def asked(outputs: str | Meanings | None, names: Iterable[str] = ()) -> dict[str, str]:
    """Return what the user says of each output, as {name: meaning}; one word is for all of them.

    >>> asked("logits", ["head"])
    {'head': 'logits'}
    >>> asked("logit", ["head"])
    Traceback (most recent call last):
    ...
    secateur.errors.SecateurError: outputs 'logit' received, expected logits or probabilities; ...
    """
    names = list(names)
    by_name = (
        dict(outputs) if isinstance(outputs, Mapping) else dict.fromkeys(names or [""], outputs)
    )
    if len(names) == len(by_name) == 1:  # a file may have a name of its own for its one output
        by_name = dict(zip(names, by_name.values(), strict=True))
    for name, word in by_name.items():
        if names and name not in names:
            raise SecateurError(f"outputs of unknown {name!r} received; {nearest(name, names)}")
        if word not in (*MEANINGS, LINEAR, None):
            raise SecateurError(
                f"outputs {word!r} received, expected {' or '.join(MEANINGS)}; fix: {MEANINGS[0]} for "
                f"numbers before a softmax or sigmoid, {MEANINGS[1]} for those after it"
            )
    return {name: word for name, word in by_name.items() if word is not None}


def settled(
    last: str | None, said: Meanings | None = None, name: str = "", word: str | None = None
) -> str | None:
    """Return what an output means, from what its end, a loss or manifest, and the user say.

    >>> settled("linear", {"d": "probabilities"}, "d"), settled("probabilities", {"d": "logits"}, "d")
    ('probabilities', 'probabilities')
    >>> settled("linear", {"d": None}, "d") is None, settled("linear", None, "d")
    (True, 'linear')
    """
    if word or last in MEANINGS:
        return word or last
    said = said or {}
    if name not in said and len(said) == 1:  # a file may have a name of its own for its one output
        name = next(iter(said))
    return said.get(name, last)


def of_model(tensors: Mapping[str, Any], loss: Any = None) -> dict[str, str | None]:
    """Return what the outputs of a Keras model mean; `tensors`: `runtimes.keras.signature`'s.

    loss: what the model is trained with: a Keras name, function or object, its config, or several
    of them by output. A loss that is no cross-entropy leaves a last layer without activation open.
    """
    losses = _losses(loss, list(tensors))
    return {
        name: settled(ACTIVATIONS.get(activation_of(tensor) or ""), losses, name)
        for name, tensor in tensors.items()
    }


def compiled_loss(model: Any) -> Any:
    """The loss a model was compiled with, None when it was not."""
    return getattr(model, "loss", None) if getattr(model, "compiled", False) else None


def activation_of(tensor: Any) -> str | None:
    """Return the name of the activation that a Keras tensor leaves through, None where none is known.

    Looked for through nested models and through layers that move or average numbers.

    >>> import keras
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Softmax()])
    >>> activation_of(model.outputs[0])
    'softmax'
    """

    def described(tensor: Any) -> tuple[str, str | None, list[Any]]:
        operation, call, place = tensor._keras_history
        if getattr(operation, "layers", None) and getattr(operation, "outputs", None):
            return "Identity", None, [operation.outputs[place]]  # a model in the model
        known = (c.__name__ for c in type(operation).__mro__ if c.__module__.startswith("keras."))
        kind, before = next(known, ""), operation._inbound_nodes[call].input_tensors
        if kind not in PRODUCTS and kind != "Activation":  # others may use theirs inside
            return kind, None, before
        own = operation.activation if hasattr(operation, "activation") else None
        activation = getattr(own, "__name__", None) or SQUASHING.get(type(own).__name__)
        if activation == "linear" or own is None:
            return ("Identity" if kind == "Activation" else kind), None, before
        return "", activation or "unknown", before

    return _walked(tensor, described)


def of_tflite(blob: bytes, outputs: Mapping[str, int]) -> dict[str, str | None]:
    """Return what the outputs of a `.tflite` file (name -> tensor) mean, by the operators before them."""
    from ai_edge_litert import schema_py_generated as schema

    kinds = {code: name for name, code in vars(schema.BuiltinOperator).items() if name[0] != "_"}
    model = schema.Model.GetRootAs(blob, 0)
    signed = model.SignatureDefs(0).SubgraphIndex() if model.SignatureDefsLength() else 0
    graph = model.Subgraphs(signed)
    makers = {}
    for place in range(graph.OperatorsLength()):
        operator = graph.Operators(place)
        makers |= {operator.Outputs(k): operator for k in range(operator.OutputsLength())}
    options = {
        "FULLY_CONNECTED": schema.FullyConnectedOptions,
        "CONV_2D": schema.Conv2DOptions,
        "DEPTHWISE_CONV_2D": schema.DepthwiseConv2DOptions,
        "TRANSPOSE_CONV": schema.TransposeConvOptions,
        "ADD": schema.AddOptions,
        "SUB": schema.SubOptions,
        "MUL": schema.MulOptions,
        "DIV": schema.DivOptions,
    }

    def described(index: int) -> tuple[str, str | None, list[int]]:
        if index not in makers:
            return "", None, []
        operator = makers[index]
        code = model.OperatorCodes(operator.OpcodeIndex())
        kind = kinds[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        before = [operator.Inputs(k) for k in range(operator.InputsLength())]
        if kind in options and operator.BuiltinOptions() is not None:
            table, own = operator.BuiltinOptions(), options[kind]()
            own.Init(table.Bytes, table.Pos)
            if own.FusedActivationFunction():
                return "", None, []
        return kind, None, [k for k in before if k in makers]

    return {name: ACTIVATIONS.get(_walked(k, described) or "") for name, k in outputs.items()}


def of_onnx(
    makers: Mapping[str, Any], lowest: Callable[[Any], bool], outputs: Iterable[str]
) -> dict[str, str | None]:
    """Return what the outputs of an `.onnx` file mean.

    makers: tensor -> the node that computes it. lowest: whether a node gives codes of no value below
    0, in which a ReLU disappears.
    """

    def described(name: str) -> tuple[str, str | None, list[str]]:
        node = makers.get(name)
        if node is None:
            return "", None, []
        before = [k for k in node.input if k in makers and makers[k].op_type != "Constant"]
        kind = node.op_type
        return (POSITIVE if kind == "QuantizeLinear" and lowest(node) else kind), None, before

    return {name: ACTIVATIONS.get(_walked(name, described) or "") for name in outputs}


def of_manifest(path: Path) -> Meanings | None:
    """Return what the manifest beside a file says of it; None without one of these very bytes."""
    try:
        files, digest = read_json(path.parent / "manifest.json")["files"], sha256(path)
        entry = next(f for f in files if f["path"] == path.name and f["sha256"] == digest)
        return {
            str(k): v if v in (*MEANINGS, LINEAR) else None for k, v in entry["outputs"].items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration):
        return None


def require_finite(outputs: Any, culprit: Callable[[np.ndarray], str]) -> None:
    """Raise `SecateurError` for outputs (an array, or some by name) with NaN or infinity in them.

    culprit: who gave them, asked with the rows (samples) that are concerned.
    """
    for array in outputs.values() if isinstance(outputs, Mapping) else (outputs,):
        flat = np.asarray(array).reshape(len(array), -1) if len(array) else np.zeros((0, 1))
        bad = np.flatnonzero(~np.isfinite(flat).all(axis=1))
        if len(bad):
            raise SecateurError(
                f"NaN or infinity in the outputs for {len(bad):,} of {len(flat):,} samples, from "
                f"{culprit(bad)}, expected finite numbers; fix: take an earlier checkpoint, train "
                "again with a smaller learning rate, or check the inputs' scale"
            )


def of_loss(loss: Any) -> str | None:
    """Return what a loss takes outputs for: `from_logits`; None where it does not say.

    >>> of_loss("bce"), of_loss("mse")
    ('probabilities', None)
    >>> of_loss({"class_name": "BinaryCrossentropy", "config": {"from_logits": True}})
    'logits'
    """
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    if isinstance(loss, Mapping):
        config = loss.get("config")
        name = str(config if isinstance(config, str) else loss.get("class_name"))
    else:
        config = getattr(loss, "get_config", dict)()
    from_logits = config.get("from_logits") if isinstance(config, Mapping) else None
    if from_logits is not None:
        return LOGITS if from_logits else PROBABILITIES
    name = name.lower().replace("_", "")
    return PROBABILITIES if "crossentropy" in name or name == "bce" else None


def _losses(loss: Any, names: list[str]) -> dict[str, str | None]:
    """What each output's loss says; an output without one is left out."""
    if loss is None:
        return {}
    if isinstance(loss, Mapping) and "class_name" not in loss:
        each = dict(loss)
    elif isinstance(loss, list | tuple):
        each = dict(zip(names, loss, strict=False))
    else:
        each = dict.fromkeys(names, loss)
    return {name: of_loss(one) for name, one in each.items() if one is not None}


def _walked(
    start: Any, described: Callable[[Any], tuple[str, str | None, list[Any]]]
) -> str | None:
    """The activation before `start`; `described`: kind, activation and inputs of what makes one."""
    known: dict[Any, str | None] = {}

    def at(end: Any, depth: int = 0) -> str | None:
        key = end if isinstance(end, int | str) else id(end)
        if key not in known:
            known[key] = None  # what comes round to itself, or goes on for ever, says nothing
            known[key] = before(*described(end), depth) if depth < DEPTH else None
        return known[key]

    def before(kind: str, activation: str | None, inputs: list[Any], depth: int) -> str | None:
        if activation is not None:
            return activation
        if kind in SQUASHING or kind in PRODUCTS:
            return SQUASHING.get(kind, "linear")
        if kind not in CARRYING and kind not in AFFINE and kind != POSITIVE:
            return None
        found = {at(one, depth + 1) for one in inputs}
        only = found.pop() if len(found) == 1 else None
        fits = kind in CARRYING or (kind in AFFINE) == (only == "linear")
        return only if fits else None

    return at(start)
