"""The grid of integer weights: by hand, against the quantizer's own rules, and what always holds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from secateur.arrays.affine import (
    decibels,
    fake_quantized,
    ratio,
    relative_rms,
    symmetric_scales,
)
from secateur.errors import SecateurError

weights = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
    elements=st.floats(-1e6, 1e6, width=32),
)


def test_by_hand():
    weight = np.float32([[0.7, -7.0, 0.0], [0.24, 2.4, 0.0], [-0.35, 1.5, 0.0]])
    expected = [[0.7, -7.0, 0.0], [0.2, 2.0, 0.0], [-0.4, 2.0, 0.0]]
    # -0.35 / 0.1 and 1.5 / 1: halves go to the even code.
    np.testing.assert_allclose(fake_quantized(weight, 4, (1,)), expected, atol=1e-6)
    np.testing.assert_allclose(symmetric_scales(weight, 4, ()), [[1.0]])


@given(weights, st.sampled_from([2, 3, 4, 8, 16]), st.data())
def test_what_always_holds(weight, bits, data):
    axes = tuple(sorted(data.draw(st.sets(st.sampled_from(range(weight.ndim))))))
    scales = symmetric_scales(weight, bits, axes)
    found = fake_quantized(weight, bits, axes)
    assert found.dtype == weight.dtype
    assert found.shape == weight.shape
    codes = np.rint(found / scales)
    limit = 2 ** (bits - 1) - 1
    assert (np.abs(codes) <= limit).all()
    slack = 1e-5 * np.abs(weight) + 1e-12
    assert (np.abs(found - weight) <= scales / 2 + slack).all()
    assert (found[weight == 0] == 0).all()
    assert not np.signbit(found[found == 0]).any()
    np.testing.assert_allclose(fake_quantized(found, bits, axes), found, rtol=1e-5, atol=1e-9)


def test_the_quantizer_has_the_same_grid():
    """Its own functions, where it is installed: scale and rounding are those of the files."""
    tensor = pytest.importorskip(
        "ai_edge_quantizer.algorithms.uniform_quantize.uniform_quantize_tensor"
    )
    from ai_edge_quantizer import qtyping

    weight = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    weight[2] = 0
    for bits in (4, 8):
        zero, scale = tensor.tensor_zp_scale_from_min_max(
            weight.min(1, keepdims=True),
            weight.max(1, keepdims=True),
            bits,
            True,
            qtyping.QuantGranularity.CHANNELWISE,
        )
        how = qtyping.UniformQuantParams(
            num_bits=bits,
            quantized_dimension=0,
            scale=scale,
            zero_point=zero,
            symmetric=True,
        )
        theirs = tensor.uniform_dequantize(tensor.uniform_quantize(weight, how), how)
        np.testing.assert_allclose(fake_quantized(weight, bits, (0,)), theirs, rtol=1e-6)


def test_half_precision_is_divided_in_single():
    weight = np.float16([1.0, 0.3, 6e-8])
    assert fake_quantized(weight, 8, ()).dtype == np.float16


@pytest.mark.parametrize("bits", [1, 17, 8.0, True, "8"])
def test_bits_are_refused(bits):
    with pytest.raises(SecateurError, match="expected a whole number from 2 to 16"):
        fake_quantized(np.ones(3), bits, ())


def test_axes_and_values_are_refused():
    with pytest.raises(SecateurError, match="axes from 0 to 0"):
        fake_quantized(np.ones(3), 8, (1,))
    with pytest.raises(SecateurError, match="NaN or infinity"):
        fake_quantized(np.array([1.0, np.nan]), 8, ())


def test_errors_by_hand():
    assert relative_rms(np.array([1.0, 1.0]), np.array([1.0, 0.0])) == 1.0
    assert relative_rms(np.zeros(2), np.zeros(2)) == 0.0
    assert relative_rms(np.ones(2), np.zeros(2)) is None
    assert ratio(4.0, 1.0) == 2.0
    assert decibels(1.0) == 0.0
    assert decibels(None) is None
