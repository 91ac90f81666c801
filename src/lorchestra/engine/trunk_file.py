"""Cached trunks in a file: one flat array that is mapped, not read, so that it may be larger than memory.

Format: `<name>.bin`, the hidden states `[tokens, D]` of all rows, row after row, in the machine's byte order; and
`<name>.json` with the key of what they were computed from, shape, number format and SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lorchestra.errors import CheckpointError
from lorchestra.store.atomic import atomic_path, atomic_write_json, sha256_file
from lorchestra.store.inside import inside
from lorchestra.types import EncodedExample


@dataclass(frozen=True)
class TrunkFiles:
    """Where trunks go that are too large for memory.

    `say` is told, in one line, when a damaged file is made anew, when there is no room for one, and what a narrower
    number format changes.
    """

    directory: Path
    base_digest: str
    memory_bytes: int
    """Trunks of at most this size stay in memory."""
    say: Callable[[str], None] = lambda text: None
    log: Callable[..., None] = lambda event, **values: None
    """Is given, for the run's log, the name of an event and its values."""

    def file(self, name: str, rows: Sequence[EncodedExample], settings: Sequence[object]) -> TrunkFile:
        """The file of some rows; `settings` is all else that decides the bits: cut, token budget, threads, format."""
        digest = hashlib.sha256(json.dumps([self.base_digest, *map(str, settings)]).encode())
        for row in rows:
            digest.update(json.dumps([row.prefix, row.choices]).encode())
        return TrunkFile(self.directory / f"trunk-{name}.bin", digest.hexdigest(), self.say)


@dataclass(frozen=True)
class TrunkFile:
    """One file, for what `key` stands for."""

    path: Path
    key: str
    say: Callable[[str], None]

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
                self.say(f"{self.path}: {reason}; the layers below are computed anew")
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
