"""Tasks of typed questions made in Python."""

from __future__ import annotations

import dataclasses

import pytest

from lorchestra.config.data import DataConfig
from lorchestra.errors import ConfigError
from lorchestra.questions import Question
from lorchestra.runs.ensemble import Ensemble
from lorchestra.types import Example, Task

GOOD = Question("good", "predicate", "It is good.")
LONG = Question("long", "score", "How long?", ("short", "long"))


def examples(split, number):
    return tuple(
        Example(f"{split}-{i}/{question.name}", f"{split} {i} film", question.options, i % 2, asked=question)
        for i in range(number)
        for question in (GOOD, LONG)
    )


TASK = Task("films", {"train": examples("train", 8), "val": examples("val", 4)}, questions=(GOOD, LONG))


def test_the_run_has_the_questions_of_the_task(run_config, tmp_path):
    config = run_config("none", data={"scoring": "auto"}, train={"epochs": 1})
    config = dataclasses.replace(config, data=DataConfig())
    run = Ensemble.train(config, tmp_path / "run", rows=TASK)
    assert run.record.questions == (GOOD, LONG)
    answers = list(run.predict(["a film", "a play"]))
    assert [(answer.row, answer.question) for answer in answers] == [(1, "good"), (1, "long"), (2, "good"), (2, "long")]
    assert answers[1].score == pytest.approx(answers[1].probs[1])


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (dataclasses.replace(TASK, questions=(GOOD,)), "a train row does not ask one of the typed questions"),
        (dataclasses.replace(TASK, questions=()), "a train row does not ask one of the typed questions"),
        (
            dataclasses.replace(TASK, splits={**TASK.splits, "val": (Example("v", "x", ("a", "b"), 0),)}),
            "a val row does not ask one of the typed questions",
        ),
        (
            dataclasses.replace(TASK, questions=(GOOD, LONG, dataclasses.replace(GOOD, instructions="x"))),
            "two of the typed questions have the same name",
        ),
    ],
)
def test_rows_and_questions_that_differ_are_refused(run_config, tmp_path, task, message):
    with pytest.raises(ConfigError, match=message):
        Ensemble.train(run_config("none"), tmp_path / "run", rows=task)
