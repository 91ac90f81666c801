"""Answers in any notation: read if one kind fits the whole file, else the error suggests options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorchestra.config.data import DataConfig, FieldsConfig, ReadConfig
from lorchestra.data.files import TaskFile, read_task_file
from lorchestra.errors import DataError


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, config: DataConfig | None = None, *, require_answer: bool = True) -> TaskFile:
    return read_task_file(path, config or DataConfig(), require_answer=require_answer, labels=None)


def with_answers(path: Path, answers: list[Any], choices: tuple[str, ...] = ("red", "green", "blue")) -> Path:
    rows = [{"question": f"q{i}", "choices": list(choices), "answer": answer} for i, answer in enumerate(answers)]
    return write(path / "t.jsonl", rows)


@pytest.mark.parametrize(
    ("answers", "indices", "expected"),
    [
        ([0, 2, 1], [0, 2, 1], None),
        (["0", "2"], [0, 2], None),
        ([1, 3, 2], [0, 2, 1], "numbers from 1"),
        (["1", "3"], [0, 2], "numbers from 1"),
        (["A", "c", " B "], [0, 2, 1], "letters"),
        (["(A)", "C."], [0, 2], "letters"),
        (["green", "blue"], [1, 2], "texts"),
        ([" Green"], None, "an integer"),
    ],
)
def test_one_kind_fits_the_whole_file(
    tmp_path: Path, answers: list[Any], indices: list[int] | None, expected: str | None
) -> None:
    path = with_answers(tmp_path, answers)
    if indices is None:
        with pytest.raises(DataError, match=expected):
            read(path)
        return
    file = read(path)
    assert [example.answer for example in file.examples] == indices
    assert (expected is None) == (file.notes == ())
    assert expected is None or expected in file.notes[0]


def test_ambiguous_answers_are_refused_with_the_options(tmp_path: Path) -> None:
    path = with_answers(tmp_path, ["1", "2"])
    with pytest.raises(DataError) as caught:
        read(path)
    assert "'green' with --data.answer-as index, 'red' with --data.answer-as number" in str(caught.value)
    by_number = read(path, DataConfig(read=ReadConfig(answer_as="number"))).examples
    assert [example.answer for example in by_number] == [0, 1]
    assert [example.answer for example in read(path, DataConfig(read=ReadConfig(answer_as="index"))).examples] == [1, 2]
    path = with_answers(tmp_path, ["B"], ("B", "A"))
    with pytest.raises(DataError, match=r"answer-as letter, 'B' with --data\.answer-as text"):
        read(path)


def test_integers_that_fit_are_indices_as_documented(tmp_path: Path) -> None:
    file = read(with_answers(tmp_path, [1, 2] * 10))
    assert [example.answer for example in file.examples] == [1, 2] * 10
    assert "--data.answer-as number" in file.notes[0]
    file = read(with_answers(tmp_path, [1, 0], ("1", "0")))
    assert [example.answer for example in file.examples] == [1, 0]
    assert "--data.answer-as text" in file.notes[0]


def test_one_answer_out_of_range_does_not_make_all_count_from_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.jsonl:1: the answer is 3; 3 choices have indices 0 to 2"):
        read(with_answers(tmp_path, [3]))


def test_the_row_that_does_not_fit_the_others_is_named(tmp_path: Path) -> None:
    path = with_answers(tmp_path, ["A", "B", "green"])
    with pytest.raises(DataError, match=r"t\.jsonl:3: the answer is 'green'; most answers are letters"):
        read(path)
    with pytest.raises(DataError, match=r"t\.jsonl:1: the answer is 'A'"):
        read(path, DataConfig(read=ReadConfig(answer_as="text")))


@pytest.mark.parametrize("missing", [None, "", -1, "-1", "?", float("nan")])
def test_optional_answers_may_be_missing(tmp_path: Path, missing: Any) -> None:
    path = with_answers(tmp_path, ["A", missing])
    assert [example.answer for example in read(path, require_answer=False).examples] == [0, None]
    assert [e.answer for e in read(path, DataConfig(read=ReadConfig(drop_unlabeled=True))).examples] == [0]


# --- layouts ----------------------------------------------------------------------------------------------------------

CHOICES = ("one", "two", "three")


def columns(*names: str) -> dict[str, str]:
    return dict(zip(names, CHOICES, strict=True))


LAYOUTS: dict[str, dict[str, Any]] = {
    "endings": {"ctx": "q", "endings": list(CHOICES), "label": 2},
    "options": {"question": "q", "options": list(CHOICES), "answer": "C"},
    "science": {"question": "q", "choices": {"text": list(CHOICES), "label": ["A", "B", "C"]}, "answerKey": "C"},
    "numbered": {"question": "q", "choices": {"text": list(CHOICES), "label": ["1", "2", "3"]}, "answerKey": "3"},
    "pairs": {"question": "q", "choices": [{"text": text, "label": text[:2]} for text in CHOICES], "answerKey": "th"},
    "named": {"question": "q", "options": columns("A", "B", "C"), "answer": "C"},
    "letters": {"question": "q", **columns("A", "B", "C"), "answer": "C"},
    "small letters": {"question": "q", **columns("a", "b", "c"), "answer": "three"},
    "choice_a": {"question": "q", **columns("choice_a", "choice_b", "choice_c"), "label": "c"},
    "option1": {"sentence": "q", **columns("option1", "option2", "option3"), "answer": "3"},
    "ending0": {"startphrase": "q", **columns("ending0", "ending1", "ending2"), "label": 2},
    "opa": {"question": "q", **columns("opa", "opb", "opc"), "cop": 2, "topic": "x"},
    "solutions": {"goal": "q", **columns("sol1", "sol2", "sol3"), "label": 2},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_known_layouts(tmp_path: Path, name: str) -> None:
    row = LAYOUTS[name]
    example, _ = read(write(tmp_path / "t.jsonl", [row, row])).examples
    assert (example.question, example.choices, example.answer) == ("q", CHOICES, 2)
    unanswered = {key: value for key, value in row.items() if key not in ("label", "answer", "answerKey", "cop")}
    (example,) = read(write(tmp_path / "t.jsonl", [unanswered]), require_answer=False).examples
    assert (example.question, example.choices, example.answer) == ("q", CHOICES, None)


def test_a_recognized_layout_is_noted(tmp_path: Path) -> None:
    file = read(write(tmp_path / "t.jsonl", [LAYOUTS["endings"]]))
    assert "question: ctx; choices: endings; answer: label" in file.notes[0]


def test_layouts_in_csv_files(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("question,A,B,C,answer\nq,one,two,three,C\nr,yes,no,,A\n")
    assert [(e.choices, e.answer) for e in read(path).examples] == [(CHOICES, 2), (("yes", "no"), 0)]
    path.write_text('question,choices,answerKey\nq,"{""text"": [""x"", ""y""], ""label"": [""A"", ""B""]}",B\n')
    assert [(e.choices, e.answer) for e in read(path).examples] == [(("x", "y"), 1)]


@pytest.mark.parametrize(
    ("row", "options"),
    [
        (
            {"context": "c", "question": "q", "answerA": "x", "answerB": "y", "label": "1"},
            "--data.fields.question context,question --data.fields.choices answerA,answerB --data.fields.answer label",
        ),
        (
            {"premise": "p", "question": "cause", "choice1": "x", "choice2": "y", "label": 0},
            "--data.fields.question premise,question --data.fields.choices choice1,choice2 --data.fields.answer label",
        ),
        ({"premise": "p", "hypothesis": "h", "label": 1}, "--data.fields.text premise,hypothesis"),
        ({"sentence1": "p", "sentence2": "h", "label": 1}, "--data.fields.text sentence1,sentence2"),
        ({"review": "a long one", "label": 1}, "--data.fields.text review"),
    ],
)
def test_ambiguous_layouts_suggest_options(tmp_path: Path, row: dict[str, Any], options: str) -> None:
    path = write(tmp_path / "t.jsonl", [row])
    with pytest.raises(DataError) as caught:
        read(path)
    assert options in str(caught.value)


def test_several_columns_for_one_part(tmp_path: Path) -> None:
    rows = [{"premise": "p", "hypothesis": "h", "label": "x"}, {"premise": "q", "hypothesis": "", "label": "y"}]
    config = DataConfig(fields=FieldsConfig(text="premise,hypothesis"))
    file = read(write(tmp_path / "t.jsonl", rows), config)
    assert [example.question for example in file.examples] == ["premise: p\nhypothesis: h", "premise: q"]
    row = {"context": "c", "question": "q", "answerA": "x", "answerB": "y", "label": 1}
    fields = FieldsConfig(question="context, question", choices="answerA,answerB", answer="label")
    (example,) = read(write(tmp_path / "t.jsonl", [row]), DataConfig(fields=fields)).examples
    assert (example.question, example.choices, example.answer) == ("context: c\nquestion: q", ("x", "y"), 1)


def test_a_column_whose_name_has_a_comma_is_one_column(tmp_path: Path) -> None:
    rows = [{"a,b": "p", "a": 1, "b": 2, "label": name} for name in "xy"]
    config = DataConfig(fields=FieldsConfig(text="a,b"))
    assert read(write(tmp_path / "t.jsonl", rows), config).examples[0].question == "p"


def test_columns_of_letters_next_to_text_and_label_are_ignored(tmp_path: Path) -> None:
    rows = [{"text": "t", "label": name, "A": "1", "B": "2"} for name in "xy"]
    assert read(write(tmp_path / "t.jsonl", rows)).labels == ("x", "y")


def test_parquet_columns_of_a_layout_are_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.Table.from_pylist([LAYOUTS["science"], LAYOUTS["science"] | {"question": "r"}]), tmp_path / "t.parquet"
    )
    assert [(e.choices, e.answer) for e in read(tmp_path / "t.parquet").examples] == [(CHOICES, 2)] * 2
