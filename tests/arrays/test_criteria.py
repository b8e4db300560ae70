import functools

import ml_dtypes
import numpy as np
import pytest

from secateur.arrays.criteria import (
    CRITERIA,
    EVIDENCE,
    FROM_DATA,
    criterion,
    describe,
    l1,
    l2,
    needs,
    score,
    taylor,
)
from secateur.errors import SecateurError


def rng(seed=0):
    return np.random.default_rng(seed)


def evidence(shape, dtype=np.float32):
    return {
        "rng": rng(),
        "gradient": rng(2).standard_normal(shape).astype(dtype),
        "squared_gradient": rng(3).random(shape).astype(dtype),
        "input_norm": rng(4).random((1, 1, shape[-2], 1)).astype(dtype),
    }


# --- every criterion ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("name", CRITERIA)
def test_contract(name, dtype):
    """Every criterion: one number >= 0 a weight, the weight untouched, decided by the seed."""
    weight = rng(1).standard_normal((3, 3, 2, 4)).astype(dtype)
    before = weight.tobytes()
    scores = score(criterion(name), weight, **evidence(weight.shape, dtype))
    assert scores.shape == weight.shape
    assert scores.dtype in (np.float32, np.float64)
    assert (scores >= 0).all()
    assert np.isfinite(scores).all()
    assert weight.tobytes() == before
    again = score(criterion(name), weight, **evidence(weight.shape, dtype))
    assert np.array_equal(scores, again)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("l1", {}, [[3.0, 0.5], [0.0, 0.25]]),
        ("l2", {}, [[9.0, 0.25], [0.0, 0.0625]]),
        ("snip", {"gradient": [[1.0, -2.0], [5.0, 4.0]]}, [[3.0, 1.0], [0.0, 1.0]]),
        ("taylor", {"squared_gradient": [[1.0, 4.0], [25.0, 16.0]]}, [[9.0, 1.0], [0.0, 1.0]]),
        ("wanda", {"input_norm": [[2.0], [8.0]]}, [[6.0, 1.0], [0.0, 2.0]]),
    ],
)
def test_scores_by_hand(name, given, expected):
    weight = np.array([[-3.0, 0.5], [0.0, -0.25]], np.float32)
    given = {key: np.array(value, np.float32) for key, value in given.items()}
    assert score(criterion(name), weight, **given).tolist() == expected


def test_wanda_prefers_a_small_weight_of_a_loud_input():
    """What the paper adds to magnitudes: 1 * 8 counts for more than 4 * 1."""
    weight, norm = np.array([[4.0], [0.0], [1.0], [-1.0]]), np.array([[1.0], [2.0], [8.0], [3.0]])
    scores = score(criterion("wanda"), weight, input_norm=norm)
    assert scores.ravel().tolist() == [4.0, 0.0, 8.0, 3.0]
    assert np.argmax(scores) != np.argmax(score(criterion("l1"), weight))


def test_random_follows_the_seed_and_not_the_weight():
    first, second = (score(criterion("random"), np.full(1000, v), rng=rng()) for v in (0.0, 9.0))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, score(criterion("random"), np.zeros(1000), rng=rng(1)))
    assert len(np.unique(first)) > 990
    assert abs(first.mean() - 0.5) < 0.05


def test_squares_neither_tie_nor_vanish():
    """Float32 squares would: those of neighbours round to one value, those of 1e-30 to zero."""
    near = np.array([1.0, np.nextafter(np.float32(1), np.float32(2)), 1e-30, 1e-31], np.float32)
    assert np.argsort(l2(near), kind="stable").tolist() == [3, 2, 0, 1]
    assert len(set(l2(near).tolist())) == 4
    assert (taylor(near, np.full(4, 1e-40, np.float32)) > 0).all()


def test_low_precision_is_scored_in_float32():
    weight = np.array([300.0, 2.0], np.float16)
    assert score(criterion("snip"), weight, gradient=weight).tolist() == [90_000.0, 4.0]
    assert l1(np.array([-128, 3], np.int8)).tolist() == [128.0, 3.0]


# --- what a criterion asks for --------------------------------------------------------------------


class Asks:
    def __call__(self, weight, input_norm):
        return weight * input_norm


def mixed(weight, gradient, power=2, *rest, rng, **options):
    return np.abs(gradient) ** power


def by_place(weight, gradient, /):
    return weight + gradient


@pytest.mark.parametrize(
    ("asking", "asked"),
    [
        ("l1", {"weight"}),
        ("l2", {"weight"}),
        ("random", {"weight", "rng"}),
        ("snip", {"weight", "gradient"}),
        ("taylor", {"weight", "squared_gradient"}),
        ("wanda", {"weight", "input_norm"}),
        (lambda weight: weight, {"weight"}),
        (lambda gradient=None: gradient, {"gradient"}),
        (Asks(), {"weight", "input_norm"}),
        (mixed, {"weight", "gradient", "rng"}),
        (by_place, {"weight", "gradient"}),
        (functools.partial(mixed, rng=None), {"weight", "gradient"}),
        (functools.partial(by_place, 1), {"gradient"}),
    ],
)
def test_needs(asking, asked):
    assert needs(criterion(asking)) == asked
    given = {name: np.full(2, 2.0) for name in EVIDENCE if name != "weight"}
    assert score(criterion(asking), np.ones(2), **{**given, "rng": rng()}).shape == (2,)


def test_a_criterion_receives_just_what_it_asks_for():
    seen = []

    def mine(weight, input_norm):
        seen.append((weight.tolist(), input_norm.tolist()))
        return weight

    given = {name: np.full(2, 3.0) for name in FROM_DATA}
    score(mine, np.ones(2), rng=None, **given)
    assert seen == [([1.0, 1.0], [3.0, 3.0])]


def test_a_function_is_its_own_criterion():
    def mine(weight, rng):
        return weight

    assert criterion(mine) is mine
    assert describe(mine) == "mine"
    assert describe(functools.partial(mine)) == "partial"


@pytest.mark.parametrize("name", CRITERIA)
def test_describe_names_the_built_in(name):
    assert describe(criterion(name)) == describe(name) == name


@pytest.mark.parametrize("name", sorted(FROM_DATA))
@pytest.mark.parametrize("given", ["absent", "none"])
def test_missing_evidence_is_named_with_how_to_give_it(name, given):
    asking = {"gradient": "snip", "squared_gradient": "taylor", "input_norm": "wanda"}[name]
    without = {} if given == "absent" else {name: None}
    message = rf"no {name} received for criterion {asking}, expected .*; fix: pass data=\(x, y\)"
    with pytest.raises(SecateurError, match=message):
        score(criterion(asking), np.ones(2), **without)


def test_a_missing_generator_is_named():
    with pytest.raises(SecateurError, match=r"no rng received for criterion random.*fix: pass rng"):
        score(criterion("random"), np.ones(2))


def test_an_unknown_parameter_is_refused_with_the_known_ones():
    message = r"criterion <lambda> asks for 'w', expected .* weight, rng, gradient.*fix: rename it"
    for use in (criterion, needs):
        with pytest.raises(SecateurError, match=message):
            use(lambda w, rng: w)


def test_a_callable_without_a_signature_is_refused():
    with pytest.raises(SecateurError, match="shows no signature.*fix: wrap it"):
        criterion(dict)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(SecateurError, match=r"unknown criterion 'randon'.*did you mean 'random'"):
        criterion("randon")
    with pytest.raises(SecateurError, match=r"unknown criterion \['l1'\]"):
        criterion(["l1"])  # pyright: ignore[reportArgumentType]
