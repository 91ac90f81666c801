"""Properties of reading that hold for whatever Hypothesis thinks of."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import yaml
from fuzzing.harness import judge
from fuzzing.task_files import as_csv, as_parquet, check_rows, check_that, jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from lorchestra.config.data import DataConfig
from lorchestra.config.mappings import from_mapping, read_recipe, to_mapping, to_yaml
from lorchestra.config.run import RunConfig
from lorchestra.data.splits import make_splits
from lorchestra.errors import LorchestraError
from lorchestra.runs.rows import read_rows
from lorchestra.types import Example

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, database=None)
CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["question", "choices", "answer", "text", "label", "id"]) | st.text(max_size=8)
LAYOUT_NAMES = st.sampled_from(["ctx", "endings", "A", "B", "sol1", "sol2", "answerKey", "goal", "label"])
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30).filter(str.strip)
SUFFIXES = st.sampled_from(["jsonl", "jsonl.gz", "csv", "parquet", "json", "tsv.zst", "arrow"])


def ends_well(work, folder):
    ended, text = judge(work, folder)
    assert ended != "violation", text


@SETTINGS
@given(st.binary(max_size=400), SUFFIXES)
def test_any_bytes_are_rows_or_one_error(data, suffix):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / f"rows.{suffix}"
        path.write_bytes(data)
        ends_well(lambda: check_rows(read_rows(DataConfig(train=str(path)), 0)), path.parent)


@SETTINGS
@given(st.lists(st.dictionaries(NAMES, CELLS, max_size=5), min_size=1, max_size=12))
def test_any_json_objects_are_rows_or_one_error(rows):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "rows.jsonl"
        path.write_bytes(jsonl(rows))
        ends_well(lambda: check_rows(read_rows(DataConfig(train=str(path)), 0)), path.parent)


@SETTINGS
@given(st.lists(st.dictionaries(LAYOUT_NAMES, CELLS, min_size=2, max_size=6), min_size=1, max_size=3), st.booleans())
def test_any_cells_of_other_layouts_are_rows_or_one_error(rows, whole):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / ("rows.json" if whole else "rows.jsonl")
        path.write_bytes(json.dumps(rows).encode() if whole else jsonl(rows))
        ends_well(lambda: check_rows(read_rows(DataConfig(train=str(path)), 0)), path.parent)


@SETTINGS
@given(st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=2, max_size=4)), min_size=12, max_size=20), st.data())
def test_rows_that_can_be_used_are_the_same_in_every_format(pairs, data):
    rows = [
        {"question": question, "choices": choices, "answer": data.draw(st.integers(0, len(choices) - 1))}
        for question, choices in pairs
    ]
    found = []
    with tempfile.TemporaryDirectory() as name:
        for suffix, content in (("jsonl", jsonl(rows)), ("csv", as_csv(rows)), ("parquet", as_parquet(rows))):
            path = Path(name) / f"rows.{suffix}"
            path.write_bytes(content)
            try:
                splits = read_rows(DataConfig(train=str(path)), 0).task.splits
            except LorchestraError as error:
                found.append(str(error).replace(suffix, ""))
            else:
                found.append({key: [(e.id, e.question, e.choices, e.answer) for e in es] for key, es in splits.items()})
    assert found[0] == found[1] == found[2]


@SETTINGS
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 2)), min_size=1, max_size=60), st.integers(0, 5))
def test_splits_are_disjoint_in_content_and_lose_no_row(pairs, seed):
    rows = [Example(str(i), text * (1 + i % 5), ("x", "y", "z"), answer) for i, (text, answer) in enumerate(pairs)]

    def work():
        splits, _ = make_splits(rows, None, None, seed)
        questions = [{row.question for row in split} for split in splits.values()]
        check_that(sum(map(len, splits.values())) == len(rows), "a row got lost")
        check_that(sum(map(len, questions)) == len(set.union(*questions)), "a question is in two splits")

    with tempfile.TemporaryDirectory() as name:
        ends_well(work, Path(name))


@SETTINGS
@given(st.text(max_size=200))
def test_any_text_is_a_recipe_or_one_error(text):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "recipe.yaml"
        path.write_bytes(text.encode(errors="surrogatepass"))
        ends_well(lambda: read_recipe(path, RunConfig), path.parent)


@SETTINGS
@given(
    st.sampled_from(["base", "adapt", "data", "train", "regularize", "evaluate"]),
    st.data(),
    CELLS,
)
def test_a_recipe_that_is_read_is_the_same_after_saving(group, data, value):
    field = data.draw(st.sampled_from(sorted(to_mapping(RunConfig())[group])))

    def work():
        config = from_mapping(RunConfig, {group: {field: value}}, "here")
        again = from_mapping(RunConfig, yaml.safe_load(to_yaml(config)), "again")
        check_that(repr(again) == repr(config), f"{config} became {again}")

    with tempfile.TemporaryDirectory() as name:
        ends_well(work, Path(name))


def test_a_violation_of_these_properties_would_be_seen():
    with tempfile.TemporaryDirectory() as name:
        ended, text = judge(lambda: check_that(json.loads("false"), "no"), Path(name))
    assert (ended, "no" in text) == ("violation", True)
