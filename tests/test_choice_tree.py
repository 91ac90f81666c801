"""The tree of choices: its tokens, branches and paths by hand, and what holds for any choices."""

import random

import pytest

from lorchestra.choice_tree import Branch, TreeSegment, choice_tree
from lorchestra.types import EncodedExample


def test_a_tree_by_hand():
    """`5 6` begins all choices; `5 6 7` branches again, and `5 6 7 1 3` once more; `8 9` is never run."""
    choices = ((5, 6, 7, 1, 3, 4, 4), (5, 6, 8, 9), (5, 6, 7, 2), (5, 6, 7, 1, 3, 2))
    tree = choice_tree(choices)
    assert tree.tokens == (5, 6, 7, 1, 3)
    assert tree.stem == 2
    assert tree.segments == (TreeSegment(2, 3, 2, ()), TreeSegment(3, 5, 3, (0,)))
    assert tree.branches == (Branch(2, (7, 8)), Branch(3, (1, 2)), Branch(5, (2, 4)))
    assert tree.paths == (((0, 0), (1, 0), (2, 1)), ((0, 1),), ((0, 0), (1, 1)), ((0, 0), (1, 0), (2, 0)))


def test_siblings_restart_at_their_parents_end():
    tree = choice_tree(((1, 2, 3), (1, 2, 4), (5, 6), (5, 7)))
    assert tree.tokens == (1, 2, 5)
    assert tree.stem == 0
    assert tree.segments == (TreeSegment(0, 2, 0, ()), TreeSegment(2, 3, 0, ()))
    assert tree.branches == (Branch(0, (1, 5)), Branch(2, (3, 4)), Branch(3, (6, 7)))


@pytest.mark.parametrize(
    ("choices", "tokens", "as_texts"),
    [
        (((1,), (2,), (3,)), 0, 0),
        (((1, 7, 7), (2, 7, 7), (3, 7, 7)), 0, 6),  # decided by their first tokens
        (((9, 9, 1), (9, 9, 2)), 2, 4),  # the shared tokens once
        (((9, 1, 1), (9, 1, 2), (9, 2, 1), (9, 2, 2), (3, 3)), 3, 9),
        (((4, 5, 6),), 0, 2),  # nothing to decide
        (((4, 5, 6), (4, 5, 6)), 0, 4),
    ],
    ids=["single tokens", "different first tokens", "stem", "two levels", "one choice", "equal choices"],
)
def test_numbers_of_tokens_by_hand(choices, tokens, as_texts):
    text = EncodedExample(0, (10, 11, 12), choices, None)
    tree = EncodedExample(0, (10, 11, 12), choices, None, tree=choice_tree(choices))
    assert tree.num_tokens == 3 + tokens
    assert text.num_tokens == 3 + as_texts


def test_equal_choices_have_equal_paths():
    tree = choice_tree(((1, 2), (3,), (1, 4), (1, 2)))
    assert tree.paths[0] == tree.paths[3] == ((0, 0), (1, 0))
    only = choice_tree(((1, 2), (1, 2)))
    assert only.branches == (Branch(0, (1,)),)
    assert only.paths == (((0, 0),), ((0, 0),))


@pytest.mark.parametrize("choices", [(), ((),), ((1,), ()), ((1, 2), (1,)), ((1, 2, 3), (4,), (1, 2))], ids=str)
def test_choices_that_are_no_tree_are_refused(choices):
    with pytest.raises(ValueError, match="none of which is a prefix of another"):
        choice_tree(choices)


def random_choices(draw):
    """Distinct choices of few different tokens, ended so that none is a prefix of another."""
    return tuple({(*draw.choices(range(3), k=draw.randint(0, 4)), 9) for _ in range(draw.randint(1, 12))})


@pytest.mark.parametrize("seed", range(20))
def test_paths_are_the_choices_and_every_branch_is_a_decision(seed):
    """From each branch's tokens, walked from the root: the children are those with which choices continue."""
    choices = random_choices(random.Random(seed))
    tree = choice_tree(choices)
    ends = [tree.stem, *(part.stop for part in tree.segments)]
    before = {}  # the tokens from the root to each branch
    for branch, index in zip(tree.branches, range(-1, len(tree.segments)), strict=True):
        assert branch.offset == ends[index + 1]
        path = [] if index < 0 else [*tree.segments[index].context, index]
        tokens = tree.tokens[: tree.stem] + sum(
            (tree.tokens[tree.segments[i].start : tree.segments[i].stop] for i in path), ()
        )
        before[branch] = tokens
        if index >= 0:
            part = tree.segments[index]
            assert part.depth + part.stop - part.start == len(tokens)
        continuations = {choice[len(tokens)] for choice in choices if choice[: len(tokens)] == tokens}
        assert branch.children == tuple(sorted(continuations))
        assert len(continuations) > 1 or len(choices) == 1
    for choice, path in zip(choices, tree.paths, strict=True):
        taken = [(tree.branches[branch], child) for branch, child in path]
        assert [branch.children[child] for branch, child in taken] == [choice[len(before[b])] for b, _ in taken]
        passed = [b for b in tree.branches if before[b] == choice[: len(before[b])]]
        assert [branch for branch, _ in taken] == passed
    prefixes = {choice[:n] for choice in choices for n in range(1, len(choice)) if len(choices) > 1}
    shared = {p for p in prefixes if len({c for c in choices if c[: len(p)] == p}) > 1}
    assert len(tree.tokens) == len(shared)  # each shared token once, no other


def test_the_tree_of_the_same_choices_is_built_once():
    assert choice_tree(((1, 2), (1, 3))) is choice_tree(((1, 2), (1, 3)))
