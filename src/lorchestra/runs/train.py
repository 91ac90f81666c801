"""Train an ensemble: from a configuration to a finished run directory; interrupted at any point, resumed exactly."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lorchestra.config.adapt import AdaptConfig
from lorchestra.config.mappings import differences
from lorchestra.config.run import RunConfig, check_no_probe, check_run
from lorchestra.distributed import ALONE, Group
from lorchestra.errors import CheckpointError, ConfigError, TrainingError
from lorchestra.inference.pipeline import Pipeline
from lorchestra.models.loading import absolute_base
from lorchestra.models.number_format import ProductRates, with_dtype
from lorchestra.models.peft_files import save_members
from lorchestra.planning.estimate import training_base_passes
from lorchestra.planning.memory import restart_peak
from lorchestra.runs.build import describe, ensemble_record, settle_dtype, torch_threads
from lorchestra.runs.calibration import calibrate
from lorchestra.runs.dtype_change import measure_dtype_change
from lorchestra.runs.event_log import EventLog
from lorchestra.runs.linear_probe import add_linear_probe
from lorchestra.runs.rows import RunRows, absolute_settings, check_unchanged, read_rows, with_directory
from lorchestra.runs.search import open_scoring, open_scorings, settle_training, trunk_files
from lorchestra.runs.training import prepare_training, restore, train_with_checkpoints
from lorchestra.store.ensemble_record import EnsembleRecord, MemberRecord
from lorchestra.store.run import Run
from lorchestra.store.workspace import RUN, IfExists, Workspace
from lorchestra.training.advice import advice
from lorchestra.training.callbacks import Callback, CallbackList
from lorchestra.training.precompute import TrainingRows
from lorchestra.training.trainer import Trainer, make_trainer
from lorchestra.types import Example

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainOutcome:
    """A finished training."""

    run: Run
    failed_members: tuple[int, ...]
    reasons: tuple[str, ...] = ()
    """Why each of them failed."""


def train_run(
    config: RunConfig,
    out: str | Path,
    *,
    if_exists: IfExists = "fail",
    callbacks: Sequence[Callback] = (),
    rows: RunRows | None = None,
    given: Collection[str] = (),
    group: Group = ALONE,
) -> TrainOutcome:
    """Train the ensemble that `config` describes into the directory `out`.

    Args:
        config: the run's configuration; with "resume", settings given here must be those the run was started with.
        out: the run directory.
        if_exists: what to do if a run exists there: "fail", "resume" it, "finish" it with the best adapters so far, or
            take a "new" name.
        callbacks: report progress; when one asks to stop, a checkpoint is written and `Interrupted` raised.
        rows: the splits "train" and "val", if they come from Python instead of the files in `config.data`.
        given: dotted settings that were given explicitly: with "resume" they are compared with the run's even if they
            have the default's value. Settings with other values always count as given.
        group: the processes that the members are split over (see `distributed.process_group`); all call this with the
            same arguments, but for the callbacks.

    Raises:
        ConfigError, DataError, CheckpointError: bad input, or another process is working in `out`; nothing half-written
            is left.
        TrainingError: every member failed.
        Interrupted: a callback asked to stop.
    """
    check_run(config)
    with _workspace(out, if_exists, group) as workspace:
        run = Run(workspace.root)
        if workspace.resuming:
            if run.distill.exists():
                raise ConfigError(
                    f"{run.root}: is a distilled run, which learns from an ensemble; resume it by: lorchestra distill"
                    f" RUN --out {run.root} --if-exists resume"
                )
            config = saved_config(run, config, given)
        if config.adapt.members < group.size:
            raise ConfigError(
                f"adapt.members: {config.adapt.members} members cannot be split over {group.size} processes; start at"
                f" most as many processes: torchrun --nproc-per-node {config.adapt.members}"
            )
        if group.size > 1:
            check_no_probe(config, "a training in several processes")
        if rows is None:
            rows = read_rows(config.data, config.train.seed)
        if workspace.resuming:
            check_unchanged(rows, run.splits)
            if run.is_finished:
                logger.info(f"{run.root} is finished already; nothing to train")
                return _outcome(run)
        for note in rows.notes:
            logger.info(note)
        with torch_threads(config.base.threads):
            return _train(workspace, config, rows, callbacks, group, finish=if_exists == "finish")


@contextmanager
def _workspace(out: str | Path, if_exists: IfExists, group: Group) -> Iterator[Workspace]:
    """The output directory, which the first process locks for all."""
    with ExitStack() as stack:

        def enter() -> tuple[str, bool]:
            workspace = stack.enter_context(Workspace.open(out, RUN, if_exists))
            return str(workspace.root), workspace.resuming

        root, resuming = group.first(enter)
        yield Workspace(Path(root), RUN.marker, resuming)


def _train(
    workspace: Workspace,
    config: RunConfig,
    rows: RunRows,
    callbacks: Sequence[Callback],
    group: Group,
    *,
    finish: bool,
) -> TrainOutcome:
    """Start or resume the run, search what is left open, train, and finish it; with `finish` without training it."""
    run = Run(workspace.root)
    if finish and config.train.is_auto:
        left = "train.lr" if config.train.lr == "auto" else "train.epochs"
        raise CheckpointError(f"{run.root}: {left} is still searched; train it with --if-exists resume")
    rates = None
    if not workspace.resuming:
        config, rates = _settle_dtype(config, group)
    pipeline, resolved, training = prepare_training(config, rows, group=group)
    scorings = open_scorings(config, resolved, rows)
    if not workspace.resuming:
        settled = resolved if len(scorings) == 1 else open_scoring(resolved)
        group.first(lambda: _start(workspace, settled, rows, pipeline, rates, group.size))
    if resolved.train.is_auto:
        width = pipeline.model.hidden_size
        del pipeline, training  # frees the base: the search loads another
        watching = CallbackList(callbacks)
        resolved = settle_training(run, resolved, rows, width, watching, scorings, group)
        restart_peak()
        watching.on_status((), "training")
        group.first(lambda: run.settle_config(absolute_settings(resolved)))
        pipeline, resolved, training = prepare_training(resolved, rows, group=group)
    job = TrainingJob(run, pipeline, resolved, rows, training, callbacks, group=group)
    return train_and_finish(job, resuming=workspace.resuming, finish=finish)


def _settle_dtype(config: RunConfig, group: Group) -> tuple[RunConfig, ProductRates | None]:
    """The configuration with the number format that the first process chooses, and there the rates that decided it."""
    rates = None

    def choose() -> str:
        nonlocal rates
        settled, rates = settle_dtype(config)
        return settled.base.dtype

    base = with_dtype(config.base, group.first(choose))
    return dataclasses.replace(config, base=base), rates


def _start(
    workspace: Workspace,
    config: RunConfig,
    rows: RunRows,
    pipeline: Pipeline,
    rates: ProductRates | None,
    num_processes: int,
) -> None:
    with workspace.create() as directory:
        describe(Run(directory), config, rows, pipeline, rates, num_processes)


@dataclass(frozen=True)
class TrainingJob:
    """A training that is ready to start: the run, base and members, resolved settings, rows, and callbacks.

    `predicts` makes the file that predicts mutual information, after the training, and returns its checksum; None in
    runs that have none. `group` are the processes that the members are split over.
    """

    run: Run
    pipeline: Pipeline
    config: RunConfig
    rows: RunRows
    training: TrainingRows
    callbacks: Sequence[Callback]
    predicts: Callable[[], str] | None = None
    group: Group = ALONE


def train_and_finish(job: TrainingJob, *, resuming: bool, finish: bool) -> TrainOutcome:
    """Train from the run's checkpoint, or from the start, to a finished run; with `finish` without further training."""
    run, pipeline, group = job.run, job.pipeline, job.group
    callback = CallbackList([*([EventLog(run)] if group.is_first else []), *job.callbacks])
    # the trunks of a search before this training are in files, and read again
    memory = 0 if run.search.exists() else round(job.config.adapt.trunk_memory_gb * 1e9)
    files = trunk_files(run, pipeline.base.digest, memory, group)
    trainer = make_trainer(pipeline.model, job.training, job.config, callback, files=files, group=group)
    if resuming:
        restore(run, trainer)
    if finish:
        if trainer.state.step == 0:
            raise CheckpointError(f"{run.root}: no step was trained yet; train it with --if-exists resume")
        trainer.finish()
    peak = train_with_checkpoints(run, trainer)
    return _finish(job, trainer, peak)


def saved_config(
    run: Run, requested: RunConfig, explicit: Collection[str], default: RunConfig | None = None
) -> RunConfig:
    """The configuration of the run to resume; refuses requested settings that differ from it.

    Settings with the `default`'s value, by default that of `RunConfig`, are compared only if they are among the
    `explicit` ones.
    """
    saved = run.read_config()
    requested = absolute_settings(requested)
    saved = dataclasses.replace(saved, base=absolute_base(saved.base))
    given = set(explicit) | differences(requested, default or RunConfig()).keys()
    for field, (value, open_value) in {
        "base.dtype": (requested.base.dtype, "auto"),
        "base.threads": (requested.base.threads, None),
        "data.scoring": (requested.data.scoring, "auto"),
        "train.token_budget": (requested.train.token_budget, None),
        "train.lr": (requested.train.lr, "auto"),
        "train.epochs": (requested.train.epochs, "auto"),
    }.items():
        if value == open_value:  # left open, and settled when the run started
            given.discard(field)
    for field, (wanted, value) in differences(requested, saved).items():
        if field == "data.dir":  # rows are verified by their digests, so they may come from anywhere
            saved = dataclasses.replace(saved, data=with_directory(saved.data, wanted))
        elif field in given:
            raise ConfigError(
                f"{field}: the run in {run.root} has {value!r}, not {wanted!r}; a resumed run keeps its settings: leave"
                " it out, or start another run with --if-exists new"
            )
    return dataclasses.replace(saved, data=with_directory(saved.data, None))


def _finish(job: TrainingJob, trainer: Trainer, peak: int) -> TrainOutcome:
    """Save the members, their calibration and the record; with `ensemble.json` the run is finished."""
    run, pipeline, rows = job.run, job.pipeline, job.rows
    try:
        trainer.state.good_members()
    except TrainingError as error:
        raise TrainingError(f"{error}; {run.events} has each step") from None
    written = _save_members(run, trainer, pipeline.base.path_for_peft)
    cost = {
        "train_s": round(trainer.state.train_s, 2),
        "tokens": trainer.state.tokens,
        "tokens_per_s": round(trainer.state.tokens / max(trainer.state.train_s, 1e-9), 1),
        "peak_bytes": peak,
        "base_passes": training_base_passes(trainer),
    }
    record = ensemble_record(pipeline, rows, member_records(trainer, written), cost)
    with torch.no_grad():
        pipeline.model.adapters.values.copy_(trainer.final_values())
    if job.predicts is not None:
        record = dataclasses.replace(record, information=job.predicts())
    callback, val = CallbackList(job.callbacks), rows.task.splits["val"]
    if job.config.mixture.linear_probe == "auto":
        probe = add_linear_probe(run, pipeline, rows.task, record.good_members, callback)
        record = dataclasses.replace(record, linear_probe=probe)
    calibrate(run, record, pipeline, val, trainer.config.calibration, callback, trainer.group)
    if trainer.group.size == 1:  # one process does not have all members
        _report_dtype_change(run, trainer, pipeline, val, callback)
    trainer.group.first(lambda: _write_results(job, trainer, record))
    return _outcome(run)


def _save_members(run: Run, trainer: Trainer, base_path: str) -> list[dict[str, str]]:
    """Write the members' folders, each process those of its block; they appear together. Returns all (see there)."""
    group, first = trainer.group, trainer.block.start
    with ExitStack() as complete:
        directory = group.first(lambda: str(complete.enter_context(run.new_members())))
        mine = save_members(Path(directory), trainer.model, trainer.final_values(), base_path, first=first)
        written = [files for part in group.gather(mine) for files in part]
        named = complete.pop_all()
        group.first(named.close)
    return written


def _write_results(job: TrainingJob, trainer: Trainer, record: EnsembleRecord) -> None:
    run = job.run
    run.write_ensemble(record)
    for cached in run.resume.glob("trunk-*"):
        cached.unlink(missing_ok=True)
    log_choices = None
    if job.training.targets is None:
        log_choices = sum(trainer.log_choices) / len(trainer.log_choices)
    for sentence in advice(trainer.state, trainer.num_steps, trainer.config.num_epochs, log_choices):
        logger.info(sentence)
        run.append_event("advice", text=sentence)
    run.append_event("finished", failed_members=trainer.state.with_status("failed"))


def _report_dtype_change(
    run: Run, trainer: Trainer, pipeline: Pipeline, rows: Sequence[Example], callback: Callback
) -> None:
    good, tokens = trainer.state.good_members(), trainer.state.tokens
    change = measure_dtype_change(pipeline, run.read_config().base, rows, good, tokens, callback)
    if change is not None:
        logger.info(change.sentence())
        run.append_event("base_dtype", **dataclasses.asdict(change))


def member_records(
    trainer: Trainer,
    written: Sequence[dict[str, str]],
    members: Sequence[int] | None = None,
    adapt: AdaptConfig | None = None,
) -> list[MemberRecord]:
    """The records of trained members.

    Args:
        trainer: trained them.
        written: their folders (see `save_members`).
        members: their indices in the trainer, in the order of the folders; by default all.
        adapt: the run's configuration, by default the trainer's; if ranks or scalings differ from it, the records name
            those of every member.
    """
    adapt = adapt or trainer.model.adapt
    chosen = range(len(trainer.settings)) if members is None else members
    adapter_settings = [trainer.settings[m].adapter for m in chosen]
    differ = any((adapter.r, adapter.scaling) != (adapt.r, adapt.scaling) for adapter in adapter_settings)
    records = []
    for index, (m, adapter, files) in enumerate(zip(chosen, adapter_settings, written, strict=True)):
        state = trainer.state.members[m]
        records.append(
            MemberRecord(
                path=f"members/member_{index:02d}",
                sha256=files["sha256"],
                seed=trainer.settings[m].dropout_seed,
                state=state.status,
                best_step=state.best_step,
                val_nll=state.best_nll,
                reason=state.reason if state.status == "failed" else None,
                r=adapter.r if differ else None,
                scaling=adapter.scaling if differ else None,
            )
        )
    return records


def _outcome(run: Run) -> TrainOutcome:
    failed = run.read_ensemble().failed_members
    return TrainOutcome(run, tuple(failed), tuple(failed.values()))
