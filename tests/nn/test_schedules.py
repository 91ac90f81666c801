"""Learning rates of cyclic and averaging methods: known answers."""

from __future__ import annotations

import math

import pytest

from lorchestra.nn.optimizer import Schedule
from lorchestra.nn.schedules import CyclicCosine, ThenConstant


def test_every_cycle_falls_from_the_peak_along_a_cosine():
    schedule = CyclicCosine(0.2, 12, "cosine", 0.0, cycles=3)
    assert schedule.ends == (4, 8, 12)
    cycle = [0.2, 0.1 * (1 + math.sqrt(0.5)), 0.1, 0.1 * (1 - math.sqrt(0.5))]
    assert [schedule(step) for step in range(12)] == pytest.approx(cycle * 3, rel=1e-12)


def test_cycles_share_the_steps_as_evenly_as_they_can():
    for num_steps in range(3, 40):
        for cycles in range(1, 4):
            ends = CyclicCosine(1.0, num_steps, "cosine", 0.0, cycles=cycles).ends
            lengths = [end - start for start, end in zip((0, *ends), ends, strict=False)]
            assert (len(ends), ends[-1]) == (cycles, num_steps)
            assert max(lengths) - min(lengths) <= 1


def test_constant_from_a_step_on():
    schedule = ThenConstant(1.0, 10, "linear", 0.2, start=5, level=0.3)
    before = Schedule(1.0, 10, "linear", 0.2)
    assert [schedule(step) for step in range(10)] == [before(step) for step in range(5)] + [0.3] * 5
