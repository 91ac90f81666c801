"""What an ensemble says about rows that one member is to learn: computed once, kept with the run that learns.

Axes: `E` example, `C` choice.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lorchestra.errors import CheckpointError
from lorchestra.inference.pipeline import Pipeline
from lorchestra.metrics.calibrator import Calibration, pooled
from lorchestra.metrics.predictive import FloatArray, mutual_information
from lorchestra.store.atomic import atomic_path
from lorchestra.store.safe_paths import inside
from lorchestra.training.callbacks import Callback, progress
from lorchestra.types import Example

logger = logging.getLogger(__name__)

CHUNK_ROWS = 1_000
"""Rows of a file: what an interruption can cost."""
_FORMAT_VERSION = "1"
"""Part of a file's identity: files of another version are computed again."""


@dataclass(frozen=True)
class Taught:
    """An ensemble's answers to rows.

    Attributes:
        keys: one per row, by its question and choices (see `row_key`).
        log_probs_EC: of the calibrated mixture, -inf past a row's choices.
        information_E: mutual information of the members as they are, in nats.
    """

    keys: tuple[str, ...]
    log_probs_EC: FloatArray
    information_E: FloatArray

    def of(self, rows: Sequence[Example]) -> tuple[FloatArray, FloatArray]:
        """Log-probabilities `[E, C]` and mutual information `[E]` of rows, matched by their question and choices.

        Raises:
            CheckpointError: a row is not among those that the ensemble has answered.
        """
        index = {key: e for e, key in enumerate(self.keys)}
        try:
            chosen = [index[row_key(row)] for row in rows]
        except KeyError:
            raise CheckpointError(
                "resume: the ensemble's answers do not have all rows: the rows or the settings of the run have changed;"
                " start it again with --if-exists new"
            ) from None
        return self.log_probs_EC[chosen], self.information_E[chosen]


def row_key(row: Example) -> str:
    """Equal for rows with the same question and the same choices in the same order: 64 hex digits."""
    return hashlib.sha256(json.dumps([row.question, row.choices]).encode("ascii")).hexdigest()


def teach(
    directory: Path,
    rows: Sequence[Example],
    teacher: str,
    load: Callable[[], tuple[Pipeline, Calibration | None]],
    callback: Callback,
) -> Taught:
    """The ensemble's answers to rows: from the files of an earlier call with the same rows, or computed.

    Each thousand rows are a file of their own and are computed apart, so that the numbers are the same after an
    interruption. The ensemble is loaded only if a file is missing or not valid. Rows that are dropped for their length
    are left out.

    Args:
        directory: where the files are, named `teacher-00000.safetensors` and so on.
        rows: the rows.
        teacher: identifies the ensemble and its calibration.
        load: loads the two.
        callback: receives progress; may request a stop.

    Raises:
        CheckpointError: the files cannot be written.
        Interrupted: the callback requested a stop.
    """
    loaded: tuple[Pipeline, Calibration | None] | None = None
    parts: list[Taught] = []
    for number, start in enumerate(range(0, len(rows), CHUNK_ROWS)):
        chunk = rows[start : start + CHUNK_ROWS]
        path = inside(directory, f"teacher-{number:05d}.safetensors")
        identity = hashlib.sha256("".join([_FORMAT_VERSION, teacher, *map(row_key, chunk)]).encode()).hexdigest()
        part = _read(path, identity)
        if part is None:
            if loaded is None:
                loaded = load()
            report = progress(callback, "the ensemble's answers", len(rows))
            part = _answers(*loaded, chunk, partial(_report_from, report, start))
            _write(path, identity, part)
        parts.append(part)
    width = max(part.log_probs_EC.shape[1] for part in parts)
    padded = [
        np.pad(part.log_probs_EC, ((0, 0), (0, width - part.log_probs_EC.shape[1])), constant_values=-np.inf)
        for part in parts
    ]
    return Taught(
        tuple(key for part in parts for key in part.keys),
        np.concatenate(padded),
        np.concatenate([part.information_E for part in parts]),
    )


def _report_from(report: Callable[[int], None], start: int, done: int) -> None:
    report(start + done)


def _answers(
    pipeline: Pipeline, calibration: Calibration | None, rows: Sequence[Example], report: Callable[[int], None]
) -> Taught:
    predictions = pipeline.predict_members(rows, "teacher", report)
    answered = [
        Example(row_id, text, options, None)
        for row_id, text, options in zip(predictions.ids, predictions.texts, predictions.options, strict=True)
    ]
    log_probs_MEC = predictions.log_probs_MEC
    return Taught(tuple(map(row_key, answered)), pooled(log_probs_MEC, calibration), mutual_information(log_probs_MEC))


def _write(path: Path, identity: str, part: Taught) -> None:
    keys = np.frombuffer(bytes.fromhex("".join(part.keys)), dtype=np.uint8).reshape(-1, 32)
    arrays = {"keys": keys, "log_probs": part.log_probs_EC, "information": part.information_E}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with atomic_path(path) as temporary:
        save_file(arrays, temporary, {"identity": identity})  # several entries would be written in any order


def _read(path: Path, identity: str) -> Taught | None:
    """The answers in a file; None where it is missing, damaged, or of another ensemble or other rows."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            keys, log_probs_EC, information_E = (file.get_tensor(n) for n in ("keys", "log_probs", "information"))
    except (OSError, SafetensorError) as error:
        logger.info(f"{path}: cannot be read ({error}); computed again")
        return None
    if metadata.get("identity") != identity:
        return None
    return Taught(tuple(bytes(key).hex() for key in keys), log_probs_EC, information_E)
