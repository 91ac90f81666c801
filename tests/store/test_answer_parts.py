"""Directories of answers in parts: whole parts, of one source, written once."""

from __future__ import annotations

import dataclasses
import json

import pytest

from lorchestra.errors import CheckpointError
from lorchestra.store.answer_parts import AnswerParts, AnswerSource, Part

SOURCE = AnswerSource({"run": "a", "--top": None}, [("a.jsonl", 10), ("s3://b/c.jsonl", None)], 8, 32)
PART = Part(1, 32)


@pytest.fixture
def parts(tmp_path):
    made = AnswerParts.start(tmp_path / "out", SOURCE)
    made.write(PART, "digest", b"lines\n", 256, {"rows": 32})
    return made


def test_names_sort_as_the_lines():
    parts = [Part(1, 9), Part(10, 99), Part(100, 10**9), Part(10**9 + 1, 10**11)]
    assert sorted(part.name for part in parts) == [part.name for part in parts]


def test_a_part_is_finished_when_its_record_exists(parts):
    record = parts.record(PART, "digest")
    assert record == {"rows_digest": "digest", "num_bytes": 6, "max_length": 256, "counts": {"rows": 32}}
    assert parts.record(Part(33, 64), "digest") is None
    parts.record_path(PART).unlink()
    assert parts.record(PART, "digest") is None
    parts.write(PART, "digest", b"lines\n", 256, {"rows": 32})
    for damage in (lambda path: path.write_bytes(b"li"), lambda path: path.unlink()):
        damage(parts.root / f"{PART.name}.jsonl")
        assert parts.record(PART, "digest") is None


def test_rows_that_changed_are_refused(parts):
    with pytest.raises(CheckpointError, match=r"the rows of part-000000000001-000000000032\.jsonl were other ones"):
        parts.record(PART, "other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"of": {"run": "b", "--top": None}}, "started with run 'a', not 'b'"),
        ({"of": {"run": "a", "--top": None, "--raw": True}}, "started with --raw None, not True"),
        ({"files": [("a.jsonl", 11), ("s3://b/c.jsonl", None)]}, "a.jsonl has 11 bytes now, and had 10 bytes"),
        ({"files": [("d.jsonl", 11), ("s3://b/c.jsonl", None)]}, "d.jsonl has 11 bytes now, and is not among them"),
        ({"files": [("a.jsonl", 10)]}, "2 files, now 1"),
    ],
)
def test_answers_of_another_source_are_refused(parts, change, message):
    with pytest.raises(CheckpointError) as caught:
        AnswerParts.resume(parts.root, dataclasses.replace(SOURCE, **change))
    assert message in str(caught.value)
    assert "--if-exists overwrite" in str(caught.value)


def test_parts_are_cut_as_they_were(parts):
    again = AnswerParts.resume(parts.root, dataclasses.replace(SOURCE, chunk_rows=1024, part_lines=4096))
    assert (again.source.chunk_rows, again.source.part_lines) == (8, 32)
    assert again.record(PART, "digest") is not None
    again.complete(32)
    assert json.loads((parts.root / "answers.json").read_text())["num_lines"] == 32


def test_discarded_parts_leave_nothing(parts):
    AnswerParts.discard(parts.root)
    assert list(parts.root.iterdir()) == []


def test_another_machine_must_see_the_same_directory(parts, tmp_path):
    parts.check_visible()
    other = AnswerParts.start(tmp_path / "other", dataclasses.replace(SOURCE, of={"run": "b"}))
    for root in (tmp_path / "none", other.root):
        with pytest.raises(CheckpointError, match="is not the directory that the command has made"):
            dataclasses.replace(parts, root=root).check_visible()


def test_damaged_records_are_refused(parts):
    path = parts.record_path(PART)
    path.write_text(path.read_text().replace('"num_bytes": 6', '"num_bytes": "6"'))
    with pytest.raises(CheckpointError, match="num_bytes"):
        parts.record(PART, "digest")
    mark = parts.root / "answers.json"
    text = mark.read_text()
    for before, after, message in (
        ('"format_version": 1', '"format_version": 2', "format_version is 2"),
        ('"part_lines": 32', '"part_lines": 3', "does not fit part_lines"),
    ):
        mark.write_text(text.replace(before, after))
        with pytest.raises(CheckpointError, match=message):
            AnswerParts.resume(parts.root, SOURCE)
