"""The container of a `.tflite` made small: what the file computes stays the same, bit for bit.

Weights are most of a large file, and the container is most of a small one: names, metadata, and the
same shapes, scales and zero points over and over.
"""

from typing import Any

import numpy as np

from secateur.errors import SecateurError
from secateur.runtimes import litert, one_line

# Metadata that a runtime obeys (LiteRT: half-precision arithmetic; tflite-micro: a memory plan).
OBEYED = ("reduced_precision_support", "OfflineMemoryAllocation")
# What the schema demands of the bytes of a buffer: kernels read them where they lie.
ALIGNMENT = 16


def strip(blob: bytes, *, keep_signature: bool = False) -> bytes:
    """Return the same model in fewer bytes; same file, same bytes, and nothing left to do twice.

    Dropped: tensor and subgraph names, description, metadata that no runtime obeys, unused buffers,
    ranges of the calibration, and the signature unless `keep_signature`; of several signatures all
    are kept, because each leads to a graph of its own. Equal vectors, buffers and tables are
    written once. Make it the last step: what tells tensors apart by name (quantizing) needs names,
    and what is written once must not be changed in place.

    >>> from ai_edge_litert import schema_py_generated as schema
    >>> model = schema.ModelT(version=3, description="MLIR Converted.")
    >>> builder = schema.flatbuffers.Builder(0)
    >>> _ = builder.Finish(model.Pack(builder), b"TFL3")
    >>> b"MLIR" in builder.Output(), b"MLIR" in strip(bytes(builder.Output()))
    (True, False)

    Raises `SecateurError` for a damaged file, and for one that keeps weights in other files.
    """
    model = _unpacked(blob)
    kept = [m for m in model.metadata or [] if _text(m.name) in OBEYED]
    model.metadata = kept or None
    model.metadataBuffer = model.description = None
    if not keep_signature and len(model.signatureDefs or []) < 2:
        model.signatureDefs = None
    for graph in model.subgraphs or []:
        graph.name = None
        graph.debugMetadataIndex = -1
        for tensor in graph.tensors or []:
            tensor.name = None
            tensor.quantization = _needed(tensor.quantization)
        for operator in graph.operators or []:
            operator.debugMetadataIndex = -1
            for name in ("intermediates", "mutatingVariableInputs"):
                if getattr(operator, name) is not None and len(getattr(operator, name)) == 0:
                    setattr(operator, name, None)
    _use_operator_codes_once(model)
    _use_buffers_once(model)
    _use_tables_once(model)
    return _packed(model)


def embedded(blob: bytes) -> bytes:
    """Return the same file with every buffer inside the flatbuffer; unchanged where they are.

    Writers put the buffers of large files behind the flatbuffer, where only recent versions of
    LiteRT look for them, and no tool for microcontrollers. Equal vectors are then written once.
    """
    litert.prepare()
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(blob, 0)
    inside = all(model.Buffers(k).Offset() <= 1 for k in range(model.BuffersLength()))
    return blob if inside else _packed(_unpacked(blob))


def _unpacked(blob: bytes) -> Any:
    litert.prepare()
    from ai_edge_litert import schema_py_generated as schema

    if blob[4:8] != b"TFL3":
        raise SecateurError(
            f"{len(blob)} bytes received that are not a .tflite file, expected one that a converter "
            "wrote; fix: convert the model again"
        )
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(blob, 0))
    except Exception as error:  # a damaged flatbuffer raises whatever its bytes point to
        raise SecateurError(
            f"the .tflite file is damaged ({one_line(error)}), expected an unchanged one; "
            "fix: convert the model again"
        ) from error
    operators = [o for graph in model.subgraphs or [] for o in graph.operators or []]
    outside = [*(model.externalBufferGroups or []), *(model.externalBuffers or [])]
    for buffer in model.buffers or []:
        if buffer.offset > 1 and buffer.offset + buffer.size <= len(blob):
            # Behind the flatbuffer, where writers of large files put it.
            buffer.data = np.frombuffer(blob, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    outside += [b for b in model.buffers or [] if b.offset > 1]
    outside += [o for o in operators if o.largeCustomOptionsOffset > 1]
    if outside:
        raise SecateurError(
            f"a .tflite file received that keeps {len(outside)} of its parts outside of itself, "
            "expected one that holds everything; fix: leave this file as it is"
        )
    return model


def _text(name: Any) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name or ""


def _needed(quantization: Any) -> Any:
    """Quantization parameters without the ranges of the calibration; None where nothing is left."""
    if quantization is None:
        return None
    quantization.min = quantization.max = None
    scales = quantization.scale is not None and len(quantization.scale)
    return quantization if scales or quantization.details is not None else None


def _use_operator_codes_once(model: Any) -> None:
    found: dict[bytes, int] = {}
    codes = []
    for graph in model.subgraphs or []:
        for operator in graph.operators or []:
            code = model.operatorCodes[operator.opcodeIndex]
            operator.opcodeIndex = found.setdefault(_content(code), len(codes))
            if operator.opcodeIndex == len(codes):
                codes.append(code)
    model.operatorCodes = codes


def _use_buffers_once(model: Any) -> None:
    """Equal buffers become one, all without data the first, which the schema wants empty.

    A buffer of length zero is not one without data: it makes its tensor a constant.
    """
    from ai_edge_litert import schema_py_generated as schema

    found: dict[bytes, int] = {}
    buffers = [schema.BufferT()]

    def place(index: int) -> int:
        data = model.buffers[index].data if index else None
        if data is None:
            return 0
        at = found.setdefault(data.tobytes(), len(buffers))
        if at == len(buffers):
            buffers.append(schema.BufferT(data=data))
        return at

    for graph in model.subgraphs or []:
        for tensor in graph.tensors or []:
            tensor.buffer = place(tensor.buffer)
    for entry in model.metadata or []:
        entry.buffer = place(entry.buffer)
    model.buffers = buffers


class _Once:
    """A table that a builder gets once, however often it is packed."""

    def __init__(self, table: Any):
        self._table, self._builder, self._offset = table, None, 0

    def Pack(self, builder: Any) -> int:
        if self._builder is not builder:
            self._builder, self._offset = builder, self._table.Pack(builder)
        return self._offset


def _use_tables_once(model: Any) -> None:
    found: dict[bytes, _Once] = {}

    def once(table: Any) -> Any:
        return table and found.setdefault(_content(table), _Once(table))

    for graph in model.subgraphs or []:
        for tensor in graph.tensors or []:
            tensor.quantization, tensor.sparsity = once(tensor.quantization), once(tensor.sparsity)
        graph.tensors = graph.tensors and [once(tensor) for tensor in graph.tensors]
        for operator in graph.operators or []:
            operator.builtinOptions = once(operator.builtinOptions)


def _content(table: Any) -> bytes:
    """The bytes of a table written alone: equal exactly where the tables are equal."""
    from ai_edge_litert import schema_py_generated as schema

    builder = schema.flatbuffers.Builder(64)
    builder.Finish(table.Pack(builder))
    return bytes(builder.Output())


def _packed(model: Any) -> bytes:
    from ai_edge_litert import schema_py_generated as schema

    written: dict[tuple[int, bytes], int] = {}

    class Sharing(schema.flatbuffers.Builder):
        """Writes equal vectors of scalars once."""

        def CreateNumpyVector(self, x: np.ndarray) -> int:
            key = x.itemsize, x.tobytes()
            if key not in written:
                written[key] = super().CreateNumpyVector(x)
            return written[key]

    builder = Sharing(1024)
    for buffer in model.buffers:
        if buffer.data is not None:  # here first, and aligned: packing finds them written
            builder.Prep(ALIGNMENT, len(buffer.data))
            builder.CreateNumpyVector(buffer.data)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
