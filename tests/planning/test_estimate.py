import math

import pytest

from lorchestra.nn.packing import Item, pack, plan_micro_batches
from lorchestra.planning.estimate import (
    LEAF_BYTES,
    SHARE,
    AdapterCounts,
    Duration,
    Footprint,
    Rates,
    Work,
    base_passes,
    checkpointed_bytes,
    duration,
    fitting_budget,
    packed_tokens,
    prediction_base_passes,
    split_trunk,
    training_base_passes,
)


def test_bytes_of_adapters():
    """Five members of 1,000 parameters in float32, as four matrices each."""
    counts = AdapterCounts(members=5, parameters=1000, matrices=4, element_bytes=4)
    assert counts.adapter_bytes == 20_000 + 20 * LEAF_BYTES
    assert counts.training_bytes == 4 * 20_000
    assert counts.disk_bytes == 9 * 20_000


@pytest.mark.parametrize(("loading", "peak"), [(0, 1 + 2 + 4 + 8 + 16 + 32), (100, 100)])
def test_peak_is_in_training_or_while_loading(loading, peak):
    assert Footprint(1, 2, 4, 8, 16, 32, loading).peak == peak


def test_time_is_work_times_rates():
    rates = Rates(train_s=0.5, trunk_s=0.25, evaluate_s=0.125, update_s=2.0)
    work = Work(train_tokens=100, trunk_tokens=40, evaluate_tokens=16, base_tokens=8, updates=3)
    times = duration(work, rates)
    assert times == Duration(steps=56.0, trunk=10.0, base=1.0, evaluation=2.0)
    assert (times.training, times.total) == (67.0, 69.0)


def test_calibration_is_in_the_total_and_what_the_evaluation_reads_is_not():
    rates = Rates(train_s=0.5, trunk_s=0.25, evaluate_s=0.125, update_s=2.0, states_s=0.5)
    work = Work(2, 0, 0, 0, 0, calibration_tokens=8, calibration_trunk_tokens=4, states_tokens=6)
    times = duration(work, rates)
    assert (times.calibration, times.states, times.training, times.total) == (2.0, 3.0, 1.0, 3.0)


@pytest.mark.parametrize(
    ("limit", "expected"), [(0, (0, 70)), (10, (10, 60)), (59, (10, 60)), (60, (70, 0)), (10**9, (70, 0))]
)
def test_each_split_is_cached_where_it_fits(limit, expected):
    assert split_trunk([60, 10], limit) == expected


@pytest.mark.parametrize(
    ("free", "budget"),
    [
        (None, 800),  # unknown counts as enough
        (10**9, 800),
        (math.ceil(80_500 / SHARE), 800),  # 500 for the rest and 100 per token: just enough
        (math.ceil(50_500 / SHARE), 448),  # 500 tokens, rounded down to a multiple of 64
        (math.ceil(30_000 / SHARE), 256),  # 295 tokens
        (math.ceil(20_000 / SHARE), 200),  # 195 tokens: the longest row is the minimum
        (100, 200),
    ],
)
def test_budget_by_free_memory(free, budget):
    assert fitting_budget(800, 200, 100.0, 500, free) == budget


def test_budget_is_at_least_the_longest_row():
    assert fitting_budget(800, 1500, 100.0, 0, 10**12) == 1500
    assert fitting_budget(800, 1500, 100.0, 0, None) == 1500


def test_checkpointing_keeps_inputs_and_one_layer():
    assert checkpointed_bytes(saved_bytes=300.0, num_layers=10, hidden_bytes=4.0) == 10 * 4 + 30


@pytest.mark.parametrize(
    ("share", "with_base", "passes"), [(0.0, False, 15.0), (0.8, False, 3.8), (0.8, True, 4.0), (0.0, True, 16.0)]
)
def test_base_passes(share, with_base, passes):
    assert base_passes(5, 3, share, with_base) == pytest.approx(passes, abs=1e-12)


def test_layers_below_the_adapters_count_once(tiny_ensemble):
    assert prediction_base_passes(tiny_ensemble(depth=4, layers="all"), 5) == 5
    assert prediction_base_passes(tiny_ensemble(depth=4, layers="last:1"), 5) == 0.75 + 5 * 0.25
    assert prediction_base_passes(tiny_ensemble(depth=4, layers="last:3"), 1) == 1


def test_base_passes_of_a_training_run(make_trainer, train):
    assert training_base_passes(train(make_trainer())) == 3 * 2  # members, epochs
    assert training_base_passes(train(make_trainer(layers="last:1"))) == 0.5 + 3 * 2 * 0.5
    assert training_base_passes(train(make_trainer(layers="last:1", regularize={"kl_beta": 0.1}))) == 0.5 + 7 * 0.5


@pytest.mark.parametrize("shared", [0, 1])
def test_packed_tokens_are_those_of_the_packed_batch(make_rows, shared):
    rows = make_rows(12, "texts")
    items = [Item(m, row) for m in range(3) for row in rows]
    for batch in plan_micro_batches(items, 60, shared):
        assert packed_tokens(batch, shared) == pack(batch, shared=shared).packing.num_tokens
