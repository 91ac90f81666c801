"""BatchEnsemble: shared and fast weights, their gradients, and equality with one LoRA if all fast weights are one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorchestra.errors import ConfigError
from lorchestra.methods import batch_ensemble, one_lora
from lorchestra.methods.batch_ensemble import Config, FastWeights, FastWeightsAdamW
from lorchestra.nn.adapters import StackedAdapters
from lorchestra.nn.optimizer import MemberAdamW


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_members_update_is_the_shared_one_times_its_fast_weights():
    adapters = StackedAdapters(3, 2, [("a", 7, 5), ("b", 4, 6)], dtype=torch.float64)
    weights = FastWeights(adapters)
    fast = 3 * (7 + 5 + 4 + 6)
    assert (weights.num_shared, weights.num_fast * 3) == (2 * (7 + 5 + 4 + 6), fast)
    theta = randn(weights.num_shared + fast)
    values = weights.expand(theta)
    start = weights.num_shared
    for m in range(3):
        for piece in adapters.slices:
            r, s = theta[start:][: piece.in_features], theta[start + piece.in_features :][: piece.out_features]
            start += piece.in_features + piece.out_features
            shared = adapters.view(theta[: weights.num_shared], piece, "B") @ adapters.view(
                theta[: weights.num_shared], piece, "A"
            )
            update = adapters.view(values[m], piece, "B") @ adapters.view(values[m], piece, "A")
            torch.testing.assert_close(update, shared * torch.outer(s, r), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("head_shape", [None, (3, 8)])
def test_gradients_of_shared_and_fast_weights_by_finite_differences(head_shape):
    """With a synthetic loss of the members' adapters, whose gradients are known."""
    adapters = StackedAdapters(3, 2, [("a", 7, 5), ("b", 4, 6)], head_shape=head_shape, dtype=torch.float64)
    weights = FastWeights(adapters)
    theta = randn(weights.num_shared + 3 * weights.num_fast)
    optimizer = FastWeightsAdamW(MemberAdamW(adapters.values, adapters.is_B, [0.0] * 3), weights, theta, 0.0, True)
    tilt = randn(*adapters.values.shape, seed=2)

    def loss(at):
        return (weights.expand(at) * tilt).sin().sum() / 3

    grad_MP = (adapters.values * tilt).cos() * tilt  # per member, as the trainer accumulates them
    gradient = optimizer.pull(grad_MP)
    expected = torch.zeros_like(theta)
    for q in range(len(theta)):
        step = torch.zeros_like(theta)
        step[q] = 1e-5
        expected[q] = (loss(theta + step) - loss(theta - step)) / 2e-5
    torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-8)
    optimizer.train_fast = False
    frozen = optimizer.pull(grad_MP)
    assert torch.equal(frozen[: weights.num_shared], gradient[: weights.num_shared])
    assert not frozen[weights.num_shared :].any()


def test_all_ones_is_one_lora(make_context):
    """With fast weights fixed at 1 and the same data order, the mean gradient is one LoRA's, as are clip and decay."""
    settings = {
        "train": {"keep": "last", "clip_norm": 0.05},
        "adapt": {"order": "same"},
        "regularize": {"weight_decay_b": 5.0},
    }
    context, test = make_context(dtype="float64", **settings)
    one = one_lora.fit(context, one_lora.Config()).predict(test, "test").log_probs_MEC[0]
    config = Config(init="normal", spread=0.0, train_fast=False)
    members = batch_ensemble.fit(context, config).predict(test, "test").log_probs_MEC
    np.testing.assert_allclose(members, np.broadcast_to(one, members.shape), rtol=0, atol=1e-6)


def test_fast_weights_are_trained_if_configured(make_context, monkeypatch):
    context, _ = make_context()
    made = []
    original = FastWeightsAdamW.__init__

    def init(self, plain, weights, theta, *args):
        made.append((self, weights, theta.clone()))
        original(self, plain, weights, theta, *args)

    monkeypatch.setattr(FastWeightsAdamW, "__init__", init)
    for train_fast in (True, False):
        batch_ensemble.fit(context, Config(train_fast=train_fast))
        optimizer, weights, start = made[-1]
        shared, fast = (optimizer.theta[0] - start).split([weights.num_shared, 3 * weights.num_fast])
        assert shared.any()
        assert fast.any() == train_fast
        assert set(start[weights.num_shared :].tolist()) == {-1.0, 1.0}


def test_stored_parameters(make_context):
    context, _ = make_context()
    cost = batch_ensemble.fit(context, Config()).cost
    one = one_lora.fit(context, one_lora.Config()).cost
    # two layers with q (32 to 32) and v (32 to 16)
    assert cost.parameters == one.parameters + 3 * 2 * (64 + 48)
    assert cost.tokens == 3 * one.tokens


def test_negative_spread_is_refused(make_context):
    context, _ = make_context()
    with pytest.raises(ConfigError, match=r"batch_ensemble\.spread: -1\.0"):
        batch_ensemble.fit(context, Config(spread=-1.0))
