"""A sweep's points: what each computes, that several processes change nothing, when the test part is read."""

import csv
import dataclasses
import io
import json

import keras
import numpy as np
import pytest

from secateur import datasets
from secateur.choosing import choose
from secateur.compression import compress
from secateur.errors import SecateurError
from secateur.grids import Grid
from secateur.points import compute, train_dense
from secateur.recipe import Recipe
from secateur.reporting.sweep_series import csv_text
from secateur.runtimes.keras import KerasSession
from secateur.scoring import accuracy
from secateur.store import Store
from secateur.subjects import Subject
from secateur.sweeps import sweep

BASE = {"name": "small", "model": "lenet-300-100", "data": "digits", "train": {"epochs": 2}}
OUT = {"output": False}


def grid(*curves, **keys):
    return {"files": "none", **BASE, **keys, "curves": list(curves)}


def pruned(name, sparsities, *, epochs=0, **method):
    step = {"method": "prune", "sparsity": {"sweep": list(sparsities)}, **method}
    return {"name": name, "steps": [{**step, "train": {"epochs": epochs}}]}


def table(found):
    """The records without times."""
    drop = ("created", "seconds")
    return [{key: value for key, value in r.items() if key not in drop} for r in found.records]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    curves = [
        {"name": "dense"},
        pruned("weights", [0.5, 0.9]),
        pruned("units", [0.5, 0.999], pattern="units", criterion="l2", select=OUT),
        pruned("tuned", [0.9], epochs=1),
        {"name": "scratch", "from_scratch": {"sparsity": 0.5, "epochs": 2}},
        pruned("rewound", [0.8], epochs=2, rewind={"rounds": 2, "to": 1}),
    ]
    return sweep(grid(*curves), out=tmp_path_factory.mktemp("sweep"))


def of(found, curve, asked=None):
    (one,) = [
        r for r in found.records if r["curve"] == curve and asked in (None, r["sparsity"]["asked"])
    ]
    return one


def test_every_kind_of_point_has_its_record(found):
    assert [r["status"] for r in found.records] == ["done"] * 4 + ["impossible"] + ["done"] * 3
    assert len({tuple(r) for r in found.records}) == 1  # the same keys
    epochs = {r["curve"]: r["epochs"] for r in found.records}
    assert epochs["dense"] == {"dense": 2, "after": 0, "total": 2}
    assert epochs["tuned"] == {"dense": 2, "after": 1, "total": 3}
    assert epochs["scratch"] == {"dense": 0, "after": 2, "total": 2}
    assert epochs["rewound"]["after"] == 2 * (2 - 1)
    assert of(found, "weights", 0.9)["sparsity"]["realised"] == pytest.approx(0.9, abs=1e-4)
    assert of(found, "scratch")["shape"] == "64-150-50-10"
    assert len(of(found, "dense")["history"]["dense"]["loss"]) == 2
    assert len(of(found, "tuned")["history"]["after"]["loss"]) == 1


def test_the_history_of_a_point_is_of_every_step_that_trained(tmp_path):
    steps = [
        {"method": "prune", "sparsity": 0.5, "train": {"epochs": 2}},
        {"method": "prune", "sparsity": 0.8, "train": {"epochs": 1}},
        {"method": "prune", "sparsity": 0.9, "train": {"epochs": 0}},
    ]
    found = sweep(grid({"name": "thrice", "steps": steps}), out=tmp_path)
    after = found.records[0]["history"]["after"]
    assert {name: len(values) for name, values in after.items()} == dict.fromkeys(after, 3)
    assert {"loss", "val_loss"} <= set(after)


def test_a_layer_without_units_is_impossible_and_the_sweep_goes_on(found):
    record = of(found, "units", 0.999)
    assert record["status"] == "impossible" and "\n" not in record["error"]
    assert record.get("test") is None


def test_one_shot_points_agree_with_the_slow_way(found):
    data = datasets.load("digits", seed=0)
    g = Grid.load(grid({"name": "dense"}))
    (point,) = g.points()
    subject = Subject.of(point, None, data)
    dense = train_dense(point, subject)
    model = subject.model
    model.set_weights(dense.weights)
    step = {"method": "prune", "sparsity": 0.9, "train": {"epochs": 0}}
    small = compress(model, Recipe.from_dict({"steps": [step]}), subject.data).model
    outputs = KerasSession(small).predict(subject.data.test.x)
    expected = accuracy(outputs, subject.data.test.y)
    record = of(found, "weights", 0.9)
    assert record["test"]["accuracy"] == pytest.approx(expected, abs=1e-9)


def test_units_cost_what_the_network_of_the_kept_widths_costs(found):
    record = of(found, "units", 0.5)
    assert record["shape"] == "64-150-50-10"
    alive = 64 * 150 + 150 * 50 + 50 * 10
    every = 64 * 300 + 300 * 100 + 100 * 10
    assert record["sparsity"]["dead"]["network"] == pytest.approx(1 - alive / every)


class Spy:
    """A split that says when it is read."""

    def __init__(self, split, log):
        self._split, self._log = split, log

    def __len__(self):
        return len(self._split)

    def __getattr__(self, name):
        self._log.append(name)
        return getattr(self._split, name)


def test_the_test_part_is_read_once_at_the_end(monkeypatch):
    data = datasets.load("digits", seed=0)
    (point,) = Grid.load(grid(pruned("tuned", [0.9], epochs=1))).points()
    subject = Subject.of(point, None, data)
    log = []
    fitted = dataclasses.replace(subject.data, test=Spy(subject.data.test, log))
    subject = dataclasses.replace(subject, data=fitted)
    log.clear()  # making `Data` looked at shapes
    read = []
    fit = keras.Model.fit

    def watched(self, *arguments, **keys):
        try:
            return fit(self, *arguments, **keys)
        finally:
            read.append(list(log))

    def describe(self):  # sizes and shapes, no value that could choose anything
        return {"name": "digits"}

    monkeypatch.setattr(keras.Model, "fit", watched)
    monkeypatch.setattr(datasets.Data, "describe", describe)
    identity = "0" * 64
    dense = train_dense(point, subject)
    before = list(log)
    record = compute(point, identity, subject, dense)
    assert read and not any(read) and not before
    assert log and record["test"]["n"] == len(data.test)


@pytest.mark.slow
def test_a_choice_of_workers_changes_no_number(found, tmp_path):
    curves = [{"name": "dense"}, pruned("weights", [0.5, 0.9]), pruned("tuned", [0.9], epochs=1)]
    alone = sweep(grid(*curves), out=tmp_path / "alone")
    several = sweep(grid(*curves), out=tmp_path / "several", workers=2)
    assert table(alone) == table(several)
    assert of(alone, "tuned")["test"] == of(found, "tuned")["test"]


def test_a_live_model_and_arrays_travel_to_workers(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 6)).astype("float32")
    y = (x[:, 0] > 0).astype(int)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dense(2)])
    curves = [{"name": "dense"}, pruned("weights", [0.5])]
    keys = {"name": "own", "files": "none", "curves": curves}
    model.name = "mine"
    alone = sweep(keys, model, (x, y), out=tmp_path / "a")
    several = sweep(keys, model, (x, y), out=tmp_path / "b", workers=2)
    assert table(alone) == table(several) and len(alone) == 2


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="one backend is enough")
def test_time_is_taken_once_a_shape_and_zeros_carry_the_dense_one(tmp_path, monkeypatch):
    from secateur import shape_timing

    timed = []
    real = shape_timing.measure

    def counted(path, *arguments, **keys):
        timed.append(path)
        return real(path, *arguments, **keys)

    monkeypatch.setattr(shape_timing, "measure", counted)
    curves = [{"name": "dense"}, pruned("weights", [0.5, 0.9]), pruned("u", [0.5], pattern="units")]
    curves[2]["steps"][0]["select"] = OUT
    keys = grid(*curves, files="first-seed", export={"formats": ["float32"]}, seeds=[0, 1])
    found = sweep(keys, out=tmp_path)
    assert len(timed) == 2
    first = [r for r in found.records if r["seed"] == 0]
    assert [r["latency"]["of"] for r in first] == [
        "this network",
        "the dense network",
        "the dense network",
        "this network",
    ]
    assert first[1]["latency"]["median_us"] == first[0]["latency"]["median_us"]
    assert all(r["file"] is None and r["latency"] is None for r in found.records if r["seed"] == 1)
    assert first[2]["file"]["gzip_bytes"] < first[1]["file"]["gzip_bytes"]
    files = [p for p in tmp_path.glob("points/*/*.tflite")]
    assert len(files) == 4 and first[3]["file"]["bytes"] < first[0]["file"]["bytes"] / 2
    json.dumps(found.rows)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="one backend is enough")
def test_every_format_of_a_point_is_timed_and_chosen_from(tmp_path, monkeypatch):
    from secateur import shape_timing

    timed = []
    real = shape_timing.measure

    def counted(path, *arguments, **keys):
        timed.append(path.name)
        return real(path, *arguments, **keys)

    monkeypatch.setattr(shape_timing, "measure", counted)
    curves = [{"name": "dense"}, pruned("weights", [0.5])]
    keys = grid(*curves, files="all", export={"formats": ["float32", "dynamic"]})
    found = sweep(keys, out=tmp_path)
    assert len(timed) == 2  # two formats, one shape
    for record in found.records:
        times = {row["format"]: row["latency"] for row in record["rows"]}
        assert len(times) == 2 and record["latency"] == times[record["file"]["format"]]
        of = "the dense network" if record["kind_of"] == "weights" else "this network"
        assert {latency["of"] for latency in times.values()} == {of}
    choice = choose(found, max_latency="1s")
    assert len(choice.candidates) == 4 and not choice.notes
    assert all(c.value("latency_us") and c.value("gzip_bytes") for c in choice.candidates)
    # A store of before, in which one format has a time: the others get theirs, that one keeps its own.
    store = Store(tmp_path)
    for record in found.records:
        rows = [{**row, "latency": None} for row in record["rows"]]
        latency = {**record["latency"], "median_us": 7.0}
        store.write({**record, "rows": rows, "latency": latency})
    again = sweep(keys, out=tmp_path)
    assert len(timed) == 3 and all(r["latency"]["median_us"] == 7.0 for r in again.records)


def test_a_network_of_quantities_is_swept_and_chosen_from(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6)).astype("float32")
    y = (x[:, :1] - 0.5 * x[:, 1:2]).astype("float32") + 3
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.05), "mse")
    model.fit(x, y, epochs=20, verbose=0)  # else losing weights may do it good
    keys = {
        "name": "quantities",
        "files": "all",
        "export": {"formats": ["keras"]},
        "curves": [{"name": "dense"}, pruned("weights", [0.5])],
    }
    found = sweep(keys, model, (x, y), out=tmp_path)
    dense, half = found.rows
    assert dense["test_mse"] > 0 and dense["test_accuracy"] is None and half["validation_mse"] > 0
    choice = choose(found, max_drop=1e9)
    assert choice.quality == "mse" and choice.feasible == 2 and choice.test["mse"] is not None
    assert choose(found, max_drop=0).chosen.name == "dense"


def test_a_renamed_curve_is_not_computed_again(tmp_path):
    first = sweep(grid(pruned("weights", [0.5])), out=tmp_path)
    again = sweep(grid(pruned("magnitude", [0.5])), out=tmp_path)
    assert [r["curve"] for r in again.records] == ["magnitude"]
    assert again.records[0]["created"] == first.records[0]["created"]


def test_a_column_that_is_not_there_is_named(found):
    assert found.column("asked")[1] == 0.5
    with pytest.raises(SecateurError, match="no column 'accuraccy'.*test_accuracy"):
        found.column("accuraccy")


def test_rows_and_csv_have_the_same_names_and_values(found):
    """One table, whichever way it is asked for."""
    rows = {row["fingerprint"]: row for row in found.rows}
    text = csv_text(found.records)
    table = list(csv.DictReader(io.StringIO(text)))
    assert set(table[0]) == {name for row in rows.values() for name in row}
    assert len(table) == len(rows) == len(found)
    for line in table:
        row = rows[line["fingerprint"]]
        assert [name for name in line if name in row] == list(row)
        for name, cell in line.items():
            value = row.get(name)
            expected = json.dumps(value) if isinstance(value, dict | list | bool) else value
            assert cell == ("" if expected is None else str(expected)), name
    (tuned,) = [row for row in rows.values() if row["curve"] == "tuned"]
    record = of(found, "tuned")
    assert tuned["test_accuracy"] == record["test"]["accuracy"]
    assert tuned["validation_loss"] == record["validation"]["loss"]
    assert tuned["wall_seconds"] == record["seconds"]["wall"]
    assert tuned["steps.0.sparsity"] == 0.9


def test_what_cannot_be_sent_is_refused(tmp_path):
    class Stream:
        pass

    with pytest.raises(SecateurError):
        sweep(grid(pruned("w", [0.5])), data=Stream(), out=tmp_path, workers=2)
