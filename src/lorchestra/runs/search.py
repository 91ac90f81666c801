"""The search of the learning rate and the number of epochs before a training: packed passes, resumed exactly.

Format: `search/pass_<k>/` of the run directory holds the events and checkpoints of each pass while the search is in
progress; `search.json` is its result.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from lorchestra.config.run import RunConfig
from lorchestra.errors import TrainingError
from lorchestra.inference.trunk import TrunkFiles
from lorchestra.models.init import make_adapter_settings
from lorchestra.runs.event_log import EventLog
from lorchestra.runs.rows import RunRows
from lorchestra.runs.training import prepare_training, restore, train_with_checkpoints
from lorchestra.store.atomic import discard_directory
from lorchestra.store.run import Run
from lorchestra.store.search_record import SearchRecord, TrialRecord
from lorchestra.training.callbacks import Callback, CallbackList, Interrupted
from lorchestra.training.checkpoint import TrainState
from lorchestra.training.members import member_settings, steps_per_epoch
from lorchestra.training.search import (
    MAX_MOVES,
    PATIENCE,
    WARMUP_STEPS,
    Halving,
    epochs_of,
    first_nlls,
    first_rates,
    longest_search,
    moved_rates,
    steps_between,
)
from lorchestra.training.trainer import Trainer

logger = logging.getLogger(__name__)


def settle_training(run: Run, config: RunConfig, rows: RunRows, hidden_size: int, callback: Callback) -> RunConfig:
    """Search what `train.lr` and `train.epochs` leave open, and record it.

    Args:
        run: the directory of the search; a search that was interrupted there is resumed.
        config: with everything else settled.
        rows: training and validation rows.
        hidden_size: of the base; it sets the first rates.
        callback: reports progress; may request a stop.

    Returns:
        The configuration with numbers; `config.yaml` is not written.

    Raises:
        TrainingError: every candidate failed, also at the lowest rates.
        Interrupted: the callback requested a stop; a checkpoint is written.
    """
    if not config.train.is_auto:
        return config
    record = run.read_search()
    if record is None:
        record = _Search(run, config, rows, hidden_size, callback).record()
        run.write_search(record)
    run.discard_search()
    return _settled(config, record)


def _settled(config: RunConfig, record: SearchRecord) -> RunConfig:
    train = config.train
    lr = record.lr if train.lr == "auto" else train.lr
    epochs = record.epochs if train.epochs == "auto" else train.epochs
    return dataclasses.replace(config, train=dataclasses.replace(train, lr=lr, epochs=epochs))


def settle_once(config: RunConfig, rows: RunRows, callback: Callback, directory: Path | None = None) -> RunConfig:
    """As `settle_training`, for jobs that train several times.

    Args:
        config: what else it leaves open is settled for the search, and stays open in the result.
        rows: training and validation rows.
        callback: reports progress; may request a stop.
        directory: of the search; without one, an interrupted search is not resumed.
    """
    if not config.train.is_auto:
        return config
    with TemporaryDirectory(prefix="lorchestra-search-") as temporary:
        run = Run(directory or Path(temporary))
        record = run.read_search()
        if record is not None:
            return _settled(config, record)
        pipeline, resolved, _ = prepare_training(config, rows)
        width = pipeline.model.hidden_size
        del pipeline  # frees the base: the search loads another
        settled = settle_training(run, resolved, rows, width, callback).train
        discard_directory(run.resume)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, lr=settled.lr, epochs=settled.epochs))


@dataclasses.dataclass(frozen=True)
class _Search:
    """A search in a directory."""

    run: Run
    config: RunConfig
    rows: RunRows
    hidden_size: int
    callback: Callback

    def record(self) -> SearchRecord:
        """Run all passes."""
        below = _smallest_refused(self.config)
        tried: dict[float, TrialRecord] = {}
        first: dict[float, float] = {}
        tokens, seconds, lr = 0, 0.0, self.config.train.lr
        rates = first_rates(self.hidden_size, below) if lr == "auto" else (lr,)
        for number in range(MAX_MOVES + 1):
            may_move = lr == "auto" and number < MAX_MOVES
            halving = Halving(rates, first, below, may_move=may_move, length=self.config.train.epochs == "auto")
            state, per_epoch = self._pass(number, halving)
            tokens, seconds = tokens + state.tokens, seconds + state.train_s
            tried |= {trial.lr: trial for trial in _trials(rates, state)}
            first |= first_nlls(rates, state)
            moved = moved_rates(first, below) if may_move else ()
            if not moved:
                break
            rates = moved
        winner = max(range(len(rates)), key=lambda m: (len(tried[rates[m]].steps), -_best(tried[rates[m]])))
        trial = tried[rates[winner]]
        if not trial.steps or math.isinf(_best(trial)):
            raise TrainingError(f"train.lr: auto: every rate from {min(first):g} to {max(first):g} failed; give one")
        best_step = trial.steps[trial.val_nll.index(_best(trial))]
        record = SearchRecord(
            lr=trial.lr,
            epochs=epochs_of(best_step, per_epoch),
            trials=tuple(tried[rate] for rate in sorted(tried)),
            steps_per_epoch=per_epoch,
            tokens=tokens,
            seconds=round(seconds, 2),
        )
        self._report(record)
        return record

    def _pass(self, number: int, halving: Halving) -> tuple[TrainState, int]:
        """Train the candidates of one grid; returns the final state, and the number of steps of an epoch."""
        gc.collect()  # frees the base of the previous pass
        train, rates = self.config.train, halving.rates
        directory = self.run.search_pass(number)
        resuming = directory.resume.exists()
        directory.resume.mkdir(parents=True, exist_ok=True)
        alone = dataclasses.replace(self.config.adapt, members=1)
        (adapter,) = make_adapter_settings(alone, train.seed)
        joint = dataclasses.replace(self.config, adapt=dataclasses.replace(alone, members=len(rates)))
        pipeline, resolved, encoded = prepare_training(joint, self.rows, [adapter] * len(rates))
        per_epoch = steps_per_epoch(train.batch_size, len(encoded.train))
        epochs = longest_search(per_epoch) if train.epochs == "auto" else train.epochs
        settled = dataclasses.replace(resolved.train, epochs=epochs, lr=rates[0])
        (member,) = member_settings(dataclasses.replace(resolved, train=settled), len(encoded.train), [adapter])
        warmup = min(0.5, WARMUP_STEPS / (per_epoch * epochs))
        member = dataclasses.replace(member, schedule="constant", warmup=warmup, patience=PATIENCE)
        self.callback.on_status([f"{rate:g}" for rate in rates], "searching")
        trainer = Trainer(
            pipeline.model,
            encoded,
            settled,
            [dataclasses.replace(member, lr=rate) for rate in rates],
            CallbackList([halving, EventLog(directory), self.callback]),
            files=trunk_files(self.run, pipeline.base.digest),
            evaluate_every=steps_between(per_epoch),
        )
        if resuming:
            restore(directory, trainer)
        train_with_checkpoints(directory, trainer)
        if self.callback.should_stop():
            raise Interrupted
        return trainer.state, per_epoch

    def _report(self, record: SearchRecord) -> None:
        """Log what was tried and chosen."""
        tried = [f"{trial.lr:g}: {_best(trial):.3f} ({max(trial.steps, default=0)} steps)" for trial in record.trials]
        if self.config.train.lr == "auto":
            logger.info(f"learning rate {record.lr:g}; lowest validation NLL by rate: {', '.join(tried)}")
        if self.config.train.epochs == "auto":
            logger.info(f"epochs: {record.epochs}, by the validation NLL of one member at a constant rate")


def trunk_files(run: Run, base_digest: str) -> TrunkFiles:
    """Files for the trunks of a search and of the training after it, which then does not compute them again."""
    run.resume.mkdir(parents=True, exist_ok=True)
    return TrunkFiles(run.resume, base_digest, 0, run.append_event)


def _smallest_refused(config: RunConfig) -> float:
    """The smallest learning rate with which a decay would overshoot zero."""
    strengths = (config.regularize.weight_decay_a, config.regularize.weight_decay_b)
    return min((1 / value for value in strengths if value > 0), default=math.inf)


def _best(trial: TrialRecord) -> float:
    return min((nll for nll in trial.val_nll if nll is not None), default=math.inf)


def _trials(rates: Sequence[float], state: TrainState) -> list[TrialRecord]:
    records = []
    for m, rate in enumerate(rates):
        known = {entry["step"]: entry["val_nll"][m] for entry in state.history if entry["val_nll"][m] is not None}
        records.append(TrialRecord(rate, tuple(known), tuple(known.values())))
    return records
