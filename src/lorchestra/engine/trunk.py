"""The trunk: hidden states below the first adapted layer, frozen and equal for all members, computed once a row."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lorchestra.core.layout import BASE
from lorchestra.core.packing import Item, PackedBatch, forward_budget, pack, plan_micro_batches
from lorchestra.core.prefix import KeptPrefix
from lorchestra.engine.trunk_file import TrunkFile
from lorchestra.errors import ConfigError
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.surgery import text_config
from lorchestra.types import EncodedExample


class TrunkCache:
    """Cached trunks of some rows, in one flat tensor: in memory, or mapped from a file.

    Rows are packed in their own order into batches that depend on nothing else, so a resumed run reads the same bits.

    Args:
        model: the ensemble; its first adapted layer sets the cut.
        rows: examples whose trunks are wanted, at their `row` index.
        token_budget: of training; passes are of `forward_budget`.
        progress: called with the number of rows done after each pass.
        shared: first tokens that all rows have in common; they are kept once, and batches must be packed with the same.
        file: where to keep them instead of in memory.
        dtype: the number format they are kept in, by default the base's; they are widened again when gathered.
        prefix: the shared tokens, where they are kept from before; then none are in the cache.

    Raises:
        CheckpointError: the disk has no room for the file.
        ConfigError: a hidden state is beyond the range of `dtype`.
    """

    def __init__(
        self,
        model: EnsembleModel,
        rows: Sequence[EncodedExample],
        token_budget: int,
        progress: Callable[[int], None] | None = None,
        shared: int = 0,
        file: TrunkFile | None = None,
        dtype: torch.dtype | None = None,
        prefix: KeptPrefix | None = None,
    ) -> None:
        self.shared = shared
        self.device = model.device
        self._wide = _base_dtype(model)
        dtype = dtype or self._wide
        lengths = [row.num_tokens - shared for row in rows]
        inside = shared if prefix is None else 0  # shared tokens that stand at the start
        stops = list(itertools.accumulate(lengths, initial=inside))
        self._places = {
            row.row: (stop - length, stop) for row, length, stop in zip(rows, lengths, stops[1:], strict=True)
        }

        def fill(flat: Tensor) -> None:
            done = 0
            room = forward_budget(token_budget, model.device)
            for items in plan_micro_batches([Item(BASE, row) for row in rows], room, shared, prefix):
                hidden = _narrowed(model.trunk(pack(items, model.device, shared, prefix))[0], dtype)
                flat[stops[done] : stops[done + len(items)]] = hidden[inside:]
                if done == 0:
                    flat[:inside] = hidden[:inside]
                done += len(items)
                if progress is not None:
                    progress(done)

        shape = (stops[-1], text_config(model.model).hidden_size)
        if file is not None:
            self._flat = file.tensor(shape, dtype, fill)
        else:
            self._flat = torch.empty(shape, dtype=dtype, device=model.device)
            fill(self._flat)

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return self._flat.nbytes

    def gather(self, batch: PackedBatch) -> Tensor:
        """The trunk of a packed batch, `[1, N, D]`, in the base's number format.

        Raises:
            ValueError: the batch was packed with another shared prefix than the cache.
        """
        if batch.shared != self.shared:
            raise ValueError(f"the batch shares {batch.shared} first tokens, the cached trunks {self.shared}")
        pieces: list[Tensor] = []
        member = None
        for item in batch.items:
            if self.shared and batch.packing.prefix is None and item.member != member:
                pieces.append(self._flat[: self.shared])
                member = item.member
            start, stop = self._places[item.example.row]
            pieces.append(self._flat[start:stop])
        return torch.cat(pieces)[None].to(self.device).to(self._wide)


def trunk_bytes(
    model: EnsembleModel, rows: Sequence[EncodedExample], shared: int = 0, dtype: torch.dtype | None = None
) -> int:
    """Bytes that a `TrunkCache` of these rows holds."""
    width = text_config(model.model).hidden_size
    size = (dtype or _base_dtype(model)).itemsize
    return (sum(row.num_tokens - shared for row in rows) + shared) * width * size


def trunk_dtype(model: EnsembleModel) -> torch.dtype:
    """The number format that `adapt.trunk_dtype` asks for."""
    formats = {"auto": _base_dtype(model), "bfloat16": torch.bfloat16, "float16": torch.float16}
    return formats[model.adapt.trunk_dtype]


def dtype_name(dtype: torch.dtype) -> str:
    """A number format's name in settings and messages."""
    return str(dtype).removeprefix("torch.")


def _base_dtype(model: EnsembleModel) -> torch.dtype:
    return next(model.model.parameters()).dtype


def _narrowed(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Hidden states in another number format.

    Raises:
        ConfigError: one of them would become infinite.
    """
    narrow = hidden.to(dtype)
    lost = narrow.isinf() & hidden.isfinite()
    if bool(lost.any()):
        largest = hidden[lost].abs().max().item()
        raise ConfigError(
            f"adapt.trunk_dtype: {dtype_name(dtype)} holds numbers up to {torch.finfo(dtype).max:.4g}, and hidden"
            f" states below the first adapted layer reach {largest:.4g}; take bfloat16, which has the range of float32,"
            " or auto"
        )
    return narrow
