"""Fig. 5 and the OOD table: metrics on sets other than the training set's, and their detection by uncertainty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lorchestra.metrics.predictive import confidence, mixture_log_probs
from lorchestra.metrics.table import BY_KEY
from lorchestra.paper.page import MARKERS, PALETTE, PaperFigure, per_task, percent, shared_legend
from lorchestra.paper.results import (
    ENSEMBLE,
    ONE,
    FinishedRun,
    Row,
    Rows,
    by_task,
    ensemble_metrics,
    mean_member,
    regularizer_label,
    unique,
)
from lorchestra.report.figure import ENSEMBLE_COLOR, SINGLE_COLOR
from lorchestra.types import Predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCORES = {"max_prob": "largest\nprobability", "entropy": "entropy", "mutual_information": "mutual\ninformation"}
_COLUMNS = {key: BY_KEY[key].axis_label for key in ("accuracy", "ece", "mean_confidence")}


def shift_table(runs: Sequence[FinishedRun]) -> list[Row]:
    """One row per set, point and method: `task`, `rows_of` (the set), `regularizer`, `method`, `examples`, `accuracy`,
    `nll`, `ece` (empty if the set has no labels of this task) and `mean_confidence`."""
    rows: list[Row] = []
    for run in runs:
        sets = {run.task: run.test} | {name: run.ood(name) for name in run.entry["ood"]}
        for name, predictions in sets.items():
            labeled = bool((predictions.labels >= 0).all())
            one, ensemble = (mean_member(predictions), ensemble_metrics(predictions)) if labeled else ({}, {})
            for method, values in ((ONE, one), (ENSEMBLE, ensemble)):
                row: Row = {"task": run.task, "rows_of": name, "regularizer": regularizer_label(run.settings)}
                row |= {"method": method, "examples": predictions.num_examples}
                row |= {metric: values.get(metric) for metric in ("accuracy", "nll", "ece")}
                rows.append(row | {"mean_confidence": _mean_confidence(predictions, method)})
    return rows


def _mean_confidence(predictions: Predictions, method: str) -> float:
    log_probs_MEC = predictions.log_probs_MEC
    return float(np.mean(confidence(log_probs_MEC if method == ONE else mixture_log_probs(log_probs_MEC))))


def draw_shift(figure: Figure, rows: Rows) -> None:
    """Three panels per task, one line per set; only the confidence is drawn for sets without labels."""
    tasks = by_task(rows)
    lines = sum(len({row["rows_of"] for row in of_task}) for of_task in tasks.values())
    figure.set_size_inches(10.8, 1.6 + 0.6 * lines + 0.7 * len(tasks))
    grid = figure.subplots(len(tasks), 3, squeeze=False, sharey="row")
    for (task, of_task), line in zip(tasks.items(), grid, strict=True):
        sets = unique(of_task, "rows_of")
        for axes, (metric, title) in zip(line, _COLUMNS.items(), strict=True):
            for style, offset, points in _series(rows, [row for row in of_task if row[metric] is not None]):
                y = [sets.index(row["rows_of"]) + offset for row in points]
                axes.plot([100 * row[metric] for row in points], y, **style)
            if metric != "mean_confidence":
                _mark_unlabeled(axes, metric, of_task, sets)
            axes.set_title(title, fontsize="medium")
            axes.grid(axis="x", color="0.92")
            axes.margins(x=0.1)
        line[0].set_yticks(range(len(sets)), [f"{task} (trained on)", *sets[1:]])
        line[0].set_ylim(len(sets) - 0.5, -0.5)
    shared_legend(grid[0][2], 2)


def _mark_unlabeled(axes: Axes, metric: str, rows: Rows, sets: Sequence[str]) -> None:
    transform = axes.get_yaxis_transform()
    for index, name in enumerate(sets):
        if all(row[metric] is None for row in rows if row["rows_of"] == name):
            text = axes.text(0.5, index, "no answers", transform=transform, color="0.5", fontsize="small")
            text.set(horizontalalignment="center", verticalalignment="center")


def _shift_sentence(rows: Rows) -> str:
    parts = []
    for name in unique(rows, "rows_of"):
        of_set = [row for row in rows if row["rows_of"] == name]
        unlabeled = of_set[0]["accuracy"] is None
        columns = {"mean confidence": "mean_confidence"} if unlabeled else {"accuracy": "accuracy", "ECE": "ece"}
        changes = []
        for label in unique(of_set, "regularizer"):
            one, ensemble = (
                next(row for row in of_set if (row["regularizer"], row["method"]) == (label, method))
                for method in (ONE, ENSEMBLE)
            )
            pairs = [f"{title} {percent(one[key])} to {percent(ensemble[key])}" for title, key in columns.items()]
            changes.append(f"{', '.join(pairs)} ({label})")
        parts.append(f"on {name}{' (no answers)' if unlabeled else ''}: {', '.join(changes)}")
    return "from one LoRA to the ensemble " + "; ".join(parts)


def ood_table(runs: Sequence[FinishedRun]) -> list[Row]:
    """One row per OOD set, point, method and score: `task`, `rows_of`, `regularizer`, `method`, `score`, `auroc`."""
    rows: list[Row] = []
    for run in runs:
        for name, entry in run.entry["ood"].items():
            for method, values in ((ONE, entry["member_mean"]["auroc"]), (ENSEMBLE, entry["auroc"])):
                for score in SCORES:
                    if score in values:
                        row: Row = {"task": run.task, "rows_of": name, "regularizer": regularizer_label(run.settings)}
                        rows.append(row | {"method": method, "score": score, "auroc": values[score]})
    return rows


def draw_ood(figure: Figure, rows: Rows) -> None:
    """One panel per OOD set, one row of panels per task."""
    tasks = by_task(rows)
    columns = max(len({row["rows_of"] for row in of_task}) for of_task in tasks.values())
    figure.set_size_inches(max(6.4, 3.4 * columns), 3.2 * len(tasks) + 1.2)
    grid = figure.subplots(len(tasks), columns, squeeze=False, sharey=True)
    for (task, of_task), line in zip(tasks.items(), grid, strict=True):
        sets = unique(of_task, "rows_of")
        for axes in line[len(sets) :]:
            axes.set_axis_off()
        for axes, name in zip(line, sets, strict=False):
            axes.axhline(0.5, color="0.6", linestyle=":")
            for style, offset, points in _series(rows, [row for row in of_task if row["rows_of"] == name]):
                x = [list(SCORES).index(row["score"]) + offset for row in points]
                axes.plot(x, [row["auroc"] for row in points], **style)
            axes.set_xticks(range(len(SCORES)), list(SCORES.values()), fontsize="small")
            axes.set(title=f"{task} against {name}", ylim=(0, 1), xlim=(-0.5, len(SCORES) - 0.5))
            axes.grid(axis="y", color="0.92")
        line[0].set_ylabel("AUROC (0.5: chance)")
    shared_legend(grid[0][0], 2)


def _ood_sentence(rows: Rows) -> str:
    parts = []
    for name in unique(rows, "rows_of"):
        of_set = [row for row in rows if row["rows_of"] == name and row["method"] == ENSEMBLE]
        best, worst = max(of_set, key=lambda row: row["auroc"]), min(of_set, key=lambda row: row["auroc"])
        ends = [
            f"{row['auroc']:.2f} by {row['score'].replace('_', ' ')} ({row['regularizer']})" for row in (worst, best)
        ]
        parts.append(f"{name} from {ends[0]} to {ends[1]}")
    return "the ensemble's AUROC (0.5 is chance): " + "; ".join(parts)


def _series(rows: Rows, points: Rows) -> Iterator[tuple[dict[str, Any], float, Rows]]:
    """Per regularizer and method of `rows`: line style, offset from the tick, and its share of `points`.

    The ensemble's markers are filled.
    """
    labels = unique(rows, "regularizer")
    last = 2 * len(labels) - 1
    for i, label in enumerate(labels):
        for k, method in enumerate((ONE, ENSEMBLE)):
            color = (SINGLE_COLOR, ENSEMBLE_COLOR)[k] if len(labels) == 1 else PALETTE[i % 7]
            style: dict[str, Any] = {"marker": MARKERS[i % 7], "markersize": 6, "linestyle": "none"}
            style |= {"color": color, "markerfacecolor": color if k else "none", "label": f"{method}, {label}"}
            chosen = [row for row in points if (row["regularizer"], row["method"]) == (label, method)]
            yield style, 0.5 * ((2 * i + k) / last - 0.5), chosen


SHIFT = PaperFigure(shift_table, draw_shift, lambda rows: per_task(rows, _shift_sentence))
OOD = PaperFigure(ood_table, draw_ood, lambda rows: per_task(rows, _ood_sentence))
