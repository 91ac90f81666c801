"""BatchEnsemble on one shared adapter: members differ by rank-1 fast weights (Wen et al., arXiv 2002.06715).

`A_m = A diag(r_m)`, `B_m = diag(s_m) B`, so that member m's update is the shared one times `s_m r_m^T`, entry by entry.
The members' rows of the bank are a function of the shared and the fast weights; their gradients are pulled back through
it, and AdamW works on the shared and the fast weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lorchestra.errors import ConfigError, TrainingError
from lorchestra.methods.contract import Fitted, Meter, MethodContext
from lorchestra.methods.training import BestTogether, changed, fitted_members, start_training, train_steps
from lorchestra.nn.adapters import StackedAdapters
from lorchestra.nn.optimizer import MemberAdamW, clip_gradients
from lorchestra.nn.seeding import generator
from lorchestra.training.failure import gradient_failure


@dataclass(frozen=True)
class Config:
    """The fast weights."""

    init: Literal["signs", "normal"] = "signs"
    """Their start: random signs, or normal around 1."""
    spread: float = 0.5
    """Standard deviation of the normal start; 0 makes all of them 1."""
    train_fast: bool = True
    """Whether they are trained; else they stay at their start and only the shared adapter moves."""


class FastWeights:
    """How shared and fast weights make the members' adapters.

    A flat vector theta `[Q]` holds the shared adapter as a row of the bank `[P]`, then each member's fast weights: of
    every module r `[I]` and s `[O]`.
    """

    def __init__(self, adapters: StackedAdapters) -> None:
        self.adapters = adapters
        self.num_shared = adapters.values.shape[1]
        self.num_fast = sum(piece.in_features + piece.out_features for piece in adapters.slices)

    def expand(self, theta_Q: Tensor) -> Tensor:
        """The members' adapters `[M, P]`, a differentiable function."""
        adapters = self.adapters
        shared_P = theta_Q[: self.num_shared]
        fast_MF = theta_Q[self.num_shared :].unflatten(0, (adapters.num_members, self.num_fast))
        pieces, place = [], 0
        for piece in adapters.slices:
            r_MI = fast_MF[:, place : place + piece.in_features]
            s_MO = fast_MF[:, place + piece.in_features : place + piece.in_features + piece.out_features]
            place += piece.in_features + piece.out_features
            A = adapters.view(shared_P, piece, "A") * r_MI[:, None, :]
            B = adapters.view(shared_P, piece, "B") * s_MO[:, :, None]
            pieces += [A.flatten(1), B.flatten(1)]
        return torch.cat(pieces, dim=1)

    def start_training(self, seed: int, config: Config) -> Tensor:
        """Theta with the first member's adapter shared and fast weights drawn by the seed."""
        fast = []
        for member in range(self.adapters.num_members):
            for piece in self.adapters.slices:
                source = generator(seed, "batch_ensemble", member, piece.name)
                noise = torch.randn(piece.in_features + piece.out_features, generator=source)
                fast.append(noise.sign() if config.init == "signs" else 1 + config.spread * noise)
        return torch.cat([self.adapters.values[0], torch.cat(fast).to(self.adapters.values)])


class FastWeightsAdamW(MemberAdamW):
    """AdamW on shared and fast weights under the mean of the members' losses, in place of one on the members' rows.

    Decay is the shared B's; the gradient's norm is bounded as a whole.
    """

    def __init__(
        self, plain: MemberAdamW, weights: FastWeights, theta_Q: Tensor, clip: float, train_fast: bool
    ) -> None:
        super().__init__(plain.values, plain.is_B, plain.weight_decay_b, betas=plain.betas, eps=plain.eps)
        self.weights, self.theta, self.clip, self.train_fast = weights, theta_Q[None], clip, train_fast
        is_B = torch.zeros_like(theta_Q, dtype=torch.bool)
        is_B[: weights.num_shared] = plain.is_B
        self.inner = MemberAdamW(self.theta, is_B, plain.weight_decay_b[:1], betas=plain.betas, eps=plain.eps)
        self.values.copy_(weights.expand(theta_Q))

    def pull(self, grad_MP: Tensor) -> Tensor:
        """The gradient by theta `[Q]` of the members' mean loss, from the members' own gradients."""
        with torch.enable_grad():
            theta_Q = self.theta[0].detach().requires_grad_()
            (grad_Q,) = torch.autograd.grad(self.weights.expand(theta_Q), theta_Q, grad_MP / len(grad_MP))
        if not self.train_fast:
            grad_Q[self.weights.num_shared :] = 0
        return grad_Q

    @torch.no_grad()
    def step(self, grad_MP: Tensor, lrs: Sequence[float], members: Sequence[int]) -> None:
        """Move all members at once.

        Raises:
            TrainingError: the gradient by shared and fast weights is out of bounds, though the members' may not be.
        """
        grad_Q = self.pull(grad_MP)[None]
        norm = clip_gradients(grad_Q, [self.clip]).item()
        if what := gradient_failure(norm):
            raise TrainingError(f"shared and fast weights failed (diverged: {what}); try a smaller train.lr")
        self.inner.step(grad_Q, lrs[:1], [0])
        for m in members:
            self.num_steps[m] += 1
        self.values.copy_(self.weights.expand(self.theta[0]))


def fit(context: MethodContext, config: Config) -> Fitted:
    """Train shared and fast weights; each member sees rows of its own, as many as a member of the ensemble.

    The epoch with the best mean validation NLL of the members is kept, or the last.

    Raises:
        ConfigError: a spread below 0, decay of A, or adapters of which a part is frozen.
        TrainingError: a member failed.
    """
    if not 0 <= config.spread < math.inf:
        raise ConfigError(f"batch_ensemble.spread: {config.spread} is not a finite number from 0 up")
    if context.config.regularize.weight_decay_a > 0:
        raise ConfigError(
            "batch_ensemble: its fast weights start at one; decay of A (regularize.weight_decay_a) must be 0"
        )
    if context.config.adapt.init_lora_weights == "pissa":
        raise ConfigError(
            "batch_ensemble: its fast weights scale the whole adapter, and half of one with adapt.init_lora_weights:"
            " pissa is frozen; take another start"
        )
    meter = Meter()
    clip = context.config.train.clip_norm
    # the members' gradients come as they are: what is bounded is the gradient by shared and fast weights
    training = start_training(context, meter, changed(context.config, train={"clip_norm": 0.0}))
    trainer, weights = training.trainer, FastWeights(training.pipeline.model.adapters)
    theta_Q = weights.start_training(context.seed, config)
    trainer.optimizer = FastWeightsAdamW(trainer.optimizer, weights, theta_Q, clip, config.train_fast)
    best = BestTogether(context, training)
    train_steps(context, training, best.after_step)
    best.restore()
    return fitted_members(training, meter, range(context.members), len(theta_Q))
