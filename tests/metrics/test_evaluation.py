"""Evaluation entries: contents, pairing, invariances, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lorchestra.metrics import predictive
from lorchestra.metrics import scores as metrics
from lorchestra.metrics.evaluation import ensemble_minus, evaluate_predictions, ood_scores
from lorchestra.metrics.intervals import COMPARED
from lorchestra.metrics.temperature import regularized_temperature
from lorchestra.types import Predictions, plain_values


def make_predictions(
    rows: int = 120, members: int = 3, seed: int = 0, split: str = "test", scale: float = 2.0, noise: float = 1.0
) -> Predictions:
    """Noisy members around one score per choice, on rows of 3 to 5 choices; `scale` sharpens them."""
    generator = np.random.default_rng(seed)
    num_choices = generator.integers(3, 6, size=rows)
    labels = (generator.random(rows) * num_choices).astype(np.int64)
    shared = generator.normal(size=(rows, 5))
    shared[np.arange(rows), labels] += 1.2
    scores = scale * (shared + noise * generator.normal(size=(members, rows, 5)))
    scores = np.where(np.arange(5) < num_choices[:, None], scores, -np.inf)
    return Predictions(
        log_probs_MEC=scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True)),
        labels=labels,
        ids=tuple(f"row-{index}" for index in range(rows)),
        options=tuple(tuple("ABCDE"[:count]) for count in num_choices),
        task="toy",
        split=split,
    )


def take(predictions: Predictions, rows: NDArray[np.int64]) -> Predictions:
    return replace(
        predictions,
        log_probs_MEC=predictions.log_probs_MEC[:, rows],
        labels=predictions.labels[rows],
        ids=tuple(predictions.ids[row] for row in rows),
        options=tuple(predictions.options[row] for row in rows),
    )


def full_entry(**changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "validation": make_predictions(rows=80, seed=1, split="val"),
        "train_labels": [0, 1, 1, 2, 4],
        "baselines": {"base_zero_shot": make_predictions(members=1, scale=4, noise=3)},
        "temperature": True,
        "resamples": 50,
    }
    return evaluate_predictions(make_predictions(), **(settings | changes))


def test_the_entry_has_the_contracts_keys_and_is_json() -> None:
    entry = full_entry()
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    contract = {"task", "split", "num_examples", "num_members", "ensemble", "member_mean", "best_member", "majority"}
    assert contract | {
        "members",
        "member_mean_scaled",
        "intervals",
        "mean_of_logits",
        "temperature",
        "baselines",
        "uncertainty",
        "notes",
    } == set(entry)
    assert (entry["task"], entry["split"], entry["num_examples"], entry["num_members"]) == ("toy", "test", 120, 3)
    names = {"accuracy", "macro_f1", "nll", "ece", "signed_gap", "brier", "aurc"}
    names |= {f"ece_{scheme}_{bins}" for scheme in ("width", "mass") for bins in (10, 15, 20)}
    assert names <= set(entry["ensemble"])
    assert set(entry["intervals"]) == {
        *("level", "resamples", "seed", "ensemble", "member_mean", "best_member"),
        *("ensemble_minus_member_mean", "ensemble_minus_best_member"),
    }


def test_point_values_are_the_metrics_of_each_distribution() -> None:
    predictions, entry = make_predictions(), full_entry()
    labels = predictions.labels
    mixture = predictive.mixture_log_probs(predictions.log_probs_MEC)
    assert entry["ensemble"] == metrics.all_metrics(mixture, labels)
    assert entry["ensemble"]["ece"] == entry["ensemble"]["ece_width_15"]
    for index, member in enumerate(predictions.log_probs_MEC):
        assert entry["members"][index] == {"index": index, **metrics.all_metrics(member, labels)}
    nlls = [member["nll"] for member in entry["members"]]
    assert entry["member_mean"]["nll"] == pytest.approx(np.mean(nlls))
    assert entry["member_mean"]["std"]["nll"] == pytest.approx(np.std(nlls, ddof=1))
    geometric = predictive.mean_of_logits(predictions.log_probs_MEC)
    assert entry["mean_of_logits"]["nll"] == pytest.approx(metrics.nll(geometric, labels))
    assert entry["mean_of_logits"]["nll"] != pytest.approx(entry["ensemble"]["nll"])
    assert entry["uncertainty"]["mutual_information"] == pytest.approx(
        entry["uncertainty"]["total_entropy"] - entry["uncertainty"]["expected_entropy"]
    )


def test_the_best_member_is_chosen_on_validation_and_not_on_the_test() -> None:
    predictions = make_predictions()
    validation = make_predictions(rows=80, seed=1, split="val")
    for wanted in range(3):
        # On validation only this member is given the answers.
        helped = validation.log_probs_MEC.copy()
        certain = np.full_like(helped[wanted], -np.inf)
        certain[np.arange(80), validation.labels] = 0.0
        helped[wanted] = certain
        entry = evaluate_predictions(predictions, validation=replace(validation, log_probs_MEC=helped), resamples=0)
        assert entry["best_member"]["index"] == wanted
        assert entry["best_member"]["validation_nll"] == 0.0
        assert entry["best_member"]["nll"] == entry["members"][wanted]["nll"]


def test_without_validation_there_is_a_reason_instead() -> None:
    entry = full_entry(validation=None, train_labels=None)
    for method in (entry["best_member"], entry["temperature"], entry["temperature"]["best_member"], entry["majority"]):
        assert "no " in method["reason"]
        assert "accuracy" not in method
    assert entry["best_member"]["index"] is None
    assert entry["temperature"]["T"] is None
    assert "ensemble_minus_best_member" not in entry["intervals"]
    assert full_entry(temperature=False)["temperature"] is None


def test_temperatures_are_fitted_on_validation_rows() -> None:
    predictions, entry = make_predictions(), full_entry()
    validation = make_predictions(rows=80, seed=1, split="val")
    pooled = predictive.mixture_log_probs(validation.log_probs_MEC)
    temperature = regularized_temperature(pooled, validation.labels, validation.options).T
    assert temperature is not None
    scaled = predictive.apply_temperature(predictive.mixture_log_probs(predictions.log_probs_MEC), temperature)
    assert entry["temperature"]["T"] == pytest.approx(temperature)
    assert entry["temperature"]["nll"] == pytest.approx(metrics.nll(scaled, predictions.labels))
    best = entry["temperature"]["best_member"]
    index = entry["best_member"]["index"]
    single = regularized_temperature(validation.log_probs_MEC[index], validation.labels, validation.options).T
    assert single is not None
    assert (best["index"], best["T"]) == (index, pytest.approx(single))
    scaled_best = predictive.apply_temperature(predictions.log_probs_MEC[index], single)
    assert best["nll"] == pytest.approx(metrics.nll(scaled_best, predictions.labels))
    assert best["accuracy"] == entry["best_member"]["accuracy"]


def test_the_majority_predicts_the_most_frequent_training_answer() -> None:
    predictions, entry = make_predictions(), full_entry()
    assert entry["majority"]["index"] == 1
    assert entry["majority"]["accuracy"] == pytest.approx((predictions.labels == 1).mean())
    # Smoothed counts 2, 3, 2, 1, 2; a row of k choices keeps the first k of them.
    smoothed = np.array([2, 3, 2, 1, 2])
    totals = smoothed.cumsum()[predictions.num_choices - 1]
    assert entry["majority"]["nll"] == pytest.approx(-np.log(smoothed[predictions.labels] / totals).mean())


def test_differences_are_paired() -> None:
    # One member against itself: the difference is exactly zero on every resample.
    single = make_predictions(members=1)
    entry = evaluate_predictions(single, baselines={"same": single}, resamples=40)
    for difference in (entry["intervals"]["ensemble_minus_member_mean"], entry["baselines"]["same"]["ensemble_minus"]):
        assert tuple(difference) == COMPARED
        for low_high in difference.values():
            np.testing.assert_allclose(low_high, 0.0, atol=1e-12)
    assert entry["member_mean"]["std"]["nll"] is None
    assert entry["uncertainty"]["disagreement"] == 0.0


def test_differences_are_ensemble_minus_method() -> None:
    entry = full_entry(resamples=400)
    point = entry["ensemble"]["nll"] - entry["baselines"]["base_zero_shot"]["nll"]
    low, high = entry["baselines"]["base_zero_shot"]["ensemble_minus"]["nll"]
    assert low < point < high < 0
    # By convexity the mean member is never better in NLL, on no resample.
    low, high = entry["intervals"]["ensemble_minus_member_mean"]["nll"]
    assert low < entry["ensemble"]["nll"] - entry["member_mean"]["nll"] < high < 0
    low, high = entry["intervals"]["ensemble_minus_best_member"]["nll"]
    assert low < entry["ensemble"]["nll"] - entry["best_member"]["nll"] < high


def test_the_interval_of_the_mean_member_is_that_of_the_mean() -> None:
    predictions, entry = make_predictions(), full_entry()
    scores = {str(i): metrics.score_rows(lp, predictions.labels) for i, lp in enumerate(predictions.log_probs_MEC)}
    draws = metrics.bootstrap(scores, resamples=50, seed=0)
    expected = metrics.interval(np.mean([draw["aurc"] for draw in draws.values()], axis=0))
    np.testing.assert_allclose(entry["intervals"]["member_mean"]["aurc"], expected or [], rtol=1e-12)
    assert entry["intervals"]["member_mean"]["ece"] is None


def test_the_seed_decides_and_zero_resamples_leave_no_intervals() -> None:
    assert full_entry() == full_entry()
    assert full_entry()["intervals"] != full_entry(seed=1)["intervals"]
    assert full_entry()["ensemble"] == full_entry(seed=1)["ensemble"]
    empty = full_entry(resamples=0)
    assert empty["intervals"] == {"level": 0.95, "resamples": 0, "seed": 0}
    assert empty["baselines"]["base_zero_shot"]["ensemble_minus"] == {}
    assert empty["ensemble"] == full_entry()["ensemble"]


def points_of(entry: dict[str, Any]) -> dict[str, float]:
    """The point values of all methods, flat, except for those of members, whose order may have changed."""
    flat = {}
    for method in (
        "ensemble",
        "member_mean",
        "best_member",
        "majority",
        "mean_of_logits",
        "temperature",
        "uncertainty",
    ):
        for name, value in (entry[method] or {}).items():
            if isinstance(value, float):
                flat[f"{method}.{name}"] = value
    return flat


def test_permuting_members_or_rows_changes_no_point_value() -> None:
    predictions, validation = make_predictions(), make_predictions(rows=80, seed=1, split="val")
    settings: dict[str, Any] = {"train_labels": [0, 1, 1], "temperature": True, "resamples": 0}
    expected = points_of(evaluate_predictions(predictions, validation=validation, **settings))
    assert len(expected) > 60
    order = np.array([2, 0, 1])
    turned = replace(predictions, log_probs_MEC=predictions.log_probs_MEC[order])
    turned_validation = replace(validation, log_probs_MEC=validation.log_probs_MEC[order])
    by_members = evaluate_predictions(turned, validation=turned_validation, **settings)
    assert points_of(by_members) == pytest.approx(expected, abs=1e-12)
    rows = np.random.default_rng(0).permutation(120)
    by_rows = evaluate_predictions(take(predictions, rows), validation=validation, **settings)
    assert points_of(by_rows) == pytest.approx(expected, abs=1e-12)


def test_padding_changes_no_point_value() -> None:
    predictions = make_predictions()
    wide = np.pad(predictions.log_probs_MEC, ((0, 0), (0, 0), (0, 3)), constant_values=-np.inf)
    narrow = evaluate_predictions(predictions, train_labels=[0, 1, 1], resamples=20)
    padded = evaluate_predictions(replace(predictions, log_probs_MEC=wide), train_labels=[0, 1, 1], resamples=20)
    assert len(points_of(narrow)) > 40
    assert points_of(padded) == pytest.approx(points_of(narrow), abs=1e-12)


def test_an_infinite_nll_is_null_next_to_its_count() -> None:
    predictions = make_predictions(members=2)
    certain = predictions.log_probs_MEC.copy()
    certain[:, 0] = -np.inf
    certain[0, 0, (predictions.labels[0] + 1) % 3] = 0.0  # member 0 excludes the answer, member 1 another choice
    certain[1, 0, predictions.labels[0]] = 0.0
    entry = evaluate_predictions(replace(predictions, log_probs_MEC=certain), resamples=50)
    json.dumps(entry, allow_nan=False)
    assert (entry["members"][0]["nll"], entry["members"][0]["num_zero_probability"]) == (None, 1)
    assert entry["members"][1]["nll"] is not None
    assert entry["member_mean"]["nll"] is None
    assert entry["member_mean"]["std"]["nll"] is None
    assert entry["ensemble"]["nll"] is not None
    assert "row 0" in entry["mean_of_logits"]["reason"]
    assert "accuracy" not in entry["mean_of_logits"]


def test_plain_values_writes_what_is_not_finite_as_null() -> None:
    value = {"a": np.float64(1.5), "b": [np.inf, np.nan, np.int64(2)], "c": (np.bool_(True), None, "x")}
    assert plain_values(value) == {"a": 1.5, "b": [None, None, 2], "c": [True, None, "x"]}
    assert type(plain_values(np.float64(1.5))) is float


def test_what_does_not_match_is_refused() -> None:
    predictions = make_predictions()
    unknown = replace(predictions, labels=np.where(np.arange(120) == 7, -1, predictions.labels))
    with pytest.raises(ValueError, match=r"toy\.test: label -1 .* first is row 7"):
        evaluate_predictions(unknown)
    with pytest.raises(ValueError, match="validation: label -1"):
        evaluate_predictions(predictions, validation=unknown)
    with pytest.raises(ValueError, match="validation has 2 members, not 3"):
        evaluate_predictions(predictions, validation=make_predictions(members=2))
    with pytest.raises(ValueError, match="baseline 'few' is of other rows"):
        evaluate_predictions(predictions, baselines={"few": take(predictions, np.arange(119))})
    with pytest.raises(ValueError, match="baseline 'few' is of other rows"):
        evaluate_predictions(predictions, baselines={"few": replace(predictions, labels=(predictions.labels + 1) % 3)})
    with pytest.raises(ValueError, match="resamples is -1"):
        evaluate_predictions(predictions, resamples=-1)
    short = next(row for row, count in enumerate(predictions.num_choices) if count == 3)
    absent = replace(predictions, labels=np.where(np.arange(120) == short, 3, predictions.labels))
    with pytest.raises(ValueError, match=f"label 3 in row {short}, which has 3 choices"):
        evaluate_predictions(absent)


def test_ood_scores_by_hand() -> None:
    # In-distribution rows are answered with 0.9 and 0.6 by both members. OOD row 0 splits the members (0.9 against 0.1:
    # mixture 0.5), row 1 is answered with 0.6 by both, row 2 with 0.7.
    first = np.log(np.array([[0.9, 0.1], [0.6, 0.4]]))
    in_dist = make_small(np.stack([first, first]))
    ood = make_small(np.log(np.array([[[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]], [[0.1, 0.9], [0.6, 0.4], [0.7, 0.3]]])))
    scores = ood_scores(in_dist, ood)
    # Pairs by low confidence: 0.5 beats both; 0.6 beats 0.9 and ties with 0.6; 0.7 beats 0.9: (2 + 1.5 + 1) / 6.
    # For two choices entropy has the order of low confidence. Only OOD row 0 has mutual information, the other pairs
    # tie at exactly 0: (2 + 1 + 1) / 6.
    assert scores["auroc"] == pytest.approx({"max_prob": 0.75, "entropy": 0.75, "mutual_information": 4 / 6})
    assert scores["num_examples"] == {"in_dist": 2, "ood": 3}
    assert scores["mean_confidence"] == pytest.approx({"in_dist": 0.75, "ood": (0.5 + 0.6 + 0.7) / 3})
    # One member alone: its OOD confidences are 0.9, 0.6, 0.7: (0.5 + 1.5 + 1) / 6.
    assert scores["member_mean"]["auroc"] == pytest.approx({"max_prob": 0.5, "entropy": 0.5})
    assert scores["member_mean"]["std"] == pytest.approx({"max_prob": 0.0, "entropy": 0.0})
    json.dumps(scores, allow_nan=False)


def test_distances_are_one_more_ood_score():
    in_dist, ood = make_predictions(), make_predictions(seed=3)
    without = ood_scores(in_dist, ood)
    scores = ood_scores(in_dist, ood, distances=(np.array([1.0, 2.0]), np.array([2.0, 3.0, 0.5])))
    assert scores["auroc"].pop("distance") == pytest.approx((1.5 + 2 + 0) / 6)
    assert scores == without  # members have no distance of their own


def make_small(log_probs: NDArray[np.float64]) -> Predictions:
    """Predictions whose labels are unknown, as those of an OOD set may be."""
    rows = log_probs.shape[1]
    ids = tuple(str(row) for row in range(rows))
    return Predictions(log_probs, np.full(rows, -1), ids, (("a", "b"),) * rows, task="toy", split="test")


def test_ood_scores_need_rows_and_the_same_members() -> None:
    with pytest.raises(ValueError, match="ood has 2 members, not 3"):
        ood_scores(make_predictions(), make_predictions(members=2))
    with pytest.raises(ValueError, match="120 and 0"):
        ood_scores(make_predictions(), take(make_predictions(), np.arange(0)))


def test_differences_alone_are_those_of_an_evaluation():
    """The same resamples give the same paired intervals; pooled members on either side."""
    ensemble, other = make_predictions(), make_predictions(members=2, scale=4, noise=3)
    entry = evaluate_predictions(ensemble, baselines={"it": other}, resamples=50, seed=3)
    differences = ensemble_minus(ensemble, {"it": other, "itself": ensemble}, resamples=50, seed=3)
    assert differences["it"] == entry["baselines"]["it"]["ensemble_minus"]
    assert differences["itself"] == {metric: [0.0, 0.0] for metric in COMPARED}
    assert ensemble_minus(ensemble, {"it": other}, resamples=0) == {"it": {}}
    with pytest.raises(ValueError, match="baseline 'it' is of other rows"):
        ensemble_minus(ensemble, {"it": take(other, np.arange(50))})
