"""What can be automated: what the verdict claims, tables at 80 columns, and evaluations of earlier versions."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorchestra.metrics.evaluation import evaluate_predictions
from lorchestra.metrics.predictive import apply_temperature
from lorchestra.metrics.result import Evaluation, MethodScores
from lorchestra.metrics.scores import share_automated
from lorchestra.metrics.table import METRICS
from lorchestra.metrics.temperature import regularized_temperature
from lorchestra.report.automation import automation_text
from lorchestra.report.differences import Method
from lorchestra.report.html.tables import headline, method_rows, references
from lorchestra.report.table import evaluation_table, verdict
from lorchestra.store.evaluations import check_entry
from lorchestra.types import Predictions
from tests.report.test_table import full_entry, make_predictions, render

LATER = [metric.key for metric in METRICS if metric.later]


def entry_with(ends: Any, ensemble: float = 0.61, scaled: float = 0.55) -> Evaluation:
    entry = full_entry(baselines=None)
    entry["ensemble"]["automated_5"] = ensemble
    entry["member_mean_scaled"] |= {"automated_5": scaled, "ensemble_minus": {"automated_5": ends}}
    return Evaluation.from_dict(entry)


def without_later(entry: Any) -> Any:
    """An entry as an earlier version wrote it."""
    if isinstance(entry, dict):
        return {key: without_later(value) for key, value in entry.items() if key not in (*LATER, "member_mean_scaled")}
    return [without_later(value) for value in entry] if isinstance(entry, list) else entry


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ([0.02, 0.1], "That is clearly more (+6.0 points; +2.0 to +10.0) than"),
        ([-0.01, 0.1], "That is not clearly more (+6.0 points; -1.0 to +10.0) than"),
        ([0.0, 0.1], "That is not clearly more (+6.0 points; +0.0 to +10.0) than"),
        (None, "That is +6.0 points, which these rows cannot judge, from"),
    ],
)
def test_more_is_claimed_only_where_the_interval_excludes_zero(ends: Any, words: str) -> None:
    assert automation_text(entry_with(ends)) == (
        f"At 5 % error, the ensemble could automate 61.0 % of these rows. {words} one LoRA with a temperature, the mean"
        " of the members, which answers in one pass in place of 3."
    )


def test_less_is_admitted() -> None:
    text = automation_text(entry_with([-0.1, -0.02], scaled=0.67))
    assert "That is clearly less (-6.0 points; -10.0 to -2.0) than one LoRA with a temperature" in str(text)


def test_methods_of_equal_cost_follow() -> None:
    evaluation = entry_with([0.02, 0.1])
    scores = MethodScores({"automated_5": 0.6}, ensemble_minus={"automated_5": [-0.03, 0.05]})
    controls = [Method("high_rank", "high rank", scores), Method("long_training", "long", scores)]
    text = str(automation_text(evaluation, controls))
    assert text.endswith(
        "; and not clearly more (+1.0 points; -3.0 to +5.0) than one LoRA trained 3 times as long (equal training"
        " cost)."
    )
    assert "high rank" not in text
    dropped = str(automation_text(Evaluation.from_dict(full_entry())))
    assert "than MC dropout with as many passes (equal serving cost)." in dropped


def test_a_trained_lora_with_a_temperature_stands_in_for_the_members() -> None:
    evaluation = Evaluation.from_dict(full_entry(validation=None, baselines=None))
    assert automation_text(evaluation) is None
    scores = MethodScores({"automated_5": 0.0}, ensemble_minus={"automated_5": [0.0, 0.0]})
    text = str(automation_text(evaluation, [Method("one_lora+temperature", "it", scores)]))
    assert "than one LoRA with a temperature, which answers in one pass in place of 3." in text


def test_the_mean_member_is_scaled_by_the_temperatures_of_validation_rows() -> None:
    predictions, validation = make_predictions(), make_predictions(seed=1)
    scaled = evaluate_predictions(predictions, validation=validation, resamples=0)["member_mean_scaled"]
    shares, temperatures = [], []
    for log_probs, of_validation in zip(predictions.log_probs_MEC, validation.log_probs_MEC, strict=True):
        fit = regularized_temperature(of_validation, validation.labels, validation.options)
        assert fit.T is not None
        temperatures.append(fit.T)
        shares.append(share_automated(apply_temperature(log_probs, fit.T), predictions.labels, 0.05))
    assert scaled["automated_5"] == pytest.approx(np.mean(shares))
    assert scaled["std"]["automated_5"] == pytest.approx(np.std(shares, ddof=1))
    assert scaled["notes"] == [f"T of the members: {', '.join(f'{T:.2f}' for T in temperatures)}"]


def test_validation_rows_without_a_temperature_give_the_reason() -> None:
    validation = make_predictions(seed=1)
    one_class = Predictions(
        validation.log_probs_MEC, np.zeros(100, dtype=np.int64), validation.ids, validation.options, "toy", "val"
    )
    scaled = evaluate_predictions(make_predictions(), validation=one_class, resamples=20)["member_mean_scaled"]
    assert "accuracy" not in scaled
    assert "have the answer 'a'" in scaled["reason"]


def test_an_evaluation_is_the_same_when_it_was_saved() -> None:
    entry = full_entry()
    check_entry(entry, Path("metrics.json"), "evaluations[0]", "evaluate again")
    assert Evaluation.from_dict(entry).to_dict() == entry == full_entry()


def test_evaluations_of_earlier_versions_are_read_and_shown() -> None:
    earlier = without_later(copy.deepcopy(full_entry()))
    check_entry(earlier, Path("metrics.json"), "evaluations[0]", "evaluate again")
    evaluation = Evaluation.from_dict(earlier)
    assert evaluation.to_dict() == earlier
    assert automation_text(evaluation) is None
    text = verdict(earlier)
    assert "automate" not in text
    assert "probability zero" not in text
    assert headline(earlier) == headline(evaluation)
    shown = "\n".join(render(evaluation_table(earlier)))
    assert "Automated" not in shown
    assert "Brier" in shown
    assert {cell.value for row in method_rows(earlier) for cell in row.cells[3:4]} == {"\N{EN DASH}"}
    assert {reference.cells[3].judged for reference in references(earlier)} == {"unknown"}


@pytest.mark.parametrize("width", [80, 100, 120])
def test_accuracy_and_the_share_automated_are_in_the_first_columns(width: int) -> None:
    lines = render(evaluation_table(full_entry()), width)
    assert max(map(len, lines)) <= width
    header = next(line for line in lines if line.startswith("Method"))
    assert header.split()[:6] == ["Method", "Accuracy", "%", "(5", "%", "error)"]
    assert sum(line.startswith("Method") for line in lines) == (2 if width == 80 else 1)
