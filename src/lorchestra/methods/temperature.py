"""Temperature scaling on top of any method, fitted on validation rows (Guo et al., arXiv 1706.04599)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lorchestra.errors import ConfigError
from lorchestra.methods.contract import Fitted, MethodContext, Progress
from lorchestra.metrics.by_question import apply_temperatures, fit_temperatures
from lorchestra.metrics.predictive import mixture_log_probs
from lorchestra.metrics.temperature import TemperatureFit
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
    """Fit T on the validation rows; `chosen` has it as `temperature`, or per member as `temperature_0`, ...

    Each typed question has a temperature, `temperature_NAME`; one whose rows determine none stays as it is.

    Raises:
        ConfigError: there are no validation rows, or they do not determine a temperature.
    """
    if not context.val:
        raise ConfigError("temperature: there are no validation rows to fit it on; add some with --data.val")
    started = time.perf_counter()
    validation = fitted.predict(context.val, "val", context.progress("temperature, validation rows", len(context.val)))
    of_members = config.of == "members"
    fits = [
        fit_temperatures(log_probs_EC, validation, prior=config.prior)
        for log_probs_EC in _distributions(validation, of_members)
    ]
    notes = list(fitted.notes)
    if validation.num_examples < FEW_ROWS:
        notes.append(f"temperature fitted on {validation.num_examples} validation rows only")
    temperatures: list[dict[str, float]] = []
    chosen = dict(fitted.chosen)
    for m, by_question in enumerate(fits):
        of = f" of member {m}" if of_members else ""
        temperatures.append(_usable(by_question, of, notes))
        member = f"_{m}" if of_members else ""
        chosen |= {f"temperature{member}{name and '_'}{name}": T for name, T in temperatures[m].items()}

    def predict(examples: Sequence[Example], split: str, progress: Progress | None = None) -> Predictions:
        plain = fitted.predict(examples, split, progress)
        scaled = [
            apply_temperatures(log_probs_EC, plain.questions, temperature)
            for log_probs_EC, temperature in zip(_distributions(plain, of_members), temperatures, strict=True)
        ]
        return dataclasses.replace(plain, log_probs_MEC=np.stack(scaled))

    cost = dataclasses.replace(
        fitted.cost,
        fit_s=fitted.cost.fit_s + time.perf_counter() - started,
        parameters=fitted.cost.parameters + sum(map(len, temperatures)),
    )
    return Fitted(predict, cost, chosen, notes)


def _usable(fits: Mapping[str, TemperatureFit], of: str, notes: list[str]) -> dict[str, float]:
    """The temperatures that the validation rows determine, by question; adds to the notes.

    Raises:
        ConfigError: they determine none.
    """
    temperatures = {}
    for name, fit in fits.items():
        asked = f" of question {name}" if name else ""
        if fit.T is not None:
            temperatures[name] = fit.T
            notes += [f"temperature{of}{asked} (T = {fit.T:.2f}): {note}" for note in fit.notes]
        elif name:
            notes.append(f"no temperature{of}{asked}: {fit.reason}")
    if not temperatures:
        reason = next(iter(fits.values())).reason
        raise ConfigError(f"temperature: {reason}; use other validation rows with --data.val")
    return temperatures


def _distributions(predictions: Predictions, of_members: bool) -> list[np.ndarray]:
    """The distributions to scale, `[E, C]` each."""
    if of_members:
        return list(predictions.log_probs_MEC)
    return [mixture_log_probs(predictions.log_probs_MEC)]
