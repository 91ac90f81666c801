"""A directory of compared methods, read and checked: what `lorchestra compare` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorchestra.config import differences, from_mapping
from lorchestra.core.evaluation import ensemble_minus
from lorchestra.core.metrics import accuracy
from lorchestra.core.predictive import mixture_log_probs
from lorchestra.engine.config import RunConfig
from lorchestra.errors import CheckpointError, DataError
from lorchestra.report.html.source import Entry, ReportRun, same_rows
from lorchestra.report.table import Control, listed
from lorchestra.store.evaluations import check_entry
from lorchestra.store.inside import inside
from lorchestra.store.predictions import load_predictions
from lorchestra.store.run_dir import read_json, tensors_path
from lorchestra.store.schema import Each, Number, check_shape
from lorchestra.types import Predictions

ENSEMBLE = "lora_ensemble"

NAMES = {
    "zero_shot": "base, zero-shot",
    "few_shot": "base, few-shot",
    "one_lora": "one LoRA",
    ENSEMBLE: "LoRA ensemble",
    "mc_dropout": "MC dropout",
    "high_rank": "one LoRA of M times the rank",
    "long_training": "one LoRA trained M times as long",
    "soup": "soup, the members' weight average",
    "snapshot": "snapshots of one LoRA",
    "last_layer": "members that share all but the last layer",
    "swag": "SWAG",
    "laplace": "Laplace",
    "batch_ensemble": "BatchEnsemble",
}
"""Methods as people call them, in the order in which the page shows them; others come after them by name."""

_WRAPPERS = {"temperature": "temperature scaling", "contextual": "contextual calibration"}

CONTROLS = ("one_lora+temperature", "high_rank", "long_training")
"""What the verdict holds the ensemble against: one LoRA with calibration, and with as much compute or parameters."""

_FREE = ("base.threads", "data.dir", "data.train", "data.val", "data.test", "adapt.trunk_memory_gb")
_FREE_TRAIN = ("train.token_budget", "train.gradient_checkpointing", "train.checkpoint_every_s")
"""Settings that change no number, but by rounding; rows are known by their digests."""

_COST = ("fit_base_passes", "predict_base_passes", "tokens", "fit_s", "peak_bytes", "parameters")
_RESULT: dict[str, Any] = {
    "name": str,
    "summary": str,
    "cost": dict.fromkeys(_COST, Number()),
    "chosen": Each((Number(), None)),
}
_SPLITS = {"train": {"digest": str}}


@dataclass(frozen=True)
class MethodResult:
    """One finished method."""

    key: str
    """Its name in the registry."""
    name: str
    """Its name for people."""
    summary: str
    cost: Entry
    chosen: Entry
    entry: Entry
    predictions: Predictions
    notes: tuple[str, ...] = ()
    """What a reader must know of its fit."""


@dataclass(frozen=True)
class MethodComparison:
    """Finished methods on the same rows, by key; `left_out` has the reasons of those that could not do the task."""

    root: Path
    config: RunConfig
    train_digest: str
    results: dict[str, MethodResult]
    left_out: dict[str, str]

    @property
    def first(self) -> MethodResult:
        """Any of them: task, split and rows are the same in all."""
        return next(iter(self.results.values()))

    def controls(self, entry: Entry, predictions: Predictions) -> list[Control]:
        """The controls beside an ensemble's evaluation and predictions, with paired intervals."""
        found = {key: self.results[key] for key in CONTROLS if key in self.results}
        return paired(entry, predictions, list(found.values()))


def paired(entry: Entry, predictions: Predictions, results: Sequence[MethodResult]) -> list[Control]:
    """Methods with the intervals of an ensemble minus each, resampled as in the ensemble's evaluation."""
    settings = entry["intervals"]
    intervals = ensemble_minus(
        predictions,
        {result.key: result.predictions for result in results},
        resamples=settings.get("resamples", 0),
        seed=settings.get("seed", 0),
    )
    return [Control(result.key, result.name, result.entry["ensemble"], intervals[result.key]) for result in results]


def is_comparison(root: Path) -> bool:
    """Whether a directory is one of compared methods."""
    return inside(root, "compare.json").is_file()


def read_comparison(root: str | Path) -> MethodComparison:
    """Read the finished methods.

    Raises:
        CheckpointError: no such directory, nothing finished in it, or damaged files.
    """
    root = Path(root)
    if not is_comparison(root):
        raise CheckpointError(
            f"{root}: not a directory of compared methods (no compare.json); make one by: lorchestra compare --out DIR"
        )
    record_path, splits_path = inside(root, "compare.json"), inside(root, "splits.json")
    record = read_json(record_path)
    check_shape(record, {"resolved": dict}, record_path)
    splits = read_json(splits_path)
    check_shape(splits, _SPLITS, splits_path)
    names = [path.parent.name for path in inside(root, "methods").glob("[!.]*/result.json")]
    found = [_read_result(inside(root, "methods", name)) for name in names]
    if not found:
        raise CheckpointError(_nothing_finished(root))
    found.sort(key=lambda result: _order(result.key))
    for result in found[1:]:
        if not same_rows(result.predictions, found[0].predictions):
            raise CheckpointError(
                f"{root}: {result.key} was evaluated on other rows than {found[0].key}; remove its directory and"
                " compare again"
            )
    return MethodComparison(
        root=root,
        config=from_mapping(RunConfig, record["resolved"], str(record_path), saved=True),
        train_digest=splits["train"]["digest"],
        results={result.key: result for result in found},
        left_out=_left_out(root),
    )


def _left_out(root: Path) -> dict[str, str]:
    path = inside(root, "left_out.json")
    return {str(key): str(reason) for key, reason in read_json(path).items()} if path.exists() else {}


def _nothing_finished(root: Path) -> str:
    reasons = _left_out(root)
    if not reasons:
        return f"{root}: no method is finished in it; the same lorchestra compare command goes on"
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return f"{root}: no method is finished in it, all were left out ({told})"


def check_belongs(run: ReportRun, comparison: MethodComparison) -> None:
    """Refuse methods of another task, split or rows than a run's.

    Raises:
        DataError: names both and what differs.
    """
    theirs, mine = comparison.first.entry, run.entry
    for what in ("task", "split"):
        if theirs[what] != mine[what]:
            raise DataError(
                f"{comparison.root}: its methods are of the {what} {theirs[what]!r} and {run.run.root} of"
                f" {mine[what]!r}: numbers of different rows do not belong in one table; make a page for each"
            )
    if not same_rows(comparison.first.predictions, run.predictions):
        raise DataError(
            f"{comparison.root}: its methods were evaluated on other rows of {theirs['task']} {theirs['split']} than"
            f" {run.run.root}; compare and train with the same files and seed, or make a page for each"
        )


def foreign_settings(run: ReportRun, comparison: MethodComparison) -> list[str]:
    """Settings in which a run and the methods differ so that their budgets are not equal; none where they are."""
    free = {*_FREE, *_FREE_TRAIN}
    apart = [
        field
        for field in differences(run.config, comparison.config)
        if field not in free and not field.startswith("evaluate.")
    ]
    if run.run.splits.exists():
        splits = read_json(run.run.splits)
        check_shape(splits, _SPLITS, run.run.splits)
        if splits["train"]["digest"] != comparison.train_digest:
            apart.append("the training rows")
    return apart


def method_name(key: str) -> str:
    """A method's name for people, with its own settings and what is wrapped around it."""
    first, *wrappers = key.split("+")
    name = _with_settings(first, NAMES)
    return f"{name} with {listed([_with_settings(wrapper, _WRAPPERS) for wrapper in wrappers])}" if wrappers else name


def _with_settings(part: str, names: Mapping[str, str]) -> str:
    first, *settings = part.split(":")
    name = names.get(first, first)
    return f"{name} ({', '.join(settings)})" if settings else name


def method_of(key: str) -> str:
    """The method below wrappers, without its settings."""
    return key.split("+")[0].split(":")[0]


def _order(key: str) -> tuple[int, str]:
    known, first = list(NAMES), method_of(key)
    return (known.index(first) if first in known else len(known), key)


def _read_result(folder: Path) -> MethodResult:
    path = inside(folder, "result.json")
    result = read_json(path)
    check_shape(result, _RESULT, path)
    entry = result.get("entry")
    check_entry(entry, path, "entry", "remove the method's directory")
    assert isinstance(entry, dict)
    saved = tensors_path(inside(folder, "predictions"), f"{entry['task']}.{entry['split']}")
    predictions = load_predictions(saved, answered=True)
    found = accuracy(mixture_log_probs(predictions.log_probs_MEC), predictions.labels)
    if abs(found - entry["ensemble"]["accuracy"]) > 1e-9:
        raise CheckpointError(
            f"{path}: accuracy is {entry['ensemble']['accuracy']} here and {found} in the predictions; remove the"
            " method's directory and compare again"
        )
    key = result["name"]
    return MethodResult(
        key,
        method_name(key),
        result["summary"],
        result["cost"],
        result["chosen"],
        entry,
        predictions,
        tuple(map(str, result.get("notes") or ())),
    )
