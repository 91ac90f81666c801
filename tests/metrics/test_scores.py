"""Metrics by hand, against scikit-learn and torchmetrics, and on resamples."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchmetrics.classification import MulticlassCalibrationError

from lorchestra.metrics import predictive
from lorchestra.metrics import scores as metrics
from lorchestra.metrics.table import AUTOMATED

# Four rows of three choices, the last column absent in row 3. All numbers below follow from these.
#   row  probabilities     answer  prediction  confidence
#   0    0.7  0.2  0.1     0       0 right     0.7
#   1    0.1  0.8  0.1     0       1 wrong     0.8
#   2    0.3  0.3  0.4     2       2 right     0.4
#   3    0.5  0.5  -       1       0 wrong     0.5   (a tie: the first choice is the prediction)
PROBS = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.5, 0.5, 0.0]])
with np.errstate(divide="ignore"):
    LOG_PROBS = np.log(PROBS)
LABELS = np.array([0, 0, 2, 1])


def random_rows(seed: int, rows: int, choices: int = 5, ragged: bool = False) -> tuple[NDArray[np.float64], NDArray]:
    generator = np.random.default_rng(seed)
    num_choices = generator.integers(3, choices + 1, size=rows) if ragged else np.full(rows, choices)
    labels = (generator.random(rows) * num_choices).astype(np.int64)
    scores = 1.5 * generator.normal(size=(rows, choices))
    scores[np.arange(rows), labels] += 1.0
    scores = np.where(np.arange(choices) < num_choices[:, None], scores, -np.inf)
    return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True)), labels


def test_accuracy_by_hand() -> None:
    assert metrics.accuracy(LOG_PROBS, LABELS) == 0.5


def test_macro_f1_by_hand() -> None:
    # Class 0: 1 hit, answers 2, predictions 2: F1 = 2/4. Class 1: 0 hits: 0. Class 2: 1 hit, 1 answer, 1 prediction: 1.
    assert metrics.macro_f1(LOG_PROBS, LABELS) == pytest.approx((0.5 + 0 + 1) / 3)


def test_nll_by_hand() -> None:
    # Probabilities of the answers: 0.7, 0.1, 0.4, 0.5.
    assert metrics.nll(LOG_PROBS, LABELS) == pytest.approx(-np.log(0.7 * 0.1 * 0.4 * 0.5) / 4)


def test_brier_by_hand() -> None:
    # Row 0: 0.09 + 0.04 + 0.01 = 0.14. Row 1: 0.81 + 0.64 + 0.01 = 1.46. Row 2: 0.09 + 0.09 + 0.36 = 0.54.
    # Row 3: 0.25 + 0.25 = 0.5.
    assert metrics.brier(LOG_PROBS, LABELS) == pytest.approx((0.14 + 1.46 + 0.54 + 0.5) / 4)


def test_ece_by_hand() -> None:
    # Two bins: (0, 0.5] holds rows 2 and 3 (0.5 is a right edge): confidence 0.45, accuracy 0.5, gap -0.05.
    # (0.5, 1] holds rows 0 and 1: confidence 0.75, accuracy 0.5, gap 0.25. ECE = (0.05 + 0.25) / 2.
    assert metrics.ece(LOG_PROBS, LABELS, bins=2) == pytest.approx(0.15)
    # Four bins: (0.25, 0.5] as before, (0.5, 0.75] row 0: gap -0.3, (0.75, 1] row 1: gap 0.8.
    assert metrics.ece(LOG_PROBS, LABELS, bins=4) == pytest.approx((0.1 + 0.3 + 0.8) / 4)
    # Two bins of equal mass split 0.4, 0.5 | 0.7, 0.8: the same two bins.
    assert metrics.ece(LOG_PROBS, LABELS, bins=2, scheme="mass") == pytest.approx(0.15)
    # One bin each: |0.4 - 1| + |0.5 - 0| + |0.7 - 1| + |0.8 - 0|.
    assert metrics.ece(LOG_PROBS, LABELS, bins=4, scheme="mass") == pytest.approx((0.6 + 0.5 + 0.3 + 0.8) / 4)


def test_signed_gap_by_hand() -> None:
    # Mean confidence (0.7 + 0.8 + 0.4 + 0.5) / 4 = 0.6, accuracy 0.5.
    assert metrics.signed_gap(LOG_PROBS, LABELS) == pytest.approx(0.1)


def test_aurc_by_hand() -> None:
    # By falling confidence: wrong, right, wrong, right: risks 1, 1/2, 2/3, 1/2.
    assert metrics.aurc(LOG_PROBS, LABELS) == pytest.approx((1 + 1 / 2 + 2 / 3 + 1 / 2) / 4)


def test_auroc_by_hand() -> None:
    # Pairs (negative, positive) of {0.1, 0.4} and {0.4, 0.8}: 0.1 is below both, 0.4 ties once and is below once:
    # (1 + 1 + 0.5 + 1) / 4.
    assert metrics.auroc(np.array([0.1, 0.4]), np.array([0.4, 0.8])) == 0.875
    assert metrics.auroc(np.zeros(3), np.zeros(4)) == 0.5
    assert np.isnan(metrics.auroc(np.zeros(3), np.zeros(0)))
    with pytest.raises(ValueError, match="NaN"):
        metrics.auroc(np.array([np.nan]), np.zeros(1))


def test_bins_are_closed_above() -> None:
    confidences = np.array([0.1, 0.2, 0.2 + 1e-9, 0.3, 0.6, 1.0])
    np.testing.assert_array_equal(metrics.bin_rows(confidences, bins=5), [0, 0, 1, 1, 2, 4])
    # 0.1 + 0.2 is 0.30000000000000004: rounding does not lift it over the edge at 0.3.
    assert metrics.bin_rows(np.array([0.1 + 0.2]), bins=10)[0] == 2
    assert metrics.bin_rows(np.array([1.0 + 1e-10]), bins=10)[0] == 9


def test_equal_mass_bins_hold_equally_many_and_never_split_equals() -> None:
    confidences = np.random.default_rng(0).permutation(np.linspace(0.3, 1, 60))
    np.testing.assert_array_equal(np.bincount(metrics.bin_rows(confidences, 15, "mass"), minlength=15), 4)
    # 7 rows in 3 bins: upper edges at the sorted rows ceil(7/3) = 3, ceil(14/3) = 5 and 7.
    np.testing.assert_array_equal(metrics.bin_rows(np.arange(1, 8) / 7, 3, "mass"), [0, 0, 0, 1, 1, 2, 2])
    tied = np.array([0.5, 0.9, 0.9, 0.9, 0.9, 0.9])
    np.testing.assert_array_equal(metrics.bin_rows(tied, 3, "mass"), [0, 0, 0, 0, 0, 0])


def test_bad_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="bins is 0"):
        metrics.bin_rows(np.array([0.5]), 0)
    with pytest.raises(ValueError, match="scheme is 'depth'"):
        metrics.bin_rows(np.array([0.5]), 5, "depth")  # type: ignore[arg-type]


def test_an_answer_of_probability_zero_has_infinite_nll_and_is_counted() -> None:
    values = metrics.all_metrics(LOG_PROBS, np.array([0, 0, 2, 2]))
    assert values["nll"] == np.inf
    assert metrics.nll(LOG_PROBS, np.array([0, 0, 2, 2])) == np.inf
    assert values["num_zero_probability"] == 1
    assert all(np.isfinite(value) for name, value in values.items() if name != "nll")


@pytest.mark.parametrize(
    "metric", [metrics.accuracy, metrics.macro_f1, metrics.nll, metrics.brier, metrics.ece, metrics.aurc]
)
def test_unknown_answers_are_refused(metric: object) -> None:
    with pytest.raises(ValueError, match="label -1"):
        metric(LOG_PROBS, np.array([0, -1, 2, 1]))  # type: ignore[operator]


@pytest.mark.parametrize("seed", range(3))
def test_scikit_learn_agrees(seed: int) -> None:
    log_probs, labels = random_rows(seed, 300)
    probs, predicted = np.exp(log_probs), log_probs.argmax(axis=-1)
    assert metrics.accuracy(log_probs, labels) == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    assert metrics.macro_f1(log_probs, labels) == pytest.approx(
        sklearn.metrics.f1_score(labels, predicted, average="macro")
    )
    assert metrics.nll(log_probs, labels) == pytest.approx(sklearn.metrics.log_loss(labels, probs))
    one_hot = np.eye(5)[labels]
    by_choice = [sklearn.metrics.brier_score_loss(one_hot[:, choice], probs[:, choice]) for choice in range(5)]
    assert metrics.brier(log_probs, labels) == pytest.approx(sum(by_choice))


def test_scikit_learn_agrees_on_macro_f1_with_classes_missing() -> None:
    log_probs, labels = random_rows(0, 8)
    expected = sklearn.metrics.f1_score(labels, log_probs.argmax(axis=-1), average="macro", zero_division=0)
    assert len(set(labels)) < 5
    assert metrics.macro_f1(log_probs, labels) == pytest.approx(expected)


@pytest.mark.parametrize("decimals", [1, 8])
def test_scikit_learn_agrees_on_auroc(decimals: int) -> None:
    generator = np.random.default_rng(1)
    negative, positive = generator.normal(size=150).round(decimals), generator.normal(0.5, size=90).round(decimals)
    expected = sklearn.metrics.roc_auc_score([0] * 150 + [1] * 90, np.concatenate([negative, positive]))
    assert metrics.auroc(negative, positive) == pytest.approx(expected)


@pytest.mark.parametrize("bins", [10, 15, 20])
def test_torchmetrics_agrees_on_ece(bins: int) -> None:
    # torchmetrics closes its bins below and not above; random confidences never fall on an edge.
    log_probs, labels = random_rows(7, 400)
    reference = MulticlassCalibrationError(num_classes=5, n_bins=bins, norm="l1")
    expected = reference(torch.from_numpy(np.exp(log_probs)), torch.from_numpy(labels)).item()
    assert metrics.ece(log_probs, labels, bins=bins) == pytest.approx(expected, rel=1e-5)


def test_aurc_is_the_mean_of_the_risk_coverage_curve() -> None:
    log_probs, labels = random_rows(2, 200)
    log_probs = np.log(np.round(np.exp(log_probs), 1) + 1e-3)  # many equal confidences
    assert len(np.unique(predictive.confidence(log_probs).round(9))) < 12
    assert metrics.aurc(log_probs, labels) == pytest.approx(predictive.risk_coverage(log_probs, labels)[1].mean())


def test_all_metrics_are_those_of_the_single_functions() -> None:
    log_probs, labels = random_rows(9, 50, ragged=True)
    values = metrics.all_metrics(log_probs, labels)
    for name in metrics.RESAMPLED:
        function = (
            partial(metrics.share_automated, target=AUTOMATED[name]) if name in AUTOMATED else vars(metrics)[name]
        )
        assert values[name] == pytest.approx(function(log_probs, labels), abs=1e-12), name
    for bins in (10, 15, 20):
        assert values[f"ece_width_{bins}"] == metrics.ece(log_probs, labels, bins)
        assert values[f"ece_mass_{bins}"] == metrics.ece(log_probs, labels, bins, "mass")
    assert values["mean_confidence"] == pytest.approx(values["accuracy"] + values["signed_gap"])


@pytest.mark.parametrize("num_rows", [6, 60])  # few rows: resamples without some class, or some group of confidence
def test_a_resample_is_the_set_of_rows_it_draws(num_rows: int) -> None:
    log_probs, labels = random_rows(5, num_rows, ragged=True)
    log_probs[::3] = log_probs[0]  # equal confidences, so that groups are resampled too
    labels[::3] = np.arange(num_rows // 3) % 3
    generator = np.random.default_rng(0)
    counts = generator.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=8).astype(np.float64)
    resampled = metrics.resampled_metrics(metrics.score_rows(log_probs, labels), counts)
    assert tuple(resampled) == metrics.RESAMPLED
    assert (resampled["macro_f1"] > 0).any()
    for index, count in enumerate(counts):
        rows = np.repeat(np.arange(num_rows), count.astype(int))
        alone = metrics.all_metrics(log_probs[rows], labels[rows])
        for name in metrics.RESAMPLED:
            assert resampled[name][index] == pytest.approx(alone[name], abs=1e-12), name


def test_a_row_of_infinite_nll_counts_only_where_it_is_drawn() -> None:
    rows = metrics.score_rows(LOG_PROBS, np.array([0, 0, 2, 2]))
    nll = metrics.resampled_metrics(rows, np.array([[2.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]]))["nll"]
    assert nll[0] == pytest.approx(-np.log(0.7 * 0.7 * 0.1 * 0.4) / 4)
    assert nll[1] == np.inf


def test_the_interval_holds_95_percent_of_the_draws() -> None:
    # 25 of 1,000 draws lie below the low end and 25 above the high end.
    assert metrics.interval(np.random.default_rng(0).permutation(1000).astype(np.float64)) == [25.0, 974.0]
    assert metrics.interval(np.array([1.0, np.inf, 2.0])) == [1.0, np.inf]
    assert metrics.interval(np.array([1.0, np.nan])) is None


def test_bootstrap_intervals_have_the_width_that_theory_says() -> None:
    # The standard error of an accuracy p over E rows is sqrt(p (1 - p) / E); a 95 % interval is 2 * 1.96 of it wide.
    log_probs, labels = random_rows(0, 500)
    draws = metrics.bootstrap({"one": metrics.score_rows(log_probs, labels)}, resamples=2000, seed=0)["one"]
    low, high = metrics.interval(draws["accuracy"]) or (0.0, 0.0)
    share = metrics.accuracy(log_probs, labels)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 500), rel=0.1)
    assert draws["nll"].mean() == pytest.approx(metrics.nll(log_probs, labels), rel=0.01)


def test_bootstrap_in_chunks_gives_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    log_probs, labels = random_rows(0, 40)
    scores = {"one": metrics.score_rows(log_probs, labels)}
    whole = metrics.bootstrap(scores, resamples=30, seed=3)["one"]
    monkeypatch.setattr(metrics, "CHUNK_CELLS", 280)
    chunked = metrics.bootstrap(scores, resamples=30, seed=3)["one"]
    for name in metrics.RESAMPLED:
        np.testing.assert_allclose(chunked[name], whole[name], rtol=1e-12)
    assert not np.allclose(metrics.bootstrap(scores, resamples=30, seed=4)["one"]["nll"], whole["nll"])
    assert metrics.bootstrap(scores, resamples=0, seed=0) == {}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_permuting_rows_or_padding_choices_changes_nothing(seed: int, rows: int) -> None:
    log_probs, labels = random_rows(seed, rows, ragged=True)
    log_probs[1::2] = log_probs[0]  # ties of confidence must not make the order matter
    labels[1::2] = np.minimum(labels[1::2], 2)
    values = metrics.all_metrics(log_probs, labels)
    order = np.random.default_rng(seed).permutation(rows)
    assert metrics.all_metrics(log_probs[order], labels[order]) == pytest.approx(values, abs=1e-12)
    wide = np.pad(log_probs, ((0, 0), (0, 3)), constant_values=-np.inf)
    assert metrics.all_metrics(wide, labels) == pytest.approx(values, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 30))
def test_the_mixture_is_never_worse_than_the_mean_member(seed: int, members: int, rows: int) -> None:
    generator = np.random.default_rng(seed)
    scores = 3 * generator.normal(size=(members, rows, 4))
    log_probs = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    labels = generator.integers(4, size=rows)
    mixture = predictive.mixture_log_probs(log_probs)
    for metric in (metrics.nll, metrics.brier):
        assert metric(mixture, labels) <= np.mean([metric(member, labels) for member in log_probs]) + 1e-12
