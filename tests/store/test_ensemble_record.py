"""The record of an ensemble: what is read is what was written, of both format versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorchestra.errors import CheckpointError
from lorchestra.store.ensemble_record import EnsembleRecord, MemberRecord
from lorchestra.store.run import Run

MEMBER = {
    "path": "members/member_00",
    "sha256": "0" * 64,
    "seed": 5,
    "state": "finished",
    "best_step": 8,
    "val_nll": 0.5,
}
RECORD = {
    "base": {"id": "tiny", "revision": None, "digest": "d1", "path": "/bases/tiny"},
    "tokenizer_digest": "d2",
    "num_members": 3,
    "members": [
        MEMBER | {"r": 2, "scaling": 8.0},
        MEMBER | {"path": "members/member_01", "state": "failed", "val_nll": None, "reason": "diverged: loss nan"},
        MEMBER | {"path": "members/member_02", "seed": None, "state": "imported", "source": "/adapters/a"},
    ],
    "task": "reviews",
    "labels": ["no", "yes"],
    "prompt_template": "{question} Answer:",
    "chat_template": True,
    "system_prompt": None,
    "choice_end": "where_needed",
    "chat_frame": {"template": "d3", "trim": "strip", "alone": ["a", "b", "c"], "shots": []},
    "answer_prefix": " ",
    "max_length": 256,
    "scoring": "text",
    "normalize": "sum",
    "cost": {"train_s": 12.0, "tokens": 300, "peak_bytes": None},
}
SINCE_2 = ("choice_end", "chat_frame", "answer_prefix")


def read(record, version=2):
    return EnsembleRecord.from_dict({"format_version": version, **record}, Path("run/ensemble.json"))


def test_a_record_is_written_as_it_was_read():
    record = read(RECORD)
    assert record.to_dict() == RECORD
    assert list(record.to_dict()) == list(RECORD)
    assert [list(member) for member in record.to_dict()["members"]] == [list(member) for member in RECORD["members"]]
    assert record.labels == ("no", "yes")
    assert record.failed_members == {1: "diverged: loss nan"}
    assert record.good_members == (0, 2)
    assert record.members[0].name == "member_00"
    assert not record.missing


def test_a_record_of_version_1_lacks_what_came_later():
    old = {name: value for name, value in RECORD.items() if name not in (*SINCE_2, "num_members", "max_length", "cost")}
    old["members"] = [{name: MEMBER[name] for name in ("path", "sha256", "state")} | {"state": "failed"}]
    record = read(old, version=1)
    assert record.choice_end == "never"
    assert record.missing == {*SINCE_2, "num_members", "max_length", "cost"}
    assert record.failed_members == {0: "events.jsonl has the reason"}
    assert record.members[0] == MemberRecord("members/member_00", "0" * 64, None, "failed", None, None)
    assert record.to_dict().keys() == old.keys()


@pytest.mark.parametrize("version", [0, 3, True, None, "2"])
def test_other_versions_are_refused(version):
    with pytest.raises(CheckpointError, match=r"format_version is .*reads 1 and 2"):
        read(RECORD, version)


def test_version_2_needs_the_end_of_choices():
    with pytest.raises(CheckpointError, match="lacks choice_end"):
        read({name: value for name, value in RECORD.items() if name != "choice_end"})


def test_a_run_writes_the_version_of_now(tmp_path):
    run = Run(tmp_path)
    run.write_ensemble(read({name: value for name, value in RECORD.items() if name != "max_length"}, version=1))
    assert '"format_version": 2' in run.ensemble.read_text()
    assert run.read_ensemble() == read({name: value for name, value in RECORD.items() if name != "max_length"})


QUESTIONS = [
    {"name": "queue", "type": "choice", "instructions": "Which?", "options": {"billing": "invoices", "other": None}},
    {"name": "urgent", "type": "predicate", "instructions": "It is urgent.", "true": "within the hour"},
    {"name": "severity", "type": "score", "instructions": "", "levels": ["low", "high"]},
]


def test_typed_questions_are_written_as_they_were_read():
    record = read(RECORD | {"labels": None, "questions": QUESTIONS})
    assert record.to_dict()["questions"] == QUESTIONS
    assert [list(entry) for entry in record.to_dict()["questions"]] == [list(entry) for entry in QUESTIONS]
    assert [question.name for question in record.questions] == ["queue", "urgent", "severity"]
    assert record.questions[0].descriptions == ("invoices", None)


def test_the_digest_of_other_runs_does_not_depend_on_the_field():
    """The value is that of the version before typed questions; a certificate is bound to it."""
    assert read(RECORD).digest == "da7e753f63a3f094a66605594f44c32e5f6eb408219724ff2454806bdc86acc2"
    assert read(RECORD).questions == ()
    typed = RECORD | {"labels": None, "questions": QUESTIONS}
    reworded = typed | {"questions": [QUESTIONS[0] | {"instructions": "Which queue?"}, *QUESTIONS[1:]]}
    renamed = typed | {"questions": [QUESTIONS[0] | {"name": "Queue"}, *QUESTIONS[1:]]}
    assert len({read(one).digest for one in (RECORD | {"labels": None}, typed, reworded, renamed)}) == 4


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        (None, "questions is None"),
        ({}, "questions is"),
        ([{}], "name"),
        ([QUESTIONS[0] | {"name": 5}], "name"),
        ([QUESTIONS[0] | {"type": "text"}], "question 'queue': type is 'text'"),
        ([QUESTIONS[0] | {"options": ["one"]}], "it has 1 option"),
        ([QUESTIONS[0], QUESTIONS[0]], "two questions have the same name"),
    ],
)
def test_damaged_questions_are_refused(questions, message):
    with pytest.raises(CheckpointError, match=message):
        read(RECORD | {"labels": None, "questions": questions})


def test_labels_and_typed_questions_exclude_each_other():
    with pytest.raises(CheckpointError, match="labels and typed questions"):
        read(RECORD | {"questions": QUESTIONS})
