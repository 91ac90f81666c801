"""Texts and rows from Python objects."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lorchestra.config.data import DataConfig, FieldsConfig
from lorchestra.data.in_memory import entries_of, is_file, plain_labels, texts_of
from lorchestra.data.input_rows import input_rows
from lorchestra.errors import DataError, InputError


@pytest.mark.parametrize("kind", [list, tuple, np.array, iter], ids=["list", "tuple", "array", "iterator"])
def test_any_sequence_of_strings_is_a_list_of_them(kind):
    texts = texts_of(kind(["a b", "ü"]))
    assert texts == ["a b", "ü"]
    assert {type(text) for text in texts} == {str}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "X is one string"),
        (b"text", "X is one string"),
        (None, "X is of type NoneType"),
        (3, "X is of type int"),
        ([], "0 sample"),
        (np.array([["a"]]), r"X has shape \(1, 1\); pass one axis"),
        (["a", ""], r"X\[1\] is ''"),
        (["a", None], r"X\[1\] is None"),
        ([b"a"], r"X\[0\] is b'a'"),
        (["a", "x" * 5, 4], r"X\[2\] is 4, which is not text"),
    ],
)
def test_refusals_name_the_entry(value, message):
    with pytest.raises(InputError, match=message) as caught:
        texts_of(value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, DataError)


QUESTION = {"question": "q", "choices": ["a", "b"]}
LABELS = ("no", "yes")
TEXTS = ["a good film", "a dull song", "a play"]
DATA = DataConfig()


def asked(rows, data=DATA, labels=LABELS):
    return list(input_rows(entries_of(rows, labels), data, labels))


def examples_of(rows, data=DATA, labels=LABELS):
    result = asked(rows, data, labels)
    assert [row.fault for row in result] == [None] * len(result)
    return [row.example for row in result]


def texts_and_ids(rows, data=DATA, labels=LABELS):
    examples = examples_of(rows, data, labels)
    assert all(row.choices == LABELS for row in examples)
    return [row.question for row in examples], [row.id for row in examples]


def frames():
    """The same rows in the types of each library."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed (extra pandas)")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra hub)")
    import pyarrow

    columns = {"text": TEXTS, "label": ["yes", None, "maybe"]}
    frame = pandas.DataFrame(columns, index=[7, 8, 9])
    return [frame, pyarrow.table(columns), datasets.Dataset.from_dict(columns), frame.to_dict("records")]


def test_rows_of_every_kind_are_the_same_examples():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed (extra pandas)")
    expected = (TEXTS, ["rows-1", "rows-2", "rows-3"])
    series = pandas.Series(TEXTS, index=[7, 8, 9])
    for rows in (TEXTS, tuple(TEXTS), iter(TEXTS), np.array(TEXTS), np.array(TEXTS, dtype=object), series):
        assert texts_and_ids(rows) == expected
    for rows in (series.astype("string"), series.astype("category"), *frames()):
        assert texts_and_ids(rows) == expected
    for rows in frames():
        assert [row.answer for row in examples_of(rows)] == [1, None, None]
    examples = examples_of(TEXTS)
    assert examples_of(examples) == examples


def test_an_iterator_is_read_lazily():
    def endless():
        yield from ({"text": str(i)} for i in itertools.count())

    rows = input_rows(entries_of(endless(), LABELS), DATA, LABELS)
    assert [row.example.question for row in itertools.islice(rows, 1000)][-1] == "999"


def test_ids_and_other_columns():
    rows = [{"id": 7, "review": "a good film", "stars": 5}, {"review": "a play", "id": float("nan")}]
    data = DataConfig(fields=FieldsConfig(text="review"))
    assert texts_and_ids(rows, data) == (["a good film", "a play"], ["7", "rows-2"])
    assert [row.kept for row in asked(rows, data)] == [
        {"review": "a good film", "stars": 5},
        {"review": "a play"},
    ]


def test_questions_with_their_choices():
    rows = [
        {"question": "Which?", "choices": ["a", "b"], "answer": 1},
        {"question": "Who?", "choices": np.array(["x", "y", "z"]), "answer": None},
    ]
    examples = examples_of(rows, labels=None)
    assert [(row.question, row.choices, row.answer) for row in examples] == [
        ("Which?", ("a", "b"), 1),
        ("Who?", ("x", "y", "z"), None),
    ]


def test_no_rows():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed (extra pandas)")
    for rows in ([], (), iter([]), np.array([]), pandas.DataFrame({"text": []}), pandas.Series([], dtype=object)):
        assert asked(rows) == []


ROWS = {
    "None": (None, LABELS, "rows is of type NoneType; pass texts, dicts, a DataFrame"),
    "a number": (3, LABELS, "rows is of type int"),
    "a dict": ({"text": "x"}, LABELS, r"rows is one dict; pass a list of rows: \[row\]"),
    "a matrix": (np.array([["a"]]), LABELS, r"rows has shape \(1, 1\)"),
    "numbers": ([1, 2], LABELS, r"rows\[0\] is 1; pass a text or a dict"),
    "a number in the middle": (["a", 2], LABELS, r"rows\[1\] is 2; pass a text or a dict"),
    "texts": (["a"], None, r"rows\[0\] is a text, but the training rows were questions with choices"),
}


@pytest.mark.parametrize(("rows", "labels", "message"), ROWS.values(), ids=ROWS.keys())
def test_unsupported_containers_are_refused_immediately(rows, labels, message):
    with pytest.raises(InputError, match=message):
        entries_of(rows, labels)


def test_missing_columns_are_refused_before_the_first_answer():
    with pytest.raises(DataError, match=r"\"text\" and \"label\"; the columns are: 'review', 'stars'"):
        input_rows(entries_of([{"review": "x", "stars": 3}], LABELS), DATA, LABELS)


FAULTS = {
    "empty": (["a", " "], LABELS, "the text is empty"),
    "missing": ([{"text": "a"}, {"text": None}], LABELS, "the text is empty"),
    "number": ([{"text": "a"}, {"text": 3}], LABELS, "the text is 3, which is not a string"),
    "choices": ([QUESTION, {"question": "q", "choices": "ab"}], None, "the choices are 'ab'; use a list"),
    "one choice": ([QUESTION, {"question": "q", "choices": ["a"]}], None, "at least two"),
    "choice": ([QUESTION, {"question": "q", "choices": ["a", 3]}], None, "choice 1 is 3"),
}


@pytest.mark.parametrize(("rows", "labels", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_faults_stay_with_their_rows(rows, labels, message):
    first, second = asked(rows, labels=labels)
    assert first.fault is None
    assert message in second.fault


def test_missing_cells_of_pandas_are_missing():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed (extra pandas)")
    with pytest.raises(InputError, match=r"rows\[1\] is <NA>|rows\[1\] is nan"):
        entries_of(pandas.Series(["a", None], dtype="string"), LABELS)
    frame = pandas.DataFrame(
        {"text": pandas.array(["a", "b"], dtype="string"), "label": pandas.array([1, None], "Int64")}
    )
    assert [row.answer for row in examples_of(frame, labels=("0", "1"))] == [1, None]


def test_a_string_is_a_file_or_probably_a_text(tmp_path):
    (tmp_path / "rows").write_text("")
    assert is_file("none.csv")
    assert is_file(tmp_path / "none")
    assert is_file(str(tmp_path / "rows"))
    assert not is_file(["a"])
    for text in ("a good film", "x" * 5000, "two\nlines", "null\0", b"a.csv"):
        with pytest.raises(InputError, match="one string"):
            is_file(text)


def test_labels_of_libraries_are_pythons_values():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed (extra pandas)")
    for kind, values in (("Int64", [0, 1, 0]), ("boolean", [True, False, True]), ("string", ["a", "b", "a"])):
        labels = plain_labels(pandas.Series(values, dtype=kind)).tolist()
        assert labels == values
        assert [type(label) for label in labels] == [type(value) for value in values]
        with pytest.raises(InputError, match=r"y\[1\] is missing \(.*\); leave such rows out"):
            plain_labels(pandas.Series([values[0], None, values[2]], dtype=kind))
    assert plain_labels(pandas.Series([1, 2, 1], dtype="category")).tolist() == [1, 2, 1]
    for y in (np.array([[1], [2]]), np.array([1.5, 2.5]), "text", 3):
        assert plain_labels(y) is y
    with pytest.raises(InputError, match="y mixes int and str"):
        plain_labels([1, "a"])
