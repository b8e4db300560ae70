"""Where compression pays: the section of docs/results.md and what is generated in docs/targets.md."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from results_parts import Record, bullets, markdown_table, missing, provenance, read, smoke

from secateur.reporting.formats import DASH, percent, whole
from secateur.reporting.targets import (
    Verdict,
    answers,
    full_name,
    level_text,
    quantized,
    ratio_text,
    short_name,
    summary,
    verdicts,
)
from secateur.reporting.targets_table import grid

MODELS = {"lab-cnn": "lab CNN", "lenet-5": "LeNet-5", "mobilenet-head": "MobileNet"}
LEVEL = 0.8
COMMAND = "python benchmarks/targets.py"
BEGIN, END = "<!-- targets:begin (make results) -->\n", "<!-- targets:end -->"
Key = tuple[str, str, str]  # target, format, cost


def targets(records: Path) -> Iterable[str]:
    """The section of docs/results.md: what 80 % zeros are worth, a line for each cost of a target."""
    yield "## Where compression pays"
    held = _held(records)
    if not held:
        yield missing("targets-lab-cnn.json", COMMAND)
        return
    for record in held.values():
        yield from smoke(record)
    yield (
        f"What {level_text(LEVEL)} zeros (one shot, by magnitude, nothing trained) do to size and speed, as a "
        "share of the same file's without zeros, and the word for it: a difference only where it is beyond "
        "the noise. Time on Ethos-U is estimated by Arm's compiler. [docs/targets.md](targets.md) has every "
        "number."
    )
    yield _matrix({name: verdicts(record["records"]) for name, record in held.items()}, LEVEL)
    yield "int8 instead of floats, nothing pruned:"
    yield _matrix({name: quantized(record["records"]) for name, record in held.items()}, 0.0)
    yield bullets(_setting(name, record) for name, record in held.items())
    first = next(iter(held.values()))
    yield provenance(first, [record["created"] for record in held.values()])


def page(records: Path) -> str:
    """What stands between the markers of docs/targets.md: answers and tables, model by model."""
    held = _held(records)
    if not held:
        return missing("targets-lab-cnn.json", COMMAND) + "\n\n"
    parts: list[str] = []
    for name, record in held.items():
        rows = record["records"]
        parts += [f"## {MODELS[name]}", *smoke(record), _setting(name, record), summary(rows)]
        for target, lines in answers(rows).items():
            parts += [f"### {MODELS[name]}: {full_name(target, rows)}", bullets(lines)]
            headings, cells = grid(rows, target)
            if cells:
                parts.append(markdown_table(headings, cells))
    first = next(iter(held.values()))
    parts.append(provenance(first, [record["created"] for record in held.values()]))
    return "\n\n".join(parts) + "\n\n"


def with_page(text: str, block: str) -> str:
    """docs/targets.md with `block` between its two markers."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{block}{END}{rest.split(END, 1)[1]}"


def _held(records: Path) -> dict[str, Record]:
    found = {name: read(records, f"targets-{name}") for name in MODELS}
    return {name: record for name, record in found.items() if record is not None}


def _matrix(found: dict[str, list[Verdict]], level: float) -> str:
    """A row for each target, format and cost; a column for each model."""
    keys: dict[Key, None] = {}
    for of_model in found.values():
        keys.update({(v.target, v.format, v.cost): None for v in of_model})
    cells = [
        [
            f"{short_name(target)}, {format}: {cost}",
            *(_cell(of_model, (target, format, cost), level) for of_model in found.values()),
        ]
        for target, format, cost in keys
    ]
    return markdown_table(["", *(MODELS[name] for name in found)], cells)


def _cell(found: list[Verdict], key: Key, level: float) -> str:
    verdict = next((v for v in found if (v.target, v.format, v.cost) == key), None)
    if verdict is None or level not in verdict.levels:
        return DASH
    at = verdict.levels.index(level)
    better = verdict.since is not None and verdict.since <= level
    word = verdict.less if better else verdict.word if " from " not in verdict.word else "no"
    text = f"{ratio_text(verdict.ratios[at].value)} {word}"
    return f"**{text}**" if better else text


def _setting(name: str, record: Record) -> str:
    accuracy = next(
        r["accuracy"] for r in record["records"] if r["accuracy"] is not None and not r["sparsity"]
    )
    shape = "x".join(map(str, record["input_shape"]))
    epochs = f"{record['epochs']} epoch{'s' * (record['epochs'] > 1)}"
    return (
        f"{MODELS[name]}, {shape}, {whole(record['parameters'])} parameters, {epochs} of "
        f"MNIST: {percent(accuracy, 1)} on {whole(record['records'][0]['n'])} test images before anything "
        f"is done to it; {record['rounds']} rounds of timing; load of the machine "
        f"{record['load'][0]} before, {record['load'][1]} after."
    )
