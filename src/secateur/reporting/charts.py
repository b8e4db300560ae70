"""Inline SVG from plain numbers: bars, dots, lines, histograms. Colours come from the page's CSS classes.

Lengths that must follow the width of the page are percentages without a viewBox, so that text beside
them keeps its size; charts with axes are drawn at the size of a phone's column and scale little.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 216
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 36
MOST_MARKS = 10  # a line of more points shows a mark where the pointer is

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart: its name, its CSS class, points (x, y) and the range over seeds, if any.

    The first `joined` points belong to another line: they connect a branch to its stem, unmarked.
    bare: no marks; the path itself says its name and its values, for charts of many lines.
    """

    name: str
    style: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = ()
    dashed: bool = False
    joined: int = 0
    steps: bool = False
    bare: bool = False


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis: where its marks stand, how a value is written, where it ends if not at a mark."""

    ticks: Sequence[float]
    text: Callable[[float], str]
    label: str = ""
    end: float | None = None

    def scale(self, start: float, stop: float) -> Callable[[float], float]:
        """Map values on this axis to positions between `start` and `stop`."""
        return _scale(self.ticks[0], self.ticks[-1] if self.end is None else self.end, start, stop)


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Choose round values that cover [low, high]: steps of 1, 2, 2.5 or 5 times a power of ten.

    >>> ticks(0.03, 0.31)
    [0.0, 0.1, 0.2, 0.3, 0.4]
    """
    # A range that floats cannot divide evenly is a point.
    size = max(abs(low), abs(high))
    if high - low <= max(1e-9 * size, 1e-290):
        pad = size * 0.05 if size > 1e-280 else 0.5
        low, high = low - pad, high + pad
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * unit for unit in (1, 2, 2.5, 5, 10) if power * unit >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def line_chart(lines: Sequence[Line], *, x: Axis, y: Axis, label: str) -> str:
    """Draw lines over a common x axis; `label` says to a screen reader what they show."""
    x_of = x.scale(LEFT, WIDTH - RIGHT)
    y_of = y.scale(HEIGHT - BOTTOM, TOP)
    parts = []
    for tick in y.ticks:
        at = y_of(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        parts.append(_text(LEFT - 8, at + 4, y.text(tick), "end"))
    for tick in x.ticks:
        parts.append(_text(x_of(tick), HEIGHT - BOTTOM + 17, x.text(tick), "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, x.label, "middle", "axis"))
    parts += [_band(line, x_of, y_of) for line in lines if len(line.band) > 1]
    for line in lines:
        parts += _path(line, x_of, y_of, (x.text, y.text))
    for line in lines:  # marks last: a stem's end lies where its branches begin
        if line.bare and len(line.points) > 1:
            continue
        for at_x, at_y in line.points[line.joined :]:
            tip = _title(f"{line.name}: {y.text(at_y)} at {x.label} {x.text(at_x)}")
            hollow = " hollow" if line.dashed else ""
            hollow += " faint" if len(line.points) > MOST_MARKS else ""
            parts.append(
                f'<circle class="mark {line.style}{hollow}" cx="{x_of(at_x):.1f}" '
                f'cy="{y_of(at_y):.1f}" r="{2.2 if line.steps else 3.2}">{tip}</circle>'
            )
    return _svg(parts, label)


def histogram(
    before: tuple[Sequence[float], Sequence[float]] | None,
    after: tuple[Sequence[float], Sequence[float]] | None,
    zeros: int,
    *,
    label: str,
    number: Callable[[float], str],
) -> str:
    """Draw the weights before (outline) and after (filled), each as (edges, counts).

    Bins differ in width between the two, so heights are weights per unit of value. Exact zeros are a
    stem of their own: in the bin of 0 they would dwarf everything that is left.
    """
    shapes = [(part, style) for part, style in ((after, "after"), (before, "before")) if part]
    heights = {style: _densities(*part) for part, style in shapes}
    low = min(part[0][0] for part, _ in shapes)
    high = max(part[0][-1] for part, _ in shapes)
    top = max((max(values, default=0.0) for values in heights.values()), default=0.0) or 1.0
    x_of = _scale(low, high if high > low else low + 1.0, 8, WIDTH - 8)
    floor = 148
    y_of = _scale(0.0, top, floor, 30)
    parts = []
    for (edges, _), style in shapes:
        path = [f"M{x_of(edges[0]):.1f} {floor}"]
        for left, right, value in zip(edges, edges[1:], heights[style], strict=False):
            path.append(f"L{x_of(left):.1f} {y_of(value):.1f}H{x_of(right):.1f}")
        parts.append(f'<path class="hist {style}" d="{"".join(path)}V{floor}"/>')
    parts.append(f'<line class="floor" x1="8" x2="{WIDTH - 8}" y1="{floor}" y2="{floor}"/>')
    if low <= 0 <= high:
        zero = x_of(0.0)
        if zeros:
            count_of_zeros = f"{zeros:,} zero{'s' if zeros > 1 else ''}"
            tip = _title(f"exactly zero: {zeros:,}")
            parts.append(
                f'<g class="stem">{tip}<line x1="{zero:.1f}" x2="{zero:.1f}" y1="{floor}" y2="24"/>'
                f'<path d="M{zero - 4:.1f} 28L{zero + 4:.1f} 20"/></g>'
            )
            anchor = "start" if zero < WIDTH / 2 else "end"
            shift = 9 if anchor == "start" else -9
            parts.append(_text(zero + shift, 24, count_of_zeros, anchor, "strong"))
        if min(zero - 8, WIDTH - 8 - zero) > 40:
            parts.append(_text(zero, floor + 18, "0", "middle"))
    parts.append(_text(8, floor + 18, number(low), "start"))
    parts.append(_text(WIDTH - 8, floor + 18, number(high), "end"))
    return _svg(parts, label, height=172)


def stem_rule(kept: float, label: str) -> str:
    """Draw a stem cut to the share that is kept, a leaf below the cut, and a ghost for the rest."""
    leaf = (
        '<path class="leaf" d="M-18 30C-23 17-16 6 2 3 6 18-2 29-18 30Z"/>'
        '<path class="rib" d="M-18 30-6 15"/><path class="blade" d="M-4 39 4 27"/>'
    )
    return (
        f'<svg class="stem-rule" role="img" aria-label="{escape(label)}" width="100%" height="40">'
        f"{_title(label)}"
        f'<line class="ghost" x1="{_pc(kept)}" x2="100%" y1="33" y2="33"/>'
        f'<line class="wood" x1="0" x2="{_pc(kept)}" y1="33" y2="33"/>'
        f'<svg x="{_pc(kept)}" overflow="visible">{leaf}</svg></svg>'
    )


def size_bar(raw: float, packed: float | None, reference: float, style: str, label: str) -> str:
    """Draw a file as a bar (share of the widest), its gzip inside, and what was cut off as a ghost."""
    parts = [_title(label)]
    cut = raw < reference * 0.995
    if cut or (packed is not None and packed < reference * 0.995):
        start = raw if cut else (packed or 0.0)
        parts.append(_ghost(start, reference))
    parts.append(_bar(raw, f"{style} raw", cut))
    if packed is not None:
        parts.append(_bar(packed, f"{style} packed", True))
    return _strip(parts, label)


def kept_bar(kept: float, label: str) -> str:
    """Draw what is left of a weight as a bar, and the zeros as a ghost behind the cut."""
    parts = [_title(label)]
    if kept < 1:
        parts.append(_ghost(kept, 1.0))
    parts.append(_bar(kept, "cut packed", kept < 1))
    return _strip(parts, label)


def dot_strip(
    dots: Sequence[float], mean: float, rule: float | None, style: str, label: str
) -> str:
    """Draw one dot a seed (shares of the width), their mean as a tick, the baseline as a rule."""
    parts = [_title(label), '<line class="track" x1="0" x2="100%" y1="10" y2="10"/>']
    if rule is not None:
        parts.append(f'<line class="rule" x1="{_pc(rule)}" x2="{_pc(rule)}" y1="-7" y2="27"/>')
    if len(dots) > 1:
        parts.append(
            f'<line class="mean {style}" x1="{_pc(mean)}" x2="{_pc(mean)}" y1="2" y2="18"/>'
        )
    parts += [f'<circle class="dot {style}" cx="{_pc(dot)}" cy="10" r="4.5"/>' for dot in dots]
    return _strip(parts, label)


def range_strip(low: float, high: float, widest: float, label: str) -> str:
    """Draw a range as a bar over an axis from -widest to widest, with a rule at 0."""
    place = _scale(-widest, widest, 0.0, 1.0)
    left, right = place(low), place(high)
    parts = [
        _title(label),
        '<line class="track" x1="0" x2="100%" y1="10" y2="10"/>',
        f'<rect class="bar cut" x="{_pc(left)}" width="{_pc(max(right - left, 0.004))}" y="5" height="10"/>',
        '<line class="rule" x1="50%" x2="50%" y1="-7" y2="27"/>',
    ]
    return _strip(parts, label)


def split_bar(shares: Sequence[tuple[str, float]]) -> str:
    """Draw the parts of a data set beside each other; a part never gets too thin to be seen."""
    shown = [(name, max(share, 0.006)) for name, share in shares]
    whole = sum(share for _, share in shown) or 1.0
    parts, x = [], 0.0
    for index, (name, share) in enumerate(shown):
        parts.append(
            f'<rect class="split split-{index % 4}" x="{_pc(x)}" width="{_pc(share / whole)}" '
            f'height="20">{_title(name)}</rect>'
        )
        x += share / whole
    return _strip(parts, ", ".join(name for name, _ in shares))


def _path(line: Line, x_of, y_of, texts: tuple[Callable[[float], str], ...]) -> list[str]:
    if len(line.points) < 2:
        return []
    path = ""
    for index, (x, y) in enumerate(line.points):
        if not index:
            path = f"M{x_of(x):.1f} {y_of(y):.1f}"
        elif line.steps:
            path += f"H{x_of(x):.1f}V{y_of(y):.1f}"
        else:
            path += f"L{x_of(x):.1f} {y_of(y):.1f}"
    dash = " dashed" if line.dashed else ""
    if not line.bare:
        return [f'<path class="line {line.style}{dash}" d="{path}"/>']
    at, values = (
        escape("|".join(text(point[axis]) for point in line.points[line.joined :]))
        for axis, text in enumerate(texts)
    )
    return [
        f'<path class="line {line.style}{dash}" d="{path}" data-at="{at}" data-values="{values}">'
        f"{_title(line.name)}</path>"
    ]


def _band(line: Line, x_of, y_of) -> str:
    upper = [f"{x_of(x):.1f} {y_of(high):.1f}" for x, _, high in line.band]
    lower = [f"{x_of(x):.1f} {y_of(low):.1f}" for x, low, _ in reversed(line.band)]
    return f'<path class="band {line.style}" d="M{"L".join([*upper, *lower])}Z"/>'


def _densities(edges: Sequence[float], counts: Sequence[float]) -> list[float]:
    return [
        count / (right - left) if right > left else 0.0
        for left, right, count in zip(edges, edges[1:], counts, strict=False)
    ]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _bar(share: float, style: str, cut: bool) -> str:
    body = f'<rect class="bar {style}" width="{_pc(share)}" height="20"/>'
    if not cut:
        return body
    # The blade leaves a slant; the true length is the lower edge.
    slant = '<path d="M-.5 0H6L0 20H-.5Z"/>'
    return f'{body}<svg class="bar {style}" x="{_pc(share)}" overflow="visible">{slant}</svg>'


def _ghost(start: float, end: float) -> str:
    return f'<line class="ghost" x1="{_pc(start)}" x2="{_pc(end)}" y1="10" y2="10"/>'


def _strip(parts: Sequence[str], label: str) -> str:
    return (
        f'<svg class="strip" role="img" aria-label="{escape(label)}" width="100%" height="20">'
        f"{''.join(parts)}</svg>"
    )


def _svg(parts: Sequence[str], label: str, height: int = HEIGHT) -> str:
    return (
        f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {height}">'
        f"{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str, style: str = "") -> str:
    name = f' class="{style}"' if style else ""
    return f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>"


def _pc(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"
