"""The trunk: hidden states below the first adapted layer, frozen and equal for all members, computed once a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lorchestra.core.packing import BASE, Item, PackedBatch, pack, plan_micro_batches
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.surgery import text_config
from lorchestra.types import EncodedExample


class TrunkCache:
    """Cached trunks of some rows, in memory.

    Rows are packed in their own order into batches that depend on nothing else, so a resumed run reads the same bits.

    Args:
        model: the ensemble; its first adapted layer sets the cut.
        rows: examples whose trunks are wanted, at their `row` index.
        token_budget: most tokens in one pass.
        progress: called with the number of rows done after each pass.
        shared: first tokens that all rows have in common; they are kept once, and batches must be packed with the same.
    """

    def __init__(
        self,
        model: EnsembleModel,
        rows: Sequence[EncodedExample],
        token_budget: int,
        progress: Callable[[int], None] | None = None,
        shared: int = 0,
    ) -> None:
        self.shared = shared
        self._prefix: Tensor | None = None
        self._hidden: dict[int, Tensor] = {}
        for items in plan_micro_batches([Item(BASE, row) for row in rows], token_budget, shared):
            batch = pack(items, model.device, shared)
            hidden = model.trunk(batch)[0]
            if self._prefix is None:
                self._prefix = hidden[:shared].clone()
            lengths = [item.example.num_tokens - shared for item in items]
            # clone: a view would keep the whole batch's memory, and later batches would read from scattered pages
            for item, piece in zip(items, hidden[shared:].split(lengths), strict=True):
                self._hidden[item.example.row] = piece.clone()
            if progress is not None:
                progress(len(self._hidden))

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return sum(piece.nbytes for piece in self._hidden.values()) + (
            0 if self._prefix is None else self._prefix.nbytes
        )

    def gather(self, batch: PackedBatch) -> Tensor:
        """The trunk of a packed batch, `[1, N, D]`.

        Raises:
            ValueError: the batch was packed with another shared prefix than the cache.
        """
        if batch.shared != self.shared:
            raise ValueError(f"the batch shares {batch.shared} first tokens, the cached trunks {self.shared}")
        assert self._prefix is not None
        pieces: list[Tensor] = []
        member = None
        for item in batch.items:
            if self.shared and item.member != member:
                pieces.append(self._prefix)
                member = item.member
            pieces.append(self._hidden[item.example.row])
        return torch.cat(pieces)[None]


def trunk_bytes(model: EnsembleModel, rows: Sequence[EncodedExample], shared: int = 0) -> int:
    """Bytes that a `TrunkCache` of these rows would hold."""
    width = text_config(model.model).hidden_size
    size = next(model.model.parameters()).element_size()
    return (sum(row.num_tokens - shared for row in rows) + shared) * width * size
