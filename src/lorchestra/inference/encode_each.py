"""Tokenization of rows one by one: a row that cannot be encoded is reported and does not stop the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lorchestra.data.encode import EncodedSplit
from lorchestra.errors import LorchestraError
from lorchestra.inference.pipeline import Pipeline
from lorchestra.types import EncodedExample, Example

TooLong = Literal["error", "drop", "truncate"]


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """The result for one row: its tokens, or the reason why there are none."""

    tokens: EncodedExample | None = None
    fault: str | None = None
    """Why the row cannot be encoded; None also for a long row that `too_long` drops."""
    truncated: bool = False
    """Whether its question was cut."""


def encode_each(pipeline: Pipeline, examples: Sequence[Example], too_long: TooLong) -> list[EncodedRow]:
    """Encode each example or report why it cannot be encoded; an encoded row's index is that in `examples`.

    Bisects to isolate faulty rows, so a few of them cost only a few more calls of the tokenizer.
    """
    if len(examples) == 1:
        return [_encode_one(pipeline, examples[0], too_long)]
    try:
        split = _encode(pipeline, examples, "truncate" if too_long == "truncate" else "drop")
    except LorchestraError:
        middle = len(examples) // 2
        halves = (examples[:middle], examples[middle:])
        return _renumbered([row for half in halves for row in encode_each(pipeline, half, too_long)])
    rows = [EncodedRow()] * len(examples)
    for index, tokens in zip(split.kept, split.rows, strict=True):
        rows[index] = EncodedRow(tokens, truncated=index in split.truncated)
    if too_long == "error":
        for index in split.dropped:
            rows[index] = _encode_one(pipeline, examples[index], too_long)
    return _renumbered(rows)


def _encode_one(pipeline: Pipeline, example: Example, too_long: TooLong) -> EncodedRow:
    try:
        split = _encode(pipeline, [example], "truncate" if too_long == "truncate" else "error")
    except LorchestraError as error:
        if too_long == "drop" and _is_only_too_long(pipeline, example):
            return EncodedRow()
        return EncodedRow(fault=str(error))
    return EncodedRow(split.rows[0], truncated=bool(split.truncated))


def _is_only_too_long(pipeline: Pipeline, example: Example) -> bool:
    try:
        _encode(pipeline, [example], "error", bounded=False)
    except LorchestraError:
        return False
    return True


def _encode(pipeline: Pipeline, examples: Sequence[Example], too_long: TooLong, bounded: bool = True) -> EncodedSplit:
    split = pipeline.tokenize(examples, too_long, bounded=bounded)
    pipeline.log_tokens(split, examples)
    return split


def _renumbered(rows: list[EncodedRow]) -> list[EncodedRow]:
    return [
        row if row.tokens is None else dataclasses.replace(row, tokens=dataclasses.replace(row.tokens, row=index))
        for index, row in enumerate(rows)
    ]
