"""A file of answers: whole or continued, and never the beginning of something else."""

from __future__ import annotations

import json

import pytest

from lorchestra.errors import CheckpointError
from lorchestra.store.answer_file import answer_file
from lorchestra.store.lock import DirectoryBusyError


@pytest.fixture
def begun(tmp_path):
    """A file of which two chunks were written before an interruption."""
    path = tmp_path / "folder/answers.csv"
    with answer_file(path, {"run": "a"}) as file:
        file.append(b"one\n", 3, {"chunk": 1})
        file.append(b"two\n", 2, {"chunk": 2})
    assert not path.exists()
    return path


def edit(path, **changes):
    record = path.with_name(f"{path.name}.partial.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | changes))


def test_it_has_its_name_when_it_is_whole_and_is_held_meanwhile(tmp_path):
    path = tmp_path / "answers.csv"
    path.write_bytes(b"before\n")
    with answer_file(path, {}) as file:
        file.append(b"one\n", 1, {})
        assert path.read_bytes() == b"before\n"
        with pytest.raises(DirectoryBusyError), answer_file(path, {}):
            pass
        file.finish()
    assert path.read_bytes() == b"one\n"
    assert list(tmp_path.iterdir()) == [path]


def test_it_is_continued_after_the_last_whole_chunk(begun):
    with begun.with_name("answers.csv.partial").open("ab") as file:
        file.write(b"thr")
    with answer_file(begun, {"run": "a"}, "resume") as file:
        assert (file.num_rows, file.state) == (5, {"chunk": 2})
        file.append(b"three\n", 1, {})
        file.finish()
    assert begun.read_bytes() == b"one\ntwo\nthree\n"


@pytest.fixture
def complete(tmp_path):
    """A complete file whose record was kept."""
    path = tmp_path / "answers.csv"
    with answer_file(path, {"run": "a"}, keep_record=True) as file:
        file.append(b"one\n", 3, {"chunk": 1})
        file.finish()
    return path


def test_rows_are_appended_to_a_complete_file_whose_record_was_kept(complete):
    for _ in range(2):  # without more rows it stays as it is
        with answer_file(complete, {"run": "a"}, "resume", keep_record=True) as file:
            assert (file.num_rows, file.state) == (3, {"chunk": 1})
            file.finish()
    with answer_file(complete, {"run": "a"}, "resume", keep_record=True) as file:
        assert complete.exists()
        file.append(b"two\n", 2, {"chunk": 2})
        assert not complete.exists()
    with answer_file(complete, {"run": "a"}, "resume", keep_record=True) as file:
        assert (file.num_rows, file.state) == (5, {"chunk": 2})
        file.append(b"three\n", 2, {"chunk": 3})
        file.finish()
    assert complete.read_bytes() == b"one\ntwo\nthree\n"
    with answer_file(complete, {"run": "a"}, "resume") as file:
        assert (file.num_rows, file.state) == (7, {"chunk": 3})


def test_a_partial_file_that_gets_no_more_rows_can_be_resumed_again(begun):
    for _ in range(2):
        with answer_file(begun, {"run": "a"}, "resume", keep_record=True) as file:
            assert file.num_rows == 5
            file.finish()
    assert begun.read_bytes() == b"one\ntwo\n"


def test_a_kill_before_a_complete_file_is_partial_again_leaves_it_complete(complete):
    record = complete.with_name("answers.csv.resume.json")
    complete.with_name("answers.csv.partial.json").write_bytes(record.read_bytes())
    with answer_file(complete, {"run": "a"}, "resume") as file:
        assert file.num_rows == 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda path: path.write_bytes(b"one\nand more\n"),
            "has 13 bytes, but 4 were written for 3 rows; the file was",
        ),
        (lambda path: path.with_name("answers.csv.resume.json").unlink(), "without answers.csv.resume.json its rows"),
        (lambda path: path.rename(path.with_name("b")) and path.symlink_to("b"), "its rows cannot be compared"),
    ],
    ids=["changed", "no record", "link"],
)
def test_a_complete_file_without_a_matching_record_is_not_continued(complete, damage, message):
    damage(complete)
    before = complete.read_bytes()
    with pytest.raises(CheckpointError, match=message), answer_file(complete, {"run": "a"}, "resume"):
        pass
    assert complete.read_bytes() == before


def test_a_complete_file_of_other_answers_is_not_continued(complete):
    with pytest.raises(CheckpointError, match="was started with run 'a', not 'b'"):
        answer_file(complete, {"run": "b"}, "resume").__enter__()
    with answer_file(complete, {"run": "b"}, "overwrite") as file:
        file.append(b"new\n", 1, {})
        file.finish()
    assert complete.read_bytes() == b"new\n"
    assert list(complete.parent.iterdir()) == [complete]  # the record was the former file's


@pytest.mark.parametrize("if_exists", [None, "fail"])
def test_it_is_not_lost_unless_that_is_asked_for(begun, if_exists):
    message = "interrupted command; continue with --resume, or start over"
    with pytest.raises(CheckpointError, match=message), answer_file(begun, {"run": "a"}, if_exists):
        pass
    with answer_file(begun, {"run": "b"}, "overwrite") as file:
        assert file.num_rows == 0
        file.append(b"new\n", 1, {})
        file.finish()
    assert begun.read_bytes() == b"new\n"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: edit(path, of={"run": "b"}), "was started with run 'b', not 'a'"),
        (lambda path: edit(path, of={"run": "a", "option": 1}), "was started with option 1, not None"),
        (lambda path: edit(path, format_version=2), "format_version is 2, this is 1"),
        (lambda path: edit(path, num_bytes=9), "has 8 bytes, but 9 were written"),
        (lambda path: edit(path, num_bytes=-1), "the file was truncated"),
        (lambda path: edit(path, num_rows="x"), "num_rows is 'x', not an integer"),
        (lambda path: edit(path, state=[]), "state is"),
        (lambda path: path.with_name("answers.csv.partial.json").write_text("{"), "truncated or damaged"),
    ],
)
def test_a_beginning_that_does_not_fit_is_refused_and_left(begun, damage, message):
    damage(begun)
    with pytest.raises(CheckpointError, match=message), answer_file(begun, {"run": "a"}, "resume"):
        pass
    assert begun.with_name("answers.csv.partial").read_bytes() == b"one\ntwo\n"


def test_a_directory_or_an_impossible_path_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path, message in ((tmp_path, "is a directory"), (tmp_path / "file/answers.csv", "a file is where a directory")):
        with pytest.raises(CheckpointError, match=message), answer_file(path, {}):
            pass
    with pytest.raises(CheckpointError, match="cannot be written"), answer_file(tmp_path / ("x" * 300), {}):
        pass


@pytest.mark.parametrize("if_exists", [None, "resume", "overwrite"])
def test_a_link_instead_of_the_partial_file_is_not_written_through(begun, tmp_path, if_exists):
    partial, elsewhere = begun.with_name("answers.csv.partial"), tmp_path / "elsewhere"
    partial.rename(elsewhere)
    partial.symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match="is a link"), answer_file(begun, {"run": "a"}, if_exists):
        pass
    assert elsewhere.read_bytes() == b"one\ntwo\n"
