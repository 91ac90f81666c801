"""Fig. 1: how confident are wrong answers? The few-shot base, one LoRA, the ensemble under strong weight decay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lorchestra.core.metrics import score_rows
from lorchestra.core.predictive import FloatArray, mixture_log_probs
from lorchestra.errors import TrainingError
from lorchestra.report.paper.page import (
    BASE_COLOR,
    ENSEMBLE_COLOR,
    SINGLE_COLOR,
    PaperFigure,
    Row,
    Rows,
    panels,
    per_task,
    percent,
)
from lorchestra.report.paper.runs import FinishedRun, regularizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW_SHOT, ONE, ENSEMBLE = "few-shot base", "one LoRA (members pooled)", "ensemble, decay on B"
_STYLES = {FEW_SHOT: (BASE_COLOR, ":"), ONE: (SINGLE_COLOR, "--"), ENSEMBLE: (ENSEMBLE_COLOR, "-")}
_LEAST_BANDWIDTH = 0.01
_GRID = np.linspace(0, 1, 512)


def table(runs: Sequence[FinishedRun]) -> list[Row]:
    """One row an answer: `task`, `method`, `id`, `confidence` (largest probability) and `correct`.

    Raises:
        TrainingError: a task lacks its plain or its decayed run.
    """
    rows: list[Row] = []
    for task in dict.fromkeys(run.task for run in runs):
        own = {regularizer(run.settings)[0]: run for run in runs if run.task == task}
        if not own.keys() >= {"none", "decay on B"}:
            raise TrainingError(f"fig1, {task}: needs a run without regularizer and one with decay on B; one failed")
        plain, decayed = own["none"].test, own["decay on B"].test
        few_shot = own["none"].baseline("base_few_shot")
        answers = {} if few_shot is None else {FEW_SHOT: [mixture_log_probs(few_shot.log_probs_MEC)]}
        answers |= {ONE: list(plain.log_probs_MEC), ENSEMBLE: [mixture_log_probs(decayed.log_probs_MEC)]}
        for method, distributions in answers.items():
            for log_probs_EC in distributions:
                scores = score_rows(log_probs_EC, plain.labels)
                rows += [
                    {"task": task, "method": method, "id": id, "confidence": float(c), "correct": int(right)}
                    for id, c, right in zip(plain.ids, scores.confidence, scores.correct, strict=True)
                ]
    return rows


def kernel_density(samples: FloatArray, grid: FloatArray) -> FloatArray:
    """Gaussian kernel density of samples in [0, 1] on a grid in it, mirrored at both ends so that it integrates to 1.

    The bandwidth is Silverman's rule of thumb, 0.9 min(standard deviation, IQR / 1.34) n^(-1/5), at least 0.01.

    Source: Silverman, Density Estimation for Statistics and Data Analysis (1986), sections 2.10 and 3.4.
    """
    quarter, three_quarters = np.quantile(samples, [0.25, 0.75])
    spread = min(float(samples.std(ddof=1)) if len(samples) > 1 else 0.0, (three_quarters - quarter) / 1.34)
    width = max(0.9 * spread * len(samples) ** -0.2, _LEAST_BANDWIDTH)
    density = np.zeros_like(grid)
    for mirrored in (samples, -samples, 2 - samples):
        density += np.exp(-0.5 * np.square((grid[:, None] - mirrored) / width)).sum(axis=1)
    return np.asarray(density / (len(samples) * width * np.sqrt(2 * np.pi)))


def draw(figure: Figure, rows: Rows) -> None:
    """One panel a task."""
    for task, own, (axes,) in panels(figure, rows, 1, (6.4, 3.6)):
        for method, (color, style) in _STYLES.items():
            wrong = _wrong(own, method)
            if len(wrong):
                label = f"{method}: {percent(_accuracy(own, method))} right"
                density = kernel_density(wrong, _GRID)
                axes.plot(_GRID, density, style, color=color, label=label, linewidth=1.8)
                axes.fill_between(_GRID, density, color=color, alpha=0.12, linewidth=0)
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
    for method in dict.fromkeys(row["method"] for row in rows):
        wrong = _wrong(rows, method)
        mean = f"{wrong.mean():.2f}" if len(wrong) else "none"
        parts.append(f"{mean} for {method} ({percent(_accuracy(rows, method))} right)")
    return "mean confidence of wrong answers: " + ", ".join(parts)


def _wrong(rows: Rows, method: str) -> FloatArray:
    return np.array([row["confidence"] for row in rows if row["method"] == method and not row["correct"]])


def _accuracy(rows: Rows, method: str) -> float:
    return float(np.mean([row["correct"] for row in rows if row["method"] == method]))


CONFIDENCE = PaperFigure(table, draw, lambda rows: per_task(rows, _sentence))
