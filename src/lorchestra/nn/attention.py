"""Attention over a packed batch: every segment attends to its context and, causally, to itself.

The functions follow the calling convention of transformers' `AttentionInterface`. Four implementations of one result:

- one call of torch's attention per segment, or tree of choices (CPU);
- padded batches of segments of similar length, for those without context (CUDA, full precision): one kernel per row
  would cost more than its arithmetic;
- one variable-length kernel over all segments (CUDA, half precision), `torch.nn.attention.varlen.varlen_attn`
  (FlashAttention). Its causal mask is aligned at a segment's last key, so contexts, cached prefixes and windows need
  no explicit masks;
- explicit matrix products, for models with capped scores or attention sinks.

Segments are cut out with `split`: its backward is one concatenation, which is deterministic, unlike the accumulating
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
from lorchestra.nn.layout import CacheKey, Packing, SegmentGroup

_LONG = 1024
"""Keys from which on a segment behind a shorter context is computed by a causal kernel."""
_SHORT = 512
"""Longest segment up to which training in half precision on a CPU computes attention in float32."""
_HALF_PRECISION = (torch.bfloat16, torch.float16)
_MAX_HEAD_DIM, _ALIGNMENT = 256, 8
"""The variable-length kernel supports head dimensions up to the one that are multiples of the other."""
_HAS_ENABLE_GQA = "enable_gqa" in inspect.signature(varlen_attn).parameters
# Arguments that packing replaces. Others would change the result.
_IGNORED_ARGUMENTS = {"position_ids", "use_cache", "cache_position", "output_attentions", "output_router_logits"}

CachedKeys = Mapping[CacheKey, tuple[Tensor, Tensor]]
"""Keys and values `[1, G, P, d]` of cached prefixes, by `Segment.cache_key`."""


@dataclass(frozen=True)
class Scores:
    """How attention scores are computed from queries and keys."""

    scale: float | None = None
    """Factor on the scores; None is `d ** -0.5`."""
    window: int | None = None
    """A token attends to itself and the `window - 1` tokens before it; None is no limit."""
    softcap: float | None = None
    """Scores become `softcap * tanh(score / softcap)`."""
    sinks: Tensor | None = None
    """`[H]`: per head, an extra score that receives probability and has no value."""

    @property
    def is_standard(self) -> bool:
        """Whether torch's attention supports them."""
        return self.softcap is None and self.sinks is None


def make_attention(slot: ContextSlot) -> Callable[..., tuple[Tensor, None]]:
    """Return an attention function for `AttentionInterface.register` that reads the packing from `slot`."""

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
        **others: object,
    ) -> tuple[Tensor, None]:
        """Query `[1, H, N, d]`, key and value `[1, G, N, d]` -> `[1, N, H, d]`, with `H / G` query heads per key."""
        packing = slot.packing
        if packing is None:
            raise RuntimeError("packed attention was called outside a packed pass")
        unsupported = {name for name, argument in others.items() if argument is not None} - _IGNORED_ARGUMENTS
        if attention_mask is not None:
            unsupported.add("a mask")
        if is_causal is False:
            unsupported.add("is_causal=False")
        if unsupported:
            raise ValueError(
                f"this model's attention needs what packing does not support: {', '.join(sorted(unsupported))}"
            )
        scale = getattr(module, "scaling", None) if scaling is None else scaling
        if packing.prefix is not None and packing.prefill:
            for span in packing.spans:
                tokens = slice(span.start, span.stop)
                packing.prefix.store(module, span.member, key[:, :, tokens], value[:, :, tokens])
        for part in packing.stored:
            tokens = slice(part.start, part.stop)
            part.cache.store(module, part.member, key[:, :, tokens], value[:, :, tokens])
        scores = Scores(scale, sliding_window, softcap, s_aux)
        out = packed_attention(query, key, value, packing, scores, cached=_cached(module, packing))
        return out.transpose(1, 2).contiguous(), None  # some models call `view` on it

    return attention


def _cached(module: nn.Module, packing: Packing) -> CachedKeys:
    """One layer's cached keys and values of the prefixes that segments of a packing see."""
    return {key: prefix.get(module, member) for key, (prefix, member) in packing.cache_reads.items()}


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
        batched: whether segments without context are computed in padded batches; None does so on CUDA where the
            variable-length kernel cannot be used. Ignored where a window, a cap or sinks need more than causal batches.
        cached: keys and values of a cached prefix, for segments that see one.

    Returns:
        `[1, H, N, d]`.
    """
    if batched is None and scores.is_standard and _supports_varlen(query, value):
        return varlen_attention(query, key, value, packing, scores, cached=cached)
    if _is_faster_in_float32(query, packing):
        full = {which: (k.float(), v.float()) for which, (k, v) in (cached or {}).items()}
        out = packed_attention(query.float(), key.float(), value.float(), packing, scores, batched=batched, cached=full)
        return out.to(query.dtype)
    groups = query.shape[1] // key.shape[1]
    # On a CPU, torch's attention supports grouped heads without repeated keys and values. Not every CUDA kernel does,
    # nor do the explicit products.
    if groups > 1 and (query.is_cuda or not scores.is_standard):
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
        cached = {
            which: (k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1))
            for which, (k, v) in (cached or {}).items()
        }
    fits_window = scores.window is None or max(s.stop - s.start for s in packing.segments) <= scores.window
    if (query.is_cuda if batched is None else batched) and scores.is_standard and fits_window:
        with_context = [index for index, segment in enumerate(packing.merged_segments) if segment.sees_others]
        one_by_one = _attend_segments(query, key, value, packing, scores, with_context, cached or {})
        return _in_packed_order(one_by_one, _attend_buckets(query, key, value, packing, scores.scale), packing)
    indices = range(len(packing.merged_segments))
    return torch.cat(_attend_segments(query, key, value, packing, scores, indices, cached or {}), dim=2)


def _is_faster_in_float32(query: Tensor, packing: Packing) -> bool:
    """Whether attention in half precision is computed in float32, which is also more exact.

    The backward pass of the CPU's kernel costs some 0.4 ms more per segment in bfloat16, whatever the length: five
    times as much at 12 tokens, the same at 300, less at 1,000.
    """
    return (
        query.device.type == "cpu"
        and query.dtype in _HALF_PRECISION
        and query.requires_grad
        and max(segment.stop - segment.start for segment in packing.merged_segments) <= _SHORT
    )


def _attend_segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    scores: Scores,
    indices: Sequence[int],
    cached: CachedKeys,
) -> list[Tensor]:
    """Attention of the merged segments at `indices`, one call each: a list of `[1, H, n, d]`."""
    segments = packing.merged_segments
    lengths = [segment.stop - segment.start for segment in segments]
    queries, keys, values = query.split(lengths, dim=2), key.split(lengths, dim=2), value.split(lengths, dim=2)
    outputs = []
    for index in indices:
        segment, all_keys, all_values = segments[index], keys[index], values[index]
        if segment.sees_others:
            prefix = [] if segment.cached_for is None else [cached[segment.cache_key]]
            pairs = [*prefix, *((keys[i], values[i]) for i in segment.context), (all_keys, all_values)]
            all_keys, all_values = (torch.cat(list(tensors), dim=2) for tensors in zip(*pairs, strict=True))
        num_keys = all_keys.shape[2]
        context = num_keys - lengths[index]
        if segment.tree is None and scores.is_standard and scores.window is None and _is_long(context, num_keys):
            outputs.append(_causal_behind(queries[index], all_keys, all_values, context, scores.scale))
            continue
        exceeds_window = scores.window is not None and num_keys > scores.window
        window = scores.window if exceeds_window else None
        mask = None
        if segment.tree is not None:
            mask = packing.tree_mask(segment.tree, context, window)
        elif segment.sees_others or exceeds_window or not scores.is_standard:
            mask = _causal_mask(lengths[index], num_keys, window, query.device)
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


def _is_long(context: int, num_keys: int) -> bool:
    """Whether a segment with so many keys, some of which are context, is better computed without an explicit mask."""
    return num_keys >= _LONG and 0 < 2 * context < num_keys


def _causal_behind(query: Tensor, keys: Tensor, values: Tensor, context: int, scale: float | None) -> Tensor:
    """Causal attention of `[1, H, n, d]` behind a context, without a mask: that of a kernel starts at the first key.

    Queries of zeros in front of the others take the context's place; their outputs are dropped. With n above the
    context this computes less than half of what a mask does.
    """
    padded = F.pad(query, (0, 0, context, 0))
    grouped = query.shape[1] != keys.shape[1]
    out = F.scaled_dot_product_attention(padded, keys, values, is_causal=True, scale=scale, enable_gqa=grouped)
    return out[:, :, context:]


def _attend_buckets(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float | None) -> list[Tensor]:
    """Causal attention of the segments without context: per bucket `[n, H, d]`, in the order of `Bucket.tokens`.

    Each token is gathered once, so the backward's scatter has no collisions and is deterministic. Padding reads zeros
    and comes after the tokens, where causal attention hides it.
    """
    padded = [F.pad(tensor[0].transpose(0, 1), (0, 0, 0, 0, 0, 1)) for tensor in (query, key, value)]
    outputs = []
    for bucket in packing.buckets:
        rows = [tensor.index_select(0, bucket.slots.flatten()) for tensor in padded]
        q, k, v = (tensor.unflatten(0, bucket.slots.shape).transpose(1, 2) for tensor in rows)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        outputs.append(out.transpose(1, 2).flatten(0, 1).index_select(0, bucket.filled))
    return outputs


def _in_packed_order(one_by_one: list[Tensor], in_buckets: list[Tensor], packing: Packing) -> Tensor:
    """Join the outputs of single segments and of buckets in the order of the packed axis, `[1, H, N, d]`."""
    device = packing.input_ids.device
    tokens = [torch.arange(s.start, s.stop, device=device) for s in packing.segments if s.sees_others]
    outputs = [out[0].transpose(0, 1) for out in one_by_one]
    tokens += [bucket.tokens for bucket in packing.buckets]
    order = torch.cat(tokens).argsort()
    return torch.cat([*outputs, *in_buckets]).index_select(0, order).transpose(0, 1)[None]


def _causal_mask(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """Bool `[num_queries, num_keys]`, true where visible; aligned at the *last* key: the context comes first."""
    last = num_keys - num_queries + torch.arange(num_queries, device=device)[:, None]
    position = torch.arange(num_keys, device=device)[None, :]
    visible = position <= last
    return visible if window is None else visible & (position > last - window)


def _explicit_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scores: Scores) -> Tensor:
    """Attention by explicit products, for models with capped scores or sinks."""
    products = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scores.scale is None else scores.scale)
    if scores.softcap is not None:
        products = torch.tanh(products / scores.softcap) * scores.softcap
    products = products.masked_fill(~mask, float("-inf"))
    if scores.sinks is not None:
        sink = scores.sinks.view(1, -1, 1, 1).expand(products.shape[0], -1, products.shape[2], 1).to(products.dtype)
        products = torch.cat([products, sink], dim=-1)
    weights = products.softmax(dim=-1, dtype=torch.promote_types(products.dtype, torch.float32)).to(value.dtype)
    return weights[..., : key.shape[2]] @ value


def _supports_varlen(query: Tensor, value: Tensor) -> bool:
    """Whether the variable-length kernel supports these heads, their number format and device."""
    head_dim = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in _HALF_PRECISION
        and head_dim == value.shape[-1]
        and head_dim <= _MAX_HEAD_DIM
        and head_dim % _ALIGNMENT == 0
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
    kernel: Callable[..., Tensor] | None = None,
) -> Tensor:
    """The same as `packed_attention`, with one call of a variable-length kernel per group of segments.

    `kernel` replaces `varlen_attn` and has its signature.
    """
    attend: Callable[..., Tensor] = kernel or _varlen_kernel
    lengths = [segment.stop - segment.start for segment in packing.segments]
    keys, values = key.split(lengths, dim=2), value.split(lengths, dim=2)
    cached_keys = {which: pair[0] for which, pair in (cached or {}).items()}
    cached_values = {which: pair[1] for which, pair in (cached or {}).items()}
    groups = packing.segment_groups
    sizes = [group.tokens.stop - group.tokens.start for group in groups]
    outputs: list[Tensor] = [
        attend(
            part.transpose(0, 1),
            _visible(key, keys, packing, group, cached_keys),
            _visible(value, values, packing, group, cached_values),
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


def _varlen_kernel(query: Tensor, key: Tensor, value: Tensor, *bounds: Any, **options: Any) -> Any:
    """`varlen_attn`, with repeated key heads where it does not support grouped ones (torch 2.11)."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and _HAS_ENABLE_GQA:
        options["enable_gqa"] = True
    elif groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return varlen_attn(query, key, value, *bounds, **options)


def _visible(
    whole: Tensor, parts: Sequence[Tensor], packing: Packing, group: SegmentGroup, cached: Mapping[CacheKey, Tensor]
) -> Tensor:
    """Keys or values in the order of `group.cu_seqlens_k`, `[K, G, d]`; a view where no segment sees another.

    Concatenated, not gathered: the backward of `split` and `cat` adds in a fixed order, that of a gather may not.
    """
    segments = packing.segments[group.segments]
    if not any(segment.sees_others for segment in segments):
        return whole[0, :, group.tokens].transpose(0, 1)
    pieces: list[Tensor] = []
    for part, segment in zip(parts[group.segments], segments, strict=True):
        if segment.cached_for is not None:
            pieces.append(cached[segment.cache_key])
        pieces += [parts[i] for i in segment.context]
        pieces.append(part)
    return torch.cat(pieces, dim=2)[0].transpose(0, 1)
