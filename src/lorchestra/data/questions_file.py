"""Questions files: the typed questions of a task, in YAML or JSON, as `name: {type, instructions, ...}`.

YAML is read by the rules of recipes (`config.mappings`): yes, no, on and off are text, each name occurs once, and there
are no references. Numbers among options are text in the notation of the file: `1.0` stays `1.0`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from lorchestra.config.mappings import as_written, parse_value
from lorchestra.data.layouts import show
from lorchestra.errors import ConfigError
from lorchestra.questions import Question, questions_from
from lorchestra.store.safe_paths import typed_path

MAX_QUESTIONS, MAX_BYTES, MAX_NAME = 400, 4_000_000, 200
"""Most questions, bytes of their file, and characters of a question's name, which is a part of row ids."""


def read_questions(path: str | Path) -> tuple[Question, ...]:
    """The typed questions of a file, in its order.

    Raises:
        ConfigError: names the file, the question, the field and its value.
    """
    text = _text_of(typed_path(path))
    content = (_from_json if str(path).lower().endswith(".json") else _from_yaml)(text, path)
    try:
        questions = questions_from(_plain_entries(as_written(content)))
        _check_names(questions)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return questions


def _text_of(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():  # reading a pipe or device could block forever
            raise ConfigError(f"{path}: not a regular file; give a YAML or JSON file with questions")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{path}: has more than {MAX_BYTES:,} bytes; is it the file with the questions?")
        return content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError(f"{path}: cannot be read as a questions file ({reason}); check the path") from error


def _from_yaml(text: str, path: str | Path) -> object:
    try:
        return parse_value(text, str(path))
    except ConfigError as error:
        # PyYAML ends a text at a question mark there, and instructions often have one
        hint = "; between { and }, put text with a question mark in quotes" if "got '?'" in str(error) else ""
        raise ConfigError(f"{error}{hint}") from error


def _from_json(text: str, path: str | Path) -> object:
    try:
        return json.loads(
            text, object_pairs_hook=_once_each, parse_int=str, parse_float=str, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON ({' '.join(str(error).split())}); fix it") from error


def _once_each(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names: dict[str, object] = {}
    for name, value in pairs:
        if name in names:
            raise ValueError(f"{show(name)} is set twice")
        names[name] = value
    return names


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a value; put it in quotes")


def _plain_entries(content: object) -> object:
    """The entries with `true` and `false` as the fields of a predicate, which YAML reads as truth values."""
    if not isinstance(content, Mapping):
        return content
    return {name: _plain_fields(name, entry) for name, entry in content.items()}


def _plain_fields(name: object, entry: object) -> object:
    if not isinstance(entry, Mapping):
        return entry
    fields: dict[object, object] = {}
    for key, value in entry.items():
        plain = str(key).lower() if isinstance(key, bool) else key
        if plain in fields:
            raise ConfigError(f"question {show(name)}: {plain} is set twice; leave one of them out")
        fields[plain] = value
    return fields


def _check_names(questions: tuple[Question, ...]) -> None:
    if len(questions) > MAX_QUESTIONS:
        raise ConfigError(f"has {len(questions):,} questions, and at most {MAX_QUESTIONS} are allowed; split the task")
    for question in questions:
        name = question.name
        if len(name) > MAX_NAME:
            raise ConfigError(f"question {show(name)}: its name has {len(name):,} characters; use at most {MAX_NAME}")
        if name != name.strip() or not name.isprintable():
            message = f"question {show(name)}: its name has blanks around it or characters that are not printable"
            raise ConfigError(f"{message}; it must be the name of a column")
