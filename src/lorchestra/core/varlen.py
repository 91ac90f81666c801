"""Attention over all segments in one kernel of variable lengths, for a GPU in half precision.

The kernel is `torch.nn.attention.varlen.varlen_attn` (FlashAttention). Its causal mask is aligned at a segment's last
key, which is what a segment after its context asks for; so contexts, kept prefixes and windows need no masks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from lorchestra.core.layout import Packing, Run

_MOST_FEATURES, _ALIGNED = 256, 8
"""Features of a head that the kernel takes: at most, and multiples of."""
_TAKES_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters


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
    """Attention within the segments of `packing`.

    Args:
        query: `[1, H, N, d]`.
        key: `[1, G, N, d]` with G a divisor of H.
        value: `[1, G, N, d]`.
        packing: the segments.
        scale: factor on the scores; None is `d ** -0.5`.
        window: a token sees itself and the `window - 1` tokens before it; None sees all.
        kept: keys and values `[1, G, P, d]` of a kept prefix by member, for segments that see one.
        kernel: another function of `varlen_attn`'s meaning.

    Returns:
        `[1, H, N, d]`.
    """
    attend: Callable[..., Any] = kernel or _kernel
    lengths = [segment.stop - segment.start for segment in packing.segments]
    keys, values = key.split(lengths, dim=2), value.split(lengths, dim=2)
    before = kept or {}
    kept_keys = {member: pair[0] for member, pair in before.items()}
    kept_values = {member: pair[1] for member, pair in before.items()}
    outputs: list[Tensor] = [
        attend(
            part.transpose(0, 1),
            _seen(key, keys, packing, run, kept_keys),
            _seen(value, values, packing, run, kept_values),
            run.queries,
            run.keys,
            run.longest_query,
            run.longest_key,
            scale=scale,
            window_size=(-1 if window is None else window - 1, 0),
        )
        for run, part in zip(packing.runs, query[0].split([_length(run) for run in packing.runs], dim=1), strict=True)
    ]
    out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return out.transpose(0, 1)[None]


def _kernel(query: Tensor, key: Tensor, value: Tensor, *bounds: Any, **options: Any) -> Any:
    """torch's, with the heads of keys repeated where it does not take groups (torch 2.11)."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and _TAKES_GROUPS:
        options["enable_gqa"] = True
    elif groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return varlen_attn(query, key, value, *bounds, **options)


def _length(run: Run) -> int:
    return run.tokens.stop - run.tokens.start


def _seen(whole: Tensor, parts: Sequence[Tensor], packing: Packing, run: Run, kept: Mapping[int, Tensor]) -> Tensor:
    """Keys or values as `run.keys` counts them, `[K, G, d]`; without copies where no segment sees another.

    `split` and `cat`, whose backward adds in one order, and not a gather, whose backward may not.
    """
    segments = packing.segments[run.segments]
    if not any(segment.sees_others for segment in segments):
        return whole[0, :, run.tokens].transpose(0, 1)
    pieces: list[Tensor] = []
    for own, segment in zip(parts[run.segments], segments, strict=True):
        if segment.kept_for is not None:
            pieces.append(kept[segment.kept_for])
        pieces += [parts[i] for i in segment.context]
        pieces.append(own)
    return torch.cat(pieces, dim=2)[0].transpose(0, 1)
