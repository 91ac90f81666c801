"""Intervals of metrics and of paired differences, each by a method with measured coverage; none if no method covers.

| metric | interval |
|---|---|
| accuracy, confident errors | Wilson's score interval |
| signed gap | Wald's, after two rows right and two wrong were added |
| difference in accuracy or confident errors | Wald's, after one row won and one lost were added (Bonett and Price) |
| ECE | inverted test (`metrics.calibration`); none for a mean of several ECEs |
| NLL, Brier, macro F1, AURC | percentiles of bootstrap draws |
| difference in NLL, Brier, AURC, E-AURC or a share automated | percentiles of bootstrap draws |
| share automated | none: a few right answers at the top decide a small share, and percentiles covered 17 to 100 % |
| E-AURC | none: percentiles covered 84 % of sets of 60 rows of one model |
| difference in ECE | none: the biases of the two values differ, and no interval that was tried covers |

`benchmarks/coverage.py` measures all of them. Below `MIN_ROWS` rows there is no interval; percentiles also need
`MIN_OF_EACH` right and wrong rows, since resampling cannot draw errors that were not observed.

Axes: `E` example, `R` resample.

Sources: Wilson 1927; Agresti and Coull 1998; Bonett and Price, doi 10.1080/00949655.2011.618500.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lorchestra.metrics import table
from lorchestra.metrics.calibration import calibrated_ece, ece_interval
from lorchestra.metrics.predictive import FloatArray
from lorchestra.metrics.scores import RESAMPLED, RowScores, interval, resampled_metrics
from lorchestra.metrics.table import BY_KEY, METRICS
from lorchestra.types import Json

COMPARED = tuple(metric.key for metric in table.COMPARED)
"""Keys of the metrics whose paired differences have intervals."""

_PERCENTILE = tuple(metric.key for metric in METRICS if metric.interval == "percentile")
_PERCENTILE_DIFFERENCE = tuple(metric.key for metric in METRICS if metric.difference == "percentile")

MIN_ROWS = 20
"""Fewest rows with an interval: with 10, that of the ECE covered 82 % in the worst case."""

MIN_OF_EACH = 5
"""Fewest right and fewest wrong rows for bootstrap percentiles: with one or two, differences in NLL covered 80 %."""

Z = 1.959963984540054
"""Quantile of the standard normal distribution with 2.5 % above it, for `LEVEL`."""

Ends = list[float] | None
Draws = Mapping[str, FloatArray]


@dataclass(frozen=True, slots=True)
class Judged:
    """One method: rows of its distribution, or of several for a mean over members, and draws.

    `draws` are its metrics by resample, averaged over several distributions.
    """

    rows: tuple[RowScores, ...]
    draws: Draws

    @property
    def num_rows(self) -> int:
        """E."""
        return len(self.rows[0].labels)

    @property
    def least_of_each(self) -> int:
        """The smaller of the numbers of right and wrong rows, minimum over the distributions."""
        return min(int(min(rows.correct.sum(), (1 - rows.correct).sum())) for rows in self.rows)

    def mean(self, values: str) -> FloatArray:
        """A field of `RowScores`, mean over the distributions, `[E]`."""
        return np.asarray(np.mean([getattr(rows, values) for rows in self.rows], axis=0))

    def points(self) -> dict[str, float]:
        """The metrics of `RESAMPLED` on all rows, mean over the distributions."""
        points = [resampled_metrics(rows, np.ones((1, self.num_rows))) for rows in self.rows]
        return {metric: float(np.mean([values[metric][0] for values in points])) for metric in RESAMPLED}


def method_intervals(method: Judged, seed: int) -> Json:
    """Intervals by metric of `RESAMPLED`, None if there is none; empty if no resamples were drawn.

    Also `ece_if_calibrated`: the ECE of perfectly calibrated confidences like these on as many rows, as `mean` and
    `interval` (None for a mean of several ECEs). Every interval contains its point value.
    """
    if not method.draws:
        return {}
    simulations = len(next(iter(method.draws.values())))
    calibrated = [calibrated_ece(rows, simulations, seed) for rows in method.rows]
    alone = len(method.rows) == 1
    reference = {
        "mean": float(np.mean([one.mean for one in calibrated])),
        "interval": [calibrated[0].low, calibrated[0].high] if alone else None,
    }
    intervals: dict[str, Ends] = dict.fromkeys(RESAMPLED)
    if method.num_rows >= MIN_ROWS:
        intervals["accuracy"] = score_interval(method.mean("correct"))
        intervals["confident_errors"] = score_interval(method.mean("confident_error"))
        intervals["signed_gap"] = gap_interval(method.mean("confidence"), method.mean("correct"))
        if alone:
            intervals["ece"] = ece_interval(method.rows[0], calibrated[0], simulations, seed)
        if method.least_of_each >= MIN_OF_EACH:
            points = method.points()
            for metric in _PERCENTILE:
                intervals[metric] = _with_point(interval(method.draws[metric]), points[metric])
    return {**intervals, "ece_if_calibrated": reference}


def difference_intervals(one: Judged, other: Judged) -> dict[str, Ends]:
    """Intervals of the first minus the second by metric of `COMPARED`, None if there is none; empty without draws.

    The draws of both must be of the same resamples.
    """
    if not (one.draws and other.draws):
        return {}
    intervals: dict[str, Ends] = dict.fromkeys(COMPARED)
    if one.num_rows >= MIN_ROWS:
        if _same(one, other):
            return {metric: [0.0, 0.0] for metric in COMPARED}
        intervals["accuracy"] = paired_interval(one.mean("correct") - other.mean("correct"))
        intervals["confident_errors"] = paired_interval(one.mean("confident_error") - other.mean("confident_error"))
        if min(one.least_of_each, other.least_of_each) >= MIN_OF_EACH:
            mine, theirs = one.points(), other.points()
            for metric in _PERCENTILE_DIFFERENCE:
                with np.errstate(invalid="ignore"):
                    point = mine[metric] - theirs[metric]
                    intervals[metric] = _with_point(interval(one.draws[metric] - other.draws[metric]), point)
    return intervals


def _same(one: Judged, other: Judged) -> bool:
    """Whether both have the same scores in every row: then they are the same method."""
    return all(
        np.array_equal(getattr(mine, values), getattr(theirs, values))
        for mine in one.rows
        for theirs in other.rows
        for values in ("predicted", "confidence", "nll", "brier")
    )


def too_few(method: Judged) -> str | None:
    """Why intervals of a method are missing, as a sentence; None if none is."""
    if method.num_rows < MIN_ROWS:
        rows = f"{method.num_rows} rows" if method.num_rows > 1 else "one row"
        return f"No intervals: {rows} cannot carry one ({MIN_ROWS} are needed)."
    if method.least_of_each < MIN_OF_EACH:
        wrong, right = (int(sum(part.sum() for part in parts) / len(method.rows)) for parts in _wrong_and_right(method))
        few = f"{wrong} wrong" if wrong <= right else f"{right} right"
        # the metrics that have differences first
        metrics = sorted((BY_KEY[key] for key in _PERCENTILE), key=lambda metric: metric.difference is None)
        *names, last = (metric.name for metric in metrics)
        return (
            f"No intervals of {', '.join(names)} and {last}, nor of differences in them: {few} of"
            f" {method.num_rows} rows are too few ({MIN_OF_EACH} right and {MIN_OF_EACH} wrong are needed)."
        )
    return None


def _wrong_and_right(method: Judged) -> tuple[list[FloatArray], list[FloatArray]]:
    return [1 - rows.correct for rows in method.rows], [rows.correct for rows in method.rows]


def score_interval(correct_E: FloatArray) -> list[float]:
    """Wilson's interval of an accuracy: it has a width even if all rows are right.

    Rows may hold a mean over members, which varies less than a single answer; each row then counts for more.
    """
    num_rows, mean = len(correct_E), float(correct_E.mean())
    spread = mean * (1 - mean)
    ratio = float(correct_E.var()) / spread if spread > 0 else 1.0
    effective = num_rows / ratio if ratio > 0 else float(num_rows)
    center = (mean + Z**2 / (2 * effective)) / (1 + Z**2 / effective)
    half = Z * np.sqrt(spread / effective + (Z / (2 * effective)) ** 2) / (1 + Z**2 / effective)
    return [max(0.0, min(float(center - half), mean)), min(1.0, max(float(center + half), mean))]


def gap_interval(confidence_E: FloatArray, correct_E: FloatArray) -> list[float]:
    """Interval of mean confidence minus accuracy: Wald's, with two right and two wrong rows added."""
    mean = float(confidence_E.mean())
    return _wald(confidence_E - correct_E, [mean, mean, mean - 1, mean - 1])


def paired_interval(difference_E: FloatArray) -> list[float]:
    """Interval of a mean of differences in [-1, 1]: Wald's, with one row of +1 and one of -1 added."""
    return _wald(difference_E, [1.0, -1.0])


def _wald(values_E: FloatArray, added: Sequence[float]) -> list[float]:
    """Mean plus and minus Z standard errors with values added, within [-1, 1]; it contains the mean without them."""
    point, values = float(values_E.mean()), np.concatenate([values_E, added])
    center, half = float(values.mean()), Z * float(values.std()) / np.sqrt(len(values))
    return [max(-1.0, min(center - half, point)), min(1.0, max(center + half, point))]


def _with_point(ends: Ends, point: float) -> Ends:
    """Widen an interval to the point value; percentiles of a skewed statistic can miss it."""
    return None if ends is None else [min(ends[0], point), max(ends[1], point)]


def judge(scores: Mapping[str, RowScores], draws: Mapping[str, Draws], *names: str) -> Judged:
    """Rows and draws of one distribution by name, or of the mean over several."""
    rows = tuple(scores[name] for name in names)
    if not draws:
        return Judged(rows, {})
    return Judged(rows, {metric: np.mean([draws[name][metric] for name in names], axis=0) for metric in RESAMPLED})
