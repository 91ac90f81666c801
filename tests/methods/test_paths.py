"""Methods with a single training run: snapshots, members that share layers, and the equal-compute controls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from named_methods import fit_method

from lorchestra.errors import ConfigError
from lorchestra.methods import high_rank, last_layer, lora_ensemble, one_lora, snapshot, training


@pytest.fixture
def last_training(monkeypatch):
    """Returns a function that gives the last training that was started."""
    last = {}
    original = training.start_training

    def start(*args, **options):
        last["training"] = original(*args, **options)
        return last["training"]

    for module in (training, snapshot, last_layer):
        monkeypatch.setattr(module, "start_training", start)
    return lambda: last["training"]


def test_snapshots_are_taken_at_the_ends_of_the_cycles(make_context, last_training):
    context, _ = make_context(train={"epochs": 3})
    fitted = snapshot.fit(context, snapshot.Config())
    trained = last_training()
    trainer = trained.trainer
    assert trainer.state.step == trainer.num_steps
    assert trainer.schedules[0].ends[-1] == trainer.num_steps
    assert len({row.numpy().tobytes() for row in trained.values}) == 3
    one = one_lora.fit(context, one_lora.Config()).cost
    assert (fitted.cost.tokens, fitted.cost.fit_base_passes) == (one.tokens, one.fit_base_passes)
    assert fitted.cost.parameters == 3 * one.parameters


def test_single_snapshot_is_one_lora_on_a_cosine_schedule(make_context):
    settings = {"train": {"schedule": "cosine", "warmup": 0.0, "keep": "last"}, "adapt": {"members": 1}}
    context, test = make_context(**settings)
    one = one_lora.fit(context, one_lora.Config()).predict(test, "test").log_probs_MEC
    np.testing.assert_array_equal(snapshot.fit(context, snapshot.Config()).predict(test, "test").log_probs_MEC, one)


def test_members_of_the_last_layer_ensemble_share_all_lower_layers(make_context, last_training):
    context, _ = make_context(adapt={"layers": "all"}, regularize={"weight_decay_b": 1.0})
    fitted = last_layer.fit(context, last_layer.Config())
    trained = last_training()
    columns = training.last_layer_columns(trained.pipeline.model)
    names = {piece.name for piece in trained.pipeline.model.adapters.slices if columns[piece.start]}
    assert names == {"model.layers.2.self_attn.q_proj", "model.layers.2.self_attn.v_proj"}
    values = trained.values
    assert torch.equal(values[:, ~columns], values[:1, ~columns].expand(3, -1))
    assert len({row.numpy().tobytes() for row in values[:, columns]}) == 3
    num_columns = values.shape[1]
    assert fitted.cost.parameters == num_columns + 2 * int(columns.sum())


def test_last_layer_members_with_the_same_init_and_order_are_one_lora(make_context):
    """Members that do not differ have the mean gradient."""
    settings = {"train": {"keep": "last"}, "adapt": {"same_init": True, "order": "same"}}
    context, test = make_context(dtype="float64", **settings)
    one = one_lora.fit(context, one_lora.Config()).predict(test, "test").log_probs_MEC[0]
    members = last_layer.fit(context, last_layer.Config()).predict(test, "test").log_probs_MEC
    np.testing.assert_allclose(members, np.broadcast_to(one, members.shape), rtol=0, atol=1e-6)


def test_best_epoch_is_kept_for_all_members_together(make_context, last_training):
    context, _ = make_context("questions", train={"epochs": 4, "lr": 0.05})
    last_layer.fit(context, last_layer.Config())
    best = last_training()
    rows = context.val
    log_probs = best.pipeline.predict_members(rows, "val").log_probs_MEC
    nll = -log_probs[:, np.arange(len(rows)), [row.answer for row in rows]].mean()
    keep_last, _ = make_context("questions", train={"epochs": 4, "lr": 0.05, "keep": "last"})
    last_layer.fit(keep_last, last_layer.Config())
    log_probs = last_training().pipeline.predict_members(rows, "val").log_probs_MEC
    assert nll <= -log_probs[:, np.arange(len(rows)), [row.answer for row in rows]].mean()
    # random answers cannot be learned: later epochs only overfit
    assert best.values.ne(last_training().values).any()


def test_controls_cost_what_the_ensemble_costs(make_context):
    context, _ = make_context()
    ensemble = lora_ensemble.fit(context, lora_ensemble.Config()).cost
    long = fit_method(context, "long_training").cost
    assert long.tokens == ensemble.tokens
    assert long.parameters * 3 == ensemble.parameters
    assert fit_method(context, "high_rank").cost.parameters == ensemble.parameters
    assert fit_method(context, "one_lora").cost.tokens * 3 == ensemble.tokens


def test_setting_kept_at_the_higher_rank(make_context, monkeypatch):
    context, _ = make_context()
    seen = []
    original = high_rank.train_members

    def train_members(context, meter, config):
        seen.append(config.adapt)
        return original(context, meter, config)

    monkeypatch.setattr(high_rank, "train_members", train_members)
    for keep in ("lora_alpha", "scaling"):
        high_rank.fit(context, high_rank.Config(keep=keep))
    adapt = context.config.adapt
    assert [(a.r, a.members) for a in seen] == [(6, 1), (6, 1)]
    assert seen[0].lora_alpha == adapt.lora_alpha
    assert seen[1].scaling == pytest.approx(adapt.scaling)


def test_refusals(make_context):
    context, _ = make_context(adapt={"layers": "last:1"})
    with pytest.raises(ConfigError, match=r"last_layer: adapt\.layers 'last:1' is one layer"):
        last_layer.fit(context, last_layer.Config())
    short, _ = make_context(adapt={"members": 30})
    with pytest.raises(ConfigError, match="snapshot: 12 optimizer steps are too few for 30 snapshots"):
        snapshot.fit(short, snapshot.Config())
