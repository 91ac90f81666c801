"""Tokenization of rows one by one: the same tokens as all together, and errors reported per row."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tiny_base import tiny_tokenizer

from lorchestra.config.data import DataConfig
from lorchestra.data.prompts import PromptTemplate
from lorchestra.inference.pipeline import Pipeline, encode_each
from lorchestra.types import Example

LONGEST = 40
LONG = "very long film " * 40


@pytest.fixture(scope="module")
def pipeline():
    tokenizer = tiny_tokenizer()
    base = SimpleNamespace(tokenizer=tokenizer, context_length=LONGEST, num_embeddings=len(tokenizer))
    return Pipeline(base, None, PromptTemplate("{question} Answer:"), DataConfig(), "text", 100, "task")


def examples(texts, choices=("yes", "no")):
    return [Example(str(n), text, choices, None, f"new.csv:{n}") for n, text in enumerate(texts)]


def test_good_rows_have_the_tokens_of_one_call(pipeline):
    rows = examples([f"the film {n} was good" for n in range(9)])
    rows += examples(["a film that names </s> and <s>"])  # read as plain text
    together = pipeline.encode(rows).rows
    assert [row.tokens for row in encode_each(pipeline, rows, "error")] == list(together)
    assert encode_each(pipeline, rows[:1], "error")[0].tokens == together[0]
    assert encode_each(pipeline, [], "error") == []


@pytest.mark.parametrize("number", [1, 2, 9])
@pytest.mark.parametrize("too_long", ["error", "drop", "truncate"])
def test_a_long_row_is_refused_or_dropped_or_truncated(pipeline, number, too_long):
    texts = [LONG if n % 4 == 0 else f"the film {n} was good" for n in range(number)]
    results = encode_each(pipeline, examples(texts), too_long)
    assert [row.tokens.row for row in results if row.tokens] == [n for n, row in enumerate(results) if row.tokens]
    for n, (row, text) in enumerate(zip(results, texts, strict=True)):
        if text != LONG:
            assert (row.fault, row.truncated) == (None, False)
            assert row.tokens is not None
        elif too_long == "error":
            assert row.tokens is None
            assert f"new.csv:{n}: the row has" in row.fault
        elif too_long == "drop":
            assert (row.tokens, row.fault) == (None, None)
        else:
            assert row.truncated
            assert len(row.tokens.prefix) < LONGEST


@pytest.mark.parametrize("too_long", ["error", "drop", "truncate"])
def test_a_row_whose_choices_do_not_fit_is_refused_unless_long_rows_are_dropped(pipeline, too_long):
    rows = [*examples(["a film"]), *examples(["a film"], choices=("no", LONG)), *examples(["a play"])]
    results = encode_each(pipeline, rows, too_long)
    assert [row.tokens is None for row in results] == [False, True, False]
    assert (results[1].fault is None) == (too_long == "drop")
