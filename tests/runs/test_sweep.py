"""Sweeps: a packed pass gives every point what it gets alone; nothing finished is done again; bad grids are refused."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import weakref

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file
from stopping import StopWhen

import lorchestra.runs.sweep.engine as engine
import lorchestra.runs.sweep.run as sweeping
import lorchestra.runs.sweep.train as training
from lorchestra.cli.progress import SweepProgress
from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.inference.trunk import TrunkCache
from lorchestra.metrics.calibrator import fit_calibration
from lorchestra.metrics.predictive import mixture_log_probs
from lorchestra.runs.ensemble import load_run
from lorchestra.runs.evaluate import evaluate_run
from lorchestra.runs.sweep.passes import make_packs
from lorchestra.runs.sweep.points import grid_points, parse_axis
from lorchestra.runs.sweep.run import read_points, run_sweep
from lorchestra.runs.train import train_run
from lorchestra.store.predictions import load_predictions
from lorchestra.store.run import Run
from lorchestra.training.callbacks import Callback, Interrupted
from lorchestra.training.trainer import Trainer


class Watcher(Callback):
    """Keeps what a sweep reports."""

    def __init__(self):
        self.statuses, self.passes, self.steps = [], [], 0

    def on_status(self, names, status):
        self.statuses += [(name, status) for name in names]
        self.names = list(names)

    def on_train_begin(self, trainer):
        self.passes.append(self.names)

    def on_step(self, report, state):
        self.steps += 1


@pytest.fixture
def config(run_config, texts_csv):
    """Two members in float64 on split files, so that a seed changes members and not the rows."""
    made = run_config(
        texts_csv(),
        data={"val": str(texts_csv("val.csv", 8, seed=1)), "test": str(texts_csv("test.csv", 24, seed=2))},
        adapt={"members": 2},
        evaluate={"few_shot": 0},
    )
    return dataclasses.replace(made, base=dataclasses.replace(made.base, dtype="float64"))


@pytest.fixture
def sweep(tmp_path, on_log):
    """Runs a sweep over `field=values` texts; returns its directory, its watcher and the messages."""

    def run(config, *axes, out="sweep", callbacks=(), **options):
        watcher, messages = Watcher(), []
        points = grid_points(config, [parse_axis(axis) for axis in axes])
        on_log(messages.append)
        outcome = run_sweep(points, tmp_path / out, callbacks=[watcher, *callbacks], **options)
        return outcome, watcher, messages

    return run


def files(root):
    """Bytes of all adapters and predictions below a directory, by their path."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.glob("runs/**/*.safetensors"))}


@pytest.mark.parametrize("layers", ["all", "last:1"])
def test_every_point_is_what_it_would_be_alone(layers, config, sweep, tmp_path):
    config = dataclasses.replace(config, adapt=dataclasses.replace(config.adapt, layers=layers))
    axes = ("train.lr=0.01,0.003", "adapt.r=2,4", "regularize.weight_decay_b=0,20")
    outcome, watcher, _ = sweep(config, *axes)
    points = read_points(outcome.root)
    assert watcher.passes == [[point.name for point in points]]
    assert len(points) == 8
    for point in points[::3]:
        alone = train_run(point.config, tmp_path / "alone" / point.name).run
        expected = evaluate_run(load_run(alone.root))
        for path in sorted(alone.root.glob("members/*/*.safetensors")):
            saved, wanted = (
                load_file(root / path.relative_to(alone.root))
                for root in (outcome.root / "runs" / point.name, alone.root)
            )
            assert saved.keys() == wanted.keys()
            for name in wanted:
                np.testing.assert_allclose(saved[name], wanted[name], rtol=0, atol=1e-9)
        metrics = json.loads((outcome.root / "runs" / point.name / "metrics.json").read_text())
        (entry,) = metrics["evaluations"]
        assert entry.keys() == expected.keys()
        for name in ("ensemble", "uncertainty"):
            assert entry[name] == pytest.approx(expected[name], abs=1e-8)
        for metric in ("accuracy", "signed_gap"):  # of 24 rows, others may have too few errors for an interval
            assert entry["intervals"]["ensemble"][metric] == pytest.approx(
                expected["intervals"]["ensemble"][metric], abs=1e-8
            )
        nlls = (one["intervals"]["ensemble"]["nll"] for one in (entry, expected))
        mine, alone_nll = (ends or [] for ends in nlls)
        assert mine == pytest.approx(alone_nll, abs=1e-8)
        assert entry["baselines"]["base_zero_shot"]["nll"] == pytest.approx(
            expected["baselines"]["base_zero_shot"]["nll"], abs=1e-9
        )
        cost, alone_cost = metrics["cost"], json.loads((alone.root / "ensemble.json").read_text())["cost"]
        assert cost["tokens"] == alone_cost["tokens"]


def test_a_point_is_a_run_as_any_other(config, sweep):
    outcome, _, _ = sweep(config, "adapt.r=2,4")
    for name, rank in (("r=2", 2), ("r=4", 4)):
        run = load_run(outcome.root / "runs" / name)
        assert run.config.adapt.r == rank
        assert [adapter.r for adapter in run.pipeline.model.adapter_settings] == [rank, rank]
        events = [json.loads(line) for line in run.run.events.read_text().splitlines()]
        assert {len(event["loss"]) for event in events if event["event"] == "step"} == {2}
        saved = load_predictions(run.run.predictions / "reviews.test.safetensors")
        again = run.pipeline.predict_members(run.read(run.config.data.test, require_answer=True), "test")
        np.testing.assert_allclose(saved.log_probs_MEC, again.log_probs_MEC, rtol=0, atol=1e-6)
        val = load_predictions(run.run.predictions / "reviews.val.safetensors")
        mixture = mixture_log_probs(val.log_probs_MEC)
        assert run.calibration == fit_calibration(mixture, val.labels, val.options)
        (entry,), _ = run.run.read_evaluations()
        assert entry["calibration"] == run.calibration.to_dict()
        assert (run.calibration.kind, run.calibration.num_rows) == ("temperature", 8)
    without, _, _ = sweep(config, "adapt.r=2,4", out="without", evaluate=False)
    for name in ("r=2", "r=4"):
        evaluated, other = (load_run(root / "runs" / name).calibration for root in (outcome.root, without.root))
        assert other.temperature == pytest.approx(evaluated.temperature, abs=1e-8)


def test_finished_points_are_skipped_and_new_ones_added(config, sweep, monkeypatch):
    outcome, _, _ = sweep(config, "train.lr=0.01,0.003")
    before = files(outcome.root)
    _, again, _ = sweep(config, "train.lr=0.01,0.003")
    assert again.passes == []
    assert again.statuses == [("lr=0.01", "finished"), ("lr=0.003", "finished")]
    _, more, _ = sweep(config, "train.lr=0.01,0.001,0.003")
    assert more.passes == [["lr=0.001"]]
    assert files(outcome.root).items() >= before.items()
    assert [point.name for point in read_points(outcome.root)] == ["lr=0.01", "lr=0.003", "lr=0.001"]


@pytest.mark.parametrize("number", [1, 4, 9])
def test_an_interrupted_sweep_ends_with_the_same_bytes(number, config, sweep):
    axes = ("train.lr=0.01,0.003", "train.epochs=1,2")
    whole, _, _ = sweep(config, *axes, out="whole", each_epoch=True)
    asked = iter(range(10_000))
    with pytest.raises(Interrupted):
        sweep(config, *axes, out="parts", each_epoch=True, callbacks=[StopWhen(lambda: next(asked) >= number)])
    parts, _, _ = sweep(config, *axes, out="parts", each_epoch=True)
    assert files(parts.root) == files(whole.root)
    assert len(files(whole.root)) == 4 * (2 + 3 + 1 + 2) + 2
    assert not (parts.root / "trunks").exists()
    assert not (parts.root / "passes").exists()


def test_a_sweep_killed_while_it_writes_runs_goes_on(config, sweep, monkeypatch):
    whole, _, _ = sweep(config, "train.lr=0.01,0.003", out="whole")
    original = Run.write_ensemble

    def second_fails(run, record):
        if "0.003" in run.root.name:
            raise KeyboardInterrupt
        original(run, record)

    monkeypatch.setattr(Run, "write_ensemble", second_fails)
    with pytest.raises(KeyboardInterrupt):
        sweep(config, "train.lr=0.01,0.003", out="parts")
    monkeypatch.undo()
    parts, watcher, _ = sweep(config, "train.lr=0.01,0.003", out="parts")
    assert watcher.steps == 0
    assert files(parts.root) == files(whole.root)


@pytest.mark.parametrize("members", [2, 4], ids=["a pass left", "one pass"])
def test_a_trained_pass_is_finished_from_its_files(members, config, sweep, monkeypatch):
    """Killed between training and finishing: no step, no hidden state and no base answer is computed again."""
    adapt = dataclasses.replace(config.adapt, layers="last:1")
    regularize = dataclasses.replace(config.regularize, kl_beta=0.5)
    config = dataclasses.replace(config, adapt=adapt, regularize=regularize)
    axes = ("train.lr=0.01,0.003",)
    whole, _, _ = sweep(config, *axes, out="whole", each_epoch=True, most_members=members)

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "finish_pack", killed)
    with pytest.raises(KeyboardInterrupt):
        sweep(config, *axes, out="parts", each_epoch=True, most_members=members)
    monkeypatch.undo()
    monkeypatch.setattr(Trainer, "prepare", killed if members == 4 else Trainer.prepare)
    parts, watcher, _ = sweep(config, *axes, out="parts", each_epoch=True, most_members=members)
    assert watcher.passes == ([] if members == 4 else [["lr=0.003"]])
    assert files(parts.root) == files(whole.root)
    monkeypatch.setattr(training, "prepare_training", killed)
    _, again, _ = sweep(config, *axes, out="parts", each_epoch=True, most_members=members)
    assert again.steps == 0


def test_a_sweep_killed_before_it_removes_a_finished_pass_loads_no_base(config, sweep, monkeypatch):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeping, "write_results", killed)
    with pytest.raises(KeyboardInterrupt):
        sweep(config, "train.lr=0.01,1e30")
    monkeypatch.undo()
    monkeypatch.setattr(training, "prepare_training", killed)
    outcome, watcher, _ = sweep(config, "train.lr=0.01,1e30")
    assert outcome.failed == ("lr=1e+30",)
    assert watcher.statuses == [("lr=0.01", "finished"), ("lr=1e+30", "failed")]
    assert not (outcome.root / "passes").exists()
    assert len(json.loads((outcome.root / "results.json").read_text())["points"]) == 2


def test_passes_hold_what_can_go_together(config):
    points = grid_points(config, [("train.lr", [0.01, 0.02]), ("train.epochs", [1, 2]), ("train.seed", [0, 1])])
    packs = make_packs(points, 100)
    assert [{p.config.train.epochs for p in pack.points} for pack in packs] == [{1}, {2}]
    assert [len(pack.points) for pack in make_packs(points, 5)] == [2, 2, 2, 2]
    assert [len(pack.points) for pack in make_packs(points, 1)] == [1] * 8
    # without separate files, validation and test rows are drawn by the seed
    drawn = dataclasses.replace(config, data=dataclasses.replace(config.data, val=None, test=None))
    points = grid_points(drawn, [("train.lr", [0.01, 0.02]), ("train.seed", [0, 1])])
    assert [{p.config.train.seed for p in pack.points} for pack in make_packs(points, 100)] == [{0}, {1}]


def test_points_with_folds_of_other_sizes_have_separate_passes(config):
    points = grid_points(
        config,
        [("adapt.order", ["own", "bootstrap", "folds"]), ("adapt.members", [2, 3]), ("train.lr", [0.01, 0.02])],
    )
    packs = [{(p.config.adapt.order, p.config.adapt.members) for p in pack.points} for pack in make_packs(points, 100)]
    unfolded = {(order, members) for order in ("own", "bootstrap") for members in (2, 3)}
    assert sorted(packs, key=len) == [{("folds", 2)}, {("folds", 3)}, unfolded]


def test_layers_below_the_adapters_are_computed_once_for_all_passes(config, sweep, monkeypatch):
    config = dataclasses.replace(config, adapt=dataclasses.replace(config.adapt, layers="last:1"))
    filled = []
    original = TrunkCache.__init__

    def counted(self, model, rows, token_budget, progress=None, *args, **kwargs):
        def tell(done):
            if done == len(rows):
                filled.append(len(rows))
            if progress is not None:
                progress(done)

        original(self, model, rows, token_budget, tell, *args, **kwargs)

    monkeypatch.setattr(TrunkCache, "__init__", counted)
    outcome, watcher, _ = sweep(config, "train.lr=0.01,0.003,0.001", most_members=2, evaluate=False)
    assert len(watcher.passes) == 3
    assert filled.count(50) == 1
    assert not (outcome.root / "trunks").exists()


def test_passes_with_the_same_layers_below_stand_together(config):
    """Else each would find the layers of another one in the file, and compute them again."""
    points = grid_points(config, [("train.batch_size", [4, 8]), ("adapt.layers", ["last:1", "last:2"])])
    shared = [
        (pack.points[0].config.adapt.layers, pack.points[0].config.train.batch_size) for pack in make_packs(points, 9)
    ]
    assert shared == [("last:1", 4), ("last:1", 8), ("last:2", 4), ("last:2", 8)]


def test_a_base_is_gone_before_the_next_pass_loads_one(config, tmp_path, monkeypatch):
    loaded, alive = [], []
    original = training.prepare_training

    def watched(*args):
        alive.append([model() is not None for model in loaded])
        made = original(*args)
        loaded.append(weakref.ref(made[0].model))
        return made

    monkeypatch.setattr(training, "prepare_training", watched)
    points = grid_points(config, [parse_axis("train.lr=0.01,0.003,0.001")])
    with SweepProgress(Console(file=io.StringIO()), points) as progress:
        run_sweep(points, tmp_path / "sweep", most_members=2, callbacks=[progress])
    assert alive == [[], [False], [False, False]]


def test_results_hold_the_points_of_every_call(config, sweep):
    outcome, _, _ = sweep(config, "train.lr=0.01,0.003")
    sweep(config, "train.lr=0.001")
    rows = list(csv.DictReader((outcome.root / "results.csv").read_text().splitlines()))
    assert [row["point"] for row in rows] == ["lr=0.01", "lr=0.003", "lr=0.001"]
    assert {row["state"] for row in rows} == {"finished"}
    assert len(json.loads((outcome.root / "results.json").read_text())["points"]) == 3


def test_settings_that_the_base_refuses_fail_by_themselves(config, sweep):
    axis = "adapt.layers=last:9,last:1"
    outcome, _, messages = sweep(config, axis)
    assert outcome.failed == ("layers=last-9",)
    assert [path.name for path in (outcome.root / "runs").iterdir()] == ["layers=last-1"]
    assert any("layers=last-9: adapt.layers: 'last:9' is out of range" in text for text in messages)
    assert "out of range" in json.loads((outcome.root / "failed.json").read_text())["layers=last-9"]
    assert not (outcome.root / "passes").exists()
    _, again, _ = sweep(config, "adapt.layers=last:1,last:2")
    assert again.passes == [["layers=last-2"]]


def test_where_the_base_refuses_all_points_nothing_is_remembered(config, sweep, tmp_path):
    with pytest.raises(ConfigError, match="'last:9' is out of range"):
        sweep(config, "adapt.layers=last:9,last:8")
    assert json.loads((tmp_path / "sweep" / "failed.json").read_text()) == {}
    outcome, watcher, _ = sweep(config, "adapt.layers=last:1")
    assert (watcher.passes, outcome.failed) == ([["layers=last-1"]], ())


def test_a_pass_with_points_that_are_no_longer_asked_for_is_left_alone(config, sweep):
    """And goes on where the earlier command comes again."""
    asked = iter(range(10_000))
    with pytest.raises(Interrupted):
        sweep(config, "train.lr=0.01,0.003", callbacks=[StopWhen(lambda: next(asked) >= 5)])
    outcome, watcher, _ = sweep(config, "train.lr=0.001")
    assert watcher.passes == [["lr=0.001"]]
    assert [path.name for path in (outcome.root / "runs").iterdir()] == ["lr=0.001"]
    _, more, messages = sweep(config, "train.lr=0.01,0.003")
    assert more.passes == [["lr=0.01", "lr=0.003"]]
    assert any(text.startswith("resuming") for text in messages)
    whole, _, _ = sweep(config, "train.lr=0.01,0.003", out="whole")
    assert files(outcome.root).items() >= files(whole.root).items()
    assert not (outcome.root / "passes").exists()


def test_a_point_that_fails_leaves_the_others_and_is_remembered(config, sweep):
    outcome, _, _ = sweep(config, "train.lr=0.01,1e30")
    assert outcome.failed == ("lr=1e+30",)
    assert "member 1: diverged: largest parameter" in json.loads((outcome.root / "failed.json").read_text())["lr=1e+30"]
    assert [path.name for path in (outcome.root / "runs").iterdir()] == ["lr=0.01"]
    again, watcher, _ = sweep(config, "train.lr=0.01,1e30")
    assert again.failed == outcome.failed
    assert watcher.passes == []
    rows = list(csv.DictReader((outcome.root / "results.csv").read_text().splitlines()))
    assert [(row["point"], row["state"]) for row in rows] == [("lr=0.01", "finished"), ("lr=1e+30", "failed")]
    assert float(rows[0]["ensemble.nll"]) > 0


def test_points_of_an_earlier_version_are_not_mixed_with_those_of_now(config, sweep):
    """Their rows became tokens by other rules."""
    outcome, _, _ = sweep(config, "train.lr=0.01")
    path = outcome.root / "sweep.json"
    record = json.loads(path.read_text())
    for point in record["points"]:
        del point["config"]["data"]["read"], point["config"]["data"]["prompt"]["version"]
    path.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"(data.read.\w+|data.prompt.version): the sweep in .*choose another --out"):
        sweep(config, "train.lr=0.01,0.003")


def test_predictions_of_every_epoch(config, sweep):
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, keep="last"))
    outcome, _, _ = sweep(config, "train.lr=0.01,0.003", each_epoch=True)
    for name in ("lr=0.01", "lr=0.003"):
        folder = outcome.root / "runs" / name / "predictions"
        epochs = [load_predictions(folder / f"reviews.test.epoch_00{epoch}.safetensors") for epoch in (1, 2)]
        last = load_predictions(folder / "reviews.test.safetensors")
        assert last.num_members == epochs[0].num_members == 2
        np.testing.assert_allclose(epochs[1].log_probs_MEC, last.log_probs_MEC, rtol=0, atol=1e-9)
        assert np.abs(epochs[0].log_probs_MEC - last.log_probs_MEC).max() > 1e-3


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (["train.lrr=1"], r"train\.lrr is not a setting; did you mean 'lr'"),
        (["trian.lr=1"], "trian is not a setting; did you mean 'train'"),
        (["lr=1"], r"lr is not a setting; did you mean 'train\.lr'"),
        (["weight_decay_bb=1"], r"did you mean 'regularize\.weight_decay_b'"),
        (["train.lr.x=1"], "train.lr.x is not a setting"),
        (["train.lr"], "write a field and its values"),
        (["train.lr="], "write a field and its values"),
        (["train.lr=[1"], "cannot be read"),
        (["train.lr=much"], "train.lr is 'much'; it must be float"),
        (["train.lr=-1"], r"point lr=-1.0: train\.lr: -1.0 is not"),
        (["train.lr=0.1,0.1"], "two points are named lr=0.1"),
        (["train.lr=0.1", "train.lr=0.2"], "given 2 times"),
        (["train.lr=0.5", "regularize.weight_decay_b=3"], "must be below 1"),
    ],
)
def test_bad_grids_are_refused(axes, message, config, sweep):
    with pytest.raises(ConfigError, match=message):
        sweep(config, *axes)


def test_other_settings_and_other_directories_are_refused(config, sweep, tmp_path):
    sweep(config, "train.lr=0.01", evaluate=False)
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=5))
    with pytest.raises(ConfigError, match=r"train\.epochs: the sweep in .* has 2 in its point lr=0\.01, not 5"):
        sweep(other, "train.lr=0.01")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "note.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not the directory of a sweep"):
        sweep(config, "train.lr=0.01", out="other")
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"sweep\.json"):
        sweep(config, "train.lr=0.01")
    with pytest.raises(ConfigError, match="'sst3' is neither a file nor a task"):
        sweep(config, "train.lr=0.01", out="third", ood=["sst3"])


def test_names_tell_points_apart():
    from lorchestra.config.run import RunConfig

    config = RunConfig()
    names = [
        point.name
        for point in grid_points(
            config,
            [parse_axis("adapt.target_modules=[q_proj,v_proj],all-linear"), parse_axis("adapt.same_init=true,false")],
        )
    ]
    assert names == [
        f"target_modules={targets},same_init={same}"
        for targets in ("q_proj+v_proj", "all-linear")
        for same in ("true", "false")
    ]
    assert all(Trainer.__name__ not in name for name in names)
