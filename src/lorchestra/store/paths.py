"""Paths as people type them."""

from __future__ import annotations

import os
from pathlib import Path


def typed_path(path: str | Path) -> Path:
    """A path with `~` (or `~name`) as the home directory it stands for; as it is where there is no such home."""
    # not Path.expanduser, which raises where the home is unknown
    return Path(os.path.expanduser(path))
