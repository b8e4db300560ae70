"""The sections on formats: the matrix, VGG16's conversion, MLPerf Tiny's files, `measure` and the loop."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from paired import difference
from recording import unpack
from results_parts import (
    Record,
    markdown_table,
    missing,
    provenance,
    read,
    smoke,
    verdict,
    versions,
)

from secateur.reporting.formats import DASH, percent, points, whole

SEEDS = (0, 1, 2)
IMAGE_BYTES = 28 * 28 * 4
MAKE = {
    "format-matrix": "python benchmarks/format_matrix.py",
    "vgg16-conversion": "python benchmarks/vgg16_conversion.py --peer PEER_VENV/bin/python",
    "mlperf-tiny": "SECATEUR_MODELS=FOLDER python benchmarks/mlperf_tiny.py",
    "measure-loop": "python benchmarks/measure_loop.py",
}
NETWORKS = {
    "lab-cnn": "The lab CNN, 20,410 parameters",
    "lenet-5": "LeNet-5, 431,080 parameters",
    "mobilenet": "MobileNet, alpha 0.25 at 32x32x1",
}


# --- the matrix -------------------------------------------------------------------------------------


def matrix(records: Path, anchors: Record) -> Iterable[str]:
    """Bytes, accuracy, agreement and latency of every format, network by network."""
    yield "## Every post-training format of three networks"
    found = []
    for seed in SEEDS:
        record = read(records, f"format-matrix-seed-{seed}")
        if record is None:
            yield missing(f"format-matrix-seed-{seed}.json", MAKE["format-matrix"])
        else:
            yield from smoke(record)
            found.append(record)
    if not found:
        return
    for name, title in NETWORKS.items():
        keys = [(r["stage"], r["format"]) for r in found[0]["runs"] if r["network"] == name]
        if keys:
            yield f"### {title}"
            yield markdown_table(
                [
                    "file", "bytes", "gzip", "stripped", "stripped, gzip", "accuracy",
                    "less float32's, points", "agrees with float32", "latency",
                ],
                [_matrix_cells(_of(found, name, *key), _floats(found, name, key[0])) for key in keys],
            )  # fmt: skip
    first = found[0]
    yield (
        f"Means over seeds {', '.join(str(r['seed']) for r in found)}; accuracy, in LiteRT, on "
        f"{whole(first['n'])} test images. Differences are over the same images and seeds, with their "
        "95 % interval; the float32 file they are taken from is that of the same stage. Agreement: "
        "images on which both answer the same. Ranges of activations come from 500 training images. "
        f"`pruned`: {100 * first['sparsity']:g} % zeros, in the MobileNet without its depthwise kernels. Latency: one image, one thread, XNNPACK, files "
        "in turn; XNNPACK has no kernels for `int16x8`."
    )
    yield markdown_table(["target", "reached", "met"], _matrix_targets(found, anchors["formats"]))
    yield provenance(first, [r["created"] for r in found])


def _of(found: Sequence[Record], network: str, stage: str, format: str) -> list[Record]:
    """One row's results, seed by seed, with the number of images."""
    wanted = {"network": network, "stage": stage, "format": format}
    return [
        {**run, "n": record["n"]}
        for record in found
        for run in record["runs"]
        if wanted.items() <= run.items()
    ]


def _floats(found: Sequence[Record], network: str, stage: str) -> list[Record]:
    return _of(found, network, stage, "float32")


def _gap(each: Sequence[Record], floats: Sequence[Record]) -> str:
    if each[0]["format"] == "float32":
        return DASH
    rows = [[unpack(run["right"], run["n"]) for run in side] for side in (each, floats)]
    if len(each) < 2:
        return points(100 * (each[0]["accuracy"] - floats[0]["accuracy"]))
    return str(difference(*rows))


def _matrix_cells(each: Sequence[Record], floats: Sequence[Record]) -> list[str]:
    def mean(key: str) -> float:
        return statistics.fmean(run[key] for run in each)

    return [
        f"`{each[0]['stage']}-{each[0]['format']}`",
        *[
            whole(mean(key))
            for key in ("bytes", "gzip_bytes", "stripped_bytes", "stripped_gzip_bytes")
        ],
        percent(mean("accuracy")),
        _gap(each, floats),
        DASH if each[0]["format"] == "float32" else percent(mean("agreement")),
        f"{statistics.median(run['latency_us'] for run in each):,.1f} us",
    ]


def _matrix_targets(found: Sequence[Record], wanted: Record) -> Iterable[list[str]]:
    for format, (_, most) in wanted["lab-cnn"].items():
        if each := _of(found, "lab-cnn", "dense", format):
            sizes = [run["bytes"] for run in each]
            yield [
                f"lab CNN, `{format}`: at most {whole(most)} B",
                f"{whole(min(sizes))}..{whole(max(sizes))} B",
                verdict(statistics.fmean(sizes) <= most, max(sizes) <= most, "the mean only"),
            ]
    least = -wanted["points"]
    for name in NETWORKS:
        floats = _floats(found, name, "dense")
        for format in wanted["lab-cnn"]:
            each = _of(found, name, "dense", format)
            if not each or format == "float32":
                continue
            gaps = [
                100 * (ours["accuracy"] - theirs["accuracy"])
                for ours, theirs in zip(each, floats, strict=True)
            ]
            # multiples of 1 / n, but not in floating point
            met = [gap >= least - 1e-9 for gap in (statistics.fmean(gaps), min(gaps))]
            yield [
                f"{name}, `{format}`: accuracy at most {wanted['points']:g} points below float's",
                " / ".join(points(gap) for gap in gaps),
                verdict(met[0], met[1], "the mean only"),
            ]


# --- VGG16 ------------------------------------------------------------------------------------------

SIDES = {
    "secateur": "Secateur, converting",
    "command": "Secateur, the whole command",
    "converter": "TensorFlow's converter, tf_keras",
}


def conversion(record: Record | None, anchors: Record) -> Iterable[str]:
    """Bytes, peak memory and time of converting a large network, beside the old route."""
    yield "## Converting VGG16 with a head: bytes, memory, time"
    if record is None:
        yield missing("vgg16-conversion.json", MAKE["vgg16-conversion"])
        return
    yield from smoke(record)
    rows = record["rows"]
    yield markdown_table(
        ["side", "format", "bytes", "gzip", "held before", "peak memory", "CPU time"],
        [
            [
                SIDES[row["side"]],
                f"`{row['format']}`",
                f"{_mib(row['bytes'])} MiB",
                f"{row['gzip_bytes'] / 1e6:.1f} MB",
                f"{row['held_mib']:,.0f} MiB" if row["held_mib"] else DASH,
                f"{row['peak_mib']:,.0f} MiB",
                f"{row['seconds']:.1f} s",
            ]
            for row in rows
        ],
    )
    yield markdown_table(["target", "reached", "met"], _conversion_targets(rows, anchors))
    load = [load for row in rows for load in row["load"]]
    peer = next((row["versions"] for row in rows if row["side"] == "converter"), None)
    yield (
        f"{whole(rows[0]['parameters'])} parameters, random, three quarters of each kernel zero. Medians "
        f"of {len(rows[0]['each'])} rounds, a process each, sides in turn. Peak memory is that of the whole "
        "process: TensorFlow, the model and the conversion. Measured earlier: "
        + anchors["conversion"]["source"]
        + ". "
        + provenance({**record, "versions": rows[0]["versions"]}, [record["created"]])
        + (f" Peer: {versions(peer)}." if peer else "")
        + f" Load average {min(load):.1f} to {max(load):.1f}."
    )


def _mib(count: float) -> str:
    return f"{count / 2**20:.2f}"


def _conversion_targets(rows: Sequence[Record], anchors: Record) -> Iterable[list[str]]:
    known = {(row["side"], row["format"]): row for row in rows}
    wanted = anchors["conversion"]
    for format, most in wanted["mib"].items():
        row = known["secateur", format]
        reached = round(row["bytes"] / 2**20, 2)
        yield [f"`{format}`: at most {most:g} MiB", f"{reached:.2f} MiB", verdict(reached <= most)]
    row, most = known["secateur", "dynamic"], wanted["dynamic_gzip_bytes"]
    yield [
        f"`dynamic`, gzip: at most {most / 1e6:g} MB",
        f"{row['gzip_bytes'] / 1e6:.2f} MB",
        verdict(row["gzip_bytes"] <= most),
    ]
    for format in ("float32", "sparse"):
        ours, theirs = known["secateur", format], known.get(("converter", format))
        earlier = wanted["peak_mb"][format]
        peak = ours["peak_mib"] * 2**20 / 1e6
        yield [
            f"`{format}`: peak memory below the {earlier:,} MB of the old route measured earlier",
            f"{peak:,.0f} MB, {peak / earlier:.2f} of it",
            verdict(peak < earlier),
        ]
        if theirs is None:
            continue
        added = [row["peak_mib"] - row["held_mib"] for row in (ours, theirs)]
        for title, ratio, goal in (
            ("peak memory below the old route's in the same run", ours["peak_mib"] / theirs["peak_mib"], 1),
            ("what converting adds to it: three quarters of the old route's", added[0] / added[1], 0.75),
            ("CPU time below the old route's in the same run", ours["seconds"] / theirs["seconds"], 1),
        ):  # fmt: skip
            yield [f"`{format}`: {title}", f"{ratio:.2f} of it", verdict(ratio <= goal)]


# --- MLPerf Tiny ------------------------------------------------------------------------------------


def tiny(record: Record | None) -> Iterable[str]:
    """Two models of MLPerf Tiny beside their published int8 files."""
    yield "## MLPerf Tiny as int8: bytes, arena, NPU time"
    if record is None:
        yield missing("mlperf-tiny.json", MAKE["mlperf-tiny"])
        return
    yield from smoke(record)
    rows = record["rows"]
    yield markdown_table(
        [
            "model", "file", "bytes", "gzip", "scales", "bytes of scales and zero points", "TFLM arena",
            "U55-128, estimated", "NPU's weights", "flash",
        ],
        [
            [
                row["model"],
                row["side"],
                whole(row["bytes"]),
                whole(row["gzip_bytes"]),
                whole(row["scales"]),
                whole(_scale_bytes(row)),
                f"{whole(row['arena_bytes'])} B",
                f"{1e3 * row['npu']['seconds']:.3f} ms",
                f"{whole(row['npu']['encoded_weight_bytes'])} B",
                f"{whole(row['npu']['flash_bytes'])} B",
            ]
            for row in rows
        ],
    )  # fmt: skip
    known = {(row["model"], row["side"]): row for row in rows}
    for model in dict.fromkeys(row["model"] for row in rows):
        if (model, "published") in known:
            yield _tiny_words(model, known)
            yield markdown_table(["target", "reached", "met"], _tiny_targets(model, known))
    yield (
        "Ranges come from seeded noise, so no accuracy is claimed. NPU times are "
        f"{rows[0]['label']}. " + provenance(record, [record["created"]])
    )


def _scale_bytes(row: Record) -> int:
    return row["scale_bytes"] + row["zero_point_bytes"]


def _tiny_targets(model: str, known: Record) -> Iterable[list[str]]:
    published = known[model, "published"]
    for side in ("secateur", "secateur, stripped"):
        row = known[model, side]
        for title, key, unit in (("bytes", "bytes", "B"), ("arena", "arena_bytes", "B")):
            yield [
                f"{model}, {side}: {title} at most {whole(published[key])} {unit}",
                f"{whole(row[key])} {unit}",
                verdict(row[key] <= published[key]),
            ]
        limit, reached = (1e3 * one["npu"]["seconds"] for one in (published, row))
        yield [
            f"{model}, {side}: Ethos-U55-128 in at most {limit:.3f} ms",
            f"{reached:.3f} ms",
            verdict(reached <= limit),
        ]


def _tiny_words(model: str, known: Record) -> str:
    """What the scales of each output cost, where the published file has fewer."""
    published, ours = known[model, "published"], known[model, "secateur"]
    one, extra = known[model, "one scale a kernel"], ours["scales"] - published["scales"]
    if extra < 0.1 * published["scales"]:
        text = f"{model}: both have a scale for each output ({whole(ours['scales'])} scales)"
        if ours["bytes"] <= published["bytes"]:
            return f"{text}; nothing is larger for it."
        return f"{text}, which does not explain the bytes."
    more = _scale_bytes(ours) - _scale_bytes(published)
    return (
        f"{model}: the published file has one scale a kernel, ours one for each output, "
        f"{whole(extra)} more: {whole(more)} of the {whole(ours['bytes'] - published['bytes'])} B by which ours is "
        f"larger; tflite-micro keeps a multiplier and a shift for each output of a layer in the arena, and the NPU's "
        f"weights, whose codes then fill their range in every output, compress to "
        f"{whole(ours['npu']['encoded_weight_bytes'])} B instead of "
        f"{whole(published['npu']['encoded_weight_bytes'])} B. With one scale a kernel our float file gives "
        f"{whole(one['bytes'])} B, an arena of {whole(one['arena_bytes'])} B and {1e3 * one['npu']['seconds']:.3f} ms."
    )


# --- the loop ---------------------------------------------------------------------------------------


def loop(record: Record | None) -> Iterable[str]:
    """`measure` beside a loop over an interpreter."""
    yield "## `measure` beside the loop of one image at a time"
    if record is None:
        yield missing("measure-loop.json", MAKE["measure-loop"])
        return
    yield from smoke(record)
    rows = record["rows"]
    loops = {(r["network"], r["format"]): r for r in rows if r["side"] == "loop"}
    counts = max((list(row["peak_mib"]) for row in rows), key=len)
    yield markdown_table(
        [
            "network", "format", "side", "CPU time", "lowest..highest", "of the loop's",
            *[f"peak, {whole(int(count))} images" for count in counts],
        ],
        [
            [
                row["network"],
                row["format"],
                row["side"],
                f"{row['seconds']['median']:.3f} s",
                f"{row['seconds']['low']:.3f}..{row['seconds']['high']:.3f}",
                f"{_ratio(row, loops):.2f}",
                *[
                    f"{row['peak_mib'][count]:.1f} MiB" if count in row["peak_mib"] else DASH
                    for count in counts
                ],
            ]
            for row in rows
        ],
    )  # fmt: skip
    yield " ".join(_loop_words(rows, loops, counts))
    load = [load for row in rows for load in row["load"]]
    yield (
        f"{whole(record['n'])} MNIST images, one thread; medians over {rows[0]['seconds']['runs']} runs, sides "
        "in turn. `loop`: the interpreter, one image after the other, accuracy only. `predict`: the batches of "
        "`measure` alone. `measure`: the whole, which also gzips the file twice, strips it, counts its weights and "
        "tries it in a process of its own. Peak: above what the process held before, the images among it. "
        + provenance(record, [record["created"]])
        + f" Load average {min(load):.1f} to {max(load):.1f}."
    )


def _ratio(row: Record, loops: Record) -> float:
    theirs = loops[row["network"], row["format"]]
    return row["seconds"]["median"] / theirs["seconds"]["median"]


def _loop_words(rows: Sequence[Record], loops: Record, counts: Sequence[str]) -> Iterable[str]:
    for row in rows:
        if row["side"] == "loop":
            continue
        ratio = _ratio(row, loops)
        faster = "less" if ratio < 1 else "more"
        yield f"{row['network']}, {row['format']}, {row['side']}: {faster} time than the loop ({ratio:.2f})."
    ours = [row for row in rows if row["side"] == "measure"]
    first, last = (int(counts[at]) for at in (0, -1))
    grown = max(row["peak_mib"][counts[-1]] - row["peak_mib"][counts[0]] for row in ours)
    each = max(0.0, grown * 2**20 / (last - first))
    flat = "is flat" if each < IMAGE_BYTES / 10 else "grows"
    yield (
        f"The peak memory of `measure` {flat}: at most {each:.0f} B more for each further image, which "
        f"itself takes {whole(IMAGE_BYTES)} B ({whole(first)} to {whole(last)} images)."
    )
