"""The gated MLP of a frozen decoder layer, `down(silu(gate(x)) * up(x))`, saving less for the backward pass.

Autograd by itself saves three tensors of the MLP's width: what silu was given, and both factors of the product. Two are
enough, since silu is cheap to do again. For the form see Shazeer, arXiv 2002.05202.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _GatedProduct(torch.autograd.Function):
    """`silu(gate) * up`, from which the backward pass keeps gate and up only."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """Any shape, the same for both."""
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of gate and up."""
        (grad,) = grad_outputs
        gate, up = ctx.saved_tensors
        grad_up = F.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), grad_up


def gated_product(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, elementwise."""
    return _GatedProduct.apply(gate, up)
