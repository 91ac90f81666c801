"""The table of metrics agrees with the functions that compute them, and with the checks of saved evaluations."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorchestra.errors import CheckpointError
from lorchestra.metrics import table
from lorchestra.metrics.evaluation import evaluate_predictions
from lorchestra.metrics.intervals import difference_intervals, judge, method_intervals
from lorchestra.metrics.scores import all_metrics, bootstrap, score_rows
from lorchestra.store.evaluations import check_entry
from lorchestra.types import Predictions


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(2, 60, 3))
    log_probs = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    ids = tuple(map(str, range(60)))
    return Predictions(log_probs, generator.integers(3, size=60), ids, (("a", "b", "c"),) * 60, "toy", "test")


def test_keys_are_unique_and_every_metric_is_computed(predictions) -> None:
    assert len(table.BY_KEY) == len(table.METRICS)
    assert list(all_metrics(predictions.log_probs_MEC[0], predictions.labels)) == list(table.BY_KEY)


def test_metrics_have_the_intervals_that_the_table_gives_them(predictions) -> None:
    scores = {str(m): score_rows(predictions.log_probs_MEC[m], predictions.labels) for m in range(2)}
    draws = bootstrap(scores, 50, 0)
    one, other = (judge(scores, draws, name) for name in scores)
    intervals = method_intervals(one, 0)
    del intervals["ece_if_calibrated"]
    assert [key for key, ends in intervals.items() if ends] == [m.key for m in table.METRICS if m.interval]
    differences = difference_intervals(one, other)
    assert [key for key, ends in differences.items() if ends] == [m.key for m in table.METRICS if m.difference]


def test_only_metrics_with_a_direction_decide() -> None:
    assert all(metric.direction for metric in table.DECISIVE)
    assert set(table.DECISIVE) <= set(table.WITH_DIRECTION)


@pytest.mark.parametrize("metric", table.METRICS, ids=lambda metric: metric.key)
def test_saved_evaluations_are_checked_by_the_table(predictions, metric) -> None:
    """The list of `store.records`, which is below `metrics` and cannot import the table, agrees with it."""
    entry = evaluate_predictions(predictions, resamples=0)

    def refused(change: Any) -> bool:
        changed = copy.deepcopy(entry)
        change(changed["ensemble"])
        try:
            check_entry(changed, Path("metrics.json"), "evaluations[0]", "evaluate again")
        except CheckpointError:
            return True
        return False

    required = metric.detail != "optional" and not metric.later
    assert refused(lambda ensemble: ensemble.pop(metric.key)) == required
    assert refused(lambda ensemble: ensemble.update({metric.key: None})) == (required and not metric.infinite)
    assert refused(lambda ensemble: ensemble.update({metric.key: "much"}))


def test_numbers_are_shown_in_their_unit() -> None:
    accuracy, nll, gap = (table.BY_KEY[key] for key in ("accuracy", "nll", "signed_gap"))
    assert (accuracy.heading, accuracy.difference_heading, accuracy.axis_label) == (
        *("Accuracy %", "Accuracy, points", "accuracy (%)"),
    )
    assert (nll.heading, nll.difference_heading, nll.axis_label) == ("NLL nats", "NLL, nats", "NLL (nats)")
    share, errors = table.BY_KEY["automated_5"], table.BY_KEY["confident_errors"]
    assert (share.heading, share.difference_heading) == ("Automated % (5 % error)", "Automated, points (5 % error)")
    assert share.axis_label == "share automated at 5 % error (%)"
    assert (errors.heading, errors.number(0.0123)) == ("Confident errors per 1,000", "12.3")
    assert table.BY_KEY["brier"].difference_heading == "Brier"
    assert (accuracy.number(0.1234), accuracy.number(0.1234, signed=True)) == ("12.3", "+12.3")
    assert (gap.number(0.01), gap.number(0.01, signed=False), nll.number(None, "inf")) == ("+1.0", "1.0", "inf")


def test_the_table_loads_no_numpy() -> None:
    code = "import sys, lorchestra.metrics.table; print('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
