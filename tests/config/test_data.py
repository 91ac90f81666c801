"""Settings of typed questions: what they exclude."""

from __future__ import annotations

import pytest

from lorchestra.config.data import DataConfig, PromptConfig, ReadConfig, check_data
from lorchestra.errors import ConfigError


def config(read=None, **data):
    return DataConfig(read=ReadConfig(**{"questions": "q.yaml"} | (read or {})), **data)


@pytest.mark.parametrize("weights", ["even", "rows"])
def test_typed_questions(weights):
    check_data(config({"question_weights": weights}, train="rows.csv", scoring="tree"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (config(task="arc_easy"), "data.task arc_easy: a task by name has its questions"),
        (config(scoring="head"), "data.scoring head: a head has one set of labels; use tree, text or letter"),
        (config(prompt=PromptConfig(template="{question}")), "data.prompt.template: typed questions have a prompt"),
        (config(class_weights=True), "--data.class-weights: use --data.question-weights"),
        (config({"label_names": ("0=no",)}), "--data.label-names: the questions file"),
        (config({"clean_labels": True}), "--data.clean-labels: the questions file"),
        (config({"answer_as": "index"}), "--data.answer-as: the question's type"),
    ],
)
def test_settings_of_other_rows_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=f"--data.questions q.yaml: cannot be combined with {message}") as caught:
        check_data(wrong)
    assert str(caught.value).endswith("leave one of the two out")


def test_weights_need_questions():
    with pytest.raises(ConfigError, match=r"--data\.question-weights rows: there are no typed questions to weigh"):
        check_data(DataConfig(read=ReadConfig(question_weights="rows")))
