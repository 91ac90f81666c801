"""The runs of a study, read from disk: what figures are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from lorchestra.core.metrics import all_metrics
from lorchestra.core.predictive import FloatArray, mixture_log_probs
from lorchestra.store.predictions import load_predictions
from lorchestra.store.run_dir import RunDir, read_ensemble, read_json
from lorchestra.types import Predictions


@dataclass(frozen=True)
class StudyRun:
    """One finished and evaluated point of a study; `settings` are those in which points differ."""

    name: str
    settings: Mapping[str, Any]
    run: RunDir

    @cached_property
    def entry(self) -> dict[str, Any]:
        """Its evaluation on the test rows, as in `metrics.json`."""
        found: list[dict[str, Any]] = read_json(self.run.metrics)["evaluations"]
        return next(entry for entry in found if entry["split"] == "test")

    @cached_property
    def cost(self) -> dict[str, Any]:
        """What its training cost."""
        return dict(read_json(self.run.metrics)["cost"])

    @cached_property
    def test(self) -> Predictions:
        """Its members' predictions on the test rows."""
        return self.predictions(f"{self.entry['task']}.test")

    def predictions(self, stem: str) -> Predictions:
        """Saved predictions by the name of their file."""
        return load_predictions(self.run.predictions / f"{stem}.safetensors")

    def baseline(self, name: str) -> Predictions | None:
        """Predictions of a baseline on the test rows, where there are any."""
        stem = f"{self.entry['task']}.test.{name}"
        return self.predictions(stem) if (self.run.predictions / f"{stem}.safetensors").exists() else None

    @cached_property
    def epochs(self) -> list[Predictions]:
        """Predictions on the test rows after each epoch."""
        paths = sorted(self.run.predictions.glob("*.test.epoch_*.safetensors"))
        return [load_predictions(path) for path in paths]

    def updates(self) -> list[list[tuple[FloatArray, FloatArray]]]:
        """For each member, A and B of every adapted map."""
        _, record = read_ensemble(self.run.root)
        found = []
        for member in record["members"]:
            if member["state"] == "failed":
                continue
            tensors = load_file(self.run.root / member["path"] / "adapter_model.safetensors")
            names = sorted(name for name in tensors if name.endswith("lora_A.weight"))
            pairs = [(tensors[name], tensors[name.replace("lora_A", "lora_B")]) for name in names]
            found.append([(A.astype(np.float64), B.astype(np.float64)) for A, B in pairs])
        return found


def ensemble_metrics(predictions: Predictions) -> dict[str, float]:
    """Metrics of the mixture of all members."""
    return all_metrics(mixture_log_probs(predictions.log_probs_MEC), predictions.labels)


def single_metrics(predictions: Predictions) -> dict[str, float]:
    """Metrics of one LoRA: the mean over the members of each one's."""
    every = [all_metrics(log_probs_EC, predictions.labels) for log_probs_EC in predictions.log_probs_MEC]
    return {name: float(np.mean([one[name] for one in every])) for name in every[0]}


def read_study(runs: Path, points: Sequence[tuple[str, Mapping[str, Any]]]) -> list[StudyRun]:
    """The finished points of a study, in order.

    Args:
        runs: the directory with their run directories.
        points: their names and settings.
    """
    return [StudyRun(name, settings, RunDir(runs / name)) for name, settings in points if (runs / name).exists()]
