"""Evaluations as `metrics.json` has them: refused before anything is computed or drawn from an incomplete one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import TypeAlias

from lorchestra.errors import CheckpointError
from lorchestra.metrics.table import BY_KEY, METRICS
from lorchestra.store.calibration_record import CALIBRATION, read_calibration
from lorchestra.store.schema import COUNT, FILE_NAME, NUMBER_OR_NULL, Each, Number, Pair, Shape, check_shape
from lorchestra.types import Json

Entry = Json
_Type: TypeAlias = type | UnionType

_VALUES = (*BY_KEY, "validation_nll")
"""The numbers that an entry may have of one predictor."""
_SCORES = tuple(metric.key for metric in METRICS if metric.detail != "optional" and not metric.later)
_MAY_BE_NULL = {metric.key for metric in METRICS if metric.infinite}
"""Infinite if an answer had probability zero, which JSON cannot hold."""

_BY_METRIC: Shape = (Each(NUMBER_OR_NULL), None)
_ENDS = Pair(NUMBER_OR_NULL)
_REFERENCE: Shape = {"mean": Number(), "interval": (_ENDS, None)}
"""The value that the metric would have with calibrated confidences."""
_INTERVALS: Shape = (Each((_ENDS, _REFERENCE, None)), None)
_METHOD: dict[str, Shape] = {
    **{f"{name}?": NUMBER_OR_NULL for name in _VALUES},
    "index?": (COUNT, None),
    "T?": (Number(0), None),
    "num_rows?": COUNT,
    "reason?": (str, None),
    "notes?": [str],
    "std?": _BY_METRIC,
    "intervals?": _INTERVALS,
    "ensemble_minus?": _INTERVALS,
}
_SIDES: Shape = {"in_dist": NUMBER_OR_NULL, "ood": NUMBER_OR_NULL}
_OOD: Shape = {
    "num_examples": {"in_dist": COUNT, "ood": COUNT},
    "mean_confidence": _SIDES,
    "auroc": Each(NUMBER_OR_NULL),
    "member_mean": {"auroc": Each(NUMBER_OR_NULL), "std": Each(NUMBER_OR_NULL), "mean_confidence": _SIDES},
}
_CLASSES: Shape = {
    "labels": [str],
    "train_rows": [COUNT],
    "rows": [COUNT],
    "recall": Each([NUMBER_OR_NULL], names=True),
    "weighted": bool,
}
_ENTRY: dict[str, Shape] = {
    "task": FILE_NAME,
    "split": FILE_NAME,
    "num_examples": Number(1, 2**53, whole=True),
    "num_members": Number(1, 2**53, whole=True),
    "ensemble": _METHOD,
    "ensemble_raw?": (_METHOD, None),
    "calibration?": (CALIBRATION, None),
    "member_mean": _METHOD,
    "best_member": _METHOD,
    "members": [_METHOD],
    "uncertainty": Each(NUMBER_OR_NULL),
    "member_mean_scaled?": (_METHOD, None),
    "majority?": (_METHOD, None),
    "mean_of_logits?": (_METHOD, None),
    "temperature?": (_METHOD | {"best_member?": (_METHOD, None)}, None),
    "baselines?": (Each(_METHOD, names=True), None),
    "left_out?": (Each(str), None),
    "seconds?": (Each(Number(0)), None),
    "classes?": (_CLASSES, None),
    "questions?": (Each(dict), None),
    "notes?": [str],
    "seen?": {"train": COUNT, "val": COUNT},
    "ood?": (Each(_OOD, names=True), None),
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
_QUESTION: Shape = {"type": {"choice", "predicate", "score"}, "ordinal?": (Each(Each(NUMBER_OR_NULL)), None)}
"""The shape of a typed question's entry, in addition to that of an evaluation."""
_OPTIONAL_METHODS = ("ensemble_raw", "member_mean_scaled", "best_member", "majority", "mean_of_logits", "temperature")
ENTRY_NAME: Shape = {"task": FILE_NAME, "split": FILE_NAME}
"""The shape of what names an entry."""


def check_entry(entry: object, where: Path, field: str, hint: str) -> None:
    """Refuse an incomplete evaluation.

    Raises:
        CheckpointError: names the file, the field and what is wrong with it.
    """
    if (fault := _fault(entry)) is not None:
        raise CheckpointError(f"{where}: {field} {fault}; the file was changed or damaged; {hint}")
    check_shape(entry, _ENTRY, where, field)
    assert isinstance(entry, dict)
    if entry.get("calibration") is not None:
        read_calibration(entry["calibration"], where, f"{field}.calibration")
    for name, question in (entry.get("questions") or {}).items():
        _check_question(question, where, f"{field}.questions.{name!r}", hint)


def _check_question(values: object, where: Path, field: str, hint: str) -> None:
    """Refuse an incomplete evaluation of a typed question."""
    check_shape(values, _QUESTION, where, field)
    check_entry(values, where, field, hint)


def _fault(entry: object) -> str | None:
    """What is wrong with an entry, as the end of a sentence about it; None if it is complete."""
    if not isinstance(entry, dict):
        return f"is a {type(entry).__name__}, not an object"
    kinds: dict[str, _Type] = {"task": str, "split": str, "num_examples": int, "num_members": int, "members": list}
    for key, kind in kinds.items():
        if not isinstance(entry.get(key), kind):
            return f"has no {key} that can be read"
    if len(entry["members"]) != entry["num_members"]:
        return f"has {len(entry['members'])} members, not num_members = {entry['num_members']}"
    for path, value, kind in _required(entry):
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"has no {path} that can be read"
    return None


def _required(entry: Entry) -> Iterator[tuple[str, object, _Type]]:
    """Path, value and type of every number that a report always shows."""
    number: _Type = int | float
    for path, method in _methods(entry):
        for key in _SCORES:
            is_present = isinstance(method, dict) and key in method
            yield f"{path}.{key}", _at(method, key), number | None if is_present and key in _MAY_BE_NULL else number
    yield "intervals.level", _at(entry, "intervals", "level"), number
    for key in ("total_entropy", "expected_entropy", "mutual_information", "disagreement"):
        yield f"uncertainty.{key}", _at(entry, "uncertainty", key), number
    yield "best_member", entry.get("best_member"), dict
    yield "left_out", entry.get("left_out") or {}, dict
    ood = entry.get("ood") or {}
    yield "ood", ood, dict
    for name in ood:
        yield f"ood.{name}.num_examples.ood", _at(ood, name, "num_examples", "ood"), number
        for side in ("in_dist", "ood"):
            for where in ((name,), (name, "member_mean")):
                keys = (*where, "mean_confidence", side)
                yield f"ood.{'.'.join(keys)}", _at(ood, *keys), number
        for keys in ((name, "auroc"), (name, "member_mean", "auroc"), (name, "member_mean", "std")):
            yield f"ood.{'.'.join(keys)}", _at(ood, *keys), dict


def _methods(entry: Entry) -> Iterator[tuple[str, object]]:
    """The required methods, and the optional ones that have metrics."""
    yield "ensemble", entry.get("ensemble")
    yield "member_mean", entry.get("member_mean")
    for index, member in enumerate(entry["members"]):
        yield f"members[{index}]", member
    optional = {name: entry.get(name) for name in _OPTIONAL_METHODS}
    optional["temperature.best_member"] = _at(entry, "temperature", "best_member")
    baselines = entry.get("baselines")
    optional |= (
        {f"baselines.{name}": method for name, method in baselines.items()} if isinstance(baselines, dict) else {}
    )
    for path, method in optional.items():
        if isinstance(method, dict) and "accuracy" in method:
            yield path, method


def _at(value: object, *keys: str) -> object:
    """The value under nested keys; None if there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
