"""The numbers behind the page's figures: pure functions of predictions and events.

Axes as in `types`: `M` member, `E` example, `C` choice; `S` step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorchestra.metrics import predictive
from lorchestra.metrics.predictive import FloatArray, IntArray
from lorchestra.types import Json, Predictions


def moving_mean(values_S: Sequence[float | None], window: int) -> FloatArray:
    """Mean over the last `window` values at each step, `[S]`; None is skipped, and NaN where the value is None."""
    values = np.array([np.nan if value is None else value for value in values_S], dtype=np.float64)
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    number = counts[ends] - counts[starts]
    return np.where(finite & (number > 0), (sums[ends] - sums[starts]) / np.maximum(number, 1), np.nan)


@dataclass(frozen=True, slots=True)
class Threshold:
    """Answering only at `confidence` or above: share of rows answered (`coverage`), and errors among these."""

    confidence: float
    coverage: float
    risk: float | None
    answered: int
    wrong: int


def abstain(log_probs_EC: FloatArray, labels_E: IntArray, thresholds: Sequence[float]) -> list[Threshold]:
    """Abstain below each threshold, as `predict --abstain-below` does; risk is None where nothing is answered."""
    confidence_E = predictive.confidence(log_probs_EC)
    wrong_E = log_probs_EC.argmax(axis=-1) != labels_E
    points = []
    for threshold in thresholds:
        answered_E = confidence_E >= threshold
        answered, wrong = int(answered_E.sum()), int((answered_E & wrong_E).sum())
        risk = wrong / answered if answered else None
        points.append(Threshold(threshold, answered / len(labels_E), risk, answered, wrong))
    return points


def ood_scores_by_name(predictions: Predictions, mixture_EC: FloatArray) -> dict[str, FloatArray]:
    """The three scores of each row, `[E]`, by their names in `metrics.json`; OOD rows have a low `max_prob`.

    Those of the mixture are of `mixture_EC`, which may be calibrated.
    """
    return {
        "max_prob": predictive.confidence(mixture_EC),
        "entropy": predictive.entropy(mixture_EC),
        "mutual_information": predictive.information(predictions),
    }


def confident_mistakes(mixture_EC: FloatArray, labels_E: IntArray, most: int) -> list[int]:
    """Rows that the ensemble gets wrong, the most confident first; of equals the first."""
    confidence_E = predictive.confidence(mixture_EC)
    order = np.argsort(-confidence_E, kind="stable")
    wrong = mixture_EC.argmax(axis=-1) != labels_E
    return [int(e) for e in order if wrong[e]][:most]


def contested(predictions: Predictions, most: int) -> list[int]:
    """Rows with mutual information, the highest first: members are sure, but of different answers."""
    information_E = predictive.information(predictions)
    order = np.argsort(-information_E, kind="stable")
    return [int(e) for e in order if information_E[e] > 0][:most]


@dataclass(frozen=True)
class History:
    """The course of a training; epochs count passes over the training rows, values are per member, None if missing.

    `losses` has one row per step, at `step_epochs` `[S]`; `val_nll` and `val_accuracy` one per evaluation, at `epochs`.
    """

    step_epochs: FloatArray
    losses: list[list[float | None]]
    epochs: FloatArray
    val_nll: list[list[float | None]]
    val_accuracy: list[list[float | None]]
    steps_per_epoch: float


def history(events: Sequence[Json]) -> History | None:
    """The course of a training from `events.jsonl`; None without a readable step or evaluation."""
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
    """At most `most` evenly spaced indices of `number` points, including the first and the last."""
    if number <= most:
        return np.arange(number)
    return np.unique(np.linspace(0, number - 1, most).round().astype(np.int64))
