"""`splits.json`: digest, size and ids of each split of the rows that a run or a comparison was made with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict, cast

from lorchestra.store.schema import COUNT, Each, Shape, check_shape, read_json

_SPLIT: Shape = {"digest": str, "num_examples": COUNT}


class SplitRecord(TypedDict):
    """A split's entry."""

    digest: str
    num_examples: int
    ids: list[str]


def read_splits(path: Path, *names: str) -> dict[str, SplitRecord]:
    """All splits; those of the given names are required.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    splits = read_json(path, Each(_SPLIT))
    check_shape(splits, dict.fromkeys(names, _SPLIT), path)
    return cast(dict[str, SplitRecord], splits)


def read_digests(path: Path, names: Iterable[str]) -> dict[str, str]:
    """The digests of some splits.

    Raises:
        CheckpointError: the file is missing or damaged, or lacks one of them.
    """
    names = tuple(names)
    splits = read_json(path, {name: {"digest": str} for name in names})
    return {name: splits[name]["digest"] for name in names}


def read_ids(path: Path) -> dict[str, list[str]]:
    """The ids of each split that has them.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    splits = read_json(path)
    return {
        name: split["ids"]
        for name, split in splits.items()
        if isinstance(split, dict) and isinstance(split.get("ids"), list)
    }
