"""The one sentence: true for every kind of Run, above all for the unflattering ones."""

import copy

import pytest
from tests.reporting.records_example import example_run, example_runs

from secateur.reporting import headline
from secateur.reporting.sentence import headline_parts


def changed(seeds=1, **stages):
    """The example with the rows of some stages changed: pruned={"accuracy": 0.5}; None drops them."""
    runs = copy.deepcopy(example_runs(seeds))
    for run in runs:
        for stage, values in stages.items():
            if values is None:
                run["rows"] = [row for row in run["rows"] if row["stage"] != stage]
            for row in run["rows"]:
                if row["stage"] == stage:
                    row.update(values)
    return runs


def test_three_seeds():
    said = headline(example_runs(3))
    assert said.startswith(
        "9.5 times smaller gzipped, 3.5 times raw, accuracy +0.4 points against the baseline, "
        "-1.0 against the dense control trained as long: "
    )
    assert "pruned-dynamic against baseline-float32" in said
    assert "24,472 B against 85,040 B raw" in said
    assert "accuracy 96.50 % (baseline 96.05 %, dense control 97.53 %)" in said
    assert "on a test set of 10,000, from +0.19 to +0.77 points" in said
    assert said.endswith("mean of 3 seeds (0, 1, 2).")
    assert "\n" not in said


def test_one_seed_shows_no_spread():
    said = headline(example_runs(1))
    assert "one seed (0)" in said
    assert "mean" not in said
    assert " to +" not in said


def test_worse_accuracy_keeps_its_sign():
    said = headline(changed(pruned={"accuracy": 0.9268}))
    assert "accuracy -3.0 points against the baseline" in said


def without_h5(runs):
    """The Runs without the files of another container: of equal sizes the first is the subject."""
    for run in runs:
        run["rows"] = [row for row in run["rows"] if row["format"] != "h5"]
    return runs


def test_a_change_below_a_tenth_of_a_point_is_not_rounded_away():
    said = headline(changed(pruned={"accuracy": 0.9572}))
    assert "accuracy +0.04 points against the baseline" in said
    assert "accuracy 0.0 points" in headline(changed(pruned={"accuracy": 0.9568}))


def test_a_larger_file_is_called_larger():
    said = headline(without_h5(changed(pruned={"bytes": 170080, "gzip_bytes": 154730})))
    assert said.startswith("2.0 times larger gzipped and 2.0 times larger raw")
    assert "smaller" not in said


def test_smaller_gzipped_but_not_raw_is_said_both_ways():
    said = headline(without_h5(changed(pruned={"bytes": 85124, "gzip_bytes": 23302})))
    assert said.startswith("3.3 times smaller gzipped but 0.1 % larger raw")


def test_equal_files_are_equal():
    runs = without_h5(changed(pruned={"bytes": 85040, "gzip_bytes": None}))
    assert headline(runs).startswith("exactly as large, accuracy")


def test_no_labels_means_no_accuracy():
    none = {"accuracy": None, "n": None}
    said = headline(changed(baseline=none, pruned=none, control=none))
    assert "accuracy was not measured" in said
    assert "points" not in said
    assert "test set" not in said


def test_regression_speaks_of_the_error():
    runs = changed(
        baseline={"accuracy": None, "mse": 0.10},
        pruned={"accuracy": None, "mse": 0.11},
        control={"accuracy": None, "mse": 0.08},
    )
    said = headline(runs)
    assert "mean squared error +10.0 % against the baseline, +37.5 % against the dense" in said
    assert "mean squared error 0.11 (baseline 0.1, dense control 0.08)" in said
    assert "accuracy" not in said
    assert "points" not in said


def test_without_a_baseline_nothing_is_compared():
    said = headline(changed(baseline=None))
    assert said.startswith("pruned-dynamic is 24,472 B, 8,134 B gzipped, accuracy 96.07 %")
    assert "no baseline file to compare it with" in said
    assert "times" not in said


def test_without_a_control_none_is_claimed():
    said = headline(changed(control=None))
    assert "control" not in said
    assert "accuracy +0.4 points against the baseline: " in said


def test_a_control_trained_for_another_time_is_not_called_as_long():
    runs = example_runs(1)
    runs[0]["stages"][2]["steps"] = 422
    assert "dense control (trained 422 steps, not 844)" in headline(runs)
    del runs[0]["stages"][2]["steps"]
    assert "against the dense control: " in headline(runs)


def test_only_the_baseline():
    runs = changed(pruned=None, control=None)
    said = headline(runs)
    assert said.startswith("3.9 times smaller gzipped, 3.5 times raw, accuracy +0.01 points")
    runs[0]["rows"] = [row for row in runs[0]["rows"] if row["row"] == "baseline-float32"]
    assert "there is no smaller file to compare it with" in headline(runs)
    runs[0]["rows"] = []
    assert "no file to report" in headline(runs)


def test_another_test_set_is_named_and_not_compared():
    said = headline(changed(baseline={"n": 500}, control={"n": 500}))
    assert "against the baseline" not in said
    assert "the baseline was measured on 500 and is not compared" in said


def test_the_baseline_without_accuracy_is_said():
    said = headline(changed(baseline={"accuracy": None}, control=None))
    assert said.startswith("9.5 times smaller gzipped, 3.5 times raw, accuracy 96.07 %: ")
    assert "the baseline's accuracy was not measured" in said


def test_the_h5_is_the_reference_where_there_is_no_tflite():
    runs = example_runs(1)
    runs[0]["rows"] = [row for row in runs[0]["rows"] if row["format"] in ("h5", "keras")]
    said = headline(runs)
    assert "pruned-h5 against baseline-h5" in said
    assert said.startswith("3.2 times smaller gzipped and less than 0.1 % smaller raw")


def test_another_container_is_named_where_the_size_is_said():
    runs = example_runs(1)
    runs[0]["rows"] = [
        row for row in runs[0]["rows"] if row["row"] in ("baseline-h5", "pruned-dynamic")
    ]
    said, _ = headline_parts(runs)
    assert said.startswith(
        "9.6 times smaller gzipped, 4.0 times raw (a .tflite file against a .h5 file), "
    )


def test_the_smallest_gzipped_file_of_the_compressed_model_is_the_subject():
    runs = changed(baseline={"gzip_bytes": 100})
    assert "pruned-dynamic against" in headline(runs)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_ratio_can_be_computed_from_the_bytes_named(seeds):
    said = headline(example_runs(seeds))
    packed = said.split("baseline-float32, ")[1].split(" gzipped")[0].replace(",", "")
    small, large = (float(part.removesuffix(" B")) for part in packed.split(" against "))
    assert f"{large / small:.1f} times smaller gzipped" in said


def test_the_record_is_not_changed():
    runs = example_runs(2)
    before = copy.deepcopy(runs)
    headline(runs)
    assert runs == before
    assert example_run(0) == runs[0]
