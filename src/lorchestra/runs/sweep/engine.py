"""Where the packed passes of a sweep are trained: one after the other in this process, or elsewhere."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from lorchestra.errors import ConfigError, DataError
from lorchestra.runs.build import torch_threads
from lorchestra.runs.sweep.finish import finish_pack
from lorchestra.runs.sweep.passes import Pack
from lorchestra.runs.sweep.points import Point
from lorchestra.runs.sweep.settle import settle_points
from lorchestra.runs.sweep.train import TrainedPack, train_pack
from lorchestra.store.atomic import atomic_write_json
from lorchestra.store.run import Run
from lorchestra.store.safe_paths import inside
from lorchestra.training.callbacks import Callback
from lorchestra.types import Example


@dataclass(frozen=True)
class PassJob:
    """One packed pass from start to end: training, evaluation and the run directories of its points.

    Attributes:
        root: the sweep's directory.
        pack: the points with their rows.
        ood: rows unlike the training rows, by name.
        evaluate: whether to evaluate on the test rows.
        each_epoch: whether to predict the test rows after every epoch.
    """

    root: Path
    pack: Pack
    ood: Mapping[str, Sequence[Example]]
    evaluate: bool
    each_epoch: bool

    @property
    def names(self) -> list[str]:
        """The names of its points."""
        return [point.name for point in self.pack.points]

    @property
    def directory(self) -> Run:
        """The directory of the pass in progress, which is laid out as a run."""
        return Run(inside(self.root, "passes", self.pack.key))


PassOutcome: TypeAlias = Mapping[str, str] | ConfigError | DataError
"""The points of which every member failed, with the reason; or the error if the base refuses the settings of all."""


Outcomes: TypeAlias = Generator[tuple[PassJob, PassOutcome], None, None]


class Engine(Protocol):
    """Does the work of a sweep whose results are files in its directory."""

    def settle(self, root: Path, points: Sequence[Point], callback: Callback) -> list[Point]:
        """See `settle_points`."""

    def outcomes(self, jobs: Sequence[PassJob], callback: Callback) -> Outcomes:
        """The outcome of every pass, as it is done.

        Raises:
            CheckpointError: a directory or the base cannot be used.
            Interrupted: the callback asked to stop; checkpoints are written.
        """


class LocalEngine:
    """One pass after the other, in this process."""

    def settle(self, root: Path, points: Sequence[Point], callback: Callback) -> list[Point]:
        """See `settle_points`."""
        return settle_points(root, points, callback)

    def outcomes(self, jobs: Sequence[PassJob], callback: Callback) -> Outcomes:
        """The passes in their order: those next to each other share their cached trunk."""
        for job in jobs:
            callback.on_status(job.names, "training")
            outcome: PassOutcome
            try:
                outcome = run_pass(job, inside(job.root, "trunks"), len(jobs) == 1, callback)
            except (ConfigError, DataError) as error:  # settings that only the base refuses, such as layers
                outcome = error
            yield job, outcome


def run_pass(job: PassJob, trunks: Path, trunks_in_memory: bool, callback: Callback) -> dict[str, str]:
    """Train a pass, resumed from its files, and write its runs. When this returns, nothing holds its base any more.

    Args:
        job: the pass.
        trunks: a directory for the hidden states below the adapters; no other pass may use it at the same time.
        trunks_in_memory: whether small ones may stay in memory.
        callback: reports progress; may ask to stop.

    Returns:
        The points of which every member failed, with the reason.

    Raises:
        ConfigError, DataError, CheckpointError: bad input.
        Interrupted: the callback asked to stop; a checkpoint is written.
    """
    pack, directory = job.pack, job.directory
    with torch_threads(pack.points[0].config.base.threads):
        atomic_write_json(directory.inside("pass.json"), {"points": job.names})
        trained = train_pack(
            pack,
            directory,
            trunks,
            trunks_in_memory=trunks_in_memory,
            each_epoch=pack.rows.task.splits["test"] if job.each_epoch else (),
            callback=callback,
        )
        callback.on_status(job.names, "evaluating")
        runs = inside(job.root, "runs")
        failed = finish_pack(trained, runs, evaluate=job.evaluate, ood=job.ood, callback=callback)
        return {point.name: _reason(trained, point) for point in failed}


def _reason(trained: TrainedPack, point: Point) -> str:
    states = trained.trainer.state.members
    return "; ".join(f"member {i}: {states[m].reason}" for i, m in enumerate(trained.pack.members_of(point)))
