"""Recipes: what is written is what is read, misspellings are named, orders are validated."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur import zoo
from secateur.arrays.schedules import Schedule
from secateur.errors import SecateurError
from secateur.methods.fine_tune import FineTune
from secateur.methods.keep_zeros import KeepZeros
from secateur.methods.prune import Prune
from secateur.recipe import METHODS, Export, Recipe, Step
from secateur.recipes import builtin_recipes, explanation
from secateur.training import Train
from secateur.weights import Select

names = st.text("abcxyz*/-_0", min_size=1, max_size=8)
schedules = st.builds(
    Schedule,
    shape=st.sampled_from(["constant", "polynomial", "cosine", "one-shot"]),
    initial=st.floats(0, 0.1),
    power=st.floats(0.5, 5),
    begin=st.floats(0, 0.4),
    end=st.floats(0.5, 1),
    every=st.integers(1, 500),
)
selects = st.builds(
    Select,
    include=st.lists(names, min_size=1, max_size=3).map(tuple),
    exclude=st.lists(names, max_size=2).map(tuple),
    output=st.booleans(),
    min_size=st.integers(0, 5000),
)
trains = st.builds(
    Train,
    optimizer=st.sampled_from(["adam", "sgd"]),
    learning_rate=st.none() | st.floats(1e-5, 1),
    decay=st.sampled_from(["none", "cosine"]),
    batch_size=st.integers(1, 512),
    epochs=st.integers(0, 50),
    loss=st.none() | st.just("mse"),
)
prunes = st.builds(
    Prune,
    sparsity=st.floats(0.1, 0.99),
    schedule=schedules,
    criterion=st.sampled_from(["l1", "random"]),
    select=selects,
)
steps = st.builds(
    Step, method=prunes | st.builds(KeepZeros, select=selects), train=st.none() | trains
)
recipes = st.builds(
    Recipe,
    steps=st.lists(steps, max_size=3),
    train=trains,
    export=st.builds(
        Export, formats=st.sets(st.sampled_from(["keras", "h5", "dynamic"])).map(sorted)
    ),
    seed=st.integers(0, 10**6),
    control=st.booleans(),
    name=names,
    description=st.text(max_size=20),
    model=st.none() | st.sampled_from(sorted(zoo.ZOO)),
)


@given(recipes)
@settings(max_examples=60)
def test_a_recipe_survives_toml(recipe):
    read = Recipe.from_toml(recipe.to_toml())
    # A step that overrides nothing says so by an equal block or by none: the effect is the same.
    same = [
        recipe.train_of(s) == read.train_of(r)
        for s, r in zip(recipe.steps, read.steps, strict=True)
    ]
    assert all(same)
    assert [s.method for s in read.steps] == [s.method for s in recipe.steps]
    for f in dataclasses.fields(Recipe):
        if f.name != "steps":
            assert getattr(read, f.name) == getattr(recipe, f.name), f.name


PRUNE = '[[steps]]\nmethod = "prune"\nsparsity = 0.8\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[steps]]\nmethod = "prune"\nsparcity = 0.8', "unknown key 'sparcity' .* did you mean 'sparsity'"),
        ('[[steps]]\nmethod = "prun"\nsparsity = 0.8', "did you mean 'prune'"),
        ('[[steps]]\nmethod = "prune"', "needs sparsity"),
        (PRUNE.replace("0.8", "50"), "0.5 for 50 %"),
        (PRUNE.replace("0.8", "[0.5, 0.8]"), "is a list"),
        (PRUNE + "schedule = 3", "must be a table"),
        (PRUNE + "schedule = { evry = 3 }", "did you mean 'every'"),
        (PRUNE + 'select = { roles = ["kernal"] }', "did you mean 'kernel'"),
        ("[trian]\nepochs = 1", "did you mean 'train'"),
        ("[train]\nepochs = 1.5", "epochs 1.5 received"),
        ("[train]\nlearning_rate = -1.0", "learning_rate -1.0 received"),
        ('[export]\nformats = ["dynmic"]', "did you mean 'dynamic'"),
        ("seed = -1", "seed -1 received"),
        ("steps = 3", "must be a list"),
        ("name = ", "not valid TOML"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_fix(text, message):
    with pytest.raises(SecateurError, match=message):
        Recipe.from_toml(text)


def test_an_order_that_breaks_a_promise_is_refused_and_names_it():
    with pytest.raises(
        SecateurError, match=r"step 2 \(fine-tune\) would break the promise 'zeros' of step 1"
    ):
        Recipe(steps=[Prune(sparsity=0.5), FineTune()])
    Recipe(steps=[FineTune(), Prune(sparsity=0.5), KeepZeros(), Prune(sparsity=0.8)])


def test_every_method_declares_its_promises():
    for kind, method in METHODS.items():
        assert method.kind == kind
        assert method.makes <= method.keeps | method.makes
        assert method.stage


def test_stages_of_one_method_get_names_of_their_own():
    recipe = Recipe(steps=[Prune(sparsity=0.5), KeepZeros(), Prune(sparsity=0.8)])
    assert recipe.stage_names() == ("pruned", "tuned", "pruned-2")


@pytest.mark.parametrize("name", builtin_recipes())
def test_builtin_recipes_load_are_explained_and_fit_their_model(name):
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert len(explanation(builtin_recipes()[name])) > 80
    plan = recipe.plan(zoo.build(recipe.model))
    assert plan.changed
    assert Recipe.from_toml(recipe.to_toml()) == recipe


def test_an_unknown_recipe_names_the_nearest_and_a_missing_file_is_said(tmp_path):
    with pytest.raises(SecateurError, match="did you mean 'demo'"):
        Recipe.load("dmeo")
    with pytest.raises(SecateurError, match="cannot read recipe .*none.toml"):
        Recipe.load(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SecateurError, match="not a text file"):
        Recipe.load(tmp_path / "binary.toml")


def test_a_function_cannot_be_written_into_a_file():
    recipe = Recipe(steps=[Prune(sparsity=0.5, criterion=lambda w, rng: abs(w))])
    with pytest.raises(SecateurError, match="is a function"):
        recipe.to_toml()
