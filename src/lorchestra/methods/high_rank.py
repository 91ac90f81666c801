"""Equal-size control: one LoRA with M times the rank, hence as many parameters as the ensemble."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lorchestra.methods.contract import Fitted, Meter, MethodContext
from lorchestra.methods.training import changed, fitted_members, train_members


@dataclass(frozen=True)
class Config:
    """The setting kept at the higher rank."""

    keep: Literal["lora_alpha", "scaling"] = "lora_alpha"
    """lora_alpha: B A x is scaled down by M, as PEFT does at a higher rank; scaling: its factor is unchanged."""


def fit(context: MethodContext, config: Config) -> Fitted:
    """Train one adapter with the budget of one member.

    Raises:
        TrainingError: training failed.
    """
    adapt = context.config.adapt
    wide = changed(context.config, adapt={"members": 1, "r": adapt.r * context.members})
    if config.keep == "scaling":
        factor = adapt.scaling / wide.adapt.scaling
        wide = changed(wide, adapt={"lora_alpha": adapt.lora_alpha * factor})
    meter = Meter()
    training, members = train_members(context, meter, wide)
    return fitted_members(training, meter, members)
