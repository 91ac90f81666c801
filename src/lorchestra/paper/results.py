"""Finished runs as the figures read them: settings, predictions, adapters and cost."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lorchestra.config.run import RunConfig
from lorchestra.errors import CheckpointError
from lorchestra.metrics.diversity import Update
from lorchestra.metrics.predictive import FloatArray, IntArray, mixture_log_probs
from lorchestra.metrics.scores import all_metrics
from lorchestra.models.peft_import import plain_tensors, read_peft_folder
from lorchestra.store.predictions import load_predictions
from lorchestra.store.run import Run
from lorchestra.store.schema import Number, check_shape
from lorchestra.types import Predictions

METRICS = ("accuracy", "nll", "ece")
"""What every figure compares."""

REGULARIZERS = {
    "regularize.weight_decay_b": "decay on B",
    "regularize.weight_decay_a": "decay on A",
    "regularize.weight_decay_ba": "decay on BA",
    "regularize.kl_beta": "KL to base",
    "regularize.label_smoothing": "label smoothing",
    "adapt.dropout": "dropout",
}
"""Settings that regularize, and what pictures call them; each has its strength as its value."""
_VARIANTS = {"regularize.kl_direction": "reverse", "regularize.kl_over": "vocabulary"}
"""Values that make another regularizer of one of the above, and are put before its name."""


@dataclass(frozen=True)
class FinishedRun:
    """One finished point of a figure; `settings` are those in which its points differ, by dotted field."""

    settings: Mapping[str, Any]
    config: RunConfig
    run: Run

    @cached_property
    def record(self) -> dict[str, Any]:
        """What `ensemble.json` holds."""
        return self.run.read_ensemble().to_dict()

    @cached_property
    def cost(self) -> dict[str, Any]:
        """What its training took."""
        shape = {"cost": dict.fromkeys(("tokens", "base_passes", "train_s", "tokens_per_s", "peak_bytes"), Number(0))}
        check_shape(self.record, shape, self.run.ensemble)
        return dict(self.record["cost"])

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self.record["task"])

    @cached_property
    def entry(self) -> dict[str, Any]:
        """Its evaluation on the test rows, as in `metrics.json`."""
        entries, _ = self.run.read_evaluations()
        for entry in entries:
            if entry["split"] == "test":
                return entry
        raise CheckpointError(
            f"{self.run.metrics}: has no evaluation of the test rows; remove the run and train it again"
        )

    @cached_property
    def test(self) -> Predictions:
        """Its members' predictions on the test rows."""
        return load_predictions(self._path("test"), answered=True)

    @cached_property
    def epochs(self) -> list[Predictions]:
        """Its members' predictions on the test rows after each epoch; empty where they were not kept."""
        paths = sorted(self.run.predictions.glob(f"{glob.escape(self.task)}.test.epoch_*.safetensors"))
        return [load_predictions(path) for path in paths]

    def baseline(self, name: str) -> Predictions | None:
        """A baseline's predictions on the test rows; None where there are none."""
        return self._predictions(f"test.{name}") if self._path(f"test.{name}").exists() else None

    def far(self, name: str) -> Predictions:
        """Its members' predictions on rows unlike the training rows."""
        return self._predictions(f"ood_{name}")

    def updates(self) -> list[Update]:
        """A `[R, I]` and B `[O, R]` of every adapted map, for each member that did not fail."""
        found: list[Update] = []
        for member in self.record["members"]:
            if member["state"] != "failed":
                tensors = plain_tensors(read_peft_folder(self.run.inside(member["path"])))
                names = sorted(name for name in tensors if name.endswith("lora_A.weight"))
                pairs = [(tensors[name], tensors[name.replace("lora_A", "lora_B")]) for name in names]
                found.append([(A.double().numpy(), B.double().numpy()) for A, B in pairs])
        return found

    def _path(self, split: str) -> Any:
        return self.run.prediction(self.task, split)

    def _predictions(self, split: str) -> Predictions:
        return load_predictions(self._path(split))


def regularizer(settings: Mapping[str, Any]) -> tuple[str, float]:
    """A point's regularizer and its strength; ("none", 0) where it has none, the largest strength of several."""
    strengths = {field: float(settings[field]) for field in REGULARIZERS if settings.get(field)}
    variant = "".join(f"{value} " for field, value in _VARIANTS.items() if settings.get(field) == value)
    names = [(variant if field == "regularize.kl_beta" else "") + REGULARIZERS[field] for field in strengths]
    return (" + ".join(names), max(strengths.values())) if names else ("none", 0.0)


def regularizer_label(settings: Mapping[str, Any]) -> str:
    """A point's regularizer as one text."""
    name, strength = regularizer(settings)
    return "no regularizer" if name == "none" else f"{name} {strength:g}"


def ensemble_metrics(predictions: Predictions) -> dict[str, float]:
    """`METRICS` of the members' mixture."""
    return metrics_of(mixture_log_probs(predictions.log_probs_MEC), predictions.labels)


def member_metrics(predictions: Predictions) -> list[dict[str, float]]:
    """`METRICS` of each member."""
    return [metrics_of(log_probs_EC, predictions.labels) for log_probs_EC in predictions.log_probs_MEC]


def mean_member(predictions: Predictions) -> dict[str, float]:
    """`METRICS` of one LoRA: the mean over members of each one's."""
    members = member_metrics(predictions)
    return {name: float(np.mean([one[name] for one in members])) for name in METRICS}


def metrics_of(log_probs_EC: FloatArray, labels_E: IntArray) -> dict[str, float]:
    """`METRICS` of one predictive distribution."""
    found = all_metrics(log_probs_EC, labels_E)
    return {name: found[name] for name in METRICS}


def both(predictions: Predictions) -> dict[str, float]:
    """`METRICS` as `one_*` (mean of the members) and `ensemble_*`."""
    one, ensemble = mean_member(predictions), ensemble_metrics(predictions)
    return {f"one_{name}": one[name] for name in METRICS} | {f"ensemble_{name}": ensemble[name] for name in METRICS}


def tasks_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows of a figure's data by their task, in order."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["task"], []).append(row)
    return found
