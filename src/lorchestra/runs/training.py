"""What every training job shares: preparing base and rows, restoring a checkpoint, and training with checkpoints."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from lorchestra.config.mappings import differences
from lorchestra.config.run import RunConfig
from lorchestra.distributed import ALONE, Group
from lorchestra.errors import ConfigError
from lorchestra.inference.pipeline import Pipeline
from lorchestra.models.init import AdapterSettings, make_adapter_settings
from lorchestra.planning.budget import settle_budget
from lorchestra.planning.memory import peak_bytes
from lorchestra.runs.build import build_pipeline
from lorchestra.runs.rows import RunRows
from lorchestra.store.atomic import sweep_directory
from lorchestra.store.run import Run
from lorchestra.training.checkpoint import load_checkpoint, save_checkpoint
from lorchestra.training.precompute import TrainingRows
from lorchestra.training.rows import training_rows
from lorchestra.training.trainer import Trainer

logger = logging.getLogger(__name__)


def prepare_training(
    config: RunConfig,
    rows: RunRows,
    adapter_settings: Sequence[AdapterSettings] | None = None,
    group: Group = ALONE,
) -> tuple[Pipeline, RunConfig, TrainingRows]:
    """The base with members on it, the resolved configuration, and the rows as tokens.

    With several processes the members are this process's block, and the token budget is the smallest of all.

    Raises:
        ConfigError, DataError, CheckpointError: bad input; or the processes have different bases, rows or settings.
    """
    train = rows.task.splits["train"]
    if group.size > 1:
        everyone = adapter_settings or make_adapter_settings(config.adapt, config.train.seed)
        adapter_settings = [everyone[m] for m in group.block(len(everyone))]
    pipeline, resolved = build_pipeline(
        config, rows.task.name, rows.task.labels, train, adapter_settings=adapter_settings
    )
    training = training_rows(pipeline, train, rows.task.splits["val"], rows.task.labels)
    _check_same(group, pipeline, resolved, rows)  # each process has its base now: what is free is free for all
    sharing = group.sharing(pipeline.base.device)
    if sharing > 1 and pipeline.base.device.type == "cuda":
        logger.warning(f"{group.size} processes share fewer GPUs, each with a base; start as many as there are GPUs")
    mine = dataclasses.replace(config, adapt=dataclasses.replace(config.adapt, members=pipeline.model.num_members))
    pipeline.token_budget = min(group.gather(settle_budget(mine, pipeline, training, sharing)))
    train_config = dataclasses.replace(resolved.train, token_budget=pipeline.token_budget)
    return pipeline, dataclasses.replace(resolved, train=train_config), training


def _check_same(group: Group, pipeline: Pipeline, resolved: RunConfig, rows: RunRows) -> None:
    """Refuse processes that would train members of different ensembles."""
    mine = {
        "base": pipeline.base.digest,
        "tokenizer": pipeline.base.tokenizer_digest,
        **{f"{name} rows": split["digest"] for name, split in rows.record().items()},
        **{field: repr(value) for field, (value, _) in differences(resolved, RunConfig()).items()},
    }
    parts = group.gather(mine)
    for rank, part in enumerate(parts):
        for name in parts[0].keys() | part.keys():
            if part.get(name) != parts[0].get(name):
                raise ConfigError(
                    f"{name}: differs between process 0 ({parts[0].get(name)}) and process {rank} ({part.get(name)});"
                    " start all of them with the same files and settings"
                )


def restore(run: Run, trainer: Trainer) -> None:
    """Restore the run's checkpoint, or reset its log if it has none yet."""
    group = trainer.group
    group.first(lambda: _sweep(run))
    checkpoint = load_checkpoint(run.resume)
    if checkpoint is None:
        logger.info(f"{run.root} has no checkpoint yet; starting from the first step")
        group.first(lambda: run.start_events(keep_bytes=0))
        return
    state, tensors, events_bytes = checkpoint
    trainer.restore(state, tensors)
    group.first(lambda: _resume_events(run, events_bytes, state.step))
    logger.info(f"resuming {run.root} after step {state.step} of {trainer.num_steps}")


def _sweep(run: Run) -> None:
    for directory in (run.root, run.resume):
        sweep_directory(directory)


def _resume_events(run: Run, num_bytes: int, step: int) -> None:
    run.start_events(keep_bytes=num_bytes)
    run.append_event("resumed", step=step)


def train_with_checkpoints(run: Run, trainer: Trainer) -> int:
    """Run the trainer with checkpoints; returns the peak bytes of this process, or of the process with the highest.

    If the restored checkpoint is the last one, nothing is left to train or to precompute.
    """

    def checkpoint() -> None:
        tensors = trainer.gathered_tensors()
        trainer.group.first(lambda: save_checkpoint(run.resume, trainer.state, tensors, run.events.stat().st_size))

    if trainer.state.with_status("running"):
        trainer.run(checkpoint)
    return max(trainer.group.gather(peak_bytes()))
