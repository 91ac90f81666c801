"""Predictions on disk: the numbers in safetensors, the words beside them in JSON."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lorchestra.errors import CheckpointError
from lorchestra.store.atomic import atomic_path, atomic_write_json
from lorchestra.store.run_dir import read_json
from lorchestra.types import Predictions


def save_predictions(directory: Path, predictions: Predictions, name: str | None = None) -> Path:
    """Write `<name>.safetensors` and `<name>.json`, by default named `<task>.<split>`; returns the former's path."""
    stem = name or f"{predictions.task}.{predictions.split}"
    path = directory / f"{stem}.safetensors"
    arrays = {
        "log_probs": np.ascontiguousarray(predictions.log_probs_MEC),
        "labels": predictions.labels,
        "num_choices": predictions.num_choices,
    }
    with atomic_path(path) as temporary:
        save_file(arrays, temporary)
    words = {
        "task": predictions.task,
        "split": predictions.split,
        "ids": predictions.ids,
        "options": predictions.options,
        "texts": predictions.texts,
    }
    atomic_write_json(directory / f"{stem}.json", words, indent=None)
    return path


def load_predictions(path: Path) -> Predictions:
    """Read what `save_predictions` wrote; `path` is either of the two files.

    Raises:
        CheckpointError: a file is missing, damaged, or the two do not belong together.
    """
    words = read_json(path.with_suffix(".json"))
    arrays_path = path.with_suffix(".safetensors")
    try:
        arrays = load_file(arrays_path)
        return Predictions(
            log_probs_MEC=arrays["log_probs"],
            labels=arrays["labels"],
            ids=tuple(words["ids"]),
            options=tuple(tuple(options) for options in words["options"]),
            task=words["task"],
            split=words["split"],
            texts=tuple(words["texts"]),
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{arrays_path}: cannot be read ({error}); evaluate the run again") from error
