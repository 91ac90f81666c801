"""A run on typed questions, question by question: calibration, decisions, evaluation, and further questions."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil

import numpy as np
import pytest

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.run import EvaluateConfig, RunConfig, TrainConfig
from lorchestra.data.splits import content_digest
from lorchestra.errors import CheckpointError, ConfigError, DataError
from lorchestra.inference.predict import member_passes
from lorchestra.metrics.by_question import RowCalibration, split_by_question
from lorchestra.metrics.calibrator import pooled
from lorchestra.metrics.early_exit import ExitRule
from lorchestra.metrics.evaluation import evaluate
from lorchestra.metrics.ordinal import ordinal_scores
from lorchestra.metrics.question_scores import evaluate_questions
from lorchestra.metrics.result import Evaluation
from lorchestra.metrics.scores import accuracy
from lorchestra.nn.packing import BASE
from lorchestra.questions import Question
from lorchestra.runs.ask import Asked, Asker
from lorchestra.runs.ensemble import Ensemble
from lorchestra.runs.rows import RunRows
from lorchestra.types import Example, Task

COLOR = Question("color", "choice", "Which color?", ("red", "green", "blue"), ("like blood", None, None))
GOOD = Question("good", "predicate", "It is good.")
LONG = Question("long", "score", "How long is it?", ("short", "medium", "long"))
QUESTIONS = (COLOR, GOOD, LONG)
ANSWERED = {"train": 24, "val": 60, "test": 60}


def rows_of(split, number):
    """Typed rows; a fifth of the answers is missing."""
    draw = random.Random(split)
    rows = []
    for index in range(number):
        for question in QUESTIONS:
            if draw.random() < 0.8:
                answer = draw.randrange(len(question.options))
                state = f"{split} {index}: a {draw.choice(['fine', 'bad'])} film"
                name = f"{split}-{index}/{question.name}"
                rows.append(Example(name, state, question.options, answer, f"{split}.csv:{index}", question))
    return tuple(rows)


TASK = Task("films", {split: rows_of(split, number) for split, number in ANSWERED.items()}, questions=QUESTIONS)


@pytest.fixture(scope="module")
def trained(tiny_base, tmp_path_factory):
    config = RunConfig(
        base=BaseConfig(name=str(tiny_base)),
        adapt=AdaptConfig(members=3, r=2),
        train=TrainConfig(epochs=1, lr=0.05),
        evaluate=EvaluateConfig(resamples=20, few_shot=0),
    )
    return Ensemble.train(config, tmp_path_factory.mktemp("typed") / "run", rows=TASK)


@pytest.fixture
def certified(trained, tmp_path):
    """A copy of the run, to certify."""
    return Ensemble.load(shutil.copytree(trained.run.root, tmp_path / "run"))


def test_every_question_has_the_calibration_of_its_validation_rows(trained):
    assert list(trained.calibrations) == ["color", "good", "long"]
    assert trained.calibration.kind == "none"
    record = trained.run.read_calibration(trained.record)
    for question in QUESTIONS:
        rows = [row for row in TASK.splits["val"] if row.asked == question]
        assert trained.calibrations[question.name].num_rows == len(rows)
        assert record.questions[question.name].row_digests == tuple(map(content_digest, rows))


def test_answers_are_calibrated_by_question(trained):
    rows = [row for row in TASK.splits["test"][:12]]
    predictions = trained.pipeline.predict(rows, member_passes(range(3)), "test")
    parts = {
        name: iter(pooled(part.log_probs_MEC, trained.calibrations[name]))
        for name, part in split_by_question(predictions).items()
    }
    for row, answer in zip(rows, trained.predict(rows), strict=True):
        assert answer.question == row.asked.name
        np.testing.assert_allclose(answer.probs, np.exp(next(parts[answer.question])), rtol=0, atol=1e-5)
        assert answer.calibrated
    assert not any(answer.calibrated for answer in trained.predict(rows, raw=True))


def test_asking_a_trained_question_is_predicting_it(trained):
    row = next(row for row in TASK.splits["test"] if row.asked == COLOR)
    (predicted,) = trained.predict([row])
    (reply,) = Asker(trained).answer([Asker(trained).encode(Asked(row.question, COLOR))])
    np.testing.assert_allclose(reply.answer.probs, predicted.probs, rtol=0, atol=1e-6)
    assert (reply.answer.trained, reply.answer.calibrated, reply.answer.decision) == (True, True, None)
    assert reply.input_tokens > reply.state_tokens > 0


def ask(asker, state, *questions, member=None):
    """Answers by question name."""
    replies = asker.answer([asker.encode(Asked(state, question, member)) for question in questions])
    return {reply.answer.question: reply.answer for reply in replies}


@pytest.mark.parametrize("cache_bytes", [0, 10**9], ids=["no cache", "cache"])
def test_names_and_order_of_questions_change_no_bit(trained, cache_bytes):
    """And others that are asked change nothing but the rounding of sums."""
    state = "a film that nobody has seen"
    other = Question("other", "choice", "Who made it?", ("Ann", "Bob", "Ann Lee"))
    first = ask(Asker(trained, cache_bytes=cache_bytes), state, *QUESTIONS, other)
    turned = ask(Asker(trained, cache_bytes=cache_bytes), state, other, *reversed(QUESTIONS))
    assert {name: answer.member_probs for name, answer in first.items()} == {
        name: answer.member_probs for name, answer in turned.items()
    }
    renamed = [dataclasses.replace(question, name=f"{question.name}!") for question in (*QUESTIONS, other)]
    for name, answer in ask(Asker(trained, cache_bytes=cache_bytes), state, *renamed).items():
        assert answer.member_probs == first[name.removesuffix("!")].member_probs
    for question in (*QUESTIONS, other):
        alone = ask(Asker(trained, cache_bytes=cache_bytes), state, question)[question.name]
        np.testing.assert_allclose(alone.member_probs, first[question.name].member_probs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("question", [COLOR, Question("maker", "choice", "Who?", ("Ann", "Bob", "Ann Lee"))])
def test_the_order_of_options_changes_no_bit(trained, question):
    order = (2, 0, 1)
    turned = dataclasses.replace(
        question,
        options=tuple(question.options[c] for c in order),
        descriptions=tuple(question.descriptions[c] for c in order),
    )
    one, other = (ask(Asker(trained), "a film", given)[given.name] for given in (question, turned))
    assert other.probs == tuple(one.probs[c] for c in order)
    assert other.member_probs == tuple(tuple(member[c] for c in order) for member in one.member_probs)
    assert (one.prediction, one.trained) == (other.prediction, other.trained)
    assert other.choices[other.prediction_index] == other.prediction


def test_a_question_that_was_not_trained_is_answered_and_flagged(trained):
    changed = dataclasses.replace(GOOD, instructions="It is very good.")
    answer = ask(Asker(trained), "a film", changed)["good"]
    assert (answer.trained, answer.calibrated, answer.decision, answer.prediction_set) == (False, False, None, None)
    assert sum(answer.probs) == pytest.approx(1)


def test_a_member_and_the_base_answer_alone(trained):
    together = ask(Asker(trained), "a film", LONG)["long"]
    for member in range(3):
        alone = ask(Asker(trained), "a film", LONG, member=member)["long"]
        np.testing.assert_allclose(alone.probs, together.member_probs[member], rtol=0, atol=1e-6)
        assert not alone.calibrated
    base = ask(Asker(trained), "a film", LONG, member=BASE)["long"]
    assert len(base.member_probs) == 1
    assert np.abs(np.array(base.probs) - together.probs).max() > 1e-4


def test_a_score_is_the_expected_level(trained):
    answer = ask(Asker(trained), "a film", LONG)["long"]
    assert answer.score == pytest.approx(answer.probs[1] + 2 * answer.probs[2])


def test_a_run_on_labels_is_asked_its_labels_in_any_order(run_config, texts_csv, tmp_path):
    labeled = Ensemble.train(run_config(texts_csv()), tmp_path / "labels")
    (predicted,) = labeled.predict(["a good film"])
    question = Question("any", "choice", "Is it good?", tuple(reversed(labeled.labels)))
    answer = ask(Asker(labeled), "a good film", question)["any"]
    np.testing.assert_allclose(answer.probs[::-1], predicted.probs, rtol=0, atol=1e-6)
    assert (answer.trained, answer.calibrated, answer.prediction) == (True, predicted.calibrated, predicted.prediction)
    assert not ask(Asker(labeled), "a good film", GOOD)["good"].trained


def test_the_evaluation_has_every_question_on_its_rows(trained):
    predictions = trained.pipeline.predict(TASK.splits["test"], member_passes(range(3)), "test")
    validation = trained.pipeline.predict(TASK.splits["val"], member_passes(range(3)), "val")
    scores = evaluate_questions(
        predictions, QUESTIONS, validation=validation, calibrations=trained.calibrations, resamples=20
    )
    assert list(scores) == ["color", "good", "long"]
    for name, part in split_by_question(predictions).items():
        one = scores[name]
        mixture = pooled(part.log_probs_MEC, trained.calibrations[name])
        assert one.evaluation.ensemble.metrics["accuracy"] == accuracy(mixture, part.labels)
        assert one.evaluation.num_examples == part.num_examples
        assert one.evaluation.calibration == trained.calibrations[name]
        assert one.type == next(question.type for question in QUESTIONS if question.name == name)
    part = split_by_question(predictions)["long"]
    assert scores["long"].ordinal["ensemble"] == ordinal_scores(
        pooled(part.log_probs_MEC, trained.calibrations["long"]), part.labels
    )
    assert not scores["color"].ordinal
    whole = evaluate(
        predictions,
        validation=validation,
        calibration=RowCalibration(trained.calibrations, predictions.questions),
        resamples=0,
    )
    right = sum(one.evaluation.ensemble.metrics["accuracy"] * one.evaluation.num_examples for one in scores.values())
    assert whole.ensemble.metrics["accuracy"] * predictions.num_examples == pytest.approx(right)
    members = sum(
        one.evaluation.member_mean_scaled.metrics["nll"] * one.evaluation.num_examples for one in scores.values()
    )
    assert whole.member_mean_scaled.metrics["nll"] * predictions.num_examples == pytest.approx(members)
    entry = dataclasses.replace(whole, questions=scores)
    again = Evaluation.from_dict(json.loads(json.dumps(entry.to_dict())))
    assert again.questions == Evaluation.from_dict(entry.to_dict()).questions
    assert again.to_dict() == json.loads(json.dumps(entry.to_dict()))


def certify(ensemble, question, rows=TASK, **settings):
    return ensemble.calibrate(question=question, rows=rows, target_error=0.9, **settings)


def test_one_question_is_certified_and_decided(certified):
    decisions = certify(certified, "long", sets=0.9)
    assert decisions.rows.num_rows == sum(row.asked == LONG for row in TASK.splits["test"])
    assert list(certified.decisions_by_question) == ["color", "good", "long"]
    assert certified.decisions_by_question["color"] is None
    again = Ensemble.load(certified.run.root)
    for answer in again.predict(["a film", "another"]):
        assert (answer.decision is not None) == (answer.question == "long" and decisions.has_threshold)
        assert (answer.prediction_set is not None) == (answer.question == "long")
    answers = ask(Asker(again), "a film", LONG, GOOD)
    assert answers["long"].prediction_set is not None
    assert answers["good"].prediction_set is None
    # another question keeps the first
    certify(again, "good")
    assert again.decisions_by_question["long"] is not None
    assert again.decisions_by_question["good"] is not None


def test_a_state_of_the_training_certifies_no_other_question(certified):
    """The members have seen the state, with the answer to another question."""
    seen = next(row for row in TASK.splits["train"] if row.asked == GOOD).question
    some = [row.id for row in TASK.splits["test"] if row.asked == LONG][:3]
    moved = tuple(dataclasses.replace(row, question=seen) if row.id in some else row for row in TASK.splits["test"])
    rows = Task(TASK.name, {**TASK.splits, "test": moved}, questions=QUESTIONS)
    expected = sum(row.asked == LONG and row.question != seen for row in moved)
    assert expected == sum(row.asked == LONG for row in moved) - 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lorchestra.runs.calibrate.rows_to_compare", lambda *_: RunRows(rows, ()))
        decisions = certify(certified, "long")
    assert decisions.rows.num_rows == expected


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (None, "question: the run has typed questions; name one of color, good, long"),
        ("colour", "question: the run has no question 'colour'; did you mean 'color'"),
    ],
)
def test_a_question_must_be_named(certified, question, message):
    with pytest.raises(ConfigError, match=message):
        certify(certified, question)


def test_a_run_without_typed_questions_has_none_to_name(run_config, texts_csv, tmp_path):
    labeled = Ensemble.train(run_config(texts_csv()), tmp_path / "labels")
    with pytest.raises(ConfigError, match="the run has no typed questions: leave it out"):
        labeled.calibrate(question="good")


def test_calibrations_of_other_questions_are_refused(certified):
    path = certified.run.calibration
    record = certified.run.read_calibration(certified.record)
    questions = dict(record.questions)
    questions["colour"] = questions.pop("color")
    certified.run.write_calibration(dataclasses.replace(record, questions=questions))
    with pytest.raises(CheckpointError, match="its questions are not those of the run"):
        Ensemble.load(path.parent).calibrations  # noqa: B018


def test_too_few_rows_of_a_question_are_reported(certified):
    few = Task(
        TASK.name,
        {**TASK.splits, "test": tuple(row for row in TASK.splits["test"] if row.asked != LONG)[:2]},
        questions=QUESTIONS,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lorchestra.runs.calibrate.rows_to_compare", lambda *_: RunRows(few, ()))
        with pytest.raises(ConfigError, match="the run has no test rows"):
            certify(certified, "long")
        with pytest.raises(DataError, match=r"the test rows: .* rows"):
            certify(certified, "good")


def test_states_are_asked_in_python(trained):
    states = ["a film", "a play"]
    answers = trained.ask(states, [LONG, GOOD])
    assert [[answer.question for answer in of_state] for of_state in answers] == [["long", "good"]] * 2
    for state, of_state in zip(states, answers, strict=True):
        np.testing.assert_allclose(of_state[0].probs, ask(Asker(trained), state, LONG)["long"].probs, atol=1e-6)
    message = r"the state and the question have \d+ tokens, and the run's prompts at most 256"
    with pytest.raises(DataError, match=message):
        trained.ask(["film " * 300], [GOOD])


@pytest.mark.parametrize("setting", ["exact", 0.4, 1.0])
def test_early_exit_answers_with_the_members_that_it_takes(trained, setting):
    rule = ExitRule.parse(setting)
    asker = Asker(trained, cache_bytes=10**9)
    states = [f"a film {index}" for index in range(4)]
    asks = [asker.encode(Asked(state, q, early_exit=rule)) for state in states for q in QUESTIONS]
    for ask_, reply in zip(asks, asker.answer(asks), strict=True):
        whole = ask(Asker(trained), ask_.asked.state, ask_.asked.question)[ask_.asked.question.name]
        log_probs_MEC = np.log(np.array(whole.member_probs))[:, None]
        used = int(rule.members_used(log_probs_MEC)[0])
        assert reply.answer.members_used == used == len(reply.answer.member_probs)
        np.testing.assert_allclose(reply.answer.member_probs, whole.member_probs[:used], rtol=0, atol=1e-6)
        assert (reply.cached_tokens, reply.written_tokens, reply.answer.decision) == (0, 0, None)
        if setting == "exact" and trained.calibrations[reply.question].keeps_predictions:
            raw = np.mean(whole.member_probs, axis=0)
            assert reply.answer.prediction_index == int(raw.argmax())


def test_early_exit_and_all_members_in_one_call(trained):
    asker = Asker(trained)
    early = asker.encode(Asked("a film", GOOD, early_exit=ExitRule.parse("exact")))
    whole = asker.encode(Asked("a film", GOOD))
    replies = asker.answer([early, whole, early])
    used = [reply.answer.members_used for reply in replies]
    assert used[0] == used[2] is not None
    assert used[1] is None
    assert replies[1].answer.probs == ask(Asker(trained), "a film", GOOD)["good"].probs
