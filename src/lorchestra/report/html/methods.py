"""All methods at equal budget: what the page says and draws of a directory of compared methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorchestra.config import to_mapping
from lorchestra.report.html import tables
from lorchestra.report.html.figures import padded_range
from lorchestra.report.html.glyphs import interval_glyph
from lorchestra.report.html.method_results import CONTROLS, ENSEMBLE, MethodComparison, MethodResult, method_of, paired
from lorchestra.report.html.svg import NO_VALUE, Axis, Figure, Key, Panel, percent, plain, typeset
from lorchestra.report.table import Column, shown_interval, verdict

COST_COLUMNS = ("Base passes, fit", "Base passes, one answer", "Tokens", "Seconds", "Peak", "Parameters")

_COLORS = {"zero_shot": "base", "few_shot": "base", "one_lora": "one", ENSEMBLE: "ens"}
_CONTROL_COLOR, _OTHER_COLOR = "purple", "orange"
_METRICS = (("accuracy", "accuracy", percent), ("nll", "NLL (nats)", plain), ("ece", "ECE", percent))
_AXES = (("fit_base_passes", "base passes of the fit"), ("predict_base_passes", "base passes of one answer"))
_DODGE, _GROUP = 13.0, 90.0
"""Distance of points of equal passes, and the most that a group of them takes, in user units."""


def methods_context(comparison: MethodComparison, foreign: dict[str, list[str]], alone: bool) -> dict[str, Any]:
    """Everything the templates show of compared methods.

    Args:
        comparison: the methods.
        foreign: by the name of a run on the same page, the settings in which it differs from the methods.
        alone: whether the page is about nothing else.
    """
    results = list(comparison.results.values())
    ensemble = comparison.results.get(ENSEMBLE)
    tone, sentence, words = "none", "It cannot be judged: lora_ensemble is not among the methods.", ""
    if ensemble is not None:
        controls = comparison.controls(ensemble.entry, ensemble.predictions)
        tone, sentence = tables.headline(ensemble.entry, controls)
        words = typeset(verdict(ensemble.entry, controls))
    entry = comparison.first.entry
    return {
        "root": str(comparison.root),
        "alone": alone,
        "tone": tone,
        "headline": sentence,
        "verdict": words,
        "missing_controls": [key for key in CONTROLS if key not in comparison.results],
        "entry": entry,
        "base": comparison.config.base.name,
        "members": comparison.config.adapt.members,
        "level": f"{100 * entry['intervals']['level']:g} %",
        "metric_columns": tables.METHOD_COLUMNS,
        "cost_columns": COST_COLUMNS,
        "rows": [_row(number, result) for number, result in enumerate(results, start=1)],
        "difference_columns": tables.DIFFERENCES,
        "differences": [] if ensemble is None else _differences(ensemble, results, alone),
        "left_out": comparison.left_out,
        "notes": [(result.name, note) for result in results for note in result.notes],
        "foreign": {name: fields for name, fields in foreign.items() if fields},
        "figure": budget_figure(results),
        "config": to_mapping(comparison.config),
    }


def _row(number: int, result: MethodResult) -> dict[str, Any]:
    values, intervals = result.entry["ensemble"], result.entry["intervals"].get("ensemble") or {}
    cost = result.cost
    return {
        "number": number,
        "key": result.key,
        "name": result.name,
        "summary": result.summary,
        "passes": result.entry["num_members"],
        "chosen": ", ".join(f"{name} {plain(float(f'{value:.3g}'))}" for name, value in result.chosen.items()),
        "metrics": [tables.metric(column, values, intervals) for column in tables.METHOD_COLUMNS],
        "cost": [
            f"{cost['fit_base_passes']:.2f}",
            f"{cost['predict_base_passes']:.2f}",
            tables.count(cost["tokens"]),
            f"{cost['fit_s']:.0f} s",
            f"{cost['peak_bytes'] / 2**30:.2f} GiB",
            tables.count(cost["parameters"]),
        ],
    }


def _differences(ensemble: MethodResult, results: Sequence[MethodResult], with_members: bool) -> list[dict[str, Any]]:
    """The ensemble minus every other method, with pictures on one scale a column: that of the trained methods.

    `with_members` puts what the verdict says of its own members before them.
    """
    members = tables.references(ensemble.entry) if with_members else []
    rows = [row for row in members if row.key in tables.MEMBERS]
    others = [result for result in results if result.key != ensemble.key]
    for control in paired(ensemble.entry, ensemble.predictions, others):
        cells = [
            tables.difference(column, ensemble.entry["ensemble"], control.values, control.ensemble_minus)
            for column in tables.DIFFERENCES
        ]
        rows.append(tables.Reference(control.key, control.name, tuple(cells)))
    scales = []
    for place in range(len(tables.DIFFERENCES)):
        ends = [row.cells[place].ends for row in rows if not _is_base(row.key)]
        scales.append(max((abs(end) for three in ends if three for end in three), default=1.0) or 1.0)
    return [
        {
            "name": row.name,
            "cells": [(cell, interval_glyph(cell, scale)) for cell, scale in zip(row.cells, scales, strict=True)],
        }
        for row in rows
    ]


def budget_figure(results: Sequence[MethodResult]) -> Figure:
    """Accuracy, NLL and ECE against the base passes of the fit and of one answer, one numbered point a method."""
    panels = [_panel(results, cost, metric) for cost in _AXES for metric in _METRICS]
    keys = [
        Key(f"{number} {result.name}", _color(result.key), "", _marker(result), line=False)
        for number, result in enumerate(results, start=1)
    ]
    return Figure(
        "What does it cost?",
        [panel.svg() for panel in panels],
        "Upper row: forward work of the fit, in passes of the whole base over the training rows; lower row: of one"
        " answer. Lines: 95 % intervals. Circles answer by several members, draws or passes,"
        " squares by one, rings are calibrated. Points of equal passes stand side by side around the"
        " dotted line at their true place. The axes are those of the"
        " trained methods; a base that lies beyond is drawn on the edge.",
        keys,
        "three",
    )


def _panel(results: Sequence[MethodResult], cost: tuple[str, str], metric: tuple[str, str, Any]) -> Panel:
    key, label, text = metric
    xs = [float(result.cost[cost[0]]) for result in results]
    scale = [result for result in results if not _is_base(result.key)] or list(results)
    shown = [result.entry["ensemble"][key] for result in scale]
    shown += [end for result in scale for end in _interval(result, key) or ()]
    low, high = padded_range(shown, 1.0 if text is percent else float("inf"))
    right = max(xs) or 1.0
    panel = Panel(
        Axis(-0.06 * right, 1.12 * right, cost[1]),
        Axis(low, high, label, text, 6),
        f"{label} against {cost[1]}, one point a method",
        width=380,
        height=300,
        left=62,
    )
    taken: list[tuple[float, float]] = []
    places, centers = _side_by_side(panel, xs)
    for center in centers:
        panel.line([center, center], [low, high], "muted", "dot")
    ys: list[float | None] = [result.entry["ensemble"][key] for result in results]
    for result, x, y in zip(results, places, ys, strict=True):
        ends = _interval(result, key)
        if ends is not None and y is not None:
            inside = [min(max(end, low), high) for end in ends]
            if inside[0] < inside[1]:
                panel.line([x, x], inside, _color(result.key), "thin")
    taken = [(panel.px(x), panel.py(_clamped(y, low, high))) for x, y in zip(places, ys, strict=True)]
    for number, (result, x, y) in enumerate(zip(results, places, ys, strict=True), start=1):
        value = _clamped(y, low, high)
        tip = f"{result.name}: {_value(key, y)}, {plain(result.cost[cost[0]])} {cost[1]}"
        panel.point(x, value, _color(result.key), _marker(result), tip, 4)
        _label(panel, x, value, str(number), _color(result.key), taken)
    return panel


def _side_by_side(panel: Panel, xs: Sequence[float]) -> tuple[list[float], list[float]]:
    """The values, with those that are drawn on one spot moved apart, in order, around it; and these spots."""
    unit = (panel.x.high - panel.x.low) / (panel.width - panel.left - panel.right)
    groups: dict[int, list[int]] = {}
    for index, x in enumerate(xs):
        groups.setdefault(round(panel.px(x) / _DODGE), []).append(index)
    places, centers = list(xs), []
    for group in groups.values():
        middle = (len(group) - 1) / 2
        step = min(_DODGE, _GROUP / len(group))
        # within the frame: a group at its left or right end grows inwards
        half = middle * step + 4
        center = sum(panel.px(xs[index]) for index in group) / len(group)
        if len(group) > 1:
            centers.append(panel.x.low + (center - panel.left) * unit)
        inside = min(max(center, panel.left + half), panel.width - panel.right - half)
        for rank, index in enumerate(group):
            places[index] = panel.x.low + (inside + (rank - middle) * step - panel.left) * unit
    return places, centers


def _label(panel: Panel, x: float, y: float, text: str, color: str, taken: list[tuple[float, float]]) -> None:
    """A number beside its point, where no other number or point is, if there is such a place."""
    px, py = panel.px(x), panel.py(y)
    candidates = [(dx, dy) for dy in (0, -13, 13, -24, 24) for dx in (10, -10, 0) if dx or dy]

    def free(place: tuple[int, int]) -> bool:
        cx, cy = px + place[0], py + place[1]
        inside = panel.left < cx < panel.width and panel.top - 6 < cy < panel.height - panel.bottom
        return inside and all(abs(cx - tx) >= 9 or abs(cy - ty) >= 10 for tx, ty in taken)

    dx, dy = next((place for place in candidates if free(place)), candidates[0])
    taken.append((px + dx, py + dy))
    panel.text(x, y, text, color, "middle", dx, dy + 4)


def _interval(result: MethodResult, key: str) -> tuple[float, float] | None:
    ends = shown_interval(key, result.entry["intervals"].get("ensemble") or {})
    if ends is None or ends[0] is None or ends[1] is None:
        return None
    return float(ends[0]), float(ends[1])


def _clamped(value: float | None, low: float, high: float) -> float:
    return high if value is None else min(max(value, low), high)


def _value(key: str, value: float | None) -> str:
    column: Column = next(column for column in tables.METHOD_COLUMNS if column.key == key)
    return f"{column.title} {NO_VALUE if value is None and key != 'nll' else tables.number(column, value)}"


def _is_base(key: str) -> bool:
    return method_of(key) in ("zero_shot", "few_shot")


def _color(key: str) -> str:
    first = method_of(key)
    return _CONTROL_COLOR if first in CONTROLS else _COLORS.get(first, _OTHER_COLOR)


def _marker(result: MethodResult) -> str:
    if "+" in result.key:
        return "ring"
    return "circle" if result.entry["num_members"] > 1 else "square"
