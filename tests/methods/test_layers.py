"""Every kind of layer is pruned to the last weight, on whichever backend this process runs.

The rows are in layer_cases.py, the counts there written by hand.
"""

import importlib.util
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from tests.methods.layer_cases import CASES, SAMPLES
from tests.methods.layer_models import Minimal, chain

from secateur.arrays.layout import Axes, canonical
from secateur.arrays.masks import zeros_count
from secateur.arrays.schedules import Schedule
from secateur.capture import input_norms
from secateur.errors import SecateurError
from secateur.methods.prune import Prune
from secateur.weights import weight_table

ROOT = Path(__file__).resolve().parents[2]
BACKEND = keras.backend.backend()
BATCH = 4
STEPS = SAMPLES // BATCH * 2
ROLES = ("kernel", "embedding")


@pytest.fixture(autouse=True, scope="module")
def _compile_fast():
    """Nearly all of JAX's time is spent compiling what runs once."""
    if BACKEND != "jax":
        yield
        return
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def compiled(case):
    model = case.model()
    # One compiler is enough here: XLA is what tests/test_project.py is for.
    model.compile("adam", "mse", jit_compile=BACKEND == "jax")
    return model


def counts(values):
    return {path: (int((value == 0).sum()), value.size) for path, value in values.items()}


def read(model, paths):
    table = weight_table(model)
    return {path: table[path].read() for path in paths}


class Watch(keras.callbacks.Callback):
    """Counts the zeros at the end of every step; stands before the pruning callback on purpose."""

    def __init__(self, paths):
        super().__init__()
        self.paths, self.seen, self.negative = paths, [], 0

    def on_train_batch_end(self, batch, logs=None):
        values = read(self.model, self.paths)
        self.seen.append(counts(values))
        self.negative += sum(int(np.signbit(value[value == 0]).sum()) for value in values.values())


@every_case
def test_the_count_of_zeros_is_exact_at_the_end_of_every_step(case, tmp_path):
    model, (x, y) = compiled(case), case.data()
    before = {w.path: w.read() for w in weight_table(model)}
    described = [w.path for w in model.weights], model.count_params()
    method = Prune(sparsity=0.5, schedule=Schedule(shape="one-shot"))
    watch = Watch(tuple(case.zeros))
    model.fit(x, y, batch_size=BATCH, epochs=2, verbose=0, callbacks=[watch, method.callback()])
    assert watch.seen == [case.zeros] * STEPS
    assert watch.negative == 0
    after = {w.path: w.read() for w in weight_table(model)}
    assert counts({path: after[path] for path in case.zeros}) == case.zeros
    assert ([w.path for w in model.weights], model.count_params()) == described
    assert {path: v.shape for path, v in after.items()} == {p: v.shape for p, v in before.items()}
    for path in case.zeros:
        moved = (after[path] != before[path]) & (after[path] != 0)
        assert moved.any(), f"{path} did not train"
    if not case.custom:
        model.save(tmp_path / "pruned.keras")
        loaded = keras.saving.load_model(tmp_path / "pruned.keras")
        again = {w.path: w.read() for w in weight_table(loaded)}
        assert again.keys() == after.keys()
        assert counts({path: again[path] for path in case.zeros}) == case.zeros


@every_case
def test_the_plan_accounts_for_every_weight(case):
    model = case.model()
    table = weight_table(model)
    assert sum(w.size for w in table) == model.count_params()
    assert {w.path for w in table if w.role in ROLES} <= set(case.zeros)
    plan = {change.path: change for change in Prune(sparsity=0.5).plan(table)}
    assert plan.keys() == {w.path for w in table}
    assert {path for path, change in plan.items() if change.changed} == set(case.zeros)
    assert all(change.reason for change in plan.values() if not change.changed)
    assert {path: plan[path].reason for path in case.skipped} == case.skipped
    for path in case.zeros:
        assert (table[path].axes.inputs, table[path].axes.outputs) == axes_of(case, table, path)


def axes_of(case, table, path):
    rank = len(table[path].shape)
    return case.axes.get(path, ((rank - 2,), (rank - 1,)))


@every_case
def test_criteria_with_data_reach_the_same_counts_or_name_what_they_cannot_see(case):
    data = case.data()
    model = case.model()
    Prune(sparsity=0.5, criterion="snip").apply(model, data=data, loss="mse")
    assert counts(read(model, case.zeros)) == case.zeros
    model = case.model()
    method = Prune(sparsity=0.5, criterion="wanda")
    if unseen := (*case.hidden, *case.in_cells):
        with pytest.raises(SecateurError, match=f"^{unseen[0]} .* another criterion"):
            method.apply(model, data=data)
        assert not any(zeros for zeros, _ in counts(read(model, case.zeros)).values())
        return
    method.apply(model, data=data)
    assert counts(read(model, case.zeros)) == case.zeros


def test_the_kernel_of_a_users_cell_is_pruned_and_wanda_says_that_it_cannot_see_its_inputs():
    model = chain((3, 5), layers.RNN(Minimal(name="cell"), name="rnn"))
    with pytest.raises(SecateurError, match="rnn/cell/kernel .* made inside Minimal"):
        Prune(sparsity=0.5, criterion="wanda").apply(model, data=(np.ones((4, 3, 5)), None))
    Prune(sparsity=0.5).apply(model)
    assert counts(read(model, ["rnn/cell/kernel"])) == {"rnn/cell/kernel": (10, 20)}


def test_input_norms_of_both_halves_of_a_reversible_embedding_and_of_separate_matrices():
    cases = {case.name: case for case in CASES}
    case = cases["ReversibleEmbedding, tie_weights=False"]
    model, (x, _) = case.model(), case.data()
    table = weight_table(model)
    norms = input_norms(model, [table[path] for path in case.zeros], [(x, None)])
    np.testing.assert_allclose(
        norms["embedding/embeddings"][:, 0] ** 2, np.bincount(x.ravel(), minlength=10), rtol=1e-5
    )
    vectors = table["embedding/embeddings"].read()[x]
    np.testing.assert_allclose(
        norms["embedding/reverse_embeddings"][:, 0] ** 2, (vectors**2).sum((0, 1)), rtol=1e-5
    )

    case = cases["EinsumDense, a matrix for each position"]
    model, (x, _) = case.model(), case.data()
    weight = weight_table(model)["einsum/kernel"]
    norms = input_norms(model, [weight], [(x, None)])["einsum/kernel"]
    np.testing.assert_allclose(norms[..., 0] ** 2, (x**2).sum(0), rtol=1e-5)


@pytest.mark.parametrize("pattern", ["2:4", "units"])
@every_case
def test_patterns_keep_their_structure_or_the_plan_says_why_not(case, pattern):
    model = case.model()
    table = weight_table(model)
    method = Prune(sparsity=0.5, pattern=pattern)
    left_out = case.short if pattern == "2:4" else case.in_cells
    reason = "is shorter than a group of 4" if pattern == "2:4" else "spans several weights"
    plan = {change.path: change for change in method.plan(table)}
    assert {path for path in case.zeros if not plan[path].changed} == set(left_out)
    assert all(reason in plan[path].reason for path in left_out)
    if set(left_out) == set(case.zeros):
        with pytest.raises(SecateurError, match="fits none of the selected weights"):
            method.apply(model)
        return
    method.apply(model)
    for path, value in read(model, case.zeros).items():
        zero = canonical(value == 0, Axes(*axes_of(case, table, path)))
        if path in left_out:
            assert not zero.any()
        elif pattern == "units":
            whole = zero.all(axis=tuple(range(zero.ndim - 1)))
            assert whole.sum() == zeros_count(whole.size, 0.5)
            assert zero.sum() == whole.sum() * (zero.size // whole.size)
        else:
            inputs = zero.shape[-2]
            for first in range(0, inputs, 4):
                group = zero[..., first : first + 4, :].sum(axis=-2)
                assert (group == max(0, min(4, inputs - first) - 2)).all()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the same on every backend")
def test_the_page_is_what_the_cases_say():
    file = ROOT / "benchmarks" / "layers_page.py"
    spec = importlib.util.spec_from_file_location("benchmarks_layers_page", file)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.page() == script.PAGE.read_text(encoding="utf-8"), script.FIX
