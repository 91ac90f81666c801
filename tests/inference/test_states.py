"""Typed questions share the tokens of their state; an answer depends on its state and its question alone."""

import dataclasses
import random

import numpy as np
import pytest
import torch

from lorchestra.choice_tree import choice_tree
from lorchestra.inference.predict import member_passes, predict_rows
from lorchestra.inference.state_cache import StateCache
from lorchestra.inference.trunk import TrunkCache
from lorchestra.nn.packing import BASE, Item, common_prefix, pack, plan_micro_batches, same_state, shareable_prefix
from lorchestra.types import EncodedExample

BUDGET = 40
ADAPT = {"all layers": {}, "last layer": {"depth": 3, "layers": "last:1"}}


@pytest.fixture(params=ADAPT.values(), ids=ADAPT.keys())
def model(request, tiny_ensemble):
    return tiny_ensemble(spread=0.3, **request.param)


def state_rows(number=5, seed=0, tree=True, most=4):
    """Rows of `number` states, each with one to `most` questions."""
    draw = random.Random(seed)

    def tokens(low, high):
        return tuple(draw.randrange(100) for _ in range(draw.randint(low, high)))

    rows = []
    for _ in range(number):
        state = tokens(3, 12)
        for _ in range(draw.randint(1, most)):
            options = tuple((*tokens(1, 3), 100) for _ in range(draw.randint(2, 5)))
            options = tuple(dict.fromkeys(options))
            if len(options) < 2:
                options = ((7, 100), (8, 100))
            row = EncodedExample(len(rows), state + tokens(2, 5), options, 0, state=len(state))
            rows.append(dataclasses.replace(row, tree=choice_tree(options) if tree else None))
    return rows


def apart(rows):
    """The same rows without a shared state."""
    return [dataclasses.replace(row, state=0) for row in rows]


def assert_close(actual, expected, tolerance=1e-12):
    np.testing.assert_array_equal(np.isneginf(actual), np.isneginf(expected))
    present = ~np.isneginf(expected)
    np.testing.assert_allclose(actual[present], expected[present], rtol=0, atol=tolerance)


@pytest.mark.parametrize("tree", [True, False], ids=["trees", "texts"])
@pytest.mark.parametrize("budget", [1, BUDGET, 10_000])
def test_equals_every_row_alone_without_sharing(model, tree, budget):
    rows = state_rows(tree=tree)
    passes = member_passes([BASE, 0, 1, 2])
    log_probs = predict_rows(model, rows, passes, budget)
    for index, member in enumerate((BASE, 0, 1, 2)):
        for e, row in enumerate(apart(rows)):
            alone = model.forward(pack([Item(member, row)]))[0].detach().numpy()
            np.testing.assert_allclose(log_probs[index, e, : len(row.choices)], alone, rtol=0, atol=1e-12)


def test_gradients_equal_those_of_rows_without_sharing(model):
    rows = state_rows()
    gradients = []
    for given in (rows, apart(rows)):
        model.adapters.grad.zero_()
        batch = pack([Item(m, row) for m in range(3) for row in given])
        assert batch.packing.num_tokens == sum(p.stop - p.start for p in batch.pieces)
        outputs = model.forward(batch)
        sum(outputs[i, item.example.answer] for i, item in enumerate(batch.items)).backward()
        gradients.append(model.adapters.grad.clone())
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-11)


def test_a_state_runs_once_per_member_and_batch():
    rows = state_rows(4, seed=3)
    batch = pack([Item(m, row) for m in (BASE, 0) for row in rows])
    distinct = {row.prefix[: row.state]: row.state for row in rows}
    expected = sum(distinct.values()) + sum(row.num_tokens - row.state for row in rows)
    assert batch.packing.num_tokens == 2 * expected
    # every packed token is the row's token that its piece names
    ids, first = batch.packing.input_ids[0].tolist(), 0
    for piece in batch.pieces:
        example = batch.items[piece.item].example
        tokens = (*example.prefix, *example.tree.tokens)[piece.start : piece.stop]
        assert tuple(ids[first : first + len(tokens)]) == tokens
        first += len(tokens)
    assert first == len(ids)


def test_a_group_that_fits_is_not_cut():
    rows = [EncodedExample(e, (1, 2, 3, 4, 5, 6, 60 + e), ((7,), (8,)), 0, state=6) for e in range(4)]
    other = [EncodedExample(9, tuple(range(20, 28)), ((7,), (8,)), 0)]
    batches = plan_micro_batches([Item(0, row) for row in other + rows], 12)
    assert [[item.example.row for item in batch] for batch in batches] == [[9], [0, 1, 2, 3]]
    # one that does not fit has its state in every batch
    batches = plan_micro_batches([Item(0, row) for row in rows], 8)
    assert [[item.example.row for item in batch] for batch in batches] == [[0, 1], [2, 3]]


def test_dropout_masks_are_drawn_per_row(model):
    rows = [row for row in state_rows(3, seed=5) if row.state]
    shared = [Item(0, row, 11 + row.row) for row in rows]
    separate = [Item(0, row, 11 + row.row) for row in apart(rows)]
    one, other = (model.forward(pack(items)).detach() for items in (shared, separate))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_stored_trunks_have_one_copy_of_a_state(tiny_ensemble):
    model = tiny_ensemble(spread=0.3, depth=3, layers="last:1")
    rows = state_rows(4, seed=3)
    trunk, separate = TrunkCache(model, rows, BUDGET), TrunkCache(model, apart(rows), BUDGET)
    repeated = sum(row.state for row, before in zip(rows[1:], rows, strict=False) if same_state(row, before))
    assert separate.num_bytes - trunk.num_bytes == repeated * model.hidden_size * 8
    passes = member_passes([0, 1, 2])
    expected = predict_rows(model, apart(rows), passes, BUDGET, separate)
    assert_close(predict_rows(model, rows, passes, BUDGET, trunk), expected)
    # also for batches that do not share states
    batches = [pack([Item(0, row, 1 + row.row) for row in given]) for given in (rows, apart(rows))]
    assert batches[0].packing.num_tokens == sum(row.num_tokens for row in rows)
    torch.testing.assert_close(trunk.gather(batches[0]), separate.gather(batches[1]), rtol=0, atol=1e-12)


def test_states_do_not_depend_on_what_other_rows_share():
    rows = [EncodedExample(e, (*range(30), 60 + e), ((7,), (8,)), 0, state=30) for e in range(3)]
    assert common_prefix(rows) == 30
    assert shareable_prefix(rows, dropout=False) == 0
    assert shareable_prefix(apart(rows), dropout=False) == 30


@pytest.mark.parametrize("budget", [30, 10_000], ids=["several passes", "one pass"])
def test_cached_states_change_nothing(model, budget):
    """Computed in the pass, read from the cache, or read for some members and rows only: the same."""
    rows = state_rows(4, seed=3)
    passes = member_passes([0, 1, 2])
    expected = predict_rows(model, apart(rows), passes, budget)
    cache = StateCache(10**9)
    states = {row.row: cache.of(row, "") for row in rows}
    assert_close(predict_rows(model, rows, passes, budget, states=states), expected)
    assert all(state.holds([0, 1, 2]) and not state.holds([BASE]) for state in states.values())
    assert_close(predict_rows(model, rows, passes, budget, states=states), expected)
    # a further question about the first state, and a state that is new
    other = dataclasses.replace(rows[0], row=50, prefix=(*rows[0].prefix[: rows[0].state], 91, 92))
    new = dataclasses.replace(state_rows(1, seed=9)[0], row=51)
    more = [other, new]
    given = {row.row: cache.of(row, "") for row in more}
    assert [state.holds([0]) for state in given.values()] == [True, False]
    assert_close(
        predict_rows(model, more, passes, budget, states=given), predict_rows(model, apart(more), passes, budget)
    )
    # members that were not asked before
    passes = member_passes([BASE, 2])
    expected = predict_rows(model, apart(rows), passes, budget)
    assert_close(predict_rows(model, rows, passes, budget, states=states), expected)


def test_a_cached_state_is_not_computed_again(model, monkeypatch):
    rows = state_rows(2, seed=3)
    cache = StateCache(10**9)
    states = {row.row: cache.of(row, "") for row in rows}
    predict_rows(model, rows, member_passes([0, 1, 2]), 10_000, states=states)
    sizes, forward = [], model.forward

    def watched(batch, outputs="log_probs", **options):
        sizes.append((outputs, batch.packing.num_tokens))
        return forward(batch, outputs, **options)

    monkeypatch.setattr(model, "forward", watched)
    predict_rows(model, rows, member_passes([0, 1, 2]), 10_000, states=states)
    rest = sum(row.num_tokens - row.state for row in rows)
    expected = [("log_probs", 3 * rest)]
    assert sizes == ([("trunk", rest), *expected] if model.trunk_layers else expected)


def test_the_least_recently_used_states_are_dropped(model):
    rows = [row for row in state_rows(4, seed=3, most=1)]
    one = StateCache(10**9)
    predict_rows(model, rows[:1], member_passes([0]), 100, states={0: one.of(rows[0], "")})
    one.trim()
    per_token = one.num_bytes / rows[0].state
    assert per_token > 0
    cache = StateCache(round(per_token * (rows[0].state + rows[3].state)))
    for row in (*rows[:3], rows[0], rows[3]):
        predict_rows(model, [row], member_passes([0]), 100, states={row.row: cache.of(row, "")})
        cache.trim()
        assert cache.num_bytes <= cache.max_bytes
    assert [cache.of(rows[e], "").holds([0]) for e in (0, 3)] == [True, True]
    assert not cache.of(rows[1], "").holds([0])


def test_partitions_share_nothing():
    row = state_rows(1)[0]
    cache = StateCache(10**9)
    assert cache.of(row, "a") is cache.of(dataclasses.replace(row, row=7), "a")
    assert cache.of(row, "a") is not cache.of(row, "b")
    assert cache.of(dataclasses.replace(row, state=0), "a") is None
    assert StateCache(0).of(row, "a") is None


def grown(row, row_index, tokens, question=(91, 92)):
    """A question about a state that starts as the row's does, and goes on."""
    state = row.prefix[: row.state] + tokens
    return dataclasses.replace(row, row=row_index, prefix=state + question, state=len(state))


@pytest.fixture
def long_state():
    tree = choice_tree(((1, 100), (2, 3, 100)))
    return EncodedExample(0, (*range(20, 50), 7, 8), ((1, 100), (2, 3, 100)), 0, state=30, tree=tree)


@pytest.mark.parametrize("budget", [20, 10_000], ids=["several passes", "one pass"])
def test_a_state_that_goes_on_is_computed_from_its_new_tokens(model, long_state, budget, monkeypatch):
    passes, cache = member_passes([0, 1, 2]), StateCache(10**9)
    predict_rows(model, [long_state], passes, budget, states={0: cache.of(long_state, "")})
    rows = [grown(long_state, 1, (3, 4, 5)), grown(long_state, 2, (3, 4, 5), (61, 62, 63)), grown(long_state, 3, (9,))]
    expected = predict_rows(model, apart(rows), passes, budget)
    states = {row.row: cache.of(row, "") for row in rows}
    assert [states[e].start_for([0, 1, 2]) for e in (1, 2, 3)] == [30, 30, 30]
    sizes, forward = [], model.forward

    def watched(batch, outputs="log_probs", **options):
        sizes.append(batch.packing.num_tokens)
        return forward(batch, outputs, **options)

    monkeypatch.setattr(model, "forward", watched)
    assert_close(predict_rows(model, rows, passes, budget, states=states), expected)
    new_tokens = 3 + (rows[0].num_tokens - 33) + (rows[1].num_tokens - 33) + 1 + (rows[2].num_tokens - 31)
    if budget > 1000:
        assert sum(sizes) == new_tokens * (3 + (model.trunk_layers > 0))
    # the new states are whole: used as they are, and as the start of others
    assert_close(predict_rows(model, rows, passes, budget, states=states), expected)
    further = [grown(rows[0], 7, (11, 12)), grown(rows[2], 8, (13,))]
    states = {row.row: cache.of(row, "") for row in further}
    assert [state.start_for([0]) for state in states.values()] == [33, 31]
    assert_close(
        predict_rows(model, further, passes, budget, states=states), predict_rows(model, apart(further), passes, budget)
    )


def test_a_shorter_state_starts_from_a_longer_one(model, long_state):
    passes, cache = member_passes([0, 2]), StateCache(10**9)
    predict_rows(model, [long_state], passes, 1000, states={0: cache.of(long_state, "")})
    state = long_state.prefix[:20]
    row = dataclasses.replace(long_state, row=1, prefix=(*state, 91), state=20)
    shorter = cache.of(row, "")
    assert shorter.start_for([0, 2]) == 19  # a state has a token that is computed
    assert_close(
        predict_rows(model, [row], passes, 1000, states={1: shorter}), predict_rows(model, apart([row]), passes, 1000)
    )
    assert shorter.num_bytes == pytest.approx(cache.of(long_state, "").num_bytes * 20 / 30)


def test_members_that_the_other_state_lacks_start_anew(model, long_state):
    cache = StateCache(10**9)
    predict_rows(model, [long_state], member_passes([0]), 1000, states={0: cache.of(long_state, "")})
    row = grown(long_state, 1, (3, 4, 5))
    state = cache.of(row, "")
    assert (state.start_for([0]), state.start_for([0, 1])) == (30, 0)
    for members in ([0, 1], [1, BASE], [0, 1, 2, BASE]):
        passes = member_passes(sorted(members))
        assert_close(
            predict_rows(model, [row], passes, 1000, states={1: state}), predict_rows(model, apart([row]), passes, 1000)
        )
    assert state.holds([0, 1, 2, BASE])


def test_short_starts_and_other_partitions_are_not_taken_over(model, long_state):
    cache = StateCache(10**9)
    predict_rows(model, [long_state], member_passes([0]), 1000, states={0: cache.of(long_state, "a")})
    row = grown(long_state, 1, (3,))
    assert cache.of(row, "b").start_for([0]) == 0
    other = dataclasses.replace(row, prefix=(*row.prefix[:15], 99, *row.prefix[16:]))
    assert cache.of(other, "a").start_for([0]) == 0
    assert cache.of(row, "a").start_for([0]) == 30


@pytest.mark.parametrize("cached", ["neither", "first", "second"])
def test_the_same_state_in_two_partitions_of_a_pass(model, long_state, cached):
    """Each has a copy, whichever of the two is cached."""
    passes, cache = member_passes([0, 1]), StateCache(10**9)
    rows = [long_state, dataclasses.replace(long_state, row=1)]
    for row, name in zip(rows, ("first", "second"), strict=True):
        if cached == name:
            predict_rows(model, [row], passes, 1000, states={row.row: cache.of(row, name)})
    expected = predict_rows(model, apart(rows), passes, 1000)
    for _ in range(2):
        states = {row.row: cache.of(row, name) for row, name in zip(rows, ("first", "second"), strict=True)}
        assert_close(predict_rows(model, rows, passes, 1000, states=states), expected)
    assert states[0].num_bytes == states[1].num_bytes > 0
