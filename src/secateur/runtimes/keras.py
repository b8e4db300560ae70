"""Keras itself as a runtime: `.keras` and `.h5` files, and live models.

Loading runs no code from the file (`safe_mode`) and leaves optimizer and loss out.
"""

import contextlib
import importlib
import json
import logging
import math
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from secateur.apart import FILE_MEMORY, memory_limit
from secateur.errors import SecateurError
from secateur.outputs import Meanings, asked, compiled_loss, of_model
from secateur.runtimes import Arrays, Constant, by_name, keras2, keras_files, one_line
from secateur.weights import weight_table

# Operations and layers that multiply, or may, and whose work shapes do not tell.
UNCOUNTED = frozenset(
    """
    AdditiveAttention AffineTransform AssociativeScan Attention CDist Cond Corrcoef Correlate Cross
    DotProductAttention ElasticTransform FFT FFT2 FlaxLayer ForiLoop GaussianBlur IFFT2 IRFFT ISTFT
    JaxLayer Kron Lambda Map MelSpectrogram PerspectiveTransform Pipeline RFFT RGBToGrayscale
    ReversibleEmbedding SSIM STFT STFTSpectrogram ScaleAndTranslate Scan SobelEdges Switch TFSMLayer
    TorchModuleWrapper Vdot VectorizedMap WhileLoop
    """.split()
)


def prepare() -> None:
    """Import Keras and its backend, so that it does not count as time to load a model."""
    importlib.import_module("keras")


def load(path: Any, threads: int | None = None) -> "KerasSession":
    """Load a file, or take a live model; `threads` is the backend's own business, and ignored.

    Raises `SecateurError` for a file that is missing, damaged, or needs unknown classes.
    """
    del threads
    if isinstance(path, str | Path):
        return KerasSession(load_model(path), keras_files.stored_loss(Path(path)))
    return KerasSession(path)


def load_model(path: str | Path, *, compiled: bool = False) -> Any:
    """Return the model in a `.keras` or `.h5` file; runs no code from the file.

    `compiled`: with its loss, where the file has one that can be restored; else without optimizer
    and loss. A file of Keras 2 is mended where Keras 3 refuses it over a key that it dropped, which
    a `UserWarning` tells. Raises `SecateurError` as `load` does.
    """
    path = Path(path)
    if not path.is_file():
        raise SecateurError(
            f"{path} is not a file, expected a .keras or .h5 model; fix: check the path"
        )
    stored = keras_files.check(path)
    old = path.suffix == ".h5"
    from secateur.seeding import random_states_kept  # it imports Keras

    try:
        with (
            random_states_kept(),
            keras2.mended(path) if old else contextlib.nullcontext(path) as source,
            keras_files.at_most(stored),
        ):
            model = _loaded(source, compiled)
    except Exception as error:  # Keras, zipfile, json and h5py each raise their own
        raise SecateurError(
            f"{path} could not be loaded ({one_line(error)}), expected a model that Keras saved; "
            "fix: register its own layers and import their module (--import), or save it again"
        ) from error
    _require_room(model, path)
    return model


def _require_room(model: Any, path: Path) -> None:
    """Refuse a model with an output of a layer that fills the memory for a single sample."""
    limit = memory_limit(FILE_MEMORY)
    for layer, _, outputs in _calls(model) if getattr(model, "inputs", None) else ():
        for tensor in outputs:
            size = 4 * math.prod(n or 1 for n in tensor.shape[1:])
            if size > limit:
                raise SecateurError(
                    f"{path} has layer {layer.name!r} with an output of shape {tuple(tensor.shape)}, "
                    f"{size:,} bytes a sample, expected at most {limit:,.0f}; fix: raise the limit "
                    "(--max-memory 8GB, or SECATEUR_MAX_MEMORY), or use a smaller model"
                )


def _loaded(path: Path, compiled: bool = False) -> Any:
    import keras

    if compiled:
        with contextlib.suppress(Exception), _no_hdf5_advice(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an optimizer that does not fit is not used anyway
            return keras.saving.load_model(path, safe_mode=True)
    with _no_hdf5_advice():
        return keras.saving.load_model(path, compile=False, safe_mode=True)


def import_modules(names: Iterable[str]) -> None:
    """Import the modules that register a model's own layers; raises `SecateurError` in one line."""
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # a user's module may raise anything
            raise SecateurError(
                f"--import {name}: {type(error).__name__}: {one_line(error)}; fix: name a module "
                "that Python finds from here and that imports without an error"
            ) from error


def save_model(model: Any, path: Path) -> None:
    """Save a model without its optimizer, so that sizes compare; the format is the path's suffix.

    The model is not changed; saved again, it gives the same bytes. Raises `OSError` as saving does.
    """
    import keras

    with _no_hdf5_advice():
        if path.suffix == ".h5":
            try:
                keras.saving.save_model(model, path, include_optimizer=False)
            except RuntimeError as error:
                # On a full disk HDF5 fails again at closing, and that error hides the first.
                raise error.__context__ or error from None
            return
        keras.saving.save_model(model, path)
        if getattr(model, "optimizer", None) is not None:
            # `.keras` has no option for it: what is loaded without compiling has none to save.
            keras.saving.save_model(_loaded(path), path)
    _without_clock(path)


class KerasSession:
    """A Keras model; see `secateur.runtimes.Session`."""

    resizable = True
    threads: int | None = None
    output_steps: Mapping[str, float] = MappingProxyType({})

    def __init__(self, model: Any, loss: Any = None):
        import keras

        self.model, self._loss = model, loss
        self.name = f"keras {keras.version()}, {keras.backend.backend()}"
        inputs, outputs = signature(model)
        self.input_names, self.output_names = tuple(inputs), tuple(outputs)
        self._samples = {name: tuple(tensor.shape[1:]) for name, tensor in inputs.items()}
        self.input_shape = self._samples[self.input_names[0]]
        self.output_shape = tuple(outputs[self.output_names[0]].shape[1:])

    def predict(self, x: Arrays, batch: int = 256) -> Any:
        """Return float32 outputs (n, ...)."""
        import keras

        outputs = self.model.predict(self._packed(x), batch_size=batch, verbose=0)
        flat = [np.asarray(array, np.float32) for array in keras.tree.flatten(outputs)]
        if len(flat) == 1:
            return flat[0]
        return dict(zip(self.output_names, flat, strict=True))

    def invoke_once(self, x: Arrays) -> None:
        """Run once through the compiled prediction function."""
        self.model.predict_on_batch(self._packed(x))

    def constants(self) -> list[Constant]:
        """Return every weight under its path."""
        return [
            Constant(row.path, row.read(), None, None, None, row.layer_class, slot)
            for slot, row in enumerate(weight_table(self.model))
        ]

    def operators(self) -> list[tuple[str, int]]:
        """Return (layer class, how many), in order of first appearance."""
        return list(Counter(type(layer).__name__ for layer in leaves(self.model)).items())

    def macs(self) -> int | None:
        """Return multiply-accumulates for one sample; None where a layer or operation does not tell."""
        counts = [_macs(*call) for call in _calls(self.model)]
        if any(count is None for count in counts):
            return None
        rows = self.model.inputs[0].shape[0] or 1
        return sum(count for count in counts if count is not None) // rows

    def meanings(self) -> Meanings:
        """Return what the outputs mean, by the last activation and the loss of the training."""
        return meanings_of(self.model, self._loss)

    def input_coding(self, name: str) -> None:
        """Return nothing: Keras takes values."""

    def culprit(self, x: Arrays) -> str:
        """Return the weight or layer that gives outputs with NaN or infinity for samples `x`."""
        named = by_name(x, self._samples)
        return culprit(self.model, [named[name] for name in self.input_names])

    def costs(self) -> dict[str, Any]:
        """Return nothing: Keras stands for no target."""
        return {}

    def _packed(self, x: Arrays) -> Any:
        named = by_name(x, self._samples)
        return pack(self.model, [named[name] for name in self.input_names])


def signature(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the symbolic inputs and outputs of a model under names that a file can carry.

    Raises `SecateurError` for a model that does not know its inputs (a subclassed one).

    >>> import keras
    >>> model = keras.Sequential([keras.Input((4,), name="img"), keras.layers.Dense(2, name="d")])
    >>> [list(side) for side in signature(model)]
    [['img'], ['d']]
    """
    import keras

    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not inputs or not outputs:
        raise SecateurError(
            f"model {getattr(model, 'name', model)!r} does not know its inputs, expected a "
            "Functional or Sequential model; fix: wrap it, keras.Model(x, model(x)) with "
            "x = keras.Input(shape)"
        )
    # The names of the layers: those of the tensors count up with every model of the process.
    first = [tensor._keras_history.operation.name for tensor in inputs]
    last = [model.layers[-1].name] if isinstance(model, keras.Sequential) else model.output_names
    return _named(first, inputs), _named(last, outputs)


def meanings_of(model: Any, loss: Any = None, word: str | None = None) -> Meanings:
    """Return what each output of a model means: `word`, else its last activation, else its loss.

    loss: what it is trained with; None: what it was compiled with.

    >>> import keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "softmax", name="d")])
    >>> meanings_of(model, "sparse_categorical_crossentropy")
    {'d': 'probabilities'}
    """
    if not getattr(model, "outputs", None) or not getattr(model, "inputs", None):
        return {"": word}
    tensors = signature(model)[1]
    found = of_model(tensors, compiled_loss(model) if loss is None else loss)
    return {**found, **asked(word, found)} if word else found


def pack(model: Any, arrays: list[Any]) -> Any:
    """Return arrays, one for each of `signature`'s inputs, in the structure the model is called on."""
    import keras

    if isinstance(model, keras.Sequential):
        return arrays[0]
    return keras.tree.pack_sequence_as(model.input, arrays)


def leaves(model: Any) -> list[Any]:
    """Return the layers of a model and of the models in it, in order, each once."""
    found: dict[int, Any] = {}
    for layer in model.layers:
        inner = leaves(layer) if hasattr(layer, "layers") else [layer]
        found.update({id(one): one for one in inner})
    return list(found.values())


def operations(model: Any) -> Iterator[Any]:
    """The layers and operations (`h * 30` is one) of a model and of the models in it, inputs first."""
    import keras

    sequential = isinstance(model, keras.Sequential)
    for operation in model.layers if sequential else model.operations:
        if isinstance(operation, keras.Sequential) or hasattr(operation, "operations"):
            yield from operations(operation)
        else:
            yield operation


def _calls(model: Any) -> Iterator[tuple[Any, list[Any], Any]]:
    """Each call of a layer or operation in a model's graph: it, its arguments, its first output."""
    ends = {id(tensor) for tensor in model.inputs}
    seen, waiting = set(), list(model.outputs)
    while waiting:
        tensor = waiting.pop()
        operation, index, _ = tensor._keras_history
        node = operation._inbound_nodes[index]
        if id(tensor) in ends or id(node) in seen:
            continue
        seen.add(id(node))
        waiting += node.input_tensors
        if getattr(operation, "inputs", None) and getattr(operation, "outputs", None):
            yield from _calls(operation)
        else:
            arguments = [*node.arguments.args, *node.arguments.kwargs.values()]
            yield operation, arguments, node.output_tensors[0]


def culprit(model: Any, x: list[Any]) -> str:
    """Return the first weight, else the first layer on inputs `x`, with NaN or infinity in it."""
    import keras

    for row in weight_table(model):
        if not np.isfinite(row.read()).all():
            return f"weight {row.path} {row.shape}"
    tensors, calls, waiting = {}, [], list(model.outputs)
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in tensors:
            continue
        tensors[id(tensor)] = tensor
        operation, index, _ = tensor._keras_history
        before = operation._inbound_nodes[index].input_tensors
        waiting += before
        calls.append((operation, before, tensor))
    # Called, not by `predict`: that would be compiled for this once.
    found = keras.Model(model.inputs, list(tensors.values()))(x, training=False)
    values = dict(zip(tensors, map(keras.ops.convert_to_numpy, found), strict=True))
    sound = {key: bool(np.isfinite(value).all()) for key, value in values.items()}
    for operation, before, tensor in calls:
        if not sound[id(tensor)] and all(sound[id(one)] for one in before):
            if hasattr(operation, "layers"):
                return culprit(operation, [values[id(one)] for one in before])
            if not before:
                return "samples that hold them already"
            return f"layer {getattr(operation, 'path', operation.name)}, whose inputs are finite"
    return f"model {model.name}"


def _macs(operation: Any, arguments: list[Any], output: Any) -> int | None:
    """Multiply-accumulates of one call; biases and activations count nothing. None: not known."""
    kind = type(operation)
    if _uncounted(operation):
        return None
    try:
        out = _elements(output.shape)
        if kind.__name__ in COUNTED and kind.__module__.startswith("keras.src.ops"):
            return COUNTED[kind.__name__](operation, [tuple(a.shape) for a in arguments], out)
        if isinstance(arguments[0], list | tuple):
            arguments = [*arguments[0]]
        return _macs_of_layer(operation, [tuple(getattr(a, "shape", ())) for a in arguments], out)
    except (AttributeError, IndexError, TypeError, ValueError):
        return None  # a dimension of any size, or arguments of another kind


def _macs_of_layer(layer: Any, shapes: list[tuple[int, ...]], out: int) -> int | None:
    import keras

    kinds = keras.layers
    if isinstance(layer, kinds.Dot):
        axes = layer.axes if isinstance(layer.axes, int) else layer.axes[0]
        return out * shapes[0][axes]
    if isinstance(layer, kinds.Embedding):
        return 0
    if not any(len(weight.shape) > 1 for weight in getattr(layer, "weights", ())):
        return 0
    if isinstance(layer, kinds.SeparableConv1D | kinds.SeparableConv2D):
        depthwise, pointwise = layer.depthwise_kernel.shape, layer.pointwise_kernel.shape
        return _separable(None, [(), depthwise, pointwise], out)
    if isinstance(layer, kinds.DepthwiseConv1D | kinds.DepthwiseConv2D):
        return out * math.prod(layer.kernel.shape[:-2])
    if isinstance(layer, kinds.Conv1DTranspose | kinds.Conv2DTranspose | kinds.Conv3DTranspose):
        return _elements(shapes[0]) * math.prod(layer.kernel.shape[:-1])
    if isinstance(layer, kinds.Dense | kinds.Conv1D | kinds.Conv2D | kinds.Conv3D):
        return out * math.prod(layer.kernel.shape[:-1])
    if isinstance(layer, kinds.EinsumDense):
        operand, kernel = layer.equation.split("->")[0].split(",")
        sizes = zip(kernel, layer.kernel.shape, strict=True)
        return _elements(shapes[0]) * math.prod(n for letter, n in sizes if letter not in operand)
    return None


def _uncounted(operation: Any) -> bool:
    """Whether what an operation does is not known from its class: it may multiply, and how often."""
    kind, inner = type(operation), getattr(operation, "layer", None)
    own = not kind.__module__.startswith("keras.")
    linear_algebra = kind.__module__ == "keras.src.ops.linalg"
    if own or linear_algebra or kind.__name__ in UNCOUNTED:
        return True
    return inner is not None and _uncounted(inner)


def _elements(shape: tuple[int | None, ...]) -> int:
    """How many there are at batch 1, the batch being the first axis."""
    return math.prod((shape[0] or 1, *shape[1:])) if shape else 1  # type: ignore[arg-type]


def _separable(_: Any, shapes: list[tuple[int, ...]], out: int) -> int:
    depthwise, pointwise = shapes[1:3]
    return out // pointwise[-1] * (math.prod(depthwise) + math.prod(pointwise))


def _tensordot(operation: Any, shapes: list[tuple[int, ...]], out: int) -> int:
    axes, first = operation.axes, shapes[0]
    if isinstance(axes, int):
        return out * math.prod(first[len(first) - axes :])
    chosen = [axes[0]] if isinstance(axes[0], int) else axes[0]
    return out * math.prod(first[axis] for axis in chosen)


def _einsum(operation: Any, shapes: list[tuple[int, ...]], out: int) -> int:
    """Every combination of the indices once: two factors, no ellipsis; the batch once."""
    factors, _, result = operation.subscripts.replace(" ", "").partition("->")
    first, second = factors.split(",")
    sizes: dict[str, Any] = {}
    for letters, shape in zip((first, second), shapes, strict=True):
        for place, (letter, n) in enumerate(zip(letters, shape, strict=True)):
            whole = n or (1 if place == 0 and letter == result[:1] else None)
            sizes[letter] = sizes.get(letter) or whole
    return math.prod(sizes.values())


def _reshaped(_: Any, shapes: list[tuple[int, ...]], out: int) -> int | None:
    """Nothing; not known where the batch is no longer the first axis, by which all else counts."""
    return 0 if _elements(shapes[0]) == out else None


# Multiply-accumulates of Keras's own operations: (operation, shapes of its arguments, size of its output).
COUNTED: dict[str, Callable[[Any, list[tuple[int, ...]], int], int | None]] = {
    "Conv": lambda _, shapes, out: out * math.prod(shapes[1][:-1]),
    "ConvTranspose": lambda _, shapes, out: _elements(shapes[0]) * math.prod(shapes[1][:-1]),
    "DepthwiseConv": lambda _, shapes, out: out * math.prod(shapes[1][:-2]),
    "Dot": lambda _, shapes, out: out * shapes[0][-1] if all(shapes) else 0,
    "Einsum": _einsum,
    "Inner": lambda _, shapes, out: out * shapes[0][-1],
    "Matmul": lambda _, shapes, out: out * shapes[0][-1],
    "Reshape": _reshaped,
    "SeparableConv": _separable,
    "Tensordot": _tensordot,
}


def _named(names: list[str], tensors: list[Any]) -> dict[str, Any]:
    taken: dict[str, Any] = {}
    for name, tensor in zip(names, tensors, strict=True):
        name = re.sub(r"\W", "_", name, flags=re.ASCII).lstrip("_") or "tensor"
        taken[name if name not in taken else f"{name}_{len(taken)}"] = tensor
    return taken


def _without_clock(path: Path) -> None:
    """Set the dates inside a `.keras` file to those of the zip format's first day."""
    with zipfile.ZipFile(path) as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in entries:
            info.date_time = (1980, 1, 1, 0, 0, 0)
            if info.filename == "metadata.json":
                metadata = {**json.loads(content), "date_saved": "1980-01-01@00:00:00"}
                content = json.dumps(metadata).encode()
            archive.writestr(info, content)


@contextmanager
def _no_hdf5_advice() -> Iterator[None]:
    """Keep Keras's advice against `.h5` to itself: the user asked for that format by name."""

    def keep(record: logging.LogRecord) -> bool:
        return "HDF5" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
