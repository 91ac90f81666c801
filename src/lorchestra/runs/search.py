"""The search of the learning rate and the number of epochs before a training: packed passes, resumed exactly.

Format: `search/pass_<k>/` of the run directory holds the events and checkpoints of each pass while the search is in
progress; `search.json` is its result.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from lorchestra.config.mappings import to_mapping
from lorchestra.config.run import RunConfig
from lorchestra.data.prompts import ScoringMode
from lorchestra.distributed import ALONE, Group
from lorchestra.errors import TrainingError
from lorchestra.inference.trunk import TrunkFiles
from lorchestra.models.init import make_adapter_settings
from lorchestra.runs.event_log import EventLog
from lorchestra.runs.rows import RunRows
from lorchestra.runs.training import prepare_training, restore, train_with_checkpoints
from lorchestra.store.atomic import discard_directory
from lorchestra.store.run import Run
from lorchestra.store.safe_paths import inside
from lorchestra.store.search_record import SearchRecord, TrialRecord
from lorchestra.training.callbacks import Callback, CallbackList, Interrupted
from lorchestra.training.checkpoint import TrainState
from lorchestra.training.joint import led
from lorchestra.training.members import member_settings, steps_per_epoch
from lorchestra.training.sampler import units_of
from lorchestra.training.search import (
    MAX_EXTENSIONS,
    PATIENCE,
    WARMUP_STEPS,
    best_steps,
    chosen_rate,
    epochs_of,
    first_rates,
    further_rates,
    longest,
    trial_steps,
)
from lorchestra.training.trainer import Trainer

logger = logging.getLogger(__name__)

FEWEST_FOR_HEADS = 11
"""Fewest labels with which `auto` also tries classification heads."""


def open_scorings(config: RunConfig, resolved: RunConfig, rows: RunRows) -> tuple[ScoringMode, ...]:
    """The scorings that a search compares: with `auto`, many labels and an open rate, those of their texts and a head.

    Few labels are few tokens, which the base knows the meaning of, and candidates of a second scoring cost as much as
    those of the rate; a penalty towards the base's answers needs the base's.

    Args:
        config: as configured.
        resolved: the same with the scoring that the base and the labels suggest.
        rows: the task's rows.
    """
    scoring = resolved.data.scoring
    assert scoring != "auto"
    labels = rows.task.labels or ()
    is_open = config.data.scoring == "auto" and config.train.lr == "auto" and scoring != "letter"
    if not is_open or len(labels) < FEWEST_FOR_HEADS or resolved.regularize.kl_beta or resolved.data.normalize != "sum":
        return (scoring,)
    return (scoring, "head")


def settle_training(
    run: Run,
    config: RunConfig,
    rows: RunRows,
    hidden_size: int,
    callback: Callback,
    scorings: Sequence[ScoringMode] = (),
    group: Group = ALONE,
) -> RunConfig:
    """Search what `train.lr` and `train.epochs` leave open, and record it.

    Args:
        run: the directory of the search; a search that was interrupted there is resumed.
        config: with everything else settled.
        rows: training and validation rows.
        hidden_size: of the base; it sets the first rates.
        callback: reports progress; may request a stop.
        scorings: candidates for how answers are scored; by default that of `config`.
        group: processes that all call this. The first one searches: the search of the length, which takes longest, has
            one member, so there is little to split.

    Returns:
        The configuration with numbers and scoring; `config.yaml` is not written.

    Raises:
        TrainingError: every candidate failed, also at the lowest rates.
        Interrupted: the callback requested a stop; a checkpoint is written.
    """
    if not config.train.is_auto:
        return config

    def search(callback: Callback) -> None:
        if run.read_search() is None:
            record = _Search(run, config, rows, hidden_size, callback).record(scorings or (config.data.scoring,))
            run.write_search(record)
        run.discard_search()

    led(group, callback, search)
    gc.collect()  # frees the base of the last pass
    record = run.read_search()
    assert record is not None
    if record.scoring is not None:
        config = _scored(config, record.scoring)
    return dataclasses.replace(config, train=config.train.filled(record.lr, record.epochs))


def open_scoring(config: RunConfig) -> RunConfig:
    """The configuration with the scoring left to the search."""
    return _scored(config, "auto")


def _scored(config: RunConfig, scoring: str) -> RunConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, scoring=scoring))  # type: ignore[arg-type]


def settle_once(config: RunConfig, rows: RunRows, callback: Callback, directory: Path | None = None) -> RunConfig:
    """As `settle_training`, for jobs that train several times.

    Args:
        config: what else it leaves open is settled for the search, and stays open in the result.
        rows: training and validation rows.
        callback: reports progress; may request a stop.
        directory: of searches, each in a folder named after its settings; without one, an interrupted search is not
            resumed.
    """
    if not config.train.is_auto:
        return config
    with TemporaryDirectory(prefix="lorchestra-search-") as temporary:
        run = Run(inside(directory or Path(temporary), _key(config, rows)))
        record = run.read_search()
        if record is not None:
            settled = config.train.filled(record.lr, record.epochs)
        else:
            pipeline, resolved, _ = prepare_training(run.read_config() if run.is_started else config, rows)
            run.root.mkdir(parents=True, exist_ok=True)
            run.settle_config(resolved)  # a chat template may write another date when the search is resumed
            width = pipeline.model.hidden_size
            del pipeline  # the search loads another base
            settled = settle_training(run, resolved, rows, width, callback).train
        run.discard_search()
        discard_directory(run.resume)
    train = config.train.filled(settled.peak_lr, settled.num_epochs)
    return dataclasses.replace(config, train=train)


def _key(config: RunConfig, rows: RunRows) -> str:
    """A digest of a configuration and its rows, as the name of a folder."""
    digests = [split["digest"] for split in rows.record().values()]
    return hashlib.sha256(json.dumps([to_mapping(config), digests], sort_keys=True).encode()).hexdigest()[:16]


class _NeverFinish(CallbackList):
    """A search is stopped and resumed, but not finished early: its best so far is not a result."""

    def should_finish(self) -> bool:
        """Never."""
        return False


class _Search:
    """A search in a directory.

    Args:
        run: the directory.
        config: with everything else settled.
        rows: training and validation rows.
        hidden_size: of the base.
        callback: reports progress; may request a stop.
    """

    def __init__(self, run: Run, config: RunConfig, rows: RunRows, hidden_size: int, callback: Callback) -> None:
        self.run, self.config, self.rows, self.callback = run, config, rows, _NeverFinish([callback])
        self.hidden_size = hidden_size
        self.num_passes = self.tokens = self.steps_per_epoch = 0
        self.seconds = 0.0

    def record(self, scorings: Sequence[str]) -> SearchRecord:
        """Search what is open, and which of the scorings is best."""
        train = self.config.train
        tried: dict[str, list[TrialRecord]] = {}
        for scoring in scorings:
            self.config = _scored(self.config, scoring)
            tried[scoring] = self._rates() if train.lr == "auto" else []
        chosen = min(tried, key=lambda scoring: min((trial.best for trial in tried[scoring]), default=0.0))
        self.config = _scored(self.config, chosen)
        trials = tried.pop(chosen)
        lr = train.lr
        if lr == "auto":
            is_longer = train.epochs == "auto" or self.steps_per_epoch * train.epochs > max(trials[0].steps, default=0)
            lr = chosen_rate({trial.lr: trial.best for trial in trials}, is_longer=is_longer)
        length = self._length(lr) if train.epochs == "auto" else None
        epochs = train.epochs
        if length is not None:
            if math.isinf(length.best):
                raise TrainingError(f"train.epochs: auto: a member at the rate {length.lr:g} failed; give the epochs")
            scores = {step: nll for step, nll in zip(length.steps, length.val_nll, strict=True) if nll is not None}
            epochs = epochs_of(best_steps(scores), self.steps_per_epoch)
        assert epochs != "auto"
        record = SearchRecord(
            lr,
            epochs,
            tuple(trials),
            length,
            self.steps_per_epoch,
            self.tokens,
            round(self.seconds, 2),
            chosen if tried else None,
            {scoring: tuple(others) for scoring, others in tried.items()},
        )
        for sentence in record.sentences():
            logger.info(sentence)
        return record

    def _rates(self) -> list[TrialRecord]:
        """Train candidates on one grid after the other; returns their results, ascending by rate."""
        below = _smallest_refused(self.config)
        tried: dict[float, TrialRecord] = {}
        rates = first_rates(self.hidden_size, below)
        for _ in range(MAX_EXTENSIONS + 1):
            tried |= {trial.lr: trial for trial in self._pass(rates, constant=False)}
            rates = further_rates({rate: trial.best for rate, trial in tried.items()}, below)
            if not rates:
                break
        if all(math.isinf(trial.best) for trial in tried.values()):
            raise TrainingError(f"train.lr: auto: every rate from {min(tried):g} to {max(tried):g} failed; give one")
        return [tried[rate] for rate in sorted(tried)]

    def _length(self, lr: float) -> TrialRecord:
        """Train one member at half the rate until its validation NLL no longer improves."""
        (trial,) = self._pass((lr / 2,), constant=True)
        return trial

    def _pass(self, rates: Sequence[float], *, constant: bool) -> list[TrialRecord]:
        """Train one candidate per rate: shortly with the run's schedule, or at a constant rate with patience."""
        gc.collect()  # frees the base of the previous pass
        train = self.config.train
        directory = self.run.search_pass(self.num_passes)
        self.num_passes += 1
        resuming = directory.resume.exists()
        directory.resume.mkdir(parents=True, exist_ok=True)
        alone = dataclasses.replace(self.config.adapt, members=1)
        (adapter,) = make_adapter_settings(alone, train.seed)
        joint = dataclasses.replace(self.config, adapt=dataclasses.replace(alone, members=len(rates)))
        pipeline, resolved, encoded = prepare_training(joint, self.rows, [adapter] * len(rates))
        per_epoch = self.steps_per_epoch = steps_per_epoch(train.batch_size, len(units_of(encoded.train)))
        epochs = longest(per_epoch) if train.epochs == "auto" else train.epochs
        num_steps = per_epoch * epochs if constant else min(trial_steps(per_epoch), per_epoch * epochs)
        settled = dataclasses.replace(resolved.train, epochs=epochs, lr=rates[0])
        (member,) = member_settings(dataclasses.replace(resolved, train=settled), len(encoded.train), [adapter])
        if constant:
            warmup = min(0.5, WARMUP_STEPS / num_steps)
            member = dataclasses.replace(member, schedule="constant", warmup=warmup, patience=PATIENCE)
        what = "number of epochs" if constant else "learning rate"
        scored = ", scored by a head" if self.config.data.scoring == "head" else ""
        self.callback.on_status([f"{rate:g}" for rate in rates], f"searching the {what}{scored}")
        trainer = Trainer(
            pipeline.model,
            encoded,
            settled,
            [dataclasses.replace(member, lr=rate) for rate in rates],
            CallbackList([EventLog(directory), self.callback]),
            files=trunk_files(self.run, pipeline.base.digest),
            num_steps=num_steps,
            evaluate_every=trial_steps(per_epoch) if constant else num_steps,
        )
        if resuming:
            restore(directory, trainer)
        train_with_checkpoints(directory, trainer)
        if self.callback.should_stop():
            raise Interrupted
        self.tokens, self.seconds = self.tokens + trainer.state.tokens, self.seconds + trainer.state.train_s
        is_scaled = not constant or train.criterion == "scaled_nll"
        return _trials(rates, trainer.state, "val_scaled_nll" if is_scaled else "val_nll")


def trunk_files(run: Run, base_digest: str, memory_bytes: int = 0, group: Group = ALONE) -> TrunkFiles:
    """Files for trunks of more than `memory_bytes`; with 0 a training reads those of the search before it."""
    run.resume.mkdir(parents=True, exist_ok=True)
    log = run.append_event if group.is_first else _log_nothing
    return TrunkFiles(run.resume, base_digest, memory_bytes, log)


def _log_nothing(event: str, **values: object) -> None:
    """For the processes that do not write the event log."""


def _smallest_refused(config: RunConfig) -> float:
    """The smallest learning rate with which a decay would overshoot zero."""
    strengths = (config.regularize.weight_decay_a, config.regularize.weight_decay_b)
    return min((1 / value for value in strengths if value > 0), default=math.inf)


def _trials(rates: Sequence[float], state: TrainState, score: str) -> list[TrialRecord]:
    records = []
    for m, rate in enumerate(rates):
        nlls = {entry["step"]: entry[score][m] for entry in state.history}
        known = {step: nll for step, nll in nlls.items() if nll is not None and math.isfinite(nll)}
        records.append(TrialRecord(rate, tuple(known), tuple(known.values())))
    return records
