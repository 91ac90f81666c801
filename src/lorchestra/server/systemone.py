"""The wire format of `POST /v1/systemone`: questions by id, with criteria; answers by id."""

from __future__ import annotations

from collections.abc import Sequence

from lorchestra.config.serve import ServeLimits
from lorchestra.data.states import json_text, state_text
from lorchestra.errors import InputError
from lorchestra.server.errors import HttpError, InvalidJsonError, InvalidRequestError, Location, UnsupportedMediaError
from lorchestra.server.wire import (
    Answered,
    AskedQuestion,
    JsonObject,
    ParsedRequest,
    check_counts,
    check_number,
    choice_confidence,
    deadline_of,
    early_exit_of,
    extension,
    member_of,
    probabilities,
    question_at,
    score_confidence,
    typed,
    usage,
)

_TEXT: tuple[type[object], ...] = (str, dict, list)
"""Types of instructions, descriptions and states: text, or structure that is written as text."""


class SystemOne:
    """Reads requests to `/v1/systemone` and writes their responses."""

    refuses = False

    def parse(self, body: object, limits: ServeLimits) -> ParsedRequest:
        """The request of a body.

        Raises:
            InvalidRequestError: a field is missing, has the wrong type or is out of range.
            UnsupportedMediaError: the request carries images.
        """
        values = typed(body, dict, ())
        if values.get("assets") is not None:
            raise UnsupportedMediaError("assets: the base reads text only, no images; leave them out", ("assets",))
        entries = member_of(values, "questions", dict, ())
        check_number(len(entries), limits)
        questions = tuple(_question(name, entry) for name, entry in entries.items())
        check_counts(questions, limits)
        state = member_of(values, "state", _TEXT, ())
        try:
            text = state_text(state)
        except InputError as error:
            raise UnsupportedMediaError(f"state: {error}", ("state",)) from None
        model, deadline = member_of(values, "model", str, ()), deadline_of(values)
        return ParsedRequest(model, text, questions, deadline, early_exit=early_exit_of(values))

    def response(self, model: str, answered: Sequence[Answered]) -> JsonObject:
        """The response's body."""
        input_tokens = usage(answered).input_tokens
        return {
            "model": model,
            "answers": {one.asked.question.name: _answer(one) for one in answered},
            "usage": {"input_tokens": input_tokens, "output_tokens": len(answered)},
        }

    def error(self, error: HttpError) -> tuple[int, JsonObject]:
        """Status and body of an error: a list of faults for a body that is invalid, else a type and a message."""
        if not isinstance(error, InvalidRequestError):
            return error.http_status, {"detail": {"error_type": error.error_type, "message": str(error)}}
        kind = error.code if isinstance(error, InvalidJsonError) else "value_error"
        fault = {"loc": ["body", *error.location], "msg": str(error), "type": kind}
        return error.http_status, {"detail": [fault]}


def _question(name: str, entry: object) -> AskedQuestion:
    at: Location = ("questions", name)
    if not name.strip():
        raise InvalidRequestError("a question has an empty name; give it one", at)
    values = typed(entry, dict, at)
    kind = member_of(values, "type", str, at)
    if kind not in _PARSERS:
        raise InvalidRequestError(f"type is {kind[:60]!r}; use choice, noul or score", (*at, "type"))
    instructions = values.get("instructions")
    text = "" if instructions is None else json_text(typed(instructions, _TEXT, (*at, "instructions")))
    return _PARSERS[kind](name, text, values, at)


def _noul(name: str, instructions: str, values: JsonObject, at: Location) -> AskedQuestion:
    criteria = values.get("criteria")
    sides = {} if criteria is None else typed(criteria, dict, (*at, "criteria"))
    unknown = [side for side in sides if side not in ("true", "false")]
    if unknown:
        raise InvalidRequestError(f"criteria has {unknown[0][:60]!r}; its keys are true and false", (*at, "criteria"))
    described = tuple(_description(sides.get(side), (*at, "criteria", side)) for side in ("false", "true"))
    question = question_at(at, name, "predicate", instructions, ("false", "true"), described)
    return AskedQuestion(question, (False, True), at)


def _choice(name: str, instructions: str, values: JsonObject, at: Location) -> AskedQuestion:
    options = typed(values.get("criteria"), dict, (*at, "criteria"))
    described = tuple(_description(text, (*at, "criteria", option)) for option, text in options.items())
    question = question_at((*at, "criteria"), name, "choice", instructions, tuple(options), described)
    return AskedQuestion(question, tuple(options), at)


def _score(name: str, instructions: str, values: JsonObject, at: Location) -> AskedQuestion:
    levels = typed(values.get("criteria"), list, (*at, "criteria"))
    texts = tuple(json_text(typed(level, _TEXT, (*at, "criteria", index))) for index, level in enumerate(levels))
    # the format describes no levels, and a run may have been trained on some that are
    given = typed(values.get("x_descriptions") or [], list, (*at, "x_descriptions"))
    described = tuple(_description(text, (*at, "x_descriptions", index)) for index, text in enumerate(given))
    question = question_at((*at, "criteria"), name, "score", instructions, texts, described)
    return AskedQuestion(question, tuple(levels), at)


_PARSERS = {"noul": _noul, "choice": _choice, "score": _score}


def _description(value: object, at: Location) -> str | None:
    return None if value is None else json_text(typed(value, _TEXT, at))


def _answer(answered: Answered) -> JsonObject:
    assert answered.reply is not None
    question, values = answered.asked.question, answered.asked.values
    answer, probs = answered.reply.answer, probabilities(answered.reply.answer)
    if question.type == "predicate":
        return {"type": "noul", "noul": probs[1], **extension(answered)}
    if question.type == "choice":
        return {
            "type": "choice",
            "choice": answer.prediction,
            "probabilities": dict(zip(question.options, probs, strict=True)),
            "confidence": choice_confidence(probs),
            **extension(answered),
        }
    return {
        "type": "score",
        "score": answer.score,
        "legend": {str(level): value for level, value in enumerate(values)},
        "probabilities": {str(level): p for level, p in enumerate(probs)},
        "confidence": score_confidence(probs),
        **extension(answered),
    }
