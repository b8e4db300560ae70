"""run.json files: found, read, refused with one line."""

import json
import re
from pathlib import Path

import pytest
from tests.reporting.records_example import example_run, example_runs

from secateur.errors import SecateurError
from secateur.reporting import load_runs


def write(folder: Path, run: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "run.json"
    file.write_text(json.dumps(run), encoding="utf-8")
    return file


def test_a_run_is_found_by_folder_by_file_and_among_seeds(tmp_path):
    for run in example_runs(3):
        write(tmp_path / f"seed-{run['seed']}", run)
    assert load_runs(tmp_path / "seed-1") == [example_run(1)]
    assert load_runs(str(tmp_path / "seed-1" / "run.json")) == [example_run(1)]
    assert [run["seed"] for run in load_runs(tmp_path)] == [0, 1, 2]


def test_runs_come_in_order_of_seed_not_of_name(tmp_path):
    for name, seed in (("a", 10), ("b", 9)):
        write(tmp_path / name, example_run(seed))
    assert [run["seed"] for run in load_runs(tmp_path)] == [9, 10]


def test_numbers_that_json_cannot_state_become_none(tmp_path):
    text = json.dumps(example_run()).replace('"loss": 0.131', '"loss": NaN', 1)
    text = text.replace('"load_ms": 41.0', '"load_ms": 1e999', 1)
    (tmp_path / "run.json").write_text(text)
    rows = load_runs(tmp_path)[0]["rows"]
    assert rows[0]["loss"] is None
    assert rows[0]["load_ms"] is None


DATA, MODEL = example_run(1)["data"], example_run(1)["model"]


def broken(**changes):
    return json.dumps(example_run() | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(example_run())[:2000], "is no complete JSON (line 1 .*run the recipe again"),
        ("", "is no complete JSON"),
        (b"\xff\xfe\x00", "is no complete JSON (not a text file in UTF-8)"),
        ("[" * 100_000, "is no complete JSON (nested more than 50 deep)"),
        ("[]", "JSON of another kind"),
        (json.dumps({"kind": "manifest"}), "JSON of another kind"),
        (broken(format_version=2), "has format version 2; this secateur reads 1"),
        (broken(format_version=None), "has format version None"),
        (broken(complete=False), "is incomplete: .*secateur run lab --data mnist --seed 0"),
        (broken(rows=None), "'rows' is missing"),
        (broken(rows=[{"row": "x"}]), "'rows[0].format' is missing"),
        (broken(stages=["x"]), "'stages[0]' is 'x', expected a table"),
        (broken(seed="0"), "'seed' is '0', expected a number"),
        (broken(model={"name": ["x"]}), "'model.name' is ['x'], expected text"),
        (broken(notes="x"), "'notes' is 'x', expected a list"),
    ],
)
def test_what_is_no_finished_run_is_refused_in_one_line(tmp_path, text, message):
    file = tmp_path / "run.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SecateurError) as caught:
        load_runs(tmp_path)
    said = str(caught.value)
    pattern = re.escape(message).replace(re.escape(".*"), ".*")
    assert re.search(pattern, said)
    assert "\n" not in said
    assert str(file) in said


def test_a_folder_without_a_run_says_what_was_expected(tmp_path):
    with pytest.raises(SecateurError, match=r"holds no run\.json"):
        load_runs(tmp_path)
    with pytest.raises(SecateurError, match="does not exist"):
        load_runs(tmp_path / "nowhere")


def test_a_folder_with_a_run_of_its_own_and_runs_inside_is_ambiguous(tmp_path):
    write(tmp_path, example_run(0))
    write(tmp_path / "seed-1", example_run(1))
    with pytest.raises(SecateurError, match="of its own and 1 Runs in folders"):
        load_runs(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 0}, "the same seed 0"),
        ({"name": "other"}, "differ in name"),
        ({"backend": "jax"}, "differ in backend"),
        ({"recipe": {"name": "lab", "seed": 1, "step": []}}, "differ in recipe key 'step'"),
        ({"data": {"name": "fashion-mnist"}}, "differ in data name"),
        ({"data": DATA | {"sizes": DATA["sizes"] | {"train": 500}}}, "differ in data sizes"),
        ({"data": DATA | {"sha256": "0" * 64}}, "differ in data sha256"),
        ({"data": DATA | {"notes": ["pixels divided by 127", *DATA["notes"][1:]]}}, "data notes"),
        ({"data": None}, "differ in data name"),
        ({"model": MODEL | {"name": "challenge-mlp"}}, "differ in model name"),
        ({"model": MODEL | {"parameters": 20411}}, "differ in model parameters"),
        ({"rows": example_run(1)["rows"][1:]}, "differ in rows"),
    ],
)
def test_runs_that_cannot_be_averaged_are_refused(tmp_path, changes, message):
    write(tmp_path / "a", example_run(0))
    write(tmp_path / "b", example_run(1) | changes)
    with pytest.raises(SecateurError, match=message):
        load_runs(tmp_path)


def test_names_that_keras_numbers_within_a_process_are_one_model(tmp_path):
    for seed, name in enumerate(("sequential", "sequential_1", "sequential_2")):
        run = example_run(seed)
        run["model"] |= {"name": name}
        write(tmp_path / str(seed), run)
    assert len(load_runs(tmp_path)) == 3
