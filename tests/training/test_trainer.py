import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from lorchestra.config.run import RegularizeConfig, TrainConfig, check_training
from lorchestra.errors import ConfigError
from lorchestra.inference.predict import member_passes, predict_rows
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.nn import packing
from lorchestra.nn.packing import BASE, Item, pack
from lorchestra.training.callbacks import Interrupted
from lorchestra.training.checkpoint import TrainState
from lorchestra.training.objective import kl_to_base


def one_by_one(model, member, rows):
    """Log-probabilities of each row's choices, each row in a separate pass."""
    with torch.no_grad():
        return [model.forward(pack([Item(member, row)]))[0] for row in rows]


# Settings


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("train.epochs: 0", {"epochs": 0}),
        ("train.batch_size: -1", {"batch_size": -1}),
        ("train.lr: 0.0", {"lr": 0.0}),
        ("train.lr: nan", {"lr": math.nan}),
        ("train.lr: inf", {"lr": math.inf}),
        ("train.warmup: 1.0", {"warmup": 1.0}),
        ("train.warmup: -0.1", {"warmup": -0.1}),
        ("train.patience: -1", {"patience": -1}),
        ("train.clip_norm: -1.0", {"clip_norm": -1.0}),
        ("train.clip_norm: nan", {"clip_norm": math.nan}),
        ("regularize.weight_decay_b: -1.0", {"weight_decay_b": -1.0}),
        ("regularize.weight_decay_b: inf", {"weight_decay_b": math.inf}),
        ("regularize.kl_beta: -0.5", {"kl_beta": -0.5}),
        ("regularize.kl_beta: nan", {"kl_beta": math.nan}),
        ("regularize.weight_decay_a: -1.0", {"weight_decay_a": -1.0}),
        ("regularize.weight_decay_ba: nan", {"weight_decay_ba": math.nan}),
        ("regularize.label_smoothing: 1.0", {"label_smoothing": 1.0}),
        ("regularize.label_smoothing: -0.1", {"label_smoothing": -0.1}),
        ("regularize.label_smoothing: nan", {"label_smoothing": math.nan}),
    ],
)
def test_settings_out_of_range_name_the_field_and_its_value(field, settings):
    regularize = {name: settings.pop(name) for name in list(settings) if name in RegularizeConfig.__dataclass_fields__}
    with pytest.raises(ConfigError) as caught:
        check_training(TrainConfig(**settings), RegularizeConfig(**regularize))
    assert str(caught.value).startswith(field)


@pytest.mark.parametrize("name", ["weight_decay_a", "weight_decay_b"])
@pytest.mark.parametrize(("lr", "decay"), [(1e-2, 100.0), (1e-3, 5000.0)])
def test_decay_that_overshoots_zero_is_refused(make_trainer, lr, decay, name):
    with pytest.raises(ConfigError, match=rf"regularize\.{name}") as caught:
        make_trainer(train={"lr": lr}, regularize={name: decay})
    for part in (f"{lr:g} * {decay:g} = {lr * decay:g}", f"below {1 / lr:g}", "train.lr"):
        assert part in str(caught.value)


def test_the_papers_decay_is_accepted():
    check_training(TrainConfig(lr=9e-4), RegularizeConfig(weight_decay_b=1e3))


# What a step reports


def test_first_step_reports_the_mean_cross_entropy_of_each_members_rows(make_trainer):
    """The loss is the mean of three rows, and the norm that of its gradient before clipping."""
    trainer = make_trainer(kind="texts", train={"batch_size": 3, "clip_norm": 1e-3, "token_budget": 30}, spread=0.3)
    model = trainer.model
    losses, norms = [], []
    for m in range(3):
        rows = [item.example for item in trainer.step_items(0) if item.member == m]
        assert len(rows) == 3
        model.adapters.zero_grad()
        loss = sum(-model.forward(pack([Item(m, row)]))[0, row.answer] for row in rows) / 3
        loss.backward()
        losses.append(loss.item())
        norms.append(model.adapters.grad[m].norm().item())
    trainer.step()
    (report,) = trainer.callback.reports
    assert report.loss == pytest.approx(losses, rel=1e-12)
    assert report.grad_norm == pytest.approx(norms, rel=1e-12)
    assert report.penalties == {}
    assert model.adapters.grad.norm(dim=1).tolist() == pytest.approx([1e-3] * 3, rel=1e-2)


def test_steps_epochs_rates_and_tokens_are_reported(make_trainer, train):
    trainer = train(make_trainer(train={"batch_size": 5, "epochs": 2, "warmup": 0.3}))
    reports = trainer.callback.reports
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert [report.epoch for report in reports] == [0, 0, 0, 1, 1, 1]
    rates = [0.005, 0.01, 0.01, 0.0075, 0.005, 0.0025]
    assert [report.lr for report in reports] == [pytest.approx([rate] * 3) for rate in rates]
    every_epoch = 3 * sum(row.num_tokens for row in trainer.rows.train)
    assert sum(report.tokens for report in reports) == trainer.state.tokens == 2 * every_epoch
    assert trainer.state.train_s == pytest.approx(sum(report.seconds for report in reports))
    assert trainer.state.num_updates == [6, 6, 6]
    assert [entry["step"] for entry in trainer.callback.evaluations] == [3, 6]
    assert [entry["epoch"] for entry in trainer.callback.evaluations] == [1, 2]
    assert trainer.callback.evaluations == trainer.state.history
    assert ("validation", 7, 7) in trainer.callback.phases


def test_each_regularizer_is_logged_by_name_and_member(make_trainer):
    regularize = {
        "weight_decay_b": 3.0,
        "kl_beta": 0.5,
        "weight_decay_a": 2.0,
        "weight_decay_ba": 0.5,
        "label_smoothing": 0.1,
    }
    for names in ([], *([name] for name in regularize), ["weight_decay_b", "kl_beta"], list(regularize)):
        trainer = make_trainer(regularize={name: regularize[name] for name in names})
        trainer.prepare()
        trainer.step()
        logged = {name: name for name in regularize} | {"kl_beta": "kl_to_base"}
        (report,) = trainer.callback.reports
        assert report.penalties.keys() == {logged[name] for name in names}
        assert all(len(values) == 3 for values in report.penalties.values())


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("trunk", [False, True], ids=["whole model", "trunk"])
def test_kl_of_each_member_is_logged_with_its_strength(make_trainer, direction, trunk):
    """By hand from single rows: beta times the mean KL over the member's rows; it is not part of the loss."""
    adapt = {"depth": 3, "layers": "last:1"} if trunk else {}
    regularize = {"kl_beta": 0.7, "kl_direction": direction}
    trainer = make_trainer(regularize=regularize, spread=0.3, kind="texts", **adapt)
    expected, losses = [], []
    for m in range(3):
        rows = [item.example for item in trainer.step_items(0) if item.member == m]
        mine, base = one_by_one(trainer.model, m, rows), one_by_one(trainer.model, BASE, rows)
        kls = [kl_to_base(p[None], q[None], direction).item() for p, q in zip(mine, base, strict=True)]
        expected.append(0.7 * sum(kls) / 4)
        losses.append(sum(-p[row.answer].item() for p, row in zip(mine, rows, strict=True)) / 4)
    trainer.prepare()
    trainer.step()
    (report,) = trainer.callback.reports
    assert min(expected) > 1e-3
    assert report.penalties["kl_to_base"] == pytest.approx(expected, rel=1e-10)
    assert report.loss == pytest.approx(losses, rel=1e-10)


def test_kl_starts_at_zero_and_keeps_members_close_to_the_base(make_trainer, train):
    """Members start at the base; a strong KL term keeps their probabilities closer to it than none."""
    distance = {}
    for beta in (0.0, 30.0):
        trainer = train(make_trainer(regularize={"kl_beta": beta}, train={"epochs": 4, "lr": 0.02, "keep": "last"}))
        rows = trainer.rows.train
        log_probs = predict_rows(trainer.model, rows, member_passes([BASE, 0, 1, 2]), 60)
        present = np.isfinite(log_probs[0])
        distance[beta] = np.abs(np.exp(log_probs[1:]) - np.exp(log_probs[0]))[:, present].mean(axis=1)
        if beta:
            kl = [report.penalties["kl_to_base"] for report in trainer.callback.reports]
            assert kl[0] == pytest.approx([0.0] * 3, abs=1e-12)
            assert min(kl[-1]) > 1e-5
    assert (distance[30.0] < 0.5 * distance[0.0]).all()


def test_decay_penalty_is_half_lambda_times_the_squared_b(make_trainer, train):
    trainer = train(make_trainer(regularize={"weight_decay_b": 3.0}))
    expected = []
    for m in range(3):
        squares = sum(Bs[m].detach().square().sum().item() for _, Bs in trainer.model.adapters.parameters.values())
        expected.append(1.5 * squares)
    assert min(expected) > 1e-6
    assert trainer.callback.reports[-1].penalties["weight_decay_b"] == pytest.approx(expected, rel=1e-12)


def test_strong_decay_keeps_b_below_one_over_lambda(make_trainer, train):
    trainer = train(make_trainer(regularize={"weight_decay_b": 90.0}, train={"epochs": 10, "schedule": "constant"}))
    largest = trainer.model.adapters.values[:, trainer.model.adapters.is_B].abs().max().item()
    assert 0.2 / 90 < largest <= 1.5 / 90


def test_rows_are_weighted_within_each_members_step(make_trainer):
    """By the weighted mean of the rows' losses: doubling all weights changes nothing."""
    weights = [1.0 + row for row in range(12)]
    reports = {}
    for name, values in {"plain": weights, "doubled": [2 * w for w in weights]}.items():
        trainer = make_trainer(weights=values, spread=0.3)
        trainer.step()
        reports[name] = trainer.callback.reports[0].loss
    fresh = make_trainer(spread=0.3)
    for m in range(3):
        rows = [item.example for item in fresh.step_items(0) if item.member == m]
        log_probs = one_by_one(fresh.model, m, rows)
        mine = [weights[row.row] for row in rows]
        expected = sum(-w * p[row.answer].item() for w, p, row in zip(mine, log_probs, rows, strict=True)) / sum(mine)
        assert reports["plain"][m] == pytest.approx(expected, rel=1e-10)
    assert reports["doubled"] == pytest.approx(reports["plain"], rel=1e-12)


# Evaluation during training


@pytest.mark.parametrize("budget", [1, 20, 1000])
def test_validation_nll_is_the_plain_mean_over_rows(make_trainer, train, budget):
    """Seven rows in micro-batches of unequal size: a mean of the batches' means would differ."""
    trainer = train(make_trainer(train={"token_budget": budget, "epochs": 1, "keep": "last"}))
    rows = trainer.rows.val
    for m in range(3):
        log_probs = one_by_one(trainer.model, m, rows)
        nll = -sum(p[row.answer].item() for p, row in zip(log_probs, rows, strict=True)) / 7
        accuracy = sum(p.argmax().item() == row.answer for p, row in zip(log_probs, rows, strict=True)) / 7
        assert trainer.state.history[0]["val_nll"][m] == pytest.approx(nll, rel=1e-12)
        assert trainer.state.history[0]["val_accuracy"][m] == pytest.approx(accuracy)


def test_evaluations_leave_dropout_on_and_training_untouched(make_trainer, train):
    """The same bytes with and without evaluations, and steps after an evaluation still use dropout."""
    settings = {"dropout": 0.5, "train": {"epochs": 3, "keep": "last"}}
    evaluated = train(make_trainer(**settings))
    assert len(evaluated.state.history) == 3
    bare = make_trainer(**settings)
    bare.prepare()
    for step in range(bare.num_steps):
        assert all(item.dropout_seed is not None for item in bare.step_items(step))
        bare.step()
    assert torch.equal(evaluated.model.adapters.values, bare.model.adapters.values)
    plain = train(make_trainer(train={"epochs": 3, "keep": "last"}))
    after_first = [report.loss for report in evaluated.callback.reports[3:]]
    without = [report.loss for report in plain.callback.reports[3:]]
    assert all(abs(a - b) > 1e-4 for x, y in zip(after_first, without, strict=True) for a, b in zip(x, y, strict=True))


def test_dropout_is_off_in_evaluations(make_trainer, train):
    trainer = train(make_trainer(dropout=0.5, train={"epochs": 1}))
    rows = trainer.rows.val
    nll = -sum(p[row.answer].item() for p, row in zip(one_by_one(trainer.model, 1, rows), rows, strict=True)) / 7
    assert trainer.state.history[0]["val_nll"][1] == pytest.approx(nll, rel=1e-12)


# The whole run


def test_training_learns_its_rows(make_trainer, make_rows, train):
    rows = [row for row in make_rows(16) if len(set(row.choices)) == len(row.choices)]  # equal choices tie
    settings = {"epochs": 40, "lr": 0.02, "batch_size": 6, "keep": "last"}
    trainer = train(make_trainer(rows=(rows, rows[:4]), train=settings, r=4))
    reports = trainer.callback.reports
    assert min(reports[0].loss) > 0.5
    assert max(reports[-1].loss) < 0.05


@pytest.mark.parametrize("kind", ["letters", "texts", "trees", "heads"])
def test_token_budget_and_checkpointing_change_nothing_but_rounding(make_trainer, train, kind):
    reference = train(make_trainer(kind=kind, dropout=0.2))
    for settings in ({"token_budget": 1}, {"token_budget": 10_000}, {"gradient_checkpointing": True}):
        other = train(make_trainer(kind=kind, dropout=0.2, train=settings))
        torch.testing.assert_close(other.model.adapters.values, reference.model.adapters.values, rtol=0, atol=1e-9)
    assert other.model.gradient_checkpointing


def test_a_run_with_the_trunk_equals_one_with_the_whole_model(make_trainer, train):
    settings = {"depth": 3, "layers": "last:1", "dropout": 0.2, "regularize": {"kl_beta": 0.3}}
    cached = train(make_trainer(**settings))
    assert {text for text, _, _ in cached.callback.phases} >= {
        "lower layers, training rows",
        "lower layers, validation rows",
    }
    whole = make_trainer(**settings)
    whole.model.trunk_layers = 0
    train(whole)
    torch.testing.assert_close(cached.model.adapters.values, whole.model.adapters.values, rtol=0, atol=1e-9)
    assert (cached.model.adapters.values - make_trainer(**settings).model.adapters.values).abs().max() > 0.01


@pytest.mark.parametrize("adapt", [{}, {"layers": "last:1"}], ids=["all layers", "last layer"])
@pytest.mark.parametrize("kind", ["letters", "texts", "trees"])
def test_a_prefix_shared_by_all_rows_is_computed_once_and_changes_nothing(
    make_trainer, make_rows, train, adapt, kind, monkeypatch
):
    """Also with gradients, the KL term and the trunk; half of the tokens are saved."""
    front = tuple(range(30, 50))
    rows = [
        [dataclasses.replace(row, prefix=front + row.prefix) for row in make_rows(number, kind, seed)]
        for number, seed in ((12, 0), (7, 1))
    ]
    fed, original = [], EnsembleModel.forward

    def forward(self, batch, outputs="log_probs", **options):
        if outputs == "log_probs":
            fed.append(batch.packing.num_tokens)
        return original(self, batch, outputs, **options)

    monkeypatch.setattr(EnsembleModel, "forward", forward)
    settings = {"rows": rows, "train": {"token_budget": 150}, "regularize": {"kl_beta": 0.5}, "depth": 3, **adapt}
    with_sharing = train(make_trainer(**settings))
    tokens = sum(fed)
    assert with_sharing.shared == 20
    monkeypatch.setattr(packing, "MIN_SHARED_PREFIX", 1000)
    fed.clear()
    without = train(make_trainer(**settings))
    assert without.shared == 0
    assert tokens < 0.6 * sum(fed)
    torch.testing.assert_close(with_sharing.best, without.best, rtol=0, atol=1e-9)
    assert with_sharing.state.tokens == without.state.tokens


def test_rows_under_dropout_share_no_prefix(make_trainer, make_rows, train):
    rows = [[dataclasses.replace(row, prefix=tuple(range(30)) + row.prefix) for row in make_rows(6)]] * 2
    assert train(make_trainer(rows=rows, dropout=0.2)).shared == 0


def test_the_same_run_gives_the_same_bytes(make_trainer, train):
    first, second = (train(make_trainer(dtype=torch.float32, dropout=0.2)) for _ in range(2))
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, second.tensors()[name])


def test_checkpoints_are_written_when_due_and_at_the_end(make_trainer):
    calls = []
    trainer = make_trainer(train={"checkpoint_every_s": 0.0})
    trainer.run(lambda: calls.append((trainer.state.step, len(trainer.state.with_status("finished")))))
    assert calls == [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0), (6, 3)]
    calls.clear()
    trainer = make_trainer(train={"checkpoint_every_s": 1e9})
    trainer.run(lambda: calls.append(trainer.state.step))
    assert calls == [6]


# Interruption and resumption


def stop_after(calls):
    """A `should_stop` that is true from call `calls` on, counted from 0."""
    counter = iter(range(10_000))
    return lambda: next(counter) >= calls


def snapshot(trainer):
    return {name: tensor.clone() for name, tensor in trainer.tensors().items()}, json.dumps(trainer.state.to_json())


@pytest.mark.parametrize("whole_steps", [0, 2, 3])
def test_an_interrupted_step_is_not_applied(make_trainer, whole_steps):
    """Stopped after some micro-batches of a step: parameters and state are those of the last whole step."""
    settings = {"dropout": 0.2, "train": {"token_budget": 20}, "regularize": {"weight_decay_b": 1.0}}
    reference = make_trainer(**settings)
    reference.prepare()
    for _ in range(whole_steps):
        reference.step()
    trainer = make_trainer(**settings)

    def interrupt(*_):
        return trainer.state.step == whole_steps and trainer.model.adapters.grad.abs().sum() > 0

    saved = []
    trainer.callback.should_stop = interrupt
    with pytest.raises(Interrupted):
        trainer.run(lambda: saved.append(snapshot(trainer)))
    assert trainer.model.adapters.grad.abs().sum() > 0  # in the middle of a step
    ((tensors, _),) = saved
    assert trainer.state.step == whole_steps
    assert trainer.state.num_updates in ([whole_steps] * 3, [])
    for name in ("values", "first_moment", "second_moment"):
        assert torch.equal(tensors[name], reference.tensors()[name])
    assert len(trainer.callback.reports) == whole_steps


def run_with_interruptions(make_trainer, settings, stops):
    """Interrupts after the given numbers of micro-batches; a new trainer resumes from the saved state each time."""
    trainer = make_trainer(**settings)
    for calls in stops:
        saved = []
        trainer.callback.should_stop = stop_after(calls)
        with pytest.raises(Interrupted):
            trainer.run(lambda t=trainer, s=saved: s.append(snapshot(t)))
        tensors, state = saved[-1]
        trainer = make_trainer(**settings)
        trainer.restore(TrainState.from_json(json.loads(state)), tensors)
    trainer.run(lambda: None)
    return trainer


RESUMED = {
    "mid-epoch": {"train": {"token_budget": 25}},
    "everything": {
        "kind": "texts",
        "dropout": 0.3,
        "regularize": {"weight_decay_b": 1.0, "kl_beta": 0.3},
        "train": {"lr": 0.03, "patience": 1, "epochs": 4, "token_budget": 40},
    },
    "trunk": {"depth": 3, "layers": "last:1", "dropout": 0.2, "train": {"epochs": 3}},
    "heads": {"kind": "heads", "depth": 3, "layers": "last:1", "train": {"epochs": 3}},
    "trees": {
        **{"kind": "trees", "depth": 3, "layers": "last:1"},
        "regularize": {"kl_beta": 0.3, "kl_over": "vocabulary"},
        "train": {"token_budget": 40},
    },
}


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED.keys())
@pytest.mark.parametrize("stops", [(4,), (1, 3, 2), (9, 5)], ids=str)
def test_resumed_run_ends_with_the_same_bytes(make_trainer, train, settings, stops):
    """In float32: parameters, best copies, moments, statuses and history, after interruptions within epochs."""
    settings = {**settings, "dtype": torch.float32}
    whole = train(make_trainer(**settings))
    resumed = run_with_interruptions(make_trainer, settings, stops)
    for name, tensor in whole.tensors().items():
        assert torch.equal(resumed.tensors()[name], tensor), name
    ours, theirs = resumed.state.to_json(), whole.state.to_json()
    assert {**ours, "train_s": 0} == {**theirs, "train_s": 0}
    assert resumed.optimizer.num_steps == whole.optimizer.num_steps


def test_a_run_interrupted_before_its_first_step_can_be_resumed(make_trainer, train):
    settings = {"dtype": torch.float32}
    resumed = run_with_interruptions(make_trainer, settings, (0,))
    assert torch.equal(resumed.model.adapters.values, train(make_trainer(**settings)).model.adapters.values)


def test_a_finished_run_does_not_change_when_run_again(make_trainer, train):
    done = train(make_trainer())
    tensors, state = snapshot(done)
    again = make_trainer()
    again.restore(TrainState.from_json(json.loads(state)), tensors)
    train(again)
    assert again.callback.reports == []
    assert json.dumps(again.state.to_json()) == state
    assert torch.equal(again.best, done.best)


def test_stopped_members_stay_stopped_when_resumed(make_trainer, script_validation):
    """A member's bias correction counts its updates, not the run's steps."""
    settings = {"train": {"epochs": 5, "patience": 1, "criterion": "nll"}, "members": 2}
    script_validation([[1.0, 1.0], [0.9, 2.0], [0.8], [0.7], [0.6]] + [[0.5, 9.0]] * 5)
    trainer = make_trainer(**settings)
    saved = []
    calls = trainer.steps_per_epoch * 3

    def interrupt():
        return trainer.state.step == calls

    trainer.callback.should_stop = interrupt
    with pytest.raises(Interrupted):
        trainer.run(lambda: saved.append(snapshot(trainer)))
    tensors, state = saved[0]
    resumed = make_trainer(**settings)
    resumed.restore(TrainState.from_json(json.loads(state)), tensors)
    assert resumed.optimizer.num_steps == [9, 6]
    assert resumed.state.with_status("running") == [0]
    assert all(item.member == 0 for item in resumed.step_items(resumed.state.step))
