"""The terminal's table of typed questions: its caption and its rows stay readable where the table is split."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from rich.console import Console

from lorchestra.metrics.calibrator import Calibration
from lorchestra.metrics.evaluation import evaluate
from lorchestra.metrics.question_scores import evaluate_questions
from lorchestra.metrics.result import Evaluation
from lorchestra.questions import Question
from lorchestra.report.question_table import caption, question_table
from lorchestra.report.table import evaluation_table
from lorchestra.types import Predictions

CHOICE = Question("queue", "choice", "Which queue?", ("film", "play", "song"))
SCORE = Question("severity", "score", "How severe?", ("low", "middle", "high"))


def entry_of(*questions):
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(2, 60, 3))
    asked = [questions[e % len(questions)] for e in range(60)]
    predictions = Predictions(
        scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True)),
        draw.integers(3, size=60),
        tuple(map(str, range(60))),
        tuple(one.options for one in asked),
        task="task",
        split="test",
        questions=tuple(one.name for one in asked),
    )
    entry = evaluate(predictions, resamples=0).to_dict()
    by_question = evaluate_questions(predictions, questions, resamples=0)
    return entry | {"questions": {name: one.to_dict() for name, one in by_question.items()}}


def with_baselines(entry, **nlls):
    """The entry with baselines of these NLLs for each question."""
    for question in entry["questions"].values():
        question["baselines"] = {name: question["ensemble"] | {"nll": nll} for name, nll in nlls.items()}
    return entry


def lines(entry, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(question_table(entry))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [40, 72, 100])
def test_the_caption_has_the_width_of_the_terminal(width):
    entry = entry_of(CHOICE, SCORE)
    shown = lines(entry, width)
    assert max(map(len, shown)) <= width
    start = next(number for number, line in enumerate(shown) if line.startswith("One LoRA:"))
    text = shown[start:]
    assert " ".join(text) == caption(Evaluation.of(entry).questions)
    # no line could take the first word of the next
    for line, following in itertools.pairwise(text):
        assert len(line) + 1 + len(following.split()[0]) > width


def test_the_metrics_of_scores_stay_together_and_every_row_has_its_method():
    shown = lines(entry_of(CHOICE, SCORE), 100)
    (header,) = [line for line in shown if line.split()[:2] == ["Question", "Method"] and "RPS" in line]
    assert "MAE" in header
    assert "Kappa" in header
    below = shown[shown.index(header) :]
    assert sum("ensemble" in line for line in below) == sum("one LoRA" in line for line in below) == 2


def test_the_best_baseline_without_adapters_has_a_row():
    entry = with_baselines(entry_of(CHOICE, SCORE), tfidf=0.777, frozen=0.555, base_zero_shot=0.333)
    shown = lines(entry, 120)
    rows = [line for line in shown if "+ LR" in line]
    assert len(rows) == 2
    assert all("frozen base + LR" in row and "0.555" in row for row in rows)
    assert "LR: logistic regression" in "\n".join(shown)
    assert "LR" not in "\n".join(lines(entry_of(CHOICE, SCORE), 120))


def test_the_table_of_all_rows_says_what_is_done_per_question():
    entry = with_baselines(entry_of(CHOICE), tfidf=0.7)
    entry["baselines"] = {"tfidf": entry["ensemble"]}
    console = Console(width=200, file=io.StringIO(), color_system=None)
    console.print(evaluation_table(entry))
    assert "calibrated per question" not in console.file.getvalue()
    calibration = Calibration("temperature", "", num_rows=9, temperature=2.0, nll_before=1.0, nll_after=0.9)
    entry["questions"]["queue"]["calibration"] = calibration.to_dict()
    console.print(evaluation_table(entry))
    text = " ".join(console.file.getvalue().split())
    assert "Ensemble calibrated per question." in text
    assert "LR: logistic regression per question, with one temperature (T)." in text


def test_without_scores_there_are_no_levels():
    shown = "\n".join(lines(entry_of(CHOICE), 120))
    assert "RPS" not in shown
    assert "queue" in shown


def test_other_runs_have_no_such_table():
    entry = entry_of(CHOICE)
    del entry["questions"]
    assert question_table(entry) is None
