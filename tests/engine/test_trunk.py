import pytest
import torch

from lorchestra.core.packing import BASE, Item, pack
from lorchestra.engine.trunk import TrunkCache, trunk_bytes


@pytest.fixture
def model(tiny_ensemble):
    return tiny_ensemble(depth=3, layers="last:1", spread=0.3, dropout=0.2)


@pytest.fixture
def rows(make_rows):
    return make_rows(9, "texts")


@pytest.fixture
def batch(rows):
    """Rows out of order, one of them for two members."""
    return pack([Item(m, rows[e], 10 * m + e) for m, e in ((0, 5), (0, 2), (0, 8), (1, 8), (1, 0), (2, 3))])


@pytest.mark.parametrize("budget", [1, 30, 10_000])
def test_gathered_trunks_are_those_of_the_batch(model, rows, batch, budget):
    gathered = TrunkCache(model, rows, budget).gather(batch)
    assert gathered.shape == (1, batch.packing.num_tokens, 32)
    torch.testing.assert_close(gathered, model.trunk(batch), rtol=0, atol=1e-12)
    torch.testing.assert_close(model.log_probs(batch, gathered), model.log_probs(batch), rtol=0, atol=1e-12)


def test_a_row_reads_the_same_bits_whatever_the_batch_and_again_after_a_restart(model, rows, batch):
    cache, again = TrunkCache(model, rows, 30), TrunkCache(model, rows, 30)
    assert torch.equal(cache.gather(batch), again.gather(batch))
    pieces = cache.gather(batch)[0].split([item.example.num_tokens for item in batch.items])
    for item, piece in zip(batch.items, pieces, strict=True):
        assert torch.equal(piece, cache.gather(pack([Item(BASE, item.example)]))[0])


def test_trunks_do_not_depend_on_the_adapters(model, rows, batch):
    before = TrunkCache(model, rows, 30).gather(batch)
    model.bank.values.normal_()
    assert torch.equal(TrunkCache(model, rows, 30).gather(batch), before)


def test_trunks_need_no_gradient(model, rows, batch):
    assert not TrunkCache(model, rows, 30).gather(batch).requires_grad


@pytest.mark.parametrize(("dtype", "size"), [(torch.float64, 8), (torch.float32, 4), (torch.bfloat16, 2)])
def test_bytes_are_known_before_and_after(tiny_ensemble, rows, dtype, size):
    model = tiny_ensemble(dtype, depth=3, layers="last:1")
    expected = sum(row.num_tokens for row in rows) * 32 * size
    assert trunk_bytes(model, rows) == expected
    assert TrunkCache(model, rows, 30).num_bytes == expected


def test_cached_rows_do_not_hold_on_to_their_batch(model, rows):
    cache = TrunkCache(model, rows, 10_000)
    storages = [piece.untyped_storage() for piece in cache._hidden.values()]
    assert len({storage.data_ptr() for storage in storages}) == len(rows)
    assert sum(storage.nbytes() for storage in storages) == cache.num_bytes


def test_progress_counts_rows_to_the_last(model, rows):
    seen = []
    TrunkCache(model, rows, 20, seen.append)
    assert len(seen) > 2
    assert seen == sorted(set(seen))
    assert seen[-1] == len(rows)
