"""Finished runs as read by the figures: settings, predictions, adapters, cost and metrics."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lorchestra.config.run import RunConfig
from lorchestra.errors import CheckpointError
from lorchestra.metrics.diversity import Update
from lorchestra.metrics.predictive import FloatArray, IntArray, mixture_log_probs
from lorchestra.metrics.scores import all_metrics
from lorchestra.models.peft_import import plain_tensors, read_peft_folder
from lorchestra.paper.recipes import Settings
from lorchestra.store.evaluations import Entry
from lorchestra.store.predictions import load_predictions
from lorchestra.store.run import Run
from lorchestra.store.schema import Number, check_shape
from lorchestra.types import Json, Predictions

Row = Json
"""One row of a figure's data, by column."""
Rows = Sequence[Row]

METRICS = ("accuracy", "nll", "ece")
"""The metrics that the figures compare."""
ONE, ENSEMBLE = "one LoRA (mean of members)", "ensemble"
"""The two methods that most figures compare, as named in data and legends."""

REGULARIZERS = {
    "regularize.weight_decay_b": "decay on B",
    "regularize.weight_decay_a": "decay on A",
    "regularize.weight_decay_ba": "decay on BA",
    "regularize.kl_beta": "KL to base",
    "regularize.label_smoothing": "label smoothing",
    "adapt.dropout": "dropout",
}
"""Regularizing settings with their display names; the setting's value is the strength."""
_VARIANTS = {"regularize.kl_direction": "reverse", "regularize.kl_over": "vocabulary"}
"""Values that select a variant of the KL regularizer; they prefix its name."""


@dataclass(frozen=True)
class FinishedRun:
    """One finished point of a figure."""

    settings: Settings
    config: RunConfig
    run: Run

    @cached_property
    def record(self) -> Entry:
        """The content of `ensemble.json`."""
        return self.run.read_ensemble().to_dict()

    @cached_property
    def cost(self) -> Entry:
        """The cost of its training."""
        shape = {"cost": dict.fromkeys(("tokens", "base_passes", "train_s", "tokens_per_s", "peak_bytes"), Number(0))}
        check_shape(self.record, shape, self.run.ensemble)
        return dict(self.record["cost"])

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self.record["task"])

    @cached_property
    def entry(self) -> Entry:
        """Its evaluation on the test rows, as in `metrics.json`."""
        entries, _ = self.run.read_evaluations()
        for entry in entries:
            if entry["split"] == "test":
                return entry
        raise CheckpointError(f"{self.run.metrics}: no evaluation of the test rows; delete the run and train it again")

    @cached_property
    def test(self) -> Predictions:
        """Its members' predictions on the test rows."""
        return load_predictions(self._path("test"), answered=True)

    @cached_property
    def epochs(self) -> list[Predictions]:
        """Its members' predictions on the test rows after each epoch; empty if they were not saved."""
        paths = sorted(self.run.predictions.glob(f"{glob.escape(self.task)}.test.epoch_*.safetensors"))
        return [load_predictions(path) for path in paths]

    def baseline(self, name: str) -> Predictions | None:
        """A baseline's predictions on the test rows; None if the run has none."""
        path = self._path(f"test.{name}")
        return load_predictions(path) if path.exists() else None

    def ood(self, name: str) -> Predictions:
        """Its members' predictions on an OOD set."""
        return load_predictions(self._path(f"ood_{name}"))

    def updates(self) -> list[Update]:
        """A `[R, I]` and B `[O, R]` of every adapted map, for each member that did not fail."""
        updates: list[Update] = []
        for member in self.record["members"]:
            if member["state"] != "failed":
                tensors = plain_tensors(read_peft_folder(self.run.inside(member["path"])))
                names = sorted(name for name in tensors if name.endswith("lora_A.weight"))
                pairs = [(tensors[name], tensors[name.replace("lora_A", "lora_B")]) for name in names]
                updates.append([(A.double().numpy(), B.double().numpy()) for A, B in pairs])
        return updates

    def _path(self, split: str) -> Path:
        return self.run.prediction(self.task, split)


def regularizer(settings: Settings) -> tuple[str, float]:
    """A point's regularizer and strength: ("none", 0) without one, the largest strength of several."""
    strengths = {field: float(settings[field]) for field in REGULARIZERS if settings.get(field)}
    variant = "".join(f"{value} " for field, value in _VARIANTS.items() if settings.get(field) == value)
    names = [(variant if field == "regularize.kl_beta" else "") + REGULARIZERS[field] for field in strengths]
    return (" + ".join(names), max(strengths.values())) if names else ("none", 0.0)


def regularizer_label(settings: Settings) -> str:
    """A point's regularizer and strength as text."""
    name, strength = regularizer(settings)
    return "no regularizer" if name == "none" else f"{name} {strength:g}"


def ensemble_metrics(predictions: Predictions) -> dict[str, float]:
    """`METRICS` of the ensemble's mixture."""
    return metrics_of(mixture_log_probs(predictions.log_probs_MEC), predictions.labels)


def member_metrics(predictions: Predictions) -> list[dict[str, float]]:
    """`METRICS` of each member."""
    return [metrics_of(log_probs_EC, predictions.labels) for log_probs_EC in predictions.log_probs_MEC]


def mean_member(predictions: Predictions) -> dict[str, float]:
    """`METRICS` of one LoRA, averaged over members."""
    members = member_metrics(predictions)
    return {name: float(np.mean([member[name] for member in members])) for name in METRICS}


def metrics_of(log_probs_EC: FloatArray, labels_E: IntArray) -> dict[str, float]:
    """`METRICS` of one predictive distribution."""
    metrics = all_metrics(log_probs_EC, labels_E)
    return {name: metrics[name] for name in METRICS}


def both(predictions: Predictions) -> dict[str, float]:
    """`METRICS` as `one_*` (mean of the members) and `ensemble_*`."""
    one, ensemble = mean_member(predictions), ensemble_metrics(predictions)
    return {f"one_{name}": one[name] for name in METRICS} | {f"ensemble_{name}": ensemble[name] for name in METRICS}


def by_task(rows: Rows) -> dict[str, Rows]:
    """A figure's data by task, in order."""
    return {task: [row for row in rows if row["task"] == task] for task in unique(rows, "task")}


def unique(rows: Rows, column: str) -> list[Any]:
    """The different values of a column, in order of appearance."""
    return list(dict.fromkeys(row[column] for row in rows))
