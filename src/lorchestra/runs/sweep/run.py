"""A sweep from start to end: what is finished is skipped, what was killed goes on.

Format of its directory: `sweep.json` (every point's configuration), `runs/<point>/` (finished runs, whole),
`failed.json` (points of which every member failed), `passes/<key>/` (checkpoints and events of passes under way),
`trunks/` (hidden states below the adapters, shared by all passes), `results.json` and `results.csv`.

The results of a sweep as one table: settings, metrics and cost of every finished point.
"""

from __future__ import annotations

import csv
import io
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorchestra.config.mappings import differences, from_mapping, to_mapping
from lorchestra.config.run import RunConfig
from lorchestra.errors import CheckpointError, ConfigError, DataError
from lorchestra.metrics.table import IN_TABLES
from lorchestra.models.loading import absolute_base
from lorchestra.runs.rows import absolute_settings, read_ood
from lorchestra.runs.sweep.finish import finish_pack
from lorchestra.runs.sweep.passes import Pack, make_packs
from lorchestra.runs.sweep.points import Point
from lorchestra.runs.sweep.train import TrainedPack, train_pack
from lorchestra.store.atomic import atomic_write_json, atomic_write_text, sweep_directory
from lorchestra.store.lock import holding_out
from lorchestra.store.records import read_evaluations
from lorchestra.store.run_dir import RunDir, read_ensemble, read_json
from lorchestra.store.safe_paths import inside, typed_path
from lorchestra.store.schema import FILE_NAME, check_shape
from lorchestra.training.callbacks import Callback, CallbackList
from lorchestra.types import Example

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
MAX_MEMBERS = 100
"""Members of one packed pass by default: their adapters and optimizer states are in memory at once."""

_RECORD: dict[str, Any] = {"format_version": int, "points": [{"name": FILE_NAME, "settings": dict, "config": dict}]}
_PASS: dict[str, Any] = {"points": [FILE_NAME]}


@dataclass(frozen=True)
class SweepOutcome:
    """A finished sweep: its directory, and the points of which every member failed."""

    root: Path
    failed: tuple[str, ...]


@holding_out
def run_sweep(
    points: Sequence[Point],
    out: str | Path,
    *,
    most_members: int = MAX_MEMBERS,
    evaluate: bool = True,
    ood: Sequence[str] = (),
    each_epoch: bool = False,
    callbacks: Sequence[Callback] = (),
) -> SweepOutcome:
    """Train and evaluate every point that is not finished yet.

    Args:
        points: the points; those of an earlier call on the same directory may be among them.
        out: the sweep's directory.
        most_members: most members of one packed pass.
        evaluate: whether to evaluate on the test rows.
        ood: tasks by name, or files, with rows unlike the training rows.
        each_epoch: whether to predict the test rows after every epoch, into the runs' `predictions/*.epoch_*`.
        callbacks: report progress; where one asks to stop, a checkpoint is written and `Interrupted` raised.

    Raises:
        ConfigError, DataError: bad input; or what only shows on the base, such as layers that it does not have, if no
            point is without it (else those points fail, and the others go on).
        CheckpointError: a point of that name has other settings there, or the directory or the base cannot be used.
        Interrupted: a callback asked to stop.
    """
    if most_members < 1:
        raise ConfigError(f"--most-members: {most_members} is less than 1")
    callback = CallbackList(callbacks)
    root = typed_path(out)
    points = [replace(point, config=absolute_settings(point.config)) for point in points]
    known = _register(root, points)
    passes = _passes(root, points, most_members)
    waiting = {point.name for pack in passes for point in pack.points}
    callback.on_status([p.name for p in points if p.name not in waiting], "finished")
    for note in dict.fromkeys(note for pack in passes for note in pack.rows.notes):
        logger.info(note)
    failed = _failed(root)
    callback.on_status([name for name in failed if name not in waiting], "failed")
    far = {
        pack.key: read_ood(ood, pack.points[0].config.data, pack.rows.task.labels, keep_answers=True) for pack in passes
    }

    def train_and_finish(pack: Pack, far: Mapping[str, Sequence[Example]]) -> dict[str, str]:
        """One pass; returns its failed points. By itself, so that its base is gone before the next pass loads one."""
        told = {"points": [point.name for point in pack.points]}
        atomic_write_json(inside(root, "passes", pack.key, "pass.json"), told)
        trained = train_pack(
            pack,
            RunDir(inside(root, "passes", pack.key)),
            inside(root, "trunks"),
            trunks_in_memory=len(passes) == 1,
            each_epoch=pack.rows.task.splits["test"] if each_epoch else (),
            callback=callback,
        )
        callback.on_status([point.name for point in pack.points], "evaluating")
        lost = finish_pack(trained, inside(root, "runs"), evaluate=evaluate, ood=far, callback=callback)
        return {point.name: _reason(trained, point) for point in lost}

    refused: dict[str, ConfigError | DataError] = {}
    for pack in passes:
        names = [point.name for point in pack.points]
        callback.on_status(names, "training")
        try:
            lost = train_and_finish(pack, far[pack.key])
        except (ConfigError, DataError) as error:  # settings that only show to be wrong on the base, such as layers
            refused |= dict.fromkeys(names, error)
            if len(refused) == len(points):  # a mistake of all of them: nothing is left to go on with, or to remember
                known_failed = {k: why for k, why in failed.items() if k not in refused}
                atomic_write_json(inside(root, "failed.json"), known_failed)
                shutil.rmtree(inside(root, "passes", pack.key))
                raise next(iter(refused.values())) from error
            logger.info(f"{', '.join(names)}: {error}")
            lost = {name: str(error) for name in names}
        if lost:
            failed |= lost
            atomic_write_json(inside(root, "failed.json"), failed)
        write_results(root, known, list(failed))
        shutil.rmtree(inside(root, "passes", pack.key))
        callback.on_status([name for name in names if name not in failed], "finished")
        callback.on_status(list(lost), "failed")
    shutil.rmtree(inside(root, "trunks"), ignore_errors=True)
    with suppress(OSError):
        inside(root, "passes").rmdir()  # there may be others in it, which a command with their points goes on with
    write_results(root, known, list(failed))
    return SweepOutcome(root, tuple(point.name for point in points if point.name in failed))


def read_points(root: str | Path) -> list[Point]:
    """The points of a sweep's directory, in order.

    Raises:
        CheckpointError: no sweep, or a damaged one.
    """
    path = inside(typed_path(root), "sweep.json")
    record = read_json(path)
    check_shape(record, _RECORD, path)
    if record["format_version"] != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format_version is {record['format_version']}, this is {FORMAT_VERSION}")
    return [
        Point(one["name"], one["settings"], from_mapping(RunConfig, one["config"], str(path), saved=True))
        for one in record["points"]
    ]


def _register(root: Path, points: Sequence[Point]) -> list[Point]:
    """Add new points to `sweep.json`; returns all that are in it.

    Raises:
        CheckpointError: something else is there.
        ConfigError: a point of that name has other settings there.
    """
    known: dict[str, Point] = {}
    if inside(root, "sweep.json").exists():
        known = {point.name: point for point in read_points(root)}
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise CheckpointError(f"--out {root}: exists and is not the directory of a sweep; choose another name")
    for point in points:
        if point.name not in known:
            continue
        before = known[point.name].config
        if found := differences(point.config, replace(before, base=absolute_base(before.base))):
            field, (now, then) = next(iter(found.items()))
            raise ConfigError(
                f"{field}: the sweep in {root} has {then!r} in its point {point.name}, not {now!r}; keep its settings,"
                " or choose another --out"
            )
    every = known | {point.name: point for point in points}
    told = [{"name": p.name, "settings": dict(p.settings), "config": to_mapping(p.config)} for p in every.values()]
    atomic_write_json(inside(root, "sweep.json"), {"format_version": FORMAT_VERSION, "points": told})
    return list(every.values())


def _passes(root: Path, points: Sequence[Point], most_members: int) -> list[Pack]:
    """Passes that were under way, as they were made then, and new ones for the points that no pass has.

    A pass that has other points, too, than are asked for now is left where it is.
    """
    for directory in (root, inside(root, "runs")):
        sweep_directory(directory)
    begun: list[Pack] = []
    by_name = {point.name: point for point in points}
    for entry in sorted(inside(root, "passes").glob("*")):
        directory = inside(root, "passes", entry.name)
        path = inside(directory, "pass.json")
        names = _names_of(path) if path.exists() else []
        found = [by_name[name] for name in names if name in by_name]
        if len(found) < len(names):
            continue
        packs = make_packs(found, sum(point.config.adapt.members for point in found)) if found else []
        if len(packs) == 1 and packs[0].key == directory.name:
            begun.append(packs[0])
        else:  # made of other rows or settings than are asked for now
            shutil.rmtree(directory)
    taken = {point.name for pack in begun for point in pack.points} | _failed(root).keys()
    new = [p for p in points if p.name not in taken and not inside(root, "runs", p.name, "ensemble.json").exists()]
    return [*begun, *make_packs(new, most_members)]


def _failed(root: Path) -> dict[str, str]:
    """Points of which every member failed, with the reason: they would only fail again."""
    path = inside(root, "failed.json")
    return {name: str(reason) for name, reason in read_json(path).items()} if path.exists() else {}


def _reason(trained: TrainedPack, point: Point) -> str:
    states = trained.trainer.state.members
    return "; ".join(f"member {i}: {states[m].reason}" for i, m in enumerate(trained.pack.members_of(point)))


def _names_of(path: Path) -> list[str]:
    record = read_json(path)
    check_shape(record, _PASS, path)
    return list(record["points"])


METRICS = tuple(metric.key for metric in sorted(IN_TABLES, key=lambda metric: not metric.direction))


def collect_results(root: Path, points: Sequence[Point], failed: Sequence[str]) -> list[dict[str, Any]]:
    """One dictionary a point, in order: `name`, `settings`, `state` (finished, failed or waiting), what was measured.

    Finished points have `cost` and `val_nll` (the mean over members), evaluated ones also `ensemble` and `member_mean`.
    """
    found = []
    for point in points:
        run = RunDir(inside(root, "runs", point.name))
        state = "finished" if run.ensemble.exists() else "failed" if point.name in failed else "waiting"
        result: dict[str, Any] = {"name": point.name, "settings": dict(point.settings), "state": state}
        if state == "finished":
            _, record = read_ensemble(run.root)
            nlls = [member["val_nll"] for member in record["members"] if member.get("val_nll") is not None]
            result |= {"val_nll": sum(nlls) / len(nlls) if nlls else None, "cost": record.get("cost") or {}}
            entries, _ = read_evaluations(run)
            if entries:
                result |= {
                    name: {metric: entries[-1][name].get(metric) for metric in METRICS}
                    for name in ("ensemble", "member_mean")
                }
        found.append(result)
    return found


def write_results(root: Path, points: Sequence[Point], failed: Sequence[str]) -> None:
    """Write `results.json` and `results.csv`."""
    results = collect_results(root, points, failed)
    atomic_write_json(inside(root, "results.json"), {"points": results})
    settings = list(dict.fromkeys(field for point in points for field in point.settings))
    columns = [f"{name}.{metric}" for name in ("ensemble", "member_mean") for metric in METRICS]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["point", *settings, "state", "val_nll", *columns, "train_s", "tokens", "base_passes"])
    for one in results:
        cost = one.get("cost", {})
        row = [one["name"], *(one["settings"].get(field) for field in settings), one["state"], one.get("val_nll")]
        row += [one.get(name, {}).get(metric) for name in ("ensemble", "member_mean") for metric in METRICS]
        writer.writerow([*row, *(cost.get(name) for name in ("train_s", "tokens", "base_passes"))])
    atomic_write_text(inside(root, "results.csv"), text.getvalue())
