"""The section of docs/results.md on quantization-aware training of the lab's CNN."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from results_parts import Record, markdown_table, missing, provenance, smoke, verdict

ROWS = ("baseline-float32", "baseline-int8", "quantized-int8", "control-keras")
WORDS = {
    "baseline-float32": "float, one epoch",
    "baseline-int8": "quantized after that epoch",
    "quantized-int8": "quantized in training",
    "control-keras": "dense, float, trained as long",
}


def aware(record: Record | None, anchors: Record) -> Iterable[str]:
    """The table of means over seeds, and the old toolkit beside it."""
    yield "## Quantization-aware training of the lab's CNN"
    if record is None:
        yield missing("qat-lab.json", "python benchmarks/qat_lab.py")
        return
    yield from smoke(record)
    names = list(dict.fromkeys(run["recipe"] for run in record["runs"]))
    yield markdown_table(
        ["recipe", "row", "bytes", "gzip", "accuracy", "lowest..highest", "agreement"],
        [_cells(record, name, row) for name in names for row in ROWS],
    )
    asked = anchors["qat"]
    yield markdown_table(
        ["target", "asked", "reached", "met"],
        [line for name in names for line in _targets(record, name, asked["rows"][name])],
    )
    seeds = sorted({run["seed"] for run in record["runs"]})
    yield (
        f"Accuracy in LiteRT on 10,000 test images, seeds {', '.join(map(str, seeds))}; agreement is "
        "with the model as it was trained. Nothing was chosen on these images, and nothing tuned. "
        f"Old toolkit: {asked['source']}. " + provenance(record, [record["created"]])
    )


def _of(record: Record, name: str, row: str, key: str) -> list[float]:
    return [
        found[key]
        for run in record["runs"]
        if run["recipe"] == name
        for found in run["rows"]
        if found["row"] == row
    ]


def _cells(record: Record, name: str, row: str) -> list[str]:
    accuracy = _of(record, name, row, "accuracy")
    parity = [(found or {}).get("agreement") for found in _of(record, name, row, "parity")]
    known = [one for one in parity if one is not None]
    return [
        f"`{name}`",
        f"`{row}`: {WORDS[row]}",
        f"{statistics.mean(_of(record, name, row, 'bytes')):,.0f}",
        f"{statistics.mean(_of(record, name, row, 'gzip_bytes')):,.0f}",
        f"{100 * statistics.mean(accuracy):.2f} %",
        f"{100 * min(accuracy):.2f}..{100 * max(accuracy):.2f} %",
        f"{100 * statistics.mean(known):.2f} %" if known else "",
    ]


def _targets(record: Record, name: str, asked: Record) -> Iterable[list[str]]:
    row = "quantized-int8"
    reached = statistics.mean(_of(record, name, row, "accuracy"))
    label = f"`{name}`, accuracy above"
    wanted = asked["accuracy"]
    yield [label, f"{100 * wanted:.2f} %", f"{100 * reached:.2f} %", verdict(reached > wanted)]
    for key, words in (("bytes", "bytes"), ("gzip_bytes", "gzip")):
        if key in asked:
            size = statistics.mean(_of(record, name, row, key))
            yield [
                f"`{name}`, {words} below",
                f"{asked[key]:,}",
                f"{size:,.0f}",
                verdict(size < asked[key]),
            ]
