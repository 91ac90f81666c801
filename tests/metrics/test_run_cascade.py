"""Cascades of two runs: the pair of thresholds of `metrics.cascade` for the predictions of both."""

from __future__ import annotations

import numpy as np
import pytest

from lorchestra.metrics.calibrator import Calibration
from lorchestra.metrics.decisions import CertifyingRows, DecisionSettings
from lorchestra.metrics.predictive import log_softmax, mixture_log_probs
from lorchestra.metrics.run_cascade import RunCascade, Runs, certify_runs
from lorchestra.types import Predictions

ROWS = CertifyingRows("new.csv", 800, 400, "2026-11-28T12:00:00Z")
SHARP = Calibration("temperature", "by hand", temperature=1.4)
AS_IS = Calibration("none", "by hand")


def draw(number: int, seed: int) -> Runs:
    """A poor run of one member and a good one of three, on the same rows with three choices."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=number)
    evidence = 3.0 * np.eye(3)[labels] * rng.exponential(size=(number, 1))
    runs = []
    for members, noise in ((1, 1.2), (3, 0.6)):
        log_probs = np.stack([log_softmax(evidence + noise * rng.normal(size=(number, 3))) for _ in range(members)])
        ids = tuple(map(str, range(number)))
        runs.append(Predictions(log_probs, labels, ids, (("a", "b", "c"),) * number, "toy", "test"))
    return (runs[0], SHARP), (runs[1], AS_IS)


def certify(target: float, seconds: tuple[float, float] = (0.5, 2.0)) -> RunCascade:
    settings = DecisionSettings(target_error=target, confidence=0.9)
    return certify_runs(draw(800, 0), draw(400, 1), settings, ROWS, seconds, ("second", "calibrations"))


def test_counts_are_those_of_the_thresholds_by_hand() -> None:
    cascade, ((poor, _), (good, _)) = certify(0.1), draw(800, 0)
    first_EC = np.exp(SHARP.apply(mixture_log_probs(poor.log_probs_MEC)))
    second_EC = np.exp(mixture_log_probs(good.log_probs_MEC))
    by_first_E = first_EC.max(axis=1) >= cascade.thresholds[0]
    by_second_E = ~by_first_E & (second_EC.max(axis=1) >= cascade.thresholds[1])
    assert (cascade.share_first, cascade.share_second) == pytest.approx((by_first_E.mean(), by_second_E.mean()))
    assert 0 < cascade.share_first < 1
    assert cascade.share_person == pytest.approx(1 - by_first_E.mean() - by_second_E.mean())
    wrong = by_first_E & (first_EC.argmax(axis=1) != poor.labels) | by_second_E & (
        second_EC.argmax(axis=1) != good.labels
    )
    assert cascade.certificate.errors == wrong.sum()
    assert cascade.mean_seconds == pytest.approx(0.5 + 2.0 * (1 - by_first_E.mean()))
    assert cascade.guarantee().startswith("At most 10 % of the automated rows are wrong, whichever run answers them,")
    assert RunCascade.from_dict(cascade.to_dict()) == cascade


def test_measured_times_do_not_move_the_thresholds() -> None:
    fast, slow = certify(0.1, (1e-4, 1e-3)), certify(0.1, (5.0, 0.01))
    assert (fast.thresholds, fast.certificate) == (slow.thresholds, slow.certificate)
    assert fast.mean_seconds < slow.mean_seconds


def test_a_refusal_answers_nothing() -> None:
    cascade = certify(0.004)
    assert (cascade.has_threshold, cascade.thresholds, cascade.share_person) == (False, (np.inf, np.inf), 1)
    assert cascade.guarantee().startswith("No thresholds: ")
    assert RunCascade.from_dict(cascade.to_dict()) == cascade
