"""Fig. 4: the ensemble against MC dropout of one of its members with as many passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorchestra.metrics.intervals import judge, method_intervals
from lorchestra.metrics.predictive import mixture_log_probs
from lorchestra.metrics.scores import bootstrap, score_rows
from lorchestra.paper.page import (
    ENSEMBLE_COLOR,
    SINGLE_COLOR,
    THIRD_COLOR,
    TITLES,
    PaperFigure,
    Row,
    Rows,
    panels,
    per_task,
    scaled,
    shared_legend,
)
from lorchestra.paper.results import METRICS, FinishedRun, metrics_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLES = {
    "one LoRA": (SINGLE_COLOR, "s"),
    "MC dropout of it": (THIRD_COLOR, "^"),
    "ensemble": (ENSEMBLE_COLOR, "o"),
}
_RESAMPLES = 1000


def table(runs: Sequence[FinishedRun]) -> list[Row]:
    """One row a dropout rate and method: `task`, `dropout`, `method`, `passes`, metrics and their 95 % intervals.

    One LoRA is the member that MC dropout is made of. Rates without MC dropout predictions are left out.
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
        scores = {name: score_rows(found, members.labels) for name, found in distributions.items()}
        draws = bootstrap(scores, _RESAMPLES, run.config.train.seed)
        for name, found in distributions.items():
            intervals = method_intervals(judge(scores, draws, name), run.config.train.seed)
            row: Row = {"task": run.task, "dropout": run.config.adapt.dropout, "method": name, "passes": passes[name]}
            for metric, value in metrics_of(found, members.labels).items():
                low, high = intervals[metric] or (None, None)
                row |= {metric: value, f"{metric}_low": low, f"{metric}_high": high}
            rows.append(row)
    return rows


def draw(figure: Figure, rows: Rows) -> None:
    """Three panels a task, the methods side by side at each rate."""
    lines = panels(figure, rows, 3)
    for task, own, grid in lines:
        rates = sorted({row["dropout"] for row in own})
        for axes, metric in zip(grid, METRICS, strict=True):
            for place, (method, (color, marker)) in enumerate(_STYLES.items()):
                for row in (row for row in own if row["method"] == method):
                    x = rates.index(row["dropout"]) + 0.22 * (place - 1)
                    ends = [row[f"{metric}_low"], row[f"{metric}_high"]]
                    if None not in ends:
                        axes.plot([x, x], [scaled(metric, end) for end in ends], color=color, linewidth=1.4)
                    passes = f" ({row['passes']} passes)" if row["passes"] > 1 else ""
                    label = method + passes if row["dropout"] == rates[0] else None
                    axes.plot(x, scaled(metric, row[metric]), marker, color=color, markersize=6, label=label)
            axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
            axes.set(xlabel="dropout", title=f"{task}: {TITLES[metric]}", xlim=(-0.6, len(rates) - 0.4))
            axes.grid(axis="y", color="0.92")
    shared_legend(figure, lines[0][2][0], 3)


def _sentence(rows: Rows) -> str:
    parts = []
    for rate in dict.fromkeys(row["dropout"] for row in rows):
        at = {row["method"]: row for row in rows if row["dropout"] == rate}
        one, dropped, ensemble = (at[method] for method in _STYLES)
        parts.append(
            f"at dropout {rate:g}, {dropped['passes']} passes of MC dropout change one LoRA's NLL by"
            f" {dropped['nll'] - one['nll']:+.3f} and its accuracy by"
            f" {100 * (dropped['accuracy'] - one['accuracy']):+.1f} points, the ensemble by"
            f" {ensemble['nll'] - one['nll']:+.3f} and {100 * (ensemble['accuracy'] - one['accuracy']):+.1f}"
        )
    return "; ".join(parts)


PASSES = PaperFigure(table, draw, lambda rows: per_task(rows, _sentence))
