"""Several runs of one task side by side: their ensembles paired row by row, all methods with their cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lorchestra.config.mappings import differences
from lorchestra.metrics.intervals import difference_intervals, judge
from lorchestra.metrics.predictive import mixture_log_probs
from lorchestra.metrics.scores import bootstrap, score_rows
from lorchestra.metrics.table import WITH_DIRECTION
from lorchestra.report.html import tables
from lorchestra.report.html.course import arrow_figure
from lorchestra.report.html.source import ReportRun

RESAMPLES = 1000
_NLL = [metric.key for metric in WITH_DIRECTION].index("nll")


def comparison(runs: Sequence[ReportRun]) -> dict[str, Any]:
    """Everything the templates show of several runs together."""
    best = _lowest_nll(runs)
    paired = ensembles_against(runs, best)
    return {
        "best": best,
        "decided": all(cells is None or cells[_NLL].judged == "worse" for cells in paired),
        "sentence": sentence(runs, best, paired),
        "paired": paired,
        "columns": WITH_DIRECTION,
        "method_columns": WITH_DIRECTION,
        "cost_columns": tables.COST_COLUMNS,
        "groups": tables.comparison_rows(runs),
        "arrow": arrow_figure(runs),
        "settings": settings(runs),
    }


def ensembles_against(runs: Sequence[ReportRun], best: int) -> list[list[tables.Difference] | None]:
    """Each run's ensemble minus that of run `best`, in the order of `WITH_DIRECTION`; None for `best` itself.

    Intervals are of paired resamples: the runs were evaluated on the same rows.
    """
    scores = {
        str(place): score_rows(mixture_log_probs(run.predictions.log_probs_MEC), run.predictions.labels)
        for place, run in enumerate(runs)
    }
    draws = bootstrap(scores, RESAMPLES, seed=0)
    judged = [judge(scores, draws, str(place)) for place in range(len(runs))]
    found: list[list[tables.Difference] | None] = []
    for place, run in enumerate(runs):
        if place == best:
            found.append(None)
            continue
        ends = difference_intervals(judged[place], judged[best])
        ends = {key: pair if pair is not None and np.isfinite(pair).all() else None for key, pair in ends.items()}
        found.append(
            [
                tables.difference(metric, run.entry["ensemble"], runs[best].entry["ensemble"], ends)
                for metric in WITH_DIRECTION
            ]
        )
    return found


def sentence(runs: Sequence[ReportRun], best: int, paired: Sequence[Sequence[tables.Difference] | None]) -> str:
    """Which run's ensemble has the lowest NLL, and from which others the paired intervals set it apart."""
    apart = [run.name for run, cells in zip(runs, paired, strict=True) if cells and cells[_NLL].judged == "worse"]
    alike = [run.name for run, cells in zip(runs, paired, strict=True) if cells and cells[_NLL].judged != "worse"]
    value = runs[best].entry["ensemble"]["nll"]
    shown = "infinite" if value is None else f"{value:.3f} nats"
    text = f"{runs[best].name} has the lowest NLL ({shown})."
    if apart:
        text += f" That is clearly lower than in {tables.listed(apart)}."
    if alike:
        text += f" There is no clear difference to {tables.listed(alike)}."
    return text


def settings(runs: Sequence[ReportRun]) -> list[tuple[str, list[str]]]:
    """The dotted settings in which any two runs differ, with the value of each run."""
    found: set[str] = set()
    for run in runs[1:]:
        found |= differences(runs[0].config, run.config).keys()
    return [(field, [_value(run.config, field) for run in runs]) for field in sorted(found)]


def _value(config: Any, field: str) -> str:
    for name in field.split("."):
        config = getattr(config, name)
    return str(config)


def _lowest_nll(runs: Sequence[ReportRun]) -> int:
    values = [run.entry["ensemble"]["nll"] for run in runs]
    return int(np.argmin([np.inf if value is None else value for value in values]))
