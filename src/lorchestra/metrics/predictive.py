"""The ensemble's predictive distribution and its uncertainty.

Pure NumPy functions of log-probabilities. Axes: `M` member, `E` example, `C` choice. Rows may have different numbers of
choices: columns past a row's choices hold -inf, count as probability zero and never yield NaN (0 log 0 = 0). Entropies
and mutual information are in nats.

Source: arXiv 2310.00035 for the mixture; mutual information as the gap between total and expected entropy is the usual
decomposition of an ensemble's uncertainty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

TEMPERATURE_RANGE = (0.01, 100.0)
"""Range of `fit_temperature`; a fit on a bound means that the validation rows do not determine T."""

TIE = 1e-12
"""Confidences closer than this are equal: rounding must not decide an order or a bin."""


def log_mean_exp(values: FloatArray, axis: int) -> FloatArray:
    """log(mean(exp(values))) along one axis; -inf where every entry is -inf.

    The mean is taken inside the logarithm, so that the average of equal values is that value to the last bit.
    """
    top = values.max(axis=axis, keepdims=True)
    top = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):
        mean = np.log(np.exp(values - top).mean(axis=axis, keepdims=True))
    return np.asarray(np.squeeze(top + mean, axis=axis))


def log_softmax(scores_EC: FloatArray) -> FloatArray:
    """Log-softmax over the last axis, `[E, C]` to `[E, C]`; each row must have a finite entry."""
    return np.asarray(scores_EC - (log_mean_exp(scores_EC, axis=-1) + np.log(scores_EC.shape[-1]))[..., None])


def mixture_log_probs(log_probs_MEC: FloatArray) -> FloatArray:
    """Pool the members: the log of the mean of their normalized probabilities.

    `[M, E, C]` to `[E, C]`, normalized over each row's choices. The members are summed in sorted order, so that
    permuting them changes no bit (and so no tie of the argmax).

    Source: arXiv 2310.00035, the ensemble's predictive distribution.
    """
    return log_mean_exp(np.sort(log_probs_MEC, axis=0), axis=0)


def mean_of_logits(log_probs_MEC: FloatArray) -> FloatArray:
    """Pool the members by the renormalized mean of their log-probabilities: NOT the ensemble of the paper.

    This is the softmax of averaged logits, a geometric mean: sharper than the mixture where members disagree in
    confidence, and a choice that one member excludes is excluded. For comparison with work that pools this way.
    `[M, E, C]` to `[E, C]`.

    Raises:
        ValueError: in some row no choice has a positive probability under all members.
    """
    mean_EC = np.sort(log_probs_MEC, axis=0).mean(axis=0)
    empty = np.flatnonzero(np.isneginf(mean_EC).all(axis=-1))
    if empty.size:
        raise ValueError(f"the mean of logits is undefined in row {empty[0]}: the members share no possible choice")
    return log_softmax(mean_EC)


def entropy(log_probs: FloatArray) -> FloatArray:
    """Entropy in nats over the last axis: `[..., C]` to `[...]`, at least 0."""
    probs = np.exp(log_probs)
    # exp of a very negative number is 0 as well, so test the probability and not for -inf.
    terms = probs * np.where(probs > 0, log_probs, 0.0)
    return np.asarray(np.maximum(-terms.sum(axis=-1), 0.0))


def total_entropy(log_probs_MEC: FloatArray) -> FloatArray:
    """Entropy of the mixture in nats, `[M, E, C]` to `[E]`: the total uncertainty."""
    return entropy(mixture_log_probs(log_probs_MEC))


def expected_entropy(log_probs_MEC: FloatArray) -> FloatArray:
    """Mean entropy of the members in nats, `[M, E, C]` to `[E]`: the uncertainty within members."""
    return np.asarray(np.sort(entropy(log_probs_MEC), axis=0).mean(axis=0))


def mutual_information(log_probs_MEC: FloatArray) -> FloatArray:
    """Mutual information of answer and member in nats, `[M, E, C]` to `[E]`, between 0 and ln M.

    Equals total minus expected entropy. Computed as the members' mean KL divergence from the mixture, which does not
    cancel: equal members give exactly 0. Clipping at 0 removes rounding only.
    """
    probs_MEC = np.exp(log_probs_MEC)
    mixture_EC = mixture_log_probs(log_probs_MEC)
    # Where a member's probability is positive, so is the mixture's: no -inf enters the difference.
    possible_MEC = probs_MEC > 0
    gap_MEC = np.where(possible_MEC, log_probs_MEC, 0.0) - np.where(possible_MEC, mixture_EC, 0.0)
    divergence_ME = (probs_MEC * gap_MEC).sum(axis=-1)
    return np.asarray(np.maximum(np.sort(divergence_ME, axis=0).mean(axis=0), 0.0))


def disagreement(log_probs_MEC: FloatArray) -> FloatArray:
    """Share of member pairs whose most probable choices differ, `[M, E, C]` to `[E]`; 0 for one member."""
    num_members, num_examples, num_choices = log_probs_MEC.shape
    if num_members == 1:
        return np.zeros(num_examples)
    votes_ME = log_probs_MEC.argmax(axis=-1)
    counts_EC = (votes_ME[..., None] == np.arange(num_choices)).sum(axis=0)
    agreeing_E = (counts_EC * (counts_EC - 1)).sum(axis=-1)
    return np.asarray(1.0 - agreeing_E / (num_members * (num_members - 1)))


def confidence(log_probs: FloatArray) -> FloatArray:
    """Largest predictive probability, `[..., C]` to `[...]`."""
    return np.asarray(np.exp(log_probs.max(axis=-1)))


def apply_temperature(log_probs_EC: FloatArray, temperature: float) -> FloatArray:
    """softmax(log p / T) as log-probabilities, `[E, C]` to `[E, C]`; T > 1 flattens, T < 1 sharpens.

    Raises:
        ValueError: the temperature is not a positive finite number.
    """
    if not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature}, not a positive finite number")
    return log_softmax(log_probs_EC / temperature)


def fit_temperature(log_probs_EC: FloatArray, labels_E: IntArray) -> float:
    """The one temperature T that minimizes the NLL of `labels_E` `[E]` under softmax(log p / T) `[E, C]`.

    The NLL is convex in 1/T, so the sign of its slope brackets the optimum; bisection over log T inside
    `TEMPERATURE_RANGE`. Returns a bound if the optimum is outside (all rows right: T to 0), and 1 if every T is equally
    good (uniform rows). Rows whose answer has probability zero have an infinite NLL at every T and are left out.

    Raises:
        ValueError: a label is unknown (-1) or out of range, or no row is left to fit on.
    """
    labels_E = check_labels(log_probs_EC, labels_E)
    usable_E = np.isfinite(log_probs_EC[np.arange(len(labels_E)), labels_E])
    if not usable_E.any():
        raise ValueError("temperature cannot be fitted: no row gives its right answer a positive probability")
    scores_EC = log_probs_EC[usable_E]
    # Relative to each row's top, so that a uniform row has a slope of exactly zero.
    scores_EC = scores_EC - scores_EC.max(axis=-1, keepdims=True)
    target_E = scores_EC[np.arange(len(scores_EC)), labels_E[usable_E]]
    finite_EC = np.where(np.isneginf(scores_EC), 0.0, scores_EC)

    def slope(log_temperature: float) -> float:
        """Derivative of the mean NLL by 1/T: E[score] - score of the answer."""
        weights_EC = np.exp(scores_EC / np.exp(log_temperature))
        expected_E = (weights_EC * finite_EC).sum(axis=-1) / weights_EC.sum(axis=-1)
        return float((expected_E - target_E).mean())

    low, high = np.log(TEMPERATURE_RANGE)
    slope_low, slope_high = slope(low), slope(high)
    if slope_low == 0 and slope_high == 0:
        return 1.0
    if slope_low <= 0:  # still falling in 1/T at the largest 1/T
        return TEMPERATURE_RANGE[0]
    if slope_high >= 0:
        return TEMPERATURE_RANGE[1]
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return float(np.exp((low + high) / 2))


def majority_log_probs(train_labels: Sequence[int] | IntArray, num_choices_E: IntArray) -> FloatArray:
    """Training label frequencies, one added to each, as a distribution over each row's choices, `[E, C]`.

    For texts with labels, index c is a class; for questions it is the position of an option, so the frequencies of the
    first `num_choices` indices are renormalized per row. The prediction is the most frequent index (the first of
    equals).

    Raises:
        ValueError: a training label is negative.
    """
    labels = np.asarray(train_labels, dtype=np.int64)
    if (labels < 0).any():
        raise ValueError("train_labels has -1 (unknown answer); leave these rows out")
    width = int(num_choices_E.max())
    weights_C = np.bincount(labels, minlength=width)[:width] + 1.0
    weights_EC = np.where(np.arange(width) < num_choices_E[:, None], weights_C, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(weights_EC / weights_EC.sum(axis=1, keepdims=True)))


def tie_groups(confidence_E: FloatArray) -> tuple[IntArray, IntArray]:
    """Rows from most to least confident, `[E]`, and the start of each group of equals in that order, `[G]`."""
    order_E = np.argsort(-confidence_E, kind="stable")
    falls = -np.diff(confidence_E[order_E]) > TIE
    return order_E, np.concatenate([[0], np.flatnonzero(falls) + 1])


def risk_coverage(log_probs_EC: FloatArray, labels_E: IntArray) -> tuple[FloatArray, FloatArray]:
    """Error rate among the most confident rows, as more rows are answered.

    Returns coverage `[E]` (1/E, 2/E, ..., 1) and risk `[E]` (share of wrong answers among that many most confident
    rows). A row counts as the mean error of its group of equal confidence, the expectation over a random order within
    the group, so the order of rows in the file does not matter.

    Raises:
        ValueError: a label is unknown (-1) or out of range.
    """
    labels_E = check_labels(log_probs_EC, labels_E)
    errors_E = (log_probs_EC.argmax(axis=-1) != labels_E).astype(np.float64)
    order_E, starts_G = tie_groups(confidence(log_probs_EC))
    sizes_G = np.diff(np.append(starts_G, len(labels_E)))
    mean_errors_G = np.add.reduceat(errors_E[order_E], starts_G) / sizes_G
    answered_E = np.arange(1, len(labels_E) + 1)
    return answered_E / len(labels_E), np.cumsum(np.repeat(mean_errors_G, sizes_G)) / answered_E


def check_labels(log_probs_EC: FloatArray, labels_E: IntArray) -> IntArray:
    """Return the labels `[E]` as int64 if they fit the log-probabilities `[E, C]`.

    Raises:
        ValueError: shapes differ, there is no row, a log-probability is NaN, or a label is -1 (unknown) or >= C.
    """
    labels_E = np.asarray(labels_E, dtype=np.int64)
    if log_probs_EC.ndim != 2 or labels_E.shape != log_probs_EC.shape[:1]:
        raise ValueError(f"log_probs has shape {log_probs_EC.shape} and labels {labels_E.shape}, not [E, C] and [E]")
    if not len(labels_E):
        raise ValueError("there are no rows to evaluate")
    if np.isnan(log_probs_EC).any():
        raise ValueError(f"log_probs has NaN in row {np.flatnonzero(np.isnan(log_probs_EC).any(axis=-1))[0]}")
    unknown = np.flatnonzero(labels_E == -1)
    if unknown.size:
        raise ValueError(
            f"label -1 (unknown answer) in {unknown.size} rows, the first is row {unknown[0]}: "
            "metrics need the answer of every row; leave these rows out"
        )
    outside = np.flatnonzero((labels_E < 0) | (labels_E >= log_probs_EC.shape[1]))
    if outside.size:
        raise ValueError(f"label {labels_E[outside[0]]} in row {outside[0]} is not in 0..{log_probs_EC.shape[1] - 1}")
    return labels_E
