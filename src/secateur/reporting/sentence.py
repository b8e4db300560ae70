"""The one sentence that a report opens on. Every number in it names what it is compared with."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from secateur.reporting.aggregation import (
    BASELINE,
    CONTROL,
    QUALITIES,
    Row,
    Run,
    comparable,
    differences,
    quality_row,
    rows,
    values,
)
from secateur.reporting.formats import byte_count, measure, percent, points, times, whole

NAMES = {"accuracy": "accuracy", "mse": "mean squared error"}
# Ratios closer to 1 than this read better, and truer, as "2.4 % larger" than as "1.0 times smaller".
NEAR_ONE = 1.1
MANY_SEEDS = 5


def headline(runs: Sequence[Run]) -> str:
    """Say in one sentence what was gained and what it cost, with what was compared and how it was taken.

    >>> size = {"stage": "baseline", "format": "float32", "bytes": 85040, "gzip_bytes": 77373}
    >>> headline([{"seed": 0, "stages": [], "rows": [{"row": "baseline-float32", **size}]}])
    'baseline-float32 is 85,040 B, 77,373 B gzipped; there is no smaller file to compare it with; one \
seed (0).'
    """
    lead, detail = headline_parts(runs)
    return f"{lead}: {detail}." if detail else f"{lead}."


def headline_parts(runs: Sequence[Run]) -> tuple[str, str]:
    """Return the sentence in two halves: what is set in large type, and what it rests on."""
    table = rows(runs)
    subject = subject_row(table)
    if subject is None:
        return f"There is no file to report in this Run; {_seeds(runs)}", ""
    reference = next((row for row in table if row["row"] == subject["reference"]), None)
    if reference is None or reference is subject or subject["times_smaller"] is None:
        return _alone(runs, subject, reference is subject), ""
    quality = next((name for name in QUALITIES if values(runs, subject["row"], name)), None)
    lead = [_size_lead(subject)]
    if not subject["same_container"]:  # large type must not hide that more than weights differs
        lead[0] += f" (a {subject['container']} file against a {reference['container']} file)"
    if quality is None:
        return lead[
            0
        ] + "; accuracy was not measured", f"{_sizes(subject, reference)}; {_seeds(runs)}"
    lead.append(_quality_lead(runs, subject, quality))
    details = [_sizes(subject, reference), _quality_detail(runs, subject, quality), _seeds(runs)]
    return ", ".join(lead), "; ".join(part for part in details if part)


def subject_row(table: Sequence[Row]) -> Row | None:
    """Choose the row that the sentence is about: the smallest file of the compressed model.

    Smallest gzipped where every candidate has that number. Without a compressed stage it is the
    smallest file of the baseline (a conversion alone can make it smaller).
    """
    files = [row for row in table if row["bytes"] is not None]
    compressed = [row for row in files if row["stage"] not in (BASELINE, CONTROL)]
    candidates = compressed or [row for row in files if row["stage"] == BASELINE]
    key = "gzip_bytes" if all(row["gzip_bytes"] is not None for row in candidates) else "bytes"
    return min(candidates, key=lambda row: row[key], default=None)


def _size_lead(subject: Row) -> str:
    raw, packed = subject["times_smaller"], subject["times_smaller_gzip"]
    if packed is None:
        return _size_phrase(raw)
    if raw > NEAR_ONE and packed > NEAR_ONE:
        return f"{times(packed)} times smaller gzipped, {times(raw)} times raw"
    joint = "and" if (raw >= 1) == (packed >= 1) else "but"
    return f"{_size_phrase(packed)} gzipped {joint} {_size_phrase(raw)} raw"


def _size_phrase(smaller: float) -> str:
    if smaller > NEAR_ONE:
        return f"{times(smaller)} times smaller"
    if smaller < 1 / NEAR_ONE:
        return f"{times(1 / smaller)} times larger"
    change = 100 * (1 / smaller - 1)
    if change == 0:
        return "exactly as large"
    word = "larger" if change > 0 else "smaller"
    return f"{abs(change):.1f} % {word}" if abs(change) >= 0.05 else f"less than 0.1 % {word}"


def _sizes(subject: Row, reference: Row) -> str:
    pair = f"{subject['row']} against {reference['row']}"
    raw = f"{byte_count(subject['bytes'])} against {byte_count(reference['bytes'])}"
    if subject["times_smaller_gzip"] is None:
        return f"{pair}, {raw}"
    packed = f"{byte_count(subject['gzip_bytes'])} against {byte_count(reference['gzip_bytes'])}"
    return f"{pair}, {packed} gzipped, {raw} raw"


def _quality_lead(runs: Sequence[Run], subject: Row, quality: str) -> str:
    baseline = quality_row(runs, BASELINE, quality)
    control = quality_row(runs, CONTROL, quality)
    against = []
    for stage, row in ((BASELINE, baseline), (CONTROL, control)):
        change = _change(runs, subject["row"], row, quality)
        if change is not None:
            unit = " points" if quality == "accuracy" and not against else ""
            name = "the baseline" if stage == BASELINE else _control_name(runs, subject)
            against.append(f"{change}{unit} against {name}")
    if not against:
        return f"{NAMES[quality]} {_level(subject, quality)}"
    return f"{NAMES[quality]} {', '.join(against)}"


def _change(runs: Sequence[Run], name: str, other: str | None, quality: str) -> str | None:
    if not comparable(runs, name, other):
        return None
    left, right = values(runs, name, quality), values(runs, other, quality)
    gaps = differences(left, right)
    if not gaps:
        return None
    if quality == "accuracy":
        gap = 100 * fmean(gaps)
        # A change that one decimal would hide is written with two; equal is written as 0.0.
        return points(gap, 2 if 0 < abs(gap) < 0.1 else 1)
    shared = left.keys() & right.keys()
    before = fmean(right[seed] for seed in shared)
    return f"{points(100 * fmean(gaps) / before, 1)} %" if before else None


def _control_name(runs: Sequence[Run], subject: Row) -> str:
    """Name the dense control, and say 'trained as long' only where the steps say so."""
    trained, control, counting = 0, 0, True
    for stage in runs[0].get("stages") or []:
        steps = stage.get("steps") or 0
        if stage["name"] == CONTROL:
            control = steps
        elif stage["name"] != BASELINE and counting:
            trained += steps
            counting = stage["name"] != subject["stage"]
    if not trained or not control:
        return "the dense control"
    if trained == control:
        return "the dense control trained as long"
    return f"the dense control (trained {whole(control)} steps, not {whole(trained)})"


def _quality_detail(runs: Sequence[Run], subject: Row, quality: str) -> str:
    parts = [f"{NAMES[quality]} {_level(subject, quality)}"]
    table = {row["row"]: row for row in rows(runs)}
    skipped = []
    for stage, word in ((BASELINE, "baseline"), (CONTROL, "dense control")):
        other = quality_row(runs, stage, quality)
        if other is not None and not comparable(runs, subject["row"], other):
            skipped.append(
                f"the {word} was measured on {whole(table[other]['n'])} and is not compared"
            )
        elif other not in (None, subject["row"]):
            parts.append(f"{word} {_level(table[other], quality)}")
    text = parts[0] + (f" ({', '.join(parts[1:])})" if parts[1:] else "")
    if subject["n"] is not None:
        text += f" on a test set of {whole(subject['n'])}"
    if quality_row(runs, BASELINE, quality) is None:
        skipped.append(f"the baseline's {NAMES[quality]} was not measured")
    low, high = subject["points_min"], subject["points_max"]
    if quality == "accuracy" and low is not None:
        text += f", from {points(low)} to {points(high)} points against the baseline over the seeds"
    return "; ".join([text, *skipped])


def _level(row: Row, quality: str) -> str:
    return percent(row[quality]) if quality == "accuracy" else measure(row[quality])


def _alone(runs: Sequence[Run], subject: Row, is_reference: bool) -> str:
    text = f"{subject['row']} is {byte_count(subject['bytes'])}"
    if subject["gzip_bytes"] is not None:
        text += f", {byte_count(subject['gzip_bytes'])} gzipped"
    quality = next((name for name in QUALITIES if values(runs, subject["row"], name)), None)
    if quality is not None:
        text += f", {_quality_detail(runs, subject, quality)}"
    missing = "smaller file" if is_reference else "baseline file"
    return f"{text}; there is no {missing} to compare it with; {_seeds(runs)}"


def _seeds(runs: Sequence[Run]) -> str:
    seeds: list[Any] = [run["seed"] for run in runs]
    if len(seeds) == 1:
        return f"one seed ({seeds[0]})"
    listed = f" ({', '.join(map(str, seeds))})" if len(seeds) <= MANY_SEEDS else ""
    return f"mean of {len(seeds)} seeds{listed}"
