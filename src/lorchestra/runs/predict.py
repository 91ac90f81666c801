"""Answers to a stream of rows: read, encoded and answered in chunks, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from lorchestra.data.input_rows import InputRow
from lorchestra.inference.pipeline import Pipeline, TooLong, encode_each
from lorchestra.inference.predict import PrefixReuse
from lorchestra.metrics import predictive
from lorchestra.metrics.early_exit import ExitRule
from lorchestra.types import EarlyExitPredictions, EncodedExample, Example, Predictions

CHUNK_ROWS_CPU, CHUNK_ROWS_CUDA = 256, 1024
"""Rows of a chunk: enough to fill some passes, few enough that the first answers come soon."""


@dataclass(frozen=True)
class AnswerOptions:
    """What is asked of the rows: the confidence below which to abstain, early exit, and what to do with long rows."""

    abstain_below: float | None = None
    rule: ExitRule | None = None
    too_long: TooLong = "error"


@dataclass(frozen=True)
class AnsweredChunk:
    """The answers to consecutive rows, in their order; rows that were left out for their length have none.

    `rows` are those that were read; `dropped` says where those that were left out are, `truncated` where those whose
    question was cut.
    """

    rows: tuple[InputRow, ...]
    records: tuple[dict[str, Any], ...]
    dropped: tuple[str, ...]
    truncated: tuple[str, ...]


@dataclass
class AnswerCounts:
    """What became of the rows so far: JSON values, to be saved with the lines of an interrupted command."""

    rows: int = 0
    answered: int = 0
    failed: int = 0
    dropped: int = 0
    truncated: int = 0
    members_used: int = 0
    first_fault: str = ""
    first_dropped: str = ""
    first_truncated: str = ""

    def add(self, chunk: AnsweredChunk) -> None:
        """Count a chunk."""
        self.rows += len(chunk.rows)
        self.dropped += len(chunk.dropped)
        self.truncated += len(chunk.truncated)
        self.first_dropped = self.first_dropped or next(iter(chunk.dropped), "")
        self.first_truncated = self.first_truncated or next(iter(chunk.truncated), "")
        for record in chunk.records:
            if record["error"] is None:
                self.answered += 1
                self.members_used += record.get("members_used", 0)
            else:
                self.failed += 1
                self.first_fault = self.first_fault or record["error"]

    def sentences(self, max_length: int) -> Iterator[str]:
        """What a person should know about rows that are too long, of a longest length in tokens."""
        for number, first, what in (
            (self.dropped, self.first_dropped, "left out"),
            (self.truncated, self.first_truncated, "cut at the question's end"),
        ):
            if number:
                yield f"{number} row(s) longer than {max_length} tokens {what}, the first: {first}"


def chunk_rows(pipeline: Pipeline) -> int:
    """Rows of a chunk on the session's device."""
    return CHUNK_ROWS_CUDA if pipeline.model.device.type == "cuda" else CHUNK_ROWS_CPU


def answer_chunks(
    pipeline: Pipeline, rows: Iterable[InputRow], options: AnswerOptions, size: int
) -> Iterator[AnsweredChunk]:
    """Answers to all rows, a chunk of `size` rows at a time.

    A chunk's answers depend on its rows alone, so that a stream that begins at a later chunk has the same ones.
    """
    prefix_reuse = PrefixReuse()
    iterator = iter(rows)
    while chunk := tuple(islice(iterator, size)):
        yield _answer(pipeline, chunk, options, prefix_reuse)


def _answer(
    pipeline: Pipeline, chunk: tuple[InputRow, ...], options: AnswerOptions, prefix_reuse: PrefixReuse
) -> AnsweredChunk:
    asked = [row for row in chunk if row.example is not None]
    encoded = encode_each(pipeline, [row.example for row in asked if row.example is not None], options.too_long)
    faults = {row.number: row.fault for row in chunk if row.example is None}
    examples: list[Example] = []
    tokens: list[EncodedExample] = []
    numbers: list[int] = []
    for row, found in zip(asked, encoded, strict=True):
        if found.tokens is None:
            faults[row.number] = found.fault
        elif row.example is not None:
            numbers.append(row.number)
            examples.append(row.example)
            tokens.append(_at(found.tokens, len(tokens)))
    answers = dict(zip(numbers, _answers(pipeline, examples, tokens, options, prefix_reuse), strict=True))
    records = []
    for row in chunk:
        fault = faults.get(row.number)
        if row.number in answers:
            records.append(_record(row, answers[row.number], None))
        elif fault is not None:
            records.append(_record(row, unanswered(row.example, options), fault))
    pairs = [(row.example.where, found) for row, found in zip(asked, encoded, strict=True) if row.example is not None]
    dropped = tuple(where for where, found in pairs if found.tokens is None and found.fault is None)
    return AnsweredChunk(chunk, tuple(records), dropped, tuple(where for where, found in pairs if found.truncated))


def _at(tokens: EncodedExample, index: int) -> EncodedExample:
    return EncodedExample(index, tokens.prefix, tokens.choices, tokens.answer, tokens.divisors)


def _answers(
    pipeline: Pipeline,
    examples: Sequence[Example],
    tokens: Sequence[EncodedExample],
    options: AnswerOptions,
    prefix_reuse: PrefixReuse,
) -> Sequence[dict[str, Any]]:
    if not examples:
        return []
    if options.rule is None:
        predictions = pipeline.predict_encoded(examples, tokens, "predict", prefix_reuse)
        return list(prediction_rows(predictions, options.abstain_below))
    early = pipeline.predict_encoded_early(examples, tokens, "predict", options.rule, prefix_reuse=prefix_reuse)
    return early_exit_rows(early, options.abstain_below)


def _record(row: InputRow, answer: dict[str, Any], fault: str | None) -> dict[str, Any]:
    return {"id": row.id, "row": row.number, **{**answer, "id": row.id}, "error": fault, "input": dict(row.kept)}


def unanswered(example: Example | None, options: AnswerOptions) -> dict[str, Any]:
    """The fields of an answer, as far as they are known of a row that cannot be answered."""
    fields = ("id", "choices", "prediction", "prediction_index", "prediction_text", "label", "label_index")
    numbers = ("confidence", "probs", "member_probs", "entropy", "mutual_information", "disagreement", "abstain")
    answer: dict[str, Any] = dict.fromkeys([*fields, *numbers, *(["members_used"] if options.rule else [])])
    return answer if example is None else answer | {"choices": list(example.choices), **_label(example)}


def _label(example: Example) -> dict[str, Any]:
    index = example.answer
    return {"label": None if index is None else example.choices[index], "label_index": index}


def prediction_rows(predictions: Predictions, abstain_below: float | None = None) -> Iterator[dict[str, Any]]:
    """Predictions as one dictionary a row, as `lorchestra predict` writes them.

    `prediction` is the choice's text, `prediction_index` its index; likewise `label`, the right choice where it is
    known. `probs` and `confidence` are of the mixture of members; `entropy` and `mutual_information` in nats;
    `disagreement` is the share of member pairs with different answers; `abstain` is None unless a threshold is given.
    `prediction_text` is `prediction` under its earlier name.
    """
    log_probs = predictions.log_probs_MEC
    mixture = np.exp(predictive.mixture_log_probs(log_probs))
    member_probs = np.exp(log_probs)
    entropy = predictive.total_entropy(log_probs)
    information = predictive.mutual_information(log_probs)
    disagreement = predictive.disagreement(log_probs)
    for e, options in enumerate(predictions.options):
        probs = mixture[e, : len(options)]
        best = int(probs.argmax())
        label = int(predictions.labels[e])
        yield {
            "id": predictions.ids[e],
            "choices": list(options),
            "prediction": options[best],
            "prediction_index": best,
            "prediction_text": options[best],
            "label": None if label < 0 else options[label],
            "label_index": None if label < 0 else label,
            "confidence": float(probs[best]),
            "probs": probs.tolist(),
            "member_probs": member_probs[:, e, : len(options)].tolist(),
            "entropy": float(entropy[e]),
            "mutual_information": float(information[e]),
            "disagreement": float(disagreement[e]),
            "abstain": None if abstain_below is None else bool(probs[best] < abstain_below),
        }


def early_exit_rows(found: EarlyExitPredictions, abstain_below: float | None = None) -> list[dict[str, Any]]:
    """As `prediction_rows`, in the order of the rows; `members_used` says how many members answered one.

    `member_probs`, `probs` and all that follows from them are of these members alone.
    """
    rows = {
        int(place): {**row, "members_used": part.num_members}
        for part, places in zip(found.parts, found.indices, strict=True)
        for place, row in zip(places, prediction_rows(part, abstain_below), strict=True)
    }
    return [rows[place] for place in sorted(rows)]
