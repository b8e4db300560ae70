"""How far a sweep is and how long it may still take, told from what its finished points took.

Points cost by their epochs: one that is read as it stands takes a second, one that trains takes
minutes. So the time left is not that of an average point.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from secateur.grids import Point

Read = Callable[[str], dict[str, Any] | None]


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Points by what became of them, and the seconds that the rest may take (None: unknown)."""

    done: int = 0
    impossible: int = 0
    failed: int = 0
    running: int = 0
    left: int = 0
    seconds: float | None = None

    @property
    def finished(self) -> int:
        """Points with a record, whatever it says."""
        return self.done + self.impossible + self.failed

    def __str__(self) -> str:
        """The words beside the progress bar.

        >>> str(Tally(done=3, failed=1, running=1, left=2, seconds=95))
        '3 done, 1 failed, 1 running, 2 left, about 1 min 35 s'
        """
        parts = [f"{self.done} done"]
        parts += [f"{self.impossible} impossible"] if self.impossible else []
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{self.running} running", f"{self.left} left"]
        if self.left or self.running:
            parts.append("about " + _spell(self.seconds) if self.seconds else "time left unknown")
        return ", ".join(parts)


class Outlook:
    """Watches the points of a sweep; made when it begins, asked whenever something is to be shown.

    points: fingerprint -> point. read: a fingerprint's record, None while there is none.
    """

    def __init__(
        self,
        points: Mapping[str, Point],
        read: Read,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._points, self._read, self._clock = dict(points), read, clock
        self._statuses: dict[str, str] = {}
        self._walls: dict[str, float] = {}
        self._look()
        self._before = set(self._statuses)
        self._begun = clock()

    def tally(self, running: int = 1) -> Tally:
        """Where the sweep stands; running: how many points are being computed now."""
        self._look()
        counts = Counter(self._statuses.values())
        open_points = len(self._points) - len(self._statuses)
        running = min(running, open_points)
        return Tally(
            done=counts["done"],
            impossible=counts["impossible"],
            failed=counts["failed"],
            running=running,
            left=open_points - running,
            seconds=self._seconds() if open_points else None,
        )

    def _look(self) -> None:
        for name in self._points.keys() - self._statuses.keys():
            record = self._read(name)
            if record is not None:
                self._statuses[name] = str(record.get("status"))
                wall = (record.get("seconds") or {}).get("wall")
                if wall is not None:
                    self._walls[name] = float(wall)

    def _seconds(self) -> float | None:
        """Time so far x (cost of what is left) / (cost of what this sweep has done)."""
        done = [name for name in self._statuses if name not in self._before]
        if not done:
            return None
        elapsed = self._clock() - self._begun
        each = self._seconds_an_epoch()
        trained = {_dense(self._points[name]) for name in self._statuses}
        earlier = {_dense(self._points[name]) for name in self._before}
        spent = {_dense(self._points[name]) for name in done} - earlier
        rest = [name for name in self._points if name not in self._statuses]
        to_train = {_dense(self._points[name]) for name in rest} - trained
        epochs = [
            sum(_epochs(self._points[name]) for name in names) + sum(key[-1] for key in dense)
            for names, dense in ((done, spent), (rest, to_train))
        ]
        if each is None:  # nothing trained yet beside dense networks: an epoch costs like a reading
            each = elapsed / (len(done) + epochs[0])
        # What a point costs beside its epochs: reading, writing and measuring it.
        fixed = max(elapsed - each * epochs[0], 0.05 * elapsed) / len(done)
        cost = [fixed * n + each * e for n, e in zip((len(done), len(rest)), epochs, strict=True)]
        return elapsed * cost[1] / cost[0]

    def _seconds_an_epoch(self) -> float | None:
        walls = [(self._walls[n], _epochs(self._points[n])) for n in self._walls]
        epochs = sum(e for _, e in walls)
        return sum(wall for wall, e in walls if e) / epochs if epochs else None


def _epochs(point: Point) -> int:
    if point.scratch is not None:
        return point.scratch.epochs
    return sum(point.recipe.epochs_of(step) for step in point.recipe.steps)


def _dense(point: Point) -> tuple[Any, ...]:
    """What tells the dense networks of two points apart, roughly; last, the epochs of training it."""
    recipe = point.recipe
    return (recipe.model, recipe.data, point.seed, recipe.train.epochs)


def _spell(seconds: float) -> str:
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
