"""The ensemble as a module: its gradients equal the trainer's, and its parameters are the adapters alone."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lorchestra.errors import ConfigError, TrainingError
from lorchestra.inference.predict import member_passes, predict_rows
from lorchestra.nn.packing import BASE
from lorchestra.training.module import EnsembleModule


@pytest.fixture
def make_module(tiny_ensemble):
    """Builds a module on a tiny base in float64, with only those parts of a pipeline that a pass needs."""

    def build(token_budget=60, model=None, **adapt):
        model = model or tiny_ensemble(spread=0.1, **adapt)
        return EnsembleModule(SimpleNamespace(model=model, token_budget=token_budget))

    return build


@pytest.mark.parametrize("kind", ["letters", "texts", "trees"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"layers": "last:1"}, {"dropout": 0.3}],
    ids=["all layers", "trunk", "dropout"],
)
def test_gradients_equal_the_trainers_for_one_batch(make_trainer, make_module, kind, settings):
    """The trainer's step without clipping against a loss written by hand, the mean over each member's rows."""
    trainer = make_trainer(train={"clip_norm": 0.0}, kind=kind, **settings)
    with torch.no_grad():  # away from B = 0, where A has no gradient
        noise = torch.randn(trainer.model.adapters.values.shape, generator=torch.Generator().manual_seed(3))
        trainer.model.adapters.values.add_(0.1 * noise)
    module = make_module(model=trainer.model)
    items = trainer.step_items(0)
    trainer.prepare()
    values = trainer.model.adapters.values.clone()
    assert trainer.step()
    expected = trainer.model.adapters.grad.clone()
    with torch.no_grad():
        trainer.model.adapters.values.copy_(values)
    module.zero_grad(set_to_none=False)
    # the trainer derives dropout seeds from seed, step and row, a module from its argument: use the same seeds
    seeds = {(item.member, item.example.row): item.dropout_seed for item in items}
    module_seed = None if settings.get("dropout") is None else 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lorchestra.training.module.derive_seed", lambda seed, m, row: seeds[m, row])
        log_probs = module.log_probs([(item.member, item.example) for item in items], module_seed)
    answers = torch.tensor([item.example.answer for item in items])
    per_row = -log_probs[torch.arange(len(items)), answers]
    members = torch.tensor([item.member for item in items])
    sum(per_row[members == m].mean() for m in range(3)).backward()
    grad = trainer.model.adapters.grad
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(grad, expected, rtol=0, atol=1e-12)


def test_forward_equals_predict_rows(make_module, make_rows):
    module, rows = make_module(), make_rows(9, "texts")
    expected = predict_rows(module.pipeline.model, rows, member_passes(range(3)), 1000)
    log_probs = module(rows)
    assert log_probs.requires_grad
    torch.testing.assert_close(log_probs.detach(), torch.from_numpy(expected), rtol=0, atol=1e-12)
    some = module(rows[2:4], members=[2, BASE])
    torch.testing.assert_close(some[0].detach(), log_probs[2, 2:4, : some.shape[2]].detach(), rtol=0, atol=1e-12)
    base = predict_rows(module.pipeline.model, rows[2:4], member_passes([BASE]), 1000)
    torch.testing.assert_close(some[1].detach(), torch.from_numpy(base[0]), rtol=0, atol=1e-12)


def test_the_mixture_averages_probabilities_and_its_gradient_is_finite(make_module, make_rows):
    module, rows = make_module(), make_rows(6)  # two to four choices: some are absent
    mixture = module.mixture(rows)
    expected = module(rows).exp().mean(dim=0)
    torch.testing.assert_close(mixture.exp(), expected, rtol=0, atol=1e-12)
    assert mixture.isneginf().any()
    torch.testing.assert_close(mixture.exp().sum(dim=1), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-12)
    answers = torch.tensor([row.answer for row in rows])
    (-mixture[torch.arange(6), answers]).sum().backward()
    grads = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
    assert grads.isfinite().all()
    assert grads.abs().max() > 0


def test_parameters_are_the_adapters_and_nothing_else(make_module):
    module = make_module()
    adapters = module.pipeline.model.adapters
    names = dict(module.named_parameters())
    assert len(names) == 3 * 2 * len(adapters.slices)
    assert "members.2.model.layers.1.self_attn.v_proj.lora_B.weight" in names
    assert sum(parameter.numel() for parameter in names.values()) == adapters.values.numel()
    assert all(parameter.requires_grad for parameter in names.values())
    parameters = module.member_parameters(1)
    assert sum(parameter.numel() for parameter in parameters) == adapters.values.shape[1]
    with torch.no_grad():
        for parameter in parameters:
            parameter.fill_(7.0)
    assert (adapters.values[1] == 7).all()
    assert not (adapters.values[0] == 7).any()


def test_a_state_dict_can_be_saved_and_loaded(make_module, make_rows):
    module, other = make_module(), make_module(seed=5)
    rows = make_rows(4)
    assert not torch.equal(module(rows), other(rows))
    other.load_state_dict(module.state_dict())
    assert torch.equal(module(rows), other(rows))


def test_a_custom_training_loop_learns(make_module, make_rows):
    module, rows = make_module(), make_rows(8)
    answers = torch.tensor([row.answer for row in rows])
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.02)

    def losses():
        return -module(rows)[:, torch.arange(8), answers].mean(dim=1)

    before = losses().detach()
    for _ in range(30):
        optimizer.zero_grad()
        losses().sum().backward()
        optimizer.step()
    assert (losses() < 0.5 * before).all()


def test_micro_batches_change_nothing(make_module, make_rows):
    """Rows longer than the budget, and all rows in one pass, give the same log-probabilities in the same order."""
    rows = make_rows(7, "texts")
    one = make_module(token_budget=100_000)
    many = make_module(token_budget=1, model=one.pipeline.model)
    pairs = [(m, row) for row in rows for m in (2, 0, 1)]  # not sorted by member
    torch.testing.assert_close(one.log_probs(pairs), many.log_probs(pairs), rtol=0, atol=1e-12)
    torch.testing.assert_close(one.log_probs(pairs).unflatten(0, (7, 3))[:, 0], one(rows)[2], rtol=0, atol=1e-12)


def test_dropout_is_on_where_a_seed_is_given(make_module, make_rows):
    module, rows = make_module(dropout=0.5), make_rows(5)
    plain = module(rows)
    assert torch.equal(plain, module(rows))
    assert torch.equal(module(rows, dropout_seed=1), module(rows, dropout_seed=1))
    assert not torch.equal(module(rows, dropout_seed=1), module(rows, dropout_seed=2))
    assert not torch.equal(module(rows, dropout_seed=1), plain)
    module.eval()
    assert not torch.equal(module(rows, dropout_seed=1), plain)


def test_members_out_of_bounds_are_reported_and_not_saved(make_module, tmp_path):
    module = make_module()
    assert module.failed_members() == {}
    with torch.no_grad():
        module.member_parameters(1)[0][0, 0] = 1e9
        module.member_parameters(2)[0][0, 0] = math.nan
    assert module.failed_members() == {
        1: "largest parameter 1e+09, bound 2.6e+06",
        2: "largest parameter nan, bound 2.6e+06",
    }
    with pytest.raises(
        TrainingError, match=r"member 1 diverged: largest parameter 1e\+09.*pretrained\(\.\.\., \[0\]\)"
    ):
        module.save_pretrained(tmp_path / "members")
    assert not (tmp_path / "members").exists()


def test_no_rows_give_an_empty_tensor(make_module):
    assert make_module()([]).shape == (3, 0, 0)


def test_the_adapters_cannot_leave_their_base(make_module):
    module = make_module()
    assert module.to("cpu") is module
    with pytest.raises(ConfigError, match=r"cannot be moved to cpu, torch\.float32; set base\.device and base\.dtype"):
        module.float()
    with pytest.raises(ConfigError, match="cannot be moved to meta"):
        nn.Sequential(module).to("meta")
    assert math.isfinite(next(module.parameters()).sum().item())
