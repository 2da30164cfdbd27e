"""Small line charts as SVG, readable on a light and on a dark page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 400, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 40, 32
_COLUMNS = 2

# Colours that have a contrast of 4.5 and more to the background of either kind of page.
_STYLE = """\
text { font: 11px sans-serif; fill: #444 }
.title { font-weight: bold; font-size: 12px }
.grid { stroke: #ddd; stroke-width: 1 }
.line { stroke: #1f6fb2; stroke-width: 2; fill: none }
.point { fill: #1f6fb2 }
@media (prefers-color-scheme: dark) {
  text { fill: #ccc }
  .grid { stroke: #444 }
  .line { stroke: #6db3f2 }
  .point { fill: #6db3f2 }
}"""


class Point(NamedTuple):
    """A value at a place of the horizontal axis, which is logarithmic: more than 0, and named."""

    x: float
    y: float
    name: str


class Panel(NamedTuple):
    """One chart; its vertical axis is linear and begins at 0."""

    title: str
    unit: str
    points: Sequence[Point]


def chart(title: str, panels: Sequence[Panel]) -> str:
    """The panels beside and below each other, as one SVG document."""
    rows = math.ceil(len(panels) / _COLUMNS)
    width, height = _WIDTH * _COLUMNS, _HEIGHT * rows
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{_STYLE}\n</style>",
    ]
    for number, panel in enumerate(panels):
        row, column = divmod(number, _COLUMNS)
        parts.append(f'<g transform="translate({column * _WIDTH} {row * _HEIGHT})">')
        parts += _panel(panel)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel) -> list[str]:
    highest = max((point.y for point in panel.points), default=0.0) or 1.0
    step = round_step(highest)
    top = step * math.ceil(highest / step)
    low = math.log10(min((point.x for point in panel.points), default=1.0))
    high = math.log10(max((point.x for point in panel.points), default=10.0))
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def across(x: float) -> float:
        return round(_LEFT + inner_width * (math.log10(x) - low) / ((high - low) or 1.0), 1)

    def down(y: float) -> float:
        return round(_TOP + inner_height * (1 - y / top), 1)

    parts = [f'<text class="title" x="8" y="20">{escape(panel.title)}</text>']
    for number in range(round(top / step) + 1):
        value = number * step
        at = down(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {at}H{_WIDTH - _RIGHT}"/>')
        label = f"{value:g} {panel.unit}"
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4}" text-anchor="end">{escape(label)}</text>')
    places = [(across(point.x), down(point.y), point) for point in panel.points]
    if places:
        path = "L".join(f"{x} {y}" for x, y, _ in places)
        parts.append(f'<path class="line" d="M{path}"/>')
    for x, y, point in places:
        words = f"{point.name}: {point.y:.4g} {panel.unit}"
        dot = f'<circle class="point" cx="{x}" cy="{y}" r="3.5">'
        parts.append(f"{dot}<title>{escape(words)}</title></circle>")
        at = _HEIGHT - _BOTTOM + 18
        parts.append(f'<text x="{x}" y="{at}" text-anchor="middle">{escape(point.name)}</text>')
    return parts


def round_step(highest: float) -> float:
    """The distance of grid lines: 1, 2 or 5 times a power of ten, three to six of them."""
    if highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    for factor in (0.2, 0.5, 1.0, 2.0):
        if highest / (factor * power) <= 6:
            return factor * power
    return 5.0 * power
