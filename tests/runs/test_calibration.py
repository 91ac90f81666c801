"""Whole runs with a calibration: predictions, evaluations, the module, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from lorchestra.cli.main import main
from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.config.mappings import from_mapping, read_recipe
from lorchestra.config.run import EvaluateConfig, RunConfig, TrainConfig
from lorchestra.data.splits import content_digest
from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.metrics import predictive, scores
from lorchestra.metrics.calibrator import Calibration, fit_calibration, pooled
from lorchestra.report.figure import reliability_figure
from lorchestra.report.html.page import write_report
from lorchestra.report.table import evaluation_table, methods, verdict
from lorchestra.runs.ensemble import Ensemble
from lorchestra.runs.rows import RunRows, read_rows
from lorchestra.runs.train import train_run
from lorchestra.store.calibration_record import CalibrationRecord
from lorchestra.store.run import Run
from lorchestra.types import Task

WORDS = ("good", "bad", "fine", "dull", "long", "short", "the", "film", "song", "play", "was", "rather", "very")
TRAIN = {"epochs": 6, "batch_size": 8, "lr": 0.05, "keep": "last", "checkpoint_every_s": 0.0}


def texts(number, seed, flipped):
    """Texts whose label is whether "good" or "fine" is in them, except for a share of them."""
    draw = np.random.default_rng(seed)
    rows = {}
    while len(rows) < number:
        words = draw.choice(WORDS, 7).tolist()
        label = ("good" in words or "fine" in words) != (draw.random() < flipped)
        rows[" ".join(words)] = "yes" if label else "no"
    return "".join(["text,label\n", *(f"{text},{label}\n" for text, label in rows.items())])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("rows")
    # wrong labels outside of the training rows: the members are over-confident
    for name, number, seed, flipped in (("train", 80, 0, 0.0), ("val", 80, 1, 0.25), ("test", 60, 2, 0.25)):
        (directory / f"{name}.csv").write_text(texts(number, seed, flipped))
    return directory


@pytest.fixture(scope="module")
def config(files, tiny_base):
    return RunConfig(
        base=BaseConfig(name=str(tiny_base)),
        adapt=AdaptConfig(members=3, r=2, layers="last:1"),
        data=DataConfig(**{split: str(files / f"{split}.csv") for split in ("train", "val", "test")}, scoring="text"),
        train=TrainConfig(**TRAIN),
        evaluate=EvaluateConfig(few_shot=0, resamples=40, tfidf=False, frozen=False),
    )


@pytest.fixture(scope="module")
def root(config, tmp_path_factory):
    """A run whose temperature is not 1: do not modify."""
    return train_run(config, tmp_path_factory.mktemp("run") / "reviews").run.root


@pytest.fixture
def copy(root, tmp_path):
    return Run(shutil.copytree(root, tmp_path / "reviews"))


def write(run, calibration):
    run.write_calibration(CalibrationRecord.of(run.read_ensemble().digest, calibration, []))


def test_the_calibration_is_that_of_the_validation_rows(root, config):
    ensemble = Ensemble.load(root)
    rows = read_rows(config.data, 0).task.splits["val"]
    predictions = ensemble.pipeline.predict_members(rows, "val")
    mixture = predictive.mixture_log_probs(predictions.log_probs_MEC)
    expected = fit_calibration(mixture, predictions.labels, predictions.options)
    saved = ensemble.calibration
    assert (saved.kind, saved.num_rows) == ("temperature", 80)
    assert saved.temperature == pytest.approx(expected.temperature, rel=1e-5)
    assert abs(saved.temperature - 1) > 0.05
    (question,) = Run(root).read_calibration(ensemble.record).questions.values()
    assert question.row_digests == tuple(map(content_digest, rows))


def test_answers_are_the_mixture_with_a_temperature(root, files):
    ensemble = Ensemble.load(root)
    T = ensemble.calibration.temperature
    calibrated = list(ensemble.predict(files / "test.csv", abstain_below=0.7))
    raw = list(ensemble.predict(files / "test.csv", abstain_below=0.7, raw=True))
    for answer, plain in zip(calibrated, raw, strict=True):
        scaled = np.array(plain.probs) ** (1 / T)
        np.testing.assert_allclose(answer.probs, scaled / scaled.sum(), rtol=1e-6)
        np.testing.assert_allclose(plain.probs, np.mean(plain.member_probs, axis=0), rtol=1e-9)
        assert answer.entropy == pytest.approx(-np.sum(np.array(answer.probs) * np.log(answer.probs)), rel=1e-9)
        assert answer.confidence == max(answer.probs)
        assert answer.abstain == (answer.confidence < 0.7)
        same = ("prediction", "member_probs", "mutual_information", "disagreement", "label", "input")
        assert all(getattr(answer, name) == getattr(plain, name) for name in same)
        assert (answer.calibrated, plain.calibrated) == (True, False)
    assert [a.abstain for a in calibrated] != [a.abstain for a in raw]


def test_the_command_line_has_both(root, files, tmp_path, capsys):
    lines = {}
    for name, options in (("calibrated", []), ("raw", ["--raw"])):
        assert main(["predict", str(root), "--data", str(files / "test.csv"), *options]) == 0
        lines[name] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["calibrated"] for line in lines["calibrated"]} == {True}
    assert {line["calibrated"] for line in lines["raw"]} == {False}
    assert [a["probs"] for a in lines["calibrated"]] != [a["probs"] for a in lines["raw"]]
    table = tmp_path / "answers.csv"
    assert main(["predict", str(root), "--data", str(files / "test.csv"), "--out", str(table)]) == 0
    header, first, *_ = table.read_text().splitlines()
    assert dict(zip(header.split(","), first.split(","), strict=True))["calibrated"] == "true"


def test_exact_early_exit_keeps_the_predictions(root, files):
    ensemble = Ensemble.load(root)
    early = list(ensemble.predict(files / "test.csv", early_exit="exact"))
    every = list(ensemble.predict(files / "test.csv"))
    assert [a.prediction for a in early] == [a.prediction for a in every]
    assert min(a.members_used for a in early) < 3
    first = next(answer for answer in early if answer.members_used == 2)
    mixture = np.log(np.mean(first.member_probs, axis=0))
    np.testing.assert_allclose(first.probs, np.exp(ensemble.calibration.apply(mixture[None])[0]), rtol=1e-9)


def test_exact_early_exit_is_refused_where_predictions_may_change(copy, files):
    write(copy, Calibration("vector", "by hand", scale=(1.0, 0.5), bias=(0.0, 1.0)))
    ensemble = Ensemble.load(copy.root)
    with pytest.raises(ConfigError, match=r"--early-exit exact: the run is calibrated by vector scaling"):
        ensemble.predict(files / "test.csv", early_exit="exact")
    with pytest.raises(ConfigError, match="--early-exit exact"):
        ensemble.evaluate(early_exit="exact", save=False)
    assert main(["predict", str(copy.root), "--data", str(files / "test.csv"), "--early-exit", "exact"]) == 2
    assert list(ensemble.predict(files / "test.csv", early_exit="exact", raw=True))
    assert list(ensemble.predict(files / "test.csv", early_exit=0.9))


def test_the_evaluation_has_both_mixtures(copy, tmp_path):
    ensemble = Ensemble.load(copy.root)
    evaluation = ensemble.evaluate(early_exit="exact")
    predictions = copy.load_predictions("train", "test")
    mixture = predictive.mixture_log_probs(predictions.log_probs_MEC)
    calibrated = ensemble.calibration.apply(mixture)
    assert evaluation.calibration == ensemble.calibration
    assert evaluation.ensemble.metrics["nll"] == pytest.approx(scores.nll(calibrated, predictions.labels), rel=1e-12)
    assert evaluation.ensemble_raw.metrics["nll"] == pytest.approx(scores.nll(mixture, predictions.labels), rel=1e-12)
    assert evaluation.ensemble_raw.ensemble_minus["nll"] is not None
    assert evaluation.ensemble_scaled is None
    assert evaluation.best_member_scaled.temperature is not None
    assert evaluation.uncertainty["total_entropy"] == pytest.approx(predictive.entropy(mixture).mean())
    names = [method.name for method in methods(evaluation)]
    assert names[-2:] == ["ensemble, raw", "ensemble"]
    assert evaluation.calibration.sentence() in evaluation_table(evaluation).table.caption
    assert "differences in NLL and Brier include what calibration gains" in verdict(evaluation)
    (entry,), _ = copy.read_evaluations()
    assert entry["calibration"]["temperature"] == ensemble.calibration.temperature
    reliability_figure(predictions, tmp_path / "picture.png", evaluation.calibration)
    write_report([copy.root], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert ensemble.calibration.sentence().replace(">", "&gt;") in page
    assert "the ensemble, raw" in page
    raw = ensemble.evaluate(raw=True, save=False)
    assert (raw.calibration, raw.ensemble_raw) == (None, None)
    assert raw.ensemble.metrics == evaluation.ensemble_raw.metrics


def test_a_damaged_calibration_of_an_evaluation_is_refused(copy):
    Ensemble.load(copy.root).evaluate()
    metrics = json.loads(copy.metrics.read_text())
    metrics["evaluations"][0]["calibration"]["temperature"] = -1
    copy.metrics.write_text(json.dumps(metrics))
    with pytest.raises(CheckpointError, match=r"calibration.temperature is -1, not a number from 0"):
        copy.read_evaluations()


def test_a_run_of_an_earlier_version_answers_with_the_mixture(copy, files):
    copy.calibration.unlink()
    ensemble = Ensemble.load(copy.root)
    assert ensemble.calibration.kind == "none"
    for answer, raw in zip(*(ensemble.predict(files / "test.csv", raw=raw) for raw in (False, True)), strict=True):
        assert answer == raw
        assert answer.calibrated is False
    evaluation = ensemble.evaluate(save=False)
    assert (evaluation.calibration, evaluation.ensemble_raw) == (None, None)
    assert "guaranteed by convexity" in verdict(evaluation)


def test_an_edited_calibration_is_refused_and_raw_answers_are_not(copy, files, capsys):
    values = json.loads(copy.calibration.read_text())
    values["questions"][""]["temperature"] = 0.5
    copy.calibration.write_text(json.dumps(values))
    ensemble = Ensemble.load(copy.root)
    for use in (lambda: ensemble.predict(["good"]), ensemble.evaluate, ensemble.as_module):
        with pytest.raises(CheckpointError, match="the checksum is not that of its content"):
            use()
    assert len(list(ensemble.predict(["good"], raw=True))) == 1
    arguments = ["predict", str(copy.root), "--data", str(files / "test.csv")]
    assert main(arguments) == 2
    assert "calibration.json: the checksum is not that of its content" in capsys.readouterr().err
    assert main([*arguments, "--raw"]) == 0


def test_the_calibration_of_another_run_is_refused(copy, config, tmp_path):
    other = train_run(
        dataclasses.replace(config, train=TrainConfig(**TRAIN | {"epochs": 1, "seed": 5})), tmp_path / "b"
    )
    shutil.copy(other.run.calibration, copy.calibration)
    with pytest.raises(CheckpointError, match="belongs to another ensemble"):
        Ensemble.load(copy.root).predict(["good"])


def test_interrupted_answers_do_not_go_on_with_another_calibration(copy, files, tmp_path, monkeypatch):
    from lorchestra.cli import predict as command

    made = command.Prediction._made_with
    parsed = [
        command.PredictArguments(str(copy.root), str(files / "test.csv"), out="answers.jsonl", raw=raw)
        for raw in (False, True)
    ]

    def settings(arguments):
        from lorchestra.report.answers import AnswerFormat

        return made(command.Prediction(arguments, AnswerFormat("jsonl"), None, ""))

    before = [settings(arguments) for arguments in parsed]
    write(copy, Calibration("temperature", "by hand", temperature=3.0))
    after = [settings(arguments) for arguments in parsed]
    assert before[0] != after[0]
    assert before[1] == after[1]
    assert before[0]["calibration"] is not None
    assert before[1]["calibration"] is None


@pytest.mark.parametrize(
    "calibration",
    [
        Calibration("temperature", "by hand", temperature=1.7),
        Calibration("vector", "by hand", scale=(1.2, 0.6), bias=(0.3, -0.4)),
        Calibration("isotonic", "by hand", confidences=(0.5, 0.75, 1.0), accuracies=(0.55, 0.6, 0.9)),
    ],
    ids=lambda calibration: calibration.kind,
)
def test_the_module_has_it_too(copy, files, calibration):
    write(copy, calibration)
    ensemble = Ensemble.load(copy.root)
    rows = ensemble.read(files / "test.csv", require_answer=True)[:8]
    module = ensemble.as_module()
    assert module.calibration == calibration
    answers = [answer.probs for answer in ensemble.predict(list(rows))]
    np.testing.assert_allclose(module.mixture(rows).exp().detach(), answers, atol=1e-6)
    raw = [answer.probs for answer in ensemble.predict(list(rows), raw=True)]
    np.testing.assert_allclose(module.mixture(rows, raw=True).exp().detach(), raw, atol=1e-6)
    module.mixture(rows)[:, 0].sum().backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    module.calibration = None
    assert torch.equal(module.mixture(rows), module.mixture(rows, raw=True))


def test_none_and_one_class_have_a_reason(config, tmp_path, on_log):
    lines = []
    on_log(lines.append)
    off = dataclasses.replace(config, train=TrainConfig(**TRAIN | {"epochs": 1, "calibration": "none"}))
    ensemble = Ensemble.train(off, tmp_path / "off")
    assert "Probabilities are not calibrated: train.calibration is none." in lines
    assert [answer.calibrated for answer in ensemble.predict(["good"])] == [False]
    task = read_rows(config.data, 0).task
    one_class = tuple(row for row in task.splits["val"] if row.answer == 1)
    rows = RunRows(Task(task.name, {**task.splits, "val": one_class}, task.labels), ())
    short = dataclasses.replace(config, train=TrainConfig(**TRAIN | {"epochs": 1}))
    run = train_run(short, tmp_path / "one", rows=rows).run
    calibration = run.read_calibration(run.read_ensemble()).calibration
    assert (calibration.kind, calibration.num_rows) == ("none", len(one_class))
    assert "have the answer 'yes', which says nothing of the others" in lines[-1]


def test_settings_of_earlier_runs_have_no_calibration(root, tmp_path):
    values = "".join(
        line
        for line in (root / "config.yaml").read_text().splitlines(keepends=True)
        if not line.startswith(("  criterion:", "  calibration:"))
    )
    (tmp_path / "config.yaml").write_text(values)
    saved = read_recipe(tmp_path / "config.yaml", RunConfig, whole=True)
    assert (saved.train.criterion, saved.train.calibration) == ("nll", "none")
    new = from_mapping(TrainConfig, {}, "a recipe")
    assert (new.criterion, new.calibration) == ("scaled_nll", "auto")


def test_members_that_failed_take_no_part(config, tmp_path, monkeypatch):
    """The mixture that is calibrated is that of the members that predict."""
    from lorchestra.training import trainer

    def fail_second(values):
        return {1: "made to fail"}

    monkeypatch.setattr(trainer, "parameter_failures", fail_second)
    short = dataclasses.replace(config, train=TrainConfig(**TRAIN | {"epochs": 1}))
    ensemble = Ensemble.train(short, tmp_path / "run")
    assert ensemble.members == (0, 2)
    rows = read_rows(config.data, 0).task.splits["val"]
    predictions = ensemble.pipeline.predict_members(rows, "val")
    expected = fit_calibration(pooled(predictions.log_probs_MEC, None), predictions.labels, predictions.options)
    assert ensemble.calibration.nll_before == pytest.approx(expected.nll_before, rel=1e-5)
