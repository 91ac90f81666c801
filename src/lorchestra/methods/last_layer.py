"""Last-layer ensemble: members share the adapters of all layers but the last adapted one, and train together.

The shared adapters are moved by the mean of the members' gradients, each on its own rows; so training and prediction
cost as much as the full ensemble's, and only the number of parameters is smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorchestra.errors import ConfigError
from lorchestra.methods.contract import Fitted, Meter, MethodContext
from lorchestra.methods.training import BestTogether, fitted_members, last_layer_columns, start_training, train_steps
from lorchestra.nn.optimizer import MemberAdamW


@dataclass(frozen=True)
class Config:
    """Nothing to set."""


class TiedAdamW(MemberAdamW):
    """AdamW whose members have some columns in common: they start alike there and see the mean of their gradients."""

    def __init__(self, plain: MemberAdamW, shared_P: Tensor) -> None:
        super().__init__(plain.values, plain.is_B, plain.weight_decay_b, plain.weight_decay_a, plain.betas, plain.eps)
        self.shared = shared_P

    @torch.no_grad()
    def step(self, grad_MP: Tensor, lrs: Sequence[float], members: Sequence[int]) -> None:
        """Update the named members."""
        grad_MP[:, self.shared] = grad_MP[list(members)][:, self.shared].mean(dim=0)
        super().step(grad_MP, lrs, members)


def fit(context: MethodContext, config: Config) -> Fitted:
    """Train the members; the epoch with their best mean validation NLL is kept, for all of them, or the last.

    Raises:
        ConfigError: a single layer is adapted, so that nothing would be shared.
        TrainingError: a member failed.
    """
    meter = Meter()
    training = start_training(context, meter, context.config)
    trainer, model = training.trainer, training.pipeline.model
    shared = ~last_layer_columns(model)
    if not shared.any():
        raise ConfigError(
            f"last_layer: adapt.layers {context.config.adapt.layers!r} is one layer, so that members would share"
            " nothing; adapt more layers, or take lora_ensemble"
        )
    with torch.no_grad():
        training.values[:, shared] = training.values[0, shared]
    trainer.optimizer = TiedAdamW(trainer.optimizer, shared)
    best = BestTogether(context, training)
    train_steps(context, training, best.after_step)
    best.restore()
    num_shared = int(shared.sum())
    parameters = num_shared + context.members * (len(shared) - num_shared)
    return fitted_members(training, meter, range(context.members), parameters)
