"""Sweeps, comparisons and baselines on typed questions: results by question, the same as those of `evaluate`."""

from __future__ import annotations

import dataclasses

import pytest
from typed_rows import typed_config

from lorchestra.metrics.by_question import split_by_question
from lorchestra.metrics.evaluation import evaluate
from lorchestra.metrics.result import Evaluation
from lorchestra.runs.compare import compare_methods
from lorchestra.runs.ensemble import Ensemble, load_run
from lorchestra.runs.evaluate import evaluate_run
from lorchestra.runs.sweep.points import grid_points, parse_axis
from lorchestra.runs.sweep.run import run_sweep
from lorchestra.store.predictions import load_predictions
from lorchestra.store.run import Run

NAMES = ["genre", "praised", "length"]


def test_a_point_of_a_sweep_is_evaluated_as_its_run(tiny_base, tmp_path):
    config = typed_config(tmp_path, tiny_base)
    (point, _) = grid_points(config, [parse_axis("train.lr=0.02,0.05")])
    root = run_sweep(grid_points(config, [parse_axis("train.lr=0.02,0.05")]), tmp_path / "sweep").root
    run = Run(root / "runs" / point.name)
    (entry,), _ = run.read_evaluations()
    again = evaluate_run(load_run(run.root), save=False)
    assert list(entry["questions"]) == NAMES
    for name in NAMES:
        one, other = entry["questions"][name], again["questions"][name]
        assert one["calibration"] == other["calibration"]
        assert set(one["baselines"]) == set(other["baselines"]) == {"base_zero_shot", "tfidf", "frozen"}
        for method in ("ensemble", "member_mean"):
            assert one[method]["nll"] == pytest.approx(other[method]["nll"], abs=1e-5)
    assert entry["ensemble"]["nll"] == pytest.approx(again["ensemble"]["nll"], abs=1e-5)
    assert entry["majority"]["index"] is None


def test_compared_methods_have_results_by_question(tiny_base, tmp_path):
    config = typed_config(tmp_path, tiny_base)
    names = ["few_shot", "tfidf", "one_lora", "one_lora+temperature"]
    few, *results = compare_methods(config, names, tmp_path / "comparison")
    assert "typed questions are asked without examples" in few["left_out"]
    for result in results:
        folder = tmp_path / "comparison/methods" / result["name"] / "predictions"
        predictions = load_predictions(folder / "train.test.safetensors", answered=True)
        evaluation = Evaluation.from_dict(result["entry"])
        assert evaluation.majority.index is None
        parts = split_by_question(predictions)
        assert sorted(evaluation.questions) == sorted(parts)
        for name, part in parts.items():
            alone = evaluate(part, resamples=0)
            assert evaluation.questions[name].evaluation.ensemble.metrics == alone.ensemble.metrics
            assert evaluation.questions[name].evaluation.majority.index is not None
    assert sorted(results[-1]["chosen"]) == sorted(f"temperature_{name}" for name in NAMES)


def test_an_evaluation_without_calibration_has_every_question(tiny_base, tmp_path):
    config = dataclasses.replace(typed_config(tmp_path, tiny_base))
    run = Ensemble.train(config, tmp_path / "run")
    raw = run.evaluate(raw=True, save=False)
    assert list(raw.questions) == NAMES
    predictions = run.evaluate().questions
    for name in NAMES:
        assert raw.questions[name].evaluation.calibration is None
        ensemble = raw.questions[name].evaluation.ensemble
        assert ensemble.metrics["nll"] == predictions[name].evaluation.ensemble_raw.metrics["nll"]
