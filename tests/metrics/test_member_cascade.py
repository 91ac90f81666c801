"""Cascades of one ensemble: the pair of thresholds of `metrics.cascade`, applied to the members' predictions."""

from __future__ import annotations

import numpy as np
import pytest

from lorchestra.metrics.calibrator import Calibration, pooled
from lorchestra.metrics.cascade import cascade_path, certify_cascade
from lorchestra.metrics.early_exit import first_members
from lorchestra.metrics.member_cascade import MemberCascade, certify_members
from lorchestra.metrics.predictive import log_softmax
from lorchestra.types import Predictions

CALIBRATION = Calibration("temperature", "lower", num_rows=2, temperature=1.4, nll_before=0.7, nll_after=0.6)
MEMBERS, TARGET = 5, 0.1


def draw(number: int, seed: int) -> Predictions:
    """Members that see the same evidence with noise of each; three choices."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=number)
    evidence = 2.0 * np.eye(3)[labels] * rng.exponential(size=(number, 1)) + 0.4 * rng.normal(size=(number, 3))
    members = 2 * (evidence + 0.8 * rng.normal(size=(MEMBERS, number, 3)))
    log_probs = np.stack([log_softmax(one) for one in members])
    ids = tuple(map(str, range(number)))
    return Predictions(log_probs, labels, ids, (("a", "b", "c"),) * number, "toy", "test")


def by_hand(predictions: Predictions, first: int) -> tuple[np.ndarray, ...]:
    parts = []
    for log_probs in (predictions.log_probs_MEC[:first], predictions.log_probs_MEC):
        probs = np.exp(pooled(log_probs, CALIBRATION))
        parts += [probs.max(axis=1), probs.argmax(axis=1) == predictions.labels]
    return tuple(parts)


@pytest.mark.parametrize("first", [1, 2, 4])
def test_thresholds_and_shares_are_those_of_the_pure_function(first: int) -> None:
    known, other = draw(800, 0), draw(400, 1)
    certificate, cascade = certify_members(known, other, CALIBRATION, first, TARGET, 0.9)
    costs = (float(first), float(MEMBERS - first), 0.0)
    path = cascade_path(*by_hand(other, first), TARGET, costs=costs)
    expected = certify_cascade(path, *by_hand(known, first), TARGET, 0.9, costs=costs)
    assert certificate == expected.certificate
    assert certificate.threshold is not None
    assert (cascade.first_threshold, cascade.second_threshold) == (expected.first_threshold, expected.second_threshold)
    assert (cascade.mean_members, cascade.members_interval) == (expected.mean_cost, expected.cost_interval)
    assert cascade.share_person == pytest.approx(expected.share_person)
    assert MemberCascade.from_dict(cascade.to_dict()) == cascade

    log_probs_EC, automated_E = cascade.decide(known.log_probs_MEC, CALIBRATION)
    wrong_E = log_probs_EC.argmax(axis=1) != known.labels
    assert (automated_E.sum(), (wrong_E & automated_E).sum()) == (certificate.num_automated, certificate.errors)
    used_E = cascade.rule(CALIBRATION).members_used(known.log_probs_MEC)
    assert used_E.mean() == pytest.approx(cascade.mean_members)
    assert set(used_E.tolist()) == {first, MEMBERS}

    reduced = first_members(known, used_E)
    assert reduced.members_used.tolist() == used_E.tolist()
    for part, rows in zip(reduced.parts, reduced.indices, strict=True):
        np.testing.assert_array_equal(pooled(part.log_probs_MEC, CALIBRATION), log_probs_EC[rows])
        assert part.ids == tuple(map(str, rows))


def test_a_cascade_saves_members_and_keeps_the_guarantee() -> None:
    """Over fresh draws the end-to-end error is above the target in at most 10 % of certificates, within chance."""
    other, population = draw(400, 1), draw(20_000, 2)
    violations, savings = 0, []
    for seed in range(100, 200):
        certificate, cascade = certify_members(draw(400, seed), other, CALIBRATION, 2, TARGET, 0.9)
        savings.append(1 - cascade.mean_members / MEMBERS)
        if certificate.threshold is None:
            continue
        log_probs_EC, automated_E = cascade.decide(population.log_probs_MEC, CALIBRATION)
        wrong_E = log_probs_EC.argmax(axis=1) != population.labels
        violations += bool(wrong_E[automated_E].mean() > TARGET)
    assert violations <= 19  # three standard deviations above 10 of 100
    assert np.mean(savings) > 0.1


@pytest.mark.parametrize("first", [0, 5, 6])
def test_the_first_stage_has_some_but_not_all_members(first: int) -> None:
    with pytest.raises(ValueError, match=f"the first stage cannot have {first} of 5 members"):
        certify_members(draw(100, 0), draw(100, 1), None, first, TARGET, 0.9)


def test_a_refusal_has_no_thresholds() -> None:
    certificate, cascade = certify_members(draw(300, 0), draw(100, 1), None, 2, 0.01, 0.95)
    assert (certificate.threshold, cascade.first_threshold, cascade.second_threshold) == (None, None, None)
    assert (cascade.share_first, cascade.share_second, cascade.share_person) == (0, 0, 1)
    predictions = draw(50, 3)
    assert not cascade.decide(predictions.log_probs_MEC, None)[1].any()
    with pytest.raises(ValueError, match="the cascade has 2 members and 5, not 3"):
        cascade.threshold_of(3)
