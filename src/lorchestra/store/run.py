"""The run directory: the only reader and writer of its files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from lorchestra.config.mappings import to_yaml
from lorchestra.config.run import RunConfig, read_config
from lorchestra.errors import CheckpointError
from lorchestra.store.atomic import (
    atomic_directory,
    atomic_write_json,
    atomic_write_text,
    discard_directory,
)
from lorchestra.store.calibration_record import ONLY_QUESTION, CalibrationRecord, QuestionCalibration
from lorchestra.store.disk import explained
from lorchestra.store.distill_record import DistillRecord
from lorchestra.store.ensemble_record import COST, FORMAT_VERSION, EnsembleRecord
from lorchestra.store.evaluations import ENTRY_NAME, Entry, check_entry
from lorchestra.store.events import Event, read_events
from lorchestra.store.predictions import load_predictions, save_predictions, tensors_path
from lorchestra.store.safe_paths import inside, typed_path
from lorchestra.store.schema import Each, Shape, read_json
from lorchestra.store.search_record import SearchRecord
from lorchestra.store.splits import SplitRecord, read_splits
from lorchestra.types import Json, Predictions, plain_values

_SCALAR = (str, float, bool, None)
_ENVIRONMENT: Shape = Each((*_SCALAR, Each(_SCALAR)))
_LOOKS: dict[str, Shape] = {"format_version": int, "looks": [{"rows": str, "result": dict}]}

Cost = Mapping[str, float | None]


@dataclass(frozen=True)
class Run:
    """A run directory.

    Nothing is read or written until a method is called. All paths below the root are checked (see `safe_paths.inside`):
    a property raises CheckpointError if a part of its path is a link.
    """

    root: Path

    @classmethod
    def at(cls, path: str | Path) -> Run:
        """The run at a path as a user types it."""
        return cls(typed_path(path))

    def inside(self, *names: str) -> Path:
        """A path below the root.

        Raises:
            CheckpointError: it would lead out of the directory, or a part of it is a link.
        """
        return inside(self.root, *names)

    @property
    def config(self) -> Path:
        """The resolved configuration; with it, the directory is a run."""
        return self.inside("config.yaml")

    @property
    def environment(self) -> Path:
        """Versions and machine the run was made with."""
        return self.inside("environment.json")

    @property
    def events(self) -> Path:
        """One JSON line per step, evaluation and other event."""
        return self.inside("events.jsonl")

    @property
    def ensemble(self) -> Path:
        """The record of the finished ensemble."""
        return self.inside("ensemble.json")

    @property
    def calibration(self) -> Path:
        """How probabilities are calibrated (see `store.calibration_record`)."""
        return self.inside("calibration.json")

    @property
    def monitor(self) -> Path:
        """`monitor.json`: comparisons of new rows with those that certified."""
        return self.inside("monitor.json")

    @property
    def splits(self) -> Path:
        """Ids and digest of each split."""
        return self.inside("splits.json")

    @property
    def members(self) -> Path:
        """The members' PEFT folders."""
        return self.inside("members")

    @property
    def resume(self) -> Path:
        """Checkpoints (see `training.checkpoint`)."""
        return self.inside("resume")

    @property
    def search(self) -> Path:
        """What the search of learning rate and epochs tried and chose (see `store.search_record`)."""
        return self.inside("search.json")

    @property
    def distill(self) -> Path:
        """`distill.json`: which ensemble taught the run's member (see `store.distill_record`)."""
        return self.inside("distill.json")

    @property
    def information(self) -> Path:
        """The head that predicts mutual information (see `store.information`)."""
        return self.inside("information.safetensors")

    @property
    def linear_probe(self) -> Path:
        """The classifier of frozen states that members are mixed with (see `store.linear_probe`)."""
        return self.inside("linear_probe.safetensors")

    def search_pass(self, number: int) -> Run:
        """The directory of a pass of this search while it is in progress: events and checkpoints, as of a run."""
        return Run(self.inside("search", f"pass_{number}"))

    @property
    def metrics(self) -> Path:
        """Evaluations and cost."""
        return self.inside("metrics.json")

    @property
    def predictions(self) -> Path:
        """Saved predictions by task and split."""
        return self.inside("predictions")

    def prediction(self, *parts: str) -> Path:
        """The tensor file of saved predictions, by task, split and, for baselines, name."""
        return tensors_path(self.predictions, ".".join(parts))

    @property
    def is_started(self) -> bool:
        """Whether the directory is a run, finished or not."""
        return self.config.is_file()

    @property
    def is_finished(self) -> bool:
        """Whether training is finished."""
        return self.ensemble.is_file()

    def write_description(
        self, config: RunConfig, environment: Mapping[str, object], splits: Mapping[str, SplitRecord]
    ) -> None:
        """Write what a run starts with; the configuration last, since it makes the directory a run."""
        atomic_write_json(self.splits, splits)
        atomic_write_json(self.environment, environment)
        atomic_write_text(self.config, to_yaml(config))

    def read_config(self) -> RunConfig:
        """The resolved configuration.

        Raises:
            ConfigError: it is missing or damaged.
        """
        return read_config(self.config)

    def settle_config(self, config: RunConfig) -> None:
        """Replace the configuration by one in which a search has settled what was left open."""
        atomic_write_text(self.config, to_yaml(config))

    def write_search(self, record: SearchRecord) -> None:
        """Write `search.json`."""
        atomic_write_json(self.search, record.to_dict())

    def read_search(self) -> SearchRecord | None:
        """What the search before the training tried and chose; None if there was none.

        Raises:
            CheckpointError: `search.json` is damaged.
        """
        return SearchRecord.read(self.search) if self.search.exists() else None

    def write_distillation(self, record: DistillRecord) -> None:
        """Write `distill.json`."""
        atomic_write_json(self.distill, record.to_dict())

    def read_distillation(self) -> DistillRecord | None:
        """Which ensemble taught the run's member; None if none did.

        Raises:
            CheckpointError: `distill.json` is damaged.
        """
        return DistillRecord.read(self.distill) if self.distill.exists() else None

    def discard_search(self) -> None:
        """Remove the directories of the search's passes."""
        discard_directory(self.inside("search"))

    def read_environment(self) -> dict[str, object]:
        """Versions and machine of the run; empty if they were not saved.

        Raises:
            CheckpointError: `environment.json` is damaged.
        """
        return read_json(self.environment, _ENVIRONMENT) if self.environment.exists() else {}

    def read_splits(self, *names: str) -> dict[str, SplitRecord]:
        """Digest, size and ids of each split; those of the given names are required.

        Raises:
            CheckpointError: `splits.json` is missing or damaged.
        """
        return read_splits(self.splits, *names)

    @contextmanager
    def new_members(self) -> Iterator[Path]:
        """Yield an empty directory that becomes `members` when the block ends; it replaces an earlier one."""
        discard_directory(self.members)
        with atomic_directory(self.members) as directory:
            yield directory

    def write_ensemble(self, record: EnsembleRecord) -> None:
        """Write `ensemble.json`, the last file of a training: with it the run is finished."""
        atomic_write_json(self.ensemble, {"format_version": FORMAT_VERSION, **record.to_dict()})

    def read_ensemble(self) -> EnsembleRecord:
        """The record of the finished ensemble.

        Raises:
            CheckpointError: no run, an unfinished one, another format version, or a damaged record.
        """
        if not self.root.is_dir():
            raise CheckpointError(f"{self.root}: no such run directory")
        if not self.is_finished:
            if self.is_started:
                command = "distill RUN" if self.distill.exists() else "train"
                raise CheckpointError(
                    f"{self.root}: this run is not finished (no ensemble.json); finish it by: lorchestra {command}"
                    f" --out {self.root} --if-exists resume"
                )
            raise CheckpointError(f"{self.root}: not a run directory (neither ensemble.json nor config.yaml in it)")
        return EnsembleRecord.from_dict(read_json(self.ensemble), self.ensemble)

    def read_looks(self) -> tuple[str, ...]:
        """Digests of the sets of rows with which `lorchestra monitor` has compared the reference, in order.

        Raises:
            CheckpointError: `monitor.json` is damaged.
        """
        if not self.monitor.exists():
            return ()
        return tuple(look["rows"] for look in read_json(self.monitor, _LOOKS)["looks"])

    def write_look(self, rows: str, result: Json) -> None:
        """Add a comparison to `monitor.json`; one with the same rows replaces the earlier one."""
        looks = read_json(self.monitor, _LOOKS)["looks"] if self.monitor.exists() else []
        looks = [look for look in looks if look["rows"] != rows]
        atomic_write_json(self.monitor, {"format_version": 1, "looks": [*looks, {"rows": rows, "result": result}]})

    def write_calibration(self, record: CalibrationRecord) -> None:
        """Write `calibration.json`."""
        atomic_write_json(self.calibration, record.to_dict())

    def read_calibration(self, ensemble: EnsembleRecord) -> CalibrationRecord | None:
        """How the run's probabilities are calibrated; None if nothing was fitted, as in runs of earlier versions.

        Args:
            ensemble: the run's record.

        Raises:
            CheckpointError: `calibration.json` is damaged or was changed, or belongs to another ensemble.
        """
        if not self.calibration.exists():
            return None
        record = CalibrationRecord.read(self.calibration)
        if record.ensemble != ensemble.digest:
            raise CheckpointError(
                f"{self.calibration}: belongs to another ensemble (digest {record.ensemble[:12]}, this one has"
                f" {ensemble.digest[:12]}): its members, base, prompt or scoring differ; copy the run again, or answer"
                " with the mixture as it is: --raw"
            )
        options = {question.name: question.options for question in ensemble.questions}
        if record.questions.keys() != (options or {ONLY_QUESTION: ()}).keys():
            raise CheckpointError(f"{self.calibration}: its questions are not those of the run; copy the run again")
        for name, question in record.questions.items():
            self._check_question(question, options.get(name, ensemble.labels or ()), ensemble)
        return record

    def _check_question(
        self, question: QuestionCalibration, classes: tuple[str, ...], ensemble: EnsembleRecord
    ) -> None:
        """Refuse a calibration and decisions by classes or members that are not the run's."""
        scale = question.calibration.scale
        if scale and len(scale) != len(classes):
            raise CheckpointError(f"{self.calibration}: has {len(scale)} classes, the run {len(classes)}")
        if question.saved_decisions is None:
            return
        decisions, num_members = question.saved_decisions.decisions, len(ensemble.good_members)
        cascade, sets = decisions.cascade, decisions.sets
        if cascade is not None and cascade.num_members != num_members:
            raise CheckpointError(
                f"{self.calibration}: its cascade has {cascade.num_members} members, the run {num_members}; copy the"
                " run again, or answer with the mixture as it is: --raw"
            )
        classes_differ = decisions.classes is not None and decisions.classes != classes
        if classes_differ or (sets is not None and sets.by_class and len(sets.quantiles) != len(classes)):
            raise CheckpointError(
                f"{self.calibration}: its decisions are by classes that are not the run's labels; copy the run again,"
                " or answer with the mixture as it is: --raw"
            )

    def start_events(self, keep_bytes: int | None = None) -> None:
        """Make `events.jsonl`, or truncate it to `keep_bytes`: what a resumed run repeats is not logged twice."""
        path = self.events
        with explained(path, None):
            path.touch()
            if keep_bytes is not None:
                os.truncate(path, min(keep_bytes, path.stat().st_size))

    def append_event(self, event: str, **values: object) -> None:
        """Append an event to `events.jsonl`, with the current time."""
        path = self.events
        line = json.dumps(plain_values({"event": event, "time": round(time.time(), 3), **values}), allow_nan=False)
        with explained(path, None), path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def write_events(self, events: Iterable[Event]) -> None:
        """Write `events.jsonl` with events that have their times already."""
        atomic_write_text(self.events, "".join(json.dumps(event) + "\n" for event in events))

    def read_events(self, num_members: int | None = None) -> tuple[Event, ...]:
        """The run's events; none if it has no `events.jsonl`.

        Args:
            num_members: the length that lists over members must have, if it is known.

        Raises:
            CheckpointError: a line is damaged.
        """
        return read_events(self.events, num_members)

    def why_read_only(self) -> str | None:
        """Why no evaluation can be saved; None if one can. Checked by writing, before minutes of computing."""
        try:
            for directory in (self.root, self.predictions):
                if directory.is_dir():
                    with explained(directory / self.metrics.name, None), NamedTemporaryFile(dir=directory, prefix="."):
                        pass
        except CheckpointError as error:
            return str(error)
        return None

    def write_evaluations(self, entries: Sequence[Entry], cost: Cost | None) -> None:
        """Write `metrics.json`."""
        atomic_write_json(self.metrics, {"evaluations": entries, "cost": cost})

    def read_evaluations(self) -> tuple[list[Entry], Cost]:
        """The run's evaluations, latest last, and the cost of its training; both empty before the first evaluation.

        Raises:
            CheckpointError: `metrics.json` is damaged.
        """
        if not self.metrics.exists():
            return [], {}
        metrics = read_json(self.metrics, {"evaluations": list, "cost?": COST})
        for number, entry in enumerate(metrics["evaluations"]):
            hint = f"remove it and evaluate the run: lorchestra evaluate {self.root}"
            check_entry(entry, self.metrics, f"evaluations[{number}]", hint)
        return list(metrics["evaluations"]), metrics.get("cost") or {}

    def read_named_evaluations(self) -> list[Entry]:
        """The run's evaluations, of which only the names of task and split are checked; empty if there are none.

        Raises:
            CheckpointError: `metrics.json` is damaged.
        """
        if not self.metrics.exists():
            return []
        return list(read_json(self.metrics, {"evaluations": [ENTRY_NAME]})["evaluations"])

    def save_predictions(self, predictions: Predictions, name: str | None = None) -> None:
        """Save predictions under their task and split; `name` is appended for baselines."""
        stem = f"{predictions.task}.{predictions.split}"
        save_predictions(self.predictions, predictions, stem if name is None else f"{stem}.{name}")

    def load_predictions(self, *parts: str, answered: bool = False) -> Predictions:
        """Saved predictions, by task, split and, for baselines, name.

        Args:
            parts: see `prediction`.
            answered: whether every row must have an answer.

        Raises:
            CheckpointError: there are none, or they are damaged.
        """
        return load_predictions(self.prediction(*parts), answered=answered)
