import dataclasses

import pytest
import torch

from lorchestra.core.packing import BASE, Item, pack
from lorchestra.engine.trunk import TrunkCache, trunk_bytes
from lorchestra.engine.trunk_file import TrunkFiles


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


def test_rows_lie_in_one_flat_tensor(model, rows, batch):
    """And not as views of the passes they came from, each of which would keep its whole pass alive."""
    cache = TrunkCache(model, rows, 10_000)
    assert cache._flat.untyped_storage().nbytes() == cache.num_bytes == trunk_bytes(model, rows)
    cache.shared = 2
    with pytest.raises(ValueError, match="shares 0 first tokens, the cached trunks 2"):
        cache.gather(batch)


@pytest.fixture
def files(tmp_path):
    """Files in a directory, and what was said."""
    said = []
    return TrunkFiles(tmp_path / "resume", "digest of the base", 0, said.append), said


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_mapped_file_reads_the_bits_of_memory_and_is_not_computed_twice(tiny_ensemble, rows, files, dtype):
    model = tiny_ensemble(dtype, depth=3, layers="last:1")
    batch = pack([Item(0, rows[4]), Item(1, rows[2])])
    expected = TrunkCache(model, rows, 30).gather(batch)
    passes, file = [], files[0].file("training", rows, (2, 30))
    for _ in range(2):
        found = TrunkCache(model, rows, 30, passes.append, file=file).gather(batch)
        assert torch.equal(found, expected)
        assert passes.count(len(rows)) == 1
    assert files[1] == []
    assert sorted(path.name for path in file.path.parent.iterdir()) == ["trunk-training.bin", "trunk-training.json"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "wrong checksum"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), "wrong checksum"),
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.with_suffix(".json").write_text("{"), "json is damaged"),
        (lambda path: path.with_suffix(".json").write_text("[]"), "json is damaged"),
    ],
    ids=["truncated", "flipped", "missing", "record", "list"],
)
def test_a_damaged_file_is_made_anew_and_told_once(model, rows, batch, files, damage, reason):
    file = files[0].file("training", rows, ())
    expected = TrunkCache(model, rows, 30, file=file).gather(batch)
    damage(file.path)
    for _ in range(2):
        assert torch.equal(TrunkCache(model, rows, 30, file=file).gather(batch), expected)
    assert len(files[1]) == 1
    assert reason in files[1][0]


def test_a_file_of_another_base_other_rows_or_settings_is_made_anew(model, rows, batch, files):
    first = files[0].file("training", rows, (1,))
    TrunkCache(model, rows, 30, file=first)
    others = [
        dataclasses.replace(files[0], base_digest="another").file("training", rows, (1,)),
        files[0].file("training", rows[:-1], (1,)),
        files[0].file("training", rows, (2,)),
    ]
    assert len({file.key for file in [first, *others]}) == 4
    passes = []
    assert torch.equal(
        TrunkCache(model, rows, 30, passes.append, file=others[0]).gather(batch), model_bits(model, rows, batch)
    )
    assert passes
    assert "of another base" in files[1][0]


def model_bits(model, rows, batch):
    return TrunkCache(model, rows, 30).gather(batch)


def test_an_interrupted_filling_leaves_nothing(model, rows, files):
    def stop(done):
        raise KeyboardInterrupt

    file = files[0].file("training", rows, ())
    with pytest.raises(KeyboardInterrupt):
        TrunkCache(model, rows, 30, stop, file=file)
    assert list(file.path.parent.iterdir()) == []


def test_progress_counts_rows_to_the_last(model, rows):
    seen = []
    TrunkCache(model, rows, 20, seen.append)
    assert len(seen) > 2
    assert seen == sorted(set(seen))
    assert seen[-1] == len(rows)
