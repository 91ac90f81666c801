"""AdamW for M members in lockstep: one state, one learning rate, one decay and one clip a member.

Members are updated row by row, so a stopped or failed member is not touched at all: masking its gradient would not be
enough, since Adam's moments would go on moving it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@torch.no_grad()
def clip_gradients(grad_MP: Tensor, max_norms: Sequence[float]) -> Tensor:
    """Scale each member's gradient, in place, to at most its own norm bound (0 is no bound).

    Returns:
        The norms before clipping, `[M]`.
    """
    norms = grad_MP.norm(dim=1)
    for member, bound in enumerate(max_norms):
        if bound > 0:
            grad_MP[member].mul_((bound / (norms[member] + 1e-6)).clamp(max=1.0))
    return norms


class MemberAdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) with a decoupled decay for A and another for B.

    `B <- B - lr * update - lr * weight_decay_b * B`, and A likewise. The paper (arXiv 2310.00035) decays B only: B at
    zero is the base's function, while decaying A only pulls the members together.

    Args:
        values_MP: the members' parameters, changed in place.
        is_B_P: which columns belong to a B matrix, bool `[P]`.
        weight_decay_b: strength on B, one a member.
        weight_decay_a: strength on A, one a member; by default none.
        betas: decay rates of the moments.
        eps: added to the denominator.
    """

    def __init__(
        self,
        values_MP: Tensor,
        is_B_P: Tensor,
        weight_decay_b: Sequence[float],
        weight_decay_a: Sequence[float] | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.values = values_MP
        self.is_B = is_B_P
        self.weight_decay_b = tuple(weight_decay_b)
        self.weight_decay_a = tuple(weight_decay_a or [0.0] * len(self.weight_decay_b))
        self.betas = betas
        self.eps = eps
        self.first_moment = torch.zeros_like(values_MP)
        self.second_moment = torch.zeros_like(values_MP)
        self.num_steps = [0] * len(values_MP)

    @torch.no_grad()
    def step(self, grad_MP: Tensor, lrs: Sequence[float], members: Sequence[int]) -> None:
        """Update the named members, each by its own learning rate; the others keep every bit."""
        beta1, beta2 = self.betas
        for m in members:
            self.num_steps[m] += 1
            grad, first, second = grad_MP[m], self.first_moment[m], self.second_moment[m]
            first.lerp_(grad, 1 - beta1)
            second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            decay_a, decay_b = lrs[m] * self.weight_decay_a[m], lrs[m] * self.weight_decay_b[m]
            if decay_a or decay_b:
                # where on plain numbers would give the default dtype, float32, also to float64 members
                shrink_a, shrink_b = self.values.new_tensor([1 - decay_a, 1 - decay_b])
                self.values[m].mul_(torch.where(self.is_B, shrink_b, shrink_a))
            denominator = second.sqrt().div_(math.sqrt(1 - beta2 ** self.num_steps[m])).add_(self.eps)
            self.values[m].addcdiv_(first, denominator, value=-lrs[m] / (1 - beta1 ** self.num_steps[m]))


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step: a linear warm-up from zero, then linear, cosine or no decay to zero.

    `num_steps` counts optimizer steps; `warmup` is the share of them in which the rate rises.
    """

    peak: float
    num_steps: int
    kind: str
    warmup: float

    def __call__(self, step: int) -> float:
        """The rate of optimizer step `step`, counted from 0."""
        num_warm = math.ceil(self.warmup * self.num_steps)
        if step < num_warm:
            return self.peak * (step + 1) / num_warm
        if self.kind == "constant":
            return self.peak
        progress = (step - num_warm) / max(1, self.num_steps - num_warm)
        if self.kind == "cosine":
            return self.peak * 0.5 * (1 + math.cos(math.pi * progress))
        return self.peak * (1 - progress)
