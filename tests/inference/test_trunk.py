import dataclasses

import numpy as np
import pytest
import torch

from lorchestra.errors import ConfigError
from lorchestra.inference.predict import member_passes, predict_rows
from lorchestra.inference.trunk import TrunkCache, TrunkFiles, trunk_bytes, trunk_dtype
from lorchestra.nn.packing import BASE, Item, pack
from lorchestra.training.callbacks import Callback
from lorchestra.training.precompute import TrainingRows, precompute, trunk_change


@pytest.fixture
def model(tiny_ensemble):
    return tiny_ensemble(depth=3, layers="last:1", spread=0.3, dropout=0.2)


@pytest.fixture(params=["texts", "trees"])
def rows(request, make_rows):
    return make_rows(9, request.param)


@pytest.fixture
def batch(rows):
    """Rows out of order, one of them for two members."""
    return pack([Item(m, rows[e], 10 * m + e) for m, e in ((0, 5), (0, 2), (0, 8), (1, 8), (1, 0), (2, 3))])


@pytest.mark.parametrize("budget", [1, 30, 10_000])
def test_gathered_trunks_equal_those_of_the_batch(model, rows, batch, budget):
    gathered = TrunkCache(model, rows, budget).gather(batch)
    assert gathered.shape == (1, batch.packing.num_tokens, 32)
    torch.testing.assert_close(gathered, model.forward(batch, "trunk"), rtol=0, atol=1e-12)
    torch.testing.assert_close(model.forward(batch, hidden=gathered), model.forward(batch), rtol=0, atol=1e-12)


def test_a_row_reads_the_same_bits_whatever_the_batch_and_again_after_a_restart(model, rows, batch):
    cache, again = TrunkCache(model, rows, 30), TrunkCache(model, rows, 30)
    assert torch.equal(cache.gather(batch), again.gather(batch))
    pieces = cache.gather(batch)[0].split([item.example.num_tokens for item in batch.items])
    for item, piece in zip(batch.items, pieces, strict=True):
        assert torch.equal(piece, cache.gather(pack([Item(BASE, item.example)]))[0])


def test_trunks_do_not_depend_on_the_adapters(model, rows, batch):
    before = TrunkCache(model, rows, 30).gather(batch)
    model.adapters.values.normal_()
    assert torch.equal(TrunkCache(model, rows, 30).gather(batch), before)


def test_trunks_need_no_gradient(model, rows, batch):
    assert not TrunkCache(model, rows, 30).gather(batch).requires_grad


@pytest.mark.parametrize(("dtype", "size"), [(torch.float64, 8), (torch.float32, 4), (torch.bfloat16, 2)])
def test_bytes_are_known_before_and_after(tiny_ensemble, rows, dtype, size):
    model = tiny_ensemble(dtype, depth=3, layers="last:1")
    expected = sum(row.num_tokens for row in rows) * 32 * size
    assert trunk_bytes(model, rows) == expected
    assert TrunkCache(model, rows, 30).num_bytes == expected


def test_rows_are_stored_in_one_flat_tensor(model, rows, batch):
    """Views of the passes they came from would keep whole passes alive."""
    cache = TrunkCache(model, rows, 10_000)
    assert cache._flat.untyped_storage().nbytes() == cache.num_bytes == trunk_bytes(model, rows)
    cache.shared = 2
    with pytest.raises(ValueError, match="shares 0 first tokens, the cached trunks 2"):
        cache.gather(batch)


@pytest.fixture
def files(tmp_path, on_log):
    """Files in a directory, and what was logged."""
    logged = []
    on_log(logged.append)
    return TrunkFiles(tmp_path / "resume", "digest of the base", 0), logged


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_mapped_file_reads_the_bits_of_memory_and_is_not_computed_twice(tiny_ensemble, rows, files, dtype):
    model = tiny_ensemble(dtype, depth=3, layers="last:1")
    batch = pack([Item(0, rows[4]), Item(1, rows[2])])
    expected = TrunkCache(model, rows, 30).gather(batch)
    passes, file = [], files[0].file("training", rows, (2, 30))
    for _ in range(2):
        gathered = TrunkCache(model, rows, 30, passes.append, file=file).gather(batch)
        assert torch.equal(gathered, expected)
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
def test_a_damaged_file_is_computed_again_and_logged_once(model, rows, batch, files, damage, reason):
    file = files[0].file("training", rows, ())
    expected = TrunkCache(model, rows, 30, file=file).gather(batch)
    damage(file.path)
    for _ in range(2):
        assert torch.equal(TrunkCache(model, rows, 30, file=file).gather(batch), expected)
    assert len(files[1]) == 1
    assert reason in files[1][0]


def test_a_file_of_another_base_other_rows_or_settings_is_computed_again(model, rows, batch, files):
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
    assert files[1] == []  # nothing is wrong with it


def model_bits(model, rows, batch):
    return TrunkCache(model, rows, 30).gather(batch)


def test_an_interruption_leaves_no_file(model, rows, files):
    def stop(done):
        raise KeyboardInterrupt

    file = files[0].file("training", rows, ())
    with pytest.raises(KeyboardInterrupt):
        TrunkCache(model, rows, 30, stop, file=file)
    assert list(file.path.parent.iterdir()) == []


def test_progress_counts_rows_to_the_last(model, rows):
    seen = []
    TrunkCache(model, rows, 8, seen.append)
    assert len(seen) > 2
    assert seen == sorted(set(seen))
    assert seen[-1] == len(rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stored_in_half_precision_and_widened_when_gathered(model, rows, batch, files, dtype):
    """Gathered trunks are rounded once to the narrow format; a file has the same bits as memory."""
    expected = model.forward(batch, "trunk").to(dtype).double()
    file = files[0].file("training", rows, ())
    for cache in (TrunkCache(model, rows, 30, dtype=dtype), TrunkCache(model, rows, 30, file=file, dtype=dtype)):
        gathered = cache.gather(batch)
        assert gathered.dtype == torch.float64
        assert torch.equal(gathered, gathered.to(dtype).double())
        # another packing rounds the float64 values otherwise, which may tip the rounding to the narrow format
        torch.testing.assert_close(gathered, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-12)
        assert cache.num_bytes == trunk_bytes(model, rows, dtype=dtype) == trunk_bytes(model, rows) // 4
    assert torch.equal(gathered, TrunkCache(model, rows, 30, dtype=dtype).gather(batch))
    assert file.path.stat().st_size == trunk_bytes(model, rows, dtype=dtype)


def test_an_overflow_is_an_error(model, rows, files, tmp_path):
    with torch.no_grad():
        model.model.model.layers[0].mlp.down_proj.weight.mul_(1e6)
    file = files[0].file("training", rows, ())
    for kept in (None, file):
        with pytest.raises(
            ConfigError, match=r"adapt\.trunk_dtype: float16 holds numbers up to 6\.55e\+04, but hidden"
        ):
            TrunkCache(model, rows, 30, file=kept, dtype=torch.float16)
    assert list((tmp_path / "resume").iterdir()) == []
    batch = pack([Item(BASE, row) for row in rows])
    assert TrunkCache(model, rows, 30, dtype=torch.bfloat16).gather(batch).isfinite().all()


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16), ("auto", None)])
@pytest.mark.parametrize("memory_bytes", [0, 10**9], ids=["file", "memory"])
def test_training_stores_the_configured_format_and_logs_the_change(
    tiny_ensemble, rows, make_rows, files, name, dtype, memory_bytes
):
    model = tiny_ensemble(torch.float32, depth=3, layers="last:1", spread=0.3, trunk_dtype=name)
    assert trunk_dtype(model) == (dtype or torch.float32)
    events = []
    files, messages = files
    files = dataclasses.replace(
        files, memory_bytes=memory_bytes, log=lambda event, **values: events.append((event, values))
    )
    val = make_rows(20, "texts", seed=8)
    training = TrainingRows(rows, val)
    frozen = precompute(model, training, 30, shared=0, with_base=False, files=files, callback=Callback())
    for cache, of in ((frozen.train, rows), (frozen.val, val)):
        assert cache.num_bytes == trunk_bytes(model, of) // (1 if dtype is None else 2)
        item = pack([Item(0, of[3])])
        assert torch.equal(cache.gather(item), TrunkCache(model, of, 30, dtype=dtype).gather(item))
    assert len(list(files.directory.glob("*.bin"))) == (2 if memory_bytes == 0 else 0)
    if dtype is None:
        assert (messages, events) == ([], [])
        return
    base = predict_rows(model, val[:16], member_passes([BASE]), 30)
    kept = predict_rows(model, val[:16], member_passes([BASE]), 30, frozen.val)
    change = np.abs(kept[np.isfinite(base)] - base[np.isfinite(base)]).max()
    assert 0 < change < 1
    ((event, values),) = events
    assert (event, values["dtype"], values["rows"]) == ("trunk_dtype", name, 16)
    assert values["max_change"] == pytest.approx(change, abs=1e-4)  # the whole base in float32, packed otherwise
    (message,) = messages
    assert message == (
        f"hidden states kept in {name}: the base's log-probabilities of 16 validation rows change by at most"
        f" {values['max_change']:.2g}"
    )


def test_the_format_of_the_base_changes_nothing(model, rows):
    assert trunk_change(model, rows, TrunkCache(model, rows, 30), 30) == 0


def test_a_file_in_another_format_is_computed_again(tiny_ensemble, rows, files):
    """The format is part of the key and of the JSON file."""
    keys = set()
    for name in ("auto", "bfloat16", "float16"):
        model = tiny_ensemble(torch.float32, depth=3, layers="last:1", trunk_dtype=name)
        training = TrainingRows(rows, rows)
        precompute(model, training, 30, shared=0, with_base=False, files=files[0], callback=Callback())
        keys.add((files[0].directory / "trunk-training.json").read_text().split('"key"')[1].split(",")[0])
    assert len(keys) == 3
