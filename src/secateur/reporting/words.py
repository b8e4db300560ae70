"""What the page says in words: plan, checks, data, provenance, and how to read it all."""

from collections.abc import Sequence
from typing import Any

from secateur.reporting.aggregation import BASELINE, CONTROL, Row, Run
from secateur.reporting.figures import STAGE_NAMES, shape_text, style
from secateur.reporting.formats import DASH, duration, finite, percent, points, whole
from secateur.reporting.sentence import subject_row

Json = dict[str, Any]


def eyebrow(runs: Sequence[Run]) -> list[str]:
    """Name the Run, its model, its data, its seeds and its day above the sentence."""
    run = runs[0]
    model, data = run.get("model") or {}, run.get("data") or {}
    days = sorted({str(one["created"])[:10] for one in runs if one.get("created")})
    parts = [
        str(run.get("name", "Run")),
        str(model.get("name") or ""),
        str(data.get("name") or ""),
        "1 seed" if len(runs) == 1 else f"{len(runs)} seeds",
        " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "",
    ]
    return [part for part in dict.fromkeys(parts) if part]


def plan_entries(run: Run) -> list[Json]:
    """List each candidate weight with what happened to it, or why nothing did."""
    promised = {
        promise.get("path"): promise
        for stage in run["stages"]
        for promise in stage.get("promises") or []
        if promise.get("kind") == "zeros"
    }
    entries = []
    for entry in run.get("plan") or []:
        changed = entry.get("status") == "changed"
        promise = promised.get(entry.get("path")) if changed else None
        entries.append({
            "path": str(entry.get("path", "")),
            "shape": shape_text(entry.get("shape")),
            "size": whole(entry.get("size")),
            "step": str(entry.get("step") or ""),
            "status": str(entry.get("status") or ""),
            "why": str(entry.get("how" if changed else "reason") or ""),
            "promise": f"zeros at {whole(promise.get('count'))} of {whole(promise.get('size'))}, "
            "checked in each file" if promise else "",
        })  # fmt: skip
    return entries


def plan_summary(run: Run) -> str:
    """Count what the plan changed and what it left alone."""
    plan = run.get("plan") or []
    changed = [entry for entry in plan if entry.get("status") == "changed"]
    skipped = len(plan) - len(changed)
    parameters = sum(finite(entry.get("size")) or 0 for entry in changed)
    total = finite((run.get("model") or {}).get("parameters"))
    share = f", {percent(parameters / total, 1)} of the model's parameters" if total else ""
    return f"{len(changed)} changed ({whole(parameters)} values{share}), {skipped} skipped."


def trained_stages(runs: Sequence[Run]) -> list[Json]:
    """List the stages with what they cost; times of several seeds as their mean."""
    listed = []
    for index, stage in enumerate(runs[0]["stages"]):
        spent = [
            value
            for run in runs
            if index < len(run["stages"])
            and (value := finite(run["stages"][index].get("seconds"))) is not None
        ]
        listed.append({
            "name": STAGE_NAMES.get(stage["name"], stage["name"]),
            "style": style(stage["name"]),
            "epochs": whole(stage.get("epochs")),
            "steps": whole(stage.get("steps")),
            "time": duration(sum(spent) / len(spent)) if spent else DASH,
        })  # fmt: skip
    return listed


def checks(run: Run) -> list[Json]:
    """List what was found when each file was loaded again in its runtime."""
    found = []
    for row in run["rows"]:
        parity, latency = row.get("parity") or {}, row.get("latency") or {}
        if not parity and not latency:
            continue
        low, high = finite(latency.get("p10_us")), finite(latency.get("p90_us"))
        relative, load = finite(parity.get("relative_rms")), finite(row.get("load_ms"))
        median = finite(latency.get("median_us"))
        how = [
            text.format(whole(latency[key]))
            for key, text in (("batch", "batch {}"), ("threads", "threads {}"), ("runs", "{} runs"))
            if finite(latency.get(key)) is not None
        ]
        if "threads" in latency and latency["threads"] is None:
            how.insert(1, "threads chosen by the backend")
        spread = DASH
        if low is not None and high is not None:
            spread = f"{duration(low / 1e6)} to {duration(high / 1e6)}"
        found.append({
            "row": row["row"],
            "runtime": str(row.get("runtime") or DASH),
            "agreement": percent(parity.get("agreement")),
            "n": "" if finite(parity.get("n")) is None else whole(parity["n"]),
            "relative": DASH if relative is None else f"{relative:.1e}" if relative else "0",
            "load": DASH if load is None else duration(load / 1e3),
            "median": DASH if median is None else duration(median / 1e6),
            "how": ", ".join(how),
            "range": spread,
        })  # fmt: skip
    return found


def data_facts(run: Run) -> list[tuple[str, str]]:
    """State the data as terms and texts; empty when the Run had none."""
    data = run.get("data") or {}
    facts = [
        ("name", data.get("name")),
        ("one sample", " ".join(filter(None, [shape_text(data.get("shape")), data.get("dtype")]))),
        ("classes", None if finite(data.get("classes")) is None else whole(data["classes"])),
        ("sha256", data.get("sha256")),
    ]
    return [(term, str(text)) for term, text in facts if text]


def provenance(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """State machine, versions, seeds and times: what is needed to get the same figures again."""
    run = runs[0]
    machine, model = run.get("machine") or {}, run.get("model") or {}
    cores = finite(machine.get("cores"))
    taken = [finite(one.get("seconds")) for one in runs]
    facts = [
        ("seeds" if len(runs) > 1 else "seed", ", ".join(str(one["seed"]) for one in runs)),
        ("backend", run.get("backend")),
        ("model", _model(model)),
        ("processor", machine.get("cpu")),
        ("cores", None if cores is None else whole(cores)),
        ("system", machine.get("system")),
        ("Python", machine.get("python")),
        *((str(name), text) for name, text in (run.get("versions") or {}).items()),
        ("finished", ", ".join(_moment(one["created"]) for one in runs if one.get("created"))),
        ("took", ", ".join(duration(one) for one in taken if one is not None)),
    ]
    return [(term, str(text)) for term, text in facts if text]


def reading(runs: Sequence[Run], table: Sequence[Row]) -> list[tuple[str, str]]:
    """Explain the page to somebody who did not run it, with this Run's own figures."""
    answers = [
        (
            "Why is a file full of zeros not smaller?",
            "A zero takes as many bytes as any other number. Pruning sets weights to zero, so the "
            "parameter count, the .h5 and the raw .tflite stay what they were. Long runs of equal "
            "bytes do compress: what the zeros save is seen in the gzipped size. So raw files are "
            "compared with raw files here, and gzipped with gzipped.",
        ),
        (
            "Quantization or pruning?",
            "Quantization keeps every weight and stores it in fewer bits: the formats dynamic and "
            "int8 use 8 instead of 32, and the raw file shrinks. Pruning keeps the bits and removes "
            "weights. One does not use up what the other saves: gzipped, the two combine.",
        ),
        _control_answer(table),
        (
            "Are zeros faster?",
            "Not by themselves. A dense kernel multiplies by a zero as long as by anything else; "
            "scattered zeros save time only with kernels or hardware made for them. Any latency in "
            "the table was measured, on the machine named below.",
        ),
    ]
    doubt = _doubt(runs, table)
    return [answer for answer in (*answers, doubt) if answer is not None]


def _control_answer(table: Sequence[Row]) -> tuple[str, str] | None:
    subject = subject_row(table)
    if subject is None or subject["stage"] == BASELINE:
        return None
    question = "What is the dense control?"
    has_control = any(row["stage"] == CONTROL for row in table)
    if not has_control:
        return question, (
            "The same model trained on for as long without pruning. This report has none, so a "
            "difference to the baseline also contains whatever the extra training did."
        )
    text = (
        "A compressed model is usually trained further, and further training alone changes the "
        "result. The control is the baseline trained on in the same way without being compressed. "
        "The difference to the control is what compression cost; the difference to the baseline is "
        "cost and extra training together."
    )
    if subject["points"] is not None and subject["points_control"] is not None:
        text += (
            f" Here: {points(subject['points'], 1)} points to the baseline, "
            f"{points(subject['points_control'], 1)} to the control."
        )
    return question, text


def _doubt(runs: Sequence[Run], table: Sequence[Row]) -> tuple[str, str] | None:
    row = subject_row(table)
    if row is None or row["accuracy"] is None or not row["n"]:
        return None
    error = 100 * (row["accuracy"] * (1 - row["accuracy"]) / row["n"]) ** 0.5
    text = (
        f"The test set has {whole(row['n'])} samples. Another test set of that size, drawn in the "
        f"same way, would move an accuracy of {percent(row['accuracy'], 1)} by about {error:.2f} "
        "points (one standard error). "
    )
    if len(runs) > 1:
        text += (
            f"The whole recipe was run with {len(runs)} seeds; figures are means, with the lowest "
            "and the highest seed beside them."
        )
    else:
        text += (
            "The recipe was run with one seed, so nothing here says how much another seed would "
            "change; run it with more to see."
        )
    return "How sure are these figures?", text


def _moment(created: Any) -> str:
    return str(created)[:16].replace("T", " ") + (" UTC" if str(created).endswith("+00:00") else "")


def _model(model: Json) -> str:
    parts = [str(model.get("name") or "")]
    if finite(model.get("parameters")) is not None:
        parts.append(f"{whole(model['parameters'])} parameters")
    if model.get("non_trainable"):
        parts.append(f"{whole(model['non_trainable'])} of them not trainable")
    if finite(model.get("macs")) is not None:
        parts.append(f"{whole(model['macs'])} multiplications")
    return ", ".join(part for part in parts if part)
