"""Prompt templates as data: what stands before the answer, by the kind of row and the way answers are scored.

`{question}` is the row's question or text, `{options}` the lettered list of its choices. No template ends in a space:
it belongs to the choice. Letters need `{options}`; texts are scored without the list, so that they are read as words
of the base's own and not as copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Scoring = Literal["letter", "text"]

TEMPLATES: Mapping[str, Mapping[Scoring, str]] = {
    # questions with choices, by default
    "question": {
        "letter": "Question: {question}\n{options}\nAnswer:",
        "text": "Question: {question}\nAnswer:",
    },
    # texts with labels, by default
    "label": {
        "letter": "Text: {question}\n{options}\nLabel:",
        "text": "Text: {question}\nLabel:",
    },
    # BoolQ with passages: the row's text is "QUESTION?\nPassage: PASSAGE", so that a row that has to be cut loses the
    # passage's end and not the question
    "boolq": {
        "letter": "Question: {question}\nIs it true or false?\n{options}\nAnswer:",
        "text": "Question: {question}\nIs it true or false? Answer:",
    },
    # BoolQ's questions come without their question mark
    "boolq_closed": {
        "letter": "Question: {question}?\nIs it true or false?\n{options}\nAnswer:",
        "text": "Question: {question}?\nIs it true or false? Answer:",
    },
    # WinoGrande's sentences have a _ where one of the choices goes
    "winogrande": {
        "letter": "Sentence: {question}\nWhat does the _ stand for?\n{options}\nAnswer:",
        "text": "Sentence: {question}\nThe _ stands for:",
    },
    "sst2": {
        "letter": "Review: {question}\nIs the review negative or positive?\n{options}\nAnswer:",
        "text": "Review: {question}\nIs the review negative or positive? Answer:",
    },
    "ag_news": {
        "letter": "News: {question}\nWhich section does it belong to?\n{options}\nAnswer:",
        "text": "News: {question}\nSection (Business, Sci/Tech, Sports or World):",
    },
}
"""By the name of the kind; a task by name says which kind its rows are."""
