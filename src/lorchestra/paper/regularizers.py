"""Fig. 2 and the regularizer grid: accuracy and calibration of one LoRA and of the ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorchestra.metrics.intervals import COMPARED
from lorchestra.paper.page import (
    MARKERS,
    PALETTE,
    TITLES,
    PaperFigure,
    panels,
    per_task,
    percent,
    plain_log_scale,
    scaled,
    shared_legend,
)
from lorchestra.paper.results import METRICS, ONE, FinishedRun, Row, Rows, both, regularizer, unique

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES = {"ensemble": "-", "one": "--"}


def table(runs: Sequence[FinishedRun]) -> list[Row]:
    """One row per point: `task`, `regularizer`, `strength`, metrics of one LoRA (mean of members) and of the ensemble.

    `gain_*` are the ends of 95 % intervals of the ensemble minus the mean member, paired by test row; no interval of
    a difference of ECEs has correct coverage.
    """
    rows: list[Row] = []
    for run in runs:
        name, strength = regularizer(run.settings)
        row: Row = {"task": run.task, "regularizer": name, "strength": strength, **both(run.test)}
        gains = run.entry["intervals"].get("ensemble_minus_member_mean", {})
        for metric in (metric for metric in METRICS if metric in COMPARED):
            low, high = gains.get(metric) or (None, None)
            row |= {f"gain_{metric}_low": low, f"gain_{metric}_high": high}
        rows.append(row)
    return rows


def draw_arrows(figure: Figure, rows: Rows) -> None:
    """One panel per task; color by regularizer, opacity by strength."""
    for task, of_task, (axes,) in panels(figure, rows, 1, (6.8, 4.2)):
        for i, name in enumerate(unique(rows, "regularizer")):
            color, marker = PALETTE[i % 7], MARKERS[i % 7]
            points = _by_strength(of_task, name)
            for number, row in enumerate(points, 1):
                alpha = 0.3 + 0.7 * number / len(points)
                (x, y), (end_x, end_y) = (
                    [100 * row[f"{who}_{metric}"] for metric in ("accuracy", "ece")] for who in ("one", "ensemble")
                )
                arrow = {"arrowstyle": "-|>", "color": color, "alpha": alpha, "lw": 1.8, "shrinkA": 0, "shrinkB": 0}
                axes.annotate("", (end_x, end_y), (x, y), arrowprops=arrow)
                label = _label(name, points) if number == len(points) else None
                axes.plot(x, y, marker, color=color, alpha=alpha, markersize=6, label=label, markeredgewidth=0)
                axes.plot(end_x, end_y, alpha=0)  # annotations do not extend the axes
        axes.margins(0.08)
        axes.set(
            xlabel="accuracy (%)",
            ylabel="ECE (%), lower is better",
            title=f"{task}: from one LoRA (mean of members) to the ensemble",
        )
        axes.legend(frameon=False, fontsize="small", title="regularizer (fainter: weaker)", title_fontsize="small")
        axes.grid(color="0.92")


def _by_strength(rows: Rows, name: str) -> Rows:
    return sorted((row for row in rows if row["regularizer"] == name), key=lambda row: row["strength"])


def _label(name: str, points: Rows) -> str:
    strengths = ", ".join(f"{row['strength']:g}" for row in points)
    return name if name == "none" else f"{name}: {strengths}"


def draw_strengths(figure: Figure, rows: Rows) -> None:
    """Metrics against strength, a line per regularizer: solid for the ensemble, dashed for one LoRA."""
    names = [name for name in unique(rows, "regularizer") if name != "none"]
    for task, of_task, axes_of_task in panels(figure, rows, 3, (4.0, 3.4)):
        for axes, metric in zip(axes_of_task, METRICS, strict=True):
            for row in of_task:
                if row["regularizer"] == "none":
                    for who, style in _LINES.items():
                        label = "none, ensemble" if who == "ensemble" else f"none, {ONE}"
                        value = scaled(metric, row[f"{who}_{metric}"])
                        axes.axhline(value, color="0.55", linestyle=style, linewidth=1, label=label)
            for i, name in enumerate(names):
                _draw_strengths_of(axes, metric, _by_strength(of_task, name), i, name)
            plain_log_scale(axes.xaxis)
            axes.set(xlabel="strength", title=f"{task}: {TITLES[metric]}")
            axes.grid(color="0.92")
    shared_legend(figure.axes[0], 4)


def _draw_strengths_of(axes: Axes, metric: str, points: Rows, i: int, name: str) -> None:
    x = [row["strength"] for row in points]
    for who, style in _LINES.items():
        y = [scaled(metric, row[f"{who}_{metric}"]) for row in points]
        label = f"{name}, ensemble" if who == "ensemble" else f"{name}, one LoRA"
        axes.plot(x, y, style, color=PALETTE[i % 7], marker=MARKERS[i % 7], markersize=4.5, label=label)


def _arrows_sentence(rows: Rows) -> str:
    better = sum(
        row["ensemble_accuracy"] > row["one_accuracy"] and row["ensemble_ece"] < row["one_ece"] for row in rows
    )
    accurate = sum((row["gain_accuracy_low"] or 0) > 0 for row in rows)
    return (
        f"{better} of {len(rows)} arrows point to higher accuracy and lower ECE; the 95 % interval of the difference in"
        f" accuracy is above 0 for {accurate}"
    )


def _strengths_sentence(rows: Rows) -> str:
    def named(row: Row) -> str:
        return "none" if row["regularizer"] == "none" else f"{row['regularizer']} {row['strength']:g}"

    nll, ece = (min(rows, key=lambda row: row[f"ensemble_{metric}"]) for metric in ("nll", "ece"))
    plain = next((row for row in rows if row["regularizer"] == "none"), None)
    reference = (
        ""
        if plain is None
        else f" (without regularizer {plain['ensemble_nll']:.3f} and {percent(plain['ensemble_ece'])})"
    )
    return (
        f"the ensemble's NLL is lowest with {named(nll)} ({nll['ensemble_nll']:.3f}), its ECE with {named(ece)}"
        f" ({percent(ece['ensemble_ece'])}){reference}"
    )


ARROWS = PaperFigure(table, draw_arrows, lambda rows: per_task(rows, _arrows_sentence))
STRENGTHS = PaperFigure(table, draw_strengths, lambda rows: per_task(rows, _strengths_sentence))
