"""What the course of a finished training suggests to change, in one sentence each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lorchestra.types import Json

STILL_FALLING = 0.03
"""Relative fall of the validation NLL in the last epoch from which more epochs are suggested."""
NEARLY_EQUAL = 0.01
"""Mean total variation distance between members and mixture below which members count as nearly equal."""
FITTED, RISEN = 0.1, 1.1
"""Over-fitting: training loss as a share of that of guessing, and last validation NLL as a multiple of the best."""


def advice(history: Sequence[Json], epochs: int, log_choices: float) -> list[str]:
    """Sentences about a training.

    Args:
        history: its evaluations, one per epoch (see `TrainState`); lists are by member, None where it was not trained.
        epochs: the configured number.
        log_choices: loss of guessing on the training rows, in nats.
    """
    by_epoch = [nll for entry in history if not math.isnan(nll := _mean(entry["val_nll"]))]
    if not by_epoch:
        return []
    sentences = []
    last, best = by_epoch[-1], min(by_epoch)
    if len(by_epoch) > 1 and last < by_epoch[-2] * (1 - STILL_FALLING):
        sentences.append(
            f"validation NLL was still falling in the last epoch (from {by_epoch[-2]:.3f} to {last:.3f}): train longer,"
            f" as with --train.epochs {2 * epochs}"
        )
    spreads = [spread for spread in history[-1].get("val_spread", ()) if spread is not None]
    spread = _mean(spreads)
    if len(spreads) > 1 and spread < NEARLY_EQUAL:
        sentences.append(
            f"members are nearly equal (their probabilities differ by {100 * spread:.2g} points in the mean), so the"
            " ensemble is hardly better than one of them: train longer, at a higher rate, or --adapt.order bootstrap"
        )
    train_nll = _mean(history[-1].get("train_nll", ()))
    if train_nll < FITTED * log_choices and last > RISEN * best:
        sentences.append(
            f"training NLL is near zero ({train_nll:.3f}) and validation NLL rose from {best:.3f} to {last:.3f}:"
            " members over-fit; regularize, as with --regularize.weight-decay-b 100 or --adapt.dropout 0.1"
        )
    return sentences


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan
