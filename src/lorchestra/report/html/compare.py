"""Several runs of one task side by side: their ensembles paired row by row, all methods with their cost."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from lorchestra.config.mappings import differences
from lorchestra.config.run import RunConfig
from lorchestra.metrics.intervals import difference_intervals, judge
from lorchestra.metrics.scores import bootstrap, score_rows
from lorchestra.metrics.table import WITH_DIRECTION
from lorchestra.report.html import tables
from lorchestra.report.html.course import arrow_figure
from lorchestra.report.html.source import ReportRun
from lorchestra.report.table import listed
from lorchestra.types import Json

RESAMPLES = 1000
_NLL = [metric.key for metric in WITH_DIRECTION].index("nll")


def comparison(runs: Sequence[ReportRun]) -> Json:
    """Everything the templates show of several runs together."""
    best = int(np.argmin([run.entry.ensemble.value("nll") for run in runs]))
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
        str(number): score_rows(run.mixture(run.predictions), run.predictions.labels) for number, run in enumerate(runs)
    }
    draws = bootstrap(scores, RESAMPLES, seed=0)
    judged = [judge(scores, draws, name) for name in scores]
    rows: list[list[tables.Difference] | None] = []
    for number, run in enumerate(runs):
        if number == best:
            rows.append(None)
            continue
        reference = runs[best].entry.ensemble.with_intervals({}, difference_intervals(judged[number], judged[best]))
        rows.append([tables.difference(metric, run.entry.ensemble, reference) for metric in WITH_DIRECTION])
    return rows


def sentence(runs: Sequence[ReportRun], best: int, paired: Sequence[Sequence[tables.Difference] | None]) -> str:
    """Which run's ensemble has the lowest NLL, and than which others it is clearly lower by the paired intervals."""
    worse = [run.name for run, cells in zip(runs, paired, strict=True) if cells and cells[_NLL].judged == "worse"]
    same = [run.name for run, cells in zip(runs, paired, strict=True) if cells and cells[_NLL].judged != "worse"]
    value = runs[best].entry.ensemble.metrics["nll"]
    shown = "infinite" if value is None else f"{value:.3f} nats"
    text = f"{runs[best].name} has the lowest NLL ({shown})."
    if worse:
        text += f" That is clearly lower than in {listed(worse)}."
    if same:
        text += f" There is no clear difference to {listed(same)}."
    return text


def settings(runs: Sequence[ReportRun]) -> list[tuple[str, list[str]]]:
    """The dotted settings in which any two runs differ, with the value of each run."""
    fields: set[str] = set()
    for run in runs[1:]:
        fields |= differences(runs[0].config, run.config).keys()
    return [(field, [_value(run.config, field) for run in runs]) for field in sorted(fields)]


def _value(config: RunConfig, field: str) -> str:
    return str(functools.reduce(getattr, field.split("."), config))
