"""The cost model's tables: what must hold between their cells, whatever the figures."""

import dataclasses
import itertools

import pytest
import torch

from lorchestra.config.adapt import AdaptConfig
from lorchestra.config.run import RegularizeConfig, TrainConfig
from lorchestra.nn.packing import pack
from lorchestra.planning.estimate import ALLOCATION, COPIES_OF_LOGITS, checkpointed_bytes
from lorchestra.planning.pass_cost import PassCost, count_batch
from lorchestra.planning.shapes import PUBLIC_SHAPES
from lorchestra.planning.what_if import Device, Planner
from lorchestra.planning.workload import PlannedRun, plan_workload
from lorchestra.training.precompute import TrainingRows
from lorchestra.types import EncodedExample

DEVICE = Device(memory_bytes=24 * 10**9, process_bytes=10**9, flop_per_s=1e12, bytes_per_s=1e11)
TRAIN = TrainConfig(epochs=2, lr=1e-4, batch_size=8)


def make_rows(number, tokens=30, choices=((1,), (2,))):
    return [EncodedExample(i, (i, *range(1, tokens)), choices, 0) for i in range(number)]


def make_planner(train=TRAIN, searched=None, choices=((1,), (2,)), device="cpu", **adapt):
    rows = TrainingRows(make_rows(40, choices=choices), make_rows(12, choices=choices))
    settings = AdaptConfig(**adapt)
    run = PlannedRun(rows, train, settings, RegularizeConfig(), 0, False, torch.device(device))
    return Planner(run, searched or train, 5)


def make_cost(name="smollm2-135m", adapted=("q_proj", "v_proj"), last=None, rank=8, element_bytes=4):
    shape = PUBLIC_SHAPES[name]
    layers = tuple(range(0 if last is None else shape.num_layers - last, shape.num_layers))
    return PassCost(shape, adapted, layers, rank, element_bytes)


def test_memory_is_the_sum_of_its_parts():
    """Two members on the last layer, by hand."""
    planner, cost = make_planner(), make_cost(last=1)
    cell = planner.cell(cost, DEVICE, 2, 1)
    parameters = 8 * (576 + 576 + 576 + 192)
    part = cell.footprint
    assert (part.base, part.process, part.loading) == (4 * 134_515_008, 10**9, 0)
    assert part.adapters == 2 * (4 * parameters + 4 * 1100)
    assert part.training == 2 * 16 * parameters
    assert part.trunk == 4 * 576 * 30 * (40 + 12)
    workload = plan_workload(dataclasses.replace(planner.run, has_trunk=True), 2, 640)
    assert part.activations == ALLOCATION * cost.saved_bytes(count_batch(pack(workload.largest)))
    assert cell.limit == 10**9 + 0.9 * 23 * 10**9
    assert cell.fits


def test_time_is_work_over_the_devices_speeds():
    """All members' tokens of one kind at a time, from the packed batches themselves."""
    planner, cost = make_planner(), make_cost(last=10)
    times = planner.cell(cost, DEVICE, 3, 1).duration
    workload = plan_workload(dataclasses.replace(planner.run, has_trunk=True), 3, 640)
    seconds = [cost.training(count_batch(pack(batch))).seconds(1e12, 1e11) for batch in workload.batches]
    updates = 3 * 2 * 5 * cost.update().seconds(1e12, 1e11)
    assert times.steps == pytest.approx(sum(seconds) + updates, rel=1e-9)
    once = [row for rows in (planner.run.rows.train, planner.run.rows.val) for row in rows]
    trunk = cost.trunk(dataclasses.replace(count_batch(pack(workload.batches[0])))).seconds(1e12, 1e11)
    per_token = trunk / count_batch(pack(workload.batches[0])).tokens
    assert times.trunk == pytest.approx(per_token * sum(row.num_tokens for row in once), rel=1e-9)
    assert times.evaluation / 2 + 12 * 30 * per_token == pytest.approx(times.calibration, rel=1e-9)
    assert times.search == 0


@pytest.mark.parametrize("faster", ["flop_per_s", "bytes_per_s"])
def test_a_faster_device_takes_less_time_and_the_same_memory(faster):
    planner, cost = make_planner(), make_cost()
    better = dataclasses.replace(DEVICE, **{faster: 2 * getattr(DEVICE, faster)})
    both = dataclasses.replace(DEVICE, flop_per_s=2e12, bytes_per_s=2e11)
    slow, fast, twice = (planner.cell(cost, one, 5, 1) for one in (DEVICE, better, both))
    assert twice.duration.total == pytest.approx(slow.duration.total / 2)
    assert slow.duration.total / 2 < fast.duration.total < slow.duration.total
    assert slow.footprint == fast.footprint


@pytest.mark.parametrize("last", [None, 10])
def test_more_members_take_more_memory_and_time(last):
    planner, cost = make_planner(), make_cost(last=last)
    cells = [planner.cell(cost, DEVICE, members, 1) for members in (1, 2, 5, 10, 20)]
    for one, next_one in itertools.pairwise(cells):
        assert one.footprint.peak < next_one.footprint.peak
        assert one.duration.total < next_one.duration.total
        assert one.tokens * next_one.members == next_one.tokens * one.members
    ratio = cells[-1].duration.steps / cells[0].duration.steps
    assert ratio == pytest.approx(20, rel=0.01)  # packing shares the trunk and prefixes, not arithmetic
    assert (cells[-1].duration.trunk > 0) == (last is not None)
    assert cells[-1].duration.trunk == pytest.approx(cells[0].duration.trunk)


def test_members_are_split_as_over_processes():
    planner, cost = make_planner(), make_cost(last=10)
    whole, five, one = (planner.cell(cost, DEVICE, 10, devices) for devices in (1, 2, 10))
    alone = planner.cell(cost, DEVICE, 5, 1)
    assert (whole.members_per_device, five.members_per_device, one.members_per_device) == (10, 5, 1)
    assert five.footprint == alone.footprint
    assert five.duration.steps == alone.duration.steps
    assert five.duration.trunk == pytest.approx(alone.duration.trunk / 2, rel=1e-3)  # computed in turns
    assert five.tokens == whole.tokens == one.tokens == 2 * alone.tokens
    assert planner.cell(cost, DEVICE, 10, 4).members_per_device == 3  # blocks of two and three
    assert one.footprint.base == whole.footprint.base == cost.base_bytes


@pytest.mark.parametrize("other", [{"name": "llama-3.2-1b"}, {"adapted": ("q_proj", "o_proj", "v_proj")}, {"rank": 16}])
def test_more_to_compute_takes_more_memory_and_time(other):
    planner = make_planner()
    small, large = (planner.cell(make_cost(**options), DEVICE, 5, 1) for options in ({}, other))
    assert small.footprint.peak < large.footprint.peak
    assert small.duration.total < large.duration.total


def test_bfloat16_halves_the_base_and_not_the_adapters():
    planner = make_planner()
    full, half = (planner.cell(make_cost(element_bytes=size), DEVICE, 5, 1).footprint for size in (4, 2))
    assert full.base == 2 * half.base
    assert (full.adapters, full.training) == (half.adapters, half.training)
    assert 0.5 < half.activations / full.activations < 1


@pytest.mark.parametrize(
    ("gigabytes", "expected"), [(20.5, [1, 1, 1]), (18.5, [1, 1, 2]), (17.5, [1, 2, 4]), (16.5, [None, None, None])]
)
def test_fewest_devices_that_hold_the_members(gigabytes, expected):
    """Llama-3.1-8B in bfloat16 is 16.1 GB; a member of rank 256 on all maps of two layers takes 0.8 GB more."""
    cost = make_cost("llama-3.1-8b", tuple(PUBLIC_SHAPES["llama-3.1-8b"].maps), 2, 256, element_bytes=2)
    device = dataclasses.replace(DEVICE, memory_bytes=round(gigabytes * 1e9 / 0.9), process_bytes=0)
    planner = make_planner()
    assert [planner.least_devices(cost, device, members) for members in (1, 2, 4)] == expected
    for members, least in zip((1, 2, 4), expected, strict=True):
        fitting = [n for n in range(1, members + 1) if planner.cell(cost, device, members, n).fits]
        assert least == min(fitting, default=None)


def test_unknown_memory_holds_anything():
    cell = make_planner().cell(make_cost("llama-3.1-70b"), dataclasses.replace(DEVICE, memory_bytes=None), 20, 1)
    assert (cell.fits, cell.limit, cell.token_budget) == (True, None, 640)


def test_short_memory_lowers_the_token_budget_down_to_the_longest_row():
    planner, cost = make_planner(), make_cost("llama-3.2-1b")
    base = cost.base_bytes + DEVICE.process_bytes
    budgets, peaks = [], []
    for free in (20e9, 1.5e9, 0.6e9, 0):
        device = dataclasses.replace(DEVICE, memory_bytes=round(base / 0.9 + free))
        cell = planner.cell(cost, device, 2, 1)
        budgets.append(cell.token_budget)
        peaks.append(cell.footprint.peak)
        assert cell.fits == (free > 0)
    assert budgets[0] == 640
    assert budgets == sorted(budgets, reverse=True)
    assert len(set(budgets)) == 4
    assert budgets[-1] == 30
    assert peaks == sorted(peaks, reverse=True)


def test_checkpointing_and_logits_change_activations():
    cost, choices = make_cost(), ((1, 2, 3), (4, 5))
    plain = make_planner().cell(cost, DEVICE, 2, 1)
    checkpointing = make_planner(dataclasses.replace(TRAIN, gradient_checkpointing=True)).cell(cost, DEVICE, 2, 1)
    tokens = 2 * 8 * 30  # a step of both members
    saved = plain.footprint.activations / ALLOCATION
    expected = ALLOCATION * checkpointed_bytes(saved, 30, 4 * 576 * tokens)
    assert checkpointing.footprint.activations == pytest.approx(expected, rel=1e-6)
    assert checkpointing.duration.steps > plain.duration.steps
    texts = make_planner(choices=choices).cell(make_cost(last=1), DEVICE, 2, 1)
    assert texts.footprint.activations >= COPIES_OF_LOGITS * 4 * 49_152 * 12  # the vocabulary, for all 12 rows
    letters = make_planner().cell(make_cost(last=1), DEVICE, 2, 1)
    assert texts.footprint.activations > 2 * letters.footprint.activations


def test_a_search_comes_on_top_and_keeps_the_trunk_in_a_file():
    searched = TrainConfig()
    plain, open_ = (make_planner(searched=s).cell(make_cost(last=10), DEVICE, 5, 1) for s in (TRAIN, searched))
    assert plain.duration.search == 0 < open_.duration.search
    assert open_.footprint.trunk == 0 < plain.footprint.trunk
    assert open_.duration.total > plain.duration.total
    again = make_planner(searched=searched).cell(make_cost(last=10), DEVICE, 1, 1)
    assert again.duration.search == pytest.approx(open_.duration.search, rel=0.02)  # does not grow with members


def test_a_gpu_has_its_default_token_budget():
    cell = make_planner(device="cuda").cell(make_cost(), dataclasses.replace(DEVICE, memory_bytes=None), 20, 1)
    assert cell.token_budget == 16_384
