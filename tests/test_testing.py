"""Each check passes what is right, and names each thing that can be wrong."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from secateur.arrays.allocation import ALLOCATIONS, global_
from secateur.arrays.criteria import CRITERIA
from secateur.arrays.masks import unstructured, zeros_count
from secateur.arrays.patterns import Block
from secateur.arrays.schedules import SHAPES, Schedule
from secateur.errors import SecateurError
from secateur.testing import check_allocation, check_criterion, check_pattern, check_schedule

# --- what is right passes -------------------------------------------------------------------------


@pytest.mark.parametrize("name", CRITERIA)
def test_the_criteria_of_the_house(name):
    check_criterion(name)


@pytest.mark.parametrize(
    "name",
    ["unstructured", "units", "2:4", "1:4", "3:8", "block 16x1", "block 3x3x1x1 max", "block 3x2"],
)
def test_the_patterns_of_the_house(name):
    check_pattern(name)


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_the_allocations_of_the_house(name):
    check_allocation(name)


@pytest.mark.parametrize("name", SHAPES)
def test_the_schedules_of_the_house(name):
    check_schedule(name, from_initial=name in ("polynomial", "cosine"))
    check_schedule(Schedule(shape=name, power=1.0), from_initial=name in ("polynomial", "cosine"))


def test_what_the_user_says_about_the_part_is_believed():
    check_criterion(lambda weight: weight.mean(axis=(0, 1), keepdims=True) + 0 * weight,
                    shapes=[(3, 3, 4, 6)])  # fmt: skip
    check_pattern(half, zeros=lambda shape, sparsity: zeros_count(np.prod(shape), sparsity / 2))
    check_pattern(half, exact=False)
    check_pattern(shuffled, grows=False)
    check_pattern(pairs, shapes=[(8, 3), (4, 2)], exact=False)
    check_allocation(lambda scores, sparsity: dict.fromkeys(scores, sparsity / 2), total=False)
    check_allocation(seesaw, grows=False, total=False)
    check_schedule(lambda progress: 0.3 + 0.4 * (1 - progress), from_initial=False,
                   to_final=False, rises=False)  # fmt: skip


# --- what is wrong is named -----------------------------------------------------------------------

counter = itertools.count()


def half(scores, sparsity):
    return unstructured(scores, sparsity / 2)


def shuffled(scores, sparsity):
    """The right count, promised zeros first, but each sparsity ranks anew."""
    noise = np.random.default_rng(int(1000 * sparsity)).random(scores.shape)
    return unstructured(np.where(np.isneginf(scores), -np.inf, noise), sparsity)


def pairs(scores, sparsity):
    """Two neighbouring inputs live or die together; made for even numbers of inputs."""
    summed = scores.reshape(scores.shape[0] // 2, 2, -1).sum(axis=1)
    return np.repeat(unstructured(summed, sparsity), 2, axis=0)


def seesaw(scores, sparsity):
    return {path: abs(sparsity - i / 4) for i, path in enumerate(scores)}


def changes_weight(weight):
    weight *= 2
    return abs(weight)


def changes_gradient(weight, gradient):
    gradient[...] = 0
    return abs(weight)


def changes_scores(scores, sparsity):
    keep = unstructured(scores, sparsity)
    scores[~keep] = 0
    return keep


def changes_tensors(scores, sparsity):
    for tensor in scores.values():
        tensor[...] = 1
    return dict.fromkeys(scores, sparsity)


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (lambda weight, momentum: weight, r"asks for 'momentum'"),
        (lambda: 1.0, r"returned shape \(\) for random weights of shape \(7,\)"),
        (lambda weight: weight.sum(-1, keepdims=True), r"returned shape \(1,\)"),
        (lambda weight: np.linalg.norm(weight, axis=(-2, -1)), r"failed \(AxisError"),
        (lambda weight: weight.astype(str), r"returned <U\d+"),
        (lambda weight: 1 / np.where(weight == 0, np.nan, weight), r"NaN or infinity for all 0 "),
        # a sum of squares that float16 cannot hold: right in float32, so all the ranks pass there
        (lambda weight: np.square(weight), r"NaN or infinity for all 300 .*float16"),
        (lambda weight: (weight - weight.mean()) / weight.std(), r"NaN or infinity for all "),
        (changes_weight, r"changed its arguments"),
        (changes_gradient, r"changed its arguments"),
        (lambda weight: weight + next(counter), r"two results .*`rng`"),
        (lambda weight: np.random.default_rng().random(weight.shape), r"two results .*`rng`"),
    ],
)
def test_a_wrong_criterion_is_refused(criterion, message):
    with pytest.raises(SecateurError, match=message):
        check_criterion(criterion)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (lambda scores, sparsity: unstructured(scores, sparsity).astype(int), r"returned int64"),
        (lambda scores, sparsity: unstructured(scores, sparsity).ravel(), r"bool of shape \(128,\)"),
        (lambda scores, sparsity: ~unstructured(scores, sparsity), r"which pruned 128 weights"),
        # by value: right for distinct scores, wrong as soon as there are ties
        (
            lambda scores, sparsity: (
                np.ones(scores.shape, bool)
                if sparsity == 0
                else scores > np.sort(scores, axis=None)[zeros_count(scores.size, sparsity) - 1]
            ),
            r"pruned 128 weights for equal scores",
        ),
        (
            lambda scores, sparsity: unstructured(scores, np.floor(4 * sparsity) / 4),
            r"pruned 0 weights for random scores of shape \(16, 8\) at sparsity 0.1",
        ),
        (shuffled, r"keeps at sparsity .* what it pruned at less"),
        (lambda scores, sparsity: unstructured(scores + next(counter) % 2 *
            np.arange(scores.size).reshape(scores.shape), sparsity), r"two masks"),
        (lambda scores, sparsity: unstructured(abs(scores), sparsity), r"keeps scores of -inf"),
        (changes_scores, r"changed the random scores"),
        (lambda scores: scores, r"failed \(TypeError"),
    ],
)  # fmt: skip
def test_a_wrong_pattern_is_refused(pattern, message):
    with pytest.raises(SecateurError, match=message):
        check_pattern(pattern)


def test_what_a_part_raises_is_told_with_what_it_was_given():
    with pytest.raises(SecateurError, match=r"failed \(ValueError: .* shape \(5, 3\)") as caught:
        check_pattern(pairs, shapes=[(5, 3)])
    assert isinstance(caught.value.__cause__, ValueError)


class SplitBlock(Block):
    """Prunes half of each block that it should prune whole."""

    def __call__(self, scores, sparsity):
        keep = super().__call__(scores, sparsity)
        keep[..., ::2, :] = True
        return keep


def test_groups_count_where_they_are_wholly_pruned():
    with pytest.raises(SecateurError, match=r"pruned 0 groups .* expected"):
        check_pattern(SplitBlock((4, 1)))


def test_a_pattern_that_fits_no_shape_is_not_passed_unseen():
    with pytest.raises(SecateurError, match="none of which fits"):
        check_pattern("2:4", shapes=[(3, 5)])


@pytest.mark.parametrize(
    ("allocation", "message"),
    [
        (lambda scores, sparsity: sparsity, r"returned float"),
        (lambda scores, sparsity: {}, r"returned nothing"),
        (lambda scores, sparsity: dict.fromkeys(list(scores)[1:], sparsity), r"every path"),
        (lambda scores, sparsity: {**dict.fromkeys(scores, sparsity), "x": 0.5}, r"no other"),
        (lambda scores, sparsity: dict.fromkeys(scores, 1.5 * sparsity), r"1.35|zeros of 828"),
        (lambda scores, sparsity: dict.fromkeys(scores, -0.0 - sparsity), r"returned -0.1"),
        (lambda scores, sparsity: dict.fromkeys(scores, None), r"returned None"),
        (lambda scores, sparsity: dict.fromkeys(scores, 0.9 * sparsity), r"zeros of \d+ for 3 "),
        (seesaw, r"zeros of"),
        (changes_tensors, r"changed the scores"),
        (
            lambda scores, sparsity: dict.fromkeys(scores, sparsity + 1e-4 * (next(counter) % 2)),
            r"two results",
        ),
        (lambda scores: scores, r"failed \(TypeError"),
    ],
)
def test_a_wrong_allocation_is_refused(allocation, message):
    with pytest.raises(SecateurError, match=message):
        check_allocation(allocation)


def test_an_allocation_that_opens_masks_is_refused():
    def swaps(scores, sparsity):
        """The right total, but another tensor bears most of it above one half."""
        return global_(dict(sorted(scores.items(), reverse=sparsity > 0.5)), sparsity)

    ranked_by_order = lambda scores, sparsity: swaps(  # noqa: E731
        {path: np.zeros(tensor.shape) for path, tensor in scores.items()}, sparsity
    )
    check_allocation(ranked_by_order, grows=False)
    with pytest.raises(SecateurError, match=r"makes .* less sparse"):
        check_allocation(ranked_by_order)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (lambda progress: 2 * progress, r"returned 1.2"),
        (lambda progress: None, r"failed at progress"),
        (lambda progress: float("nan"), r"returned nan"),
        (lambda progress: 0.1 + 0.9 * progress, r"starts at share 0.1"),
        (lambda progress: 0.9 * progress, r"ends at share 0.9"),
        (lambda progress: abs(2 * progress - 0.5) / 1.5 if progress else 0.0, r"falls from"),
        (lambda progress: progress if next(counter) % 2 else progress**2, r"falls from"),
    ],
)
def test_a_wrong_schedule_is_refused(shape, message):
    with pytest.raises(SecateurError, match=message):
        check_schedule(shape)


def test_a_schedule_that_remembers_is_refused():
    calls = itertools.count()
    with pytest.raises(SecateurError, match="two results for one progress"):
        check_schedule(lambda progress: progress if next(calls) < 150 else progress**2)


def test_the_checks_need_no_framework_and_no_pytest():
    code = """
import sys
import secateur.testing
found = [m for m in ("keras", "tensorflow", "jax", "torch", "pytest") if m in sys.modules]
sys.exit(", ".join(found) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
