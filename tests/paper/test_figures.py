"""Figures' computations beyond metrics, against known answers; pictures of several tasks and of compared methods."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from lorchestra.metrics.evaluation import evaluate_predictions
from lorchestra.paper.baselines import BASELINES
from lorchestra.paper.confidence import CONFIDENCE
from lorchestra.paper.curves import EPOCHS, subsets
from lorchestra.paper.page import write_page
from lorchestra.paper.results import ENSEMBLE, ONE, regularizer, regularizer_label
from lorchestra.types import Predictions


def test_subsets_are_different_and_repeatable():
    assert subsets(4, 2) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    drawn = subsets(20, 5)
    assert len(set(drawn)) == len(drawn) == 50
    assert all(len(set(one)) == 5 and max(one) < 20 for one in drawn)
    assert drawn == subsets(20, 5)
    assert len(subsets(20, 19)) == 20
    assert subsets(20, 20) == [tuple(range(20))]


@pytest.mark.parametrize(
    ("settings", "name", "label"),
    [
        ({}, ("none", 0.0), "no regularizer"),
        ({"adapt.r": 4, "regularize.weight_decay_b": 0.0}, ("none", 0.0), "no regularizer"),
        ({"regularize.weight_decay_b": 100}, ("decay on B", 100.0), "decay on B 100"),
        (
            {"regularize.kl_beta": 0.1, "regularize.kl_direction": "reverse"},
            ("reverse KL to base", 0.1),
            "reverse KL to base 0.1",
        ),
        (
            {"regularize.weight_decay_b": 10, "adapt.dropout": 0.1, "regularize.kl_direction": "reverse"},
            ("decay on B + dropout", 10.0),
            "decay on B + dropout 10",
        ),
    ],
)
def test_regularizer_is_named_after_its_settings(settings, name, label):
    assert regularizer(settings) == name
    assert regularizer_label(settings) == label


def results(names=("one_lora", "lora_ensemble", "zero_shot"), left_out="swag"):
    draw = np.random.default_rng(0)
    labels = draw.integers(4, size=60)
    methods = [{"name": left_out, "summary": "", "left_out": "every member failed"}]
    for i, name in enumerate(names):
        scores = draw.normal(size=(2, 60, 4))
        scores[:, np.arange(60), labels] += 3 - i
        log_probs = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
        ids = tuple(map(str, range(60)))
        predictions = Predictions(log_probs, labels, ids, (("a", "b", "c", "d"),) * 60, "quiz", "test")
        cost = {"fit_base_passes": 10.0 * i, "predict_base_passes": 1.0 + i, "fit_s": 2.0, "tokens": 5}
        entry = evaluate_predictions(predictions, resamples=100)
        methods.append({"name": name, "summary": "", "cost": cost, "entry": {"task": "quiz"} | entry})
    return methods


def test_methods_against_cost(tmp_path):
    methods = results()
    rows = BASELINES.table(methods)
    assert [row["method"] for row in rows] == ["one_lora", "lora_ensemble", "zero_shot"]
    for row, method in zip(rows, methods[1:], strict=True):
        assert row["nll"] == method["entry"]["ensemble"]["nll"]
        assert [row["ece_low"], row["ece_high"]] == method["entry"]["intervals"]["ensemble"]["ece"]
        assert row["predict_base_passes"] == method["cost"]["predict_base_passes"]
    sentence = write_page(BASELINES, rows, tmp_path / "baselines", "baselines", "caption")
    lowest = min(rows, key=lambda row: row["nll"])
    assert f"of 3 methods, lowest NLL: {lowest['method']} ({lowest['nll']:.3f})" in sentence
    figure = Figure()
    BASELINES.draw(figure, rows)
    assert len(figure.axes) == 8
    assert "largest share automated at 5 % error: " in sentence
    earlier = Figure()  # its comparison had no share automated
    BASELINES.draw(earlier, [{key: row[key] for key in row if "automated" not in key} for row in rows])
    assert len(earlier.axes) == 6
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [row["method"] for row in rows]


def test_each_task_has_a_row_of_panels_and_a_sentence(tmp_path):
    rows = [
        {"task": task, "regularizer": kind, "method": method, "epoch": epoch, "accuracy": 0.5, "nll": 1 + i / 10}
        | {"ece": 0.1 + i / 100}
        | {f"{metric}_{end}": 0.5 for metric in ("accuracy", "nll", "ece") for end in ("lowest", "highest")}
        for i, task in enumerate(("one", "two"))
        for kind in ("no regularizer", "decay on B 100")
        for method in (ONE, ENSEMBLE)
        for epoch in (0, 1, 2)
    ]
    figure = Figure()
    EPOCHS.draw(figure, rows)
    assert [axes.get_title() for axes in figure.axes[::3]] == ["one: accuracy (%)", "two: accuracy (%)"]
    assert len(figure.legends) == 1
    sentence = EPOCHS.sentence(rows)
    assert sentence.startswith("one: no regularizer: one LoRA (mean of members) NLL 1.000 at best (epoch 1)")
    assert "; two: no regularizer: one LoRA (mean of members) NLL 1.100" in sentence


def test_sentence_without_wrong_answers(tmp_path):
    rows = [
        {"task": "quiz", "method": method, "id": "a", "choices": 4, "confidence": 0.9, "correct": 1}
        for method in ("one LoRA (members pooled)", "ensemble, decay on B")
    ]
    sentence = write_page(CONFIDENCE, rows, tmp_path, "fig1", "caption")
    assert "none for one LoRA (members pooled) (100.0 % right)" in sentence
