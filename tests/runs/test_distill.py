"""An ensemble distilled into one member: what it learns, that it resumes exactly, and that every job takes the run."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors import safe_open
from stop_after import StopAfter

import lorchestra
from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.config.distill import DistillConfig, student_config
from lorchestra.config.run import EvaluateConfig, RegularizeConfig, RunConfig, TrainConfig
from lorchestra.errors import CheckpointError, ConfigError, DataError
from lorchestra.inference.answer_states import predict_with_states
from lorchestra.inference.predict import member_passes
from lorchestra.metrics.calibrator import pooled
from lorchestra.metrics.information import InformationRows, fit_information
from lorchestra.metrics.predictive import mutual_information
from lorchestra.metrics.ranking import simple_scores
from lorchestra.questions import Question
from lorchestra.report.html.page import write_report
from lorchestra.runs import teacher
from lorchestra.runs.ask import Asked, Asker
from lorchestra.runs.distill import distill_run
from lorchestra.runs.ensemble import Ensemble
from lorchestra.runs.predict import answers_from
from lorchestra.runs.rows import RunRows
from lorchestra.runs.teacher import row_key
from lorchestra.runs.train import train_run
from lorchestra.store.run import Run
from lorchestra.training.callbacks import Interrupted

WORDS = ("good", "bad", "fine", "dull", "long", "short", "the", "film", "song", "play", "was", "rather", "very")


def texts(number, seed, flipped=0.0):
    """Texts whose label is whether "good" or "fine" is in them, except for a share of them."""
    draw = np.random.default_rng(seed)
    rows = {}
    while len(rows) < number:
        words = draw.choice(WORDS, 7).tolist()
        label = ("good" in words or "fine" in words) != (draw.random() < flipped)
        rows[" ".join(words)] = "yes" if label else "no"
    return rows


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("rows")
    # wrong labels among the validation rows: the members are over-confident
    for name, number, seed, flipped in (
        ("train", 60, 0, 0),
        ("val", 80, 1, 0.25),
        ("test", 120, 2, 0),
        ("new", 200, 7, 0),
    ):
        with (directory / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *texts(number, seed, flipped).items()])
    with (directory / "more.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text",), *((text,) for text in texts(80, 3))])
    return directory


@pytest.fixture(scope="module")
def config(files, tiny_base):
    return RunConfig(
        base=BaseConfig(name=str(tiny_base)),
        adapt=AdaptConfig(members=3, r=2, layers="last:1"),
        data=DataConfig(**{split: str(files / f"{split}.csv") for split in ("train", "val", "test")}, scoring="text"),
        train=TrainConfig(epochs=6, batch_size=8, lr=0.05, keep="last", checkpoint_every_s=0.0),
        evaluate=EvaluateConfig(few_shot=0, resamples=40, tfidf=False, frozen=False),
    )


@pytest.fixture(scope="module")
def root(config, tmp_path_factory):
    """The run of an ensemble: do not modify."""
    return train_run(config, tmp_path_factory.mktemp("run") / "many").run.root


@pytest.fixture(scope="module")
def asked():
    """Never stops; counts how often it was asked whether to, in the distillation of `one`."""
    return StopAfter(10**9)


@pytest.fixture(scope="module")
def one(root, files, asked, tmp_path_factory):
    """A run that was distilled from it, with further rows: do not modify."""
    out = tmp_path_factory.mktemp("one") / "one"
    return distill_run(root, out, data=files / "more.csv", callbacks=[asked]).root


@pytest.fixture
def copy(one, tmp_path):
    return shutil.copytree(one, tmp_path / "one")


def bytes_of(root):
    """The files of a run that must not depend on interruptions."""
    names = (
        "members/member_00/adapter_model.safetensors",
        "information.safetensors",
        "calibration.json",
        "distill.json",
    )
    chunks = sorted((root / "resume").glob("teacher-*"))
    return {path.name: path.read_bytes() for path in (*(root / name for name in names), *chunks)}


def test_the_cached_answers_are_the_ensembles(root, one, files):
    """Of the training rows, the further ones and the validation rows, by question and choices."""
    ensemble = Ensemble.load(root)
    examples = [*ensemble.read(files / "train.csv", require_answer=True)]
    examples += ensemble.read(files / "more.csv", require_answer=False)
    examples += ensemble.read(files / "val.csv", require_answer=True)
    predictions = ensemble.pipeline.predict_members(examples, "rows")
    with safe_open(one / "resume" / "teacher-00000.safetensors", framework="numpy") as file:
        saved = {name: file.get_tensor(name) for name in ("keys", "log_probs", "information")}
    assert [bytes(key).hex() for key in saved["keys"]] == [row_key(row) for row in examples]
    assert not ensemble.calibration.is_identity
    np.testing.assert_allclose(saved["log_probs"], pooled(predictions.log_probs_MEC, ensemble.calibration), atol=1e-6)
    np.testing.assert_allclose(saved["information"], mutual_information(predictions.log_probs_MEC), atol=1e-6)


def test_the_member_comes_close_to_the_ensemble(root, one, files):
    """Closer than the ensemble's members are, on rows that none has seen; and it predicts their mutual information."""
    many, student = Ensemble.load(root), Ensemble.load(one)
    examples = many.read(files / "test.csv", require_answer=True)
    predictions = many.pipeline.predict_members(examples, "test")
    mixture = pooled(predictions.log_probs_MEC, many.calibration)
    learned = student.pipeline.predict_members(examples, "test")

    def divergence(log_probs):
        return (np.exp(mixture) * (mixture - log_probs)).sum(axis=1).mean()

    alone = [divergence(log_probs) for log_probs in predictions.log_probs_MEC]
    assert divergence(learned.log_probs_MEC[0]) < min(alone)
    val = many.read(files / "val.csv", require_answer=True)
    mixture = pooled(many.pipeline.predict_members(val, "val").log_probs_MEC, many.calibration)
    (log_probs,) = student.pipeline.predict_members(val, "val").log_probs_MEC
    assert student.run.read_distillation().result.val_kl == pytest.approx(divergence(log_probs), rel=1e-4)


def test_the_head_is_the_fit_to_what_it_learned_from(root, one, files):
    """On the training rows and the further ones, chosen on the validation rows."""
    many, student = Ensemble.load(root), Ensemble.load(one)

    def rows(*names):
        examples = [row for name in names for row in many.read(files / name, require_answer=False)]
        (log_probs,), (states,) = predict_with_states(
            student.pipeline.model, student.pipeline.encode(examples).rows, member_passes([0]), 640
        )
        members = many.pipeline.predict_members(examples, "rows").log_probs_MEC
        return InformationRows(states, log_probs, mutual_information(members))

    fit = fit_information(rows("train.csv", "more.csv"), rows("val.csv"))
    result = student.run.read_distillation().result
    assert (result.strength, result.num_rows) == (fit.strength, 60 + 80)
    assert result.correlation == pytest.approx(fit.correlation, abs=1e-3)
    test = rows("test.csv")
    predictions = student.pipeline.predict_members(student.read(files / "test.csv", require_answer=True), "test")
    expected = fit.head.predict(test.states_ED, test.log_probs_EC)
    np.testing.assert_allclose(predictions.predicted_information, expected, rtol=1e-2, atol=1e-5)


def test_where_it_comes_from_is_recorded(root, one, files):
    record = Run(one).read_distillation()
    assert record.source == str(root)
    assert record.ensemble == Run(root).read_ensemble().digest
    assert (record.num_members, record.num_train, record.unlabeled.source) == (3, 60, "more.csv")
    assert len(record.unlabeled.row_digests) == 80
    assert json.loads((one / "splits.json").read_text()) == json.loads((root / "splits.json").read_text())
    config, of_ensemble = Run(one).read_config(), Run(root).read_config()
    assert config.adapt.members == 1
    assert config.train == of_ensemble.train
    assert config.data == of_ensemble.data


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9, 1.0], ids=lambda share: f"at {100 * share:g} %")
def test_an_interrupted_distillation_resumes_exactly(root, one, files, asked, tmp_path, share):
    """In the ensemble's answers, the training, the head, or the calibration: the same bytes."""
    out, data = tmp_path / "one", files / "more.csv"
    number = round(share * (10**9 - asked.left - 1))
    with pytest.raises(Interrupted):
        distill_run(root, out, data=data, callbacks=[StopAfter(number)])
    assert not Run(out).is_finished
    distill_run(root, out, data=data, if_exists="resume")
    first, second = (json.loads((path / "distill.json").read_text()) for path in (one, out))
    assert first == second
    assert bytes_of(out) == bytes_of(one)


def test_what_the_ensemble_has_answered_is_not_asked_again(root, one, files, tmp_path, monkeypatch):
    """A file per chunk; a damaged one is computed again, to the same bytes."""
    monkeypatch.setattr(teacher, "CHUNK_ROWS", 50)
    out, data = tmp_path / "one", files / "more.csv"
    with pytest.raises(Interrupted):
        distill_run(root, out, data=data, callbacks=[StopAfter(40)])
    chunks = sorted((out / "resume").glob("teacher-*"))
    assert len(chunks) == 5  # of 60 + 80 + 80 rows
    before = [chunk.read_bytes() for chunk in chunks]
    monkeypatch.setattr(teacher, "_answers", lambda *args: pytest.fail("asked again"))
    with pytest.raises(Interrupted):
        distill_run(root, out, data=data, if_exists="resume", callbacks=[StopAfter(5)])
    monkeypatch.undo()
    monkeypatch.setattr(teacher, "CHUNK_ROWS", 50)
    chunks[1].write_bytes(before[1][:100])
    distill_run(root, out, data=data, if_exists="resume")
    assert [chunk.read_bytes() for chunk in chunks] == before
    assert distill_run(root, out, data=data, if_exists="resume").root == out  # finished already


def test_predictions_and_answers_have_the_predicted_information(root, one, files):
    """The same by chunks, early exit, typed questions, the scikit-learn route's pipeline, and in JSON."""
    student = Ensemble.load(one)
    examples = student.read(files / "test.csv", require_answer=True)
    predictions = student.pipeline.predict_members(examples, "test")
    expected = predictions.predicted_information
    assert (expected >= 0).all()
    assert np.ptp(expected) > 0
    answers = list(student.predict(files / "test.csv"))
    np.testing.assert_allclose([answer.mutual_information for answer in answers], expected, rtol=1e-3, atol=1e-6)
    line = answers[0].to_dict()
    assert line["information_predicted"] is True
    assert line["disagreement"] == 0.0
    assert "information_predicted" not in next(Ensemble.load(root).predict([examples[0].question])).to_dict()
    early = list(student.predict([row.question for row in examples[:5]], early_exit=0.9))
    np.testing.assert_allclose([a.mutual_information for a in early], expected[:5], rtol=1e-3, atol=1e-6)
    assert {answer.members_used for answer in early} == {1}
    asker = Asker(student)
    asked = asker.encode(Asked(examples[0].question, Question("q", "choice", "", ("no", "yes"))))
    (reply,) = asker.answer([asked])
    assert reply.answer.mutual_information == pytest.approx(expected[0], rel=1e-3, abs=1e-6)
    assert reply.answer.information_predicted
    other = asker.encode(Asked(examples[0].question, Question("tone", "choice", "Which tone?", ("calm", "loud"))))
    (reply,) = asker.answer([other])  # the head was fitted for the run's question
    assert reply.answer.mutual_information == 0.0
    assert not reply.answer.information_predicted


def test_the_run_is_evaluated_reported_and_calibrated(copy, files, tmp_path):
    """Mutual information is a score of OOD rows, and a ranking score of decisions, alone and combined."""
    student = Ensemble.load(copy)
    evaluation = student.evaluate(ood=[files / "more.csv"])
    assert evaluation.ood["more"].auroc["mutual_information"] not in (None, 0.5)
    assert any("Mutual information is predicted" in note for note in evaluation.notes)
    predictions = student.run.load_predictions("train", "test")
    assert evaluation.uncertainty["mutual_information"] == pytest.approx(predictions.predicted_information.mean())
    page = tmp_path / "page.html"
    write_report([copy], page)
    text = page.read_text()
    assert "one LoRA, taught by the calibrated mixture of 3 members" in text
    assert "Mutual information is predicted for the ensemble that taught this member" in text
    for score in ("mutual_information", "combined"):
        decisions = student.calibrate(files / "new.csv", target_error=0.4, score=score)
        assert decisions.has_threshold
        examples = student.read(files / "new.csv", require_answer=True)
        known = student.pipeline.predict_members(examples, "new")
        calibrated = pooled(known.log_probs_MEC, student.calibration)
        scores = decisions.scores(known.log_probs_MEC, calibrated, known.predicted_information)
        if score == "mutual_information":
            np.testing.assert_array_equal(scores, -known.predicted_information)
        else:
            simple = simple_scores(known.log_probs_MEC, calibrated, known.predicted_information)
            np.testing.assert_array_equal(scores, decisions.combined.apply(simple))
            assert decisions.combined.scales[3] != 1.0  # of a feature that varies
        automated = scores >= decisions.thresholds[0]
        assert automated.sum() > 0
        assert [
            answer.decision == "automate" for answer in answers_from(known, None, student.calibration, decisions)
        ] == (automated.tolist())
    assert student.monitor(files / "test.csv").shifts["mutual information"].p_value > 0.01


def test_rows_that_it_learned_from_certify_nothing(copy, files, tmp_path):
    path = tmp_path / "labelled.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *texts(80, 3).items()])
    with pytest.raises(
        DataError, match=r"80 of 80 rows are not new to the run.* is a row that the run was distilled on"
    ):
        Ensemble.load(copy).calibrate(path, target_error=0.4)


def test_rows_of_the_run_are_left_out(root, files, tmp_path, on_log):
    """Also its test rows: what measures the run must not be learned from, even without its answers."""
    messages = []
    on_log(messages.append)
    path = tmp_path / "mixed.csv"
    rows = [*texts(120, 2), *texts(30, 5), *list(texts(30, 5))[:4]]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text",), *((text,) for text in rows)])
    out = distill_run(root, tmp_path / "one", data=path, train=TrainConfig(epochs=1, lr=0.05))
    kept = len(out.read_distillation().unlabeled.row_digests)
    assert kept == len(set(texts(30, 5)) - set(texts(60, 0)) - set(texts(80, 1)) - set(texts(120, 2)))
    assert any(f"{len(rows) - kept} of {len(rows)} rows are left out" in message for message in messages)
    path.write_text("text\n" + "\n".join(texts(120, 2)))
    with pytest.raises(DataError, match="all 120 rows are among those of"):
        distill_run(root, tmp_path / "other", data=path)


def test_answers_of_further_rows_count_with_a_weight(root, files, tmp_path):
    """Directions and weights give other members; settings of the member are those that are given."""
    train, adapt = TrainConfig(epochs=1, lr=0.05, batch_size=8), AdaptConfig(members=1, r=3, layers="last:1")
    weights = {}
    for name, distill in (
        ("forward", DistillConfig()),
        ("reverse", DistillConfig("reverse")),
        ("weighted", DistillConfig("forward", 1.0)),
    ):
        run = distill_run(root, tmp_path / name, data=files / "new.csv", distill=distill, train=train, adapt=adapt)
        weights[name] = run.read_ensemble().members[0].sha256
        assert run.read_config().adapt.r == 3
        assert run.read_distillation().distill == distill
    assert len(set(weights.values())) == 3


def test_questions_with_choices(tiny_base, questions_jsonl, tmp_path):
    """Rows with two to four choices each; the ensemble's answers are padded."""
    config = RunConfig(
        base=BaseConfig(name=str(tiny_base)),
        adapt=AdaptConfig(members=2, r=2),
        data=DataConfig(train=str(questions_jsonl()), scoring="text"),
        train=TrainConfig(epochs=1, lr=0.02),
    )
    root = train_run(config, tmp_path / "many").run.root
    more = questions_jsonl("more.jsonl", 20, seed=4)
    student = Ensemble.load(distill_run(root, tmp_path / "one", data=more).root)
    answers = list(student.predict(more))
    assert {len(answer.choices) for answer in answers} == {2, 3, 4}
    assert all(answer.mutual_information >= 0 for answer in answers)


def test_a_changed_head_is_noticed(copy):
    """Decisions may rest on it, so it is part of the ensemble that they were certified for."""
    record = json.loads((copy / "ensemble.json").read_text())
    path = copy / "information.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="wrong checksum"):
        Ensemble.load(copy)
    del record["information"]
    (copy / "ensemble.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="belongs to another ensemble"):
        _ = Ensemble.load(copy).calibration


def test_what_cannot_be_distilled_is_refused(root, one, files, config, tmp_path):
    out = tmp_path / "out"
    for settings, message in (
        ({"source": one}, "has one member; there is no ensemble to distill"),
        ({"adapt": config.adapt}, "adapt.members: 3, but an ensemble is distilled into one member"),
        ({"train": TrainConfig()}, "train.lr: auto is not searched here; give a number: --train.lr 1e-3"),
        ({"train": TrainConfig(lr=0.1)}, "train.epochs: auto is not searched here"),
        ({"train": TrainConfig(lr=0.1, epochs=1, seed=3)}, "train.seed: 3, but the ensemble's, 0, decides which rows"),
        ({"regularize": RegularizeConfig(label_smoothing=0.1)}, "regularize.label_smoothing: 0.1 smooths answers"),
        ({"distill": DistillConfig(answers_weight=-1.0)}, "distill.answers_weight: -1.0 is not a finite number"),
        ({"distill": DistillConfig(direction="up")}, "distill.direction"),
        ({"adapt": AdaptConfig(members=1, layers="last:9")}, "adapt.layers: 'last:9' is out of range"),
        ({"adapt": AdaptConfig(members=1, order="bootstrap")}, "adapt.order: bootstrap makes members differ"),
        ({"data": 7}, "data is of type int; pass a path"),
    ):
        with pytest.raises(ConfigError, match=message):
            distill_run(**{"source": root, "out": out} | settings)
        assert not out.exists()
    typed = shutil.copytree(root, tmp_path / "typed")
    record = json.loads((typed / "ensemble.json").read_text()) | {"labels": None}
    record["questions"] = [{"name": "good", "type": "predicate", "instructions": "Is it good?"}]
    (typed / "ensemble.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="answers typed questions, whose mutual information differs between"):
        distill_run(typed, out)
    other = tmp_path / "other.csv"
    other.write_text("text,label\na good film,maybe\na bad song,no\n")
    with pytest.raises(DataError, match=r"other.csv:2.*maybe"):
        distill_run(root, out, data=other)
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "Which?", "choices": ["a", "b"]}\n')
    with pytest.raises(DataError, match="a question with choices, but the task's training rows are texts with labels"):
        distill_run(root, out, data=questions)
    assert not out.exists()


def test_a_resumed_distillation_keeps_its_settings(root, one, files, copy, tmp_path):
    data = files / "more.csv"
    (copy / "ensemble.json").unlink()
    for settings, message in (
        ({}, "--data: .* was started with the rows of more.csv, and the file has others"),
        ({"data": files / "new.csv"}, "was started with the rows of more.csv"),
        ({"data": data, "distill": DistillConfig("reverse")}, "distill.direction: .* has 'forward', not 'reverse'"),
        ({"data": data, "train": TrainConfig(lr=0.05, epochs=9)}, "train.epochs: .* has 6, not 9"),
    ):
        with pytest.raises(ConfigError, match=message):
            distill_run(root, copy, if_exists="resume", **settings)
    other = shutil.copytree(root, tmp_path / "other")
    record = json.loads((other / "ensemble.json").read_text())
    record["members"][0]["state"] = "failed"
    (other / "ensemble.json").write_text(json.dumps(record))
    (other / "calibration.json").unlink()
    with pytest.raises(ConfigError, match="was started with another ensemble than"):
        distill_run(other, copy, data=data, if_exists="resume")
    with pytest.raises(ConfigError, match=r"is a distilled run, .* lorchestra distill RUN --out"):
        train_run(Run(copy).read_config(), copy, if_exists="resume")
    with pytest.raises(CheckpointError, match="finish it by: lorchestra distill RUN --out"):
        Ensemble.load(copy)
    with pytest.raises(CheckpointError, match="is a run that was not distilled"):
        distill_run(root, other, if_exists="resume")
    distill_run(root, copy, data=data, if_exists="resume")
    assert bytes_of(copy) == bytes_of(one)


def test_rows_from_python(root, config, tmp_path):
    """They are not saved with the run, and so have to be given again."""
    task = lorchestra.read_task(config)
    many = train_run(
        dataclasses.replace(config, data=DataConfig(scoring="text")), tmp_path / "many", rows=RunRows(task, ())
    ).run.root
    with pytest.raises(ConfigError, match=r"distill it in Python: distill_run\(..., rows=TASK\)"):
        distill_run(many, tmp_path / "one")
    run = distill_run(many, tmp_path / "one", rows=task, train=TrainConfig(epochs=1, lr=0.05))
    assert run.read_distillation().num_train == 60
    other = dataclasses.replace(task, splits={**task.splits, "val": task.splits["val"][1:]})
    with pytest.raises(DataError, match="the val rows are not those this run was made with"):
        distill_run(many, tmp_path / "other", rows=other)


def test_settings_of_the_member():
    config = RunConfig(
        adapt=AdaptConfig(members=5, r=4, order="bootstrap"),
        data=DataConfig(class_weights=True),
        regularize=RegularizeConfig(weight_decay_b=3.0, kl_beta=0.5, label_smoothing=0.1),
    )
    student = student_config(config)
    assert student.adapt == AdaptConfig(members=1, r=4)
    assert student.regularize == RegularizeConfig(weight_decay_b=3.0)
    assert not student.data.class_weights


def test_public_names():
    assert lorchestra.distill_run is distill_run
    assert lorchestra.DistillConfig is DistillConfig
