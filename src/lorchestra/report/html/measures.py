"""The numbers behind the pictures: pure functions of predictions and events.

Axes as in `types`: `M` member, `E` example, `C` choice; `S` step, `K` grid point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorchestra.metrics import predictive
from lorchestra.metrics.predictive import FloatArray, IntArray


def moving_mean(values_S: Sequence[float | None], window: int) -> FloatArray:
    """Mean over the `window` values up to and with each, `[S]`; None takes no part, NaN where there is nothing else."""
    values = np.array([np.nan if value is None else value for value in values_S], dtype=np.float64)
    there = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(there, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(there)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    number = counts[ends] - counts[starts]
    return np.where(there & (number > 0), (sums[ends] - sums[starts]) / np.maximum(number, 1), np.nan)


def agreement(log_probs_MEC: FloatArray) -> FloatArray:
    """Share of rows in which two members give the same answer, `[M, M]`; 1 on the diagonal."""
    votes_ME = log_probs_MEC.argmax(axis=-1)
    return np.asarray((votes_ME[:, None] == votes_ME[None]).mean(axis=-1))


def pairwise_kl(log_probs_MEC: FloatArray) -> FloatArray:
    """Mean over rows of (KL(a || b) + KL(b || a)) / 2 of two members in nats, `[M, M]`; 0 on the diagonal.

    Infinite where one member excludes a choice that the other does not.
    """
    num_members = len(log_probs_MEC)
    found = np.zeros((num_members, num_members))
    probs_MEC = np.exp(log_probs_MEC)
    for a in range(num_members):
        for b in range(a):
            # Choices that neither gives a probability (past the row's own) add nothing.
            shared = ~(np.isneginf(log_probs_MEC[a]) & np.isneginf(log_probs_MEC[b]))
            gap = np.where(shared, log_probs_MEC[a], 0.0) - np.where(shared, log_probs_MEC[b], 0.0)
            apart = probs_MEC[a] - probs_MEC[b]
            # Equal probabilities may have an infinite gap, where one underflowed to the other's 0.
            terms = np.where(apart != 0, apart, 0.0) * np.where(apart != 0, gap, 0.0)
            found[a, b] = found[b, a] = 0.5 * terms.sum(axis=-1).mean()
    return found


@dataclass(frozen=True, slots=True)
class Threshold:
    """What answering only at `confidence` or above does: shares of all rows, and errors among the answered."""

    confidence: float
    coverage: float
    risk: float | None
    answered: int
    wrong: int


def abstain(log_probs_EC: FloatArray, labels_E: IntArray, thresholds: Sequence[float]) -> list[Threshold]:
    """Abstain below each threshold, as `predict --abstain-below` does; risk is None where nothing is answered."""
    confidence_E = predictive.confidence(log_probs_EC)
    wrong_E = log_probs_EC.argmax(axis=-1) != labels_E
    found = []
    for threshold in thresholds:
        answered_E = confidence_E >= threshold
        answered, wrong = int(answered_E.sum()), int((answered_E & wrong_E).sum())
        risk = wrong / answered if answered else None
        found.append(Threshold(threshold, answered / len(labels_E), risk, answered, wrong))
    return found


def ood_scores_by_name(log_probs_MEC: FloatArray) -> dict[str, FloatArray]:
    """The three scores of each row, `[E]`, by the names of metrics.json; the first falls where the others rise."""
    mixture_EC = predictive.mixture_log_probs(log_probs_MEC)
    return {
        "max_prob": predictive.confidence(mixture_EC),
        "entropy": predictive.entropy(mixture_EC),
        "mutual_information": predictive.mutual_information(log_probs_MEC),
    }


def confident_mistakes(log_probs_MEC: FloatArray, labels_E: IntArray, most: int) -> list[int]:
    """Rows that the ensemble gets wrong, from the most confident on; the first of equals first."""
    mixture_EC = predictive.mixture_log_probs(log_probs_MEC)
    confidence_E = predictive.confidence(mixture_EC)
    order = np.argsort(-confidence_E, kind="stable")
    wrong = mixture_EC.argmax(axis=-1) != labels_E
    return [int(e) for e in order if wrong[e]][:most]


def contested(log_probs_MEC: FloatArray, most: int) -> list[int]:
    """Rows by mutual information, from the highest on: members are sure, but not of the same thing.

    Rows without any are left out.
    """
    information_E = predictive.mutual_information(log_probs_MEC)
    order = np.argsort(-information_E, kind="stable")
    return [int(e) for e in order if information_E[e] > 0][:most]


@dataclass(frozen=True)
class History:
    """The course of a training; epochs count passes over the training rows, values are by member, None where absent.

    `losses` has one row a step, at `step_epochs` `[S]`; `val_nll` and `val_accuracy` one an evaluation, at `epochs`.
    """

    step_epochs: FloatArray
    losses: list[list[float | None]]
    epochs: FloatArray
    val_nll: list[list[float | None]]
    val_accuracy: list[list[float | None]]
    steps_per_epoch: float


def history(events: Sequence[Mapping[str, Any]]) -> History | None:
    """The course of training from `events.jsonl`; None where it holds no step or evaluation that can be read."""
    steps = [event for event in events if event.get("event") == "step"]
    evaluations = [event for event in events if event.get("event") == "evaluation"]
    if not steps or not evaluations:
        return None
    try:
        per_epoch = max(sum(1 for step in steps if step["epoch"] == steps[0]["epoch"]), 1)
        return History(
            step_epochs=np.array([step["step"] / per_epoch for step in steps]),
            losses=[list(step["loss"]) for step in steps],
            epochs=np.array([entry["step"] / per_epoch for entry in evaluations]),
            val_nll=[list(entry["val_nll"]) for entry in evaluations],
            val_accuracy=[list(entry["val_accuracy"]) for entry in evaluations],
            steps_per_epoch=per_epoch,
        )
    except (KeyError, TypeError):
        return None


def thin(number: int, most: int) -> IntArray:
    """At most `most` indices of `number` points, evenly, the first and the last among them."""
    if number <= most:
        return np.arange(number)
    return np.unique(np.linspace(0, number - 1, most).round().astype(np.int64))
