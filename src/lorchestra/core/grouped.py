"""All members' low-rank products of a linear map in one grouped kernel each, for a GPU in bfloat16.

There a kernel a member costs more than its arithmetic. `torch.nn.functional.grouped_mm` takes the members' ragged spans
as they lie on the token axis; its gradients, as the loop's in `lora`, save the input and the rank-R product alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_ALIGNED = 8
"""Numbers of half precision in 16 bytes: the kernel reads rows that begin at multiples of them."""
_CAPABILITIES = (9, 10)
"""Major compute capabilities for which torch has one kernel; for others, and other formats, it loops and waits."""
_MOST_GROUPS = 1023


def suits_grouped(x: Tensor, num_outputs: int, num_groups: int) -> bool:
    """Whether products of `x` `[N, I]` and adapters with `num_outputs` outputs can be, and are better, grouped."""
    return (
        x.is_cuda
        and x.dtype == torch.bfloat16
        and x.shape[1] % _ALIGNED == 0
        and num_outputs % _ALIGNED == 0
        and num_groups <= _MOST_GROUPS
        and torch.cuda.get_device_capability(x.device)[0] in _CAPABILITIES
    )


def aligned_rank(matrices: Tensor, dim: int) -> Tensor:
    """`matrices` with zeros up to an aligned rank at the end of dimension `dim` (-1 or -2): they add nothing."""
    missing = -matrices.shape[dim] % _ALIGNED
    if not missing:
        return matrices
    return F.pad(matrices, (0, missing) if dim == -1 else (0, 0, 0, missing))


class GroupedLoRA(torch.autograd.Function):
    """Adds every group's `B A drop(x)` to its tokens of `y`, in place.

    Operands are rounded to `y`'s format, as autocast does; sums within a product are float32. Saves x and the rank-R
    product only; the mask is made again in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, ends: Tensor, mask: Callable[[], Tensor | None], A: Tensor, B: Tensor
    ) -> Tensor:
        """Shapes: y `[N, O]`, x `[N, I]`, A `[G, R, I]`, B `[G, O, R]` times the scaling; `ends` int32 `[G]`.

        Group g is the tokens from `ends[g - 1]` to `ends[g]`, and the last one ends at N. `mask` says which elements
        dropout keeps, `[N, I]`, or None; dividing by the rate that is kept is the scaling's affair.
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
        """Gradients of y, x, A and B; None for the rest."""
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
