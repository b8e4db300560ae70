"""Every kind of layer in a tiny model, and how many zeros pruning to 50 % leaves in each weight.

The counts are written by hand from the shapes: (zeros, size), zeros = floor(size / 2 + 0.5). A
weight that is forgotten, or pruned though it should not be, does not fit them. docs/layers.md is
generated from this list (benchmarks/layers_page.py), the tests in test_layers.py run over it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import layers
from tests.methods.layer_models import (
    TOKENS,
    Block,
    Mixer,
    Owner,
    ScaledDense,
    Silent,
    Subclassed,
    attention,
    built,
    chain,
    nested,
    normalized,
    of,
    shared_layer,
    shared_model,
    stacked,
    tokens,
    untied,
)

SAMPLES = 8

Axes = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model with one kind of layer, and what is expected of it.

    x, y: shapes of one sample. zeros: path -> (zeros, size) at sparsity 0.5. axes: path -> (input
    axes, output axes) where they are not the last two. short: paths whose input axis is shorter
    than four, so that 2:4 leaves them out. cells: paths of recurrent cells, whose kernels units leave out. hidden:
    paths whose inputs no layer call shows, so that wanda refuses them, as it does those of cells. skipped: path -> the plan's reason, where
    the layer has weights that one could take for prunable. custom: plain Keras cannot open the file.
    tfmot: what tfmot 0.8.1 does with the layer.
    """

    name: str
    build: Callable[[], keras.Model]
    x: tuple[int, ...]
    y: tuple[int, ...]
    zeros: dict[str, tuple[int, int]]
    axes: dict[str, Axes] = field(default_factory=dict)
    short: tuple[str, ...] = ()
    cells: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    custom: bool = False
    tokens: bool = False
    tfmot: str = "pruned"

    @property
    def in_cells(self) -> tuple[str, ...]:
        """The kernels of recurrent cells."""
        return both(*self.cells)

    def model(self) -> keras.Model:
        """The model, built, with the same weights each time."""
        keras.utils.set_random_seed(1)
        return self.build()

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Samples (x, y)."""
        rng = np.random.default_rng(0)
        shape = (SAMPLES, *self.x)
        x = (
            np.arange(np.prod(shape)).reshape(shape) % TOKENS
            if self.tokens
            else rng.normal(size=shape)
        )
        return x.astype("int32" if self.tokens else "float32"), rng.normal(
            size=(SAMPLES, *self.y)
        ).astype("float32")


def both(*names: str) -> tuple[str, ...]:
    """The two kernels of each of these cells."""
    return tuple(f"{name}/{kernel}" for name in names for kernel in ("kernel", "recurrent_kernel"))


def projections(*values: Any) -> dict[str, Any]:
    """One value for each kernel of an attention layer."""
    names = ("query", "key", "value", "attention_output")
    return {f"attention/{name}/kernel": value for name, value in zip(names, values, strict=True)}


REFUSED = "refused: not in its registry"
UNPRUNED = "accepted, not pruned"
SUBCLASS = "refused: not Sequential or functional"

CASES = [
    Case(
        name="Dense",
        **of((6,), lambda: layers.Dense(5, name="dense")),
        y=(5,),
        zeros={"dense/kernel": (15, 30)},
    ),
    Case(
        name="Conv1D",
        **of((6, 4), lambda: layers.Conv1D(3, 3, name="conv")),
        y=(4, 3),
        zeros={"conv/kernel": (18, 36)},
    ),
    Case(
        name="Conv2D",
        **of((5, 5, 4), lambda: layers.Conv2D(3, 3, name="conv")),
        y=(3, 3, 3),
        zeros={"conv/kernel": (54, 108)},
    ),
    Case(
        name="Conv2D, groups=2",
        **of((5, 5, 8), lambda: layers.Conv2D(4, 3, groups=2, name="conv")),
        y=(3, 3, 4),
        zeros={"conv/kernel": (72, 144)},
    ),
    Case(
        name="Conv3D",
        **of((4, 4, 4, 4), lambda: layers.Conv3D(2, 2, name="conv")),
        y=(3, 3, 3, 2),
        zeros={"conv/kernel": (32, 64)},
    ),
    Case(
        name="DepthwiseConv1D",
        **of((6, 4), lambda: layers.DepthwiseConv1D(3, depth_multiplier=2, name="conv")),
        y=(4, 8),
        zeros={"conv/kernel": (12, 24)},
        axes={"conv/kernel": ((), (1, 2))},
        short=("conv/kernel",),
        tfmot=REFUSED,
    ),
    Case(
        name="DepthwiseConv2D",
        **of((5, 5, 3), lambda: layers.DepthwiseConv2D(3, name="conv")),
        y=(3, 3, 3),
        zeros={"conv/kernel": (14, 27)},
        axes={"conv/kernel": ((), (2, 3))},
        short=("conv/kernel",),
        tfmot=UNPRUNED,
    ),
    Case(
        name="SeparableConv1D",
        **of((6, 4), lambda: layers.SeparableConv1D(5, 3, name="conv")),
        y=(4, 5),
        zeros={"conv/depthwise_kernel": (6, 12), "conv/pointwise_kernel": (10, 20)},
        axes={"conv/depthwise_kernel": ((), (1, 2))},
        short=("conv/depthwise_kernel",),
        hidden=("conv/pointwise_kernel",),
        tfmot="only pointwise_kernel is pruned",
    ),
    Case(
        name="SeparableConv2D",
        **of((5, 5, 4), lambda: layers.SeparableConv2D(5, 3, name="conv")),
        y=(3, 3, 5),
        zeros={"conv/depthwise_kernel": (18, 36), "conv/pointwise_kernel": (10, 20)},
        axes={"conv/depthwise_kernel": ((), (2, 3))},
        short=("conv/depthwise_kernel",),
        hidden=("conv/pointwise_kernel",),
        tfmot="only pointwise_kernel is pruned",
    ),
    Case(
        name="Conv1DTranspose",
        **of((4, 4), lambda: layers.Conv1DTranspose(3, 3, name="conv")),
        y=(6, 3),
        zeros={"conv/kernel": (18, 36)},
        axes={"conv/kernel": ((2,), (1,))},
        tfmot=REFUSED,
    ),
    Case(
        name="Conv2DTranspose",
        **of((3, 3, 4), lambda: layers.Conv2DTranspose(3, 3, name="conv")),
        y=(5, 5, 3),
        zeros={"conv/kernel": (54, 108)},
        axes={"conv/kernel": ((3,), (2,))},
    ),
    Case(
        name="Conv3DTranspose",
        **of((2, 2, 2, 4), lambda: layers.Conv3DTranspose(2, 2, name="conv")),
        y=(3, 3, 3, 2),
        zeros={"conv/kernel": (32, 64)},
        axes={"conv/kernel": ((4,), (3,))},
    ),
    Case(
        name="EinsumDense",
        **of((4, 5), lambda: layers.EinsumDense("abc,cde->abde", (4, 2, 3), name="einsum")),
        y=(4, 2, 3),
        zeros={"einsum/kernel": (15, 30)},
        axes={"einsum/kernel": ((0,), (1, 2))},
        tfmot=REFUSED,
    ),
    Case(
        name="EinsumDense, a matrix for each position",
        **of((3, 5), lambda: layers.EinsumDense("abc,bcd->abd", (3, 3), name="einsum")),
        y=(3, 3),
        zeros={"einsum/kernel": (23, 45)},
        tfmot=REFUSED,
    ),
    Case(
        name="Embedding",
        build=tokens,
        x=(6,),
        y=(4,),
        zeros={"embedding/embeddings": (20, 40)},
        tokens=True,
    ),
    Case(
        name="ReversibleEmbedding, tie_weights=False",
        build=untied,
        x=(6,),
        y=(6, TOKENS),
        zeros={"embedding/embeddings": (20, 40), "embedding/reverse_embeddings": (20, 40)},
        tokens=True,
        tfmot="no such layer in Keras 2",
    ),
    Case(
        name="MultiHeadAttention(query=, value=, key=)",
        build=attention(layers.MultiHeadAttention, num_heads=2, key_dim=3),
        x=(4, 6),
        y=(4, 6),
        zeros=projections((18, 36), (18, 36), (18, 36), (18, 36)),
        axes=projections(((0,), (1, 2)), ((0,), (1, 2)), ((0,), (1, 2)), ((0, 1), (2,))),
        tfmot="in its registry; its wrapper does not keep the call's signature",
    ),
    Case(
        name="GroupQueryAttention",
        build=attention(
            layers.GroupQueryAttention, head_dim=3, num_query_heads=4, num_key_value_heads=2
        ),
        x=(4, 6),
        y=(4, 6),
        zeros=projections((36, 72), (18, 36), (18, 36), (36, 72)),
        axes=projections(((0,), (1, 2)), ((0,), (1, 2)), ((0,), (1, 2)), ((0, 1), (2,))),
        tfmot="no such layer in Keras 2",
    ),
    Case(
        name="LSTM",
        **of((3, 5), lambda: layers.LSTM(4, name="rnn")),
        y=(4,),
        zeros={"rnn/lstm_cell/kernel": (40, 80), "rnn/lstm_cell/recurrent_kernel": (32, 64)},
        cells=("rnn/lstm_cell",),
    ),
    Case(
        name="GRU",
        **of((3, 5), lambda: layers.GRU(4, name="rnn")),
        y=(4,),
        zeros={"rnn/gru_cell/kernel": (30, 60), "rnn/gru_cell/recurrent_kernel": (24, 48)},
        cells=("rnn/gru_cell",),
    ),
    Case(
        name="SimpleRNN",
        **of((3, 5), lambda: layers.SimpleRNN(3, name="rnn")),
        y=(3,),
        zeros={
            "rnn/simple_rnn_cell/kernel": (8, 15),
            "rnn/simple_rnn_cell/recurrent_kernel": (5, 9),
        },
        short=("rnn/simple_rnn_cell/recurrent_kernel",),
        cells=("rnn/simple_rnn_cell",),
    ),
    Case(
        name="RNN of stacked cells",
        **of((3, 5), stacked),
        y=(4,),
        zeros={
            "rnn/cells/lower/kernel": (30, 60),
            "rnn/cells/lower/recurrent_kernel": (18, 36),
            "rnn/cells/upper/kernel": (18, 36),
            "rnn/cells/upper/recurrent_kernel": (24, 48),
        },
        short=("rnn/cells/lower/recurrent_kernel", "rnn/cells/upper/kernel"),
        cells=(
            "rnn/cells/lower",
            "rnn/cells/upper",
        ),
    ),
    Case(
        name="ConvLSTM2D",
        **of((2, 4, 4, 2), lambda: layers.ConvLSTM2D(2, 2, name="rnn")),
        y=(3, 3, 2),
        zeros={
            "rnn/conv_lstm_cell/kernel": (32, 64),
            "rnn/conv_lstm_cell/recurrent_kernel": (32, 64),
        },
        short=both("rnn/conv_lstm_cell"),
        cells=("rnn/conv_lstm_cell",),
        tfmot=REFUSED,
    ),
    Case(
        name="Bidirectional(LSTM)",
        **of((3, 5), lambda: layers.Bidirectional(layers.LSTM(3, name="rnn"), name="both")),
        y=(6,),
        zeros={
            "both/forward_rnn/lstm_cell/kernel": (30, 60),
            "both/forward_rnn/lstm_cell/recurrent_kernel": (18, 36),
            "both/backward_rnn/lstm_cell/kernel": (30, 60),
            "both/backward_rnn/lstm_cell/recurrent_kernel": (18, 36),
        },
        short=(
            "both/forward_rnn/lstm_cell/recurrent_kernel",
            "both/backward_rnn/lstm_cell/recurrent_kernel",
        ),
        cells=(
            "both/forward_rnn/lstm_cell",
            "both/backward_rnn/lstm_cell",
        ),
        tfmot=REFUSED,
    ),
    Case(
        name="TimeDistributed(Dense)",
        **of((3, 6), lambda: layers.TimeDistributed(layers.Dense(3, name="dense"), name="steps")),
        y=(3, 3),
        zeros={"steps/dense/kernel": (9, 18)},
        tfmot=REFUSED,
    ),
    Case(
        name="TimeDistributed(Conv2D)",
        **of(
            (2, 5, 5, 4),
            lambda: layers.TimeDistributed(layers.Conv2D(3, 3, name="conv"), name="steps"),
        ),
        y=(2, 3, 3, 3),
        zeros={"steps/conv/kernel": (54, 108)},
        tfmot=REFUSED,
    ),
    Case(
        name="TimeDistributed(a model)",
        **of(
            (3, 4),
            lambda: layers.TimeDistributed(
                chain((4,), layers.Dense(5, name="dense"), name="inner"), name="steps"
            ),
        ),
        y=(3, 5),
        zeros={"steps/inner/dense/kernel": (10, 20)},
        tfmot=REFUSED,
    ),
    Case(
        name="SpectralNormalization(Dense)",
        **of((6,), lambda: layers.SpectralNormalization(layers.Dense(4, name="dense"), name="sn")),
        y=(4,),
        zeros={"sn/dense/kernel": (12, 24)},
        skipped={"sn/vector_u": "role other is not selected"},
        tfmot=REFUSED,
    ),
    Case(
        name="models nested three deep",
        build=nested,
        x=(4,),
        y=(2,),
        zeros={
            "outer/middle/inner/dense/kernel": (10, 20),
            "outer/middle/dense/kernel": (10, 20),
            "outer/dense/kernel": (6, 12),
            "head/kernel": (3, 6),
        },
        short=("head/kernel",),
    ),
    Case(
        name="a layer used twice",
        build=shared_layer,
        x=(4,),
        y=(3,),
        zeros={"shared/kernel": (8, 16), "head/kernel": (6, 12)},
    ),
    Case(
        name="a model used twice",
        build=shared_model,
        x=(2, 4),
        y=(3,),
        zeros={"pair/tower/dense/kernel": (10, 20), "head/kernel": (8, 15)},
        tfmot="nested models are pruned; used twice: not tried",
    ),
    Case(
        name="BatchNormalization before, between, after",
        build=normalized,
        x=(5, 5, 4),
        y=(3, 3, 3),
        zeros={"conv/kernel": (72, 144), "dense/kernel": (6, 12)},
        skipped={
            f"{name}/{weight}": "role norm is not selected"
            for name in ("before", "between", "after")
            for weight in ("gamma", "beta", "moving_mean", "moving_variance")
        },
        tfmot="kernels pruned, normalizations accepted",
    ),
    Case(
        name="LayerNormalization, GroupNormalization",
        build=lambda: chain(
            (6,),
            layers.LayerNormalization(name="layer"),
            layers.Dense(4, name="dense"),
            layers.GroupNormalization(2, name="group"),
        ),
        x=(6,),
        y=(4,),
        zeros={"dense/kernel": (12, 24)},
        skipped={
            f"{name}/{weight}": "role norm is not selected"
            for name in ("layer", "group")
            for weight in ("gamma", "beta")
        },
        tfmot="GroupNormalization refused",
    ),
    Case(
        name="a subclass of Dense",
        **of((6,), lambda: ScaledDense(5, name="dense")),
        y=(5,),
        zeros={"dense/kernel": (15, 30)},
        custom=True,
        tfmot="refused: exact classes only",
    ),
    Case(
        name="a user's layer with get_prunable_weights()",
        **of((5,), lambda: Mixer(name="mixer")),
        y=(3,),
        zeros={"mixer/mix": (8, 15)},
        skipped={"mixer/gate": "role other is not selected"},
        custom=True,
    ),
    Case(
        name="a user's layer without",
        build=lambda: chain((5,), layers.Dense(4, name="dense"), Silent(name="silent")),
        x=(5,),
        y=(3,),
        zeros={"dense/kernel": (10, 20)},
        skipped={"silent/mix": "role other is not selected"},
        custom=True,
        tfmot="refused",
    ),
    Case(
        name="a user's layer of layers",
        **of((5,), lambda: Block(name="block")),
        y=(4,),
        zeros={"block/wide/kernel": (15, 30), "block/narrow/kernel": (12, 24)},
        custom=True,
        tfmot="refused",
    ),
    Case(
        name="a subclassed model",
        build=lambda: built(Subclassed(name="model"), (4,)),
        x=(4,),
        y=(3,),
        zeros={"hidden/kernel": (10, 20), "head/kernel": (8, 15)},
        custom=True,
        tfmot=SUBCLASS,
    ),
    Case(
        name="a subclassed model with weights of its own",
        build=lambda: built(Owner(name="model"), (4,)),
        x=(4,),
        y=(3,),
        zeros={"hidden/kernel": (8, 16), "model/mix": (6, 12)},
        skipped={"model/shift": "role other is not selected"},
        custom=True,
        tfmot=SUBCLASS,
    ),
]
