"""Cached trunks in a file: one flat array that is mapped, not read, so that it may be larger than memory.

Format: `<name>.bin`, the hidden states `[tokens, D]` of all rows, row after row, in the machine's byte order; and
`<name>.json` with the key of what they were computed from, shape, number format and SHA-256.

The trunk: hidden states below the first adapted layer, frozen and equal for all members, computed once a row.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.inference.packed import run_packed
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.patching import text_config
from lorchestra.nn.kv_cache import PrefixCache
from lorchestra.nn.packing import BASE, Item, PackedBatch, forward_budget
from lorchestra.store.atomic import atomic_path, atomic_write_json, sha256_file
from lorchestra.store.safe_paths import inside
from lorchestra.types import EncodedExample

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrunkFiles:
    """Where trunks go that are too large for memory."""

    directory: Path
    base_digest: str
    memory_bytes: int
    """Trunks of at most this size stay in memory."""
    log: Callable[..., None] = lambda event, **values: None
    """Is given, for the run's log, the name of an event and its values."""

    def file(self, name: str, rows: Sequence[EncodedExample], settings: Sequence[object]) -> TrunkFile:
        """The file of some rows; `settings` is all else that decides the bits: cut, token budget, threads, format."""
        digest = hashlib.sha256(json.dumps([self.base_digest, *map(str, settings)]).encode())
        for row in rows:
            digest.update(json.dumps([row.prefix, row.choices]).encode())
        return TrunkFile(self.directory / f"trunk-{name}.bin", digest.hexdigest())


@dataclass(frozen=True)
class TrunkFile:
    """One file, for what `key` stands for."""

    path: Path
    key: str

    def tensor(self, shape: tuple[int, int], dtype: torch.dtype, fill: Callable[[Tensor], None]) -> Tensor:
        """The mapped tensor; `fill` computes it into a new file where there is none, or not this one, or a damaged one.

        Written under a temporary name and renamed, so that two processes and interruptions do no harm.

        Raises:
            CheckpointError: the disk has no room for it.
        """
        facts: dict[str, object] = {"key": self.key, "shape": list(shape), "dtype": str(dtype)}
        inside(self.path.parent, self.path.name)  # neither file may be a link
        record = inside(self.path.parent, f"{self.path.stem}.json")
        if record.exists():
            reason = self._unfit(record, facts)
            if reason is None:
                return _mapped(self.path, "c", shape, dtype)
            if reason:
                logger.info(f"{self.path}: {reason}; the layers below are computed anew")
        num_bytes = shape[0] * shape[1] * dtype.itemsize
        with atomic_path(self.path, num_bytes=num_bytes) as temporary:
            with temporary.open("r+b") as file:
                file.truncate(num_bytes)
            fill(_mapped(temporary, "r+", shape, dtype))
        atomic_write_json(record, {**facts, "sha256": sha256_file(self.path)})
        return _mapped(self.path, "c", shape, dtype)

    def _unfit(self, record: Path, facts: dict[str, object]) -> str | None:
        """Why the file cannot be used; empty where it is of something else, as when a sweep changes layers."""
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
            digest = found.pop("sha256")
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return f"{record.name} is damaged"
        if found != facts:
            return ""
        try:
            return None if sha256_file(self.path) == digest else "the cached layers are damaged (wrong checksum)"
        except CheckpointError:
            return "the cached layers are missing"


def _mapped(path: Path, mode: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """A tensor over a mapped file; mode c (copy on write) maps the file read-only without a read-only tensor."""
    raw = np.memmap(path, dtype=np.uint8, mode=mode)  # type: ignore[call-overload]
    return torch.from_numpy(raw).view(dtype).view(shape)


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
        prefix: PrefixCache | None = None,
    ) -> None:
        self.shared = shared
        self.device = model.device
        self._wide = _base_dtype(model)
        dtype = dtype or self._wide
        lengths = [row.num_tokens - shared for row in rows]
        head = shared if prefix is None else 0  # shared tokens that are stored once, at the start
        stops = list(itertools.accumulate(lengths, initial=head))
        self._positions = {
            row.row: (stop - length, stop) for row, length, stop in zip(rows, lengths, stops[1:], strict=True)
        }

        def fill(flat: Tensor) -> None:
            done = 0
            items = [Item(BASE, row) for row in rows]
            budget = forward_budget(token_budget, model.device)
            for batch, hidden in run_packed(model, items, budget, "trunk", shared=shared, prefix=prefix):
                narrow = _narrowed(hidden[0], dtype)
                flat[stops[done] : stops[done + len(batch.items)]] = narrow[head:]
                if done == 0:
                    flat[:head] = narrow[:head]
                done += len(batch.items)
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
            start, stop = self._positions[item.example.row]
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
