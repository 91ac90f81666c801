"""Typed questions about a state: pick one of these, is this true, how much on this scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lorchestra.errors import ConfigError

QuestionType = Literal["choice", "predicate", "score"]
PREDICATE_OPTIONS = ("false", "true")
"""The options of a predicate; the index is the truth value."""
MAX_CHOICES, MAX_LEVELS = 255, 10
"""Most options of a choice, and most levels of a score; both have at least two."""
MAX_CHARACTERS = 20_000
"""Most characters of instructions, an option or its description."""

_FIELDS = {
    "choice": {"type", "instructions", "options"},
    "predicate": {"type", "instructions", "true", "false"},
    "score": {"type", "instructions", "levels"},
}


@dataclass(frozen=True)
class Question:
    """A typed question: a `choice` of options without order, a `predicate` that is true or false, or a `score` on
    ordered levels, lowest first, whose answer is their expected index.

    `options` are the option names, the levels, or `PREDICATE_OPTIONS`; `descriptions` says what each means, where
    that is given. The name identifies the question and is never shown to the model.

    Raises:
        ConfigError: fewer than two options, too many, or two that are equal or empty; no instructions for a predicate.
    """

    name: str
    type: QuestionType
    instructions: str
    options: tuple[str, ...] = PREDICATE_OPTIONS
    descriptions: tuple[str | None, ...] = ()

    def __post_init__(self) -> None:
        """Check the options."""
        if not self.descriptions:
            object.__setattr__(self, "descriptions", (None,) * len(self.options))
        fault = self._fault()
        if fault is not None:
            raise ConfigError(f"question {self.name!r}: {fault}")

    def _fault(self) -> str | None:
        if self.type not in _FIELDS:
            return f"its type is {self.type!r}; use choice, predicate or score"
        noun, most = ("level", MAX_LEVELS) if self.type == "score" else ("option", MAX_CHOICES)
        number = len(self.options)
        if self.type == "predicate" and self.options != PREDICATE_OPTIONS:
            return "a predicate is true or false and has no other options; use a choice"
        if self.type == "predicate" and not self.instructions.strip() and not any(self.descriptions):
            return "it has no instructions; write the statement that is true or false"
        if number < 2 or number > most:
            return f"it has {number} {noun}{'s' if number != 1 else ''}; a {self.type} has 2 to {most}"
        if len(self.descriptions) != number:
            return f"it has {number} {noun}s and {len(self.descriptions)} descriptions"
        stripped = [option.strip() for option in self.options]
        for index, option in enumerate(stripped):
            if not option:
                return f"{noun} {index + 1} is empty; give it a name"
            if stripped.index(option) != index:
                return f"{noun} {option[:60]!r} occurs twice; give each a different name"
        for text in (self.instructions, *self.options, *filter(None, self.descriptions)):
            if len(text) > MAX_CHARACTERS:
                return f"a text has {len(text):,} characters, over {MAX_CHARACTERS:,}; shorten {text[:40]!r}..."
            if any("\ud800" <= character <= "\udfff" for character in text):
                return f"{text[:40]!r} contains a lone surrogate, which is not a character"
        return None

    @property
    def content(self) -> tuple[object, ...]:
        """What an answer depends on: everything but the name."""
        return (self.type, self.instructions, self.options, self.descriptions)

    def to_dict(self) -> dict[str, object]:
        """The question's entry in a questions file."""
        values: dict[str, object] = {"type": self.type, "instructions": self.instructions}
        described = dict(zip(self.options, self.descriptions, strict=True))
        if self.type == "predicate":
            return values | {option: text for option, text in described.items() if text is not None}
        key = "options" if self.type == "choice" else "levels"
        if any(text is not None for text in self.descriptions):
            return values | {key: described}
        return values | {key: list(self.options)}

    @classmethod
    def from_dict(cls, name: str, values: object) -> Question:
        """The inverse of `to_dict`, of any value: options and levels are a list, or a mapping to descriptions.

        Raises:
            ConfigError: names the question, the field and its value.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"question {name!r} is {values!r:.60}; give it a type and instructions")
        kind = values.get("type")
        if not isinstance(kind, str) or kind not in _FIELDS:
            raise ConfigError(f"question {name!r}: type is {kind!r:.60}; use choice, predicate or score")
        unknown = sorted(map(str, values.keys() - _FIELDS[kind]))
        if unknown:
            known = ", ".join(sorted(_FIELDS[kind]))
            raise ConfigError(f"question {name!r}: a {kind} has no field {unknown[0]!r}; its fields are {known}")
        instructions = values.get("instructions", "")
        if instructions is None:
            instructions = ""
        if not isinstance(instructions, str):
            raise ConfigError(f"question {name!r}: instructions is {instructions!r:.60}; write a string")
        if kind == "predicate":
            pairs = [(option, values.get(option)) for option in PREDICATE_OPTIONS]
        else:
            pairs = list(_options(name, "options" if kind == "choice" else "levels", values))
        for option, text in pairs:
            if not isinstance(text, str | None):
                raise ConfigError(f"question {name!r}: the description of {option!r} is {text!r:.60}; write a string")
        options = tuple(option for option, _ in pairs)
        descriptions = tuple(text if isinstance(text, str) else None for _, text in pairs)
        return cls(name, kind, instructions, options, descriptions)  # type: ignore[arg-type]


def _options(name: str, key: str, values: Mapping[object, object]) -> Iterator[tuple[str, object]]:
    """Options with descriptions, from a list or a mapping."""
    given = values.get(key)
    if isinstance(given, Mapping):
        entries: list[tuple[object, object]] = list(given.items())
    elif isinstance(given, Sequence) and not isinstance(given, str):
        entries = [(option, None) for option in given]
    else:
        raise ConfigError(
            f"question {name!r}: {key} is {given!r:.60}; give a list of names, or names with descriptions"
        )
    for option, text in entries:
        if isinstance(option, bool):  # YAML reads yes, no, on, off as truth values
            raise ConfigError(f"question {name!r}: one of the {key} is {option!r}, not a string; put it in quotes")
        if not isinstance(option, str | int | float):
            raise ConfigError(f"question {name!r}: one of the {key} is {option!r:.60}, not a string; write a name")
        yield str(option), text


def questions_from(values: object) -> tuple[Question, ...]:
    """The questions of a mapping of names to entries, as a questions file has it.

    Raises:
        ConfigError: names the question, the field and its value.
    """
    if not isinstance(values, Mapping) or not values:
        raise ConfigError(f"questions are {values!r:.60}; give at least one, as `name: {{type, instructions, ...}}`")
    for name in values:
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"a question is named {name!r:.60}; use a string that is not empty")
    return tuple(Question.from_dict(name, entry) for name, entry in values.items())
