"""The typed evaluation: the same entry in and out, and its numbers as a table."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from typing import Any

import numpy as np
import pytest

from lorchestra.errors import LorchestraError
from lorchestra.metrics.early_exit import ExitRule, evaluate_early_exit
from lorchestra.metrics.evaluation import evaluate, evaluate_predictions, ood_scores
from lorchestra.metrics.result import EarlyExitScores, Evaluation, MethodScores, OodScores, finite_ends
from lorchestra.metrics.table import BY_KEY
from lorchestra.types import Predictions


def make_predictions(rows: int = 60, members: int = 3, seed: int = 0, split: str = "test") -> Predictions:
    generator = np.random.default_rng(seed)
    labels = generator.integers(3, size=rows)
    scores = generator.normal(size=(members, rows, 3))
    scores[:, np.arange(rows), labels] += 1.0
    log_probs = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    return Predictions(log_probs, labels, tuple(map(str, range(rows))), (("a", "b", "c"),) * rows, "toy", split)


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "validation": make_predictions(seed=1, split="val"),
        "train_labels": [0, 1, 1],
        "baselines": {"base_zero_shot": make_predictions(members=1)},
        "temperature": True,
        "resamples": 30,
    } | changes


def whole_entry() -> dict[str, Any]:
    """An entry with everything that a command may add."""
    predictions = make_predictions()
    entry = evaluate_predictions(predictions, **settings())
    entry |= {"seen": {"train": 1, "val": 0}, "left_out": {"mc_dropout": "no dropout"}}
    entry["early_exit"] = evaluate_early_exit(predictions.log_probs_MEC, predictions.labels, ExitRule())
    return entry | {"ood": {"other": ood_scores(predictions, make_predictions(seed=3))}}


def infinite() -> Predictions:
    """Every member excludes the answer of row 0."""
    predictions = make_predictions()
    log_probs = predictions.log_probs_MEC.copy()
    log_probs[:, 0] = -np.inf
    log_probs[:, 0, (predictions.labels[0] + 1) % 3] = 0.0
    return dataclasses.replace(predictions, log_probs_MEC=log_probs)


ENTRIES = {
    "whole": whole_entry,
    "bare": lambda: evaluate_predictions(make_predictions(), resamples=0),
    "no validation": lambda: evaluate_predictions(make_predictions(), **settings(validation=None, train_labels=None)),
    "one member": lambda: evaluate_predictions(make_predictions(members=1), resamples=30),
    "few rows": lambda: evaluate_predictions(make_predictions(rows=10), resamples=30),
    "infinite": lambda: evaluate_predictions(infinite(), **settings(validation=infinite())),
    "one answer": lambda: evaluate_predictions(
        make_predictions(), **settings(validation=dataclasses.replace(make_predictions(), labels=np.zeros(60, int)))
    ),
}


@pytest.mark.parametrize("make", ENTRIES.values(), ids=ENTRIES.keys())
def test_an_entry_comes_back_as_it_was(make) -> None:
    entry = make()
    evaluation = Evaluation.from_dict(entry)
    assert json.dumps(evaluation.to_dict()) == json.dumps(entry)  # the order of keys, too
    loaded = json.loads(json.dumps(entry, allow_nan=False))
    assert json.dumps(Evaluation.from_dict(loaded).to_dict()) == json.dumps(loaded)
    assert Evaluation.of(evaluation) is evaluation


def test_the_fields_are_those_of_the_entry() -> None:
    entry, evaluation = whole_entry(), Evaluation.from_dict(whole_entry())
    assert evaluation.ensemble.metrics == {key: entry["ensemble"][key] for key in BY_KEY}
    assert evaluation.ensemble.interval("nll") == entry["intervals"]["ensemble"]["nll"]
    assert evaluation.ensemble.ece_if_calibrated is not None
    assert evaluation.ensemble.ece_if_calibrated.mean == entry["intervals"]["ensemble"]["ece_if_calibrated"]["mean"]
    assert evaluation.ensemble.ensemble_minus == {}
    assert evaluation.member_mean.ensemble_minus == entry["intervals"]["ensemble_minus_member_mean"]
    assert evaluation.member_mean.std == entry["member_mean"]["std"]
    assert evaluation.best_member.index == entry["best_member"]["index"]
    assert evaluation.best_member.validation_nll == entry["best_member"]["validation_nll"]
    assert [member.index for member in evaluation.members] == [0, 1, 2]
    assert evaluation.ensemble_scaled is not None
    assert evaluation.ensemble_scaled.temperature == entry["temperature"]["T"]
    assert evaluation.best_member_scaled is not None
    assert evaluation.best_member_scaled.ensemble_minus == entry["temperature"]["best_member"]["ensemble_minus"]
    assert (
        evaluation.baselines["base_zero_shot"].intervals["nll"]
        == (entry["baselines"]["base_zero_shot"]["intervals"]["nll"])
    )
    assert (evaluation.level, evaluation.resamples, evaluation.seed) == (0.95, 30, 0)
    assert evaluation.early_exit == EarlyExitScores.from_dict(entry["early_exit"])
    assert evaluation.ood == {"other": OodScores.from_dict(entry["ood"]["other"])}
    assert evaluation.ood["other"].member_mean.std == entry["ood"]["other"]["member_mean"]["std"]


def test_evaluating_gives_the_typed_entry() -> None:
    predictions = make_predictions()
    evaluation = evaluate(predictions, **settings())
    assert evaluation == Evaluation.from_dict(evaluate_predictions(predictions, **settings()))


def test_what_could_not_be_given_has_a_reason() -> None:
    evaluation = Evaluation.from_dict(ENTRIES["no validation"]())
    for scores in (evaluation.best_member, evaluation.majority, evaluation.ensemble_scaled):
        assert scores is not None
        assert scores.reason is not None
        assert scores.metrics == {}
    entry = ENTRIES["one answer"]()
    assert entry["temperature"]["T"] is None
    assert entry["temperature"]["num_rows"] == 60
    assert "says nothing of the others" in entry["temperature"]["reason"]
    assert entry["temperature"]["best_member"]["index"] == entry["best_member"]["index"]


def test_entries_of_earlier_versions_are_read() -> None:
    """They lack parts, and have percentile intervals of the ECE, which are not shown."""
    entry = whole_entry()
    for key in ("notes", "mean_of_logits", "majority", "baselines", "seen", "left_out", "early_exit", "ood"):
        del entry[key]
    del entry["temperature"]["best_member"]
    del entry["intervals"]["ensemble"]["ece_if_calibrated"]
    evaluation = Evaluation.from_dict(entry)
    assert evaluation.ensemble.intervals["ece"] is not None
    assert evaluation.ensemble.interval("ece") is None
    assert evaluation.ensemble.interval("nll") is not None
    assert (evaluation.best_member_scaled, evaluation.majority, evaluation.ood) == (None, None, None)
    assert evaluation.baselines == {}


def test_differences_of_metrics() -> None:
    one, other = MethodScores({"nll": 0.5, "accuracy": 0.75}), MethodScores({"nll": None, "accuracy": 0.5})
    assert one.minus(other, "accuracy") == 0.25
    assert one.minus(other, "nll") is None
    assert one.minus(MethodScores(), "nll") is None
    assert (one.value("nll"), other.value("nll")) == (0.5, math.inf)
    assert [finite_ends(ends) for ends in (None, [0.0, None], [0.0, math.inf], [0.0, 1.0])] == [None] * 3 + [(0.0, 1.0)]


def test_pandas_has_one_row_per_method_and_metric() -> None:
    pytest.importorskip("pandas", reason="pandas is not installed (extra pandas)")
    evaluation = evaluate(infinite(), **settings())
    table = evaluation.to_pandas()
    assert list(table.columns) == ["method", "metric", "value", "low", "high"]
    methods = evaluation.methods()
    assert list(methods) == [
        *(
            "ensemble",
            "ensemble_scaled",
            "member_mean",
            "member_mean_scaled",
            "best_member",
            "best_member_scaled",
            "mean_of_logits",
        ),
        *("majority", "base_zero_shot", "member_0", "member_1", "member_2"),
    ]
    assert len(table) == len(methods) * len(BY_KEY)
    assert not table.duplicated(["method", "metric"]).any()
    rows = table.set_index(["method", "metric"])
    accuracy = rows.loc[("best_member", "accuracy")]
    low, high = evaluation.best_member.intervals["accuracy"] or (None, None)
    assert accuracy.tolist() == [evaluation.best_member.metrics["accuracy"], low, high]
    assert rows.loc[("ensemble", "nll"), "value"] == math.inf
    assert rows.loc[("member_0", "accuracy"), ["low", "high"]].isna().all()
    assert rows.loc[("member_mean", "ece"), ["low", "high"]].isna().all()


def test_without_pandas_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(LorchestraError, match=r"pip install 'lorchestra\[pandas\]'"):
        evaluate(make_predictions(), resamples=0).to_pandas()
