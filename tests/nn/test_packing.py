import dataclasses
import itertools
import random

import pytest
import torch

from lorchestra.choice_tree import choice_tree
from lorchestra.nn.dropout import token_keys
from lorchestra.nn.layout import Segment, Span
from lorchestra.nn.packing import BASE, Item, common_prefix, pack, plan_micro_batches
from lorchestra.types import EncodedExample


def test_layout_of_a_ragged_batch_by_hand(example):
    letters = example(0, prefix=(50, 51), choices=((1,), (2,), (3,)))
    texts = example(1, prefix=(60, 61, 62), choices=((7, 8, 9), (4,), (5, 6)))
    packing = pack([Item(BASE, letters), Item(2, texts), Item(2, letters)]).packing
    assert packing.input_ids.tolist() == [[50, 51, 60, 61, 62, 7, 8, 5, 50, 51]]
    assert packing.position_ids.tolist() == [[0, 1, 0, 1, 2, 3, 4, 3, 0, 1]]
    assert packing.segments == (
        Segment(0, 2),
        Segment(2, 5),
        Segment(5, 7, (1,)),
        Segment(7, 8, (1,)),
        Segment(8, 10),
    )
    assert packing.spans == (Span(BASE, 0, 2), Span(2, 2, 10))
    assert packing.num_tokens == 10
    assert packing.dropout_keys is None


def test_scoring_of_letters_by_hand(example):
    rows = [example(0, (50, 51), ((9,), (4,))), example(1, (60, 61, 62), ((4,), (7,), (9,)))]
    scoring = pack([Item(0, rows[0]), Item(1, rows[1])]).scoring
    assert scoring.keep.tolist() == [1, 4]
    assert scoring.option_ids.tolist() == [4, 7, 9]
    assert scoring.term_mask[..., 0].tolist() == [[True, True, False], [True, True, True]]
    assert scoring.term_columns[0, :2, 0].tolist() == [2, 0]
    assert scoring.term_columns[1, :, 0].tolist() == [0, 1, 2]
    assert scoring.term_rows[0, :2, 0].tolist() == [0, 0]
    assert scoring.term_rows[1, :, 0].tolist() == [1, 1, 1]
    assert scoring.divisors is None


def test_scoring_of_texts_by_hand(example):
    row = example(0, (60, 61, 62), ((7, 8, 9), (4,), (5, 6)))
    scoring = pack([Item(0, row)]).scoring
    assert scoring.option_ids is None
    assert scoring.keep.tolist() == [2, 3, 4, 5]  # the end of the prefix, 7, 8 and 5
    assert scoring.term_mask[0].tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert scoring.term_columns[0][scoring.term_mask[0]].tolist() == [7, 8, 9, 4, 5, 6]
    assert scoring.term_rows[0][scoring.term_mask[0]].tolist() == [0, 1, 2, 0, 0, 3]


@pytest.fixture
def random_rows(example):
    draw = random.Random(7)

    def ids(low, high):
        return tuple(draw.randrange(100) for _ in range(draw.randint(low, high)))

    return [example(row, prefix=ids(1, 6), choices=[ids(1, 4) for _ in range(draw.randint(2, 5))]) for row in range(30)]


@pytest.mark.parametrize("shared", [0, 3])
def test_every_term_is_predicted_by_the_preceding_token_of_its_row(random_rows, shared):
    """The position that scores token j of a choice sees exactly the prefix and the choice's first j tokens."""
    rows = [dataclasses.replace(row, prefix=tuple(range(70, 70 + shared)) + row.prefix) for row in random_rows]
    items = [Item(index // 10, row) for index, row in enumerate(rows)]
    packing, scoring = (batch := pack(items, shared=shared)).packing, batch.scoring
    ids = packing.input_ids[0].tolist()
    for b, item in enumerate(items):
        for c, choice in enumerate(item.example.choices):
            assert scoring.term_mask[b, c].sum() == len(choice)
            for j, token in enumerate(choice):
                position = scoring.keep[scoring.term_rows[b, c, j]].item()
                segment = next(s for s in packing.segments if s.start <= position < s.stop)
                context = [packing.segments[k] for k in segment.context]
                seen = [token for other in context for token in ids[other.start : other.stop]]
                seen += ids[segment.start : position + 1]
                assert seen == [*item.example.prefix, *choice[:j]]
                assert scoring.term_columns[b, c, j] == token
                assert packing.position_ids[0, position] == len(seen) - 1


def test_a_tree_is_merged_into_one_segment_with_a_mask():
    tree = choice_tree(((7, 1, 2), (7, 1, 3), (7, 4), (8, 5), (8, 6)))
    rows = [EncodedExample(0, (50, 51), ((1,), (2,)), 0), EncodedExample(1, (60,), (), 0, tree=tree)]
    packing = pack([Item(0, row) for row in rows]).packing
    assert packing.segments[1:] == (Segment(2, 3), Segment(3, 4, (1,)), Segment(4, 5, (1, 2)), Segment(5, 6, (1,)))
    assert packing.merged_segments == (Segment(0, 2), Segment(2, 3), Segment(3, 6, (1,), tree=tree))
    mask = packing.tree_mask(tree, 2, None)  # 7, 7 1 and 8, after two tokens
    assert mask.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert packing.tree_mask(tree, 2, 2).int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 1, 0, 0, 1]]
    assert packing.tree_mask(tree, 2, None) is mask
    letters = pack([Item(0, rows[0])]).packing
    assert letters.merged_segments is letters.segments


def test_a_shared_prefix_is_packed_once_per_member(example):
    rows = [example(0, (1, 2, 3)), example(1, (1, 2, 4, 5), ((7, 8), (9,)))]
    packing = pack([Item(m, row) for m in (0, 2) for row in rows], shared=2).packing
    assert packing.input_ids.tolist() == [[1, 2, 3, 4, 5, 7] * 2]
    assert packing.position_ids.tolist() == [[0, 1, 2, 2, 3, 4] * 2]
    assert packing.segments[:4] == (Segment(0, 2), Segment(2, 3, (0,)), Segment(3, 5, (0,)), Segment(5, 6, (0, 2)))
    assert packing.segments[4:6] == (Segment(6, 8), Segment(8, 9, (4,)))
    assert packing.spans == (Span(0, 0, 6), Span(2, 6, 12))


@pytest.mark.parametrize(
    ("prefixes", "shared"),
    [
        ([(1, 2, 3), (1, 2, 4, 5)], 2),
        ([(1, 2), (1, 2, 4)], 1),  # without the last token, whose output scores the choices
        ([(1, 2, 3), (1, 2, 3)], 2),
        ([(1, 2), (3, 2)], 0),
        ([(5,)], 0),
        ([], 0),
    ],
)
def test_common_prefix_by_hand(example, prefixes, shared):
    assert common_prefix([example(row, prefix) for row, prefix in enumerate(prefixes)]) == shared


def test_segments_and_spans_cover_every_token_once(random_rows):
    items = [Item(index // 7 - 1, row) for index, row in enumerate(random_rows)]
    packing = pack(items).packing
    assert packing.num_tokens == sum(row.num_tokens for row in random_rows)
    for pieces in (packing.segments, packing.spans):
        assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
        assert pieces[-1].stop == packing.num_tokens
    assert [span.member for span in packing.spans] == [-1, 0, 1, 2, 3]


def test_divisors_keep_the_whole_vocabulary_and_default_to_one(example):
    rows = [example(0, choices=((1,), (2,)), divisors=(2.0, 5.0)), example(1, choices=((1,), (2,), (3,)))]
    scoring = pack([Item(0, row) for row in rows]).scoring
    assert scoring.option_ids is None  # unequal divisors: the normalizer would not cancel
    assert scoring.divisors.tolist() == [[2.0, 5.0, 1.0], [1.0, 1.0, 1.0]]
    assert scoring.divisors.dtype == torch.float64


def test_dropout_keys_follow_the_rows_through_prefix_and_choices(example):
    rows = [example(0, (1, 2), ((3, 4), (5, 6))), example(1, (1,))]
    keys = pack([Item(0, rows[0], 71), Item(1, rows[1], 72)]).packing.dropout_keys
    assert torch.equal(keys, token_keys([71, 72], [4, 1]))
    swapped = pack([Item(0, rows[1], 72), Item(1, rows[0], 71)]).packing.dropout_keys
    assert torch.equal(swapped, torch.cat([keys[4:], keys[:4]]))


def test_refusals(example):
    with pytest.raises(ValueError, match="empty"):
        pack([])
    with pytest.raises(ValueError, match="sorted by member"):
        pack([Item(1, example()), Item(0, example())])
    with pytest.raises(ValueError, match="either all items"):
        pack([Item(0, example(), 5), Item(0, example())])
    with pytest.raises(ValueError, match="dropout cannot share a prefix"):
        pack([Item(0, example(), 5), Item(0, example(), 6)], shared=1)


def test_micro_batches_keep_the_budget_and_contain_every_item(random_rows):
    items = [Item(index % 3, row) for index, row in enumerate(random_rows)]
    for budget in (1, 12, 40, 10_000):
        batches = plan_micro_batches(items, budget)
        flat = [item for batch in batches for item in batch]
        expected = [item for m in range(3) for item in items if item.member == m]  # stable: the order within a member
        assert flat == expected
        sizes = [[item.example.num_tokens for item in batch] for batch in batches]
        assert all(sum(size) <= budget or len(size) == 1 for size in sizes)
        # greedy: a batch ends where the next row does not fit
        assert all(sum(a) + b[0] > budget for a, b in itertools.pairwise(sizes))
    assert len(plan_micro_batches(items, 10_000)) == 1
    assert plan_micro_batches([], 10) == []


def test_a_shared_prefix_counts_once_per_member_and_micro_batch(example):
    rows = [example(row, prefix=range(10)) for row in range(6)]  # 8 shared tokens and 2 others
    batches = plan_micro_batches([Item(row // 3, rows[row]) for row in range(6)], 14, shared=8)
    assert [[item.example.row for item in batch] for batch in batches] == [[0, 1, 2], [3, 4, 5]]
    assert all(pack(batch, shared=8).packing.num_tokens == 14 for batch in batches)
    assert len(plan_micro_batches([Item(row // 3, rows[row]) for row in range(6)], 28, shared=8)) == 1
    assert len(plan_micro_batches([Item(row // 3, rows[row]) for row in range(6)], 27, shared=8)) == 2


def test_a_row_longer_than_the_budget_is_a_micro_batch_alone(example):
    rows = [example(row, prefix=range(n)) for row, n in enumerate((3, 20, 3, 3))]
    batches = plan_micro_batches([Item(0, row) for row in rows], 6)
    assert [[item.example.row for item in batch] for batch in batches] == [[0], [1], [2, 3]]
