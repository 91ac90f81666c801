"""The ensemble next to other methods: Fig. 4 (MC dropout with as many passes), and all methods at equal budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorchestra.metrics.intervals import judge, method_intervals
from lorchestra.metrics.predictive import mixture_log_probs
from lorchestra.metrics.scores import bootstrap, score_rows
from lorchestra.metrics.table import BY_KEY, MAIN_TARGET
from lorchestra.paper.page import (
    MARKERS,
    PALETTE,
    THIRD_COLOR,
    TITLES,
    PaperFigure,
    panels,
    per_task,
    percent,
    scaled,
    shared_legend,
)
from lorchestra.paper.results import METRICS, FinishedRun, Row, Rows, metrics_of, unique
from lorchestra.report.figure import ENSEMBLE_COLOR, SINGLE_COLOR
from lorchestra.report.table import shown_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES = {
    "one LoRA": (SINGLE_COLOR, "s"),
    "MC dropout of it": (THIRD_COLOR, "^"),
    "ensemble": (ENSEMBLE_COLOR, "o"),
}
_RESAMPLES = 1000
_COSTS = {
    "fit_base_passes": "base passes of the fit",
    "predict_base_passes": "base passes of a prediction",
}
_AT_EQUAL_BUDGET = (*METRICS, MAIN_TARGET)
_TICKS = (0, *(factor * 10**power for power in range(5) for factor in (1, 2, 5)))


def passes_table(runs: Sequence[FinishedRun]) -> list[Row]:
    """One row per dropout rate and method: `task`, `dropout`, `method`, `passes`, metrics and their 95 % intervals.

    One LoRA is the member that MC dropout is applied to. Rates without MC dropout predictions are left out.
    """
    rows: list[Row] = []
    for run in runs:
        dropped, members = run.baseline("mc_dropout"), run.test
        if dropped is None:
            continue
        distributions = {
            "one LoRA": members.log_probs_MEC[0],
            "MC dropout of it": mixture_log_probs(dropped.log_probs_MEC),
            "ensemble": mixture_log_probs(members.log_probs_MEC),
        }
        passes = {"one LoRA": 1, "MC dropout of it": dropped.num_members, "ensemble": members.num_members}
        scores = {name: score_rows(log_probs_EC, members.labels) for name, log_probs_EC in distributions.items()}
        draws = bootstrap(scores, _RESAMPLES, run.config.train.seed)
        for name, log_probs_EC in distributions.items():
            intervals = method_intervals(judge(scores, draws, name), run.config.train.seed)
            row: Row = {"task": run.task, "dropout": run.config.adapt.dropout, "method": name, "passes": passes[name]}
            for metric, value in metrics_of(log_probs_EC, members.labels).items():
                low, high = intervals[metric] or (None, None)
                row |= {metric: value, f"{metric}_low": low, f"{metric}_high": high}
            rows.append(row)
    return rows


def draw_passes(figure: Figure, rows: Rows) -> None:
    """Three panels per task, the methods side by side at each rate."""
    for task, of_task, axes_of_task in panels(figure, rows, 3):
        rates = sorted({row["dropout"] for row in of_task})
        for axes, metric in zip(axes_of_task, METRICS, strict=True):
            for offset, (method, (color, marker)) in enumerate(_STYLES.items(), -1):
                for row in (row for row in of_task if row["method"] == method):
                    x = rates.index(row["dropout"]) + 0.22 * offset
                    _draw_interval(axes, metric, row, x, color, width=1.4)
                    passes = f" ({row['passes']} passes)" if row["passes"] > 1 else ""
                    label = method + passes if row["dropout"] == rates[0] else None
                    axes.plot(x, scaled(metric, row[metric]), marker, color=color, markersize=6, label=label)
            axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
            axes.set(xlabel="dropout", title=f"{task}: {TITLES[metric]}", xlim=(-0.6, len(rates) - 0.4))
            axes.grid(axis="y", color="0.92")
    shared_legend(figure.axes[0], 3)


def _draw_interval(axes: Axes, metric: str, row: Row, x: float, color: str, width: float, alpha: float = 1) -> None:
    ends = [row[f"{metric}_low"], row[f"{metric}_high"]]
    if None not in ends:
        axes.plot([x, x], [scaled(metric, end) for end in ends], color=color, linewidth=width, alpha=alpha)


def _passes_sentence(rows: Rows) -> str:
    parts = []
    for rate in unique(rows, "dropout"):
        by_method = {row["method"]: row for row in rows if row["dropout"] == rate}
        one, dropped, ensemble = (by_method[method] for method in _STYLES)
        parts.append(
            f"at dropout {rate:g}, {dropped['passes']} passes of MC dropout change one LoRA's NLL by"
            f" {dropped['nll'] - one['nll']:+.3f} and its accuracy by"
            f" {100 * (dropped['accuracy'] - one['accuracy']):+.1f} points, the ensemble by"
            f" {ensemble['nll'] - one['nll']:+.3f} and {100 * (ensemble['accuracy'] - one['accuracy']):+.1f}"
        )
    return "; ".join(parts)


def methods_table(results: Sequence[Row]) -> list[Row]:
    """One row per method: `method`, its costs, and each metric with the ends of its 95 % interval.

    Args:
        results: one dictionary per method: `name`, `cost` (numbers by name), `entry` (of `metrics.json`, on test rows).
            Methods that were `left_out` get no row.
    """
    rows: list[Row] = []
    for result in results:
        if "left_out" in result:
            continue
        entry = result["entry"]
        row: Row = {"task": entry["task"], "method": result["name"], **result["cost"]}
        intervals = entry["intervals"].get("ensemble") or {}
        # comparisons of earlier versions have no share automated
        for metric in (metric for metric in _AT_EQUAL_BUDGET if metric in entry["ensemble"]):
            low, high = shown_interval(metric, intervals) or (None, None)
            row |= {metric: entry["ensemble"][metric], f"{metric}_low": low, f"{metric}_high": high}
        rows.append(row)
    return rows


def draw_methods(figure: Figure, rows: Rows) -> None:
    """Per task, metrics against the base passes of the fit (top) and of a prediction (bottom)."""
    doubled: list[Row] = [{**row, "task": (row["task"], cost)} for cost in _COSTS for row in rows]
    methods = unique(rows, "method")
    metrics = [metric for metric in _AT_EQUAL_BUDGET if all(row.get(metric) is not None for row in rows)]
    doubled.sort(key=lambda row: row["task"][0])
    for _, of_task, axes_of_task in panels(figure, doubled, len(metrics), (4.2, 3.2)):
        task, cost = of_task[0]["task"]
        for axes, metric in zip(axes_of_task, metrics, strict=True):
            for row in of_task:
                i = methods.index(row["method"])
                color, marker = PALETTE[i % 7], MARKERS[(i + i // 7) % 7]
                _draw_interval(axes, metric, row, row[cost], color, width=1, alpha=0.6)
                axes.plot(
                    row[cost], scaled(metric, row[metric]), marker, color=color, markersize=6, label=row["method"]
                )
            # linear up to one pass, so that a cost of zero can be shown
            axes.set_xscale("symlog", linthresh=1)
            low, high = min(row[cost] for row in of_task), max(row[cost] for row in of_task)
            ticks = [tick for tick in _TICKS if low / 1.3 <= tick <= high * 1.3]
            axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            axes.minorticks_off()
            axes.set(xlabel=_COSTS[cost], title=f"{task}: {BY_KEY[metric].axis_label}")
            axes.grid(color="0.92")
    shared_legend(figure.axes[0], 5)


def _methods_sentence(rows: Rows) -> str:
    lowest = {metric: min(rows, key=lambda row: row[metric]) for metric in ("nll", "ece")}
    parts = [
        f"lowest NLL: {lowest['nll']['method']} ({lowest['nll']['nll']:.3f})",
        f"lowest ECE: {lowest['ece']['method']} ({percent(lowest['ece']['ece'])})",
    ]
    if all(row.get(MAIN_TARGET) is not None for row in rows):
        most = max(rows, key=lambda row: row[MAIN_TARGET])
        parts.append(f"largest {BY_KEY[MAIN_TARGET].name}: {most['method']} ({percent(most[MAIN_TARGET])})")
    ensemble = next((row for row in rows if row["method"] == "lora_ensemble"), None)
    if ensemble is not None:
        disjoint = [
            row["method"]
            for row in rows
            if None not in (row["nll_low"], ensemble["nll_high"])
            and (row["nll_high"] < ensemble["nll_low"] or row["nll_low"] > ensemble["nll_high"])
        ]
        parts.append(
            f"lora_ensemble has {ensemble['nll']:.3f} and {percent(ensemble['ece'])}; methods whose NLL interval does"
            f" not overlap its interval: {', '.join(disjoint) or 'none'}"
        )
    return f"of {len(rows)} methods, {'; '.join(parts)}"


PASSES = PaperFigure(passes_table, draw_passes, lambda rows: per_task(rows, _passes_sentence))
BASELINES = PaperFigure(methods_table, draw_methods, lambda rows: per_task(rows, _methods_sentence))
