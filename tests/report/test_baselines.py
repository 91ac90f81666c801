"""The baselines without adapters in table and verdict: which is the best, and whether the run is better than it."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from lorchestra.metrics.evaluation import evaluate_predictions
from lorchestra.metrics.result import Evaluation, MethodScores
from lorchestra.report.table import baseline_text, best_baseline, class_table, evaluation_table, verdict
from lorchestra.types import Predictions


def predictions(members: int, seed: int, signal: float) -> Predictions:
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=200)
    scores = np.random.default_rng(seed).normal(size=(members, 200, 3))
    scores[:, np.arange(200), labels] += signal
    log_probs = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    return Predictions(log_probs, labels, tuple(map(str, range(200))), (("a", "b", "c"),) * 200, "toy", "test")


def entry(tfidf: float, frozen: float, members: int = 3, nlls: dict[str, float] | None = None) -> dict[str, Any]:
    """An evaluation of members of signal 2 next to baselines of these signals; `nlls` are theirs on validation rows."""
    baselines = {"tfidf": predictions(1, 8, tfidf), "frozen": predictions(1, 9, frozen)}
    given = {
        name: MethodScores(temperature=1.25, num_rows=60, validation_nll=nll) for name, nll in (nlls or {}).items()
    }
    labels = [0] * 90 + [1] * 60 + [2] * 8
    ensemble = predictions(members, 1, 2.0)
    values = evaluate_predictions(ensemble, baselines=baselines, fits=given, resamples=200, train_labels=labels)
    loaded: dict[str, Any] = json.loads(json.dumps(values))
    return loaded


def shown(table: Any) -> str:
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_the_best_is_chosen_by_validation_rows_where_all_have_them() -> None:
    by_test = best_baseline(Evaluation.of(entry(0.5, 1.5)))
    assert by_test is not None
    assert by_test.key == "frozen"
    by_validation = best_baseline(Evaluation.of(entry(0.5, 1.5, nlls={"tfidf": 0.3, "frozen": 0.9})))
    assert by_validation is not None
    assert by_validation.key == "tfidf"
    assert best_baseline(Evaluation.of(entry(0.5, 1.5) | {"baselines": {}})) is None


def test_a_run_that_is_better_than_the_best_is_clearly_so() -> None:
    text = baseline_text(Evaluation.of(entry(0.2, 1.0)))
    assert text is not None
    assert text.startswith("The run is clearly better than frozen base + LR, the best baseline without adapters, in")
    assert "accuracy (+" in text
    assert "AURC (-" in text
    assert text in verdict(entry(0.2, 1.0))


@pytest.mark.parametrize("members", [1, 3])
def test_a_run_that_is_not_better_is_said_to_be_so(members: int) -> None:
    """With one member, too, where there is no ensemble to judge."""
    same = entry(2.0, 0.1, members)
    same["baselines"]["tfidf"]["ensemble_minus"] = {m: [-0.05, 0.05] for m in ("accuracy", "nll", "brier", "aurc")}
    assert "The run is not clearly better than TF-IDF + LR, the best baseline without adapters: accuracy (" in verdict(
        same
    )
    worse = entry(9.0, 0.1, members)
    worse["baselines"]["tfidf"]["ensemble_minus"]["aurc"] = [-0.05, 0.05]
    text = baseline_text(Evaluation.of(worse))
    assert text is not None
    assert text.startswith(
        "The run is not better than TF-IDF + LR, the best baseline without adapters: it is clearly worse"
    )
    mixed = entry(2.0, 0.1, members)
    ends = {"accuracy": [0.01, 0.05], "nll": [0.1, 0.2], "aurc": [-0.01, 0.02]}
    mixed["baselines"]["tfidf"]["ensemble_minus"] = ends
    assert "the run is clearly better in accuracy (" in verdict(mixed)
    assert "but clearly worse in NLL (" in verdict(mixed)


def test_without_intervals_nothing_is_said() -> None:
    silent = entry(0.2, 1.0)
    for name in ("tfidf", "frozen"):
        silent["baselines"][name]["ensemble_minus"] = {}
    assert baseline_text(Evaluation.of(silent)) is None


def test_an_evaluation_of_an_earlier_version_is_judged_without_aurc() -> None:
    earlier = entry(0.2, 1.0)
    for method in earlier["baselines"].values():
        del method["ensemble_minus"]["aurc"]
    for name in ("ensemble_minus_member_mean",):
        del earlier["intervals"][name]["aurc"]
    del earlier["classes"]
    text = verdict(earlier)
    assert "clearly better than frozen base + LR" in text
    assert "AURC" not in text
    assert class_table(earlier) is None


def test_table_shows_temperature_seconds_and_recall() -> None:
    values = entry(0.5, 1.5, nlls={"tfidf": 0.8, "frozen": 0.7}) | {"seconds": {"tfidf": 1.6, "frozen": 30.2}}
    text = shown(evaluation_table(values))
    assert "TF-IDF + LR" in text
    assert "T = 1.25" in text
    assert "Seconds spent: TF-IDF + LR 2; frozen base + LR 30." in " ".join(text.split())
    recall = shown(class_table(values)).splitlines()
    row = next(line for line in recall if line.startswith("c "))
    expected = values["classes"]["recall"]["ensemble"][2]
    assert row.split()[1] == "8"
    assert f"{100 * expected:.1f}" in row
    assert any(line.startswith("macro F1") and f"{values['ensemble']['macro_f1']:.3f}" in line for line in recall)
    assert "unbalanced (8 to 90 rows): --data.class-weights" in verdict(values)
    damaged = values | {"classes": values["classes"] | {"recall": {}, "rows": [1]}}
    assert "macro F1" in shown(class_table(damaged))
