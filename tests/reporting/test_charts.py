"""Round ticks, and lengths that are true to the numbers."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from secateur.reporting import charts

finite = st.floats(-1e9, 1e9, allow_nan=False)


@given(finite, finite)
@example(0.0, -4e-305)
@example(0.7, 0.7 + 1e-12)
def test_ticks_cover_the_range_and_rise(a, b):
    low, high = min(a, b), max(a, b)
    marks = charts.ticks(low, high)
    assert 2 <= len(marks) <= 8
    assert marks == sorted(set(marks))
    slack = 1e-6 * max(abs(low), abs(high))
    assert marks[0] <= low + slack
    assert marks[-1] >= high - slack


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 843, [0, 250, 500, 750, 1000]),
        (0.95, 0.98, [0.95, 0.96, 0.97, 0.98]),
        (0, 0.8, [0, 0.2, 0.4, 0.6, 0.8]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert charts.ticks(low, high) == pytest.approx(expected)


def test_a_kept_bar_is_as_long_as_what_is_kept():
    svg = charts.kept_bar(0.2, "x")
    assert re.search(r'<rect class="bar cut packed" width="20.00%"', svg)
    assert 'class="ghost" x1="20.00%" x2="100.00%"' in svg
    assert "ghost" not in charts.kept_bar(1.0, "x")


def test_the_dwarfing_zeros_are_a_stem_and_not_a_bin():
    edges, counts = [-1.0, -0.5, 0.5, 1.0], [10, 0, 10]
    svg = charts.histogram(
        (edges, [10, 20, 10]), (edges, counts), 16224, label="x", number=lambda v: f"{v:g}"
    )
    assert "16,224 zeros" in svg
    assert svg.count('<path class="hist') == 2


def test_a_constant_weight_draws():
    svg = charts.histogram(None, ([0.0, 0.0, 0.0], [3, 0]), 3, label="x", number=lambda v: f"{v:g}")
    assert "nan" not in svg


def test_labels_are_escaped():
    assert "<b>" not in charts.kept_bar(0.5, "<b>\"'&")


def test_a_long_line_shows_its_marks_to_the_pointer_only():
    def drawn(count):
        line = charts.Line(name="x", style="cut", points=[(i, i) for i in range(count)])
        axis = charts.Axis(ticks=[0, count], text=str)
        return charts.line_chart([line], x=axis, y=axis, label="x")

    assert "faint" not in drawn(10)
    assert drawn(11).count("faint") == 11


def test_a_bare_line_says_its_name_and_values_itself():
    axis = charts.Axis(ticks=[0.0, 1.0, 2.0], text=lambda v: f"<{v:g}>", label="epoch")
    line = charts.Line(
        name="a & b", style="cut", points=[(0, 0), (1, 1), (2, 0.5)], joined=1, bare=True
    )
    alone = charts.Line(name="one epoch", style="cut", points=[(1, 1)], bare=True)
    svg = charts.line_chart([line, alone], x=axis, y=axis, label="x")
    assert 'data-at="&lt;1&gt;|&lt;2&gt;" data-values="&lt;1&gt;|&lt;0.5&gt;"' in svg
    assert "<title>a &amp; b</title></path>" in svg
    assert svg.count("<circle") == 1 and "one epoch" in svg  # nothing to draw a path through
