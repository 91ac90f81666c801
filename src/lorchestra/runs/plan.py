"""Memory, disk and time of a training before it is run: counted from its rows, calibrated by seconds of its passes."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lorchestra.config.run import RunConfig, TrainConfig, check_run
from lorchestra.inference.features import encode_texts, middle_layers
from lorchestra.inference.pipeline import Pipeline, default_token_budget
from lorchestra.methods import frozen
from lorchestra.models.loading import dtype_name
from lorchestra.models.quantized import num_weights, stored_bytes
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
from lorchestra.planning.workload import PlannedRun, Workload, plan_workload, with_search
from lorchestra.runs.build import build_pipeline, settle_dtype, torch_threads
from lorchestra.runs.rows import RunRows, read_rows
from lorchestra.runs.search import open_scorings
from lorchestra.store import disk
from lorchestra.training.callbacks import Callback, CallbackList
from lorchestra.training.members import steps_per_epoch
from lorchestra.training.precompute import TrainingRows
from lorchestra.training.search import expected_epochs
from lorchestra.training.trainer import Trainer, make_trainer
from lorchestra.types import EncodedExample, Example, Json, Task

logger = logging.getLogger(__name__)

_ANY_RATE = 1e-4
"""A learning rate for trainings that are only counted."""
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
        seconds: approximate duration of the calibration.
        callbacks: report progress.

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
    with torch_threads(config.base.threads):
        config, _ = settle_dtype(config)
        return _measure(config, rows, Path(out), seconds, callback).record()


def _measure(config: RunConfig, rows: RunRows, out: Path, seconds: float, callback: Callback) -> _Plan:
    members = config.adapt.members
    given = config
    train = rows.task.splits["train"]
    num_rows = len({row.question for row in train}) if rows.task.questions else len(train)
    per_epoch = steps_per_epoch(config.train.batch_size, num_rows)
    config = _settled(config, per_epoch)
    small = dataclasses.replace(config, adapt=dataclasses.replace(config.adapt, members=min(members, _MAX_MEMBERS)))
    pipeline, resolved = build_pipeline(small, rows.task.name, rows.task.labels, rows.task.splits["train"])
    encoded = {split: pipeline.encode(rows.task.splits[split]).rows for split in ("train", "val")}
    training = TrainingRows(encoded["train"], encoded["val"])
    loading = peak_bytes()
    budget = settle_budget(config, pipeline, training)
    free = free_bytes(pipeline.model.device)
    resident = used_bytes()
    settings = dataclasses.replace(config.train, token_budget=budget)
    trainer = make_trainer(pipeline.model, training, dataclasses.replace(small, train=settings), callback)
    grids = len(open_scorings(given, resolved, rows)) if given.train.lr == "auto" else 0
    orders = config.data.prompt.option_orders if pipeline.scoring == "letter" else 1
    workload = plan_workload(PlannedRun.of(trainer), members, budget, orders)
    workload = with_search(workload, given.train, config.train, per_epoch, members, grids)
    texts = _texts_of_states(config, rows.task, pipeline)
    states_tokens = sum(len(row.prefix) for row in texts)
    workload = dataclasses.replace(workload, work=dataclasses.replace(workload.work, states_tokens=states_tokens))
    calibration = _calibrate(trainer, workload, pipeline, budget, seconds, resident, callback, texts)
    counts = adapter_counts(pipeline.model, members)
    return _Plan(config, pipeline, trainer, workload, calibration, counts, loading, resident, free, out, given.train)


def _settled(config: RunConfig, per_epoch: int) -> RunConfig:
    """The configuration with usual numbers where a search will choose them."""
    return dataclasses.replace(config, train=config.train.filled(_ANY_RATE, expected_epochs(per_epoch)))


def _calibrate(
    trainer: Trainer,
    workload: Workload,
    pipeline: Pipeline,
    budget: int,
    seconds: float,
    resident: int | None,
    callback: Callback,
    texts: Sequence[EncodedExample],
) -> Calibration:
    """Calibrate at the run's budget, or at a smaller one if that would not fit or take minutes."""
    model = pipeline.model
    most = budget_within(model, trainer.rows, model.num_members, trainer.config.gradient_checkpointing)
    default = default_token_budget(model.device.type, shared_tokens(model, trainer.rows))
    within = min(budget, most, max(longest_row(trainer.rows), 2 * default))
    if within < budget:
        workload = plan_workload(PlannedRun.of(trainer), model.num_members, within)
    return calibrate(trainer, workload.largest, workload.batches, within, seconds, resident, callback, texts)


def _texts_of_states(config: RunConfig, task: Task, pipeline: Pipeline) -> list[EncodedExample]:
    """The texts whose hidden states the baseline `frozen` reads in the evaluation on test rows; see `methods.frozen`.

    It is fitted on the answered training rows, and its penalty chosen on the answered validation rows.
    """
    if not config.evaluate.frozen or (task.labels is None and not task.questions):
        return []
    splits = {name: [rows[i] for i in pipeline.kept(rows)] for name, rows in task.splits.items()}
    width = len(middle_layers(pipeline.model.num_layers)) * pipeline.model.hidden_size
    if frozen.states_bytes(_most_of_a_question(splits["train"]), width) > frozen.MAX_BYTES:
        return []
    answered = [row for name in ("train", "val") for row in splits[name] if row.answer is not None]
    texts = encode_texts(pipeline.tokens, [*answered, *splits["test"]], pipeline.max_length)
    return [row for row in texts if row.prefix]


def _most_of_a_question(rows: Sequence[Example]) -> int:
    """The most rows with one typed question, or all rows if there are none; a classifier is fitted for each."""
    return max(Counter(row.asked for row in rows).values(), default=0)


@dataclass(frozen=True)
class _Plan:
    """What was counted and measured: `loading`, `resident` and `free` are bytes at the peak of loading and after it."""

    config: RunConfig
    pipeline: Pipeline
    trainer: Trainer
    workload: Workload
    calibration: Calibration
    counts: AdapterCounts
    loading: int
    resident: int | None
    free: int | None
    out: Path
    searched: TrainConfig
    """The training as configured, with what a search settles."""

    def record(self) -> Json:
        """The plan as `lorchestra plan --json` prints it."""
        model, training, counts = self.pipeline.model, self.trainer.rows, self.counts
        times, longest = duration(self.workload.work, self.calibration.rates), longest_row(training)
        return {
            "base": self.pipeline.base.id,
            "device": str(model.device),
            "dtype": dtype_name(self.pipeline.base.dtype),
            "quantization": self.pipeline.base.quantization or "none",
            "rows": {"train": len(training.train), "val": len(training.val), "longest_tokens": longest},
            "members": counts.members,
            "scoring": {"kind": self.pipeline.scoring, "choice_tokens": self._choice_share},
            "layers": {"adapted": len(model.layers), "below": model.trunk_layers, "all": model.num_layers},
            "parameters": {
                "base": num_weights(model.model),
                "member": counts.parameters,
                "members": counts.members * counts.parameters,
            },
            "token_budget": {
                "value": self.trainer.token_budget,
                "given": self.config.train.token_budget is not None,
            },
            "bytes": self._bytes(),
            "disk_bytes": self._disk_bytes(),
            "work": self._work(),
            "time_s": times.to_dict() | {"frozen_states": times.states},
            "calibration": {
                "seconds": self.calibration.seconds,
                "micro_batches": self.calibration.micro_batches,
                "saved_bytes": self.calibration.saved_bytes,
                "activation_bytes": self.calibration.activation_bytes,
                "activation_tokens": self.calibration.activation_tokens,
                **dataclasses.asdict(self.calibration.rates),
            },
            "remedies": [] if self._fits else [dataclasses.asdict(remedy) for remedy in suggest(self._suggestions())],
        }

    @cached_property
    def _footprint(self) -> Footprint:
        model, calibration = self.pipeline.model, self.calibration
        base = stored_bytes(model.model)
        made = dataclasses.replace(self.counts, members=model.num_members)
        return Footprint(
            process=max(0, self._held - base - made.adapter_bytes),
            base=base,
            adapters=self.counts.adapter_bytes,
            training=self.counts.training_bytes,
            activations=round(calibration.activation_bytes * self._largest / calibration.activation_tokens),
            trunk=self._trunk[0] if model.trunk_layers > 0 else 0,
            loading=self.loading,
        )

    @property
    def _choice_share(self) -> float:
        """Share of the choices' tokens among all tokens of the training rows."""
        rows = self.trainer.rows.train
        return 1 - sum(len(row.prefix) for row in rows) / sum(row.num_tokens for row in rows)

    @property
    def _held(self) -> int:
        """Bytes that the process holds before it trains."""
        return self.loading if self.resident is None else self.resident

    @property
    def _largest(self) -> int:
        """Tokens of the largest micro-batch."""
        return packed_tokens(self.workload.largest, self.workload.shared)

    @cached_property
    def _trunk(self) -> tuple[int, int]:
        """Bytes of the trunk cache in memory and in files, if there were layers without adapters below."""
        in_memory_gb = (
            0.0 if self.searched.is_auto else self.config.adapt.trunk_memory_gb
        )  # see runs.search.trunk_files
        return trunk_storage(self.pipeline.model, self.trainer.rows, in_memory_gb)

    @property
    def _limit(self) -> int | None:
        """Bytes that the process can have; None if unknown."""
        return None if self.free is None else self._held + int(SHARE * self.free)

    @property
    def _fits(self) -> bool:
        return self._limit is None or self._footprint.peak <= self._limit

    def _bytes(self) -> Json:
        footprint = self._footprint
        parts = {field.name: getattr(footprint, field.name) for field in dataclasses.fields(footprint)}
        return {**parts, "peak": footprint.peak, "limit": self._limit, "fits": self._fits}

    def _disk_bytes(self) -> Json:
        trunk = self._trunk[1] if self.pipeline.model.trunk_layers > 0 else 0
        run, free = self.counts.disk_bytes, disk.free_bytes(self.out)
        return {"run": run, "trunk": trunk, "free": free, "fits": free is None or run + trunk <= free}

    def _work(self) -> Json:
        model, workload, train = self.pipeline.model, self.workload, self.config.train
        trunk_share = model.trunk_layers / model.num_layers
        passes = base_passes(self.counts.members, train.num_epochs, trunk_share, self.config.regularize.kl_beta > 0)
        return {
            "base_passes": round(passes, 3),
            "epochs": train.num_epochs,
            "epochs_given": self.searched.epochs != "auto",
            "steps": workload.steps,
            "micro_batches": workload.micro_batches,
            "largest_micro_batch": self._largest,
            "tokens_per_epoch": workload.tokens_per_epoch,
            "tokens": workload.tokens_per_epoch * train.num_epochs,
            "calibration_tokens": workload.work.calibration_tokens + workload.work.calibration_trunk_tokens,
            "frozen_states_tokens": workload.work.states_tokens,
        }

    def _suggestions(self) -> SuggestionInputs:
        model, calibration = self.pipeline.model, self.calibration
        saved, is_checkpointed = calibration.saved_bytes, self.config.train.gradient_checkpointing
        checkpointed = None
        if not is_checkpointed:
            checkpointed = with_checkpointing(model, saved, calibration.activation_tokens) / saved
        return SuggestionInputs(
            footprint=self._footprint,
            limit=self._limit or 0,
            members=self.counts.members,
            token_budget=self.trainer.token_budget,
            longest=longest_row(self.trainer.rows),
            largest=self._largest,
            adapted_layers=len(model.layers),
            num_layers=model.num_layers,
            trunk=self._trunk[0],
            checkpointed=checkpointed,
        )
