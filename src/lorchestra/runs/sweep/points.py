"""The points of a sweep: configurations that differ in a few settings, named after them."""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorchestra.config.mappings import from_mapping, parse_value, setting_aliases, to_mapping
from lorchestra.config.run import RunConfig, check_run
from lorchestra.errors import ConfigError

_LONGEST_NAME = 120
"""Letters; file systems end at 255 bytes."""


@dataclass(frozen=True)
class Point:
    """One configuration of a sweep; `settings` are those in which points differ, by dotted field."""

    name: str
    settings: Mapping[str, object]
    config: RunConfig


def parse_axis(text: str, option: str = "--grid") -> tuple[str, list[object]]:
    """`train.lr=1e-4,3e-4` as a field and its values; a value that is a list is written in brackets.

    Raises:
        ConfigError: no field or no values, or values that cannot be read.
    """
    field, equals, values = text.partition("=")
    if not (field.strip() and equals and values.strip()):
        raise ConfigError(f"{option} {text}: write a field and its values, as in {option} train.lr=1e-4")
    name = setting_aliases(RunConfig).get(field.strip(), field.strip())
    return name, parse_value(f"[{values}]", f"{option} {text}: the values")


def grid_points(base: RunConfig, axes: Sequence[tuple[str, Sequence[object]]]) -> list[Point]:
    """Every combination of the axes' values, the last axis varying fastest.

    Raises:
        ConfigError: an unknown field (the closest is suggested), a value of another type, a field or a value given
            twice, or an invalid combination.
    """
    for field, number in Counter(field for field, _ in axes).items():
        if number > 1:
            raise ConfigError(f"--grid {field}: given {number} times; give all its values at once, with commas")
    combinations = itertools.product(*(values for _, values in axes))
    return named_points(base, [dict(zip([f for f, _ in axes], chosen, strict=True)) for chosen in combinations])


def named_points(base: RunConfig, settings: Sequence[Mapping[str, object]], where: str = "--grid") -> list[Point]:
    """Points with the given settings, named after them.

    Args:
        base: the configuration that they have in common.
        settings: the dotted fields of each, with values.
        where: the source of the settings, for error messages.

    Raises:
        ConfigError: as `grid_points`.
    """
    ends = Counter(field.rpartition(".")[2] for field in {field for one in settings for field in one})
    points: dict[str, Point] = {}
    for given in settings:
        config = with_settings(base, given, where)
        converted = {field: functools.reduce(getattr, field.split("."), config) for field in given}
        short = {f if ends[f.rpartition(".")[2]] > 1 else f.rpartition(".")[2]: value for f, value in converted.items()}
        name = ",".join(f"{field}={_as_name(value)}" for field, value in short.items()) or "as-configured"
        if name in points:
            raise ConfigError(f"{where}: two points are named {name}; leave out values that are the same")
        if len(name) > _LONGEST_NAME:
            raise ConfigError(f"{where}: the name {name[:60]}... of a point is too long for a directory")
        try:
            check_run(config)
        except ConfigError as error:
            raise ConfigError(f"{where}, point {name}: {error}") from error
        points[name] = Point(name, converted, config)
    return list(points.values())


def with_settings(config: RunConfig, settings: Mapping[str, object], where: str = "--grid") -> RunConfig:
    """A configuration with some dotted fields replaced; `where` is their source, for error messages.

    Raises:
        ConfigError: an unknown field or a value of another type.
    """
    mapping = to_mapping(config)
    for field, value in settings.items():
        *groups, last = field.split(".")
        parent = mapping
        for group in groups:
            parent = parent.setdefault(group, {})
            if not isinstance(parent, dict):
                raise ConfigError(f"{where}: {field} is not a setting; {group} has no settings")
        parent[last] = value
    return from_mapping(RunConfig, mapping, where)


def _as_name(value: object) -> str:
    """A value as part of a file name."""
    if isinstance(value, list | tuple):
        return "+".join(map(_as_name, value))
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return re.sub(r"[^\w.+-]+", "-", text).strip(".") or "none"
