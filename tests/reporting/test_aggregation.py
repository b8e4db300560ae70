"""Rows over seeds: like with like, differences seed by seed, no spread from one seed."""

import pytest
from tests.reporting.records_example import example_run, example_runs

from secateur.reporting import rows


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


def test_the_reference_is_the_float32_file_then_h5_then_keras():
    h5, keras = row("b-h5", form="h5", bytes=3), row("b-keras", form="keras", bytes=4)
    assert rows([run(0, keras, h5, row("b-float32", bytes=2))])[0]["reference"] == "b-float32"
    assert rows([run(0, keras, h5)])[0]["reference"] == "b-h5"
    assert rows([run(0, keras)])[0]["reference"] == "b-keras"
    # A float32 row without a size (a live model) cannot be the reference.
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
