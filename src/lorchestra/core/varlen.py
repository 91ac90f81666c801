"""Attention over all segments in one kernel of variable lengths, for a GPU in half precision.

The kernel is `torch.nn.attention.varlen.varlen_attn` (FlashAttention). Its causal mask is aligned at a segment's last
key, which is what a segment after its context asks for; so contexts, kept prefixes and windows need no masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from lorchestra.core.packing import Packing

_MOST_FEATURES, _ALIGNED = 256, 8
"""Features of a head that the kernel takes: at most, and multiples of."""


def suits_varlen(query: Tensor, value: Tensor) -> bool:
    """Whether the kernel takes heads like these, and is there for their device and format."""
    features = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and features == value.shape[-1]
        and features <= _MOST_FEATURES
        and features % _ALIGNED == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    *,
    scale: float | None = None,
    window: int | None = None,
    kept: Mapping[int, tuple[Tensor, Tensor]] | None = None,
    kernel: Callable[..., Any] | None = None,
) -> Tensor:
    """Attention within the segments of `packing`, heads of keys repeated to those of queries.

    Args:
        query: `[1, H, N, d]`.
        key: `[1, H, N, d]`.
        value: `[1, H, N, d]`.
        packing: the segments.
        scale: factor on the scores; None is `d ** -0.5`.
        window: a token sees itself and the `window - 1` tokens before it; None sees all.
        kept: keys and values `[1, H, P, d]` of a kept prefix by member, for segments that see one.
        kernel: another function of `varlen_attn`'s meaning.

    Returns:
        `[1, H, N, d]`.
    """
    bounds = packing.bounds
    attend: Callable[..., Any] = kernel or varlen_attn
    out: Tensor = attend(
        query[0].transpose(0, 1),
        _seen(key, packing, {member: pair[0] for member, pair in (kept or {}).items()}),
        _seen(value, packing, {member: pair[1] for member, pair in (kept or {}).items()}),
        bounds.queries,
        bounds.keys,
        bounds.longest_query,
        bounds.longest_key,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
    )
    return out.transpose(0, 1)[None]


def _seen(tensor: Tensor, packing: Packing, kept: Mapping[int, Tensor]) -> Tensor:
    """Keys or values as `bounds.keys` counts them, `[K, H, d]`; without copies where no segment sees another.

    `split` and `cat`, whose backward adds in one order, and not a gather, whose backward may not.
    """
    if not any(segment.sees_others for segment in packing.segments):
        return tensor[0].transpose(0, 1)
    parts = tensor.split([s.stop - s.start for s in packing.segments], dim=2)
    pieces: list[Tensor] = []
    for own, segment in zip(parts, packing.segments, strict=True):
        if segment.kept_for is not None:
            pieces.append(kept[segment.kept_for])
        pieces += [parts[i] for i in segment.context]
        pieces.append(own)
    return torch.cat(pieces, dim=2)[0].transpose(0, 1)
