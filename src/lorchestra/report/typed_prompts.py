"""The prompts of a run's typed questions, from its record alone."""

from __future__ import annotations

from lorchestra.data.prompts import TypedPrompt, typed_prompt
from lorchestra.questions import Question
from lorchestra.types import Json


def prompt_of(record: Json, question: Question) -> TypedPrompt:
    """The prompt of one of the typed questions of an `ensemble.json`."""
    alone = record["chat_frame"]["alone"] if record["chat_template"] else None
    lettered = record["scoring"] == "letter"
    return typed_prompt(question, alone, lettered=lettered, answer_prefix=record.get("answer_prefix", " "))


def prompt_text(record: Json, question: Question) -> str:
    """The same as text, with `{state}` where the state goes."""
    prompt = prompt_of(record, question)
    return f"{prompt.before}{{state}}{''.join(prompt.block)}"
