"""Ways that do the same work, timed in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.setting import log


@dataclass
class Way:
    """One way of doing the work of a case, and its measurements."""

    key: str
    """One of `table.WAYS`."""
    layers: str
    members: int
    run: Callable[[int], tuple[int, Any]]
    """Runs round `r`; returns tokens (without padding) and the results that must agree between ways, members first."""
    rounds: int
    warm_up: Callable[[], object] = lambda: None
    rates: list[float] = field(default_factory=list)
    """Tokens per second of each round."""
    seconds: list[float] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The way's name in progress and notes."""
        return f"{self.key} M={self.members} {self.layers}"

    @property
    def median(self) -> float:
        """Median tokens per second."""
        return statistics.median(self.rates)

    @property
    def figure(self) -> str:
        """Median, minimum and maximum, in tokens per second."""
        return f"{self.median:,.0f} tokens/s ({min(self.rates):,.0f} to {max(self.rates):,.0f})"


def alternate(ways: Sequence[Way], case: str) -> None:
    """Run all ways once per round, so that drift of the machine affects all of them equally."""
    for way in ways:
        log(f"{case}: warming up {way.name}")
        way.warm_up()
    num_rounds = max(way.rounds for way in ways)
    for number in range(num_rounds):
        for way in ways:
            if number >= way.rounds:
                continue
            started = time.perf_counter()
            tokens, results = way.run(number)
            way.seconds.append(time.perf_counter() - started)
            way.rates.append(tokens / way.seconds[-1])
            way.results.append(np.array(results, dtype=np.float64))
            log(f"{case}, round {number + 1} of {num_rounds}: {way.name} {way.rates[-1]:,.0f} tokens/s")


def largest_difference(a: Way, b: Way) -> float:
    """Largest difference between the results of two ways, over the members and rounds that both have."""
    members = min(a.members, b.members)
    pairs = zip(a.results, b.results, strict=False)  # rounds may differ
    return float(max(np.abs(x[:members] - y[:members]).max() for x, y in pairs))
