"""Seeds derived from names, not from the order of calls.

Each use of randomness has a separate stream with a derived seed: `derive_seed(run_seed, "order", member, epoch)`. So
adding a member, a module or an epoch changes no other stream, and only the run seed needs saving.
"""

from __future__ import annotations

import hashlib

import torch

_MASK_64 = (1 << 64) - 1


def derive_seed(*names: int | str) -> int:
    """A 63-bit seed that depends on the names alone, the same on every machine and Python version."""
    text = "\x1f".join(f"{type(name).__name__}:{name}" for name in names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*names: int | str) -> torch.Generator:
    """A CPU generator seeded with `derive_seed(*names)`."""
    return torch.Generator().manual_seed(derive_seed(*names))


def permutation(size: int, *names: int | str) -> list[int]:
    """A permutation of `range(size)` that depends on the names alone."""
    return torch.randperm(size, generator=generator(*names)).tolist()


def mix_64(value: int) -> int:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014) on a Python integer; returns 64 unsigned bits."""
    value &= _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)
