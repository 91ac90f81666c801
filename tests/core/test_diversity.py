import numpy as np
import pytest
from scipy.stats import entropy

from lorchestra.core.diversity import pairwise_correlation, pairwise_kl, update_cosine


@pytest.fixture
def log_probs():
    """Three members, five rows of two to four choices."""
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(3, 5, 4))
    for row, number in enumerate((2, 4, 3, 4, 2)):
        scores[:, row, number:] = -np.inf
    return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))


def test_pairwise_kl_is_the_mean_over_ordered_pairs(log_probs):
    probs = np.exp(log_probs)
    expected = np.mean(
        [
            entropy(probs[i, row, :number], probs[j, row, :number])
            for i in range(3)
            for j in range(3)
            for row, number in enumerate((2, 4, 3, 4, 2))
            if i != j
        ]
    )
    assert pairwise_kl(log_probs) == pytest.approx(expected, abs=1e-12)
    assert pairwise_kl(np.stack([log_probs[0]] * 3)) == 0
    assert np.isnan(pairwise_kl(log_probs[:1]))


def test_correlation_of_the_choices_that_exist(log_probs):
    present = np.isfinite(log_probs[0])
    flat = [np.exp(member[present]) for member in log_probs]
    expected = np.mean([np.corrcoef(flat[i], flat[j])[0, 1] for i, j in ((0, 1), (0, 2), (1, 2))])
    assert pairwise_correlation(log_probs) == pytest.approx(expected, abs=1e-12)
    assert pairwise_correlation(np.stack([log_probs[1]] * 2)) == pytest.approx(1.0)
    assert np.isnan(pairwise_correlation(log_probs[:1]))


def test_cosine_of_updates_equals_that_of_the_dense_products():
    draw = np.random.default_rng(1)
    members = [
        [(draw.normal(size=(r, 6)), draw.normal(size=(5, r))), (draw.normal(size=(r, 4)), draw.normal(size=(7, r)))]
        for r in (2, 3, 2)
    ]
    dense = [np.concatenate([(B @ A).ravel() for A, B in member]) for member in members]
    expected = np.mean(
        [dense[i] @ dense[j] / np.linalg.norm(dense[i]) / np.linalg.norm(dense[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    )
    assert update_cosine(members) == pytest.approx(expected, abs=1e-12)
    assert update_cosine([members[0], members[0]]) == pytest.approx(1.0)
    assert np.isnan(update_cosine(members[:1]))
