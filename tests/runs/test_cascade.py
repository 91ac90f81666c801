"""Certified cascades of whole runs: the pure function's certificate, answers by the rule, and refusals."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.config.run import EvaluateConfig, RunConfig, TrainConfig
from lorchestra.errors import CheckpointError, ConfigError, DataError
from lorchestra.metrics.calibrator import pooled
from lorchestra.metrics.cascade import cascade_path, certify_cascade
from lorchestra.report.decisions import certificate_rows, decisions_context, notes, sentences
from lorchestra.report.html.page import write_report
from lorchestra.runs.ensemble import Ensemble
from lorchestra.runs.predict import answers_from
from lorchestra.runs.train import train_run
from lorchestra.store.calibration_record import _checksum

WORDS = ("good", "bad", "fine", "dull", "long", "short", "the", "film", "song", "play", "was", "rather", "very")
TARGET, ROWS, MEMBERS, FIRST = 0.25, 300, 4, 2
COSTS = (FIRST, MEMBERS - FIRST, 0.0)


def texts(number, seed, flipped):
    """Texts whose label is whether "good" or "fine" is in them, except for a share of them."""
    draw = np.random.default_rng(seed)
    rows = {}
    while len(rows) < number:
        words = draw.choice(WORDS, 7).tolist()
        rows[" ".join(words)] = ("no", "yes")[("good" in words or "fine" in words) != (draw.random() < flipped)]
    return "".join(["text,label\n", *(f"{text},{label}\n" for text, label in rows.items())])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("rows")
    for name, number, seed in (("train", 200, 0), ("val", 120, 1), ("test", ROWS, 2), ("new", ROWS, 3)):
        (directory / f"{name}.csv").write_text(texts(number, seed, 0.0 if name == "train" else 0.08))
    return directory


def train(files, tiny_base, directory, members=MEMBERS):
    config = RunConfig(
        base=BaseConfig(name=str(tiny_base)),
        adapt=AdaptConfig(members=members, r=2, layers="last:1"),
        data=DataConfig(**{split: str(files / f"{split}.csv") for split in ("train", "val", "test")}, scoring="text"),
        train=TrainConfig(epochs=12, batch_size=8, lr=0.05, checkpoint_every_s=0.0),
        evaluate=EvaluateConfig(few_shot=0, resamples=40, tfidf=False, frozen=False),
    )
    return train_run(config, directory / "run").run.root


@pytest.fixture(scope="module")
def root(files, tiny_base, tmp_path_factory):
    """A run on texts with labels: do not modify."""
    return train(files, tiny_base, tmp_path_factory.mktemp("cascade"))


@pytest.fixture(scope="module")
def certified_root(root, files, tmp_path_factory):
    """The run with a certified cascade: do not modify."""
    copy = shutil.copytree(root, tmp_path_factory.mktemp("certified") / "run")
    assert Ensemble.load(copy).calibrate(files / "new.csv", target_error=TARGET, cascade=FIRST).has_threshold
    return copy


@pytest.fixture
def ensemble(root, tmp_path):
    return Ensemble.load(shutil.copytree(root, tmp_path / "run"))


@pytest.fixture
def certified(certified_root, tmp_path):
    return Ensemble.load(shutil.copytree(certified_root, tmp_path / "run"))


def predictions_of(ensemble, path):
    return ensemble.pipeline.predict_members(ensemble.read(path, require_answer=True), "rows")


def stages(ensemble, path, first=FIRST):
    """Probabilities of the first members' and of the whole mixture, calibrated alike, and the labels."""
    predictions = predictions_of(ensemble, path)
    log_probs = predictions.log_probs_MEC
    first_EC, all_EC = (np.exp(pooled(part, ensemble.calibration)) for part in (log_probs[:first], log_probs))
    return first_EC, all_EC, predictions.labels


def scored(ensemble, path):
    first_EC, all_EC, labels_E = stages(ensemble, path)
    first_right_E, right_E = (part.argmax(axis=1) == labels_E for part in (first_EC, all_EC))
    return first_EC.max(axis=1), first_right_E, all_EC.max(axis=1), right_E


def test_the_certificate_is_that_of_the_pure_function(certified, files):
    path = cascade_path(*scored(certified, files / "val.csv"), TARGET, costs=COSTS)
    expected = certify_cascade(path, *scored(certified, files / "new.csv"), TARGET, 0.95, costs=COSTS)
    decisions, cascade = certified.decisions, certified.decisions.cascade
    (certificate,) = decisions.certificates
    assert (certificate.errors, certificate.num_automated) == (
        expected.certificate.errors,
        expected.certificate.num_automated,
    )
    assert (certificate.target_error, certificate.confidence, certificate.num_rows) == (TARGET, 0.95, ROWS)
    assert (cascade.num_first, cascade.num_members, decisions.score) == (FIRST, MEMBERS, "max_prob")
    assert cascade.first_threshold == pytest.approx(expected.first_threshold, rel=1e-4)
    assert cascade.second_threshold == pytest.approx(expected.second_threshold, rel=1e-4)
    assert (cascade.share_first, cascade.share_second) == (expected.share_first, expected.share_second)
    assert 0 < cascade.share_first < 1
    assert cascade.mean_members == expected.mean_cost == FIRST + (MEMBERS - FIRST) * (1 - cascade.share_first)
    assert cascade.members_interval == expected.cost_interval
    assert decisions.guarantee() == (
        "At most 25 % of the automated rows are wrong, whichever stage answers them, with 95 % confidence over the draw"
        " of the 300 certifying rows."
    )


def test_answers_equal_the_rule_applied_by_hand(certified, files):
    cascade = certified.decisions.cascade
    first_EC, all_EC, _ = stages(certified, files / "test.csv")
    answers = list(certified.predict(files / "test.csv"))
    assert {answer.members_used for answer in answers} == {FIRST, MEMBERS}
    for answer, first, everyone in zip(answers, first_EC, all_EC, strict=True):
        by_first = first.max() >= cascade.first_threshold
        probs = first if by_first else everyone
        assert answer.members_used == len(answer.member_probs) == (FIRST if by_first else MEMBERS)
        assert answer.probs == pytest.approx(probs, abs=1e-5)
        assert answer.prediction_index == probs.argmax()
        automated = by_first or everyone.max() >= cascade.second_threshold
        assert answer.decision == ("automate" if automated else "abstain")
    assert [answer.row for answer in answers] == list(range(1, ROWS + 1))


def test_complete_predictions_give_the_same_answers(certified, files):
    predictions = predictions_of(certified, files / "test.csv")
    answers = answers_from(predictions, calibration=certified.calibration, decisions=certified.decisions)
    streamed = list(certified.predict(files / "test.csv"))
    for name in ("row", "prediction", "decision", "members_used", "label"):
        assert [getattr(a, name) for a in answers] == [getattr(a, name) for a in streamed], name
    log_probs_EC, automated_E = certified.decisions.decide(predictions.log_probs_MEC, certified.calibration)
    assert np.exp(log_probs_EC).argmax(axis=1).tolist() == [answer.prediction_index for answer in answers]
    assert automated_E.tolist() == [answer.decision == "automate" for answer in answers]
    with pytest.raises(ValueError, match="the cascade has 2 members and 4, not 3"):
        certified.decisions.automated(predictions.log_probs_MEC[:3], log_probs_EC)


def test_measured_shares_are_those_of_the_answers(certified, files):
    """On the rows that certified, `predict` reproduces what the certificate measured."""
    answers = list(certified.predict(files / "new.csv"))
    (certificate,) = certified.decisions.certificates
    cascade = certified.decisions.cascade
    automated = [answer for answer in answers if answer.decision == "automate"]
    assert len(automated) == certificate.num_automated
    assert sum(answer.prediction != answer.label for answer in automated) == certificate.errors
    assert np.mean([answer.members_used for answer in answers]) == pytest.approx(cascade.mean_members)


def test_only_open_rows_run_the_other_members(certified, monkeypatch, files):
    from lorchestra.inference import predict

    items, original = [], predict.run_packed

    def counted(model, given, *arguments, **options):
        given = list(given)
        items.extend(item.member for item in given)
        return original(model, given, *arguments, **options)

    monkeypatch.setattr(predict, "run_packed", counted)
    answers = list(certified.predict(files / "test.csv"))
    left = sum(answer.members_used == MEMBERS for answer in answers)
    assert 0 < left < ROWS
    assert [items.count(member) for member in range(MEMBERS)] == [ROWS] * FIRST + [left] * (MEMBERS - FIRST)


def test_without_decisions_all_members_answer(certified):
    for options in ({"decisions": False}, {"raw": True}):
        answer = next(certified.predict(["good film"], **options))
        assert (answer.decision, answer.members_used, len(answer.member_probs)) == (None, None, MEMBERS)


def test_words_and_tables(certified):
    decisions = certified.decisions
    cascade, (certificate,) = decisions.cascade, decisions.certificates
    guarantee, measured, passes, *rest = sentences(decisions)
    assert (guarantee, rest) == (decisions.guarantee(), notes(decisions))
    assert f"{100 * cascade.share_first:.1f} % are answered by the first 2 members" in measured
    assert f"{certificate.errors} of these {certificate.num_automated} are wrong" in measured
    assert passes.startswith(f"Member passes per row: {cascade.mean_members:.2f} (95 % interval ")
    assert passes.endswith(f"instead of 4, {100 * (1 - cascade.mean_members / 4):.1f} % fewer.")
    (title, columns, rows, _), _ = decisions_context(decisions)["tables"]
    assert (title, [row[0] for row in rows]) == ("Certified cascade", ["first 2 members", "all 4 members", "a person"])
    assert sum(float(row[2].removesuffix(" %")) for row in rows) == pytest.approx(100, abs=0.2)
    assert all(len(row) == len(columns) for row in rows)


def test_the_page_shows_the_stages(certified, tmp_path):
    certified.evaluate()
    write_report([certified.run.root], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert certified.decisions.guarantee() in page
    assert "Certified cascade" in page
    assert "first 2 members" in page


def test_the_record_keeps_the_cascade_and_its_version(certified, files):
    record = certified.run.read_calibration(certified.record)
    assert record.has_stages
    values = json.loads(certified.run.calibration.read_text())
    assert values["format_version"] == 2
    saved = values["questions"][""]["decisions"]
    assert saved["cascade"] == certified.decisions.cascade.to_dict()
    assert Ensemble.load(certified.run.root).decisions == certified.decisions
    decisions = certified.calibrate(files / "test.csv", target_error=TARGET)
    assert (decisions.cascade, decisions.rows.look) == (None, 2)
    values = json.loads(certified.run.calibration.read_text())
    assert values["format_version"] == 1
    del values["questions"][""]["decisions"]["cascade"]  # as earlier versions wrote it
    values["checksum"] = _checksum(values)
    certified.run.calibration.write_text(json.dumps(values))
    assert Ensemble.load(certified.run.root).decisions == decisions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_first": 4}, "cascade.num_first is 4, and num_members 4"),
        ({"num_first": 0}, "cascade.num_first is 0"),
        ({"num_members": 5}, "its cascade has 5 members, the run 4"),
        ({"first_threshold": None, "second_threshold": None}, "cascade and certificate do not agree"),
        ({"share_first": 2}, "share_first is 2"),
    ],
)
def test_edited_records_are_refused(certified, changes, message):
    values = json.loads(certified.run.calibration.read_text())
    values["questions"][""]["decisions"]["cascade"] |= changes
    certified.run.calibration.write_text(json.dumps(values))
    if "share_first" not in changes:
        with pytest.raises(CheckpointError, match="the checksum is not that of its content"):
            Ensemble.load(certified.run.root).predict(["good"])
    values["checksum"] = _checksum(values)
    certified.run.calibration.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        Ensemble.load(certified.run.root).predict(["good"])


def test_a_record_of_another_ensemble_is_refused(certified):
    values = json.loads(certified.run.calibration.read_text())
    values["ensemble"] = "0" * 64
    values["checksum"] = _checksum(values)
    certified.run.calibration.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="belongs to another ensemble"):
        Ensemble.load(certified.run.root).predict(["good"])


def test_a_refusal_leaves_all_rows_to_all_members(ensemble, files):
    decisions = ensemble.calibrate(files / "new.csv", target_error=0.01, cascade=FIRST)
    assert (decisions.has_threshold, decisions.stages) == (False, None)
    assert decisions.guarantee().startswith("No threshold: ")
    assert len(certificate_rows(decisions)) == len(decisions_context(decisions)["tables"][0][2]) == 1
    answer = next(Ensemble.load(ensemble.run.root).predict(["good film"]))
    assert (answer.decision, answer.members_used) == (None, None)
    assert next(ensemble.predict(["good film"], early_exit="exact")).members_used is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cascade": 0}, "cascade: 0 of the run's 4 members cannot answer first; give 1 to 3"),
        ({"cascade": 4}, "cascade: 4 of the run's 4 members"),
        ({"cascade": True}, "cascade: True is not a number of members"),
        ({"cascade": 1.5}, r"cascade: 1\.5 is not a number of members"),
        ({"score": "entropy"}, "rank by max_prob, not by entropy"),
        ({"per_class": True}, "per_class: not available with a cascade"),
        ({"max_errors_per_1000": 50}, "max_errors_per_1000: not available with a cascade"),
        ({"sets": 0.9}, "sets: not available with a cascade"),
        ({"costs": {"ask": 1, "wrong": 2}}, "costs: not available with a cascade"),
    ],
)
def test_settings_that_make_no_sense_are_refused(ensemble, files, options, message):
    before = ensemble.run.calibration.read_bytes()
    with pytest.raises(ConfigError, match=message):
        ensemble.calibrate(files / "new.csv", **{"cascade": FIRST, **options})
    assert ensemble.run.calibration.read_bytes() == before


def test_one_member_has_no_cascade(files, tiny_base, tmp_path):
    alone = Ensemble.load(train(files, tiny_base, tmp_path, members=1))
    with pytest.raises(ConfigError, match="cascade: the run has one member; a cascade needs two or more"):
        alone.calibrate(files / "new.csv", cascade=1)


def test_rows_of_the_training_are_refused(ensemble, files):
    for part in ("train", "val"):
        with pytest.raises(DataError, match="rows are not new to the run"):
            ensemble.calibrate(files / f"{part}.csv", target_error=TARGET, cascade=FIRST)


def test_options_that_contradict_the_cascade_are_refused(certified):
    with pytest.raises(ConfigError, match="--early-exit: the run has a certified cascade"):
        certified.predict(["good"], early_exit="exact")
    with pytest.raises(ConfigError, match=r"--abstain-below 0\.7: the run has a certified threshold"):
        certified.predict(["good"], abstain_below=0.7)


def test_monitoring_counts_the_errors_of_the_cascade(certified, files):
    monitoring = certified.monitor(files / "test.csv")
    answers = [one for one in certified.predict(files / "test.csv") if one.decision == "automate"]
    assert monitoring.automated.num_automated == len(answers)
    assert monitoring.automated.errors == sum(one.prediction != one.label for one in answers)


@pytest.mark.parametrize("first", [1, 2])
def test_questions_with_choices(tiny_base, tmp_path, first):
    draw, rows = random.Random(0), []
    for number in range(300):
        choices = draw.sample(WORDS, draw.randint(2, 4))
        rows.append({"question": f"{number} is", "choices": choices, "answer": choices.index(min(choices))})
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:200]))
    new = tmp_path / "new.jsonl"
    new.write_text("".join(json.dumps(row) + "\n" for row in rows[200:]))
    config = RunConfig(
        base=BaseConfig(name=str(tiny_base)),
        adapt=AdaptConfig(members=3, r=2),
        data=DataConfig(train=str(tmp_path / "quiz.jsonl"), scoring="text"),
        train=TrainConfig(epochs=1, lr=0.05),
    )
    ensemble = Ensemble.load(train_run(config, tmp_path / "run").run.root)
    decisions = ensemble.calibrate(new, target_error=0.9, cascade=first)
    assert decisions.has_threshold
    for answer in ensemble.predict(new):
        assert answer.members_used in (first, 3)
        assert (answer.members_used == first) <= (answer.decision == "automate")
