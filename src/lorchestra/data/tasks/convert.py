"""Rows of each source, in its own columns, as question, choices and answer.

A converter raises what Python raises where a column is missing or of another kind; the caller names the row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from lorchestra.data.tasks.spec import Convert, Fields

_TRUTH = ("False", "True")


def plain(cells: Mapping[str, Any]) -> Fields:
    """`question`, `choices`, `answer` (an index), and `subject` where there is one: our own files, and MMLU's."""
    return Fields(cells["question"], tuple(cells["choices"]), _index(cells["answer"]), cells.get("subject", ""))


def plain_with_passage(cells: Mapping[str, Any]) -> Fields:
    """The same with a `passage` that answers the question."""
    row = plain(cells)
    return row._replace(question=_with_passage(row.question, cells["passage"]))


def lettered(cells: Mapping[str, Any]) -> Fields:
    """`choices` as `{"text": [...], "label": [...]}` and `answerKey`, one of the labels.

    ARC, OpenBookQA and CommonsenseQA; the labels are letters, or digits in a few rows of ARC.
    """
    question = cells["question"] if "question" in cells else cells["question_stem"]
    return Fields(question, tuple(cells["choices"]["text"]), cells["choices"]["label"].index(cells["answerKey"]))


def boolean(cells: Mapping[str, Any]) -> Fields:
    """`question` and a true or false `answer`, the `passage` left away (BoolQ)."""
    if not isinstance(cells["answer"], bool):
        raise TypeError(f"the answer is {cells['answer']!r}, neither true nor false")
    return Fields(cells["question"], _TRUTH, int(cells["answer"]))


def boolean_with_passage(cells: Mapping[str, Any]) -> Fields:
    """The same with the passage."""
    row = boolean(cells)
    return row._replace(question=_with_passage(row.question, cells["passage"]))


def fill_in(cells: Mapping[str, Any]) -> Fields:
    """`sentence` with a `_`, `option1`, `option2`, and `answer` "1" or "2" (WinoGrande)."""
    return Fields(cells["sentence"], (cells["option1"], cells["option2"]), int(cells["answer"]) - 1)


def distracted(cells: Mapping[str, Any]) -> Fields:
    """`question`, `correct_answer` and three `distractor`s (SciQ), whose order the text alone decides.

    The source has no order: with the right answer always first or last, its letter would give it away.
    """
    right = cells["correct_answer"]
    choices = [right, *(cells[f"distractor{number}"] for number in (1, 2, 3))]
    choices.sort(key=lambda choice: hashlib.sha256(f"{cells['question']}\n{choice}".encode()).hexdigest())
    return Fields(cells["question"], tuple(choices), choices.index(right))


def request_doc(cells: Mapping[str, Any]) -> Fields:
    """`query` ("Question: ...\\nAnswer:"), `choices` and `gold`: the field `doc` of a request."""
    query = cells["query"]
    if not (query.startswith("Question: ") and query.endswith("\nAnswer:")):
        raise ValueError(f"the query is {query[:40]!r}, not 'Question: ...'")
    question = query.removeprefix("Question: ").removesuffix("\nAnswer:")
    return Fields(question, tuple(cells["choices"]), _index(cells["gold"]))


def labelled(*names: str) -> Convert:
    """A converter for `text` and `label`, an index of `names` (AG News)."""

    def convert(cells: Mapping[str, Any]) -> Fields:
        return Fields(cells["text"], names, _index(cells["label"]))

    return convert


def sentiment(cells: Mapping[str, Any]) -> Fields:
    """`text` and `label`, 1 for positive, with the treebank's names of brackets as brackets again (SST-2)."""
    row = labelled("negative", "positive")(cells)
    return row._replace(question=row.question.replace("-lrb-", "(").replace("-rrb-", ")"))


def _index(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"the answer is {value!r}, not an index")
    return value


def _with_passage(question: str, passage: str) -> str:
    # The question first: a row that is too long is cut at its end.
    return f"{question.strip()}?\nPassage: {passage.strip()}"
