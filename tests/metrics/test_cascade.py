"""Cascades: the end-to-end guarantee, what they save, and where they are refused."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from lorchestra.metrics.cascade import RATIOS, CascadeCertificate, cascade_path, certify_cascade

FloatArray = NDArray[np.float64]
Rows = tuple[FloatArray, FloatArray, FloatArray, FloatArray]


def draw_rows(
    generator: np.random.Generator, num_rows: int, noise: float, levels: int | None = None, scale: float = 0.5
) -> Rows:
    """Scores and right answers of both stages; the first makes the errors of the second and some more."""
    ease = generator.random(num_rows)
    second_wrong = generator.random(num_rows) < scale * (1 - ease) ** 2
    first_wrong = second_wrong | (generator.random(num_rows) < scale * (1 - ease) ** 2)
    scores = [ease + width * generator.normal(size=num_rows) for width in (noise, 0.05)]
    if levels:
        scores = [np.round(levels * np.clip(values, 0, 1)) / levels for values in scores]
    return scores[0], 1.0 - first_wrong, scores[1], 1.0 - second_wrong


def automated_by(cascade: CascadeCertificate, rows: Rows) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows each stage answers, by the saved thresholds."""
    never = np.zeros(len(rows[0]), dtype=bool)
    first = never if cascade.first_threshold is None else rows[0] >= cascade.first_threshold
    second = never if cascade.second_threshold is None else rows[2] >= cascade.second_threshold
    return first, ~first & second


def true_error(cascade: CascadeCertificate, rows: Rows) -> float:
    first, second = automated_by(cascade, rows)
    return float((first * (1 - rows[1]) + second * (1 - rows[3])).sum() / (first | second).sum())


@pytest.mark.parametrize(("noise", "levels"), [(0.1, None), (0.4, None), (0.2, 5)])
def test_the_guarantee_holds_end_to_end(noise: float, levels: int | None) -> None:
    generator = np.random.default_rng(0)
    population = draw_rows(generator, 200_000, noise, levels)
    draws, violations, passed = 400, 0, 0
    for _ in range(draws):
        path = cascade_path(*draw_rows(generator, 200, noise, levels), 0.08)
        cascade = certify_cascade(path, *draw_rows(generator, 800, noise, levels), 0.08)
        if cascade.certificate.threshold is not None:
            passed += 1
            violations += true_error(cascade, population) > 0.08
    assert stats.binom.sf(violations - 1, draws, 0.05) > 1e-3
    assert passed > 0.5 * draws


def test_the_guarantee_does_not_depend_on_the_path() -> None:
    """A path that was made on rows of another kind, and an error that is everywhere barely too high."""
    generator, violations, draws = np.random.default_rng(1), 0, 1000
    path = cascade_path(*draw_rows(generator, 300, 0.1), 0.05)
    for _ in range(draws):
        scores, correct = generator.random((2, 600)), (generator.random((2, 600)) >= 0.0501).astype(float)
        cascade = certify_cascade(path, scores[0], correct[0], scores[1], correct[1], 0.05)
        violations += cascade.certificate.threshold is not None
    assert stats.binom.sf(violations - 1, draws, 0.05) > 1e-3


def test_what_it_reports() -> None:
    generator = np.random.default_rng(2)
    costs = (1.0, 5.0, 20.0)
    path = cascade_path(*draw_rows(generator, 500, 0.1), 0.05, costs=costs)
    rows = draw_rows(generator, 3000, 0.1)
    cascade = certify_cascade(path, *rows, 0.05, costs=costs)
    first, second = automated_by(cascade, rows)
    one = cascade.certificate
    assert (one.num_automated, one.num_rows) == ((first | second).sum(), 3000)
    assert one.errors == (first * (1 - rows[1]) + second * (1 - rows[3])).sum()
    assert one.error_bound <= 0.05
    assert cascade.share_first == pytest.approx(first.mean())
    assert cascade.share_second == pytest.approx(second.mean())
    assert cascade.share_person == pytest.approx(1 - one.coverage)
    assert cascade.mean_cost == pytest.approx(1 + 5 * (1 - first.mean()) + 20 * cascade.share_person)
    assert cascade.cost_interval[0] < cascade.mean_cost < cascade.cost_interval[1]
    assert first.any()
    assert second.any()


def test_the_path_goes_from_strict_to_lax() -> None:
    path = cascade_path(*draw_rows(np.random.default_rng(3), 400, 0.2, levels=20), 0.05)
    for thresholds in (path.first, path.second):
        assert (np.diff(thresholds[np.isfinite(thresholds)]) <= 0).all()
    assert (np.diff(path.coverage) > 0).all()
    assert (path.coverage[-1], path.ratio in RATIOS) == (1.0, True)


def test_a_useless_first_stage_answers_nothing() -> None:
    generator = np.random.default_rng(4)
    _, _, scores, correct = draw_rows(generator, 2000, 0.1)
    useless = generator.random(2000)
    path = cascade_path(useless, np.zeros(2000), scores, correct, 0.05)
    assert path.first[0] == np.inf
    new = draw_rows(generator, 2000, 0.1)
    cascade = certify_cascade(path, useless, np.zeros(2000), new[2], new[3], 0.05)
    assert (cascade.first_threshold, cascade.share_first) == (None, 0.0)
    assert cascade.share_second > 0.3


def test_equal_stages_use_the_first_one() -> None:
    generator = np.random.default_rng(5)
    _, _, scores, correct = draw_rows(generator, 1000, 0.1)
    path = cascade_path(scores, correct, scores, correct, 0.05)
    new = draw_rows(generator, 1000, 0.1)
    cascade = certify_cascade(path, new[2], new[3], new[2], new[3], 0.05)
    assert (path.ratio, cascade.share_second) == (1.0, 0.0)
    assert cascade.share_first > 0.2


def test_all_right_all_wrong_and_ties() -> None:
    ones, zeros = np.ones(100), np.zeros(100)
    path = cascade_path(ones, ones, ones, ones, 0.05)
    right = certify_cascade(path, ones, ones, ones, ones, 0.05)
    assert (right.certificate.coverage, right.share_first, right.mean_cost) == (1.0, 1.0, 1.0)
    wrong = certify_cascade(path, ones, zeros, ones, zeros, 0.05)
    assert (wrong.certificate.threshold, wrong.certificate.rows_needed) == (None, None)
    assert (wrong.first_threshold, wrong.share_person, wrong.mean_cost) == (None, 1.0, 2.0)
    single = cascade_path(np.ones(1), np.zeros(1), np.ones(1), np.ones(1), 0.05)
    assert len(single.tolerances) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_error": 1.5}, "target_error is 1.5"),
        (
            {"second_scores_E": np.ones(99), "second_correct_E": np.ones(99)},
            "first stage has 100 rows and",
        ),
        ({"first_scores_E": np.full(100, np.nan)}, "the score of row 0 is nan"),
        ({"costs": (1.0, -1.0, 0.0)}, r"costs are \(1.0, -1.0, 0.0\), not three numbers"),
    ],
)
def test_refused_input(changes: dict[str, object], message: str) -> None:
    names = ("first_scores_E", "first_correct_E", "second_scores_E", "second_correct_E")
    arguments = {name: np.ones(100) for name in names} | {"target_error": 0.05}
    path = cascade_path(**arguments)
    with pytest.raises(ValueError, match=message):
        cascade_path(**(arguments | changes))
    with pytest.raises(ValueError, match=message):
        certify_cascade(path, **(arguments | changes))
    with pytest.raises(ValueError, match="20 rows can never certify"):
        certify_cascade(path, *(np.ones(20) for _ in range(4)), 0.05)
