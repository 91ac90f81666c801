"""Arguments of a command from a dataclass, by tyro: the help comes from its docstrings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import tyro

from lorchestra.config import refused_settings
from lorchestra.errors import ConfigError

T = TypeVar("T")


def parse(cls: type[T], arguments: Sequence[str], command: str, default: T | None = None) -> T:
    """Parse a command's arguments; exits with 2 and a text where they do not fit."""
    for name, reason in refused_settings(cls).items():
        option = f"--{name}"
        if any(argument.split("=")[0].replace("-", "_") == option.replace("-", "_") for argument in arguments):
            raise ConfigError(f"{option.replace('_', '-')} is not offered: {reason}")
    if default is None:
        return tyro.cli(cls, args=list(arguments), prog=f"lorchestra {command}")
    return tyro.cli(cls, args=list(arguments), prog=f"lorchestra {command}", default=default)
