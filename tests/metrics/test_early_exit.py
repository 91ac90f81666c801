"""Early exit: the answer of all members, and no row continues whose answer cannot change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lorchestra.errors import ConfigError
from lorchestra.metrics.early_exit import ExitRule, early_log_probs, evaluate_early_exit
from lorchestra.metrics.predictive import mixture_log_probs
from lorchestra.metrics.scores import accuracy, nll

EXACT = ExitRule()


def logs(probs: object) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probs, dtype=np.float64))


def random_ensemble(seed: int, members: int, rows: int, scale: float, grid: int | None) -> NDArray[np.float64]:
    """Log-probabilities `[M, E, 4]` of rows of two, three and four choices that lean towards one of them.

    With a `grid` the probabilities are multiples of its inverse, so that sums tie and meet the bound exactly.
    """
    draw = np.random.default_rng(seed)
    num_choices = draw.integers(2, 5, size=rows)
    absent = np.arange(4) >= num_choices[:, None]
    scores = scale * (draw.normal(size=(rows, 4)) + draw.normal(size=(members, rows, 4)))
    scores = np.where(absent, -np.inf, scores)
    probs = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probs /= probs.sum(axis=-1, keepdims=True)
    if grid is not None:
        steps = np.floor(probs * grid)
        first = probs.argmax(axis=-1)[..., None]
        np.put_along_axis(steps, first, np.take_along_axis(steps, first, -1) + grid - steps.sum(-1, keepdims=True), -1)
        probs = steps / grid
    return logs(probs)


ensembles = st.builds(
    random_ensemble,
    seed=st.integers(0, 2**32 - 1),
    members=st.integers(1, 9),
    rows=st.integers(1, 30),
    scale=st.sampled_from([0.3, 1.0, 3.0, 30.0]),
    grid=st.sampled_from([None, 1, 2, 4, 10]),
)


@settings(max_examples=400, deadline=None)
@given(ensembles)
def test_the_exact_rule_never_changes_an_answer(log_probs: NDArray[np.float64]) -> None:
    used = EXACT.members_used(log_probs)
    early = early_log_probs(log_probs, used)
    np.testing.assert_array_equal(early.argmax(axis=1), mixture_log_probs(log_probs).argmax(axis=1))
    assert (used >= len(log_probs) // 2 + 1).all()
    assert (used <= len(log_probs)).all()


@settings(max_examples=400, deadline=None)
@given(ensembles)
def test_other_members_cannot_change_a_stopped_row_and_can_change_another(
    log_probs: NDArray[np.float64],
) -> None:
    """All further members give one rival probability 1: the worst case, for every rival and number seen."""
    num_members, num_examples, num_choices = log_probs.shape
    for seen in range(1, num_members):
        sums = np.exp(log_probs[:seen]).sum(axis=0)
        leader = sums.argmax(axis=1)
        decided = EXACT.is_decided(log_probs[:seen], num_members)
        can_change = np.zeros(num_examples, dtype=bool)
        for rival in range(num_choices):
            there = np.isfinite(log_probs[:, :, rival]).any(axis=0)
            worst = np.broadcast_to(logs(np.eye(num_choices)[rival]), (num_members - seen, num_examples, num_choices))
            answer = mixture_log_probs(np.concatenate([log_probs[:seen], worst])).argmax(axis=1)
            assert (answer[decided & there] == leader[decided & there]).all()
            tie = np.abs(sums[np.arange(num_examples), leader] - sums[:, rival] - (num_members - seen)) < 1e-7
            can_change |= (rival != leader) & ((answer != leader) | tie)
        assert can_change[~decided].all()


@settings(max_examples=100, deadline=None)
@given(ensembles, st.sampled_from([None, 0.5, 0.8, 1.0]))
def test_rows_counted_at_once_are_rows_stopped_one_by_one(
    log_probs: NDArray[np.float64], confidence: float | None
) -> None:
    rule, num_members = ExitRule(confidence), len(log_probs)
    expected = np.zeros(log_probs.shape[1], dtype=np.int64)
    for seen in range(1, num_members + 1):
        now = rule.is_decided(log_probs[:seen], num_members)
        expected[(expected == 0) & now] = seen
    np.testing.assert_array_equal(rule.members_used(log_probs), expected)


def test_the_exact_rule_by_hand() -> None:
    # Five members, so at least three answer: two more can reduce a lead by 2. Leads after three: 2.4, 1.8, 0.6.
    # After four: the second row leads by 2.4 > 1, the third by 0.8 < 1 and needs all.
    rows = [[[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]]] * 5
    np.testing.assert_array_equal(EXACT.members_used(logs(rows)), [3, 4, 5])


def test_a_lead_equal_to_the_bound_continues() -> None:
    # Two of four members are certain of choice 1; if the other two are certain of choice 0, the tie goes to choice 0.
    seen = logs([[[0, 1]], [[0, 1]], [[1, 0]], [[1, 0]]])
    np.testing.assert_array_equal(EXACT.members_used(seen), [4])
    assert mixture_log_probs(seen).argmax(axis=1) == [0]
    np.testing.assert_array_equal(EXACT.members_used(seen[[0, 1, 1, 2]]), [3])


@pytest.mark.parametrize("rule", [EXACT, ExitRule(0.01), ExitRule(1.0)])
def test_one_member_answers_alone(rule: ExitRule) -> None:
    np.testing.assert_array_equal(rule.members_used(logs([[[0.5, 0.5], [1, 0]]])), [1, 1])


def test_a_row_with_one_choice_stops_first() -> None:
    np.testing.assert_array_equal(EXACT.members_used(logs([[[1]]] * 5)), [3])
    np.testing.assert_array_equal(EXACT.members_used(logs([[[1, 0]]] * 5)), [3])


def test_confidence_by_hand() -> None:
    # Means of choice 0 after two, three, four members. Row 0: 0.9, stops. Row 1: 0.8, 0.85 stops. Row 2 never reaches
    # 0.85. Row 3: a first member that is sure is not enough, and the mean falls to 0.7, then rises to 0.8 only.
    members = np.array([[0.9, 0.8, 0.5, 1.0], [0.9, 0.8, 0.6, 0.4], [0.1, 0.95, 0.7, 1.0], [0.1, 0.1, 0.1, 0.8]])
    rows = np.stack([members, 1 - members], axis=-1)
    rule = ExitRule(0.85)
    np.testing.assert_array_equal(rule.members_used(logs(rows)), [2, 3, 4, 4])
    # 0.9 and 0.8 have a mean of 0.85 up to rounding: reached
    np.testing.assert_array_equal(rule.members_used(logs([[[0.9, 0.1]], [[0.8, 0.2]], [[0.1, 0.9]]])), [2])


def test_nan_of_a_member_stops_no_row() -> None:
    rows = logs([[[0.99, 0.01]]] * 5)
    rows[1] = np.nan
    for rule in (EXACT, ExitRule(0.5)):
        np.testing.assert_array_equal(rule.members_used(rows), [5])


def test_what_it_would_save_and_change() -> None:
    # Row 0 stops after two of three members at 0.5 with answer 0, and all three answer 1; row 1 needs only two.
    rows = logs([[[0.6, 0.4], [0.1, 0.9]], [[0.6, 0.4], [0.2, 0.8]], [[0.0, 1.0], [0.3, 0.7]]])
    labels = np.array([1, 1])
    scores = evaluate_early_exit(rows, labels, ExitRule(0.5))
    assert (scores["rule"], scores["mean_members"], scores["histogram"], scores["agreement"]) == (
        "0.5",
        2.0,
        [0, 2, 0],
        0.5,
    )
    assert scores["accuracy"] == 0.5
    assert scores["nll"] == pytest.approx(-(np.log(0.4) + np.log(0.85)) / 2, rel=1e-12)
    exact = evaluate_early_exit(rows, labels, EXACT)
    assert (exact["rule"], exact["histogram"], exact["agreement"]) == ("exact", [0, 1, 1], 1.0)
    assert exact["accuracy"] == accuracy(mixture_log_probs(rows), labels) == 1.0
    assert exact["nll"] == pytest.approx(nll(early_log_probs(rows, np.array([3, 2])), labels))


@pytest.mark.parametrize(("value", "rule"), [("exact", EXACT), ("0.9", ExitRule(0.9)), (1, ExitRule(1.0))])
def test_rules_are_parsed(value: str | float, rule: ExitRule) -> None:
    assert ExitRule.parse(value) == rule
    assert ExitRule.parse(str(rule)) == rule


@pytest.mark.parametrize("value", ["0", "1.01", "-1", "nan", "inf", "Exact", "", 0.0])
def test_refused_rules(value: str | float) -> None:
    with pytest.raises(ConfigError, match=r"--early-exit: .* is neither exact nor a confidence in \(0, 1\]"):
        ExitRule.parse(value)
