"""Attention over a packed batch: every segment sees its context and itself, and nothing else.

Written against the calling convention of transformers' `AttentionInterface`. Four ways of the same result:

- one call of torch's attention per segment (CPU);
- padded batches of segments of similar length, where they see themselves only (CUDA, full precision), because one
  kernel per row would cost more than its arithmetic;
- one variable-length kernel over all segments (CUDA, half precision): `torch.nn.attention.varlen.varlen_attn`
  (FlashAttention), whose causal mask is aligned at a segment's last key, which is what a segment after its context
  needs, so contexts, cached prefixes and windows need no masks;
- spelled out, for models that cap their scores or add sinks.

Segments are cut out with `split`, whose backward is one concatenation: deterministic, and without the accumulating
scatter of a gather.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from lorchestra.nn.context import ContextSlot
from lorchestra.nn.packing import Packing, SegmentGroup

_MAX_FEATURES, _ALIGNED = 256, 8
"""Features of a head that the variable-length kernel takes: at most, and multiples of."""
_TAKES_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters
# Arguments that packing replaces; any other one that is given would change the result.
_KNOWN_EXTRAS = {"position_ids", "use_cache", "cache_position", "output_attentions", "output_router_logits"}

CachedKeys = Mapping[int, tuple[Tensor, Tensor]]
"""Keys and values `[1, G, P, d]` of a cached prefix, by member."""


@dataclass(frozen=True)
class Scores:
    """How scores are made of queries and keys."""

    scale: float | None = None
    """Factor on the scores; None is `d ** -0.5`."""
    window: int | None = None
    """A token sees itself and the `window - 1` tokens before it; None sees all."""
    softcap: float | None = None
    """Scores become `softcap * tanh(score / softcap)`."""
    sinks: Tensor | None = None
    """`[H]`, one extra score per head that takes probability and gives nothing."""

    @property
    def is_standard(self) -> bool:
        """Whether torch's attention computes them."""
        return self.softcap is None and self.sinks is None


def make_attention(slot: ContextSlot) -> Callable[..., tuple[Tensor, None]]:
    """An attention function for `AttentionInterface.register` that reads the packing from `slot`."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        is_causal: bool | None = None,
        **extras: Any,
    ) -> tuple[Tensor, None]:
        """query `[1, H, N, d]`, key and value `[1, G, N, d]` -> `[1, N, H, d]`; attention in `H / G` groups."""
        packing = slot.packing
        if packing is None:
            raise RuntimeError("packed attention was called outside a packed pass")
        unknown = {name for name, given in extras.items() if given is not None} - _KNOWN_EXTRAS
        if attention_mask is not None:
            unknown.add("a mask")
        if is_causal is False:
            unknown.add("is_causal=False")
        if unknown:
            raise ValueError(f"this model asks attention for more than packing can give: {', '.join(sorted(unknown))}")
        scale: Any = module.scaling if scaling is None and hasattr(module, "scaling") else scaling
        if packing.prefix is not None and packing.prefill:
            for span in packing.spans:
                part = slice(span.start, span.stop)
                packing.prefix.store(module, span.member, key[:, :, part], value[:, :, part])
        scores = Scores(scale, sliding_window, softcap, s_aux)
        out = packed_attention(query, key, value, packing, scores, cached=_cached(module, packing))
        return out.transpose(1, 2).contiguous(), None  # some models call `view` on it

    return attention


def _cached(module: nn.Module, packing: Packing) -> CachedKeys:
    """What one layer cached of a common prefix for the members of a packing."""
    if packing.prefix is None or packing.prefill:
        return {}
    return {span.member: packing.prefix.get(module, span.member) for span in packing.spans}


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    scores: Scores = Scores(),
    *,
    batched: bool | None = None,
    cached: CachedKeys | None = None,
) -> Tensor:
    """Attention within the segments of `packing`.

    Args:
        query: `[1, H, N, d]`.
        key: `[1, G, N, d]` with G a divisor of H.
        value: `[1, G, N, d]`.
        packing: the segments.
        scores: scale, window, cap and sinks.
        batched: compute segments without context in padded batches, not one by one; None does so on CUDA, where the
            variable-length kernel cannot be used. Ignored where a window, a cap or sinks ask for more than a causal
            batch.
        cached: keys and values of a cached prefix, for segments that see one.

    Returns:
        `[1, H, N, d]`.
    """
    if batched is None and scores.is_standard and suits_varlen(query, value):
        return varlen_attention(query, key, value, packing, scores, cached=cached)
    groups = query.shape[1] // key.shape[1]
    # On a CPU torch's attention takes groups as they are, and no repeated keys and values are computed or saved. Not
    # every kernel on CUDA does, nor attention spelled out.
    if groups > 1 and (query.is_cuda or not scores.is_standard):
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
        cached = {
            member: (k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1))
            for member, (k, v) in (cached or {}).items()
        }
    fits_window = scores.window is None or max(s.stop - s.start for s in packing.segments) <= scores.window
    if (query.is_cuda if batched is None else batched) and scores.is_standard and fits_window:
        apart = [index for index, segment in enumerate(packing.segments) if segment.sees_others]
        one_by_one = _attend_segments(query, key, value, packing, scores, apart, cached or {})
        return _in_order(one_by_one, _attend_buckets(query, key, value, packing, scores.scale), packing)
    every = range(len(packing.segments))
    return torch.cat(_attend_segments(query, key, value, packing, scores, every, cached or {}), dim=2)


def _attend_segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    scores: Scores,
    indices: Sequence[int],
    cached: CachedKeys,
) -> list[Tensor]:
    """Attention of some segments, one after the other: `[1, H, n, d]` each."""
    lengths = [segment.stop - segment.start for segment in packing.segments]
    queries, keys, values = query.split(lengths, dim=2), key.split(lengths, dim=2), value.split(lengths, dim=2)
    outputs = []
    for index in indices:
        segment, all_keys, all_values = packing.segments[index], keys[index], values[index]
        if segment.sees_others:
            first = [] if segment.cached_for is None else [cached[segment.cached_for]]
            seen = [*first, *((keys[i], values[i]) for i in segment.context), (all_keys, all_values)]
            all_keys, all_values = (torch.cat(list(tensors), dim=2) for tensors in zip(*seen, strict=True))
        num_keys = all_keys.shape[2]
        is_cut = scores.window is not None and num_keys > scores.window
        mask = None
        if segment.sees_others or is_cut or not scores.is_standard:
            mask = _visible(lengths[index], num_keys, scores.window if is_cut else None, query.device)
        if scores.is_standard:
            out = F.scaled_dot_product_attention(
                queries[index],
                all_keys,
                all_values,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scores.scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        else:
            assert mask is not None
            out = _explicit_attention(queries[index], all_keys, all_values, mask, scores)
        outputs.append(out)
    return outputs


def _attend_buckets(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float | None) -> list[Tensor]:
    """Causal attention of the segments without context, bucket by bucket: `[n, H, d]` each, as `Bucket.tokens`.

    Every token is gathered once, so the backward scatters without colliding and its bits do not vary. Padding reads
    zeros, and comes after the tokens, where causal attention hides it.
    """
    padded = [F.pad(tensor[0].transpose(0, 1), (0, 0, 0, 0, 0, 1)) for tensor in (query, key, value)]
    outputs = []
    for bucket in packing.buckets:
        rows = [tensor.index_select(0, bucket.slots.flatten()) for tensor in padded]
        q, k, v = (tensor.unflatten(0, bucket.slots.shape).transpose(1, 2) for tensor in rows)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        outputs.append(out.transpose(1, 2).flatten(0, 1).index_select(0, bucket.filled))
    return outputs


def _in_order(one_by_one: list[Tensor], in_buckets: list[Tensor], packing: Packing) -> Tensor:
    """Outputs of both kinds in the order of the packed axis, `[1, H, N, d]`."""
    device = packing.input_ids.device
    tokens = [torch.arange(s.start, s.stop, device=device) for s in packing.segments if s.sees_others]
    outputs = [out[0].transpose(0, 1) for out in one_by_one]
    tokens += [bucket.tokens for bucket in packing.buckets]
    back = torch.cat(tokens).argsort()
    return torch.cat([*outputs, *in_buckets]).index_select(0, back).transpose(0, 1)[None]


def _visible(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """Bool `[num_queries, num_keys]`: causal, aligned at the *last* key, because the context comes first."""
    last = num_keys - num_queries + torch.arange(num_queries, device=device)[:, None]
    position = torch.arange(num_keys, device=device)[None, :]
    visible = position <= last
    return visible if window is None else visible & (position > last - window)


def _explicit_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scores: Scores) -> Tensor:
    """Attention spelled out, for models that cap their scores or add sinks."""
    products = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scores.scale is None else scores.scale)
    if scores.softcap is not None:
        products = torch.tanh(products / scores.softcap) * scores.softcap
    products = products.masked_fill(~mask, float("-inf"))
    if scores.sinks is not None:
        sink = scores.sinks.view(1, -1, 1, 1).expand(products.shape[0], -1, products.shape[2], 1).to(products.dtype)
        products = torch.cat([products, sink], dim=-1)
    weights = products.softmax(dim=-1, dtype=torch.promote_types(products.dtype, torch.float32)).to(value.dtype)
    return weights[..., : key.shape[2]] @ value


def suits_varlen(query: Tensor, value: Tensor) -> bool:
    """Whether the variable-length kernel takes heads like these, and exists for their device and format."""
    features = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and features == value.shape[-1]
        and features <= _MAX_FEATURES
        and features % _ALIGNED == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    scores: Scores = Scores(),
    *,
    cached: CachedKeys | None = None,
    kernel: Callable[..., Any] | None = None,
) -> Tensor:
    """As `packed_attention`, by one call of a variable-length kernel per group of segments.

    `kernel` is another function with the meaning of `varlen_attn`.
    """
    attend: Callable[..., Any] = kernel or _kernel
    lengths = [segment.stop - segment.start for segment in packing.segments]
    keys, values = key.split(lengths, dim=2), value.split(lengths, dim=2)
    cached_keys = {member: pair[0] for member, pair in (cached or {}).items()}
    cached_values = {member: pair[1] for member, pair in (cached or {}).items()}
    groups = packing.segment_groups
    sizes = [group.tokens.stop - group.tokens.start for group in groups]
    outputs: list[Tensor] = [
        attend(
            part.transpose(0, 1),
            _seen(key, keys, packing, group, cached_keys),
            _seen(value, values, packing, group, cached_values),
            group.cu_seqlens_q,
            group.cu_seqlens_k,
            group.max_seqlen_q,
            group.max_seqlen_k,
            scale=scores.scale,
            window_size=(-1 if scores.window is None else scores.window - 1, 0),
        )
        for group, part in zip(groups, query[0].split(sizes, dim=1), strict=True)
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


def _seen(
    whole: Tensor, parts: Sequence[Tensor], packing: Packing, group: SegmentGroup, cached: Mapping[int, Tensor]
) -> Tensor:
    """Keys or values as `group.cu_seqlens_k` counts them, `[K, G, d]`; not copied where no segment sees another.

    `split` and `cat`, whose backward adds in one order, and not a gather, whose backward may not.
    """
    segments = packing.segments[group.segments]
    if not any(segment.sees_others for segment in segments):
        return whole[0, :, group.tokens].transpose(0, 1)
    pieces: list[Tensor] = []
    for part, segment in zip(parts[group.segments], segments, strict=True):
        if segment.cached_for is not None:
            pieces.append(cached[segment.cached_for])
        pieces += [parts[i] for i in segment.context]
        pieces.append(part)
    return torch.cat(pieces, dim=2)[0].transpose(0, 1)
