"""LoRA for packed batches: a frozen linear layer with M adapters, each applied to its member's span of tokens.

Two implementations: a loop over members, and, on GPUs in bfloat16, where a kernel per member would cost more than its
arithmetic, one grouped kernel per product (`torch.nn.functional.grouped_mm`, which takes ragged spans of the token
axis). Both save only the input and the rank-R product for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorchestra.nn.context import ContextSlot
from lorchestra.nn.dropout import keep_mask
from lorchestra.nn.layout import Packing, Span
from lorchestra.nn.packing import BASE
from lorchestra.nn.seeding import derive_seed

_ALIGNMENT = 8
"""The grouped kernel needs rows aligned to 16 bytes: 8 numbers in half precision."""
_CAPABILITIES = (9, 10)
"""Major compute capabilities with a fused kernel; elsewhere, and in other formats, torch loops and synchronizes."""
_MAX_GROUPS = 1023


def supports_grouped_mm(x: Tensor, num_outputs: int, num_groups: int) -> bool:
    """Whether a grouped kernel exists for `x` `[N, I]` and adapters with `num_outputs` outputs, and is faster."""
    return (
        x.is_cuda
        and x.dtype == torch.bfloat16
        and x.shape[1] % _ALIGNMENT == 0
        and num_outputs % _ALIGNMENT == 0
        and num_groups <= _MAX_GROUPS
        and torch.cuda.get_device_capability(x.device)[0] in _CAPABILITIES
    )


def _align_rank(matrices: Tensor, dim: int) -> Tensor:
    """Pad the rank, dimension `dim` (-1 or -2), with zeros to an aligned size."""
    missing = -matrices.shape[dim] % _ALIGNMENT
    if not missing:
        return matrices
    return F.pad(matrices, (0, missing) if dim == -1 else (0, 0, 0, missing))


class _GroupedLoRA(torch.autograd.Function):
    """Adds `B A drop(x)` of every group to its tokens of `y`, in place.

    Operands are rounded to the number format of `y`, as autocast does; products accumulate in float32. Saves x and the
    rank-R product only; the mask is recomputed in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, ends: Tensor, mask: Callable[[], Tensor | None], A: Tensor, B: Tensor
    ) -> Tensor:
        """Shapes: y `[N, O]`, x `[N, I]`, A `[G, R, I]`, B `[G, O, R]`, with the scaling included; ends int32 `[G]`.

        Group g is tokens `ends[g - 1]:ends[g]`; the last group ends at N. `mask` returns the elements that dropout
        keeps, `[N, I]`, or None; the division by the keep rate is part of B.
        """
        x = x.contiguous()
        low = F.grouped_mm(_masked(x, mask()), A.transpose(1, 2), offs=ends)
        y.add_(F.grouped_mm(low, B.transpose(1, 2), offs=ends))
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, low, ends, A, B)
        ctx.mask = mask
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of y, x, A and B; None for the rest."""
        x, low, ends, A, B = ctx.saved_tensors
        grad_y = grad_outputs[0].contiguous()
        mask = ctx.mask()
        grad_low = F.grouped_mm(grad_y, B, offs=ends)
        grad_A = F.grouped_mm(grad_low.t(), _masked(x, mask), offs=ends)
        grad_B = F.grouped_mm(grad_y.t(), low, offs=ends)
        grad_x = _masked(F.grouped_mm(grad_low, A, offs=ends), mask) if ctx.needs_input_grad[1] else None
        return grad_y, grad_x, None, None, grad_A, grad_B


def _masked(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else values * mask


@dataclass(frozen=True)
class _Dropout:
    """What determines a module's dropout mask: keys of the packed tokens, the module's seed, one rate per member."""

    keys_N: Tensor | None
    module_seed: int
    rates: Sequence[float] = field(default=())

    def scaled_mask(self, span: Span, width: int, dtype: torch.dtype) -> Tensor | None:
        """The span's mask divided by the keep rate, `[n, width]`; None where nothing is dropped."""
        rate = self.rates[span.member] if self.keys_N is not None else 0.0
        if rate == 0.0 or self.keys_N is None:
            return None
        mask = keep_mask(self.keys_N[span.start : span.stop], self.module_seed, width, rate)
        return mask.to(dtype).mul_(1.0 / (1.0 - rate))

    def rate(self, member: int) -> float:
        """The member's dropout rate in this pass; 0 for the base."""
        return 0.0 if self.keys_N is None or member == BASE else self.rates[member]

    def masks(self, spans: Sequence[Span], width: int, dtype: torch.dtype) -> Tensor | None:
        """The elements that are kept in all spans, `[N, width]`; None where nothing is dropped in any."""
        if self.keys_N is None or not any(self.rate(span.member) for span in spans):
            return None
        parts = []
        for span in spans:
            keys, rate = self.keys_N[span.start : span.stop], self.rate(span.member)
            kept = keep_mask(keys, self.module_seed, width, rate) if rate else keys.new_ones(len(keys), width)
            parts.append(kept.to(dtype))
        return torch.cat(parts)


class _PackedLoRA(torch.autograd.Function):
    """Adds `scaling B A drop(x)` of every member to its span of `y`, in place.

    Saves x and the rank-R product only; masks are recomputed in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, spans: Sequence[Span], scaling: Sequence[float], drop: _Dropout, *pairs: Tensor
    ) -> Tensor:
        """Shapes: y `[N, O]`, x `[N, I]`; pairs: A `[R, I]` and B `[O, R]` of each span's member in turn."""
        dtype = pairs[0].dtype
        low = x.new_zeros((x.shape[0], pairs[0].shape[0]), dtype=dtype)
        for span, A, B in zip(spans, pairs[::2], pairs[1::2], strict=True):
            rows = slice(span.start, span.stop)
            inputs = _masked(x[rows].to(dtype), drop.scaled_mask(span, x.shape[1], dtype))
            torch.mm(inputs, A.t(), out=low[rows])
            if y.dtype == dtype:
                y[rows].addmm_(low[rows], B.t(), alpha=scaling[span.member])
            else:
                y[rows] += (low[rows] @ B.t() * scaling[span.member]).to(y.dtype)
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, low, *pairs)
        ctx.scaling, ctx.spans, ctx.drop = scaling, spans, drop
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of y, x and the pairs; None for the rest."""
        (grad_y,) = grad_outputs
        x, low, *pairs = ctx.saved_tensors
        dtype = low.dtype
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[1] else None
        grad_pairs: list[Tensor] = []
        for span, A, B in zip(ctx.spans, pairs[::2], pairs[1::2], strict=True):
            rows, scale = slice(span.start, span.stop), ctx.scaling[span.member]
            mask = ctx.drop.scaled_mask(span, x.shape[1], dtype)
            grad_rows = grad_y[rows].to(dtype)
            grad_low = (grad_rows @ B).mul_(scale)
            grad_pairs.append(grad_low.t() @ _masked(x[rows].to(dtype), mask))
            grad_pairs.append((grad_rows.t() @ low[rows]).mul_(scale))
            if grad_x is not None:
                grad_x[rows] = _masked(grad_low @ A, mask)
        return grad_y, grad_x, None, None, None, *grad_pairs


class MemberLoRALinear(nn.Module):
    """A frozen linear layer with M LoRA adapters, which replaces the layer in the model.

    The current packing assigns tokens to members. Tokens of the base, and passes without a packing, get the frozen
    layer alone. Dropout is on if the packing has dropout keys, whatever the train/eval mode.

    Args:
        base: the frozen layer, `[.., I] -> [.., O]`.
        A: `[R, I]`, one per member.
        B: `[O, R]`, one per member.
        scaling: `lora_alpha / r`, one per member.
        dropout: dropout rate of the adapter's input, one per member.
        slot: holds the packing of the current pass.
        name: the module's name in the model, from which its dropout seed is derived.
    """

    def __init__(
        self,
        base: nn.Module,
        A: Sequence[nn.Parameter],
        B: Sequence[nn.Parameter],
        *,
        scaling: Sequence[float],
        dropout: Sequence[float],
        slot: ContextSlot,
        name: str,
    ) -> None:
        super().__init__()
        self.base = base
        self.A = nn.ParameterList(A)
        self.B = nn.ParameterList(B)
        self.scaling = tuple(scaling)
        self.dropout = tuple(dropout)
        self.slot = slot
        self.module_seed = derive_seed("dropout", name)

    @property
    def weight(self) -> Tensor:
        """The frozen weight; some model code reads its dtype or device."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.base.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Map `[1, N, I] -> [1, N, O]`; any leading shape where no packing is set."""
        packing = self.slot.packing
        spans = () if packing is None else tuple(span for span in packing.spans if span.member != BASE)
        if packing is None or not spans:
            return self.base(x)
        flat = x.flatten(0, -2)  # the base's output is then not a view, and can be added to in place
        if flat.shape[0] != packing.num_tokens:
            raise ValueError(f"an adapted linear layer got {flat.shape[0]} of the batch's {packing.num_tokens} tokens")
        drop = _Dropout(packing.dropout_keys, self.module_seed, self.dropout)
        y = self.base(flat)
        if supports_grouped_mm(flat, y.shape[1], len(packing.spans)):
            return self._grouped(y, flat, packing, drop).unflatten(0, x.shape[:-1])
        pairs = [matrix for span in spans for matrix in (self.A[span.member], self.B[span.member])]
        y = _PackedLoRA.apply(y, flat, spans, self.scaling, drop, *pairs)
        return y.unflatten(0, x.shape[:-1])

    def _grouped(self, y: Tensor, x: Tensor, packing: Packing, drop: _Dropout) -> Tensor:
        """Add the terms of all members to `y` `[N, O]` at once; the base's tokens are a group with A and B of zero."""
        zeros = torch.zeros_like(self.A[0]), torch.zeros_like(self.B[0])
        members = [span.member for span in packing.spans]
        pairs = [zeros if m == BASE else (self.A[m], self.B[m]) for m in members]
        # the keep rate divides B, in the adapters' number format: dividing the mask would round it to the base's
        scaling = [0.0 if m == BASE else self.scaling[m] / (1 - drop.rate(m)) for m in members]
        A = _align_rank(torch.stack([A for A, _ in pairs]), -2)
        B = torch.stack([B * scale for (_, B), scale in zip(pairs, scaling, strict=True)])
        spans, width, dtype = packing.spans, x.shape[1], x.dtype

        def mask() -> Tensor | None:  # must not hold x, which checkpointing frees
            return drop.masks(spans, width, dtype)

        return _GroupedLoRA.apply(y, x, packing.span_ends, mask, A.to(dtype), _align_rank(B, -1).to(dtype))
