import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from secateur.arrays.layout import Axes, canonical, restore
from secateur.errors import SecateurError


@st.composite
def weights_with_axes(draw):
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=5, min_side=0, max_side=4))
    order = draw(st.permutations(range(len(shape))))
    inputs = draw(st.integers(0, len(shape)))
    outputs = draw(st.integers(inputs, len(shape)))
    axes = Axes(tuple(order[:inputs]), tuple(order[inputs:outputs]))
    return np.arange(np.prod(shape, dtype=int)).reshape(shape), axes


@given(weights_with_axes())
def test_restore_undoes_canonical(drawn):
    weight, axes = drawn
    form = canonical(weight, axes)
    others = weight.ndim - len(axes.inputs) - len(axes.outputs)
    assert form.ndim == others + 2
    assert form.size == weight.size
    back = restore(form, axes, weight.shape)
    assert back.shape == weight.shape
    assert np.array_equal(back, weight)


@pytest.mark.parametrize(
    ("name", "shape", "axes", "expected"),
    [
        ("Dense", (5, 7), Axes((0,), (1,)), (5, 7)),
        ("Conv1D", (3, 5, 7), Axes((1,), (2,)), (3, 5, 7)),
        ("Conv2D", (3, 2, 5, 7), Axes((2,), (3,)), (3, 2, 5, 7)),
        ("Conv2DTranspose", (3, 2, 7, 5), Axes((3,), (2,)), (3, 2, 5, 7)),
        ("DepthwiseConv2D", (3, 2, 5, 4), Axes((), (2, 3)), (3, 2, 1, 20)),
        ("attention query", (6, 2, 3), Axes((0,), (1, 2)), (6, 6)),
        ("attention output", (2, 3, 5), Axes((0, 1), (2,)), (6, 5)),
        ("bias", (7,), Axes((), (0,)), (1, 7)),
        ("nothing to merge", (3,), Axes((), ()), (3, 1, 1)),
        ("no axes", (), Axes((), ()), (1, 1)),
        ("an axis of length 0", (0, 4), Axes((0,), (1,)), (0, 4)),
    ],
)
def test_canonical_shapes(name, shape, axes, expected):
    weight = np.zeros(shape)
    assert canonical(weight, axes).shape == expected
    assert restore(canonical(weight, axes), axes, shape).shape == shape


def test_a_transposed_kernel_has_inputs_before_outputs():
    weight = np.arange(6).reshape(1, 1, 2, 3)  # (kh, kw, out, in)
    assert canonical(weight, Axes((3,), (2,)))[0, 0].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_merged_inputs_run_in_their_order():
    weight = np.arange(12).reshape(2, 3, 2)  # (heads, key, d)
    assert canonical(weight, Axes((0, 1), (2,)))[:, 0].tolist() == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize(
    ("inputs", "outputs"), [((0,), (0,)), ((1, 1), ()), ((-1,), (0,)), ((), (0, -2))]
)
def test_axes_named_twice_or_from_the_end_are_refused(inputs, outputs):
    with pytest.raises(SecateurError, match=r"received, expected each axis once.*fix: Axes"):
        Axes(inputs, outputs)


def test_a_missing_axis_is_refused():
    with pytest.raises(SecateurError, match=r"shape \(3,\) received, expected axis 1"):
        canonical(np.zeros(3), Axes((0,), (1,)))
    with pytest.raises(SecateurError, match=r"shape \(\) received, expected axis 1"):
        canonical(np.zeros(()), Axes((0,), (1,)))


def test_restore_refuses_another_shape():
    with pytest.raises(SecateurError, match=r"shape \(7, 5\) received .* expected \(5, 7\); fix"):
        restore(np.zeros((7, 5)), Axes((0,), (1,)), (5, 7))
