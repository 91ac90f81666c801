"""Which points of a sweep train in one packed pass: those that share base, task and steps.

Everything else is set per member (`training.members`), so points with different ranks, learning rates, regularizers or
seeds are just more members of the same pass.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

from lorchestra.config.mappings import to_mapping
from lorchestra.config.run import EvaluateConfig, RegularizeConfig, RunConfig
from lorchestra.runs.rows import RunRows, read_rows
from lorchestra.runs.sweep.points import Point
from lorchestra.types import Json

MEMBER_SETTINGS: dict[str, frozenset[str]] = {
    "adapt": frozenset(
        {
            *("members", "r", "lora_alpha", "use_rslora", "dropout", "order"),
            *("init_lora_weights", "init_scale", "init_std_b", "same_init"),
        }
    ),
    "train": frozenset({"seed", "lr", "schedule", "warmup", "clip_norm", "patience", "calibration"}),
    "regularize": frozenset(field.name for field in dataclasses.fields(RegularizeConfig)),
    "evaluate": frozenset(field.name for field in dataclasses.fields(EvaluateConfig)),
}
"""Settings in which the points of one packed pass may differ."""


@dataclasses.dataclass(frozen=True)
class Pack:
    """Points that train together, on the same rows."""

    points: tuple[Point, ...]
    rows: RunRows

    @property
    def key(self) -> str:
        """A digest of its points and their settings."""
        points = [[point.name, to_mapping(point.config)] for point in self.points]
        return hashlib.sha256(json.dumps(points, sort_keys=True).encode()).hexdigest()[:16]

    def members_of(self, point: Point) -> range:
        """A point's members among those of the pass."""
        start = 0
        for other in self.points:
            if other is point:
                return range(start, start + point.config.adapt.members)
            start += other.config.adapt.members
        raise ValueError(f"{point.name} is not a point of this pass")


def make_packs(points: Sequence[Point], most_members: int) -> list[Pack]:
    """Points in as few packed passes as possible, of at most `most_members` members each.

    A point with more members than that has a separate pass. Passes that share the layers below the adapters are next to
    each other, so that these are computed once.

    Raises:
        ConfigError, DataError: a point's rows cannot be read.
    """
    read: dict[str, RunRows] = {}
    families: dict[str, dict[str, list[list[Point]]]] = {}
    rows_of: dict[str, RunRows] = {}
    for point in points:
        rows = _rows(point.config, read)
        settings, digests = _shared_settings(point.config), _digests(rows)
        key = json.dumps([settings, digests], sort_keys=True)
        rows_of.setdefault(key, rows)
        below = [settings["base"], point.config.adapt.layers, point.config.train.token_budget, digests]
        packs = families.setdefault(json.dumps(below, sort_keys=True), {}).setdefault(key, [[]])
        if packs[-1] and sum(p.config.adapt.members for p in [*packs[-1], point]) > most_members:
            packs.append([])
        packs[-1].append(point)
    groups = [group for family in families.values() for group in family.items()]
    return [Pack(tuple(pack), rows_of[key]) for key, packs in groups for pack in packs]


def _rows(config: RunConfig, read: dict[str, RunRows]) -> RunRows:
    """Rows are read once per data setting and seed: the seed decides which are held out."""
    key = json.dumps([to_mapping(config.data), config.train.seed], sort_keys=True)
    if key not in read:
        read[key] = read_rows(config.data, config.train.seed)
    return read[key]


def _digests(rows: RunRows) -> dict[str, str]:
    return {split: values["digest"] for split, values in rows.record().items()}


def _shared_settings(config: RunConfig) -> Json:
    settings = {
        group: {name: value for name, value in values.items() if name not in MEMBER_SETTINGS.get(group, ())}
        for group, values in to_mapping(config).items()
    }
    # members without a fold of the rows have fewer steps, the fewer folds there are
    return settings | {"folds": config.adapt.members if config.adapt.order == "folds" else 1}
