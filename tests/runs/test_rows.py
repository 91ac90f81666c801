"""The rows of a run: files in many forms, notes about them, and what a saved run keeps."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from lorchestra.config.data import DataConfig, ReadConfig
from lorchestra.errors import ConfigError, DataError
from lorchestra.runs import rows as module
from lorchestra.runs.rows import absolute_paths, check_unchanged, is_task_name, read_ood, read_rows


def write_csv(path: Path, num: int, delimiter: str = ",", start: int = 0) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["text", "label"])
        writer.writerows((f"text, number {i}", ("yes", "no")[i % 2]) for i in range(start, start + num))
    return path


def sizes(config: DataConfig) -> dict[str, int]:
    return {name: len(part) for name, part in read_rows(config, 0).task.splits.items()}


def test_hold_outs_have_a_maximum(tmp_path: Path) -> None:
    path = str(write_csv(tmp_path / "t.csv", 400))
    assert sizes(DataConfig(train=path)) == {"train": 320, "val": 40, "test": 40}
    assert sizes(DataConfig(train=path, read=ReadConfig(max_held_out=10))) == {"train": 380, "val": 10, "test": 10}
    assert sizes(DataConfig(train=path, read=ReadConfig(max_held_out=None))) == {"train": 320, "val": 40, "test": 40}
    # below the maximum nothing changes
    below = read_rows(DataConfig(train=path, read=ReadConfig(max_held_out=40)), 0).record()
    assert below == read_rows(DataConfig(train=path, read=ReadConfig(max_held_out=None)), 0).record()


def test_a_run_from_before_the_maximum_keeps_its_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(train=str(write_csv(tmp_path / "t.csv", 400)), read=ReadConfig(max_held_out=None, rules=1))
    (tmp_path / "splits.json").write_text(json.dumps(read_rows(config, 0).record()))
    check_unchanged(read_rows(config, 0), tmp_path / "splits.json")
    capped = dataclasses.replace(config, read=ReadConfig(max_held_out=10))
    with pytest.raises(DataError, match="not those this run was made with"):
        check_unchanged(read_rows(capped, 0), tmp_path / "splits.json")


def test_long_reads_say_how_far_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_log: Any) -> None:
    monkeypatch.setattr("lorchestra.data.files._ROWS_PER_MESSAGE", 1000)
    monkeypatch.setattr("lorchestra.data.files._SECONDS_PER_MESSAGE", float("inf"))
    monkeypatch.setattr(module, "_MANY", 2000)
    path = write_csv(tmp_path / "t.csv", 2500)
    messages: list[str] = []
    on_log(messages.append)
    read_rows(DataConfig(train=str(path)), 0)
    assert messages == [f"reading {path}: 1,000 rows", f"reading {path}: 2,000 rows", "splitting 2,500 rows"]


def test_assumptions_and_suspicious_rows_are_noted(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", 40, ";")
    with path.open("a") as file:
        file.write("a;yess\n")
    notes = read_rows(DataConfig(train=str(path)), 0).notes
    assert notes[0] == f"{path}: read as semicolon-separated"
    assert notes[1] == f"{path}: 41 rows with 3 labels: no (20), yes (20), yess (1)"
    assert "--data.label-names yess=yes" in notes[2]


@pytest.mark.parametrize("given", ["parts", "parts/*.csv"])
def test_a_directory_or_pattern_is_one_training_file(tmp_path: Path, given: str) -> None:
    (tmp_path / "parts").mkdir()
    write_csv(tmp_path / "parts" / "a.csv", 20)
    write_csv(tmp_path / "parts" / "b.csv", 20, start=20)
    rows = read_rows(DataConfig(train=f"{tmp_path}/{given}"), 0)
    assert sum(map(len, rows.task.splits.values())) == 40
    assert rows.task.name == "parts"
    ids = {row.id for part in rows.task.splits.values() for row in part}
    assert {"a-1", "b-20"} <= ids


def test_standard_input_is_no_training_file() -> None:
    with pytest.raises(ConfigError, match="standard input cannot be read again"):
        read_rows(DataConfig(train="-"), 0)


def test_what_is_saved_holds_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    names = tmp_path / "names.yaml"
    names.write_text("'yes': good\n'no': bad\n")
    write_csv(tmp_path / "t.csv", 40)
    saved = absolute_paths(DataConfig(train="~/t.csv", read=ReadConfig(label_names=("~/names.yaml",))))
    assert saved.train == str(tmp_path / "t.csv")
    assert saved.read.label_names == ("yes=good", "no=bad")
    names.unlink()
    assert read_rows(saved, 0).task.labels == ("bad", "good")
    assert absolute_paths(saved) == saved


def test_rows_unlike_the_training_rows_may_be_a_pattern(tmp_path: Path) -> None:
    write_csv(tmp_path / "far-1.csv", 3)
    assert list(read_ood([f"{tmp_path}/far-*.csv"], DataConfig(), ("no", "yes"))) == ["far"]


@pytest.mark.parametrize("value", ["x.tsv", "x.json.gz", "dir/x", "part-*", "-"])
def test_files_are_no_task_names(value: str) -> None:
    assert not is_task_name(value)


INPUTS: dict[str, tuple[Any, str]] = {
    "array.json": (("no", "yes"), "8 rows"),
    "endings_layout.jsonl": (None, "choices: endings"),
    "int_labels_0_to_11.csv": (tuple(map(str, range(12))), "12 labels"),
    "labels_nfc_nfd.csv": (("caf\u00e9", "no"), "8 row(s) spell"),
    "labels_zero_width.csv": (("no", "yes"), "4 row(s) spell"),
    "same_text_two_labels.jsonl": (("no", "yes"), "a different label than an earlier row"),
    "semicolon.csv": (("no", "yes"), "semicolon-separated"),
    "sep_line.csv": (("no", "yes"), "comma-separated, as the first line says"),
    "shifted_and_typo.csv": (("no", "on", "really", "yes"), "--data.label-names on=no"),
    "tab.csv": (("no", "yes"), "tab-separated"),
    "two_solutions_layout.jsonl": (None, "choices: sol1, sol2"),
}


@pytest.mark.shared
@pytest.mark.parametrize("name", INPUTS)
def test_inputs_as_people_have_them(shared_data: Path, name: str) -> None:
    labels, messages = INPUTS[name]
    path = shared_data.parent / "inputs" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    rows = read_rows(DataConfig(train=str(path)), 0)
    assert rows.task.labels == labels
    assert any(messages in note for note in rows.notes)
