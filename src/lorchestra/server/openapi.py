"""Descriptions of the two POST routes for `/openapi.json`; the routes parse their bodies by hand."""

from __future__ import annotations

from collections.abc import Mapping

Schema = dict[str, object]

_TEXT: Schema = {"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "array"}]}
_OPTIONAL_TEXT: Schema = {"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "array"}, {"type": "null"}]}
_DEADLINE: Schema = {"type": "number", "exclusiveMinimum": 0, "description": "milliseconds until an answer is useless"}
_EARLY_EXIT: Schema = {
    "anyOf": [{"const": "exact"}, {"type": "number", "exclusiveMinimum": 0, "maximum": 1}],
    "description": "members stop once the answer cannot change (exact), or at this mean probability",
}
_STRING: Schema = {"type": "string"}


def _object(required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "required": required, "properties": properties}


def _list(items: Schema, least: int, most: int) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def _constant(value: str) -> Schema:
    return {"type": "string", "const": value}


def _operation(
    summary: str, body: Schema, example: Mapping[str, object], errors: Mapping[str, str]
) -> dict[str, object]:
    content = {"application/json": {"schema": body, "example": dict(example)}}
    responses = {status: {"description": text} for status, text in {"200": "The answers", **errors}.items()}
    return {"summary": summary, "requestBody": {"required": True, "content": content}, "responses": responses}


_ERRORS = {
    "401": "The key is missing or wrong",
    "404": "There is no such model",
    "408": "The body was too slow, or your deadline passed",
    "413": "The body has too many bytes",
    "415": "The request carries an image",
    "429": "Your questions fill half of the queue",
    "503": "The server is shutting down",
    "504": "No answer in the server's time limit",
    "529": "The queue is full",
}

_NOUL = _object(
    ["type"],
    type=_constant("noul"),
    instructions=_OPTIONAL_TEXT,
    criteria={"anyOf": [_object([], true=_OPTIONAL_TEXT, false=_OPTIONAL_TEXT), {"type": "null"}]},
)
_CHOICE = _object(
    ["type", "criteria"],
    type=_constant("choice"),
    instructions=_OPTIONAL_TEXT,
    criteria={"type": "object", "additionalProperties": _OPTIONAL_TEXT, "minProperties": 2, "maxProperties": 255},
)
_SCORE = _object(
    ["type", "criteria"],
    type=_constant("score"),
    instructions=_OPTIONAL_TEXT,
    criteria=_list(_TEXT, 2, 10),
    x_descriptions={"type": "array", "items": _OPTIONAL_TEXT, "description": "of each level, as a run was trained"},
)

SYSTEMONE = _operation(
    "Answer questions about a state (TypeSafe's format)",
    _object(
        ["model", "state", "questions"],
        model=_STRING,
        state=_TEXT,
        questions={"type": "object", "additionalProperties": {"oneOf": [_NOUL, _CHOICE, _SCORE]}, "minProperties": 1},
        x_deadline_ms=_DEADLINE,
        x_early_exit=_EARLY_EXIT,
    ),
    {
        "model": "jev-latest",
        "state": "I was charged twice. Please help.",
        "questions": {"billing": {"type": "noul", "instructions": "Is this about billing?"}},
    },
    {**_ERRORS, "422": "The body is not a valid request"},
)

_INSTRUCTIONS: Schema = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}
_VALUE: Schema = {"anyOf": [{"type": "string"}, {"type": "boolean"}]}
_PREDICATE = _object(["type", "instructions"], type=_constant("predicate"), name=_STRING, instructions=_INSTRUCTIONS)
_CHOICES = _object(
    ["type", "instructions", "choices"],
    type=_constant("choice"),
    name=_STRING,
    instructions=_INSTRUCTIONS,
    choices=_list(_object(["value"], value=_VALUE, description=_STRING), 2, 255),
)
_LEVELS = _object(
    ["type", "instructions", "levels"],
    type=_constant("score"),
    name=_STRING,
    instructions=_INSTRUCTIONS,
    levels=_list(_object(["label"], label=_STRING, description=_STRING), 2, 10),
)

DECISIONS = _operation(
    "Answer questions about an input (OpenAI's format)",
    _object(
        ["model", "input", "questions"],
        model=_STRING,
        input={"anyOf": [_STRING, {"type": "array", "items": {"type": "object"}, "minItems": 1}]},
        questions=_list({"oneOf": [_PREDICATE, _CHOICES, _LEVELS]}, 1, 400),
        prompt_cache_key=_STRING,
        x_deadline_ms=_DEADLINE,
        x_early_exit=_EARLY_EXIT,
    ),
    {
        "model": "jev-latest",
        "input": "I was charged twice. Please help.",
        "questions": [{"type": "predicate", "name": "billing", "instructions": "This is about billing."}],
    },
    {**_ERRORS, "400": "The body is not a valid request"},
)
