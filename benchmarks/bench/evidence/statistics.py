"""Metrics of the arms, and intervals of their differences over rows and seeds together.

Every resample draws test rows, the same for all arms, sizes and seeds of a task, and then seeds. Tasks are fixed: the
mean over tasks is about these tasks.

Axes: `E` example, `R` resample, `S` seed.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lorchestra.metrics.predictive import FloatArray
from lorchestra.metrics.scores import RESAMPLED, RowScores, resampled_metrics

from .arms import Arm
from .trainings import Cell

SHOWN = ("accuracy", "nll", "aurc", "automated_5", "confident_errors")
RESAMPLES = 1000


@dataclass(frozen=True)
class Difference:
    """A mean difference of a metric, with its 95 % interval."""

    value: float
    low: float
    high: float
    num_cells: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval is on one side of 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class CellMetrics:
    """A cell's metrics by arm: on its test rows, and per resample `[R]`, both means over the arm's replicates."""

    values: Mapping[str, Mapping[str, float]]
    draws: Mapping[str, Mapping[str, FloatArray]]


def measure(cell: Cell, arms: Sequence[Arm]) -> CellMetrics:
    """All metrics of a cell's arms."""
    counts_RE = _row_counts(cell.task, len(arms[0].replicates[0].test_labels))
    values, draws = {}, {}
    for arm in arms:
        replicates = arm.scores()
        once = np.ones((1, counts_RE.shape[1]))
        values[arm.key] = {key: float(value[0]) for key, value in _mean(replicates, once).items()}
        draws[arm.key] = _mean(replicates, counts_RE)
    return CellMetrics(values, draws)


def _row_counts(task: str, num_rows: int) -> FloatArray:
    """How often each resample holds each row, `[R, E]`: the same for all cells of a task."""
    generator = np.random.default_rng(zlib.crc32(task.encode()))
    drawn_RE = generator.integers(num_rows, size=(RESAMPLES, num_rows)) + num_rows * np.arange(RESAMPLES)[:, None]
    return np.bincount(drawn_RE.ravel(), minlength=RESAMPLES * num_rows).reshape(RESAMPLES, num_rows).astype(float)


def _mean(replicates: Sequence[RowScores], counts_RE: FloatArray) -> dict[str, FloatArray]:
    every = [resampled_metrics(rows, counts_RE) for rows in replicates]
    return {key: np.mean([one[key] for one in every], axis=0) for key in RESAMPLED}


def difference(
    cells: Mapping[Cell, CellMetrics], arm: str, reference: str, metric: str, tasks: Sequence[str], size: int
) -> Difference | None:
    """Mean over tasks of the arm's metric minus the reference's, None where a task has no cell with both.

    Per resample, rows and seeds are drawn per task; seeds of a task count equally.
    """
    points: list[float] = []
    total_R = np.zeros(RESAMPLES)
    num_cells = 0
    for task in tasks:
        chosen = [c for cell, c in cells.items() if (cell.task, cell.size) == (task, size)]
        both = [c for c in chosen if arm in c.values and reference in c.values]
        if not both:
            return None
        num_cells += len(both)
        points.append(float(np.mean([c.values[arm][metric] - c.values[reference][metric] for c in both])))
        draws_SR = np.stack([c.draws[arm][metric] - c.draws[reference][metric] for c in both])
        seeds_RS = np.random.default_rng([zlib.crc32(task.encode()), size]).integers(
            len(both), size=(RESAMPLES, len(both))
        )
        total_R += draws_SR[seeds_RS, np.arange(RESAMPLES)[:, None]].mean(axis=1)
    draws_R = total_R / len(tasks)
    value = float(np.mean(points))
    low, high = np.percentile(draws_R, [2.5, 97.5])
    return Difference(value, min(float(low), value), max(float(high), value), num_cells)
