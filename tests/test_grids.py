"""Grids: what is swept, how it is spread, what is refused, and what a point's fingerprint depends on."""

import dataclasses
import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur import datasets
from secateur.errors import SecateurError
from secateur.grids import Grid, Scratch, fingerprint, refuse_grid, spread, sweeps
from secateur.point_records import fingerprint_of as name_of
from secateur.recipes import builtin_grids
from secateur.subjects import Subject

ROOT = Path(__file__).parent.parent
TEXT = """
name = "mine"
description = "to be tried"
model = "lenet-300-100"
data = "digits"
seeds = [0, 3]
files = "none"

[train]
epochs = 4
batch_size = 64

[export]
formats = ["keras"]

[[curves]]
name = "dense"

[[curves]]
name = "pruned"
train = { epochs = 5 }
[[curves.steps]]
method = "prune"
sparsity = { sweep = [0.5, 0.8, 0.9] }
criterion = { sweep = ["l1", "random"] }
train = { epochs = 0 }

[[curves]]
name = "small"
from_scratch = { sparsity = { sweep = [0.5, 0.75] }, epochs = 7 }
"""


def test_a_curve_keeps_what_it_does_not_change_and_sweeps_the_product():
    points = Grid.from_toml(TEXT).points()
    assert len(points) == 2 * (1 + 3 * 2 + 2)
    dense, pruned, small = points[0], points[1], points[-1]
    assert dense.recipe.steps == () and dense.recipe.train.epochs == 4
    assert pruned.recipe.train.epochs == 5 and pruned.recipe.train.batch_size == 64
    assert pruned.recipe.train_of(pruned.recipe.steps[0]).epochs == 0
    assert dict(pruned.settings) == {"steps.0.sparsity": 0.5, "steps.0.criterion": "l1"}
    assert pruned.label == "pruned, sparsity=0.5, criterion=l1, seed 0"
    assert small.scratch == Scratch(sparsity=0.75, epochs=7) and small.seed == 3
    assert not any(point.files or point.recipe.control for point in points)
    assert [point.label for point in points] == [p.label for p in Grid.from_toml(TEXT).points()]


def test_files_of_the_first_seed_only():
    grid = dataclasses.replace(Grid.from_toml(TEXT), files="first-seed")
    assert {p.seed for p in grid.points() if p.files} == {0}
    assert {p.seed for p in grid.points([3, 0]) if p.files} == {3}
    assert not any(p.files for p in dataclasses.replace(grid, files="none").points())


@pytest.mark.parametrize("source", ["mine", *builtin_grids()])
def test_a_grid_reads_back_equal_from_its_toml_and_from_plain_data(source):
    grid = Grid.from_toml(TEXT) if source == "mine" else Grid.load(source)
    plain = Grid.from_dict(json.loads(json.dumps(grid.to_dict())))
    written = Grid.from_toml(plain.to_toml())  # not its own text: that is what `plain` lacks
    for other in (plain, written, Grid.from_toml(grid.to_toml())):
        assert [(p.label, p.recipe, p.scratch, p.files) for p in other.points()] == [
            (p.label, p.recipe, p.scratch, p.files) for p in grid.points()
        ]
    assert plain == written


def test_a_recipe_with_sweeps_is_a_grid_of_one_curve_and_its_seed_can_be_swept():
    step = {"method": "prune", "sparsity": {"sweep": [0.5, 0.9]}}
    keys = {"name": "own", "seed": {"sweep": [2, 5]}, "steps": [step]}
    points = Grid.from_dict(keys).points()
    assert [(p.curve, p.seed, p.recipe.seed) for p in points] == [
        ("own", seed, seed) for seed in (2, 2, 5, 5)
    ]
    assert Grid.from_dict({**keys, "seed": 7}).seeds == (7,)
    formats = Grid.from_dict(
        {**keys, "export": {"formats": {"sweep": [["keras"], ["h5", "keras"]]}}}
    )
    assert {p.recipe.export.formats for p in formats.points()} == {("keras",), ("h5", "keras")}


values = st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True)
trees = st.recursive(
    st.integers() | st.builds(lambda found: {"sweep": found}, values),
    lambda inner: (
        st.dictionaries(st.sampled_from("abcd"), inner, max_size=3)
        | st.lists(inner, min_size=1, max_size=2)
    ),
    max_leaves=5,
)


def swept(tree):
    if isinstance(tree, dict):
        if set(tree) == {"sweep"}:
            return [tree["sweep"]]
        return list(itertools.chain.from_iterable(map(swept, tree.values())))
    if isinstance(tree, list):
        return list(itertools.chain.from_iterable(map(swept, tree)))
    return []


@given(st.dictionaries(st.sampled_from("wxyz"), trees, max_size=3))
def test_a_spread_has_the_product_of_what_is_swept_each_once(tree):
    found = list(spread(tree))
    assert len(found) == math.prod(len(values) for values in swept(tree))
    assert len({json.dumps(keys, sort_keys=True) for _, keys in found}) == len(found)
    for settings, keys in found:
        assert not swept(keys) and len(settings) == len(swept(tree))
        for path, value in settings.items():
            place = keys
            for part in path.split("."):
                place = place[int(part)] if isinstance(place, list) else place[part]
            assert place == value
    assert sweeps(tree) == bool(swept(tree))


STEP = {"method": "prune", "sparsity": {"sweep": [0.5]}}
ONE = {"name": "one", "steps": [STEP]}


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"curves": [ONE], "sedes": [0]}, "unknown key 'sedes' in the grid; did you mean 'seeds'?"),
        (
            {"curves": [{**ONE, "trian": {}}]},
            "unknown key 'trian' in curve 1; did you mean 'train'?",
        ),
        ({"curves": [{"name": "a", "steps": [{**STEP, "sparsty": 1}]}]}, "curve 'a'.*'sparsity'"),
        ({"curves": [{"steps": [STEP]}]}, "curve 1 has no name"),
        ({"curves": [ONE, ONE]}, "each with a name of its own"),
        ({"curves": []}, "at least one"),
        ({"curves": {"name": "a"}}, "write each as \\[\\[curves\\]\\]"),
        ({"steps": [{"method": "prune", "sparsity": 0.5}]}, "sweeps nothing.*secateur run"),
        ({"curves": [ONE], "seeds": [0, 0]}, "each once"),
        ({"curves": [ONE], "seeds": []}, "at least 0, each once"),
        ({"curves": [ONE], "seeds": [-1]}, "whole numbers"),
        ({"curves": [ONE], "seeds": [0], "seed": 0}, "both seeds and seed"),
        ({"curves": [{**ONE, "seed": 1}]}, "the same seeds for every curve"),
        ({"curves": [ONE], "files": "some"}, "files 'some'"),
        (
            {"curves": [{"name": "a", "train": {"epochs": {"sweep": []}}}]},
            "train.epochs sweeps \\[\\]",
        ),
        ({"curves": [{"name": "a", "train": {"epochs": {"sweep": 3}}}]}, "train.epochs sweeps 3"),
        (
            {"curves": [{"name": "a", "steps": {"sweep": [[STEP]]}}]},
            "a sweep within a sweep.*\\[\\[curves\\]\\]",
        ),
        ({"curves": [{"name": "a", "from_scratch": 0.5}]}, "from_scratch = 0.5"),
        (
            {"curves": [{"name": "a", "from_scratch": {"sparsity": 1.5, "epochs": 1}}]},
            "sparsity in \\[0, 1\\)",
        ),
        (
            {"curves": [{**ONE, "from_scratch": {"sparsity": 0.5, "epochs": 1}}]},
            "from_scratch received with steps",
        ),
    ],
)
def test_what_is_no_grid_is_refused_in_one_line(keys, told):
    with pytest.raises(SecateurError, match=told) as caught:
        Grid.from_dict(keys).points()
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.toml").write_text("curves = [")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for name, told in (
        ("lader", "did you mean 'ladder'"),
        ("lab", "is one recipe.*secateur run lab"),
        (tmp_path / "missing.toml", "cannot read grid.*No such file"),
        (tmp_path / "broken.toml", "is not valid TOML"),
        (tmp_path / "binary.toml", "not a text file"),
    ):
        with pytest.raises(SecateurError, match=told):
            Grid.load(name)
    (tmp_path / "grid.toml").write_text(TEXT)
    with pytest.raises(SecateurError, match=re.escape(f"secateur sweep {tmp_path / 'grid.toml'}")):
        refuse_grid(tmp_path / "grid.toml")
    for name in ("lab", tmp_path / "missing.toml", tmp_path / "broken.toml"):
        refuse_grid(name)


def test_a_function_works_from_python_and_has_no_toml():
    step = {"method": "prune", "sparsity": {"sweep": [0.5]}, "criterion": np.abs}
    grid = Grid.from_dict({"name": "own", "steps": [step]})
    with pytest.raises(SecateurError, match="'own' holds a value that no .toml file can"):
        grid.to_toml()
    assert json.loads(grid.as_text())["name"] == "own"


# --- fingerprints ---------------------------------------------------------------------------------


def test_a_fingerprint_of_data_is_the_same_in_another_process():
    data = {"b": [1, 2.5, None], "a": {"x": "y", "w": True}}
    code = (
        "import json, sys; from secateur.grids import fingerprint;"
        "print(fingerprint(json.loads(sys.argv[1]), 3))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONHASHSEED": "7"}
    env["KERAS_BACKEND"] = "numpy"  # nothing is computed there, and it is imported in half the time
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(dict(reversed(data.items())))],
        env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split()[-1] == fingerprint(data, 3)
    assert fingerprint(data, 3) != fingerprint(data, 4)


@pytest.fixture(scope="module")
def small():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(6, activation="relu"), keras.layers.Dense(3)],
        name="small",
    )


def samples(shift=0.0):
    x = np.random.default_rng(0).normal(size=(60, 8)).astype("float32") + np.float32(shift)
    return x, np.arange(60) % 3


BASE = {
    "name": "grid",
    "train": {"epochs": 2},
    "files": "none",
    "steps": [{"method": "prune", "sparsity": {"sweep": [0.5]}, "train": {"epochs": 1}}],
}


def name(model, keys=None, data=None, **load):
    (point,) = Grid.from_dict(keys or BASE).points()
    loaded = datasets.load(samples() if data is None else data, seed=point.seed, **load)
    subject = Subject.of(point, model, loaded)
    return name_of(point, subject.identity(point))


def changed(**keys):
    return {**BASE, **keys}


def step(**keys):
    return changed(steps=[{**BASE["steps"][0], **keys}])


@pytest.mark.parametrize(
    "keys",
    [
        changed(seeds=[1]),
        changed(train={"epochs": 3}),
        changed(train={"epochs": 2, "optimizer": "sgd"}),
        changed(files="all"),
        step(sparsity={"sweep": [0.6]}),
        step(criterion="random"),
        step(pattern="units"),
        step(schedule={"end": 0.5}),
        step(select={"output": False}),
        step(train={"epochs": 2}),
        {**changed(steps=[]), "from_scratch": {"sparsity": {"sweep": [0.5]}, "epochs": 3}, "curves": [
            {"name": "s", "from_scratch": {"sparsity": 0.5, "epochs": 3}}]},
    ],
)  # fmt: skip
def test_what_decides_a_result_changes_the_fingerprint(small, keys):
    keys = {key: value for key, value in keys.items() if key != "from_scratch"}
    assert name(small, keys) != name(small)


def test_model_data_and_their_loading_change_the_fingerprint(small, monkeypatch):
    reference = name(small)
    assert name(small, data=samples(0.1)) != reference
    assert name(small, limit=30) != reference
    assert name(small, validation_split=0.2) != reference
    assert name(small, scale=2.0) != reference
    other = keras.models.clone_model(small)
    other.set_weights([value + 0.01 for value in small.get_weights()])
    assert name(other) != reference
    monkeypatch.setattr("secateur.run_folder.versions", lambda: {"keras": "9.9"})
    assert name(small) != reference


def test_names_and_descriptions_do_not_change_the_fingerprint(small):
    curve = {"name": "another", **{k: v for k, v in BASE.items() if k == "steps"}}
    renamed = {**BASE, "name": "other", "description": "words", "curves": [curve]}
    assert name(small, {k: v for k, v in renamed.items() if k != "steps"}) == name(small)
