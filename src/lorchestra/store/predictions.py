"""Predictions on disk: the numbers in safetensors, the words beside them in JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lorchestra.errors import CheckpointError
from lorchestra.store.atomic import atomic_path, atomic_write_json
from lorchestra.store.run_dir import read_json, tensors_path
from lorchestra.store.safe_paths import inside
from lorchestra.store.schema import FILE_NAME, check_shape
from lorchestra.types import Predictions

_WORDS = {"task": FILE_NAME, "split": FILE_NAME, "ids": [str], "options": [[str]], "texts": [str]}
_ROUNDING = 1e-5
"""How far the probabilities of a row may sum up to something else than 1."""


def save_predictions(directory: Path, predictions: Predictions, name: str | None = None) -> Path:
    """Write `<name>.safetensors` and `<name>.json`, by default named `<task>.<split>`; returns the former's path.

    Raises:
        CheckpointError: the name can be none of a file, a link is there, or the disk is full.
    """
    stem = name or f"{predictions.task}.{predictions.split}"
    path = tensors_path(directory, stem)
    words_path = inside(directory, f"{stem}.json")
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
    atomic_write_json(words_path, words, indent=None)
    return path


def load_predictions(path: Path, *, answered: bool = False) -> Predictions:
    """Read what `save_predictions` wrote; `path` is either of the two files.

    Args:
        path: one of the two files.
        answered: whether every row must have an answer, as rows have that were evaluated.

    Raises:
        CheckpointError: a file is missing, damaged or a link, holds what no predictions are (numbers that are no
            log-probabilities, answers that are no choices), or the two do not belong together.
    """
    arrays_path = inside(path.parent, f"{path.stem}.safetensors")
    words_path = inside(path.parent, f"{path.stem}.json")
    words = read_json(words_path)
    check_shape(words, _WORDS, words_path)
    try:
        arrays = load_file(arrays_path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{arrays_path}: cannot be read ({error}); evaluate the run again") from error
    fault = _fault(arrays, words)
    if fault is None and answered and (arrays["labels"] < 0).any():
        fault = "rows have no answer, though they were evaluated"
    if fault is not None:
        raise CheckpointError(f"{arrays_path}: {fault}; the file was changed or damaged: evaluate the run again")
    return Predictions(
        log_probs_MEC=arrays["log_probs"],
        labels=arrays["labels"],
        ids=tuple(words["ids"]),
        options=tuple(tuple(options) for options in words["options"]),
        task=words["task"],
        split=words["split"],
        texts=tuple(words["texts"]),
    )


def _fault(arrays: dict[str, NDArray[Any]], words: dict[str, Any]) -> str | None:
    """What is wrong with saved predictions, as a sentence without its end; None where nothing is."""
    for name, kind, axes in (("log_probs", np.float64, 3), ("labels", np.int64, 1), ("num_choices", np.int64, 1)):
        if name not in arrays:
            return f"has no {name}"
        if arrays[name].dtype != kind or arrays[name].ndim != axes:
            return f"{name} is {arrays[name].dtype} {list(arrays[name].shape)}, not {np.dtype(kind)} of {axes} axes"
    log_probs_MEC, labels, num_choices = (arrays[name] for name in ("log_probs", "labels", "num_choices"))
    num_members, num_examples, width = log_probs_MEC.shape
    lengths = {"labels": len(labels), "num_choices": len(num_choices)}
    lengths |= {name: len(words[name]) for name in ("ids", "options")}
    if words["texts"]:
        lengths["texts"] = len(words["texts"])
    for name, length in lengths.items():
        if length != num_examples:
            return f"has {num_examples} rows, and {length} {name}"
    if 0 in (num_members, num_examples):
        return f"log_probs has shape {list(log_probs_MEC.shape)}, without a member or a row"
    here = np.array([len(options) for options in words["options"]])
    if not np.array_equal(here, num_choices):
        return "num_choices are not those of the rows' options"
    if here.min() < 1 or here.max() != width:
        return f"log_probs has {width} columns, and rows have {here.min()} to {here.max()} options"
    if ((labels < -1) | (labels >= here)).any():
        return "labels are not all among their rows' options"
    return _fault_of_numbers(log_probs_MEC, here)


def _fault_of_numbers(log_probs_MEC: NDArray[np.float64], num_choices: NDArray[np.int64]) -> str | None:
    own_EC = np.arange(log_probs_MEC.shape[2]) < num_choices[:, None]
    if np.isnan(log_probs_MEC).any() or (log_probs_MEC > _ROUNDING).any():
        return "log_probs holds NaN or numbers above 0"
    if not np.isneginf(log_probs_MEC[:, ~own_EC]).all():
        return "log_probs has probabilities in columns past a row's options"
    if (np.abs(np.exp(log_probs_MEC).sum(axis=-1) - 1) > _ROUNDING).any():
        return "log_probs are of probabilities that do not sum up to 1"
    return None
