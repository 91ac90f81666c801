"""A cascade of two runs: a cheap run answers first, then an expensive one, then a person. NumPy and SciPy only.

Each run ranks rows by the largest probability of its calibrated mixture. Axes: `E` example.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from lorchestra.metrics.calibrator import Calibration
from lorchestra.metrics.cascade import cascade_path, certify_cascade
from lorchestra.metrics.certificates import Certificate
from lorchestra.metrics.decisions import CertifyingRows, DecisionSettings, refusal
from lorchestra.metrics.member_cascade import scored
from lorchestra.metrics.predictive import FloatArray
from lorchestra.types import Json, Predictions, plain_values

Runs = tuple[tuple[Predictions, Calibration], tuple[Predictions, Calibration]]
"""Predictions of the same rows by both runs, the first one first, with the calibration of each."""


@dataclass(frozen=True, slots=True)
class RunCascade:
    """Two runs as stages, and how they shared the certifying rows.

    Attributes:
        second: digest of the second run's ensemble (`EnsembleRecord.digest`).
        calibrations: digest of both runs' calibrations.
        certificate: end to end; its `threshold` is that of the path (`metrics.cascade`).
        rows: the rows that certified.
        first_threshold: the first run answers from this probability on; None if it answers no row.
        second_threshold: that of the second run; below it a person answers.
        share_first: of the certifying rows, answered by the first run.
        share_second: answered by the second run.
        seconds: per row, of each run, measured while it answered the certifying rows.
        mean_seconds: per row, of the cascade at these times.
        seconds_interval: of their mean, at the confidence of the certificate.
    """

    second: str
    calibrations: str
    certificate: Certificate
    rows: CertifyingRows
    first_threshold: float | None
    second_threshold: float | None
    share_first: float
    share_second: float
    seconds: tuple[float, float]
    mean_seconds: float
    seconds_interval: tuple[float, float]

    @property
    def has_threshold(self) -> bool:
        """Whether any answer can be automated."""
        return self.certificate.threshold is not None

    @property
    def share_person(self) -> float:
        """Share of the certifying rows that are left to a person."""
        return max(0.0, 1.0 - self.share_first - self.share_second)

    @property
    def thresholds(self) -> tuple[float, float]:
        """Of both runs; infinite where one answers no row."""
        first, second = self.first_threshold, self.second_threshold
        return math.inf if first is None else first, math.inf if second is None else second

    def guarantee(self) -> str:
        """What is guaranteed, or why nothing is, in one sentence."""
        one = self.certificate
        if not self.has_threshold:
            return f"No thresholds: {refusal(one)}."
        return (
            f"At most {100 * one.target_error:.4g} % of the automated rows are wrong, whichever run answers them, with"
            f" {100 * one.confidence:.4g} % confidence over the draw of the {one.num_rows:,} certifying rows."
        )

    def to_dict(self) -> Json:
        """The fields as JSON holds them; the guarantee in words is one of them."""
        fields: Json = plain_values(asdict(self))
        return {"guarantee": self.guarantee()} | fields

    @classmethod
    def from_dict(cls, values: Json) -> RunCascade:
        """Read what `to_dict` returned; `store.run_cascade_record` checks what comes from a file."""
        fields = {name: values[name] for name in cls.__dataclass_fields__}
        return cls(
            **fields
            | {
                "certificate": Certificate.from_dict(values["certificate"]),
                "rows": CertifyingRows(**values["rows"]),
                "seconds": tuple(values["seconds"]),
                "seconds_interval": tuple(values["seconds_interval"]),
            }
        )


def certify_runs(
    known: Runs,
    other: Runs,
    settings: DecisionSettings,
    rows: CertifyingRows,
    seconds: tuple[float, float],
    digests: tuple[str, str],
) -> RunCascade:
    """Certify the pair of thresholds end to end.

    Args:
        known: the certification rows, with answers.
        other: reference rows, which fix the pairs of thresholds to be tested.
        settings: target error and confidence.
        rows: recorded in the result.
        seconds: per row, of each run. They are reported; a person costs none, so that they do not move thresholds.
        digests: `second` and `calibrations` of the result.

    Raises:
        ValueError: as `certify_cascade`.
    """
    target, costs = settings.target_error, (*seconds, 0.0)
    path = cascade_path(*_scored(other), target, costs=costs)
    certified = certify_cascade(path, *_scored(known), target, settings.confidence, costs=costs)
    return RunCascade(
        second=digests[0],
        calibrations=digests[1],
        certificate=certified.certificate,
        rows=rows,
        first_threshold=certified.first_threshold,
        second_threshold=certified.second_threshold,
        share_first=certified.share_first,
        share_second=certified.share_second,
        seconds=seconds,
        mean_seconds=certified.mean_cost,
        seconds_interval=certified.cost_interval,
    )


def _scored(runs: Runs) -> tuple[FloatArray, NDArray[np.bool_], FloatArray, NDArray[np.bool_]]:
    """Scores of the first run and whether its answers are right, then of the second."""
    (first, first_calibration), (second, calibration) = runs
    return *scored(first.log_probs_MEC, first.labels, first_calibration), *scored(
        second.log_probs_MEC, second.labels, calibration
    )
