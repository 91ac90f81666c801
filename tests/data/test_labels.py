"""Labels: spelling, names, order, and warnings about a label set."""

from __future__ import annotations

import csv
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from lorchestra.config.data import DataConfig, ReadConfig
from lorchestra.data.files import TaskFile, read_task_file, rows_of
from lorchestra.data.labels import clean_label, label_names, label_order
from lorchestra.data.row_reader import RowReader
from lorchestra.errors import ConfigError, DataError


def write(path: Path, labels: list[Any], name: str = "t.csv") -> Path:
    with (path / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((f"text {i}", label) for i, label in enumerate(labels))
    return path / name


def read(path: Path, labels: tuple[str, ...] | None = None, require: bool = True, **settings: Any) -> TaskFile:
    return read_task_file(path, DataConfig(read=ReadConfig(**settings)), require_answer=require, labels=labels)


def answers(file: TaskFile) -> list[str | None]:
    return [None if e.answer is None else e.choices[e.answer] for e in file.examples]


CAFE = "caf\u00e9"


@pytest.mark.parametrize(
    "other", [unicodedata.normalize("NFD", CAFE), CAFE + "\u200b", "\ufeff" + CAFE, CAFE + "\u00a0", f" {CAFE} "]
)
def test_labels_that_look_the_same_are_merged(tmp_path: Path, other: str) -> None:
    file = read(write(tmp_path, [CAFE, "no", other, "no"]))
    assert file.labels == (CAFE, "no")
    assert answers(file) == [CAFE, "no", CAFE, "no"]
    assert any("1 row(s) spell" in note for note in file.notes)
    assert answers(read(write(tmp_path, [other]), labels=(CAFE, "no"))) == [CAFE]


def test_visible_differences_stay() -> None:
    assert clean_label("two\u00a0 words") == "two  words"
    assert (
        clean_label("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645")
        == "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    )
    assert clean_label("10\u00b2") == "10\u00b2"


def test_case_is_merged_on_request(tmp_path: Path) -> None:
    path = write(tmp_path, ["Yes", "yes", "yes", "no", "NO ", "very  good", "very good", "very good"])
    file = read(path)
    assert file.labels == ("NO", "Yes", "no", "very  good", "very good", "yes")
    assert sum("--data.clean-labels" in warning for warning in file.warnings) == 3
    merged = read(path, clean_labels=True)
    assert merged.labels == ("NO", "very good", "yes")
    assert answers(merged)[:3] == ["yes"] * 3
    assert any("'Yes', 'yes' are one label, 'yes'" in note for note in merged.notes)
    assert answers(read(write(tmp_path, ["YES", "No"]), labels=("no", "yes"), clean_labels=True)) == ["yes", "no"]


def test_integers_are_in_order_of_their_numbers(tmp_path: Path) -> None:
    assert label_order(["10", "9", "-1", "2"]) == ["-1", "2", "9", "10"]
    assert label_order(["10", "9", "x"]) == ["10", "9", "x"]
    path = write(tmp_path, list(range(12)))
    assert read(path).labels == tuple(map(str, range(12)))
    assert read(path, rules=1).labels == tuple(sorted(map(str, range(12))))


def test_earlier_rules_do_not_change_labels(tmp_path: Path) -> None:
    path = write(tmp_path, ["yes", "yes\u00a0", "no"])
    assert read(path, rules=1).labels == ("no", "yes", "yes\u00a0")


@pytest.mark.parametrize("word", ["nan", "None", "NA", "null", "N/A", "-1"])
def test_words_for_nothing_are_labels_with_a_warning(tmp_path: Path, word: str) -> None:
    file = read(write(tmp_path, [word, "yes", "no"]))
    assert word in (file.labels or ())
    assert any(f"1 row(s) have the label '{word}'" in warning for warning in file.warnings)


def test_a_typo_and_a_slipped_cell_cause_warnings(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    good = "".join(f"text {i},{('yes', 'no')[i % 2]},\n" for i in range(32))
    path.write_text(f"text,label,comment\n{good}it was good, really,yes\nit was dull,on,\nodd,unsure,\n")
    warnings = read(path).warnings
    assert any(w.startswith(f"{path}:34: ") and "'really'" in w and "is 'yes'" in w for w in warnings)
    assert any(w.startswith(f"{path}:35: ") and "--data.label-names on=no" in w for w in warnings)
    assert any(w.startswith(f"{path}:36: ") and "'unsure'" in w for w in warnings)
    assert read(path, label_names=("on=no", "really=yes")).labels == ("no", "unsure", "yes")


def test_no_warning_if_all_labels_are_rare(tmp_path: Path) -> None:
    assert read(write(tmp_path, ["cat", "car", "cart"])).warnings == ()


def test_a_column_of_numbers_is_not_a_label(tmp_path: Path) -> None:
    (warning,) = read(write(tmp_path, [f"price {i}" for i in range(30)])).warnings
    assert "30 labels in 30 rows" in warning


def test_the_label_set_is_shown_with_counts(tmp_path: Path) -> None:
    path = write(tmp_path, ["yes", "no", "yes"])
    assert read(path).notes == (f"{path}: 3 rows with 2 labels: no (1), yes (2)",)


def test_one_text_under_two_labels(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [("A text", "x"), ("a  text", "y"), ("b", "x"), ("b", "x"), ("a text", "y")]
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    (warning,) = read(path).warnings
    assert "2 row(s) have a different label than an earlier row with the same text" in warning
    assert f"'y' at {path}:2" in warning


# --- missing labels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [None, "", " ", float("nan"), -1, "-1", "?"])
def test_optional_labels_may_be_missing(tmp_path: Path, missing: Any) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": "t", "label": label}) + "\n" for label in (missing, "x")))
    assert answers(read(path, labels=("x", "y"), require=False)) == [None, "x"]


def test_a_class_called_minus_one_is_a_label(tmp_path: Path) -> None:
    assert answers(read(write(tmp_path, [-1, 1]), labels=("-1", "0", "1"), require=False)) == ["-1", "1"]


def test_missing_labels_of_training_rows_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, ["x", "", "y", "", "x"])
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:3: the label is empty")
    assert "2 of 5 rows have no label: --data.drop-unlabeled" in str(caught.value)
    file = read(path, drop_unlabeled=True)
    assert answers(file) == ["x", "y", "x"]
    assert "2 row(s) without label are left out" in file.warnings[0]
    with pytest.raises(DataError, match="no row has a label"):
        read(write(tmp_path, ["?", ""]), drop_unlabeled=True)


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_of_labels(tmp_path: Path) -> None:
    path = write(tmp_path, [1, 0, 2])
    file = read(path, label_names=("0=not good", "1=good", "7=never"))
    assert file.labels == ("not good", "good", "2")
    assert answers(file) == ["good", "not good", "2"]
    assert any("'7'" in warning for warning in file.warnings)
    # in other files both the label and its name are read
    again = read(write(tmp_path, ["1", "not good"]), labels=("not good", "good"), label_names=("0=not good", "1=good"))
    assert answers(again) == ["good", "not good"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("n.yaml", "0: negative\n1: positive\n"),
        ("n.json", '{"0": "negative", "1": "positive"}'),
        ("n.yml", "[negative, positive]"),
    ],
)
def test_names_in_a_file(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert label_names((str(tmp_path / name),)) == {"0": "negative", "1": "positive"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("0=a", "b"), "'b' does not have the form"),
        (("0=a", "0=b"), "two names"),
        (("nothing.yaml",), "nor a readable file"),
        (("=x",), "does not have the form"),
    ],
)
def test_names_that_cannot_be_used(given: tuple[str, ...], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        label_names(given)


def test_names_in_a_file_that_yaml_reads_as_truth(tmp_path: Path) -> None:
    (tmp_path / "n.yaml").write_text("0: no\n1: yes\n")
    with pytest.raises(ConfigError, match="quote words that YAML reads"):
        label_names((str(tmp_path / "n.yaml"),))


# --- one row at a time ------------------------------------------------------------------------------------------------


def test_rows_one_by_one_for_prediction(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    cells = [
        {"text": "a", "label": "1"},
        {"text": "b", "label": -1},
        {"text": "c", "label": "unknown"},
        {"text": "", "id": "u"},
        {"text": "d", "id": "u"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in cells) + "{broken\n")
    config = DataConfig(read=ReadConfig(label_names=("0=no", "1=yes")))
    rows = list(rows_of(path, config, faults=True))
    reader = RowReader.for_file(rows[0], config, answers="lenient", labels=("no", "yes"))
    read = []
    for number, row in enumerate(rows, 1):
        try:
            example = reader.example(row, number)
            read.append((example.id, example.question, example.answer))
        except DataError as error:
            read.append(str(error)[len(f"{path}:") :][:1])
    assert read == [("t-1", "a", 1), ("t-2", "b", None), ("t-3", "c", None), "4", ("u", "d", None), "6"]
