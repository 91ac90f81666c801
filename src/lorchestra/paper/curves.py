"""Metrics and cost against a number: the epoch (Fig. 3), the number of members, the rank."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from math import comb
from typing import TYPE_CHECKING

import numpy as np

from lorchestra.metrics.predictive import mixture_log_probs
from lorchestra.paper.page import (
    MARKERS,
    PALETTE,
    STYLES,
    TITLES,
    PaperFigure,
    panels,
    per_task,
    percent,
    plain_log_scale,
    scaled,
    shared_legend,
)
from lorchestra.paper.results import (
    ENSEMBLE,
    METRICS,
    ONE,
    FinishedRun,
    Row,
    Rows,
    both,
    ensemble_metrics,
    mean_member,
    member_metrics,
    metrics_of,
    regularizer_label,
    unique,
)
from lorchestra.report.figure import ENSEMBLE_COLOR

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_SUBSETS = 50
"""Random subsets per size; all subsets if there are no more."""
_COSTS = {
    "parameters": ("trainable parameters (millions)", 1e-6),
    "base_passes": ("base passes (forward of all rows)", 1.0),
    "train_s": ("training (s)", 1.0),
    "tokens_per_s": ("tokens/s", 1.0),
    "peak_bytes": ("peak memory (GB)", 1e-9),
}


def _draw_by_regularizer(
    figure: Figure, rows: Rows, xlabel: str, columns: int, draw: Callable[[Axes, str, Rows, int, str], None]
) -> None:
    """One panel per metric and task over whole numbers, and one legend with this number of columns.

    `draw(axes, metric, rows, i, name)` draws the rows of the i-th regularizer, called `name`.
    """
    names = unique(rows, "regularizer")
    for task, of_task, axes_of_task in panels(figure, rows, len(METRICS)):
        for axes, metric in zip(axes_of_task, METRICS, strict=True):
            for i, name in enumerate(names):
                draw(axes, metric, [row for row in of_task if row["regularizer"] == name], i, name)
            axes.set(xlabel=xlabel, title=f"{task}: {TITLES[metric]}")
            axes.locator_params(axis="x", integer=True)
            axes.grid(color="0.92")
    shared_legend(figure.axes[0], columns)


def epochs_table(runs: Sequence[FinishedRun]) -> list[Row]:
    """One row per epoch, point and method: `task`, `regularizer`, `method`, `epoch` (0 is the base), metrics, and
    the lowest and highest value of a single member."""
    rows: list[Row] = []
    for run in runs:
        for epoch, predictions in enumerate([run.baseline("base_zero_shot"), *run.epochs]):
            if predictions is None:
                continue
            members = member_metrics(predictions)
            for method, values in ((ONE, mean_member(predictions)), (ENSEMBLE, ensemble_metrics(predictions))):
                row: Row = {"task": run.task, "regularizer": regularizer_label(run.settings), "method": method}
                row |= {"epoch": epoch, **values}
                for metric in METRICS:
                    range_of = [member[metric] for member in members] if method == ONE else [values[metric]]
                    row |= {f"{metric}_lowest": min(range_of), f"{metric}_highest": max(range_of)}
                rows.append(row)
    return rows


def draw_epochs(figure: Figure, rows: Rows) -> None:
    """Three panels per task."""
    _draw_by_regularizer(figure, rows, "epoch (0: the base)", 2, _draw_epochs_panel)


def _draw_epochs_panel(axes: Axes, metric: str, rows: Rows, i: int, name: str) -> None:
    color = PALETTE[i % 7]
    for method, style, marker in ((ONE, "--", "s"), (ENSEMBLE, "-", "o")):
        points = [row for row in rows if row["method"] == method]
        x = [row["epoch"] for row in points]
        y, low, high = (
            [scaled(metric, row[f"{metric}{end}"]) for row in points] for end in ("", "_lowest", "_highest")
        )
        axes.plot(x, y, style, color=color, marker=marker, markersize=3.5, label=f"{method}, {name}")
        if method == ONE:
            axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)


def _epochs_sentence(rows: Rows) -> str:
    parts = []
    for name in unique(rows, "regularizer"):
        of_methods = []
        for method in (ONE, ENSEMBLE):
            points = [row for row in rows if row["regularizer"] == name and row["method"] == method and row["epoch"]]
            best = min(points, key=lambda row: row["nll"])
            last = points[-1]
            of_methods.append(
                f"{method} NLL {best['nll']:.3f} at best (epoch {best['epoch']}) and {last['nll']:.3f} at the end,"
                f" accuracy {percent(last['accuracy'])}, ECE {percent(points[0]['ece'])} after epoch 1 and"
                f" {percent(last['ece'])} at the end"
            )
        parts.append(f"{name}: {'; '.join(of_methods)}")
    return " | ".join(parts)


def subsets(members: int, size: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Different subsets of a size: all of them, or a sample of `MAX_SUBSETS` that depends on `seed` and the size."""
    if comb(members, size) <= MAX_SUBSETS:
        return list(itertools.combinations(range(members), size))
    source = random.Random(f"{seed}:{size}")
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < MAX_SUBSETS:
        drawn[tuple(sorted(source.sample(range(members), size)))] = None
    return list(drawn)


def members_table(runs: Sequence[FinishedRun]) -> list[Row]:
    """One row per point and size: `task`, `regularizer`, `members`, `subsets`, and each metric's mean and standard
    deviation over random subsets of one training's members."""
    rows: list[Row] = []
    for run in runs:
        predictions = run.test
        for size in range(1, predictions.num_members + 1):
            metrics = [
                metrics_of(mixture_log_probs(predictions.log_probs_MEC[list(subset)]), predictions.labels)
                for subset in subsets(predictions.num_members, size)
            ]
            row: Row = {"task": run.task, "regularizer": regularizer_label(run.settings)}
            row |= {"members": size, "subsets": len(metrics)}
            for metric in METRICS:
                values = [one[metric] for one in metrics]
                row |= {metric: float(np.mean(values)), f"{metric}_std": float(np.std(values))}
            rows.append(row)
    return rows


def draw_members(figure: Figure, rows: Rows) -> None:
    """Three panels per task."""
    _draw_by_regularizer(figure, rows, "members (mean and s.d. over subsets)", 4, _draw_members_panel)


def _draw_members_panel(axes: Axes, metric: str, rows: Rows, i: int, name: str) -> None:
    x = [row["members"] for row in rows]
    mean, std = (np.array([scaled(metric, row[key]) for row in rows]) for key in (metric, f"{metric}_std"))
    axes.plot(x, mean, color=PALETTE[i % 7], marker=MARKERS[i % 7], markersize=4, label=name)
    axes.fill_between(x, mean - std, mean + std, color=PALETTE[i % 7], alpha=0.15, linewidth=0)


def _members_sentence(rows: Rows) -> str:
    parts = []
    for name in unique(rows, "regularizer"):
        by_size = {row["members"]: row for row in rows if row["regularizer"] == name}
        one, every = by_size[1], by_size[max(by_size)]
        some = by_size[min(5, max(by_size))]
        total = one["nll"] - every["nll"]
        share = f", {100 * (one['nll'] - some['nll']) / total:.0f} % of it with {some['members']}" if total > 0 else ""
        parts.append(
            f"{name}: NLL {one['nll']:.3f} with 1 member, {every['nll']:.3f} with {every['members']} (the decrease is"
            f" guaranteed on average{share}); accuracy {percent(one['accuracy'])} and {percent(every['accuracy'])}, ECE"
            f" {percent(one['ece'])} and {percent(every['ece'])}"
        )
    return " | ".join(parts)


def rank_table(runs: Sequence[FinishedRun]) -> list[Row]:
    """One row per rank: `task`, `r`, `lora_alpha`, `parameters` (per member), `tokens` (of all members), metrics of
    one LoRA (mean of members) and of the ensemble."""
    rows: list[Row] = [
        {
            "task": run.task,
            "r": run.config.adapt.r,
            "lora_alpha": run.config.adapt.lora_alpha,
            "parameters": _parameters(run),
            "tokens": run.cost["tokens"],
            **both(run.test),
        }
        for run in runs
    ]
    return sorted(rows, key=lambda row: (row["task"], row["r"]))


def _parameters(run: FinishedRun) -> int:
    """Trainable parameters per member."""
    return sum(A.size + B.size for A, B in run.updates()[0])


def draw_rank(figure: Figure, rows: Rows) -> None:
    """Metrics, and parameters per member, by rank."""
    for task, of_task, axes_of_task in panels(figure, rows, 4, (3.3, 3.1)):
        x = [row["r"] for row in of_task]
        for axes, metric in zip(axes_of_task, METRICS, strict=False):
            for who, (color, marker, label) in STYLES.items():
                y = [scaled(metric, row[f"{who}_{metric}"]) for row in of_task]
                axes.plot(x, y, "--" if who == "one" else "-", color=color, marker=marker, markersize=4.5, label=label)
            axes.set(title=f"{task}: {TITLES[metric]}")
        axes_of_task[3].plot(x, [row["parameters"] for row in of_task], "D-", color=PALETTE[2], markersize=4.5)
        axes_of_task[3].set(title="parameters of a member")
        plain_log_scale(axes_of_task[3].yaxis)
        for axes in axes_of_task:
            axes.set_xscale("log", base=2)
            axes.set_xticks(x, [str(value) for value in x], fontsize="small")
            axes.minorticks_off()
            axes.set_xlabel("rank r")
            axes.grid(color="0.92")
    shared_legend(figure.axes[0], 2)


def _rank_sentence(rows: Rows) -> str:
    nll, ece = (min(rows, key=lambda row: row[f"ensemble_{metric}"]) for metric in ("nll", "ece"))
    low, high = rows[0], rows[-1]
    return (
        f"the ensemble's NLL is lowest at r = {nll['r']} ({nll['ensemble_nll']:.3f}; {low['ensemble_nll']:.3f} at r ="
        f" {low['r']}, {high['ensemble_nll']:.3f} at r = {high['r']}), its ECE at r = {ece['r']}"
        f" ({percent(ece['ensemble_ece'])}); a member has {low['parameters']:,} to {high['parameters']:,} parameters"
    )


def cost_table(runs: Sequence[FinishedRun]) -> list[Row]:
    """One row per number of members, each trained separately: `task`, `members`, `parameters` (of all members),
    `tokens`, `base_passes`, `train_s`, `tokens_per_s`, `peak_bytes` (of the process)."""
    rows: list[Row] = []
    for run in runs:
        members, cost = run.config.adapt.members, run.cost
        row: Row = {"task": run.task, "members": members, "parameters": members * _parameters(run)}
        rows.append(row | {k: cost[k] for k in ("tokens", "base_passes", "train_s", "tokens_per_s", "peak_bytes")})
    return sorted(rows, key=lambda row: (row["task"], row["members"]))


def draw_cost(figure: Figure, rows: Rows) -> None:
    """One panel per kind of cost, with M times the cost of one member for comparison."""
    for task, of_task, axes_of_task in panels(figure, rows, len(_COSTS), (2.9, 3.1)):
        x = [row["members"] for row in of_task]
        for axes, (key, (title, factor)) in zip(axes_of_task, _COSTS.items(), strict=True):
            y = [factor * row[key] for row in of_task]
            axes.plot(x, y, "o-", color=ENSEMBLE_COLOR, label="measured")
            top = max(y)
            if key != "tokens_per_s":
                proportional = [y[0] * members / x[0] for members in x]
                axes.plot(x, proportional, ":", color="0.5", label=f"M times that of M = {x[0]}, for comparison")
                top = max(top, *proportional)
            axes.set_title(title, fontsize="medium")
            axes.set_ylim(0, 1.06 * top)
            axes.set_xlabel("members M")
            axes.set_xticks(x)
            axes.grid(color="0.92")
        axes_of_task[0].set_ylabel(task)
    shared_legend(figure.axes[0], 2)


def _cost_sentence(rows: Rows) -> str:
    first, last = rows[0], rows[-1]
    times = {key: last[key] / first[key] for key in ("base_passes", "train_s", "peak_bytes")}
    return (
        f"M = {last['members']} instead of {first['members']} takes {times['train_s']:.1f} times the training seconds"
        f" ({last['train_s']:.1f} s), {times['base_passes']:.1f} times the base passes and"
        f" {times['peak_bytes']:.2f} times the peak memory ({last['peak_bytes'] / 1e9:.2f} GB)"
    )


EPOCHS = PaperFigure(epochs_table, draw_epochs, lambda rows: per_task(rows, _epochs_sentence))
MEMBERS = PaperFigure(members_table, draw_members, lambda rows: per_task(rows, _members_sentence))
RANK = PaperFigure(rank_table, draw_rank, lambda rows: per_task(rows, _rank_sentence))
COST = PaperFigure(cost_table, draw_cost, lambda rows: per_task(rows, _cost_sentence))
