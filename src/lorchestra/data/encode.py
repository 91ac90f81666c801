"""Examples as token ids.

Prompt and choice are tokenized together, as one string, because tokens merge across the boundary: scoring the tokens of
" A" alone, put after those of a prompt that ends in a space, would score text the model never saw.

The tokens of a choice say how it starts, not that it ends: where " yes" and " yes but" are choices, the probability of
the first includes that of the second. So in such a row every choice is scored together with an end after it.

What a row becomes: its prompt, the tokens where prompt and choice meet, and the positions that are scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import Any, Literal

from lorchestra.data.prompts import LETTERS, PromptTemplate, RenderedPrompt, ScoringMode
from lorchestra.data.tokenizer import TextTokenizer, front_tokens
from lorchestra.errors import ConfigError, DataError
from lorchestra.types import EncodedExample, Example

# Rows tokenized in one call: enough to keep the tokenizer's threads busy, few enough to bound memory.
_ROWS_PER_CALL = 512
# A tokenizer takes some hundred bytes a character, and ends the whole process where it gets no memory.
_CHARACTERS_PER_CALL = 2_000_000
_MAX_CHARACTERS = 20_000_000
# Letters meet the prompt's end, which is the template's: a sample of rows tells what all rows would.
_ROWS_PROBED = 100

_TEXT_INSTEAD = "; use --data.scoring text"

_Ids = list[int]


@dataclass(frozen=True)
class EncodedSplit:
    """The rows of a split as token ids.

    `rows[i].row == i`, and `rows[i]` is example `kept[i]` of those given. `dropped` and `truncated` are the indices of
    the examples given that were left out or cut. `warnings` are sentences for the user. `literal` are the names of the
    base's tokens that rows hold and that were read as plain text, each with where it was first. `hopeless` are the
    examples given in which a choice cannot win, because it continues another or has the same tokens (version 1 alone).
    """

    rows: tuple[EncodedExample, ...]
    kept: tuple[int, ...]
    dropped: tuple[int, ...] = ()
    truncated: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    literal: Mapping[str, str] = field(default_factory=dict)
    hopeless: tuple[int, ...] = ()


def encode(
    examples: Sequence[Example],
    template: PromptTemplate,
    tokenizer: Any,
    *,
    scoring: ScoringMode,
    normalize: Literal["sum", "token", "byte"] = "sum",
    max_length: int | None = None,
    too_long: Literal["error", "drop", "truncate"] = "error",
    shots: Sequence[Example] = (),
) -> EncodedSplit:
    """Tokenize each row's prompt with each of its choices.

    The prefix is the longest common run of first tokens of the prompt alone and of the prompt with each choice; what
    follows it are the choice's tokens. Special tokens are put in front as the tokenizer does (with a chat template:
    only those that it writes itself). Where a choice's tokens would begin another's, all choices of the row have an end
    after them: what the template writes after an answer, or EOS where that does not part them. `normalize` "token"
    counts the end's tokens, "byte" not its bytes. Rows are plain text, whatever tokens they name. `max_length` bounds a
    row's prefix with its longest choice, in tokens; None is no bound. `shots` are answered examples put before every
    question; with them, no row at all may be left. `tokenizer` is transformers', or a `TextTokenizer`.

    Raises: ConfigError where letters are no single, distinct tokens, or `max_length` is not positive; DataError where a
    row is too long, a choice has no tokens, two choices have the same, or the model does not know one of them.
    """
    if max_length is not None and max_length < 1:
        raise ConfigError(f"data.max_length is {max_length}; give the longest row in tokens, at least 1")
    encoder = _Encoder(template, _as_text_tokenizer(tokenizer), scoring, tuple(shots))
    rows: list[EncodedExample] = []
    kept: list[int] = []
    dropped: list[int] = []
    truncated: list[int] = []
    hopeless: list[int] = []
    for batch in _batched(enumerate(examples), _ROWS_PER_CALL):
        encoded = encoder.encode([example for _, example in batch])
        long = [place for place, row in enumerate(encoded) if max_length is not None and row.length > max_length]
        if long and too_long == "error":
            _refuse_length(batch[long[0]][1], encoded[long[0]], max_length)
        if long and too_long == "truncate" and max_length is not None:
            cut = encoder.truncate([batch[place][1] for place in long], [encoded[place] for place in long], max_length)
            for place, row in zip(long, cut, strict=True):
                encoded[place] = row
            truncated += [batch[place][0] for place in long]
            long = []
        for place, ((index, example), row) in enumerate(zip(batch, encoded, strict=True)):
            if place in long:
                dropped.append(index)
                continue
            encoder.check(example, row)
            if row.hopeless:
                hopeless.append(index)
            rows.append(row.example(len(rows), example.answer, normalize if scoring == "text" else "sum"))
            kept.append(index)
    if dropped and not rows and not shots:
        raise DataError(f"all {len(dropped)} rows are longer than {max_length} tokens; raise --data.max-length")
    numbers = ((dropped, "left out"), (truncated, "cut at the question's end"))
    start = f"row(s) longer than {max_length} tokens"
    warnings = [f"{len(found)} {start} {what}: {_places(examples, found)}" for found, what in numbers if found]
    return EncodedSplit(
        tuple(rows), tuple(kept), tuple(dropped), tuple(truncated), tuple(warnings), encoder.literal, tuple(hopeless)
    )


def can_use_letters(examples: Sequence[Example], template: PromptTemplate, tokenizer: Any) -> tuple[bool, str]:
    """Whether rows can be scored by letters, and if not, why: too many choices, no {options}, or no single tokens.

    Choices are counted in every row; tokens are looked at in a hundred rows and in the one with the most choices.
    """
    if not examples:
        return False, "there are no rows"
    most = max(examples, key=lambda example: len(example.choices))
    if len(most.choices) > len(LETTERS):
        return False, f"{most.where} has {len(most.choices)} choices, but there are {len(LETTERS)} letters"
    if not template.shows_options("letter"):
        return False, "data.prompt.template has no {options}"
    encoder = _Encoder(template, _as_text_tokenizer(tokenizer), "letter", ())
    probed = [most, *examples[:_ROWS_PROBED]]
    try:
        for example, row in zip(probed, encoder.encode(probed), strict=True):
            encoder.check(example, row)
    except (ConfigError, DataError) as error:
        return False, str(error).removesuffix(_TEXT_INSTEAD)
    return True, ""


def class_weights(examples: Sequence[Example], num_labels: int) -> list[float]:
    """Weights of the labels `[num_labels]`, inverse to their frequency, with mean 1 over these rows.

    A label without rows has weight 0.

    Raises: DataError where a row has no answer, or one past the labels.
    """
    for example in examples:
        if example.answer is None or not 0 <= example.answer < num_labels:
            message = f"{example.where}: the answer is {example.answer} with {num_labels} labels"
            raise DataError(f"{message}; class weights need a label in every row")
    counts = Counter(example.answer for example in examples)
    return [len(examples) / (len(counts) * counts[label]) if counts[label] else 0.0 for label in range(num_labels)]


@dataclass(frozen=True)
class _EncodedRow:
    """A row's tokens before its place in the split is known."""

    prefix: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    num_bytes: tuple[int, ...]
    hopeless: bool = False

    @property
    def length(self) -> int:
        return len(self.prefix) + max(len(choice) for choice in self.choices)

    def example(self, row: int, answer: int | None, normalize: str) -> EncodedExample:
        divisors = {
            "sum": None,
            "token": tuple(float(len(choice)) for choice in self.choices),
            "byte": tuple(float(count) for count in self.num_bytes),
        }[normalize]
        return EncodedExample(row, self.prefix, self.choices, answer, divisors)


@dataclass(frozen=True)
class _Encoder:
    template: PromptTemplate
    tokens: TextTokenizer
    scoring: ScoringMode
    shots: tuple[Example, ...]
    literal: dict[str, str] = field(default_factory=dict)

    def encode(self, examples: Sequence[Example]) -> list[_EncodedRow]:
        """All strings of all rows, in few tokenizer calls."""
        rendered = [self.template.render_shots(self.shots, example, scoring=self.scoring) for example in examples]
        sizes = [row.num_characters for row in rendered]
        for example, size in zip(examples, sizes, strict=True):
            if size > _MAX_CHARACTERS:
                message = f"{example.where}: the prompt, once a choice, has {size:,} characters in all"
                raise DataError(f"{message}, over {_MAX_CHARACTERS:,}; shorten the row or leave it out")
        front = () if self.template.chat else front_tokens(self.tokens.tokenizer)
        encoded = []
        for batch in _bounded(rendered, sizes):
            rows = self._tokenize(batch, front)
            encoded += rows if self.scoring == "letter" else self._with_ends(batch, rows, front)
        return encoded

    def _tokenize(
        self, batch: Sequence[RenderedPrompt], front: tuple[int, ...], *, ended: bool = False
    ) -> list[_EncodedRow]:
        texts = [text for row in batch for text in (row.parts, *row.with_choices(ended=ended))]
        wheres = [row.where for row in batch for _ in range(1 + len(row.names))]
        found, literal = self.tokens.ids(texts, wheres)
        for name, where in literal.items():
            self.literal.setdefault(name, where)
        ids = iter(found)
        return [_split_at_prefix(row, list(islice(ids, 1 + len(row.names))), front) for row in batch]

    def _with_ends(
        self, batch: Sequence[RenderedPrompt], rows: list[_EncodedRow], front: tuple[int, ...]
    ) -> list[_EncodedRow]:
        """Where a choice's tokens begin another's, an end after every choice of the row; other rows as they are."""
        places = [place for place, row in enumerate(rows) if _continues(row.choices)]
        if self.template.version == 1:
            rows = [replace(row, hopeless=len(set(row.choices)) < len(row.choices)) for row in rows]
            for place in places:
                rows[place] = replace(rows[place], hopeless=True)
            return rows
        ended = self._tokenize([batch[place] for place in places], front, ended=True) if places else []
        for place, row in zip(places, ended, strict=True):
            rows[place] = row if not _continues(row.choices) else self._with_eos(rows[place], batch[place])
        return rows

    def _with_eos(self, row: _EncodedRow, rendered: RenderedPrompt) -> _EncodedRow:
        eos = getattr(self.tokens.tokenizer, "eos_token_id", None)
        if eos is None:
            message = f"{rendered.where}: one of the choices {_shown(rendered.names)} begins another, and the base's"
            hint = "reword the choices, use --data.scoring letter, or use another base"
            raise ConfigError(f"{message} tokenizer has neither a line end nor an EOS token to part them; {hint}")
        return replace(row, choices=tuple((*choice, eos) for choice in row.choices))

    def truncate(self, examples: Sequence[Example], rows: Sequence[_EncodedRow], max_length: int) -> list[_EncodedRow]:
        """Cut the questions' ends until every row fits.

        Cutting by the question's own tokens lands near the bound at once; tokens that merge differently in the whole
        prompt are made up for in further rounds, each of which cuts at least one token more.
        """
        out = list(rows)
        ends = self.tokens.ends([example.question for example in examples], [example.where for example in examples])
        keep = [len(places) for places in ends]
        copies = max(1, self.template.text(self.scoring).count("{question}"))
        open_ = list(range(len(out)))
        while open_:
            for place in open_:
                if keep[place] == 0:
                    message = (
                        f"{examples[place].where}: without its question the row still has {out[place].length} tokens"
                    )
                    hint = "choices are never cut: raise it, use --data.too-long drop, or fewer few-shot rows"
                    raise DataError(f"{message}, over data.max_length {max_length}; {hint}")
                over = out[place].length - max_length
                keep[place] = max(0, keep[place] - max(1, over // copies))
            cut = []
            for place in open_:
                end = ends[place][keep[place] - 1] if keep[place] else 0
                old = examples[place]
                cut.append(Example(old.id, old.question[:end].rstrip(), old.choices, old.answer, old.where))
            for place, row in zip(open_, self.encode(cut), strict=True):
                out[place] = row
            open_ = [place for place in open_ if out[place].length > max_length]
        return out

    def check(self, example: Example, row: _EncodedRow) -> None:
        """Refuse a row that cannot be scored."""
        if not row.prefix:
            hint = "let --data.prompt.template begin with a word of its own"
            raise DataError(f"{example.where}: no token stands before the choices; {hint}")
        for index, (choice, tokens) in enumerate(zip(example.choices, row.choices, strict=True)):
            if not tokens:
                message = f"{example.where}: choice {index}, {choice[:60]!r}, has no tokens of its own"
                raise DataError(f"{message} with this tokenizer; reword it or leave the row out")
        self._check_known(example, row)
        if self.scoring == "letter":
            _check_letters(example, row)
        if self.scoring == "text" and self.template.version > 1:
            _check_distinct(example, row)

    def _check_known(self, example: Example, row: _EncodedRow) -> None:
        """Refuse tokens that the model has no embedding for."""
        number = self.tokens.num_embeddings
        if number is None:
            return
        most = max(max(row.prefix), *(max(choice) for choice in row.choices))
        if most >= number:
            name = self.tokens.tokenizer.convert_ids_to_tokens(most)
            message = f"{example.where}: needs the token {name!r} (number {most}), and the base has {number} embeddings"
            hint = "model.resize_token_embeddings(len(tokenizer)) in transformers adds them"
            raise DataError(f"{message}; take it out of the row and of data.keep_tokens, or give the base more: {hint}")


def _as_text_tokenizer(tokenizer: Any) -> TextTokenizer:
    return tokenizer if isinstance(tokenizer, TextTokenizer) else TextTokenizer(tokenizer)


def _refuse_length(example: Example, row: _EncodedRow, max_length: int | None) -> None:
    message = f"{example.where}: the row has {row.length} tokens, over data.max_length {max_length}"
    hint = "raise it, or use --data.too-long drop (leave such rows out) or truncate (cut their questions' ends)"
    raise DataError(f"{message}; {hint}")


def _check_letters(example: Example, row: _EncodedRow) -> None:
    """Refuse letters that are several tokens, or the same one."""
    first: dict[tuple[int, ...], str] = {}
    for letter, tokens in zip(LETTERS, row.choices, strict=False):
        other = first.setdefault(tokens, letter)
        if len(tokens) == 1 and other == letter:
            continue
        what = f"{letter} is {len(tokens)} tokens" if len(tokens) != 1 else f"{other} and {letter} are the same token"
        message = f"{example.where}: with this tokenizer and prompt the letters are no single, distinct tokens ({what})"
        raise ConfigError(f"{message}{_TEXT_INSTEAD}")


def _check_distinct(example: Example, row: _EncodedRow) -> None:
    """Refuse different choices that are the same to the model; equal ones were warned of when they were read."""
    if len(set(row.choices)) == len(row.choices):
        return
    first: dict[tuple[int, ...], str] = {}
    for choice, tokens in zip(example.choices, row.choices, strict=True):
        other = first.setdefault(tokens, choice)
        if other != choice:
            message = f"{example.where}: {other[:60]!r} and {choice[:60]!r} are the same tokens with this base"
            why = "(white space around them, or words that its tokenizer does not know), so neither could win"
            raise DataError(f"{message} {why}; rename one of them, or use --data.scoring letter")


def _continues(choices: Sequence[tuple[int, ...]]) -> bool:
    """Whether one of the choices is the beginning of another that is longer; in order they are neighbors then."""
    if not all(choices):
        return False  # one without tokens is refused as such
    return any(len(one) < len(two) and two[: len(one)] == one for one, two in pairwise(sorted(set(choices))))


def _shown(names: Sequence[str]) -> str:
    return ", ".join(repr(name[:60]) for name in names[:5]) + (", ..." if len(names) > 5 else "")


def _split_at_prefix(row: RenderedPrompt, ids: list[_Ids], front: tuple[int, ...]) -> _EncodedRow:
    """Part the strings' tokens (the prompt alone first, then with each choice) after what all of them begin with."""
    common = 0
    for column in zip(*ids, strict=False):
        if len(set(column)) > 1:
            break
        common += 1
    return _EncodedRow(
        prefix=front + tuple(ids[0][:common]),
        choices=tuple(tuple(tokens[common:]) for tokens in ids[1:]),
        num_bytes=tuple(len(continuation.encode()) for continuation in row.continuations),
    )


def _places(examples: Sequence[Example], indices: Sequence[int]) -> str:
    return ", ".join(examples[index].where for index in indices[:5]) + (", ..." if len(indices) > 5 else "")


def _batched(items: Iterable[tuple[int, Example]], size: int) -> Iterator[list[tuple[int, Example]]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _bounded(rows: Sequence[RenderedPrompt], sizes: Sequence[int]) -> Iterator[list[RenderedPrompt]]:
    """Runs of rows with no more characters than one tokenizer call should have; a longer row stands alone."""
    batch: list[RenderedPrompt] = []
    held = 0
    for row, size in zip(rows, sizes, strict=True):
        if batch and held + size > _CHARACTERS_PER_CALL:
            yield batch
            batch, held = [], 0
        batch.append(row)
        held += size
    if batch:
        yield batch


@dataclass(frozen=True)
class Token:
    """A token of a row: its position in the string of prompt and choice, its id and its text."""

    position: int
    id: int
    text: str


@dataclass(frozen=True)
class InspectedRow:
    """A row as the model gets it.

    The tokens of `choices[c]` are scored: the one at position t by the model's output at position t - 1. `before` are
    the last tokens of the prefix that all choices share; it may end before the prompt does, where the prompt's last
    characters merge with a choice's first.
    """

    example: Example
    prompt: str
    continuations: tuple[str, ...]
    before: tuple[Token, ...]
    choices: tuple[tuple[Token, ...], ...]


def inspect_row(
    example: Example, template: PromptTemplate, tokenizer: Any, *, scoring: ScoringMode, num_before: int = 4
) -> InspectedRow:
    """Render and encode one row as training and prediction do.

    Raises: ConfigError, DataError: as `encode`.
    """
    rendered = template.render(example, scoring=scoring)
    row = encode([example], template, tokenizer, scoring=scoring).rows[0]

    def tokens(ids: tuple[int, ...], start: int) -> tuple[Token, ...]:
        return tuple(Token(start + place, token, tokenizer.decode([token])) for place, token in enumerate(ids))

    start = max(0, len(row.prefix) - num_before)
    return InspectedRow(
        example=example,
        prompt=rendered.prompt,
        continuations=rendered.continuations,
        before=tokens(row.prefix[start:], start),
        choices=tuple(tokens(choice, len(row.prefix)) for choice in row.choices),
    )
