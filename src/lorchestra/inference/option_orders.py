"""Answers by letters depend on the order of the options: average several orders, and count what changes with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lorchestra.metrics.predictive import mixture_log_probs
from lorchestra.types import Example


@dataclass
class OrderFlips:
    """Of the `rows` that were answered in several orders, how many were `flipped`: not the same answer in all."""

    rows: int = 0
    flipped: int = 0

    def sentence(self) -> str | None:
        """The share, for the user; None without rows."""
        if not self.rows:
            return None
        share = 100 * self.flipped / self.rows
        return f"{self.flipped} of {self.rows} answers ({share:.1f} %) change with the order of the options"


def option_orders(example: Example, number: int) -> list[tuple[int, ...]]:
    """Rotations of an example's options, as far apart as possible: at most `number`, the given order first.

    Each is the indices of the options in their new order. Levels and truth values keep their order.
    """
    num_options = len(example.choices)
    if example.asked is not None and example.asked.type != "choice":
        number = 1
    number = min(number, num_options)
    starts = [round(k * num_options / number) for k in range(number)]
    return [tuple((start + c) % num_options for c in range(num_options)) for start in starts]


def reordered(example: Example, order: Sequence[int]) -> Example:
    """The example with its options in another order."""
    asked = example.asked
    if asked is not None:
        asked = replace(
            asked,
            options=tuple(asked.options[c] for c in order),
            descriptions=tuple(asked.descriptions[c] for c in order),
        )
    answer = None if example.answer is None else list(order).index(example.answer)
    return replace(example, choices=tuple(example.choices[c] for c in order), answer=answer, asked=asked)


def variants(examples: Sequence[Example], number: int) -> Iterator[tuple[list[int], list[Example], NDArray[np.int64]]]:
    """Yield, for each order but the first, the indices of the rows that have it, the rows in it, and where their
    options are: `[E, C]`, so that `take_along_axis` has the columns of a row's options in the given order."""
    orders = [option_orders(example, number) for example in examples]
    width = max((len(example.choices) for example in examples), default=0)
    for k in range(1, number):
        indices = [e for e, of_row in enumerate(orders) if len(of_row) > k]
        columns = np.tile(np.arange(width), (len(indices), 1))
        for position, e in enumerate(indices):
            columns[position, : len(orders[e][k])] = np.argsort(orders[e][k])
        yield indices, [reordered(examples[e], orders[e][k]) for e in indices], columns


def average(log_probs_KMEC: NDArray[np.float64], present_KE: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The members' mean probabilities over the orders that each row has, as log-probabilities `[M, E, C]`."""
    masked = np.where(present_KE[:, None, :, None], log_probs_KMEC, -np.inf)
    return np.asarray(np.logaddexp.reduce(masked, axis=0) - np.log(present_KE.sum(axis=0))[:, None])


def count_flips(log_probs_KMEC: NDArray[np.float64], present_KE: NDArray[np.bool_]) -> OrderFlips:
    """How many rows have different answers of the mixture in different orders."""
    answers_KE = np.array([mixture_log_probs(one).argmax(axis=-1) for one in log_probs_KMEC])
    differs = ((answers_KE != answers_KE[0]) & present_KE).any(axis=0)
    several = present_KE.sum(axis=0) > 1
    return OrderFlips(int(several.sum()), int(differs.sum()))
