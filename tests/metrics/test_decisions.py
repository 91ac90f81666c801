"""Decisions by hand on drawn predictions: thresholds, classes, sets, words."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from lorchestra.metrics.calibrator import Calibration
from lorchestra.metrics.certificates import Certificate
from lorchestra.metrics.decisions import CertifyingRows, Decisions, DecisionSettings, fit_decisions, predicted, refusal
from lorchestra.metrics.predictive import log_softmax, mixture_log_probs
from lorchestra.types import Predictions

ROWS = CertifyingRows("new.csv", 800, 400, "2026-11-28T12:00:00Z")


def draw(number: int, seed: int, widths: tuple[int, ...] = (3,)) -> Predictions:
    """Members with a common and a separate part; the truth is drawn from the common one."""
    generator = np.random.default_rng(seed)
    width_E = generator.choice(widths, number)
    common_EC = 2 * generator.normal(size=(number, max(widths)))
    common_EC[np.arange(max(widths)) >= width_E[:, None]] = -np.inf
    probs_EC = np.exp(log_softmax(common_EC))
    labels = (probs_EC.cumsum(axis=1) < generator.random(number)[:, None]).sum(axis=1)
    members = [log_softmax(common_EC + 0.7 * generator.normal(size=common_EC.shape)) for _ in range(3)]
    options = tuple(tuple("abcde"[:width]) for width in width_E)
    ids = tuple(map(str, range(number)))
    return Predictions(np.stack(members), labels.astype(np.int64), ids, options, "toy", "rows")


@pytest.mark.parametrize("widths", [(3,), (2, 3, 5)])
def test_errors_above_the_threshold_are_those_of_the_certificate(widths: tuple[int, ...]) -> None:
    known, other = draw(800, 0, widths), draw(400, 1, widths)
    calibration = Calibration("temperature", "by hand", temperature=1.3)
    settings = DecisionSettings(target_error=0.15, sets=0.9)
    decisions = fit_decisions(known, other, ROWS, calibration, settings, seed=0)
    (certificate,) = decisions.certificates
    calibrated = calibration.apply(mixture_log_probs(known.log_probs_MEC))
    automated = decisions.automated(known.log_probs_MEC, calibrated)
    wrong = predicted(calibrated) != known.labels
    assert (automated.sum(), (automated & wrong).sum()) == (certificate.num_automated, certificate.errors)
    assert 0 < certificate.num_automated < 800
    assert decisions.sets is not None
    inside = decisions.sets.sets(calibrated)
    assert inside[np.arange(800), known.labels].mean() >= 0.9
    assert decisions.set_sizes is not None
    assert decisions.set_sizes.one + decisions.set_sizes.several + decisions.set_sizes.none == pytest.approx(1)
    assert Decisions.from_dict(json.loads(json.dumps(decisions.to_dict()))) == decisions


def test_a_class_without_a_threshold_is_never_automated() -> None:
    known, other = draw(800, 0), draw(400, 1)
    decisions = fit_decisions(known, other, ROWS, None, DecisionSettings(target_error=0.3, per_class=True), seed=0)
    first, *rest = decisions.certificates
    refused = Certificate(None, 0.0, None, None, 0, 0, 800, 0.15, 0.95, reason="too few rows")
    changed = replace(decisions, certificates=(refused, *rest))
    mixture = mixture_log_probs(known.log_probs_MEC)
    before, after = (one.automated(known.log_probs_MEC, mixture) for one in (decisions, changed))
    is_first = predicted(mixture) == 0
    assert first.threshold is not None
    assert before[is_first].any()
    assert not after[is_first].any()
    assert (before == after)[~is_first].all()
    assert changed.has_threshold
    assert not replace(changed, certificates=(refused,) * 3).has_threshold


def test_costs_need_no_threshold() -> None:
    known, other = draw(800, 0), draw(400, 1)
    costs = (10 * (1 - np.eye(3)), 1.0)
    refused = fit_decisions(known, other, ROWS, None, DecisionSettings(target_error=0.01), 0, costs)
    assert not refused.has_threshold
    assert refused.costs is not None
    assert [one.policy for one in refused.costs.policies] == ["by_cost", "automate_all", "ask_always"]
    by_cost, every, ask = refused.costs.policies
    assert by_cost.per_1000 < min(every.per_1000, ask.per_1000)
    assert (ask.per_1000, ask.interval) == (1000, (1000, 1000))
    assert by_cost.interval[0] <= by_cost.per_1000 <= by_cost.interval[1]
    assert every.expected_per_1000 > by_cost.expected_per_1000


def test_a_score_that_cannot_be_fitted_is_named() -> None:
    other = draw(400, 1)
    right = replace(other, labels=mixture_log_probs(other.log_probs_MEC).argmax(axis=1))
    with pytest.raises(ValueError, match="combined score cannot be fitted on the validation rows: all 400 answers"):
        fit_decisions(draw(800, 0), right, ROWS, None, DecisionSettings(score="combined"), seed=0)


def test_a_refusal_has_the_number_of_rows_once() -> None:
    base = Certificate(None, 0.0, None, None, 0, 0, 90, 0.05, 0.95, reason="3 of 90 rows are wrong", rows_needed=70)
    assert refusal(base) == "3 of 90 rows are wrong; at the present error rate about 70 more labelled rows are needed"
    known = replace(base, reason="too few rows: at the present error rate about 70 more labelled rows are needed")
    assert refusal(known) == known.reason
    assert refusal(replace(base, rows_needed=None)) == base.reason
