"""Kernels of 4 bits in blocks: scales that a runtime accepts where a block has next to no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

LEAST = np.finfo(np.float16).smallest_normal


def with_normal_scales(blob: bytes, weights: Mapping[str, np.ndarray]) -> bytes:
    """Return the file with every block's scale at least the smallest normal half-precision float.

    The quantizer stores these scales as halves: that of a block without weights, as pruning leaves
    them, becomes 0, and LiteRT does not load the file. weights: of the float file, by tensor, to
    round anew to the larger scale.
    """
    from ai_edge_litert import schema_py_generated as schema

    writable = bytearray(blob)  # NumPy views of it are written through, byte for byte in place
    model = schema.Model.GetRootAs(writable, 0)
    for g in range(model.SubgraphsLength()):
        graph = model.Subgraphs(g)
        for k in range(graph.TensorsLength()):
            tensor = graph.Tensors(k)
            details = _details(tensor.Quantization(), schema)
            name = tensor.Name().decode() if tensor.Name() else ""
            if details is None or tensor.Type() != schema.TensorType.INT4 or name not in weights:
                continue
            stored = graph.Tensors(details.Scales())
            if stored.Type() == schema.TensorType.FLOAT16:
                scales = model.Buffers(stored.Buffer()).DataAsNumpy().view(np.float16)
                codes = model.Buffers(tensor.Buffer()).DataAsNumpy()
                _raise_small(scales, codes, details.BlockSize(), weights[name])
    return bytes(writable)


def _details(quantization: Any, schema: Any) -> Any:
    kind = schema.QuantizationDetails.BlockwiseQuantization
    if quantization is None or quantization.DetailsType() != kind:
        return None
    details, table = schema.BlockwiseQuantization(), quantization.Details()
    details.Init(table.Bytes, table.Pos)
    return details


def _raise_small(scales: np.ndarray, codes: np.ndarray, block: int, weights: np.ndarray) -> None:
    """Raise small scales in place, and round the weights of their blocks to codes, two to a byte."""
    packed, weights = codes.reshape(scales.size, block // 2), weights.reshape(scales.size, block)
    for place in np.flatnonzero(scales < LEAST):
        rounded = np.clip(np.rint(weights[place] / np.float32(LEAST)), -7, 7).astype(np.int8)
        packed[place] = (rounded[::2] & 15) | ((rounded[1::2] & 15) << 4)
        scales[place] = LEAST
