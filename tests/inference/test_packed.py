"""The packed loop: every item once, with its output, in micro-batches within the budget."""

import dataclasses

import pytest
import torch

from lorchestra.inference.packed import run_packed
from lorchestra.inference.trunk import TrunkCache
from lorchestra.nn.packing import BASE, Item, pack

FRONT = tuple(range(20, 40))


@pytest.fixture
def model(tiny_ensemble):
    return tiny_ensemble(depth=3, layers="last:1", spread=0.3)


@pytest.fixture
def rows(make_rows):
    """Rows with a shared prefix of twenty tokens."""
    return [dataclasses.replace(row, prefix=FRONT + row.prefix) for row in make_rows(8, "texts", seed=2)]


def test_every_item_has_its_output_in_micro_batches_within_the_budget(model, rows):
    items = [Item(m, row, None, index) for index, (row, m) in enumerate((row, m) for row in rows for m in (2, BASE, 0))]
    log_probs = {}
    for batch, outputs in run_packed(model, items, 90):
        assert batch.packing.num_tokens <= 90
        log_probs |= {item.index: line for item, line in zip(batch.items, outputs, strict=True)}
    assert sorted(log_probs) == list(range(len(items)))
    for item in items:
        alone = model.forward(pack([item]))[0]
        torch.testing.assert_close(log_probs[item.index][: len(alone)], alone, rtol=0, atol=1e-12)


def test_outputs_may_depend_on_the_batch(model, rows):
    items = [Item(m, row) for m in (0, 1) for row in rows[:2]]
    results = run_packed(model, items, 70, lambda batch: "logits" if batch.items[0].member else "trunk")
    assert [tuple(outputs.shape[-1:]) for _, outputs in results] == [(32,), (101,)]


def test_a_micro_batch_runs_when_its_result_is_requested(model, rows, monkeypatch):
    passes, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda *args, **options: passes.append(1) or forward(*args, **options))
    for number, _ in enumerate(run_packed(model, [Item(0, row) for row in rows], 1), start=1):
        assert len(passes) == number
    assert len(passes) == len(rows)


@pytest.mark.parametrize("cached", [False, True], ids=["shared in the batch", "cached prefix"])
def test_next_token_logits_of_rows_without_choices_with_trunk_and_shared_prefix(model, rows, cached):
    """The same as each row alone in one pass through all layers."""
    rows = [dataclasses.replace(row, choices=(), answer=None) for row in rows]
    prefix = model.prefill(FRONT, [0, 1, 2], 45) if cached else None
    trunk = TrunkCache(model, rows, 45, shared=len(FRONT), prefix=prefix)
    items = [Item(m, row, None, 10 * m + row.row) for m in range(3) for row in rows]
    num_tokens = 0
    for batch, logits in run_packed(model, items, 60, "logits", shared=len(FRONT), prefix=prefix, trunk=trunk):
        num_tokens += batch.packing.num_tokens
        for item, line in zip(batch.items, logits, strict=True):
            alone = model.forward(pack([Item(item.member, item.example)]), "logits")
            torch.testing.assert_close(line, alone[0], rtol=0, atol=1e-12)
    if cached:
        assert num_tokens == 3 * sum(len(row.prefix) - len(FRONT) for row in rows)
