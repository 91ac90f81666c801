"""Converters of each source's rows to question, choices and answer.

If a column is missing or has another type, a converter raises Python's error, and the caller reports the row.
"""

from __future__ import annotations

import hashlib

from lorchestra.data.tasks.spec import Cells, Convert, Fields

_TRUTH = ("False", "True")


def plain(cells: Cells) -> Fields:
    """`question`, `choices`, `answer` (an index), and `subject` if there is one: lorchestra's files, and MMLU's."""
    return Fields(cells["question"], tuple(cells["choices"]), _index(cells["answer"]), cells.get("subject", ""))


def plain_with_passage(cells: Cells) -> Fields:
    """As `plain`, with a `passage` that answers the question."""
    row = plain(cells)
    return row._replace(question=_with_passage(row.question, cells["passage"]))


def lettered(cells: Cells) -> Fields:
    """`choices` as `{"text": [...], "label": [...]}` and `answerKey`, one of the labels (ARC, OpenBookQA,
    CommonsenseQA).

    The labels are letters, or digits in a few rows of ARC.
    """
    question = cells["question"] if "question" in cells else cells["question_stem"]
    return Fields(question, tuple(cells["choices"]["text"]), cells["choices"]["label"].index(cells["answerKey"]))


def boolean(cells: Cells) -> Fields:
    """`question` and a true or false `answer`, without the `passage` (BoolQ)."""
    if not isinstance(cells["answer"], bool):
        raise TypeError(f"the answer is {cells['answer']!r}, neither true nor false")
    return Fields(cells["question"], _TRUTH, int(cells["answer"]))


def boolean_with_passage(cells: Cells) -> Fields:
    """As `boolean`, with the passage."""
    row = boolean(cells)
    return row._replace(question=_with_passage(row.question, cells["passage"]))


def fill_in(cells: Cells) -> Fields:
    """`sentence` with a `_`, `option1`, `option2`, and `answer` "1" or "2" (WinoGrande)."""
    return Fields(cells["sentence"], (cells["option1"], cells["option2"]), int(cells["answer"]) - 1)


def distracted(cells: Cells) -> Fields:
    """`question`, `correct_answer` and three `distractor`s (SciQ), in an order that depends on the text only.

    The source has no order, and a right answer that is always first would be given away by its letter.
    """
    right = cells["correct_answer"]
    choices = [right, *(cells[f"distractor{number}"] for number in (1, 2, 3))]
    choices.sort(key=lambda choice: hashlib.sha256(f"{cells['question']}\n{choice}".encode()).hexdigest())
    return Fields(cells["question"], tuple(choices), choices.index(right))


def request_doc(cells: Cells) -> Fields:
    """`query` ("Question: ...\\nAnswer:"), `choices` and `gold`: the field `doc` of a request."""
    query = cells["query"]
    if not (query.startswith("Question: ") and query.endswith("\nAnswer:")):
        raise ValueError(f"the query is {query[:40]!r}, not 'Question: ...'")
    question = query.removeprefix("Question: ").removesuffix("\nAnswer:")
    return Fields(question, tuple(cells["choices"]), _index(cells["gold"]))


def labelled(*names: str) -> Convert:
    """A converter for `text` and `label`, an index of `names` (AG News)."""

    def convert(cells: Cells) -> Fields:
        return Fields(cells["text"], names, _index(cells["label"]))

    return convert


def sentiment(cells: Cells) -> Fields:
    """`text` and `label`, 1 for positive, with the treebank's -lrb- and -rrb- as parentheses (SST-2)."""
    row = labelled("negative", "positive")(cells)
    return row._replace(question=row.question.replace("-lrb-", "(").replace("-rrb-", ")"))


def _index(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"the answer is {value!r}, not an index")
    return value


def _with_passage(question: str, passage: str) -> str:
    # the question first, as too long rows are truncated at the end
    return f"{question.strip()}?\nPassage: {passage.strip()}"
