"""The HTML page of a report: one file that asks nothing of the network. Jinja2 is needed here alone."""

import importlib.util
import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha256
from html import escape
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from secateur.errors import SecateurError
from secateur.reporting import figures
from secateur.reporting.aggregation import Row, Run, references, rows
from secateur.reporting.files import write_text
from secateur.reporting.formats import DASH, binary_size, byte_count, percent, points, times, whole
from secateur.reporting.rounding import rounding
from secateur.reporting.sentence import NAMES, headline_parts, subject_row
from secateur.reporting.table import footnote, latency
from secateur.reporting.words import (
    checks,
    data_facts,
    eyebrow,
    plan_entries,
    plan_summary,
    provenance,
    reading,
    trained_stages,
)

TITLES = {
    "result": "Size",
    "table": "The table",
    "layers": "Zeros, layer by layer",
    "weights": "The weights, before and after",
    "training": "Training",
    "quantization": "Quantization, layer by layer",
    "plan": "What changed, and what was skipped",
    "files": "Every file, checked",
    "data": "The data",
    "reading": "How to read this",
    "repeat": "Repeat it",
}
MOST_LAYERS, MOST_WEIGHTS = 24, 6  # the others are folded, not left out
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path fill="#3d8a5f" '
    'd="M6 18C4.4 9.6 10 3.4 21.5 2.5 21.8 13.6 15.4 19.8 6 18Z"/><path fill="none" '
    'stroke="#3d8a5f" stroke-width="2" d="M2 22 6 18"/></svg>'
)
# What the sentence is about: "9.5 times smaller", "+0.4 points", "-1.0", "2.4 % larger".
FIGURE = re.compile(
    r"\d[\d.,]*(?:\s%)? (?:times )?(?:smaller|larger)|\d[\d.,]* times(?= raw)"
    r"|(?<!\w)[+\N{MINUS SIGN}]?\d+\.\d+(?: points|\s%)?(?= against)"
)


def html_available() -> bool:
    """Return whether `write_html` has what it needs: Jinja2, which the extra `report` installs."""
    return all(importlib.util.find_spec(name) for name in ("jinja2", "markupsafe"))


def write_html(runs: Sequence[Run], path: str | Path) -> Path:
    """Write the report of one Run, or of Runs that differ by seed, as one self-contained page.

    Raises SecateurError when Jinja2 is missing or the file cannot be written.
    """
    return write_text(path, render(runs))


def render(runs: Sequence[Run]) -> str:
    """Return the page as text."""
    context = _context(runs)
    context["lead_marked"] = _marked(context["lead"])
    return fill("page.html.j2", context, filters=_filters())


def fill(
    template: str,
    context: dict[str, Any],
    *,
    filters: dict[str, Any],
    styles: Sequence[str] = ("page.css",),
    scripts: Sequence[str] = ("page.js",),
) -> str:
    """Render a template with its styles, its scripts and their hash inlined; `lead_marked` is markup.

    Raises SecateurError when Jinja2 is missing.
    """
    try:
        import jinja2
        import markupsafe
    except ImportError:
        raise SecateurError("HTML pages need Jinja2: pip install 'secateur[report]'") from None
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FunctionLoader(_source),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= filters
    script = "".join(map(_source, scripts))
    return environment.get_template(template).render({
        **context,
        "lead_marked": markupsafe.Markup(context["lead_marked"]),
        "css": markupsafe.Markup("".join(map(_source, styles))),
        "js": markupsafe.Markup(script),
        "script_hash": f"sha256-{b64encode(sha256(script.encode()).digest()).decode()}",
        "icon": quote(ICON),
    })  # fmt: skip


def _source(name: str) -> str:
    return (resources.files("secateur.reporting") / "templates" / name).read_text(encoding="utf-8")


def typeset(text: str) -> str:
    r"""Set minus signs and the space before a unit as print does. Never for what is to be copied.

    >>> typeset("-1.0 points, 8,133 B, 96.5 %").encode("ascii", "namereplace").decode()
    '\\N{MINUS SIGN}1.0 points, 8,133\\N{NO-BREAK SPACE}B, 96.5\\N{NO-BREAK SPACE}%'
    """
    text = re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", text)
    text = re.sub(r"(?<=\d) us\b", "\N{NO-BREAK SPACE}\N{MICRO SIGN}s", text)
    return re.sub(r"(?<=\d) (?=(?:%|B|KiB|MiB|GiB|ms|s|min)(?!\w))", "\N{NO-BREAK SPACE}", text)


def _context(runs: Sequence[Run]) -> dict[str, Any]:
    run, table = runs[0], rows(runs)
    lead, detail = headline_parts(runs)
    subject = subject_row(table)
    result = figures.results(runs, table)
    quality = result["quality"] if result else None
    if result:
        result["quality_name"] = NAMES.get(quality or "", "")
        for entry in result["entries"]:
            entry["level"] = (
                typeset(figures.level(entry["row"][quality], quality)) if quality else ""
            )
    layers = figures.layers(run)
    for index, layer in enumerate(layers):
        layer["index"] = index
    compressed = figures.last_compressed(run)
    context: dict[str, Any] = {
        "name": str(run.get("name", "Run")),
        "lead": typeset(lead),
        "detail": typeset(detail),
        "eyebrow": eyebrow(runs),
        "several": len(runs) > 1,
        "first_seed": run["seed"],
        "stem": figures.stem(table),
        "shown_seed": f"Shown: seed {run['seed']}",
        "versions": run.get("versions") or {},
        "titles": TITLES | {"result": f"Size and {NAMES[quality]}" if quality else "Size"},
        "results": result,
        "table": table,
        "references": {row["reference"] for row in table},
        "against": references(table),
        "subject": subject["row"] if subject else None,
        "has": {
            key: any(row[key] is not None for row in table)
            for key in ("gzip_bytes", "sparsity", "latency_us")
        },
        "quality_columns": _quality_columns(table),
        "quality_group": NAMES.get(quality or "accuracy"),
        "footnote": typeset(footnote(runs, table)),
        "notes": list(dict.fromkeys(str(note) for one in runs for note in one.get("notes") or [])),
        "layers": layers,
        "touched": [layer for layer in layers if layer["histogram"] or layer["grids"]],
        "most_layers": MOST_LAYERS,
        "most_weights": MOST_WEIGHTS,
        "compressed": compressed["name"] if compressed else "",
        "curves": figures.curves(runs),
        "steps": figures.sparsity_curve(run),
        "trained": trained_stages(runs),
        "quantized": _typeset(rounding(runs, table)),
        "plan": plan_entries(run),
        "plan_summary": plan_summary(run),
        "checks": [
            {key: text if key == "row" else typeset(text) for key, text in check.items()}
            for check in checks(run)
        ],
        "splits": figures.splits(run.get("data") or {}),
        "data": data_facts(run),
        "data_notes": [str(note) for note in (run.get("data") or {}).get("notes") or []],
        "reading": [(question, typeset(text)) for question, text in reading(runs, table)],
        "command": "\n".join(
            dict.fromkeys(str(one["command"]) for one in runs if one.get("command"))
        ),
        "recipe": run.get("recipe_toml") or "",
        "provenance": provenance(runs),
    }
    context["sections"] = [(key, context["titles"][key]) for key in TITLES if _shown(context, key)]
    return context


def _typeset(quantized: dict[str, Any] | None) -> dict[str, Any] | None:
    """The figures of the section on quantization as print sets them; names stay as they are."""
    if quantized is None:
        return None
    for entry in (*quantized["sides"], *quantized["ranges"]):
        named = {"row", "stage", "key", "strip"}
        entry |= {key: typeset(text) for key, text in entry.items() if key not in named}
    for kernel in quantized["kernels"]:
        kernel["cells"] = [typeset(text) for text in kernel["cells"]]
    return quantized


def _shown(context: dict[str, Any], section: str) -> bool:
    needed = {
        "result": ("results",), "layers": ("layers",), "weights": ("touched",), "plan": ("plan",),
        "training": ("curves", "steps"), "quantization": ("quantized",), "files": ("checks",), "data": ("data",),
    }  # fmt: skip
    return section not in needed or any(context[key] for key in needed[section])


def _filters() -> dict[str, Any]:
    sign = "\N{MULTIPLICATION SIGN}"
    return {
        "bytes": lambda value: typeset(byte_count(value)),
        "binary": lambda value: typeset(binary_size(value)),
        "whole": whole,
        "times": lambda value: DASH if value is None else f"{times(value)}{sign}",
        "of100": lambda value: DASH if value is None else typeset(percent(value / 100, 1)),
        "percent1": lambda value: typeset(percent(value, 1)),
        "latency": lambda row: typeset(latency(row)),
        "style": figures.style,
        "quality": _quality,
        "range": _range,
        "groupby_stage": _by_stage,
    }


def _quality_columns(table: Sequence[Row]) -> list[tuple[str, str]]:
    def has(key: str) -> bool:
        return any(row[key] is not None for row in table)

    titles = {"accuracy": "test set", "points": "points to baseline"}
    titles["points_control"] = "points to control"
    # Beside an accuracy the losses would cost the width of a phone; they stand in CSV and JSON.
    others = {} if has("accuracy") else {"mse": "squared error", "mae": "absolute error"}
    return [(title, key) for key, title in {**titles, **others}.items() if has(key)]


def _quality(row: Row, key: str) -> str:
    if key == "accuracy":
        return typeset(percent(row[key]))
    return typeset(points(row[key]) if key.startswith("points") else figures.level(row[key], key))


def _range(row: Row, key: str) -> str:
    low, high = row.get(f"{key}_min"), row.get(f"{key}_max")
    if low is None or high is None:
        return ""
    if key == "accuracy":
        ends = [percent(value).removesuffix(" %") for value in (low, high)]
    else:
        ends = [points(value) for value in (low, high)]
    return typeset(" to ".join(ends)) if ends[0] != ends[1] else ""


def _by_stage(table: Sequence[Row]) -> Iterable[tuple[str, list[Row]]]:
    return [(stage, list(members)) for stage, members in groupby(table, lambda row: row["stage"])]


def _marked(lead: str) -> str:
    """Escape the sentence and colour its figures."""
    parts, end = [], 0
    for match in FIGURE.finditer(lead):
        parts += [escape(lead[end : match.start()]), f"<em>{escape(match.group())}</em>"]
        end = match.end()
    return "".join([*parts, escape(lead[end:])])
