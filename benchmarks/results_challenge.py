"""The section of docs/results.md on the pruning challenge: findings, tables, what was asked for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from challenge import points_of
from results_parts import (
    Record,
    bullets,
    markdown_table,
    missing,
    provenance,
    read,
    smoke,
    verdict,
)

from secateur.reporting.story import story
from secateur.reporting.sweep_series import Study, studies
from secateur.reporting.sweep_table import cells

DATA = ("mnist", "fashion-mnist")
HALF = 0.5  # of the usual loop's wall time, asked for
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
    yield from speed(read(records, "one-shot-speed"))


def _asked(study: Study, asked: Record) -> Iterable[str]:
    """Each target beside what was reached, by the mean over seeds."""
    found = {(cell.curve, cell.asked): cell for cell in cells(study)}
    rows = []
    for curve, targets in asked["targets"].items():
        for k, wanted in targets.items():
            cell = found.get((curve, float(k)))
            label = f"`{curve}` at {100 * float(k):g} %"
            if cell is None or cell.accuracy is None:
                rows.append([label, f"{wanted:.3f}", "not measured", "0", "**no**"])
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
    yield (
        f"What was asked for ({asked['source']}), by the mean over seeds, to three digits. The "
        "notebook trains on all 60,000 images; here a tenth of them is kept apart for choosing:"
    )
    yield markdown_table(["curve", "asked", "reached", "seeds", "met"], rows)


def speed(record: Record | None) -> Iterable[str]:
    """The twenty points of a one-shot table beside the usual notebook's loop."""
    yield "### How fast its one-shot table is"
    if record is None:
        yield missing("one-shot-speed.json", "python benchmarks/one_shot_speed.py")
        return
    yield from smoke(record)
    rows = []
    for row in record["rows"]:
        wall, cpu, apart = row["ratio_wall"], row["ratio_cpu"], row["most_images_apart"]
        rows.append(
            [
                row["backend"],
                _ratio(wall),
                verdict(wall["median"] <= HALF, wall["high"] <= HALF, "by the median only"),
                _ratio(cpu),
                f"{apart['same_masks']}",
                f"{apart['usual']}",
                str(row["pairs"]),
            ]
        )
    yield markdown_table(
        [
            "backend",
            "wall, ours to usual",
            f"at most {HALF:g}",
            "CPU, ours to usual",
            "images apart, same masks",
            "images apart, percentile masks",
            "pairs",
        ],
        rows,
    )
    load = [load for row in record["rows"] for load in row["load"]]
    yield (
        "Twenty points, ten sparsities of weights and of units, on MNIST's 10,000 test images: the "
        "usual loop (`np.percentile`, `set_weights`, `evaluate` at batch 64) and ours in turns, a "
        "ratio a pair, median and 95 % interval. A threshold from a percentile may leave one weight "
        "more or less than the exact count. "
        + provenance({**record, "versions": record["rows"][0]["versions"]}, [record["created"]])
        + f" Load average {min(load):.1f} to {max(load):.1f} on {record['machine']['cores']} cores: "
        "of a busy machine the CPU time is the better witness."
    )


def _ratio(found: Record) -> str:
    return f"{found['median']:.2f} ({found['low']:.2f}..{found['high']:.2f})"
