"""The section of docs/results.md on the pruning challenge: findings, tables, what was asked for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from challenge import points_of
from results_parts import Record, bullets, markdown_table, missing, read, verdict

from secateur.reporting.story import story
from secateur.reporting.sweep_series import Study, studies
from secateur.reporting.sweep_table import cells

DATA = ("mnist", "fashion-mnist")
COMMAND = "python benchmarks/challenge.py --data {data} --out runs/"


def challenge(records: Path, anchors: Record) -> Iterable[str]:
    """Everything the committed points say."""
    yield "## The pruning challenge"
    for data in DATA:
        found = [
            record
            for seed in range(10)
            if (record := read(records, f"challenge-{data}-seed-{seed}")) is not None
        ]
        yield f"### On {data}"
        if not found:
            yield missing(f"challenge-{data}-seed-0.json", COMMAND.format(data=data))
            continue
        points = [point for record in found for point in points_of(record)]
        told = story(points, pictures=False)
        for part in told.parts:
            yield bullets(part.findings)
            yield markdown_table(part.table[0], part.table[1:])
            yield " ".join([part.footnote, *part.missing, *part.method])
        if data == "mnist":
            (study,) = studies(points)
            yield from _asked(study, anchors["challenge"])


def _asked(study: Study, asked: Record) -> Iterable[str]:
    """Each target beside what was reached, by the mean over seeds."""
    found = {(cell.curve, cell.asked): cell for cell in cells(study)}
    rows = []
    for curve, targets in asked["targets"].items():
        for k, wanted in targets.items():
            cell = found.get((curve, float(k)))
            label = f"`{curve}` at {100 * float(k):g} %"
            if cell is None or cell.accuracy is None:
                rows.append([label, f"{wanted:.3f}", "not measured", "–", "**no**"])
                continue
            reached = cell.accuracy.mean
            rows.append(
                [
                    label,
                    f"{wanted:.3f}",
                    f"{reached:.4f}",
                    str(cell.seeds),
                    verdict(reached >= wanted - 5e-4),
                ]
            )
    yield f"What was asked for ({asked['source']}), by the mean over seeds, to three digits:"
    yield markdown_table(["curve", "asked", "reached", "seeds", "met"], rows)
