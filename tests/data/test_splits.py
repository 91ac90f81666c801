from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorchestra.data.splits import make_splits, normalize_text, split_digest
from lorchestra.errors import DataError
from lorchestra.types import Example

LABELS = ("no", "yes")


def rows(num: int, prefix: str = "q", num_labels: int = 2) -> list[Example]:
    labels = tuple(f"label {i}" for i in range(num_labels))
    return [Example(f"{prefix}{i}", f"{prefix} {i}", labels, i % num_labels) for i in range(num)]


def ids(examples: Sequence[Example]) -> list[str]:
    return [example.id for example in examples]


def test_given_splits_do_not_change() -> None:
    train, val, test = rows(5, "a"), rows(3, "b"), rows(2, "c")
    splits, report = make_splits(train, val, test, seed=0)
    assert splits == {"train": tuple(train), "val": tuple(val), "test": tuple(test)}
    assert list(splits) == ["train", "val", "test"]
    assert report.num_rows == {"train": 5, "val": 3, "test": 2}
    assert report.sentences() == ()


@pytest.mark.parametrize(
    ("val", "test", "sizes"),
    [
        (None, None, {"train": 80, "val": 10, "test": 10}),
        (None, rows(7, "t"), {"train": 90, "val": 10, "test": 7}),
        (rows(6, "v"), None, {"train": 90, "val": 6, "test": 10}),
    ],
)
def test_missing_splits_are_held_out(
    val: list[Example] | None, test: list[Example] | None, sizes: dict[str, int]
) -> None:
    train = rows(100, num_labels=5)
    splits, report = make_splits(train, val, test, seed=1)
    assert report.num_rows == sizes
    assert {name: len(part) for name, part in splits.items()} == sizes
    assert set(report.held_out) == {name for name, rows in (("val", val), ("test", test)) if rows is None}
    for name in report.held_out:  # a tenth of each of five equally frequent answers
        assert Counter(example.answer for example in splits[name]) == dict.fromkeys(range(5), 2)
    # Rows keep the order of the file.
    assert ids(splits["train"]) == sorted(ids(splits["train"]), key=lambda name: int(name[1:]))


def test_another_seed_holds_out_other_rows() -> None:
    held = {seed: frozenset(ids(make_splits(rows(200), None, None, seed)[0]["test"])) for seed in range(4)}
    assert len(set(held.values())) == 4
    assert held[0] == frozenset(ids(make_splits(rows(200), None, None, 0)[0]["test"]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=40, max_size=150), st.integers(0, 5), st.randoms(use_true_random=False))
def test_held_out_splits_are_disjoint_cover_and_are_stratified(
    answers: list[int], seed: int, shuffler: random.Random
) -> None:
    examples = [Example(f"i{i}", f"text {i}", ("a", "b", "c", "d"), answer) for i, answer in enumerate(answers)]
    splits, _ = make_splits(examples, None, None, seed)
    parts = [set(ids(part)) for part in splits.values()]
    assert set().union(*parts) == set(ids(examples))
    assert sum(map(len, parts)) == len(examples)
    totals = Counter(answers)
    for name in ("val", "test"):
        assert len(splits[name]) == round(len(examples) / 10)
        counts = Counter(example.answer for example in splits[name])
        for answer, total in totals.items():
            assert abs(counts[answer] - total * len(splits[name]) / len(examples)) < 2
    assert {example.answer for example in splits["train"]} == set(answers)
    shuffled = examples[:]
    shuffler.shuffle(shuffled)
    again, _ = make_splits(shuffled, None, None, seed)
    assert {name: set(ids(part)) for name, part in again.items()} == {
        name: set(ids(part)) for name, part in splits.items()
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 25), min_size=30, max_size=120), st.integers(0, 3))
def test_rows_of_equal_content_are_held_out_together(contents: list[int], seed: int) -> None:
    examples = [
        Example(f"i{i}", f"Text  {content}" if i % 2 else f"text {content} ", LABELS[:: 1 if i % 3 else -1], i % 2)
        for i, content in enumerate(contents)
    ]
    if len(set(contents)) < 6:  # a tenth of five, rounded, is none
        with pytest.raises(DataError, match="too few"):
            make_splits(examples, None, None, seed)
        return
    splits, report = make_splits(examples, None, None, seed)
    seen = [{normalize_text(example.question) for example in part} for part in splits.values()]
    assert sum(map(len, seen)) == len(set(contents))
    assert sum(map(len, splits.values())) == len(examples)
    assert sum(report.repeated.values()) == len(examples) - len(set(contents))
    backwards, _ = make_splits(examples[::-1], None, None, seed)
    assert {name: ids(part)[::-1] for name, part in backwards.items()} == {n: ids(p) for n, p in splits.items()}


def test_rare_labels_stay_in_training() -> None:
    # 2 of 20 frequent rows are their share of the 3 to hold out; the third must not be a label's only row.
    labels = tuple(f"label {i}" for i in range(11))
    examples = [Example(f"i{i}", f"text {i}", labels, max(0, i - 19)) for i in range(30)]
    for seed in range(20):
        splits, _ = make_splits(examples, None, rows(1, "t"), seed)
        assert {example.answer for example in splits["train"]} == set(range(11))
        assert len(splits["val"]) == 3


def test_held_out_rows_are_the_same_on_every_machine() -> None:
    splits, _ = make_splits(rows(30), None, None, seed=0)
    assert (ids(splits["val"]), ids(splits["test"])) == (["q5", "q24", "q29"], ["q10", "q18", "q19"])


def test_duplicates_leave_train_or_validation_never_test() -> None:
    shared = [Example("x", "What  is Red?", ("rose", "sky"), 0)]
    same = [Example("y", "what is red?", ("Sky", "rose"), 1)]  # other order, case and spaces: the same question
    train = [*rows(4, "a"), *shared]
    splits, report = make_splits(train, rows(3, "b"), [*rows(2, "c"), *same], seed=0)
    assert ids(splits["train"]) == ["a0", "a1", "a2", "a3"]
    assert ids(splits["test"]) == ["c0", "c1", "y"]
    assert report.dropped == {("train", "test"): 1}
    splits, report = make_splits(train, [*rows(3, "b"), *same], rows(2, "c"), seed=0)
    assert ids(splits["train"]) == ["a0", "a1", "a2", "a3"]
    assert ids(splits["val"]) == ["b0", "b1", "b2", "y"]
    assert report.dropped == {("train", "val"): 1}
    splits, report = make_splits(train, [*rows(3, "b"), *same], [*rows(2, "c"), *shared], seed=0)
    assert ids(splits["val"]) == ["b0", "b1", "b2"]
    assert report.dropped == {("val", "test"): 1, ("train", "test"): 1}
    assert any("1 row(s) were removed from train, as they are also in test" in line for line in report.sentences())


def test_a_duplicate_of_a_given_test_row_is_not_held_out() -> None:
    test = rows(50)[20:25]
    splits, report = make_splits(rows(50), None, test, seed=0)
    assert report.dropped == {("train", "test"): 5}
    assert not {e.id for e in test} & {*ids(splits["train"]), *ids(splits["val"])}
    assert len(splits["train"]) + len(splits["val"]) == 45


def test_equal_questions_with_other_choices_are_no_duplicates() -> None:
    train = [Example("a", "Which one?", ("rose", "sky"), 0)]
    test = [Example("b", "Which one?", ("rose", "sea"), 0)]
    _, report = make_splits(train, rows(1, "v"), test, seed=0)
    assert report.dropped == {}


def test_questions_that_differ_in_superscripts_are_different() -> None:
    assert normalize_text("10²") != normalize_text("102")
    assert normalize_text("E\u0301A ") == normalize_text(" \u00e9a")


def test_repeated_rows_of_a_split_stay_and_are_counted() -> None:
    train = [*rows(3, "a"), Example("again", "A 1", ("label 0", "label 1"), 1)]
    splits, report = make_splits(train, rows(2, "b"), rows(2, "c"), seed=0)
    assert len(splits["train"]) == 4
    assert report.repeated == {"train": 1}


@pytest.mark.parametrize("num", [1, 4])
def test_too_few_rows_to_hold_out(num: int) -> None:
    with pytest.raises(DataError, match=r"--data\.val.*--data\.test"):
        make_splits(rows(num), None, None, seed=0)


def test_nothing_to_hold_out_if_every_row_has_another_label() -> None:
    with pytest.raises(DataError, match="20 label"):
        make_splits(rows(20, num_labels=20), None, None, seed=0)


def test_empty_splits_are_refused() -> None:
    with pytest.raises(DataError, match="the test split has no rows"):
        make_splits(rows(20), None, [], seed=0)
    with pytest.raises(DataError, match="all remaining rows of train are also in test"):
        make_splits(rows(3), rows(3, "v"), rows(3), seed=0)
    with pytest.raises(DataError, match="all remaining rows of val are also in test"):
        make_splits(rows(3), rows(3, "v"), rows(3, "v"), seed=0)


def test_digest_depends_on_ids_questions_choices_answers_and_order_only() -> None:
    base = Example("a", "q\u00e9", ("x", "y"), 0, "file:1")
    digest = split_digest([base])
    assert len(digest) == 64
    assert split_digest([Example("a", "q\u00e9", ("x", "y"), 0, "elsewhere:9")]) == digest
    others = [
        [Example("b", "q\u00e9", ("x", "y"), 0)],
        [Example("a", "qe", ("x", "y"), 0)],
        [Example("a", "q\u00e9", ("y", "x"), 0)],
        [Example("a", "q\u00e9", ("x", "y"), None)],
        [base, base],
        [],
    ]
    assert len({digest, *map(split_digest, others)}) == 7
    second = Example("b", "r", ("x", "y"), 1)
    assert split_digest([base, second]) != split_digest([second, base])


def test_digest_is_that_of_one_json_line_a_row() -> None:
    # Saved runs carry this number: a change of it must be a decision.
    lines = b'["a", "q\\u00e9", ["x", "y"], 1]\n["b", "r", ["x", "y"], null]\n'
    examples = [Example("a", "q\u00e9", ("x", "y"), 1), Example("b", "r", ("x", "y"), None)]
    assert split_digest(examples) == hashlib.sha256(lines).hexdigest()
