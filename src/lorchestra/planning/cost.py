"""What work costs, in passes of the base."""

from __future__ import annotations

from lorchestra.models.ensemble import EnsembleModel
from lorchestra.training.trainer import Trainer


def training_base_passes(trainer: Trainer) -> float:
    """Work in units of one pass of the whole base over the training rows, forward passes of training only."""
    model = trainer.model
    trunk = model.trunk_layers / model.num_layers
    rows_seen = trainer.state.tokens / sum(row.num_tokens for row in trainer.rows.train)
    kl = 1.0 if any(own.regularize.kl_beta > 0 for own in trainer.settings) else 0.0
    return round(rows_seen * (1 - trunk) + (trunk if model.trunk_layers else 0.0) + kl * (1 - trunk), 3)


def prediction_base_passes(model: EnsembleModel, num_passes: int) -> float:
    """The same for predicting rows under `num_passes` members or draws: layers below the adapters run once."""
    trunk = model.trunk_layers / model.num_layers
    return round(trunk + num_passes * (1 - trunk), 3)
