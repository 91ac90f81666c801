"""The choice of `auto` between letters and texts, for bases that read, guess or always give the same answer."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from lorchestra.config.data import DataConfig, PromptConfig
from lorchestra.data.prompts import PromptTemplate
from lorchestra.errors import DataError
from lorchestra.inference import pipeline as pipeline
from lorchestra.types import Example


class Words:
    """A tokenizer with one token per word."""

    def __init__(self):
        self.ids = {}

    def __call__(self, texts, **options):
        def encode(text):
            return [self.ids.setdefault(word, len(self.ids)) for word in text.split()]

        return {"input_ids": encode(texts) if isinstance(texts, str) else [encode(text) for text in texts]}


def questions(answers, num_choices=4, words=1):
    choices = tuple(f"c{n}" for n in range(num_choices))
    return [Example(str(n), f"q{n}" + " word" * words, choices, a, f"t.jsonl:{n}") for n, a in enumerate(answers)]


@pytest.fixture
def decide(monkeypatch):
    """Decides for a base that answers a row with `answer_of(row)`; also returns the rows that were predicted."""

    def run(rows, answer_of, scoring="auto", max_length=None, **prompt):
        predicted = []

        def predict_rows(model, encoded, passes, token_budget):
            predicted.extend(encoded)
            log_probs = np.full((1, len(encoded), max(len(row.choices) for row in encoded)), -np.inf)
            for e, row in enumerate(encoded):
                log_probs[0, e, : len(row.choices)] = -2.0
                log_probs[0, e, answer_of(row)] = -0.5
            return log_probs

        monkeypatch.setattr(pipeline, "predict_rows", predict_rows)
        base = SimpleNamespace(tokenizer=Words(), context_length=4096, num_embeddings=None)
        template = PromptTemplate(prompt.get("template"))
        data = DataConfig(scoring=scoring, max_length=max_length, prompt=PromptConfig(**prompt))
        return *pipeline.decide_scoring(base, None, template, data, rows, 800), predicted

    return run


def test_letters_for_a_base_that_reads_them_and_texts_for_one_that_guesses(decide):
    rows = questions([n % 4 for n in range(600)])
    scoring, why, predicted = decide(rows, lambda row: row.answer)
    assert scoring == "letter"
    assert "accuracy with letters 1.000 on 200 training rows, chance 0.250 +- 0.031" in why
    assert len(predicted) == 200
    assert decide(rows, lambda row: row.row % 4)[0] == "text"


def test_three_standard_errors_are_the_bound(decide):
    """Of 200 rows, chance is 50 and three standard errors are 18.4 right answers."""
    rows = questions([n % 4 for n in range(200)])
    for right, expected in ((68, "text"), (69, "letter")):
        decision = decide(rows, lambda row, right=right: row.answer if row.row < right else (row.answer + 1) % 4)
        assert decision[0] == expected, decision[1]


@pytest.mark.parametrize(
    "answers",
    [[0] * 300 + [1] * 300 + [2] * 300, [0] * 900 + [1] * 100, [n % 10 == 9 for n in range(1000)]],
    ids=["sorted by answer", "one answer in most rows, sorted", "one answer in most rows"],
)
@pytest.mark.parametrize("letter", [0, 1])
def test_a_base_that_always_gives_one_letter_does_not_read(decide, answers, letter):
    assert decide(questions([int(a) for a in answers], 3), lambda row: letter)[0] == "text"


def test_chance_of_a_common_answer_depends_on_the_draw(decide):
    """Twenty rows of a rare answer: always giving the common one is right in 180 of the 200 drawn rows."""
    rows = questions([int(n >= 20) for n in range(1000)], 2)
    scoring, why, predicted = decide(rows, lambda row: row.answer)
    assert sum(row.answer == 0 for row in predicted) == 20
    assert "chance 0.900" in why
    assert scoring == "letter"
    assert decide(rows, lambda row: 1)[0] == "text"


def test_letters_are_impossible_with_many_choices_or_another_template(decide):
    rows = questions([0, 1, 2, 3] * 10)
    many = questions([0], num_choices=27)
    assert decide(rows + many, lambda row: row.answer)[:2] == (
        "text",
        "t.jsonl:0 has 27 choices, but there are 26 letters",
    )
    assert decide(rows, lambda row: row.answer, template="{question} Answer:")[0] == "text"
    assert decide(rows + questions([0], num_choices=26), lambda row: row.answer)[0] == "letter"


def test_configured_scoring_is_not_tested_on_the_base(decide):
    rows = questions([0, 1] * 10)
    for scoring in ("letter", "text"):
        assert decide(rows, lambda row: 0, scoring=scoring) == (scoring, "as configured", [])


def test_rows_over_the_length_limit_are_not_predicted(decide):
    rows = questions([0, 1, 2, 3] * 20) + questions([0, 1, 2, 3] * 20, words=300)
    assert len(decide(rows, lambda row: row.answer, max_length=100)[2]) == 80
    with pytest.raises(DataError, match="longer than 5 tokens"):
        decide(rows, lambda row: row.answer, max_length=5)
