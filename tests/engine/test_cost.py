"""Passes of the base and memory: known answers."""

from __future__ import annotations

import sys

import pytest
import torch

from lorchestra.engine.cost import peak_bytes, prediction_base_passes, reset_peak_bytes, training_base_passes


def test_layers_below_the_adapters_count_once(tiny_ensemble):
    assert prediction_base_passes(tiny_ensemble(depth=4, layers="all"), 5) == 5
    assert prediction_base_passes(tiny_ensemble(depth=4, layers="last:1"), 5) == 0.75 + 5 * 0.25
    assert prediction_base_passes(tiny_ensemble(depth=4, layers="last:3"), 1) == 1


def test_passes_of_a_training(make_trainer, train):
    assert training_base_passes(train(make_trainer())) == 3 * 2  # members, epochs
    assert training_base_passes(train(make_trainer(layers="last:1"))) == 0.5 + 3 * 2 * 0.5
    assert training_base_passes(train(make_trainer(layers="last:1", regularize={"kl_beta": 0.1}))) == 0.5 + 7 * 0.5


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_initialized(), reason="resident memory on Linux")
def test_the_peak_can_be_forgotten():
    block = torch.ones(100_000_000)  # 400 MB
    high = peak_bytes()
    del block
    reset_peak_bytes()
    assert peak_bytes() < high - 300e6
