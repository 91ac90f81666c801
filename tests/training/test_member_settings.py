"""Members of one packed pass may differ in every setting, and each equals its training alone."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from lorchestra.config.run import RegularizeConfig
from lorchestra.errors import ConfigError
from lorchestra.models.init import member_seed
from lorchestra.models.peft_files import adapter_tensors, load_member, save_members
from lorchestra.training.members import all_but_one_fold, bootstrap
from lorchestra.training.sampler import MemberSampler


def with_settings(member, adapter=None, **fields):
    """A member's settings with some changed; those of its adapter are a dictionary."""
    return dataclasses.replace(member, adapter=dataclasses.replace(member.adapter, **(adapter or {})), **fields)


def parameters(trainer, m):
    """The member's last and best parameters, cut to its rank."""
    rank = trainer.settings[m].adapter.r
    both = {"last": trainer.model.adapters.values[m], "best": trainer.best[m]}
    return {
        (which, name): tensor
        for which, values in both.items()
        for name, tensor in adapter_tensors(trainer.model.adapters, values, rank).items()
    }


def assert_same_member(together, m, alone, index=0):
    actual, expected = parameters(together, m), parameters(alone, index)
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-9)
    mine, its = together.state.members[m], alone.state.members[index]
    assert (mine.status, mine.best_step, mine.waited) == (its.status, its.best_step, its.waited)
    assert mine.best_nll == pytest.approx(its.best_nll, abs=1e-9)
    for ours, theirs in zip(together.callback.reports, alone.callback.reports, strict=False):
        assert ours.loss[m] == pytest.approx(theirs.loss[index], abs=1e-9)
        assert ours.lr[m] == theirs.lr[index]
        assert ours.grad_norm[m] == pytest.approx(theirs.grad_norm[index], rel=1e-8)
        for name, values in theirs.penalties.items():
            assert ours.penalties[name][m] == pytest.approx(values[index], abs=1e-9)
        assert all(ours.penalties[name][m] in (0.0, None) for name in ours.penalties.keys() - theirs.penalties.keys())


SETTINGS = {
    "lr": {"lr": 0.03},
    "schedule": {"schedule": "cosine"},
    "warmup": {"warmup": 0.5},
    "clip_norm": {"clip_norm": 0.02},
    "patience": {"patience": 1, "lr": 0.2},
    "order": {"order_seed": 77},
    "init": {"adapter": {"seed": 77}},
    "dropout": {"adapter": {"dropout": 0.3}},
    "scaling": {"adapter": {"scaling": 3.0}},
    "lower rank": {"adapter": {"r": 1, "scaling": 32.0}},
    "higher rank": {"adapter": {"r": 5, "scaling": 32 / 5}},
    "gaussian A": {"adapter": {"init_lora_weights": "gaussian"}},
    "orthogonal A": {"adapter": {"init_lora_weights": "orthogonal", "r": 4}},
    "PiSSA": {"adapter": {"init_lora_weights": "pissa", "r": 4}},
    "PiSSA of another rank": {"adapter": {"init_lora_weights": "pissa", "r": 6, "scaling": 5.0}},
    "larger A": {"adapter": {"init_scale": 2.5}},
    "drawn B": {"adapter": {"init_std_b": 0.1}},
    "decay": {"regularize": RegularizeConfig(weight_decay_b=20.0)},
    "KL": {"regularize": RegularizeConfig(kl_beta=0.5)},
    "reverse KL": {"regularize": RegularizeConfig(kl_beta=2.0, kl_direction="reverse")},
    "decay of A": {"regularize": RegularizeConfig(weight_decay_a=20.0)},
    "decay of both": {"regularize": RegularizeConfig(weight_decay_a=5.0, weight_decay_b=10.0)},
    "decay of the product": {"regularize": RegularizeConfig(weight_decay_ba=0.3)},
    "KL over the vocabulary": {"regularize": RegularizeConfig(kl_beta=0.5, kl_over="vocabulary")},
    "reverse KL over the vocabulary": {
        "regularize": RegularizeConfig(kl_beta=0.5, kl_over="vocabulary", kl_direction="reverse")
    },
    "label smoothing": {"regularize": RegularizeConfig(label_smoothing=0.2)},
    "bootstrap": {"rows": bootstrap(12, 5)},
}
RUN = {"train": {"epochs": 3, "batch_size": 5}, "kind": "texts"}


@pytest.mark.parametrize("fields", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_member_with_another_setting_equals_its_training_alone(make_trainer, make_settings, train, fields):
    """So does the other member, which has the run's settings; and the setting has an effect."""
    plain = make_settings(**{"train": RUN["train"]})
    changed = with_settings(plain[1], **fields)
    together = train(make_trainer(settings=(plain[0], changed), **RUN))
    assert_same_member(together, 0, train(make_trainer(settings=plain[:1], **RUN)))
    assert_same_member(together, 1, train(make_trainer(settings=(changed,), **RUN)))
    without = train(make_trainer(settings=plain[1:2], **RUN))
    moved = [
        abs(a.loss[1] - b.loss[0]) for a, b in zip(together.callback.reports, without.callback.reports, strict=False)
    ]
    assert max(moved) > 1e-4 or together.optimizer.num_steps[1] != without.optimizer.num_steps[0]


def test_a_mixture_of_all_settings_equals_each_member_alone(make_trainer, make_settings, train):
    """Also with the trunk, row weights, and other token budgets."""
    run = {**RUN, "weights": [0.25 * (1 + row % 5) for row in range(12)], "depth": 3, "layers": "last:2"}
    chosen = [fields for name, fields in SETTINGS.items() if name != "patience"]
    plain = make_settings(members=len(chosen), train=RUN["train"])
    settings = [with_settings(member, **fields) for member, fields in zip(plain, chosen, strict=True)]
    settings[0] = with_settings(
        settings[0],
        {"dropout": 0.2, "init_std_b": 0.05, "r": 3},
        clip_norm=0.3,
        regularize=RegularizeConfig(
            weight_decay_a=1.0, weight_decay_b=5.0, weight_decay_ba=0.1, kl_beta=0.4, label_smoothing=0.1
        ),
        rows=bootstrap(12, 6),
        patience=1,
    )
    together = train(make_trainer(settings=settings, **run))
    for m, member in enumerate(settings):
        budget = {"train": RUN["train"] | {"token_budget": (30, 100)[m % 2]}}
        assert_same_member(together, m, train(make_trainer(settings=(member,), **run | budget)))


def test_the_patience_case_stops_its_member_early(make_trainer, make_settings, train):
    """Otherwise that case would prove nothing."""
    plain = make_settings(train=RUN["train"])
    settings = (plain[0], with_settings(plain[1], **SETTINGS["patience"]))
    together = train(make_trainer(settings=settings, **RUN | {"train": {"epochs": 8, "batch_size": 5}}))
    assert [member.status for member in together.state.members] == ["finished", "stopped"]
    assert together.optimizer.num_steps[1] < together.optimizer.num_steps[0]


def test_two_ensembles_in_one_pass_equal_each_alone(make_trainer, make_settings, train):
    """With different run seeds, rates and decays; members with the same index have different draws."""
    groups = [
        {"train": {"seed": 0, "lr": 0.01}, "regularize": {"weight_decay_b": 3.0}},
        {"train": {"seed": 9, "lr": 0.03}, "regularize": {"weight_decay_b": 20.0}},
    ]
    settings = [member for group in groups for member in make_settings(members=2, **group)]
    together = train(make_trainer(settings=settings))
    for g, group in enumerate(groups):
        alone = train(make_trainer(members=2, **group))
        for m in range(2):
            assert_same_member(together, 2 * g + m, alone, m)


def test_default_settings_are_those_of_the_run(make_trainer, make_settings):
    run = {"train": {"seed": 4, "clip_norm": 0.3, "patience": 2}, "regularize": {"kl_beta": 0.1}, "dropout": 0.1}
    trainer = make_trainer(**run)
    assert trainer.settings == make_settings(**run)
    assert [member.order_seed for member in trainer.settings] == [member_seed(4, m) for m in range(3)]
    same = make_settings(same_init=True, order="same")
    for field in (lambda member: member.order_seed, lambda member: member.adapter.seed):
        assert {field(member) for member in same} == {member_seed(0, 0)}
    assert len({member.dropout_seed for member in same}) == 3


def test_a_members_settings_do_not_change_the_start_or_order_of_others(make_trainer, make_settings):
    """Bit-equal for every changed setting; with a higher rank, the others are padded and compared up to their rank."""

    def start_and_order(settings):
        trainer = make_trainer(settings=settings)
        orders = [[(i.member, i.example.row) for i in trainer.step_items(step)] for step in range(trainer.num_steps)]
        return trainer, orders

    plain = make_settings()
    reference, orders = start_and_order(plain)
    for fields in SETTINGS.values():
        trainer, changed = start_and_order((plain[0], with_settings(plain[1], **fields), plain[2]))
        for m in (0, 2):
            actual, expected = parameters(trainer, m), parameters(reference, m)
            assert all(torch.equal(actual[name], expected[name]) for name in expected)
            assert [[row for row in step if row[0] == m] for step in changed] == [
                [row for row in step if row[0] == m] for step in orders
            ]


# Rank by padding


@pytest.mark.parametrize("how", [True, "gaussian", "orthogonal"])
def test_padding_is_zero_and_remains_zero(make_trainer, make_settings, train, how):
    regularize = {"weight_decay_a": 1.0, "weight_decay_b": 2.0, "weight_decay_ba": 0.1, "kl_beta": 0.3}
    plain = make_settings(regularize=regularize)
    adapter_settings = [{"r": r, "init_lora_weights": how, "dropout": 0.1, "init_scale": 2.0} for r in (2, 6, 4)]
    settings = [with_settings(member, adapter) for member, adapter in zip(plain, adapter_settings, strict=True)]
    trainer = make_trainer(settings=settings)
    start = trainer.model.adapters.values.clone()
    train(trainer)
    adapters = trainer.model.adapters
    assert (adapters.values - start).abs().max() > 0.01
    for values in (start, adapters.values, trainer.best):
        for piece in adapters.slices:
            for m, member in enumerate(settings):
                r = member.adapter.r
                A, B = (adapters.view(values[m], piece, which) for which in ("A", "B"))
                assert A.shape[0] == B.shape[1] == 6
                assert not A[r:].any()
                assert not B[:, r:].any()
                assert A[:r].all()


def test_each_member_is_saved_with_its_rank_and_scaling(make_trainer, make_settings, train, tmp_path):
    """It is read back unchanged, and some of the members are saved as if they were all."""
    plain = make_settings(lora_alpha=4.0)
    settings = [
        with_settings(member, {"r": r, "scaling": s})
        for member, r, s in zip(plain, (2, 4, 3), (2, 0.5, 3), strict=True)
    ]
    trainer = train(make_trainer(settings=settings, lora_alpha=4.0, train={"keep": "last"}))
    values = trainer.final_values()
    save_members(tmp_path, trainer.model, values, "base")
    for m, (r, alpha) in enumerate([(2, 4), (4, 2), (3, 9)]):
        config = json.loads((tmp_path / f"member_{m:02d}/adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (r, alpha)
    again = make_trainer(settings=settings, lora_alpha=4.0).model
    for m, member in enumerate(settings):
        load_member(again.adapters, m, tmp_path / f"member_{m:02d}", rank=member.adapter.r)
    assert torch.equal(again.adapters.values, values)

    (tmp_path / "part").mkdir()
    written = save_members(tmp_path / "part", trainer.model, values, "base", members=[2, 0])
    assert [files["path"] for files in written] == ["part/member_00", "part/member_01"]
    for index, m in enumerate([2, 0]):
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            part, whole = (tmp_path / f"part/member_{index:02d}" / name), (tmp_path / f"member_{m:02d}" / name)
            assert part.read_bytes() == whole.read_bytes()


def test_members_with_another_configuration_are_saved_as_a_run_with_it(make_trainer, make_settings, tmp_path):
    """The same bytes as a run with that configuration alone, including PEFT's fields for scaling."""
    ones = [{"lora_alpha": 4.0}, {"r": 3, "lora_alpha": 5.0, "use_rslora": True, "dropout": 0.1}]
    settings = [member for adapt in ones for member in make_settings(members=2, **adapt)]
    together = make_trainer(settings=settings, **ones[0]).model
    for index, adapt in enumerate(ones):
        alone = make_trainer(members=2, **adapt).model
        folders = [tmp_path / f"{index}{name}" for name in "ab"]
        for folder in folders:
            folder.mkdir()
        part = [2 * index, 2 * index + 1]
        save_members(folders[0], together, together.adapters.values, "base", part, alone.adapt)
        save_members(folders[1], alone, alone.adapters.values, "base")
        for path in folders[1].glob("*/*"):
            assert (folders[0] / path.relative_to(folders[1])).read_bytes() == path.read_bytes()


# Which rows a member sees


def test_a_bootstrap_is_a_function_of_its_names():
    drawn = bootstrap(1000, 3, "a")
    assert drawn == bootstrap(1000, 3, "a")
    assert drawn != bootstrap(1000, 3, "b")
    assert len(drawn) == 1000
    assert set(drawn) <= set(range(1000))
    assert len(set(drawn)) == pytest.approx(1000 * (1 - 1 / math.e), abs=4.5 * 0.31 * math.sqrt(1000))


@pytest.mark.parametrize(("num_rows", "num_folds"), [(12, 3), (11, 3), (5, 5), (100, 7)])
def test_folds_are_disjoint_and_equally_large(num_rows, num_folds):
    """The remaining rows are in no fold."""
    every = set(range(num_rows))
    kept = [all_but_one_fold([1] * num_rows, fold, num_folds, 3) for fold in range(num_folds)]
    left_out = [every - set(rows) for rows in kept]
    assert all(list(rows) == sorted(set(rows)) for rows in kept)
    assert [len(fold) for fold in left_out] == [num_rows // num_folds] * num_folds
    assert len(set.union(*left_out)) == num_rows // num_folds * num_folds
    assert all_but_one_fold([1] * num_rows, 0, num_folds, 3) == kept[0]
    if num_rows == 100:
        assert all_but_one_fold([1] * num_rows, 0, num_folds, 4) != kept[0]


def test_rows_of_a_unit_are_in_one_fold():
    sizes = [1, 3, 2, 1, 4, 2, 2, 1]
    ends = np.cumsum(sizes)
    units = [set(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]
    left_out = [set(range(16)) - set(all_but_one_fold(sizes, fold, 4, 0)) for fold in range(4)]
    assert set.union(*left_out) == set(range(16))
    for rows in left_out:
        assert sum(unit <= rows for unit in units) == 2
        assert all(unit <= rows or not unit & rows for unit in units)


def test_fewer_rows_than_folds_are_refused(make_settings):
    with pytest.raises(ConfigError, match=r"adapt\.order: folds needs a training row for each of 3 members .* are 2;"):
        make_settings(order="folds", num_rows=2)


def test_a_member_sees_its_rows_once_per_epoch_including_repeats(make_trainer, make_settings):
    plain = make_settings()
    rows = (0, 0, 0, 0, 3, 3, 5, 6, 7, 8, 9, 11)
    trainer = make_trainer(settings=(plain[0], with_settings(plain[1], {"dropout": 0.2}, rows=rows)))
    for epoch in range(2):
        steps = range(epoch * trainer.steps_per_epoch, (epoch + 1) * trainer.steps_per_epoch)
        items = [item for step in steps for item in trainer.step_items(step)]
        assert sorted(item.example.row for item in items if item.member == 1) == list(rows)
        assert sorted(item.example.row for item in items if item.member == 0) == list(range(12))
    for step in range(trainer.num_steps):  # a row that occurs twice in a step has two masks
        seeds = [item.dropout_seed for item in trainer.step_items(step)]
        assert len(set(seeds)) == len(seeds)


def test_a_repeated_row_counts_as_often_as_it_occurs(make_trainer, make_settings):
    """Two rows, one of them three times: the step's loss is 3/4 of that row's and 1/4 of the other's."""
    repeated = with_settings(make_settings()[0], rows=(4, 4, 4, 7))
    once = [with_settings(repeated, rows=(row,) * 4) for row in (4, 7)]
    losses = {}
    for name, settings in {"both": (repeated,), "each": once}.items():
        trainer = make_trainer(settings=settings, spread=0.0, train={"batch_size": 4})
        trainer.step()
        losses[name] = trainer.callback.reports[0].loss
    assert losses["both"][0] == pytest.approx(0.75 * losses["each"][0] + 0.25 * losses["each"][1], rel=1e-12)


# Refusals


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (r"member 1: train\.lr: 0\.0", {"lr": 0.0}),
        (r"member 1: train\.warmup: 1\.0", {"warmup": 1.0}),
        (r"member 1: train\.patience: -1", {"patience": -1}),
        (r"member 1: train\.clip_norm: nan", {"clip_norm": math.nan}),
        (r"member 1: regularize\.kl_beta: -1", {"regularize": RegularizeConfig(kl_beta=-1.0)}),
        (
            r"member 1: .*0\.5 \* 3 = 1\.5 must be below 1",
            {"lr": 0.5, "regularize": RegularizeConfig(weight_decay_b=3.0)},
        ),
        (r"member 1: adapt\.r: 0", {"adapter": {"r": 0}}),
        (r"member 1: adapt\.dropout: 1\.0", {"adapter": {"dropout": 1.0}}),
        (r"member 1: scaling: inf", {"adapter": {"scaling": math.inf}}),
        (r"member 1: adapt\.init_scale: 0\.0", {"adapter": {"init_scale": 0.0}}),
        (r"member 1: adapt\.init_std_b: -0\.1", {"adapter": {"init_std_b": -0.1}}),
        (
            r"member 1: adapt\.init_std_b: 0\.1, but ortho",
            {"adapter": {"init_std_b": 0.1, "init_lora_weights": "orthogonal"}},
        ),
        (r"member 1: .*orthogonal needs an even rank", {"adapter": {"r": 3, "init_lora_weights": "orthogonal"}}),
        (r"member 1: rows: 12 is not the index of one of the 12 training rows", {"rows": (0, 12, *range(10))}),
        (r"rows: .* these have 1, 3; give each the same number", {"rows": (0, 1)}),
    ],
)
def test_a_members_settings_out_of_range_are_refused_with_its_number(make_trainer, make_settings, message, fields):
    plain = make_settings()
    with pytest.raises(ConfigError, match=message):
        make_trainer(settings=(plain[0], with_settings(plain[1], **fields)))


def test_members_without_rows_are_refused(make_settings, make_rows):
    with pytest.raises(ConfigError, match=r"rows: .* have 0"):
        MemberSampler([with_settings(member, rows=()) for member in make_settings()], make_rows(12), 4)


def test_settings_of_other_adapters_than_the_models_are_refused(make_trainer, make_settings):
    trainer = make_trainer()
    other = make_settings(r=3)
    with pytest.raises(ValueError, match="adapters"):
        type(trainer)(trainer.model, trainer.rows, trainer.config, other, trainer.callback)
