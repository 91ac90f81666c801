"""Is an entry of metrics.json whole? What a page needs of it, looked for before anything is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_SCORES = ("accuracy", "nll", "ece", "signed_gap", "brier", "aurc", "mean_confidence")
_MAY_BE_NULL = {"nll"}
"""Infinite where an answer got probability zero, which JSON cannot hold."""


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
