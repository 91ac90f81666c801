"""Certified decisions of whole runs: equal to the pure functions on the same predictions, used by answers, and refused
where rows or settings do not allow a guarantee."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.config.run import EvaluateConfig, RunConfig, TrainConfig
from lorchestra.data.splits import content_digest
from lorchestra.errors import CheckpointError, ConfigError, DataError
from lorchestra.metrics.calibrator import pooled
from lorchestra.metrics.certificates import certify, certify_by_class, certify_max_errors
from lorchestra.metrics.conformal import choose_penalty, fit_conformal
from lorchestra.metrics.costs import decide_by_cost, realized_costs
from lorchestra.metrics.decisions import OWN_TEST, Decisions
from lorchestra.metrics.ranking import choose_score, fit_combined, simple_scores
from lorchestra.report.decisions import notes, sentences
from lorchestra.report.html.page import write_report
from lorchestra.runs.ensemble import Ensemble
from lorchestra.runs.predict import answers_from
from lorchestra.runs.rows import RunRows, read_rows
from lorchestra.runs.train import train_run
from lorchestra.store.run import Run

WORDS = ("good", "bad", "fine", "dull", "long", "short", "the", "film", "song", "play", "was", "rather", "very")
TARGET = 0.28
ROWS = 300


def texts(number, seed, flipped=0.15, labels=("no", "yes")):
    """Texts whose label is whether "good" or "fine" is in them, except for a share of them."""
    draw = np.random.default_rng(seed)
    rows = {}
    while len(rows) < number:
        words = draw.choice(WORDS, 7).tolist()
        rows[" ".join(words)] = labels[int(("good" in words or "fine" in words) != (draw.random() < flipped))]
    return "".join(["text,label\n", *(f"{text},{label}\n" for text, label in rows.items())])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("rows")
    for name, number, seed in (("train", 200, 0), ("val", 120, 1), ("test", ROWS, 2), ("new", ROWS, 3)):
        (directory / f"{name}.csv").write_text(texts(number, seed, 0.0 if name == "train" else 0.1))
    return directory


@pytest.fixture(scope="module")
def config(files, tiny_base):
    return RunConfig(
        base=BaseConfig(name=str(tiny_base)),
        adapt=AdaptConfig(members=3, r=2, layers="last:1"),
        data=DataConfig(**{split: str(files / f"{split}.csv") for split in ("train", "val", "test")}, scoring="text"),
        train=TrainConfig(epochs=12, batch_size=8, lr=0.05, checkpoint_every_s=0.0),
        evaluate=EvaluateConfig(few_shot=0, resamples=40, tfidf=False, frozen=False),
    )


@pytest.fixture(scope="module")
def root(config, tmp_path_factory):
    """A run on texts with labels: do not modify."""
    return train_run(config, tmp_path_factory.mktemp("run") / "reviews").run.root


@pytest.fixture
def ensemble(root, tmp_path):
    return Ensemble.load(shutil.copytree(root, tmp_path / "reviews"))


@pytest.fixture(scope="module")
def questions(tiny_base, tmp_path_factory):
    """A run on questions with two to four choices, whose answer is the first one in the alphabet: do not modify."""
    folder, draw = tmp_path_factory.mktemp("questions"), random.Random(0)
    rows = []
    for number in range(400):
        choices = draw.sample(WORDS, draw.randint(2, 4))
        rows.append({"question": f"{number} is", "choices": choices, "answer": choices.index(min(choices))})
    (folder / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:300]))
    (folder / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[300:]))
    config = RunConfig(
        base=BaseConfig(name=str(tiny_base)),
        adapt=AdaptConfig(members=2, r=2),
        data=DataConfig(train=str(folder / "quiz.jsonl"), scoring="text"),
        train=TrainConfig(epochs=2, lr=0.05),
    )
    return train_run(config, folder / "run").run.root


def predictions_of(ensemble, path):
    return ensemble.pipeline.predict_members(ensemble.read(path, require_answer=True), "rows")


def parts(ensemble, path):
    """Predictions of a file: members', calibrated, scores, whether right, predicted class."""
    predictions = predictions_of(ensemble, path)
    calibrated = pooled(predictions.log_probs_MEC, ensemble.calibration)
    scores = simple_scores(predictions.log_probs_MEC, calibrated)
    best = calibrated.argmax(axis=1)
    return predictions, calibrated, scores, best == predictions.labels, best


def approx(certificate):
    """The certificate without floats that depend on rounding in the model's passes."""
    return (certificate.num_automated, certificate.errors, certificate.num_rows, certificate.reason)


def test_the_certificate_is_that_of_the_pure_function(ensemble, files):
    decisions = ensemble.calibrate(files / "new.csv", target_error=TARGET, score="max_prob")
    _, _, scores, correct, _ = parts(ensemble, files / "new.csv")
    reference = parts(ensemble, files / "val.csv")[2]["max_prob"]
    expected = certify(scores["max_prob"], correct, TARGET, 0.95, reference_scores_E=reference)
    (certificate,) = decisions.certificates
    assert approx(certificate) == approx(expected)
    assert certificate.threshold == pytest.approx(expected.threshold, rel=1e-4)
    assert (certificate.target_error, certificate.confidence) == (TARGET, 0.95)
    assert (decisions.rows.source, decisions.rows.num_rows, decisions.rows.num_reference) == ("new.csv", ROWS, 120)
    guarantee, measured, *rest = sentences(decisions)
    assert guarantee == (
        "At most 28 % of the automated rows are wrong, with 95 % confidence over the draw of the 300 certifying rows."
    )
    assert f"{certificate.errors} of these {certificate.num_automated} are wrong" in measured
    assert rest == []


def test_auto_chooses_on_validation_rows(ensemble, files):
    decisions = ensemble.calibrate(files / "new.csv", target_error=TARGET)
    _, _, scores, correct, _ = parts(ensemble, files / "val.csv")
    expected = choose_score(scores, correct, seed=0)
    assert decisions.score == expected.score
    assert decisions.choice.aurc == pytest.approx(expected.aurc, rel=1e-3)
    assert set(decisions.choice.aurc) >= {"max_prob", "margin", "entropy", "mutual_information", "agreement"}


@pytest.mark.parametrize("score", ["margin", "entropy", "mutual_information", "agreement", "combined"])
def test_every_score_decides_answers(ensemble, files, score):
    decisions = ensemble.calibrate(files / "new.csv", target_error=TARGET, score=score)
    predictions, calibrated, scores, *_ = parts(ensemble, files / "test.csv")
    if score == "combined":
        _, _, reference, right, _ = parts(ensemble, files / "val.csv")
        values = fit_combined(reference, right).apply(scores)
        np.testing.assert_allclose(values, decisions.scores(predictions.log_probs_MEC, calibrated), rtol=1e-3)
    else:
        values = scores[score]
    threshold = decisions.certificates[0].threshold
    answers = list(ensemble.predict(files / "test.csv"))
    assert threshold is not None or score in ("mutual_information", "agreement")
    if threshold is None:
        assert {answer.decision for answer in answers} == {None}
        return
    assert [answer.decision == "automate" for answer in answers] == (values >= threshold).tolist()
    loaded = Ensemble.load(ensemble.run.root)
    assert [answer.decision for answer in loaded.predict(files / "test.csv")] == [a.decision for a in answers]


def test_answers_follow_the_threshold(ensemble, files):
    assert {answer.decision for answer in ensemble.predict(files / "test.csv")} == {None}
    decisions = ensemble.calibrate(files / "new.csv", target_error=TARGET, score="max_prob")
    threshold = decisions.certificates[0].threshold
    answers = list(ensemble.predict(files / "test.csv"))
    assert {answer.decision for answer in answers} == {"automate", "abstain"}
    for answer in answers:
        assert (answer.decision == "automate") == (answer.confidence >= threshold)
        assert (answer.prediction_set, answer.abstain) == (None, None)
    for without in (ensemble.predict(["good"], decisions=False), ensemble.predict(["good"], raw=True)):
        assert next(without).decision is None
    predictions = predictions_of(ensemble, files / "test.csv")
    again = answers_from(predictions, calibration=ensemble.calibration, decisions=ensemble.decisions)
    assert [answer.decision for answer in again] == [answer.decision for answer in answers]


def test_per_class(ensemble, files):
    decisions = ensemble.calibrate(files / "new.csv", target_error=TARGET, per_class=True, score="max_prob")
    _, _, scores, correct, best = parts(ensemble, files / "new.csv")
    _, _, reference, _, reference_best = parts(ensemble, files / "val.csv")
    expected = certify_by_class(
        scores["max_prob"],
        correct,
        best,
        2,
        TARGET,
        reference_scores_E=reference["max_prob"],
        reference_predicted_E=reference_best,
    )
    assert decisions.classes == ("no", "yes")
    assert list(map(approx, decisions.certificates)) == list(map(approx, expected.certificates))
    assert "In each predicted class with a threshold, at most 28 %" in decisions.guarantee()
    for answer in Ensemble.load(ensemble.run.root).predict(files / "test.csv"):
        threshold = decisions.thresholds[answer.prediction_index]
        assert (answer.decision == "automate") == (threshold is not None and answer.confidence >= threshold)


def test_errors_per_1000(ensemble, files):
    decisions = ensemble.calibrate(files / "new.csv", max_errors_per_1000=150, score="max_prob")
    _, _, scores, correct, _ = parts(ensemble, files / "new.csv")
    expected = certify_max_errors(scores["max_prob"], correct, 150)
    assert approx(decisions.certificates[0])[:3] == approx(expected)[:3]
    assert decisions.has_threshold
    assert decisions.guarantee().startswith("Of 1,000 rows, at most 150 are automated and wrong, with 95 % confidence")


def test_a_refusal_says_how_many_rows_are_missing(ensemble, files):
    decisions = ensemble.calibrate(files / "new.csv", target_error=0.05, score="agreement")
    assert not decisions.has_threshold
    assert decisions.guarantee().startswith("No threshold: ")
    assert next(ensemble.predict(["good"])).decision is None
    saved = Ensemble.load(ensemble.run.root).decisions
    assert saved == decisions
    assert next(ensemble.predict(["good"], abstain_below=0.9)).abstain is not None


@pytest.mark.parametrize("method", ["lac", "aps", "raps"])
@pytest.mark.parametrize("by_class", [False, True])
def test_prediction_sets_are_those_of_the_pure_function(ensemble, files, method, by_class):
    decisions = ensemble.calibrate(
        files / "new.csv", target_error=TARGET, sets=0.9, sets_method=method, sets_by_class=by_class
    )
    predictions, calibrated, _, _, _ = parts(ensemble, files / "new.csv")
    reference, reference_calibrated, _, _, _ = parts(ensemble, files / "val.csv")
    raps = method == "raps"
    penalty, free = choose_penalty(reference_calibrated, reference.labels, 0.1) if raps else (0.0, 1)
    uniforms = None if method == "lac" else np.random.default_rng(0).random(ROWS)
    expected = fit_conformal(
        calibrated,
        predictions.labels,
        0.1,
        method,
        uniforms_E=uniforms,
        by_class=by_class,
        penalty=penalty,
        free_ranks=free,
    )
    assert decisions.sets.quantiles == pytest.approx(expected.quantiles, rel=1e-4)
    sizes = expected.sets(calibrated).sum(axis=1)
    assert decisions.set_sizes.mean == pytest.approx(sizes.mean(), abs=0.02)
    test, test_calibrated, _, _, _ = parts(ensemble, files / "test.csv")
    inside = decisions.sets.sets(test_calibrated)
    for answer, row, options in zip(ensemble.predict(files / "test.csv"), inside, test.options, strict=True):
        assert answer.prediction_set == tuple(np.array(options)[row])
    assert "right answer in at least 90 % of rows" in " ".join(sentences(decisions))


def test_costs(ensemble, files):
    costs = {"ask": 2, "wrong": 10, "costs": {"yes": {"no": 30}}}
    decisions = ensemble.calibrate(files / "new.csv", target_error=TARGET, score="max_prob", costs=costs)
    predictions, calibrated, scores, _, best = parts(ensemble, files / "new.csv")
    matrix = np.array([[0.0, 10.0], [30.0, 0.0]])
    by_policy = {one.policy: one for one in decisions.costs.policies}
    assert list(by_policy) == ["by_cost", "by_threshold", "automate_all", "ask_always"]
    decided = decide_by_cost(np.exp(calibrated), matrix, 2)
    assert by_policy["by_cost"].per_1000 == pytest.approx(
        realized_costs(decided.answers, predictions.labels, matrix, 2).per_1000
    )
    assert by_policy["by_cost"].expected_per_1000 == pytest.approx(decided.expected_per_1000, rel=1e-4)
    every = matrix[best, predictions.labels]
    assert by_policy["automate_all"].per_1000 == pytest.approx(1000 * every.mean())
    automated = scores["max_prob"] >= decisions.certificates[0].threshold
    assert by_policy["by_threshold"].per_1000 == pytest.approx(1000 * np.where(automated, every, 2).mean())
    assert (by_policy["ask_always"].per_1000, by_policy["ask_always"].share_asked) == (2000, 1)
    assert "Most expensive: to answer 'yes' where 'no' is right (30)." in sentences(decisions)


def test_without_a_file_the_test_rows_certify(ensemble, config):
    decisions = ensemble.calibrate(target_error=TARGET)
    assert (decisions.rows.source, decisions.rows.num_rows) == (OWN_TEST, ROWS)
    assert "The run's test rows certified" in notes(decisions)[0]
    saved = ensemble.run.read_calibration(ensemble.record).saved_decisions
    test = read_rows(config.data, 0).task.splits["test"]
    assert saved.row_digests == tuple(map(content_digest, test))
    assert saved.decisions == decisions


def test_a_second_certificate_replaces_the_first_and_says_so(ensemble, files):
    first = ensemble.calibrate(files / "new.csv", target_error=TARGET, confidence=0.9)
    assert (first.rows.look, first.rows.num_repeated, notes(first)) == (1, 0, [])
    other = ensemble.calibrate(files / "test.csv", target_error=TARGET)
    assert (other.rows.look, other.rows.num_repeated, notes(other)) == (2, 0, [])
    third = ensemble.calibrate(files / "new.csv", target_error=0.3)
    assert (third.rows.look, third.rows.num_repeated) == (3, ROWS)
    (note,) = notes(third)
    assert "look 3 at labelled rows, and 300 of the 300 rows were used in an earlier one" in note
    assert "hold together with at least 80 %" in note
    record = Ensemble.load(ensemble.run.root)
    assert record.decisions == third
    assert record.calibration == ensemble.calibration


@pytest.mark.parametrize(("part", "what"), [("train", "is a training row"), ("val", "is a validation row")])
def test_rows_of_the_training_are_refused(ensemble, files, tmp_path, part, what):
    lines = (files / f"{part}.csv").read_text().splitlines()
    mixed = tmp_path / "mixed.csv"
    mixed.write_text((files / "new.csv").read_text() + "\n".join([lines[1].upper().replace("YES", "yes"), *lines[5:7]]))
    text = mixed.read_text().replace(",NO\n", ",no\n")
    mixed.write_text(text)
    before = ensemble.run.calibration.read_bytes()
    with pytest.raises(DataError, match=rf"mixed.csv: 3 of 303 rows are not new to the run; .*mixed.csv:302, {what}"):
        ensemble.calibrate(mixed, target_error=TARGET)
    assert ensemble.run.calibration.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_error": 0}, "target_error: 0 is not a number between 0 and 1"),
        ({"target_error": 5}, "for 5 % give 0.05"),
        ({"target_error": float("nan")}, "target_error: nan"),
        ({"confidence": 1.0}, "confidence: 1.0"),
        ({"max_errors_per_1000": 1000}, "max_errors_per_1000: 1000"),
        ({"max_errors_per_1000": 10, "per_class": True}, "give one of the two"),
        ({"score": "best"}, "score: 'best' is unknown"),
        ({"sets": 90}, "for 90 % give 0.9"),
        ({"sets_by_class": True}, "give the coverage of the sets too"),
        ({"sets": 0.9, "sets_method": "cps"}, "sets_method: 'cps'"),
        ({"costs": {"wrong": 1}}, "ask is missing"),
        ({"costs": {"ask": 1}}, r"costs\.no\.yes is missing"),
        ({"costs": {"ask": 1, "wrong": 2, "costs": {"nope": {"yes": 1}}}}, "'nope' is not a label of the run"),
        ({"costs": {"ask": 1, "wrong": -2}}, "wrong is -2, not a number of at least 0"),
        ({"costs": {"ask": 1, "wrong": True}}, "wrong is True, not a number"),
        ({"costs": {"ask": 1, "wrong": 1, "costs": {"yes": {"yes": 2}}}}, "were they exchanged"),
        ({"costs": {"ask": 1, "wrong": 1, "coasts": {}}}, "coasts is unknown; did you mean 'costs'"),
        ({"costs": {"ask": 1, "costs": [1]}}, r"costs is \[1\], not costs by label"),
    ],
)
def test_settings_that_make_no_sense_are_refused(ensemble, files, options, message):
    with pytest.raises(ConfigError, match=message):
        ensemble.calibrate(files / "new.csv", **options)


def test_rows_that_cannot_certify_are_refused(ensemble, tmp_path):
    few = tmp_path / "few.csv"
    few.write_text(texts(40, 9))
    with pytest.raises(DataError, match=r"few.csv: 40 rows can never certify .*at least 59 are needed"):
        ensemble.calibrate(few)
    with pytest.raises(DataError, match="sets that cover 99 % would hold every choice; at least 99"):
        ensemble.calibrate(few, target_error=TARGET, sets=0.99)
    one = tmp_path / "one.csv"
    one.write_text("\n".join(line for line in texts(160, 9).splitlines() if not line.endswith(",no")))
    with pytest.raises(DataError, match="rows have the label 'yes'"):
        ensemble.calibrate(one)
    other = tmp_path / "other.csv"
    other.write_text(texts(80, 9, labels=("no", "perhaps")))
    with pytest.raises(DataError, match="perhaps"):
        ensemble.calibrate(other)


def test_options_that_contradict_the_decisions_are_refused(ensemble, files):
    ensemble.calibrate(files / "new.csv", target_error=TARGET, sets=0.9)
    with pytest.raises(ConfigError, match="--early-exit: the run's threshold and prediction sets are certified for"):
        ensemble.predict(["good"], early_exit="exact")
    with pytest.raises(ConfigError, match=r"--abstain-below 0\.7: the run has a certified threshold"):
        ensemble.predict(["good"], abstain_below=0.7)
    for answer in ensemble.predict(["good"], abstain_below=0.7, early_exit="exact", decisions=False):
        assert (answer.decision, answer.prediction_set) == (None, None)


def test_a_run_of_an_earlier_version_can_be_certified(ensemble, files):
    ensemble.run.calibration.unlink()
    old = Ensemble.load(ensemble.run.root)
    decisions = old.calibrate(files / "new.csv", target_error=TARGET)
    loaded = Ensemble.load(ensemble.run.root)
    assert (loaded.calibration.kind, loaded.decisions) == ("none", decisions)
    assert next(loaded.predict(["good"])).calibrated is False


def test_records_that_were_edited_or_are_of_another_run_are_refused(ensemble, files, questions):
    ensemble.calibrate(files / "new.csv", target_error=TARGET)
    text = ensemble.run.calibration.read_text()
    values = json.loads(text)
    values["questions"][""]["decisions"]["certificates"][0]["threshold"] = 0.1
    ensemble.run.calibration.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="the checksum is not that of its content"):
        Ensemble.load(ensemble.run.root).predict(["good"])
    with pytest.raises(CheckpointError, match="the checksum is not that of its content"):
        Ensemble.load(ensemble.run.root).calibrate(files / "test.csv", target_error=TARGET)
    shutil.copy(questions / "calibration.json", ensemble.run.calibration)
    with pytest.raises(CheckpointError, match="belongs to another ensemble"):
        Ensemble.load(ensemble.run.root).calibrate(files / "test.csv", target_error=TARGET)


def test_questions_with_choices(questions, tmp_path):
    ensemble = Ensemble.load(shutil.copytree(questions, tmp_path / "run"))
    new = questions.parent / "new.jsonl"
    decisions = ensemble.calibrate(new, target_error=0.9, sets=0.8, sets_method="aps")
    assert decisions.has_threshold
    predictions, calibrated, _, _, _ = parts(ensemble, new)
    automated = decisions.automated(predictions.log_probs_MEC, calibrated)
    answers = list(ensemble.predict(new))
    assert np.mean([(a.decision == "automate") == b for a, b in zip(answers, automated, strict=True)]) >= 0.98
    assert all(set(answer.prediction_set) <= set(answer.choices) for answer in answers)
    assert np.mean([answer.label in answer.prediction_set for answer in answers]) >= 0.8
    for options in ({"per_class": True}, {"sets": 0.9, "sets_by_class": True}, {"costs": {"ask": 1}}):
        with pytest.raises(ConfigError, match="separate choices"):
            ensemble.calibrate(new, **options)


def test_a_task_by_name(make_task, tiny_base, tmp_path):
    task = make_task("quiz", numbers=(40, 8, 30))
    config = RunConfig(
        base=BaseConfig(name=str(tiny_base)),
        adapt=AdaptConfig(members=2, r=2),
        data=DataConfig(task="quiz", dir=str(task.directory), scoring="text"),
        train=TrainConfig(epochs=1, lr=0.01),
    )
    ensemble = Ensemble.load(train_run(config, tmp_path / "run").run.root)
    decisions = ensemble.calibrate(target_error=0.9, sets=0.8)
    assert (decisions.rows.source, decisions.rows.num_rows, decisions.rows.num_reference) == (OWN_TEST, 30, 8)
    answers = ensemble.predict(task.write("new", task.rows["test"]))
    assert all(answer.prediction_set is not None for answer in answers)


def test_rows_from_python(config, tmp_path, files):
    task = read_rows(config.data, 0).task
    short = RunConfig(
        base=config.base, adapt=config.adapt, data=DataConfig(scoring="text"), train=TrainConfig(epochs=1, lr=0.05)
    )
    run = train_run(short, tmp_path / "run", rows=RunRows(task, ())).run
    ensemble = Ensemble.load(run.root)
    with pytest.raises(ConfigError, match=r"calibrate it in Python: Ensemble.calibrate\(\.\.\., rows=TASK\)"):
        ensemble.calibrate(files / "new.csv", target_error=0.9)
    assert ensemble.calibrate(files / "new.csv", target_error=0.9, rows=task).rows.num_rows == ROWS
    with pytest.raises(DataError, match="are not new to the run"):
        ensemble.calibrate(files / "train.csv", target_error=0.9, rows=task)


def test_a_training_file_that_is_gone_is_named(ensemble, files):
    with pytest.raises(DataError, match=r"gone\.csv.*give it with --data\.train FILE$"):
        ensemble.calibrate(files / "new.csv", files={"train": str(files / "gone.csv")})


def test_repeated_rows_are_reported(ensemble, files, tmp_path, on_log):
    lines = []
    on_log(lines.append)
    twice = tmp_path / "twice.csv"
    text = (files / "new.csv").read_text()
    twice.write_text(text + text.split("\n", 1)[1])
    ensemble.calibrate(twice, target_error=TARGET)
    assert any("300 of 600 rows repeat an earlier one" in line for line in lines)


def test_the_result_survives_json(ensemble, files):
    decisions = ensemble.calibrate(
        files / "new.csv",
        target_error=TARGET,
        per_class=True,
        score="combined",
        sets=0.9,
        sets_by_class=True,
        costs={"ask": 1, "wrong": 5},
    )
    assert Decisions.from_dict(json.loads(json.dumps(decisions.to_dict()))) == decisions


def test_the_page_shows_the_guarantee(ensemble, files, tmp_path):
    ensemble.evaluate()
    write_report([ensemble.run.root], tmp_path / "before.html")
    assert "lorchestra calibrate RUN" in (tmp_path / "before.html").read_text()
    decisions = ensemble.calibrate(
        files / "new.csv", target_error=TARGET, per_class=True, sets=0.9, costs={"ask": 1, "wrong": 5}
    )
    write_report([ensemble.run.root], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert decisions.guarantee() in page
    assert "Prediction sets (LAC)" in page
    assert "answer or ask by expected cost" in page
    assert Run(ensemble.run.root).read_calibration(ensemble.record).saved_decisions.decisions == decisions
