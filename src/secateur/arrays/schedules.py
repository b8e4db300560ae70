"""When sparsity changes during training, and how much: a value object and its timetable.

A `Schedule` is what a user writes and a recipe stores; `Schedule.resolve` turns it, for a training
of known length, into a `Timetable` of whole optimizer steps, counted from 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from secateur.errors import SecateurError, nearest

UNITS = ("fraction", "steps", "epochs")

# progress in [0, 1] and the power -> share of the way from the initial to the final value
SHAPES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda progress, power: 1.0,
    "polynomial": lambda progress, power: 1.0 - (1.0 - progress) ** power,
    "cosine": lambda progress, power: 0.5 * (1.0 - math.cos(math.pi * progress)),
    "one-shot": lambda progress, power: 1.0,
}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When a value is updated (begin, end, every) and how it grows from `initial` (shape).

    Shapes: "constant" (the final value from `begin` on, chosen anew at every update), "polynomial"
    (with power 3 the cubic of Zhu & Gupta 2017, arXiv:1710.01878), "cosine", "one-shot" (one
    update, at `begin`; `end` and `every` are not read), or a function from progress in [0, 1] to
    the share in [0, 1] of the way to the final value. `begin` and `end` are in `unit`: a fraction
    of the training, optimizer steps, or epochs; `every` is always in steps (None: a fiftieth of the
    schedule, 100 at most, so that short trainings are updated as often as long ones). The last update, at
    `end`, reaches the final value exactly. Raises `SecateurError` for a value out of range.

    >>> timetable = Schedule(initial=0.2, every=2).resolve(steps=11, steps_per_epoch=11)
    >>> [(step, round(timetable.value(step, 0.8), 4)) for step in timetable.updates[:3]]
    [(0, 0.2), (2, 0.4928), (4, 0.6704)]
    >>> timetable.value(10, 0.8)
    0.8
    """

    shape: str | Callable[[float], float] = "polynomial"
    initial: float = 0.0
    power: float = 3.0
    begin: float = 0.0
    end: float = 1.0
    every: int | None = None
    unit: str = "fraction"

    def __post_init__(self) -> None:
        """Refuse what no training could follow, before any weight is touched."""
        self._check_names()
        _require_number("initial", self.initial, 0.0, 1.0, "a fraction of zeros, as 0.5")
        _require_number("power", self.power, 0.0, math.inf, "3 is the usual cubic")
        if self.power == 0:
            raise SecateurError("power 0 received, expected more than 0; fix: use shape 'constant'")
        every = 1 if self.every is None else self.every
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise SecateurError(
                f"every={self.every!r} received, expected a whole number of steps >= 1; "
                "fix: every=100 updates each hundredth step"
            )
        self._check_times()
        if callable(self.shape):
            for tenth in range(11):  # a bad function fails here, not in the middle of a training
                self.share(tenth / 10)

    def _check_names(self) -> None:
        for field, value, known in (("shape", self.shape, SHAPES), ("unit", self.unit, UNITS)):
            if field == "shape" and callable(value):
                continue
            if value not in known:
                raise SecateurError(
                    f"unknown schedule {field} {value!r}, expected one of {', '.join(known)}; "
                    f"fix: {nearest(value, known)}"
                )

    def _check_times(self) -> None:
        upper = 1.0 if self.unit == "fraction" else math.inf
        hint = "unit='steps' or 'epochs' takes larger numbers" if upper == 1.0 else "count from 0"
        for name, value in (("begin", self.begin), ("end", self.end)):
            _require_number(name, value, 0.0, upper, hint)
            if self.unit == "steps" and value != int(value):
                raise SecateurError(
                    f"{name}={value!r} received, expected a whole number of steps; "
                    "fix: round it, or use unit='fraction' or 'epochs'"
                )
        if self.begin > self.end and self.shape != "one-shot":
            raise SecateurError(
                f"begin={self.begin!r} received with end={self.end!r} (unit {self.unit}), expected "
                "begin <= end; fix: give an end in the same unit, not before begin"
            )

    def share(self, progress: float) -> float:
        """Share in [0, 1] of the way from the initial to the final value at `progress` in [0, 1].

        >>> Schedule(shape="polynomial", power=2).share(0.5)
        0.75
        """
        if not callable(self.shape):
            return SHAPES[self.shape](progress, self.power)
        try:
            share = float(self.shape(progress))
        except (TypeError, ValueError) as error:
            raise SecateurError(
                f"the schedule function failed at progress {progress:g} ({error}), expected a "
                "number in [0, 1]; fix: let it take and return one float"
            ) from error
        if not 0.0 <= share <= 1.0:
            raise SecateurError(
                f"the schedule function returned {share!r} at progress {progress:g}, expected a "
                "share in [0, 1]; fix: return 0 at the initial value and 1 at the final value"
            )
        return share

    def resolve(self, steps: int, steps_per_epoch: int) -> "Timetable":
        """Convert begin and end to whole steps of a training of `steps` optimizer updates.

        A time that falls on `steps`, just past the last step, means the last step (`steps - 1`).
        A later end is kept: the timetable is then `cut_off`. Raises for an empty training.

        >>> Schedule(begin=1, end=3, unit="epochs").resolve(steps=30, steps_per_epoch=10).end
        29
        """
        if steps < 1 or steps_per_epoch < 1:
            raise SecateurError(
                f"a training of {steps} steps, {steps_per_epoch} an epoch, received, expected at "
                "least 1; fix: train for one epoch or more, on at least one batch"
            )
        scale = {"fraction": steps, "steps": 1, "epochs": steps_per_epoch}[self.unit]

        def step_of(time: float) -> int:
            step = math.floor(time * scale + 0.5)
            return steps - 1 if step == steps else step

        begin = step_of(self.begin)
        end = begin if self.shape == "one-shot" else step_of(self.end)
        return Timetable(self, begin, end, steps)


@dataclass(frozen=True)
class Timetable:
    """A schedule on the whole steps 0 .. `steps` - 1 of one training.

    Updates happen at `begin`, `begin + every`, ... and always exactly at `end`.

    >>> Schedule(begin=100, end=250, every=100, unit="steps").resolve(300, 300).updates
    (100, 200, 250)
    """

    schedule: Schedule
    begin: int
    end: int
    steps: int

    @property
    def every(self) -> int:
        """Steps between two updates.

        >>> Schedule().resolve(1000, 100).every, Schedule(every=7).resolve(1000, 100).every
        (20, 7)
        """
        if self.schedule.every is not None:
            return self.schedule.every
        return min(100, max(1, (self.end - self.begin + 1) // 50))

    @property
    def updates(self) -> tuple[int, ...]:
        """All the steps at which the value is updated, in order."""
        regular = range(self.begin, min(self.end, self.steps), self.every)
        return (*regular, self.end) if not self.cut_off else tuple(regular)

    @property
    def cut_off(self) -> bool:
        """Whether the training is over before the final value is reached."""
        return self.end > self.steps - 1

    def latest(self, step: int) -> int | None:
        """Return the last update step that is not after `step`, or None before `begin`.

        >>> timetable = Schedule(begin=100, end=250, every=100, unit="steps").resolve(300, 300)
        >>> [timetable.latest(step) for step in (99, 100, 199, 249, 299)]
        [None, 100, 100, 200, 250]
        """
        if step < self.begin:
            return None
        if step >= self.end:
            return self.end
        return step - (step - self.begin) % self.every

    def value(self, update_step: int, final: float) -> float:
        """Return the value in force from `update_step` on; exactly `final` from `end` on.

        Raises `SecateurError` when a user's schedule function leaves [0, 1].

        >>> Schedule(shape="cosine").resolve(101, 101).value(50, 0.8)
        0.4
        """
        if update_step >= self.end:
            return final
        initial = self.schedule.initial
        progress = max(0.0, (update_step - self.begin) / (self.end - self.begin))
        share = self.schedule.share(progress)
        if share == 0.0:
            return initial
        # Written from the final end: each operation is monotone when rounded, share 1 is exact.
        value = final - (final - initial) * (1.0 - share)
        return min(max(value, min(initial, final)), max(initial, final))


@dataclass(frozen=True, kw_only=True)
class Rewind:
    """Prune in rounds, each trained again from an early point (Renda et al. 2020, arXiv:2003.02389).

    rounds: how often is pruned; density falls by the same factor each time (Frankle & Carbin 2019,
    arXiv:1803.03635). to: the point, in epochs of the training before; weights and optimizer go
    back to it. 0 is its beginning. Raises `SecateurError` for a value out of range.

    >>> [round(s, 3) for s in Rewind(rounds=3).sparsities(0.875)]
    [0.5, 0.75, 0.875]
    """

    rounds: int = 3
    to: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what no training could follow."""
        if isinstance(self.rounds, bool) or not isinstance(self.rounds, int) or self.rounds < 1:
            raise SecateurError(
                f"rounds={self.rounds!r} received, expected a whole number of at least 1; fix: 3"
            )
        _require_number("to", self.to, 0.0, math.inf, "the first epoch's end is 1")

    def sparsities(self, final: float) -> tuple[float, ...]:
        """Return the sparsity of each round; the last is exactly `final`."""
        density = 1.0 - final
        rising = [1.0 - density ** (n / self.rounds) for n in range(1, self.rounds)]
        return (*rising, final)


def _require_number(name: str, value: float, low: float, high: float, hint: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        upper = f"to {high:g}" if math.isfinite(high) else "or more"
        raise SecateurError(
            f"{name}={value!r} received, expected a number from {low:g} {upper}; fix: {hint}"
        )
