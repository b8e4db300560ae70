"""The lab's section, the README's first screen, and how the Runs of the lab become records."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from results_parts import Record, bullets, markdown_table, missing, provenance, verdict

from secateur.errors import SecateurError
from secateur.reporting import headline, load_runs, rows
from secateur.reporting.aggregation import references, values
from secateur.reporting.formats import DASH, percent, points, times, whole
from secateur.reporting.records import check_runs

BEGIN, END = "<!-- results:begin (make results) -->\n", "<!-- results:end -->"
SHOWN = ("baseline-h5", "baseline-float32", "baseline-dynamic", "pruned-h5", "pruned-float32")
SEEDS = (0, 1, 2)
LAB_COMMAND = "secateur run lab --data mnist --seeds 3 --out out/"
_SIZES = {"gzip_bytes": "gzip as is", "stripped_gzip_bytes": "gzip of the stripped file"}
WEIGHT_KEYS = ("path", "role", "shape", "size", "zeros", "sparsity")


# --- collecting -------------------------------------------------------------------------------------


def trim(run: Record) -> Record:
    """Keep what tells how a figure came about; leave out what only the report page draws."""
    kept = {k: v for k, v in run.items() if k not in ("recipe_toml", "fingerprint")}
    kept["stages"] = [
        {
            **{k: v for k, v in stage.items() if k != "sparsity_curve"},
            "weights": [{k: w[k] for k in WEIGHT_KEYS if k in w} for w in stage["weights"]],
        }
        for stage in run["stages"]
    ]
    kept["command"] = _without_places(run.get("command") or "")
    return kept


def collect(folder: Path, records: Path) -> list[Path]:
    """Copy the trimmed run.json of each lab Run found to lab-seed-N.json."""
    written = []
    for run in load_runs(folder):
        if run["name"] != "lab" or (run.get("data") or {}).get("name") != "mnist":
            raise SecateurError(
                f"{folder} holds a Run of {run['name']!r}; expected recipe lab on mnist; "
                f"fix: {LAB_COMMAND}"
            )
        text = json.dumps(trim(run), indent=1, allow_nan=False) + "\n"
        if place := re.search(r'[" =](/|~/|[A-Z]:\\\\)[\w.]', text):
            line = text[: place.start()].count("\n")
            raise SecateurError(
                f"{folder}: the record names a place on this machine "
                f"({text.splitlines()[line].strip()[:80]}); fix: give relative paths or names"
            )
        written.append(records / f"lab-seed-{run['seed']}.json")
        written[-1].write_text(text, encoding="utf-8")
    return written


def _without_places(command: str) -> str:
    """The command line without --out and its folder: where it was written is nobody's business."""
    words, kept = iter(shlex.split(command)), []
    for word in words:
        if word == "--out":
            next(words, None)
        elif word != "--overwrite" and not word.startswith("--out="):
            kept.append(word)
    return shlex.join(kept)


# --- the page -----------------------------------------------------------------------------------------


def lab(records: Path, anchors: Record) -> Iterable[str]:
    """W1's table, its controls and targets."""
    yield "## The lab: a small CNN on MNIST, pruned to 80 % and quantized"
    files = [records / f"lab-seed-{seed}.json" for seed in SEEDS]
    for file in files:
        if not file.exists():
            yield missing(
                file.name, f"{LAB_COMMAND} && python benchmarks/results.py --collect out/"
            )
    found = [file for file in files if file.exists()]
    if not found:
        return
    runs = [load_runs(file)[0] for file in found]
    check_runs(runs, [file.name for file in found])
    table = rows(runs)
    yield headline(runs)
    old = anchors["lab"]
    yield markdown_table(
        [
            "row", "bytes", "gzip", "smaller, gzip against gzip", "accuracy", "lowest..highest",
            "old bytes", "old gzip", "old accuracy",
        ],
        [_lab_cells(row, old["rows"].get(row["row"], {})) for row in table],
    )  # fmt: skip
    yield (
        f"Means over seeds {', '.join(str(run['seed']) for run in runs)}, accuracy on "
        f"{whole(runs[0]['rows'][0].get('n'))} test images in the file's own runtime, one thread; "
        f"smaller: {references(table)}. `control`: the dense network with the same "
        f"extra training. Old: {old['name']}."
    )
    yield f"Source of the old figures: {old['source']}."
    yield bullets(old["notes"])
    yield "### Zeros, layer by layer"
    yield markdown_table(["weight", *[f"seed {run['seed']}" for run in runs]], _zeros_cells(runs))
    yield "### LiteRT against Keras"
    yield markdown_table(["file", "accuracy of the file less Keras's, points"], _gap_cells(runs))
    yield "### Targets"
    yield markdown_table(["target", "reached", "met"], _lab_targets(runs, table, anchors))
    yield provenance(runs[0], [run["created"] for run in runs])
    yield f"To repeat it: `{LAB_COMMAND}`."


def first_screen(records: Path) -> str:
    """What the README shows of the lab: its sentence and the shortest table that supports it."""
    files = [records / f"lab-seed-{seed}.json" for seed in SEEDS]
    if not all(file.exists() for file in files):
        return ""
    runs = [load_runs(file)[0] for file in files]
    old = json.loads((records / "anchors.json").read_text(encoding="utf-8"))["lab"]
    table = [row for row in rows(runs) if row["row"] in (*SHOWN, "pruned-dynamic", "control-keras")]
    cells = [
        [
            f"`{row['row']}`",
            _spread(row, "bytes"),
            _spread(row, "gzip_bytes"),
            f"{times(row['times_smaller_gzip'])}x",
            percent(row["accuracy"]),
            whole(old["rows"].get(row["row"], {}).get("gzip_bytes")),
            _old_accuracy(old["rows"].get(row["row"], {})),
        ]
        for row in table
    ]
    titles = ["file", "bytes", "gzip", "smaller", "accuracy", "tfmot: gzip", "tfmot: accuracy"]
    return "\n\n".join(
        [
            f"`secateur run lab --data mnist`: {headline(runs)}",
            markdown_table(titles, cells),
            "MNIST, a 20,410-parameter CNN, 80 % zeros: the exercise everybody does by hand, beside the old "
            "toolkit on the same data, epochs and batches (the learning rate is our own). `control` is the dense network trained as long: without "
            "it, pruning seems to *raise* accuracy. More, with the targets and their sources: "
            "[docs/results.md](docs/results.md).",
            "",
        ]
    )


def with_first_screen(readme: str, block: str) -> str:
    """The README with `block` between its two markers."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{block}{END}{rest.split(END, 1)[1]}"


def _lab_cells(row: Record, old: Record) -> list[str]:
    low, high = row["accuracy_min"], row["accuracy_max"]
    smaller = row["times_smaller_gzip"]
    return [
        f"`{row['row']}`",
        _spread(row, "bytes"),
        _spread(row, "gzip_bytes"),
        DASH if smaller is None else f"{times(smaller)}x",
        percent(row["accuracy"]),
        DASH if low is None else f"{percent(low).removesuffix(' %')}..{percent(high)}",
        whole(old.get("bytes")),
        whole(old.get("gzip_bytes")),
        _old_accuracy(old),
    ]


def _old_accuracy(old: Record) -> str:
    text = percent(old.get("accuracy"))
    if "seeds" not in old:
        return text
    return f"{text} ({percent(min(old['seeds'])).removesuffix(' %')}..{percent(max(old['seeds']))})"


def _spread(row: Record, key: str) -> str:
    low, high = row[f"{key}_min"], row[f"{key}_max"]
    same = low is None or low == high
    return whole(row[key]) if same else f"{whole(row[key])} ({whole(low)}..{whole(high)})"


def zeros(run: Record, path: str) -> tuple[int, int] | None:
    """Zeros and size of a weight of the pruned model."""
    for stage in run["stages"]:
        for weight in stage["weights"] if stage["method"] == "prune" else ():
            if weight["path"] == path:
                return weight["zeros"], weight["size"]
    return None


def _zeros_cells(runs: Sequence[Record]) -> list[list[str]]:
    paths = [w["path"] for s in runs[0]["stages"] if s["method"] == "prune" for w in s["weights"]]
    return [[f"`{path}`", *[_of(zeros(run, path)) for run in runs]] for path in paths]


def _of(counted: Sequence[int] | None) -> str:
    return DASH if counted is None else f"{whole(counted[0])} of {whole(counted[1])}"


def gaps(runs: Sequence[Record], row: Record) -> list[float]:
    """Accuracy of a .tflite less that of the Keras file of its stage, in points, seed by seed."""
    ours = values(runs, row["row"], "accuracy")
    kerass = values(runs, f"{row['stage']}-keras", "accuracy")
    return [100 * (ours[i] - kerass[i]) for i in sorted(ours.keys() & kerass.keys())]


def _litert(runs: Sequence[Record]) -> list[Record]:
    return [row for row in rows(runs) if row["format"] in ("float32", "dynamic")]


def _gap_cells(runs: Sequence[Record]) -> list[list[str]]:
    return [
        [f"`{row['row']}`", ", ".join(points(gap) for gap in gaps(runs, row)) or DASH]
        for row in _litert(runs)
    ]


def _lab_targets(runs: Sequence[Record], table: Sequence[Record], anchors: Record) -> list:
    wanted, old = anchors["targets"], anchors["lab"]["rows"]
    known = {row["row"]: row for row in table}
    cells = []
    if final := known.get("pruned-dynamic"):
        limit = wanted["gzip_bytes"]
        each = values(runs, "pruned-dynamic", "gzip_bytes").values()
        cells.append(
            [
                f"pruned + dynamic, gzip: at most {whole(limit)} B",
                f"{_spread(final, 'gzip_bytes')} B",
                verdict(final["gzip_bytes"] <= limit, max(each) <= limit, "the mean only"),
            ]
        )
        for key, limit in wanted["pruned_dynamic"].items():
            each = values(runs, "pruned-dynamic", key).values()
            if each:
                mean = sum(each) / len(each)
                cells.append(
                    [
                        f"pruned + dynamic, {_SIZES[key]}: at most {whole(limit)} B",
                        f"{whole(mean)} ({whole(min(each))}..{whole(max(each))}) B",
                        verdict(mean <= limit, max(each) <= limit, "the mean only"),
                    ]
                )
    for name in ("baseline-dynamic", "pruned-dynamic", "control-keras"):
        if (row := known.get(name)) and row["accuracy"] is not None:
            bar = old[name]["accuracy"]
            cells.append(
                [
                    f"`{name}`: accuracy of the old toolkit or better, {percent(bar)}",
                    percent(row["accuracy"]),
                    # the old figures have four digits
                    verdict(round(row["accuracy"], 4) >= bar),
                ]
            )
    for path, exact in wanted["zeros"].items():
        counts = [zeros(run, path) for run in runs]
        text = " / ".join(dict.fromkeys(_of(count) for count in counts))
        met = all(count == tuple(exact) for count in counts)
        cells.append([f"zeros of `{path}`: exactly {_of(exact)}, every seed", text, verdict(met)])
    for kind, limit in wanted["litert_points"].items():
        found = [gap for row in _litert(runs) if row["format"] == kind for gap in gaps(runs, row)]
        if found:
            worst = max(found, key=abs)
            cells.append(
                [
                    f"{kind} in LiteRT: accuracy within {limit:g} points of Keras, every seed",
                    f"{points(worst)} at most",
                    # differences of accuracies are multiples of 1 / n, but not in floating point
                    verdict(abs(worst) <= limit + 1e-9),
                ]
            )
    return cells


def tuning(record: Record | None) -> Iterable[str]:
    """How the lab's schedule and learning rate were chosen."""
    yield "### How the recipe was chosen"
    if record is None:
        yield missing("lab-tuning.json", "python benchmarks/lab_tuning.py")
        return
    runs = record["runs"]
    seeds = sorted({run["seed"] for run in runs})
    pairs = sorted({(run["end"], run["learning_rate"]) for run in runs})
    cells = []
    for end, rate in pairs:
        found = [r for r in runs if (r["end"], r["learning_rate"]) == (end, rate)]
        scores = [r["accuracy"] for r in found]
        sizes = sum(r["gzip_bytes"] for r in found) / len(found)
        cells.append(
            [
                f"{end:g}",
                f"{rate:g}",
                percent(sum(scores) / len(scores)),
                f"{percent(min(scores)).removesuffix(' %')}..{percent(max(scores))}",
                whole(sizes),
            ]
        )
    yield (
        f"On {whole(record['n'])} validation images, seeds {', '.join(map(str, seeds))}, none of which is "
        "reported above; the test set was not read. Two epochs at batch 128 with cosine decay."
    )
    titles = ["schedule ends at", "learning rate", "validation accuracy", "lowest..highest"]
    yield markdown_table([*titles, "gzip of dynamic"], cells)
