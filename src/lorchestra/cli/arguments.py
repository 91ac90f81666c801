"""Arguments of a command from a dataclass, by tyro: the help comes from its docstrings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from lorchestra.config import read_recipe, refused_settings
from lorchestra.engine.config import RunConfig
from lorchestra.errors import ConfigError
from lorchestra.store.paths import typed_path

T = TypeVar("T")
R = TypeVar("R", bound=RunConfig)


def parse(cls: type[T], arguments: Sequence[str], command: str, default: T | None = None) -> T:
    """Parse a command's arguments; exits with 2 and a text where they do not fit."""
    for name, reason in refused_settings(cls).items():
        option = f"--{name}"
        if any(argument.split("=")[0].replace("-", "_") == option.replace("-", "_") for argument in arguments):
            raise ConfigError(f"{option.replace('_', '-')} is not offered: {reason}")
    typed = [_with_home(argument) for argument in arguments]
    if default is None:
        return tyro.cli(cls, args=typed, prog=f"lorchestra {command}")
    return tyro.cli(cls, args=typed, prog=f"lorchestra {command}", default=default)


def _with_home(argument: str) -> str:
    """An argument that is a path below `~` as the path it stands for; shells leave it in `--out=~/run`."""
    option, mark, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{option}{mark}{typed_path(value)}" if value == "~" or value.startswith("~/") else argument


def parse_with_recipe(
    cls: type[R], arguments: Sequence[str], command: str, required: Sequence[str] = ()
) -> tuple[R, RunConfig]:
    """Parse a command whose first argument may be a recipe; the options override it.

    Args:
        cls: the command's arguments: the settings of a run and some more.
        arguments: as typed.
        command: its name.
        required: fields of `cls` that have no default.

    Returns:
        The arguments, and the run's settings among them.
    """
    rest = list(arguments)
    recipe = rest.pop(0) if rest and not rest[0].startswith("-") else None
    defaults = RunConfig() if recipe is None else read_recipe(typed_path(recipe), RunConfig)
    names = [field.name for field in dataclasses.fields(RunConfig)]
    missing: dict[str, Any] = dict.fromkeys(required, tyro.MISSING)
    parsed = parse(cls, rest, command, default=cls(**{name: getattr(defaults, name) for name in names}, **missing))
    return parsed, RunConfig(**{name: getattr(parsed, name) for name in names})
