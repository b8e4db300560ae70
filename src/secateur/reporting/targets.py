"""Where compression pays: plain answers, from the records of `secateur.targets`.

A difference counts as one only outside a band around "the same": 1 % either way, and for measured
times at least as wide as the interval of one file timed twice.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from secateur.reporting.formats import byte_count, duration, finite, percent

Record = dict[str, Any]

SAME = 0.01  # a change that nobody would call smaller or faster
CONFIDENCE = 0.95
UNMEASURED = {"tflm": "its time on this processor would say nothing about a microcontroller's"}
FULL_NAMES = {
    "litert": "LiteRT on this processor",
    "litert:reference": "LiteRT's reference kernels on this processor",
    "onnx": "onnxruntime on this processor",
    "tflm": "tflite-micro",
}
# A format whose zeros are compared with another format's dense file, and what holds floats.
DENSE_OF = {"sparse": "float32"}
FLOAT_OF = {"int8": "float32", "onnx-int8": "onnx"}


@dataclass(frozen=True)
class Ratio:
    """A number over that of what it is compared with, and what bounds it (all equal: exact)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Cost:
    """Something that a target costs, how it is written, and the word for less of it."""

    name: str
    of: Callable[[Record], float | None]
    text: Callable[[float], str]
    less: str
    more: str
    targets: tuple[str, ...]


COSTS = (
    Cost("time", lambda r: (r["latency"] or {}).get("us"), lambda v: duration(v / 1e6), "faster",
         "slower", ("litert", "onnx")),
    Cost("time", lambda r: (r["npu"] or {}).get("seconds"), duration, "faster", "slower", ("vela",)),
    Cost("file", lambda r: r["bytes"], byte_count, "smaller", "larger", ("litert", "onnx", "tflm")),
    Cost("gzipped", lambda r: r["gzip_bytes"], byte_count, "smaller", "larger", ("litert", "onnx")),
    Cost("arena", lambda r: r["arena_bytes"], byte_count, "smaller", "larger", ("tflm",)),
    Cost("flash", lambda r: _positive(r, "flash_bytes"), byte_count, "smaller", "larger", ("vela",)),
    Cost("DRAM", lambda r: _positive(r, "dram_bytes"), byte_count, "smaller", "larger", ("vela",)),
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """One cost of one format on one target: what zeros, or int8, do to it, and the word for that.

    `ratios` has one for each of `levels`; `band` is what counts as no difference; `noise` says
    that a file timed twice was the measure of it.
    """

    target: str
    format: str
    cost: str
    levels: tuple[float, ...]
    ratios: tuple[Ratio, ...]
    base: str
    band: tuple[float, float]
    noise: bool
    less: str
    more: str

    @property
    def since(self) -> float | None:
        """The mildest level from which on every one is clearly less; None where the last is not."""
        found = None
        for level, ratio in reversed(list(zip(self.levels, self.ratios, strict=True))):
            if ratio.high >= self.band[0]:
                break
            found = level
        return found

    @property
    def word(self) -> str:
        """Return "faster", "not faster", "slower", or "faster from 80 % on", and so for size."""
        if self.since is not None:
            late = self.since != self.levels[0]
            return f"{self.less} from {level_text(self.since)} on" if late else self.less
        worse = self.ratios[-1].low > self.band[1]
        return self.more if worse else f"not {self.less}"

    def sentence(self) -> str:
        """The numbers, and the word."""
        texts = [ratio_text(ratio.value) for ratio in self.ratios]
        shown = " / ".join(texts if len(set(texts)) > 1 else texts[:1])
        noise = f" (noise: {_band_text(self.band)})" if self.noise else ""
        return f"{self.cost} {shown} of {self.base}{noise}: {self.word}"


def verdicts(records: Sequence[Record]) -> list[Verdict]:
    """What zeros do to each cost of each format on each target, in the order of the records.

    >>> dense = {"target": "tflm", "format": "int8", "sparsity": 0.0, "reason": None, "npu": None,
    ...          "latency": None, "bytes": 9000, "gzip_bytes": 8000, "arena_bytes": 500}
    >>> zeros = dense | {"sparsity": 0.8}
    >>> [(v.cost, v.word) for v in verdicts([dense, zeros])]
    [('file', 'not smaller'), ('arena', 'not smaller')]
    """
    found = []
    for target, format in dict.fromkeys((r["target"], r["format"]) for r in records):
        rows = _rows(records, target, format)
        dense = dense_row(records, target, format)
        rows = [row for row in rows if row["sparsity"]]
        if dense is not None and rows:
            found += _compared(rows, dense, format)
    return found


def quantized(records: Sequence[Record]) -> list[Verdict]:
    """What int8 alone does to each cost, against the same target's float file, nothing pruned."""
    found = []
    for target in dict.fromkeys(record["target"] for record in records):
        for format, float_format in FLOAT_OF.items():
            dense, base = (dense_row(records, target, name) for name in (format, float_format))
            if dense is not None and base is not None:
                found += _compared([dense], base, format)
    return found


def answers(records: Sequence[Record]) -> dict[str, list[str]]:
    """Target -> the answer to "is the pruned model smaller? faster?": a line for each format."""
    mine, alone = verdicts(records), quantized(records)
    found = {}
    for target in dict.fromkeys(record["target"] for record in records):
        parts = []
        for format in dict.fromkeys(r["format"] for r in records if r["target"] == target):
            of_format = [v for v in mine if (v.target, v.format) == (target, format)]
            if of_format:
                levels = " / ".join(f"{100 * level:g}" for level in of_format[0].levels)
                told = "; ".join(v.sentence() for v in of_format)
                parts.append(f"{format} with {levels} % zeros: {told}")
            of_int8 = [v for v in alone if (v.target, v.format) == (target, format)]
            if of_int8:
                told = "; ".join(v.sentence() for v in of_int8)
                parts.append(f"{format} instead of {FLOAT_OF[format]}, nothing pruned: {told}")
        if any(v.target == target for v in mine) and target in UNMEASURED:
            parts.append(f"time is not measured: {UNMEASURED[target]}")
        parts += [_limit(mine, target), *_reasons(records, target)]
        found[target] = [part for part in parts if part]
    return found


def summary(records: Sequence[Record]) -> str:
    """One line: where zeros make the model smaller, where faster, and where neither."""
    found: dict[str, list[str]] = {"smaller": [], "faster": [], "neither": []}
    mine = verdicts(records)
    for target in dict.fromkeys(v.target for v in mine):
        here = [v for v in mine if v.target == target]
        for word in ("smaller", "faster"):
            costs = _less(here, word)
            if costs:
                where = f" ({', '.join(costs)})" if costs != ["time"] else ""
                found[word].append(short_name(target) + where)
        if all(v.since is None for v in here):
            found["neither"].append(short_name(target))
    smaller, faster, neither = ("; ".join(places) for places in found.values())
    text = f"Is the pruned model smaller? {smaller or 'nowhere'}. Faster? {faster or 'nowhere'}."
    return f"{text} Neither: {neither}." if neither else text


def _less(here: Sequence[Verdict], word: str) -> list[str]:
    """The costs of a target that zeros lower, with the formats where not all do."""
    found = []
    for cost in dict.fromkeys(v.cost for v in here if v.less == word):
        every = [v for v in here if v.cost == cost]
        formats = [v.format for v in every if v.since is not None]
        if formats:
            found.append(cost if len(formats) == len(every) else f"{cost} of {', '.join(formats)}")
    return found


def full_name(target: str, records: Sequence[Record] = ()) -> str:
    """A target as an answer begins, an estimate called one.

    >>> full_name("vela:ethos-u55-128"), full_name("litert")
    ('Ethos-U55-128 (an estimate, not silicon)', 'LiteRT on this processor')
    """
    if not target.startswith("vela"):
        return FULL_NAMES.get(target, target)
    npus = [r["npu"] for r in records if r["target"] == target and r["npu"]]
    label = npus[0]["label"] if npus else "an estimate, not silicon"
    return f"{short_name(target)} ({label})"


def short_name(target: str) -> str:
    """A target in a table's heading.

    >>> short_name("vela:ethos-u65-512"), short_name("onnx")
    ('Ethos-U65-512', 'ONNX')
    """
    names = {"litert": "LiteRT", "onnx": "ONNX", "tflm": "TFLM", "vela": "Ethos-U55-128"}
    if target.startswith("vela:"):
        return target.removeprefix("vela:").capitalize().replace("-u", "-U")
    return names.get(target, target)


def ratio_text(ratio: float) -> str:
    """Write a ratio that is compared with 1.

    >>> ratio_text(0.996), ratio_text(0.0431), ratio_text(1.25)
    ('1.00x', '0.04x', '1.25x')
    """
    return f"{ratio:.2f}x"


def bounds(ratios: Sequence[float]) -> Ratio:
    """The median, and two of the values that bound it with 95 % confidence (all of them: fewer).

    >>> bounds([1.0] * 10 + [5.0])
    Ratio(value=1.0, low=1.0, high=1.0)
    >>> bounds([0.9, 1.0, 1.2])
    Ratio(value=1.0, low=0.9, high=1.2)
    """
    ordered, n = sorted(ratios), len(ratios)
    cut, outside = 0, 2 / 2**n  # the chance that all lie on one side of the true median
    while cut + 1 <= (n - 1) // 2:
        outside += 2 * math.comb(n, cut + 1) / 2**n
        if outside > 1 - CONFIDENCE:
            break
        cut += 1
    return Ratio(median(ordered), ordered[cut], ordered[n - 1 - cut])


def dense_row(records: Sequence[Record], target: str, format: str) -> Record | None:
    """The record that a format's zeros are compared with; None where it was not measured."""
    rows = _rows(records, target, DENSE_OF.get(format) or format)
    return next((row for row in rows if row["sparsity"] == 0.0), None)


def compared(cost: Cost, row: Record, dense: Record) -> Ratio | None:
    """A row's cost over that of the dense file; None where one of them has none.

    Times that were measured are compared round by round, others are exact.
    """
    value, base = cost.of(row), cost.of(dense)
    if value is None or not base:
        return None
    if cost.name == "time" and row["latency"]:
        return _paired(row["latency"]["times_us"], dense)
    return Ratio(value / base, value / base, value / base)


# --- comparing ------------------------------------------------------------------------------------


def _compared(rows: Sequence[Record], dense: Record, format: str) -> list[Verdict]:
    found = []
    for cost in COSTS:
        base, name = cost.of(dense), dense["target"].split(":")[0]
        known = [row for row in rows if cost.of(row) is not None]
        if not base or not known or name not in cost.targets:
            continue
        band, noise = (1 - SAME, 1 + SAME), False
        if cost.name == "time" and dense["latency"]:
            twice, noise = _paired(dense["latency"]["again_us"], dense), True
            band = (min(band[0], twice.low), max(band[1], twice.high))
        found.append(
            Verdict(
                target=dense["target"],
                format=format,
                cost=cost.name,
                levels=tuple(row["sparsity"] for row in known),
                ratios=tuple(r for row in known if (r := compared(cost, row, dense))),
                base=cost.text(base),
                band=band,
                noise=noise,
                less=cost.less,
                more=cost.more,
            )
        )
    return found


def _paired(times: Sequence[float], dense: Record) -> Ratio:
    """Round by round: what slows a whole round down cancels."""
    pairs = zip(times, dense["latency"]["times_us"], strict=True)
    return bounds([one / other for one, other in pairs])


def _rows(records: Sequence[Record], target: str, format: str) -> list[Record]:
    found = [r for r in records if (r["target"], r["format"]) == (target, format)]
    return sorted((r for r in found if r["reason"] is None), key=lambda r: r["sparsity"])


def _limit(found: Sequence[Verdict], target: str) -> str:
    """Which kind a model is, as far as an estimate without weights to read tells."""
    time = next((v for v in found if v.target == target and v.cost == "time"), None)
    size = next((v for v in found if v.target == target and v.cost in ("flash", "DRAM")), None)
    if time is None or size is None or size.since is None:
        return ""
    if time.since is None:
        return "reading weights is not what takes the time here: zeros save memory alone"
    share = percent(1 - time.ratios[-1].value, 0)
    level = level_text(time.levels[-1])
    return f"{share} of the time is gone at {level} zeros: it was reading weights; the rest is not"


def _reasons(records: Sequence[Record], target: str) -> list[str]:
    """Why rows are missing, each reason once, with what it is the reason for."""
    found: dict[str, list[str]] = {}
    for record in records:
        if record["target"] == target and record["reason"]:
            name = f"{record['format']} {level_text(record['sparsity'])}"
            found.setdefault(record["reason"], []).append(name)
    total = sum(record["target"] == target for record in records)
    lines = []
    for reason, names in found.items():
        which = "" if len(names) == total else f" ({', '.join(names)})"
        lines.append(f"not measured{which}: {reason}")
    return lines


def _positive(record: Record, name: str) -> float | None:
    """Where weights do not lie, there is nothing to compare."""
    value = finite((record["npu"] or {}).get(name))
    return value or None


def level_text(sparsity: float) -> str:
    """Write a share of zeros.

    >>> level_text(0.8), level_text(0.975)
    ('80 %', '97.5 %')
    """
    return f"{round(100 * sparsity, 4):g} %"


def _band_text(band: tuple[float, float]) -> str:
    return f"{ratio_text(band[0])} to {ratio_text(band[1])}"
