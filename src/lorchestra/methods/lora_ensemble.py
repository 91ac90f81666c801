"""The LoRA ensemble: M independent members, trained in one packed pass (arXiv 2310.00035)."""

from __future__ import annotations

from dataclasses import dataclass

from lorchestra.methods.contract import Fitted, Meter, MethodContext
from lorchestra.methods.training import fitted_members, train_members


@dataclass(frozen=True)
class Config:
    """No settings; M is `adapt.members`."""


def fit(context: MethodContext, config: Config) -> Fitted:
    """Train the members; failed members are left out.

    Raises:
        TrainingError: every member failed.
    """
    meter = Meter()
    training, members = train_members(context, meter, context.config)
    return fitted_members(training, meter, members)
