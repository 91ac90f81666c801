"""The text of a chat template around messages, rendered once."""

from __future__ import annotations

from typing import Any

import pytest

from lorchestra.config.data import ChatFrame, DataConfig, PromptConfig, check_data
from lorchestra.config.mappings import from_mapping, to_mapping
from lorchestra.data.chat_frames import chat_frame, frame_parts
from lorchestra.data.prompts import PromptTemplate
from lorchestra.errors import ConfigError
from lorchestra.types import Example

ROW = Example("1", " good film ", ("no", "yes"), 1, "t.jsonl:1")
ASK = "Question: {question}\nAnswer:"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# the system prompt in the first turn, a space on both sides of an answer, contents trimmed, no generation prompt
LLAMA2 = (
    "{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' %}"
    "{% elif m.role == 'user' %}<s>[INST] {{ ns.system }}{{ m.content | trim }} [/INST]{% set ns.system = '' %}"
    "{% else %} {{ m.content | trim }} </s>{% endif %}{% endfor %}"
)
# the last answer alone has a block of thoughts, which its opening does not have
THINKING = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# the system prompt goes before the last question
LAST = (
    "{% for m in messages %}{% if m.role == 'user' %}[U]"
    "{% if messages[0].role == 'system' and loop.revindex0 < 2 %}{{ messages[0].content }}\n{% endif %}{{ m.content }}"
    "{% elif m.role == 'assistant' %}[A]{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[A]{% endif %}"
)


def prompts(tokenizer: Any, template: str, system: str | None = None) -> PromptTemplate:
    tokenizer.chat_template = template
    return PromptTemplate(chat=True, system_prompt=system, tokenizer=tokenizer)


@pytest.mark.parametrize("num_shots", [0, 1, 2, 3, 4, 7])
@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("template", [CHATML, LLAMA2, THINKING, LAST], ids=["chatml", "llama2", "thinking", "last"])
def test_prompt_and_answer_are_the_conversation_of_the_template(
    chat_tokenizer: Any, template: str, system: str | None, num_shots: int
) -> None:
    rendered = prompts(chat_tokenizer, template, system).render_shots([ROW] * num_shots, ROW, scoring="text")
    block = "Question:  good film \nAnswer:"
    turns = [{"role": "user", "content": block}, {"role": "assistant", "content": "yes"}]
    head = [] if system is None else [{"role": "system", "content": system}]
    whole = chat_tokenizer.apply_chat_template(head + turns * (num_shots + 1), tokenize=False)
    with_answer = rendered.prompt + rendered.continuations[1] + rendered.end
    assert with_answer == whole.rstrip()
    assert not rendered.prompt.endswith(" ")


def test_how_answers_are_joined(chat_tokenizer: Any) -> None:
    expected = {
        CHATML: ("<|im_start|>assistant\n", "yes", "<|im_end|>"),
        LLAMA2: (" [/INST]", " yes", " </s>"),
        THINKING: ("<think>\n\n</think>\n\n", "yes", "<end>"),
    }
    for template, (opening, answer, end) in expected.items():
        rendered = prompts(chat_tokenizer, template).render(ROW, scoring="text")
        assert rendered.prompt.endswith(opening)
        assert (rendered.continuations[1], rendered.end) == (answer, end)


def test_version_1_answers_follow_the_generation_prompt(chat_tokenizer: Any) -> None:
    for template in (CHATML, THINKING):
        chat_tokenizer.chat_template = template
        old = PromptTemplate(chat=True, tokenizer=chat_tokenizer, version=1)
        for shots in ([], [ROW], [ROW] * 5):
            rendered = old.render_shots(shots, ROW, scoring="text")
            block = "Question:  good film \nAnswer:"
            turns = [{"role": "user", "content": block}, {"role": "assistant", "content": "yes"}] * len(shots)
            live = chat_tokenizer.apply_chat_template(
                [*turns, {"role": "user", "content": block}], tokenize=False, add_generation_prompt=True
            )
            assert (rendered.prompt, rendered.continuations, rendered.end) == (live, ("no", "yes"), "")


def test_contents_are_trimmed_as_the_template_trims_them(chat_tokenizer: Any) -> None:
    for how, expected in {"": " x ", " | trim": "x", ".lstrip()": "x ", ".rstrip()": " x"}.items():
        chat_tokenizer.chat_template = "{% for m in messages %}<{{ m.content" + how + " }}>{% endfor %}"
        template = PromptTemplate("{question} ", chat=True, tokenizer=chat_tokenizer)
        rendered = template.render(Example("1", " x", ("a", "b"), 0), scoring="text")
        assert rendered.prompt == f"<{expected}><"
        empty = template.render(Example("1", " ", ("a", "b"), 0), scoring="text")
        assert empty.prompt == ("<  ><" if how == "" else "<><")


def test_a_saved_frame_is_used_for_its_template_only(chat_tokenizer: Any) -> None:
    """The saved frame is used while template and system prompt are the same; another template is run."""
    first = prompts(chat_tokenizer, CHATML, "one").frame
    config = PromptConfig(system_prompt="one", frame=ChatFrame(first.template, "", ("[", "]", "!"), ()))
    data = DataConfig(prompt=config)
    saved = PromptTemplate.from_config(data, has_labels=True, tokenizer=chat_tokenizer)
    assert saved.render(ROW, scoring="text").prompt == "[Text:  good film \nLabel:]"
    chat_tokenizer.chat_template = LLAMA2
    other = PromptTemplate.from_config(data, has_labels=True, tokenizer=chat_tokenizer)
    assert "[INST]" in other.render(ROW, scoring="text").prompt
    assert from_mapping(DataConfig, to_mapping(data), "config.yaml") == data


def test_a_template_that_writes_the_time_is_run_once(chat_tokenizer: Any) -> None:
    template = prompts(chat_tokenizer, "{{ strftime_now('%H:%M:%S.%f') }} " + CHATML)
    assert template.frame.shots  # a clock is no reason to show no shots
    assert template.render(ROW, scoring="text") == template.render(ROW, scoring="text")
    assert chat_frame(chat_tokenizer, None).alone != template.frame.alone


@pytest.mark.parametrize(
    "template",
    ["{% for m in messages %}{{ m.content | upper }}{% endfor %}", "{{ messages[0].content | e }}", "no content"],
)
def test_templates_that_change_contents_are_refused(chat_tokenizer: Any, template: str) -> None:
    with pytest.raises(ConfigError, match="changes or omits parts of messages"):
        prompts(chat_tokenizer, template).render(ROW, scoring="text")
    old = PromptTemplate(chat=True, tokenizer=chat_tokenizer, version=1)  # runs of format 1 go on with them
    assert old.render(ROW, scoring="text").continuations == ("no", "yes")


def test_irregular_conversations_show_no_shots(chat_tokenizer: Any) -> None:
    template = prompts(chat_tokenizer, "{% for m in messages %}{{ loop.length * 'x' }}{{ m.content }}{% endfor %}")
    assert not template.shows_shots
    assert template.render(ROW, scoring="text").prompt.startswith("xx")
    with pytest.raises(ConfigError, match="no answered rows can be shown"):
        frame_parts(template.frame, 2)


def test_a_template_that_refuses_an_answer_gets_a_generation_prompt(chat_tokenizer: Any) -> None:
    refusing = CHATML.replace(
        "{% for", "{% if messages[-1].role == 'assistant' %}{{ raise_exception('user last') }}{% endif %}{% for", 1
    )
    rendered = prompts(chat_tokenizer, refusing).render(ROW, scoring="text")
    assert rendered.prompt.endswith("<|im_start|>assistant\n")
    assert rendered.end == ""


def test_a_damaged_frame_is_named() -> None:
    config = DataConfig(prompt=PromptConfig(frame=ChatFrame("x", "", ("a", "b"))))
    with pytest.raises(ConfigError, match=r"data\.prompt\.frame: 2 and 0 texts"):
        check_data(config)
