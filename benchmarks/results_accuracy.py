"""The sections that set ways of pruning side by side: LeNets on MNIST, MobileNet on seedlings."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from paired import Difference, difference, ranking
from recording import unpack
from results_parts import Record, bullets, markdown_table, missing, provenance, verdict

from secateur.reporting.formats import DASH, percent, whole

SHOW = {
    "one-shot": "one-shot",
    "gradual": "gradual",
    "rewinding": "rewinding",
    "uniform": "uniform",
    "erk": "ERK",
    "lamp": "LAMP",
}
MNIST_COMMAND = "python benchmarks/mnist_sparsity.py"
SEEDLINGS_COMMAND = "python benchmarks/seedlings_mobilenet.py"
MNIST_SEEDS, MNIST_TUNING = (0, 1, 2), (10, 11)
SEEDLINGS_SEEDS, SEEDLINGS_TUNING = (0, 1, 2, 3, 4), (10,)


# --- LeNet-300-100 and LeNet-5 --------------------------------------------------------------------


class Trials:
    """The runs of all seeds, found by what tells them apart."""

    def __init__(self, records: Sequence[Record], names: Sequence[str]):
        self.records, self.names = records, names
        self._found: dict[tuple, dict[int, Record]] = {}
        for number, record in enumerate(records):
            for run in record["runs"]:
                key = tuple(run[name] for name in names)
                self._found.setdefault(key, {})[number] = run

    def complete(self, *key: object) -> bool:
        """Whether every seed has it."""
        return len(self._found.get(key, {})) == len(self.records)

    def runs(self, *key: object) -> list[Record]:
        """One run a seed."""
        found = self._found.get(key, {})
        return [found[number] for number in sorted(found)]

    def right(self, *key: object) -> list[np.ndarray]:
        """Which images were right, one row a seed."""
        found = self._found[key]
        return [
            unpack(found[n]["right"], self.records[n]["n"]).astype(float) for n in sorted(found)
        ]

    def shown(self, *key: object) -> str:
        """Mean accuracy and range."""
        runs = self.runs(*key)
        if not runs:
            return DASH
        scores = [run["accuracy"] for run in runs]
        low, high = percent(min(scores)).removesuffix(" %"), percent(max(scores))
        short = "" if self.complete(*key) else f", {len(runs)} seeds"
        return f"{percent(statistics.fmean(scores))} ({low}..{high}{short})"


def mnist_sparsity(records: Path, anchors: Record) -> Iterable[str]:
    """Ways of pruning by allocations on the LeNets."""
    yield "## LeNet-300-100 and LeNet-5 on MNIST: which way of pruning wins where"
    names = [f"mnist-sparsity-seed-{seed}.json" for seed in MNIST_SEEDS]
    found = yield from _found(records, names, MNIST_COMMAND)
    if not found:
        return
    trials = Trials(found, ("network", "way", "allocation", "sparsity"))
    for network, budget in found[0]["budgets"].items():
        if trials.runs(network, "dense", "", 0.0):
            yield from _network(trials, network, budget, anchors["lenets"].get(network, []))
    seconds = sum(run["seconds"] for record in found for run in record["runs"])
    yield _how(found) + (
        f" Trained and measured in Keras on TensorFlow, batches of "
        f"{', '.join(sorted({str(b['batch']) for b in found[0]['budgets'].values()}))}; "
        f"{seconds / 60:.0f} minutes of training, the machine shared. Adam, cosine decay. One "
        "dense training a seed; every way and the control go on from it with the same seed and "
        "batches, and for the same number of epochs. Zeros are counted over all kernels, biases "
        "stay."
    )
    yield from _mnist_tuning(records)


def _network(
    trials: Trials, network: str, budget: Record, published: Sequence[str]
) -> Iterable[str]:
    ways, allocations = budget["ways"], budget["allocations"]
    total = budget["dense"] + budget["extra"]
    yield f"### {network}: {budget['dense']} epochs dense, then {budget['extra']}, {total} in all"
    control = (network, "control", "", 0.0)
    cells = [
        ["dense before", DASH, *[DASH] * len(allocations), trials.shown(network, "dense", "", 0.0)],
        ["dense control", DASH, *[DASH] * len(allocations), trials.shown(*control)],
    ]
    for sparsity in budget["sparsities"]:
        for way in ways:
            each = [trials.shown(network, way, a, sparsity) for a in allocations]
            cells.append([f"{100 * sparsity:g} %", SHOW[way], *each, DASH])
    yield markdown_table(["zeros", "way", *[SHOW[a] for a in allocations], "dense"], cells)
    yield _winners(trials, network, budget)
    if published:
        yield "Published, for orientation (other budgets, mostly far longer trainings):"
        yield bullets(published)


def _winners(trials: Trials, network: str, budget: Record) -> str:
    """Who wins where, as far as the intervals say."""
    ways, allocations = budget["ways"], budget["allocations"]
    control = (network, "control", "", 0.0)
    texts = []
    for sparsity in budget["sparsities"]:
        cells = [(network, w, a, sparsity) for w in ways for a in allocations]
        if len(trials.records) < 2 or not all(trials.complete(*c) for c in (*cells, control)):
            texts.append(
                f"{100 * sparsity:g} % zeros: not every seed is there, nothing is compared."
            )
            continue
        rows = {cell: trials.right(*cell) for cell in cells}
        best = max(cells, key=lambda cell: float(np.mean(rows[cell])))
        gap = difference(rows[best], trials.right(*control))
        among = f"the best mean of {len(cells)} is " if len(cells) > 1 else ""
        what = f"{among}{SHOW[best[1]]} with {SHOW[best[2]]}"
        text = f"At {100 * sparsity:g} % zeros {what}: {_against(gap)} the dense control."
        # Beside the best, not averaged over the others: one that collapses would drown the rest.
        for axis, other in ((1, 2), (2, 1)):
            levels = {c[axis]: rows[c] for c in cells if c[other] == best[other]}
            if len(levels) > 1:
                what = "Ways, all with" if axis == 1 else "Allocations, all"
                text += f" {what} {SHOW[best[other]]}: {ranking(levels, SHOW)}."
        texts.append(text)
    note = (
        "Points of accuracy, 95 % intervals, each by itself, over seeds and test images, paired; of "
        "the best of several a little is luck."
    )
    return " ".join([*texts, note])


def _against(gap: Difference) -> str:
    if not gap.clear:
        return f"not told apart ({gap}) from"
    return f"{gap} points against"


def _mnist_tuning(records: Path) -> Iterable[str]:
    files = [records / f"mnist-sparsity-tuning-{seed}.json" for seed in MNIST_TUNING]
    found = [json.loads(f.read_text(encoding="utf-8")) for f in files if f.exists()]
    if not found:
        yield missing(files[0].name, f"{MNIST_COMMAND} --tune {' '.join(map(str, MNIST_TUNING))}")
        return
    yield "### How rates and schedules were chosen"
    groups: dict[tuple, list[float]] = {}
    for record in found:
        for run in record["runs"]:
            what = ", ".join(f"{k} {v:g}" for k, v in run["choice"].items())
            key = (run["network"], run["way"], run["allocation"], run["sparsity"], what)
            groups.setdefault(key, []).append(run["accuracy"])
    yield (
        f"On {whole(found[0]['n'])} validation images, seeds "
        f"{', '.join(str(r['seed']) for r in found)}, none of which is reported above; the test set "
        "was not read. The rate is the cosine's first; `end`: where the schedule ends; `rounds`, "
        "`to`: rounds, and the epoch that is rewound to."
    )
    yield markdown_table(
        ["network", "way", "allocation", "zeros", "tried", "validation accuracy"],
        [
            [network, way, SHOW.get(allocation, DASH), f"{100 * sparsity:g} %", what, _mean(scores)]
            for (network, way, allocation, sparsity, what), scores in groups.items()
        ],
    )


# --- MobileNet on the seedlings -------------------------------------------------------------------

# way -> what it is, and the dense control beside it
SEEDLINGS = {
    "scratch": ("from scratch, everything trained", None),
    "dense": ("base frozen, head trained: what all start from", None),
    "control, frozen": ("dense control, head trained on", None),
    "control, frozen, re-estimate": ("the same with new statistics", "control, frozen"),
    "frozen, keep": ("pruned while the head trains, statistics kept", "control, frozen"),
    "frozen, re-estimate": ("the same, statistics re-estimated", "control, frozen"),
    "frozen, head after": (
        "pruned at once, re-estimated, then the head trained on",
        "control, frozen",
    ),
    "control, unfrozen": ("dense control, everything trained on", None),
    "control, unfrozen, re-estimate": ("the same with new statistics", "control, unfrozen"),
    "unfrozen, keep": ("pruned while everything trains, statistics kept", "control, unfrozen"),
    "unfrozen, re-estimate": ("the same, statistics re-estimated", "control, unfrozen"),
}
PRUNED = {
    "all": "every kernel",
    "large": "all but depthwise and first",
    "large, lamp": "all but depthwise and first, by LAMP",
}


def seedlings(records: Path, anchors: Record) -> Iterable[str]:
    """A frozen base pruned: with and without new statistics, and fine-tuned."""
    yield "## A frozen MobileNet pruned to 40 % on the plant seedlings"
    names = [f"seedlings-seed-{seed}.json" for seed in SEEDLINGS_SEEDS]
    found = yield from _found(records, names, SEEDLINGS_COMMAND)
    if not found:
        return
    trials = Trials(found, ("way", "select"))
    cells = []
    for way, (meaning, control) in SEEDLINGS.items():
        for select in ("", *PRUNED):
            runs = trials.runs(way, select)
            if not runs:
                continue
            gap = _gap(trials, (way, select), (control, ""))
            share = sum(run["zeros"] for run in runs) / sum(run["kernels"] for run in runs)
            cells.append(
                [
                    f"`{way}`",
                    meaning,
                    PRUNED.get(select, DASH),
                    trials.shown(way, select),
                    percent(share),
                    DASH if gap is None else f"{gap} against `{control}`",
                ]
            )
    yield markdown_table(
        ["model", "what", "pruned", "accuracy", "zeros of kernels", "points"], cells
    )
    yield from _seedling_words(trials, found[0]["chosen"], anchors["seedlings"]["points"])
    budget, chosen = found[0]["budget"], found[0]["chosen"]
    yield _how(found) + (
        f" MobileNet alpha {budget['alpha']:g} at 96x96, random start, trained in Keras on "
        f"TensorFlow on {whole(found[0]['trained on'])} images turned over at random: "
        f"{budget['scratch']['epochs']} epochs, then the head {budget['head']['epochs']} with the "
        f"base frozen, then {budget['frozen']['epochs']} (base frozen) or "
        f"{budget['unfrozen']['epochs']} (everything trains) with and without pruning; Adam, cosine "
        f"decay, batches of {budget['batch']}; gradual pruning ends at {100 * budget['end']:g} % of a "
        f"training. Chosen on validation data: the rate {chosen['rate']:g} where everything "
        f"trains, and which kernels are pruned there and where the head trains after. "
        "Points: 95 % intervals over seeds and test images, paired."
    )
    yield anchors["seedlings"]["source"]
    yield from _seedling_tuning(records)


def _gap(trials: Trials, ours: tuple, theirs: tuple) -> Difference | None:
    if len(trials.records) < 2 or not (trials.complete(*ours) and trials.complete(*theirs)):
        return None
    return difference(trials.right(*ours), trials.right(*theirs))


def _seedling_words(trials: Trials, chosen: Record, limit: float) -> Iterable[str]:
    control = ("control, frozen", "")
    texts = []
    for pruned in ("all", "large"):
        name, keep, fresh = (
            PRUNED[pruned],
            ("frozen, keep", pruned),
            ("frozen, re-estimate", pruned),
        )
        kept, left = _gap(trials, keep, control), _gap(trials, fresh, control)
        back = _gap(trials, fresh, keep)
        if None in (kept, left, back):
            yield "Not every seed has every model: nothing is compared."
            return
        if not back.clear:
            then = f"re-estimating them is not told apart from keeping them ({back})"
        else:
            gives = "gives back" if back.mean > 0 else "takes another"
            low, high = sorted((abs(back.low), abs(back.high)))
            then = f"re-estimating them {gives} {abs(back.mean):.2f} ({low:.2f}..{high:.2f})"
        texts.append(
            f"Base frozen, {name} pruned to 40 %, statistics kept: {kept} points against the dense "
            f"control; {then}; left: {left}."
        )
    after = _gap(trials, ("frozen, head after", chosen["after"]), control)
    dense = ("control, unfrozen", "")
    tuned = [
        _gap(trials, (f"unfrozen, {what}", chosen["unfrozen"]), dense)
        for what in ("keep", "re-estimate")
    ]
    if None in (*tuned, after):
        yield "Not every seed has every model: nothing is compared."
        return
    texts.append(
        f"Fine-tuned: pruned at once ({PRUNED[chosen['after']]}), statistics re-estimated and only "
        f"then the head trained: {after}. Pruned while everything trains "
        f"({PRUNED[chosen['unfrozen']]}): {tuned[0]}, with re-estimated statistics {tuned[1]}."
    )
    yield " ".join(texts)
    ways = ("unfrozen, keep", "unfrozen, re-estimate", "frozen, head after")
    yield markdown_table(
        ["target", "reached", "met"],
        [
            [
                f"`{way}`: at most {limit:g} point lost by the interval's middle",
                str(gap),
                verdict(gap.mean >= -limit, gap.low >= -limit, "by the middle only"),
            ]
            for way, gap in zip(ways, (*tuned, after), strict=True)
        ],
    )


def _seedling_tuning(records: Path) -> Iterable[str]:
    files = [records / f"seedlings-tuning-{seed}.json" for seed in SEEDLINGS_TUNING]
    found = [json.loads(f.read_text(encoding="utf-8")) for f in files if f.exists()]
    if not found:
        tune = f"{SEEDLINGS_COMMAND} --tune {' '.join(map(str, SEEDLINGS_TUNING))}"
        yield missing(files[0].name, tune)
        return
    yield "### How its rates and selection were chosen"
    yield (
        f"On {whole(found[0]['n'])} images, a fifth of the training part held out, seed "
        f"{', '.join(str(r['seed']) for r in found)}, not one of those reported above; the test set "
        "was not read."
    )
    before = [tried for record in found for tried in record.get("before", [])]
    if before:
        tries = [
            f"{percent(one['accuracy'])} (batch {one['batch']}, {one['epochs']} epochs, rate "
            f"{one['rate']:g})"
            for one in before
        ]
        yield f"Tried before that, from scratch, the same images: {', '.join(tries)}."
    groups: dict[tuple, list[float]] = {}
    for record in found:
        for run in record["runs"]:
            rate = DASH if run["rate"] is None else f"{run['rate']:g}"
            pruned = PRUNED.get(run["select"], DASH)
            key = (f"`{run['way']}`", pruned, str(run["epochs"]), str(run["after"]), rate)
            groups.setdefault(key, []).append(run["accuracy"])
    yield markdown_table(
        ["model", "pruned", "epochs from scratch", "epochs after", "rate", "validation accuracy"],
        [[*key, _mean(scores)] for key, scores in groups.items()],
    )


# --- both -----------------------------------------------------------------------------------------


def _found(records: Path, names: Sequence[str], command: str):
    """The records that are there; yields a line for each that is not."""
    for name in names:
        if not (records / name).exists():
            yield missing(name, command)
    files = [records / name for name in names if (records / name).exists()]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def _how(found: Sequence[Record]) -> str:
    seeds = ", ".join(str(record["seed"]) for record in found)
    threads = ", ".join(sorted({str(record["threads"]) for record in found}))
    return (
        f"Accuracy on {whole(found[0]['n'])} test images, read once at the end; means over seeds "
        f"{seeds} (lowest..highest). {provenance(found[0], [r['created'] for r in found])} "
        f"Threads: {threads}."
    )


def _mean(scores: Sequence[float]) -> str:
    each = ", ".join(percent(score).removesuffix(" %") for score in scores)
    return f"{percent(statistics.fmean(scores))} ({each})"
