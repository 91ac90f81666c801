"""Fig. 2 and the grid of regularizers: from one LoRA to the ensemble in accuracy and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lorchestra.metrics.intervals import COMPARED
from lorchestra.paper.page import (
    MARKERS,
    PALETTE,
    TITLES,
    PaperFigure,
    Row,
    Rows,
    panels,
    per_task,
    percent,
    plain_log_scale,
    scaled,
    shared_legend,
)
from lorchestra.paper.results import METRICS, FinishedRun, both, regularizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def table(runs: Sequence[FinishedRun]) -> list[Row]:
    """One row a point: `task`, `regularizer`, `strength`, metrics of one LoRA (mean of members) and of the ensemble.

    `gain_*` are the ends of 95 % intervals of the ensemble minus the mean member, paired by test row; differences of
    ECEs have none that covers.
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
    """One panel a task; color by regularizer, opacity by strength."""
    names = list(dict.fromkeys(row["regularizer"] for row in rows))
    looks = {name: (PALETTE[i % 7], MARKERS[i % 7]) for i, name in enumerate(names)}
    for task, own, (axes,) in panels(figure, rows, 1, (6.8, 4.2)):
        for name in names:
            color, marker = looks[name]
            points = sorted((row for row in own if row["regularizer"] == name), key=lambda row: row["strength"])
            for place, row in enumerate(points, 1):
                alpha = 0.3 + 0.7 * place / len(points)
                (x, y), (end_x, end_y) = (
                    [100 * row[f"{who}_{metric}"] for metric in ("accuracy", "ece")] for who in ("one", "ensemble")
                )
                arrow = {"arrowstyle": "-|>", "color": color, "alpha": alpha, "lw": 1.8, "shrinkA": 0, "shrinkB": 0}
                axes.annotate("", (end_x, end_y), (x, y), arrowprops=arrow)
                label = _label(name, points) if place == len(points) else None
                axes.plot(x, y, marker, color=color, alpha=alpha, markersize=6, label=label, markeredgewidth=0)
                axes.plot(end_x, end_y, alpha=0)  # arrows alone do not widen the axes
        axes.margins(0.08)
        axes.set(
            xlabel="accuracy (%)",
            ylabel="ECE (%), lower is better",
            title=f"{task}: from one LoRA (mean of members) to the ensemble",
        )
        axes.legend(frameon=False, fontsize="small", title="regularizer (fainter: weaker)", title_fontsize="small")
        axes.grid(color="0.92")


def _label(name: str, points: Rows) -> str:
    strengths = ", ".join(f"{row['strength']:g}" for row in points)
    return name if name == "none" else f"{name}: {strengths}"


def draw_strengths(figure: Figure, rows: Rows) -> None:
    """Metrics against strength, a line a regularizer; the ensemble's solid, one LoRA's dashed."""
    names = [name for name in dict.fromkeys(row["regularizer"] for row in rows) if name != "none"]
    lines = panels(figure, rows, 3, (4.0, 3.4))
    for task, own, grid in lines:
        for axes, metric in zip(grid, METRICS, strict=True):
            for row in own:
                if row["regularizer"] == "none":
                    for who, style in (("ensemble", "-"), ("one", "--")):
                        label = "none, ensemble" if who == "ensemble" else "none, one LoRA (mean of members)"
                        value = scaled(metric, row[f"{who}_{metric}"])
                        axes.axhline(value, color="0.55", linestyle=style, linewidth=1, label=label)
            for i, name in enumerate(names):
                points = sorted((row for row in own if row["regularizer"] == name), key=lambda row: row["strength"])
                x = [row["strength"] for row in points]
                for who, style in (("ensemble", "-"), ("one", "--")):
                    y = [scaled(metric, row[f"{who}_{metric}"]) for row in points]
                    label = f"{name}, ensemble" if who == "ensemble" else f"{name}, one LoRA"
                    axes.plot(x, y, style, color=PALETTE[i % 7], marker=MARKERS[i % 7], markersize=4.5, label=label)
            plain_log_scale(axes.xaxis)
            axes.set(xlabel="strength", title=f"{task}: {TITLES[metric]}")
            axes.grid(color="0.92")
    shared_legend(figure, lines[0][2][0], 4)


def _arrows_sentence(rows: Rows) -> str:
    better = sum(
        row["ensemble_accuracy"] > row["one_accuracy"] and row["ensemble_ece"] < row["one_ece"] for row in rows
    )
    accurate = sum((row["gain_accuracy_low"] or 0) > 0 for row in rows)
    return (
        f"{better} of {len(rows)} arrows go to more accuracy and less ECE; the 95 % interval of the difference in"
        f" accuracy is above 0 for {accurate}"
    )


def _strengths_sentence(rows: Rows) -> str:
    def named(row: Mapping[str, Any]) -> str:
        return row["regularizer"] if row["regularizer"] == "none" else f"{row['regularizer']} {row['strength']:g}"

    nll, ece = (min(rows, key=lambda row: row[f"ensemble_{metric}"]) for metric in ("nll", "ece"))
    plain = next((row for row in rows if row["regularizer"] == "none"), None)
    beside = (
        ""
        if plain is None
        else f" (without regularizer {plain['ensemble_nll']:.3f} and {percent(plain['ensemble_ece'])})"
    )
    return (
        f"the ensemble's NLL is lowest with {named(nll)} ({nll['ensemble_nll']:.3f}), its ECE with {named(ece)}"
        f" ({percent(ece['ensemble_ece'])}){beside}"
    )


ARROWS = PaperFigure(table, draw_arrows, lambda rows: per_task(rows, _arrows_sentence))
STRENGTHS = PaperFigure(table, draw_strengths, lambda rows: per_task(rows, _strengths_sentence))
