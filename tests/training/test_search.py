"""The search of the learning rate: its grids, its lengths, and which candidates are stopped."""

from __future__ import annotations

import math

import pytest

from lorchestra.training.checkpoint import MemberState, TrainState
from lorchestra.training.search import (
    Halving,
    epochs_of,
    expected_epochs,
    expected_steps,
    first_rates,
    longest_search,
    moved_rates,
    steps_between,
)


def after_evaluation(halving, state, nlls):
    """Let `halving` see an evaluation; `nlls` by member, None for those that are not trained any more."""
    state.step += 10
    state.history.append({"step": state.step, "val_nll": list(nlls)})
    halving.on_evaluation(state.history[-1], state)
    return state.with_status("running")


def four(rates=(1e-3, 2e-3, 4e-3, 8e-3), **settings):
    state = TrainState(members=[MemberState() for _ in rates], num_updates=[0] * len(rates))
    options = {"earlier": {}, "below": math.inf, "may_move": True, "length": True} | settings
    return Halving(rates, **options), state


def test_rates_of_wider_bases_are_smaller_in_proportion():
    assert first_rates(576, math.inf) == (1e-3, 2e-3, 4e-3, 8e-3)
    assert first_rates(64, math.inf) == first_rates(576, math.inf)
    assert first_rates(5760, math.inf) == (1e-4, 2e-4, 4e-4, 8e-4)


def test_rates_that_a_decay_refuses_are_left_out():
    assert first_rates(576, 1 / 300) == (1e-3, 2e-3)
    (only,) = first_rates(576, 1e-5)
    assert 0 < only < 1e-5


@pytest.mark.parametrize(
    ("nlls", "moved"),
    [
        ({1e-3: 3.0, 2e-3: 1.0, 4e-3: 2.0}, ()),
        ({1e-3: 3.0, 2e-3: 2.0, 4e-3: 1.0}, (4e-3, 8e-3, 1.6e-2)),
        ({1e-3: 1.0, 2e-3: 2.0, 4e-3: 3.0}, (2.5e-4, 5e-4, 1e-3)),
        ({1e-3: math.inf, 2e-3: math.inf}, (6.3e-5, 2.5e-4)),
        ({1e-3: 2.0, 0.4: 1.0}, ()),
    ],
)
def test_the_grid_moves_to_its_best_edge(nlls, moved):
    assert moved_rates(nlls, math.inf) == moved


def test_the_grid_does_not_move_to_refused_rates():
    assert moved_rates({1e-3: 2.0, 2e-3: 1.0}, below=3e-3) == ()


@pytest.mark.parametrize("steps", [1, 3, 19, 20, 38, 50, 100, 125, 500, 5000])
def test_evaluations_are_neither_rare_nor_frequent(steps):
    between = steps_between(steps)
    assert 19 <= between <= 100
    assert steps >= 38 or between % steps == 0


def test_lengths():
    assert longest_search(50) == 20
    assert longest_search(5) == 20
    assert longest_search(500) == 3
    assert epochs_of(200, 50) == 5
    assert epochs_of(25, 50) == 1
    assert epochs_of(500, 500) == 2
    assert [expected_epochs(steps) for steps in (5, 50, 500)] == [8, 5, 2]
    # four candidates for 25 steps, two for 25 more, then one up to two evaluations past the best at 192 steps
    assert expected_steps(50, 5, rates=True, length=True) == 25 * (4 + 2 + 8)
    assert expected_steps(50, 5, rates=True, length=False) == 25 * 6
    assert expected_steps(50, 5, rates=False, length=True) == 25 * 10


def test_the_worse_half_is_stopped_after_every_evaluation():
    halving, state = four()
    assert after_evaluation(halving, state, [4.0, 1.0, 3.0, 2.0]) == [1, 3]
    assert after_evaluation(halving, state, [None, 2.0, None, 1.0]) == [3]
    assert after_evaluation(halving, state, [None, None, None, 5.0]) == [3]  # its patience ends it, in the trainer


def test_without_a_length_to_search_the_last_one_is_stopped_too():
    halving, state = four(length=False)
    assert after_evaluation(halving, state, [4.0, 1.0, 3.0, 2.0]) == [1, 3]
    assert after_evaluation(halving, state, [None, 2.0, None, 1.0]) == []


def test_all_are_stopped_if_the_best_is_at_an_edge():
    halving, state = four()
    assert after_evaluation(halving, state, [4.0, 3.0, 2.0, 1.0]) == []
    halving, state = four(earlier={1.6e-2: 5.0})
    assert after_evaluation(halving, state, [4.0, 3.0, 2.0, 1.0]) == [2, 3]
    halving, state = four(may_move=False)
    assert after_evaluation(halving, state, [4.0, 3.0, 2.0, 1.0]) == [2, 3]


def test_a_failed_candidate_counts_as_the_worst():
    halving, state = four()
    state.fail(3, 5, "loss nan")
    assert after_evaluation(halving, state, [4.0, 1.0, 3.0, None]) == [1]


def test_a_given_rate_is_trained_until_its_patience_ends_it():
    halving, state = four(rates=(5e-4,), may_move=False)
    for nll in (1.0, 0.5, 0.7):
        assert after_evaluation(halving, state, [nll]) == [0]
