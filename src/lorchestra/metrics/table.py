"""The table of metrics: what each is called, how it is shown, and what decides a verdict.

Every table, page, schema and check takes its metrics from here. To add a metric, add its function in `metrics.scores`
and its row in `METRICS`. Plain Python: importing it does not load NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Detail = Literal["summary", "table", "page", "decisions", "required", "optional"]
"""Where a metric is shown: in every table and figure, in full tables, on the HTML page, or nowhere (the last two).

"decisions": in the page's table of what can be automated. An evaluation must have all but the optional ones.
"""

IntervalMethod = Literal["wilson", "wald", "inverted", "percentile"]
"""How the interval of a value, or of a paired difference, is computed: see `metrics.intervals`."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of a predictive distribution.

    Attributes:
        key: its key in JSON and in data frames.
        title: its column heading, without the unit.
        name: its name in a sentence.
        unit: "%" or "per 1,000" for a share, which is stored as a fraction; "nats"; or empty.
        direction: 1 where higher is better, -1 where lower is better, 0 where neither is.
        digits: decimals shown, in the unit.
        detail: where it is shown.
        interval: how the interval of its value is computed; None without one.
        difference: how the interval of a paired difference is computed; only metrics with one can decide verdicts.
        convex: the ensemble is at least as good as the mean of its members, whatever the data.
        signed: values are shown with their sign.
        infinite: may be infinite, which JSON holds as null.
        condition: what the value holds for, after the unit in headings.
        later: missing in evaluations of earlier versions.
    """

    key: str
    title: str
    name: str
    unit: str = ""
    direction: Literal[-1, 0, 1] = 0
    digits: int = 3
    detail: Detail = "optional"
    interval: IntervalMethod | None = None
    difference: IntervalMethod | None = None
    convex: bool = False
    signed: bool = False
    infinite: bool = False
    condition: str = ""
    later: bool = False

    @property
    def factor(self) -> int:
        """From the stored value to the unit shown."""
        return {"%": 100, "per 1,000": 1000}.get(self.unit, 1)

    @property
    def heading(self) -> str:
        """Column heading of values: Accuracy %, Automated % (5 % error)."""
        return f"{self.title} {self.unit}".rstrip() + self._condition

    @property
    def difference_heading(self) -> str:
        """Column heading of differences: Accuracy, points."""
        unit = "points" if self.unit == "%" else self.unit
        return (f"{self.title}, {unit}" if unit else self.title) + self._condition

    @property
    def _condition(self) -> str:
        return f" ({self.condition})" if self.condition else ""

    @property
    def axis_label(self) -> str:
        """Label of an axis whose ticks have no unit: accuracy (%)."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def number(self, value: float | None, absent: str = "-", *, signed: bool | None = None) -> str:
        """The value in its unit; `absent` for None. Differences are signed, spreads are not."""
        if value is None:
            return absent
        sign = "+" if (self.signed if signed is None else signed) else ""
        return f"{value * self.factor:{sign}.{self.digits}f}"


AUTOMATED = {f"automated_{percent}": percent / 100 for percent in (1, 2, 5, 10)}
"""Error among the automated rows, at most, by key of the share automated."""

MAIN_TARGET = "automated_5"
"""The share automated that is shown everywhere and decides verdicts."""


def _automated(key: str, target: float) -> Metric:
    error = f"{100 * target:g} % error"
    main = key == MAIN_TARGET
    return Metric(
        key,
        "Automated",
        f"share automated at {error}",
        "%",
        1,
        1,
        "summary" if main else "decisions",
        difference="percentile",
        condition=error,
        later=True,
    )


METRICS = (
    Metric("accuracy", "Accuracy", "accuracy", "%", 1, 1, "summary", "wilson", "wald"),
    Metric("macro_f1", "Macro F1", "macro F1", "", 1, 3, "optional", "percentile"),
    Metric("nll", "NLL", "NLL", "nats", -1, 3, "summary", "percentile", "percentile", convex=True, infinite=True),
    Metric("ece", "ECE", "ECE", "%", -1, 1, "summary", "inverted"),
    *(_automated(key, target) for key, target in AUTOMATED.items()),
    Metric("signed_gap", "Gap", "gap", "%", 0, 1, "page", "wald", signed=True),
    Metric("brier", "Brier", "Brier score", "", -1, 3, "table", "percentile", "percentile", convex=True),
    Metric("aurc", "AURC", "AURC", "", -1, 3, "decisions", "percentile", "percentile"),
    Metric("excess_aurc", "E-AURC", "E-AURC", "", -1, 3, "decisions", difference="percentile", later=True),
    Metric(
        *("confident_errors", "Confident errors", "confident errors", "per 1,000", -1, 1, "decisions"),
        *("wilson", "wald"),
        later=True,
    ),
    *(
        Metric(f"ece_{scheme}_{bins}", f"ECE, {bins} bins ({scheme})", f"ECE over {bins} bins", "%", -1, 1, "optional")
        for scheme in ("width", "mass")
        for bins in (10, 15, 20)
    ),
    Metric("mean_confidence", "Confidence", "mean confidence", "%", 0, 1, "required"),
    Metric("num_zero_probability", "Zero probability", "answers with probability zero", "", -1, 0, "optional"),
)
"""All metrics, in the order of files and tables."""

BY_KEY = {metric.key: metric for metric in METRICS}

SUMMARY = tuple(metric for metric in METRICS if metric.detail == "summary")
"""Shown everywhere."""

IN_TABLES = tuple(metric for metric in METRICS if metric.detail in ("summary", "table"))
"""Shown in full tables."""

ON_PAGE = tuple(metric for metric in METRICS if metric.detail in ("summary", "table", "page"))
"""Shown on the HTML page."""

DECISIONS = tuple(metric for metric in METRICS if metric.detail == "decisions" or metric.key == MAIN_TARGET)
"""Those of decisions: which rows are automated, and what that costs."""

WITH_DIRECTION = tuple(metric for metric in IN_TABLES if metric.direction)
"""Those of full tables in which one method can be better than another; the table of differences shows them."""

COMPARED = tuple(metric for metric in METRICS if metric.difference is not None)
"""Those whose paired differences have intervals."""

DECISIVE = tuple(metric for metric in COMPARED if metric in IN_TABLES)
"""Those of full tables that decide verdicts."""

AGAINST_BASELINES = tuple(BY_KEY[key] for key in ("accuracy", "nll", "aurc"))
"""Those that decide whether a run is better than the baselines without adapters."""
