"""Recall by label, against scikit-learn and by hand; only where labels are unbalanced."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics

from lorchestra.metrics.classes import class_scores
from lorchestra.metrics.scores import class_recall, macro_f1
from lorchestra.types import Predictions


def draw(seed: int, rows: int = 60, classes: int = 3) -> Predictions:
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(2, rows, classes))
    log_probs = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    labels = generator.choice(classes, size=rows, p=[0.8, 0.15, 0.05])
    return Predictions(log_probs, labels, tuple(map(str, range(rows))), (("a", "b", "c"),) * rows, "toy", "test")


@pytest.mark.parametrize("seed", range(5))
def test_scikit_learn_agrees(seed: int) -> None:
    predictions = draw(seed)
    log_probs = predictions.log_probs_MEC[0]
    arguments = (predictions.labels, log_probs.argmax(axis=-1))
    expected = sklearn.metrics.recall_score(*arguments, average=None, labels=[0, 1, 2], zero_division=np.nan)
    np.testing.assert_allclose(class_recall(log_probs, predictions.labels), expected, rtol=1e-12)
    f1 = sklearn.metrics.f1_score(*arguments, average="macro", zero_division=0)
    assert macro_f1(log_probs, predictions.labels) == pytest.approx(f1)


def test_a_label_without_rows_has_no_recall() -> None:
    predictions = draw(0)
    recall = class_recall(predictions.log_probs_MEC[0], np.where(predictions.labels == 2, 0, predictions.labels))
    assert np.isnan(recall[2])
    labels = np.where(predictions.labels == 2, 0, predictions.labels)
    without = Predictions(
        predictions.log_probs_MEC, labels, predictions.ids, predictions.options, predictions.task, predictions.split
    )
    classes = class_scores(without, [0] * 30 + [1] * 5 + [2], {})
    assert classes is not None
    assert classes.recall["ensemble"][2] is None


def test_only_unbalanced_labels_have_classes() -> None:
    predictions = draw(1)
    assert class_scores(predictions, None, {}) is None
    assert class_scores(predictions, [0] * 50 + [1] * 10 + [2] * 10, {}) is None  # exactly a fifth
    classes = class_scores(predictions, [0] * 51 + [1] * 10 + [2] * 10, {"it": draw(2)})
    assert classes is not None
    assert (classes.train_rows, sum(classes.rows)) == ([51, 10, 10], 60)
    assert set(classes.recall) == {"ensemble", "it"}
    missing = class_scores(predictions, [0] * 5 + [1] * 5, {})  # the third label has no training rows
    assert missing is not None
    assert missing.train_rows == [5, 5, 0]
    differing = Predictions(
        *(predictions.log_probs_MEC, predictions.labels, predictions.ids),
        *((("a", "b", "c"), ("c", "b", "a")) * 30, "toy", "test"),
    )
    assert class_scores(differing, [0] * 51 + [1], {}) is None
