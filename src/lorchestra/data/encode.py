"""Examples as token ids.

Prompt and choice are tokenized as one string, because tokens merge across the boundary: separate tokens of a prompt
that ends in a space and of " A" would be a sequence that the model has never seen.

The probability of a choice's tokens is that of text that starts with it: p(" yes") includes p(" yes but"). So if one
choice of a row is a prefix of another, all of its choices are scored with an end after them. A tree of choices
(`choice_tree`) relies on that: none of them ends inside another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Literal

from lorchestra.choice_tree import choice_tree, has_prefix
from lorchestra.data.prompts import LETTERS, PromptTemplate, RenderedPrompt, ScoringMode
from lorchestra.data.tokenizer import TextTokenizer, front_tokens
from lorchestra.data.typed import MAX_CHARACTERS, TypedEncoder
from lorchestra.errors import ConfigError, DataError
from lorchestra.types import EncodedExample, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# rows per tokenizer call: enough for the tokenizer's threads, few enough to bound memory
_ROWS_PER_CALL = 512
# see MAX_CHARACTERS
_CHARACTERS_PER_CALL = 2_000_000
# letters follow the prompt's end, which is the template's: a sample of rows is enough
_ROWS_PROBED = 100

_TEXT_INSTEAD = "; use --data.scoring text"

_Ids = list[int]


@dataclass(frozen=True)
class EncodedSplit:
    """The rows of a split as token ids.

    `rows[i].row == i`, and `rows[i]` is input example `kept[i]`. `dropped` and `truncated` are the indices of input
    examples that were left out or cut. `warnings` are sentences for the user. `literal` has the names of the base's
    tokens that occur in rows and were read as plain text, each with its first location. `hopeless` are the indices of
    input examples in which a choice cannot win, as it continues another or has the same tokens (version 1 only).
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
    tokenizer: PreTrainedTokenizerBase | TextTokenizer,
    *,
    scoring: ScoringMode,
    normalize: Literal["sum", "token", "byte"] = "sum",
    max_length: int | None = None,
    too_long: Literal["error", "drop", "truncate"] = "error",
    shots: Sequence[Example] = (),
) -> EncodedSplit:
    """Tokenize each row's prompt with each of its choices.

    The prefix is the longest common prefix of the tokens of the prompt alone and of the prompt with each choice; the
    rest are the choice's tokens. The tokenizer's special tokens are put first (with a chat template, only those that it
    writes). If the tokens of one choice are a prefix of another's, all choices of the row are followed by an end: the
    template's text after an answer, or EOS if that does not separate them. `normalize` "token" counts the end's tokens,
    "byte" does not count its bytes. Token names in rows are plain text. `max_length` is the maximum of a row's prefix
    plus its longest choice, in tokens; None for no limit. `shots` are answered examples shown before every question;
    with shots, it is no error if no row is left.

    Raises: ConfigError if letters are not single, distinct tokens, or `max_length` is not positive; DataError if a row
    is too long, a choice has no tokens, two choices have the same, or the model has no embedding for a token.
    """
    if max_length is not None and max_length < 1:
        raise ConfigError(f"data.max_length is {max_length}; the maximum tokens of a row must be at least 1")
    normalize = normalize if scoring == "text" else "sum"
    encoder = _Encoder(template, _as_text_tokenizer(tokenizer), scoring, tuple(shots), normalize)
    rows: list[EncodedExample] = []
    kept: list[int] = []
    dropped: list[int] = []
    truncated: list[int] = []
    hopeless: list[int] = []
    for batch in _batched(enumerate(examples), _ROWS_PER_CALL):
        encoded = encoder.encode([example for _, example in batch])
        long = [i for i, row in enumerate(encoded) if max_length is not None and _length(row) > max_length]
        if long and too_long == "error":
            _refuse_length(batch[long[0]][1], encoded[long[0]], max_length)
        if long and too_long == "truncate" and max_length is not None:
            cut = encoder.truncate([batch[i][1] for i in long], [encoded[i] for i in long], max_length)
            for i, row in zip(long, cut, strict=True):
                encoded[i] = row
            truncated += [batch[i][0] for i in long]
            long = []
        for i, ((index, example), row) in enumerate(zip(batch, encoded, strict=True)):
            if i in long:
                dropped.append(index)
                continue
            encoder.check(example, row)
            if template.version == 1 and scoring == "text" and _has_loser(row.choices):
                hopeless.append(index)
            tree = choice_tree(row.choices) if scoring == "tree" else None
            rows.append(replace(row, row=len(rows), answer=example.answer, tree=tree))
            kept.append(index)
    if dropped and not rows and not shots:
        raise DataError(f"all {len(dropped)} rows are longer than {max_length} tokens; raise --data.max-length")
    warnings = _length_warnings(examples, dropped, truncated, max_length)
    return EncodedSplit(
        tuple(rows), tuple(kept), tuple(dropped), tuple(truncated), warnings, encoder.literal, tuple(hopeless)
    )


def _length_warnings(
    examples: Sequence[Example], dropped: Sequence[int], truncated: Sequence[int], max_length: int | None
) -> tuple[str, ...]:
    affected = ((dropped, "left out"), (truncated, "cut at the question's end"))
    message = f"row(s) longer than {max_length} tokens"
    return tuple(f"{len(rows)} {message} {what}: {_wheres(examples, rows)}" for rows, what in affected if rows)


def can_use_letters(
    examples: Sequence[Example], template: PromptTemplate, tokenizer: PreTrainedTokenizerBase | TextTokenizer
) -> tuple[bool, str]:
    """Whether rows can be scored by letters, and if not, why: too many choices, no {options}, or no single tokens.

    Choices are counted in all rows; tokens are checked in a hundred rows and in the row with the most choices.
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

    Raises: DataError if a row has no answer, or one out of range.
    """
    for example in examples:
        if example.answer is None or not 0 <= example.answer < num_labels:
            message = f"{example.where}: the answer is {example.answer} with {num_labels} labels"
            raise DataError(f"{message}; class weights need a label for every row")
    counts = Counter(example.answer for example in examples)
    return [len(examples) / (len(counts) * counts[label]) if counts[label] else 0.0 for label in range(num_labels)]


@dataclass(frozen=True, eq=False)
class _Encoder:
    template: PromptTemplate
    tokens: TextTokenizer
    scoring: ScoringMode
    shots: tuple[Example, ...]
    normalize: Literal["sum", "token", "byte"] = "sum"
    literal: dict[str, str] = field(default_factory=dict)

    @cached_property
    def typed(self) -> TypedEncoder:
        """Encodes rows with typed questions."""
        return TypedEncoder(self.template, self.tokens, self.scoring, self.normalize, self.literal)

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        """The rows' tokens, in few tokenizer calls; without their index in the split (-1) and answer."""
        if examples and examples[0].asked is not None:
            return self.typed.encode(examples)
        rendered = [self.template.render_shots(self.shots, example, scoring=self.scoring) for example in examples]
        sizes = [row.num_characters for row in rendered]
        for example, size in zip(examples, sizes, strict=True):
            if size > MAX_CHARACTERS:
                message = f"{example.where}: the prompt, repeated for each choice, has {size:,} characters in total"
                raise DataError(f"{message}, over {MAX_CHARACTERS:,}; shorten the row or leave it out")
        front = () if self.template.chat else front_tokens(self.tokens.tokenizer)
        encoded = []
        for batch in _bounded(rendered, sizes):
            rows = self._tokenize(batch, front)
            encoded += self._with_ends(batch, rows, front) if self.scoring in ("text", "tree") else rows
        if self.normalize == "token":
            return [replace(row, divisors=tuple(float(len(choice)) for choice in row.choices)) for row in encoded]
        return encoded

    def _tokenize(
        self, batch: Sequence[RenderedPrompt], front: tuple[int, ...], *, ended: bool = False
    ) -> list[EncodedExample]:
        if self.scoring == "head":
            return self._with_labels(batch, front)
        texts = [text for row in batch for text in (row.parts, *row.with_choices(ended=ended))]
        wheres = [row.where for row in batch for _ in range(1 + len(row.names))]
        ids, literal = self.tokens.ids(texts, wheres)
        for name, where in literal.items():
            self.literal.setdefault(name, where)
        remaining = iter(ids)
        rows = []
        for row in batch:
            prefix, choices = _split_at_prefix(list(islice(remaining, 1 + len(row.names))))
            num_bytes = tuple(float(len(continuation.encode())) for continuation in row.continuations)
            rows.append(
                EncodedExample(-1, front + prefix, choices, None, num_bytes if self.normalize == "byte" else None)
            )
        return rows

    def _with_labels(self, batch: Sequence[RenderedPrompt], front: tuple[int, ...]) -> list[EncodedExample]:
        """The prompts alone, whose choices are the labels of a classification head."""
        ids, literal = self.tokens.ids([row.parts for row in batch], [row.where for row in batch])
        for name, where in literal.items():
            self.literal.setdefault(name, where)
        return [
            EncodedExample(-1, front + tuple(prefix), tuple((c,) for c in range(len(row.names))), None, by_head=True)
            for prefix, row in zip(ids, batch, strict=True)
        ]

    def _with_ends(
        self, batch: Sequence[RenderedPrompt], rows: list[EncodedExample], front: tuple[int, ...]
    ) -> list[EncodedExample]:
        """The rows, with an end after every choice of those in which one choice is a prefix of another."""
        indices = [i for i, row in enumerate(rows) if has_prefix(row.choices)]
        if self.template.version == 1:
            return rows
        ended = self._tokenize([batch[i] for i in indices], front, ended=True) if indices else []
        for i, row in zip(indices, ended, strict=True):
            rows[i] = row if not has_prefix(row.choices) else self._with_eos(rows[i], batch[i])
        return rows

    def _with_eos(self, row: EncodedExample, rendered: RenderedPrompt) -> EncodedExample:
        eos = getattr(self.tokens.tokenizer, "eos_token_id", None)
        if eos is None:
            message = f"{rendered.where}: one of the choices {_shown(rendered.names)} is a prefix of another, and the"
            hint = "reword the choices, use --data.scoring letter, or use another base"
            raise ConfigError(f"{message} base's tokenizer has no line end or EOS token to separate them; {hint}")
        return replace(row, choices=tuple((*choice, eos) for choice in row.choices))

    def truncate(
        self, examples: Sequence[Example], rows: Sequence[EncodedExample], max_length: int
    ) -> list[EncodedExample]:
        """Cut the questions' ends until every row fits.

        The first round cuts as many of the question's tokens as the row is too long. As tokens may merge differently in
        the whole prompt, there may be more rounds, each of which cuts at least one more token.
        """
        if examples[0].asked is not None:
            return self._cut_states(examples, rows, max_length)
        out = list(rows)
        ends = self.tokens.ends([example.question for example in examples], [example.where for example in examples])
        keep = [len(token_ends) for token_ends in ends]
        copies = max(1, self.template.text(self.scoring).count("{question}"))
        remaining = list(range(len(out)))
        while remaining:
            for i in remaining:
                if keep[i] == 0:
                    message = f"{examples[i].where}: without its question the row still has {_length(out[i])} tokens"
                    hint = "choices are never cut: raise it, use --data.too-long drop, or fewer few-shot rows"
                    raise DataError(f"{message}, over data.max_length {max_length}; {hint}")
                over = _length(out[i]) - max_length
                keep[i] = max(0, keep[i] - max(1, over // copies))
            cut = []
            for i in remaining:
                end = ends[i][keep[i] - 1] if keep[i] else 0
                cut.append(replace(examples[i], question=examples[i].question[:end].rstrip()))
            for i, row in zip(remaining, self.encode(cut), strict=True):
                out[i] = row
            remaining = [i for i in remaining if _length(out[i]) > max_length]
        return out

    def _cut_states(
        self, examples: Sequence[Example], rows: Sequence[EncodedExample], max_length: int
    ) -> list[EncodedExample]:
        cut = self.typed.truncate(rows, max_length)
        for example, row in zip(examples, cut, strict=True):
            if _length(row) > max_length:
                message = f"{example.where}: without its state the row still has {_length(row)} tokens"
                hint = "questions are never cut: raise it, or use --data.too-long drop"
                raise DataError(f"{message}, over data.max_length {max_length}; {hint}")
        return cut

    def check(self, example: Example, row: EncodedExample) -> None:
        """Refuse a row that cannot be scored."""
        if not row.prefix:
            hint = "start --data.prompt.template with a word"
            raise DataError(f"{example.where}: there is no token before the choices; {hint}")
        for index, (choice, tokens) in enumerate(zip(example.choices, row.choices, strict=True)):
            if not tokens:
                message = f"{example.where}: choice {index}, {choice[:60]!r}, adds no tokens to the prompt"
                raise DataError(f"{message} with this tokenizer; reword it or leave the row out")
        self._check_known(example, row)
        if self.scoring == "letter":
            _check_letters(example, row)
        if self.scoring != "letter" and self.template.version > 1:
            _check_distinct(example, row)

    def _check_known(self, example: Example, row: EncodedExample) -> None:
        """Refuse tokens that the model has no embedding for."""
        number = self.tokens.num_embeddings
        if number is None:
            return
        most = max(max(row.prefix), 0 if row.by_head else max(max(choice) for choice in row.choices))
        if most >= number:
            name = self.tokens.tokenizer.convert_ids_to_tokens(most)
            message = f"{example.where}: has the token {name!r} (id {most}), but the base has only {number} embeddings"
            hint = "model.resize_token_embeddings(len(tokenizer)) in transformers"
            raise DataError(f"{message}; remove it from the row and from data.keep_tokens, or extend the base: {hint}")


def _as_text_tokenizer(tokenizer: PreTrainedTokenizerBase | TextTokenizer) -> TextTokenizer:
    return tokenizer if isinstance(tokenizer, TextTokenizer) else TextTokenizer(tokenizer)


def _refuse_length(example: Example, row: EncodedExample, max_length: int | None) -> None:
    message = f"{example.where}: the row has {_length(row)} tokens, over data.max_length {max_length}"
    hint = "raise it, or use --data.too-long drop (leave such rows out) or truncate (cut their questions)"
    raise DataError(f"{message}; {hint}")


def _check_letters(example: Example, row: EncodedExample) -> None:
    """Refuse letters that are several tokens, or the same token."""
    first: dict[tuple[int, ...], str] = {}
    for letter, tokens in zip(LETTERS, row.choices, strict=False):
        other = first.setdefault(tokens, letter)
        if len(tokens) == 1 and other == letter:
            continue
        what = f"{letter} is {len(tokens)} tokens" if len(tokens) != 1 else f"{other} and {letter} are the same token"
        message = f"{example.where}: with this tokenizer and prompt, letters are not single, distinct tokens ({what})"
        raise ConfigError(f"{message}{_TEXT_INSTEAD}")


def _check_distinct(example: Example, row: EncodedExample) -> None:
    """Refuse different choices with the same tokens; equal choices only got a warning when they were read."""
    if len(set(row.choices)) == len(row.choices):
        return
    first: dict[tuple[int, ...], str] = {}
    for choice, tokens in zip(example.choices, row.choices, strict=True):
        other = first.setdefault(tokens, choice)
        if other != choice:
            message = f"{example.where}: {other[:60]!r} and {choice[:60]!r} are the same tokens with this base"
            why = "(they differ in white space, or by words that its tokenizer does not know), so neither could win"
            raise DataError(f"{message} {why}; rename one of them, or use --data.scoring letter")


def _shown(names: Sequence[str]) -> str:
    return ", ".join(repr(name[:60]) for name in names[:5]) + (", ..." if len(names) > 5 else "")


def _has_loser(choices: Sequence[tuple[int, ...]]) -> bool:
    """Whether a choice cannot win, as it continues another or has the same tokens."""
    return len(set(choices)) < len(choices) or has_prefix(choices)


def _length(row: EncodedExample) -> int:
    """Tokens of the prefix and the longest choice."""
    return len(row.prefix) + max(len(choice) for choice in row.choices)


def _split_at_prefix(ids: Sequence[_Ids]) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """The common first tokens of the strings (the prompt alone, then with each choice), and what each choice adds."""
    common = 0
    for column in zip(*ids, strict=False):
        if len(set(column)) > 1:
            break
        common += 1
    return tuple(ids[0][:common]), tuple(tuple(tokens[common:]) for tokens in ids[1:])


def _wheres(examples: Sequence[Example], indices: Sequence[int]) -> str:
    return ", ".join(examples[index].where for index in indices[:5]) + (", ..." if len(indices) > 5 else "")


def _batched(items: Iterable[tuple[int, Example]], size: int) -> Iterator[list[tuple[int, Example]]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _bounded(rows: Sequence[RenderedPrompt], sizes: Sequence[int]) -> Iterator[list[RenderedPrompt]]:
    """Batches of rows within the maximum characters of a tokenizer call; a longer row is a batch of one."""
    batch: list[RenderedPrompt] = []
    total = 0
    for row, size in zip(rows, sizes, strict=True):
        if batch and total + size > _CHARACTERS_PER_CALL:
            yield batch
            batch, total = [], 0
        batch.append(row)
        total += size
    if batch:
        yield batch


@dataclass(frozen=True)
class Token:
    """A token of a row: its position in the sequence of prompt and choice, its id and its text."""

    position: int
    id: int
    text: str


@dataclass(frozen=True)
class InspectedRow:
    """A row as the model sees it.

    The tokens of `choices[c]` are scored: the one at position t by the model's output at position t - 1. `before` are
    the last tokens of the prefix that all choices share; the prefix may be shorter than the prompt, if the prompt's
    last characters merge with a choice's first.
    """

    example: Example
    prompt: str
    continuations: tuple[str, ...]
    before: tuple[Token, ...]
    choices: tuple[tuple[Token, ...], ...]


def inspect_row(
    example: Example,
    template: PromptTemplate,
    tokenizer: PreTrainedTokenizerBase,
    *,
    scoring: ScoringMode,
    num_before: int = 4,
) -> InspectedRow:
    """Render and encode one row as in training and prediction.

    Raises: ConfigError, DataError: as `encode`.
    """
    rendered = template.render(example, scoring=scoring)
    row = encode([example], template, tokenizer, scoring=scoring).rows[0]

    def tokens(ids: tuple[int, ...], start: int) -> tuple[Token, ...]:
        return tuple(Token(start + i, token, tokenizer.decode([token])) for i, token in enumerate(ids))

    start = max(0, len(row.prefix) - num_before)
    return InspectedRow(
        example=example,
        prompt=rendered.prompt,
        continuations=rendered.continuations,
        before=tokens(row.prefix[start:], start),
        choices=tuple(tokens(choice, len(row.prefix)) for choice in row.choices),
    )
