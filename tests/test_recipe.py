"""Recipes: what is written is what is read, misspellings are named, orders are validated."""

import dataclasses
import functools
import tomllib

import keras
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur import zoo
from secateur.arrays.allocation import ALLOCATIONS
from secateur.arrays.criteria import CRITERIA
from secateur.arrays.schedules import Rewind, Schedule
from secateur.errors import SecateurError
from secateur.methods.fine_tune import FineTune
from secateur.methods.keep_zeros import KeepZeros
from secateur.methods.prune import Prune
from secateur.methods.quantize import Quantize
from secateur.methods.rigl import RigL
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
    criterion=st.sampled_from(sorted(CRITERIA)),
    pattern=st.sampled_from(["unstructured", "units", "block 16x1", "block 3x3x1x1 max"]),
    allocation=st.sampled_from([*sorted(ALLOCATIONS), {"conv*": 0.5, "dense": 0.9}]),
    rewind=st.none() | st.builds(Rewind, rounds=st.integers(1, 9), to=st.floats(0, 3)),
    select=selects,
)
rigls = st.builds(RigL, sparsity=st.floats(0.1, 0.99), fraction=st.floats(0, 1), select=selects)
steps = st.builds(
    Step,
    method=prunes | st.builds(KeepZeros, select=selects) | st.just(Prune(pattern="2:4")),
    train=st.none() | trains,
)
quantizes = st.builds(
    Quantize,
    format=st.sampled_from(["int8", "int16x8", "dynamic", "int4"]),
    bits=st.none() | st.sampled_from([4, 8]),
    otherwise=st.none() | st.sampled_from([4, 8]),
    select=selects,
) | st.just(Quantize(format="int4", block=64))
recipes = st.builds(
    Recipe,
    # Quantized last: no other step keeps the bits.
    steps=st.tuples(st.lists(steps, max_size=3), st.lists(quantizes, max_size=2)).map(
        lambda both: [*both[0], *both[1]]
    ),
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
        ('[[steps]]\nmethod = ["prune"]', r"step 1: method \['prune'\] received"),
        ("name = " + "[" * 100_000, "not valid TOML: nested more than 50 deep"),
        ("a." * 100_000 + "b = 1", "not valid TOML: nested more than 50 deep"),
        (PRUNE.replace("0.8", "50"), "0.5 for 50 %"),
        (PRUNE.replace("0.8", "[0.5, 0.8]"), "is a list"),
        (PRUNE + "schedule = 3", "must be a table"),
        (PRUNE + "schedule = { evry = 3 }", "did you mean 'every'"),
        (PRUNE + 'select = { roles = ["kernal"] }', "did you mean 'kernel'"),
        ("[trian]\nepochs = 1", "did you mean 'train'"),
        ("[train]\nepochs = 1.5", "epochs 1.5 received"),
        ("[train]\nlearning_rate = -1.0", "learning_rate -1.0 received"),
        ('[export]\nformats = ["dynmic"]', "did you mean 'dynamic'"),
        ('[export]\nformats = [["dynamic"]]', r"formats \[\['dynamic'\]\] received in \[export\], expected a list of text"),
        ("seed = -1", "seed -1 received"),
        ("steps = 3", "must be a list"),
        ("name = ", "not valid TOML"),
        ('control = "false"', "control 'false' received in recipe, expected true or false"),
        ("control = 0", "control 0 received in recipe, expected true or false"),
        ("seed = true", "seed True received in recipe, expected a whole number"),
        ("name = 3", "name 3 received in recipe, expected text"),
        ("[train]\nepochs = true", r"epochs True received in \[train\], expected a whole number"),
        ('[train]\nlearning_rate = "fast"', r"learning_rate 'fast' received in \[train\], expected a number"),
        ("[train]\nloss = 3", r"loss 3 received in \[train\], expected text"),
        (PRUNE.replace("0.8", '"0.8"'), r"sparsity '0.8' received in step 1 \(prune\), expected a number"),
        (PRUNE + "criterion = 3", r"criterion 3 received in step 1 \(prune\), expected text"),
        (PRUNE + "schedule = { every = 5.0 }", "every 5.0 received in step 1 schedule, expected a whole number"),
        (PRUNE + 'select = { output = "no" }', "output 'no' received in step 1 select, expected true or false"),
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


@pytest.mark.parametrize("aware", [True, False])
@pytest.mark.parametrize("later", [Prune(sparsity=0.5), FineTune(), KeepZeros()])
def test_what_moves_weights_after_they_were_quantized_is_refused_with_the_fix(later, aware):
    found = Recipe(steps=[later, Quantize(aware=aware)]).to_dict()
    found["steps"].reverse()
    fix = rf"step 2 \({later.kind}\) would break the promise 'bits' of step 1 \(quantize\).*"
    with pytest.raises(SecateurError, match=fix + r"fix: put it before step 1 \(quantize\)$"):
        Recipe.from_dict(found)


def test_the_lab_with_quantization_in_training_differs_from_the_lab_by_that_step():
    lab, aware, both = (Recipe.load(name) for name in ("lab", "lab-qat", "lab-pruned-qat"))
    assert lab.train == aware.train == both.train
    assert both.steps[0] == lab.steps[0]
    assert aware.steps[0].method == both.steps[1].method == Quantize(format="int8", aware=True)
    assert aware.steps[0].train == dataclasses.replace(lab.train, decay="cosine")
    settings = {"batch_size": 128, "learning_rate": 0.003, "decay": "cosine"}
    assert both.steps[1].train == dataclasses.replace(lab.train, **settings)
    for recipe in (aware, both):
        assert (recipe.model, recipe.data, recipe.control) == ("lab-cnn", "mnist", True)
        assert recipe.export == Export(formats=("keras", "float32", "int8"))


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


@given(rigls)
@settings(max_examples=20)
def test_rigl_survives_toml_and_may_move_the_zeros_of_no_earlier_step(method):
    recipe = Recipe(steps=[method])
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    with pytest.raises(SecateurError, match="break the promise 'zeros'"):
        Recipe(steps=[Prune(sparsity=0.5), method])


def test_an_unknown_recipe_names_the_nearest_and_a_missing_file_is_said(tmp_path):
    with pytest.raises(SecateurError, match="did you mean 'demo'"):
        Recipe.load("dmeo")
    with pytest.raises(SecateurError, match="cannot read recipe .*none.toml"):
        Recipe.load(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SecateurError, match="not a text file"):
        Recipe.load(tmp_path / "binary.toml")


def steeper(power):
    return lambda weight, rng: abs(weight) ** power


def slow_start(progress):
    return progress * progress


def test_a_function_cannot_be_written_into_a_file():
    for function in (lambda weight: abs(weight), functools.partial(steeper(2))):
        recipe = Recipe(steps=[Prune(sparsity=0.5, criterion=function)])
        with pytest.raises(SecateurError, match="is a function"):
            recipe.to_toml()
        with pytest.raises(SecateurError, match="is a function"):
            recipe.to_dict()


def test_a_record_names_functions_and_tells_them_apart():
    def record(criterion, shape="polynomial"):
        method = Prune(sparsity=0.5, criterion=criterion, schedule=Schedule(shape=shape))
        return Recipe(steps=[method]).to_record()["steps"][0]

    square = record(steeper(2))
    assert square["criterion"].startswith("<lambda> (function, code ")
    assert square == record(steeper(2))  # made anew, the same function
    assert square != record(steeper(3))  # what it closes over counts
    assert record("l1", slow_start)["schedule"]["shape"].startswith("slow_start (function, code ")
    halves = [record(functools.partial(pow_, power=p))["criterion"] for p in (1, 2)]
    assert "partial" in halves[0] and halves[0] != halves[1]
    assert "0x" not in halves[0]  # an address would differ from process to process
    shape = record("l1", abs)["schedule"]["shape"]
    assert shape.startswith("abs (function")  # one without byte code


def pow_(weight, rng, power):
    return abs(weight) ** power


def test_the_record_of_a_recipe_without_functions_is_the_recipe():
    recipe = Recipe.load("lab")
    assert recipe.to_record() == recipe.to_dict()
    assert recipe.as_text() == recipe.to_toml()


def test_the_text_of_a_recipe_with_a_function_says_that_it_is_no_recipe_file():
    recipe = Recipe(steps=[Prune(sparsity=0.5, schedule=Schedule(shape=slow_start))])
    text = recipe.as_text()
    assert text.startswith("# Not to be repeated from this file alone: it holds a function")
    assert tomllib.loads(text) == recipe.to_record()
    with pytest.raises(SecateurError, match="slow_start"):
        Recipe.from_toml(text)


def test_a_dry_run_knows_the_zeros_that_earlier_steps_will_make():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, name="d")])
    alone = Recipe(steps=[KeepZeros()]).plan(model)
    assert [c.reason for c in alone] == ["no zeros", "role bias is not selected"]
    plan = Recipe(steps=[Prune(sparsity=0.5), KeepZeros()]).plan(model)
    kept = [c for c in plan if c.step == "keep-zeros"]
    assert [(c.path, c.how) for c in kept if c.changed] == [("d/kernel", "its zeros are kept")]
