"""Memory and time of a training before it is run: counted from its rows, calibrated by some seconds of its passes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorchestra.config.run import RunConfig, check_run
from lorchestra.inference.pipeline import Pipeline, default_token_budget
from lorchestra.planning.budget import (
    adapter_counts,
    budget_within,
    longest_row,
    settle_budget,
    shared_tokens,
    trunk_storage,
)
from lorchestra.planning.estimate import SHARE, AdapterCounts, Footprint, base_passes, duration, packed_tokens
from lorchestra.planning.measure import Calibration, calibrate, with_checkpointing
from lorchestra.planning.memory import free_bytes, peak_bytes, used_bytes
from lorchestra.planning.suggestions import SuggestionInputs, suggest
from lorchestra.planning.workload import Workload, plan_workload
from lorchestra.runs.build import build_pipeline
from lorchestra.runs.rows import read_rows
from lorchestra.store import disk
from lorchestra.training.callbacks import Callback, CallbackList
from lorchestra.training.precompute import TrainingRows
from lorchestra.training.trainer import Trainer, make_trainer

logger = logging.getLogger(__name__)

_MAX_MEMBERS = 8
"""Members that are made for the calibration; the others follow from the shapes."""


def plan_run(
    config: RunConfig,
    out: str | Path = ".",
    *,
    seconds: float = 10.0,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Predict memory, disk and time of the training that `config` describes.

    Args:
        config: the run's configuration.
        out: where its directory would be.
        seconds: of calibration, roughly.
        callbacks: report what is under way.

    Returns:
        The record that `lorchestra plan --json` prints.

    Raises:
        ConfigError, DataError, CheckpointError: what would stop the training at its start.
    """
    check_run(config)
    disk.require_path(Path(out))
    callback = CallbackList(callbacks)
    callback.on_progress("rows and base", 0, 0)
    rows = read_rows(config.data, config.train.seed)
    for note in rows.notes:
        logger.info(note)
    members = config.adapt.members
    small = dataclasses.replace(config, adapt=dataclasses.replace(config.adapt, members=min(members, _MAX_MEMBERS)))
    pipeline, _ = build_pipeline(small, rows.task.name, rows.task.labels, rows.task.splits["train"])
    encoded = {split: pipeline.encode(rows.task.splits[split]).rows for split in ("train", "val")}
    training = TrainingRows(encoded["train"], encoded["val"])
    loading = peak_bytes()
    budget = settle_budget(config, pipeline, training)
    free = free_bytes(pipeline.model.device)
    resident = used_bytes()
    settings = dataclasses.replace(config.train, token_budget=budget)
    trainer = make_trainer(pipeline.model, training, dataclasses.replace(small, train=settings), callback)
    workload = plan_workload(trainer, members, budget)
    calibration = _calibrate(trainer, workload, pipeline, budget, seconds, resident, callback)
    counts = adapter_counts(pipeline.model, members)
    return _record(config, pipeline, trainer, workload, calibration, counts, loading, resident, free, Path(out))


def _calibrate(
    trainer: Trainer,
    workload: Workload,
    pipeline: Pipeline,
    budget: int,
    seconds: float,
    resident: int | None,
    callback: Callback,
) -> Calibration:
    """At the run's budget, or at a smaller one where that would not fit or take minutes."""
    model = pipeline.model
    most = budget_within(model, trainer.rows, model.num_members, trainer.config.gradient_checkpointing)
    default = default_token_budget(model.device.type, shared_tokens(model, trainer.rows))
    within = min(budget, most, max(longest_row(trainer.rows), 2 * default))
    if within < budget:
        workload = plan_workload(trainer, model.num_members, within)
    return calibrate(trainer, workload.largest, workload.batches, within, seconds, resident, callback)


def _record(
    config: RunConfig,
    pipeline: Pipeline,
    trainer: Trainer,
    workload: Workload,
    calibration: Calibration,
    counts: AdapterCounts,
    loading: int,
    resident: int | None,
    free: int | None,
    out: Path,
) -> dict[str, Any]:
    model, training = pipeline.model, trainer.rows
    base_parameters = [p for p in model.model.parameters() if not p.requires_grad]
    base = sum(p.nbytes for p in base_parameters)
    held = loading if resident is None else resident
    largest = packed_tokens(workload.largest, workload.shared)
    trunk, trunk_file = trunk_storage(model, training, config.adapt.trunk_memory_gb)
    has_trunk = model.trunk_layers > 0
    footprint = Footprint(
        process=max(0, held - base - dataclasses.replace(counts, members=model.num_members).adapter_bytes),
        base=base,
        adapters=counts.adapter_bytes,
        training=counts.training_bytes,
        activations=round(calibration.activation_bytes * largest / calibration.activation_tokens),
        trunk=trunk if has_trunk else 0,
        loading=loading,
    )
    disk_needed = counts.disk_bytes + (trunk_file if has_trunk else 0)
    disk_free = disk.free_bytes(out)
    limit = None if free is None else held + int(SHARE * free)
    fits = limit is None or footprint.peak <= limit
    saved = calibration.saved_bytes
    setting = SuggestionInputs(
        footprint=footprint,
        limit=limit or 0,
        members=counts.members,
        token_budget=trainer.token_budget,
        longest=longest_row(training),
        largest=largest,
        adapted_layers=len(model.layers),
        num_layers=model.num_layers,
        trunk=trunk,
        checkpointed=None
        if config.train.gradient_checkpointing
        else with_checkpointing(model, saved, calibration.activation_tokens) / saved,
    )
    times = duration(workload.work, calibration.rates)
    return {
        "base": pipeline.base.id,
        "device": str(model.device),
        "dtype": str(pipeline.base.dtype).removeprefix("torch."),
        "rows": {"train": len(training.train), "val": len(training.val), "longest_tokens": longest_row(training)},
        "members": counts.members,
        "layers": {"adapted": len(model.layers), "below": model.trunk_layers, "all": model.num_layers},
        "parameters": {
            "base": sum(p.numel() for p in base_parameters),
            "member": counts.parameters,
            "members": counts.members * counts.parameters,
        },
        "token_budget": {"value": trainer.token_budget, "given": config.train.token_budget is not None},
        "bytes": {
            **{f.name: getattr(footprint, f.name) for f in dataclasses.fields(footprint)},
            "peak": footprint.peak,
            "limit": limit,
            "fits": fits,
        },
        "disk_bytes": {
            "run": counts.disk_bytes,
            "trunk": trunk_file if has_trunk else 0,
            "free": disk_free,
            "fits": disk_free is None or disk_needed <= disk_free,
        },
        "work": {
            "base_passes": round(
                base_passes(
                    counts.members,
                    config.train.epochs,
                    model.trunk_layers / model.num_layers,
                    config.regularize.kl_beta > 0,
                ),
                3,
            ),
            "epochs": config.train.epochs,
            "steps": workload.steps,
            "micro_batches": workload.micro_batches,
            "largest_micro_batch": largest,
            "tokens_per_epoch": workload.tokens_per_epoch,
            "tokens": workload.tokens_per_epoch * config.train.epochs,
        },
        "time_s": {
            "steps": times.steps,
            "trunk": times.trunk,
            "base": times.base,
            "training": times.training,
            "evaluation": times.evaluation,
            "total": times.total,
        },
        "calibration": {
            "seconds": calibration.seconds,
            "micro_batches": calibration.micro_batches,
            "saved_bytes": saved,
            "activation_bytes": calibration.activation_bytes,
            "activation_tokens": calibration.activation_tokens,
            **dataclasses.asdict(calibration.rates),
        },
        "remedies": [] if fits else [dataclasses.asdict(remedy) for remedy in suggest(setting)],
    }
