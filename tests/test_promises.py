import base64
import json
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from secateur.errors import SecateurError
from secateur.promises import Promise, check, require

shapes = hnp.array_shapes(min_dims=1, max_dims=4, max_side=5)
masks = hnp.arrays(bool, shapes)


def zeros(positions, path="dense/kernel"):
    positions = np.asarray(positions, bool)
    return Promise(path, "zeros", positions, positions.shape)


def kept(promise, dtype: type = np.float32):
    """Weights that keep the promise."""
    return np.where(promise.value, 0, -1).astype(dtype)


# --- zeros in floats: exactly those, and +0.0 -----------------------------------------------------


@given(masks)
def test_kept(mask):
    promise = zeros(mask)
    finding = check(promise, kept(promise))
    assert finding.ok
    assert (finding.broken, finding.extra_zeros) == (0, 0)


@given(masks, st.data())
def test_every_broken_position_is_found(mask, data):
    promise = zeros(mask)
    broken = data.draw(hnp.arrays(bool, mask.shape))
    value = data.draw(st.sampled_from([1e-30, -3.0, np.nan, np.inf, -0.0]))
    weight = kept(promise)
    weight[mask & broken] = value
    finding = check(promise, weight)
    assert finding.broken == np.count_nonzero(mask & broken)
    assert finding.ok == (finding.broken == 0)
    assert finding.extra_zeros == 0


@given(masks, st.data())
def test_every_zero_that_was_not_promised_is_found(mask, data):
    promise = zeros(mask)
    extra = data.draw(hnp.arrays(bool, mask.shape)) & ~mask
    weight = kept(promise)
    weight[extra] = 0
    finding = check(promise, weight)
    assert finding.extra_zeros == np.count_nonzero(extra)
    assert finding.ok == (finding.extra_zeros == 0)
    assert finding.broken == 0


def test_details_name_each_fault_and_its_first_place():
    promise = zeros([[True, True], [True, False]])
    detail = check(promise, np.array([[0.0, 0.5], [-0.0, 0.0]])).detail
    assert "1 of 3 promised zeros not zero, first at (0, 1)" in detail
    assert "1 of 3 promised zeros -0.0, first at (1, 0)" in detail
    assert "1 zeros that were not promised, first at (1, 1)" in detail


# --- zeros in codes: at least those ---------------------------------------------------------------


@given(masks, st.data())
def test_codes_may_have_more_zeros_but_not_fewer(mask, data):
    promise = zeros(mask)
    changed = data.draw(hnp.arrays(bool, mask.shape))
    codes = kept(promise, np.int8)
    codes[changed] = np.where(mask[changed], 3, 0)
    finding = check(promise, codes, coded=True)
    assert finding.extra_zeros == np.count_nonzero(changed & ~mask)
    assert finding.broken == np.count_nonzero(changed & mask)
    assert finding.ok == (finding.broken == 0)


def test_more_zeros_in_codes_are_reported():
    finding = check(zeros([True, False, False]), np.array([0, 0, 5], np.int8), coded=True)
    assert finding.detail == "1 zeros in place, 1 more rounded to zero"


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("coded", [False, True])
def test_another_shape_breaks_any_promise(coded):
    for promise in (zeros([[True, False]]), Promise("k", "shape", (1, 2), (1, 2))):
        finding = check(promise, np.zeros((2, 1)), coded=coded)
        assert not finding.ok
        assert finding.detail == "shape (2, 1) found, (1, 2) promised"


def test_a_shape_is_kept_whatever_the_values():
    assert check(Promise("k", "shape", (2,), (2,)), np.array([np.nan, 0.0])).ok


# --- records --------------------------------------------------------------------------------------


@given(masks)
def test_record_round_trip_through_json(mask):
    promise = zeros(mask)
    record = json.loads(json.dumps(promise.to_record()))
    back = Promise.from_record(record)
    assert (back.path, back.kind, back.shape) == (promise.path, promise.kind, promise.shape)
    assert np.array_equal(back.value, mask)
    assert (record["count"], record["size"]) == (np.count_nonzero(mask), mask.size)


def test_a_shape_goes_through_its_record():
    promise = Promise("conv2d/kernel", "shape", (3, 3, 1, 12), (3, 3, 1, 12))
    back = Promise.from_record(json.loads(json.dumps(promise.to_record())))
    assert back.value == back.shape == (3, 3, 1, 12)
    assert back.describe() == "shape (3, 3, 1, 12) of conv2d/kernel"


def test_a_record_of_a_large_mask_is_small():
    mask = np.zeros((2028, 10), bool)
    mask[: 2028 * 8 // 10] = True
    assert len(zeros(mask).to_record()["positions"]) < 200


@pytest.mark.parametrize(
    "change",
    [
        {"count": 3},
        {"size": 5},
        {"shape": [2, 3]},
        {"shape": [64]},
        {"shape": None},
        {"kind": "sparkle"},
        {"positions": "not base64!"},
        {"positions": base64.b64encode(b"not zlib").decode()},
        {"positions": base64.b64encode(zlib.compress(b"far too long")).decode()},
        {"positions": 5},
    ],
    ids=str,
)
def test_a_damaged_record_is_refused(change):
    record = zeros([[True, False], [True, False]]).to_record() | change
    with pytest.raises(SecateurError, match=r"damaged record of the promise for dense/kernel"):
        Promise.from_record(record)


def test_a_forged_record_does_not_fill_the_memory():
    bomb = base64.b64encode(zlib.compress(bytes(10**8), 9)).decode()
    with pytest.raises(SecateurError, match="2 bytes received"):
        Promise.from_record(zeros([True, False]).to_record() | {"positions": bomb})


@pytest.mark.parametrize("record", [{}, [], None, {"path": "k", "kind": "zeros"}], ids=str)
def test_what_is_no_record_is_refused(record):
    with pytest.raises(SecateurError, match="damaged record"):
        Promise.from_record(record)


# --- making and requiring -------------------------------------------------------------------------


def test_describe():
    mask = np.zeros(20_280, bool)
    mask[:16_224] = True
    assert zeros(mask).describe() == "zeros at 16,224 of 20,280 weights of dense/kernel"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("zeros", np.zeros((2, 3))),
        ("zeros", np.zeros((3, 2), bool)),
        ("shape", (3, 2)),
        ("codes", 8),
    ],
    ids=str,
)
def test_a_promise_that_cannot_be_checked_is_refused(kind, value):
    with pytest.raises(SecateurError, match=r"for dense/kernel received.*fix: "):
        Promise("dense/kernel", kind, value, (2, 3))


def test_require_names_every_broken_promise_in_one_line():
    good, bad = zeros([True], "a/kernel"), zeros([True], "b/kernel")
    require([])
    require([check(good, np.zeros(1))])
    findings = [check(good, np.zeros(1)), check(bad, np.ones(1)), check(good, np.ones(2))]
    with pytest.raises(SecateurError) as broken:
        require(findings)
    message = str(broken.value)
    assert "2 broken promises" in message
    assert "zeros at 1 of 1 weights of b/kernel: 1 of 1 promised zeros not zero" in message
    assert "a/kernel: shape (2,) found, (1,) promised" in message
    assert "\n" not in message


# --- bits -----------------------------------------------------------------------------------------


def test_bits_are_at_most_those_promised():
    promise = Promise("k", "bits", 4, (2, 2))
    codes = np.array([[-7, 7], [0, 3]], np.int8)
    assert check(promise, codes, coded=True, bits=4).ok
    assert check(Promise("k", "bits", 8, (2, 2)), codes, coded=True, bits=4).ok
    broken = check(promise, codes, coded=True, bits=8)
    assert not broken.ok and broken.broken == 4 and broken.detail == "8 bits a weight found"
    assert not check(promise, codes[:1], coded=True, bits=4).ok  # another shape
    assert not check(promise, codes * 18, coded=True, bits=4).ok  # codes that 4 bits cannot hold
    with pytest.raises(SecateurError, match=r"at most 4 bits .*leave these weights out of the sel"):
        require([broken])


def test_floats_by_nature_are_skipped_and_it_is_said():
    finding = check(Promise("k", "bits", 8, (2,)), np.ones(2, np.float32))
    assert finding.ok and finding.detail.startswith("skipped")


def test_a_promise_of_bits_survives_its_record():
    promise = Promise("k", "bits", 4, (2, 3))
    record = json.loads(json.dumps(promise.to_record()))
    read = Promise.from_record(record)
    assert (read.path, read.kind, read.value, read.shape) == ("k", "bits", 4, (2, 3))
    assert (read.count, read.size) == (0, 6)
    with pytest.raises(SecateurError, match="damaged record"):
        Promise.from_record({**record, "bits": "four"})


@pytest.mark.parametrize("value", [0, -4, 4.0, True, None, "4"])
def test_bits_are_a_whole_number(value):
    with pytest.raises(SecateurError, match="expected a whole number of bits"):
        Promise("k", "bits", value, (2,))
