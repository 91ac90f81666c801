"""What a search of the learning rate and the number of epochs tries, and what it chooses.

Single members are candidates, trained together in packed passes. First the rate: each candidate has one rate, which
rises and decays within a short training, as it will in the long one; a constant rate would make high ones look worse
than they are. If the best is at an edge of the grid, the grid is extended. The long training takes half of the best.
Then the length: one member at half of that, the mean of a decaying rate, constant, until it no longer improves.

The rate is judged by the validation NLL after scaling with one temperature, since low rates keep the base's
miscalibration for long; the length by `train.criterion`. Over-fitting first makes a member too confident, which a
temperature undoes, while its ranking of the rows still improves: so by the NLL itself trainings are shorter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

PATIENCE = 2
"""Evaluations without a better validation NLL after which a member has been trained for long enough."""
MAX_EXTENSIONS = 3
"""Most extensions of the grid of rates."""
WARMUP_STEPS = 10
"""Steps in which the constant rate of the search of the length rises to its value."""
_RATES = (0.5, 1.0, 2.0, 4.0)
"""The first grid, in multiples of the central rate."""
_CENTER, _CENTER_WIDTH = 2e-3, 576
"""Central rate of a base with this hidden size; wider bases take rates that are smaller in proportion."""
_LOWEST, _HIGHEST = 1e-7, 0.5
_LONGER = 0.5
"""The rate of the training, as a multiple of that of the best candidate: longer trainings take smaller rates."""
_DECAY_SHARE = 0.25
"""Steps that a training with a decaying rate takes on top of the best number at a constant one, as a share of it."""
_NEARLY_BEST = 0.02
"""Relative difference from the lowest score that is not worth training longer."""
_FEWEST_STEPS = 100
"""Fewest steps of a training: one member on few validation rows may look best earlier by chance."""
_MIN_STEPS, _MAX_STEPS = 40, 100
"""Fewest and most steps of a candidate's training."""
_MAX_TOTAL_STEPS, _MIN_EPOCHS, _MAX_EPOCHS = 800, 3, 100
_USUAL_STEPS = 250


def first_rates(hidden_size: int, below: float) -> tuple[float, ...]:
    """The first grid of learning rates, ascending, each below `below`, the smallest rate that is refused."""
    center = _CENTER * min(1.0, _CENTER_WIDTH / hidden_size)
    rates = [_rounded(center * factor) for factor in _RATES]
    return tuple(rate for rate in rates if rate < below) or (_rounded(below / 2),)


def further_rates(nll: Mapping[float, float], below: float) -> tuple[float, ...]:
    """Rates to try next if the best is at an edge of those tried, or () if it lies between others.

    Args:
        nll: validation NLL by rate; infinite for a candidate that failed.
        below: the smallest rate that is refused.
    """
    best, rates = min(nll, key=nll.__getitem__), sorted(nll)
    further: list[float] = []
    if math.isinf(nll[best]):
        further = [rates[0] / 16, rates[0] / 4]
    elif best == rates[-1]:
        further = [best * 2, best * 4]
    elif best == rates[0]:
        further = [best / 4, best / 2]
    return tuple(_rounded(rate) for rate in further if _LOWEST <= rate <= _HIGHEST and rate < below)


def chosen_rate(nll: Mapping[float, float], *, is_longer: bool) -> float:
    """The rate of the training, given the candidates' validation NLL by rate; the smallest of equally good ones counts.

    `is_longer` says whether the training has more steps than the candidates had.
    """
    return (_LONGER if is_longer else 1.0) * min(sorted(nll), key=nll.__getitem__)


def trial_steps(steps_per_epoch: int) -> int:
    """Steps of a candidate's training, and between evaluations in the search of the length.

    An epoch where that is 40 to 100 steps, whole epochs where it is shorter.
    """
    if steps_per_epoch < _MIN_STEPS:
        return steps_per_epoch * math.ceil(_MIN_STEPS / steps_per_epoch)
    return min(steps_per_epoch, _MAX_STEPS)


def longest(steps_per_epoch: int) -> int:
    """Most epochs of the search of the length."""
    return min(_MAX_EPOCHS, max(_MIN_EPOCHS, math.ceil(_MAX_TOTAL_STEPS / steps_per_epoch)))


def best_steps(scores: Mapping[int, float]) -> int:
    """The fewest steps with nearly the lowest score, given the scores by step."""
    lowest = min(scores.values())
    return min(step for step, score in scores.items() if score <= lowest * (1 + _NEARLY_BEST))


def epochs_of(best_step: int, steps_per_epoch: int) -> int:
    """Epochs of a training with a decaying rate, given the best number of steps at a constant one."""
    return round(max(best_step * (1 + _DECAY_SHARE), _FEWEST_STEPS) / steps_per_epoch) or 1


def expected_epochs(steps_per_epoch: int) -> int:
    """A usual number of epochs, for plans made before a search."""
    return min(8, max(2, round(_USUAL_STEPS / steps_per_epoch)))


def expected_steps(steps_per_epoch: int, epochs: int, *, grids: int, length: bool) -> int:
    """Steps of all candidates together in a search whose grids of rates are not extended.

    Args:
        steps_per_epoch: optimizer steps per epoch.
        epochs: what the search will choose.
        grids: number of scorings that it searches the rate for; 0 if the rate is given.
        length: whether it searches the number of epochs.
    """
    total = grids * len(_RATES) * trial_steps(steps_per_epoch)
    if length:
        total += round(epochs * steps_per_epoch / (1 + _DECAY_SHARE)) + PATIENCE * trial_steps(steps_per_epoch)
    return total


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")
