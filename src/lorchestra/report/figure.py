"""The reliability figure: can the ensemble's confidence be trusted, and how sure is it when it is wrong?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lorchestra.errors import LorchestraError
from lorchestra.metrics.calibrator import Calibrates, pooled
from lorchestra.metrics.predictive import FloatArray
from lorchestra.metrics.scores import NUM_BINS, RowScores, bin_rows, score_rows
from lorchestra.store.atomic import atomic_path
from lorchestra.types import Predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SINGLE_COLOR, ENSEMBLE_COLOR = "#D55E00", "#0072B2"
"""Vermilion and blue of the Okabe-Ito palette, distinct for every kind of color vision; line styles differ as well."""

MAX_MEMBER_LINES = 8
"""With more members, their lines would hide the panel."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One distribution and its style; `members` are also drawn one by one, as thin lines."""

    name: str
    rows: RowScores
    color: str
    style: str
    marker: str
    members: Sequence[RowScores] = ()


def reliability_figure(predictions: Predictions, path: Path | str, calibration: Calibrates | None = None) -> None:
    """Write a PNG: reliability diagrams on the left, the confidence of wrong predictions on the right.

    "One LoRA" pools the rows of all members, each scored alone; the ensemble is their mixture, with the calibration if
    one is given. Bins of confidence are `(lo, hi]`, as for the ECE; the
    strip below the diagram shows the share of rows in each, so that empty and small bins are visible. The file is
    replaced atomically.

    Raises:
        LorchestraError: matplotlib is not installed.
        CheckpointError: the file cannot be written.
        ValueError: an answer is unknown (label -1).

    Source: arXiv 2310.00035, Fig. 1, for the confidence of wrong predictions.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LorchestraError("figures need matplotlib: pip install 'lorchestra[report]'") from error

    figure = Figure(figsize=(10, 5.3), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    _draw(figure, predictions, calibration)

    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def reliability(scores: RowScores, bins: int = NUM_BINS) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean confidence, accuracy and share of rows by bin of confidence, each `[bins]`; NaN, NaN and 0 where empty."""
    bin_E = bin_rows(scores.confidence, bins)
    counts = np.bincount(bin_E, minlength=bins).astype(np.float64)
    filled = np.where(counts > 0, counts, np.nan)
    mean_confidence = np.bincount(bin_E, weights=scores.confidence, minlength=bins) / filled
    accuracy = np.bincount(bin_E, weights=scores.correct, minlength=bins) / filled
    return mean_confidence, accuracy, counts / counts.sum()


def pool(members: Sequence[RowScores]) -> RowScores:
    """The rows of all members, one after the other."""
    return RowScores(
        **{field.name: np.concatenate([getattr(rows, field.name) for rows in members]) for field in fields(RowScores)}
    )


def _curves(predictions: Predictions, calibration: Calibrates | None) -> list[Curve]:
    """One LoRA and the ensemble, or the only member."""
    members = [score_rows(log_probs_EC, predictions.labels) for log_probs_EC in predictions.log_probs_MEC]
    ensemble = score_rows(pooled(predictions.log_probs_MEC, calibration), predictions.labels)
    if len(members) == 1:
        return [Curve("one LoRA (one member)", ensemble, ENSEMBLE_COLOR, "-", "o")]
    return [
        Curve("one LoRA (members pooled)", pool(members), SINGLE_COLOR, "--", "s", members),
        Curve("ensemble", ensemble, ENSEMBLE_COLOR, "-", "o"),
    ]


def _draw(figure: Figure, predictions: Predictions, calibration: Calibrates | None) -> None:
    sizes = f"examples: {predictions.num_examples}, members: {predictions.num_members}"
    figure.suptitle(f"{predictions.task} {predictions.split} ({sizes})", parse_math=False)
    grid = figure.add_gridspec(2, 2, height_ratios=(4, 1))
    diagram = figure.add_subplot(grid[0, 0])
    shares = figure.add_subplot(grid[1, 0], sharex=diagram)
    wrong = figure.add_subplot(grid[:, 1])
    curves = _curves(predictions, calibration)
    _draw_diagram(diagram, curves)
    _draw_shares(shares, curves)
    _draw_wrong(wrong, curves)
    # Below the panels, so that it hides no curve.
    figure.legend(*diagram.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)


def _draw_diagram(axes: Axes, curves: Sequence[Curve]) -> None:
    axes.plot([0, 1], [0, 1], color="0.4", linestyle=":", linewidth=1.2, label="calibrated")
    for curve in curves:
        if len(curve.members) <= MAX_MEMBER_LINES:
            for index, rows in enumerate(curve.members):
                label = "each member" if index == 0 else None
                axes.plot(*_filled_bins(rows), color=curve.color, alpha=0.35, linewidth=0.8, label=label)
    for curve in curves:
        axes.plot(
            *_filled_bins(curve.rows),
            color=curve.color,
            linestyle=curve.style,
            marker=curve.marker,
            markersize=5,
            clip_on=False,
            label=curve.name,
        )
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy (share right)", title="Reliability")
    axes.tick_params(labelbottom=False)


def _filled_bins(rows: RowScores) -> tuple[FloatArray, FloatArray]:
    """Mean confidence and accuracy of the bins with rows: lines skip empty bins."""
    mean_confidence, accuracy, share = reliability(rows)
    return mean_confidence[share > 0], accuracy[share > 0]


def _draw_shares(axes: Axes, curves: Sequence[Curve]) -> None:
    edges = np.linspace(0, 1, NUM_BINS + 1)
    width = 0.84 / NUM_BINS / len(curves)
    for position, curve in enumerate(curves):
        left = edges[:-1] + 0.08 / NUM_BINS + position * width
        axes.bar(left, 100 * reliability(curve.rows)[2], width, align="edge", color=curve.color)
    for edge in edges:
        axes.axvline(edge, color="0.9", linewidth=0.6, zorder=0)
    axes.set(xlabel="confidence (largest probability)", ylabel="rows (%)")


def _draw_wrong(axes: Axes, curves: Sequence[Curve]) -> None:
    edges = np.linspace(0, 1, NUM_BINS + 1).tolist()
    any_wrong = False
    for curve in curves:
        # Rounding can lift a probability above 1, where the histogram would drop it.
        wrong = np.minimum(curve.rows.confidence[curve.rows.correct == 0], 1.0)
        if not len(wrong):
            continue
        any_wrong = True
        axes.hist(wrong, edges, density=True, histtype="stepfilled", color=curve.color, alpha=0.15, linewidth=0)
        label = f"{curve.name}: {len(wrong)} wrong, mean {wrong.mean():.2f}"
        axes.hist(
            wrong,
            edges,
            density=True,
            histtype="step",
            color=curve.color,
            linestyle=curve.style,
            linewidth=1.8,
            label=label,
        )
    axes.set(
        xlim=(0, 1),
        xlabel="confidence (largest probability)",
        ylabel="density (per unit of confidence)",
        title="Confidence when wrong",
    )
    if any_wrong:
        axes.set_ylim(top=1.25 * axes.get_ylim()[1])  # room for the legend
        axes.legend(loc="upper left", fontsize="small", frameon=False)
    else:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no wrong predictions", ha="center", va="center", transform=axes.transAxes)
