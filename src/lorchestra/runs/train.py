"""Train an ensemble: from a configuration to a finished run directory; interrupted at any point, resumed exactly."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorchestra.config.mappings import differences
from lorchestra.config.run import RunConfig, check_run, read_config
from lorchestra.errors import CheckpointError, ConfigError, TrainingError
from lorchestra.inference.pipeline import Pipeline
from lorchestra.inference.trunk import TrunkFiles
from lorchestra.models.init import AdapterSettings
from lorchestra.models.loading import absolute_base
from lorchestra.models.peft_files import save_members
from lorchestra.planning.budget import settle_budget
from lorchestra.planning.estimate import training_base_passes
from lorchestra.planning.memory import peak_bytes
from lorchestra.runs.build import build_pipeline
from lorchestra.runs.ensemble import failed_members
from lorchestra.runs.event_log import EventLog
from lorchestra.runs.record import ensemble_record, trained_members, write_description
from lorchestra.runs.rows import RunRows, absolute_settings, check_unchanged, read_rows, with_directory
from lorchestra.store.atomic import atomic_directory, discard_directory, sweep_directory
from lorchestra.store.run_dir import RunDir, claim_run, read_ensemble, write_ensemble
from lorchestra.training.callbacks import Callback, CallbackList
from lorchestra.training.checkpoint import load_checkpoint, save_checkpoint
from lorchestra.training.members import member_settings
from lorchestra.training.precompute import TrainingRows
from lorchestra.training.rows import training_rows
from lorchestra.training.trainer import Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainOutcome:
    """A finished training."""

    run: RunDir
    failed_members: tuple[int, ...]
    reasons: tuple[str, ...] = ()
    """What happened to each of them."""


def train_run(
    config: RunConfig,
    out: str | Path,
    *,
    if_exists: Literal["fail", "resume", "new"] = "fail",
    callbacks: Sequence[Callback] = (),
    rows: RunRows | None = None,
    given: Collection[str] = (),
) -> TrainOutcome:
    """Train the ensemble that `config` describes into the directory `out`.

    Args:
        config: the run's configuration; with `resume`, settings given here must be those the run was started with.
        out: the run directory.
        if_exists: what to do where a run is already there.
        callbacks: report progress; where one asks to stop, a checkpoint is written and `Interrupted` raised.
        rows: the splits "train" and "val", where they come from Python and not from the files in `config.data`.
        given: dotted settings that were given explicitly: with `resume` they are compared with the run's even where
            they have the value of the default. Settings that are not the default's count as given.

    Raises:
        ConfigError, DataError, CheckpointError: bad input, or another process is at work in `out`; nothing
            half-written is left.
        TrainingError: every member failed.
        Interrupted: a callback asked to stop.
    """
    check_run(config)
    with claim_run(out, if_exists) as (run, resuming):
        if resuming:
            config = _saved_config(run, config, given)
        if rows is None:
            rows = read_rows(config.data, config.train.seed)
        if resuming:
            check_unchanged(rows, run.splits)
            if run.ensemble.is_file():
                logger.info(f"{run.root} is finished already; nothing to train")
                return _outcome(run)
        for note in rows.notes:
            logger.info(note)
        pipeline, resolved, training = prepare_training(config, rows)
        if not resuming:
            _begin(run, resolved, rows, pipeline)
        log = EventLog(run.events, keep_bytes=None)
        files = TrunkFiles(run.resume, pipeline.base.digest, round(resolved.adapt.trunk_memory_gb * 1e9), log.write)
        settings = member_settings(resolved, len(training.train), pipeline.model.adapter_settings)
        callback = CallbackList([log, *callbacks])
        trainer = Trainer(pipeline.model, training, resolved.train, settings, callback, files=files)
        if resuming:
            restore(run, trainer, log)
        peak = train_with_checkpoints(run, trainer, log)
        return _finish(run, trainer, pipeline, rows, log, peak)


def prepare_training(
    config: RunConfig, rows: RunRows, adapter_settings: Sequence[AdapterSettings] | None = None
) -> tuple[Pipeline, RunConfig, TrainingRows]:
    """The base with members on it, the configuration with all that was left open, and the rows as tokens.

    Raises:
        ConfigError, DataError, CheckpointError: bad input.
    """
    train = rows.task.splits["train"]
    pipeline, resolved = build_pipeline(
        config, rows.task.name, rows.task.labels, train, adapter_settings=adapter_settings
    )
    training = training_rows(pipeline, train, rows.task.splits["val"], rows.task.labels)
    pipeline.token_budget = settle_budget(config, pipeline, training)
    train_config = dataclasses.replace(resolved.train, token_budget=pipeline.token_budget)
    return pipeline, dataclasses.replace(resolved, train=train_config), training


def _saved_config(run: RunDir, asked: RunConfig, named: Collection[str]) -> RunConfig:
    """The configuration of the run to resume; refuses settings asked for now, `named` explicitly, that differ."""
    saved = read_config(run.config)
    default = RunConfig()
    absolute = absolute_settings(asked)
    saved = dataclasses.replace(saved, base=absolute_base(saved.base))
    given = set(named) | differences(absolute, default).keys()
    for field, (value, open_value) in {
        "base.threads": (absolute.base.threads, None),
        "data.scoring": (absolute.data.scoring, "auto"),
        "train.token_budget": (absolute.train.token_budget, None),
    }.items():
        if value == open_value:  # left open, and decided when the run began
            given.discard(field)
    for field, (wanted, had) in differences(absolute, saved).items():
        if field == "data.dir":  # the rows are checked by their digest: they may come from another place now
            saved = dataclasses.replace(saved, data=with_directory(saved.data, wanted))
        elif field in given:
            raise ConfigError(
                f"{field}: the run in {run.root} has {had!r}, not {wanted!r}; a resumed run keeps its settings: leave"
                " it out, or start another run with --if-exists new"
            )
    return dataclasses.replace(saved, data=with_directory(saved.data, None))


def _begin(run: RunDir, resolved: RunConfig, rows: RunRows, pipeline: Pipeline) -> None:
    """Write what describes the run; the directory appears with all of it, so that a killed run can be resumed."""
    with suppress(OSError):
        run.root.rmdir()  # an empty directory may be there
    with atomic_directory(run.root) as directory:
        new = RunDir(directory)
        write_description(new, resolved, rows, pipeline)
        text = new.config.read_text(encoding="utf-8")
    if not run.config.is_file() or run.config.read_text(encoding="utf-8") != text:
        raise CheckpointError(f"--out {run.root}: another process has just made it; choose another --out")


def restore(run: RunDir, trainer: Trainer, log: EventLog) -> None:
    """Stand where the run's checkpoint stood, or at the start where it has none yet."""
    for directory in (run.root, run.resume):
        sweep_directory(directory)
    loaded = load_checkpoint(run.resume)
    if loaded is None:
        logger.info(f"{run.root} has no checkpoint yet; starting from the first step")
        EventLog(run.events, keep_bytes=0)
        return
    state, tensors, events_bytes = loaded
    trainer.restore(state, tensors)
    EventLog(run.events, keep_bytes=events_bytes)
    log.write("resumed", step=state.step)
    logger.info(f"resuming {run.root} after step {state.step} of {trainer.num_steps}")


def train_with_checkpoints(run: RunDir, trainer: Trainer, log: EventLog) -> int:
    """Run the trainer with checkpoints; returns the peak bytes of this process."""

    def checkpoint() -> None:
        save_checkpoint(run.resume, trainer.state, trainer.tensors(), log.num_bytes)

    trainer.run(checkpoint)
    return peak_bytes()


def _finish(run: RunDir, trainer: Trainer, pipeline: Pipeline, rows: RunRows, log: EventLog, peak: int) -> TrainOutcome:
    """Save the members and the record; with `ensemble.json` the run is finished."""
    failed = trainer.state.with_status("failed")
    if len(failed) == len(trainer.state.members):
        reasons = "; ".join(f"member {m}: {trainer.state.members[m].reason}" for m in failed)
        raise TrainingError(f"every member failed ({reasons}); try a smaller train.lr; {run.events} has each step")
    discard_directory(run.members)  # of a run that was stopped between members and record
    with atomic_directory(run.members) as directory:
        written = save_members(directory, pipeline.model, trainer.final_values(), pipeline.base.path_for_peft)
    members = trained_members(trainer, written)
    cost = {
        "train_s": round(trainer.state.train_s, 2),
        "tokens": trainer.state.tokens,
        "tokens_per_s": round(trainer.state.tokens / max(trainer.state.train_s, 1e-9), 1),
        "peak_bytes": peak,
        "base_passes": training_base_passes(trainer),
    }
    write_ensemble(run, ensemble_record(pipeline, rows, members, cost))
    for cached in run.resume.glob("trunk-*"):
        cached.unlink(missing_ok=True)
    log.write("finished", failed_members=failed)
    return _outcome(run)


def _outcome(run: RunDir) -> TrainOutcome:
    failed = failed_members(read_ensemble(run.root)[1])
    return TrainOutcome(run, tuple(failed), tuple(failed.values()))
