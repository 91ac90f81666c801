"""Where members' diversity comes from (randomness, start of A and B), and what it has to do with calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lorchestra.metrics.diversity import pairwise_correlation, pairwise_kl, spearman, update_cosine
from lorchestra.metrics.predictive import disagreement
from lorchestra.paper.page import (
    ENSEMBLE_COLOR,
    MARKERS,
    PALETTE,
    SINGLE_COLOR,
    TITLES,
    PaperFigure,
    Row,
    Rows,
    per_task,
    percent,
    scaled,
    shared_legend,
)
from lorchestra.paper.page import panels as panel_lines
from lorchestra.paper.results import METRICS, FinishedRun, both, regularizer_label, tasks_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = {
    "disagreement": "disagreement\n(share of pairs)",
    "pairwise_kl": "pairwise KL\n(nats)",
    "correlation": "correlation of\nprobabilities",
    "update_cosine": "cosine of\nupdates BA",
}
"""Of correlation and cosine, less is more diverse."""


def randomness_of(settings: Mapping[str, Any]) -> str:
    """What makes a point's members different."""
    alike = bool(settings.get("adapt.same_init")) or settings.get("adapt.init_lora_weights") == "pissa"
    return {
        (False, "own"): "both",
        (False, "same"): "initialization only",
        (False, "bootstrap"): "both and bootstrap",
        (True, "own"): "shuffling only",
        (True, "same"): "neither",
        (True, "bootstrap"): "bootstrap only",
    }[alike, str(settings.get("adapt.order", "own"))]


def start_of(settings: Mapping[str, Any]) -> str:
    """How a point's A and B start."""
    how = settings.get("adapt.init_lora_weights", True)
    scale, std_b = settings.get("adapt.init_scale", 1), settings.get("adapt.init_std_b", 0)
    told = "uniform" if how is True else str(how)
    return told + (f" x {scale:g}" if scale != 1 else "") + (f", B normal {std_b:g}" if std_b else "")


def diversity_of(run: FinishedRun) -> dict[str, float]:
    """`MEASURES` of a run's members on the test rows."""
    log_probs_MEC = run.test.log_probs_MEC
    return {
        "disagreement": float(disagreement(log_probs_MEC).mean()),
        "pairwise_kl": float(pairwise_kl(log_probs_MEC).mean()),
        "correlation": pairwise_correlation(log_probs_MEC),
        "update_cosine": update_cosine(run.updates()),
    }


def table(runs: Sequence[FinishedRun], what: Mapping[str, Callable[[Mapping[str, Any]], str]]) -> list[Row]:
    """One row a point: `task`, the columns of `what` made of its settings, `regularizer`, diversity and metrics.

    Metrics are of one LoRA (mean of members) and of the ensemble.
    """
    return [
        {
            "task": run.task,
            **{column: name(run.settings) for column, name in what.items()},
            "regularizer": regularizer_label(run.settings),
            **diversity_of(run),
            **both(run.test),
        }
        for run in runs
    ]


def draw_points(figure: Figure, rows: Rows, column: str) -> None:
    """Measures of diversity and metrics, a line of dots a point."""
    tasks = tasks_of(rows)
    figure.set_size_inches(14.5, 1.6 + sum(0.34 * len(own) + 0.7 for own in tasks.values()))
    grid = figure.subplots(len(tasks), 7, squeeze=False, sharey="row")
    for (task, own), line in zip(tasks.items(), grid, strict=True):
        names = [f"{row[column]}, {row['regularizer']}" for row in own]
        for axes, (key, title) in zip(line, MEASURES.items(), strict=False):
            axes.plot([row[key] for row in own], range(len(own)), "D", color=PALETTE[2], label="members' diversity")
            axes.set_title(title, fontsize="small")
        for axes, metric in zip(line[4:], METRICS, strict=True):
            for who, color, marker, name in (
                ("one", SINGLE_COLOR, "s", "one LoRA (mean of members)"),
                ("ensemble", ENSEMBLE_COLOR, "o", "ensemble"),
            ):
                x = [scaled(metric, row[f"{who}_{metric}"]) for row in own]
                axes.plot(x, range(len(own)), marker, color=color, label=name)
            axes.set_title(TITLES[metric], fontsize="small")
        for axes in line:
            axes.grid(axis="x", color="0.92")
            axes.margins(x=0.15)
            axes.tick_params(labelsize="x-small")
            axes.locator_params(axis="x", nbins=4)
        line[0].set_yticks(range(len(own)), names, fontsize="small")
        line[0].set_ylim(len(own) - 0.4, -0.6)
        line[0].set_ylabel(task)
    shared_legend(figure, grid[0][4], 2)


def _points_sentence(rows: Rows, column: str) -> str:
    told = [
        f"{row[column]}, {row['regularizer']}: disagreement {percent(row['disagreement'])}, cosine of updates"
        f" {row['update_cosine']:.2f}, NLL {row['one_nll']:.3f} to {row['ensemble_nll']:.3f}, ECE"
        f" {percent(row['one_ece'])} to {percent(row['ensemble_ece'])}"
        for row in rows
    ]
    return "from one LoRA to the ensemble | " + " | ".join(told)


def draw_relation(figure: Figure, rows: Rows) -> None:
    """Calibration gained by averaging against each measure of diversity, a dot a point."""
    kinds = list(dict.fromkeys(row["regularizer"] for row in rows))
    lines = panel_lines(figure, rows, len(MEASURES), (3.2, 3.2))
    for task, own, grid in lines:
        for axes, (key, title) in zip(grid, MEASURES.items(), strict=True):
            for i, kind in enumerate(kinds):
                points = [row for row in own if row["regularizer"] == kind]
                x, y = [row[key] for row in points], [100 * ece_gain(row) for row in points]
                axes.plot(x, y, MARKERS[i % 7], color=PALETTE[i % 7], label=kind, linestyle="none")
            axes.axhline(0, color="0.6", linewidth=0.8)
            axes.set_title(f"Spearman: {_told(relation(own, key))}", fontsize="medium")
            axes.set_xlabel(title)
            axes.grid(color="0.92")
            axes.margins(0.12)
            axes.locator_params(axis="x", nbins=4)
        grid[0].set_ylabel(f"{task}: ECE of one LoRA\nminus the ensemble's (points)")
    shared_legend(figure, lines[0][2][0], 4)


def ece_gain(row: Mapping[str, Any]) -> float:
    """ECE of one LoRA minus that of the ensemble."""
    return float(row["one_ece"] - row["ensemble_ece"])


def relation(rows: Rows, measure: str) -> float:
    """Rank correlation over points of a measure of diversity and the gain in ECE."""
    return spearman(np.array([row[measure] for row in rows]), np.array([ece_gain(row) for row in rows]))


def _told(correlation: float) -> str:
    return "undefined (all equal)" if np.isnan(correlation) else f"{correlation:+.2f}"


def _relation_sentence(rows: Rows) -> str:
    told = ", ".join(f"{_told(relation(rows, key))} with {key.replace('_', ' ')}" for key in MEASURES)
    return f"over {len(rows)} settings, the rank correlation of the ECE gained by averaging is {told}"


def _by(column: str, name: Callable[[Mapping[str, Any]], str]) -> PaperFigure:
    return PaperFigure(
        partial(table, what={column: name}),
        partial(draw_points, column=column),
        lambda rows: per_task(rows, lambda own: _points_sentence(own, column)),
    )


RANDOMNESS = _by("random", randomness_of)
START = _by("start", start_of)
DIVERSITY = PaperFigure(
    partial(table, what={"random": randomness_of, "start": start_of}),
    draw_relation,
    lambda rows: per_task(rows, _relation_sentence),
)
