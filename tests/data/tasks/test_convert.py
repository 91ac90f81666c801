"""One row in each source's columns."""

from __future__ import annotations

import pytest

from lorchestra.data.tasks import convert
from lorchestra.data.tasks.spec import Fields

CASES = {
    "plain": (
        convert.plain,
        {"question": "q", "choices": ["a", "b"], "answer": 1, "noisy_label": 0},
        Fields("q", ("a", "b"), 1),
    ),
    "MMLU": (
        convert.plain,
        {"question": "q", "subject": "law", "choices": ["a", "b", "c", "d"], "answer": 3},
        Fields("q", ("a", "b", "c", "d"), 3, "law"),
    ),
    "plain, passage": (
        convert.plain_with_passage,
        {"question": "is it so", "choices": ["False", "True"], "answer": 1, "passage": " It is. "},
        Fields("is it so?\nPassage: It is.", ("False", "True"), 1),
    ),
    "ARC": (
        convert.lettered,
        {"question": "q", "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]}, "answerKey": "C"},
        Fields("q", ("a", "b", "c"), 2),
    ),
    "ARC, digits": (
        convert.lettered,
        {"question": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "1"},
        Fields("q", ("a", "b"), 0),
    ),
    "OpenBookQA": (
        convert.lettered,
        {"question_stem": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
        Fields("q", ("a", "b"), 1),
    ),
    "BoolQ": (
        convert.boolean,
        {"question": "is it so", "answer": False, "passage": "No."},
        Fields("is it so", ("False", "True"), 0),
    ),
    "BoolQ, passage": (
        convert.boolean_with_passage,
        {"question": "is it so", "answer": True, "passage": "Yes."},
        Fields("is it so?\nPassage: Yes.", ("False", "True"), 1),
    ),
    "WinoGrande": (
        convert.fill_in,
        {"sentence": "_ left.", "option1": "Ann", "option2": "Bob", "answer": "2"},
        Fields("_ left.", ("Ann", "Bob"), 1),
    ),
    "request": (
        convert.request_doc,
        {"id": "1", "query": "Question: q\nAnswer: is it?\nAnswer:", "choices": ["a", "b"], "gold": 1},
        Fields("q\nAnswer: is it?", ("a", "b"), 1),
    ),
    "SST-2": (
        convert.sentiment,
        {"text": "good -lrb- very -rrb-", "label": 1, "label_text": "positive"},
        Fields("good ( very )", ("negative", "positive"), 1),
    ),
    "AG News": (
        convert.labelled("World", "Sports"),
        {"text": "-lrb- won", "label": 1},
        Fields("-lrb- won", ("World", "Sports"), 1),
    ),
}


@pytest.mark.parametrize(("reader", "cells", "expected"), CASES.values(), ids=CASES.keys())
def test_a_row_of_each_source(reader, cells, expected):
    assert reader(cells) == expected


BAD = {
    "answer key": (convert.lettered, {"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": ""}),
    "hidden answer": (
        convert.fill_in,
        {"sentence": "_ left.", "option1": "Ann", "option2": "Bob", "answer": ""},
    ),
    "no boolean": (convert.boolean, {"question": "q", "answer": "yes", "passage": "p"}),
    "hidden label": (convert.sentiment, {"text": "good", "label": None}),
    "another query": (convert.request_doc, {"query": "Fact: q\nAnswer:", "choices": ["a", "b"], "gold": 1}),
    "no column": (convert.plain, {"question": "q", "choices": ["a", "b"]}),
}


@pytest.mark.parametrize(("reader", "cells"), BAD.values(), ids=BAD.keys())
def test_a_row_in_another_format_raises(reader, cells):
    with pytest.raises((KeyError, ValueError, TypeError)):
        reader(cells)


def test_the_order_of_choices_of_sciq_does_not_give_the_answer_away():
    rows = [
        {"question": f"q{n}", "correct_answer": "right", **{f"distractor{d}": f"wrong {d}" for d in (1, 2, 3)}}
        for n in range(400)
    ]
    converted = [convert.distracted(row) for row in rows]
    assert all(row.choices[row.answer] == "right" and len(set(row.choices)) == 4 for row in converted)
    counts = [sum(row.answer == index for row in converted) for index in range(4)]
    assert min(counts) > 70  # 100 expected, standard deviation 8.7
    shuffled = dict(reversed(rows[0].items())) | {"distractor1": "wrong 3", "distractor3": "wrong 1"}
    assert convert.distracted(shuffled) == converted[0]
