"""Tree scoring against brute force: a separate pass of the model for every branch of every choice's path."""

import dataclasses
import math
import random

import numpy as np
import pytest
import torch

from lorchestra.choice_tree import choice_tree
from lorchestra.inference.predict import member_passes, predict_early, predict_rows
from lorchestra.inference.trunk import TrunkCache
from lorchestra.metrics.early_exit import ExitRule
from lorchestra.nn.packing import BASE, Item, pack
from lorchestra.nn.seeding import derive_seed
from lorchestra.types import EncodedExample

END = 100
CHOICES = {
    "first token shared by all": ((7, 1, 2), (7, 1, 3), (7, 4)),
    "two levels": ((7, 1, 2, 5), (7, 1, 2, 6), (7, 4, 1), (7, 4, 2), (8, 8, 8), (9,)),
    "one continues another": ((7, END), (7, 1, END), (7, 1, 2, END), (5, END)),
    "single tokens": ((3,), (1,), (2,)),
    "different first tokens": ((3, 4), (1, 4, 4), (2,)),
    "one choice": ((3, 4),),
}


def with_tree(row, prefix, choices, answer=0):
    return EncodedExample(row, tuple(prefix), tuple(choices), answer, tree=choice_tree(tuple(choices)))


def without_tree(rows):
    return [dataclasses.replace(row, tree=None) for row in rows]


def random_rows(seed, number=6, front=()):
    """Rows of distinct choices of few different tokens, each ended."""
    draw = random.Random(seed)
    rows = []
    for row in range(number):
        choices = sorted({(*draw.choices(range(3), k=draw.randint(0, 5)), END) for _ in range(draw.randint(2, 9))})
        draw.shuffle(choices)
        rows.append(with_tree(row, (*front, *draw.choices(range(101), k=draw.randint(1, 7))), choices))
    return rows


def brute_force(model, member, row):
    """Log-probabilities of the choices, not normalized over them: at every token of every choice, a pass of the prefix
    and the choice's tokens before it alone, and a softmax over the tokens with which choices continue."""
    scores = []
    for choice in row.choices:
        score = torch.zeros((), dtype=torch.float64)
        for n, token in enumerate(choice):
            children = sorted({other[n] for other in row.choices if other[:n] == choice[:n]})
            alone = EncodedExample(0, row.prefix + choice[:n], (), None)
            logits = model.forward(pack([Item(member, alone)]), "logits")[0, children]
            score = score + logits.log_softmax(dim=0)[children.index(token)]
        scores.append(score)
    return torch.stack(scores)


@pytest.fixture(scope="module")
def model(tiny_ensemble):
    return tiny_ensemble(spread=0.3)


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES.keys())
def test_scores_equal_brute_force_and_sum_to_one(model, choices):
    row = with_tree(0, (11, 12, 13), choices)
    for member in (BASE, 0, 2):
        expected = brute_force(model, member, row)
        assert expected.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
        torch.testing.assert_close(model.forward(pack([Item(member, row)]))[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_random_trees_equal_brute_force_with_their_gradients(model, seed):
    """Rows of several members in one pass; the gradients of every member, as autograd's through the separate passes."""
    rows = random_rows(seed)
    batch = pack([Item(m, row) for m in (0, 2) for row in rows])
    log_probs = model.forward(batch)
    weights = torch.randn(log_probs.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    model.adapters.zero_grad()
    log_probs.where(log_probs > -math.inf, 0.0).mul(weights).sum().backward()
    packed = model.adapters.grad.clone()
    model.adapters.zero_grad()
    for b, item in enumerate(batch.items):
        expected = brute_force(model, item.member, item.example)
        number = len(expected)
        torch.testing.assert_close(log_probs[b, :number], expected, rtol=0, atol=1e-11)
        assert (log_probs[b, number:] == -math.inf).all()
        (expected * weights[b, :number]).sum().backward()
    assert packed[[0, 2]].abs().max() > 1e-2
    torch.testing.assert_close(packed, model.adapters.grad, rtol=1e-9, atol=1e-9)
    model.adapters.zero_grad()


def test_single_tokens_are_the_same_bits_as_letters(model):
    rows = [
        with_tree(0, (11, 12), ((3,), (1,), (2,))),
        with_tree(1, (13,), ((9,), (8,))),
        with_tree(2, (14, 15, 16), ((5,), (6,), (5,), (7,))),
    ]
    trees, letters = (pack([Item(1, row) for row in some]) for some in (rows, without_tree(rows)))
    for name in ("keep", "option_ids", "term_mask", "prefix_rows"):
        assert torch.equal(getattr(trees.scoring, name), getattr(letters.scoring, name))
    assert torch.equal(model.forward(trees), model.forward(letters))


def test_equal_choices_have_equal_scores_and_share_as_texts_do(model):
    row = with_tree(0, (11, 12), ((7, 1), (7, 2), (5,), (7, 1)))
    log_probs = model.forward(pack([Item(0, row)]))[0]
    distinct = model.forward(pack([Item(0, with_tree(0, (11, 12), row.choices[:3]))]))[0]
    assert log_probs[0] == log_probs[3]
    expected = distinct[[0, 1, 2, 0]].log_softmax(dim=0)
    torch.testing.assert_close(log_probs, expected, rtol=0, atol=1e-12)


def test_the_layout_by_hand():
    row = with_tree(0, (20, 21, 22), CHOICES["two levels"])
    stem = with_tree(1, (30, 31), CHOICES["first token shared by all"])
    batch = pack([Item(0, row), Item(0, stem)])
    packing, scoring = batch.packing, batch.scoring
    assert packing.input_ids.tolist() == [[20, 21, 22, 7, 1, 2, 4, 30, 31, 7, 1]]
    assert packing.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 4, 0, 1, 2, 3]]
    assert [(s.start, s.stop, s.context) for s in packing.segments] == [
        (0, 3, ()),
        (3, 4, (0,)),
        (4, 6, (0, 1)),
        (6, 7, (0, 1)),
        (7, 10, ()),  # with the token that all choices share
        (10, 11, (4,)),
    ]
    assert scoring.keep.tolist() == [2, 3, 5, 6, 8, 9, 10]
    assert scoring.prefix_rows.tolist() == [0, 4]
    assert scoring.option_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert scoring.branches.index[-1, :2].tolist() == [6 * 9 + 1, 6 * 9 + 2]  # tokens 2 and 3 after 7 1
    assert scoring.term_mask.sum(dim=2).tolist() == [[3, 3, 3, 3, 1, 1], [2, 2, 1, 0, 0, 0]]


@pytest.mark.parametrize("adapt", [{}, {"depth": 3, "layers": "last:1"}], ids=["all layers", "last layer"])
@pytest.mark.parametrize("front", [(), tuple(range(20, 45))], ids=["no shared prefix", "shared prefix"])
def test_budgets_trunks_and_prefix_caches_change_nothing(tiny_ensemble, adapt, front):
    model, rows = tiny_ensemble(spread=0.3, **adapt), random_rows(3, 9, front)
    log_probs = predict_rows(model, rows, member_passes([BASE, 0, 1, 2]), 60)
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=2), 1.0, rtol=0, atol=1e-12)
    for index, member in enumerate((BASE, 0, 1, 2)):
        for e, row in enumerate(rows):
            expected = brute_force(model, member, row).detach().numpy()
            np.testing.assert_allclose(log_probs[index, e, : len(expected)], expected, rtol=0, atol=1e-11)
    shared = len(front)
    batch = pack([Item(m, row) for m in range(3) for row in rows], shared=shared)
    hidden = TrunkCache(model, rows, 60, shared=shared).gather(batch) if adapt else None
    with torch.no_grad():
        packed = model.forward(batch, hidden=hidden).reshape(3, len(rows), -1).numpy()
    np.testing.assert_allclose(packed, log_probs[1:], rtol=0, atol=1e-11)


def test_dropout_depends_on_the_row_and_its_tokens_not_on_the_batch(tiny_ensemble):
    model, rows = tiny_ensemble(spread=0.3, dropout=0.3), random_rows(4)
    items = [Item(m, row, derive_seed(0, m, row.row)) for m in range(3) for row in rows]
    together = model.forward(pack(items))
    for b, item in enumerate(items):
        alone = model.forward(pack([item]))[0]
        torch.testing.assert_close(together[b, : len(alone)], alone, rtol=0, atol=1e-12)
    assert (together - model.forward(pack([Item(i.member, i.example) for i in items]))).nan_to_num().abs().max() > 0.01


@pytest.mark.parametrize("front", [(), tuple(range(20, 45))], ids=["no shared prefix", "shared prefix"])
def test_rows_that_stop_early_have_the_scores_of_the_members_used(tiny_ensemble, front):
    model, rows = tiny_ensemble(spread=0.2, members=5, depth=3, layers="last:1"), random_rows(5, 30, front)
    log_probs, used = predict_early(model, rows, ExitRule(), 60)
    expected = predict_rows(model, rows, member_passes(range(5)), 10_000)
    np.testing.assert_array_equal(used, ExitRule().members_used(expected))
    assert len(set(used.tolist())) > 1
    for e, number in enumerate(used):
        width = len(rows[e].choices)
        np.testing.assert_allclose(log_probs[:number, e, :width], expected[:number, e, :width], rtol=0, atol=1e-11)


def test_rows_with_and_without_a_tree_do_not_share_a_batch(model):
    rows = random_rows(0, 2)
    batch = pack([Item(0, rows[0]), Item(0, dataclasses.replace(rows[1], tree=None))])
    with pytest.raises(ValueError, match="with and without a tree"):
        model.forward(batch)


def test_a_tree_runs_fewer_tokens_than_texts(model):
    for seed in range(8):
        for row in random_rows(seed):
            assert row.num_tokens == pack([Item(0, row)]).packing.num_tokens
            assert row.num_tokens <= without_tree([row])[0].num_tokens
