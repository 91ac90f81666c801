"""Gradients row by row: each row is given a member of its own, and the members' gradients are the rows'."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorchestra.core.packing import Item, pack
from lorchestra.engine.trunk import TrunkCache
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.types import EncodedExample


@dataclass(frozen=True)
class RowGradients:
    """Log-probabilities of some rows' choices `[B, C]` and their gradients by the adapter `[B, C, P]`.

    Absent choices have -inf and a zero gradient.
    """

    rows: tuple[EncodedExample, ...]
    log_probs: Tensor
    gradients: Tensor


def row_gradients(
    model: EnsembleModel,
    rows: Sequence[EncodedExample],
    token_budget: int,
    columns: Tensor,
    trunk: TrunkCache | None = None,
) -> Iterator[RowGradients]:
    """Go through rows in packed batches of at most M; one forward pass, and one backward pass a choice.

    Args:
        model: an ensemble whose members all hold the same adapter.
        rows: encoded examples.
        token_budget: most tokens in one packed batch.
        columns: which parameters are wanted, bool `[P of the bank]`.
        trunk: cached trunks of these rows; without it they are computed.
    """
    shared = 0 if trunk is None else trunk.shared
    bank = model.bank
    for group in _groups(rows, model.num_members, token_budget):
        batch = pack([Item(member, row) for member, row in enumerate(group)], model.device, shared)
        hidden = None
        if trunk is not None:
            hidden = trunk.gather(batch)
        elif model.trunk_layers > 0:
            hidden = model.trunk(batch)
        log_probs = model.log_probs(batch, hidden)
        by_choice = []
        for c in range(log_probs.shape[1]):
            bank.zero_grad()
            wanted = log_probs[:, c]
            present = wanted.detach() > float("-inf")
            total = wanted.where(present, wanted.new_zeros(())).sum()
            total.backward(retain_graph=c + 1 < log_probs.shape[1])
            by_choice.append(bank.grad[: len(group), columns].clone())
        bank.zero_grad()
        yield RowGradients(tuple(group), log_probs.detach(), torch.stack(by_choice, dim=1))


def _groups(rows: Sequence[EncodedExample], most: int, token_budget: int) -> Iterator[list[EncodedExample]]:
    """Runs of at most `most` rows within the token budget; a row longer than that stands alone."""
    group: list[EncodedExample] = []
    held = 0
    for row in rows:
        if group and (len(group) == most or held + row.num_tokens > token_budget):
            yield group
            group, held = [], 0
        group.append(row)
        held += row.num_tokens
    if group:
        yield group
