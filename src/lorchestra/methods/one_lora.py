"""One LoRA: a single member, trained with the budget of one member (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

from dataclasses import dataclass

from lorchestra.methods.contract import Fitted, Meter, MethodContext
from lorchestra.methods.training import changed, fitted_members, train_members


@dataclass(frozen=True)
class Config:
    """No settings."""


def fit(context: MethodContext, config: Config) -> Fitted:
    """Train member 0 of the ensemble alone.

    Raises:
        TrainingError: training failed.
    """
    meter = Meter()
    training, members = train_members(context, meter, changed(context.config, adapt={"members": 1}))
    return fitted_members(training, meter, members)
