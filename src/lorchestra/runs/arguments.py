"""Checks of what Python callers pass: a wrong type is an error that names the argument, at the call."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import get_args

from lorchestra.errors import ConfigError, did_you_mean
from lorchestra.training.callbacks import Callback
from lorchestra.types import Example, Task


def check_path(name: str, value: object) -> None:
    """Refuse what is not a path.

    Raises:
        ConfigError: names the argument and its value.
    """
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"{name} is of type {type(value).__name__}; pass a path")


def check_paths(name: str, values: object) -> None:
    """Refuse what is not a list of paths; a single path is not one.

    Raises:
        ConfigError: names the argument.
    """
    if isinstance(values, str | os.PathLike) or not isinstance(values, Sequence):
        raise ConfigError(f"{name} is of type {type(values).__name__}; pass a list of paths")
    for value in values:
        check_path(f"an entry of {name}", value)


def check_files(name: str, values: object, splits: Collection[str]) -> None:
    """Refuse what is not paths by split.

    Raises:
        ConfigError: names the argument, or a split that is unknown.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name} is of type {type(values).__name__}; pass a dict of paths by split")
    for split, path in values.items():
        if split not in splits:
            raise ConfigError(f"{name}: {split!r} is no split; {did_you_mean(str(split), splits)}")
        if path is not None:
            check_path(f"{name}[{split!r}]", path)


def check_distinct(name: str, values: object) -> None:
    """Refuse what is not a list of different entries.

    Raises:
        ConfigError: names the argument and its value.
    """
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ConfigError(f"{name}: {values!r} is not a list with entries")
    if len(set(values)) < len(values):
        raise ConfigError(f"{name}: {values!r} has an entry twice")


def check_choice(name: str, value: object, choices: object) -> None:
    """Refuse a value that the type `choices`, a Literal, does not have.

    Raises:
        ConfigError: names the argument, its value and the nearest known one.
    """
    known = [str(choice) for choice in get_args(choices)]
    if value not in known:
        raise ConfigError(f"{name}: {value!r} is unknown; {did_you_mean(str(value), known)}")


def check_confidence(name: str, value: object) -> None:
    """Refuse what is not a number in [0, 1].

    Raises:
        ConfigError: names the argument and its value.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1 or math.isnan(value):
        raise ConfigError(f"{name}: {value!r} is not a number in [0, 1]")


def check_exit_rule(name: str, value: object) -> None:
    """Refuse what is neither text nor a number; `ExitRule.parse` checks the rest.

    Raises:
        ConfigError: names the argument and its value.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(f"{name}: {value!r} is neither 'exact' nor a confidence in (0, 1]")


def check_callbacks(callbacks: object) -> None:
    """Refuse what is not a list of `Callback`s.

    Raises:
        ConfigError: names the argument and its value.
    """
    if not isinstance(callbacks, Sequence):
        raise ConfigError(f"callbacks is of type {type(callbacks).__name__}; pass a list of lorchestra.Callback")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise ConfigError(f"callbacks: {callback!r:.60} is not a lorchestra.Callback; make a subclass of it")


def check_task(name: str, task: object) -> None:
    """Refuse what is not a `Task` with examples to train on and to validate on.

    Raises:
        ConfigError: names the argument and what is missing.
    """
    if not isinstance(task, Task):
        raise ConfigError(f"{name} is of type {type(task).__name__}; pass a lorchestra.Task, as read_task returns it")
    for split in ("train", "val"):
        rows = task.splits.get(split, ())
        if not rows:
            raise ConfigError(f"{name}: has no {split} rows; pass a Task with the splits train and val")
        if not all(isinstance(row, Example) for row in rows):
            raise ConfigError(f"{name}: a {split} row is not a lorchestra.Example")
        # the run's record has the questions, and predictions ask them
        if not {row.asked for row in rows} <= set(task.questions or (None,)):
            raise ConfigError(
                f"{name}: a {split} row does not ask one of the typed questions in Task.questions; add it"
            )
    if len({question.name for question in task.questions}) < len(task.questions):
        raise ConfigError(f"{name}: two of the typed questions have the same name; rename one")
