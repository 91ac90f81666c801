"""A cascade of two runs: the pure function's certificate, answers by the rule, and refusals."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.config.run import RunConfig, TrainConfig
from lorchestra.data.chunks import full_chunks
from lorchestra.errors import CheckpointError, ConfigError, DataError
from lorchestra.metrics.calibrator import pooled
from lorchestra.metrics.cascade import cascade_path, certify_cascade
from lorchestra.report.decisions import run_cascade_sentences
from lorchestra.runs.ensemble import Ensemble, input_rows_of
from lorchestra.runs.run_cascade import answer_chunks_by_runs, calibrate_runs, run_cascade_of
from lorchestra.runs.train import train_run
from lorchestra.store.calibration_record import _checksum

WORDS = ("good", "bad", "fine", "dull", "long", "short", "the", "film", "song", "play", "was", "rather", "very")
TARGET, ROWS, SMALL, LARGE = 0.25, 300, 1, 3


def texts(number, seed, flipped, labels=("no", "yes")):
    """Texts whose label is whether "good" or "fine" is in them, except for a share of them."""
    draw = np.random.default_rng(seed)
    rows = {}
    while len(rows) < number:
        words = draw.choice(WORDS, 7).tolist()
        rows[" ".join(words)] = labels[("good" in words or "fine" in words) != (draw.random() < flipped)]
    return "".join(["text,label\n", *(f"{text},{label}\n" for text, label in rows.items())])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("rows")
    parts = (
        ("train", 200, 0),
        ("more", 250, 4),
        ("val", 100, 1),
        ("other", 60, 5),
        ("test", ROWS, 2),
        ("new", ROWS, 3),
    )
    for name, number, seed in parts:
        (directory / f"{name}.csv").write_text(texts(number, seed, 0.0 if name in ("train", "more") else 0.08))
    return directory


def train(tiny_base, root, train_file, val_file=None, members=SMALL, epochs=8):
    config = RunConfig(
        base=BaseConfig(name=str(tiny_base)),
        adapt=AdaptConfig(members=members, r=2, layers="last:1"),
        data=DataConfig(train=str(train_file), val=None if val_file is None else str(val_file), scoring="text"),
        train=TrainConfig(epochs=epochs, batch_size=8, lr=0.05, checkpoint_every_s=0.0),
    )
    return train_run(config, root).run.root


@pytest.fixture(scope="module")
def roots(files, tiny_base, tmp_path_factory):
    """A cheap and an expensive run, certified together: do not modify."""
    folder = tmp_path_factory.mktemp("two")
    small = train(tiny_base, folder / "small", files / "train.csv", files / "val.csv", epochs=6)
    large = train(tiny_base, folder / "large", files / "more.csv", files / "other.csv", LARGE, epochs=12)
    calibrate_runs(Ensemble.load(small), Ensemble.load(large), files / "new.csv", target_error=TARGET)
    return small, large


@pytest.fixture
def small(roots, tmp_path):
    return Ensemble.load(shutil.copytree(roots[0], tmp_path / "small"))


@pytest.fixture
def large(roots, tmp_path):
    return Ensemble.load(shutil.copytree(roots[1], tmp_path / "large"))


def probs_of(ensemble, examples):
    predictions = ensemble.pipeline.predict_members(examples, "rows")
    return np.exp(pooled(predictions.log_probs_MEC, ensemble.calibration)), predictions.labels


def scored(runs, examples):
    parts = []
    for one in runs:
        probs, labels = probs_of(one, examples)
        parts += [probs.max(axis=1), probs.argmax(axis=1) == labels]
    return parts


def answers_of(small, large, path):
    cascade = run_cascade_of(small, large)
    chunks = answer_chunks_by_runs(small, large, cascade, full_chunks(input_rows_of(small, path), 64))
    return [answer for chunk in chunks for answer in chunk.answers]


def test_the_certificate_is_that_of_the_pure_function(small, large, files):
    cascade, runs = run_cascade_of(small, large), (small, large)
    reference = [row for name in ("val", "other") for row in small.read(files / f"{name}.csv", require_answer=True)]
    path = cascade_path(*scored(runs, reference), TARGET)
    known = scored(runs, small.read(files / "new.csv", require_answer=True))
    costs = (*cascade.seconds, 0.0)
    expected = certify_cascade(path, *known, TARGET, 0.95, costs=costs)
    certificate = cascade.certificate
    assert (certificate.errors, certificate.num_automated, certificate.num_rows) == (
        expected.certificate.errors,
        expected.certificate.num_automated,
        ROWS,
    )
    assert cascade.thresholds == pytest.approx((expected.first_threshold, expected.second_threshold), rel=1e-4)
    assert (cascade.share_first, cascade.share_second) == (expected.share_first, expected.share_second)
    assert 0 < cascade.share_first < 1
    assert cascade.mean_seconds == pytest.approx(expected.mean_cost)
    assert cascade.rows.num_reference == 160
    guarantee, measured, _ = run_cascade_sentences(cascade)
    assert guarantee == (
        "At most 25 % of the automated rows are wrong, whichever run answers them, with 95 % confidence over the draw"
        " of the 300 certifying rows."
    )
    assert f"{certificate.errors} of these {certificate.num_automated} are wrong" in measured


def test_answers_equal_the_rule_applied_by_hand(small, large, files):
    first_threshold, second_threshold = run_cascade_of(small, large).thresholds
    examples = small.read(files / "test.csv", require_answer=True)
    first_EC, second_EC = (probs_of(one, examples)[0] for one in (small, large))
    answers = answers_of(small, large, files / "test.csv")
    assert [answer.row for answer in answers] == list(range(1, ROWS + 1))
    assert {answer.members_used for answer in answers} == {SMALL, SMALL + LARGE}
    for answer, first, second in zip(answers, first_EC, second_EC, strict=True):
        by_first = first.max() >= first_threshold
        probs = first if by_first else second
        assert answer.members_used == (SMALL if by_first else SMALL + LARGE)
        assert answer.probs == pytest.approx(probs, abs=1e-5)
        assert answer.prediction_index == probs.argmax()
        automated = by_first or second.max() >= second_threshold
        assert answer.decision == ("automate" if automated else "abstain")


def test_measured_errors_are_those_of_the_answers(small, large, files):
    certificate = run_cascade_of(small, large).certificate
    automated = [one for one in answers_of(small, large, files / "new.csv") if one.decision == "automate"]
    assert len(automated) == certificate.num_automated
    assert sum(answer.prediction != answer.label for answer in automated) == certificate.errors


def test_rows_without_an_answer_have_their_reason(small, large, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("text,number\nthe film was good,1\n,2\nthe play was dull,3\n")
    first, empty, last = answers_of(small, large, rows)
    assert (empty.decision, empty.members_used) == (None, None)
    assert empty.error
    assert {first.error, last.error} == {None}


def test_looks_count_certificates_of_both_kinds(small, large, files):
    decisions = small.calibrate(files / "new.csv", target_error=TARGET)
    assert (decisions.rows.look, decisions.rows.num_repeated) == (2, ROWS)
    cascade = calibrate_runs(small, large, files / "test.csv", target_error=TARGET)
    assert (cascade.rows.look, cascade.rows.num_repeated) == (3, 0)
    again = calibrate_runs(small, large, files / "new.csv", target_error=TARGET)
    assert (again.rows.look, again.rows.num_repeated) == (4, ROWS)
    assert again.rows.earlier_risk == pytest.approx(0.15)
    loaded = Ensemble.load(small.run.root)
    assert loaded.decisions == decisions
    assert run_cascade_of(loaded, large) == again


def test_rows_of_either_training_are_refused(small, large, files):
    for name, run in (("train", "small"), ("val", "small"), ("more", "large"), ("other", "large")):
        with pytest.raises(DataError, match=f"rows are not new to .*{run}; the first, .* row of .*{run}; a guarantee"):
            calibrate_runs(small, large, files / f"{name}.csv", target_error=TARGET)


def test_a_refusal_is_saved_and_not_used(small, large, files):
    cascade = calibrate_runs(small, large, files / "new.csv", target_error=0.01)
    assert not cascade.has_threshold
    assert run_cascade_sentences(cascade)[0].startswith("No thresholds: ")
    with pytest.raises(ConfigError, match="was refused: No thresholds: "):
        run_cascade_of(small, large)


def test_other_runs_are_refused(small, large, files, tiny_base, tmp_path):
    with pytest.raises(ConfigError, match="is the same ensemble as"):
        calibrate_runs(small, small, files / "new.csv")
    with pytest.raises(ConfigError, match="has no cascade with a second run; certify one first: lorchestra calibrate"):
        run_cascade_of(large, small)
    other = Ensemble.load(train(tiny_base, tmp_path / "other", files / "more.csv", files / "other.csv", 2, epochs=1))
    with pytest.raises(CheckpointError, match="was certified with another second run"):
        run_cascade_of(small, other)
    (tmp_path / "labels.csv").write_text(texts(80, 7, 0.0, labels=("no", "maybe")))
    labels = Ensemble.load(train(tiny_base, tmp_path / "labels", tmp_path / "labels.csv", epochs=1))
    with pytest.raises(ConfigError, match=r"do not have the same labels: 'maybe' is one of .*labels only"):
        calibrate_runs(small, labels, files / "new.csv")
    draw, rows = random.Random(0), []
    for number in range(60):
        choices = draw.sample(WORDS, 3)
        rows.append({"question": f"{number} is", "choices": choices, "answer": choices.index(min(choices))})
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    quiz = Ensemble.load(train(tiny_base, tmp_path / "quiz", tmp_path / "quiz.jsonl", epochs=1))
    for pair in ((small, quiz), (quiz, small)):
        with pytest.raises(
            ConfigError, match=r"quiz answers questions with separate choices, and .*small labels texts"
        ):
            calibrate_runs(*pair, files / "new.csv")


def test_another_calibration_is_refused(small, large):
    record = large.run.read_calibration(large.record)
    question = record.questions[""]
    changed = replace(question, calibration=replace(question.calibration, reason="fitted again"))
    large.run.write_calibration(replace(record, questions={"": changed}))
    with pytest.raises(CheckpointError, match="calibrated differently than when it was certified"):
        run_cascade_of(small, Ensemble.load(large.run.root))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"target_error": 5}, "for 5 % give 0.05"), ({"confidence": 0}, "confidence: 0 is not a number between 0 and 1")],
)
def test_settings_that_make_no_sense_are_refused(small, large, files, options, message):
    with pytest.raises(ConfigError, match=message):
        calibrate_runs(small, large, files / "new.csv", **options)


def test_edited_records_are_refused(small, large):
    values = json.loads(small.run.calibration.read_text())
    assert values["format_version"] == 1
    values["questions"][""]["run_cascade"] |= {"first_threshold": None, "second_threshold": None}
    small.run.calibration.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="the checksum is not that of its content"):
        run_cascade_of(small, large)
    values["checksum"] = _checksum(values)
    small.run.calibration.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="thresholds and certificate do not agree"):
        run_cascade_of(small, large)
