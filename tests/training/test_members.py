"""Members are independent: one group of tests for each way in which they might not be."""

import itertools
import math

import pytest
import torch

from lorchestra.nn.packing import pack

M = 5


def assert_same_member(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


# Seeds


def test_another_seed_of_one_member_changes_no_other(make_trainer, train, seed_as):
    """Initial A and data order bit-equal, trained parameters equal: packing changes rounding only."""
    settings = {"members": M, "dropout": 0.2, "regularize": {"weight_decay_b": 1.0, "kl_beta": 0.1}}
    runs = []
    for stand_ins in ({}, {3: 77}):
        seed_as(stand_ins)
        trainer = make_trainer(**settings)
        start = trainer.model.adapters.values.clone()
        orders = []
        for step in range(trainer.num_steps):
            items = trainer.step_items(step)
            orders.append([[(i.example.row, i.dropout_seed) for i in items if i.member == m] for m in range(M)])
        train(trainer)
        runs.append((start, orders, trainer.model.adapters.values, trainer.best))
    (start, orders, values, best), (other_start, other_orders, other_values, other_best) = runs
    for m in range(M):
        same = m != 3
        assert torch.equal(start[m], other_start[m]) is same
        assert all((step[m] == other[m]) is same for step, other in zip(orders, other_orders, strict=True))
        if same:
            assert_same_member(values[m], other_values[m])
            assert_same_member(best[m], other_best[m])
        else:
            assert (values[m] - other_values[m]).abs().max() > 0.01


def test_dropout_seeds_differ_by_member_run_seed_and_step(make_trainer):
    """The seed of a mask is a function of run seed, member, step and row; masks add token and module to it."""
    seeds = {}
    for run_seed in (0, 1):
        trainer = make_trainer(members=3, dropout=0.1, train={"seed": run_seed})
        for step in range(trainer.num_steps):
            for item in trainer.step_items(step):
                seeds[run_seed, item.member, step, item.example.row] = item.dropout_seed
    assert len(seeds) == 2 * 3 * 2 * 12
    assert len(set(seeds.values())) == len(seeds)
    alone = make_trainer(members=2, dropout=0.1, train={"token_budget": 5})
    for step in range(alone.num_steps):
        for item in alone.step_items(step):
            assert item.dropout_seed == seeds[0, item.member, step, item.example.row]


def test_no_dropout_no_keys(make_trainer):
    items = make_trainer().step_items(0)
    assert all(item.dropout_seed is None for item in items)
    assert pack(items).packing.dropout_keys is None


# Data order


def rows_seen(trainer, member, epoch):
    steps = range(epoch * trainer.steps_per_epoch, (epoch + 1) * trainer.steps_per_epoch)
    return [item.example.row for s in steps for item in trainer.step_items(s) if item.member == member]


def test_each_member_sees_each_example_once_per_epoch_in_a_different_order(make_trainer):
    trainer = make_trainer(members=M, train={"batch_size": 5, "epochs": 3})  # twelve rows: the last batch has two
    orders = {(m, epoch): tuple(rows_seen(trainer, m, epoch)) for m in range(M) for epoch in range(3)}
    assert all(sorted(order) == list(range(12)) for order in orders.values())
    assert len(set(orders.values())) == 3 * M
    assert [len([i for i in trainer.step_items(s) if i.member == 2]) for s in range(3)] == [5, 5, 2]


def test_same_order_and_same_init_switch_one_source_each(make_trainer):
    both, order, init = (make_trainer(dropout=0.1, **switch) for switch in ({}, {"order": "same"}, {"same_init": True}))
    for trainer, same_order, same_init in ((both, False, False), (order, True, False), (init, False, True)):
        values = trainer.model.adapters.values
        for m in (1, 2):
            assert (rows_seen(trainer, m, 0) == rows_seen(trainer, 0, 0)) is same_order
            assert torch.equal(values[m], values[0]) is same_init
    assert [rows_seen(init, m, 1) for m in range(3)] == [rows_seen(both, m, 1) for m in range(3)]
    assert torch.equal(order.model.adapters.values, both.model.adapters.values)
    assert rows_seen(order, 2, 0) == rows_seen(both, 0, 0)
    assert rows_seen(order, 2, 0) != rows_seen(order, 2, 1)
    seeds = {item.dropout_seed for item in order.step_items(0)}
    assert len(seeds) == 3 * 4  # the same rows, with different masks for each member


def test_bootstrap_draws_different_rows_for_each_member(make_trainer, seed_as):
    trainer = make_trainer(order="bootstrap")
    seen = [sorted(rows_seen(trainer, m, 0)) for m in range(3)]
    num_rows = len(trainer.rows.train)
    for rows in seen:
        assert len(rows) == num_rows
        assert 0.3 * num_rows < len(set(rows)) < num_rows  # 63 % are expected
    assert len(set(map(tuple, seen))) == 3
    assert rows_seen(trainer, 0, 1) != rows_seen(trainer, 0, 0)
    assert sorted(rows_seen(trainer, 0, 1)) == seen[0]  # one draw for all epochs
    seed_as({0: 2})
    assert sorted(rows_seen(make_trainer(members=1, order="bootstrap"), 0, 0)) == seen[2]


def test_each_member_leaves_out_its_fold(make_trainer, make_rows):
    """Of 11 rows and 3 members: folds of 3 rows and two rows in none, so that all members have two steps of 4."""
    rows = make_rows(11), make_rows(7, seed=1)
    trainer = make_trainer(order="folds", rows=rows, train={"batch_size": 4})
    assert trainer.steps_per_epoch == 2
    left_out = []
    for m in range(3):
        first, second = (rows_seen(trainer, m, epoch) for epoch in range(2))
        assert first != second
        assert sorted(first) == sorted(second)
        assert len(set(first)) == len(first) == 8
        left_out.append(set(range(11)) - set(first))
    assert len(set.union(*left_out)) == 9
    alone = make_trainer(order="folds", rows=rows, members=1, train={"batch_size": 4})
    assert sorted(rows_seen(alone, 0, 0)) == list(range(11))
    other = make_trainer(order="folds", rows=rows, train={"batch_size": 4, "seed": 1})
    assert set(range(11)) - set(rows_seen(other, 0, 0)) != left_out[0]


@pytest.mark.parametrize("switch", [{"order": "same"}, {"same_init": True}])
def test_either_source_alone_makes_members_differ(make_trainer, train, switch):
    values = train(make_trainer(**switch)).model.adapters.values
    for m in (1, 2):
        assert (values[m] - values[0]).abs().max() > 0.01
    same = train(make_trainer(order="same", same_init=True)).model.adapters.values
    for m in (1, 2):
        assert_same_member(same[m], same[0])


# Loss


def test_gradient_of_a_member_is_equal_alone_and_with_four_others(make_trainer, seed_as):
    """The loss is summed over members: a mean would divide the gradient of each by five."""
    settings = {"dropout": 0.2, "regularize": {"kl_beta": 0.5}, "train": {"clip_norm": 0.0}, "kind": "texts"}
    five = make_trainer(members=M, spread=0.3, **settings)
    start = five.model.adapters.values.clone()
    five.prepare()
    five.step()
    together = five.model.adapters.grad
    assert together.norm(dim=1).min() > 0.1
    for m in range(M):
        seed_as({0: m})
        one = make_trainer(members=1, **settings)
        one.model.adapters.values.copy_(start[m : m + 1])
        one.prepare()
        one.step()
        torch.testing.assert_close(one.model.adapters.grad[0], together[m], rtol=1e-11, atol=1e-11)
        assert one.callback.reports[0].loss[0] == pytest.approx(five.callback.reports[0].loss[m], rel=1e-11)


# Lockstep equals alone

SETTINGS = {
    "plain": {},
    "everything": {
        "kind": "texts",
        "dropout": 0.3,
        "regularize": {"weight_decay_b": 5.0, "kl_beta": 0.3},
        "train": {"clip_norm": 0.5, "epochs": 3, "batch_size": 5, "patience": 1},
    },
    "early stopping": {"train": {"lr": 0.04, "epochs": 6, "patience": 1, "schedule": "constant"}},
    "reverse KL": {"regularize": {"kl_beta": 1.0, "kl_direction": "reverse"}, "train": {"schedule": "cosine"}},
    "trunk": {"depth": 3, "layers": "last:1", "dropout": 0.2, "kind": "texts", "regularize": {"kl_beta": 0.3}},
    "trees": {"kind": "trees", "dropout": 0.3, "regularize": {"kl_beta": 0.3, "label_smoothing": 0.1}},
    "heads": {"kind": "heads", "dropout": 0.3, "regularize": {"weight_decay_a": 0.5, "label_smoothing": 0.1}},
    "heads, trunk, bootstrap": {"kind": "heads", "depth": 3, "layers": "last:1", "order": "bootstrap"},
    "checkpointing": {"dropout": 0.2, "kind": "texts", "train": {"gradient_checkpointing": True}},
    "PiSSA": {
        **{"kind": "texts", "init_lora_weights": "pissa", "dropout": 0.2},
        "regularize": {"kl_beta": 0.3, "weight_decay_ba": 0.1},
        "train": {"clip_norm": 0.5},
    },
    "weights": {"weights": [0.25 * (1 + row % 5) for row in range(12)], "train": {"clip_norm": 0.0}},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_lockstep_equals_each_alone(make_trainer, train, seed_as, settings):
    """Parameters, best copies, losses, norms, validation and stopping, at different token budgets."""
    together = train(make_trainer(**settings))
    for m in range(3):
        seed_as({0: m})
        budget = {"token_budget": (11, 45, 10_000)[m]}
        alone = train(make_trainer(members=1, **{**settings, "train": settings.get("train", {}) | budget}))
        assert_same_member(alone.model.adapters.values[0], together.model.adapters.values[m])
        assert_same_member(alone.best[0], together.best[m])
        ours, theirs = alone.state.members[0], together.state.members[m]
        assert (ours.status, ours.best_step, ours.waited) == (theirs.status, theirs.best_step, theirs.waited)
        assert ours.best_nll == pytest.approx(theirs.best_nll, abs=1e-9)
        for mine, all_of_them in zip(alone.callback.reports, together.callback.reports, strict=False):
            assert mine.loss[0] == pytest.approx(all_of_them.loss[m], abs=1e-9)
            assert mine.grad_norm[0] == pytest.approx(all_of_them.grad_norm[m], rel=1e-9)
            assert mine.penalties.keys() == all_of_them.penalties.keys()
            for name, values in mine.penalties.items():
                assert values[0] == pytest.approx(all_of_them.penalties[name][m], abs=1e-9)
        for mine, all_of_them in zip(alone.state.history, together.state.history, strict=False):
            assert mine["val_nll"][0] == pytest.approx(all_of_them["val_nll"][m], abs=1e-9)
            assert mine["val_accuracy"][0] == all_of_them["val_accuracy"][m]
    moved = together.model.adapters.values - make_trainer(**settings).model.adapters.values
    assert moved.abs().amax(dim=1).min() > 0.01


def test_members_of_the_early_stopping_case_stop_at_different_times(make_trainer, train):
    """Otherwise that case would prove nothing."""
    ends = train(make_trainer(**SETTINGS["early stopping"])).optimizer.num_steps
    assert len(set(ends)) > 1


# Early stopping


def test_a_stopped_member_keeps_every_bit_while_others_continue(make_trainer):
    """Stopped after step 2 with nonzero moments, a large rate and decay: a zero gradient would not be enough."""
    trainer = make_trainer(train={"lr": 0.05, "schedule": "constant"}, regularize={"weight_decay_b": 1.0})

    def stop(report, state):
        if report.step == 2:
            state.members[1].status = "stopped"

    trainer.callback.on_each_step = stop
    trainer.run(lambda: None)
    values = trainer.callback.values
    assert len(values) == trainer.num_steps == 6
    assert trainer.optimizer.first_moment[1].abs().max() > 0
    for before, after in itertools.pairwise(values[1:]):
        assert torch.equal(after[1], before[1])
        for m in (0, 2):
            assert not torch.equal(after[m], before[m])
    assert not torch.equal(values[0][1], values[1][1])
    assert trainer.optimizer.num_steps == [6, 2, 6]
    for report in trainer.callback.reports[2:]:
        assert report.loss[1] is None
        assert report.grad_norm[1] is None
        assert report.penalties["weight_decay_b"][1] is None
    assert [member.status for member in trainer.state.members] == ["finished", "stopped", "finished"]
    assert all(entry["val_nll"][1] is None for entry in trainer.state.history)


def test_stopping_one_member_changes_no_other(make_trainer, train):
    """Learning rates depend on the run's step, not on the remaining members."""
    runs = []
    for stops in (False, True):
        trainer = make_trainer(dropout=0.2)

        def stop(report, state, stops=stops):
            if stops and report.step == 2:
                state.members[0].status = "stopped"

        trainer.callback.on_each_step = stop
        runs.append(train(trainer).model.adapters.values)
    for m in (1, 2):
        assert_same_member(runs[1][m], runs[0][m])
    assert (runs[1][0] - runs[0][0]).abs().max() > 1e-3


NLLS = [[3.0, 1.0, 2.0], [2.5, 2.0, 1.5], [2.0, 3.0, 1.5], [1.0, 0.1, 1.7], [0.9, 0.1, 0.1], [0.8, 0.1, 0.1]]


def test_patience_and_best_copies_by_hand(make_trainer, script_validation):
    """Patience 2. Member 0 improves to the end, 1 is best at first, 2 at the second evaluation; ties do not count."""
    script_validation(NLLS)
    trainer = make_trainer(train={"epochs": 6, "patience": 2, "batch_size": 6, "lr": 0.05, "criterion": "nll"})
    trainer.run(lambda: None)
    members, values = trainer.state.members, trainer.callback.values
    assert trainer.steps_per_epoch == 2
    assert [member.status for member in members] == ["finished", "stopped", "stopped"]
    assert [member.best_step for member in members] == [12, 2, 4]
    assert [member.best_nll for member in members] == pytest.approx([0.8, 1.0, 1.5])
    assert trainer.optimizer.num_steps == [12, 6, 8]
    for m, step in enumerate([12, 2, 4]):
        assert torch.equal(trainer.best[m], values[step - 1][m])
        assert torch.equal(trainer.final_values()[m], values[step - 1][m])
    for m, step in enumerate([12, 6, 8]):
        assert torch.equal(trainer.model.adapters.values[m], values[step - 1][m])
        assert (m == 0) is torch.equal(trainer.best[m], trainer.model.adapters.values[m])


def test_without_patience_nobody_stops_and_last_is_kept_on_request(make_trainer, script_validation):
    script_validation(NLLS)
    trainer = make_trainer(train={"epochs": 6, "patience": 0, "batch_size": 6, "keep": "last", "criterion": "nll"})
    trainer.run(lambda: None)
    assert [member.status for member in trainer.state.members] == ["finished"] * 3
    assert [member.best_step for member in trainer.state.members] == [12, 8, 10]
    assert torch.equal(trainer.final_values(), trainer.callback.values[-1])
    assert not torch.equal(trainer.final_values()[1], trainer.best[1])


def test_a_run_ends_early_where_all_members_have_stopped(make_trainer, script_validation):
    script_validation([[1.0] * 3, [2.0] * 3])
    trainer = make_trainer(train={"epochs": 9, "patience": 1, "criterion": "nll"})
    trainer.run(lambda: None)
    assert trainer.state.step == 2 * trainer.steps_per_epoch
    assert [member.status for member in trainer.state.members] == ["stopped"] * 3


def test_a_member_without_a_finite_validation_nll_has_failed(make_trainer, script_validation):
    script_validation([[1.0, 1.0, 2.0], [0.5, math.nan, 1.0]])
    trainer = make_trainer()
    trainer.run(lambda: None)
    assert [member.status for member in trainer.state.members] == ["finished", "failed", "finished"]
    assert "nan" in trainer.state.members[1].reason
    assert trainer.state.members[1].best_step == trainer.steps_per_epoch
    assert trainer.state.members[1].failed_step == 2 * trainer.steps_per_epoch


# NaN


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize("when", ["at the start", "during the run"])
def test_a_nan_member_fails_and_others_equal_the_run_without_it(make_trainer, train, seed_as, bad, when):
    """Also packed first (member 0), with decay, KL, clipping and dropout."""
    settings = {"dropout": 0.2, "regularize": {"weight_decay_b": 1.0, "kl_beta": 0.3}, "train": {"clip_norm": 0.5}}
    trainer = make_trainer(**settings)
    poisoned_at = 0 if when == "at the start" else 2

    def poison(report, state):
        if report.step == poisoned_at:
            trainer.model.adapters.values[bad, 5] = math.nan

    trainer.callback.on_each_step = poison
    if poisoned_at == 0:
        trainer.model.adapters.values[bad, 5] = math.nan
    train(trainer)
    failed = trainer.state.members[bad]
    assert failed.status == "failed"
    assert "nan" in failed.reason
    assert failed.failed_step == poisoned_at + 1
    assert trainer.optimizer.num_steps[bad] == poisoned_at
    assert trainer.best[bad].isfinite().all() or poisoned_at == 0
    assert trainer.optimizer.first_moment.isfinite().all()
    for report in trainer.callback.reports[poisoned_at:]:
        assert report.loss[bad] is None
    others = [m for m in range(3) if m != bad]
    assert all(trainer.state.members[m].status == "finished" for m in others)
    seed_as(dict(enumerate(others)))
    without = train(make_trainer(members=2, **settings))
    for index, m in enumerate(others):
        assert_same_member(trainer.model.adapters.values[m], without.model.adapters.values[index])
        assert_same_member(trainer.best[m], without.best[index])
        assert trainer.state.members[m].best_nll == pytest.approx(without.state.members[index].best_nll, abs=1e-9)


def test_a_run_whose_members_all_fail_ends(make_trainer, train):
    trainer = make_trainer()
    trainer.model.adapters.values.fill_(math.nan)
    train(trainer)
    assert trainer.state.with_status("failed") == [0, 1, 2]
    assert trainer.state.step == 1
    assert trainer.optimizer.num_steps == [0, 0, 0]
