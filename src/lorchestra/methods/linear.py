"""Linear classifiers on fixed features of texts: what the baselines without adapters have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lorchestra.errors import ConfigError
from lorchestra.inference.pipeline import Pipeline
from lorchestra.methods.contract import Fitted, Meter, MethodContext, Progress
from lorchestra.training.linear import NUM_FOLDS, Inputs, LinearFit, Rows, Sklearn, fit_linear, is_enough
from lorchestra.types import Example, Predictions


@dataclass(frozen=True)
class TextClassifier:
    """What makes a linear method of texts.

    Attributes:
        method: its name.
        pipeline: the base, whose rows of a length that is dropped are dropped here, too.
        inputs: the inputs of some rows; may report the rows done.
        features: see `fit_linear`.
        strengths: values of C to choose from.
        base_passes: forward passes of the whole base per row that the inputs take.
    """

    method: str
    pipeline: Pipeline
    inputs: Callable[[Sequence[Example], Progress | None], Inputs]
    features: Mapping[str, Callable[[], Sklearn]]
    strengths: Sequence[float]
    base_passes: float

    def fit(self, context: MethodContext, meter: Meter) -> Fitted:
        """Fit on the training rows with an answer; features of the validation rows are computed once.

        Raises:
            ConfigError: see `fit_linear`.
        """
        assert context.labels is not None
        train, val = (self._rows(context, split) for split in ("train", "val"))
        num_fits = (1 if is_enough(val) else NUM_FOLDS) * len(self.features) * len(self.strengths)
        report = context.progress(f"{self.method}, choosing the penalty: fit", num_fits)
        try:
            fit = fit_linear(train, val, len(context.labels), self.features, self.strengths, report)
        except ConfigError as error:
            raise ConfigError(f"{self.method}: {error}") from None

        def predict(examples: Sequence[Example], split: str, progress: Progress | None = None) -> Predictions:
            kept = self.pipeline.kept(examples)
            known = examples is context.val and len(val.labels) == len(kept)
            inputs = val.inputs if known else self.inputs([examples[i] for i in kept], progress)
            return self.pipeline.predictions(examples, kept, fit.log_probs(inputs)[None], split)

        cost = meter.cost(
            predict_base_passes=self.base_passes, fit_base_passes=self.base_passes, parameters=fit.num_parameters
        )
        chosen = {"C": fit.C, "held_out_nll": fit.held_out_nll}
        if len(self.features) > 1:
            chosen["features"] = float(list(self.features).index(fit.features))
        return Fitted(predict, cost, chosen, _notes(fit, len(val.labels)))

    def _rows(self, context: MethodContext, split: Literal["train", "val"]) -> Rows:
        """Inputs and labels of the training or validation rows."""
        examples = context.train if split == "train" else context.val
        rows = [examples[i] for i in self.pipeline.kept(examples) if examples[i].answer is not None]
        inputs = self.inputs(rows, context.progress(f"{self.method}, {split} rows", len(rows)))
        return Rows(inputs, np.array([row.answer for row in rows], dtype=np.int64))


def check_labels(context: MethodContext, method: str) -> None:
    """Refuse rows without a label set.

    Raises:
        ConfigError: every row brings its choices.
    """
    if context.labels is None:
        raise ConfigError(f"{method}: a classifier needs texts with labels, and here every row brings its choices")


def _notes(fit: LinearFit, num_val: int) -> list[str]:
    if fit.held_out == "validation":
        return []
    return [f"chosen by cross-validation on the training rows: {num_val} validation rows are few"]
