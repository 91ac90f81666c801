"""Scores of choices, computed from the outputs of a packed pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorchestra.choice_tree import ChoiceTree
from lorchestra.types import EncodedExample


@dataclass(frozen=True)
class ChoiceScoring:
    """Which outputs of the head score which choice.

    Token j of choice c of item b is scored by row `term_rows[b, c, j]` of the kept positions and column
    `term_columns[b, c, j]` of the head's output. With `branches`, term j is the choice's j-th branch: the row is the
    branch's, the column is its child's. `term_mask` is False past a choice's number of terms and past an item's number
    of choices. All three are `[B, C, J]`.
    """

    keep: Tensor
    """int64 `[K]`: packed positions whose outputs are used, ascending and unique."""
    term_rows: Tensor
    term_columns: Tensor
    term_mask: Tensor
    prefix_rows: Tensor
    """int64 `[B]`: row of each item's last prefix token, whose output predicts the answer's first token."""
    option_ids: Tensor | None
    """int64 `[U]`: vocabulary rows of the head that are used; None for the whole vocabulary.

    Where every choice is a single token, all terms of an item come from one position and the normalizer of the
    vocabulary cancels between its choices, so only the options' rows of the head are needed. The same holds at every
    branch of a tree.
    """
    divisors: Tensor | None = None
    """float64 `[B, C]`: divisors of the summed log-probabilities; None for the plain sum."""
    by_head: bool = False
    """Whether the outputs are logits of the members' classification heads `[B, C]`, instead of the output head's."""
    branches: Branches | None = None
    """The branches of the items' trees; None for letters and texts, and for trees that branch only once, where the
    normalization over the choices is that over the branch's children."""


@dataclass(frozen=True)
class Branches:
    """All branches of a batch's trees. Axes: `S` branch, `W` child."""

    index: Tensor
    """int64 `[S, W]`: each child's index in the head's flattened output `[K, U]`."""
    mask: Tensor
    """bool `[S, W]`: False past a branch's number of children."""


def score_positions(
    examples: Sequence[EncodedExample],
    prefix_ends: Sequence[int],
    choice_starts: Sequence[Sequence[int]],
    device: torch.device | str,
) -> ChoiceScoring:
    """Return the scoring of packed rows.

    Args:
        examples: the rows, in packed order.
        prefix_ends: packed position of each row's last prefix token.
        choice_starts: per row and choice, the packed position of the choice's first input token.
        device: device of the index tensors.

    Raises:
        ValueError: a row has no choices, or some rows have a tree or a classification head and others do not.
    """
    if not all(example.choices for example in examples):
        raise ValueError("rows without choices have no log_probs; request logits")
    trees = [example.tree for example in examples if example.tree is not None]
    if trees:
        if len(trees) != len(examples):
            raise ValueError("rows with and without a tree of choices cannot be scored in one batch")
        return _score_trees(trees, prefix_ends, device)
    by_head = examples[0].by_head
    if any(example.by_head != by_head for example in examples):
        raise ValueError("rows with and without a classification head cannot be scored in one batch")
    num_choices = max(len(example.choices) for example in examples)
    num_terms = max(len(choice) for example in examples for choice in example.choices)
    shape = (len(examples), num_choices, num_terms)
    positions = torch.full(shape, prefix_ends[0], dtype=torch.int64)
    tokens = torch.zeros(shape, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.bool)
    for b, example in enumerate(examples):
        for c, choice in enumerate(example.choices):
            length = len(choice)
            mask[b, c, :length] = True
            tokens[b, c, :length] = torch.tensor(choice)
            positions[b, c, 0] = prefix_ends[b]
            if length > 1:
                positions[b, c, 1:length] = torch.arange(choice_starts[b][c], choice_starts[b][c] + length - 1)
    keep, term_rows = torch.unique(positions, return_inverse=True)
    divisors = _divisors(examples, num_choices)
    option_ids = None
    if num_terms == 1 and divisors is None:  # unequal divisors would keep the normalizer from canceling
        option_ids, columns = torch.unique(torch.where(mask, tokens, tokens[0, 0, 0]), return_inverse=True)
        tokens = torch.where(mask, columns, 0)
    return ChoiceScoring(
        keep=keep.to(device),
        term_rows=term_rows.to(device),
        term_columns=tokens.to(device),
        term_mask=mask.to(device),
        prefix_rows=term_rows[:, 0, 0].to(device),
        option_ids=None if option_ids is None else option_ids.to(device),
        divisors=None if divisors is None else divisors.to(device),
        by_head=by_head,
    )


def _divisors(examples: Sequence[EncodedExample], num_choices: int) -> torch.Tensor | None:
    """The divisors of the choices' scores, float64 `[B, C]`; None where no row has any."""
    if all(example.divisors is None for example in examples):
        return None
    divisors = torch.ones((len(examples), num_choices), dtype=torch.float64)
    for b, example in enumerate(examples):
        if example.divisors is not None:
            divisors[b, : len(example.divisors)] = torch.tensor(example.divisors, dtype=torch.float64)
    return divisors


def _score_trees(trees: Sequence[ChoiceTree], prefix_ends: Sequence[int], device: torch.device | str) -> ChoiceScoring:
    """The scoring of rows with trees, whose tokens follow the last prefix token in the tree's order."""
    distinct = {id(tree): tree.arrays for tree in trees}
    options = np.unique(np.concatenate([arrays.children.ravel() for arrays in distinct.values()]))
    columns = {key: np.searchsorted(options, arrays.children) for key, arrays in distinct.items()}
    rows = [distinct[id(tree)] for tree in trees]
    num_branches, num_children = (sum(len(row.children) for row in rows), max(row.children.shape[1] for row in rows))
    shape = (len(rows), *(max(row.term_mask.shape[axis] for row in rows) for axis in (0, 1)))
    index = np.zeros((num_branches, num_children), dtype=np.int64)
    child_mask = np.zeros(index.shape, dtype=bool)
    term_rows, term_columns = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    mask = np.zeros(shape, dtype=bool)
    single = all(len(row.children) == 1 for row in rows)  # then the terms are the head's outputs
    first_read = first_branch = 0
    prefix_rows = []
    for b, (tree, row) in enumerate(zip(trees, rows, strict=True)):
        branch_rows, of_tree = first_read + row.branch_reads, columns[id(tree)]
        stop, width = first_branch + len(of_tree), of_tree.shape[1]
        index[first_branch:stop, :width] = branch_rows[:, None] * len(options) + of_tree
        child_mask[first_branch:stop, :width] = row.child_mask
        terms = np.s_[b, : row.term_mask.shape[0], : row.term_mask.shape[1]]
        mask[terms] = row.term_mask
        term_rows[terms] = branch_rows[row.term_branches] if single else first_branch + row.term_branches
        term_columns[terms] = of_tree[row.term_branches, row.term_children] if single else row.term_children
        prefix_rows.append(first_read)
        first_read, first_branch = first_read + len(row.reads), stop
    keep = np.concatenate([end + row.reads for end, row in zip(prefix_ends, rows, strict=True)])

    def tensor(array: NDArray[np.int64] | NDArray[np.bool_] | list[int]) -> Tensor:
        return torch.as_tensor(array).to(device)

    return ChoiceScoring(
        keep=tensor(keep),
        term_rows=tensor(term_rows),
        term_columns=tensor(term_columns),
        term_mask=tensor(mask),
        prefix_rows=tensor(prefix_rows),
        option_ids=tensor(options),
        branches=None if single else Branches(tensor(index), tensor(child_mask)),
    )


def normalize(logits: Tensor) -> Tensor:
    """Log-probabilities over the last dimension, in float32 or wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)


def choice_log_probs(logits_KU: Tensor, scoring: ChoiceScoring) -> Tensor:
    """Normalized log-probabilities of each row's choices, `[B, C]`, -inf past a row's number of choices.

    Args:
        logits_KU: the head's output at the kept positions, for the option ids or the whole vocabulary.
        scoring: which outputs score which choice.
    """
    wide = logits_KU.to(torch.promote_types(logits_KU.dtype, torch.float32))
    if scoring.branches is not None:
        children_SW = wide.flatten()[scoring.branches.index]
        wide = children_SW.masked_fill(~scoring.branches.mask, float("-inf")).log_softmax(dim=-1)
    elif scoring.option_ids is None:
        wide = wide.log_softmax(dim=-1)
    terms = wide.flatten()[scoring.term_rows * wide.shape[1] + scoring.term_columns]
    scores = terms.where(scoring.term_mask, terms.new_zeros(())).sum(dim=-1)
    if scoring.divisors is not None:
        scores = scores / scoring.divisors.to(scores.dtype)
    present = scoring.term_mask.any(dim=-1)
    return scores.masked_fill(~present, float("-inf")).log_softmax(dim=-1)
