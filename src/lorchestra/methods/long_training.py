"""Equal-compute control: one LoRA trained M times as long, hence on as many tokens as the ensemble."""

from __future__ import annotations

from dataclasses import dataclass

from lorchestra.methods.contract import Fitted, Meter, MethodContext
from lorchestra.methods.training import changed, fitted_members, train_members


@dataclass(frozen=True)
class Config:
    """No settings."""


def fit(context: MethodContext, config: Config) -> Fitted:
    """Train one adapter for M times the epochs, which its schedule spans; `train.keep` applies.

    Raises:
        TrainingError: training failed.
    """
    epochs = context.config.train.num_epochs * context.members
    meter = Meter()
    training, members = train_members(
        context, meter, changed(context.config, adapt={"members": 1}, train={"epochs": epochs})
    )
    return fitted_members(training, meter, members)
