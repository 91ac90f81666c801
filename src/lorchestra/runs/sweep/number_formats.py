"""The number formats of a sweep's bases: decided once, kept in `number_formats.json`, the same for all its points.

Points that were trained in different formats could not be compared, and a pass that is resumed on another processor
keeps the format that it was started in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from lorchestra.config.mappings import to_mapping
from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.models.number_format import with_dtype
from lorchestra.runs.build import settle_dtype, torch_threads
from lorchestra.runs.sweep.points import Point
from lorchestra.store.atomic import atomic_write_json
from lorchestra.store.safe_paths import inside
from lorchestra.store.schema import Shape, read_json
from lorchestra.types import Json

_RECORD: Shape = {"bases": [{"base": dict, "dtype": str}]}
_FORMATS = ("float32", "bfloat16")
_WORK = ("runs", "passes", "search")


def settle_dtypes(root: Path, points: Sequence[Point]) -> list[Point]:
    """The points with `base.dtype` resolved, per base.

    A sweep that has work from before formats were measured has no record: its points keep "auto" (see `settle_dtype`).

    Args:
        root: the sweep's directory.
        points: as given.

    Raises:
        CheckpointError: a base does not exist, or the record is damaged.
    """
    path = inside(root, "number_formats.json")
    if not path.exists() and any(inside(root, name).exists() for name in _WORK):
        return list(points)
    entries: list[Json] = read_json(path, _RECORD)["bases"] if path.exists() else []
    for entry in entries:
        if entry["dtype"] not in _FORMATS:
            raise CheckpointError(f"{path}: dtype is {entry['dtype']!r}, not {' or '.join(_FORMATS)}")
    num_known = len(entries)
    settled = [_settled(point, entries) for point in points]
    if len(entries) > num_known or not path.exists():
        atomic_write_json(path, {"bases": entries})
    return settled


def _settled(point: Point, entries: list[Json]) -> Point:
    """A point with its base's number format, which is added to the entries if it is new."""
    config = point.config
    if config.base.dtype != "auto":
        return point
    base = to_mapping(config.base)
    known = next((entry["dtype"] for entry in entries if entry["base"] == base), None)
    if known is None:
        try:
            with torch_threads(config.base.threads):
                known = settle_dtype(config)[0].base.dtype
        except ConfigError:  # what the base's settings refuse is reported by the point's pass
            return point
        entries.append({"base": base, "dtype": known})
    return dataclasses.replace(point, config=dataclasses.replace(config, base=with_dtype(config.base, known)))
