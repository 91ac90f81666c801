"""Tasks of typed questions made in Python."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.run import RunConfig, TrainConfig
from lorchestra.data.chunks import full_chunks
from lorchestra.errors import ConfigError
from lorchestra.metrics.calibrator import RAW
from lorchestra.questions import Question
from lorchestra.runs.ensemble import Ensemble, input_rows_of
from lorchestra.runs.run_cascade import answer_chunks_by_runs, run_cascade_of
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


@pytest.fixture(scope="module")
def train(tiny_base, tmp_path_factory):
    def build(task, seed=0):
        config = RunConfig(
            base=BaseConfig(name=str(tiny_base)),
            adapt=AdaptConfig(members=2, r=2),
            train=TrainConfig(epochs=1, lr=0.05, seed=seed),
        )
        return Ensemble.train(config, tmp_path_factory.mktemp("typed") / "run", rows=task)

    return build


@pytest.fixture(scope="module")
def run(train):
    return train(TASK)


def test_the_run_has_the_questions_of_the_task(run):
    assert run.record.questions == (GOOD, LONG)
    answers = list(run.predict(["a film", "a play"]))
    assert [(answer.row, answer.question) for answer in answers] == [(1, "good"), (1, "long"), (2, "good"), (2, "long")]
    assert answers[1].score == pytest.approx(answers[1].probs[1])


def test_a_cascade_of_two_runs_answers_each_question(run, train):
    """The questions of a row may be answered by different runs."""
    second = train(TASK, seed=1)
    by_first, by_second = (list(one.predict([f"{i} film" for i in range(6)], raw=True)) for one in (run, second))
    threshold = sorted(answer.confidence for answer in by_first)[6]
    cascade = SimpleNamespace(thresholds=(threshold, 0.0))
    plain = dataclasses.replace(run), dataclasses.replace(second)
    for one in plain:
        one.calibration = RAW  # thresholds are compared with the mixture as it is
    chunks = full_chunks(input_rows_of(run, [f"{i} film" for i in range(6)]), 5)
    answers = [answer for chunk in answer_chunks_by_runs(*plain, cascade, chunks) for answer in chunk.answers]
    assert [(answer.row, answer.question) for answer in answers] == [(a.row, a.question) for a in by_first]
    expected = [
        first if first.confidence >= threshold else other for first, other in zip(by_first, by_second, strict=True)
    ]
    assert {answer.members_used for answer in answers} == {2, 4}
    for answer, one in zip(answers, expected, strict=True):
        assert answer.probs == pytest.approx(one.probs, abs=1e-5)


def test_runs_of_a_cascade_have_the_same_questions(run, train):
    changed = dataclasses.replace(GOOD, instructions="It is very good.")
    splits = {
        split: tuple(dataclasses.replace(row, asked=changed) if row.asked == GOOD else row for row in rows)
        for split, rows in TASK.splits.items()
    }
    other = train(Task("films", splits, questions=(changed, LONG)))
    with pytest.raises(ConfigError, match="do not have the same typed questions"):
        run_cascade_of(run, other)


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
