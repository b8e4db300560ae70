"""How a `.tflite` file stores the values of a tensor: codes packed into bytes, zeros left out."""

from typing import Any

import numpy as np

# Elements of a tensor that is stored sparse: a few bytes may stand for any number of zeros.
LARGEST = 1 << 28


def unpacked(data: np.ndarray, bits: int, count: int | None = None) -> np.ndarray:
    """Return the signed codes of `bits` bits in bytes, the lowest bits first, as int8.

    >>> unpacked(np.array([0x1F], np.uint8), 4).tolist()
    [-1, 1]
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (data.view(np.uint8)[:, None] >> shifts) & ((1 << bits) - 1)
    signed = codes.astype(np.int8)
    signed[signed >= 1 << (bits - 1)] -= 1 << bits
    return signed.reshape(-1)[:count]


def densified(values: np.ndarray, sparsity: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return the dense tensor of a sparse encoding (the schema's SparsityParameters).

    Dimensions are traversed in the order stored, each dense (every index) or compressed (segments
    and indices); those beyond the tensor's own are blocks of the ones that `block_map` names.
    """
    order = sparsity.TraversalOrderAsNumpy()
    blocks = sparsity.BlockMapAsNumpy() if sparsity.BlockMapLength() else np.zeros(0, int)
    levels = [sparsity.DimMetadata(i) for i in range(sparsity.DimMetadataLength())]
    rank = len(shape)
    paths = np.zeros((1, 0), np.int64)  # index along each level passed, one row a position so far
    parents = np.zeros(1, np.int64)
    for level in levels:
        if level.Format() == 0:
            size = level.DenseSize()
            index = np.tile(np.arange(size), len(parents))
            repeat = np.full(len(parents), size)
            parents = np.repeat(parents * size, repeat) + index
        else:
            segments, indices = _integers(level, "ArraySegments"), _integers(level, "ArrayIndices")
            repeat = segments[parents + 1] - segments[parents]
            start = np.repeat(segments[parents], repeat)
            offset = np.arange(len(start)) - np.repeat(np.cumsum(repeat) - repeat, repeat)
            parents = start + offset
            index = indices[parents]
        paths = np.column_stack([np.repeat(paths, repeat, axis=0), index])
    sizes = np.ones(rank, np.int64)
    place = np.zeros((len(paths), rank), np.int64)
    for level in reversed(range(len(levels))):
        block = int(order[level]) - rank
        axis = int(blocks[block]) if block >= 0 else int(order[level])
        place[:, axis] += paths[:, level] * sizes[axis]
        if block >= 0:
            sizes[axis] *= levels[level].DenseSize()
    dense = np.zeros(shape, values.dtype)
    dense[tuple(place.T)] = values[: len(place)]
    return dense


def require_encoding(sparsity: Any, shape: tuple[int, ...], stored: int, name: str) -> None:
    """Raise for a sparse encoding that does not describe `stored` values of a tensor of `shape`."""
    wrong = ValueError(f"tensor {name} of shape {shape} has a sparse encoding of another")
    levels = [sparsity.DimMetadata(i) for i in range(sparsity.DimMetadataLength())]
    order = sparsity.TraversalOrderAsNumpy()
    blocks = sparsity.BlockMapAsNumpy() if sparsity.BlockMapLength() else np.zeros(0, int)
    if sorted(order) != list(range(len(levels))) or len(levels) != len(shape) + len(blocks):
        raise wrong
    if any(not 0 <= axis < len(shape) for axis in blocks):
        raise wrong
    # How many indices a level has: a blocked axis has one for each block.
    sizes = list(shape)
    inner = {len(shape) + b: levels[list(order).index(len(shape) + b)] for b in range(len(blocks))}
    for place, level in inner.items():
        if level.Format() != 0 or level.DenseSize() < 1:
            raise wrong
        axis = blocks[place - len(shape)]
        if sizes[axis] % level.DenseSize():
            raise wrong
        sizes[axis] //= level.DenseSize()
    positions = 1
    for place, level in zip(order, levels, strict=True):
        if level.Format() == 0:
            size = level.DenseSize()
            if place < len(shape) and size != sizes[place]:
                raise wrong
            positions *= size
        else:
            segments, indices = _integers(level, "ArraySegments"), _integers(level, "ArrayIndices")
            if len(segments) != positions + 1 or segments[0] != 0 or (np.diff(segments) < 0).any():
                raise wrong
            if segments[-1] != len(indices):
                raise wrong
            if len(indices) and not 0 <= indices.min() <= indices.max() < sizes[place]:
                raise wrong
            positions = len(indices)
        if positions > LARGEST:
            raise wrong
    if positions > stored:
        raise wrong


def _integers(level: Any, name: str) -> np.ndarray:
    """One of the two index vectors of a compressed dimension, of whichever width it is stored in."""
    from ai_edge_litert import schema_py_generated as schema

    kinds = {
        schema.SparseIndexVector.Int32Vector: schema.Int32Vector,
        schema.SparseIndexVector.Uint16Vector: schema.Uint16Vector,
        schema.SparseIndexVector.Uint8Vector: schema.Uint8Vector,
    }
    table = getattr(level, name)()
    vector = kinds[getattr(level, f"{name}Type")()]()
    vector.Init(table.Bytes, table.Pos)
    return vector.ValuesAsNumpy().astype(np.int64)
