from __future__ import annotations

import csv
import difflib
import gzip
import json
import os
import random
import re
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorchestra.config.data import DataConfig, FieldsConfig
from lorchestra.data.files import TaskFile, read_task_file
from lorchestra.data.labels import clean_label, label_order
from lorchestra.errors import ConfigError, DataError
from lorchestra.types import Example

FIELDS = FieldsConfig()
QUESTION = {"question": "Which is red?", "choices": ["rose", "sky"], "answer": 0}
TEXT = {"text": "good", "label": "yes"}


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[dict[str, Any]], encoding: str = "utf-8") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})
    return path


def read(
    path: Path,
    *,
    require_answer: bool = True,
    labels: tuple[str, ...] | None = None,
    fields: FieldsConfig = FIELDS,
    ignore_answers: bool = False,
) -> TaskFile:
    return read_task_file(
        path, DataConfig(fields=fields), require_answer=require_answer, labels=labels, ignore_answers=ignore_answers
    )


def message(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **options)
    return str(caught.value)


def bare(examples: tuple[Example, ...]) -> list[tuple[Any, ...]]:
    return [(e.id, e.question, e.choices, e.answer) for e in examples]


# --- what can be read ---------------------------------------------------------------------------------------------


def test_questions_keep_their_choices_and_location(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "train.jsonl", [QUESTION, {**QUESTION, "choices": ["a", "b", "c"], "answer": 2, "id": 7}]
    )
    file = read(path)
    assert file.labels is None
    assert file.warnings == ()
    assert bare(file.examples) == [
        ("train-1", "Which is red?", ("rose", "sky"), 0),
        ("7", "Which is red?", ("a", "b", "c"), 2),
    ]
    assert [e.where for e in file.examples] == [f"{path}:1", f"{path}:2"]


def test_texts_get_the_sorted_label_set_as_choices(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}])
    file = read(path)
    assert file.labels == ("no", "yes")
    assert [(e.choices, e.answer) for e in file.examples] == [(("no", "yes"), 1), (("no", "yes"), 0)]


def test_labels_that_are_integers_or_booleans_become_strings(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 10}, {"text": "b", "label": 9}, {"text": "c", "label": True}]
    assert read(write_jsonl(tmp_path / "t.jsonl", rows)).labels == ("10", "9", "True")


def test_labels_of_another_file_keep_the_order_of_training(tmp_path: Path) -> None:
    file = read(write_jsonl(tmp_path / "t.jsonl", [{"text": "a", "label": "no"}]), labels=("yes", "no"))
    assert file.labels == ("yes", "no")
    assert file.examples[0].answer == 1


def test_gzip_blank_lines_and_byte_order_mark(tmp_path: Path) -> None:
    lines = "\ufeff" + json.dumps(QUESTION) + "\n\n" + json.dumps(QUESTION) + "\r\n"
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress(lines.encode()))
    examples = read(path).examples
    assert [e.id for e in examples] == ["t-1", "t-2"]
    assert examples[1].where == f"{path}:3"


def test_line_separators_inside_a_json_string_do_not_end_the_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({**QUESTION, "question": "a\u2028b\x85c"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read(path).examples[0].question == "a\u2028b\x85c"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_with_quoted_newlines_counts_lines_of_the_file(tmp_path: Path, encoding: str) -> None:
    rows = [{**QUESTION, "question": 'one\ntwo, "three"'}, {**QUESTION, "question": "né"}]
    path = write_csv(tmp_path / "t.csv", rows, encoding)
    examples = read(path).examples
    assert [e.question for e in examples] == ['one\ntwo, "three"', "né"]
    assert [e.where for e in examples] == [f"{path}:2", f"{path}:4"]
    assert examples[0].choices == ("rose", "sky")


def test_csv_cell_longer_than_the_module_default(tmp_path: Path) -> None:
    csv.field_size_limit(131_072)
    text = "word " * 60_000
    path = write_csv(tmp_path / "t.csv", [{"text": text, "label": "a"}, {"text": "x", "label": "b"}])
    assert read(path).examples[0].question == text
    assert csv.field_size_limit() == 131_072


def test_parquet_reads_only_named_columns_and_numbers_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = {"question": ["a", "b"], "choices": [["x", "y"], ["x", "z"]], "answer": [0, 1], "id": ["p", "q"]}
    pq.write_table(pa.table({**table, "picture": pa.array([b"\xff", b"\xfe"])}), path)
    file = read(path)
    assert bare(file.examples) == [("p", "a", ("x", "y"), 0), ("q", "b", ("x", "z"), 1)]
    assert file.examples[1].where == f"{path}:2"


def test_columns_of_other_names(tmp_path: Path) -> None:
    fields = FieldsConfig(text="sentence", label="class", id="key")
    rows = [{"sentence": "a", "class": "x", "key": "k", "text": 1}, {"sentence": "b", "class": "y", "key": "l"}]
    file = read(write_jsonl(tmp_path / "t.jsonl", rows), fields=fields)
    assert bare(file.examples) == [("k", "a", ("x", "y"), 0), ("l", "b", ("x", "y"), 1)]


def test_two_columns_of_the_text_form_win_over_a_question(tmp_path: Path) -> None:
    rows = [{**QUESTION, **TEXT}, {**QUESTION, **TEXT, "label": "no"}]
    assert read(write_jsonl(tmp_path / "t.jsonl", rows)).labels == ("no", "yes")


def test_a_passage_called_text_leaves_a_question_a_question(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{**QUESTION, "text": "a passage"}])
    assert read(path).labels is None
    assert read(path, require_answer=False).labels is None


def test_empty_columns_do_not_decide_the_form(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", [{**QUESTION, "text": "", "label": ""}])
    assert bare(read(path).examples) == [("t-1", "Which is red?", ("rose", "sky"), 0)]


@pytest.mark.parametrize(
    "row", [{"question": "q", "choices": ["a", "b"]}, {"question": "q", "choices": ["a", "b"], "answer": None}]
)
def test_missing_answers_if_none_is_required(tmp_path: Path, row: dict[str, Any]) -> None:
    assert read(write_jsonl(tmp_path / "t.jsonl", [row, QUESTION]), require_answer=False).examples[0].answer is None
    assert read(tmp_path / "t.jsonl", require_answer=False).examples[1].answer == 0
    assert "t.jsonl:1" in message(tmp_path / "t.jsonl")


def test_missing_labels_if_none_is_required(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": "a"}, {"text": "b", "label": "x"}])
    file = read(path, require_answer=False, labels=("x", "y"))
    assert [(e.choices, e.answer) for e in file.examples] == [(("x", "y"), None), (("x", "y"), 0)]


def test_ignored_answers_are_not_even_checked(tmp_path: Path) -> None:
    texts = write_jsonl(tmp_path / "t.jsonl", [{"text": "a", "label": "unknown"}, {"text": "b", "label": 0.5}])
    assert [e.answer for e in read(texts, labels=("x", "y"), ignore_answers=True).examples] == [None, None]
    questions = write_jsonl(tmp_path / "q.jsonl", [{**QUESTION, "answer": "B"}])
    assert read(questions, ignore_answers=True).examples[0].answer is None


def test_a_question_column_read_as_text(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [QUESTION])
    file = read(path, labels=("x", "y"), ignore_answers=True, fields=FieldsConfig(text="question"))
    assert bare(file.examples) == [("t-1", "Which is red?", ("x", "y"), None)]


def test_equal_choices_and_similar_labels_cause_warnings(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [QUESTION, {**QUESTION, "choices": ["a", "b", "a"]}])
    file = read(path)
    assert file.examples[1].choices == ("a", "b", "a")
    assert len(file.warnings) == 1
    assert f"{path}:2" in file.warnings[0]
    assert f"{path}:1" not in file.warnings[0]
    (warning,) = read(write_jsonl(tmp_path / "l.jsonl", [TEXT, {"text": "b", "label": "Yes "}])).warnings
    assert "'Yes'" in warning
    assert "'yes'" in warning


# --- what cannot, and what the message says -----------------------------------------------------------------------


def test_missing_file_directory_suffix_and_pipe(tmp_path: Path) -> None:
    assert "no such file" in message(tmp_path / "none.jsonl")
    (tmp_path / "d.csv").mkdir()
    assert "directory" in message(tmp_path / "d.csv")
    (tmp_path / "t.txt").write_text("x")
    assert ".jsonl, .jsonl.gz, .csv, .parquet" in message(tmp_path / "t.txt")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "not a regular file" in message(tmp_path / "pipe.jsonl")
    assert "cannot be read" in message(tmp_path / ("x" * 300 + ".jsonl"))


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.jsonl.gz"])
def test_empty_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"\n\n") if name.endswith("gz") else b"")
    assert "no rows" in message(tmp_path / name)


def test_empty_parquet_and_header_only_csv(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "t.parquet")
    assert "no rows" in message(tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("text,label\n")
    assert "no rows" in message(tmp_path / "t.csv")


@pytest.mark.parametrize("data", [b'{"text": 1}\n', gzip.compress(b"{}" * 500, mtime=0)[:-12], b""])
def test_not_a_whole_gzip_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t.jsonl.gz").write_bytes(data)
    text = message(tmp_path / "t.jsonl.gz")
    assert "gzip" in text or "no rows" in text
    assert "t.jsonl.gz" in text


def test_not_a_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nonsense")
    assert "cannot be read as a Parquet file" in message(tmp_path / "t.parquet")


def test_not_utf8_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(json.dumps(QUESTION).encode() + b'\n{"question": "caf\xe9"}\n')
    text = message(tmp_path / "t.jsonl")
    assert "t.jsonl:2" in text
    assert "0xe9" in text
    (tmp_path / "t.csv").write_bytes(b"text,label\na,b\n\xff,c\n")
    assert "t.csv:3" in message(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"question": }', "column 14"),
        ("[1, 2]", "not a JSON object"),
        ("12", "not a JSON object"),
        ("[" * 100_000, "cannot be read"),
        ('{"answer": ' + "9" * 5000 + "}", "cannot be read"),
    ],
)
def test_a_line_that_is_not_a_json_object(tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(QUESTION) + "\n" + line + "\n")
    text = message(path)
    assert f"{path}:2" in text
    assert expected in text
    assert len(text) < 500


@pytest.mark.parametrize(
    ("content", "line", "expected"),
    [
        ('text,label\na,"b\n', 2, "not valid CSV"),
        ('text,label\na,b\n"a"b,c\n', 3, "not valid CSV"),
        ("text,label\na,b\na,b,c\n", 3, "3 cells, but the header has 2"),
        ("text,label,text\na,b,c\n", 1, "'text'"),
        ("text,label\na\n", 2, "label is empty"),
    ],
)
def test_broken_csv(tmp_path: Path, content: str, line: int, expected: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    text = message(tmp_path / "t.csv")
    assert f"t.csv:{line}:" in text
    assert expected in text


def test_two_parquet_columns_of_one_name(tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), tmp_path / "t.parquet")
    assert "two columns are named 'text'" in message(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("row", "option"),
    [
        ({"question": "q", "choices": ["a", "b"], "answers": 0}, "--data.fields.answer answers"),
        ({"question": "q", "choice list": ["a", "b"], "answer": 0}, "--data.fields.choices 'choice list'"),
        ({"text": "t", "labels": "x"}, "--data.fields.label labels"),
        ({"Text": "t", "label": "x"}, "--data.fields.text Text"),
        ({"texts": "t", "lable": "x"}, "--data.fields.text texts"),
        ({"text": "t", "verdict": "x"}, "--data.fields.label"),
    ],
)
def test_a_missing_field_suggests_the_closest_column(tmp_path: Path, row: dict[str, Any], option: str) -> None:
    text = message(write_jsonl(tmp_path / "t.jsonl", [row]))
    assert "t.jsonl:1" in text
    assert option in text
    assert f"'{next(iter(row))}'" in text


def test_a_field_missing_from_a_later_row(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [TEXT, {"text": "b", "label": "no"}, {"text": "c", "lab": "no"}])
    assert f"{path}:3: no column 'label'" in message(path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"choices": ["a"]}, "at least two"),
        ({"choices": []}, "at least two"),
        ({"choices": "a, b"}, "list of strings"),
        ({"choices": None}, "list of strings"),
        ({"choices": ["a", 3]}, "choice 1 is 3"),
        ({"choices": ["a", None]}, "choice 1 is None"),
        ({"choices": ["a", " "]}, "choice 1 is empty"),
        ({"answer": 2}, "indices count from 0"),
        ({"answer": -1}, "0 to 1"),
        ({"answer": 10**30}, "0 to 1"),
        ({"answer": True}, "an integer from 0 to 1"),
        ({"answer": None}, "missing"),
        ({"answer": 1.0}, "use the integer, 1"),
        ({"answer": 0.5}, "an integer"),
        ({"answer": float("nan")}, "an integer"),
        ({"answer": "1"}, "an integer"),
        ({"answer": "B"}, "use the letter's index, 1"),
        ({"answer": " a"}, "use the letter's index, 0"),
        ({"answer": "C"}, "an integer"),
        ({"answer": "sky"}, "use its index, 1"),
        ({"answer": [0]}, "an integer"),
        ({"question": "  "}, "the question is empty"),
        ({"question": None}, "the question is empty"),
        ({"question": 5}, "not a string"),
        ({"question": "\ud800"}, "surrogate"),
        ({"choices": ["a", "\udfff"]}, "surrogate"),
        ({"id": 1.5}, "id is 1.5"),
        ({"id": True}, "id is True"),
    ],
)
def test_question_rows_that_cannot_be_used(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [QUESTION, {**QUESTION, **change}])
    text = message(path)
    assert text.startswith(f"{path}:2: ")
    assert expected in text


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (["x", "y"], "several labels"),
        (0.5, "regression"),
        (2.0, "regression"),
        (float("nan"), "NaN"),
        (None, "label is empty"),
        ("", "label is empty"),
        ("\ud800", "surrogate"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path: Path, label: object, expected: str) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [TEXT, {"text": "b", "label": label}])
    text = message(path)
    assert text.startswith(f"{path}:2: ")
    assert expected in text


@pytest.mark.parametrize(("cell", "expected"), [("0.25", "regression"), ('["x", "y"]', "several labels")])
def test_csv_labels_that_cannot_be_used(tmp_path: Path, cell: str, expected: str) -> None:
    path = write_csv(tmp_path / "t.csv", [TEXT, {"text": "b", "label": cell}])
    text = message(path)
    assert text.startswith(f"{path}:3: ")
    assert expected in text


@pytest.mark.parametrize(
    ("column", "cell", "expected"), [("choices", "red|blue", "JSON"), ("answer", "C", "an integer from 0")]
)
def test_csv_question_cells_that_cannot_be_used(tmp_path: Path, column: str, cell: str, expected: str) -> None:
    path = write_csv(tmp_path / "t.csv", [{**QUESTION, column: cell}])
    text = message(path)
    assert text.startswith(f"{path}:2: ")
    assert expected in text


def test_parquet_values_of_other_types(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["a"], "label": pa.array([b"x"])}), path)
    assert "use a string or an integer" in message(path)
    pq.write_table(pa.table({"question": ["a"], "choices": [["x", "y"]], "answer": pa.array([1.0])}), path)
    assert "use the integer, 1" in message(path)


def test_duplicate_ids_name_both_lines(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{**QUESTION, "id": "x"}, QUESTION, {**QUESTION, "id": "x"}])
    text = message(path)
    assert f"{path}:3" in text
    assert "line 1" in text
    path = write_jsonl(tmp_path / "t.jsonl", [{**QUESTION, "id": 1}, {**QUESTION, "id": "1"}])
    assert "line 1" in message(path)


def test_mixed_row_forms(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [QUESTION, TEXT])
    assert f"{path}:2: a text row" in message(path)
    path = write_jsonl(tmp_path / "t.jsonl", [TEXT, QUESTION])
    assert f"{path}:2: a question row" in message(path)


@pytest.mark.parametrize("row", [{"prompt": "a", "completion": "b"}, {"messages": []}])
def test_free_text_rows_are_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    text = message(write_jsonl(tmp_path / "t.jsonl", [row]))
    assert "t.jsonl:1" in text
    assert "free-text" in text


def test_one_label_in_the_whole_training_file(tmp_path: Path) -> None:
    text = message(write_jsonl(tmp_path / "t.jsonl", [TEXT, {**TEXT, "text": "b"}]))
    assert "every label is 'yes'" in text


def test_a_label_unseen_in_training_suggests_the_closest(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [TEXT, {**TEXT, "label": "Positve"}])
    text = message(path, labels=("negative", "positive", "yes"))
    assert f"{path}:2" in text
    assert "'Positve'" in text
    assert "closest is 'positive'" in text
    assert "known are 'a', 'b'" in message(path, labels=("a", "b"))


def test_rows_of_a_form_the_task_does_not_have(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [QUESTION])
    assert "if the text is in 'question', rename that column to 'text'" in message(path, labels=("no", "yes"))
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": "a"}])
    assert "trained on questions with choices" in message(path, require_answer=False)


def test_a_huge_value_is_shortened_before_it_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two long orders of the same characters: comparing them whole takes difflib tens of seconds.
    compared: list[int] = []
    original = difflib.SequenceMatcher.ratio

    def ratio(matcher: difflib.SequenceMatcher[str]) -> float:
        compared.append(len(matcher.a) * len(matcher.b))
        return original(matcher) if compared[-1] < 1_000_000 else 0.0

    monkeypatch.setattr(difflib.SequenceMatcher, "ratio", ratio)
    known = [chr(0x4E00 + i % 400) for i in range(100_000)]
    label = "".join(random.Random(0).sample(known, len(known)))
    path = write_jsonl(tmp_path / "t.jsonl", [{**TEXT, "label": label}])
    assert len(message(path, labels=("".join(known), "z"))) < 800
    assert all(product < 1_000_000 for product in compared)


def test_two_fields_of_one_column(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [TEXT])
    with pytest.raises(ConfigError, match=re.escape("data.fields.text and data.fields.label")):
        read(path, fields=FieldsConfig(text="label"))


# --- the formats agree --------------------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
questions = st.builds(
    lambda question, choices, draw: {"question": question, "choices": choices, "answer": draw % len(choices)},
    words,
    st.lists(words, min_size=2, max_size=5),
    st.integers(0, 100),
)
# A CSV cell has no types: a label that spells a decimal number or a list is not the string it is elsewhere.
labels = words.filter(
    lambda label: clean_label(label) and not re.fullmatch(r"\s*[+-]?[\d.]+\s*|\s*\[.*", label, re.DOTALL)
)
texts = st.builds(lambda text, label: {"text": text, "label": label}, words, labels)


def read_everywhere(rows: list[dict[str, Any]]) -> list[TaskFile]:
    with tempfile.TemporaryDirectory() as folder:
        stem = Path(folder) / "t"
        write_jsonl(stem.with_suffix(".jsonl"), rows)
        (Path(folder) / "t.jsonl.gz").write_bytes(gzip.compress(stem.with_suffix(".jsonl").read_bytes()))
        write_csv(stem.with_suffix(".csv"), rows)
        pq.write_table(pa.Table.from_pylist(rows), stem.with_suffix(".parquet"))
        return [read(Path(folder) / f"t.{end}") for end in ("jsonl", "jsonl.gz", "csv", "parquet")]


@settings(max_examples=40, deadline=None)
@given(st.lists(questions, min_size=1, max_size=6), st.booleans())
def test_every_format_reads_the_same_questions(rows: list[dict[str, Any]], with_ids: bool) -> None:
    rows = [{"id": f"#{i}", **row} if with_ids else row for i, row in enumerate(rows)]
    files = read_everywhere(rows)
    wanted = [(r["question"], tuple(r["choices"]), r["answer"]) for r in rows]
    for file in files:
        assert [row[1:] for row in bare(file.examples)] == wanted
        assert bare(file.examples) == bare(files[0].examples)


@settings(max_examples=40, deadline=None)
@given(st.lists(texts, min_size=2, max_size=6, unique_by=lambda row: clean_label(row["label"])))
def test_every_format_reads_the_same_texts(rows: list[dict[str, Any]]) -> None:
    for file in read_everywhere(rows):
        assert file.labels == tuple(label_order(clean_label(row["label"]) for row in rows))
        assert [(e.question, e.choices[e.answer or 0]) for e in file.examples] == [
            (r["text"], clean_label(r["label"])) for r in rows
        ]


def test_duplicate_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": "x", "label": "y"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2: duplicate key 'label'"):
        read(path)
    path.write_text('{"text": "a", "label": "x", "other": 1, "other": 2}\n{"text": "b", "label": {"a": 1, "a": 2}}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2: .*several labels"):
        read(path)


@pytest.mark.parametrize("blank", ["", "  ", "\t"])
def test_a_blank_id_is_none(tmp_path: Path, blank: str) -> None:
    rows = [{**QUESTION, "id": blank}, {**QUESTION, "question": "Which is blue?", "id": "mine"}]
    assert [example.id for example in read(write_jsonl(tmp_path / "rows.jsonl", rows)).examples] == ["rows-1", "mine"]


def test_choices_and_labels_have_a_bound(tmp_path: Path) -> None:
    long = "x" * 100_000
    assert (
        read(write_jsonl(tmp_path / "a.jsonl", [{**QUESTION, "choices": [long, "b"]}])).examples[0].choices[0] == long
    )
    for row in ({**QUESTION, "choices": ["b", long + "y"]}, {"text": "a", "label": long + "y"}):
        with pytest.raises(
            DataError, match=r"rows\.jsonl:1: the (choice 1|label) .* has 100,001 characters, over 100,000"
        ):
            read(write_jsonl(tmp_path / "rows.jsonl", [row]))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**31 - 1], pa.int32()).cast(pa.date32()),
        pa.array([2**62]).cast(pa.timestamp("ns")),
        pa.array([2**62], pa.int64()).view(pa.duration("us")),
    ],
    ids=["date", "nanoseconds", "duration"],
)
def test_parquet_cells_that_python_has_no_value_for(tmp_path: Path, column: Any) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": column, "label": ["x"]}), path)
    with pytest.raises(DataError, match=r"rows\.parquet"):
        read(path)
