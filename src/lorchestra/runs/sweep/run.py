"""A sweep from start to end: finished points are skipped, and what was killed is resumed.

Format of its directory: `sweep.json` (every point's configuration), `runs/<point>/` (finished runs, complete),
`number_formats.json` (of the bases), `search/` (of learning rate and epochs, if points leave them open),
`failed.json` (points of which every member failed),
`passes/<key>/` (checkpoints and events of passes in progress), `trunks/` (hidden states below the adapters, shared by
all passes), `results.json` and `results.csv`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from lorchestra.config.mappings import differences, from_mapping, to_mapping
from lorchestra.config.run import RunConfig, check_no_probe
from lorchestra.errors import CheckpointError, ConfigError, DataError
from lorchestra.models.loading import absolute_base
from lorchestra.runs.rows import absolute_settings, read_ood
from lorchestra.runs.sweep.engine import Engine, LocalEngine, PassJob
from lorchestra.runs.sweep.passes import Pack, make_packs
from lorchestra.runs.sweep.points import Point
from lorchestra.runs.sweep.results import write_results
from lorchestra.store.atomic import atomic_write_json, sweep_directory
from lorchestra.store.run import Run
from lorchestra.store.safe_paths import inside, typed_path
from lorchestra.store.schema import FILE_NAME, Shape, read_json
from lorchestra.store.workspace import SWEEP, Workspace
from lorchestra.training.callbacks import Callback, CallbackList
from lorchestra.types import Example

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
MAX_MEMBERS = 100
"""Default limit of the members of a packed pass, whose adapters and optimizer states are in memory together."""

_RECORD: Shape = {"format_version": int, "points": [{"name": FILE_NAME, "settings": dict, "config": dict}]}
_PASS: Shape = {"points": [FILE_NAME]}


@dataclass(frozen=True)
class SweepOutcome:
    """A finished sweep: its directory, and the points of which every member failed."""

    root: Path
    failed: tuple[str, ...]


def run_sweep(
    points: Sequence[Point],
    out: str | Path,
    *,
    most_members: int = MAX_MEMBERS,
    evaluate: bool = True,
    ood: Sequence[str] = (),
    each_epoch: bool = False,
    callbacks: Sequence[Callback] = (),
    engine: Engine = LocalEngine(),  # noqa: B008 - has no state
) -> SweepOutcome:
    """Train and evaluate every point that is not finished yet.

    Args:
        points: the points; those of an earlier call on the same directory may be among them.
        out: the sweep's directory.
        most_members: largest number of members in a packed pass.
        evaluate: whether to evaluate on the test rows.
        ood: tasks by name, or files, with rows unlike the training rows.
        each_epoch: whether to predict the test rows after every epoch, into the runs' `predictions/*.epoch_*`.
        callbacks: report progress; when one asks to stop, a checkpoint is written and `Interrupted` raised.
        engine: where the passes are trained.

    Raises:
        ConfigError, DataError: bad input; or settings that only the base refuses, such as layers that it does not have,
            if that is so for all points (otherwise these points fail, and the others are trained).
        CheckpointError: a point of that name has other settings there, or the directory or the base cannot be used.
        Interrupted: a callback asked to stop.
    """
    if most_members < 1:
        raise ConfigError(f"--most-members: {most_members} is less than 1")
    callback = CallbackList(callbacks)
    points = [_checked(point) for point in points]
    with Workspace.open(out, SWEEP) as workspace:
        root = workspace.root
        sweep = _Sweep(root, _register(workspace, points), _read_failed(root), callback)
        points = engine.settle(root, points, callback)
        passes = sweep.passes(points, most_members)
        waiting = {point.name for pack in passes for point in pack.points}
        callback.on_status([p.name for p in points if p.name not in waiting | sweep.failed.keys()], "finished")
        for note in dict.fromkeys(note for pack in passes for note in pack.rows.notes):
            logger.info(note)
        callback.on_status([name for name in sweep.failed if name not in waiting], "failed")
        jobs = [PassJob(root, pack, _read_ood(ood, pack), evaluate, each_epoch) for pack in passes]
        refused: dict[str, ConfigError | DataError] = {}
        with closing(engine.outcomes(jobs, callback)) as outcomes:
            for job, outcome in outcomes:
                if isinstance(outcome, ConfigError | DataError):
                    refused |= dict.fromkeys(job.names, outcome)
                    if len(refused) == len(points):  # all have the same mistake: nothing is left to train or remember
                        sweep.forget(refused, job)
                        raise next(iter(refused.values())) from outcome
                    logger.info(f"{', '.join(job.names)}: {outcome}")
                    outcome = {name: str(outcome) for name in job.names}
                sweep.close(job, outcome)
        sweep.close_all()
        return SweepOutcome(root, tuple(point.name for point in points if point.name in sweep.failed))


def _checked(point: Point) -> Point:
    """The point with absolute paths; one with a setting that no sweep uses is refused."""
    check_no_probe(point.config, "a sweep")
    return replace(point, config=absolute_settings(point.config))


def read_points(root: str | Path) -> list[Point]:
    """The points of a sweep's directory, in order.

    Raises:
        CheckpointError: no sweep, or a damaged one.
    """
    path = inside(typed_path(root), "sweep.json")
    record = read_json(path, _RECORD)
    if record["format_version"] != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format_version is {record['format_version']}, this is {FORMAT_VERSION}")
    return [
        Point(one["name"], one["settings"], from_mapping(RunConfig, one["config"], str(path), saved=True))
        for one in record["points"]
    ]


@dataclass
class _Sweep:
    """A sweep's directory while its passes are trained."""

    root: Path
    points: Sequence[Point]
    """All points of the directory, also those of earlier calls."""
    failed: dict[str, str]
    """Points of which every member failed, with the reason: they would only fail again."""
    callback: Callback

    def passes(self, points: Sequence[Point], most_members: int) -> list[Pack]:
        """The passes that were in progress, unchanged, and new ones for points in none of them.

        A pass with other points than the given ones is left for the call that gives them again.
        """
        for directory in (self.root, inside(self.root, "runs")):
            sweep_directory(directory)
        started: list[Pack] = []
        by_name = {point.name: point for point in points}
        for entry in sorted(inside(self.root, "passes").glob("*")):
            directory = inside(self.root, "passes", entry.name)
            path = inside(directory, "pass.json")
            names: list[str] = read_json(path, _PASS)["points"] if path.exists() else []
            if names and all(map(self._is_done, names)):  # killed before it was removed
                shutil.rmtree(directory)
                continue
            known = [by_name[name] for name in names if name in by_name]
            if len(known) < len(names):
                continue
            packs = make_packs(known, sum(point.config.adapt.members for point in known)) if known else []
            if len(packs) == 1 and packs[0].key == directory.name:
                started.append(packs[0])
            else:  # made of other rows or settings than the given ones
                shutil.rmtree(directory)
        taken = {point.name for pack in started for point in pack.points}
        new = [point for point in points if point.name not in taken and not self._is_done(point.name)]
        return [*started, *make_packs(new, most_members)]

    def close(self, job: PassJob, failed: Mapping[str, str]) -> None:
        """Write results and failed points, and remove the pass."""
        if failed:
            self.failed |= failed
            self._write_failed(self.failed)
        self._write_results()
        shutil.rmtree(job.directory.root)
        finished = [name for name in job.names if name not in self.failed]
        self.callback.on_status(finished, "finished")
        self.callback.on_status(list(failed), "failed")

    def close_all(self) -> None:
        """Remove what the passes shared."""
        shutil.rmtree(inside(self.root, "trunks"), ignore_errors=True)
        with suppress(OSError):
            inside(self.root, "passes").rmdir()  # it may hold others, which a call with their points resumes
        self._write_results()

    def forget(self, names: Mapping[str, object], job: PassJob) -> None:
        """Remove points from the failed ones, and the pass in progress."""
        self._write_failed({name: reason for name, reason in self.failed.items() if name not in names})
        shutil.rmtree(job.directory.root)

    def _is_done(self, name: str) -> bool:
        """Whether a point is finished or failed."""
        return name in self.failed or Run(inside(self.root, "runs", name)).is_finished

    def _write_failed(self, failed: Mapping[str, str]) -> None:
        atomic_write_json(inside(self.root, "failed.json"), failed)

    def _write_results(self) -> None:
        write_results(self.root, self.points, list(self.failed))


def _read_ood(ood: Sequence[str], pack: Pack) -> Mapping[str, Sequence[Example]]:
    task = pack.rows.task
    return read_ood(ood, pack.points[0].config.data, task.labels, task.questions, keep_answers=True)


def _register(workspace: Workspace, points: Sequence[Point]) -> list[Point]:
    """Add new points to `sweep.json`; returns all that are in it.

    Raises:
        ConfigError: a point of that name has other settings there.
    """
    known = {point.name: point for point in read_points(workspace.root)} if workspace.resuming else {}
    for point in points:
        if point.name not in known:
            continue
        saved = known[point.name].config
        changed = differences(point.config, replace(saved, base=absolute_base(saved.base)))
        for field, (now, before) in changed.items():
            raise ConfigError(
                f"{field}: the sweep in {workspace.root} has {before!r} in its point {point.name}, not {now!r}; keep"
                " its settings, or choose another --out"
            )
    every = known | {point.name: point for point in points}
    entries = [{"name": p.name, "settings": dict(p.settings), "config": to_mapping(p.config)} for p in every.values()]
    record = {"format_version": FORMAT_VERSION, "points": entries}
    atomic_write_json(inside(workspace.root, "sweep.json"), record)
    return list(every.values())


def _read_failed(root: Path) -> dict[str, str]:
    path = inside(root, "failed.json")
    return {name: str(reason) for name, reason in read_json(path).items()} if path.exists() else {}
