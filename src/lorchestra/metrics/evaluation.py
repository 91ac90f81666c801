"""Evaluate an ensemble next to its members and baselines, with intervals of their differences. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lorchestra.metrics import predictive
from lorchestra.metrics.by_question import scale
from lorchestra.metrics.calibrator import Calibrates, Calibration, pooled
from lorchestra.metrics.classes import class_scores
from lorchestra.metrics.intervals import Ends, Judged, difference_intervals, judge, method_intervals, too_few
from lorchestra.metrics.predictive import FloatArray, IntArray
from lorchestra.metrics.result import Evaluation, MemberOodScores, MethodScores, OodScores
from lorchestra.metrics.scores import LEVEL, all_metrics, auroc, bootstrap, nll, score_rows
from lorchestra.metrics.validation import weak_validation
from lorchestra.types import Json, Predictions, plain_values


def evaluate_predictions(predictions: Predictions, **settings: Any) -> Json:
    """`evaluate` as an entry of the "evaluations" of `metrics.json`."""
    return evaluate(predictions, **settings).to_dict()


def evaluate(
    predictions: Predictions,
    *,
    validation: Predictions | None = None,
    train_labels: Sequence[int] | IntArray | None = None,
    baselines: Mapping[str, Predictions] | None = None,
    fits: Mapping[str, MethodScores] | None = None,
    temperature: bool = False,
    calibration: Calibrates | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Evaluate an ensemble on the rows of `predictions`.

    With a calibration, "ensemble" is the calibrated mixture. Members stay as they are, and the best one is also scaled:
    what a temperature gains for one LoRA too is no gain of the ensemble.

    Args:
        predictions: of the members, with the answer of every row.
        validation: the same members on validation rows. The best member is chosen and temperatures are fitted there,
            never on the evaluated rows.
        train_labels: answer indices of the training rows, for the majority baseline.
        baselines, fits: other predictions of the same rows, pooled, by name; and what was fitted for some.
        temperature: also scale the ensemble and the best member.
        calibration: of the mixture, fitted on validation rows; temperatures of typed questions are by question, too.
        resamples, seed: of the bootstrap; 0 resamples for no intervals.

    Raises:
        ValueError: an answer is unknown (-1) or not one of its row's choices, rows or members do not match between
            predictions, or `resamples` is negative.
    """
    baselines, fits = baselines or {}, fits or {}
    _check_inputs(predictions, validation, baselines, resamples)
    calibration = calibration if calibration is not None and calibration.is_calibrated else None
    best = _best_member(validation)
    distributions = _distributions(predictions, baselines)
    optional = _add_references(distributions, predictions, train_labels, validation)
    if temperature or calibration is not None:
        optional |= _add_temperatures(distributions, predictions, validation, best.index)
    _calibrate(distributions, optional, calibration)
    scorer = _Scorer(distributions, predictions.labels, resamples, seed)

    def scored(name: str) -> MethodScores | None:
        return scorer.scored(name, optional[name]) if name in optional else None

    return Evaluation(
        **_scored_members(predictions, scorer, best, optional.get("member_mean_scaled")),
        majority=scored("majority"),
        mean_of_logits=scored("mean_of_logits"),
        ensemble_raw=scored("ensemble_raw"),
        ensemble_scaled=scored("ensemble_scaled"),
        best_member_scaled=scored("best_member_scaled"),
        baselines={name: scorer.scored(_baseline(name), fits.get(name, MethodScores())) for name in baselines},
        level=LEVEL,
        resamples=resamples,
        seed=seed,
        notes=(*_information_notes(predictions), *_notes(validation, optional), *scorer.notes()),
        calibration=calibration if isinstance(calibration, Calibration) else None,
        classes=class_scores(predictions, train_labels, baselines, calibration),
    )


def _scored_members(
    predictions: Predictions, scorer: _Scorer, best: MethodScores, scaled: MethodScores | None
) -> dict[str, Any]:
    """The fields of an evaluation that are of the rows, the members and their mixture."""
    members = [_member(index) for index in range(predictions.num_members)]
    return {
        "task": predictions.task,
        "split": predictions.split,
        "num_examples": predictions.num_examples,
        "num_members": predictions.num_members,
        "ensemble": MethodScores(scorer.metrics("ensemble")).with_intervals(scorer.intervals("ensemble"), {}),
        "member_mean": scorer.mean(MethodScores(), members),
        "member_mean_scaled": scaled and scorer.mean(scaled, _scaled_members(len(members))),
        "best_member": best if best.index is None else scorer.scored(_member(best.index), best),
        "members": tuple(MethodScores(scorer.metrics(name), index=index) for index, name in enumerate(members)),
        "uncertainty": _mean_uncertainty(predictions),
    }


def ensemble_minus(
    ensemble: Predictions,
    others: Mapping[str, Predictions],
    *,
    calibration: Calibrates | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Mapping[str, Ends]]:
    """Intervals of the ensemble minus each of some other predictions, by name and metric of `intervals.COMPARED`.

    Members are pooled, and the ensemble's mixture calibrated. Resamples are shared, so with equal `resamples` and
    `seed` these are the intervals that `evaluate` gives a baseline. Empty for 0 resamples.

    Raises:
        ValueError: an answer is unknown, predictions are of other rows, or `resamples` is negative.
    """
    _check_inputs(ensemble, None, others, resamples)
    distributions = {"ensemble": pooled(ensemble.log_probs_MEC, calibration), **_pooled(others)}
    scorer = _Scorer(distributions, ensemble.labels, resamples, seed)
    return {name: scorer.differences(_baseline(name)) for name in others}


def ood_scores(
    in_dist: Predictions,
    ood: Predictions,
    calibration: Calibrates | None = None,
    distances: tuple[FloatArray, FloatArray] | None = None,
    ood_calibration: Calibrates | None = None,
) -> Json:
    """How well uncertainty separates OOD rows from in-distribution rows, as JSON (see `OodScores`).

    AUROC by score: `max_prob` (low confidence) and `entropy` (high) of the calibrated mixture, `mutual_information`
    (high) of the members as they are, or as a distilled run predicts it, and `distance` (high) where the distances of
    the in-distribution rows and of the OOD rows from the training rows are given. OOD rows are the positives; labels
    are ignored. Where the two sets differ in their number of choices, confidence and entropy differ for that reason.

    Raises:
        ValueError: a set is empty, or the two come from different numbers of members.
    """
    if in_dist.num_members != ood.num_members:
        raise ValueError(f"ood has {ood.num_members} members, not {in_dist.num_members}")
    if not (in_dist.num_examples and ood.num_examples):
        raise ValueError(f"AUROC needs rows on both sides, not {in_dist.num_examples} and {ood.num_examples}")
    both = ((in_dist, calibration), (ood, ood_calibration or calibration))
    mixtures = [pooled(side.log_probs_MEC, one) for side, one in both]
    information = [predictive.information(side) for side in (in_dist, ood)]
    scores = _aurocs(*mixtures) | {"mutual_information": auroc(*information)}
    if distances is not None:
        scores["distance"] = auroc(*distances)
    pairs = list(zip(in_dist.log_probs_MEC, ood.log_probs_MEC, strict=True))
    mean, std = _mean_and_std([_aurocs(*pair) for pair in pairs])
    confidences = [_mean_confidences(*pair) for pair in pairs]
    return OodScores(
        auroc=plain_values(scores),
        mean_confidence=_mean_confidences(*mixtures),
        num_examples={"in_dist": in_dist.num_examples, "ood": ood.num_examples},
        member_mean=MemberOodScores(
            mean, std, {side: float(np.mean([one[side] for one in confidences])) for side in ("in_dist", "ood")}
        ),
    ).to_dict()


class _Scorer:
    """Metrics and intervals of distributions on the same rows and the same resamples.

    Args:
        distributions: `[E, C]` by name. Differences are those of "ensemble" minus another.
        labels_E: answers.
        resamples: bootstrap resamples; 0 for no intervals.
        seed: of the resamples.
    """

    def __init__(self, distributions: Mapping[str, FloatArray], labels_E: IntArray, resamples: int, seed: int) -> None:
        self.points = {name: all_metrics(log_probs_EC, labels_E) for name, log_probs_EC in distributions.items()}
        self._scores = {name: score_rows(log_probs_EC, labels_E) for name, log_probs_EC in distributions.items()}
        self._draws = bootstrap(self._scores, resamples, seed)
        self._seed = seed

    def metrics(self, name: str) -> dict[str, float | None]:
        """The metrics of a distribution, None where they are not finite."""
        metrics: dict[str, float | None] = plain_values(self.points[name])
        return metrics

    def intervals(self, *names: str) -> Json:
        """Intervals of a distribution, or of the mean over several."""
        return dict(plain_values(method_intervals(self._judged(*names), self._seed)))

    def differences(self, *names: str) -> dict[str, Ends]:
        """Intervals of the ensemble minus a distribution, or minus the mean over several."""
        return dict(plain_values(difference_intervals(self._judged("ensemble"), self._judged(*names))))

    def with_intervals(self, method: MethodScores, *names: str) -> MethodScores:
        """A method with the intervals of a distribution, or of the mean over several."""
        return method.with_intervals(self.intervals(*names), self.differences(*names))

    def mean(self, method: MethodScores, names: Sequence[str]) -> MethodScores:
        """A method with the mean over several distributions, if they exist."""
        if not all(name in self.points for name in names):
            return method
        mean, std = _mean_and_std([self.points[name] for name in names])
        return self.with_intervals(replace(method, metrics=mean, std=std), *names)

    def scored(self, name: str, method: MethodScores) -> MethodScores:
        """A method with the metrics and intervals of a distribution, if it exists."""
        return self.with_intervals(replace(method, metrics=self.metrics(name)), name) if name in self.points else method

    def notes(self) -> list[str]:
        """Why intervals of the ensemble are missing, if resamples were drawn."""
        reason = too_few(self._judged("ensemble")) if self._draws else None
        return [] if reason is None else [reason]

    def _judged(self, *names: str) -> Judged:
        return judge(self._scores, self._draws, *names)


def _check_inputs(
    predictions: Predictions, validation: Predictions | None, baselines: Mapping[str, Predictions], resamples: int
) -> None:
    if resamples < 0:
        raise ValueError(f"resamples is {resamples}, not at least 0")
    _check(predictions, f"{predictions.task}.{predictions.split}")
    if validation is not None:
        _check(validation, "validation")
        if validation.num_members != predictions.num_members:
            raise ValueError(f"validation has {validation.num_members} members, not {predictions.num_members}")
    for name, baseline in baselines.items():
        if baseline.ids != predictions.ids or not np.array_equal(baseline.labels, predictions.labels):
            raise ValueError(f"baseline {name!r} is of other rows: ids and labels must be the ensemble's, in its order")
        _check(baseline, f"baseline {name!r}")


def _check(predictions: Predictions, name: str) -> None:
    try:
        for log_probs_EC in predictions.log_probs_MEC:
            predictive.check_labels(log_probs_EC, predictions.labels)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    outside = np.flatnonzero(predictions.labels >= predictions.num_choices)
    if outside.size:
        row = int(outside[0])
        raise ValueError(
            f"{name}: label {predictions.labels[row]} in row {row}, which has {predictions.num_choices[row]} choices"
        )


def _member(index: int) -> str:
    return f"member {index}"


def _scaled_members(num_members: int) -> list[str]:
    return [f"{_member(index)} scaled" for index in range(num_members)]


def _baseline(name: str) -> str:
    return f"baseline {name}"


def _pooled(baselines: Mapping[str, Predictions]) -> dict[str, FloatArray]:
    return {_baseline(name): predictive.mixture_log_probs(other.log_probs_MEC) for name, other in baselines.items()}


def _distributions(predictions: Predictions, baselines: Mapping[str, Predictions]) -> dict[str, FloatArray]:
    """The distributions `[E, C]` that always exist, by name."""
    members = {_member(index): log_probs_EC for index, log_probs_EC in enumerate(predictions.log_probs_MEC)}
    return {"ensemble": predictive.mixture_log_probs(predictions.log_probs_MEC), **members, **_pooled(baselines)}


def _best_member(validation: Predictions | None) -> MethodScores:
    """Index of the member with the lowest validation NLL (the first of equals), or why there is none."""
    if validation is None:
        return MethodScores(reason="no validation rows to choose on")
    scores = [nll(log_probs_EC, validation.labels) for log_probs_EC in validation.log_probs_MEC]
    index = int(np.argmin(scores))
    return MethodScores(index=index, validation_nll=plain_values(scores[index]))


def _add_references(
    distributions: dict[str, FloatArray],
    predictions: Predictions,
    train_labels: Sequence[int] | IntArray | None,
    validation: Predictions | None,
) -> dict[str, MethodScores]:
    """The majority answer, another way to pool the members, and the members with their temperatures."""
    scaled = _add_scaled_members(distributions, predictions, validation)
    return ({} if scaled is None else {"member_mean_scaled": scaled}) | {
        "majority": _add_majority(distributions, predictions, train_labels),
        "mean_of_logits": _add_mean_of_logits(distributions, predictions.log_probs_MEC),
    }


def _add_majority(
    distributions: dict[str, FloatArray], predictions: Predictions, train_labels: Sequence[int] | IntArray | None
) -> MethodScores:
    if train_labels is None or not len(train_labels):
        return MethodScores(reason="no training labels were given")
    log_probs_EC = predictive.majority_log_probs(train_labels, predictions.num_choices)
    missing = predictions.log_probs_MEC.shape[2] - log_probs_EC.shape[1]
    distributions["majority"] = np.pad(log_probs_EC, ((0, 0), (0, missing)), constant_values=-np.inf)
    return MethodScores(index=int(np.bincount(np.asarray(train_labels, dtype=np.int64)).argmax()))


def _add_mean_of_logits(distributions: dict[str, FloatArray], log_probs_MEC: FloatArray) -> MethodScores:
    try:
        distributions["mean_of_logits"] = predictive.mean_of_logits(log_probs_MEC)
    except ValueError as error:
        return MethodScores(reason=str(error))
    return MethodScores()


def _add_temperatures(
    distributions: dict[str, FloatArray],
    predictions: Predictions,
    validation: Predictions | None,
    best_index: int | None,
) -> dict[str, MethodScores]:
    """Fit one T on the pooled validation mixture (pool, then calibrate) and one on the best member."""
    names = ("ensemble_scaled", "best_member_scaled")
    if validation is None or best_index is None:
        return dict.fromkeys(names, MethodScores(reason="no validation rows to fit on"))
    pooled_EC = predictive.mixture_log_probs(validation.log_probs_MEC)
    methods = {}
    for name, unscaled, index, log_probs_EC in (
        (names[0], "ensemble", None, pooled_EC),
        (names[1], _member(best_index), best_index, validation.log_probs_MEC[best_index]),
    ):
        scaled_EC, fit = scale(distributions[unscaled], predictions.questions, log_probs_EC, validation)
        if scaled_EC is not None:
            distributions[name] = scaled_EC
        methods[name] = MethodScores(
            index=index, temperature=fit.T, num_rows=fit.num_rows, reason=fit.reason, notes=fit.notes
        )
    return methods


def _add_scaled_members(
    distributions: dict[str, FloatArray], predictions: Predictions, validation: Predictions | None
) -> MethodScores | None:
    """Each member with its temperature: what one LoRA and a temperature are worth, without the luck of one seed."""
    if validation is None:
        return None
    scaled = [
        scale(distributions[_member(index)], predictions.questions, log_probs_EC, validation)
        for index, log_probs_EC in enumerate(validation.log_probs_MEC)
    ]
    num_rows = scaled[0][1].num_rows
    missing = [fit.reason for scaled_EC, fit in scaled if scaled_EC is None]
    if missing:
        return MethodScores(num_rows=num_rows, reason=missing[0])
    for name, (scaled_EC, _) in zip(_scaled_members(len(scaled)), scaled, strict=True):
        assert scaled_EC is not None
        distributions[name] = scaled_EC
    if predictions.questions:
        return MethodScores(num_rows=num_rows, notes=("each member has a T per question",))
    shown = ", ".join(f"{fit.T:.2f}" for _, fit in scaled)
    return MethodScores(num_rows=num_rows, notes=(f"T of the members: {shown}",))


def _calibrate(
    distributions: dict[str, FloatArray],
    optional: dict[str, MethodScores],
    calibration: Calibrates | None,
) -> None:
    """Replace the mixture by the calibrated one, which needs no other temperature, and keep it as "ensemble_raw"."""
    if calibration is None:
        return
    raw_EC = distributions["ensemble"]
    distributions.pop("ensemble_scaled", None)
    optional.pop("ensemble_scaled", None)
    distributions["ensemble"] = calibration.apply(raw_EC)
    if not calibration.is_identity:
        distributions["ensemble_raw"], optional["ensemble_raw"] = raw_EC, MethodScores()


def _information_notes(predictions: Predictions) -> tuple[str, ...]:
    if predictions.predicted_information is None:
        return ()
    return ("Mutual information is predicted, for the ensemble that taught this member.",)


def _notes(validation: Predictions | None, methods: Mapping[str, MethodScores]) -> list[str]:
    """Sentences about the validation rows and the two temperatures."""
    notes = [] if validation is None else weak_validation(validation.labels, validation.options)
    for key, name in (("ensemble_scaled", "the ensemble"), ("best_member_scaled", "the best member")):
        fit = methods.get(key, MethodScores())
        if fit.temperature is None:
            notes += [] if fit.reason is None else [f"No temperature for {name}: {fit.reason}."]
        else:
            notes += [f"Temperature of {name} (T = {fit.temperature:.2f}): {note}." for note in fit.notes]
    return notes


def _mean_uncertainty(predictions: Predictions) -> dict[str, float]:
    log_probs_MEC = predictions.log_probs_MEC
    measures = {
        "total_entropy": predictive.total_entropy(log_probs_MEC),
        "expected_entropy": predictive.expected_entropy(log_probs_MEC),
        "mutual_information": predictive.information(predictions),
        "disagreement": predictive.disagreement(log_probs_MEC),
    }
    return {name: float(values_E.mean()) for name, values_E in measures.items()}


def _mean_and_std(members: Sequence[Mapping[str, float]]) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Mean and sample standard deviation over members of each value; the latter is undefined for a single member."""
    values = {name: np.array([member[name] for member in members], dtype=np.float64) for name in members[0]}
    std = {
        name: value.std(ddof=1) if len(value) > 1 and np.isfinite(value).all() else None
        for name, value in values.items()
    }
    return plain_values({name: value.mean() for name, value in values.items()}), plain_values(std)


def _aurocs(in_dist_EC: FloatArray, ood_EC: FloatArray) -> dict[str, float]:
    # The log of the confidence has the same order and still separates rows whose confidence rounds to 1.
    return {
        "max_prob": auroc(-in_dist_EC.max(axis=-1), -ood_EC.max(axis=-1)),
        "entropy": auroc(predictive.entropy(in_dist_EC), predictive.entropy(ood_EC)),
    }


def _mean_confidences(in_dist_EC: FloatArray, ood_EC: FloatArray) -> dict[str, float]:
    return {
        "in_dist": float(predictive.confidence(in_dist_EC).mean()),
        "ood": float(predictive.confidence(ood_EC).mean()),
    }
