"""Learning-rate schedules: the one of a training, and those of methods that take several points of one trajectory."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step: linear warm-up from zero, then a constant rate, or linear or cosine decay to zero.

    `num_steps` counts optimizer steps; `warmup` is the fraction of them with a rising rate.
    """

    peak: float
    num_steps: int
    kind: str
    warmup: float

    def __call__(self, step: int) -> float:
        """The rate of optimizer step `step`, counted from 0."""
        num_warm = math.ceil(self.warmup * self.num_steps)
        if step < num_warm:
            return self.peak * (step + 1) / num_warm
        if self.kind == "constant":
            return self.peak
        progress = (step - num_warm) / max(1, self.num_steps - num_warm)
        if self.kind == "cosine":
            return self.peak * 0.5 * (1 + math.cos(math.pi * progress))
        return self.peak * (1 - progress)


@dataclass(frozen=True)
class CyclicCosine(Schedule):
    """Cosine annealing from the peak towards zero, repeated `cycles` times.

    Source: Huang et al., arXiv 1704.00109 (snapshot ensembles), equation 2. `kind` and `warmup` are ignored.
    """

    cycles: int = 1

    @property
    def ends(self) -> tuple[int, ...]:
        """The step count at the end of each cycle; lengths differ by at most one step."""
        return tuple(self.num_steps * (c + 1) // self.cycles for c in range(self.cycles))

    def __call__(self, step: int) -> float:
        """The rate of optimizer step `step`, counted from 0."""
        starts = (0, *self.ends[:-1])
        cycle = max(c for c, start in enumerate(starts) if start <= step)
        length = self.ends[cycle] - starts[cycle]
        return self.peak / 2 * (math.cos(math.pi * (step - starts[cycle]) / length) + 1)


@dataclass(frozen=True)
class ThenConstant(Schedule):
    """`Schedule` before step `start`, then the constant rate `level`."""

    start: int = 0
    level: float = 0.0

    def __call__(self, step: int) -> float:
        """The rate of optimizer step `step`, counted from 0."""
        return self.level if step >= self.start else super().__call__(step)
