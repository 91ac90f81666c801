"""Passes of the base: known answers."""

from __future__ import annotations

from lorchestra.planning.cost import prediction_base_passes, training_base_passes


def test_layers_below_the_adapters_count_once(tiny_ensemble):
    assert prediction_base_passes(tiny_ensemble(depth=4, layers="all"), 5) == 5
    assert prediction_base_passes(tiny_ensemble(depth=4, layers="last:1"), 5) == 0.75 + 5 * 0.25
    assert prediction_base_passes(tiny_ensemble(depth=4, layers="last:3"), 1) == 1


def test_passes_of_a_training(make_trainer, train):
    assert training_base_passes(train(make_trainer())) == 3 * 2  # members, epochs
    assert training_base_passes(train(make_trainer(layers="last:1"))) == 0.5 + 3 * 2 * 0.5
    assert training_base_passes(train(make_trainer(layers="last:1", regularize={"kl_beta": 0.1}))) == 0.5 + 7 * 0.5
