"""What the points of a sweep leave open is settled once for all of them: number formats, learning rate and epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lorchestra.errors import ConfigError, DataError
from lorchestra.runs.build import torch_threads
from lorchestra.runs.rows import read_rows
from lorchestra.runs.search import settle_once
from lorchestra.runs.sweep.number_formats import settle_dtypes
from lorchestra.runs.sweep.points import Point
from lorchestra.store.safe_paths import inside
from lorchestra.training.callbacks import Callback


def settle_points(root: Path, points: Sequence[Point], callback: Callback) -> list[Point]:
    """The points with their number formats, learning rates and numbers of epochs.

    Args:
        root: the sweep's directory, where results are kept.
        points: as given.
        callback: reports progress; when it asks to stop, `Interrupted` is raised.

    Raises:
        ConfigError, DataError: the base refuses the settings of all points that leave rate or epochs open.
        CheckpointError: a base does not exist, or a record is damaged.
        Interrupted: the callback asked to stop.
    """
    return _searched(root, settle_dtypes(root, points), callback)


def _searched(root: Path, points: Sequence[Point], callback: Callback) -> list[Point]:
    """The points with numbers for learning rate and epochs: what any of them leaves open is searched once.

    The search has the settings of the first such point that the base does not refuse.
    """
    waiting = [point.config for point in points if point.config.train.is_auto]
    if not waiting:
        return list(points)
    lr = "auto" if any(config.train.lr == "auto" for config in waiting) else waiting[0].train.lr
    epochs = "auto" if any(config.train.epochs == "auto" for config in waiting) else waiting[0].train.epochs
    errors: list[ConfigError | DataError] = []
    for config in waiting:
        config = replace(config, train=replace(config.train, lr=lr, epochs=epochs))
        try:
            with torch_threads(config.base.threads):
                rows = read_rows(config.data, config.train.seed)
                search = settle_once(config, rows, callback, inside(root, "search")).train
        except (ConfigError, DataError) as error:  # settings that only the base refuses, such as layers
            errors.append(error)
            continue
        trains = [point.config.train.filled(search.peak_lr, search.num_epochs) for point in points]
        return [
            replace(point, config=replace(point.config, train=train))
            for point, train in zip(points, trains, strict=True)
        ]
    raise errors[0]
