"""Settings of a distillation."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from lorchestra.config.mappings import check_types
from lorchestra.config.run import MixtureConfig, RunConfig
from lorchestra.errors import ConfigError


@dataclass(frozen=True)
class DistillConfig:
    """What a member learns from an ensemble."""

    direction: Literal["forward", "reverse"] = "forward"
    """forward: KL(ensemble || member), which covers all that the ensemble holds possible; reverse: KL(member ||
    ensemble)."""
    answers_weight: float = 0.0
    """Weight in the loss of the cross-entropy of the answers, of the rows that have one."""


def check_distill(config: DistillConfig) -> None:
    """Check that settings have the right types and are in range.

    Raises:
        ConfigError: names the field, its value and what to do.
    """
    check_types(config, DistillConfig, "distill")
    if not 0 <= config.answers_weight < math.inf:
        raise ConfigError(f"distill.answers_weight: {config.answers_weight} is not a finite number from 0 up")


def student_config(config: RunConfig) -> RunConfig:
    """The settings of one member of an ensemble, for learning from it.

    Penalties of the answers (label smoothing, KL to the base) and class weights are off: the ensemble's probabilities
    have them already.
    """
    adapt = dataclasses.replace(config.adapt, members=1, order="own", same_init=False)
    regularize = dataclasses.replace(config.regularize, kl_beta=0.0, label_smoothing=0.0)
    data = dataclasses.replace(config.data, class_weights=False)
    return dataclasses.replace(config, adapt=adapt, regularize=regularize, data=data, mixture=MixtureConfig())
