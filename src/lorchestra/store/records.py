"""The shapes of the records that a run directory holds, and reading those that several commands read.

What is listed here is what is read again; other fields are for people. See `schema` for how a shape is written.

The evaluations in `metrics.json`: whether an entry is whole, looked for before anything is drawn or told of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorchestra.errors import CheckpointError
from lorchestra.store.run_dir import COST, RunDir, read_json
from lorchestra.store.safe_paths import read_plain
from lorchestra.store.schema import COUNT, FILE_NAME, NUMBER_OR_NULL, Each, Number, Pair, check_shape

_SIDE = {"digest": str, "num_examples": COUNT}
_SCALAR = (str, float, bool, None)
_ENVIRONMENT = Each((*_SCALAR, Each(_SCALAR)))
_BY_MEMBER = [NUMBER_OR_NULL]
_EVENTS: dict[str, Any] = {
    "step": {"step": COUNT, "epoch": COUNT, "loss": _BY_MEMBER},
    "evaluation": {"step": COUNT, "val_nll": _BY_MEMBER, "val_accuracy": _BY_MEMBER},
    "member_failed": {"member": COUNT},
}


def read_splits(run: RunDir, *names: str) -> dict[str, Any]:
    """Digest and number of rows of each split; those of these names must be there.

    Raises:
        CheckpointError: `splits.json` is missing or damaged.
    """
    splits = read_json(run.splits)
    check_shape(splits, Each(_SIDE), run.splits)
    check_shape(splits, dict.fromkeys(names, _SIDE), run.splits)
    return splits


def read_environment(run: RunDir) -> dict[str, Any]:
    """Versions and machine of a run; empty where they were not kept.

    Raises:
        CheckpointError: `environment.json` is damaged.
    """
    if not run.environment.exists():
        return {}
    found = read_json(run.environment)
    check_shape(found, _ENVIRONMENT, run.environment)
    return found


def read_events(path: Path, num_members: int | None = None) -> tuple[dict[str, Any], ...]:
    """The lines of `events.jsonl`; none where the file is missing.

    Args:
        path: the file.
        num_members: what lists over members must have, where it is known.

    Raises:
        CheckpointError: a line is no JSON object, or not the event that it names.
    """
    if not path.exists():
        return ()
    try:
        lines = read_plain(path).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); mend or remove the file") from error
    return tuple(_event(path, number, line, num_members) for number, line in enumerate(lines, start=1))


def _event(path: Path, number: int, line: str, num_members: int | None) -> dict[str, Any]:
    where = path.with_name(f"{path.name}:{number}")
    try:
        event = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: no JSON ({error}); mend or remove the file") from error
    if not isinstance(event, dict):
        raise CheckpointError(f"{where}: a {type(event).__name__}, no JSON object; mend or remove the file")
    name = event.get("event")
    shape = _EVENTS.get(name) if isinstance(name, str) else None
    check_shape(event, {"event": str} | (shape or {}), where)
    for field, value in event.items():
        if shape and field in shape and isinstance(value, list) and num_members not in (None, len(value)):
            raise CheckpointError(
                f"{where}: {field} has {len(value)} values for {num_members} members; mend or remove the file"
            )
    return event


Entry = dict[str, Any]

_SCORES = ("accuracy", "nll", "ece", "signed_gap", "brier", "aurc", "mean_confidence")
_MAY_BE_NULL = {"nll"}
"""Infinite where an answer got probability zero, which JSON cannot hold."""

_METRICS = (
    *_SCORES,
    *("macro_f1", "ece_width_10", "ece_width_15", "ece_width_20", "ece_mass_10", "ece_mass_15", "ece_mass_20"),
    *("num_zero_probability", "validation_nll"),
)
_BY_METRIC = (Each(NUMBER_OR_NULL), None)
_ENDS = Pair(NUMBER_OR_NULL)
_REFERENCE = {"mean": Number(), "interval": (_ENDS, None)}
"""What a metric would be of calibrated confidences."""
_INTERVALS = (Each((_ENDS, _REFERENCE, None)), None)
_METHOD: dict[str, Any] = {f"{name}?": NUMBER_OR_NULL for name in _METRICS} | {
    "index?": (COUNT, None),
    "T?": (Number(0), None),
    "num_rows?": COUNT,
    "reason?": (str, None),
    "notes?": [str],
    "std?": _BY_METRIC,
    "intervals?": _INTERVALS,
    "ensemble_minus?": _INTERVALS,
}
_SIDES = {"in_dist": NUMBER_OR_NULL, "ood": NUMBER_OR_NULL}
_FAR = {
    "num_examples": {"in_dist": COUNT, "ood": COUNT},
    "mean_confidence": _SIDES,
    "auroc": Each(NUMBER_OR_NULL),
    "member_mean": {"auroc": Each(NUMBER_OR_NULL), "std": Each(NUMBER_OR_NULL), "mean_confidence": _SIDES},
}
_ENTRY: dict[str, Any] = {
    "task": FILE_NAME,
    "split": FILE_NAME,
    "num_examples": Number(1, 2**53, whole=True),
    "num_members": Number(1, 2**53, whole=True),
    "ensemble": _METHOD,
    "member_mean": _METHOD,
    "best_member": _METHOD,
    "members": [_METHOD],
    "uncertainty": Each(NUMBER_OR_NULL),
    "majority?": (_METHOD, None),
    "mean_of_logits?": (_METHOD, None),
    "temperature?": (_METHOD | {"best_member?": (_METHOD, None)}, None),
    "baselines?": (Each(_METHOD, names=True), None),
    "left_out?": (Each(str), None),
    "notes?": [str],
    "seen?": {"train": COUNT, "val": COUNT},
    "ood?": (Each(_FAR, names=True), None),
    "intervals": {
        "level": Number(0, 1),
        "resamples?": Number(0, 1_000_000, whole=True),
        "seed?": int,
        "ensemble?": _INTERVALS,
        "member_mean?": _INTERVALS,
        "best_member?": _INTERVALS,
        "ensemble_minus_member_mean?": _INTERVALS,
        "ensemble_minus_best_member?": _INTERVALS,
    },
}
_NAMED = {"task": FILE_NAME, "split": FILE_NAME}


def read_evaluations(run: RunDir) -> tuple[list[Entry], dict[str, Any]]:
    """The evaluations of a run, the latest last, and what its training took; both empty where it was never evaluated.

    Raises:
        CheckpointError: `metrics.json` is damaged.
    """
    if not run.metrics.exists():
        return [], {}
    metrics = read_json(run.metrics)
    check_shape(metrics, {"evaluations": list, "cost?": COST}, run.metrics)
    for number, entry in enumerate(metrics["evaluations"]):
        hint = f"remove it and evaluate the run: lorchestra evaluate {run.root}"
        check_entry(entry, run.metrics, f"evaluations[{number}]", hint)
    return list(metrics["evaluations"]), metrics.get("cost") or {}


def read_names(run: RunDir) -> list[Entry]:
    """The evaluations of a run of which nothing but the task's and the split's name is read; empty without any.

    Raises:
        CheckpointError: `metrics.json` is damaged.
    """
    if not run.metrics.exists():
        return []
    metrics = read_json(run.metrics)
    check_shape(metrics, {"evaluations": [_NAMED]}, run.metrics)
    return list(metrics["evaluations"])


def check_entry(entry: Any, where: Path, field: str, hint: str) -> None:
    """Refuse an evaluation that is not whole.

    Raises:
        CheckpointError: names the file, the field and what is wrong with it.
    """
    if (wrong := fault(entry)) is not None:
        raise CheckpointError(f"{where}: {field} {wrong}; the file was changed or damaged; {hint}")
    check_shape(entry, _ENTRY, where, field)


def fault(entry: Any) -> str | None:
    """What is wrong with an entry, as the end of a sentence about it; None where it is whole."""
    if not isinstance(entry, dict):
        return f"is a {type(entry).__name__}, not an object"
    for key, kind in {"task": str, "split": str, "num_examples": int, "num_members": int, "members": list}.items():
        if not isinstance(entry.get(key), kind):
            return f"has no {key} that could be read"
    if len(entry["members"]) != entry["num_members"]:
        return f"has {len(entry['members'])} members, not num_members = {entry['num_members']}"
    for path, value, kind in _numbers(entry):
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"has no {path} that could be read"
    return None


def _numbers(entry: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Path, value and type of every number that the page shows for sure."""
    number = int | float
    for path, method in _methods(entry):
        for key in _SCORES:
            there = isinstance(method, dict) and key in method
            yield f"{path}.{key}", _at(method, key), number | None if there and key in _MAY_BE_NULL else number
    yield "intervals.level", _at(entry, "intervals", "level"), number
    for key in ("total_entropy", "expected_entropy", "mutual_information", "disagreement"):
        yield f"uncertainty.{key}", _at(entry, "uncertainty", key), number
    yield "best_member", entry.get("best_member"), dict
    yield "left_out", entry.get("left_out") or {}, dict
    sets = entry.get("ood") or {}
    yield "ood", sets, dict
    for name in sets:
        yield f"ood.{name}.num_examples.ood", _at(sets, name, "num_examples", "ood"), number
        for side in ("in_dist", "ood"):
            for where in ((name,), (name, "member_mean")):
                keys = (*where, "mean_confidence", side)
                yield f"ood.{'.'.join(keys)}", _at(sets, *keys), number
        for keys in ((name, "auroc"), (name, "member_mean", "auroc"), (name, "member_mean", "std")):
            yield f"ood.{'.'.join(keys)}", _at(sets, *keys), dict


def _methods(entry: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The methods that have to be there, and those of the others that have metrics."""
    yield "ensemble", entry.get("ensemble")
    yield "member_mean", entry.get("member_mean")
    for index, member in enumerate(entry["members"]):
        yield f"members[{index}]", member
    optional = {name: entry.get(name) for name in ("best_member", "majority", "mean_of_logits", "temperature")}
    optional["temperature.best_member"] = _at(entry, "temperature", "best_member")
    baselines = entry.get("baselines")
    optional |= (
        {f"baselines.{name}": method for name, method in baselines.items()} if isinstance(baselines, dict) else {}
    )
    for path, method in optional.items():
        if isinstance(method, dict) and "accuracy" in method:
            yield path, method


def _at(value: Any, *keys: str) -> Any:
    """The value under keys within keys; None where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
