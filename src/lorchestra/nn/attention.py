"""Attention over all segments in one kernel of variable lengths, for a GPU in half precision.

The kernel is `torch.nn.attention.varlen.varlen_attn` (FlashAttention). Its causal mask is aligned at a segment's last
key, which is what a segment after its context asks for; so contexts, kept prefixes and windows need no masks.

Attention over a packed batch: every segment sees its context and itself, and nothing else.

Written against the calling convention of transformers' `AttentionInterface`. Segments are cut out with `split`, whose
backward is one concatenation: deterministic, and without the accumulating scatter of a gather. On CUDA a kernel a row
would cost more than its arithmetic: in half precision all segments go through one kernel (`varlen`), in other formats
those without context in padded batches of like length.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from lorchestra.nn.lora import PackingSlot
from lorchestra.nn.packing import Packing, Run, Segment

_MAX_FEATURES, _ALIGNED = 256, 8
"""Features of a head that the kernel takes: at most, and multiples of."""
_TAKES_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters


def suits_varlen(query: Tensor, value: Tensor) -> bool:
    """Whether the kernel takes heads like these, and is there for their device and format."""
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
        if segment.cached_for is not None:
            pieces.append(kept[segment.cached_for])
        pieces += [parts[i] for i in segment.context]
        pieces.append(own)
    return torch.cat(pieces, dim=2)[0].transpose(0, 1)


# What packing answers for by itself; any other argument that is given would change the result.
_KNOWN_EXTRAS = {"position_ids", "use_cache", "cache_position", "output_attentions", "output_router_logits"}


def make_attention(slot: PackingSlot) -> Callable[..., tuple[Tensor, None]]:
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
        if slot.packing is None:
            raise RuntimeError("packed attention was called outside a packed pass")
        unknown = {name for name, given in extras.items() if given is not None} - _KNOWN_EXTRAS
        if attention_mask is not None:
            unknown.add("a mask")
        if is_causal is False:
            unknown.add("is_causal=False")
        if unknown:
            raise ValueError(f"this model asks attention for more than packing can give: {', '.join(sorted(unknown))}")
        scale = module.scaling if scaling is None and hasattr(module, "scaling") else scaling
        packing = slot.packing
        if packing.prefix is not None and packing.fills:
            for span in packing.spans:
                part = slice(span.start, span.stop)
                packing.prefix.keep(module, span.member, key[:, :, part], value[:, :, part])
        out = packed_attention(
            query,
            key,
            value,
            packing,
            scale=scale,
            window=sliding_window,
            softcap=softcap,
            sinks=s_aux,
            kept=_kept_by(module, packing),
        )
        return out.transpose(1, 2).contiguous(), None  # some models call `view` on it

    return attention


def _kept_by(module: nn.Module, packing: Packing) -> dict[int, tuple[Tensor, Tensor]]:
    """What one layer has kept of a common prefix for the members of a packing."""
    if packing.prefix is None or packing.fills:
        return {}
    return {span.member: packing.prefix.of(module, span.member) for span in packing.spans}


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    *,
    scale: Any = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    batched: bool | None = None,
    kept: Mapping[int, tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Attention within the segments of `packing`.

    Args:
        query: `[1, H, N, d]`.
        key: `[1, G, N, d]` with G a divisor of H.
        value: `[1, G, N, d]`.
        packing: the segments.
        scale: factor on the scores; None is `d ** -0.5`.
        window: a token sees itself and the `window - 1` tokens before it; None sees all.
        softcap: scores become `softcap * tanh(score / softcap)`.
        sinks: `[H]`, one extra score a head that takes probability and gives nothing.
        batched: compute segments without context in padded batches, not one by one; None does so on CUDA, where the
            kernel of `varlen` cannot. Where a window or capped scores or sinks ask for more than a causal batch, it is
            without meaning.
        kept: keys and values `[1, G, P, d]` of a kept prefix by member, for segments that see one.

    Returns:
        `[1, H, N, d]`.
    """
    if batched is None and softcap is None and sinks is None and suits_varlen(query, value):
        return varlen_attention(query, key, value, packing, scale=scale, window=window, kept=kept)
    lengths = [segment.stop - segment.start for segment in packing.segments]
    groups = query.shape[1] // key.shape[1]
    # On a CPU torch's attention takes groups as they are, and no repeated keys and values are computed or saved. Not
    # every kernel on CUDA does, nor attention spelled out.
    repeated = groups > 1 and (query.is_cuda or softcap is not None or sinks is not None)

    def spread(tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(groups, dim=1) if repeated else tensor

    key, value = spread(key), spread(value)
    before = {member: (spread(k), spread(v)) for member, (k, v) in (kept or {}).items()}
    plain = softcap is None and sinks is None and (window is None or max(lengths) <= window)
    batched = (query.is_cuda if batched is None else batched) and plain
    queries, keys, values = query.split(lengths, dim=2), key.split(lengths, dim=2), value.split(lengths, dim=2)
    outputs = []
    for index, segment in enumerate(packing.segments):
        if batched and not segment.sees_others:
            continue
        own_key, own_value = keys[index], values[index]
        mask = None
        if segment.sees_others:
            first = [] if segment.cached_for is None else [before[segment.cached_for]]
            seen = [*first, *((keys[i], values[i]) for i in segment.context), (own_key, own_value)]
            own_key, own_value = (torch.cat(list(tensors), dim=2) for tensors in zip(*seen, strict=True))
        if segment.sees_others or (window is not None and own_key.shape[2] > window):
            mask = _visible(segment, lengths[index], own_key.shape[2], window, query.device)
        if softcap is None and sinks is None:
            out = F.scaled_dot_product_attention(
                queries[index],
                own_key,
                own_value,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scale,
                enable_gqa=groups > 1 and not repeated,
            )
        else:
            if mask is None:
                mask = _visible(segment, lengths[index], own_key.shape[2], None, query.device)
            out = _explicit_attention(queries[index], own_key, own_value, mask, scale, softcap, sinks)
        outputs.append(out)
    if not batched:
        return torch.cat(outputs, dim=2)
    return _in_order(outputs, _batched_attention(query, key, value, packing, scale), packing)


def _batched_attention(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: Any) -> list[Tensor]:
    """Causal attention of the segments without context, bucket by bucket: `[n, H, d]` each, as `Bucket.tokens`.

    Every token is gathered once, so the backward scatters without colliding and its bits do not vary. Padding reads
    zeros, and stands behind the tokens, where causal attention hides it.
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


def _visible(segment: Segment, num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """Bool `[num_queries, num_keys]`: causal, aligned at the *last* key: the context comes first."""
    last = num_keys - num_queries + torch.arange(num_queries, device=device)[:, None]
    place = torch.arange(num_keys, device=device)[None, :]
    visible = place <= last
    return visible if window is None else visible & (place > last - window)


def _explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scale: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention spelled out, for models that cap their scores or add sinks."""
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        sink = sinks.view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1).to(scores.dtype)
        scores = torch.cat([scores, sink], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    return weights[..., : key.shape[2]] @ value
