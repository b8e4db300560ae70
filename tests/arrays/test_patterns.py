import functools
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from secateur.arrays.masks import unstructured, zeros_count
from secateur.arrays.patterns import (
    Block,
    NofM,
    Units,
    Unstructured,
    check_fits,
    describe,
    pattern,
)
from secateur.errors import SecateurError

sparsities = st.floats(0, 1)
# Few distinct values make ties the rule; -inf is a promised zero.
VALUES = [-np.inf, 0.0, 0.5, 1.0, 3.0]
shapes = hnp.array_shapes(min_dims=2, max_dims=4, min_side=0, max_side=7)
tied = hnp.arrays(np.float32, shapes, elements=st.sampled_from(VALUES))
free = hnp.arrays(np.float32, shapes, elements=st.floats(0, 1e6, width=32))
scored = st.one_of(tied, free)
ratios = st.integers(2, 8).flatmap(lambda m: st.builds(NofM, st.integers(1, m - 1), st.just(m)))


@st.composite
def blocks(draw, rank):
    extents = draw(st.lists(st.integers(1, 4), min_size=1, max_size=rank))
    return Block(tuple(extents), draw(st.sampled_from(["mean", "max"])))


def slow_groups(scores, block):
    """The definition: each block's real cells, one by one."""
    extents = (1,) * (scores.ndim - len(block.shape)) + block.shape
    grid = [range(0, size, n) for size, n in zip(scores.shape, extents, strict=True)]
    for corner in itertools.product(*grid):
        cells = tuple(slice(at, at + n) for at, n in zip(corner, extents, strict=True))
        real = scores[cells].astype(np.float64)
        pool = np.mean if block.pooling == "mean" else np.max
        dead = np.isneginf(real).all()
        yield cells, -np.inf if dead else pool(np.where(np.isneginf(real), 0, real))


# --- every pattern --------------------------------------------------------------------------------


@given(st.data(), scored, sparsities, sparsities)
def test_contract(data, scores, first, second):
    """Every pattern: a bool mask of the scores' shape; more sparsity never opens it."""
    block = data.draw(blocks(scores.ndim))
    chosen = data.draw(st.sampled_from([Unstructured(), block, Units(), data.draw(ratios)]))
    less, more = sorted((first, second))
    before = scores.tobytes()
    looser, tighter = chosen(scores, less), chosen(scores, more)
    assert looser.dtype == tighter.dtype == bool
    assert looser.shape == tighter.shape == scores.shape
    assert not (tighter & ~looser).any()
    assert chosen(scores, 0.0).all()
    assert scores.tobytes() == before
    tighter &= looser  # writable: callers combine masks in place


@pytest.mark.parametrize("text", ["unstructured", "units", "2:4", "block 2x1", "block 2 max"])
def test_nan_and_what_is_no_fraction_are_refused(text):
    with pytest.raises(SecateurError, match="NaN among"):
        pattern(text)(np.full((4, 2), np.nan), 0.5)
    with pytest.raises(SecateurError, match="fix: 0.5 for 50 %"):
        pattern(text)(np.ones((4, 2)), 50)


def test_unstructured_is_the_mask_of_that_name():
    scores = np.random.default_rng(0).random((3, 3, 4, 5))
    assert np.array_equal(Unstructured()(scores, 0.7), unstructured(scores, 0.7))
    assert Unstructured().groups(scores) is scores


# --- blocks ---------------------------------------------------------------------------------------


@given(st.data(), scored, sparsities)
def test_blocks(data, scores, sparsity):
    """Whole blocks, the exact count, nothing larger pruned than kept, the lowest index first."""
    block = data.draw(blocks(scores.ndim))
    keep, groups = block(scores, sparsity), block.groups(scores)
    expected = list(slow_groups(scores, block))
    assert np.allclose(groups.ravel(), [score for _, score in expected])
    verdicts = np.array([keep[cells].all() for cells, _ in expected], bool)
    assert [keep[cells].any() for cells, _ in expected] == verdicts.tolist()
    assert np.count_nonzero(~verdicts) == zeros_count(len(expected), sparsity)
    assert np.array_equal(verdicts, unstructured(groups.ravel(), sparsity))


MATRIX = np.array(
    [
        [1.0, 2.0, 9.0, 0.0],
        [3.0, 4.0, 0.0, 0.0],
        [2.0, 2.0, 5.0, 5.0],
        [2.0, 2.0, 5.0, 6.0],
    ]
)


@pytest.mark.parametrize(
    ("text", "pooled", "kept"),
    [
        # TFMOT pools alike (AVG, MAX on |w|); without ties it keeps the same blocks.
        ("block 2x2", [[2.5, 2.25], [2.0, 5.25]], [[1, 0], [0, 1]]),
        ("block 2x2 max", [[4.0, 9.0], [2.0, 6.0]], [[0, 1], [0, 1]]),
        ("block 4x1", [[2.0, 2.5, 4.75, 2.75]], [[0, 0, 1, 1]]),
        ("block 1x4", [[3.0], [1.75], [3.5], [3.75]], [[0], [0], [1], [1]]),
        ("block 4", [[3.0], [1.75], [3.5], [3.75]], [[0], [0], [1], [1]]),
        # Ragged: the last column, row and corner pool 3, 3 and 1 real cells.
        ("block 3x3", [[28 / 9, 5 / 3], [3.0, 6.0]], [[1, 0], [0, 1]]),
        ("block 9x9", [[3.0]], [[0]]),
    ],
)
def test_blocks_by_hand(text, pooled, kept):
    block = pattern(text)
    assert np.allclose(block.groups(MATRIX), pooled)
    keep = block(MATRIX, 0.5)
    rows, columns = (1, 1, *block.shape)[-2:]
    whole = np.kron(np.array(kept, bool), np.ones((rows, columns), bool))
    assert np.array_equal(keep, whole[:4, :4])


def test_mean_and_max_disagree():
    """One large weight among zeros carries a block by its maximum and not by its mean."""
    scores = np.array([[5.0, 2.0], [0.0, 2.0], [0.0, 2.0]])
    assert Block((3, 1))(scores, 0.5)[0].tolist() == [False, True]
    assert Block((3, 1), "max")(scores, 0.5)[0].tolist() == [True, False]


def test_a_block_over_the_input_channels_of_a_convolution():
    scores = np.random.default_rng(0).random((3, 3, 32, 8))
    keep = Block((16, 1))(scores, 0.75)
    per_block = keep.reshape(3, 3, 2, 16, 8)
    assert np.array_equal(per_block.all(axis=3), per_block.any(axis=3))
    assert np.count_nonzero(~keep) == 16 * zeros_count(3 * 3 * 2 * 8, 0.75)


def test_a_block_over_all_axes_of_a_convolution():
    scores = np.random.default_rng(0).random((3, 3, 4, 8))
    keep = Block((3, 3, 1, 1))(scores, 0.5)
    assert np.array_equal(keep.all(axis=(0, 1)), keep.any(axis=(0, 1)))
    assert np.array_equal(keep[0, 0], unstructured(scores.mean(axis=(0, 1)), 0.5))


def test_promised_zeros_pool_as_zero_and_a_dead_block_goes_first():
    scores = np.array([[-np.inf, 6.0], [1.0, 1.0], [-np.inf, -np.inf], [0.0, 0.0]])
    assert Block((1, 2)).groups(scores).ravel().tolist() == [3.0, 1.0, -np.inf, 0.0]
    assert Block((1, 2), "max").groups(scores).ravel().tolist() == [6.0, 1.0, -np.inf, 0.0]
    assert Block((1, 2))(scores, 0.25)[:, 0].tolist() == [True, True, False, True]


def test_blocks_of_more_axes_than_the_scores_are_refused():
    message = r"block 2x2x1 received .*\(4, 4\): a block of 3 axes .*fix: give 2 .*as block 2x1"
    for use in (Block((2, 2, 1)).groups, functools.partial(Block((2, 2, 1)), sparsity=0.5)):
        with pytest.raises(SecateurError, match=message):
            use(MATRIX)


# --- N:M ------------------------------------------------------------------------------------------


@given(scored, ratios, sparsities)
def test_n_of_m(scores, ratio, sparsity):
    """Each group keeps n, partial ones min(n, r); what is pruned is not above what stays."""
    final, keep = ratio(scores, 1.0), ratio(scores, sparsity)
    for start in range(0, scores.shape[-2], ratio.m):
        group, score = (a[..., start : start + ratio.m, :] for a in (final, scores))
        assert (group.sum(axis=-2) == min(ratio.n, group.shape[-2])).all()
        kept = np.where(group, score, np.inf).min(axis=-2, initial=np.inf)
        assert (np.where(group, -np.inf, score).max(axis=-2, initial=-np.inf) <= kept).all()
    assert np.array_equal(ratio(scores, ratio.final), final)
    assert not (final & ~keep).any()
    if sparsity < ratio.final:
        wanted = min(zeros_count(scores.size, sparsity), np.count_nonzero(~final))
        assert np.count_nonzero(~keep) == wanted
        early, later = scores[~keep], scores[keep & ~final]
        assert early.max(initial=-np.inf) <= later.min(initial=np.inf)


@pytest.mark.parametrize(
    ("text", "scores", "kept"),
    [
        ("2:4", [4, 1, 3, 2, 1, 2, 3, 4], [1, 0, 1, 0, 0, 0, 1, 1]),
        ("1:4", [4, 1, 3, 2, 1, 2, 3, 4], [1, 0, 0, 0, 0, 0, 0, 1]),
        ("4:8", [4, 1, 3, 2, 1, 2, 3, 5], [1, 0, 1, 0, 0, 0, 1, 1]),
        ("2:4", [1, 1, 1, 1], [0, 0, 1, 1]),  # ties: the lowest index is pruned
        ("2:4", [4, 1, 3, 2, 1, 2, 3], [1, 0, 1, 0, 0, 1, 1]),  # 3 left over keep 2
        ("2:4", [4, 1, 3, 2, 1], [1, 0, 1, 0, 1]),  # 1 left over stays
        ("2:4", [-np.inf, -np.inf, -np.inf, 2], [0, 0, 1, 1]),
    ],
)
def test_n_of_m_by_hand(text, scores, kept):
    column = np.array(scores, float)[:, None]
    assert pattern(text)(column, 0.5 if text != "1:4" else 0.75)[:, 0].tolist() == [
        *map(bool, kept)
    ]


def test_ties_in_groups_too_long_for_a_small_sort():
    """Up to 16 entries NumPy's unstable sort is a stable one."""
    scores = np.random.default_rng(0).integers(0, 2, (128, 3)).astype(np.float32)
    keep = NofM(32, 64)(scores, 0.5)
    for group, column in itertools.product((slice(64), slice(64, 128)), range(3)):
        assert np.array_equal(keep[group, column], unstructured(scores[group, column], 0.5))


def test_n_of_m_runs_along_the_inputs_of_each_output_and_place():
    scores = np.random.default_rng(0).random((3, 3, 8, 5))
    keep = NofM(2, 4)(scores, 0.5)
    assert (keep.reshape(3, 3, 2, 4, 5).sum(axis=3) == 2).all()
    assert np.array_equal(keep[1, 2, :, 3], NofM(2, 4)(scores[1, 2, :, 3:4], 0.5)[:, 0])


def test_a_schedule_prunes_the_smallest_of_the_final_mask_first():
    scores = np.array([9.0, 1, 8, 2, 4, 6, 3, 5])[:, None]  # 2:4 prunes 1, 2, 3 and 4
    pruned = [scores[~NofM(2, 4)(scores, s)].ravel().tolist() for s in (0.125, 0.25, 0.375, 0.5)]
    assert pruned == [[1.0], [1.0, 2.0], [1.0, 2.0, 3.0], [1.0, 2.0, 4.0, 3.0]]
    ties = NofM(2, 4)(np.ones((8, 1)), 0.25)[:, 0]
    assert np.flatnonzero(~ties).tolist() == [0, 1]


def test_final_sparsity():
    assert (NofM(2, 4).final, NofM(1, 4).final, NofM(4, 8).final) == (0.5, 0.75, 0.5)


# --- units ----------------------------------------------------------------------------------------


@given(scored, sparsities)
def test_units(scores, sparsity):
    keep, groups = Units()(scores, sparsity), Units().groups(scores)
    assert groups.shape == (scores.shape[-1],)
    if scores.size:
        columns = keep.reshape(-1, keep.shape[-1])
        assert np.array_equal(columns.all(axis=0), columns.any(axis=0))
        assert np.count_nonzero(~columns[0]) == zeros_count(scores.shape[-1], sparsity)
        assert np.array_equal(columns[0], unstructured(groups, sparsity))
        axes = tuple(range(scores.ndim - 1))
        alive = ~np.isneginf(scores).all(axis=axes)
        zeroed = np.where(np.isneginf(scores), 0, scores).astype(np.float64)
        assert np.allclose(groups[alive], zeroed.mean(axis=axes)[alive])
        assert np.isneginf(groups[~alive]).all()


def test_units_by_hand():
    scores = np.array([[3.0, 1.0, 2.0, -np.inf], [1.0, 2.0, 2.0, -np.inf]])
    assert Units().groups(scores).tolist() == [2.0, 1.5, 2.0, -np.inf]
    assert Units()(scores, 0.75).tolist() == [[False, False, True, False]] * 2


# --- texts ----------------------------------------------------------------------------------------


@given(st.one_of(st.sampled_from([Unstructured(), Units()]), ratios, blocks(5)))
def test_the_text_of_a_pattern_reads_back(chosen):
    assert pattern(describe(chosen)) == chosen
    assert pattern(chosen) is chosen
    assert hash(chosen) == hash(pattern(describe(chosen)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unstructured", Unstructured()),
        ("units", Units()),
        ("2:4", NofM(2, 4)),
        ("block 16x1", Block((16, 1))),
        ("block 16x1 mean", Block((16, 1), "mean")),
        ("block 3x3x1x1 max", Block((3, 3, 1, 1), "max")),
    ],
)
def test_texts(text, expected):
    assert pattern(text) == expected


def test_a_list_makes_an_equal_block():
    assert Block([16, 1]) == Block((16, 1))  # pyright: ignore[reportArgumentType]


def test_a_function_is_its_own_pattern():
    def diagonal(scores, sparsity):
        return np.eye(*scores.shape, dtype=bool)

    assert pattern(diagonal) is diagonal
    assert describe(diagonal) == "diagonal"
    assert check_fits(diagonal, (2, 2)) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unstructed", "unknown pattern 'unstructed', expected 'unstructured'.*did you mean"),
        ("block", "expected .*'block 16x1'.*did you mean 'block 16x1'"),
        ("2of4", "unknown pattern '2of4'"),
        (7, "unknown pattern 7"),
        (None, "unknown pattern None"),
        (["2:4"], "unknown pattern .'2:4'"),
        ("block 16x1 avg", "block pooling 'avg' received, expected one of mean, max"),
        ("block 0x4", r"block shape \(0, 4\) received"),
        ("4:4", "4:4 received, expected N:M with 1 <= N < M"),
        ("0:4", "0:4 received"),
    ],
)
def test_what_is_no_pattern_is_refused(text, message):
    with pytest.raises(SecateurError, match=message) as refused:
        pattern(text)
    assert "fix: " in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "shape", "reason"),
    [
        ("2:4", (3, 3, 3, 16), "input axis of 3 is shorter than a group of 4"),
        ("2:4", (3, 3, 4, 16), None),
        ("block 3x3x1x1", (5, 7), "a block of 4 axes has more than the weight's 2"),
        ("block 3x3x1x1", (3, 3, 5, 7), None),
        ("block 16x1", (3, 3, 5, 7), None),
        ("units", (5, 7), None),
        ("unstructured", (5, 7), None),
    ],
)
def test_check_fits(text, shape, reason):
    assert check_fits(pattern(text), shape) == reason
