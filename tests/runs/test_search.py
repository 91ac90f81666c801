"""The search of learning rate and epochs: what it saves, exact resume, and each job that uses it."""

from __future__ import annotations

import dataclasses
import io
import json
import math

import pytest
from rich.console import Console
from stop_after import StopAfter

from lorchestra.cli.progress import SweepProgress
from lorchestra.config.mappings import differences
from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.runs.compare import compare_methods
from lorchestra.runs.plan import plan_run
from lorchestra.runs.sweep.points import grid_points
from lorchestra.runs.sweep.run import run_sweep
from lorchestra.runs.train import train_run
from lorchestra.store.run import Run
from lorchestra.training import search
from lorchestra.training.callbacks import Interrupted

AUTO = {"lr": "auto", "epochs": "auto"}


@pytest.fixture(autouse=True)
def short_searches(monkeypatch):
    """Candidates of one epoch of 6 steps, and at most 5 epochs for the length."""
    monkeypatch.setattr(search, "_MIN_STEPS", 6)
    monkeypatch.setattr(search, "_MAX_EPOCHS", 5)
    monkeypatch.setattr(search, "_FEWEST_STEPS", 6)


@pytest.fixture
def auto_config(run_config, texts_csv):
    """Builds the configuration of a run that searches its learning rate and epochs."""

    def build(number=60, **groups):
        return run_config(texts_csv(number=number), **{"train": AUTO} | groups)

    return build


def evaluations(run):
    return [event for event in run.read_events() if event["event"] == "evaluation"]


def members_of(root):
    return [path.read_bytes() for path in sorted((root / "members").rglob("adapter_model.safetensors"))]


def test_what_was_open_is_settled_and_recorded(auto_config, tmp_path):
    config = auto_config()
    root = train_run(config, tmp_path / "run").run.root
    run = Run(root)
    record, settled = run.read_search(), run.read_config()
    assert (settled.train.lr, settled.train.epochs) == (record.lr, record.epochs)
    nlls = {trial.lr: min(trial.val_nll, default=math.inf) for trial in record.trials}
    assert len(nlls) >= 4
    assert record.lr == search.chosen_rate(nlls, is_longer=True)
    assert search.further_rates(nlls, math.inf) == () or len(nlls) == 4 + 2 * search.MAX_EXTENSIONS
    assert record.length.lr == record.lr / 2
    scores = dict(zip(record.length.steps, record.length.val_nll, strict=True))
    assert record.epochs == search.epochs_of(search.best_steps(scores), 6)
    assert not (root / "search").exists()
    assert json.loads((root / "ensemble.json").read_text())["num_members"] == 3
    # the settled configuration repeats the training without a search
    again = train_run(settled, tmp_path / "again").run.root
    assert members_of(again) == members_of(root)
    assert not (again / "search.json").exists()


def test_a_candidate_is_a_short_training_of_one_member(auto_config, tmp_path):
    config = auto_config()
    run = train_run(config, tmp_path / "run").run
    trial = run.read_search().trials[1]
    train = dataclasses.replace(config.train, lr=trial.lr, epochs=1)
    alone = dataclasses.replace(config, adapt=dataclasses.replace(config.adapt, members=1), train=train)
    (evaluation,) = evaluations(train_run(alone, tmp_path / "alone").run)
    assert trial.steps == (6,)
    assert evaluation["val_scaled_nll"][0] == pytest.approx(trial.val_nll[0], abs=1e-5)


@pytest.mark.parametrize(("criterion", "key"), [("nll", "val_nll"), ("scaled_nll", "val_scaled_nll")])
def test_the_length_is_that_of_a_member_at_half_the_rate(auto_config, tmp_path, criterion, key):
    config = auto_config(train={"lr": 0.02, "epochs": "auto", "criterion": criterion})
    run = train_run(config, tmp_path / "run").run
    record = run.read_search()
    assert (record.trials, record.lr, record.length.lr) == ((), 0.02, 0.01)
    train = dataclasses.replace(config.train, lr=0.01, epochs=5, schedule="constant", warmup=1 / 3)
    alone = dataclasses.replace(config, adapt=dataclasses.replace(config.adapt, members=1), train=train)
    other = train_run(alone, tmp_path / "alone").run
    by_epoch = {event["step"]: event[key][0] for event in evaluations(other)}
    searched = dict(zip(record.length.steps, record.length.val_nll, strict=True))
    assert len(searched) > search.PATIENCE
    assert searched.keys() <= by_epoch.keys()
    for step in searched:
        assert searched[step] == pytest.approx(by_epoch[step], abs=1e-5)


def test_given_settings_stay_as_given(auto_config, tmp_path):
    one = train_run(auto_config(train={"lr": 0.02, "epochs": "auto"}), tmp_path / "one").run
    assert one.read_config().train.lr == 0.02
    assert one.read_search().trials == ()
    other = train_run(auto_config(train={"lr": "auto", "epochs": 2}), tmp_path / "other").run
    assert other.read_config().train.epochs == 2
    assert len(other.read_search().trials) >= 4
    assert other.read_search().length is None


def test_rates_stay_below_what_a_decay_refuses(auto_config, tmp_path):
    config = auto_config(regularize={"weight_decay_b": 300.0})
    run = train_run(config, tmp_path / "run").run
    assert all(trial.lr * 300 < 1 for trial in run.read_search().trials)
    assert run.read_config().train.lr * 300 < 1


@pytest.mark.parametrize("layers", ["all", "last:1"])
def test_a_search_is_resumed_exactly(auto_config, tmp_path, layers):
    config = auto_config(adapt={"layers": layers})
    whole = train_run(config, tmp_path / "whole").run
    for after in (15, 20, 25, 30):
        try:
            if_exists = "resume" if (tmp_path / "parts").exists() else "fail"
            train_run(config, tmp_path / "parts", if_exists=if_exists, callbacks=[StopAfter(after)])
        except Interrupted:
            continue
    parts = train_run(config, tmp_path / "parts", if_exists="resume").run
    assert differences(parts.read_config(), whole.read_config()) == {}
    first, second = parts.read_search(), whole.read_search()
    assert dataclasses.replace(first, seconds=0) == dataclasses.replace(second, seconds=0)
    assert members_of(parts.root) == members_of(whole.root)


def test_a_resumed_run_does_not_compute_the_trunk_again(auto_config, tmp_path, monkeypatch):
    from lorchestra.inference import trunk
    from lorchestra.runs import train as runs_train

    config = auto_config(adapt={"layers": "last:1"})
    with pytest.raises(Interrupted):
        train_run(config, tmp_path / "run", callbacks=[StopAfter(40)])
    fills = []
    narrowed = trunk._narrowed
    monkeypatch.setattr(trunk, "_narrowed", lambda *given: fills.append(1) or narrowed(*given))
    until_trained, calibrate = [], runs_train.calibrate
    monkeypatch.setattr(runs_train, "calibrate", lambda *given: until_trained.extend(fills) or calibrate(*given))
    train_run(config, tmp_path / "run", if_exists="resume")
    assert until_trained == []
    assert fills  # the calibration's predictions are those of a finished run, in whatever format trunks are cached


def test_other_settings_are_refused_on_resume(auto_config, tmp_path):
    config = auto_config()
    train_run(config, tmp_path / "run")
    given = dataclasses.replace(config, train=dataclasses.replace(config.train, lr=0.5))
    with pytest.raises(ConfigError, match=r"train\.lr: the run in .* has .*, not 0\.5"):
        train_run(given, tmp_path / "run", if_exists="resume")


def test_finish_ends_a_training_with_its_best_adapters(run_config, texts_csv, tmp_path):
    config = run_config(texts_csv(), train={"epochs": 20})
    outcome = train_run(config, tmp_path / "now", callbacks=[StopAfter(25, finish=True)])
    record = outcome.run.read_ensemble()
    assert all(member.state == "finished" for member in record.members)
    steps = [event["step"] for event in outcome.run.read_events() if event["event"] == "step"]
    assert 0 < max(steps) < 100
    last = [event for event in outcome.run.read_events() if event["event"] == "evaluation"][-1]
    assert last["step"] == max(steps)
    # the same from outside: an interrupted run is ended
    with pytest.raises(Interrupted):
        train_run(config, tmp_path / "later", callbacks=[StopAfter(25)])
    later = train_run(config, tmp_path / "later", if_exists="finish").run
    assert later.is_finished
    assert members_of(later.root) == members_of(outcome.run.root)


def test_what_cannot_be_finished(auto_config, run_config, texts_csv, tmp_path):
    config = auto_config()
    with pytest.raises(CheckpointError, match="there is nothing to finish"):
        train_run(config, tmp_path / "none", if_exists="finish")
    with pytest.raises(Interrupted):
        train_run(config, tmp_path / "run", callbacks=[StopAfter(8)])
    with pytest.raises(CheckpointError, match=r"train\.lr is still searched"):
        train_run(config, tmp_path / "run", if_exists="finish")
    plain = run_config(texts_csv("more.csv"), adapt={"layers": "last:1"})
    with pytest.raises(Interrupted):
        train_run(plain, tmp_path / "plain", callbacks=[StopAfter(0)])
    with pytest.raises(CheckpointError, match="no step was trained yet"):
        train_run(plain, tmp_path / "plain", if_exists="finish")


def test_a_sweep_searches_once_for_all_points(auto_config, tmp_path):
    points = grid_points(auto_config(), [("regularize.weight_decay_b", [0.0, 10.0])])
    outcome = run_sweep(points, tmp_path / "sweep", evaluate=False)
    (directory,) = (tmp_path / "sweep" / "search").iterdir()
    record = Run(directory).read_search()
    for point in points:
        train = Run(outcome.root / "runs" / point.name).read_config().train
        assert (train.lr, train.epochs) == (record.lr, record.epochs)
    assert run_sweep(points, tmp_path / "sweep", evaluate=False).failed == ()


def test_a_comparison_searches_once_for_all_methods(auto_config, tmp_path):
    results = compare_methods(auto_config(), ["lora_ensemble", "one_lora"], tmp_path / "compare")
    trains = [result["config"]["train"] for result in results]
    assert trains[0] == trains[1]
    assert isinstance(trains[0]["lr"], float)
    assert isinstance(trains[0]["epochs"], int)


def test_the_plan_counts_the_search(auto_config, tmp_path):
    record = plan_run(auto_config(), tmp_path / "run", seconds=0.1)
    assert record["time_s"]["search"] > 0
    assert record["time_s"]["training"] > record["time_s"]["search"]
    assert record["work"]["epochs_given"] is False
    given = plan_run(auto_config(train={"lr": 1e-3, "epochs": 2}), tmp_path / "run", seconds=0.1)
    assert given["time_s"]["search"] == 0
    assert given["work"]["epochs"] == 2


def test_a_sweep_searches_all_that_any_point_leaves_open(auto_config, tmp_path):
    points = grid_points(auto_config(), [("train.epochs", [1, "auto"])])
    outcome = run_sweep(points, tmp_path / "sweep", evaluate=False)
    (directory,) = (tmp_path / "sweep" / "search").iterdir()
    record = Run(directory).read_search()
    assert record.length is not None
    trains = [Run(outcome.root / "runs" / point.name).read_config().train for point in points]
    assert [train.epochs for train in trains] == [1, record.epochs]
    assert {train.lr for train in trains} == {record.lr}


def test_points_that_the_base_refuses_do_not_stop_the_search(auto_config, tmp_path):
    points = grid_points(auto_config(), [("adapt.layers", ["[9]", "all"])])
    outcome = run_sweep(points, tmp_path / "sweep", evaluate=False)
    assert outcome.failed == (points[0].name,)
    assert Run(outcome.root / "runs" / points[1].name).is_finished


def test_a_search_for_other_settings_is_another_one(auto_config, tmp_path):
    points = grid_points(auto_config(), [("adapt.r", [2])])
    with pytest.raises(Interrupted):
        run_sweep(points, tmp_path / "sweep", evaluate=False, callbacks=[StopAfter(10)])
    others = grid_points(auto_config(), [("adapt.r", [4])])
    outcome = run_sweep(others, tmp_path / "sweep", evaluate=False)
    assert outcome.failed == ()
    assert len(list((tmp_path / "sweep" / "search").iterdir())) == 2


def test_a_request_to_finish_stops_a_search_and_keeps_it_whole(auto_config, tmp_path):
    config = auto_config()
    whole = train_run(config, tmp_path / "whole").run.read_search()
    for after in (2, 12, 26):
        if_exists = "resume" if (tmp_path / "parts").exists() else "fail"
        with pytest.raises(Interrupted):
            train_run(config, tmp_path / "parts", if_exists=if_exists, callbacks=[StopAfter(after, finish=True)])
    parts = train_run(config, tmp_path / "parts", if_exists="resume").run.read_search()
    assert dataclasses.replace(parts, seconds=0) == dataclasses.replace(whole, seconds=0)


def test_a_request_to_finish_before_the_first_step_stops_the_training(run_config, texts_csv, tmp_path):
    config = run_config(texts_csv())
    with pytest.raises(Interrupted):
        train_run(config, tmp_path / "run", callbacks=[StopAfter(0, finish=True)])
    assert not Run(tmp_path / "run").is_finished


def test_a_candidate_that_fails_is_left_out(auto_config, tmp_path, monkeypatch):
    """Also where its validation NLL is NaN, and on the sweep's display."""
    monkeypatch.setattr(search, "_RATES", (0.5, 1.0, 1e30))
    monkeypatch.setattr(search, "_HIGHEST", 1e30)
    run = train_run(auto_config(), tmp_path / "run").run
    record = run.read_search()
    failed = [trial for trial in record.trials if trial.lr > 1e20]
    assert failed
    assert all(trial.val_nll == () for trial in failed)
    assert record.lr < 1
    console = Console(file=io.StringIO(), width=200)
    points = grid_points(auto_config(), [("adapt.r", [2, 4])])
    with SweepProgress(console, points) as progress:
        run_sweep(points, tmp_path / "sweep", evaluate=False, callbacks=[progress])
    assert "the candidate at the rate 2e+27 failed" in console.file.getvalue()


def test_the_criterion_decides_which_adapters_are_kept(run_config, texts_csv, tmp_path):
    """At a high rate members get over-confident before their ranking gets worse."""
    for criterion in ("nll", "scaled_nll"):
        train = {"epochs": 12, "lr": 0.05, "schedule": "constant", "criterion": criterion}
        run = train_run(run_config(texts_csv(number=120), train=train), tmp_path / criterion).run
        for m, member in enumerate(run.read_ensemble().members):
            by_step = {event["step"]: event[f"val_{criterion}"][m] for event in evaluations(run)}
            assert member.best_step == min(by_step, key=by_step.__getitem__)
            nlls = {event["step"]: event["val_nll"][m] for event in evaluations(run)}
            assert member.val_nll == pytest.approx(nlls[member.best_step])


@pytest.fixture
def many_labels(tmp_path, run_config):
    """Builds the configuration of a run on twelve labels, each decided by the row's first word."""

    def build(**groups):
        path = tmp_path / "many.csv"
        rows = [f"w{i % 12}x number {i},a label of number {i % 12}" for i in range(96)]
        path.write_text("\n".join(["text,label", *rows]) + "\n")
        settings = {"train": AUTO, "data": {"scoring": "auto"}, "adapt": {"members": 2}} | groups
        return run_config(path, **settings)

    return build


def test_many_labels_are_also_tried_with_heads(many_labels, tmp_path):
    config = many_labels()
    whole = train_run(config, tmp_path / "whole").run
    record = whole.read_search()
    best = {record.scoring: min(trial.best for trial in record.trials)}
    best |= {name: min(trial.best for trial in trials) for name, trials in record.other_scorings.items()}
    assert set(best) == {"tree", "head"}
    assert record.scoring == min(best, key=best.get) == whole.read_config().data.scoring
    assert json.loads(whole.ensemble.read_text())["scoring"] == record.scoring
    assert record.sentences()[0].startswith(f"answers scored by {record.scoring}, by the scaled validation NLL")
    for after in (5, 40, 70):
        try:
            if_exists = "resume" if (tmp_path / "parts").exists() else "fail"
            train_run(config, tmp_path / "parts", if_exists=if_exists, callbacks=[StopAfter(after)])
        except Interrupted:
            continue
    parts = train_run(config, tmp_path / "parts", if_exists="resume").run
    assert dataclasses.replace(parts.read_search(), seconds=0) == dataclasses.replace(record, seconds=0)
    assert members_of(parts.root) == members_of(whole.root)


@pytest.mark.parametrize(
    "groups",
    [
        {"data": {"scoring": "tree"}},
        {"train": {"lr": 0.02, "epochs": "auto"}},
        {"regularize": {"kl_beta": 0.1}},
        {"data": {"scoring": "auto", "normalize": "token"}},
    ],
    ids=["given", "no rates to try", "penalty towards the base", "divided by length"],
)
def test_heads_are_not_tried_where_something_speaks_against_them(many_labels, tmp_path, groups):
    run = train_run(many_labels(**groups), tmp_path / "run").run
    record = run.read_search()
    assert (record.scoring, record.other_scorings) == (None, {})
    assert run.read_config().data.scoring in ("tree", "text")


def test_a_plan_counts_the_candidates_of_both_scorings(many_labels, tmp_path):
    both, one = (
        plan_run(many_labels(data={"scoring": scoring}), tmp_path / "run", seconds=0.1) for scoring in ("auto", "tree")
    )
    # in units of the training's steps, whose seconds per token are those of the search
    both, one = (record["time_s"]["search"] / record["time_s"]["steps"] for record in (both, one))
    assert both > 1.3 * one
