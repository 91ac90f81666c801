"""One fit below several wrappers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lorchestra.errors import ConfigError, TrainingError
from lorchestra.methods.contract import Cost, Fitted, Progress, Setting
from lorchestra.methods.registry import METHODS, NamedMethod
from lorchestra.types import Example, Predictions


class SharedFit:
    """A method below wrappers: fitted when it is first needed, and asked for a split's predictions only once.

    `elsewhere_s` corrects a wrapper's clock: seconds that it would have taken by itself, for predictions that were
    there already, less those in which the method below was fitted, which its own cost has.

    Args:
        named: the method, with its settings; wrappers are not looked at.
        setting: what all methods of a comparison have in common.
        splits: the rows that are predicted once, by the name of their split; a wrapper that asks for a split's very
            sequence gets what is there.
    """

    def __init__(self, named: NamedMethod, setting: Setting, splits: Mapping[str, Sequence[Example]]) -> None:
        self.named, self.setting, self.splits = named, setting, splits
        self.elsewhere_s = 0.0
        self._fitted: Fitted | None = None
        self._said: tuple[Cost, Mapping[str, float], list[str]] | None = None
        self._refused: ConfigError | TrainingError | None = None
        self._known: dict[str, tuple[Predictions, float]] = {}

    def remember(self, result: Mapping[str, Any], predictions: Mapping[str, Predictions]) -> None:
        """Take what an earlier call has found in place of a fit."""
        cost = {field.name: result["cost"][field.name] for field in dataclasses.fields(Cost)}
        self._said = Cost(**cost), result["chosen"], list(result.get("notes", []))
        self._known = {split: (found, result["predict_s"][split]) for split, found in predictions.items()}

    def as_fitted(self) -> Fitted:
        """What wrappers are put on.

        Raises:
            ConfigError, TrainingError: the method cannot do the task, or failed; again whenever it is asked for.
        """
        if self._said is None:
            fitted = self._fit()
            self._said = fitted.cost, fitted.chosen, fitted.notes
        return Fitted(self._predict, *self._said)

    def _fit(self) -> Fitted:
        if self._refused is not None:
            raise self._refused
        if self._fitted is None:
            started = time.perf_counter()
            try:
                self._fitted = METHODS[self.named.method].fit(self.setting, self.named.config)
            except (ConfigError, TrainingError) as error:
                self._refused = error
                raise
            self.elsewhere_s -= time.perf_counter() - started
        return self._fitted

    def _predict(self, examples: Sequence[Example], split: str, progress: Progress | None = None) -> Predictions:
        if examples is not self.splits.get(split):
            return self._fit().predict(examples, split, progress)
        if split in self._known:
            found, seconds = self._known[split]
            self.elsewhere_s += seconds
            return found
        fitted, started = self._fit(), time.perf_counter()
        found = fitted.predict(examples, split, progress)
        self._known[split] = found, time.perf_counter() - started
        return found
