"""Intervals and differences: right where they can be worked out by hand, absent where they cannot be."""

import base64
import zlib

import numpy as np
import pytest
from tests.reporting.sweep_example import example_points, with_accuracy

from secateur.errors import SecateurError
from secateur.reporting.sweep_statistics import gap, interval, right


def point(level, bits=None, n=1000):
    test = {"accuracy": level, "n": n}
    if bits is not None:
        packed = base64.b64encode(zlib.compress(np.packbits(bits).tobytes())).decode()
        test |= {"right": packed, "n": len(bits), "accuracy": float(np.mean(bits))}
    return {"test": test}


def test_an_interval_is_students():
    """Mean 0.98, standard deviation 0.01 of three: half the width is 4.3027 * 0.01 / sqrt(3)."""
    found = interval([0.97, 0.98, 0.99])
    assert found.mean == pytest.approx(0.98) and found.n == 3
    assert found.high - found.mean == pytest.approx(4.302653 * 0.01 / 3**0.5, rel=1e-6)


def test_one_seed_has_a_mean_and_no_interval_and_none_has_nothing():
    assert interval([0.5]).low is None and interval([0.5]).mean == 0.5
    assert interval([]) is None


def test_a_gap_without_bits_is_paired_over_seeds():
    """Differences 1 and 3 points: mean 2, half the width 12.706 * sqrt(2) / sqrt(2)."""
    ours = {0: point(0.91), 1: point(0.93)}
    theirs = {0: point(0.90), 1: point(0.90), 2: point(0.1)}
    found = gap(ours, theirs)
    assert found.mean == pytest.approx(2.0) and found.over == "seeds" and not found.clear
    assert found.high == pytest.approx(2.0 + 12.7062, rel=1e-4)


def test_one_seed_gives_a_gap_only_with_the_images():
    bits = np.arange(1000) % 10 > 0
    worse = bits & (np.arange(1000) % 10 > 1)
    assert gap({0: point(0.9)}, {0: point(0.8)}) is None
    found = gap({0: point(0, worse)}, {0: point(0, bits)})
    assert found.over == "images" and found.mean == pytest.approx(-10) and found.high < 0


def test_other_seeds_or_another_number_of_images_are_no_comparison():
    assert gap({0: point(0.9), 1: point(0.9)}, {2: point(0.8), 3: point(0.8)}) is None
    few = {seed: point(0.8, n=10) for seed in (0, 1)}
    assert gap({0: point(0.9), 1: point(0.91)}, few) is None


def test_equal_steps_on_two_seeds_are_not_taken_for_certainty():
    ours = {0: point(0.5), 1: point(0.75)}
    theirs = {0: point(0.25), 1: point(0.5)}
    assert gap(ours, theirs) is None


def test_images_that_agree_make_a_small_gap_clear():
    """The same 0.4 points with and without the bits: only the pairs show that it is no chance."""
    points = example_points(3)
    dense = {p["seed"]: p for p in points if p["curve"] == "dense"}
    worse = {s: with_accuracy(p, p["test"]["accuracy"] - 0.012) for s, p in dense.items()}
    assert gap(worse, dense).clear and gap(worse, dense).mean == pytest.approx(-1.2, abs=0.06)


def test_bits_that_contradict_the_accuracy_are_refused():
    damaged = point(0, np.ones(100, bool))
    damaged["test"]["accuracy"] = 0.5
    with pytest.raises(SecateurError, match="100 right of 100"):
        right(damaged)
    damaged["test"]["right"] = "no base64"
    with pytest.raises(SecateurError, match="readable"):
        right(damaged)


def test_a_last_byte_that_is_not_full_counts_no_padding():
    bits = np.arange(13) % 2 == 0
    assert np.array_equal(right(point(0, bits)), bits)
