"""The baselines of an ensemble's evaluation, and the evaluation as `metrics.json` has it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lorchestra.config.run import RunConfig
from lorchestra.data.splits import num_shared
from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.inference.pipeline import Pipeline
from lorchestra.methods import few_shot, mc_dropout, temperature
from lorchestra.methods.contract import MethodContext
from lorchestra.methods.registry import parse_name
from lorchestra.metrics.by_question import RowCalibration
from lorchestra.metrics.calibrator import Calibration
from lorchestra.metrics.evaluation import evaluate_predictions
from lorchestra.metrics.question_scores import evaluate_questions
from lorchestra.metrics.result import Evaluation, MethodScores
from lorchestra.metrics.scores import nll
from lorchestra.nn.seeding import derive_seed
from lorchestra.questions import Question
from lorchestra.runs.evaluation_cost import NO_LIMIT, CostLimit, num_tokens
from lorchestra.store.evaluations import Entry, check_entry
from lorchestra.store.run import Run
from lorchestra.training.callbacks import Callback, progress
from lorchestra.types import Example, Predictions, Task

logger = logging.getLogger(__name__)

LINEAR = ("tfidf", "frozen")
"""Baselines without adapters, which are fitted on the training rows of texts with labels."""

_NO_LABELS = "a classifier needs texts with labels, and here every row brings its choices"
_NO_ROWS = "the training rows are not available"


@dataclass(frozen=True)
class Baseline:
    """A baseline's predictions, what was fitted for it, and the seconds that it took."""

    predictions: Predictions
    fit: MethodScores = field(default_factory=MethodScores)
    seconds: float | None = None

    @classmethod
    def timed(cls, predict: Callable[[], Predictions]) -> Baseline:
        """A baseline without a fit, with the time of its predictions."""
        started = time.perf_counter()
        predictions = predict()
        return cls(predictions, seconds=time.perf_counter() - started)


Candidates = dict[str, Baseline | str]
"""Baselines by name, or the reason why there is none."""


def few_shot_base(
    pipeline: Pipeline,
    config: RunConfig,
    examples: Sequence[Example],
    split: str,
    train: Sequence[Example] | None,
    callback: Callback,
    limit: CostLimit = NO_LIMIT,
) -> Candidates:
    """The few-shot base, or why there is none, by its name; empty if the configuration disables it."""
    number = config.evaluate.few_shot
    if number == 0:
        return {}
    if train is None:
        return {"base_few_shot": _NO_ROWS}
    if examples and examples[0].asked is not None:
        return {"base_few_shot": "typed questions are asked without examples"}
    pool = few_shot.excluding(train, examples)
    if not pool:
        return {"base_few_shot": "every training row is among the evaluated ones"}
    if not pipeline.template.shows_shots:
        return {"base_few_shot": "the base's chat template writes longer conversations by no simple rule"}
    seed = derive_seed(config.train.seed, "shots")
    if limit.train_s is not None:
        shots = few_shot.draw_shots(pool, number, seed)
        reason = limit.reason("base_few_shot", num_tokens(pipeline.encode(examples, shots).rows))
        if reason is not None:
            return {"base_few_shot": reason}
    report = progress(callback, f"base, few-shot on {split}", len(examples))
    return {
        "base_few_shot": Baseline.timed(lambda: few_shot.predict(pipeline, examples, split, pool, number, seed, report))
    }


def mc_dropout_of(
    pipeline: Pipeline,
    config: RunConfig,
    examples: Sequence[Example],
    split: str,
    callback: Callback,
    *,
    member: int = 0,
    passes: int,
) -> Candidates:
    """One member under dropout, by its name; empty if it is disabled or there is no dropout."""
    if not config.evaluate.mc_dropout or config.adapt.dropout == 0:
        return {}
    dropout_passes = mc_dropout.dropout_passes([member], passes, config.train.seed)
    report = progress(callback, f"MC dropout on {split}", len(examples))
    return {"mc_dropout": Baseline.timed(lambda: pipeline.predict(examples, dropout_passes, split, progress=report))}


def linear_baselines(
    pipeline: Pipeline,
    config: RunConfig,
    task: Task | None,
    examples: Sequence[Example],
    split: str,
    callback: Callback,
    *,
    has_labels: bool,
    earlier: Callable[[str], Baseline | None] = lambda name: None,
) -> Candidates:
    """The baselines of `LINEAR` that the configuration enables, each with a temperature, or why there is none.

    Args:
        pipeline: the base, of which only the base is used.
        config: the run's configuration.
        task: the training and validation rows; None if they are not available.
        examples: the rows to predict.
        split: the name of their split.
        callback: reports progress.
        has_labels: whether the rows are texts with labels, or states with typed questions.
        earlier: the result of an earlier evaluation of the same rows by name; None without one.
    """
    wanted = [name for name in LINEAR if getattr(config.evaluate, name)]
    if not has_labels or task is None:
        return dict.fromkeys(wanted, _NO_ROWS if has_labels else _NO_LABELS)
    context = MethodContext(config, lambda _: pipeline, task.splits["train"], task.splits["val"], task.labels, callback)
    fitted: Candidates = {}
    for name in wanted:
        try:
            fitted[name] = earlier(name) or _fit_linear(context, name, examples, split)
        except ConfigError as error:
            fitted[name] = str(error).removeprefix(f"{name}: ")
    return fitted


def _fit_linear(context: MethodContext, name: str, examples: Sequence[Example], split: str) -> Baseline:
    """The method of this name as `compare` fits it, with `temperature` where validation rows determine one."""
    started = time.perf_counter()
    fitted = parse_name(name).fit(context)
    try:
        fitted = temperature.wrap(context, fitted, temperature.Config())
    except ConfigError as error:
        fitted.note(f"without a temperature ({str(error).removeprefix('temperature: ')})")
    validation = fitted.predict(context.val, "val") if context.val else None
    report = context.progress(f"{name} on {split}", len(examples))
    predictions = fitted.predict(examples, split, report)
    T = fitted.chosen.get("temperature")
    fit = MethodScores(
        temperature=T,
        num_rows=None if T is None or validation is None else validation.num_examples,
        validation_nll=None if validation is None else nll(validation.log_probs_MEC[0], validation.labels),
        notes=tuple(fitted.notes),
    )
    return Baseline(predictions, fit, time.perf_counter() - started)


def earlier_baseline(run: Run, before: Sequence[Entry], predictions: Predictions, name: str) -> Baseline | None:
    """A baseline of an evaluation of the same rows that the run has saved; None without one."""
    for entry in before:
        if (entry["task"], entry["split"]) == (predictions.task, predictions.split):
            try:
                check_entry(entry, run.metrics, "evaluations", "")
                saved = run.load_predictions(predictions.task, predictions.split, name, answered=True)
            except CheckpointError:
                return None
            evaluation = Evaluation.from_dict(entry)
            if name not in evaluation.baselines or not _same_rows(saved, predictions):
                return None
            scores = evaluation.baselines[name]
            fit = MethodScores(
                temperature=scores.temperature,
                num_rows=scores.num_rows,
                validation_nll=scores.validation_nll,
                notes=scores.notes,
            )
            logger.info(f"{name}: taken from the run's earlier evaluation of these rows")
            return Baseline(saved, fit, (evaluation.seconds or {}).get(name))
    return None


def _same_rows(one: Predictions, other: Predictions) -> bool:
    fields = ("ids", "options", "texts")
    return all(getattr(one, name) == getattr(other, name) for name in fields) and np.array_equal(
        one.labels, other.labels
    )


def comparable(
    baselines: Mapping[str, Baseline | str], predictions: Predictions, pipeline: Pipeline
) -> tuple[dict[str, Baseline], dict[str, str]]:
    """The baselines that answered the same rows, and the reasons of the others, by name."""
    kept: dict[str, Baseline] = {}
    left_out: dict[str, str] = {}
    for name, baseline in baselines.items():
        if isinstance(baseline, str):
            left_out[name] = baseline
        elif baseline.predictions.ids != predictions.ids:
            fewer = predictions.num_examples - baseline.predictions.num_examples
            left_out[name] = (
                f"with its longer prompts {fewer} of {predictions.num_examples} rows have more than"
                f" {pipeline.max_length} tokens; lower evaluate.few_shot"
            )
        else:
            kept[name] = baseline
    return kept, left_out


def left_out_lines(left_out: Mapping[str, str]) -> list[str]:
    """One line per reason, with the names of the baselines that it holds for."""
    names: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        names.setdefault(reason, []).append(name)
    return [
        f"{' and '.join(group)} {'is' if len(group) == 1 else 'are'} left out: {reason}"
        for reason, group in names.items()
    ]


def score(
    predictions: Predictions,
    validation: Predictions | None,
    baselines: Mapping[str, Baseline],
    left_out: Mapping[str, str],
    examples: Sequence[Example],
    splits: Mapping[str, Sequence[Example]],
    config: RunConfig,
    calibration: Calibration | RowCalibration,
    questions: Sequence[Question] = (),
) -> Entry:
    """An entry of `metrics.json`: see `metrics.evaluation`.

    It also has `left_out`, the missing baselines with the reason, `seconds`, the time of the others, and `seen`: how
    many of the evaluated `examples` are, by their content, among the run's "train" and "val" `splits`; its notes start
    with the consequences.
    """
    entry = evaluate_predictions(
        predictions,
        validation=validation,
        # answers to several questions have no majority
        train_labels=None if questions else [r.answer for r in splits.get("train", ()) if r.answer is not None],
        baselines={name: baseline.predictions for name, baseline in baselines.items()},
        fits={name: baseline.fit for name, baseline in baselines.items()},
        temperature=config.evaluate.temperature,
        calibration=calibration,
        resamples=config.evaluate.resamples,
        seed=config.train.seed,
    )
    if questions:
        scores = evaluate_questions(
            predictions,
            questions,
            validation=validation,
            train_labels=labels_by_question(splits.get("train", ())),
            baselines={name: baseline.predictions for name, baseline in baselines.items()},
            calibrations=calibration.calibrations if isinstance(calibration, RowCalibration) else None,
            resamples=config.evaluate.resamples,
            seed=config.train.seed,
        )
        entry["questions"] = {name: one.to_dict() for name, one in scores.items()}
    if "classes" in entry:
        entry["classes"]["weighted"] = config.data.class_weights
    seen = {name: num_shared(examples, splits.get(name, ())) for name in ("train", "val")}
    fitted = [f"{name}: {note}." for name, baseline in baselines.items() for note in baseline.fit.notes]
    notes = [*_seen_notes(seen, len(examples)), *entry["notes"], *fitted]
    seconds = {name: round(one.seconds, 2) for name, one in baselines.items() if one.seconds is not None}
    return entry | {"notes": notes, "seen": seen, "left_out": dict(left_out), "seconds": seconds}


def labels_by_question(examples: Sequence[Example]) -> dict[str, list[int]]:
    """Answer indices of the rows of each typed question."""
    labels: dict[str, list[int]] = {}
    for row in examples:
        if row.asked is not None and row.answer is not None:
            labels.setdefault(row.asked.name, []).append(row.answer)
    return labels


def _seen_notes(seen: Mapping[str, int], num_rows: int) -> list[str]:
    """Notes on evaluated rows that trained the members, or selected their checkpoints."""
    notes = []
    if trained := seen["train"]:
        which = "These rows" if trained == num_rows else f"{trained} of these {num_rows} rows"
        notes.append(
            f"{which} trained the members: on them, the numbers say how well the members remember, not how well they"
            " answer new rows."
        )
    if chosen := seen["val"]:
        which = "These rows" if chosen == num_rows else f"{chosen} of these {num_rows} rows"
        notes.append(
            f"{which} are validation rows, on which the kept adapters, the best member and temperatures were chosen:"
            " they look better than new rows would."
        )
    return notes


def save_all(run: Run, predictions: Sequence[Predictions], baselines: Mapping[str, Baseline]) -> None:
    """Save predictions under their task and split, and baselines also under their names."""
    for one in predictions:
        run.save_predictions(one)
    for name, baseline in baselines.items():
        run.save_predictions(baseline.predictions, name)
