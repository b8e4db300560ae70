"""What the terminal shows while a run works, and a Ctrl-C that does not get lost there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console


@contextmanager
def live_progress(
    console: Console, *, estimate: bool = True
) -> Iterator[tuple[Callable[[str, int, int, str], None], Callable[[str], None]]]:
    """Yield `progress(label, done, total, text)` and `say(text)`; both raise a Ctrl-C that got lost.

    estimate: show the time left by the pace so far, for steps that take about the same.
    """
    from rich import progress as parts

    columns = (
        parts.TextColumn("{task.description}"),
        parts.BarColumn(),
        parts.MofNCompleteColumn(),
        *([parts.TimeRemainingColumn()] if estimate else []),
        parts.TextColumn("{task.fields[text]}"),
    )
    with (
        _lost_interrupts() as raise_lost,
        parts.Progress(*columns, console=console, transient=True) as bars,
    ):
        tasks: dict[str, Any] = {}

        def progress(label: str, done: int, total: int, text: str) -> None:
            raise_lost()
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total, text="")
            bars.update(tasks[label], completed=done, text=text)

        def say(text: str) -> None:
            raise_lost()
            bars.console.print(text, highlight=False, markup=False)

        yield progress, say


@contextmanager
def _lost_interrupts() -> Iterator[Callable[[], None]]:
    """A function that raises the Ctrl-C which Python swallowed, as in a weak reference's callback."""
    lost: list[Any] = []
    before = sys.unraisablehook

    def remember(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            lost.append(True)
        else:
            before(unraisable)

    def raise_lost() -> None:
        if lost:
            raise KeyboardInterrupt

    sys.unraisablehook = remember
    try:
        yield raise_lost
    finally:
        sys.unraisablehook = before
