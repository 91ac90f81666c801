"""Small drawings inside a line of text or a table cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from lorchestra.report.html.tables import Difference, Reference
from lorchestra.types import Json

_WIDTH, _HEIGHT, _HALF = 112, 14, 48


def interval_glyph(difference: Difference, scale: float) -> str:
    """A difference and its interval on a line from -scale to scale, with 0 marked; arrows where they exceed it."""
    if difference.ends is None:
        return ""
    center, middle = _WIDTH / 2, _HEIGHT / 2
    low, value, high = (center + _HALF * max(-1.12, min(1.12, end / scale)) for end in difference.ends)
    parts = [f'<path class="zero" d="M{center:g} 0V{_HEIGHT}"/>']
    parts.append(f'<path class="span" d="M{low:.1f} {middle:g}H{high:.1f}"/>')
    if abs(difference.ends[1]) <= scale * 1.05:
        parts.append(f'<circle class="dot" cx="{value:.1f}" cy="{middle:g}" r="3.4"/>')
    if difference.ends[0] < -scale * 1.05:
        parts.append(f'<path class="dot" d="M0 {middle:g}l6 -4v8Z"/>')
    if difference.ends[2] > scale * 1.05:
        parts.append(f'<path class="dot" d="M{_WIDTH} {middle:g}l-6 -4v8Z"/>')
    return f'<svg class="interval" viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-hidden="true">{"".join(parts)}</svg>'


def rows_with_glyphs(rows: Sequence[Reference], on_scale: Callable[[Reference], bool]) -> list[Json]:
    """Rows of differences for the templates, with a glyph in each cell; rows `on_scale` set the scale of a column."""
    scaling = [row.cells for row in rows if on_scale(row)]
    scales = []
    for column in range(len(rows[0].cells) if rows else 0):
        ends = [end for cells in scaling for end in cells[column].ends or ()]
        scales.append(max(map(abs, ends), default=1.0) or 1.0)
    return [
        {
            "name": row.name,
            "cells": [(cell, interval_glyph(cell, scale)) for cell, scale in zip(row.cells, scales, strict=True)],
        }
        for row in rows
    ]


def member_glyph(prob: float, member_probs: Sequence[float], name: str) -> str:
    """A probability as a bar, with the members' probabilities as ticks on it."""
    marks = "".join(f'<path class="tickmark" d="M{2 + 156 * p:.1f} 1V15"/>' for p in member_probs)
    members = " ".join(f"{p:.2f}" for p in member_probs)
    label = escape(f"{name}: ensemble {prob:.2f}; members {members}")
    return (
        f'<svg class="prob" viewBox="0 0 160 16" role="img" aria-label="{label}"><title>{label}</title>'
        f'<rect class="track" x="2" y="3" width="156" height="10"/>'
        f'<rect class="fill" x="2" y="3" width="{156 * prob:.1f}" height="10"/>{marks}</svg>'
    )
