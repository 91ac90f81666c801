"""Minimal SVG: a panel with axes, on which lines, bars, points and arrows are drawn.

Written by hand, so that figures take their colors from the page's style sheet: they follow light, dark and print, their
text is text, and a panel is a few kilobytes. Colors are names: `c-NAME` classes of `page.css`. Everything from the data
is escaped here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from lorchestra.metrics.predictive import FloatArray

Numbers = Sequence[float] | FloatArray

MINUS, NO_VALUE = "\N{MINUS SIGN}", "\N{EN DASH}"
"""The sign of a negative number, and the text for a missing one."""


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from low to high, at most `most`."""
    if not high > low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    while math.floor(high / step + 1e-9) - math.ceil(low / step - 1e-9) + 1 > most:
        # 1, 2, 5, 10, ...
        step *= 2.5 if f"{step:e}".startswith("2") else 2
    first = math.ceil(low / step - 1e-9)
    return [round(step * (first + k), 12) for k in range(math.floor(high / step + 1e-9) - first + 1)]


def plain(value: float) -> str:
    """A number in its shortest form."""
    return f"{value:.6g}".replace("-", MINUS)


def percent(value: float) -> str:
    """A share as percent."""
    return f"{plain(100 * value)}\u00a0%"


def typeset(text: str) -> str:
    """A sentence with typographic minus signs before its numbers."""
    return re.sub(r"(?<![\w-])-(?=\d)", MINUS, text)


@dataclass(frozen=True)
class Axis:
    """Range and label of an axis, and the format of its numbers."""

    low: float
    high: float
    label: str
    text: Callable[[float], str] = plain
    most_ticks: int = 6


@dataclass
class Panel:
    """A drawing of `width` x `height` user units; later parts are on top. `label` describes it to screen readers."""

    x: Axis
    y: Axis
    label: str
    width: int = 440
    height: int = 320
    left: int = 58
    bottom: int = 46
    top: int = 12
    right: int = 26
    parts: list[str] = field(default_factory=list)

    def px(self, x: float) -> float:
        """Horizontal position of a value."""
        share = (x - self.x.low) / (self.x.high - self.x.low)
        return round(self.left + share * (self.width - self.left - self.right), 1)

    def py(self, y: float) -> float:
        """Vertical position of a value."""
        share = (y - self.y.low) / (self.y.high - self.y.low)
        return round(self.height - self.bottom - share * (self.height - self.top - self.bottom), 1)

    def line(self, xs: Numbers, ys: Numbers, color: str, style: str = "", tip: str = "") -> None:
        """A line through the points, interrupted where a value is NaN. `style`: thin, dash, dot, heavy."""
        commands, pen = [], "M"
        for x, y in zip(xs, ys, strict=True):
            if not (math.isfinite(x) and math.isfinite(y)):
                pen = "M"
                continue
            commands.append(f"{pen}{self.px(x):g} {self.py(y):g}")
            pen = "L"
        self._add(f'<path class="line {style}" d="{"".join(commands)}"', color, tip)

    def area(self, xs: Numbers, ys: Numbers, color: str) -> None:
        """The area between a line and the bottom."""
        base = self.py(self.y.low)
        points = "L".join(f"{self.px(x):g} {self.py(y):g}" for x, y in zip(xs, ys, strict=True))
        self._add(f'<path class="area" d="M{self.px(xs[0]):g} {base:g}L{points}L{self.px(xs[-1]):g} {base:g}Z"', color)

    def steps(self, edges: Numbers, heights: Numbers, color: str, style: str = "") -> None:
        """A histogram's outline, with its area."""
        xs = np.repeat(np.asarray(edges, dtype=np.float64), 2)[1:-1]
        ys = np.repeat(np.asarray(heights, dtype=np.float64), 2)
        self.area(xs, ys, color)
        self.line(xs, ys, color, style)

    def bar(self, x0: float, x1: float, y: float, color: str, tip: str = "") -> None:
        """A bar from the bottom up to y."""
        left, top = self.px(x0), self.py(y)
        width, height = max(self.px(x1) - left, 0.5), max(self.py(self.y.low) - top, 0)
        self._add(f'<rect class="bar" x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}"', color, tip)

    def point(self, x: float, y: float, color: str, marker: str = "circle", tip: str = "", size: float = 4.5) -> None:
        """A marker; circle, square or ring."""
        self._add(marker_path(marker, self.px(x), self.py(y), size), color, tip)

    def arrow(self, start: tuple[float, float], end: tuple[float, float], color: str, tip: str = "") -> None:
        """An arrow from start to end; a point if both are the same."""
        x0, y0, x1, y1 = self.px(start[0]), self.py(start[1]), self.px(end[0]), self.py(end[1])
        length = math.hypot(x1 - x0, y1 - y0)
        if length < 1:
            self.point(*end, color, tip=tip)
            return
        ux, uy, head = (x1 - x0) / length, (y1 - y0) / length, min(10.0, length)
        bx, by = x1 - head * ux, y1 - head * uy
        shaft = f"M{x0:g} {y0:g}L{bx:.1f} {by:.1f}"
        self._add(f'<path class="line heavy" d="{shaft}"', color, tip)
        sides = [(bx - s * 0.45 * head * uy, by + s * 0.45 * head * ux) for s in (1, -1)]
        wings = "".join(f"L{x:.1f} {y:.1f}" for x, y in sides)
        self._add(f'<path class="marker" d="M{x1:g} {y1:g}{wings}Z"', color, tip)

    def text(
        self, x: float, y: float, text: str, color: str = "ink", anchor: str = "start", dx: int = 0, dy: int = 0
    ) -> None:
        """Text at a position in data units, moved by dx, dy user units."""
        position = f'x="{self.px(x) + dx:g}" y="{self.py(y) + dy:g}"'
        self.parts.append(f'<text class="c-{color} note" {position} text-anchor="{anchor}">{escape(text)}</text>')

    def svg(self) -> str:
        """The drawing."""
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(self.label)}">'
            f"{self._frame()}{''.join(self.parts)}</svg>"
        )

    def _add(self, element: str, color: str, tip: str = "") -> None:
        inside = f"><title>{escape(tip)}</title></{element[1 : element.index(' ')]}>" if tip else "/>"
        self.parts.append(f'<g class="c-{color}">{element}{inside}</g>')

    def _frame(self) -> str:
        right, floor = self.width - self.right, self.height - self.bottom
        parts = []
        for value in ticks(self.x.low, self.x.high, self.x.most_ticks):
            x = self.px(value)
            parts.append(f'<path class="grid" d="M{x:g} {self.top}V{floor}"/>')
            parts.append(_label("tick", f'x="{x:g}" y="{floor + 16}"', "middle", self.x.text(value)))
        for value in ticks(self.y.low, self.y.high, self.y.most_ticks):
            y = self.py(value)
            parts.append(f'<path class="grid" d="M{self.left} {y:g}H{right}"/>')
            parts.append(_label("tick", f'x="{self.left - 7}" y="{y + 4:g}"', "end", self.y.text(value)))
        parts.append(f'<path class="axis" d="M{self.left} {self.top}V{floor}H{right}"/>')
        middle = f'x="{(self.left + right) / 2:g}" y="{self.height - 8}"'
        aside = f'transform="translate(14 {(self.top + floor) / 2:g}) rotate(-90)"'
        parts += [_label("name", middle, "middle", self.x.label), _label("name", aside, "middle", self.y.label)]
        return "".join(parts)


def _label(kind: str, position: str, anchor: str, text: str) -> str:
    return f'<text class="{kind}" {position} text-anchor="{anchor}">{escape(text)}</text>' if text else ""


def marker_path(marker: str, x: float, y: float, size: float) -> str:
    """The start of an element that draws a marker."""
    s = size
    if marker in ("circle", "ring"):
        return f'<circle class="{"ring" if marker == "ring" else "marker"}" cx="{x:g}" cy="{y:g}" r="{s:g}"'
    return f'<path class="marker" d="M{x - s:g} {y - s:g}h{2 * s:g}v{2 * s:g}h{-2 * s:g}Z"'


@dataclass(frozen=True)
class Key:
    """One entry of a legend: a name and its style."""

    name: str
    color: str
    style: str = ""
    marker: str = ""
    line: bool = True

    def swatch(self) -> str:
        """The sample next to the name."""
        line = f'<path class="line {self.style}" d="M1 7H29"/>' if self.line else ""
        marker = f"{marker_path(self.marker, 15, 7, 4)}/>" if self.marker else ""
        return f'<svg class="swatch c-{self.color}" viewBox="0 0 30 14" aria-hidden="true">{line}{marker}</svg>'


@dataclass(frozen=True)
class Figure:
    """A figure of the page: panels side by side with one legend; `caption` is plain text."""

    title: str
    panels: Sequence[str]
    caption: str
    keys: Sequence[Key] = ()
    size: str = ""
    """A CSS class: `small` for many small panels, `three` for three in a row."""
