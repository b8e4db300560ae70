import numpy as np
import pytest

from secateur.arrays.criteria import CRITERIA, criterion
from secateur.errors import SecateurError


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", CRITERIA)
def test_contract(name):
    """Every criterion: one number a weight, the weight untouched, decided by the seed."""
    weight = rng(1).standard_normal((3, 3, 2, 4)).astype(np.float32)
    before = weight.copy()
    scores = criterion(name)(weight, rng())
    assert scores.shape == weight.shape
    assert np.isfinite(scores).all()
    assert np.array_equal(weight, before)
    assert np.array_equal(scores, criterion(name)(weight, rng()))


def test_l1_is_the_magnitude():
    weight = np.array([[-3.0, 0.5], [0.0, -0.25]], np.float32)
    scores = criterion("l1")(weight, rng())
    assert scores.tolist() == [[3.0, 0.5], [0.0, 0.25]]
    assert scores.dtype == np.float32


def test_random_follows_the_seed_and_not_the_weight():
    first, second = (criterion("random")(np.full(1000, v), rng()) for v in (0.0, 9.0))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, criterion("random")(np.zeros(1000), rng(1)))
    assert len(np.unique(first)) > 990
    assert abs(first.mean() - 0.5) < 0.05


def test_a_function_is_its_own_criterion():
    def mine(weight, rng):
        return weight

    assert criterion(mine) is mine


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(SecateurError, match=r"unknown criterion 'randon'.*did you mean 'random'"):
        criterion("randon")
