"""The figures of Runs as PNG: sizes, accuracies, training. Matplotlib is needed to draw them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from secateur.reporting.aggregation import BASELINE, CONTROL, Run, rows, values
from secateur.reporting.formats import finite
from secateur.reporting.sweep_plots import STONE, TONES, EpochLine, new_figure, plot_epochs, png

TONE = {BASELINE: STONE, CONTROL: TONES[1]}


def plots(runs: Sequence[Run]) -> list[tuple[str, str, bytes]]:
    """Draw what the Runs have figures for, as (name, caption, PNG)."""
    drawn = [
        ("sizes", "Bytes of each file: raw (pale) and gzipped.", sizes(runs)),
        ("accuracy", "Accuracy on test images, a dot a seed.", accuracies(runs)),
        ("training", "Loss for each epoch of the first seed: training dashed, validation solid.",
         training(runs)),
    ]  # fmt: skip
    return [(name, caption, image) for name, caption, image in drawn if image is not None]


def sizes(runs: Sequence[Run]) -> bytes | None:
    """Draw raw and gzipped bytes as bars; None where no file was written."""
    table = [row for row in rows(runs) if row["bytes"] is not None]
    if not table:
        return None
    figure = new_figure(6.4, 0.8 + 0.36 * len(table))
    axes = figure.subplots()
    for place, row in enumerate(reversed(table)):
        tone = TONE.get(row["stage"], TONES[0])
        axes.barh(place, row["bytes"] / 1024, color=tone, alpha=0.35, height=0.7)
        axes.barh(place, (row["gzip_bytes"] or 0) / 1024, color=tone, height=0.7)
    axes.set_yticks(range(len(table)), [row["row"] for row in reversed(table)])
    axes.set_xlabel("KiB")
    axes.spines[["top", "right"]].set_visible(False)
    return png(figure)


def accuracies(runs: Sequence[Run]) -> bytes | None:
    """Draw every seed's accuracy of each row; None where none was measured."""
    table = [row for row in rows(runs) if row["accuracy"] is not None]
    if not table:
        return None
    figure = new_figure(6.4, 0.8 + 0.36 * len(table))
    axes = figure.subplots()
    for place, row in enumerate(reversed(table)):
        dots = [100 * level for level in values(runs, row["row"], "accuracy").values()]
        tone = TONE.get(row["stage"], TONES[0])
        axes.plot(dots, [place] * len(dots), "o", color=tone, markersize=4.5, alpha=0.8)
        axes.plot([100 * row["accuracy"]], [place], "|", color=tone, markersize=14)
    axes.set_yticks(range(len(table)), [row["row"] for row in reversed(table)])
    axes.set_xlabel("accuracy, %")
    axes.grid(axis="y", color="#dedbce", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    return png(figure)


def training(runs: Sequence[Run]) -> bytes | None:
    """Draw the loss over the epochs of each stage; None where no stage kept a history."""
    stages = [stage for stage in runs[0].get("stages") or [] if (stage.get("history") or {})]
    if not stages:
        return None
    lines = []
    ended = branch = 0
    for stage in stages:
        begin = branch if stage["name"] == CONTROL else ended
        tone, length = TONE.get(stage["name"], TONES[0]), 0
        for key, dash in (("loss", "--"), ("val_loss", "-")):
            found = [finite(number) for number in stage["history"].get(key) or []]
            length = max(length, len(found))
            name = f"{stage['name']}, {'training' if key == 'loss' else 'validation'}"
            points = [
                (begin + epoch, math.nan if y is None else y)
                for epoch, y in enumerate(found, start=1)
            ]
            if points:
                lines.append(EpochLine(name=name, points=points, tone=tone, dash=dash))
        ended = begin + length if stage["name"] != CONTROL else ended
        branch = ended if stage["name"] == BASELINE else branch
    return plot_epochs(lines)
