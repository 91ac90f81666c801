"""Scores of choices, computed from the outputs of a packed pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorchestra.types import EncodedExample


@dataclass(frozen=True)
class ChoiceScoring:
    """Which outputs of the head score which choice.

    Token j of choice c of item b is scored by row `term_rows[b, c, j]` of the kept positions and column
    `term_columns[b, c, j]` of the head's output. `term_mask` is False past a choice's length and past an item's number
    of choices. All three are `[B, C, J]`.
    """

    keep: Tensor
    """int64 `[K]`: packed positions whose outputs are used, ascending and unique."""
    term_rows: Tensor
    term_columns: Tensor
    term_mask: Tensor
    option_ids: Tensor | None
    """int64 `[U]`: vocabulary rows of the head that are used; None for the whole vocabulary.

    Where every choice is a single token, all terms of an item come from one position and the normalizer of the
    vocabulary cancels between its choices, so only the options' rows of the head are needed.
    """
    divisors: Tensor | None
    """float64 `[B, C]`: divisors of the summed log-probabilities; None for the plain sum."""


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
        ValueError: a row has no choices.
    """
    if not all(example.choices for example in examples):
        raise ValueError("rows without choices have no log_probs; request logits")
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
    divisors = None
    if any(example.divisors is not None for example in examples):
        divisors = torch.ones(shape[:2], dtype=torch.float64)
        for b, example in enumerate(examples):
            if example.divisors is not None:
                divisors[b, : len(example.divisors)] = torch.tensor(example.divisors, dtype=torch.float64)
    option_ids = None
    if num_terms == 1 and divisors is None:  # unequal divisors would keep the normalizer from canceling
        option_ids, columns = torch.unique(torch.where(mask, tokens, tokens[0, 0, 0]), return_inverse=True)
        tokens = torch.where(mask, columns, 0)
    return ChoiceScoring(
        keep=keep.to(device),
        term_rows=term_rows.to(device),
        term_columns=tokens.to(device),
        term_mask=mask.to(device),
        option_ids=None if option_ids is None else option_ids.to(device),
        divisors=None if divisors is None else divisors.to(device),
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
    if scoring.option_ids is None:
        wide = wide.log_softmax(dim=-1)
    terms = wide.flatten()[scoring.term_rows * wide.shape[1] + scoring.term_columns]
    scores = terms.where(scoring.term_mask, terms.new_zeros(())).sum(dim=-1)
    if scoring.divisors is not None:
        scores = scores / scoring.divisors.to(scores.dtype)
    present = scoring.term_mask.any(dim=-1)
    return scores.masked_fill(~present, float("-inf")).log_softmax(dim=-1)
