import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from secateur.arrays.allocation import (
    ALLOCATIONS,
    PerLayer,
    allocation,
    describe,
    erdos_renyi,
    erk,
    global_,
    lamp,
    lamp_scores,
)
from secateur.arrays.masks import unstructured, zeros_count
from secateur.errors import SecateurError

shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6)
VALUES = [-np.inf, 0.0, 0.5, 1.0, 3.0]
tied = hnp.arrays(np.float32, shapes, elements=st.sampled_from(VALUES))
free = hnp.arrays(np.float32, shapes, elements=st.floats(0, 2.0**127, width=32))
equal = hnp.arrays(np.float32, shapes, elements=st.just(1.0))
models = st.dictionaries(
    st.sampled_from([f"layer{n}/kernel" for n in range(6)]), st.one_of(tied, free, equal)
)
sparsities = st.floats(0, 1)
LENET = {"fc1": np.ones((784, 300)), "fc2": np.ones((300, 100)), "fc3": np.ones((100, 10))}


def counts(scores, shares):
    return {path: zeros_count(scores[path].size, share) for path, share in shares.items()}


def alive(scores):
    return {path: int((tensor > -np.inf).sum()) for path, tensor in scores.items()}


# --- every allocation -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALLOCATIONS)
@given(scores=models, sparsity=sparsities)
def test_contract(name, scores, sparsity):
    """Every allocation: a fraction for each tensor, in their order; the scores untouched."""
    before = [tensor.tobytes() for tensor in scores.values()]
    shares = allocation(name)(scores, sparsity)
    assert list(shares) == list(scores)
    assert all(type(share) is float and 0 <= share <= 1 for share in shares.values())
    assert [tensor.tobytes() for tensor in scores.values()] == before
    assert allocation(name)(scores, sparsity) == shares


@pytest.mark.parametrize("name", ["global", "erdos-renyi", "erk", "lamp"])
@given(scores=models, sparsity=sparsities)
def test_totals_are_exact(name, scores, sparsity):
    zeros = sum(counts(scores, allocation(name)(scores, sparsity)).values())
    total = sum(tensor.size for tensor in scores.values())
    wanted = zeros_count(total, sparsity)
    if name == "lamp":  # the largest of each tensor stays
        wanted = min(wanted, total - sum(count > 0 for count in alive(scores).values()))
    elif name != "global":  # the zeros promised already are there anyway
        wanted = max(wanted, total - sum(alive(scores).values()))
    assert zeros == wanted


@pytest.mark.parametrize("name", ALLOCATIONS)
@given(scores=models, first=sparsities, second=sparsities)
def test_more_sparsity_gives_no_tensor_fewer_zeros(name, scores, first, second):
    less, more = (counts(scores, allocation(name)(scores, s)) for s in sorted((first, second)))
    assert all(less[path] <= more[path] for path in scores)


def test_no_tensor_loses_a_weight_when_one_more_may_stay():
    """The Alabama paradox, which giving what is left over to the largest remainder would bring."""
    scores = {"a": np.ones((6, 6)), "b": np.ones((6, 6)), "c": np.ones((2, 2))}
    kept = [{p: -n for p, n in counts(scores, erk(scores, 1 - k / 76)).items()} for k in range(77)]
    assert all(less[p] <= more[p] for less, more in itertools.pairwise(kept) for p in scores)


@pytest.mark.parametrize("name", [*ALLOCATIONS, "per layer"])
def test_what_is_no_fraction_is_refused(name):
    chosen = allocation({"a": 0.5} if name == "per layer" else name)
    with pytest.raises(SecateurError, match="fix: 0.5 for 50 %"):
        chosen({"a": np.ones((2, 2))}, 50)


@pytest.mark.parametrize("name", ["global", "erdos-renyi", "erk", "lamp"])
def test_nan_scores_are_refused(name):
    with pytest.raises(SecateurError, match="1 NaN among"):
        allocation(name)({"a": np.array([[1.0, np.nan]]), "b": np.ones((2, 2))}, 0.5)


# --- global ---------------------------------------------------------------------------------------


@given(models, sparsities)
def test_global_is_one_ranking(scores, sparsity):
    shares = global_(scores, sparsity)
    kept, pruned = [], []
    for path, tensor in scores.items():
        keep = unstructured(tensor, shares[path])
        kept += tensor[keep].tolist()
        pruned += tensor[~keep].tolist()
    assert max(pruned, default=-math.inf) <= min(kept, default=math.inf)


def test_global_by_hand():
    scores = {"a": np.array([[5.0, 1.0], [6.0, 7.0]]), "b": np.array([[2.0, 3.0, 4.0, 0.0]])}
    assert global_(scores, 0.5) == {"a": 0.25, "b": 0.75}


def test_global_ties_go_from_the_first_tensor_on():
    scores = {"b": np.ones((2, 2)), "a": np.ones((2, 2))}
    assert global_(scores, 0.625) == {"b": 1.0, "a": 0.25}


def test_global_takes_promised_zeros_first():
    scores = {"a": np.array([[0.0, 0.0]]), "b": np.array([[-np.inf, -np.inf]])}
    assert global_(scores, 0.5) == {"a": 0.0, "b": 1.0}


# --- Erdos-Renyi ----------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [erdos_renyi, erk])
def test_lenet_300_100_at_90_percent(chosen):
    """By hand: 26,620 of 266,200 stay; in + out = 1084, 400, 110 shares of them.

    fc3 would get 26,620 * 110 / 1594 = 1837 of its 1,000: it stays dense. The others divide 25,620
    as 1084 : 400, that is 18,714.3 and 6,905.7.
    """
    zeros = counts(LENET, chosen(LENET, 0.9))
    assert zeros == {"fc1": 235_200 - 18_714, "fc2": 30_000 - 6_906, "fc3": 0}


def test_lenet_300_100_without_saturation():
    """At 99 %: 2,662 stay, 1810.3 : 668.0 : 183.7, and the one left over goes to the .7."""
    kept = {p: LENET[p].size - n for p, n in counts(LENET, erk(LENET, 0.99)).items()}
    assert kept == {"fc1": 1810, "fc2": 668, "fc3": 184}


def test_only_erk_counts_the_kernel():
    """By hand, 1,000 of 10,000 stay.

    Sizes 9 * 25 * 40 = 9,000 and 25 * 40 = 1,000. Erdos-Renyi: density 65 / 1,000 for both, so 900
    and 100. ERK: 9,000 * 71 / 9,000 = 71 against 1,000 * 67 / 1,000 = 67: 514.5 and 485.5.
    """
    scores = {"conv": np.ones((3, 3, 25, 40)), "point": np.ones((1, 1, 25, 40))}
    assert counts(scores, erdos_renyi(scores, 0.9)) == {"conv": 8_100, "point": 900}
    assert counts(scores, erk(scores, 0.9)) == {"conv": 9_000 - 514, "point": 1_000 - 486}


def test_saturation_is_repeated():
    """By hand: 60 of 132 stay. Shares 22 : 8 : 4 of 60 give c 7.06 of its 4: dense.

    Then 22 : 8 of 56 give b 14.9 of its 16: not dense; a gets 41.07.
    With 90: c 10.6 of 4 and b 21.2 of 16 are dense at once; a gets 70. In between, 64:
    c is dense first, then b, 60 * 8 / 30 = 16.0; at 65 b would pass 16 only in the second round.
    """
    scores = {"a": np.ones((8, 14)), "b": np.ones((4, 4)), "c": np.ones((2, 2))}
    kept = {
        keep: [s.size - counts(scores, erk(scores, 1 - keep / 132))[p] for p, s in scores.items()]
        for keep in (60, 65, 90)
    }
    assert kept == {60: [41, 15, 4], 65: [45, 16, 4], 90: [70, 16, 4]}


def test_a_promised_zero_is_not_given_back():
    """b may keep only its 2 live weights, whatever its share; a keeps the rest."""
    dead = np.full((4, 4), -np.inf)
    dead[0, :2] = 1.0
    scores = {"a": np.ones((8, 8)), "b": dead}
    assert counts(scores, erk(scores, 0.5)) == {"a": 64 - 38, "b": 14}
    assert counts(scores, erk(scores, 0.0)) == {"a": 0, "b": 14}


def test_groups_of_whole_units_count_as_outputs():
    scores = {"a": np.ones(8), "b": np.ones(4)}  # (in, out) = (1, 8), (1, 4): shares 9 : 5
    assert counts(scores, erdos_renyi(scores, 0.5)) == {"a": 4, "b": 2}


# --- LAMP -----------------------------------------------------------------------------------------


def test_lamp_scores_by_hand():
    """Squares 1, 4, 9, 16 from the smallest: 1 / 30, 4 / 29, 9 / 25, 16 / 16."""
    scores = lamp_scores(np.array([[3.0, 1.0], [4.0, 2.0]]))
    assert np.allclose(scores, [[9 / 25, 1 / 30], [1.0, 4 / 29]])


def test_lamp_scores_of_equal_values_and_zeros():
    assert np.allclose(lamp_scores(np.full(4, 7.0)), [1 / 4, 1 / 3, 1 / 2, 1.0])
    assert np.allclose(lamp_scores(np.full(99, 7.0)), 1 / np.arange(99, 0, -1))
    assert lamp_scores(np.zeros(3)).tolist() == [0.0, 0.0, 1.0]
    assert lamp_scores(np.array([-np.inf, 2.0])).tolist() == [-np.inf, 1.0]
    assert lamp_scores(np.array([np.inf, 2.0, 1e300])).tolist() == [1.0, 0.0, pytest.approx(0)]


@given(st.one_of(tied, free), st.floats(1e-3, 1e3))
def test_lamp_scores_keep_the_order_and_forget_the_scale(scores, scale):
    first = lamp_scores(scores)
    order = np.argsort(scores, axis=None, kind="stable")
    ranked = first.ravel()[order].tolist()
    assert ranked == sorted(ranked)
    assert max(ranked, default=1.0) in (1.0, -math.inf)
    assert np.allclose(first, lamp_scores(scores.astype(np.float64) * scale), atol=1e-9)


def test_lamp_by_hand():
    """a scores 1/30, 4/29, 9/25, 1 and b, whatever its scale, 1/4, 1/3, 1/2, 1."""
    scores = {"a": np.array([[1.0, 2.0, 3.0, 4.0]]), "b": np.full((1, 4), 1000.0)}
    sparse = {count: counts(scores, lamp(scores, count / 8)) for count in range(9)}
    a = {count: zeros["a"] for count, zeros in sparse.items()}
    assert a == {0: 0, 1: 1, 2: 2, 3: 2, 4: 2, 5: 3, 6: 3, 7: 3, 8: 3}
    assert sparse[4] == {"a": 2, "b": 2}


@given(models)
def test_lamp_leaves_every_tensor_its_largest(scores):
    for path, share in lamp(scores, 1.0).items():
        dead = scores[path].size - alive(scores)[path]
        assert zeros_count(scores[path].size, share) == max(dead, scores[path].size - 1)


def test_lamp_refuses_negative_scores():
    with pytest.raises(SecateurError, match=r"-2 received for allocation lamp.*0 or more; fix"):
        lamp({"a": np.array([[1.0, -2.0]])}, 0.5)


# --- by name and by mapping -----------------------------------------------------------------------


TABLE = {
    "conv1/kernel": np.ones((3, 3, 4, 4)),
    "conv2/kernel": np.ones((3, 3, 4, 4)),
    "body/conv3/kernel": np.ones((3, 3, 4, 4)),
    "head/kernel": np.ones((4, 4)),
}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [0.8, 0.8, 0.8, 0.8]),
        ({"conv1": 0.1}, [0.1, 0.8, 0.8, 0.8]),
        ({"conv1/kernel": 0.1, "body/conv3": 0}, [0.1, 0.8, 0, 0.8]),
        ({"conv*": 0.1}, [0.1, 0.1, 0.1, 0.8]),
        ({"conv2": 0.3, "conv*": 0.1, "*": 0.2}, [0.1, 0.3, 0.1, 0.2]),
        ({"*": 0.2, "conv2": 0.3}, [0.2, 0.2, 0.2, 0.2]),
        ({"conv3": 0.4}, [0.8, 0.8, 0.4, 0.8]),
    ],
)
def test_per_layer(given, expected):
    shares = allocation(given)(TABLE, 0.8)
    assert list(shares) == list(TABLE)
    assert list(shares.values()) == expected


def test_a_name_that_matches_nothing_is_refused_with_the_nearest():
    with pytest.raises(SecateurError, match=r"'haed' received .*did you mean 'head'"):
        allocation({"conv*": 0.5, "haed": 0.5})(TABLE, 0.8)


@pytest.mark.parametrize("value", [50, -0.1, 1.0, math.nan, "0.5", True, None])
def test_a_sparsity_of_a_layer_that_is_no_fraction_is_refused(value):
    with pytest.raises(SecateurError, match="received for 'conv1', expected a fraction.*fix: 0.5"):
        allocation({"conv1": value})


def test_equal_mappings_are_equal():
    assert allocation({"a": 0.5}) == allocation({"a": 0.5}) == PerLayer((("a", 0.5),))
    assert allocation({"a": 0.5}) != allocation({"a": 0.6})
    assert allocation(allocation({"a": 0.5})) == allocation({"a": 0.5})


def test_a_function_is_its_own_allocation():
    def mine(scores, sparsity):
        return dict.fromkeys(scores, 0.1)

    assert allocation(mine) is mine
    assert describe(mine) == "mine"


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_describe_names_the_built_in(name):
    assert describe(name) == describe(allocation(name)) == name


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(SecateurError, match=r"unknown allocation 'globl'.*did you mean 'global'"):
        allocation("globl")
    with pytest.raises(SecateurError, match="unknown allocation 0.5, expected a name, a mapping"):
        allocation(0.5)  # pyright: ignore[reportArgumentType]
