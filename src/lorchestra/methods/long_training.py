"""Equal-compute control: one LoRA trained M times as long, as many tokens as the ensemble."""

from __future__ import annotations

from dataclasses import dataclass

from lorchestra.methods.contract import Fitted, Meter, MethodContext
from lorchestra.methods.training import changed, fitted_members, train_members


@dataclass(frozen=True)
class Config:
    """Nothing to set."""


def fit(context: MethodContext, config: Config) -> Fitted:
    """Train it; the schedule spans all M times the epochs, and `train.keep` says whether its best or last is kept.

    Raises:
        TrainingError: it failed.
    """
    epochs = context.config.train.epochs * context.members
    meter = Meter()
    training, members = train_members(
        context, meter, changed(context.config, adapt={"members": 1}, train={"epochs": epochs})
    )
    return fitted_members(training, meter, members)
