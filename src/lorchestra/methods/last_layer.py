"""Last-layer ensemble: members share the adapters of all layers except the last adapted one, and train together.

Classification heads are member-specific, as the last layer is.

The shared adapters are updated with the mean of the members' gradients, each on its data order. Training and prediction
cost as much as the full ensemble's; only the number of parameters is smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorchestra.errors import ConfigError
from lorchestra.methods.contract import Fitted, Meter, MethodContext
from lorchestra.methods.training import BestTogether, fitted_members, last_layer_columns, start_training, train_steps
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.nn.optimizer import MemberAdamW
from lorchestra.training.members import MemberSettings
from lorchestra.training.trainer import member_optimizer


@dataclass(frozen=True)
class Config:
    """No settings."""


class TiedAdamW(MemberAdamW):
    """AdamW for members that share some columns, which receive the mean of the members' gradients."""

    def __init__(self, plain: MemberAdamW, shared_P: Tensor) -> None:
        super().__init__(plain.values, plain.is_B, plain.weight_decay_b, plain.weight_decay_a, plain.betas, plain.eps)
        self.shared = shared_P

    @torch.no_grad()
    def step(self, grad_MP: Tensor, lrs: Sequence[float], members: Sequence[int]) -> None:
        """Update the given members."""
        grad_MP[:, self.shared] = grad_MP[list(members)][:, self.shared].mean(dim=0)
        super().step(grad_MP, lrs, members)


def fit(context: MethodContext, config: Config) -> Fitted:
    """Train the members; keeps the epoch with the best mean validation NLL for all of them, or the last.

    Raises:
        ConfigError: only one layer is adapted, so nothing would be shared.
        TrainingError: a member failed.
    """
    meter = Meter()

    def make_optimizer(model: EnsembleModel, settings: Sequence[MemberSettings]) -> MemberAdamW:
        return TiedAdamW(member_optimizer(model, settings), ~last_layer_columns(model))

    training = start_training(context, meter, context.config, make_optimizer=make_optimizer)
    shared = ~last_layer_columns(training.pipeline.model)
    if not shared.any():
        raise ConfigError(
            f"last_layer: adapt.layers {context.config.adapt.layers!r} is one layer, so members would share nothing;"
            " adapt more layers, or use lora_ensemble"
        )
    with torch.no_grad():
        training.values[:, shared] = training.values[0, shared]
    best = BestTogether(context, training)
    train_steps(context, training, best.after_step)
    best.restore()
    num_shared = int(shared.sum())
    parameters = num_shared + context.members * (len(shared) - num_shared)
    return fitted_members(training, meter, range(context.members), parameters)
