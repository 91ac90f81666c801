"""The numbers behind the figures, against values computed by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lorchestra.report.html import measures
from lorchestra.types import Predictions

LOG = np.log


def test_a_moving_mean_skips_gaps():
    means = measures.moving_mean([1, 2, 3, None, 5, 7], 2)
    np.testing.assert_allclose(means, [1, 1.5, 2.5, np.nan, 5, 6])
    np.testing.assert_allclose(measures.moving_mean([None, 4.0], 3), [np.nan, 4])
    np.testing.assert_allclose(measures.moving_mean([1, 2, 3], 1), [1, 2, 3])


def test_abstaining_counts_by_hand():
    log_probs = LOG(np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.45, 0.55]]))
    never, some, all_but_one, none = measures.abstain(log_probs, np.array([0, 1, 1, 0]), [0.0, 0.7 - 1e-9, 0.85, 0.95])
    assert (never.answered, never.wrong, never.coverage, never.risk) == (4, 2, 1.0, 0.5)
    assert (some.answered, some.wrong, some.coverage) == (3, 1, 0.75)
    assert (all_but_one.answered, all_but_one.wrong, all_but_one.risk) == (1, 0, 0.0)
    assert (none.answered, none.risk, none.coverage) == (0, None, 0.0)


def test_examples_are_picked_by_rule():
    first = [[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.9, 0.1]]
    second = [[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.3, 0.7]]
    log_probs = LOG(np.array([first, second]))
    mixture = LOG(np.mean([first, second], axis=0))
    assert measures.confident_mistakes(mixture, np.array([1, 1, 1, 0]), 5) == [1, 0]
    assert measures.confident_mistakes(mixture, np.array([1, 1, 1, 0]), 1) == [1]
    predictions = Predictions(log_probs, np.array([1, 1, 1, 0]), tuple("abcd"), (("no", "yes"),) * 4, "task", "test")
    assert measures.contested(predictions, 5) == [3]
    predicted = replace(predictions, predicted_information=np.array([0.1, 0.0, 0.3, 0.2]))  # by a distilled run
    assert measures.contested(predicted, 5) == [2, 3, 0]
    np.testing.assert_array_equal(
        measures.ood_scores_by_name(predicted, mixture)["mutual_information"], predicted.predicted_information
    )


def test_history_counts_epochs_in_passes():
    steps = [{"event": "step", "step": s, "epoch": (s - 1) // 3, "loss": [1.0, None]} for s in range(1, 7)]
    evaluation = {"event": "evaluation", "step": 6, "val_nll": [0.5, None], "val_accuracy": [0.9, None]}
    course = measures.history([*steps, {"event": "resumed"}, evaluation])
    np.testing.assert_allclose(course.step_epochs, [1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    assert (course.epochs.tolist(), course.val_nll, course.steps_per_epoch) == ([2.0], [[0.5, None]], 3)
    assert measures.history(steps) is None
    assert measures.history([]) is None
    assert measures.history([{"event": "step", "step": 1}, evaluation]) is None


def test_thinning_keeps_both_ends():
    assert measures.thin(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert measures.thin(101, 3).tolist() == [0, 50, 100]
