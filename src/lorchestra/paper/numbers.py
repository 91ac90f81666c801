"""By a setting that is a number: the members of one training, the rank, and what members cost."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np

from lorchestra.metrics.predictive import mixture_log_probs
from lorchestra.paper.page import (
    ENSEMBLE_COLOR,
    MARKERS,
    PALETTE,
    SINGLE_COLOR,
    TITLES,
    PaperFigure,
    Row,
    Rows,
    panels,
    panels_of_metrics,
    per_task,
    percent,
    plain_log_scale,
    scaled,
    shared_legend,
)
from lorchestra.paper.results import METRICS, FinishedRun, both, metrics_of, regularizer_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_SUBSETS = 50
"""Random subsets of each size, all of them where there are no more."""
_COSTS = {
    "parameters": ("trainable parameters (millions)", 1e-6),
    "base_passes": ("base passes (forward of all rows)", 1.0),
    "train_s": ("training (s)", 1.0),
    "tokens_per_s": ("tokens/s", 1.0),
    "peak_bytes": ("peak memory (GB)", 1e-9),
}


def subsets(members: int, size: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Different subsets of a size, at most `MAX_SUBSETS`: all there are, or a draw that `seed` and the size decide."""
    if comb(members, size) <= MAX_SUBSETS:
        return list(itertools.combinations(range(members), size))
    source = random.Random(f"{seed}:{size}")
    found: dict[tuple[int, ...], None] = {}
    while len(found) < MAX_SUBSETS:
        found[tuple(sorted(source.sample(range(members), size)))] = None
    return list(found)


def members_table(runs: Sequence[FinishedRun]) -> list[Row]:
    """One row a point and size: `task`, `regularizer`, `members`, `subsets`, and of each metric mean and standard
    deviation over random subsets of one training's members."""
    rows: list[Row] = []
    for run in runs:
        predictions = run.test
        for size in range(1, predictions.num_members + 1):
            found = [
                metrics_of(mixture_log_probs(predictions.log_probs_MEC[list(chosen)]), predictions.labels)
                for chosen in subsets(predictions.num_members, size)
            ]
            row: Row = {"task": run.task, "regularizer": regularizer_label(run.settings)}
            row |= {"members": size, "subsets": len(found)}
            for metric in METRICS:
                values = [one[metric] for one in found]
                row |= {metric: float(np.mean(values)), f"{metric}_std": float(np.std(values))}
            rows.append(row)
    return rows


def draw_members(figure: Figure, rows: Rows) -> None:
    """Three panels a task."""
    panels_of_metrics(figure, rows, "members (mean and s.d. over subsets)", 4, _draw_members_panel)


def _draw_members_panel(axes: Any, metric: str, rows: Rows, i: int, kind: str) -> None:
    x = [row["members"] for row in rows]
    mean, std = (np.array([scaled(metric, row[key]) for row in rows]) for key in (metric, f"{metric}_std"))
    axes.plot(x, mean, color=PALETTE[i % 7], marker=MARKERS[i % 7], markersize=4, label=kind)
    axes.fill_between(x, mean - std, mean + std, color=PALETTE[i % 7], alpha=0.15, linewidth=0)


def _members_sentence(rows: Rows) -> str:
    told = []
    for kind in dict.fromkeys(row["regularizer"] for row in rows):
        at = {row["members"]: row for row in rows if row["regularizer"] == kind}
        one, every = at[1], at[max(at)]
        some = at[min(5, max(at))]
        total = one["nll"] - every["nll"]
        share = f", {100 * (one['nll'] - some['nll']) / total:.0f} % of it with {some['members']}" if total > 0 else ""
        told.append(
            f"{kind}: NLL {one['nll']:.3f} with 1 member, {every['nll']:.3f} with {every['members']} (the decrease is"
            f" guaranteed on average{share}); accuracy {percent(one['accuracy'])} and {percent(every['accuracy'])}, ECE"
            f" {percent(one['ece'])} and {percent(every['ece'])}"
        )
    return " | ".join(told)


def rank_table(runs: Sequence[FinishedRun]) -> list[Row]:
    """One row a rank: `task`, `r`, `lora_alpha`, `parameters` (of a member), `tokens` (of all members), metrics.

    Metrics are of one LoRA (mean of members) and of the ensemble.
    """
    rows: list[Row] = [
        {
            "task": run.task,
            "r": run.config.adapt.r,
            "lora_alpha": run.config.adapt.lora_alpha,
            "parameters": parameters(run),
            "tokens": run.cost["tokens"],
            **both(run.test),
        }
        for run in runs
    ]
    return sorted(rows, key=lambda row: (row["task"], row["r"]))


def parameters(run: FinishedRun) -> int:
    """Trainable parameters of one member."""
    return sum(A.size + B.size for A, B in run.updates()[0])


def draw_rank(figure: Figure, rows: Rows) -> None:
    """Metrics and the parameters of a member by rank."""
    lines = panels(figure, rows, 4, (3.3, 3.1))
    for task, own, grid in lines:
        x = [row["r"] for row in own]
        for axes, metric in zip(grid, METRICS, strict=False):
            for who, color, marker, label in (
                ("one", SINGLE_COLOR, "s", "one LoRA (mean of members)"),
                ("ensemble", ENSEMBLE_COLOR, "o", "ensemble"),
            ):
                y = [scaled(metric, row[f"{who}_{metric}"]) for row in own]
                axes.plot(x, y, "--" if who == "one" else "-", color=color, marker=marker, markersize=4.5, label=label)
            axes.set(title=f"{task}: {TITLES[metric]}")
        grid[3].plot(x, [row["parameters"] for row in own], "D-", color=PALETTE[2], markersize=4.5)
        grid[3].set(title="parameters of a member")
        plain_log_scale(grid[3].yaxis)
        for axes in grid:
            _by_doubling(axes, x, "rank r")
    shared_legend(figure, lines[0][2][0], 2)


def _rank_sentence(rows: Rows) -> str:
    nll, ece = (min(rows, key=lambda row: row[f"ensemble_{metric}"]) for metric in ("nll", "ece"))
    low, high = rows[0], rows[-1]
    return (
        f"the ensemble's NLL is lowest at r = {nll['r']} ({nll['ensemble_nll']:.3f}; {low['ensemble_nll']:.3f} at r ="
        f" {low['r']}, {high['ensemble_nll']:.3f} at r = {high['r']}), its ECE at r = {ece['r']}"
        f" ({percent(ece['ensemble_ece'])}); a member has {low['parameters']:,} to {high['parameters']:,} parameters"
    )


def cost_table(runs: Sequence[FinishedRun]) -> list[Row]:
    """One row a number of members, each trained by itself: `task`, `members`, `parameters` (of all), `tokens`,
    `base_passes`, `train_s`, `tokens_per_s`, `peak_bytes` (of the process)."""
    rows: list[Row] = []
    for run in runs:
        members, cost = run.config.adapt.members, run.cost
        row: Row = {"task": run.task, "members": members, "parameters": members * parameters(run)}
        rows.append(row | {k: cost[k] for k in ("tokens", "base_passes", "train_s", "tokens_per_s", "peak_bytes")})
    return sorted(rows, key=lambda row: (row["task"], row["members"]))


def draw_cost(figure: Figure, rows: Rows) -> None:
    """A panel a kind of cost, with what M times one member would be."""
    lines = panels(figure, rows, len(_COSTS), (2.9, 3.1))
    for task, own, grid in lines:
        x = [row["members"] for row in own]
        for axes, (key, (title, factor)) in zip(grid, _COSTS.items(), strict=True):
            y = [factor * row[key] for row in own]
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
        grid[0].set_ylabel(task)
    shared_legend(figure, lines[0][2][0], 2)


def _cost_sentence(rows: Rows) -> str:
    first, last = rows[0], rows[-1]
    times = {key: last[key] / first[key] for key in ("base_passes", "train_s", "peak_bytes")}
    return (
        f"M = {last['members']} instead of {first['members']} takes {times['train_s']:.1f} times the training seconds"
        f" ({last['train_s']:.1f} s), {times['base_passes']:.1f} times the base passes and"
        f" {times['peak_bytes']:.2f} times the peak memory ({last['peak_bytes'] / 1e9:.2f} GB)"
    )


def _by_doubling(axes: Any, x: Sequence[int], name: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(x, [str(value) for value in x], fontsize="small")
    axes.minorticks_off()
    axes.set_xlabel(name)
    axes.grid(color="0.92")


MEMBERS = PaperFigure(members_table, draw_members, lambda rows: per_task(rows, _members_sentence))
RANK = PaperFigure(rank_table, draw_rank, lambda rows: per_task(rows, _rank_sentence))
COST = PaperFigure(cost_table, draw_cost, lambda rows: per_task(rows, _cost_sentence))
