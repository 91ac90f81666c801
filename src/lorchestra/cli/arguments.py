"""Arguments of a command from a dataclass, by tyro: the help comes from its docstrings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import tyro

T = TypeVar("T")


def parse(cls: type[T], arguments: Sequence[str], command: str, default: T | None = None) -> T:
    """Parse a command's arguments; exits with 2 and a text where they do not fit."""
    if default is None:
        return tyro.cli(cls, args=list(arguments), prog=f"lorchestra {command}")
    return tyro.cli(cls, args=list(arguments), prog=f"lorchestra {command}", default=default)
