"""Sources of member diversity (randomness, initialization of A and B), and its relation to calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from lorchestra.metrics.diversity import pairwise_correlation, pairwise_kl, spearman, update_cosine
from lorchestra.metrics.predictive import disagreement
from lorchestra.paper.page import (
    MARKERS,
    PALETTE,
    STYLES,
    TITLES,
    PaperFigure,
    panels,
    per_task,
    percent,
    scaled,
    shared_legend,
)
from lorchestra.paper.recipes import Settings
from lorchestra.paper.results import METRICS, FinishedRun, Row, Rows, both, by_task, regularizer_label, unique

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = {
    "disagreement": "disagreement\n(share of pairs)",
    "pairwise_kl": "pairwise KL\n(nats)",
    "correlation": "correlation of\nprobabilities",
    "update_cosine": "cosine of\nupdates BA",
}
"""Low correlation and cosine mean high diversity."""


def randomness_of(settings: Settings) -> str:
    """What differs between a point's members."""
    same_init = bool(settings.get("adapt.same_init")) or settings.get("adapt.init_lora_weights") == "pissa"
    return {
        (False, "own"): "both",
        (False, "same"): "initialization only",
        (False, "bootstrap"): "both and bootstrap",
        (False, "folds"): "both and folds",
        (True, "own"): "shuffling only",
        (True, "same"): "neither",
        (True, "bootstrap"): "bootstrap only",
        (True, "folds"): "shuffling and folds",
    }[same_init, str(settings.get("adapt.order", "own"))]


def init_of(settings: Settings) -> str:
    """How a point's A and B are initialized."""
    init = settings.get("adapt.init_lora_weights", True)
    scale, std_b = settings.get("adapt.init_scale", 1), settings.get("adapt.init_std_b", 0)
    name = "uniform" if init is True else str(init)
    return name + (f" x {scale:g}" if scale != 1 else "") + (f", B normal {std_b:g}" if std_b else "")


def diversity_of(run: FinishedRun) -> dict[str, float]:
    """`MEASURES` of a run's members on the test rows."""
    log_probs_MEC = run.test.log_probs_MEC
    return {
        "disagreement": float(disagreement(log_probs_MEC).mean()),
        "pairwise_kl": float(pairwise_kl(log_probs_MEC).mean()),
        "correlation": pairwise_correlation(log_probs_MEC),
        "update_cosine": update_cosine(run.updates()),
    }


def table(runs: Sequence[FinishedRun], columns: Mapping[str, Callable[[Settings], str]]) -> list[Row]:
    """One row per point: `task`, `columns` computed from its settings, `regularizer`, diversity and metrics.

    Metrics are of one LoRA (mean of members) and of the ensemble.
    """
    return [
        {
            "task": run.task,
            **{column: name(run.settings) for column, name in columns.items()},
            "regularizer": regularizer_label(run.settings),
            **diversity_of(run),
            **both(run.test),
        }
        for run in runs
    ]


def draw_points(figure: Figure, rows: Rows, column: str) -> None:
    """Measures of diversity and metrics, one horizontal line of dots per point."""
    tasks = by_task(rows)
    figure.set_size_inches(14.5, 1.6 + sum(0.34 * len(of_task) + 0.7 for of_task in tasks.values()))
    grid = figure.subplots(len(tasks), 7, squeeze=False, sharey="row")
    for (task, of_task), line in zip(tasks.items(), grid, strict=True):
        y = range(len(of_task))
        names = [f"{row[column]}, {row['regularizer']}" for row in of_task]
        for axes, (key, title) in zip(line, MEASURES.items(), strict=False):
            axes.plot([row[key] for row in of_task], y, "D", color=PALETTE[2], label="members' diversity")
            axes.set_title(title, fontsize="small")
        for axes, metric in zip(line[4:], METRICS, strict=True):
            for who, (color, marker, label) in STYLES.items():
                x = [scaled(metric, row[f"{who}_{metric}"]) for row in of_task]
                axes.plot(x, y, marker, color=color, label=label)
            axes.set_title(TITLES[metric], fontsize="small")
        for axes in line:
            axes.grid(axis="x", color="0.92")
            axes.margins(x=0.15)
            axes.tick_params(labelsize="x-small")
            axes.locator_params(axis="x", nbins=4)
        line[0].set_yticks(y, names, fontsize="small")
        line[0].set_ylim(len(of_task) - 0.4, -0.6)
        line[0].set_ylabel(task)
    shared_legend(grid[0][4], 2)


def _points_sentence(rows: Rows, column: str) -> str:
    parts = [
        f"{row[column]}, {row['regularizer']}: disagreement {percent(row['disagreement'])}, cosine of updates"
        f" {row['update_cosine']:.2f}, NLL {row['one_nll']:.3f} to {row['ensemble_nll']:.3f}, ECE"
        f" {percent(row['one_ece'])} to {percent(row['ensemble_ece'])}"
        for row in rows
    ]
    return "from one LoRA to the ensemble | " + " | ".join(parts)


def draw_relation(figure: Figure, rows: Rows) -> None:
    """Reduction of ECE by averaging against each measure of diversity, one dot per point."""
    names = unique(rows, "regularizer")
    for task, of_task, axes_of_task in panels(figure, rows, len(MEASURES), (3.2, 3.2)):
        for axes, (key, title) in zip(axes_of_task, MEASURES.items(), strict=True):
            for i, name in enumerate(names):
                points = [row for row in of_task if row["regularizer"] == name]
                x, y = [row[key] for row in points], [100 * _ece_gain(row) for row in points]
                axes.plot(x, y, MARKERS[i % 7], color=PALETTE[i % 7], label=name, linestyle="none")
            axes.axhline(0, color="0.6", linewidth=0.8)
            axes.set_title(f"Spearman: {_correlation(of_task, key)}", fontsize="medium")
            axes.set_xlabel(title)
            axes.grid(color="0.92")
            axes.margins(0.12)
            axes.locator_params(axis="x", nbins=4)
        axes_of_task[0].set_ylabel(f"{task}: ECE of one LoRA\nminus the ensemble's (points)")
    shared_legend(figure.axes[0], 4)


def _ece_gain(row: Row) -> float:
    return float(row["one_ece"] - row["ensemble_ece"])


def _correlation(rows: Rows, measure: str) -> str:
    """Rank correlation, over points, of a measure of diversity with the reduction of ECE."""
    correlation = spearman(np.array([row[measure] for row in rows]), np.array([_ece_gain(row) for row in rows]))
    return "undefined (all equal)" if np.isnan(correlation) else f"{correlation:+.2f}"


def _relation_sentence(rows: Rows) -> str:
    parts = ", ".join(f"{_correlation(rows, key)} with {key.replace('_', ' ')}" for key in MEASURES)
    return f"over {len(rows)} settings, the rank correlation of the ECE gained by averaging is {parts}"


def _by(column: str, name: Callable[[Settings], str]) -> PaperFigure:
    return PaperFigure(
        partial(table, columns={column: name}),
        partial(draw_points, column=column),
        lambda rows: per_task(rows, lambda of_task: _points_sentence(of_task, column)),
    )


RANDOMNESS = _by("random", randomness_of)
INIT = _by("start", init_of)
DIVERSITY = PaperFigure(
    partial(table, columns={"random": randomness_of, "start": init_of}),
    draw_relation,
    lambda rows: per_task(rows, _relation_sentence),
)
