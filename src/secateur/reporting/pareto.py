"""The Pareto front of a choice as a figure: size, or time, against validation accuracy or squared error."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateur.errors import SecateurError
from secateur.reporting.files import write_bytes
from secateur.reporting.sweep_plots import new_figure

SUFFIXES = (".png", ".svg", ".pdf")
COLOURS = ("#3b6ea5", "#c2703d", "#5b8c5a", "#8a5a83", "#a08a2c", "#4f9aa8", "#b5525c", "#666666")

# What is this much less accurate than the best, or has so many times its error, is only marked at the edge.
SHOWN, TIMES = 0.2, 4.0
LABELS = {
    "bytes": "bytes of the file",
    "gzip_bytes": "bytes of the file, gzipped",
    "latency_us": "latency of one sample, us",
    "arena_bytes": "arena on a microcontroller, bytes",
}
BUDGETS = {
    "bytes": "max_bytes",
    "gzip_bytes": "max_gzip",
    "latency_us": "max_latency",
    "arena_bytes": "max_arena",
}


def write_pareto(choice: dict[str, Any], path: str | Path) -> None:
    """Write the figure of a choice's record as .png, .svg or .pdf.

    A mark is a candidate, a colour its format; the line joins those that no other beats, the limit
    is drawn, and the chosen one is ringed and named. Raises SecateurError for another suffix
    and where Matplotlib is missing.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise SecateurError(
            f"figure {path} received, expected {', '.join(SUFFIXES)}; fix: name it pareto.png"
        )
    figure = new_figure(6.4, 4.0)
    _draw(figure.add_subplot(), choice)
    stream, kind = io.BytesIO(), path.suffix.lower()[1:]
    # Without dates: the same choice, the same bytes.
    dates = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    figure.savefig(stream, format=kind, metadata=dates[kind])
    write_bytes(path, stream.getvalue())


def _draw(axes: Any, choice: dict[str, Any]) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    by, quality = choice["front_by"], choice.get("quality", "accuracy")
    every = [c for c in choice["candidates"] if c[by] is not None and c[quality] is not None]
    accurate = quality == "accuracy"
    levels = [c[quality] for c in every]
    edge = 100 * (max(levels) - SHOWN) if accurate else TIMES * min(levels)
    shown = [c for c in every if (100 * c[quality] >= edge if accurate else c[quality] <= edge)]
    for number, kind in enumerate(dict.fromkeys(c["format"] for c in every)):
        own = [c for c in shown if c["format"] == kind]
        colour = COLOURS[number % len(COLOURS)]
        axes.scatter(*_places(own, by, quality), s=26, color=colour, label=kind, zorder=3)
        below = [c for c in every if c["format"] == kind and c not in shown]
        # At the edge: named there, not left out.
        axes.scatter([c[by] for c in below], [edge] * len(below), s=26, color=colour,
                     marker="v" if accurate else "^", clip_on=False)  # fmt: skip
    front = [c for c in choice["front"] if c in shown]
    grey = {"color": "#444444", "linewidth": 1}
    axes.plot(*_places(front, by, quality), drawstyle="steps-post", label="front", zorder=2, **grey)
    limit = choice["budgets"].get(BUDGETS.get(by))
    if limit is not None:
        axes.axvline(limit, linestyle="--", label="limit", **grey)
    axes.set_xscale("log")
    for record, word in ((choice["chosen"], "chosen"), (choice["nearest"], "nearest")):
        if record in shown:
            x, y = _places([record], by, quality)
            axes.scatter(x, y, s=110, facecolors="none", edgecolors="#111111", zorder=4)
            axes.set_title(f"{word}: {record['name']}, {record['format']}", fontsize=9)
    if len(shown) < len(every):
        axes.set_ylim(bottom=edge if accurate else None, top=None if accurate else edge)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=8)
    low, high = min(c[by] for c in every), max(c[by] for c in every)
    if high < 3 * low:  # too narrow for marks at 1, 2 and 5
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(LABELS[by])
    beyond = f"{len(every) - len(shown)} lie {'below' if accurate else 'above'}"
    beyond = f" ({beyond})" if len(shown) < len(every) else ""
    axes.set_ylabel(f"validation {'accuracy, %' if accurate else 'squared error'}{beyond}")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _places(
    found: Sequence[dict[str, Any]], by: str, quality: str
) -> tuple[list[float], list[float]]:
    scale = 100 if quality == "accuracy" else 1
    return [c[by] for c in found], [scale * c[quality] for c in found]
