"""The page of `secateur sensitivity`: sentence, figures and tables, one file without scripts."""

import math
from collections.abc import Sequence
from functools import partial
from html import escape
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from secateur.reporting import charts
from secateur.reporting.files import write_text
from secateur.reporting.formats import percent
from secateur.reporting.page import ICON, typeset
from secateur.reporting.sensitivity import (
    MOST_NAMED,
    TITLES,
    Ranking,
    Record,
    caption,
    cost_text,
    decibels_text,
    error_text,
    findings,
    grid,
    level_text,
    rankings,
)

LEAF = (
    '<svg class="leaf" viewBox="0 0 24 24" aria-hidden="true"><path d="M6 18C4.4 9.6 10 3.4 21.5 2.5 '
    '21.8 13.6 15.4 19.8 6 18Z"/><path class="rib" d="M6 18 15 9"/></svg>'
)
MOST_BARS = 12  # the table has the others
TICK_GAP = 30  # units of the chart between two labels


def write_html(records: Sequence[Record], path: str | Path, name: str, detail: str = "") -> Path:
    """Write sentence, figures and tables as one self-contained page; needs no Jinja2."""
    return write_text(path, render(records, name, detail))


def render(records: Sequence[Record], name: str, detail: str = "") -> str:
    """Return the page as text. name: of the model; detail: a line on the data."""
    sections = []
    for ranking in rankings(records):
        title = escape(TITLES[ranking.kind])
        sections.append(
            f'<section><h2 id="{ranking.kind}">{LEAF}<span>{title}</span></h2>\n{_figure(ranking)}\n'
            f"{_table(ranking)}\n</section>"
        )
    css = resources.files("secateur.reporting") / "templates"
    styles = "".join((css / part).read_text("utf-8") for part in ("page.css", "sensitivity.css"))
    lead = typeset(findings(records))
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}; form-action 'none'">
<title>{escape(name)}: which weights hurt</title>
<link rel="icon" href="data:image/svg+xml,{quote(ICON)}">
<style>
{styles}
</style>
</head>
<body>
<div class="page sensitivity">
<header>
<p class="eyebrow"><span>Secateur</span> <span>{escape(name)}</span> <span>which weights hurt</span></p>
<h1>{escape(lead)}</h1>
<p class="detail">{escape(typeset(detail))}</p>
</header>
<main>
{"".join(sections)}
</main>
<footer><p>Nothing was trained: what training wins back, this does not tell.</p></footer>
</div>
</body>
</html>
"""


def _figure(ranking: Ranking) -> str:
    return _curves(ranking) if ranking.kind == "pruning" else _bars(ranking)


def _curves(ranking: Ranking) -> str:
    """A line for each weight over the share that is left of it, halved at every step to the right."""
    key = "accuracy" if ranking.labelled else "output_error"
    start = ranking.baseline[key] if ranking.labelled else 0.0
    ordered = list(ranking.weights)
    # One more than can be told apart, and the last colour would stand for a crowd.
    named = ordered if len(ordered) <= MOST_NAMED else ordered[: MOST_NAMED - 1]
    lines = []
    for path, records in ranking.weights.items():
        found = [(_place(r["sparsity"]), r[key]) for r in records if r[key] is not None]
        style = f"worst-{named.index(path)}" if path in named else "rest"
        lines.append(charts.Line(name=path, style=style, points=[(0.0, start), *found]))
    heights = [y for line in lines for _, y in line.points]
    end = _place(ranking.levels[-1]) or 1.0
    band = []
    if ranking.labelled:
        low, high = max(start - ranking.noise, 0.0), min(start + ranking.noise, 1.0)
        heights += [low, high]
        band = [(0.0, low, high), (end, low, high)]
    noise = charts.Line(name="noise", style="noise", points=[], band=band)
    y_ticks = charts.ticks(min(heights), max(heights))
    if ranking.labelled:
        y_ticks = [tick for tick in y_ticks if tick <= 1.0]
    digits = 1 if y_ticks[1] - y_ticks[0] < 0.01 else 0
    svg = charts.line_chart(
        [noise, *reversed(lines)],  # the worst lie on top
        x=charts.Axis(
            ticks=_ticks(ranking.levels, end),
            text=_sparsity,
            label="zeros, this weight alone",
            end=end,
        ),
        y=charts.Axis(
            ticks=y_ticks, text=partial(percent, digits=digits), end=max(y_ticks[-1], *heights)
        ),
        label=f"{key.replace('_', ' ')} against the share of zeros, a line for each weight",
    )
    what = "Accuracy" if ranking.labelled else "Change of the outputs, relative RMS"
    return (
        f'<div class="beside"><figure><figcaption>{what}</figcaption>{svg}</figure>'
        f"{_legend(ranking, named)}</div>"
    )


def _legend(ranking: Ranking, named: Sequence[str]) -> str:
    items = [
        f'<li class="worst-{index}"><i class="stroke"></i><code>{escape(path)}</code></li>'
        for index, path in enumerate(named)
    ]
    others = len(ranking.weights) - len(named)
    if others:
        items.append(
            f'<li class="rest"><i class="stroke"></i>the other {others}, in the table</li>'
        )
    if ranking.labelled:
        n = ranking.baseline["n"]
        items.append(f'<li><i class="swatch band"></i>what {n:,} samples cannot tell</li>')
    return f'<ul class="names">{"".join(items)}</ul>'


def _bars(ranking: Ranking) -> str:
    """For each number of bits a bar for each weight: the error that its rounding leaves in the layer."""
    shown = list(ranking.weights)[:MOST_BARS]
    whole = all(r["layer_error"] is not None for path in shown for r in ranking.weights[path])
    key = "layer_error" if whole else "error"
    parts = []
    for level in ranking.levels:
        name = level_text(ranking.kind, level)
        errors = ranking.at(level, key)
        widest = max((error or 0.0 for error in errors.values()), default=0.0) or 1.0
        what = "the layer's outputs" if whole else "the weight"
        parts.append(
            f"<h3>{name}: error of {what}, relative RMS; noise of the weight; accuracy</h3>"
        )
        for path in shown:
            record = next(r for r in ranking.weights[path] if r["bits"] == level)
            words = ", ".join(_told(record, key))
            bar = charts.size_bar(
                (errors[path] or 0.0) / widest, None, 0.0, "ctrl", f"{path}: {words}"
            )
            parts.append(
                f'<div class="layer"><div class="who"><code>{escape(path)}</code></div>{bar}'
                f'<div class="num">{escape(typeset(words))}</div></div>'
            )
    others = len(ranking.weights) - len(shown)
    if others:
        parts.append(f'<p class="note">The other {others} are in the table.</p>')
    return "\n".join(parts)


def _told(record: Record, key: str) -> list[str]:
    """What stands beside a bar: its length, the noise of the weight, what it cost."""
    words = [error_text(record[key])]
    words.append("exact" if record["error"] == 0 else f"{decibels_text(record['sqnr_db'])} dB")
    if record["drop"] is not None:
        words.append(f"{cost_text(record['drop'])} points")
    return words


def _table(ranking: Ranking) -> str:
    headings, rows = grid(ranking)
    head = "".join(
        f'<th scope="col"{_right(i)}>{escape(typeset(heading))}</th>'
        for i, heading in enumerate(headings)
    )
    body = "\n".join(
        f'<tr><th scope="row"><code>{escape(row[0])}</code></th>'
        + "".join(f'<td class="num">{escape(typeset(cell))}</td>' for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" aria-labelledby="{ranking.kind}" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n"
        f'<p class="note">{escape(typeset(_sentence(caption(ranking))))}</p>'
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _right(column: int) -> str:
    return ' class="num"' if column else ""


def _place(sparsity: float) -> float:
    """How often what is left was halved: 50 % stands as far from 0 % as 75 % from 50 %."""
    return -math.log2(1 - sparsity)


def _sparsity(place: float) -> str:
    return level_text("pruning", 1 - 2.0**-place)


def _ticks(levels: Sequence[float], end: float) -> list[float]:
    """Labels at the points that were measured, as many as do not run into each other."""
    room = TICK_GAP / (charts.WIDTH - charts.LEFT - charts.RIGHT) * end
    kept = [0.0]
    for place in map(_place, levels):
        if place - kept[-1] >= room and (place == end or end - place >= room):
            kept.append(place)
    return kept
