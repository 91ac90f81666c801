"""Ways that do the same work, timed in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.setting import tell


@dataclass
class Way:
    """One way of doing the work of a case, and what was measured of it."""

    key: str
    """One of `table.WAYS`."""
    layers: str
    members: int
    run: Callable[[int], tuple[int, Any]]
    """Does round `r`; returns tokens (rows' own, no padding) and what must agree between ways, members first."""
    rounds: int
    warm_up: Callable[[], object] = lambda: None
    rates: list[float] = field(default_factory=list)
    """Tokens per second of each round."""
    seconds: list[float] = field(default_factory=list)
    found: list[Any] = field(default_factory=list)

    @property
    def name(self) -> str:
        """For progress and notes."""
        return f"{self.key} M={self.members} {self.layers}"

    @property
    def median(self) -> float:
        """Median tokens per second."""
        return statistics.median(self.rates)

    @property
    def figure(self) -> str:
        """Median with the least and the most, tokens per second."""
        return f"{self.median:,.0f} tokens/s ({min(self.rates):,.0f} to {max(self.rates):,.0f})"


def alternate(ways: Sequence[Way], case: str) -> None:
    """Run all ways once a round, so that drift of the machine meets all of them alike."""
    for way in ways:
        tell(f"{case}: warming up {way.name}")
        way.warm_up()
    num_rounds = max(way.rounds for way in ways)
    for number in range(num_rounds):
        for way in ways:
            if number >= way.rounds:
                continue
            started = time.perf_counter()
            tokens, found = way.run(number)
            way.seconds.append(time.perf_counter() - started)
            way.rates.append(tokens / way.seconds[-1])
            way.found.append(np.array(found, dtype=np.float64))
            tell(f"{case}, round {number + 1} of {num_rounds}: {way.name} {way.rates[-1]:,.0f} tokens/s")


def largest_difference(a: Way, b: Way) -> float:
    """Between what two ways found, over the members and rounds that both have."""
    members = min(a.members, b.members)
    pairs = zip(a.found, b.found, strict=False)  # rounds may differ
    return float(max(np.abs(x[:members] - y[:members]).max() for x, y in pairs))
