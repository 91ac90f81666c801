"""What the model says about rows, and whether new rows are like those that a guarantee was made on.

Axes: `M` member, `E` example, `C` class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from lorchestra.metrics.calibrator import Calibration, pooled
from lorchestra.metrics.drift import (
    Shift,
    conformal_p_values,
    errors_p_value,
    level_of_look,
    log_martingale,
    rejected,
    shift_of_classes,
    shift_of_numbers,
)
from lorchestra.metrics.predictive import FloatArray, entropy, information
from lorchestra.types import Json, Predictions

LARGE_PSI = 0.1
"""A change of a distribution rings only from this PSI on: with many rows, the smallest change is significant."""
ANSWERS = "predicted answers"
LOSSES, ERRORS = "losses in order", "errors among automated rows"
NUMBERS = {
    "max_prob": "confidence",
    "entropy": "entropy",
    "mutual_information": "mutual information",
    "num_tokens": "tokens per row",
    "characters_per_token": "characters per token",
}
"""Titles of the numbers of a `Profile`."""


@dataclass(frozen=True)
class Profile:
    """Numbers of rows, without their texts.

    Attributes:
        source: where the rows came from.
        numbers: by the keys of `NUMBERS`, one value per row.
        predicted: rows by predicted label; empty where choices differ by row.
        losses: `-log p(answer)` in nats, of the rows with a label, in order.
    """

    source: str
    numbers: Mapping[str, tuple[float, ...]]
    predicted: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()

    @property
    def num_rows(self) -> int:
        """E."""
        return len(self.numbers["max_prob"])

    def to_dict(self) -> Json:
        """As JSON has it, with six digits per number."""
        numbers = {name: _rounded(values) for name, values in self.numbers.items()}
        return {
            "source": self.source,
            "numbers": numbers,
            "predicted": list(self.predicted),
            "losses": _rounded(self.losses),
        }

    @classmethod
    def from_dict(cls, values: Json) -> Profile:
        """The inverse of `to_dict`."""
        numbers = {name: tuple(column) for name, column in values["numbers"].items()}
        return cls(values["source"], numbers, tuple(values["predicted"]), tuple(values["losses"]))


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def profile(
    predictions: Predictions, calibration: Calibration | None, num_tokens: Sequence[int], source: str
) -> Profile:
    """The numbers of predicted rows.

    Args:
        predictions: of all members, with texts.
        calibration: of the mixture; None for none.
        num_tokens: of each row's prompt.
        source: where the rows came from.
    """
    log_probs_EC = pooled(predictions.log_probs_MEC, calibration)
    top_E, labels_E = log_probs_EC.argmax(axis=1), predictions.labels
    known = np.flatnonzero(labels_E >= 0)
    losses = -np.maximum(log_probs_EC[known, labels_E[known]], math.log(1e-12))
    lengths = [len(text) for text in predictions.texts]
    columns: dict[str, FloatArray] = {
        "max_prob": np.exp(log_probs_EC.max(axis=1)),
        "entropy": entropy(log_probs_EC),
        "mutual_information": information(predictions),
        "num_tokens": np.array(num_tokens, dtype=np.float64),
        "characters_per_token": np.array([length / max(n, 1) for length, n in zip(lengths, num_tokens, strict=True)]),
    }
    predicted = np.zeros(0, dtype=np.int64)
    if len(set(predictions.options)) == 1:
        predicted = np.bincount(top_E, minlength=log_probs_EC.shape[1])
    numbers = {name: tuple(column.tolist()) for name, column in columns.items()}
    return Profile(source, numbers, tuple(predicted.tolist()), tuple(losses.tolist()))


@dataclass(frozen=True)
class AutomatedErrors:
    """New rows that were automated and have a label."""

    errors: int
    num_automated: int
    target_error: float


@dataclass(frozen=True)
class Monitoring:
    """The comparison of new rows with the reference.

    Attributes:
        source: of the new rows.
        reference: source of the reference rows.
        num_rows: new rows.
        num_reference: reference rows.
        look: how many different sets of rows the run was compared with, this one included.
        false_alarm: probability of any false alarm over all looks.
        level: that of this look.
        shifts: by quantity.
        p_values: of all hypotheses, those on labels included.
        significant: hypotheses that are rejected, Holm's procedure over all.
        automated: errors among automated rows; None without labels or without a threshold.
    """

    source: str
    reference: str
    num_rows: int
    num_reference: int
    look: int
    false_alarm: float
    level: float
    shifts: Mapping[str, Shift]
    p_values: Mapping[str, float]
    significant: tuple[str, ...]
    automated: AutomatedErrors | None = None

    @property
    def reasons(self) -> tuple[str, ...]:
        """What rings: significant hypotheses, distributions only where their change is not small."""
        return tuple(name for name in self.significant if name not in self.shifts or self.shifts[name].psi >= LARGE_PSI)

    @property
    def is_alarm(self) -> bool:
        """Whether the rows are unlike the reference."""
        return bool(self.reasons)

    def sentence(self) -> str:
        """The verdict."""
        rows = f"{self.num_rows:,} rows of {self.source} and {self.num_reference:,} of {self.reference}"
        if self.is_alarm:
            reasons = ", ".join(self.reasons)
            hint = (
                "A guarantee made on the latter does not hold for the former: label some of these and calibrate again."
            )
            return f"Alarm: {reasons} differ between {rows}. {hint}"
        small = [name for name in self.significant if name not in self.reasons]
        if small:
            return f"No alarm: {', '.join(small)} differ between {rows}, but little."
        return f"No alarm: no difference was found between {rows}."

    def to_dict(self) -> Json:
        """As JSON has it."""
        return asdict(self) | {"reasons": list(self.reasons), "alarm": self.is_alarm, "sentence": self.sentence()}


def compare(
    reference: Profile,
    new: Profile,
    *,
    look: int = 1,
    false_alarm: float = 0.05,
    automated: AutomatedErrors | None = None,
    seed: int = 0,
) -> Monitoring:
    """Compare new rows with reference rows.

    All hypotheses of one look hold together at its level (Holm), and all looks at `false_alarm` (`level_of_look`).

    Args:
        reference: rows like those that the guarantee is for.
        new: the rows in question, in the order in which they came.
        look: number of comparisons with the reference so far, this one included.
        false_alarm: probability of any alarm although nothing has changed, in (0, 1).
        automated: errors among the new rows that are automated.
        seed: of the draws that break ties of losses.
    """
    shifts = {
        title: shift_of_numbers(np.array(reference.numbers[name]), np.array(new.numbers[name]))
        for name, title in NUMBERS.items()
    }
    if reference.predicted and len(reference.predicted) == len(new.predicted):
        shifts[ANSWERS] = shift_of_classes(np.array(reference.predicted), np.array(new.predicted))
    p_values = {title: shift.p_value for title, shift in shifts.items()}
    if reference.losses and new.losses:
        logs = log_martingale(conformal_p_values(np.array(reference.losses), np.array(new.losses), seed))
        p_values[LOSSES] = min(1.0, math.exp(-float(logs.max())))
    if automated is not None:
        p_values[ERRORS] = errors_p_value(automated.errors, automated.num_automated, automated.target_error)
    level = level_of_look(false_alarm, look)
    return Monitoring(
        source=new.source,
        reference=reference.source,
        num_rows=new.num_rows,
        num_reference=reference.num_rows,
        look=look,
        false_alarm=false_alarm,
        level=level,
        shifts=shifts,
        p_values=p_values,
        significant=rejected(p_values, level),
        automated=automated,
    )
