"""The trunk: hidden states below the first adapted layer, frozen and equal for all members, computed once a row."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lorchestra.core.packing import BASE, Item, PackedBatch, pack, plan_micro_batches
from lorchestra.engine.trunk_file import TrunkFile
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.surgery import text_config
from lorchestra.types import EncodedExample


class TrunkCache:
    """Cached trunks of some rows, in one flat tensor: in memory, or mapped from a file.

    Rows are packed in their own order into batches that depend on nothing else, so a resumed run reads the same bits.

    Args:
        model: the ensemble; its first adapted layer sets the cut.
        rows: examples whose trunks are wanted, at their `row` index.
        token_budget: most tokens in one pass.
        progress: called with the number of rows done after each pass.
        shared: first tokens that all rows have in common; they are kept once, and batches must be packed with the same.
        file: where to keep them instead of in memory.

    Raises:
        CheckpointError: the disk has no room for the file.
    """

    def __init__(
        self,
        model: EnsembleModel,
        rows: Sequence[EncodedExample],
        token_budget: int,
        progress: Callable[[int], None] | None = None,
        shared: int = 0,
        file: TrunkFile | None = None,
    ) -> None:
        self.shared = shared
        self.device = model.device
        lengths = [row.num_tokens - shared for row in rows]
        stops = list(itertools.accumulate(lengths, initial=shared))
        self._places = {
            row.row: (stop - length, stop) for row, length, stop in zip(rows, lengths, stops[1:], strict=True)
        }

        def fill(flat: Tensor) -> None:
            done = 0
            for items in plan_micro_batches([Item(BASE, row) for row in rows], token_budget, shared):
                hidden = model.trunk(pack(items, model.device, shared))[0]
                flat[stops[done] : stops[done + len(items)]] = hidden[shared:]
                if done == 0:
                    flat[:shared] = hidden[:shared]
                done += len(items)
                if progress is not None:
                    progress(done)

        weight = next(model.model.parameters())
        shape = (stops[-1], text_config(model.model).hidden_size)
        if file is not None:
            self._flat = file.tensor(shape, weight.dtype, fill)
        else:
            self._flat = torch.empty(shape, dtype=weight.dtype, device=model.device)
            fill(self._flat)

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return self._flat.nbytes

    def gather(self, batch: PackedBatch) -> Tensor:
        """The trunk of a packed batch, `[1, N, D]`.

        Raises:
            ValueError: the batch was packed with another shared prefix than the cache.
        """
        if batch.shared != self.shared:
            raise ValueError(f"the batch shares {batch.shared} first tokens, the cached trunks {self.shared}")
        pieces: list[Tensor] = []
        member = None
        for item in batch.items:
            if self.shared and item.member != member:
                pieces.append(self._flat[: self.shared])
                member = item.member
            start, stop = self._places[item.example.row]
            pieces.append(self._flat[start:stop])
        return torch.cat(pieces)[None].to(self.device)


def trunk_bytes(model: EnsembleModel, rows: Sequence[EncodedExample], shared: int = 0) -> int:
    """Bytes that a `TrunkCache` of these rows holds."""
    width = text_config(model.model).hidden_size
    size = next(model.model.parameters()).element_size()
    return (sum(row.num_tokens - shared for row in rows) + shared) * width * size
