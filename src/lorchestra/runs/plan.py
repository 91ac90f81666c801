"""Memory and time of a training before it is run: counted from its rows, calibrated by some seconds of its passes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

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
from lorchestra.types import Json

logger = logging.getLogger(__name__)

_MAX_MEMBERS = 8
"""Members that are made for the calibration; the others follow from the shapes."""


def plan_run(
    config: RunConfig,
    out: str | Path = ".",
    *,
    seconds: float = 10.0,
    callbacks: Sequence[Callback] = (),
) -> Json:
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
    measured = _Measured(config, pipeline, trainer, workload, calibration, counts, loading, resident, free, Path(out))
    return measured.record()


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


@dataclasses.dataclass(frozen=True)
class _Measured:
    """What a plan is made from."""

    config: RunConfig
    pipeline: Pipeline
    trainer: Trainer
    workload: Workload
    calibration: Calibration
    counts: AdapterCounts
    loading: int
    """Peak bytes of the process while the base was loaded."""
    resident: int | None
    """Bytes of the process before the calibration; None if unknown."""
    free: int | None
    """Free bytes of the device; None if unknown."""
    out: Path

    def record(self) -> Json:
        """The record that `lorchestra plan --json` prints."""
        model, rows, counts, base = self.pipeline.model, self.trainer.rows, self.counts, self.pipeline.base
        longest = longest_row(rows)
        footprint, limit = self._footprint(), self._limit()
        fits = limit is None or footprint.peak <= limit
        return {
            "base": base.id,
            "device": str(model.device),
            "dtype": str(base.dtype).removeprefix("torch."),
            "rows": {"train": len(rows.train), "val": len(rows.val), "longest_tokens": longest},
            "members": counts.members,
            "layers": {"adapted": len(model.layers), "below": model.trunk_layers, "all": model.num_layers},
            "parameters": {
                "base": sum(p.numel() for p in self._base_parameters()),
                "member": counts.parameters,
                "members": counts.members * counts.parameters,
            },
            "token_budget": {"value": self.trainer.token_budget, "given": self.config.train.token_budget is not None},
            "bytes": {**dataclasses.asdict(footprint), "peak": footprint.peak, "limit": limit, "fits": fits},
            "disk_bytes": self._disk(),
            "work": self._work(),
            "time_s": self._time(),
            "calibration": self._calibration(),
            "remedies": []
            if fits
            else [dataclasses.asdict(one) for one in suggest(self._suggestions(footprint, limit))],
        }

    @property
    def _has_trunk(self) -> bool:
        return self.pipeline.model.trunk_layers > 0

    @property
    def _largest(self) -> int:
        """Tokens of the largest micro-batch."""
        return packed_tokens(self.workload.largest, self.workload.shared)

    @property
    def _held(self) -> int:
        """Bytes of the process with the base loaded."""
        return self.loading if self.resident is None else self.resident

    def _base_parameters(self) -> list[torch.nn.Parameter]:
        return [p for p in self.pipeline.model.model.parameters() if not p.requires_grad]

    def _trunk(self) -> tuple[int, int]:
        """Bytes of the trunk in memory and in files, if there were layers without adapters below."""
        return trunk_storage(self.pipeline.model, self.trainer.rows, self.config.adapt.trunk_memory_gb)

    def _footprint(self) -> Footprint:
        counts, calibration = self.counts, self.calibration
        base = sum(p.nbytes for p in self._base_parameters())
        in_place = dataclasses.replace(counts, members=self.pipeline.model.num_members).adapter_bytes
        return Footprint(
            process=max(0, self._held - base - in_place),
            base=base,
            adapters=counts.adapter_bytes,
            training=counts.training_bytes,
            activations=round(calibration.activation_bytes * self._largest / calibration.activation_tokens),
            trunk=self._trunk()[0] if self._has_trunk else 0,
            loading=self.loading,
        )

    def _limit(self) -> int | None:
        return None if self.free is None else self._held + int(SHARE * self.free)

    def _disk(self) -> Json:
        trunk = self._trunk()[1] if self._has_trunk else 0
        free = disk.free_bytes(self.out)
        fits = free is None or self.counts.disk_bytes + trunk <= free
        return {"run": self.counts.disk_bytes, "trunk": trunk, "free": free, "fits": fits}

    def _work(self) -> Json:
        model, train = self.pipeline.model, self.config.train
        share = model.trunk_layers / model.num_layers
        passes = base_passes(self.counts.members, train.epochs, share, self.config.regularize.kl_beta > 0)
        return {
            "base_passes": round(passes, 3),
            "epochs": train.epochs,
            "steps": self.workload.steps,
            "micro_batches": self.workload.micro_batches,
            "largest_micro_batch": self._largest,
            "tokens_per_epoch": self.workload.tokens_per_epoch,
            "tokens": self.workload.tokens_per_epoch * train.epochs,
        }

    def _time(self) -> Json:
        times = duration(self.workload.work, self.calibration.rates)
        names = ("steps", "trunk", "base", "training", "evaluation", "total")
        return {name: getattr(times, name) for name in names}

    def _calibration(self) -> Json:
        names = ("seconds", "micro_batches", "saved_bytes", "activation_bytes", "activation_tokens")
        values = {name: getattr(self.calibration, name) for name in names}
        return values | dataclasses.asdict(self.calibration.rates)

    def _suggestions(self, footprint: Footprint, limit: int | None) -> SuggestionInputs:
        model, calibration = self.pipeline.model, self.calibration
        saved, tokens = calibration.saved_bytes, calibration.activation_tokens
        checkpointed = (
            None if self.config.train.gradient_checkpointing else with_checkpointing(model, saved, tokens) / saved
        )
        return SuggestionInputs(
            footprint=footprint,
            limit=limit or 0,
            members=self.counts.members,
            token_budget=self.trainer.token_budget,
            longest=longest_row(self.trainer.rows),
            largest=self._largest,
            adapted_layers=len(model.layers),
            num_layers=model.num_layers,
            trunk=self._trunk()[0],
            checkpointed=checkpointed,
        )
