"""The sections of docs/results.md on quantization-aware training: accuracy, small files, step time."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from results_parts import Record, markdown_table, missing, provenance, smoke, verdict, versions

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


def sizes(record: Record | None, tuning: Record | None, anchors: Record) -> Iterable[str]:
    """The smallest files without a limit on epochs, and 4 bits beside 8."""
    yield "### Small files, and 4 bits"
    if record is None:
        yield missing("qat-sizes.json", "python benchmarks/qat_sizes.py")
        return
    yield from smoke(record)
    runs = record["runs"]
    names = list(dict.fromkeys(run["recipe"] for run in runs))
    yield markdown_table(
        ["recipe", "bytes", "gzip", "stripped", "stripped, gzip", "accuracy", "lowest..highest"],
        [_size_cells(name, [run for run in runs if run["recipe"] == name]) for name in names],
    )
    yield markdown_table(["target", "reached", "met"], _size_targets(runs, names, anchors["qat"]))
    seeds = sorted({run["seed"] for run in runs})
    words = (
        f"Accuracy in LiteRT on 10,000 test images, seeds {', '.join(map(str, seeds))}. Small files: 3 "
        "epochs in float, 12 that prune the Dense kernel, 6 through the grids of the file, 4 bits for "
        "the Dense kernel and 8 for the convolution; `N bits` rows: one epoch in float, one aware. "
    )
    if tuning is not None:
        tried = "; ".join(
            f"{run['recipe'].replace(', ', ' and ')} zeros {100 * run['accuracy']:.2f} %, {run['stripped_gzip_bytes']:,} B"
            for run in tuning["runs"]
        )
        words += f"Sparsity was chosen on validation data, seed 10, of {tried}. "
    yield words + provenance(record, [record["created"]])


def _size_cells(name: str, runs: list[Record]) -> list[str]:
    def mean(key: str) -> str:
        return f"{statistics.mean(run[key] for run in runs):,.0f}"

    accuracy = [100 * run["accuracy"] for run in runs]
    return [
        name,
        *map(mean, ("bytes", "gzip_bytes", "stripped_bytes", "stripped_gzip_bytes")),
        f"{statistics.mean(accuracy):.2f} %",
        f"{min(accuracy):.2f}..{max(accuracy):.2f} %",
    ]


def _size_targets(runs: list[Record], names: list[str], asked: Record) -> Iterable[list[str]]:
    accuracy = {
        name: statistics.mean(run["accuracy"] for run in runs if run["recipe"] == name)
        for name in names
    }
    for name, wanted in asked["small"].items():
        sizes = [run["stripped_gzip_bytes"] for run in runs if run["recipe"] == name]
        if sizes:
            met = accuracy[name] >= wanted["accuracy"] and max(sizes) <= wanted["gzip_bytes"]
            yield [
                f"every seed in {wanted['gzip_bytes']:,} B with at least {100 * wanted['accuracy']:.2f} %",
                f"{max(sizes):,} B at most, {100 * accuracy[name]:.2f} %",
                verdict(met),
            ]
    for name in names:
        if name.endswith(", 4 bits") and (wide := name.replace("4 bits", "8 bits")) in accuracy:
            lost = 100 * (accuracy[wide] - accuracy[name])
            yield [
                f"{name}: within {asked['int4_points']:g} points of 8 bits",
                f"{-lost:+.2f} points",
                verdict(lost <= asked["int4_points"]),
            ]


def steps(record: Record | None, anchors: Record) -> Iterable[str]:
    """A training step through the grids over a plain one, the old toolkit in the same run."""
    yield "### What it adds to a training step"
    if record is None:
        command = "python benchmarks/step_overhead.py --what aware --peer PEER_VENV/bin/python"
        yield missing("qat-overhead.json", command)
        return
    yield from smoke(record)
    asked = anchors["qat"]["step_ratio"]
    peers = {_case(row): row for row in record["rows"] if row["side"] == "tfmot"}
    cells = []
    for row in record["rows"]:
        ratio, ours = row["ratio"], row["side"] == "secateur"
        peer = peers.get(_case(row)) if ours and row["backend"] == "tensorflow" else None
        cells.append(
            [
                f"{row['model']}, batch {row['batch']}",
                f"Secateur, {row['backend']}" if ours else "tfmot, tf_keras",
                f"{ratio['median']:.3f}",
                f"{ratio['low']:.3f}..{ratio['high']:.3f}",
                str(row["pairs"]),
                f"{row['plain_step_ms']:.2f} ms",
                "" if ours else f"{asked[_case(row)]:g}",
                "" if peer is None else verdict(ratio["median"] <= peer["ratio"]["median"]),
                "" if peer is None else verdict(ratio["median"] <= asked["goal"]),
            ]
        )
    yield markdown_table(
        [
            "training", "side", "ratio", "95 % interval", "pairs", "plain step", "measured earlier",
            "at most the peer's", f"goal {asked['goal']:.2f}",
        ],
        cells,
    )  # fmt: skip
    ours, theirs = (
        {k: v for row in record["rows"] if row["side"] == side for k, v in row["versions"].items()}
        for side in ("secateur", "tfmot")
    )
    load = [load for row in record["rows"] for load in row["load"]]
    yield (
        "Median of the ratios of 100 aware steps over 100 plain ones of two interleaved `fit`s; every "
        "side against its own plain step in its own process, all in one interleaved run, so the plain "
        "step's time is not for comparing sides. "
        + provenance({**record, "versions": ours}, [record["created"]])
        + (f" Peer: {versions(theirs)}." if theirs else "")
        + f" Instructions: {', '.join(record['machine']['instructions']) or 'unknown'}. Load average "
        + f"{min(load):.1f} to {max(load):.1f}, the benchmark's own load included."
    )


def _case(row: Record) -> str:
    return f"{row['model']}-{row['batch']}"
