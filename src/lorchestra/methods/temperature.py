"""Temperature scaling on top of any method: one T on validation rows (Guo et al., arXiv 1706.04599)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lorchestra.errors import ConfigError
from lorchestra.methods.contract import Fitted, MethodContext, Progress
from lorchestra.metrics.predictive import apply_temperature, mixture_log_probs
from lorchestra.metrics.temperature import regularized_temperature
from lorchestra.metrics.validation import FEW_ROWS
from lorchestra.types import Example, Predictions


@dataclass(frozen=True)
class Config:
    """What the temperature is put on."""

    of: Literal["mixture", "members"] = "mixture"
    """mixture: pool, then calibrate; the result is one distribution. members: each has a T of its own and they stay."""
    prior: bool = True
    """Fit under a weak prior towards T = 1 (log T has a standard deviation of 0.5), which many rows overrule."""


def wrap(context: MethodContext, fitted: Fitted, config: Config) -> Fitted:
    """Fit T on the validation rows; `chosen` has it as `temperature`, or `temperature_0` and on by member.

    Raises:
        ConfigError: there is no validation row, or the rows cannot judge a temperature.
    """
    if not context.val:
        raise ConfigError("temperature: there are no validation rows to fit it on; give some with --data.val")
    started = time.perf_counter()
    validation = fitted.predict(context.val, "val", context.progress("temperature, validation rows", len(context.val)))
    of_members = config.of == "members"
    fits = [
        regularized_temperature(log_probs_EC, validation.labels, validation.options, prior=config.prior)
        for log_probs_EC in _distributions(validation, of_members)
    ]
    found: list[float] = []
    notes = list(fitted.notes)
    if validation.num_examples < FEW_ROWS:
        notes.append(f"temperature fitted on {validation.num_examples} validation rows only")
    for m, fit in enumerate(fits):
        if fit.T is None:
            raise ConfigError(f"temperature: {fit.reason}; give other validation rows with --data.val")
        found.append(fit.T)
        of = f" of member {m}" if of_members else ""
        notes += [f"temperature{of} (T = {fit.T:.2f}): {note}" for note in fit.notes]
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
    return Fitted(predict, cost, {**fitted.chosen, **dict(zip(names, found, strict=True))}, notes)


def _distributions(predictions: Predictions, of_members: bool) -> list[np.ndarray]:
    """What is scaled, each `[E, C]`."""
    if of_members:
        return list(predictions.log_probs_MEC)
    return [mixture_log_probs(predictions.log_probs_MEC)]
