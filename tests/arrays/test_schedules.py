import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.arrays.schedules import SHAPES, Schedule
from secateur.errors import SecateurError

fractions = st.floats(0, 1)


@st.composite
def timetables(draw, shapes=tuple(SHAPES)):
    begin, end = sorted((draw(fractions), draw(fractions)))
    schedule = Schedule(
        shape=draw(st.sampled_from(shapes)),
        initial=draw(fractions),
        power=draw(st.floats(0.25, 8)),
        begin=begin,
        end=end,
        every=draw(st.integers(1, 50)),
    )
    return schedule.resolve(steps=draw(st.integers(1, 400)), steps_per_epoch=7)


# --- golden values --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "power", "expected"),
    [
        # Zhu & Gupta (2017), equation 1, 0.2 -> 0.8 over ten steps: 0.8 - 0.6 (1 - p)^3
        ("polynomial", 3, {100: 0.2, 102: 0.4928, 105: 0.725, 108: 0.7952, 110: 0.8}),
        ("polynomial", 1, {100: 0.2, 102: 0.32, 105: 0.5, 110: 0.8}),
        # 0.2 + 0.6 (1 - cos(pi p)) / 2: the square root of 2 at a quarter of the way
        ("cosine", 3, {100: 0.2, 105: 0.5, 110: 0.8}),
        ("constant", 3, {100: 0.8, 105: 0.8, 110: 0.8}),
        (lambda progress: progress**2, 3, {100: 0.2, 105: 0.35, 110: 0.8}),
    ],
)
def test_golden_values(shape, power, expected):
    schedule = Schedule(
        shape=shape, initial=0.2, power=power, begin=100, end=110, every=1, unit="steps"
    )
    timetable = schedule.resolve(steps=200, steps_per_epoch=50)
    found = {step: timetable.value(step, 0.8) for step in expected}
    assert found == pytest.approx(expected, abs=1e-12)
    assert found[110] == 0.8  # exactly


def test_cosine_at_a_quarter():
    timetable = Schedule(shape="cosine", begin=0, end=8, unit="steps").resolve(9, 9)
    assert timetable.value(2, 0.8) == pytest.approx(0.4 - 0.2 * math.sqrt(2), abs=1e-12)


def test_one_shot_is_one_update_at_begin():
    timetable = Schedule(shape="one-shot", begin=0.5, end=0.1).resolve(101, 10)
    assert timetable.updates == (51,)
    assert [timetable.latest(step) for step in (50, 51, 100)] == [None, 51, 51]
    assert timetable.value(51, 0.9) == 0.9


# --- what holds for all of them -------------------------------------------------------------------


@given(timetables(), fractions)
def test_values_rise_from_initial_to_exactly_final(timetable, final):
    initial = timetable.schedule.initial
    values = [timetable.value(step, final) for step in timetable.updates]
    assert all(min(initial, final) <= value <= max(initial, final) for value in values)
    assert values == sorted(values, reverse=final < initial)
    assert values[-1] == final


def test_a_share_too_small_for_floating_point_stays_within_the_range():
    timetable = Schedule(shape=lambda progress: 1e-20, initial=0.2, every=1).resolve(9, 9)
    assert timetable.value(4, 0.8) == 0.2  # 0.8 - (0.8 - 0.2) is a little less


@given(timetables())
def test_updates_are_regular_and_always_include_the_end(timetable):
    updates, every = timetable.updates, timetable.every
    assert updates[0] == timetable.begin
    assert updates[-1] == timetable.end <= timetable.steps - 1
    gaps = [after - before for before, after in itertools.pairwise(updates)]
    assert all(gap == every for gap in gaps[:-1])
    assert all(0 < gap <= every for gap in gaps[-1:])
    assert not timetable.cut_off


@given(timetables())
def test_latest_is_the_last_update_not_after_the_step(timetable):
    for step in range(timetable.steps):
        before = [update for update in timetable.updates if update <= step]
        assert timetable.latest(step) == (before[-1] if before else None)


# --- times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "begin", "end", "expected"),
    [
        ("fraction", 0.0, 1.0, (0, 99)),
        ("fraction", 0.25, 0.5, (25, 50)),
        ("fraction", 0.255, 0.5, (26, 50)),  # half a step up
        ("steps", 10, 99, (10, 99)),
        ("steps", 10, 100, (10, 99)),  # one past the last step means the last step
        ("epochs", 1, 4, (25, 99)),
        ("epochs", 0.5, 2, (13, 50)),
    ],
)
def test_units(unit, begin, end, expected):
    timetable = Schedule(begin=begin, end=end, unit=unit).resolve(steps=100, steps_per_epoch=25)
    assert (timetable.begin, timetable.end) == expected
    assert not timetable.cut_off


def test_a_training_shorter_than_the_schedule_is_cut_off():
    timetable = Schedule(begin=50, end=101, every=20, unit="steps").resolve(100, 25)
    assert timetable.cut_off
    assert timetable.updates == (50, 70, 90)
    assert timetable.latest(99) == 90
    assert timetable.value(90, 0.8) < 0.8


def test_a_training_over_before_the_schedule_begins_has_no_update():
    timetable = Schedule(begin=150, end=200, unit="steps").resolve(100, 25)
    assert timetable.cut_off
    assert timetable.updates == ()
    assert timetable.latest(99) is None


def test_without_every_short_trainings_are_updated_as_often_as_long_ones():
    for steps in (30, 82, 1000, 20_000):
        timetable = Schedule().resolve(steps, steps)
        assert min(steps, 50) <= len(timetable.updates) <= max(102, steps // 100 + 2)
        assert timetable.every <= 100


def test_an_every_longer_than_the_training_still_reaches_the_final_value():
    timetable = Schedule(every=1000).resolve(30, 30)
    assert timetable.updates == (0, 29)
    assert timetable.value(29, 0.7) == 0.7


# --- refused at construction ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": "polinomial"}, "did you mean 'polynomial'"),
        ({"shape": 3}, "unknown schedule shape 3, expected one of constant"),
        ({"unit": "step"}, "did you mean 'steps'"),
        ({"initial": 50}, "initial=50 received, expected a number from 0 to 1"),
        ({"initial": math.nan}, "initial=nan"),
        ({"initial": "0.5"}, "initial='0.5'"),
        ({"power": 0}, "use shape 'constant'"),
        ({"power": -1}, "power=-1"),
        ({"begin": 0.6, "end": 0.4}, "begin <= end"),
        ({"begin": -1, "unit": "steps"}, "begin=-1"),
        ({"end": 200}, "unit='steps' or 'epochs'"),
        ({"end": 10.5, "unit": "steps"}, "whole number of steps"),
        ({"every": 0}, "every=0"),
        ({"every": 2.0}, r"every=2\.0"),
        ({"every": True}, "every=True"),
        ({"shape": lambda progress: 1 + progress}, r"returned 1\.1 at progress 0\.1"),
        ({"shape": lambda progress: math.nan}, "returned nan"),
        ({"shape": lambda: 0.5}, "the schedule function failed"),
        ({"shape": lambda progress: "all"}, "the schedule function failed"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(SecateurError, match=message) as refused:
        Schedule(**arguments)
    assert "fix: " in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_training_without_steps_is_refused():
    with pytest.raises(SecateurError, match="at least 1; fix"):
        Schedule().resolve(steps=0, steps_per_epoch=10)


def test_equal_schedules_are_equal():
    assert Schedule(shape="cosine", every=10) == Schedule(shape="cosine", every=10)
    assert Schedule(every=10) != Schedule(every=11)
