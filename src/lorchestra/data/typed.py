"""Typed questions as token ids: state, question and options are tokenized separately.

So a state has the same tokens whatever is asked, a question the same whatever the state is, and options cost their
own tokens only. Each piece is tokenized behind the end of the text that precedes it, which makes the tokens those of
the whole prompt wherever the tokenizer does not merge across a blank line or the last words of the template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lorchestra.choice_tree import has_prefix, num_common
from lorchestra.data.prompts import PromptTemplate, ScoringMode, Text, TypedPrompt
from lorchestra.data.tokenizer import TextTokenizer, front_tokens
from lorchestra.errors import ConfigError, DataError
from lorchestra.questions import Question
from lorchestra.types import EncodedExample, Example

MAX_CHARACTERS = 20_000_000
"""Most characters of a row's strings: a tokenizer needs some hundred bytes per character, and aborts the process when
it gets no memory."""
_ANCHOR = "."
"""Text before a question's block, whose tokens are removed again."""
_KEPT_QUESTIONS = 4096


@dataclass(frozen=True)
class EncodedQuestion:
    """A question as token ids: its `block`, which follows the state, and what each option adds."""

    block: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    divisors: tuple[float, ...] | None


@dataclass(frozen=True)
class TypedEncoder:
    """Encodes rows with typed questions.

    Args:
        template: of the prompt.
        tokens: the base's tokenizer.
        scoring: letters, texts or trees.
        normalize: with texts, what the log-probability of an option is divided by.
        literal: receives the names of tokens that were read as plain text, with their first location.
    """

    template: PromptTemplate
    tokens: TextTokenizer
    scoring: ScoringMode
    normalize: Literal["sum", "token", "byte"]
    literal: dict[str, str]

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        """The rows' tokens, without their index in the split (-1), answer and tree.

        Raises:
            ConfigError: scoring by heads or, with more than 26 options, by letters.
        """
        if self.scoring == "head":
            raise ConfigError(
                "data.scoring: a head has one set of labels; score typed questions by tree, text or letter"
            )
        front = () if self.template.chat else front_tokens(self.tokens.tokenizer)
        questions = {}
        for example in examples:
            assert example.asked is not None
            if len(example.question) > MAX_CHARACTERS:
                message = (
                    f"{example.where}: the state has {len(example.question):,} characters, over {MAX_CHARACTERS:,}"
                )
                raise DataError(f"{message}; shorten it or leave it out")
            if example.asked not in questions:
                questions[example.asked] = self._question(example.asked, example.where)
        before = self.template.typed(examples[0].asked, self.scoring).before if examples and examples[0].asked else ""
        states = list(dict.fromkeys(example.question for example in examples))
        where_of = {example.question: example.where for example in reversed(examples)}
        ids = self._ids([(before, state.strip(), "") for state in states], [where_of[state] for state in states])
        tokens_of = {state: front + tuple(tokens) for state, tokens in zip(states, ids, strict=True)}
        rows = []
        for example in examples:
            assert example.asked is not None
            question, state = questions[example.asked], tokens_of[example.question]
            rows.append(
                EncodedExample(-1, state + question.block, question.options, None, question.divisors, state=len(state))
            )
        return rows

    def truncate(self, rows: Sequence[EncodedExample], max_length: int) -> list[EncodedExample]:
        """The rows with the ends of their states cut, so that each has at most `max_length` tokens if it can."""
        cut = []
        for row in rows:
            longest = max(len(choice) for choice in row.choices)
            keep = max(1, row.state - max(0, len(row.prefix) + longest - max_length))
            cut.append(replace(row, prefix=row.prefix[:keep] + row.prefix[row.state :], state=keep))
        return cut

    def _question(self, question: Question, where: str) -> EncodedQuestion:
        key = (question.content, self.scoring, self.normalize, self.template)
        known = self.tokens.questions.get(key)
        if known is None:
            known = self._encode_question(question, where)
            if len(self.tokens.questions) >= _KEPT_QUESTIONS:
                self.tokens.questions.clear()
            self.tokens.questions[key] = known
        assert isinstance(known, EncodedQuestion)
        return known

    def _encode_question(self, question: Question, where: str) -> EncodedQuestion:
        prompt = self.template.typed(question, self.scoring, where)
        anchored: Text = (_ANCHOR + prompt.block[0], *prompt.block[1:])
        anchor, block = self._ids([(_ANCHOR,), anchored], [where] * 2)
        block = block[num_common(anchor, block) :]
        excess, options = self._options(prompt, where)
        if has_prefix(options):
            excess, options = self._options(prompt, where, prompt.end)
            if has_prefix(options):
                options = self._with_eos(self._options(prompt, where)[1], question, where)
        divisors = None
        if self.normalize == "token":
            divisors = tuple(float(len(option)) for option in options)
        elif self.normalize == "byte":
            divisors = tuple(float(len((prompt.gap + name).encode())) for name in prompt.names)
        return EncodedQuestion(tuple(block[: len(block) - excess]), options, divisors)

    def _options(self, prompt: TypedPrompt, where: str, end: str = "") -> tuple[int, tuple[tuple[int, ...], ...]]:
        """What each option adds to the end of the block, and how many of the block's tokens it replaces."""
        tail = prompt.block[-1]
        texts: list[Text] = [(tail,), *((tail + prompt.gap, name, end) for name in prompt.names)]
        alone, *each = self._ids(texts, [where] * len(texts))
        common = min(num_common(alone, ids) for ids in each)
        return len(alone) - common, tuple(tuple(ids[common:]) for ids in each)

    def _with_eos(
        self, options: tuple[tuple[int, ...], ...], question: Question, where: str
    ) -> tuple[tuple[int, ...], ...]:
        eos = getattr(self.tokens.tokenizer, "eos_token_id", None)
        if eos is None:
            raise ConfigError(
                f"{where}: one of the options of question {question.name!r} is the start of another, and the base's"
                " tokenizer has no line end or EOS token to separate them; reword the options, or use another base"
            )
        return tuple((*option, eos) for option in options)

    def _ids(self, texts: Sequence[Text], wheres: Sequence[str]) -> list[list[int]]:
        ids, literal = self.tokens.ids(texts, wheres)
        for name, where in literal.items():
            self.literal.setdefault(name, where)
        return ids
