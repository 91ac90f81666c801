"""Saved predictions: the numbers in a safetensors file, the texts in a JSON file of the same name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lorchestra.errors import CheckpointError
from lorchestra.store.atomic import atomic_path, atomic_write_json
from lorchestra.store.safe_paths import inside, name_fault
from lorchestra.store.schema import FILE_NAME, Shape, read_json
from lorchestra.types import Json, Predictions

_TEXTS: Shape = {
    "task": FILE_NAME,
    "split": FILE_NAME,
    "ids": [str],
    "options": [[str]],
    "texts": [str],
    "questions?": [str],
}
_TOLERANCE = 1e-5
"""Largest difference from 1 of the sum of a row's probabilities."""
_LONGEST_STEM = 220
"""Bytes of a file's name without its suffix: file systems end at 255, and the temporary name is longer."""


def tensors_path(directory: Path, stem: str) -> Path:
    """The tensor file of predictions named `stem`.

    Raises:
        CheckpointError: the stem, which is made of the names of task and split, cannot be part of a file name.
    """
    fault = name_fault(stem, _LONGEST_STEM)
    if fault is not None:
        raise CheckpointError(
            f"{directory}: predictions named {stem[:300]!r} cannot be saved, since the name {fault}; give the task or"
            " the file of the rows another name"
        )
    return inside(directory, f"{stem}.safetensors")


def save_predictions(directory: Path, predictions: Predictions, name: str | None = None) -> Path:
    """Write `<name>.safetensors` and `<name>.json`, by default named `<task>.<split>`; returns the former's path.

    Raises:
        CheckpointError: the name cannot be a file name, a link has that name, or the disk is full.
    """
    stem = name or f"{predictions.task}.{predictions.split}"
    path = tensors_path(directory, stem)
    texts_path = inside(directory, f"{stem}.json")
    arrays = {
        "log_probs": np.ascontiguousarray(predictions.log_probs_MEC),
        "labels": predictions.labels,
        "num_choices": predictions.num_choices,
    }
    if predictions.predicted_information is not None:
        arrays["predicted_information"] = predictions.predicted_information
    with atomic_path(path) as temporary:
        save_file(arrays, temporary)
    texts: Json = {
        "task": predictions.task,
        "split": predictions.split,
        "ids": predictions.ids,
        "options": predictions.options,
        "texts": predictions.texts,
    }
    if predictions.questions:
        texts["questions"] = predictions.questions
    atomic_write_json(texts_path, texts, indent=None)
    return path


def load_predictions(path: Path, *, answered: bool = False) -> Predictions:
    """Read what `save_predictions` wrote; `path` is either of the two files.

    Args:
        path: one of the two files.
        answered: whether every row must have an answer, as evaluated rows have.

    Raises:
        CheckpointError: a file is missing, damaged or a link, holds invalid predictions (numbers that are not
            log-probabilities, answers that are not choices), or the two files do not match.
    """
    arrays_path = inside(path.parent, f"{path.stem}.safetensors")
    texts = read_json(inside(path.parent, f"{path.stem}.json"), _TEXTS)
    try:
        arrays = load_file(arrays_path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{arrays_path}: cannot be read ({error}); evaluate the run again") from error
    fault = _fault(arrays, texts)
    if fault is None and answered and (arrays["labels"] < 0).any():
        fault = "rows have no answer, though they were evaluated"
    if fault is not None:
        raise CheckpointError(f"{arrays_path}: {fault}; the file was changed or damaged: evaluate the run again")
    return Predictions(
        log_probs_MEC=arrays["log_probs"],
        labels=arrays["labels"],
        ids=tuple(texts["ids"]),
        options=tuple(tuple(options) for options in texts["options"]),
        task=texts["task"],
        split=texts["split"],
        texts=tuple(texts["texts"]),
        questions=tuple(texts.get("questions", ())),
        predicted_information=arrays.get("predicted_information"),
    )


def _fault(arrays: dict[str, NDArray[Any]], texts: Json) -> str | None:
    """The fault of saved predictions as a clause; None if they are valid."""
    expected = {"log_probs": (np.float64, 3), "labels": (np.int64, 1), "num_choices": (np.int64, 1)}
    if "predicted_information" in arrays:
        expected["predicted_information"] = (np.float64, 1)
    for name, (kind, axes) in expected.items():
        if name not in arrays:
            return f"has no {name}"
        if arrays[name].dtype != kind or arrays[name].ndim != axes:
            return f"{name} is {arrays[name].dtype} {list(arrays[name].shape)}, not {np.dtype(kind)} of {axes} axes"
    log_probs_MEC, labels, num_choices = (arrays[name] for name in ("log_probs", "labels", "num_choices"))
    num_members, num_examples, width = log_probs_MEC.shape
    lengths = {name: len(arrays[name]) for name, (_, axes) in expected.items() if axes == 1}
    lengths |= {name: len(texts[name]) for name in ("ids", "options")}
    lengths |= {name: len(texts[name]) for name in ("texts", "questions") if texts.get(name)}
    for name, length in lengths.items():
        if length != num_examples:
            return f"has {num_examples} rows, but {length} {name}"
    if 0 in (num_members, num_examples):
        return f"log_probs has shape {list(log_probs_MEC.shape)}, without a member or a row"
    num_options = np.array([len(options) for options in texts["options"]])
    if not np.array_equal(num_options, num_choices):
        return "num_choices are not those of the rows' options"
    if num_options.min() < 1 or num_options.max() != width:
        return f"log_probs has {width} columns, but rows have {num_options.min()} to {num_options.max()} options"
    if ((labels < -1) | (labels >= num_options)).any():
        return "labels are not all among their rows' options"
    information_E = arrays.get("predicted_information", np.zeros(0))
    if not ((information_E >= 0) & np.isfinite(information_E)).all():
        return "predicted_information holds numbers that are not finite, or below 0"
    return _fault_of_numbers(log_probs_MEC, num_options)


def _fault_of_numbers(log_probs_MEC: NDArray[np.float64], num_choices: NDArray[np.int64]) -> str | None:
    is_choice_EC = np.arange(log_probs_MEC.shape[2]) < num_choices[:, None]
    if np.isnan(log_probs_MEC).any() or (log_probs_MEC > _TOLERANCE).any():
        return "log_probs holds NaN or numbers above 0"
    if not np.isneginf(log_probs_MEC[:, ~is_choice_EC]).all():
        return "log_probs has probabilities in columns past a row's options"
    if (np.abs(np.exp(log_probs_MEC).sum(axis=-1) - 1) > _TOLERANCE).any():
        return "log_probs are of probabilities that do not sum up to 1"
    return None
