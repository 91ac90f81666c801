"""One packed pass of a sweep: the members of several points, trained together and resumed exactly."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lorchestra.config.data import ChatFrame
from lorchestra.config.mappings import from_mapping, to_mapping
from lorchestra.config.run import RunConfig
from lorchestra.inference.pipeline import Pipeline
from lorchestra.inference.predict import member_passes
from lorchestra.inference.trunk import TrunkFiles
from lorchestra.models.init import make_adapter_settings
from lorchestra.planning.memory import restart_peak
from lorchestra.runs.event_log import EventLog
from lorchestra.runs.sweep.passes import Pack
from lorchestra.runs.sweep.points import Point
from lorchestra.runs.training import prepare_training, restore, train_with_checkpoints
from lorchestra.store.atomic import atomic_write_json
from lorchestra.store.predictions import save_predictions
from lorchestra.store.run import Run
from lorchestra.store.schema import read_json
from lorchestra.training.callbacks import Callback, CallbackList
from lorchestra.training.checkpoint import TrainState
from lorchestra.training.members import member_settings
from lorchestra.training.sampler import unit_sizes
from lorchestra.training.trainer import Trainer
from lorchestra.types import Example

_FRAME = "chat_frame.json"


@dataclass(frozen=True)
class TrainedPack:
    """A trained pass; its members have the values that are kept.

    `directory` is laid out as a run: it has the pass's events, checkpoints and predictions after each epoch.
    """

    pack: Pack
    directory: Run
    pipeline: Pipeline
    resolved: RunConfig
    trainer: Trainer
    peak_bytes: int

    def config_of(self, point: Point) -> RunConfig:
        """A point's configuration with everything settled that it left open."""
        config, resolved = point.config, self.resolved
        return dataclasses.replace(
            config,
            base=dataclasses.replace(config.base, threads=resolved.base.threads),
            data=dataclasses.replace(config.data, scoring=resolved.data.scoring, prompt=resolved.data.prompt),
            train=dataclasses.replace(config.train, token_budget=resolved.train.token_budget),
        )

    def good_members(self, point: Point) -> list[int]:
        """A point's members that did not fail."""
        failed = self.trainer.state.with_status("failed")
        return [m for m in self.pack.members_of(point) if m not in failed]


def train_pack(
    pack: Pack,
    directory: Run,
    trunks: Path,
    *,
    trunks_in_memory: bool,
    each_epoch: Sequence[Example] = (),
    callback: Callback,
) -> TrainedPack:
    """Train the members of all points of a pass, from its checkpoint if there is one.

    Args:
        pack: the points and their rows.
        directory: the pass's directory, for its events and checkpoints.
        trunks: a directory for the hidden states below the adapters, which other passes use too.
        trunks_in_memory: whether small ones may stay in memory, if there are no other passes.
        each_epoch: rows to predict after every epoch, into `predictions/epoch_*` of the directory.
        callback: reports progress; may ask to stop.

    Raises:
        ConfigError, DataError, CheckpointError: bad input.
        Interrupted: the callback asked to stop; a checkpoint is written.
    """
    gc.collect()  # frees the previous pass
    restart_peak()
    configs = [point.config for point in pack.points]
    adapter_settings = [
        settings for config in configs for settings in make_adapter_settings(config.adapt, config.train.seed)
    ]
    joint = dataclasses.replace(configs[0], adapt=dataclasses.replace(configs[0].adapt, members=len(adapter_settings)))
    pipeline, resolved, rows = prepare_training(_with_saved_frame(joint, directory), pack.rows, adapter_settings)
    sizes = unit_sizes(rows.train)
    settings = [member for config in configs for member in member_settings(config, len(rows.train), unit_sizes=sizes)]
    resuming = directory.resume.exists()
    if not resuming:
        atomic_write_json(directory.inside(_FRAME), to_mapping(resolved.data.prompt.frame))
    directory.resume.mkdir(parents=True, exist_ok=True)
    memory = round(resolved.adapt.trunk_memory_gb * 1e9) if trunks_in_memory else 0
    files = TrunkFiles(trunks, pipeline.base.digest, memory, directory.append_event)
    epochs = [_EpochPredictions(pipeline, each_epoch, directory)] if each_epoch else []
    callback = CallbackList([EventLog(directory), callback, *epochs])
    trainer = Trainer(pipeline.model, rows, resolved.train, settings, callback, files=files)
    if resuming:
        restore(directory, trainer)
    peak = train_with_checkpoints(directory, trainer)
    with torch.no_grad():
        pipeline.model.adapters.values.copy_(trainer.final_values())
    return TrainedPack(pack, directory, pipeline, resolved, trainer, peak)


def _with_saved_frame(config: RunConfig, directory: Run) -> RunConfig:
    """The configuration with what the chat template wrote when the pass was started, if it was."""
    path = directory.inside(_FRAME)
    if not path.exists():
        return config
    frame = from_mapping(ChatFrame, read_json(path), str(path))
    prompt = dataclasses.replace(config.data.prompt, frame=frame)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, prompt=prompt))


class _EpochPredictions(Callback):
    """Predicts some rows with all members after every epoch."""

    def __init__(self, pipeline: Pipeline, examples: Sequence[Example], directory: Run) -> None:
        self.pipeline, self.examples, self.directory = pipeline, examples, directory

    def on_evaluation(self, entry: dict[str, object], state: TrainState) -> None:
        """Predict and save."""
        passes = member_passes(range(self.pipeline.model.num_members))
        predictions = self.pipeline.predict(self.examples, passes, "test")
        save_predictions(self.directory.predictions, predictions, epoch_name(int(str(entry["epoch"]))))


def epoch_name(epoch: int) -> str:
    """The file stem of the predictions after an epoch, counted from 1."""
    return f"epoch_{epoch:03d}"
