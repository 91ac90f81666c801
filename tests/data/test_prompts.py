from __future__ import annotations

from typing import Any

import pytest

from lorchestra.config.data import DataConfig, PromptConfig
from lorchestra.data.prompts import PromptTemplate, ScoringMode
from lorchestra.errors import ConfigError, DataError
from lorchestra.types import Example

EXAMPLE = Example("1", "What is red?", ("rose", " sky "), 0, "t.jsonl:1")
TEXT = Example("2", "good film", ("no", "yes"), 1, "t.jsonl:2")


def many(num: int) -> Example:
    return Example("m", "Which?", tuple(f"c{i}" for i in range(num)), 0, "t.jsonl:9")


@pytest.mark.parametrize(
    ("kind", "scoring", "prompt", "continuations"),
    [
        ("question", "letter", "Question: What is red?\nA. rose\nB. sky\nAnswer:", (" A", " B")),
        ("question", "text", "Question: What is red?\nAnswer:", (" rose", " sky")),
        ("label", "letter", "Text: What is red?\nA. rose\nB. sky\nLabel:", (" A", " B")),
        ("label", "text", "Text: What is red?\nLabel:", (" rose", " sky")),
    ],
)
def test_defaults(kind: str, scoring: ScoringMode, prompt: str, continuations: tuple[str, ...]) -> None:
    rendered = PromptTemplate(kind=kind).render(EXAMPLE, scoring=scoring)
    assert rendered.prompt == prompt
    assert rendered.continuations == continuations


def test_a_users_template_keeps_other_braces() -> None:
    template = PromptTemplate('{"q": "{ question }", "set": {1, 2}}\n{options}\n->')
    rendered = template.render(EXAMPLE, scoring="letter")
    assert rendered.prompt == '{"q": "What is red?", "set": {1, 2}}\nA. rose\nB. sky\n->'


def test_braces_in_rows_are_plain_text() -> None:
    example = Example("1", "{options} {question} {0} {{x}} \\1 %s", ("{question}", "{}"), 0)
    rendered = PromptTemplate("{question}|{options}|").render(example, scoring="text")
    assert rendered.prompt == "{options} {question} {0} {{x}} \\1 %s|A. {question}\nB. {}|"
    assert rendered.continuations == (" {question}", " {}")


@pytest.mark.parametrize(
    ("end", "continuation"),
    [("Answer:", " A"), ("Answer: ", "A"), ("Answer:\n", "A"), ("Answer: (", "A"), ("->", " A")],
)
def test_one_space_before_the_choice_unless_the_prompt_ends_in_one(end: str, continuation: str) -> None:
    rendered = PromptTemplate("{question}\n{options}\n" + end).render(EXAMPLE, scoring="letter")
    assert rendered.continuations[0] == continuation


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("{qustion}", "did you mean {question}"),
        ("{Question}", "did you mean {question}"),
        ("{question} {option}", "did you mean {options}"),
        ("{question} {0}", "are known"),
        ("{question} {}", "are known"),
        ("{options}", "no {question}"),
        ("question: {question", "no {question}"),
        ("", "no {question}"),
    ],
)
def test_templates_that_cannot_be_used(prompt: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PromptTemplate(prompt)
    assert str(caught.value).startswith("data.prompt.template: ")
    assert expected in str(caught.value)


def test_letters_need_the_options_in_the_prompt() -> None:
    template = PromptTemplate("{question} =")
    assert not template.shows_options("letter")
    assert template.render(EXAMPLE, scoring="text").prompt == "What is red? ="
    with pytest.raises(ConfigError, match=r"no \{options\}.*--data\.scoring text"):
        template.render(EXAMPLE, scoring="letter")


def test_more_choices_than_letters() -> None:
    assert PromptTemplate().render(many(26), scoring="letter").continuations[-1] == " Z"
    with pytest.raises(ConfigError, match=r"t\.jsonl:9: 27 choices.*--data\.scoring text"):
        PromptTemplate().render(many(27), scoring="letter")
    assert len(PromptTemplate().render(many(27), scoring="text").continuations) == 27
    with pytest.raises(ConfigError, match="27 choices"):
        PromptTemplate("{question}{options}:").render(many(27), scoring="text")


def test_shots_come_before_the_question_with_their_answers() -> None:
    template = PromptTemplate()
    rendered = template.render_shots([EXAMPLE, TEXT], many(2), scoring="letter")
    assert rendered.prompt == (
        "Question: What is red?\nA. rose\nB. sky\nAnswer: A\n\n"
        "Question: good film\nA. no\nB. yes\nAnswer: B\n\n"
        "Question: Which?\nA. c0\nB. c1\nAnswer:"
    )
    assert rendered.continuations == (" A", " B")
    text = template.render_shots([TEXT], EXAMPLE, scoring="text")
    assert text.prompt == "Question: good film\nAnswer: yes\n\nQuestion: What is red?\nAnswer:"
    assert template.render_shots([], EXAMPLE, scoring="text") == template.render(EXAMPLE, scoring="text")


def test_a_shot_needs_an_answer() -> None:
    unknown = Example("3", "q", ("a", "b"), None, "t.jsonl:3")
    with pytest.raises(DataError, match=r"t\.jsonl:3"):
        PromptTemplate().render_shots([unknown], EXAMPLE, scoring="text")


def test_chat_wraps_the_whole_prompt_in_the_users_turn(chat_tokenizer: Any) -> None:
    template = PromptTemplate(chat=True, system_prompt="Be brief.", tokenizer=chat_tokenizer)
    rendered = template.render_shots([TEXT], EXAMPLE, scoring="text")
    assert rendered.prompt == (
        "<s><system>Be brief.\n"
        "<user>Question: good film\nAnswer:\n<assistant>yes\n"
        "<user>Question: What is red?\nAnswer:\n<assistant>"
    )
    assert rendered.continuations == ("rose", "sky")
    assert (
        PromptTemplate(chat=True, tokenizer=chat_tokenizer)
        .render(TEXT, scoring="letter")
        .prompt.startswith("<s><user>")
    )


def test_chat_without_a_template_or_with_a_failing_one(tokenizer: Any, chat_tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.prompt\.chat_template.*no chat template"):
        PromptTemplate(chat=True, tokenizer=tokenizer)
    with pytest.raises(ConfigError, match=r"--data\.prompt\.chat-template"):
        PromptTemplate(system_prompt="x", tokenizer=chat_tokenizer)
    chat_tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    template = PromptTemplate(chat=True, system_prompt="x", tokenizer=chat_tokenizer)
    with pytest.raises(ConfigError, match=r"System role not supported.*--data\.prompt\.system-prompt"):
        template.render(EXAMPLE, scoring="text")


def test_from_config(chat_tokenizer: Any) -> None:
    plain = PromptTemplate.from_config(
        DataConfig(prompt=PromptConfig("{question}?")), has_labels=True, tokenizer=chat_tokenizer
    )
    assert plain == PromptTemplate("{question}?", kind="label")
    chat = PromptTemplate.from_config(
        DataConfig(prompt=PromptConfig(system_prompt="s")), has_labels=False, tokenizer=chat_tokenizer
    )
    assert chat == PromptTemplate(chat=True, system_prompt="s", tokenizer=chat_tokenizer)
