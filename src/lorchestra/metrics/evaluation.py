"""One entry of `metrics.json`: the ensemble beside its members, its baselines and the intervals of their differences.

Pure numpy. What comes out is plain dicts, lists, strings, ints and floats. JSON has no infinity and no NaN: every
number that is not finite is written as null. Beside an infinite NLL stands `num_zero_probability` > 0, which says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lorchestra.metrics import predictive
from lorchestra.metrics.intervals import Ends, Judged, difference_intervals, judge, method_intervals, too_few
from lorchestra.metrics.predictive import FloatArray, IntArray
from lorchestra.metrics.scores import LEVEL, all_metrics, auroc, bootstrap, nll, score_rows
from lorchestra.metrics.temperature import TemperatureFit, regularized_temperature
from lorchestra.metrics.validation import weak_validation
from lorchestra.store.atomic import plain_values
from lorchestra.types import Predictions


def evaluate_predictions(
    predictions: Predictions,
    *,
    validation: Predictions | None = None,
    train_labels: Sequence[int] | IntArray | None = None,
    baselines: Mapping[str, Predictions] | None = None,
    temperature: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate an ensemble on the rows of `predictions`, as one entry of metrics.json's "evaluations".

    `validation` holds the same members' predictions on validation rows: the best member is chosen and temperatures are
    fitted there, never on the evaluated rows. `train_labels` `[number of training rows]` are answer indices, for the
    majority baseline. `baselines` are other predictions of the same rows by name; those with several members are
    pooled. `resamples` 0 leaves the intervals empty.

    Keys: "ensemble", "member_mean" (with "std"), "best_member", "majority", "members", "mean_of_logits", "temperature"
    (null unless asked for; with its "best_member", scaled as well), "baselines", "uncertainty" (means over rows, nats),
    "intervals" (see `metrics.intervals`), "notes". Methods that are not in "intervals" carry their own "intervals" and
    "ensemble_minus" (paired, ensemble minus method). One that cannot be given has null as its index or T, and a
    "reason". The notes are sentences about what the numbers cannot carry: few rows, few errors, validation rows or a
    temperature that decide nothing.

    Raises:
        ValueError: an answer is unknown (-1) or not one of its row's choices, rows or members do not match between
            predictions, or `resamples` is negative.
    """
    baselines = baselines or {}
    _check_inputs(predictions, validation, baselines, resamples)
    best = _best_member(validation)
    distributions = _distributions(predictions, baselines)
    notes = {
        "majority": _add_majority(distributions, predictions, train_labels),
        "mean_of_logits": _add_mean_of_logits(distributions, predictions.log_probs_MEC),
    }
    if temperature:
        notes |= _add_temperatures(distributions, validation, best["index"])
    points = {name: all_metrics(log_probs_EC, predictions.labels) for name, log_probs_EC in distributions.items()}
    scores = {name: score_rows(log_probs_EC, predictions.labels) for name, log_probs_EC in distributions.items()}
    draws = bootstrap(scores, resamples, seed)
    members = [_member(index) for index in range(predictions.num_members)]
    judged = {name: judge(scores, draws, name) for name in scores}
    judged["member_mean"] = judge(scores, draws, *members)
    main_intervals = _main_intervals(judged, best["index"], seed)
    compared = {name: _compared(name, notes, points, judged, seed) for name in {*notes, *points}}
    entry = {
        "task": predictions.task,
        "split": predictions.split,
        "num_examples": predictions.num_examples,
        "num_members": predictions.num_members,
        "ensemble": points["ensemble"],
        "member_mean": _member_mean([points[name] for name in members]),
        "best_member": best if best["index"] is None else best | points[_member(best["index"])],
        "members": [{"index": index, **points[name]} for index, name in enumerate(members)],
        "uncertainty": _mean_uncertainty(predictions.log_probs_MEC),
        "majority": compared["majority"],
        "mean_of_logits": compared["mean_of_logits"],
        "temperature": compared["temperature"] | {"best_member": compared["scaled best"]} if temperature else None,
        "baselines": {name: compared[f"baseline {name}"] for name in baselines},
        "intervals": {"level": LEVEL, "resamples": resamples, "seed": seed, **main_intervals},
        "notes": [*_notes(validation, notes), *_too_few(judged["ensemble"], resamples)],
    }
    return plain_values(entry)


def ensemble_minus(
    ensemble: Predictions, others: Mapping[str, Predictions], *, resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, Ends]]:
    """Intervals of the ensemble minus each of some other predictions, by name and metric of `intervals.COMPARED`.

    Pooled over members, on the same resamples of rows; with equal `resamples` and `seed` these are the intervals that
    `evaluate_predictions` gives of a baseline. Empty for 0 resamples.

    Raises:
        ValueError: an answer is unknown, predictions are of other rows, or `resamples` is negative.
    """
    _check_inputs(ensemble, None, others, resamples)
    scores = {
        name: score_rows(log_probs_EC, ensemble.labels)
        for name, log_probs_EC in _distributions(ensemble, others).items()
        if name == "ensemble" or name.startswith("baseline ")
    }
    draws = bootstrap(scores, resamples, seed)
    judged = {name: judge(scores, draws, name) for name in scores}
    found: dict[str, dict[str, Ends]] = plain_values(
        {name: difference_intervals(judged["ensemble"], judged[f"baseline {name}"]) for name in others}
    )
    return found


def ood_scores(in_dist: Predictions, ood: Predictions) -> dict[str, Any]:
    """How well uncertainty tells OOD rows from in-distribution rows; labels are not looked at.

    "auroc" by score: `max_prob` (low confidence), `entropy` (high total entropy), `mutual_information` (high). OOD rows
    are the positives. "member_mean" holds the mean over members of each member's own AUROCs and their "std". Where the
    two sets differ in their number of choices, confidence and entropy differ for that reason alone.

    Raises:
        ValueError: a set is empty, or the two come from different numbers of members.
    """
    if in_dist.num_members != ood.num_members:
        raise ValueError(f"ood has {ood.num_members} members, not {in_dist.num_members}")
    if not (in_dist.num_examples and ood.num_examples):
        raise ValueError(f"AUROC needs rows on both sides, not {in_dist.num_examples} and {ood.num_examples}")
    ensemble = _ood_of_one(*(predictive.mixture_log_probs(side.log_probs_MEC) for side in (in_dist, ood)))
    information = [predictive.mutual_information(side.log_probs_MEC) for side in (in_dist, ood)]
    ensemble["auroc"]["mutual_information"] = auroc(*information)
    members = [_ood_of_one(*pair) for pair in zip(in_dist.log_probs_MEC, ood.log_probs_MEC, strict=True)]
    mean_auroc = _member_mean([member["auroc"] for member in members])
    return plain_values(
        {
            **ensemble,
            "num_examples": {"in_dist": in_dist.num_examples, "ood": ood.num_examples},
            "member_mean": {
                "auroc": {name: mean_auroc[name] for name in ("max_prob", "entropy")},
                "std": mean_auroc["std"],
                "mean_confidence": {
                    side: np.mean([member["mean_confidence"][side] for member in members])
                    for side in ("in_dist", "ood")
                },
            },
        }
    )


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


def _distributions(predictions: Predictions, baselines: Mapping[str, Predictions]) -> dict[str, FloatArray]:
    """The distributions `[E, C]` that always exist, by name."""
    distributions = {"ensemble": predictive.mixture_log_probs(predictions.log_probs_MEC)}
    for index, log_probs_EC in enumerate(predictions.log_probs_MEC):
        distributions[_member(index)] = log_probs_EC
    for name, baseline in baselines.items():
        distributions[f"baseline {name}"] = predictive.mixture_log_probs(baseline.log_probs_MEC)
    return distributions


def _best_member(validation: Predictions | None) -> dict[str, Any]:
    """Index of the member with the lowest validation NLL (the first of equals), or why there is none."""
    if validation is None:
        return {"index": None, "reason": "no validation rows to choose on"}
    scores = [nll(log_probs_EC, validation.labels) for log_probs_EC in validation.log_probs_MEC]
    index = int(np.argmin(scores))
    return {"index": index, "validation_nll": scores[index]}


def _add_majority(
    distributions: dict[str, FloatArray], predictions: Predictions, train_labels: Sequence[int] | IntArray | None
) -> dict[str, Any]:
    if train_labels is None or not len(train_labels):
        return {"index": None, "reason": "no training labels were given"}
    log_probs_EC = predictive.majority_log_probs(train_labels, predictions.num_choices)
    missing = predictions.log_probs_MEC.shape[2] - log_probs_EC.shape[1]
    distributions["majority"] = np.pad(log_probs_EC, ((0, 0), (0, missing)), constant_values=-np.inf)
    return {"index": int(np.bincount(np.asarray(train_labels, dtype=np.int64)).argmax())}


def _add_mean_of_logits(distributions: dict[str, FloatArray], log_probs_MEC: FloatArray) -> dict[str, Any]:
    try:
        distributions["mean_of_logits"] = predictive.mean_of_logits(log_probs_MEC)
    except ValueError as error:
        return {"reason": str(error)}
    return {}


def _add_temperatures(
    distributions: dict[str, FloatArray], validation: Predictions | None, best_index: int | None
) -> dict[str, dict[str, Any]]:
    """Fit one T on the pooled validation mixture (pool, then calibrate) and one on the best member, for a fair pair."""
    if validation is None or best_index is None:
        reason = "no validation rows to fit on"
        return {"temperature": {"T": None, "reason": reason}, "scaled best": {"T": None, "reason": reason}}
    fits = {
        "temperature": _fit(predictive.mixture_log_probs(validation.log_probs_MEC), validation),
        "scaled best": _fit(validation.log_probs_MEC[best_index], validation),
    }
    for (name, fit), plain in zip(fits.items(), ("ensemble", _member(best_index)), strict=True):
        if fit.T is not None:
            distributions[name] = predictive.apply_temperature(distributions[plain], fit.T)
    return {
        "temperature": fits["temperature"].record(),
        "scaled best": {"index": best_index, **fits["scaled best"].record()},
    }


def _fit(log_probs_EC: FloatArray, validation: Predictions) -> TemperatureFit:
    return regularized_temperature(log_probs_EC, validation.labels, validation.options)


def _too_few(ensemble: Judged, resamples: int) -> list[str]:
    """Why intervals of the ensemble are missing, where they were asked for."""
    reason = too_few(ensemble) if resamples else None
    return [] if reason is None else [reason]


def _notes(validation: Predictions | None, notes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is to be said of the validation rows and of the two temperatures, as sentences."""
    found = [] if validation is None else weak_validation(validation.labels, validation.options)
    for name, of in (("temperature", "the ensemble"), ("scaled best", "the best member")):
        fit = notes.get(name, {})
        if fit.get("T") is None:
            found += [f"No temperature for {of}: {fit['reason']}."] if "reason" in fit else []
        else:
            found += [f"Temperature of {of} (T = {fit['T']:.2f}): {note}." for note in fit.get("notes", ())]
    return found


def _mean_uncertainty(log_probs_MEC: FloatArray) -> dict[str, float]:
    measures = (
        predictive.total_entropy,
        predictive.expected_entropy,
        predictive.mutual_information,
        predictive.disagreement,
    )
    return {measure.__name__: float(measure(log_probs_MEC).mean()) for measure in measures}


def _member_mean(members: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Mean over members of each metric; "std" is their sample standard deviation, undefined for a single member."""
    values = {name: np.array([member[name] for member in members], dtype=np.float64) for name in members[0]}
    std = {
        name: value.std(ddof=1) if len(value) > 1 and np.isfinite(value).all() else None
        for name, value in values.items()
    }
    return {**{name: value.mean() for name, value in values.items()}, "std": std}


def _ood_of_one(in_dist_EC: FloatArray, ood_EC: FloatArray) -> dict[str, Any]:
    # The log of the confidence ranks alike and still separates rows whose confidence rounds to 1.
    return {
        "auroc": {
            "max_prob": auroc(-in_dist_EC.max(axis=-1), -ood_EC.max(axis=-1)),
            "entropy": auroc(predictive.entropy(in_dist_EC), predictive.entropy(ood_EC)),
        },
        "mean_confidence": {
            "in_dist": predictive.confidence(in_dist_EC).mean(),
            "ood": predictive.confidence(ood_EC).mean(),
        },
    }


def _compared(
    name: str,
    notes: Mapping[str, dict[str, Any]],
    points: Mapping[str, dict[str, float]],
    judged: Mapping[str, Judged],
    seed: int,
) -> dict[str, Any]:
    """All there is to say of one method beside the ensemble; its note alone where it could not be given."""
    if name not in points:
        return notes[name]
    beside = {
        "intervals": method_intervals(judged[name], seed),
        "ensemble_minus": difference_intervals(judged["ensemble"], judged[name]),
    }
    return {**notes.get(name, {}), **points[name], **beside}


def _main_intervals(judged: Mapping[str, Judged], best_index: int | None, seed: int) -> dict[str, Any]:
    """Intervals of the ensemble, of the mean over members of each metric, and of the best member."""
    if not judged["ensemble"].draws:
        return {}
    singles = {"member_mean": judged["member_mean"]}
    singles |= {} if best_index is None else {"best_member": judged[_member(best_index)]}
    intervals: dict[str, Any] = {"ensemble": method_intervals(judged["ensemble"], seed)}
    for name, single in singles.items():
        intervals[name] = method_intervals(single, seed)
        intervals[f"ensemble_minus_{name}"] = difference_intervals(judged["ensemble"], single)
    return intervals
