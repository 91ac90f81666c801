"""The trunk cache: hidden states below the first adapted layer, the same for all members, computed once per row.

They are kept in memory or in a memory-mapped file, which may be larger than memory. File format: `<name>.bin` has the
hidden states `[tokens, D]` of all rows, one after the other, in the machine's byte order; `<name>.json` has a key of
their inputs, the shape, the number format and the SHA-256.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from lorchestra.distributed import ALONE, Group
from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.inference.packed import run_packed
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.loading import dtype_name
from lorchestra.nn.kv_cache import PrefixCache
from lorchestra.nn.packing import BASE, Item, PackedBatch, forward_budget, pack, plan_micro_batches, same_state
from lorchestra.store.atomic import atomic_path, atomic_write_json, sha256_file
from lorchestra.store.safe_paths import inside
from lorchestra.types import EncodedExample

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrunkFiles:
    """Directory for trunks that are too large for memory."""

    directory: Path
    base_digest: str
    memory_bytes: int
    """Trunks of at most this size stay in memory."""
    log: Callable[..., None] = lambda event, **values: None
    """Writes an event, by its name and values, to the run's event log."""

    def file(self, name: str, rows: Sequence[EncodedExample], settings: Sequence[object]) -> TrunkFile:
        """The file for some rows; `settings` are the other inputs of the bits: cut, budget, threads, number format."""
        digest = hashlib.sha256(json.dumps([self.base_digest, *map(str, settings)]).encode())
        for row in rows:
            layout: list[object] = [] if row.tree is None else ["tree"]  # its tokens are other ones than those of texts
            if row.state:
                layout.append(row.state)
            digest.update(json.dumps([row.prefix, row.choices, *layout]).encode())
        return TrunkFile(self.directory / f"trunk-{name}.bin", digest.hexdigest())


@dataclass(frozen=True)
class TrunkFile:
    """A file with the trunks whose inputs have the digest `key`."""

    path: Path
    key: str

    def tensor(
        self, shape: tuple[int, int], dtype: torch.dtype, fill: Callable[[Tensor], None], group: Group = ALONE
    ) -> Tensor:
        """Map the file as a tensor; `fill` computes a new file if this one is missing, damaged or of other inputs.

        It is written under a temporary name and renamed, so a second process or an interruption does no damage. The
        processes of a group call this together: the first one writes the file, and all map it.

        Raises:
            CheckpointError: the disk is full.
        """
        description: dict[str, object] = {"key": self.key, "shape": list(shape), "dtype": str(dtype)}
        inside(self.path.parent, self.path.name)  # neither file may be a link
        record = inside(self.path.parent, f"{self.path.stem}.json")
        if not group.first(lambda: self._is_usable(record, description)):
            with ExitStack() as written:
                new = group.first(lambda: str(self._create(written, shape[0] * shape[1] * dtype.itemsize)))
                # the others take part in the computation and store nothing
                fill(_mapped(Path(new), "r+", shape, dtype) if group.is_first else _nowhere(shape, dtype))
                complete = written.pop_all()
                group.first(lambda: self._complete(complete, record, description))
        return _mapped(self.path, "c", shape, dtype)

    def _is_usable(self, record: Path, description: Mapping[str, object]) -> bool:
        reason = self._unfit(record, description) if record.exists() else ""
        if reason:
            logger.info(f"{self.path}: {reason}; the layers below the adapters are computed again")
        return reason is None

    def _create(self, written: ExitStack, num_bytes: int) -> Path:
        """Make a file of this size, which gets its name when `written` is closed."""
        temporary = written.enter_context(atomic_path(self.path, num_bytes=num_bytes))
        with temporary.open("r+b") as file:
            file.truncate(num_bytes)
        return temporary

    def _complete(self, written: ExitStack, record: Path, description: Mapping[str, object]) -> None:
        written.close()
        atomic_write_json(record, {**description, "sha256": sha256_file(self.path)})

    def _unfit(self, record: Path, description: Mapping[str, object]) -> str | None:
        """Why the file cannot be used; empty if it has other inputs, as when a sweep changes the adapted layers."""
        try:
            recorded = json.loads(record.read_text(encoding="utf-8"))
            digest = recorded.pop("sha256")
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return f"{record.name} is damaged"
        if recorded != description:
            return ""
        try:
            return None if sha256_file(self.path) == digest else "the cached layers are damaged (wrong checksum)"
        except CheckpointError:
            return "the cached layers are missing"


def _mapped(path: Path, mode: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Map a file as a tensor. Mode c (copy on write) maps it read-only, while the tensor is writable."""
    raw = np.memmap(path, dtype=np.uint8, mode=mode)  # type: ignore[call-overload]
    return torch.from_numpy(raw).view(dtype).view(shape)


def _nowhere(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """A tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


class TrunkCache:
    """Cached trunks of some rows, in one flat tensor in memory or mapped from a file.

    Rows are packed in their given order, independent of the batches that later read them, so a resumed run reads the
    same bits.

    Args:
        model: the ensemble; the trunk ends below its first adapted layer.
        rows: the examples, identified by their `row` index.
        token_budget: most tokens in a training step's micro-batch; see `forward_budget`.
        progress: called with the number of rows done after each pass.
        shared: number of first tokens that all rows share. They are stored once, and batches must be packed with the
            same number.
        file: where to store the trunks; None keeps them in memory.
        dtype: number format of the stored trunks, by default the base's; `gather` converts back.
        prefix: KV cache of the shared tokens; they are then not stored at all.
        states: KV caches of the states of typed questions, by the rows' indices; states that are cached for `BASE` are
            not stored, and those of the others are added to their caches.
        group: processes with the same model and rows, which call this together. They compute the passes in turns and
            exchange the results, which are the bits of one process.

    Raises:
        CheckpointError: the disk is full.
        ConfigError: a hidden state is out of the range of `dtype`.
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
        states: Mapping[int, PrefixCache] = MappingProxyType({}),
        group: Group = ALONE,
    ) -> None:
        self.shared = shared
        self.device = model.device
        self._base_dtype = model.dtype
        dtype = dtype or model.dtype
        head = shared if prefix is None else 0  # shared tokens, stored once at the start
        items = [Item(BASE, row, state=states.get(row.row)) for row in rows]
        self._located, num_stored = _locations(items, shared, head)

        def fill(flat: Tensor) -> None:
            done = 0
            budget = forward_budget(token_budget, model.device)
            for batch, hidden in _passes(model, items, budget, shared, prefix, group):
                narrow = _narrowed(hidden, dtype)
                first = 0
                for piece in batch.pieces:
                    for part in self._slices(batch.items[piece.item].example, piece.start, piece.stop):
                        flat[part] = narrow[first : first + part.stop - part.start]
                        first += part.stop - part.start
                done += len(batch.items)
                if progress is not None:
                    progress(done)

        shape = (num_stored, model.hidden_size)
        if file is not None:
            self._flat = file.tensor(shape, dtype, fill, group)
        else:
            self._flat = torch.empty(shape, dtype=dtype, device=model.device)
            fill(self._flat)

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return self._flat.nbytes

    def gather(self, batch: PackedBatch) -> Tensor:
        """Return the trunk of a packed batch, `[1, N, D]`, in the base's number format.

        Raises:
            ValueError: the batch was packed with a shared prefix of another length.
        """
        if batch.shared != self.shared:
            raise ValueError(f"the batch shares {batch.shared} first tokens, the cached trunks {self.shared}")
        parts = [
            self._flat[part]
            for piece in batch.pieces
            for part in self._slices(batch.items[piece.item].example, piece.start, piece.stop)
        ]
        return torch.cat(parts)[None].to(self.device).to(self._base_dtype)

    def _slices(self, row: EncodedExample, start: int, stop: int) -> Iterator[slice]:
        """Yield where tokens `start:stop` of a row are stored."""
        known, state_start, rest_start = self._located[row.row]
        bounds = (0, known, max(known, row.state), row.num_tokens)
        for (first, last), offset in zip(itertools.pairwise(bounds), (0, state_start, rest_start), strict=True):
            low, high = max(start, first), min(stop, last)
            if low < high:
                yield slice(offset + low - first, offset + high - first)


def _passes(
    model: EnsembleModel, items: Sequence[Item], budget: int, shared: int, prefix: PrefixCache | None, group: Group
) -> Iterator[tuple[PackedBatch, Tensor]]:
    """Yield all micro-batches with their trunks `[N, D]`, in every process of the group; each computes its share."""
    planned = plan_micro_batches(items, budget, shared, prefix)
    for start in range(0, len(planned), group.size):
        parts = planned[start : start + group.size]  # the last round may have fewer
        mine = parts[group.rank] if group.rank < len(parts) else []
        batches = {rank: pack(part, "cpu", shared, prefix) for rank, part in enumerate(parts) if part is not mine}
        hidden = torch.empty(1, 0, model.hidden_size, dtype=model.dtype)
        for batch, outputs in run_packed(model, mine, budget, "trunk", shared=shared, prefix=prefix):
            batches[group.rank], hidden = batch, outputs
        trunks = group.gather_tensors(hidden[0])
        yield from ((batches[rank], trunks[rank]) for rank in range(len(parts)))


def _locations(items: Sequence[Item], shared: int, head: int) -> tuple[dict[int, tuple[int, int, int]], int]:
    """Where the tokens of each row are stored, by the row's index, and the number of stored tokens.

    Per row: the number of first tokens that are stored for all rows or cached, where its state starts behind these, and
    where the rest starts. The `shared` first tokens take `head` of the store. Consecutive rows with the same state have
    one copy of it, and those of which it is cached none.
    """
    located: dict[int, tuple[int, int, int]] = {}
    stop, before = head, None
    for item in items:
        row, cached = item.example, item.cached_state is not None
        known = row.state if cached else max(shared, item.started)
        if before is not None and before.state is item.state and same_state(row, before.example):
            state_start = located[before.example.row][1]
        else:
            state_start, stop = stop, stop + max(0, row.state - known)
        located[row.row] = known, state_start, stop
        stop += row.num_tokens - max(known, row.state)
        before = item
    return located, stop


def trunk_bytes(
    model: EnsembleModel, rows: Sequence[EncodedExample], shared: int = 0, dtype: torch.dtype | None = None
) -> int:
    """Size of a `TrunkCache` of these rows, in bytes."""
    _, num_tokens = _locations([Item(BASE, row) for row in rows], shared, shared)
    return num_tokens * model.hidden_size * (dtype or model.dtype).itemsize


def trunk_dtype(model: EnsembleModel) -> torch.dtype:
    """The number format set by `adapt.trunk_dtype`."""
    formats = {"auto": model.dtype, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return formats[model.adapt.trunk_dtype]


def _narrowed(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert hidden states to a number format.

    Raises:
        ConfigError: a finite value overflows.
    """
    narrow = hidden.to(dtype)
    overflows = narrow.isinf() & hidden.isfinite()
    if bool(overflows.any()):
        largest = hidden[overflows].abs().max().item()
        raise ConfigError(
            f"adapt.trunk_dtype: {dtype_name(dtype)} holds numbers up to {torch.finfo(dtype).max:.4g}, but hidden"
            f" states below the first adapted layer reach {largest:.4g}; use bfloat16, which has the range of float32,"
            " or auto"
        )
    return narrow
