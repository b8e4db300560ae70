"""The sections that are about time: a training step, a pattern, VGG16's pruning, a command."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from results_parts import Record, markdown_table, missing, provenance, smoke, verdict, versions

from secateur.reporting.formats import DASH, measure, whole

MAKE = {
    "step-overhead": "python benchmarks/step_overhead.py --peer PEER_VENV/bin/python",
    "pattern-overhead": "python benchmarks/pattern_overhead.py",
    "vgg16-memory": "python benchmarks/vgg16_memory.py --peer PEER_VENV/bin/python",
    "command-start": "python benchmarks/command_start.py",
}
SAME_STEP = 1.1  # plain steps of the same training further apart than this compare nothing


def overhead(record: Record | None, anchors: Record) -> Iterable[str]:
    """A training step with pruning over one without."""
    yield "## What pruning adds to a training step"
    if record is None:
        yield missing("step-overhead.json", MAKE["step-overhead"])
        return
    yield from smoke(record)
    targets, old = anchors["targets"], anchors["overhead"]["rows"]
    explained = targets["overhead_explained_above"]
    cells = []
    for row in record["rows"]:
        case, ratio = f"{row['model']}-{row['batch']}", row["ratio"]
        ours = row["side"] == "secateur"
        bar = targets["overhead"].get(case) if ours and row["backend"] == "tensorflow" else None
        earlier = old.get(case, {}).get("ratio", DASH)
        cells.append(
            [
                f"{row['model']}, batch {row['batch']}",
                f"Secateur, {row['backend']}" if ours else "tfmot, tf_keras",
                f"{ratio['median']:.3f}",
                f"{ratio['low']:.3f}..{ratio['high']:.3f}",
                str(row["pairs"]),
                f"{row['update_ms']:.1f} ms",
                f"{row['plain_step_ms']:.2f} ms",
                DASH if ours else earlier,
                DASH if bar is None else f"at most {bar:g}",
                DASH
                if bar is None
                else verdict(ratio["median"] <= bar, ratio["high"] <= bar, "the median only"),
            ]
        )
    yield markdown_table(
        [
            "training", "side", "ratio", "95 % interval", "pairs", "one mask update", "plain step",
            "measured earlier", "target", "met",
        ],
        cells,
    )  # fmt: skip
    yield (
        "Median of the ratios of 100 steps pruned over 100 steps plain of two interleaved `fit`s, one "
        "mask update in each; every side against its own plain step in its own process, all of them "
        "in one interleaved run. The plain step's time says what the ratio is of; it is not for "
        "comparing sides. Measured earlier: " + anchors["overhead"]["source"] + "."
    )
    updates = [
        [
            f"one mask update of the challenge MLP, {row['backend']}: at most "
            f"{targets['update_ms']:g} ms",
            f"{row['update_ms']:.1f} ms",
            verdict(row["update_ms"] <= targets["update_ms"]),
        ]
        for row in record["rows"]
        if row["side"] == "secateur" and row["model"] == "challenge-mlp"
    ]
    if updates:
        yield markdown_table(["target", "reached", "met"], updates)
    above = [
        f"{row['model']} batch {row['batch']} on {row['backend']} ({row['ratio']['median']:.3f})"
        for row in record["rows"]
        if row["side"] == "secateur" and row["ratio"]["median"] > explained
    ]
    if above:
        yield (
            f"Above {explained:.2f}, and explained in `benchmarks/README.md`: {', '.join(above)}."
        )
    ours, peers = (
        {k: v for row in record["rows"] if row["side"] == side for k, v in row["versions"].items()}
        for side in ("secateur", "tfmot")
    )
    threads = sorted({row["threads"] for row in record["rows"]})
    load = [load for row in record["rows"] for load in row["load"]]
    known = record["machine"]["instructions"]
    yield (
        provenance({**record, "versions": ours}, [record["created"]])
        + (f" Peer: {versions(peers)}." if peers else "")
        + f" Instructions: {', '.join(known) or 'unknown'}; TF_ENABLE_ONEDNN_OPTS: "
        + f"{', '.join(sorted({row['onednn'] for row in record['rows']}))}. "
        + f"Threads: {', '.join(map(str, threads))}. Load average {min(load):.1f} to "
        + f"{max(load):.1f}, the benchmark's own load included."
    )


def patterns(record: Record | None) -> Iterable[str]:
    """What each pattern adds, on each backend."""
    yield "### Pattern by pattern"
    if record is None:
        yield missing("pattern-overhead.json", MAKE["pattern-overhead"])
        return
    yield from smoke(record)
    cells = [
        [
            row["backend"],
            row["pattern"],
            f"{row['ratio']['median']:.3f}",
            f"{row['ratio']['low']:.3f}..{row['ratio']['high']:.3f}",
            str(row["pairs"]),
            f"{row['update_ms']:.1f} ms",
            f"{row['plain_step_ms']:.2f} ms",
        ]
        for row in record["rows"]
    ]
    yield markdown_table(
        ["backend", "pattern", "ratio", "95 % interval", "pairs", "one mask update", "plain step"],
        cells,
    )
    yield " ".join(_pattern_words(record["rows"]))
    row = record["rows"][0]
    load = [load for row in record["rows"] for load in row["load"]]
    yield (
        f"{row['model']} at batch {row['batch']}, measured as above: a pattern is a process, the "
        "patterns of a backend take turns, each with a pair uncounted first; backends come one after "
        "the other. Zeros from 50 % to "
        "80 %, 2:4 at 50 %. "
        + provenance({**record, "versions": row["versions"]}, [record["created"]])
        + f" Instructions: {', '.join(record['machine']['instructions']) or 'unknown'}. Threads: "
        + f"{', '.join(sorted({str(row['threads']) for row in record['rows']}))}. Load average "
        + f"{min(load):.1f} to {max(load):.1f}, the benchmark's own load (1 to 2) included."
    )


def _pattern_words(rows: Sequence[Record]) -> Iterable[str]:
    """Which pattern costs more than unstructured zeros, where the intervals tell them apart."""
    for backend in dict.fromkeys(row["backend"] for row in rows):
        known = {row["pattern"]: row for row in rows if row["backend"] == backend}
        plain = known.get("unstructured")
        if plain is None:
            continue
        ratio = plain["ratio"]
        begin = (
            f"On {backend} unstructured zeros take {ratio['median']:.3f} "
            f"({ratio['low']:.3f}..{ratio['high']:.3f}) of a plain step; "
        )
        steps = [row["plain_step_ms"] for row in known.values()]
        if max(steps) > SAME_STEP * min(steps):
            yield (
                f"{begin}its processes' plain steps, which should be alike, take {min(steps):.1f} to "
                f"{max(steps):.1f} ms: the patterns are not compared."
            )
            continue
        dearer, cheaper, same = [], [], []
        for name, row in known.items():
            if row is plain:
                continue
            text = f"{name} ({row['ratio']['median']:.3f})"
            if row["ratio"]["low"] > plain["ratio"]["high"]:
                dearer.append(text)
            elif row["ratio"]["high"] < plain["ratio"]["low"]:
                cheaper.append(text)
            else:
                same.append(text)
        words = [
            f"{what}: {', '.join(names)}"
            for what, names in (("dearer", dearer), ("cheaper", cheaper), ("not told apart", same))
            if names
        ]
        yield f"{begin}{'; '.join(words)}."


def vgg16(record: Record | None, anchors: Record) -> Iterable[str]:
    """Parameters, memory and time of pruning a large network."""
    yield "## Pruning VGG16 with a head: parameters, memory, time"
    if record is None:
        yield missing("vgg16-memory.json", MAKE["vgg16-memory"])
        return
    yield from smoke(record)
    old = anchors["vgg16"]
    sides = {side["side"]: side for side in record["sides"]}
    yield markdown_table(
        ["side", "parameters before", "during", "after", "zeros of the kernels"],
        [
            [
                _VGG_SIDES[name],
                *[whole(side["parameters"][when]) for when in ("before", "during", "after")],
                f"{whole(side['zeros'])} of {whole(side['kernels'])}",
            ]
            for name, side in sides.items()
        ],
    )
    yield markdown_table(
        ["side", "phase", "time", "peak memory above what was held", "kept afterwards"],
        [
            [
                _VGG_SIDES[name],
                phase,
                f"{found['seconds']:.2f} s",
                f"{found['peak_mib']:,.0f} MiB",
                f"{found['kept_mib']:,.0f} MiB",
            ]
            for name, side in sides.items()
            for phase, found in side["phases"].items()
        ],
    )
    yield " ".join(_vgg_words(sides))
    wanted = old["targets"]
    ours = [sides[name] for name in ("at once", "callback") if name in sides]
    exact = all(
        count == wanted["parameters"] for side in ours for count in side["parameters"].values()
    )
    counts = sorted({count for side in ours for count in side["parameters"].values()})
    updates = [side["update"] for side in ours]
    yield markdown_table(
        ["target", "reached", "met"],
        [
            [
                f"{whole(wanted['parameters'])} parameters before, during and after",
                ", ".join(map(whole, counts)),
                verdict(exact),
            ],
            [
                f"one mask update of the largest kernel ({whole(ours[0]['kernel'])} weights): at "
                f"most {wanted['update_seconds']:g} s",
                " / ".join(
                    f"{u['median']:.3f} s ({u['low']:.3f}..{u['high']:.3f})" for u in updates
                ),
                verdict(
                    all(u["median"] <= wanted["update_seconds"] for u in updates),
                    all(u["high"] <= wanted["update_seconds"] for u in updates),
                    "the median only",
                ),
            ],
        ],
    )
    load = [load for side in record["sides"] for load in side["load"]]
    yield (
        "Medians of "
        + f"{record['sides'][0]['rounds']} rounds, a process each, sides in turn; random weights, "
        + "one image a step, no XLA on either side. Measured earlier: "
        + old["source"]
        + ". "
        + provenance({**record, "versions": ours[0]["versions"]}, [record["created"]])
        + (f" Peer: {versions(sides['wrapper']['versions'])}." if "wrapper" in sides else "")
        + f" Threads: {record['threads']}. Load average {min(load):.1f} to {max(load):.1f}."
    )


_VGG_SIDES = {
    "plain": "Keras, a plain step",
    "at once": "Secateur, at once",
    "callback": "Secateur, callback",
    "plain, tf_keras": "tf_keras, a plain step",
    "wrapper": "tfmot, wrappers",
}


def _vgg_words(sides: Record) -> Iterable[str]:
    """What pruning takes beside a plain step, ours and the peer's."""
    if "at once" in sides:
        phase = sides["at once"]["phases"]["prune"]
        yield (
            f"Pruning the whole model at once: {phase['seconds']:.1f} s, "
            f"{phase['peak_mib']:,.0f} MiB at the peak above what the model held."
        )
    added = {}
    for name, plain in (("callback", "plain"), ("wrapper", "plain, tf_keras")):
        if name in sides and plain in sides:
            added[name], usual = _from_model(sides[name]), _from_model(sides[plain])
            yield (
                f"{_VGG_SIDES[name]}: from the model to the end of the first pruned step "
                f"{added[name][0]:.1f} s and {added[name][1]:,.0f} MiB at the peak (a plain step: "
                f"{usual[0]:.1f} s, {usual[1]:,.0f} MiB)."
            )
    if len(added) == 2:
        ours, peer = added["callback"], added["wrapper"]
        slower = "less" if ours[0] < peer[0] else "more"
        larger = "less" if ours[1] < peer[1] else "more"
        yield (
            f"The callback takes {slower} time ({ours[0] / peer[0]:.2f} of the wrappers') and "
            f"{larger} memory ({ours[1] / peer[1]:.2f} of theirs)."
        )
    updates = [sides[name]["update"] for name in ("callback", "wrapper") if name in sides]
    if len(updates) == 2:
        yield (
            f"One mask update of the largest kernel: {updates[0]['median']:.2f} s against "
            f"{updates[1]['median']:.2f} s."
        )


def _from_model(side: Record) -> tuple[float, float]:
    """Seconds, and MiB at the peak above the model, over the phases up to the end of the step."""
    phases = [side["phases"][name] for name in ("wrap", "step") if name in side["phases"]]
    model = phases[0]["held_mib"]
    return (
        sum(phase["seconds"] for phase in phases),
        max(phase["held_mib"] + phase["peak_mib"] - model for phase in phases),
    )


def start(record: Record | None, anchors: Record) -> Iterable[str]:
    """How soon the command line answers."""
    yield "## How soon the command answers"
    if record is None:
        yield missing("command-start.json", MAKE["command-start"])
        return
    yield from smoke(record)
    bars = {"secateur --help": anchors["targets"]["help_seconds"]}
    cells = []
    for row in record["rows"]:
        taken, bar = row["seconds"], bars.get(row["command"])
        cells.append(
            [
                f"`{row['command']}`",
                f"{taken['median']:.3f} s",
                f"{taken['low']:.3f}..{taken['high']:.3f}",
                f"{measure(row['ratio'])} of `{row['against']}`",
                str(row["runs"]),
                DASH if bar is None else f"at most {bar:g} s",
                DASH
                if bar is None
                else verdict(taken["median"] <= bar, taken["high"] <= bar, "the median only"),
            ]
        )
    yield markdown_table(
        ["command", "wall time", "95 % interval", "ratio", "runs", "target", "met"], cells
    )
    yield (
        "Medians of whole processes, in interleaved rounds; the ratio is the median over rounds. "
        "`measure` also counts weights, compresses the file and, with data, times single samples."
    )
    yield provenance(record, [record["created"]]) + (
        f" Load average {record['load'][0]:.1f} before, {record['load'][-1]:.1f} after."
    )
