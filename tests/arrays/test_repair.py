"""The next layer solved anew gives what all units gave, wherever the kept ones can."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.arrays.repair import resolve_next, unit_scores
from secateur.errors import SecateurError


def problem(seed, samples=60, units=8, out=5, bias=True):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(units, out)).astype(np.float32)
    return (
        rng.normal(size=(samples, units)).astype(np.float32),
        kernel,
        rng.normal(size=out).astype(np.float32) if bias else None,
    )


def outputs(inputs, kernel, bias):
    return inputs.astype(np.float64) @ kernel + (0 if bias is None else bias)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.booleans())
def test_exact_when_the_removed_units_are_combinations_of_the_kept(seed, kept, bias):
    inputs, kernel, shift = problem(seed, bias=bias)
    rng = np.random.default_rng(seed + 1)
    keep = np.zeros(8, bool)
    keep[rng.permutation(8)[:kept]] = True
    mixed = inputs[:, keep] @ rng.normal(size=(kept, 8 - kept))
    # With a bias in the next layer a removed unit may also give something constant.
    inputs[:, ~keep] = mixed + (rng.normal(size=8 - kept) if bias else 0)
    rows, solved = resolve_next(inputs, keep, kernel, shift, ridge=0.0)
    assert rows.shape == (kept, 5) and rows.dtype == np.float32
    assert (solved is None) == (shift is None)
    wanted = outputs(inputs, kernel, shift)
    np.testing.assert_allclose(outputs(inputs[:, keep], rows, solved), wanted, atol=1e-4)


@settings(max_examples=40)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1e-2, 1.0, 100.0]), st.booleans(),
    st.sampled_from([3, 60]),
)  # fmt: skip
def test_with_all_units_kept_nothing_changes(seed, ridge, bias, samples):
    inputs, kernel, shift = problem(seed, samples=samples, bias=bias)
    rows, solved = resolve_next(inputs, np.ones(8, bool), kernel, shift, ridge=ridge)
    np.testing.assert_allclose(rows, kernel, atol=1e-6)
    if bias:
        np.testing.assert_allclose(solved, shift, atol=1e-6)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_the_repair_never_errs_more_than_the_rows_alone_on_its_samples(seed, bias):
    inputs, kernel, shift = problem(seed, bias=bias)
    keep = np.random.default_rng(seed).permutation(8) < 4
    wanted = outputs(inputs, kernel, shift)
    before = np.square(outputs(inputs[:, keep], kernel[keep], shift) - wanted).sum()
    errors = [before]
    for ridge in (1.0, 1e-2, 0.0):
        rows, solved = resolve_next(inputs, keep, kernel, shift, ridge=ridge)
        errors.append(np.square(outputs(inputs[:, keep], rows, solved) - wanted).sum())
    assert all(b <= a * (1 + 1e-6) + 1e-9 for a, b in itertools.pairwise(errors))
    assert errors[-1] < before


def test_targets_of_another_network_are_aimed_at():
    inputs, kernel, shift = problem(3)
    keep = np.arange(8) < 6
    true = np.random.default_rng(5).normal(size=(6, 5))
    targets = inputs[:, keep] @ true + 2.0
    rows, solved = resolve_next(inputs, keep, kernel, shift, targets=targets, ridge=0.0)
    np.testing.assert_allclose(rows, true, atol=1e-4)
    np.testing.assert_allclose(solved, 2.0, atol=1e-4)


def test_units_that_are_never_active_change_nothing():
    rows, none = resolve_next(
        np.zeros((4, 3)), np.array([True, True, False]), np.ones((3, 2), np.float32)
    )
    assert none is None
    np.testing.assert_array_equal(rows, np.ones((2, 2)))


def test_scores_are_rms_times_outgoing_norm():
    inputs, kernel, _ = problem(0)
    inputs[:, 2] = 0
    found = unit_scores(inputs, kernel)
    by_hand = [
        np.sqrt((inputs[:, i].astype(float) ** 2).mean()) * np.sqrt((kernel[i].astype(float) ** 2).sum())
        for i in range(8)
    ]  # fmt: skip
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)
    assert found.dtype == np.float64 and found[2] == 0


KERNEL = np.ones((3, 2), np.float32)
BAD = {
    "units differ": (dict(inputs=np.ones((4, 2)), kept=np.ones(3, bool)), "shape"),
    "none kept": (dict(inputs=np.ones((4, 3)), kept=np.zeros(3, bool)), "0 kept"),
    "indices": (dict(inputs=np.ones((4, 3)), kept=np.array([0, 1, 1])), "True where a unit stays"),
    "no samples": (dict(inputs=np.ones((0, 3)), kept=np.ones(3, bool)), "1 sample or more"),
    "nan": (dict(inputs=np.full((4, 3), np.nan), kept=np.ones(3, bool)), "NaN"),
    "ridge": (dict(inputs=np.ones((4, 3)), kept=np.ones(3, bool), ridge=-1.0), "ridge"),
    "targets": (
        dict(inputs=np.ones((4, 3)), kept=np.ones(3, bool), targets=np.ones((4, 3))),
        "targets",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_in_one_line(name):
    given, told = BAD[name]
    with pytest.raises(SecateurError, match=told) as error:
        resolve_next(kernel=KERNEL, **given)
    assert "\n" not in str(error.value) and "expected" in str(error.value)
