"""Learning-rate schedules: known answers, and equality with those of transformers."""

from __future__ import annotations

import math

import pytest
import torch
import transformers

from lorchestra.nn.schedules import CyclicCosine, Schedule, ThenConstant


def rates(schedule):
    return [schedule(step) for step in range(schedule.num_steps)]


def test_schedules_by_hand():
    """Ten steps, two of them warm: the first warm step is not lost on a rate of zero."""
    assert rates(Schedule(2.0, 10, "linear", 0.2)) == pytest.approx(
        [1.0, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25], abs=1e-15
    )
    assert rates(Schedule(2.0, 10, "constant", 0.2)) == pytest.approx([1.0, *[2.0] * 9], abs=1e-15)
    cosine = [1.0, 2.0, *(1 + math.cos(math.pi * k / 8) for k in range(8))]
    assert rates(Schedule(2.0, 10, "cosine", 0.2)) == pytest.approx(cosine, abs=1e-15)


@pytest.mark.parametrize("warmup", [0.0, 0.06, 0.3])
@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_schedules_equal_those_of_transformers_but_for_the_warm_up(kind, warmup):
    """After the warm-up they agree; within it transformers is one step behind: it starts at a rate of 0 and first
    reaches the peak in the step after the warm-up, ours in its last step."""
    num_steps = 50
    num_warm = math.ceil(warmup * num_steps)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-4)
    theirs = {
        "linear": transformers.get_linear_schedule_with_warmup,
        "cosine": transformers.get_cosine_schedule_with_warmup,
        "constant": lambda o, w, n: transformers.get_constant_schedule_with_warmup(o, w),
    }[kind](optimizer, num_warm, num_steps)
    expected = []
    for _ in range(num_steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    found = rates(Schedule(3e-4, num_steps, kind, warmup))
    assert found[num_warm:] == pytest.approx(expected[num_warm:], rel=1e-12)
    if num_warm:
        assert found[: num_warm - 1] == pytest.approx(expected[1:num_warm], rel=1e-12)
        assert found[num_warm - 1] == pytest.approx(3e-4, rel=1e-12)
        assert expected[0] == 0.0


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_no_step_of_a_short_run_has_a_rate_of_zero(kind):
    for num_steps in (1, 2, 3):
        assert all(0 < rate <= 1.0 for rate in rates(Schedule(1.0, num_steps, kind, 0.06)))


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
