"""A cascade within one ensemble: its first members answer, then all of them, then a person. NumPy and SciPy only.

Both stages rank rows by the largest probability of their mixture, calibrated alike. Axes: `M` member, `E` example,
`C` choice.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from lorchestra.metrics.calibrator import Calibration, pooled
from lorchestra.metrics.cascade import cascade_path, certify_cascade
from lorchestra.metrics.certificates import Certificate
from lorchestra.metrics.predictive import FloatArray, IntArray, confidence
from lorchestra.types import Json, Predictions, plain_values


@dataclass(frozen=True, slots=True)
class CascadeRule:
    """The first members answer a row alone where their calibrated largest probability is at least the threshold."""

    num_first: int
    threshold: float
    calibration: Calibration | None

    def first_stop(self, num_members: int) -> int:
        """The number of members that answer first."""
        return min(self.num_first, num_members)

    def next_stop(self, num_seen: int, num_members: int) -> int:
        """All members answer what the first ones leave."""
        del num_seen
        return num_members

    def is_decided(self, log_probs_MEC: FloatArray, num_members: int) -> NDArray[np.bool_]:
        """Which rows need no further members, bool `[E]`; after all members, every row."""
        if len(log_probs_MEC) >= num_members:
            return np.ones(log_probs_MEC.shape[1], dtype=np.bool_)
        return np.asarray(confidence(pooled(log_probs_MEC, self.calibration)) >= self.threshold)

    def members_used(self, log_probs_MEC: FloatArray) -> IntArray:
        """The number of members that answer each row, int64 `[E]`, from the answers of all."""
        num_members = len(log_probs_MEC)
        decided_E = self.is_decided(log_probs_MEC[: self.num_first], num_members)
        return np.where(decided_E, self.first_stop(num_members), num_members)


@dataclass(frozen=True, slots=True)
class MemberCascade:
    """Two stages of one ensemble, and how they shared the certifying rows; the certificate is kept next to it.

    Attributes:
        num_first: members of the first stage, the first ones of the ensemble.
        num_members: M, those of the second stage.
        first_threshold: the first stage answers from this probability on; None if it answers no row.
        second_threshold: that of the second stage; below it a person answers.
        share_first: of the certifying rows, answered by the first stage.
        share_second: answered by the second stage.
        mean_members: member passes per row.
        members_interval: of their mean, at the confidence of the certificate.
    """

    num_first: int
    num_members: int
    first_threshold: float | None
    second_threshold: float | None
    share_first: float
    share_second: float
    mean_members: float
    members_interval: tuple[float, float]

    @property
    def share_person(self) -> float:
        """Share of the certifying rows that are left to a person."""
        return max(0.0, 1.0 - self.share_first - self.share_second)

    def rule(self, calibration: Calibration | None) -> CascadeRule:
        """Which rows the first stage answers."""
        return CascadeRule(self.num_first, _or_infinite(self.first_threshold), calibration)

    def threshold_of(self, num_members: int) -> float:
        """That of the stage with so many members; infinite if it answers no row.

        Raises:
            ValueError: no stage has so many.
        """
        if num_members not in (self.num_first, self.num_members):
            raise ValueError(f"the cascade has {self.num_first} members and {self.num_members}, not {num_members}")
        first = num_members == self.num_first
        return _or_infinite(self.first_threshold if first else self.second_threshold)

    def decide(
        self, log_probs_MEC: FloatArray, calibration: Calibration | None
    ) -> tuple[FloatArray, NDArray[np.bool_]]:
        """The answers of the whole cascade from the predictions of all members.

        Returns:
            Calibrated log-probabilities of the stage that answers each row, `[E, C]` (for a row that is left to a
            person, of all members); and which rows are automated, bool `[E]`.
        """
        first_EC, all_EC = (pooled(part, calibration) for part in (log_probs_MEC[: self.num_first], log_probs_MEC))
        by_first_E = confidence(first_EC) >= self.threshold_of(self.num_first)
        by_second_E = confidence(all_EC) >= self.threshold_of(self.num_members)
        return np.where(by_first_E[:, None], first_EC, all_EC), np.asarray(by_first_E | by_second_E)

    def to_dict(self) -> Json:
        """The fields as JSON holds them."""
        fields: Json = plain_values(asdict(self))
        return fields

    @classmethod
    def from_dict(cls, values: Json) -> MemberCascade:
        """Read what `to_dict` returned."""
        return cls(**{**values, "members_interval": tuple(values["members_interval"])})


def certify_members(
    predictions: Predictions,
    reference: Predictions,
    calibration: Calibration | None,
    num_first: int,
    target_error: float,
    confidence_level: float,
) -> tuple[Certificate, MemberCascade]:
    """Certify the pair of thresholds end to end; costs are member passes, and a person costs none.

    Args:
        predictions: of the certification rows, with answers.
        reference: of other rows with answers, which fix the pairs of thresholds to be tested.
        calibration: of both mixtures.
        num_first: members of the first stage, at least 1 and fewer than all.
        target_error: as in `certify_cascade`.
        confidence_level: as in `certify_cascade`.

    Raises:
        ValueError: as `certify_cascade`; `num_first` is out of range.
    """
    num_members = predictions.num_members
    if not 0 < num_first < num_members:
        raise ValueError(f"the first stage cannot have {num_first} of {num_members} members")
    costs = (float(num_first), float(num_members - num_first), 0.0)
    path = cascade_path(*_stages(reference, num_first, calibration), target_error, costs=costs)
    stages = _stages(predictions, num_first, calibration)
    certified = certify_cascade(path, *stages, target_error, confidence_level, costs=costs)
    return certified.certificate, MemberCascade(
        num_first=num_first,
        num_members=num_members,
        first_threshold=certified.first_threshold,
        second_threshold=certified.second_threshold,
        share_first=certified.share_first,
        share_second=certified.share_second,
        mean_members=certified.mean_cost,
        members_interval=certified.cost_interval,
    )


def scored(
    log_probs_MEC: FloatArray, labels_E: IntArray, calibration: Calibration | None
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """The largest probability of the calibrated mixture, `[E]`, and whether its answer is right."""
    log_probs_EC = pooled(log_probs_MEC, calibration)
    return confidence(log_probs_EC), np.asarray(np.exp(log_probs_EC).argmax(axis=1) == labels_E)


def _stages(
    predictions: Predictions, num_first: int, calibration: Calibration | None
) -> tuple[FloatArray, NDArray[np.bool_], FloatArray, NDArray[np.bool_]]:
    """Scores of the first stage and whether its answers are right, then of the second."""
    log_probs_MEC, labels_E = predictions.log_probs_MEC, predictions.labels
    return *scored(log_probs_MEC[:num_first], labels_E, calibration), *scored(log_probs_MEC, labels_E, calibration)


def _or_infinite(threshold: float | None) -> float:
    return math.inf if threshold is None else threshold
