"""Intervals: their coverage on simulated models, known answers, and where there are none."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from lorchestra.metrics import intervals
from lorchestra.metrics import scores as metrics
from lorchestra.metrics.intervals import MIN_ROWS, difference_intervals, judge, method_intervals, too_few
from lorchestra.metrics.table import METRICS

FloatArray = NDArray[np.float64]
SETS = 80


def log_softmax(scores: FloatArray) -> FloatArray:
    scores = scores - scores.max(axis=-1, keepdims=True)
    return np.asarray(scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True)))


def simulate(
    generator: np.random.Generator, rows: int, classes: int, factor: float
) -> tuple[dict[str, FloatArray], NDArray[np.int64]]:
    """Answers drawn from softmax(z); a model that predicts softmax(factor z), and one with noisier scores."""
    scores = 2.0 * generator.normal(size=(rows, classes))
    below = np.exp(log_softmax(scores)).cumsum(axis=1) < generator.random((rows, 1))
    labels = np.minimum(below.sum(axis=1), classes - 1)
    noisy = scores + 0.7 * generator.normal(size=scores.shape)
    return {"model": log_softmax(factor * scores), "other": log_softmax(1.4 * factor * noisy)}, labels


@pytest.mark.parametrize("factor", [1.0, 2.0, 0.5], ids=["calibrated", "over-confident", "under-confident"])
@pytest.mark.parametrize(("rows", "classes"), [(60, 2), (200, 4), (500, 2)])
def test_every_interval_covers(rows: int, classes: int, factor: float) -> None:
    """At least 85 % of 80 sets: of an interval that covers 95 %, fewer have a probability below one in a thousand.

    Percentiles of the ECE's bootstrap draws do not.
    """
    big, answers = simulate(np.random.default_rng(99), 200_000, classes, factor)
    true = {name: metrics.all_metrics(log_probs, answers) for name, log_probs in big.items()}
    if factor == 1:
        true["model"]["ece"] = 0.0
    generator = np.random.default_rng([rows, classes])
    held: dict[str, list[bool]] = defaultdict(list)
    for seed in range(SETS):
        distributions, labels = simulate(generator, rows, classes, factor)
        scores = {name: metrics.score_rows(log_probs, labels) for name, log_probs in distributions.items()}
        draws = metrics.bootstrap(scores, 200, seed)
        model, other = (judge(scores, draws, name) for name in ("model", "other"))
        method = method_intervals(model, seed)
        ends = {metric: (method[metric], true["model"][metric]) for metric in metrics.RESAMPLED}
        for metric, difference in difference_intervals(model, other).items():
            ends[f"minus {metric}"] = difference, true["model"][metric] - true["other"][metric]
        ends["percentile"] = metrics.interval(draws["model"]["ece"]), true["model"]["ece"]
        for name, (low_high, value) in ends.items():
            if low_high is not None:  # a set may have too few errors
                held[name].append(low_high[0] <= value <= low_high[1])
    shares = {name: np.mean(values) for name, values in held.items()}
    percentile = shares.pop("percentile")
    assert len(shares) == sum(metric.interval is not None for metric in METRICS) + len(intervals.COMPARED)
    assert min(map(len, held.values())) > SETS / 2
    assert {name: share for name, share in shares.items() if share < 0.85} == {}
    assert factor != 1 or percentile < 0.2


def judged_rows(labels: NDArray[np.int64], log_probs: FloatArray, resamples: int = 100) -> intervals.Judged:
    scores = {"it": metrics.score_rows(log_probs, labels)}
    return judge(scores, metrics.bootstrap(scores, resamples, seed=0), "it")


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("rows", [20, 45, 200])
def test_every_interval_contains_its_point(seed: int, rows: int) -> None:
    generator = np.random.default_rng(seed)
    distributions, labels = simulate(generator, rows, 3, generator.choice([0.3, 1.0, 4.0]))
    scores = {name: metrics.score_rows(log_probs, labels) for name, log_probs in distributions.items()}
    draws = metrics.bootstrap(scores, 40, seed)
    values = {name: metrics.all_metrics(log_probs, labels) for name, log_probs in distributions.items()}
    model, other, both = (judge(scores, draws, *names) for names in (["model"], ["other"], ["model", "other"]))
    mean = {metric: (values["model"][metric] + values["other"][metric]) / 2 for metric in metrics.RESAMPLED}
    for point, one in ((values["model"], model), (values["other"], other), (mean, both)):
        for metric, ends in method_intervals(one, seed).items():
            if metric in metrics.RESAMPLED and ends is not None:
                assert ends[0] - 1e-12 <= point[metric] <= ends[1] + 1e-12, metric
    for metric, ends in difference_intervals(model, other).items():
        if ends is not None:
            assert ends[0] - 1e-12 <= values["model"][metric] - values["other"][metric] <= ends[1] + 1e-12, metric


def test_wilsons_interval_is_the_known_one() -> None:
    for hits, rows in ((27, 30), (15, 20), (499, 500), (0, 40)):
        right = np.array([1.0] * hits + [0.0] * (rows - hits))
        expected = stats.binomtest(hits, rows).proportion_ci(0.95, method="wilson")
        assert intervals.score_interval(right) == pytest.approx([expected.low, expected.high], abs=1e-12)
    # All of 20: the low end is n / (n + z^2), the high end 1.
    low, high = intervals.score_interval(np.ones(20))
    assert (low, high) == (pytest.approx(20 / (20 + intervals.Z**2)), 1.0)
    # Three members with independent errors carry more information than one: the interval of their mean is narrower.
    members = np.random.default_rng(0).random((3, 200)) < 0.8
    one, three = (np.diff(intervals.score_interval(part.mean(axis=0)))[0] for part in (members[:1], members))
    assert three == pytest.approx(one / np.sqrt(3), rel=0.15)


def test_the_paired_interval_is_bonett_and_prices() -> None:
    # 6 rows won, 1 lost of 50: p+ = 7/52, p- = 2/52; their difference, and sqrt((p+ + p- - (p+ - p-)^2) / 52).
    difference = np.array([1.0] * 6 + [-1.0] + [0.0] * 43)
    won, lost = 7 / 52, 2 / 52
    half = intervals.Z * np.sqrt((won + lost - (won - lost) ** 2) / 52)
    assert intervals.paired_interval(difference) == pytest.approx([won - lost - half, won - lost + half])
    # Four rows that all fall one way do not suffice: an exact test gives them a probability of 1/8.
    assert intervals.paired_interval(np.array([1.0] * 4 + [0.0] * 56))[0] < 0


def test_a_model_without_errors_has_an_interval_of_its_accuracy_and_gap_alone() -> None:
    log_probs = np.log(np.tile([0.97, 0.03], (60, 1)))
    judged = judged_rows(np.zeros(60, dtype=np.int64), log_probs)
    intervals = method_intervals(judged, seed=0)
    assert intervals["accuracy"][0] < 0.95
    assert intervals["accuracy"][1] == 1.0
    assert intervals["signed_gap"][0] < -0.03 < 0 < intervals["signed_gap"][1]
    with_one = {"accuracy", "confident_errors", "ece", "signed_gap"}
    assert {metric for metric in metrics.RESAMPLED if intervals[metric] is not None} == with_one
    assert "0 wrong of 60 rows are too few" in str(too_few(judged))


def test_fewer_rows_than_intervals_need_have_none() -> None:
    generator = np.random.default_rng(0)
    for rows in (1, 5, MIN_ROWS - 1):
        distributions, labels = simulate(generator, rows, 2, 1.0)
        scores = {name: metrics.score_rows(log_probs, labels) for name, log_probs in distributions.items()}
        draws = metrics.bootstrap(scores, 50, seed=0)
        one, other = (judge(scores, draws, name) for name in ("model", "other"))
        intervals = method_intervals(one, seed=0)
        assert [intervals[metric] for metric in metrics.RESAMPLED] == [None] * len(metrics.RESAMPLED)
        assert set(difference_intervals(one, other).values()) == {None}
        assert (
            too_few(one)
            == f"No intervals: {'one row' if rows == 1 else f'{rows} rows'} cannot carry one (20 are needed)."
        )
    distributions, labels = simulate(generator, MIN_ROWS, 2, 1.0)
    assert method_intervals(judged_rows(labels, distributions["model"]), seed=0)["accuracy"] is not None


def test_one_method_twice_has_no_difference() -> None:
    distributions, labels = simulate(np.random.default_rng(3), 40, 2, 1.0)
    judged = judged_rows(labels, distributions["model"])
    assert difference_intervals(judged, judged) == {metric: [0.0, 0.0] for metric in intervals.COMPARED}


def test_without_draws_there_is_nothing() -> None:
    distributions, labels = simulate(np.random.default_rng(3), 40, 2, 1.0)
    judged = judged_rows(labels, distributions["model"], resamples=0)
    assert (method_intervals(judged, seed=0), difference_intervals(judged, judged)) == ({}, {})
