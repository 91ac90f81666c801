"""The search of the learning rate and the epochs: its grids, its lengths, its choice."""

from __future__ import annotations

import math

import pytest

from lorchestra.training.search import (
    best_steps,
    chosen_rate,
    epochs_of,
    expected_epochs,
    expected_steps,
    first_rates,
    further_rates,
    longest,
    trial_steps,
)


def test_rates_of_wider_bases_are_smaller_in_proportion():
    assert first_rates(576, math.inf) == (1e-3, 2e-3, 4e-3, 8e-3)
    assert first_rates(64, math.inf) == first_rates(576, math.inf)
    assert first_rates(5760, math.inf) == (1e-4, 2e-4, 4e-4, 8e-4)


def test_rates_that_a_decay_refuses_are_left_out():
    assert first_rates(576, 1 / 300) == (1e-3, 2e-3)
    (only,) = first_rates(576, 1e-5)
    assert 0 < only < 1e-5


@pytest.mark.parametrize(
    ("nlls", "further"),
    [
        ({1e-3: 3.0, 2e-3: 1.0, 4e-3: 2.0}, ()),
        ({1e-3: 3.0, 2e-3: 2.0, 4e-3: 1.0}, (8e-3, 1.6e-2)),
        ({1e-3: 1.0, 2e-3: 2.0, 4e-3: 3.0}, (2.5e-4, 5e-4)),
        ({1e-3: math.inf, 2e-3: math.inf}, (6.3e-5, 2.5e-4)),
        ({1e-3: 2.0, 0.4: 1.0}, ()),
    ],
)
def test_the_grid_is_extended_at_its_best_edge(nlls, further):
    assert further_rates(nlls, math.inf) == further


def test_the_grid_is_not_extended_to_refused_rates():
    assert further_rates({1e-3: 2.0, 2e-3: 1.0}, below=3e-3) == ()


def test_half_of_the_best_rate_is_chosen():
    assert chosen_rate({8e-3: math.inf, 4e-3: 0.5, 2e-3: 0.52}, is_longer=True) == 2e-3
    assert chosen_rate({4e-3: 0.5, 2e-3: 0.5, 1e-3: 0.6}, is_longer=True) == 1e-3
    assert chosen_rate({4e-3: 0.5, 2e-3: 0.52}, is_longer=False) == 4e-3  # the training is what the candidate was


@pytest.mark.parametrize("per_epoch", [1, 3, 19, 20, 38, 50, 100, 125, 500, 5000])
def test_trials_are_neither_short_nor_long(per_epoch):
    steps = trial_steps(per_epoch)
    assert 40 <= steps <= 100
    assert per_epoch >= 40 or steps % per_epoch == 0


def test_a_longer_training_must_be_worth_it():
    assert best_steps({50: 0.6, 100: 0.5, 150: 0.411, 200: 0.45, 250: 0.41}) == 150
    assert best_steps({50: 0.6, 100: 0.5, 150: 0.42, 200: 0.45, 250: 0.41}) == 250


def test_lengths():
    assert [longest(steps) for steps in (1, 5, 50, 500)] == [100, 100, 16, 3]
    assert [epochs_of(200, 50), epochs_of(50, 50), epochs_of(500, 500)] == [5, 2, 1]
    assert [expected_epochs(steps) for steps in (5, 50, 500)] == [8, 5, 2]
    assert expected_steps(50, 5, grids=1, length=True) == 4 * 50 + 200 + 2 * 50
    assert expected_steps(50, 5, grids=1, length=False) == 4 * 50
    assert expected_steps(50, 5, grids=0, length=True) == 200 + 2 * 50
