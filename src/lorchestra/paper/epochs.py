"""Fig. 3: accuracy, NLL and ECE by epoch, with and without weight decay, of one LoRA and of the ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lorchestra.paper.page import PALETTE, PaperFigure, Row, Rows, panels_of_metrics, per_task, percent, scaled
from lorchestra.paper.results import (
    METRICS,
    FinishedRun,
    ensemble_metrics,
    mean_member,
    member_metrics,
    regularizer_label,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ONE, ENSEMBLE = "one LoRA (mean of members)", "ensemble"


def table(runs: Sequence[FinishedRun]) -> list[Row]:
    """One row an epoch, point and method: `task`, `regularizer`, `method`, `epoch` (0 is the base), metrics, and the
    lowest and highest of a single member."""
    rows: list[Row] = []
    for run in runs:
        base = run.baseline("base_zero_shot")
        for epoch, found in enumerate([base, *run.epochs]):
            if found is None:
                continue
            members = member_metrics(found)
            for method, values in ((ONE, mean_member(found)), (ENSEMBLE, ensemble_metrics(found))):
                row: Row = {"task": run.task, "regularizer": regularizer_label(run.settings), "method": method}
                row |= {"epoch": epoch, **values}
                for metric in METRICS:
                    of_members = [one[metric] for one in members] if method == ONE else [values[metric]]
                    row |= {f"{metric}_lowest": min(of_members), f"{metric}_highest": max(of_members)}
                rows.append(row)
    return rows


def draw(figure: Figure, rows: Rows) -> None:
    """Three panels a task."""
    panels_of_metrics(figure, rows, "epoch (0: the base)", 2, _draw_panel)


def _draw_panel(axes: Any, metric: str, rows: Rows, i: int, kind: str) -> None:
    color = PALETTE[i % 7]
    for method, style, marker in ((ONE, "--", "s"), (ENSEMBLE, "-", "o")):
        points = [row for row in rows if row["method"] == method]
        x = [row["epoch"] for row in points]
        y, low, high = (
            [scaled(metric, row[f"{metric}{end}"]) for row in points] for end in ("", "_lowest", "_highest")
        )
        axes.plot(x, y, style, color=color, marker=marker, markersize=3.5, label=f"{method}, {kind}")
        if method == ONE:
            axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)


def _sentence(rows: Rows) -> str:
    parts = []
    for kind in dict.fromkeys(row["regularizer"] for row in rows):
        told = []
        for method in (ONE, ENSEMBLE):
            points = [row for row in rows if row["regularizer"] == kind and row["method"] == method and row["epoch"]]
            best = min(points, key=lambda row: row["nll"])
            last = points[-1]
            told.append(
                f"{method} NLL {best['nll']:.3f} at best (epoch {best['epoch']}) and {last['nll']:.3f} at the end,"
                f" accuracy {percent(last['accuracy'])}, ECE {percent(points[0]['ece'])} after epoch 1 and"
                f" {percent(last['ece'])} at the end"
            )
        parts.append(f"{kind}: {'; '.join(told)}")
    return " | ".join(parts)


EPOCHS = PaperFigure(table, draw, lambda rows: per_task(rows, _sentence))
