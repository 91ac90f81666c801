"""Fig. 1: confidence of wrong answers of the few-shot base, one LoRA, and the ensemble with strong weight decay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lorchestra.errors import TrainingError
from lorchestra.metrics.density import kernel_density
from lorchestra.metrics.predictive import FloatArray, mixture_log_probs
from lorchestra.metrics.scores import score_rows
from lorchestra.paper.page import BASE_COLOR, PaperFigure, panels, per_task, percent
from lorchestra.paper.results import FinishedRun, Row, Rows, regularizer, unique
from lorchestra.report.figure import ENSEMBLE_COLOR, SINGLE_COLOR

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW_SHOT, ONE, ENSEMBLE = "few-shot base", "one LoRA (members pooled)", "ensemble, decay on B"
_STYLES = {FEW_SHOT: (BASE_COLOR, ":"), ONE: (SINGLE_COLOR, "--"), ENSEMBLE: (ENSEMBLE_COLOR, "-")}
_POINTS = 512


def table(runs: Sequence[FinishedRun]) -> list[Row]:
    """One row per answer: `task`, `method`, `id`, `choices`, `confidence` (largest probability) and `correct`.

    Raises:
        TrainingError: a task lacks its run with or without weight decay.
    """
    rows: list[Row] = []
    for task in dict.fromkeys(run.task for run in runs):
        by_name = {regularizer(run.settings)[0]: run for run in runs if run.task == task}
        if not by_name.keys() >= {"none", "decay on B"}:
            raise TrainingError(f"fig1, {task}: needs a run without regularizer and one with decay on B; one failed")
        plain, decayed = by_name["none"].test, by_name["decay on B"].test
        few_shot = by_name["none"].baseline("base_few_shot")
        answers = {} if few_shot is None else {FEW_SHOT: [mixture_log_probs(few_shot.log_probs_MEC)]}
        answers |= {ONE: list(plain.log_probs_MEC), ENSEMBLE: [mixture_log_probs(decayed.log_probs_MEC)]}
        for method, distributions in answers.items():
            for log_probs_EC in distributions:
                scores = score_rows(log_probs_EC, plain.labels)
                columns = zip(plain.ids, plain.num_choices, scores.confidence, scores.correct, strict=True)
                rows += [
                    {
                        "task": task,
                        "method": method,
                        "id": id,
                        "choices": int(choices),
                        "confidence": float(confidence),
                        "correct": int(right),
                    }
                    for id, choices, confidence, right in columns
                ]
    return rows


def draw(figure: Figure, rows: Rows) -> None:
    """One panel per task; the density starts at one over the largest number of choices, the lowest confidence."""
    for task, of_task, (axes,) in panels(figure, rows, 1, (6.4, 3.6)):
        low = 1 / max(row["choices"] for row in of_task)
        grid = np.linspace(low, 1, _POINTS)
        for method, (color, style) in _STYLES.items():
            wrong = _wrong(of_task, method)
            if len(wrong):
                label = f"{method}: {percent(_accuracy(of_task, method))} right"
                density = kernel_density(wrong, grid, low, 1.0)
                axes.plot(grid, density, style, color=color, label=label, linewidth=1.8)
                axes.fill_between(grid, density, color=color, alpha=0.12, linewidth=0)
        if not axes.lines:
            axes.text(0.5, 0.5, "no wrong answers", ha="center", va="center", transform=axes.transAxes)
        axes.set(
            xlim=(0, 1),
            ylim=(0, 1.4 * axes.get_ylim()[1]),  # room for the legend
            xlabel="confidence (largest probability) of wrong answers",
            ylabel="kernel density",
            title=task,
        )
        if axes.lines:
            axes.legend(loc="upper left", frameon=False, fontsize="small")


def _sentence(rows: Rows) -> str:
    parts = []
    for method in unique(rows, "method"):
        wrong = _wrong(rows, method)
        mean = f"{wrong.mean():.2f}" if len(wrong) else "none"
        parts.append(f"{mean} for {method} ({percent(_accuracy(rows, method))} right)")
    return "mean confidence of wrong answers: " + ", ".join(parts)


def _wrong(rows: Rows, method: str) -> FloatArray:
    return np.array([row["confidence"] for row in rows if row["method"] == method and not row["correct"]])


def _accuracy(rows: Rows, method: str) -> float:
    return float(np.mean([row["correct"] for row in rows if row["method"] == method]))


CONFIDENCE = PaperFigure(table, draw, lambda rows: per_task(rows, _sentence))
