"""Certificates: how often they are violated, what they give away, and where they are refused."""

from __future__ import annotations

import numpy as np
import pytest
import score_models
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from score_models import Population

from lorchestra.metrics.certificates import Certificate, certify, certify_by_class, certify_max_errors

DRAWS = 2000
"""Certificates per case."""

POPULATIONS = {
    "smooth": score_models.smooth(0.6, 2),
    "steep": score_models.smooth(0.5, 4),
    # all hypotheses are barely true: the worst case
    "at the target": score_models.smooth(0.0, 1, floor=0.0501),
    "not monotone": score_models.bumpy(),
    "tied": score_models.tied(0.6, 2, levels=10),
    "discrete": score_models.discrete(),
    "saturated": score_models.saturated(0.0505),
    "perfectly confident": score_models.certain(0.0501),
}


def violations_are_few(violations: int, confidence: float, draws: int = DRAWS) -> bool:
    """Whether so many violations have a probability above one in a thousand if the certificate holds."""
    return bool(stats.binom.sf(violations - 1, draws, 1 - confidence) > 1e-3)


def certificates(population: Population, num_rows: int, target: float, seed: int = 1) -> list[Certificate]:
    """`DRAWS` certificates, each with its reference rows."""
    generator, results = np.random.default_rng(seed), []
    for _ in range(DRAWS):
        reference, _ = population.draw(generator, 300)
        scores, wrong = population.draw(generator, num_rows)
        results.append(certify(scores, ~wrong, target, reference_scores_E=reference))
    return results


@pytest.mark.parametrize(("num_rows", "target"), [(300, 0.1), (2000, 0.05)])
@pytest.mark.parametrize("name", POPULATIONS)
def test_the_guarantee_holds(name: str, num_rows: int, target: float) -> None:
    population = POPULATIONS[name]
    results = [one for one in certificates(population, num_rows, target) if one.threshold is not None]
    assert violations_are_few(sum(population.error(one.threshold) > target for one in results), 0.95)
    assert all(one.error_bound <= target for one in results)


@pytest.mark.parametrize("name", ["smooth", "at the target", "tied", "discrete", "saturated", "perfectly confident"])
def test_the_guarantee_holds_without_reference_rows(name: str) -> None:
    population, generator = POPULATIONS[name], np.random.default_rng(2)
    violations = 0
    for _ in range(DRAWS):
        scores, wrong = population.draw(generator, 1000)
        one = certify(scores, ~wrong, 0.05)
        violations += one.threshold is not None and population.error(one.threshold) > 0.05
    assert violations_are_few(violations, 0.95)


@pytest.mark.parametrize(
    ("name", "target", "off_oracle"), [("smooth", 0.1, 0.07), ("steep", 0.05, 0.06), ("tied", 0.1, 0.03)]
)
def test_it_gives_little_away(name: str, target: float, off_oracle: float) -> None:
    """Coverage against the best threshold, and against one exact test of the best threshold that can be tested."""
    population = POPULATIONS[name]
    coverage = np.mean(
        [
            0.0 if one.threshold is None else population.coverage(one.threshold)
            for one in certificates(population, 2000, target)
        ]
    )
    assert coverage > population.testable(target, 2000, 0.95) - 0.02
    assert coverage > population.oracle(target) - off_oracle


def test_the_coverage_interval_covers() -> None:
    population = POPULATIONS["steep"]
    misses = sum(
        not one.coverage_interval[0] <= population.coverage(one.threshold) <= one.coverage_interval[1]
        for one in certificates(population, 1000, 0.05)
        if one.threshold is not None
    )
    # the threshold depends on the rows, so the interval is not exact
    assert misses < 0.08 * DRAWS


def test_of_all_classes_together() -> None:
    """Four classes, two barely above the target and one of 10 rows: any violation in any class counts."""
    classes = [POPULATIONS["at the target"], POPULATIONS["perfectly confident"], score_models.smooth(0.3, 2)]
    generator, violations = np.random.default_rng(3), 0
    rows, reference_rows = [500, 700, 800, 10], [100, 0, 100, 100]
    passed = 0
    for _ in range(DRAWS):
        drawn = [classes[min(c, 2)].draw(generator, n) for c, n in enumerate(rows)]
        reference = [classes[min(c, 2)].draw(generator, n)[0] for c, n in enumerate(reference_rows)]
        results = certify_by_class(
            np.concatenate([scores for scores, _ in drawn]),
            ~np.concatenate([wrong for _, wrong in drawn]),
            np.repeat(np.arange(4), rows),
            4,
            0.05,
            reference_scores_E=np.concatenate(reference),
            reference_predicted_E=np.repeat(np.arange(4), reference_rows),
        )
        assert results.num_tested == 3
        assert results.certificates[3].threshold is None
        thresholds = results.thresholds
        violations += any(np.isfinite(thresholds[c]) and classes[c].error(thresholds[c]) > 0.05 for c in range(3))
        passed += np.isfinite(thresholds[2])
    assert violations_are_few(violations, 0.95)
    assert passed > 0.9 * DRAWS


@pytest.mark.parametrize("name", ["smooth", "not monotone", "tied", "saturated", "perfectly confident"])
def test_the_guarantee_on_errors_per_1000_rows(name: str) -> None:
    population, generator, violations, coverage = POPULATIONS[name], np.random.default_rng(4), 0, []
    for _ in range(DRAWS):
        scores, wrong = population.draw(generator, 2000)
        one = certify_max_errors(scores, ~wrong, 30)
        violations += one.threshold is not None and population.wrong(one.threshold) > 0.03
        coverage.append(0.0 if one.threshold is None else population.coverage(one.threshold))
        assert one.error_of == "all"
    assert violations_are_few(violations, 0.95)
    if name == "smooth":
        # 0.2 (1 - t)^3 = 0.03 at a coverage of 53 %
        assert np.mean(coverage) > 0.53 - 0.06


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(59, 400),
    st.sampled_from([0.0, 0.01, 0.1, 0.6, 1.0]),
    st.sampled_from([1, 2, 5, 1000]),
)
def test_a_certificate_counts_its_rows(seed: int, num_rows: int, error: float, levels: int) -> None:
    generator = np.random.default_rng(seed)
    scores = np.ceil(generator.random(num_rows) * levels) / levels
    correct = generator.random(num_rows) >= error * (1 - scores / 2)
    reference = np.ceil(generator.random(50) * levels) / levels
    shuffled = generator.permutation(num_rows)
    for one, again in (
        (
            certify(scores, correct, 0.05, reference_scores_E=reference),
            certify(scores[shuffled], correct[shuffled], 0.05, reference_scores_E=reference),
        ),
        (certify_max_errors(scores, correct, 60), certify_max_errors(scores[shuffled], correct[shuffled], 60)),
    ):
        assert one == again
        assert one.num_rows == num_rows
        if one.threshold is None:
            assert (one.coverage, one.num_automated, one.error_bound) == (0.0, 0, None)
            assert one.reason
            continue
        automated = scores >= one.threshold
        assert one.num_automated == automated.sum()
        assert one.errors == (automated & ~correct).sum()
        assert one.coverage == automated.mean()
        assert one.coverage_interval[0] <= one.coverage <= one.coverage_interval[1]
        assert (one.reason, one.rows_needed) == (None, None)
        assert one.error_bound <= one.target_error


def test_all_right() -> None:
    one = certify(np.ones(59), np.ones(59), 0.05, reference_scores_E=np.ones(1))
    assert (one.coverage, one.errors, one.num_automated) == (1.0, 0, 59)
    assert one.error_bound == pytest.approx(1 - 0.05 ** (1 / 59))
    everything = certify_max_errors(np.linspace(0, 1, 59), np.ones(59), 50)
    assert everything.threshold == 0.0
    assert everything.coverage == 1.0


def test_all_wrong_is_refused_and_no_number_would_do() -> None:
    one = certify(np.ones(80), np.zeros(80), 0.05, reference_scores_E=np.ones(10))
    assert (one.threshold, one.rows_needed) == (None, None)
    assert "80 of 80 automated rows are wrong" in one.reason
    assert "not more rows but a better score" in one.reason
    budget = certify_max_errors(np.ones(80), np.zeros(80), 50)
    assert (budget.threshold, budget.rows_needed) == (None, None)
    assert "80 of 80 rows have the highest score and are wrong" in budget.reason


def test_scores_below_all_reference_rows_are_not_automated() -> None:
    one = certify(np.linspace(0, 1, 500), np.ones(500), 0.05, reference_scores_E=np.linspace(0.5, 1, 100))
    assert one.threshold == pytest.approx(0.5)
    assert one.coverage == pytest.approx(0.5)
    none = certify(np.zeros(500), np.ones(500), 0.05, reference_scores_E=np.ones(100))
    assert (none.threshold, none.rows_needed) == (None, None)
    assert "no certification row has a score as high" in none.reason


def test_many_certificates_pass_with_the_rows_that_are_needed() -> None:
    """One hundred rows of equal scores, three wrong: refused; then with as many more as it says."""
    refused = certify(np.ones(100), np.arange(100) >= 3, 0.05, reference_scores_E=np.ones(10))
    assert refused.threshold is None
    total, generator = 100 + refused.rows_needed, np.random.default_rng(5)
    passed = np.mean(
        [
            certify(np.ones(total), generator.random(total) >= 0.03, 0.05, reference_scores_E=np.ones(10)).threshold
            is not None
            for _ in range(500)
        ]
    )
    # more than half: with equal scores all starts are the same test, at the whole budget
    assert 0.4 < passed < 0.85
    assert f"about {refused.rows_needed} more labelled rows" in refused.reason


@pytest.mark.parametrize("target", [0.0, 1.0, -0.1, 5, np.nan])
def test_targets_outside_of_the_unit_interval(target: float) -> None:
    with pytest.raises(ValueError, match=r"target_error is .*, not in \(0, 1\)"):
        certify(np.ones(100), np.ones(100), target)
    with pytest.raises(ValueError, match=r"confidence is .*, not in \(0, 1\)"):
        certify(np.ones(100), np.ones(100), 0.05, target)


@pytest.mark.parametrize(
    ("scores", "correct", "message"),
    [
        ([], [], "there are no rows"),
        ([1.0], [1], "one row can never certify an error of at most 0.05 with confidence 0.95: at least 59"),
        (np.ones(58), np.ones(58), "58 rows can never certify .* at least 59 are needed"),
        ([1.0, 0.5], [1], r"scores have shape \(2,\) and correctness \(1,\)"),
        ([1.0, np.nan], [1, 1], "the score of row 1 is nan"),
        ([np.inf, 1.0], [1, 1], "the score of row 0 is inf"),
        ([1.0, 1.0], [1, 2], "the correctness of row 1 is 2, neither right"),
        ([1.0, 1.0], [1.0, np.nan], "the correctness of row 1 is nan"),
    ],
)
def test_refused_input(scores: object, correct: object, message: str) -> None:
    scores, correct = np.array(scores, dtype=float), np.array(correct)
    with pytest.raises(ValueError, match=message):
        certify(scores, correct, 0.05, reference_scores_E=np.ones(5))
    with pytest.raises(ValueError, match=message):
        certify_max_errors(scores, correct, 50)


def test_refused_reference_rows_and_limits() -> None:
    with pytest.raises(ValueError, match="there are no reference scores"):
        certify(np.ones(100), np.ones(100), 0.05, reference_scores_E=np.ones(0))
    with pytest.raises(ValueError, match="reference score 0 is nan"):
        certify(np.ones(100), np.ones(100), 0.05, reference_scores_E=np.array([np.nan]))
    with pytest.raises(ValueError, match=r"max_errors_per_1000 is 1000, not in \(0, 1000\)"):
        certify_max_errors(np.ones(100), np.ones(100), 1000)
    with pytest.raises(ValueError, match=r"a predicted class is outside 0\.\.1"):
        certify_by_class(
            np.ones(100),
            np.ones(100),
            np.full(100, 2),
            2,
            0.05,
            reference_scores_E=np.ones(1),
            reference_predicted_E=np.zeros(1, dtype=int),
        )


def test_classes_with_few_rows_say_what_they_need() -> None:
    correct = np.ones(130)
    correct[110:] = 0
    results = certify_by_class(
        np.ones(130),
        correct,
        np.repeat([0, 1, 2], [100, 10, 20]),
        4,
        0.05,
        reference_scores_E=np.ones(3),
        reference_predicted_E=np.zeros(3, dtype=int),
    )
    good, few, bad, none = results.certificates
    # half of the budget would be theirs: 0.95^72 = 0.0249
    assert (good.coverage, few.rows_needed, bad.rows_needed, none.rows_needed) == (1.0, 62, None, 72)
    assert "10 rows predicted as this class; at least 72 are needed" in few.reason
    assert "20 of 20 rows predicted as this class are wrong" in bad.reason
    np.testing.assert_array_equal(results.thresholds[1:], np.inf)


def test_one_class_is_the_same_as_none() -> None:
    generator = np.random.default_rng(6)
    scores, wrong = POPULATIONS["smooth"].draw(generator, 1000)
    reference, _ = POPULATIONS["smooth"].draw(generator, 200)
    zeros = np.zeros(1000, dtype=int)
    results = certify_by_class(
        scores, ~wrong, zeros, 1, 0.1, reference_scores_E=reference, reference_predicted_E=zeros[:200]
    )
    alone = certify(scores, ~wrong, 0.1, reference_scores_E=reference)
    assert results.certificates[0].threshold == alone.threshold
    assert results.num_tested == 1
