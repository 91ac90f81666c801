"""Prompts: templates by kind of row and scoring, and rows rendered with them.

In templates, `{question}` is the row's question or text and `{options}` the lettered list of its choices. Letter
scoring needs `{options}`; choices scored by their text are not listed, so that the model does not just copy them. No
template ends in a space, which belongs to the choice.

Plain prompts end in something like "Answer:", and a choice follows after one space. With a chat template, the whole
prompt, including "Answer:", is the user's message, and a choice is the assistant's. Parts from the template and parts
from the row are kept separate, as only the former may contain control tokens.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from string import ascii_uppercase
from typing import TYPE_CHECKING, Literal

from lorchestra.config.data import ChatFrame, DataConfig
from lorchestra.data.chat_frames import chat_frame, frame_digest, frame_parts
from lorchestra.data.tasks.table import find_task
from lorchestra.errors import ConfigError, DataError
from lorchestra.questions import Question
from lorchestra.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ScoringMode = Literal["letter", "text", "tree", "head"]

TEMPLATES: Mapping[str, Mapping[Literal["letter", "text"], str]] = {
    # default for questions with choices
    "question": {
        "letter": "Question: {question}\n{options}\nAnswer:",
        "text": "Question: {question}\nAnswer:",
    },
    # default for texts with labels
    "label": {
        "letter": "Text: {question}\n{options}\nLabel:",
        "text": "Text: {question}\nLabel:",
    },
    # BoolQ with passages: the row's text is "QUESTION?\nPassage: PASSAGE", so that truncation cuts the passage
    "boolq": {
        "letter": "Question: {question}\nIs it true or false?\n{options}\nAnswer:",
        "text": "Question: {question}\nIs it true or false? Answer:",
    },
    # BoolQ's questions have no question mark
    "boolq_closed": {
        "letter": "Question: {question}?\nIs it true or false?\n{options}\nAnswer:",
        "text": "Question: {question}?\nIs it true or false? Answer:",
    },
    # WinoGrande's sentences have a _ in the position of the choice
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
"""Templates by kind of row and scoring (a tree and a head have that of texts); a named task specifies its kind."""


Text = tuple[str, ...]
"""The parts of a string, alternately from the template and from a row; the first and last are the template's."""

LETTERS = ascii_uppercase
"""Names of a row's choices in letter scoring; rows with more choices cannot be scored by letters."""

_DEFAULT_INSTRUCTIONS = "Which of these fits?"
_PLACEHOLDERS = ("question", "options")
# only a name in braces is a placeholder, so JSON in a template needs no escapes
_PLACEHOLDER = re.compile(r"\{\s*(\w*)\s*\}")
_OPEN_END = re.compile(r"[\s(\[{]\Z")


@dataclass(frozen=True)
class RenderedPrompt:
    """The strings to tokenize: the prompt alone, and with each choice.

    `parts` are those of the prompt, `gap` is the separator of prompt and choice, `names` are the choices' letters or
    texts, and `end` is the template's text after an answer.
    """

    parts: Text
    gap: str
    names: tuple[str, ...]
    end: str
    where: str = ""

    @property
    def prompt(self) -> str:
        """The text before the answer."""
        return "".join(self.parts)

    @property
    def continuations(self) -> tuple[str, ...]:
        """The text of each choice after the prompt: `prompt + continuations[c]`."""
        return tuple(self.gap + name for name in self.names)

    @property
    def num_characters(self) -> int:
        """Total characters of the prompt alone and with each choice."""
        prompt = sum(map(len, self.parts))
        return prompt + sum(prompt + len(self.gap) + len(name) for name in self.names)

    def with_choices(self, *, ended: bool = False) -> list[Text]:
        """The prompt with each choice, followed by the end if `ended`."""
        end = self.end if ended else ""
        return [_joined(self.parts, (self.gap, name, end)) for name in self.names]


@dataclass(frozen=True)
class TypedPrompt:
    """The prompt of a typed question: `before` + state + `block`, and then `gap` with one of `names`, and `end`.

    The three are tokenized separately (`data.typed`), so the state's tokens are the same for every question.
    """

    before: str
    block: Text
    gap: str
    names: tuple[str, ...]
    end: str


@dataclass(frozen=True)
class PromptTemplate:
    """The prompts of a task's rows, for both kinds of scoring.

    `prompt` is the user's template with `{question}` (the question or text) and `{options}` (the lettered choices, one
    per line); if it is None, `TEMPLATES` has the template for `kind` and scoring. Other braces in it, and all braces in
    rows, are plain text. The chat template is the `tokenizer`'s; a `saved_frame` of the same template is used instead
    of rendering it. `answer_prefix` separates an answer from a plain prompt; for `version` see data.prompt.version.

    Raises: ConfigError for an unknown placeholder, a template without {question}, or a missing chat template.
    """

    prompt: str | None = None
    kind: str = "question"
    chat: bool = False
    system_prompt: str | None = None
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, repr=False, compare=False)
    answer_prefix: str = " "
    version: Literal[1, 2] = 2
    saved_frame: ChatFrame = field(default_factory=ChatFrame, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check settings that would otherwise fail per row."""
        if self.prompt is not None:
            _check_template(self.prompt)
        if self.system_prompt is not None and not self.chat:
            raise ConfigError("a system prompt needs the chat template: set --data.prompt.chat-template too")
        if self.chat and getattr(self.tokenizer, "chat_template", None) is None:
            hint = "use a base with one (often called Instruct or Chat), or drop --data.prompt.chat-template"
            raise ConfigError(f"data.prompt.chat_template: the base's tokenizer has no chat template; {hint}")
        if self.chat and self.answer_prefix != " ":
            message = f"data.prompt.answer_prefix is {self.answer_prefix!r}, but a chat template separates answers"
            raise ConfigError(f"{message}; leave one of the two out")

    @classmethod
    def from_config(
        cls, config: DataConfig, *, has_labels: bool, tokenizer: PreTrainedTokenizerBase | None
    ) -> PromptTemplate:
        """The configured template; a system prompt implies the chat template."""
        prompt = config.prompt
        kind = "label" if has_labels else "question"
        return cls(
            prompt=prompt.template,
            kind=kind if config.task is None else find_task(config.task).template,
            chat=prompt.chat_template or prompt.system_prompt is not None,
            system_prompt=prompt.system_prompt,
            tokenizer=tokenizer,
            answer_prefix=prompt.answer_prefix,
            version=prompt.version,
            saved_frame=prompt.frame,
        )

    @cached_property
    def frame(self) -> ChatFrame:
        """The text of the chat template around messages: the saved one, or else rendered once.

        Raises: ConfigError if the template fails or has no frame.
        """
        assert self.tokenizer is not None
        if self.saved_frame.template == frame_digest(self.tokenizer, self.system_prompt):
            return self.saved_frame
        return chat_frame(self.tokenizer, self.system_prompt, version=self.version)

    @property
    def shows_shots(self) -> bool:
        """Whether answered rows can be shown before a question."""
        return not self.chat or self.version == 1 or bool(self.frame.shots)

    def text(self, scoring: ScoringMode) -> str:
        """The template: the user's or the default."""
        return TEMPLATES[self.kind]["letter" if scoring == "letter" else "text"] if self.prompt is None else self.prompt

    def shows_options(self, scoring: ScoringMode) -> bool:
        """Whether the prompt lists the choices with their letters."""
        return "options" in _PLACEHOLDER.findall(self.text(scoring))

    def render(self, example: Example, *, scoring: ScoringMode) -> RenderedPrompt:
        """The prompt of a row and a continuation for each of its choices.

        Raises: ConfigError if letter scoring is not possible.
        """
        return self.render_shots((), example, scoring=scoring)

    def render_shots(self, shots: Sequence[Example], example: Example, *, scoring: ScoringMode) -> RenderedPrompt:
        """The prompt after answered examples, separated by blank lines or as turns of a chat.

        Raises: DataError for a shot without an answer; ConfigError as `render`, or if the chat template fails.
        """
        if example.asked is not None:
            return self._typed_row(example, example.asked, scoring)
        names = tuple(self._names(example, scoring))
        solved = [(self._block(shot, scoring), self._answer(shot, scoring)) for shot in shots]
        block = self._block(example, scoring)
        if self.chat:
            return self._chat(solved, block, names, example.where)
        before = [_joined(text, (self._gap(text), answer, "\n\n")) for text, answer in solved]
        end = "\n\n" if solved else "\n"
        return RenderedPrompt(_joined(*before, block), self._gap(block), names, end, example.where)

    def typed(self, question: Question, scoring: ScoringMode, where: str = "") -> TypedPrompt:
        """The prompt of a typed question around a state.

        Raises: ConfigError if it has more options than there are letters, or the chat template fails.
        """
        lettered = scoring == "letter"
        if lettered and len(question.options) > len(LETTERS):
            message = f"{where}: {len(question.options)} options, but there are {len(LETTERS)} letters"
            raise ConfigError(f"{message}; use --data.scoring text or tree")
        alone = frame_parts(self.frame, 0) if self.chat else None
        return typed_prompt(question, alone, lettered=lettered, answer_prefix=self.answer_prefix)

    def _typed_row(self, example: Example, question: Question, scoring: ScoringMode) -> RenderedPrompt:
        prompt = self.typed(question, scoring, example.where)
        parts = _joined((prompt.before, example.question.strip(), ""), prompt.block)
        return RenderedPrompt(parts, prompt.gap, prompt.names, prompt.end, example.where)

    def _block(self, example: Example, scoring: ScoringMode) -> Text:
        template = self.text(scoring)
        lettered = scoring == "letter"
        if lettered and not self.shows_options(scoring):
            message = "data.prompt.template has no {options}, so letters have no meaning for the model"
            raise ConfigError(f"{message}; add {{options}} to it, or use --data.scoring text")
        if (lettered or self.shows_options(scoring)) and len(example.choices) > len(LETTERS):
            message = f"{example.where}: {len(example.choices)} choices, but there are {len(LETTERS)} letters"
            raise ConfigError(f"{message}; use --data.scoring text, and no {{options}} in --data.prompt.template")
        options = (f"{letter}. {choice.strip()}" for letter, choice in zip(LETTERS, example.choices, strict=False))
        values = {"question": example.question, "options": "\n".join(options)}
        # a single pass: braces in a row's values are not replaced
        parts = _PLACEHOLDER.split(template)
        return tuple(values[part] if index % 2 else part for index, part in enumerate(parts))

    def _names(self, example: Example, scoring: ScoringMode) -> list[str]:
        """The letter or text of each choice, without the space before it."""
        if scoring == "letter":
            return list(LETTERS[: len(example.choices)])
        return [choice.strip() for choice in example.choices]

    def _answer(self, shot: Example, scoring: ScoringMode) -> str:
        if shot.answer is None:
            raise DataError(f"{shot.where}: a row without an answer cannot be a few-shot example; use another one")
        return self._names(shot, scoring)[shot.answer]

    def _chat(
        self, solved: Sequence[tuple[Text, str]], block: Text, names: tuple[str, ...], where: str
    ) -> RenderedPrompt:
        """The conversation up to the last answer; spaces before it belong to the answer."""
        try:
            frame = self.frame
            *before, gap, end = frame_parts(frame, len(solved))
        except ConfigError:
            if self.version > 1:
                raise
            return self._live_chat(solved, block, names, where)
        texts = []
        for text, answer in solved:
            texts += [_trimmed(text, frame.trim), ("", answer, "")]
        texts.append(_trimmed(block, frame.trim))
        turns = [_joined((start,), text) for start, text in zip(before, texts, strict=True)]
        opening = gap.rstrip(" ") if self.version > 1 else gap
        return RenderedPrompt(_joined(*turns, (opening,)), gap[len(opening) :], names, end, where)

    def _live_chat(
        self, solved: Sequence[tuple[Text, str]], block: Text, names: tuple[str, ...], where: str
    ) -> RenderedPrompt:
        """The conversation in runs of format 1 if the template has no frame: rendered once per row."""
        messages = [{"role": "system", "content": self.system_prompt}] if self.system_prompt is not None else []
        for text, answer in solved:
            messages += [{"role": "user", "content": "".join(text)}, {"role": "assistant", "content": answer}]
        messages.append({"role": "user", "content": "".join(block)})
        assert self.tokenizer is not None
        try:
            prompt = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # the template is a program: it may raise anything
            raise ConfigError(f"{where}: the base's chat template fails ({error}); use another base") from error
        return RenderedPrompt((str(prompt),), "", names, "", where)

    def _gap(self, text: Text) -> str:
        """Separator of prompt and choice: a space, unless the prompt ends in white space or an opening bracket."""
        return "" if _OPEN_END.search("".join(text)) else self.answer_prefix


def typed_prompt(
    question: Question, alone: Sequence[str] | None, *, lettered: bool, answer_prefix: str = " "
) -> TypedPrompt:
    """The prompt of a typed question: plain, or in the frame of a chat (`ChatFrame.alone`)."""
    names = LETTERS[: len(question.options)] if lettered else question.options
    block, before, gap, end = question_text(question, lettered=lettered), "", answer_prefix, "\n"
    if alone is not None:
        before, frame_gap, end = alone
        opening = frame_gap.rstrip(" ")
        block, gap = _joined(block, (opening,)), frame_gap[len(opening) :]
    return TypedPrompt(before, block, gap, tuple(name.strip() for name in names), end)


def question_text(question: Question, *, lettered: bool) -> Text:
    """A typed question as it follows its state.

    Options that are scored by their text are listed where one has a description, sorted, so that their order changes
    nothing; levels are always listed, from the lowest. A letter needs its option, in the given order.
    """
    pieces: list[Text] = [("\n\nQuestion: ", question.instructions.strip() or _DEFAULT_INSTRUCTIONS, "")]
    described = list(zip(question.options, question.descriptions, strict=True))
    if question.type == "predicate":
        pieces.append(("\nIs this true or false?",))
    if lettered:
        lines = [(f"\n{letter}. ", *pair) for letter, pair in zip(LETTERS, described, strict=False)]
    elif question.type == "score":
        pieces.append(("\nLevels, from the lowest:",))
        lines = [("\n- ", *pair) for pair in described]
    else:
        listed = sorted(described) if any(question.descriptions) else []
        lines = [("\n- ", *pair) for pair in listed]
    for mark, option, description in lines:
        pieces.append((mark, option.strip() + (f": {description.strip()}" if description else ""), ""))
    return _joined(*pieces, ("\nAnswer:",))


def _joined(*texts: Text) -> Text:
    """Concatenated strings; adjacent parts from the template are merged."""
    parts = [""]
    for text in texts:
        parts[-1] += text[0]
        parts += text[1:]
    return tuple(parts)


def _trimmed(text: Text, how: str) -> Text:
    """The string stripped by `how`: strip, lstrip, rstrip or empty."""
    parts = list(text)
    for sides, order in ((("strip", "lstrip"), range(len(parts))), (("strip", "rstrip"), range(len(parts))[::-1])):
        for index in order if how in sides else ():
            parts[index] = parts[index].lstrip() if sides[1] == "lstrip" else parts[index].rstrip()
            if parts[index]:
                break
    return tuple(parts)


def _check_template(template: str) -> None:
    names = _PLACEHOLDER.findall(template)
    for name in names:
        if name not in _PLACEHOLDERS:
            near = difflib.get_close_matches(name.lower()[:100], _PLACEHOLDERS, n=1, cutoff=0.4)
            hint = f"did you mean {{{near[0]}}}?" if near else "{question} and {options} are known"
            raise ConfigError(f"data.prompt.template: unknown placeholder {{{name[:60]}}}; {hint}")
    if "question" not in names:
        raise ConfigError(f"data.prompt.template: {template[:60]!r} has no {{question}}; put it where the text belongs")
