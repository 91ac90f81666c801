"""Prompts: from an example to the text before the answer, and the text each choice continues it with.

Plain prompts end in something like "Answer:", and a choice continues them after one space. With a chat template the
whole prompt, its "Answer:" included, is the user's message; the template's opening of the assistant's turn is the last
thing before the choice, which then has no space of its own.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lorchestra.data.config import DataConfig
from lorchestra.data.tasks.table import find_task
from lorchestra.data.templates import TEMPLATES
from lorchestra.data.templates import Scoring as Scoring
from lorchestra.errors import ConfigError, DataError
from lorchestra.types import Example

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""The names of a row's choices in letter scoring; a row with more choices cannot be scored by letters."""

_PLACEHOLDERS = ("question", "options")
# Only a name in braces is a placeholder: JSON in a template keeps its braces without escapes.
_PLACEHOLDER = re.compile(r"\{\s*(\w*)\s*\}")
_OPEN_END = re.compile(r"[\s(\[{]\Z")


@dataclass(frozen=True)
class RenderedPrompt:
    """What goes through the tokenizer: `prompt + continuations[c]` is one string for each choice c."""

    prompt: str
    continuations: tuple[str, ...]

    @property
    def num_characters(self) -> int:
        """Characters of the prompt alone and with each choice."""
        return (1 + len(self.continuations)) * len(self.prompt) + sum(map(len, self.continuations))


@dataclass(frozen=True)
class PromptTemplate:
    """How the rows of a task become prompts; the same for both ways of scoring.

    `prompt` is the user's template with `{question}` (the question or text) and `{options}` (the lettered choices, a
    line each), None for the one that `templates` has for the `kind` of row and the scoring. Other braces in it, and all
    braces in rows, are plain text. A chat template needs the `tokenizer` that brings it.

    Raises: ConfigError for an unknown placeholder, a template without {question}, a chat without a chat template.
    """

    prompt: str | None = None
    kind: str = "question"
    chat: bool = False
    system_prompt: str | None = None
    tokenizer: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what could only fail later, row by row."""
        if self.prompt is not None:
            _check_template(self.prompt)
        if self.system_prompt is not None and not self.chat:
            raise ConfigError("a system prompt needs the chat template: set --data.prompt.chat-template too")
        if self.chat and getattr(self.tokenizer, "chat_template", None) is None:
            hint = "use a base with one (often called Instruct or Chat), or drop --data.prompt.chat-template"
            raise ConfigError(f"data.prompt.chat_template: the base's tokenizer has no chat template; {hint}")

    @classmethod
    def from_config(cls, config: DataConfig, *, has_labels: bool, tokenizer: Any) -> PromptTemplate:
        """The template that a configuration asks for; a system prompt implies the chat template."""
        prompt = config.prompt
        kind = "label" if has_labels else "question"
        return cls(
            prompt=prompt.template,
            kind=kind if config.task is None else find_task(config.task).template,
            chat=prompt.chat_template or prompt.system_prompt is not None,
            system_prompt=prompt.system_prompt,
            tokenizer=tokenizer,
        )

    def text(self, scoring: Scoring) -> str:
        """The template in use: the user's or the default."""
        return TEMPLATES[self.kind][scoring] if self.prompt is None else self.prompt

    def shows_options(self, scoring: Scoring) -> bool:
        """Whether the prompt lists the choices with their letters."""
        return "options" in _PLACEHOLDER.findall(self.text(scoring))

    def render(self, example: Example, *, scoring: Scoring) -> RenderedPrompt:
        """The prompt of one row and a continuation for each of its choices.

        Raises: ConfigError where letters are asked for and cannot be given.
        """
        return self.render_shots((), example, scoring=scoring)

    def render_shots(self, shots: Sequence[Example], example: Example, *, scoring: Scoring) -> RenderedPrompt:
        """The same with answered examples before the question: blocks parted by a blank line, or turns of the chat.

        Raises: DataError for a shot without an answer; ConfigError as `render`, or where the chat template fails.
        """
        solved = [(self._block(shot, scoring), self._answer(shot, scoring)) for shot in shots]
        block = self._block(example, scoring)
        if self.chat:
            return RenderedPrompt(self._chat(solved, block, example), tuple(self._names(example, scoring)))
        before = "".join(f"{text}{_gap(text)}{answer}\n\n" for text, answer in solved)
        gap = _gap(block)
        return RenderedPrompt(before + block, tuple(gap + name for name in self._names(example, scoring)))

    def _block(self, example: Example, scoring: Scoring) -> str:
        template = self.text(scoring)
        lettered = scoring == "letter"
        if lettered and not self.shows_options(scoring):
            message = "data.prompt.template has no {options}, so a letter means nothing to the model"
            raise ConfigError(f"{message}; put {{options}} into it or use --data.scoring text")
        if (lettered or self.shows_options(scoring)) and len(example.choices) > len(LETTERS):
            message = f"{example.where}: {len(example.choices)} choices, but there are {len(LETTERS)} letters"
            raise ConfigError(f"{message}; use --data.scoring text, and no {{options}} in --data.prompt.template")
        options = (f"{letter}. {choice.strip()}" for letter, choice in zip(LETTERS, example.choices, strict=False))
        values = {"question": example.question, "options": "\n".join(options)}
        # One pass over the template: braces that come in with a row are not looked at again.
        return _PLACEHOLDER.sub(lambda match: values[match[1]], template)

    def _names(self, example: Example, scoring: Scoring) -> list[str]:
        """What stands for each choice, without the space before it."""
        if scoring == "letter":
            return list(LETTERS[: len(example.choices)])
        return [choice.strip() for choice in example.choices]

    def _answer(self, shot: Example, scoring: Scoring) -> str:
        if shot.answer is None:
            raise DataError(f"{shot.where}: a row without an answer cannot be a few-shot example; take another one")
        return self._names(shot, scoring)[shot.answer]

    def _chat(self, solved: Sequence[tuple[str, str]], block: str, example: Example) -> str:
        messages = [{"role": "system", "content": self.system_prompt}] if self.system_prompt is not None else []
        for text, answer in solved:
            messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        messages.append({"role": "user", "content": block})
        try:
            prompt = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # the template is a program of the base's: it may raise anything
            hint = (
                "drop --data.prompt.system-prompt"
                if self.system_prompt is not None
                else "drop --data.prompt.chat-template"
            )
            message = f"{example.where}: the base's chat template fails ({error})"
            raise ConfigError(f"{message}; {hint}, or use another base") from error
        return str(prompt)


def _gap(prompt: str) -> str:
    """What parts a choice from the prompt: a space, unless the prompt ends in one or in an opening bracket."""
    return "" if _OPEN_END.search(prompt) else " "


def _check_template(template: str) -> None:
    found = _PLACEHOLDER.findall(template)
    for name in found:
        if name not in _PLACEHOLDERS:
            near = difflib.get_close_matches(name.lower()[:100], _PLACEHOLDERS, n=1, cutoff=0.4)
            hint = f"did you mean {{{near[0]}}}?" if near else "{question} and {options} are known"
            raise ConfigError(f"data.prompt.template: unknown placeholder {{{name[:60]}}}; {hint}")
    if "question" not in found:
        raise ConfigError(
            f"data.prompt.template: {template[:60]!r} has no {{question}}; put it where the row's text belongs"
        )
