"""Fig. 5 and the OOD table: trained on one set, tested on others; how well does uncertainty tell them apart?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lorchestra.metrics.predictive import confidence, mixture_log_probs
from lorchestra.metrics.table import BY_KEY
from lorchestra.paper.page import (
    ENSEMBLE_COLOR,
    MARKERS,
    PALETTE,
    SINGLE_COLOR,
    PaperFigure,
    Row,
    Rows,
    per_task,
    percent,
    shared_legend,
)
from lorchestra.paper.results import FinishedRun, ensemble_metrics, mean_member, regularizer_label, tasks_of
from lorchestra.types import Predictions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ONE, ENSEMBLE = "one LoRA (mean of members)", "ensemble"
SCORES = {"max_prob": "largest\nprobability", "entropy": "entropy", "mutual_information": "mutual\ninformation"}
_COLUMNS = {key: BY_KEY[key].axis_label for key in ("accuracy", "ece", "mean_confidence")}


def shift_table(runs: Sequence[FinishedRun]) -> list[Row]:
    """One row a set, point and method: `task`, `rows_of` (the set), `regularizer`, `method`, `examples`, `accuracy`,
    `nll`, `ece` (empty where the set has no answers of this task) and `mean_confidence`."""
    rows: list[Row] = []
    for run in runs:
        sets = {run.task: run.test} | {name: run.far(name) for name in run.entry["ood"]}
        for name, found in sets.items():
            known = bool((found.labels >= 0).all())
            one, ensemble = (mean_member(found), ensemble_metrics(found)) if known else ({}, {})
            for method, values in ((ONE, one), (ENSEMBLE, ensemble)):
                row: Row = {"task": run.task, "rows_of": name, "regularizer": regularizer_label(run.settings)}
                row |= {"method": method, "examples": found.num_examples}
                row |= {metric: values.get(metric) for metric in ("accuracy", "nll", "ece")}
                rows.append(row | {"mean_confidence": _mean_confidence(found, method)})
    return rows


def _mean_confidence(found: Predictions, method: str) -> float:
    log_probs = found.log_probs_MEC if method == ONE else mixture_log_probs(found.log_probs_MEC)
    return float(np.mean(confidence(log_probs)))


def draw_shift(figure: Figure, rows: Rows) -> None:
    """Three panels a task, a line a set; sets without answers have a confidence alone."""
    looks = _looks(rows)
    tasks = tasks_of(rows)
    lines = sum(len({row["rows_of"] for row in own}) for own in tasks.values())
    figure.set_size_inches(10.8, 1.6 + 0.6 * lines + 0.7 * len(tasks))
    grid = figure.subplots(len(tasks), 3, squeeze=False, sharey="row")
    for (task, own), axes_line in zip(tasks.items(), grid, strict=True):
        sets = list(dict.fromkeys(row["rows_of"] for row in own))
        for axes, (metric, title) in zip(axes_line, _COLUMNS.items(), strict=True):
            for place, (key, (color, marker, face)) in enumerate(looks.items()):
                points = [row for row in own if (row["regularizer"], row["method"]) == key and row[metric] is not None]
                y = [sets.index(row["rows_of"]) + 0.5 * (place / max(1, len(looks) - 1) - 0.5) for row in points]
                x = [100 * row[metric] for row in points]
                label = f"{key[1]}, {key[0]}"
                axes.plot(x, y, marker, color=color, markerfacecolor=face, markersize=6, label=label, linestyle="none")
            if metric != "mean_confidence":
                for index, name in enumerate(sets):
                    if all(row[metric] is None for row in own if row["rows_of"] == name):
                        text = "no answers"
                        axes.text(
                            0.5,
                            index,
                            text,
                            transform=axes.get_yaxis_transform(),
                            ha="center",
                            va="center",
                            color="0.5",
                            fontsize="small",
                        )
            axes.set_title(title, fontsize="medium")
            axes.grid(axis="x", color="0.92")
            axes.margins(x=0.1)
        axes_line[0].set_yticks(range(len(sets)), [f"{task} (trained on)", *sets[1:]])
        axes_line[0].set_ylim(len(sets) - 0.5, -0.5)
    shared_legend(figure, grid[0][2], 2)


def _shift_sentence(rows: Rows) -> str:
    parts = []
    for name in dict.fromkeys(row["rows_of"] for row in rows):
        at = [row for row in rows if row["rows_of"] == name]
        told = []
        for kind in dict.fromkeys(row["regularizer"] for row in at):
            one, ensemble = (
                next(r for r in at if (r["regularizer"], r["method"]) == (kind, m)) for m in (ONE, ENSEMBLE)
            )
            keys = (
                {"mean confidence": "mean_confidence"}
                if one["accuracy"] is None
                else {"accuracy": "accuracy", "ECE": "ece"}
            )
            changes = [f"{name} {percent(one[key])} to {percent(ensemble[key])}" for name, key in keys.items()]
            told.append(f"{', '.join(changes)} ({kind})")
        answers = " (no answers)" if at[0]["accuracy"] is None else ""
        parts.append(f"on {name}{answers}: {', '.join(told)}")
    return "from one LoRA to the ensemble " + "; ".join(parts)


def ood_table(runs: Sequence[FinishedRun]) -> list[Row]:
    """One row an OOD set, point, method and score: `task`, `rows_of`, `regularizer`, `method`, `score`, `auroc`."""
    rows: list[Row] = []
    for run in runs:
        for name, found in run.entry["ood"].items():
            for method, values in ((ONE, found["member_mean"]["auroc"]), (ENSEMBLE, found["auroc"])):
                for score in SCORES:
                    if score in values:
                        row: Row = {"task": run.task, "rows_of": name, "regularizer": regularizer_label(run.settings)}
                        rows.append(row | {"method": method, "score": score, "auroc": values[score]})
    return rows


def draw_ood(figure: Figure, rows: Rows) -> None:
    """A panel an OOD set, a row of panels a task."""
    looks = _looks(rows)
    tasks = tasks_of(rows)
    columns = max(len({row["rows_of"] for row in own}) for own in tasks.values())
    figure.set_size_inches(max(6.4, 3.4 * columns), 3.2 * len(tasks) + 1.2)
    grid = figure.subplots(len(tasks), columns, squeeze=False, sharey=True)
    for (task, own), axes_line in zip(tasks.items(), grid, strict=True):
        sets = list(dict.fromkeys(row["rows_of"] for row in own))
        for axes in axes_line[len(sets) :]:
            axes.set_axis_off()
        for axes, name in zip(axes_line, sets, strict=False):
            axes.axhline(0.5, color="0.6", linestyle=":")
            for place, (key, (color, marker, face)) in enumerate(looks.items()):
                points = [row for row in own if row["rows_of"] == name and (row["regularizer"], row["method"]) == key]
                x = [list(SCORES).index(row["score"]) + 0.5 * (place / max(1, len(looks) - 1) - 0.5) for row in points]
                y = [row["auroc"] for row in points]
                label = f"{key[1]}, {key[0]}"
                axes.plot(x, y, marker, color=color, markerfacecolor=face, markersize=6, label=label)
            axes.set_xticks(range(len(SCORES)), list(SCORES.values()), fontsize="small")
            axes.set(title=f"{task} against {name}", ylim=(0, 1), xlim=(-0.5, len(SCORES) - 0.5))
            axes.grid(axis="y", color="0.92")
        axes_line[0].set_ylabel("AUROC (0.5: chance)")
    shared_legend(figure, grid[0][0], 2)


def _ood_sentence(rows: Rows) -> str:
    parts = []
    for name in dict.fromkeys(row["rows_of"] for row in rows):
        at = [row for row in rows if row["rows_of"] == name and row["method"] == ENSEMBLE]
        best, worst = max(at, key=lambda row: row["auroc"]), min(at, key=lambda row: row["auroc"])
        told = [
            f"{row['auroc']:.2f} by {row['score'].replace('_', ' ')} ({row['regularizer']})" for row in (worst, best)
        ]
        parts.append(f"{name} from {told[0]} to {told[1]}")
    return "the ensemble's AUROC (0.5 is chance): " + "; ".join(parts)


def _looks(rows: Rows) -> dict[tuple[str, str], tuple[str, str, Any]]:
    """Color, marker and face of each regularizer and method: filled for the ensemble."""
    kinds = list(dict.fromkeys(row["regularizer"] for row in rows))
    colors = {True: (SINGLE_COLOR, ENSEMBLE_COLOR)}
    looks: dict[tuple[str, str], tuple[str, str, Any]] = {}
    for i, kind in enumerate(kinds):
        one, ensemble = colors.get(len(kinds) == 1, (PALETTE[i % 7], PALETTE[i % 7]))
        looks |= {(kind, ONE): (one, MARKERS[i % 7], "none"), (kind, ENSEMBLE): (ensemble, MARKERS[i % 7], ensemble)}
    return looks


SHIFT = PaperFigure(shift_table, draw_shift, lambda rows: per_task(rows, _shift_sentence))
OOD = PaperFigure(ood_table, draw_ood, lambda rows: per_task(rows, _ood_sentence))
