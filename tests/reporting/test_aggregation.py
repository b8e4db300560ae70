"""Rows over seeds: like with like, differences seed by seed, no spread from one seed."""

import pytest
from tests.reporting.records_example import example_run, example_runs

from secateur.reporting import rows
from secateur.reporting.aggregation import references


def run(seed, *table):
    return {"seed": seed, "rows": list(table), "stages": []}


def row(name, stage="baseline", form="float32", **values):
    return {"row": name, "stage": stage, "format": form, **values}


def by_name(runs):
    return {entry["row"]: entry for entry in rows(runs)}


def test_sizes_are_compared_raw_with_raw_and_gzip_with_gzip():
    table = by_name(
        [
            run(
                0,
                row("baseline-float32", bytes=1000, gzip_bytes=900),
                row("pruned-dynamic", "pruned", "dynamic", bytes=250, gzip_bytes=90),
            )
        ]
    )
    small = table["pruned-dynamic"]
    assert (small["times_smaller"], small["percent"]) == (4.0, 25.0)
    assert (small["times_smaller_gzip"], small["percent_gzip"]) == (10.0, pytest.approx(10.0))
    assert small["reference"] == "baseline-float32"


@pytest.mark.parametrize(
    ("form", "baselines", "reference"),
    [
        ("int8", ["keras", "int8", "h5", "float32", "onnx"], "float32"),
        ("sparse", ["keras", "h5", "dynamic", "float32"], "float32"),
        ("int8", ["keras", "dynamic", "int8"], "int8"),  # no float file: one of the same format
        ("int16x8", ["keras", "dynamic"], "dynamic"),
        ("onnx-int8", ["float32", "keras", "onnx-int8", "onnx"], "onnx"),
        ("h5", ["float32", "keras", "h5"], "h5"),
        ("keras", ["float32", "keras", "h5"], "keras"),
        # Nothing of the same container: named as such.
        ("int8", ["keras", "h5", "onnx"], "h5"),
        ("onnx-int8", ["keras", "int8", "float32"], "float32"),
        ("keras", ["int8", "float32"], "float32"),
    ],
)
def test_a_file_is_compared_with_one_of_the_same_container_or_it_is_said(
    form, baselines, reference
):
    table = [row(f"b-{name}", form=name, bytes=9) for name in baselines]
    table = rows([run(0, *table, row("p", "pruned", form, bytes=3))])
    like = reference.partition("-")[0] == form.partition("-")[0] or {reference, form} <= {
        "float32", "sparse", "dynamic", "int8", "int16x8",
    }  # fmt: skip
    assert (table[-1]["reference"], table[-1]["same_container"]) == (f"b-{reference}", like)
    assert all(one["reference"] and one["same_container"] for one in table[:-1])
    assert (f"b-{reference} (another kind of file than p)" in references(table)) == (not like)


def test_a_row_without_a_size_is_no_reference():
    keras = row("b-keras", form="keras", bytes=4)
    assert rows([run(0, row("b-float32"), keras)])[0]["reference"] == "b-keras"
    assert rows([run(0, row("p", "pruned", bytes=1))])[0]["reference"] is None


def test_one_seed_has_no_spread_three_have_the_range():
    one = by_name(example_runs(1))["pruned-float32"]
    assert one["accuracy"] == 0.9606
    assert one["accuracy_min"] is one["accuracy_max"] is one["points_min"] is None
    three = by_name(example_runs(3))["pruned-float32"]
    assert three["accuracy"] == pytest.approx((0.9606 + 0.9652 + 0.9690) / 3)
    assert (three["accuracy_min"], three["accuracy_max"]) == (0.9606, 0.9690)
    assert three["seeds"] == 3


def test_points_are_taken_seed_by_seed():
    three = by_name(example_runs(3))["pruned-float32"]
    gaps = [100 * (p - b) for p, b in ((0.9606, 0.9568), (0.9652, 0.9634), (0.9690, 0.9614))]
    assert three["points"] == pytest.approx(sum(gaps) / 3)
    assert (three["points_min"], three["points_max"]) == (
        pytest.approx(min(gaps)),
        pytest.approx(max(gaps)),
    )
    assert three["points_control"] == pytest.approx(-1.033, abs=0.001)


def test_accuracies_on_different_test_sets_are_not_subtracted():
    table = by_name(
        [
            run(
                0,
                row("baseline-float32", bytes=10, accuracy=0.9, n=1000),
                row("pruned-float32", "pruned", bytes=10, accuracy=0.8, n=500),
            )
        ]
    )
    assert table["pruned-float32"]["points"] is None


def test_only_seeds_that_both_sides_have_are_compared():
    runs = [
        run(0, row("b", bytes=100, accuracy=0.5), row("p", "pruned", bytes=50, accuracy=0.6)),
        run(1, row("b", bytes=300, accuracy=0.9)),
    ]
    table = by_name(runs)
    assert table["p"]["times_smaller"] == 2.0
    assert table["p"]["points"] == pytest.approx(10.0)


def test_missing_and_unusable_numbers_are_none():
    table = by_name([run(0, row("b", bytes=0, accuracy=float("nan"), latency=None))])
    assert table["b"]["accuracy"] is None
    assert table["b"]["times_smaller"] is None
    assert table["b"]["latency_us"] is None


def test_every_row_of_the_example_is_there_in_order():
    assert [entry["row"] for entry in rows(example_runs(3))] == [
        entry["row"] for entry in example_run()["rows"]
    ]
