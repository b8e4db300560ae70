"""The grids of training are those of the files, and gradients pass through them as they should."""

import keras
import numpy as np
import pytest
from keras import ops

from secateur.arrays.affine import fake_quantized, symmetric_scales
from secateur.fake_quantization import (
    WORTH_FUSING,
    averaged_values,
    kernel_steps,
    quantized_bias,
    quantized_kernel,
    quantized_values,
    widened,
)


def rounded_kernel(kernel, bits, axes):
    return quantized_kernel(kernel, kernel_steps(kernel, bits, axes))


def gradient(function, value):
    """d sum(function(value)) / d value, on whatever backend there is."""
    variable = keras.Variable(value)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            total = ops.sum(function(variable))
        return np.asarray(tape.gradient(total, variable.value))
    if keras.backend.backend() == "jax":
        import jax

        return np.asarray(jax.grad(lambda v: ops.sum(function(v)))(variable.value))
    ops.sum(function(variable.value)).backward()
    return variable.value.grad.numpy()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((5, 7), (1,)), ((3, 3, 4, 2), (2, 3)), ((3, 3, 2, 4), (2,)), ((4, 2, 3), (1, 2))],
)
def test_a_kernel_is_what_the_file_gives_back(bits, shape, axes):
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = ops.convert_to_numpy(rounded_kernel(kernel, bits, axes))
    np.testing.assert_allclose(found, fake_quantized(kernel, bits, axes), atol=1e-6)
    codes = found / symmetric_scales(kernel, bits, axes)
    assert np.abs(codes).max() == pytest.approx(2 ** (bits - 1) - 1)


def test_a_large_kernel_has_the_very_numbers_of_the_file():
    kernel = np.random.default_rng(0).normal(size=(WORTH_FUSING // 64, 128)).astype(np.float32)
    kernel[::3] = 0
    scale = np.abs(kernel).max(0) / np.float32(127)
    expected = np.floor(kernel / scale + np.float32(0.5)) * scale
    found = ops.convert_to_numpy(rounded_kernel(kernel, 8, (1,)))
    np.testing.assert_array_equal(found, expected)
    assert not np.signbit(found[::3]).any()
    np.testing.assert_array_equal(gradient(lambda v: rounded_kernel(v, 8, (1,)), kernel), 1)


def test_a_tie_is_rounded_up_and_zeros_stay_plus_zero():
    kernel = np.array([[127.0], [0.5], [-0.5], [0.0], [1.5]], np.float32)
    found = ops.convert_to_numpy(rounded_kernel(kernel, 8, (1,))).ravel()
    assert found.tolist() == [127, 1, 0, 0, 2]
    assert not np.signbit(found[[2, 3]]).any()


def test_a_channel_without_weights_stays_without():
    kernel = np.zeros((3, 2), np.float32)
    kernel[:, 0] = 0.5
    found = ops.convert_to_numpy(rounded_kernel(kernel, 8, (1,)))
    assert np.isfinite(found).all() and not found[:, 1].any()


def test_gradients_pass_inside_the_range_only():
    values = np.array([-2.0, -0.5, 0.2, 0.9, 3.0], np.float32)
    found = gradient(
        lambda v: quantized_values(v, ops.convert_to_tensor(-1.0), ops.convert_to_tensor(1.0), 8),
        values,
    )
    assert found.tolist() == [0, 1, 1, 1, 0]
    assert gradient(lambda v: rounded_kernel(v, 8, ()), values).tolist() == [1] * 5


@pytest.mark.parametrize(("bits", "levels"), [(8, 256), (16, 65535)])
def test_activations_have_as_many_values_as_codes(bits, levels):
    values = np.linspace(-3, 3, 200_001, dtype=np.float32)
    low, high = ops.convert_to_tensor(-1.0), ops.convert_to_tensor(2.0)
    found = ops.convert_to_numpy(quantized_values(values, low, high, bits))
    assert 0.0 in found
    assert len(np.unique(found)) <= levels
    bottom = -1.0 if bits == 8 else -2.0  # 16 bits are symmetric
    assert found.min() == pytest.approx(bottom, abs=0.01) and found.max() == pytest.approx(
        2, abs=0.01
    )


def test_a_range_holds_zero_and_has_a_step():
    for low, high in ((0.5, 2.0), (-2.0, -0.5), (0.0, 0.0), (3.0, 3.0)):
        least, most = (
            float(b) for b in widened(ops.convert_to_tensor(low), ops.convert_to_tensor(high))
        )
        assert least <= 0 <= most and most > least
        value = ops.convert_to_tensor(np.array([low, high], np.float32))
        found = ops.convert_to_numpy(
            quantized_values(value, ops.convert_to_tensor(least), ops.convert_to_tensor(most), 8)
        )
        np.testing.assert_allclose(found, [low, high], atol=0.02)


@pytest.mark.parametrize("bounds", [(0.0, 25.5), (-12.8, 12.7), (-3.0, 22.5)])
@pytest.mark.parametrize("count", [4, 6, 9])
def test_averages_of_codes_are_rounded_as_litert_divides(bounds, count):
    low, high = bounds
    step = (high - low) / 255
    shift = int(np.floor(0.5 - low / step)) - 128
    codes = np.random.default_rng(0).integers(-128, 128, (4000, count))
    values = ((codes - shift) * np.float32(step)).astype(np.float32)
    total = codes.sum(1)
    # reference/integer_ops/pooling.h: half of the count is added away from 0, then C++ divides.
    expected = np.trunc((total + np.sign(total) * (count // 2)) / count)
    found = averaged_values(values.mean(1), low, high, 8)
    found = np.rint(ops.convert_to_numpy(found) / step + shift)
    np.testing.assert_array_equal(found, expected)
    halves = (2 * total) % (2 * count) == count
    assert count % 2 or (halves & (total < 0)).sum() > 100


def test_a_bias_is_what_its_32_bits_give_back():
    rng = np.random.default_rng(0)
    kernel, bias = (rng.normal(size=s).astype(np.float32) for s in ((3, 3, 2, 5), (5,)))
    steps = symmetric_scales(kernel, 8, (3,)).ravel() * 2.55 / 255
    found = ops.convert_to_numpy(quantized_bias(bias, 0.0, 2.55, kernel_steps(kernel, 8, (3,))))
    np.testing.assert_allclose(found, np.floor(bias / steps + 0.5) * steps, rtol=1e-6)
    assert 0 < np.abs(found - bias).max() <= steps.max() / 2
    # One for each head and one for each entry of it, as for the kernel of an attention layer.
    kernel, bias = (rng.normal(size=s).astype(np.float32) for s in ((7, 2, 4), (2, 4)))
    steps = symmetric_scales(kernel, 8, (1, 2))[0] * 2.55 / 255
    found = ops.convert_to_numpy(quantized_bias(bias, 0.0, 2.55, kernel_steps(kernel, 8, (1, 2))))
    np.testing.assert_allclose(found, np.floor(bias / steps + 0.5) * steps, rtol=1e-6)
    assert (
        gradient(
            lambda b: quantized_bias(b, 0.0, 2.55, kernel_steps(kernel, 8, (1, 2))), bias
        ).min()
        == 1
    )
    # Of other axes than the outputs: left as it is.
    assert (
        ops.convert_to_numpy(quantized_bias(bias[0], 0.0, 1.0, kernel_steps(kernel, 8, (1, 2))))
        == bias[0]
    ).all()


def test_gradients_pass_through_averages():
    values = np.array([0.2, 0.5, 0.74], np.float32)
    assert gradient(lambda v: averaged_values(v, 0.0, 1.0, 8), values).tolist() == [1, 1, 1]
