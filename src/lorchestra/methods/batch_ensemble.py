"""BatchEnsemble on one shared adapter: members differ by rank-1 fast weights (Wen et al., arXiv 2002.06715).

`A_m = A diag(r_m)`, `B_m = diag(s_m) B`: member m's update is the shared one times `s_m r_m^T`, elementwise. Members'
gradients are backpropagated to the shared and fast weights, which AdamW updates.
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
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.nn.adapters import StackedAdapters
from lorchestra.nn.optimizer import MemberAdamW, clip_gradients
from lorchestra.nn.seeding import generator
from lorchestra.training.failure import gradient_failure
from lorchestra.training.members import MemberSettings
from lorchestra.training.trainer import member_optimizer


@dataclass(frozen=True)
class Config:
    """Settings of the fast weights."""

    init: Literal["signs", "normal"] = "signs"
    """Initialization: random signs, or normal around 1."""
    spread: float = 0.5
    """Standard deviation of the normal initialization; with 0, all fast weights are 1."""
    train_fast: bool = True
    """Whether fast weights are trained; otherwise only the shared adapter is."""


class FastWeights:
    """Maps shared and fast weights to the members' adapters.

    A flat vector theta `[Q]` holds the shared adapter `[P]`, with its classification head if there is one, then per
    member the fast weights of every module: r `[I]` and s `[O]`. The head is the same for all members.
    """

    def __init__(self, adapters: StackedAdapters) -> None:
        self.adapters = adapters
        self.num_shared = adapters.values.shape[1]
        self.num_fast = sum(piece.in_features + piece.out_features for piece in adapters.slices)

    def expand(self, theta_Q: Tensor) -> Tensor:
        """The members' adapters `[M, P]`, differentiable in theta."""
        adapters = self.adapters
        shared_P = theta_Q[: self.num_shared]
        fast_MF = theta_Q[self.num_shared :].unflatten(0, (adapters.num_members, self.num_fast))
        pieces, start = [], 0
        for piece in adapters.slices:
            middle, end = start + piece.in_features, start + piece.in_features + piece.out_features
            A = adapters.view(shared_P, piece, "A") * fast_MF[:, None, start:middle]
            B = adapters.view(shared_P, piece, "B") * fast_MF[:, middle:end, None]
            pieces += [A.flatten(1), B.flatten(1)]
            start = end
        head = shared_P[adapters.slices[-1].stop :]  # empty without heads
        return torch.cat([*pieces, head.expand(adapters.num_members, -1)], dim=1)

    def initial(self, seed: int, config: Config) -> Tensor:
        """Theta with the first member's adapter as the shared one and random fast weights."""
        fast = []
        for member in range(self.adapters.num_members):
            for piece in self.adapters.slices:
                source = generator(seed, "batch_ensemble", member, piece.name)
                noise = torch.randn(piece.in_features + piece.out_features, generator=source)
                fast.append(noise.sign() if config.init == "signs" else 1 + config.spread * noise)
        return torch.cat([self.adapters.values[0], torch.cat(fast).to(self.adapters.values)])


class FastWeightsAdamW(MemberAdamW):
    """AdamW on shared and fast weights with the mean of the members' losses; replaces AdamW on the members' adapters.

    Weight decay applies to the shared B; the norm of the whole gradient is clipped.
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

    @torch.no_grad()
    def take_head(self) -> None:
        """Share the first member's classification head, which has its initial values by now."""
        stop = self.weights.adapters.slices[-1].stop
        self.theta[0, stop : self.weights.num_shared] = self.values[0, stop:]
        self.values.copy_(self.weights.expand(self.theta[0]))

    def pull(self, grad_MP: Tensor) -> Tensor:
        """The gradient of the members' mean loss with respect to theta, `[Q]`, from the members' gradients."""
        with torch.enable_grad():
            theta_Q = self.theta[0].detach().requires_grad_()
            (grad_Q,) = torch.autograd.grad(self.weights.expand(theta_Q), theta_Q, grad_MP / len(grad_MP))
        if not self.train_fast:
            grad_Q[self.weights.num_shared :] = 0
        return grad_Q

    @torch.no_grad()
    def step(self, grad_MP: Tensor, lrs: Sequence[float], members: Sequence[int]) -> None:
        """Update shared and fast weights, and with them all members.

        Raises:
            TrainingError: the gradient of the shared and fast weights overflows, although the members' may not.
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
    """Train shared and fast weights; each member trains on its data order, with as many rows as an ensemble member.

    Keeps the epoch with the best mean validation NLL of the members, or the last.

    Raises:
        ConfigError: a negative spread, decay of A, or partly frozen adapters.
        TrainingError: a member failed.
    """
    if not 0 <= config.spread < math.inf:
        raise ConfigError(f"batch_ensemble.spread: {config.spread} must be finite and at least 0")
    if context.config.regularize.weight_decay_a > 0:
        raise ConfigError("batch_ensemble: decay of A is not supported; set regularize.weight_decay_a to 0")
    if context.config.adapt.init_lora_weights == "pissa":
        raise ConfigError(
            "batch_ensemble: fast weights scale the whole adapter, but with adapt.init_lora_weights: pissa half of it"
            " is frozen; choose another initialization"
        )
    meter = Meter()
    clip = context.config.train.clip_norm

    # members' gradients are not clipped: the gradient of shared and fast weights is
    def make_optimizer(model: EnsembleModel, settings: Sequence[MemberSettings]) -> MemberAdamW:
        weights = FastWeights(model.adapters)
        theta_Q = weights.initial(context.seed, config)
        return FastWeightsAdamW(member_optimizer(model, settings), weights, theta_Q, clip, config.train_fast)

    unclipped = changed(context.config, train={"clip_norm": 0.0})
    training = start_training(context, meter, unclipped, make_optimizer=make_optimizer)
    best = BestTogether(context, training)
    optimizer = training.trainer.optimizer
    assert isinstance(optimizer, FastWeightsAdamW)
    train_steps(context, training, best.after_step, after_prepare=optimizer.take_head)
    best.restore()
    weights = FastWeights(training.pipeline.model.adapters)
    num_parameters = weights.num_shared + context.members * weights.num_fast
    return fitted_members(training, meter, range(context.members), num_parameters)
