"""What the course of a finished training suggests to change, in one sentence each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lorchestra.training.checkpoint import TrainState

STILL_FALLING = 0.03
"""Relative fall of the validation NLL in the last epoch from which more epochs are suggested."""
NEARLY_EQUAL = 0.01
"""Mean total variation distance between members and mixture below which members count as nearly equal."""
FITTED, RISEN = 0.1, 1.1
"""Over-fitting: training loss as a share of that of guessing, and last validation NLL as a multiple of the best."""


def advice(state: TrainState, num_steps: int, epochs: int, log_choices: float | None) -> list[str]:
    """Sentences about a training.

    Args:
        state: of the finished training.
        num_steps: its configured number of steps; one that ended earlier gets no advice on its length.
        epochs: its configured number of epochs.
        log_choices: loss of guessing on the training rows, in nats; None where the loss is not the NLL of the answers.
    """
    if not state.history:
        return []
    last, before = state.history[-1], state.history[-2] if len(state.history) > 1 else {}
    sentences = []
    if state.step == num_steps:
        now, then = _means_of_common(last["val_nll"], before.get("val_nll", ()))
        if now < then * (1 - STILL_FALLING):
            sentences.append(
                f"validation NLL was still falling in the last epoch (from {then:.3f} to {now:.3f}): train longer, as"
                f" with --train.epochs {2 * epochs}"
            )
    spreads = _finite(last.get("val_spread", ()))
    if len(spreads) > 1 and _mean(spreads) < NEARLY_EQUAL:
        sentences.append(
            f"members are nearly equal (their probabilities differ by {100 * _mean(spreads):.2g} points in the mean),"
            " so the ensemble is hardly better than one of them: train longer, at a higher rate, or with"
            " --adapt.order bootstrap"
        )
    best = [member.best_nll for member in state.members]
    now, lowest = _means_of_common(last["val_nll"], best)
    train_nll = _mean(_finite(last.get("train_nll", ())))
    if log_choices is not None and train_nll < FITTED * log_choices and now > RISEN * lowest:
        sentences.append(
            f"training NLL is near zero ({train_nll:.3f}) and validation NLL rose from {lowest:.3f} to {now:.3f}:"
            " members over-fit; regularize, as with --regularize.weight-decay-b 100 or --adapt.dropout 0.1"
        )
    return sentences


def _means_of_common(one: Sequence[float | None], other: Sequence[float | None]) -> tuple[float, float]:
    """Means over the members that have both values; NaN without any."""
    pairs = [(a, b) for a, b in zip(one, other, strict=False) if a is not None and b is not None]
    return _mean([a for a, _ in pairs]), _mean([b for _, b in pairs])


def _finite(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
