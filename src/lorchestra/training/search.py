"""A short search of the learning rate and of the number of epochs, by training single members packed together.

Candidates are members that differ in their learning rate alone, constant after a warm-up. After each evaluation on the
validation rows the worse half is stopped (successive halving: Jamieson and Talwalkar, arXiv 1502.07943). If the
best rate is at an edge of the grid, the grid is moved. The last candidate is trained until its validation NLL no longer
improves; this length, plus a share for the decay of the rate, is that of the training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lorchestra.training.callbacks import Callback
from lorchestra.training.checkpoint import TrainState

PATIENCE = 2
"""Evaluations without a better validation NLL after which the last candidate has been trained for long enough."""
MAX_MOVES = 4
"""Most moves of the grid of rates."""
DECAY_SHARE = 0.3
"""Steps that a training with a decaying rate is given on top of those at a constant rate, as a share of the latter."""
_RATES = (0.25, 0.5, 1.0, 2.0)
"""The first grid, in multiples of the central rate."""
_CENTER, _CENTER_WIDTH = 4e-3, 576
"""Central rate of a base with this hidden size; larger bases take rates that are smaller in proportion."""
_LOWEST, _HIGHEST = 1e-7, 0.5
WARMUP_STEPS = 10
"""Steps of a candidate in which the rate rises to its value."""
_MIN_STEPS, _MAX_STEPS = 20, 100
"""Fewest and most steps between two evaluations."""
_MAX_TOTAL_STEPS, _MIN_EPOCHS, _MAX_EPOCHS = 1000, 3, 20
_USUAL_STEPS = 250


def first_rates(hidden_size: int, below: float) -> tuple[float, ...]:
    """The first grid of learning rates, ascending, each below `below`, the smallest rate that is refused."""
    center = _CENTER * min(1.0, _CENTER_WIDTH / hidden_size)
    rates = [_rounded(center * factor) for factor in _RATES]
    return tuple(rate for rate in rates if rate < below) or (_rounded(below / 2),)


def moved_rates(first_nll: Mapping[float, float], below: float) -> tuple[float, ...]:
    """The next grid if the best of all rates tried is at an edge, or () if it lies between others.

    Args:
        first_nll: validation NLL by rate, after the same number of steps; infinite for a candidate that failed.
        below: the smallest rate that is refused.
    """
    best, rates = min(first_nll, key=first_nll.__getitem__), sorted(first_nll)
    if math.isinf(first_nll[best]):
        further = [rates[0] / 4, rates[0] / 16]
    elif best == rates[-1]:
        further = [best, best * 2, best * 4]
    elif best == rates[0]:
        further = [best / 4, best / 2, best]
    else:
        return ()
    grid = sorted(_rounded(rate) for rate in further if _LOWEST <= rate <= _HIGHEST and rate < below)
    return tuple(grid) if set(grid) - set(rates) else ()


def steps_between(steps_per_epoch: int) -> int:
    """Steps between two evaluations: a divisor of an epoch or several epochs, between 20 and 100 where there is one."""
    if steps_per_epoch < _MIN_STEPS:
        return steps_per_epoch * math.ceil(_MIN_STEPS / steps_per_epoch)
    parts = max(1, min(steps_per_epoch // _MIN_STEPS, 2), math.ceil(steps_per_epoch / _MAX_STEPS))
    return math.ceil(steps_per_epoch / parts)


def longest_search(steps_per_epoch: int) -> int:
    """Most epochs that a candidate is trained for."""
    return min(_MAX_EPOCHS, max(_MIN_EPOCHS, math.ceil(_MAX_TOTAL_STEPS / steps_per_epoch)))


def epochs_of(best_step: int, steps_per_epoch: int) -> int:
    """Epochs of a training with a decaying rate, given the best number of steps at a constant one."""
    return max(1, math.ceil(best_step * (1 + DECAY_SHARE) / steps_per_epoch - 0.25))


def expected_epochs(steps_per_epoch: int) -> int:
    """A usual number of epochs, for plans made before a search."""
    return min(8, max(2, round(_USUAL_STEPS / steps_per_epoch)))


def expected_steps(steps_per_epoch: int, epochs: int, *, rates: bool, length: bool) -> int:
    """Steps of all candidates together in a search without moves of the grid.

    Args:
        steps_per_epoch: optimizer steps per epoch.
        epochs: what the search will choose.
        rates: whether it searches the rate.
        length: whether it searches the number of epochs.
    """
    between = steps_between(steps_per_epoch)
    halving = (len(_RATES) + len(_RATES) // 2) if rates else 0
    alone = 0
    if length:
        alone = round(epochs * steps_per_epoch / (1 + DECAY_SHARE) / between) + PATIENCE - (2 if rates else 0)
    return between * (halving + max(0, alone))


class Halving(Callback):
    """Stops candidates: the worse half after every evaluation, and all of them when there is nothing left to search.

    Args:
        rates: the candidates' learning rates, by member.
        earlier: validation NLL of rates of earlier grids after the first evaluation.
        below: the smallest rate that is refused.
        may_move: whether another grid may follow.
        length: whether the last candidate shows the number of epochs; without it, it is stopped too.
    """

    def __init__(
        self, rates: Sequence[float], earlier: Mapping[float, float], below: float, *, may_move: bool, length: bool
    ) -> None:
        self.rates, self.earlier, self.below, self.may_move, self.length = rates, earlier, below, may_move, length

    def on_evaluation(self, entry: dict[str, object], state: TrainState) -> None:
        """Stop the worse half."""
        running = state.with_status("running")
        if len(state.history) == 1 and self.may_move:
            nlls = {**self.earlier, **first_nlls(self.rates, state)}
            if moved_rates(nlls, self.below):
                self._stop(running, state)
                return
        last = state.history[-1]["val_nll"]
        ranked = sorted(running, key=lambda m: math.inf if last[m] is None else last[m])
        keep = len(ranked) // 2 if len(self.rates) > 1 and len(ranked) > 1 else len(ranked)
        self._stop(ranked[keep:], state)
        if keep == 1 and not self.length:
            self._stop(ranked[:1], state)

    @staticmethod
    def _stop(members: Sequence[int], state: TrainState) -> None:
        for m in members:
            state.members[m].status = "stopped"


def first_nlls(rates: Sequence[float], state: TrainState) -> dict[float, float]:
    """Validation NLL of the candidates after the first evaluation, by rate; infinite for those that failed before."""
    first = state.history[0]["val_nll"] if state.history else [None] * len(rates)
    return {rate: math.inf if nll is None else nll for rate, nll in zip(rates, first, strict=True)}


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")
