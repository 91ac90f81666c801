"""The calibration record: written, read, and refused if it was changed or is of another ensemble."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lorchestra.errors import CheckpointError
from lorchestra.metrics.calibrator import Calibration
from lorchestra.metrics.certificates import Certificate
from lorchestra.metrics.conformal import ConformalSets
from lorchestra.metrics.decisions import CertifyingRows, Decisions
from lorchestra.metrics.ranking import ScoreChoice
from lorchestra.store.calibration_record import CalibrationRecord, _checksum
from lorchestra.store.decision_record import SavedDecisions
from lorchestra.store.ensemble_record import BaseRecord, EnsembleRecord, MemberRecord
from lorchestra.store.run import Run

CALIBRATION = Calibration("temperature", "lower", num_rows=2, temperature=1.5, nll_before=0.7, nll_after=0.6)
ENSEMBLE = EnsembleRecord(
    base=BaseRecord("org/base", "main", "d1", "org/base"),
    tokenizer_digest="d2",
    members=(
        MemberRecord("members/member_00", "a" * 64, 1, "finished", 8, 0.5),
        MemberRecord("members/member_01", "b" * 64, 2, "failed", None, None),
    ),
    task="toy",
    labels=("no", "yes"),
    prompt_template="{question} Answer:",
    chat_template=False,
    system_prompt=None,
    choice_end="where_needed",
    chat_frame=None,
    answer_prefix=" ",
    max_length=None,
    scoring="text",
    normalize="sum",
    cost={"train_s": 1.0},
)
RECORD = CalibrationRecord.of(ENSEMBLE.digest, CALIBRATION, ["r1", "r2"])


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def change(run: Run, sign: bool, **changes: object) -> None:
    """Write the record with a changed entry, with the checksum that it has then if `sign`."""
    values = json.loads(json.dumps(RECORD.to_dict()))
    for name, value in changes.items():
        target = values if name in values else values["questions"][""]
        target[name] = value
    if sign:
        values["checksum"] = _checksum(values)
    run.calibration.write_text(json.dumps(values))


def test_what_is_written_is_read(run: Run) -> None:
    assert run.read_calibration(ENSEMBLE) is None
    run.write_calibration(RECORD)
    assert run.read_calibration(ENSEMBLE) == RECORD
    assert RECORD.calibration == CALIBRATION
    values = json.loads(run.calibration.read_text())
    assert (values["format_version"], list(values["questions"])) == (1, [""])
    assert values["questions"][""]["row_digests"] == ["r1", "r2"]


def test_fields_of_later_versions_are_left_alone(run: Run) -> None:
    change(run, sign=True, threshold=0.8)
    assert json.loads(run.calibration.read_text())["questions"][""]["threshold"] == 0.8
    assert run.read_calibration(ENSEMBLE) == RECORD


@pytest.mark.parametrize("changes", [{"temperature": 1.4}, {"row_digests": ["r1", "r3"]}, {"reason": "higher"}])
def test_a_record_that_was_edited_is_refused(run: Run, changes: dict[str, object]) -> None:
    change(run, sign=False, **changes)
    with pytest.raises(CheckpointError, match=r"calibration\.json: the checksum is not that of its content.*--raw"):
        run.read_calibration(ENSEMBLE)
    change(run, sign=False)  # without a change it is read
    assert run.read_calibration(ENSEMBLE) == RECORD


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 3}, "format_version is 3, this version of lorchestra reads 1 and 2"),
        ({"format_version": True}, "format_version is True"),
        ({"questions": {}}, "questions has no entry"),
        ({"kind": "magic"}, "kind is 'magic', not one of"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": 1e6}, "temperature is 1000000.0, not in"),
        ({"num_rows": 3}, "num_rows is 3, but there are 2 row_digests"),
        ({"scale": [1.0]}, "which has no scale"),
    ],
)
def test_a_damaged_record_is_refused(run: Run, changes: dict[str, object], message: str) -> None:
    change(run, sign=True, **changes)
    with pytest.raises(CheckpointError, match=message):
        run.read_calibration(ENSEMBLE)


def test_a_checksum_is_text(run: Run) -> None:
    change(run, sign=False, checksum=5)
    with pytest.raises(CheckpointError, match="checksum is 5, not text"):
        run.read_calibration(ENSEMBLE)


def test_a_file_that_is_no_record_and_a_link_are_refused(run: Run, tmp_path: Path) -> None:
    run.calibration.write_text("{")
    with pytest.raises(CheckpointError, match=r"calibration\.json: cannot be read"):
        run.read_calibration(ENSEMBLE)
    run.calibration.unlink()
    (tmp_path / "calibration.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(CheckpointError, match="link"):
        run.read_calibration(ENSEMBLE)


def other_member(**changes: object) -> EnsembleRecord:
    return replace(ENSEMBLE, members=(replace(ENSEMBLE.members[0], **changes), ENSEMBLE.members[1]))


@pytest.mark.parametrize(
    "other",
    [
        other_member(sha256="c" * 64),
        other_member(scaling=2.0),
        replace(ENSEMBLE, members=ENSEMBLE.members[:1] * 2),
        replace(ENSEMBLE, scoring="tree"),
        replace(ENSEMBLE, normalize="token"),
        replace(ENSEMBLE, prompt_template="Text: {question}"),
        replace(ENSEMBLE, labels=("yes", "no")),
        replace(ENSEMBLE, base=replace(ENSEMBLE.base, digest="d3")),
    ],
)
def test_another_ensemble_is_refused(run: Run, other: EnsembleRecord) -> None:
    run.write_calibration(RECORD)
    with pytest.raises(CheckpointError, match=r"calibration\.json: belongs to another ensemble"):
        run.read_calibration(other)


@pytest.mark.parametrize(
    "same",
    [
        replace(ENSEMBLE, base=replace(ENSEMBLE.base, path="/moved", id="moved", revision=None)),
        replace(ENSEMBLE, members=ENSEMBLE.members[:1]),  # a failed member takes no part
        replace(ENSEMBLE, cost=None),
        other_member(path="members/member_07", seed=None, val_nll=None, state="stopped"),
    ],
)
def test_the_same_probabilities_are_the_same_ensemble(run: Run, same: EnsembleRecord) -> None:
    run.write_calibration(RECORD)
    assert run.read_calibration(same) == RECORD


def test_vector_scaling_of_other_labels_is_refused(run: Run) -> None:
    vector = Calibration("vector", "better", scale=(1.0,) * 3, bias=(0.0,) * 3)
    run.write_calibration(CalibrationRecord.of(ENSEMBLE.digest, vector, []))
    with pytest.raises(CheckpointError, match="has 3 classes, the run 2"):
        run.read_calibration(ENSEMBLE)


CERTIFICATE = Certificate(0.8, 0.5, (0.2, 0.8), 0.04, 0, 1, 2, 0.05, 0.95)
DECISIONS = Decisions(
    "max_prob",
    ScoreChoice("max_prob", {"max_prob": 0.1, "entropy": 0.2}, {"entropy": (-0.1, 0.1)}, "no other score is better"),
    CertifyingRows("new.csv", 2, 2, "2026-11-28T12:00:00Z"),
    (CERTIFICATE,),
    sets=ConformalSets("lac", 0.1, (0.7,), (2,)),
)
SAVED = RECORD.with_decisions(SavedDecisions(DECISIONS, ("c1", "c2"), ("c0",)))


def change_decisions(run: Run, **changes: object) -> None:
    values = json.loads(json.dumps(SAVED.to_dict()))
    values["questions"][""]["decisions"].update(changes)
    values["checksum"] = _checksum(values)
    run.calibration.write_text(json.dumps(values))


def test_decisions_are_kept_with_the_calibration(run: Run) -> None:
    run.write_calibration(SAVED)
    read = run.read_calibration(ENSEMBLE)
    assert read == SAVED
    assert read.calibration == CALIBRATION
    assert read.saved_decisions.decisions == DECISIONS
    assert read.saved_decisions.seen == {"c0", "c1", "c2"}
    assert RECORD.saved_decisions is None
    change_decisions(run, later="field")
    assert run.read_calibration(ENSEMBLE) == SAVED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": "best"}, "score is 'best', not one of"),
        ({"score": "combined"}, "score is combined, and combined is missing"),
        ({"certificates": []}, "neither one for all rows nor one per class"),
        ({"row_digests": ["c1"]}, r"rows\.num_rows is 2, but there are 1 row_digests"),
        ({"certificates": [CERTIFICATE.to_dict() | {"class": None, "threshold": "high"}]}, "threshold is 'high'"),
        ({"certificates": [CERTIFICATE.to_dict() | {"class": "no"}]}, "by classes that are not the run's labels"),
        ({"sets": DECISIONS.sets.to_dict() | {"quantiles": [0.5, 0.6]}}, "as many quantiles as num_rows"),
        (
            {"sets": DECISIONS.sets.to_dict() | {"quantiles": [0.5] * 3, "num_rows": [1] * 3}},
            "by classes that are not the run's labels",
        ),
        (
            {
                "score": "combined",
                "combined": {"means": [0], "scales": [1], "weights": [1], "intercept": 0, "num_rows": 9},
            },
            "combined does not have 5 means",
        ),
    ],
)
def test_decisions_that_do_not_fit_are_refused(run: Run, changes: dict[str, object], message: str) -> None:
    change_decisions(run, **changes)
    with pytest.raises(CheckpointError, match=message):
        run.read_calibration(ENSEMBLE)
