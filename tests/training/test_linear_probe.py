"""The fitted probe is scikit-learn's regression, whatever the number of labels."""

import numpy as np
import pytest

from lorchestra.training.linear import STRENGTHS, Rows, fit_linear, scaler
from lorchestra.training.linear_probe import fit_linear_probe


def rows(number, labels, seed):
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(number, 6))
    answers = draw.choice(labels, size=number)
    features[:, 0] += answers
    return Rows(features, answers.astype(np.int64))


@pytest.mark.parametrize("labels", [(0, 1), (0, 1, 2), (0, 3)], ids=["two", "three", "two of four"])
def test_it_answers_as_the_regression(labels):
    train, val, new = rows(80, labels, 0), rows(60, labels, 1), rows(20, labels, 2)
    num_labels = max(labels) + 1
    probe = fit_linear_probe(train, val, num_labels, (1, 2))
    fit = fit_linear(train, val, num_labels, {"states": scaler}, STRENGTHS)
    np.testing.assert_allclose(probe.log_probs(new.inputs), fit.log_probs(new.inputs), rtol=1e-9, atol=1e-12)
    assert probe.layers == (1, 2)


def test_a_single_label_has_no_probe():
    assert fit_linear_probe(rows(20, (1,), 0), rows(60, (0, 1), 1), 2, (1,)) is None
