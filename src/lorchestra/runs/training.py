"""What every training job shares: preparing base and rows, restoring a checkpoint, and training with checkpoints."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from lorchestra.config.run import RunConfig
from lorchestra.inference.pipeline import Pipeline
from lorchestra.models.init import AdapterSettings
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
    config: RunConfig, rows: RunRows, adapter_settings: Sequence[AdapterSettings] | None = None
) -> tuple[Pipeline, RunConfig, TrainingRows]:
    """The base with members on it, the resolved configuration, and the rows as tokens.

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


def restore(run: Run, trainer: Trainer) -> None:
    """Restore the run's checkpoint, or reset its log if it has none yet."""
    for directory in (run.root, run.resume):
        sweep_directory(directory)
    checkpoint = load_checkpoint(run.resume)
    if checkpoint is None:
        logger.info(f"{run.root} has no checkpoint yet; starting from the first step")
        run.start_events(keep_bytes=0)
        return
    state, tensors, events_bytes = checkpoint
    trainer.restore(state, tensors)
    run.start_events(keep_bytes=events_bytes)
    run.append_event("resumed", step=state.step)
    logger.info(f"resuming {run.root} after step {state.step} of {trainer.num_steps}")


def train_with_checkpoints(run: Run, trainer: Trainer) -> int:
    """Run the trainer with checkpoints; returns the peak bytes of this process.

    If the restored checkpoint is the last one, nothing is left to train or to precompute.
    """

    def checkpoint() -> None:
        save_checkpoint(run.resume, trainer.state, trainer.tensors(), run.events.stat().st_size)

    if trainer.state.with_status("running"):
        trainer.run(checkpoint)
    return peak_bytes()
