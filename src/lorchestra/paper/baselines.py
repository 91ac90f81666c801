"""Methods at equal budget: accuracy, NLL and ECE with their intervals, against what predicting costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
    scaled,
    shared_legend,
)
from lorchestra.paper.results import METRICS
from lorchestra.report.table import shown_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COSTS = {
    "fit_base_passes": "base passes of the fit",
    "predict_base_passes": "base passes of a prediction",
}

_TICKS = (0, *(factor * 10**power for power in range(5) for factor in (1, 2, 5)))


def table(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row a method: `method`, its costs, and each metric with the ends of its 95 % interval.

    Args:
        results: one dictionary a method: `name`, `cost` (numbers by name), `entry` (of `metrics.json`, on test rows).
            Those that were `left_out` have no row.
    """
    rows: list[Row] = []
    for one in results:
        if "left_out" in one:
            continue
        entry = one["entry"]
        row: Row = {"task": entry["task"], "method": one["name"], **one["cost"]}
        intervals = entry["intervals"].get("ensemble") or {}
        for metric in METRICS:
            low, high = shown_interval(metric, intervals) or (None, None)
            row |= {metric: entry["ensemble"][metric], f"{metric}_low": low, f"{metric}_high": high}
        rows.append(row)
    return rows


def draw(figure: Figure, rows: Rows) -> None:
    """For each task, metrics against the passes of the fit (above) and of a prediction (below)."""
    doubled: list[Row] = [{**row, "task": (row["task"], cost)} for cost in _COSTS for row in rows]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = panels(figure, sorted(doubled, key=lambda row: row["task"][0]), 3, (4.2, 3.2))
    for (task, cost), own, grid in lines:
        for axes, metric in zip(grid, METRICS, strict=True):
            for row in own:
                place = methods.index(row["method"])
                color, marker = PALETTE[place % 7], MARKERS[(place + place // 7) % 7]
                ends = [row[f"{metric}_low"], row[f"{metric}_high"]]
                if None not in ends:
                    y = [scaled(metric, end) for end in ends]
                    axes.plot([row[cost]] * 2, y, color=color, linewidth=1, alpha=0.6)
                axes.plot(
                    row[cost], scaled(metric, row[metric]), marker, color=color, markersize=6, label=row["method"]
                )
            # linear up to one pass, so that what costs nothing has a place
            axes.set_xscale("symlog", linthresh=1)
            low, high = min(row[cost] for row in own), max(row[cost] for row in own)
            ticks = [tick for tick in _TICKS if low / 1.3 <= tick <= high * 1.3]
            axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            axes.minorticks_off()
            axes.set(xlabel=_COSTS[cost], title=f"{task}: {TITLES[metric]}")
            axes.grid(color="0.92")
    shared_legend(figure, lines[0][2][0], 5)


def _sentence(rows: Rows) -> str:
    lowest = {metric: min(rows, key=lambda row: row[metric]) for metric in ("nll", "ece")}
    told = [
        f"lowest NLL: {lowest['nll']['method']} ({lowest['nll']['nll']:.3f})",
        f"lowest ECE: {lowest['ece']['method']} ({percent(lowest['ece']['ece'])})",
    ]
    own = next((row for row in rows if row["method"] == "lora_ensemble"), None)
    if own is not None:
        apart = [
            row["method"]
            for row in rows
            if None not in (row["nll_low"], own["nll_high"])
            and (row["nll_high"] < own["nll_low"] or row["nll_low"] > own["nll_high"])
        ]
        told.append(
            f"lora_ensemble has {own['nll']:.3f} and {percent(own['ece'])}; NLL intervals apart from its own:"
            f" {', '.join(apart) or 'none'}"
        )
    return f"of {len(rows)} methods, {'; '.join(told)}"


BASELINES = PaperFigure(table, draw, lambda rows: per_task(rows, _sentence))
