"""`calibration.json`: how the probabilities of a run's mixture are calibrated and its answers decided, on which rows
that rests, and for which ensemble it was fitted.

Each question has an entry, by name; a run on one question has one under the empty name. Fields that the shapes below
do not list are kept out of answers, so that later versions can add some.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorchestra.errors import CheckpointError
from lorchestra.metrics.by_question import RowCalibration
from lorchestra.metrics.calibrator import Calibration, fault_of
from lorchestra.store.decision_record import DECISIONS, SavedDecisions, read_decisions
from lorchestra.store.run_cascade_record import RUN_CASCADE, SavedRunCascade, read_run_cascade
from lorchestra.store.schema import COUNT, Each, Number, Shape, check_shape, read_json
from lorchestra.types import Json, plain_values

FORMAT_VERSIONS = (1, 2)
"""Version 2 is written for decisions by a cascade: versions that do not know them would apply one threshold to all."""
ONLY_QUESTION = ""
"""The name of the question of a run that has one."""

CALIBRATION: dict[str, Shape] = {
    "kind": {"none", "temperature", "vector", "isotonic"},
    "reason": str,
    "num_rows?": COUNT,
    "temperature?": Number(0),
    "scale?": [Number()],
    "bias?": [Number()],
    "confidences?": [Number()],
    "accuracies?": [Number()],
    "nll_before?": Number(0),
    "nll_after?": Number(0),
}
"""The shape of `Calibration.to_dict`."""
_QUESTION: dict[str, Shape] = {
    **CALIBRATION,
    "row_digests": [str],
    "decisions?": (DECISIONS, None),
    "run_cascade?": (RUN_CASCADE, None),
}
_SHAPE: dict[str, Shape] = {"ensemble": str, "questions": Each(_QUESTION), "checksum": str}


@dataclass(frozen=True)
class QuestionCalibration:
    """The calibration of one question.

    `row_digests` has a digest of each row's content (`data.splits.content_digest`), in order, of the rows that it was
    chosen and fitted on: rows that are to certify something must not be among them. `saved_decisions` are those of
    `lorchestra calibrate`, if it was run, and `saved_run_cascade` the cascade with a second run.
    """

    calibration: Calibration
    row_digests: tuple[str, ...] = ()
    saved_decisions: SavedDecisions | None = None
    saved_run_cascade: SavedRunCascade | None = None

    def to_dict(self) -> Json:
        """As `calibration.json` has it."""
        values = self.calibration.to_dict() | {"row_digests": list(self.row_digests)}
        if self.saved_decisions is not None:
            values["decisions"] = self.saved_decisions.to_dict()
        if self.saved_run_cascade is not None:
            values["run_cascade"] = self.saved_run_cascade.to_dict()
        return values


_BY_QUESTION = QuestionCalibration(Calibration("none", "each typed question has a calibration"))


@dataclass(frozen=True)
class CalibrationRecord:
    """The calibrations of an ensemble (`EnsembleRecord.digest`), by question."""

    ensemble: str
    questions: Mapping[str, QuestionCalibration] = field(default_factory=dict)

    @classmethod
    def of(cls, ensemble: str, calibration: Calibration, row_digests: Sequence[str]) -> CalibrationRecord:
        """The record of a run with one question."""
        return cls(ensemble, {ONLY_QUESTION: QuestionCalibration(calibration, tuple(row_digests))})

    @property
    def only(self) -> QuestionCalibration:
        """That of the only question; nothing is calibrated in a run on typed questions, each of which has one."""
        return self.questions.get(ONLY_QUESTION, _BY_QUESTION)

    @property
    def calibration(self) -> Calibration:
        """That of the only question."""
        return self.only.calibration

    @property
    def calibrations(self) -> dict[str, Calibration]:
        """Those of all questions, by name."""
        return {name: question.calibration for name, question in self.questions.items()}

    def of_rows(self, questions: Sequence[str]) -> Calibration | RowCalibration:
        """That of rows which ask these typed questions; `questions` is empty for rows without typed questions."""
        return RowCalibration(self.calibrations, questions) if questions else self.calibration

    @property
    def saved_decisions(self) -> SavedDecisions | None:
        """Those of the only question."""
        return self.only.saved_decisions

    @property
    def saved_run_cascade(self) -> SavedRunCascade | None:
        """That of the only question."""
        return self.only.saved_run_cascade

    def of_question(self, name: str) -> CalibrationRecord:
        """The record with one of its questions, as its only one."""
        return replace(self, questions={ONLY_QUESTION: self.questions[name]})

    def with_question(self, name: str, record: CalibrationRecord) -> CalibrationRecord:
        """The record with the only question of another one as the question `name`."""
        return replace(self, questions={**self.questions, name: record.only})

    @property
    def has_stages(self) -> bool:
        """Whether a certified cascade answers the only question."""
        return self.saved_decisions is not None and self.saved_decisions.decisions.stages is not None

    def with_decisions(self, saved: SavedDecisions) -> CalibrationRecord:
        """The record with other decisions of the only question."""
        question = replace(self.only, saved_decisions=saved)
        return replace(self, questions={**self.questions, ONLY_QUESTION: question})

    def with_run_cascade(self, saved: SavedRunCascade) -> CalibrationRecord:
        """The record with another cascade of the run with a second one."""
        question = replace(self.only, saved_run_cascade=saved)
        return replace(self, questions={**self.questions, ONLY_QUESTION: question})

    def to_dict(self) -> Json:
        """The record as `calibration.json` has it, with a checksum over everything else."""
        questions = {name: question.to_dict() for name, question in self.questions.items()}
        saved = [question.saved_decisions for question in self.questions.values()]
        version = 2 if any(one is not None and one.decisions.cascade is not None for one in saved) else 1
        record: Json = {"format_version": version, "ensemble": self.ensemble, "questions": questions}
        return record | {"checksum": _checksum(record)}

    @classmethod
    def read(cls, path: Path) -> CalibrationRecord:
        """The record in a file.

        Raises:
            CheckpointError: it is missing, damaged, changed or of another format version.
        """
        record = read_json(path)
        version = record.get("format_version")
        if version not in FORMAT_VERSIONS or isinstance(version, bool):
            raise CheckpointError(
                f"{path}: format_version is {version!r}, this version of lorchestra reads 1 and 2; use the version that"
                " wrote it, or answer with the mixture as it is: --raw"
            )
        check_shape(record, _SHAPE, path)
        if record["checksum"] != _checksum(record):
            raise CheckpointError(
                f"{path}: the checksum is not that of its content: the file was changed; copy the run again, or answer"
                " with the mixture as it is: --raw"
            )
        if not record["questions"]:
            raise CheckpointError(f"{path}: questions has no entry; the file was changed")
        return cls(
            record["ensemble"],
            {name: _question(values, path, f"questions.{name!r}") for name, values in record["questions"].items()},
        )


def read_calibration(values: Json, where: Path, field: str) -> Calibration:
    """A calibration in a record.

    Raises:
        CheckpointError: its parameters cannot be applied.
    """
    check_shape(values, CALIBRATION, where, field)
    names = {name.removesuffix("?") for name in CALIBRATION}
    calibration = Calibration.from_dict({name: value for name, value in values.items() if name in names})
    if (fault := fault_of(calibration)) is not None:
        raise CheckpointError(f"{where}: {field}: {fault}; the file was changed or damaged")
    return calibration


def _question(values: Json, path: Path, field: str) -> QuestionCalibration:
    calibration = read_calibration(values, path, field)
    digests = tuple(values["row_digests"])
    if len(digests) != calibration.num_rows:
        raise CheckpointError(
            f"{path}: {field}: num_rows is {calibration.num_rows}, but there are {len(digests)} row_digests; the file"
            " was changed"
        )
    decisions = values.get("decisions")
    saved = None if decisions is None else read_decisions(decisions, path, f"{field}.decisions")
    cascade = values.get("run_cascade")
    with_run = None if cascade is None else read_run_cascade(cascade, path, f"{field}.run_cascade")
    return QuestionCalibration(calibration, digests, saved, with_run)


def _checksum(record: Json) -> str:
    """SHA-256 of everything but the checksum, as JSON with sorted keys."""
    content = plain_values({name: value for name, value in record.items() if name != "checksum"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()
