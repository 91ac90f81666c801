"""An evaluation of each typed question on its rows, with the metrics of ordered levels where it has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorchestra.metrics.by_question import RowCalibration, split_by_question
from lorchestra.metrics.calibrator import Calibrates, Calibration, pooled
from lorchestra.metrics.evaluation import evaluate
from lorchestra.metrics.ordinal import ordinal_scores
from lorchestra.metrics.result import Evaluation, QuestionScores
from lorchestra.questions import Question
from lorchestra.types import Predictions, plain_values


def evaluate_questions(
    predictions: Predictions,
    questions: Sequence[Question],
    *,
    validation: Predictions | None = None,
    train_labels: Mapping[str, Sequence[int]] | None = None,
    baselines: Mapping[str, Predictions] | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, QuestionScores]:
    """Evaluate every question that has rows (see `evaluation.evaluate`), by name and in the given order.

    Args:
        predictions: of the members, with the answer and the question of every row.
        questions: the run's typed questions.
        validation: the same members on validation rows; a question without such rows has no temperature.
        train_labels: answer indices of the training rows, by question.
        baselines: other predictions of the same rows.
        calibrations: of the mixture, by question.
        resamples, seed: of the bootstrap.
    """
    parts = split_by_question(predictions)
    held_out = {} if validation is None else split_by_question(validation)
    others = {name: split_by_question(other) for name, other in (baselines or {}).items()}
    scores = {}
    for question in questions:
        part = parts.get(question.name)
        if part is None:
            continue
        calibration = (calibrations or {}).get(question.name)
        evaluation = evaluate(
            part,
            validation=held_out.get(question.name),
            train_labels=(train_labels or {}).get(question.name),
            baselines={name: other[question.name] for name, other in others.items()},
            calibration=calibration,
            resamples=resamples,
            seed=seed,
        )
        ordinal = _ordinal(part, calibration) if question.type == "score" else {}
        scores[question.name] = QuestionScores(question.type, evaluation, ordinal)
    return scores


def calibration_of(evaluation: Evaluation, predictions: Predictions) -> Calibrates | None:
    """The calibration of the evaluated mixture: that of all rows, or by their typed questions."""
    if evaluation.questions is None or not predictions.questions:
        return evaluation.calibration
    calibrations = {name: one.evaluation.calibration for name, one in evaluation.questions.items()}
    given = {name: calibration for name, calibration in calibrations.items() if calibration is not None}
    return RowCalibration(given, predictions.questions)


def _ordinal(predictions: Predictions, calibration: Calibration | None) -> dict[str, dict[str, float | None]]:
    """The metrics of ordered levels of the calibrated mixture, and their means over the members."""
    members = [ordinal_scores(log_probs_EC, predictions.labels) for log_probs_EC in predictions.log_probs_MEC]
    mean = {key: sum(one[key] for one in members) / len(members) for key in members[0]}
    ensemble = ordinal_scores(pooled(predictions.log_probs_MEC, calibration), predictions.labels)
    return {"ensemble": plain_values(ensemble), "member_mean": plain_values(mean)}
