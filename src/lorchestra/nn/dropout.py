"""Dropout masks that do not depend on packing.

A stateful generator gives a token another mask whenever a neighbor in the batch changes. Here an element's mask is a
hash of (member seed, step, row, token, module, feature): the same alone and in lockstep, in one micro-batch or in five,
in the forward pass and when a checkpointed layer is recomputed on another thread.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorchestra.nn.seeding import mix_64

_GAMMA = 0x9E3779B97F4A7C15
_LANES = 4  # one 64-bit hash decides four features, 16 bits each


def _signed(value: int) -> int:
    """Reinterpret 64 bits as a signed integer: torch has no arithmetic on unsigned 64-bit integers."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def token_keys(row_seeds: Sequence[int], lengths: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """One 64-bit key per token, int64 `[sum(lengths)]`, from its row's seed and its position in the row."""
    starts = torch.tensor([_signed(mix_64(seed)) for seed in row_seeds], dtype=torch.int64)
    counts = torch.tensor(list(lengths), dtype=torch.int64)
    positions = torch.cat([torch.arange(int(n)) for n in counts]) if len(counts) else torch.empty(0, dtype=torch.int64)
    return (starts.repeat_interleave(counts) + (positions + 1) * _signed(_GAMMA)).to(device)


def keep_mask(keys_N: Tensor, module_seed: int, width: int, rate: float) -> Tensor:
    """Which elements survive dropout, bool `[N, width]`; each with probability `1 - rate`, rounded to 1/65536.

    Args:
        keys_N: the tokens' keys, int64 `[N]`.
        module_seed: makes the masks of modules differ.
        width: features of the masked input.
        rate: share of elements to drop, in [0, 1).
    """
    lanes = -(-width // _LANES)
    offsets = torch.arange(1, lanes + 1, dtype=torch.int64, device=keys_N.device) * _signed(_GAMMA)
    bits = _mix(keys_N + _signed(mix_64(module_seed)))[:, None] + offsets
    draws = _mix(bits).view(torch.int16)[:, :width]
    return draws >= min(round(rate * 65536), 65535) - 32768  # 65536 would wrap around to "drop nothing"


def _mix(value: Tensor) -> Tensor:
    """`mix_64` on a fresh int64 tensor, in place; products wrap around."""
    value = value.clone() if value._base is not None else value
    value ^= (value >> 30) & ((1 << 34) - 1)  # >> is arithmetic on signed integers: mask to make it logical
    value *= _signed(0xBF58476D1CE4E5B9)
    value ^= (value >> 27) & ((1 << 37) - 1)
    value *= _signed(0x94D049BB133111EB)
    value ^= (value >> 31) & ((1 << 33) - 1)
    return value
