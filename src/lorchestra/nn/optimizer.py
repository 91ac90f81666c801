"""AdamW for M members in lockstep, with state, learning rate, decay and clipping per member.

Members are updated one by one, so a stopped or failed member stays untouched: masking its gradient would not be enough,
since Adam's moments would keep moving it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def clip_gradients(grad_MP: Tensor, max_norms: Sequence[float]) -> Tensor:
    """Scale each member's gradient in place to at most its norm bound (0: no bound).

    Returns:
        The norms before clipping, `[M]`.
    """
    norms = grad_MP.norm(dim=1)
    for member, bound in enumerate(max_norms):
        if bound > 0:
            grad_MP[member].mul_((bound / (norms[member] + 1e-6)).clamp(max=1.0))
    return norms


class MemberAdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) with separate decoupled decays for A and B.

    `B <- B - lr * update - lr * weight_decay_b * B`, and A likewise. The paper (arXiv 2310.00035) decays B only: B = 0
    is the base, while decaying A only pulls the members together.

    Args:
        values_MP: the members' parameters, changed in place.
        is_B_P: which columns belong to a B matrix, bool `[P]`.
        weight_decay_b: strength on B, per member.
        weight_decay_a: strength on A, per member; default 0.
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
        """Update some members, each with its learning rate; the others do not change."""
        beta1, beta2 = self.betas
        for m in members:
            self.num_steps[m] += 1
            grad, first, second = grad_MP[m], self.first_moment[m], self.second_moment[m]
            first.lerp_(grad, 1 - beta1)
            second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            decay_a, decay_b = lrs[m] * self.weight_decay_a[m], lrs[m] * self.weight_decay_b[m]
            if decay_a or decay_b:
                # torch.where on Python numbers would give float32 for float64 members, too
                shrink_a, shrink_b = self.values.new_tensor([1 - decay_a, 1 - decay_b])
                self.values[m].mul_(torch.where(self.is_B, shrink_b, shrink_a))
            denominator = second.sqrt().div_(math.sqrt(1 - beta2 ** self.num_steps[m])).add_(self.eps)
            self.values[m].addcdiv_(first, denominator, value=-lrs[m] / (1 - beta1 ** self.num_steps[m]))
