import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from secateur.arrays.masks import apply_mask, pack, unpack, unstructured, zeros_count
from secateur.errors import SecateurError

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)
sparsities = st.floats(0, 1)
# Few distinct values make ties the rule; free floats bring infinities, subnormals and both zeros.
tied = hnp.arrays(np.float32, shapes, elements=st.sampled_from([-0.0, 0.0, 0.5, 1.0]))
free = hnp.arrays(np.float32, shapes, elements=st.floats(allow_nan=False, width=32))
whole = hnp.arrays(np.int8, shapes)


def by_stable_sort(scores, sparsity):
    """The definition: what a stable ascending sort of the flat scores puts first is pruned."""
    keep = np.ones(scores.size, bool)
    keep[np.argsort(scores.ravel(), kind="stable")[: zeros_count(scores.size, sparsity)]] = False
    return keep.reshape(scores.shape)


@pytest.mark.parametrize(
    ("size", "sparsity", "zeros"),
    [
        (108, 0.8, 86),
        (20_280, 0.8, 16_224),
        (5, 0.5, 3),
        (3, 0.5, 2),
        (7, 0, 0),
        (7, 1, 7),
        (0, 1, 0),
    ],
)
def test_zeros_count(size, sparsity, zeros):
    assert zeros_count(size, sparsity) == zeros


@pytest.mark.parametrize(
    ("sparsity", "fix"),
    [(50, "fix: 0.5 for 50 %"), (1.2, "0.012 for 1.2 %"), (-0.1, "0.5 for half")],
)
def test_a_sparsity_that_is_no_fraction_is_refused(sparsity, fix):
    with pytest.raises(SecateurError, match=fix):
        unstructured(np.ones(4), sparsity)
    with pytest.raises(SecateurError, match="expected a fraction"):
        zeros_count(4, math.nan)


@given(st.one_of(tied, free, whole), sparsities)
def test_unstructured_is_a_stable_sort(scores, sparsity):
    keep = unstructured(scores, sparsity)
    assert keep.dtype == bool
    assert keep.shape == scores.shape
    assert np.count_nonzero(~keep) == zeros_count(scores.size, sparsity)
    assert np.array_equal(keep, by_stable_sort(scores, sparsity))


@given(tied, sparsities, sparsities)
def test_more_sparsity_never_opens_a_mask(scores, first, second):
    less, more = sorted((first, second))
    assert not (unstructured(scores, more) & ~unstructured(scores, less)).any()


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9])
def test_a_large_kernel_with_an_earlier_mask(sparsity, zeros):
    """Sizes at which NumPy's partition leaves its small-array path."""
    rng = np.random.default_rng(0)
    scores = np.abs(rng.standard_normal((300, 100), dtype=np.float32))
    scores[rng.random(scores.shape) < zeros] = 0
    assert np.array_equal(unstructured(scores, sparsity), by_stable_sort(scores, sparsity))


def test_all_equal_scores_prune_from_the_front():
    keep = unstructured(np.ones((4, 4)), 0.25)
    assert np.flatnonzero(~keep).tolist() == [0, 1, 2, 3]


def test_a_transposed_view_is_read_in_its_own_order():
    scores = np.arange(6.0).reshape(2, 3).T % 3
    assert np.array_equal(unstructured(scores, 0.5), by_stable_sort(scores, 0.5))


def test_scores_are_left_alone():
    scores = np.array([3.0, 1.0, 2.0])
    unstructured(scores, 0.5)
    assert scores.tolist() == [3.0, 1.0, 2.0]


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 1.0])
def test_nan_scores_are_refused(sparsity):
    with pytest.raises(SecateurError, match="2 NaN among 4 scores received"):
        unstructured(np.array([1.0, np.nan, 2.0, np.nan]), sparsity)


@given(st.data(), st.sampled_from([np.float16, np.float32, np.float64, np.int8]))
def test_apply_mask_writes_positive_zeros(data, dtype):
    elements = None if dtype == np.int8 else st.floats(-1, 1, width=16)
    weight = data.draw(hnp.arrays(dtype, shapes, elements=elements))
    keep = data.draw(hnp.arrays(bool, weight.shape))
    before, masked = weight.tobytes(), apply_mask(weight, keep)
    assert masked.dtype == weight.dtype
    assert masked.shape == weight.shape
    assert not masked[~keep].any()
    assert not np.signbit(masked[~keep]).any()
    assert masked[keep].tobytes() == weight[keep].tobytes()
    assert weight.tobytes() == before


def test_apply_mask_of_negative_weights_has_no_negative_zero():
    masked = apply_mask(np.full(3, -1.0, np.float32), np.array([False, True, False]))
    assert masked.tobytes() == np.array([0.0, -1.0, 0.0], np.float32).tobytes()


def test_apply_mask_does_not_broadcast():
    with pytest.raises(
        SecateurError, match=r"shape \(3,\) received for a weight of shape \(2, 3\)"
    ):
        apply_mask(np.ones((2, 3)), np.ones(3, bool))


@given(hnp.arrays(bool, shapes))
def test_pack_round_trip(mask):
    packed = pack(mask)
    assert len(packed) == math.ceil(mask.size / 8)
    back = unpack(packed, mask.shape)
    assert back.dtype == bool
    assert back.shape == mask.shape
    assert np.array_equal(back, mask)


@pytest.mark.parametrize("shape", [(16,), (1,), (2, 0)])
def test_unpack_refuses_another_length(shape):
    if math.prod(shape) == 1:
        assert unpack(b"\x80", shape).all()
        return
    with pytest.raises(SecateurError, match="1 bytes received for a mask of shape"):
        unpack(b"\x80", shape)
