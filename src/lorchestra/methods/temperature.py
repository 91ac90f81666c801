"""Temperature scaling on top of any method: one T on validation rows (Guo et al., arXiv 1706.04599)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lorchestra.core.predictive import apply_temperature, fit_temperature, mixture_log_probs
from lorchestra.methods.contract import Fitted, Progress, Setting
from lorchestra.types import Example, Predictions


@dataclass(frozen=True)
class Config:
    """What the temperature is put on."""

    of: Literal["mixture", "members"] = "mixture"
    """mixture: pool, then calibrate; the result is one distribution. members: each has a T of its own and they stay."""


def wrap(setting: Setting, fitted: Fitted, config: Config) -> Fitted:
    """Fit T on the validation rows; `chosen` has it as `temperature`, or `temperature_0` and on by member."""
    started = time.perf_counter()
    validation = fitted.predict(setting.val, "val", setting.progress("temperature, validation rows", len(setting.val)))
    of_members = config.of == "members"
    found = [
        fit_temperature(log_probs_EC, validation.labels) for log_probs_EC in _distributions(validation, of_members)
    ]
    names = [f"temperature_{m}" for m in range(len(found))] if of_members else ["temperature"]

    def predict(examples: Sequence[Example], split: str, progress: Progress | None = None) -> Predictions:
        plain = fitted.predict(examples, split, progress)
        scaled = [
            apply_temperature(log_probs_EC, temperature)
            for log_probs_EC, temperature in zip(_distributions(plain, of_members), found, strict=True)
        ]
        return dataclasses.replace(plain, log_probs_MEC=np.stack(scaled))

    cost = dataclasses.replace(
        fitted.cost,
        fit_s=fitted.cost.fit_s + time.perf_counter() - started,
        parameters=fitted.cost.parameters + len(found),
    )
    return Fitted(predict, cost, {**fitted.chosen, **dict(zip(names, found, strict=True))})


def _distributions(predictions: Predictions, of_members: bool) -> list[np.ndarray]:
    """What is scaled, each `[E, C]`."""
    if of_members:
        return list(predictions.log_probs_MEC)
    return [mixture_log_probs(predictions.log_probs_MEC)]
