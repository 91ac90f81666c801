"""Decisions on a run's answers: which are automated, and which choices fit. NumPy and SciPy only.

Certification rows set the thresholds and the prediction sets. Reference rows, other ones, choose and fit the score and
fix which thresholds are tested. Axes: `M` member, `E` example, `C` choice or class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lorchestra.metrics.calibrator import Calibration, pooled
from lorchestra.metrics.certificates import Certificate, certify, certify_by_class, certify_max_errors
from lorchestra.metrics.conformal import ConformalSets, Method, choose_penalty, fit_conformal
from lorchestra.metrics.costs import CostComparison, compare_policies
from lorchestra.metrics.member_cascade import MemberCascade, certify_members
from lorchestra.metrics.predictive import FloatArray, IntArray
from lorchestra.metrics.ranking import (
    CombinedScore,
    Score,
    ScoreChoice,
    choose_score,
    chosen_scores,
    fit_combined,
    simple_scores,
)
from lorchestra.types import Json, Predictions

ScoreSetting = Literal["auto", "max_prob", "margin", "entropy", "mutual_information", "agreement", "combined"]
Decision = Literal["automate", "abstain"]
BoolArray = NDArray[np.bool_]

OWN_TEST = "test rows of the run"
"""`CertifyingRows.source` of these."""


@dataclass(frozen=True, slots=True)
class DecisionSettings:
    """What is to be certified.

    Attributes:
        target_error: highest error rate among automated rows.
        confidence: probability of the guarantee.
        max_errors_per_1000: highest number of automated and wrong rows among 1,000 rows, in place of the target error.
        per_class: one threshold per predicted class.
        score: by which rows are ranked.
        sets: coverage of prediction sets; None for none.
        sets_method: of `metrics.conformal`.
        sets_by_class: the coverage of sets holds for each class.
        cascade: members that answer first, before all of them; None for no cascade.
    """

    target_error: float = 0.05
    confidence: float = 0.95
    max_errors_per_1000: float | None = None
    per_class: bool = False
    score: ScoreSetting = "auto"
    sets: float | None = None
    sets_method: Method = "lac"
    sets_by_class: bool = False
    cascade: int | None = None

    @property
    def rate(self) -> float:
        """The error rate to certify, be it among automated or among all rows."""
        return self.target_error if self.max_errors_per_1000 is None else self.max_errors_per_1000 / 1000


@dataclass(frozen=True, slots=True)
class CertifyingRows:
    """Which rows certified.

    Attributes:
        source: `OWN_TEST`, or the name of a file.
        num_rows: how many.
        num_reference: validation rows, which chose the score and fixed the thresholds to test.
        date: UTC, as 2026-11-28T12:00:00Z.
        look: number of certificates made for the run so far, this one included.
        num_repeated: rows that an earlier certificate has used, whatever became of it.
        earlier_risk: sum of 1 - confidence over the earlier certificates.
    """

    source: str
    num_rows: int
    num_reference: int
    date: str
    look: int = 1
    num_repeated: int = 0
    earlier_risk: float = 0.0


@dataclass(frozen=True, slots=True)
class SetSizes:
    """Shares of certification rows by the size of their prediction set, and the mean size."""

    one: float
    several: float
    none: float
    mean: float


@dataclass(frozen=True, slots=True)
class Decisions:
    """How answers are decided, and what is guaranteed.

    Attributes:
        score: by which rows are ranked.
        choice: the AURC of all scores on the reference rows, and how `score` was chosen.
        rows: the rows that certified.
        certificates: one, or one per class.
        classes: the predicted classes that have a separate certificate; None for one certificate.
        combined: the model of the combined score.
        sets: prediction sets.
        set_sizes: of the certification rows.
        costs: what deciding by cost would save.
        cascade: the stages that the only certificate is for, end to end; its `threshold` is then that of the path
            (`metrics.cascade`), and those of the stages are here.
    """

    score: Score
    choice: ScoreChoice
    rows: CertifyingRows
    certificates: tuple[Certificate, ...]
    classes: tuple[str, ...] | None = None
    combined: CombinedScore | None = None
    sets: ConformalSets | None = None
    set_sizes: SetSizes | None = None
    costs: CostComparison | None = None
    cascade: MemberCascade | None = None

    @property
    def has_threshold(self) -> bool:
        """Whether any answer can be automated."""
        return any(one.threshold is not None for one in self.certificates)

    @property
    def stages(self) -> MemberCascade | None:
        """The cascade by which rows are answered; None if there is none, or if it was refused."""
        return self.cascade if self.has_threshold else None

    @property
    def thresholds(self) -> tuple[float | None, ...]:
        """The threshold, or one per class; None where it was refused."""
        return tuple(one.threshold for one in self.certificates)

    def scores(
        self, log_probs_MEC: FloatArray, log_probs_EC: FloatArray, information_E: FloatArray | None = None
    ) -> FloatArray:
        """The score of each row, `[E]`, from the members' log-probabilities and the calibrated ones.

        `information_E` is the mutual information as a distilled run predicts it.
        """
        return chosen_scores(self.score, simple_scores(log_probs_MEC, log_probs_EC, information_E), self.combined)

    def automated(
        self, log_probs_MEC: FloatArray, log_probs_EC: FloatArray, information_E: FloatArray | None = None
    ) -> BoolArray:
        """Which rows are automated, bool `[E]`: those whose score is at least the threshold.

        In a cascade these are the members of the stage that answers the rows, and the threshold is that stage's.
        """
        if self.cascade is not None:
            threshold = self.cascade.threshold_of(len(log_probs_MEC))
            return np.asarray(self.scores(log_probs_MEC, log_probs_EC) >= threshold)
        return self._above(self.scores(log_probs_MEC, log_probs_EC, information_E), predicted(log_probs_EC))

    def decide(
        self, log_probs_MEC: FloatArray, calibration: Calibration | None, information_E: FloatArray | None = None
    ) -> tuple[FloatArray, BoolArray]:
        """From the predictions of all members: the calibrated answers, `[E, C]`, and which of them are automated."""
        if self.cascade is not None:
            return self.cascade.decide(log_probs_MEC, calibration)
        log_probs_EC = pooled(log_probs_MEC, calibration)
        return log_probs_EC, self.automated(log_probs_MEC, log_probs_EC, information_E)

    def _above(self, scores_E: FloatArray, predicted_E: IntArray) -> BoolArray:
        thresholds = np.array([np.inf if value is None else value for value in self.thresholds])
        return np.asarray(scores_E >= (thresholds[predicted_E] if self.classes is not None else thresholds[0]))

    def guarantee(self) -> str:
        """What is guaranteed, or why nothing is, in one sentence."""
        first = self.certificates[0]
        if not self.has_threshold:
            return f"No threshold: {refusal(first)}." if self.classes is None else "No threshold for any class."
        with_confidence = f"with {100 * first.confidence:.4g} % confidence"
        end = f"{with_confidence} over the draw of the {self.rows.num_rows:,} certifying rows"
        if first.error_of == "all":
            return f"Of 1,000 rows, at most {1000 * first.target_error:.4g} are automated and wrong, {end}."
        most = f"at most {100 * first.target_error:.4g} % of the automated rows are wrong"
        if self.cascade is not None:
            most += ", whichever stage answers them"
        if self.classes is not None:
            return f"In each predicted class with a threshold, {most}, for all of them {end}."
        return f"{most[0].upper()}{most[1:]}, {end}."

    def to_dict(self) -> Json:
        """The fields as JSON holds them; the guarantee in words is one of them."""
        names = [None] * len(self.certificates) if self.classes is None else self.classes
        return {
            "guarantee": self.guarantee(),
            "score": self.score,
            "choice": self.choice.to_dict(),
            "rows": asdict(self.rows),
            "certificates": [
                {"class": name, **one.to_dict()} for name, one in zip(names, self.certificates, strict=True)
            ],
            "combined": None if self.combined is None else self.combined.to_dict(),
            "sets": None if self.sets is None else self.sets.to_dict(),
            "set_sizes": None if self.set_sizes is None else asdict(self.set_sizes),
            "costs": None if self.costs is None else self.costs.to_dict(),
            "cascade": None if self.cascade is None else self.cascade.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Json) -> Decisions:
        """Read what `to_dict` returned; `store.decision_record` checks what comes from a file."""
        names = [one["class"] for one in values["certificates"]]
        certificates = ({k: v for k, v in one.items() if k != "class"} for one in values["certificates"])
        combined, sets, sizes, costs = (values[name] for name in ("combined", "sets", "set_sizes", "costs"))
        cascade = values.get("cascade")
        return cls(
            score=values["score"],
            choice=ScoreChoice.from_dict(values["choice"]),
            rows=CertifyingRows(**values["rows"]),
            certificates=tuple(map(Certificate.from_dict, certificates)),
            classes=None if names == [None] else tuple(names),
            combined=None if combined is None else CombinedScore.from_dict(combined),
            sets=None if sets is None else ConformalSets.from_dict(sets),
            set_sizes=None if sizes is None else SetSizes(**sizes),
            costs=None if costs is None else CostComparison.from_dict(costs),
            cascade=None if cascade is None else MemberCascade.from_dict(cascade),
        )


def refusal(certificate: Certificate) -> str:
    """Why there is no threshold, and how many more rows would do."""
    reason, needed = certificate.reason or "", certificate.rows_needed
    if needed is None or f"about {needed} more" in reason:
        return reason
    return f"{reason}; at the present error rate about {needed} more labelled rows are needed"


def predicted(log_probs_EC: FloatArray) -> IntArray:
    """Index of the most probable choice, `[E]`, the first of equally probable ones."""
    return np.asarray(np.exp(log_probs_EC).argmax(axis=1))


def fit_decisions(
    predictions: Predictions,
    reference: Predictions,
    rows: CertifyingRows,
    calibration: Calibration | None,
    settings: DecisionSettings,
    seed: int,
    costs: tuple[FloatArray, float] | None = None,
) -> Decisions:
    """Choose the score on reference rows, and certify on the others.

    Args:
        predictions: of the certification rows, with answers.
        reference: of rows that are not among them, with answers.
        rows: recorded in the result.
        calibration: of the mixture.
        settings: what to certify.
        seed: of folds and resamples of the choice, and of the draws that sets are fitted with.
        costs: cost of each answer for each truth, `[C, C]`, and of asking a person.

    Raises:
        ValueError: too few rows, or settings out of range.
    """
    other = _Scored.of(reference, calibration)
    if settings.cascade is not None:
        _, choice, _ = _choose(other, "max_prob", seed)
        certificate, cascade = certify_members(
            predictions, reference, calibration, settings.cascade, settings.target_error, settings.confidence
        )
        choice = replace(choice, reason="the stages of a cascade rank by it")
        return Decisions("max_prob", choice, rows, (certificate,), cascade=cascade)
    known = _Scored.of(predictions, calibration)
    score, choice, combined = _choose(other, settings.score, seed)
    known_E, other_E = (chosen_scores(score, part.scores, combined) for part in (known, other))
    certificates, classes = _certify(known, known_E, other, other_E, settings, predictions.options[0])
    sets, sizes = _fit_sets(known, other, settings, seed)
    decisions = Decisions(score, choice, rows, certificates, classes, combined, sets, sizes)
    if costs is None:
        return decisions
    automated_E = decisions._above(known_E, known.predicted_E) if decisions.has_threshold else None
    compared = compare_policies(
        np.exp(known.log_probs_EC), known.labels_E, *costs, predictions.options[0], automated_E, settings.confidence
    )
    return replace(decisions, costs=compared)


@dataclass(frozen=True, slots=True)
class _Scored:
    """Rows with their calibrated log-probabilities, predictions and simple scores."""

    log_probs_EC: FloatArray
    labels_E: IntArray
    predicted_E: IntArray
    correct_E: BoolArray
    scores: dict[str, FloatArray]

    @classmethod
    def of(cls, predictions: Predictions, calibration: Calibration | None) -> _Scored:
        log_probs_EC = pooled(predictions.log_probs_MEC, calibration)
        scores = simple_scores(predictions.log_probs_MEC, log_probs_EC, predictions.predicted_information)
        predicted_E = predicted(log_probs_EC)
        correct_E = np.asarray(predicted_E == predictions.labels)
        return cls(log_probs_EC, predictions.labels, predicted_E, correct_E, scores)


def _choose(other: _Scored, setting: ScoreSetting, seed: int) -> tuple[Score, ScoreChoice, CombinedScore | None]:
    choice = choose_score(other.scores, other.correct_E, seed=seed)
    score = choice.score if setting == "auto" else setting
    if setting != "auto":
        choice = ScoreChoice(score, choice.aurc, choice.gain, "as given")
    if score != "combined":
        return score, choice, None
    try:
        return score, choice, fit_combined(other.scores, other.correct_E)
    except ValueError as error:
        raise ValueError(f"the combined score cannot be fitted on the validation rows: {error}") from error


def _certify(
    known: _Scored,
    known_E: FloatArray,
    other: _Scored,
    other_E: FloatArray,
    settings: DecisionSettings,
    names: Sequence[str],
) -> tuple[tuple[Certificate, ...], tuple[str, ...] | None]:
    correct_E, confidence = known.correct_E, settings.confidence
    if settings.max_errors_per_1000 is not None:
        return (certify_max_errors(known_E, correct_E, settings.max_errors_per_1000, confidence),), None
    if not settings.per_class:
        one = certify(known_E, correct_E, settings.target_error, confidence, reference_scores_E=other_E)
        return (one,), None
    by_class = certify_by_class(
        known_E,
        correct_E,
        known.predicted_E,
        len(names),
        settings.target_error,
        confidence,
        reference_scores_E=other_E,
        reference_predicted_E=other.predicted_E,
    )
    return by_class.certificates, tuple(names)


def _fit_sets(
    known: _Scored, other: _Scored, settings: DecisionSettings, seed: int
) -> tuple[ConformalSets | None, SetSizes | None]:
    """Prediction sets; the penalty of RAPS is chosen on the reference rows."""
    if settings.sets is None:
        return None, None
    alpha, method = round(1 - settings.sets, 12), settings.sets_method
    penalty, free_ranks = (0.0, 1)
    if method == "raps":
        penalty, free_ranks = choose_penalty(other.log_probs_EC, other.labels_E, alpha)
    sets = fit_conformal(
        known.log_probs_EC,
        known.labels_E,
        alpha,
        method,
        uniforms_E=None if method == "lac" else np.random.default_rng(seed).random(len(known.labels_E)),
        by_class=settings.sets_by_class,
        penalty=penalty,
        free_ranks=free_ranks,
    )
    sizes_E = sets.sets(known.log_probs_EC).sum(axis=1)
    shares = (float((sizes_E == 1).mean()), float((sizes_E > 1).mean()), float((sizes_E == 0).mean()))
    return sets, SetSizes(*shares, mean=float(sizes_E.mean()))
