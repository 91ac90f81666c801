"""What methods that train adapters share: starting a training, running it, and predicting with what came of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lorchestra.config.run import RunConfig, check_training
from lorchestra.errors import ConfigError, TrainingError
from lorchestra.inference.pipeline import Pipeline
from lorchestra.inference.predict import MemberPass, member_passes, predict_rows
from lorchestra.methods.contract import Fitted, Meter, MethodContext, Predictor, Progress
from lorchestra.metrics.predictive import FloatArray, IntArray
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.patching import decoder_layers
from lorchestra.planning.estimate import prediction_base_passes, training_base_passes
from lorchestra.training.callbacks import Interrupted
from lorchestra.training.failure import parameter_failures, validation_failure
from lorchestra.training.rows import training_rows
from lorchestra.training.trainer import (
    MakeOptimizer,
    MakeSchedules,
    Trainer,
    make_trainer,
    member_optimizer,
    member_schedules,
)
from lorchestra.types import Example, Json, Predictions


@dataclass(frozen=True)
class MethodTraining:
    """A training that has been set up: adapters at their start, nothing computed yet."""

    pipeline: Pipeline
    trainer: Trainer

    @property
    def values(self) -> Tensor:
        """The live adapters, `[M, P]`."""
        return self.pipeline.model.adapters.values


def changed(config: RunConfig, *, adapt: Json | None = None, train: Json | None = None) -> RunConfig:
    """A configuration with some of its adapter and training settings replaced."""
    return dataclasses.replace(
        config,
        adapt=dataclasses.replace(config.adapt, **(adapt or {})),
        train=dataclasses.replace(config.train, **(train or {})),
    )


def of_one_lora(config: RunConfig) -> RunConfig:
    """The configuration of one LoRA in a stack of M: with `adapt.order: folds` it sees all rows, as `one_lora` does."""
    return changed(config, adapt={"order": "own"}) if config.adapt.order == "folds" else config


def start_training(
    context: MethodContext,
    meter: Meter,
    config: RunConfig,
    *,
    make_optimizer: MakeOptimizer = member_optimizer,
    make_schedules: MakeSchedules = member_schedules,
) -> MethodTraining:
    """A fresh base with fresh adapters, and a trainer for them on the context's rows.

    `make_optimizer` and `make_schedules` are those of `Trainer`.
    """
    pipeline = meter.open(context, config)
    rows = training_rows(pipeline, context.train, context.val, context.labels)
    config = changed(config, train={"token_budget": pipeline.token_budget})
    trainer = make_trainer(
        pipeline.model,
        rows,
        config,
        context.callback,
        files=context.files,
        make_optimizer=make_optimizer,
        make_schedules=make_schedules,
    )
    return MethodTraining(pipeline, trainer)


def train_members(context: MethodContext, meter: Meter, config: RunConfig) -> tuple[MethodTraining, list[int]]:
    """Train all members in lockstep, each with its own early stop and best copy as configured.

    Returns:
        The training, its adapters at the values to keep, and the members that did not fail.

    Raises:
        TrainingError: every member failed.
        Interrupted: the setting asked to stop.
    """
    training = start_training(context, meter, config)
    trainer = training.trainer
    trainer.run(lambda: None)
    members = trainer.state.good_members()
    with torch.no_grad():
        training.values.copy_(trainer.final_values())
    return training, members


def train_steps(
    context: MethodContext,
    training: MethodTraining,
    after_step: Callable[[int], None],
    after_prepare: Callable[[], None] | None = None,
) -> None:
    """Take all steps of a training without its evaluations; `after_step` is called with the number of steps done.

    For methods whose members share parameters or are points on one path: a best copy of each would tear them apart.
    `after_prepare` is called before the first step, when the members' classification heads, if any, have their initial
    values.

    Raises:
        TrainingError: a member failed.
        Interrupted: the setting asked to stop.
    """
    trainer = training.trainer
    trainer.prepare()
    if after_prepare is not None:
        after_prepare()
    while trainer.state.step < trainer.num_steps:
        if not trainer.step():
            raise Interrupted
        _refuse_failed(training)
        after_step(trainer.state.step)


def _refuse_failed(training: MethodTraining) -> None:
    state = training.trainer.state
    for m in state.with_status("failed"):
        raise TrainingError(f"member {m} failed ({state.members[m].reason}); try a smaller train.lr")


def check_rate(context: MethodContext, factor: float, name: str) -> None:
    """Refuse a factor on the learning rate, a method's setting of this name, with which nothing can be trained.

    Raises:
        ConfigError: it is no finite number above 0, or a weight decay would overshoot at its rate.
    """
    if not 0 < factor < math.inf:
        raise ConfigError(f"{name}: {factor} is not a finite number above 0")
    config = context.config
    try:
        check_training(dataclasses.replace(config.train, lr=config.train.peak_lr * factor), config.regularize)
    except ConfigError as error:
        raise ConfigError(f"{name}: with train.lr times {factor:g}, {error}") from error


def only_first_members(training: MethodTraining, number: int = 1) -> None:
    """Train only this many members; the other rows of the stack wait for values that come of theirs."""
    for member in training.trainer.state.members[number:]:
        member.status = "stopped"


def train_first_member(context: MethodContext, meter: Meter, config: RunConfig) -> MethodTraining:
    """Train one LoRA, with its early stop and best copy as configured; every row of the bank holds it in the end.

    Raises:
        TrainingError: it failed.
        Interrupted: the setting asked to stop.
    """
    training = start_training(context, meter, of_one_lora(config))
    only_first_members(training)
    trainer = training.trainer
    trainer.run(lambda: None)
    first = trainer.state.members[0]
    if first.status == "failed":
        raise TrainingError(f"the adapter failed ({first.reason}); try a smaller train.lr")
    with torch.no_grad():
        training.values.copy_(trainer.final_values()[:1].expand_as(training.values).clone())
    return training


def evaluation_is_due(training: MethodTraining, step: int) -> bool:
    """Whether a method that keeps the best epoch evaluates after this many steps: at the end of an epoch."""
    return training.trainer.config.keep == "best" and step % training.trainer.steps_per_epoch == 0


def validation_log_probs(
    context: MethodContext, training: MethodTraining, members: Sequence[int], step: int
) -> tuple[FloatArray, IntArray]:
    """Log-probabilities `[M, E, C]` of the validation rows under some members after a step, and the answers `[E]`.

    Raises:
        TrainingError: a member's NLL is not finite.
        Interrupted: the setting asked to stop.
    """
    trainer = training.trainer
    rows = trainer.rows.val
    progress = context.progress("validation", len(rows))
    log_probs_MEC = predict_rows(
        trainer.model, rows, member_passes(members), trainer.token_budget, trainer.precomputed.val, progress
    )
    answers_E = np.array([row.answer for row in rows])
    for m, one_EC in zip(members, log_probs_MEC, strict=True):
        if what := validation_failure(float(-one_EC[np.arange(len(rows)), answers_E].mean())):
            trainer.state.fail(m, step, what)
    _refuse_failed(training)
    return log_probs_MEC, answers_E


class BestTogether:
    """Keeps all members' adapters of the epoch with the best validation NLL, the mean over members; see `train_steps`.

    With `train.keep: last` nothing is evaluated, and the last adapters are the best. `train.patience` has no effect. A
    member whose validation NLL is not finite is an error, as in `train_steps`.
    """

    def __init__(self, context: MethodContext, training: MethodTraining) -> None:
        self.context = context
        self.training = training
        self.nll = float("inf")
        self.kept: Tensor | None = None

    def after_step(self, step: int) -> None:
        """Evaluate where an epoch has ended."""
        if not evaluation_is_due(self.training, step):
            return
        members = range(self.training.trainer.model.num_members)
        log_probs_MEC, answers_E = validation_log_probs(self.context, self.training, members, step)
        nll = float(-log_probs_MEC[:, np.arange(len(answers_E)), answers_E].mean())
        if nll < self.nll:
            self.nll, self.kept = nll, self.training.values.clone()

    def restore(self) -> None:
        """Put the best adapters back."""
        if self.kept is not None:
            with torch.no_grad():
                self.training.values.copy_(self.kept)


def last_layer_columns(model: EnsembleModel) -> Tensor:
    """Columns of the adapters of the last adapted layer, and of the classification heads behind it, bool `[P]`."""
    inside = {id(module) for module in decoder_layers(model.model)[model.layers[-1]].modules()}
    columns = torch.zeros_like(model.adapters.is_B)
    for piece in model.adapters.slices:
        if id(model.model.get_submodule(piece.name)) in inside:
            columns[piece.start : piece.stop] = True
    columns[model.adapters.slices[-1].stop :] = True  # empty without heads
    return columns


def packed_predictor(pipeline: Pipeline, passes: Sequence[MemberPass]) -> Predictor:
    """Predicts under some passes, all in packed batches."""

    def predict(examples: Sequence[Example], split: str, progress: Progress | None = None) -> Predictions:
        return pipeline.predict(examples, passes, split, progress=progress)

    return predict


def check_adapter_values(values_MP: Tensor) -> None:
    """Refuse adapters that a fit has made of trained ones, such as draws, by the definition of `training.failure`.

    Raises:
        TrainingError: a number is not finite, or out of bounds.
    """
    for m, what in parameter_failures(values_MP).items():
        raise TrainingError(f"adapter {m} after the fit: diverged: {what}; try milder settings, or a smaller train.lr")


def fitted_members(
    training: MethodTraining, meter: Meter, members: Sequence[int], parameters: int | None = None
) -> Fitted:
    """The end of a fit that predicts by members of its session.

    Args:
        training: the training, adapters at their final values.
        meter: measured the fit.
        members: which of them predict.
        parameters: numbers stored; by default, those of the members' adapters.

    Raises:
        TrainingError: a number of an adapter is not finite, or out of bounds.
    """
    model = training.pipeline.model
    check_adapter_values(training.values[list(members)])
    if parameters is None:
        parameters = len(members) * model.adapters.values.shape[1]
    cost = meter.cost(
        fit_base_passes=training_base_passes(training.trainer),
        tokens=training.trainer.state.tokens,
        parameters=parameters,
        predict_base_passes=prediction_base_passes(model, len(members)),
    )
    return Fitted(packed_predictor(training.pipeline, member_passes(members)), cost)
