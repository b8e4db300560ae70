"""Choosing a file: validation decides, budgets hold, what cannot be had is told, the test part waits."""

import json
import random

import pytest

from secateur.candidates import candidates
from secateur.choosing import choose, pareto_front, parse_size, parse_time
from secateur.errors import SecateurError
from secateur.reporting.choice import front_table, sentences
from secateur.reporting.pareto import write_pareto

# curve, sparsity, format -> (validation accuracy a seed, test accuracy a seed, bytes, gzip bytes)
FILES = {
    ("dense", None, "float32"): ([0.970, 0.974, 0.972], [0.96, 0.96, 0.96], 800, 700),
    ("dense", None, "int8"): ([0.968, 0.974, 0.970], [0.95, 0.95, 0.95], 200, 180),
    ("pruned", 0.5, "int8"): ([0.969, 0.973, 0.971], [0.91, 0.92, 0.93], 200, 110),
    ("pruned", 0.9, "int8"): ([0.950, 0.960, 0.955], [0.99, 0.99, 0.99], 200, 40),
    ("narrow", 0.5, "int8"): ([0.960, 0.966, 0.963], [0.90, 0.90, 0.90], 90, 80),
}
NETWORK = {"dense": FILES["dense", None, "float32"][0]}


def records(*, seeds=(0, 1, 2), files=FILES, **beside):
    """Point records as a sweep writes them."""
    found = {}
    for (curve, sparsity, kind), (validation, test, size, packed) in files.items():
        for seed in seeds:
            settings = {} if sparsity is None else {"steps.0.sparsity": sparsity}
            point = found.setdefault(
                (curve, sparsity, seed),
                {
                    "format_version": 1,
                    "kind": "point",
                    "status": "done",
                    "fingerprint": f"{curve}{sparsity}{seed}".ljust(64, "0"),
                    "curve": curve,
                    "seed": seed,
                    "settings": settings,
                    "kind_of": "dense" if curve == "dense" else "weights",
                    "epochs": {"dense": 1, "after": 0, "total": 1},
                    "model": {"name": "m"},
                    "data": {"name": "d"},
                    "backend": "jax",
                    "validation": {"n": 50, "accuracy": NETWORK.get(curve, validation)[seed]},
                    "test": {"n": 100, "accuracy": test[seed]},
                    "rows": [],
                },
            )
            row = {
                "row": f"{curve}-{kind}",
                "stage": curve,
                "format": kind,
                "path": f"{curve}-{kind}.tflite",
                "bytes": size,
                "gzip_bytes": packed,
                "n": 100,
                "accuracy": test[seed],
                "validation": {"n": 50, "accuracy": validation[seed]},
            }
            point["rows"].append({**row, **beside})
    return list(found.values())


def picked(found):
    return found.chosen and (found.chosen.name, found.chosen.format)


# --- what decides ---------------------------------------------------------------------------------


def test_the_most_accurate_on_validation_data_among_those_that_fit():
    assert picked(choose(records())) == ("dense", "float32")
    assert picked(choose(records(), max_bytes=300)) == ("pruned, sparsity 0.5", "int8")
    assert picked(choose(records(), max_bytes=100)) == ("narrow, sparsity 0.5", "int8")
    # 0.9 has the best test accuracy by far: it is not what decides.
    found = choose(records(), max_gzip=50)
    assert picked(found) == ("pruned, sparsity 0.9", "int8") and found.feasible == 1


def test_a_limit_on_the_drop_alone_picks_the_smallest_gzipped():
    # mean drops in points: 0, 0.13, 0.1, 1.7, 0.9
    assert picked(choose(records(), max_drop=0.5)) == ("pruned, sparsity 0.5", "int8")
    assert picked(choose(records(), max_drop=1.0)) == ("narrow, sparsity 0.5", "int8")
    assert picked(choose(records(), max_drop=2)) == ("pruned, sparsity 0.9", "int8")
    assert picked(choose(records(), max_drop=0.5, prefer="accuracy")) == ("dense", "float32")
    assert picked(choose(records(), max_drop=1.0, max_bytes=250)) == (
        "pruned, sparsity 0.5",
        "int8",
    )
    assert picked(choose(records(), max_drop=0.5, formats=["float32"])) == ("dense", "float32")


def test_a_drop_of_exactly_the_limit_is_within_it():
    files = {
        ("dense", None, "float32"): ([0.97], [0.9], 800, 700),
        ("pruned", 0.5, "int8"): ([0.965], [0.9], 200, 110),
    }
    network = {"dense": [0.97]}
    points = records(seeds=(0,), files=files)
    points[0]["validation"]["accuracy"] = network["dense"][0]
    assert 100 * (0.97 - 0.965) > 0.5  # what floats make of half a point
    assert picked(choose(points, max_drop=0.5)) == ("pruned, sparsity 0.5", "int8")


def test_seeds_are_paired_with_the_dense_network_of_the_same_seed():
    points = records()
    for point in points:
        if point["curve"] == "dense" and point["seed"] == 0:
            point["validation"]["accuracy"] = 0.5
    by_name = {(c.name, c.format): c for c in candidates(points)}
    drop = by_name["pruned, sparsity 0.5", "int8"].drop
    assert drop == pytest.approx(100 * ((0.5 - 0.969) + 0.001 + 0.001) / 3)


def test_the_file_to_ship_is_that_of_the_seed_nearest_to_the_median():
    found = choose(records(), max_bytes=300)
    assert found.file.seed == 2 and found.file.accuracy == 0.971  # of 0.969, 0.973, 0.971
    assert found.test["accuracy"] == 0.93 and found.test["mean"] == pytest.approx(0.92)
    assert (found.test["lowest"], found.test["highest"], found.test["seeds"]) == (0.91, 0.93, 3)


def test_a_file_that_is_shipped_holds_the_budget_itself_not_only_in_the_mean():
    points = records()
    for point in points:
        for row in point["rows"]:
            if point["curve"] == "narrow":
                row["bytes"] = {0: 80, 1: 81, 2: 99}[point["seed"]]
    found = choose(points, max_bytes=90)
    assert found.chosen.value("bytes") == pytest.approx(260 / 3)
    assert found.file.bytes <= 90 and found.file.seed == 0  # 2 is nearer to the median of all three


def test_the_order_of_the_records_changes_nothing():
    points = records()
    first = choose(points, max_bytes=300).to_record()
    random.Random(1).shuffle(points)
    again = choose(points, max_bytes=300).to_record()
    assert (again["chosen"], again["file"], again["front"]) == (
        first["chosen"], first["file"], first["front"],
    )  # fmt: skip


# --- the test part --------------------------------------------------------------------------------


class Sealed(dict):
    """A record whose test figures may not be read yet."""

    TEST = ("test", "accuracy", "loss", "label_accuracy", "top5", "mse", "mae", "metrics", "n")
    open = False

    def _check(self, key):
        if not Sealed.open and key in self.TEST:
            raise AssertionError(f"{key!r} was read before the choice was made")

    def __getitem__(self, key):
        self._check(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        self._check(key)
        return super().get(key, default)

    def items(self):
        raise AssertionError("everything was read")

    values = items
    copy = items


def sealed(points):
    return [Sealed(point, rows=[Sealed(row) for row in point["rows"]]) for point in points]


def run_record(seed=0, **rows):
    stages = {"baseline": 0.97, "pruned": 0.965}
    return {
        "kind": "run",
        "seed": seed,
        "rows": [
            {
                "row": f"{stage}-{kind}", "stage": stage, "format": kind, "path": f"{stage}.{kind}",
                "bytes": {"keras": 900, "float32": 800, "int8": 200}[kind] - (stage == "pruned"),
                "gzip_bytes": 100, "accuracy": 0.5, "n": 100,
                "latency": {"median_us": 40.0 if kind == "int8" else 90.0},
                "validation": {"n": 50, "accuracy": accuracy - (kind == "int8") / 1000}, **rows,
            }
            for stage, accuracy in stages.items()
            for kind in ("keras", "float32", "int8")
        ],
    }  # fmt: skip


@pytest.mark.parametrize("points", [records(), [run_record()]], ids=["sweep", "run"])
@pytest.mark.parametrize("budgets", [{"max_bytes": 300}, {"max_drop": 1.0}, {"max_bytes": 1}, {}])
def test_no_test_figure_is_read_before_the_choice_is_made(points, budgets, monkeypatch):
    monkeypatch.setattr(Sealed, "open", False)
    with pytest.raises(AssertionError):  # the seal holds
        sealed(points)[0]["rows"][0]["accuracy"]
    found = choose(sealed(points), **budgets)
    if found.chosen is None:
        assert found.test is None
        return
    with pytest.raises(AssertionError):  # and the report is what breaks it
        found.test  # noqa: B018
    monkeypatch.setattr(Sealed, "open", True)
    assert found.test["accuracy"] is not None


# --- what cannot be had ---------------------------------------------------------------------------


def test_nothing_feasible_names_the_nearest_what_it_would_take_and_the_range():
    found = choose(records(), max_bytes=100, max_drop=0.5)
    assert found.chosen is None and found.file is None and found.test is None
    assert (found.nearest.name, found.feasible) == ("narrow, sparsity 0.5", 0)
    assert found.needed["max_bytes"] == 200
    assert found.needed["max_drop"] == pytest.approx(0.9)
    assert found.ranges["bytes"] == (90, 800)
    assert found.ranges["drop"] == pytest.approx((0.0, 1.7))
    told = "\n".join(sentences(found.to_record()))
    assert "No file holds --max-bytes 100 B and --max-drop 0.50." in told
    assert "Nearest: narrow, sparsity 0.5, int8" in told
    assert "With the other budgets kept it would take --max-drop 0.90." in told
    # What is said to be enough is enough.
    for name, value in (("max_bytes", 200), ("max_drop", 0.9)):
        budgets = {"max_bytes": 100, "max_drop": 0.5, name: value}
        assert choose(records(), **budgets).chosen is not None


def test_a_budget_that_no_other_value_would_mend_says_so():
    found = choose(records(), max_bytes=10, max_gzip=10)
    assert found.needed == {"max_bytes": None, "max_gzip": None}
    assert "No --max-gzip would do: no file holds the other budgets." in sentences(
        found.to_record()
    )


def test_files_that_were_not_measured_are_counted_not_guessed():
    points = records()
    for point in points:
        if point["curve"] == "dense":
            for row in point["rows"]:
                row["latency"] = {"median_us": 30.0}
    found = choose(points, max_latency="1ms")
    assert found.chosen.name == "dense"
    assert found.notes == ["3 of 5 (int8) have no latency"]
    assert "3 of 5 (int8) have no latency" in sentences(found.to_record())


def test_latency_beside_the_rows_is_that_of_the_file_that_was_timed():
    points = records()
    for point in points:
        point["latency"], point["file"] = {"median_us": 12.0}, {"format": "int8"}
    values = {(c.name, c.format): c.value("latency_us") for c in candidates(points)}
    assert values["dense", "int8"] == 12.0 and values["dense", "float32"] is None


def test_records_without_validation_figures_are_refused_or_judged_by_the_network():
    points = records()
    for point in points:
        for row in point["rows"]:
            row["validation"] = None
    # A float file answers as its network does, an int8 one need not.
    found = choose(points)
    assert picked(found) == ("dense", "float32")
    assert found.notes == ["4 of 5 (int8) have no validation accuracy"]
    with pytest.raises(
        SecateurError, match="none of 4 candidates can be judged .*make these files"
    ):
        choose(points, formats=["int8"])
    with pytest.raises(SecateurError, match="make these files again with this secateur"):
        choose([run_record(validation=None)])


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: choose(records(), max_bytes="many"), "max_bytes 'many' received.*250kB"),
        (lambda: choose(records(), max_bytes=-1), "max_bytes -1"),
        (lambda: choose(records(), max_latency="2"), "expected a time as 2ms"),
        (lambda: choose(records(), max_latency="2 kB"), "expected a time as 2ms"),
        (lambda: choose(records(), max_drop=float("nan")), "max_drop nan received"),
        (lambda: choose(records(), prefer="smallest"), "prefer 'smallest' received"),
        (lambda: choose(records(), formats=["int4"]), "no file of format 'int4'"),
        (lambda: choose([]), "received no record"),
        (lambda: choose([{**p, "rows": []} for p in records()]), 'files = "all"'),
        (lambda: choose([{**p, "kind_of": "weights"} for p in records()], max_drop=1), "name = \"dense\""),
        (lambda: choose(records(), max_latency="2ms"), "have no latency"),
        (lambda: choose([run_record(), run_record()]), "each seed once"),
        (lambda: choose("no/such/folder"), "does not exist"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(call, told):
    with pytest.raises(SecateurError, match=told) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("250kB", 250e3), ("1MiB", 2**20), ("300000", 3e5), (300, 300), ("1.5 MB", 1.5e6), ("7b", 7)],
)
def test_sizes(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2ms", 2000), ("800us", 800), ("1s", 1e6), (0.002, 2000), ("0.5 ms", 500)],
)
def test_times(text, expected):
    assert parse_time(text) == pytest.approx(expected)


def test_of_a_point_that_is_there_twice_the_last_one_counts():
    old = [{**point, "created": "2026-01-01"} for point in records()]
    for point in old:
        point["rows"] = [{**row, "bytes": 1} for row in point["rows"]]
    new = [{**point, "created": "2026-02-01"} for point in records()]
    assert choose(new + old, max_bytes=300).to_record() == choose(new, max_bytes=300).to_record()


# --- a Run, its folder ----------------------------------------------------------------------------


def test_a_run_is_chosen_from_as_well_and_its_control_is_never_shipped(tmp_path):
    run = run_record()
    best = {**run["rows"][0], "row": "control-keras", "stage": "control"}
    best["validation"] = {"accuracy": 1.0}
    run["rows"].append(best)
    assert picked(choose([run])) == ("baseline", "float32")
    found = choose([run], max_latency="50us", max_drop=0.7)
    assert picked(found) == ("baseline", "int8")
    assert picked(choose([run], max_bytes=199)) == ("pruned", "int8")


# --- quantities -----------------------------------------------------------------------------------


def quantities():
    """The same points, as a network that answers with quantities has them: error 1 - accuracy."""
    found = records()
    for point in found:
        for part in ("validation", "test"):
            point[part] = {"n": 50, "mse": 1 - point[part]["accuracy"]}
        for row in point["rows"]:
            row["mse"] = 1 - row.pop("accuracy")
            row["validation"] = {"n": 50, "mse": 1 - row["validation"]["accuracy"]}
    return found


def test_quantities_are_judged_by_their_squared_error():
    points = quantities()
    found = choose(points)
    assert picked(found) == ("dense", "float32") and found.prefer == found.quality == "mse"
    assert picked(choose(points, max_bytes=300)) == ("pruned, sparsity 0.5", "int8")
    # Errors of the dense network 0.03, 0.026, 0.028: pruned by 0.5 has 3.3, 3.8, 3.6 % more.
    assert picked(choose(points, max_drop=5)) == ("pruned, sparsity 0.5", "int8")
    assert choose(points, max_drop=5).chosen.drop == pytest.approx(3.58, abs=0.01)
    assert picked(choose(points, max_drop=3)) == ("dense", "float32")
    found = choose(points, max_bytes=300)
    assert found.file.seed == 2 and found.test["mse"] == pytest.approx(0.07)
    assert found.test["lowest"] == pytest.approx(0.07) and found.test["seeds"] == 3
    assert {(c.name, c.format) for c in found.front} == {
        ("narrow, sparsity 0.5", "int8"), ("pruned, sparsity 0.5", "int8"), ("dense", "float32"),
    }  # fmt: skip
    assert choose(points, prefer="mse").to_record() == choose(points).to_record()


def test_a_choice_by_error_is_told_in_its_own_words(tmp_path):
    record = choose(quantities(), max_bytes=300, max_drop=5, prefer="mse").to_record()
    told = "\n".join(sentences(record))
    assert "the one of the smallest squared error of 2 of 5 files" in told
    assert "validation squared error 0.029" in told and "+3.58 % against the dense" in told
    assert "Test squared error of this file: 0.07 on 100 samples" in told and "accuracy" not in told
    infeasible = "\n".join(sentences(choose(quantities(), max_bytes=100, max_drop=5).to_record()))
    assert "squared error 0.028..0.045" in infeasible and "points" not in infeasible
    assert "squared error" in str(front_table(record).title)
    pytest.importorskip("matplotlib")
    write_pareto(record, tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 5000


def test_files_without_any_figure_of_quality_are_refused_with_the_reason():
    points = quantities()
    for point in points:
        point["validation"] = {"n": 50}
        for row in point["rows"]:
            row["validation"] = {"n": 50}
    with pytest.raises(
        SecateurError, match="have no validation accuracy.*quantities by mse"
    ) as told:
        choose(points)
    assert "\n" not in str(told.value)
    with pytest.raises(SecateurError, match="prefer 'accuracy' received.*judged by mse"):
        choose(quantities(), prefer="accuracy")
    with pytest.raises(SecateurError, match="prefer 'mse' received.*judged by accuracy"):
        choose(records(), prefer="mse")
    for point in points:  # a dense network without any error: no share of it to lose
        point["validation"] = {"n": 50, "mse": 0.0}
        for row in point["rows"]:
            row["validation"] = {"n": 50, "mse": 0.1}
    with pytest.raises(SecateurError, match="dense network to compare with"):
        choose(points, max_drop=1)


def test_every_format_has_a_time_of_its_own():
    points = records()
    for point in points:
        for row in point["rows"]:
            row["latency"] = {"median_us": 90.0 if row["format"] == "float32" else 30.0}
            row["arena_bytes"] = None if row["format"] == "float32" else 2000
    values = {(c.name, c.format): c.value("latency_us") for c in candidates(points)}
    assert (values["dense", "float32"], values["dense", "int8"]) == (90.0, 30.0)
    assert picked(choose(points, max_latency="50us")) == ("pruned, sparsity 0.5", "int8")
    assert picked(choose(points, prefer="latency", formats=["float32"])) == ("dense", "float32")


# --- the front ------------------------------------------------------------------------------------


def test_the_front_holds_what_no_other_beats():
    every = candidates(records())
    front = pareto_front(every, "gzip_bytes")
    assert [(c.name, c.format) for c in front] == [
        ("pruned, sparsity 0.9", "int8"),
        ("narrow, sparsity 0.5", "int8"),
        ("pruned, sparsity 0.5", "int8"),
        ("dense", "float32"),
    ]
    for one in every:
        beaten = any(
            c.value("gzip_bytes") <= one.value("gzip_bytes") and c.accuracy >= one.accuracy
            for c in every
            if c is not one
        )
        assert beaten == (one not in front)
    assert choose(records(), max_bytes=300).front_by == "bytes"
    assert choose(records(), max_drop=1).front_by == "gzip_bytes"


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_figure_is_the_same_for_the_same_choice(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    contents = []
    for name in ("one", "two"):
        record = choose(records(), max_bytes=300).to_record()
        write_pareto(json.loads(json.dumps(record)), tmp_path / f"{name}{suffix}")
        contents.append((tmp_path / f"{name}{suffix}").read_bytes())
    assert len(contents[0]) > 5000
    if suffix != ".svg":  # Matplotlib draws the ids of an SVG by lot
        assert contents[0] == contents[1]
    with pytest.raises(SecateurError, match="expected .png, .svg, .pdf"):
        write_pareto(record, tmp_path / "front.jpg")
    infeasible = choose(records(), max_bytes=10).to_record()
    write_pareto(infeasible, tmp_path / f"none{suffix}")
    assert front_table(infeasible).row_count == 3


def test_a_choice_is_plain_json():
    record = choose(records(), max_bytes=300).to_record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
