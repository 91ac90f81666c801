"""Rows as tokens one by one: what is wrong with a row is that row's fault and stops no other."""

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
    """What became of one row.

    Without `tokens` it cannot be asked: `fault` says why, and is None for a row that was left out as it was asked for.
    `truncated` says that its question was cut.
    """

    tokens: EncodedExample | None = None
    fault: str | None = None
    truncated: bool = False


def encode_each(pipeline: Pipeline, examples: Sequence[Example], too_long: TooLong) -> list[EncodedRow]:
    """Each example as tokens, or its fault; the row index of each is its index in `examples`.

    A faulty row is looked for by halves, so that a few of them cost a few more calls of the tokenizer.
    """
    if len(examples) == 1:
        return [_encode_one(pipeline, examples[0], too_long)]
    try:
        split = _encode(pipeline, examples, "truncate" if too_long == "truncate" else "drop")
    except LorchestraError:
        middle = len(examples) // 2
        halves = (examples[:middle], examples[middle:])
        return _renumbered([row for half in halves for row in encode_each(pipeline, half, too_long)])
    found = [EncodedRow()] * len(examples)
    for index, tokens in zip(split.kept, split.rows, strict=True):
        found[index] = EncodedRow(tokens, truncated=index in split.truncated)
    if too_long == "error":
        for index in split.dropped:
            found[index] = _encode_one(pipeline, examples[index], too_long)
    return _renumbered(found)


def _encode_one(pipeline: Pipeline, example: Example, too_long: TooLong) -> EncodedRow:
    try:
        split = _encode(pipeline, [example], "truncate" if too_long == "truncate" else "error")
    except LorchestraError as error:
        if too_long == "drop" and _fits_without_bound(pipeline, example):
            return EncodedRow()
        return EncodedRow(fault=str(error))
    return EncodedRow(split.rows[0], truncated=bool(split.truncated))


def _fits_without_bound(pipeline: Pipeline, example: Example) -> bool:
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
