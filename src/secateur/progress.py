"""What the terminal shows while a run works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console


@contextmanager
def live_progress(
    console: Console, *, estimate: bool = True
) -> Iterator[tuple[Callable[[str, int, int, str], None], Callable[[str], None]]]:
    """Yield `progress(label, done, total, text)` and `say(text)`.

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
    with parts.Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def progress(label: str, done: int, total: int, text: str) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total, text="")
            bars.update(tasks[label], completed=done, text=text)

        def say(text: str) -> None:
            bars.console.print(text, highlight=False, markup=False)

        yield progress, say
