"""A directory of compared methods, read and checked: what `lorchestra compare` wrote.

All methods at equal budget: what the page says and draws of a directory of compared methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorchestra.config.mappings import differences, from_mapping, to_mapping
from lorchestra.config.run import RunConfig
from lorchestra.errors import CheckpointError, DataError
from lorchestra.metrics.evaluation import ensemble_minus
from lorchestra.metrics.predictive import mixture_log_probs
from lorchestra.metrics.scores import accuracy
from lorchestra.report.html import tables
from lorchestra.report.html.figures import padded_range
from lorchestra.report.html.glyphs import interval_glyph
from lorchestra.report.html.source import Entry, ReportRun, same_rows
from lorchestra.report.html.svg import NO_VALUE, Axis, Figure, Key, Panel, percent, plain, typeset
from lorchestra.report.table import Column, Control, listed, shown_interval, verdict
from lorchestra.store.evaluations import check_entry
from lorchestra.store.predictions import load_predictions, tensors_path
from lorchestra.store.safe_paths import inside
from lorchestra.store.schema import Each, Number, check_shape, read_json
from lorchestra.types import Predictions

ENSEMBLE = "lora_ensemble"

NAMES = {
    "zero_shot": "base, zero-shot",
    "few_shot": "base, few-shot",
    "one_lora": "one LoRA",
    ENSEMBLE: "LoRA ensemble",
    "mc_dropout": "MC dropout",
    "high_rank": "one LoRA of M times the rank",
    "long_training": "one LoRA trained M times as long",
    "soup": "soup, the members' weight average",
    "snapshot": "snapshots of one LoRA",
    "last_layer": "members that share all but the last layer",
    "swag": "SWAG",
    "laplace": "Laplace",
    "batch_ensemble": "BatchEnsemble",
}
"""Methods as people call them, in the order in which the page shows them; others come after them by name."""

_WRAPPERS = {"temperature": "temperature scaling", "contextual": "contextual calibration"}

CONTROLS = ("one_lora+temperature", "high_rank", "long_training")
"""What the verdict holds the ensemble against: one LoRA with calibration, and with as much compute or parameters."""

_FREE = ("base.threads", "data.dir", "data.train", "data.val", "data.test", "adapt.trunk_memory_gb")
_FREE_TRAIN = ("train.token_budget", "train.gradient_checkpointing", "train.checkpoint_every_s")
"""Settings that change no number, but by rounding; rows are known by their digests."""

_COST = ("fit_base_passes", "predict_base_passes", "tokens", "fit_s", "peak_bytes", "parameters")
_RESULT: dict[str, Any] = {
    "name": str,
    "summary": str,
    "cost": dict.fromkeys(_COST, Number()),
    "chosen": Each((Number(), None)),
}
_SPLITS = {"train": {"digest": str}}


@dataclass(frozen=True)
class MethodResult:
    """One finished method."""

    key: str
    """Its name in the registry."""
    name: str
    """Its name for people."""
    summary: str
    cost: Entry
    chosen: Entry
    entry: Entry
    predictions: Predictions
    notes: tuple[str, ...] = ()
    """What a reader must know of its fit."""


@dataclass(frozen=True)
class MethodComparison:
    """Finished methods on the same rows, by key; `left_out` has the reasons of those that could not do the task."""

    root: Path
    config: RunConfig
    train_digest: str
    results: dict[str, MethodResult]
    left_out: dict[str, str]

    @property
    def first(self) -> MethodResult:
        """Any of them: task, split and rows are the same in all."""
        return next(iter(self.results.values()))

    def controls(self, entry: Entry, predictions: Predictions) -> list[Control]:
        """The controls beside an ensemble's evaluation and predictions, with paired intervals."""
        found = {key: self.results[key] for key in CONTROLS if key in self.results}
        return paired(entry, predictions, list(found.values()))


def paired(entry: Entry, predictions: Predictions, results: Sequence[MethodResult]) -> list[Control]:
    """Methods with the intervals of an ensemble minus each, resampled as in the ensemble's evaluation."""
    settings = entry["intervals"]
    intervals = ensemble_minus(
        predictions,
        {result.key: result.predictions for result in results},
        resamples=settings.get("resamples", 0),
        seed=settings.get("seed", 0),
    )
    return [Control(result.key, result.name, result.entry["ensemble"], intervals[result.key]) for result in results]


def is_comparison(root: Path) -> bool:
    """Whether a directory is one of compared methods."""
    return inside(root, "compare.json").is_file()


def read_comparison(root: str | Path) -> MethodComparison:
    """Read the finished methods.

    Raises:
        CheckpointError: no such directory, nothing finished in it, or damaged files.
    """
    root = Path(root)
    if not is_comparison(root):
        raise CheckpointError(
            f"{root}: not a directory of compared methods (no compare.json); make one by: lorchestra compare --out DIR"
        )
    record_path, splits_path = inside(root, "compare.json"), inside(root, "splits.json")
    record = read_json(record_path)
    check_shape(record, {"resolved": dict}, record_path)
    splits = read_json(splits_path)
    check_shape(splits, _SPLITS, splits_path)
    names = [path.parent.name for path in inside(root, "methods").glob("[!.]*/result.json")]
    found = [_read_result(inside(root, "methods", name)) for name in names]
    if not found:
        raise CheckpointError(_nothing_finished(root))
    found.sort(key=lambda result: _order(result.key))
    for result in found[1:]:
        if not same_rows(result.predictions, found[0].predictions):
            raise CheckpointError(
                f"{root}: {result.key} was evaluated on other rows than {found[0].key}; remove its directory and"
                " compare again"
            )
    return MethodComparison(
        root=root,
        config=from_mapping(RunConfig, record["resolved"], str(record_path), saved=True),
        train_digest=splits["train"]["digest"],
        results={result.key: result for result in found},
        left_out=_left_out(root),
    )


def _left_out(root: Path) -> dict[str, str]:
    path = inside(root, "left_out.json")
    return {str(key): str(reason) for key, reason in read_json(path).items()} if path.exists() else {}


def _nothing_finished(root: Path) -> str:
    reasons = _left_out(root)
    if not reasons:
        return f"{root}: no method is finished in it; the same lorchestra compare command goes on"
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return f"{root}: no method is finished in it, all were left out ({told})"


def check_belongs(run: ReportRun, comparison: MethodComparison) -> None:
    """Refuse methods of another task, split or rows than a run's.

    Raises:
        DataError: names both and what differs.
    """
    theirs, mine = comparison.first.entry, run.entry
    for what in ("task", "split"):
        if theirs[what] != mine[what]:
            raise DataError(
                f"{comparison.root}: its methods are of the {what} {theirs[what]!r} and {run.run.root} of"
                f" {mine[what]!r}: numbers of different rows do not belong in one table; make a page for each"
            )
    if not same_rows(comparison.first.predictions, run.predictions):
        raise DataError(
            f"{comparison.root}: its methods were evaluated on other rows of {theirs['task']} {theirs['split']} than"
            f" {run.run.root}; compare and train with the same files and seed, or make a page for each"
        )


def foreign_settings(run: ReportRun, comparison: MethodComparison) -> list[str]:
    """Settings in which a run and the methods differ so that their budgets are not equal; none where they are."""
    free = {*_FREE, *_FREE_TRAIN}
    apart = [
        field
        for field in differences(run.config, comparison.config)
        if field not in free and not field.startswith("evaluate.")
    ]
    if run.run.splits.exists():
        splits = read_json(run.run.splits)
        check_shape(splits, _SPLITS, run.run.splits)
        if splits["train"]["digest"] != comparison.train_digest:
            apart.append("the training rows")
    return apart


def method_name(key: str) -> str:
    """A method's name for people, with its own settings and what is wrapped around it."""
    first, *wrappers = key.split("+")
    name = _with_settings(first, NAMES)
    return f"{name} with {listed([_with_settings(wrapper, _WRAPPERS) for wrapper in wrappers])}" if wrappers else name


def _with_settings(part: str, names: Mapping[str, str]) -> str:
    first, *settings = part.split(":")
    name = names.get(first, first)
    return f"{name} ({', '.join(settings)})" if settings else name


def method_of(key: str) -> str:
    """The method below wrappers, without its settings."""
    return key.split("+")[0].split(":")[0]


def _order(key: str) -> tuple[int, str]:
    known, first = list(NAMES), method_of(key)
    return (known.index(first) if first in known else len(known), key)


def _read_result(folder: Path) -> MethodResult:
    path = inside(folder, "result.json")
    result = read_json(path)
    check_shape(result, _RESULT, path)
    entry = result.get("entry")
    check_entry(entry, path, "entry", "remove the method's directory")
    assert isinstance(entry, dict)
    saved = tensors_path(inside(folder, "predictions"), f"{entry['task']}.{entry['split']}")
    predictions = load_predictions(saved, answered=True)
    found = accuracy(mixture_log_probs(predictions.log_probs_MEC), predictions.labels)
    if abs(found - entry["ensemble"]["accuracy"]) > 1e-9:
        raise CheckpointError(
            f"{path}: accuracy is {entry['ensemble']['accuracy']} here and {found} in the predictions; remove the"
            " method's directory and compare again"
        )
    key = result["name"]
    return MethodResult(
        key,
        method_name(key),
        result["summary"],
        result["cost"],
        result["chosen"],
        entry,
        predictions,
        tuple(map(str, result.get("notes") or ())),
    )


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
