"""What a row becomes: its prompt, the tokens where prompt and choice meet, and the positions that are scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorchestra.data.encode import encode
from lorchestra.data.prompts import PromptTemplate, Scoring
from lorchestra.types import Example


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
    example: Example, template: PromptTemplate, tokenizer: Any, *, scoring: Scoring, num_before: int = 4
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
