"""One LoRA: a single member, trained with the budget of one (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

from dataclasses import dataclass

from lorchestra.methods.contract import Fitted, Meter, MethodContext
from lorchestra.methods.training import changed, fitted_members, train_members


@dataclass(frozen=True)
class Config:
    """Nothing to set."""


def fit(context: MethodContext, config: Config) -> Fitted:
    """Train it; it is member 0 of the ensemble, trained alone.

    Raises:
        TrainingError: it failed.
    """
    meter = Meter()
    training, members = train_members(context, meter, changed(context.config, adapt={"members": 1}))
    return fitted_members(training, meter, members)
