"""One fit for a method and all wrappers on it: fitted when it is first needed, and each split predicted once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

from lorchestra.errors import ConfigError, TrainingError
from lorchestra.methods.contract import Cost, Fitted, MethodContext, Progress
from lorchestra.methods.registry import METHODS, NamedMethod
from lorchestra.store.schema import Json
from lorchestra.types import Example, Predictions


class CachedFit:
    """The method below wrappers.

    `elsewhere_s` corrects a wrapper's clock: the seconds that cached predictions would have taken, minus the seconds in
    which the method itself was fitted, which its cost includes.

    Args:
        named: the method, with its settings; its wrappers are ignored.
        context: what all methods of a comparison have in common.
        splits: the rows that are predicted once, by split; a wrapper that passes one of these very sequences gets the
            cached predictions.
    """

    def __init__(self, named: NamedMethod, context: MethodContext, splits: Mapping[str, Sequence[Example]]) -> None:
        self.named, self.context, self.splits = named, context, splits
        self.elsewhere_s = 0.0
        self._fitted: Fitted | None = None
        self._description: tuple[Cost, Mapping[str, float], list[str]] | None = None
        self._error: ConfigError | TrainingError | None = None
        self._cached: dict[str, tuple[Predictions, float]] = {}

    def remember(self, result: Json, predictions: Mapping[str, Predictions]) -> None:
        """Use the results of an earlier call instead of fitting."""
        cost = {field.name: result["cost"][field.name] for field in dataclasses.fields(Cost)}
        self._description = Cost(**cost), result["chosen"], list(result.get("notes", []))
        self._cached = {split: (one, result["predict_s"][split]) for split, one in predictions.items()}

    def as_fitted(self) -> Fitted:
        """What wrappers are put on.

        Raises:
            ConfigError, TrainingError: the method cannot do the task, or failed; the same error at every call.
        """
        if self._description is None:
            fitted = self._fit()
            self._description = fitted.cost, fitted.chosen, fitted.notes
        return Fitted(self._predict, *self._description)

    def _fit(self) -> Fitted:
        if self._error is not None:
            raise self._error
        if self._fitted is None:
            started = time.perf_counter()
            try:
                self._fitted = METHODS[self.named.method].fit(self.context, self.named.config)
            except (ConfigError, TrainingError) as error:
                self._error = error
                raise
            self.elsewhere_s -= time.perf_counter() - started
        return self._fitted

    def _predict(self, examples: Sequence[Example], split: str, progress: Progress | None = None) -> Predictions:
        if examples is not self.splits.get(split):
            return self._fit().predict(examples, split, progress)
        if split in self._cached:
            predictions, seconds = self._cached[split]
            self.elsewhere_s += seconds
            return predictions
        fitted, started = self._fit(), time.perf_counter()
        predictions = fitted.predict(examples, split, progress)
        self._cached[split] = predictions, time.perf_counter() - started
        return predictions
