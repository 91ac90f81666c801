"""Rows of random tokens with ragged lengths, and their batches in PEFT's loops."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorchestra.nn.packing import Item
from lorchestra.types import EncodedExample

OPTIONS = (4, 5, 6, 7)
"""The token of each choice."""


def make_rows(count: int, mean: int, vocab_size: int, prefix: int = 0, spread: float = 0.4) -> list[EncodedExample]:
    """Rows of `mean` tokens on average, after `prefix` tokens that all rows share.

    `spread` is the standard deviation of the logarithm of a row's length.
    """
    generator = torch.Generator().manual_seed(0)
    relative = torch.randn(count, generator=generator).mul(spread).exp()
    lengths = (relative / relative.mean() * mean).round().long().clamp(min=8)

    def tokens(number: int) -> tuple[int, ...]:
        return tuple(torch.randint(8, vocab_size, (number,), generator=generator).tolist())

    shared = tokens(prefix)
    choices = tuple((option,) for option in OPTIONS)
    return [
        EncodedExample(i, shared + tokens(int(length)), choices, i % len(OPTIONS)) for i, length in enumerate(lengths)
    ]


def batches(rows: Sequence[EncodedExample], size: int, by_length: bool = False) -> list[list[EncodedExample]]:
    """Rows in batches of `size`, in their order or sorted by length."""
    ordered = sorted(rows, key=lambda row: row.num_tokens) if by_length else list(rows)
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def similar_lengths(items: Sequence[Item], rows: Sequence[EncodedExample], size: int) -> list[Item]:
    """For each member of `items`, replace its batch by one of similar lengths, with as many tokens in the long run."""
    sorted_batches = [batch for batch in batches(rows, size, by_length=True) if len(batch) == size]
    taken = []
    for m in sorted({item.member for item in items}):
        first = next(item.example.row for item in items if item.member == m)
        taken += [Item(m, row) for row in sorted_batches[first % len(sorted_batches)]]
    return taken


def padded(rows: Sequence[EncodedExample], device: torch.device) -> dict[str, Tensor]:
    """Rows as a left-padded batch: the answer's position is the last."""
    width = max(len(row.prefix) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row.prefix) :] = torch.tensor(row.prefix)
        mask[i, width - len(row.prefix) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
