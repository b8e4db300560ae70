"""What the figures of the page are drawn from: stages in their order, curves of the right stage."""

import copy
import re

from tests.reporting.records_example import example_run, example_runs

from secateur.reporting import figures


def chained(run):
    """The record with a second compression step, of one epoch, after the first."""
    run = copy.deepcopy(run)
    second = copy.deepcopy(run["stages"][1])
    second |= {"name": "tuned", "method": "fine-tune", "epochs": 1, "steps": 100}
    second |= {"sparsity_curve": []}
    second["history"] = {key: values[:1] for key, values in second["history"].items()}
    run["stages"].insert(2, second)
    return run


def marks(runs, chart=1):
    """{line: epochs at which it has a mark of its own}, of the chart of the accuracy."""
    found = {}
    for name, epoch in re.findall(
        r"<title>([^<:]+): [^<]* at epoch (\d+)</title>", figures.curves(runs)[chart]["svg"]
    ):
        found.setdefault(name, []).append(int(epoch))
    return found


def test_each_stage_starts_where_the_one_before_it_ended():
    found = marks([chained(run) for run in example_runs(2)])
    for kind in ("training", "validation"):
        assert found[f"baseline, {kind}"] == [1]
        assert found[f"pruned, {kind}"] == [2, 3]
        assert found[f"tuned, {kind}"] == [4]
        assert found[f"dense control, {kind}"] == [2, 3]


def test_lines_are_joined_to_the_end_of_the_stage_that_they_continue(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        figures.charts, "line_chart", lambda lines, **_: drawn.append({n.name: n for n in lines})
    )
    figures.curves([chained(example_run())])
    lines = drawn[1]
    for name, stem in (("pruned", "baseline"), ("tuned", "pruned"), ("dense control", "baseline")):
        line = lines[f"{name}, validation"]
        assert line.joined == 1
        assert line.points[0] == lines[f"{stem}, validation"].points[-1]


def test_a_baseline_that_was_not_trained_here_leaves_the_order():
    run = chained(example_run())
    run["stages"][0]["history"] = {}
    found = marks([run])
    assert found["pruned, validation"] == found["dense control, validation"] == [1, 2]
    assert found["tuned, validation"] == [3]


def test_a_step_that_does_not_train_is_passed_over():
    run = chained(example_run())
    run["stages"][1]["history"] = {}
    assert marks([run])["tuned, validation"] == [2]


def test_the_zeros_are_drawn_of_the_last_stage_that_made_any():
    run = example_run()
    expected = figures.sparsity_curve(run)
    assert expected is not None and expected["stage"] == "pruned"
    assert figures.sparsity_curve(chained(run)) == expected
    for stage in run["stages"]:
        stage["sparsity_curve"] = []
    assert figures.sparsity_curve(run) is None
