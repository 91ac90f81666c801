"""Temperature scaling on top of any method, fitted on validation rows (Guo et al., arXiv 1706.04599)."""

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
    """The distributions to scale."""

    of: Literal["mixture", "members"] = "mixture"
    """mixture: one T for the mixture, which becomes a single member. members: one T per member."""
    prior: bool = True
    """Use a weak prior around T = 1 (standard deviation of log T: 0.5), which matters with few rows only."""


def wrap(context: MethodContext, fitted: Fitted, config: Config) -> Fitted:
    """Fit T on the validation rows; `chosen` holds it as `temperature`, or per member as `temperature_0`, ...

    Raises:
        ConfigError: there are no validation rows, or they do not determine a temperature.
    """
    if not context.val:
        raise ConfigError("temperature: there are no validation rows to fit it on; add some with --data.val")
    started = time.perf_counter()
    validation = fitted.predict(context.val, "val", context.progress("temperature, validation rows", len(context.val)))
    of_members = config.of == "members"
    fits = [
        regularized_temperature(log_probs_EC, validation.labels, validation.options, prior=config.prior)
        for log_probs_EC in _distributions(validation, of_members)
    ]
    temperatures: list[float] = []
    notes = list(fitted.notes)
    if validation.num_examples < FEW_ROWS:
        notes.append(f"temperature fitted on {validation.num_examples} validation rows only")
    for m, fit in enumerate(fits):
        if fit.T is None:
            raise ConfigError(f"temperature: {fit.reason}; use other validation rows with --data.val")
        temperatures.append(fit.T)
        of = f" of member {m}" if of_members else ""
        notes += [f"temperature{of} (T = {fit.T:.2f}): {note}" for note in fit.notes]
    names = [f"temperature_{m}" for m in range(len(temperatures))] if of_members else ["temperature"]

    def predict(examples: Sequence[Example], split: str, progress: Progress | None = None) -> Predictions:
        plain = fitted.predict(examples, split, progress)
        scaled = [
            apply_temperature(log_probs_EC, temperature)
            for log_probs_EC, temperature in zip(_distributions(plain, of_members), temperatures, strict=True)
        ]
        return dataclasses.replace(plain, log_probs_MEC=np.stack(scaled))

    cost = dataclasses.replace(
        fitted.cost,
        fit_s=fitted.cost.fit_s + time.perf_counter() - started,
        parameters=fitted.cost.parameters + len(temperatures),
    )
    return Fitted(predict, cost, {**fitted.chosen, **dict(zip(names, temperatures, strict=True))}, notes)


def _distributions(predictions: Predictions, of_members: bool) -> list[np.ndarray]:
    """The distributions to scale, `[E, C]` each."""
    if of_members:
        return list(predictions.log_probs_MEC)
    return [mixture_log_probs(predictions.log_probs_MEC)]
