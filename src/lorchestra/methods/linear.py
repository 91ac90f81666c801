"""Linear classifiers on fixed features of texts: what the baselines without adapters have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lorchestra.errors import ConfigError
from lorchestra.inference.pipeline import Pipeline
from lorchestra.methods.contract import Cost, Fitted, Meter, MethodContext, Progress
from lorchestra.methods.training import changed
from lorchestra.questions import Question
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


def fit_by_question(context: MethodContext, fit: Callable[[MethodContext], Fitted]) -> Fitted:
    """A classifier of states for each typed question, whose options are its labels.

    Args:
        context: of rows with typed questions.
        fit: fits one on the rows of a question.

    Raises:
        ConfigError: it cannot be fitted for one of the questions; the message names it.
    """
    pipeline = context.open_pipeline(changed(context.config, adapt={"members": 1}))
    fits: dict[Question, Fitted] = {}
    val_rows: dict[Question, list[Example]] = {}
    for question in context.questions:
        train, val = ([row for row in rows if row.asked == question] for rows in (context.train, context.val))
        rows_of_one = replace(context, open_pipeline=lambda _: pipeline, train=train, val=val, labels=question.options)
        val_rows[question] = val
        try:
            fits[question] = fit(rows_of_one)
        except ConfigError as error:
            raise ConfigError(f"{error} (question {question.name})") from error

    def predict(examples: Sequence[Example], split: str, progress: Progress | None = None) -> Predictions:
        kept = pipeline.kept(examples)
        asked = [examples[i].asked for i in kept]
        for question in asked:
            if question not in fits:
                raise ConfigError(f"there are no training rows with question {question and question.name}")
        log_probs_MEC = np.full((1, len(kept), max(len(question.options) for question in fits)), -np.inf)
        done = 0
        for question, fitted in fits.items():
            positions = [e for e, other in enumerate(asked) if other == question]
            if positions:
                rows = [examples[kept[e]] for e in positions]
                # the same list, whose features the classifier has
                part = fitted.predict(val_rows[question] if rows == val_rows[question] else rows, split)
                log_probs_MEC[:, positions, : len(question.options)] = part.log_probs_MEC
                done += len(positions)
                if progress is not None:
                    progress(done)
        return pipeline.predictions(examples, kept, log_probs_MEC, split)

    chosen = {f"{key}_{q.name}": value for q, fitted in fits.items() for key, value in fitted.chosen.items()}
    notes = [f"{note} (question {q.name})" for q, fitted in fits.items() for note in fitted.notes]
    return Fitted(predict, _total_cost([fitted.cost for fitted in fits.values()]), chosen, notes)


def _total_cost(costs: Sequence[Cost]) -> Cost:
    """The cost of classifiers that share the rows: each row takes the passes of one."""
    return replace(
        costs[0],
        fit_s=sum(cost.fit_s for cost in costs),
        peak_bytes=max(cost.peak_bytes for cost in costs),
        parameters=sum(cost.parameters for cost in costs),
    )


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
