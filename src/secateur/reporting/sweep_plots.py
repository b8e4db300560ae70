"""The figures of a sweep as PNG, for documents and Markdown. Matplotlib is needed here alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from secateur.errors import SecateurError
from secateur.reporting.sweep_lines import (
    METRICS,
    SPARSITIES,
    curves,
    dense_level,
    end,
    marks,
    zoomed,
)
from secateur.reporting.sweep_series import Study
from secateur.reporting.sweep_words import k_text

# The page's tones on white paper; a second turn through them is dashed.
TONES = ("#2c6a48", "#ad5127", "#2f5d92", "#86690a", "#7a3f83", "#1d7f87", "#b03060", "#5b5b5b")
STONE = "#6b6556"


def plot(study: Study, metric: str, sparsity: str = "asked") -> bytes | None:
    """Draw one metric against sparsity as PNG, even and zoomed near 100 %; None where it is missing.

    Raises SecateurError when Matplotlib is missing.
    """
    lines = curves(study, metric, sparsity)
    if not lines:
        return None
    figure = new_figure(7.2, 3.2)
    even, near = figure.subplots(1, 2, sharey=True)
    dense = dense_level(study, metric)
    scale = 100.0 if metric == "accuracy" else 1.0
    for axes, place in ((even, lambda k: 100 * k), (near, zoomed)):
        if dense is not None:
            axes.axhline(scale * dense.mean, color=STONE, linewidth=1.2, label="dense", zorder=1)
        for line in lines:
            tone = TONES[line.number % len(TONES)]
            dashed = line.borrowed or line.number >= len(TONES)
            axes.plot(
                [place(x) for x, _ in line.points],
                [scale * y for _, y in line.points],
                color=tone, marker="o", markersize=3, linewidth=1.4,
                linestyle="--" if dashed else "-",
                label=line.name + (" (dense network's)" if line.borrowed else ""),
            )  # fmt: skip
            if len(line.band) > 1:
                axes.fill_between(
                    [place(x) for x, _, _ in line.band],
                    [scale * low for _, low, _ in line.band],
                    [scale * high for _, _, high in line.band],
                    color=tone, alpha=0.15, linewidth=0,
                )  # fmt: skip
        axes.grid(axis="y", color="#dedbce", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel(f"{sparsity} sparsity, %")
    ticks = marks(end(lines))
    near.set_xticks([zoomed(tick) for tick in ticks], [k_text(k).removesuffix(" %") for k in ticks])
    near.set_xlabel(f"{sparsity} sparsity, %, zoomed near 100")
    even.set_xlim(0, 100)
    even.set_ylabel({"accuracy": "accuracy, %", "loss": "loss", "time": "time, us"}[metric])
    if metric == "time":
        even.set_ylim(bottom=0)
    handles, names = even.get_legend_handles_labels()
    wide = max(map(len, names))
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        frameon=False,
        fontsize=8.5,
        ncols=1 if wide > 60 else 2 if wide > 34 else 3 if wide > 24 else 4,
    )
    return png(figure)


def caption(study: Study, metric: str, sparsity: str = "asked") -> str:
    """Say what a plot shows and what its bands are."""
    several = len(study.seeds) > 1
    band = "" if not several else ", mean over seeds with the 95 % interval"
    if metric == "time":
        band = "; dashed: the dense network's time, whose shape those networks have"
        band = band if any(line.borrowed for line in curves(study, metric, sparsity)) else ""
    return f"{METRICS[metric]} against sparsity ({SPARSITIES[sparsity]}){band}."


@dataclass(frozen=True, kw_only=True)
class EpochLine:
    """One line of a figure of training: (epoch, value) points in a tone and a Matplotlib line style."""

    name: str
    points: Sequence[tuple[float, float]]
    tone: str
    dash: str


def plot_epochs(lines: Sequence[EpochLine], label: str = "loss") -> bytes | None:
    """Draw a metric over the epochs of training as PNG; None without a line."""
    if not lines:
        return None
    figure = new_figure(6.4, 3.0 + 0.1 * max(0, len(lines) - 4))
    axes = figure.subplots()
    for line in lines:
        axes.plot(*zip(*line.points, strict=True), line.dash, color=line.tone, marker="o",
                  markersize=3, label=line.name)  # fmt: skip
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(lines) <= 4:
        axes.legend(frameon=False, fontsize=8.5)
    else:  # beside the lines there is no room for so many names
        figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=2)
    return png(figure)


def new_figure(width: float, height: float) -> Any:
    """Make an empty figure that no window and no global state know; width and height in inches.

    >>> new_figure(4, 3).get_size_inches().tolist()
    [4.0, 3.0]
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SecateurError(
            "documents and Markdown need Matplotlib for their figures: pip install 'secateur[report]'"
        ) from None
    return Figure(figsize=(width, height), dpi=160, layout="constrained")


def png(figure: Any) -> bytes:
    """Return a figure as PNG; the same figure, the same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
