"""The wire format of `POST /v1/decisions`: a list of questions about a text or conversation; answers in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lorchestra.config.serve import ServeLimits
from lorchestra.data.states import CALLS, OUTPUTS, content_text, state_text
from lorchestra.server.errors import HttpError, InvalidRequestError, Location, UnsupportedMediaError
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

_ROLES = {
    "user": ("input_text", "input_json"),
    "developer": ("input_text",),
    "system": ("input_text",),
    "assistant": ("output_text", "refusal"),
}
"""Roles of messages, with the parts that their content may have."""
_PART_FIELDS: dict[str, tuple[str, type[object] | tuple[type[object], ...]]] = {
    "input_text": ("text", str),
    "output_text": ("text", str),
    "refusal": ("refusal", str),
    "input_json": ("data", (dict, list)),
}


class Decisions:
    """Reads requests to `/v1/decisions` and writes their responses."""

    refuses = True

    def parse(self, body: object, limits: ServeLimits) -> ParsedRequest:
        """The request of a body.

        Raises:
            InvalidRequestError: a field is missing, has the wrong type or is out of range.
            UnsupportedMediaError: the input holds an image.
        """
        values = typed(body, dict, ())
        given = member_of(values, "input", (str, list), ())
        if isinstance(given, list):
            _check_items(given)
        entries = member_of(values, "questions", list, ())
        check_number(len(entries), limits)
        questions = tuple(_question(entry, ("questions", index)) for index, entry in enumerate(entries))
        check_counts(questions, limits)
        cache_key = values.get("prompt_cache_key")
        return ParsedRequest(
            member_of(values, "model", str, ()),
            state_text(given),
            questions,
            deadline_of(values),
            "" if cache_key is None else typed(cache_key, str, ("prompt_cache_key",)),
            early_exit_of(values),
        )

    def response(self, model: str, answered: Sequence[Answered]) -> JsonObject:
        """The response's body."""
        tokens = usage(answered)
        output_tokens = sum(one.reply is not None for one in answered)
        return {
            "model": model,
            "answers": [_answer(one) for one in answered],
            "usage": {
                "input_tokens": tokens.input_tokens,
                "input_tokens_details": {"cached_tokens": tokens.cached, "cache_write_tokens": tokens.written},
                "output_tokens": output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": tokens.input_tokens + output_tokens,
            },
        }

    def error(self, error: HttpError) -> tuple[int, JsonObject]:
        """Status and body of an error; an invalid body has status 400 here."""
        status = 400 if isinstance(error, InvalidRequestError) else error.http_status
        detail = {
            "message": str(error),
            "type": error.error_type,
            "param": _param(error.location),
            "code": error.code,
        }
        return status, {"error": detail}


def _param(location: Location) -> str | None:
    """A location as OpenAI writes it: questions[0].choices."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return text.lstrip(".") or None


def _check_items(items: Sequence[object]) -> None:
    """Check the messages and tool items of an input."""
    if not items:
        raise InvalidRequestError("input is empty; send a text or at least one message", ("input",))
    calls: dict[str, str] = {}
    for index, item in enumerate(items):
        at: Location = ("input", index)
        values = typed(item, dict, at)
        kind = typed(values.get("type", "message"), str, (*at, "type"))
        if kind == "message":
            _check_message(values, at)
        elif kind in CALLS:
            call_id = member_of(values, "call_id", str, at)
            for key in ("name", CALLS[kind]):
                member_of(values, key, str, at)
            if call_id in calls:
                raise InvalidRequestError(
                    f"call_id {call_id[:60]!r} occurs twice; give each call its id", (*at, "call_id")
                )
            calls[call_id] = kind
        elif kind in OUTPUTS:
            call_id = member_of(values, "call_id", str, at)
            if calls.get(call_id) != kind.removesuffix("_output"):
                raise InvalidRequestError(
                    f"no {kind.removesuffix('_output')} before this has its call_id", (*at, "call_id")
                )
            _check_content(member_of(values, "output", (str, list), at), ("input_text",), (*at, "output"))
        else:
            raise InvalidRequestError(f"type is {kind[:60]!r}; use message, a tool call or its output", (*at, "type"))


def _check_message(values: JsonObject, at: Location) -> None:
    role = member_of(values, "role", str, at)
    if role not in _ROLES:
        raise InvalidRequestError(f"role is {role[:60]!r}; use {', '.join(_ROLES)}", (*at, "role"))
    _check_content(member_of(values, "content", (str, list), at), _ROLES[role], (*at, "content"))


def _check_content(content: object, kinds: Sequence[str], at: Location) -> None:
    if not isinstance(content, list):
        return
    for index, part in enumerate(content):
        here = (*at, index)
        values = typed(part, dict, here)
        kind = member_of(values, "type", str, here)
        if kind == "input_image":
            raise UnsupportedMediaError(
                "the base reads text only, no images; leave the image out, or describe it", here
            )
        if kind not in kinds:
            raise InvalidRequestError(f"type is {kind[:60]!r}; use {' or '.join(kinds)}", (*here, "type"))
        field, types = _PART_FIELDS[kind]
        member_of(values, field, types, here)


def _question(entry: object, at: Location) -> AskedQuestion:
    values = typed(entry, dict, at)
    kind = member_of(values, "type", str, at)
    if kind not in _PARSERS:
        raise InvalidRequestError(f"type is {kind[:60]!r}; use choice, predicate or score", (*at, "type"))
    instructions = member_of(values, "instructions", (str, list), at)
    _check_content(instructions, ("input_text", "input_json"), (*at, "instructions"))
    name = values.get("name")
    name = "" if name is None else typed(name, str, (*at, "name"))
    return _PARSERS[kind](name, content_text(instructions), values, at)


def _predicate(name: str, instructions: str, values: JsonObject, at: Location) -> AskedQuestion:
    return AskedQuestion(question_at(at, name, "predicate", instructions), (False, True), at)


def _choice(name: str, instructions: str, values: JsonObject, at: Location) -> AskedQuestion:
    at_choices = (*at, "choices")
    entries = [typed(one, dict, (*at_choices, i)) for i, one in enumerate(member_of(values, "choices", list, at))]
    choices = [member_of(one, "value", (str, bool), (*at_choices, i)) for i, one in enumerate(entries)]
    described = tuple(_description(one, (*at_choices, i)) for i, one in enumerate(entries))
    question = question_at(at_choices, name, "choice", instructions, _distinct(choices), described)
    return AskedQuestion(question, tuple(choices), at)


def _distinct(choices: Sequence[object]) -> tuple[str, ...]:
    """The choices as texts that differ where the choices do: true next to "true" is called "true (boolean)"."""
    strings = {choice.strip() for choice in choices if isinstance(choice, str)}
    texts = []
    for choice in choices:
        text = str(choice).lower() if isinstance(choice, bool) else str(choice)
        while isinstance(choice, bool) and text in strings:
            text += " (boolean)"
        texts.append(text)
    return tuple(texts)


def _score(name: str, instructions: str, values: JsonObject, at: Location) -> AskedQuestion:
    at_levels = (*at, "levels")
    entries = [typed(one, dict, (*at_levels, i)) for i, one in enumerate(member_of(values, "levels", list, at))]
    labels = tuple(member_of(one, "label", str, (*at_levels, i)) for i, one in enumerate(entries))
    described = tuple(_description(one, (*at_levels, i)) for i, one in enumerate(entries))
    return AskedQuestion(question_at(at_levels, name, "score", instructions, labels, described), labels, at)


_PARSERS: dict[str, Callable[[str, str, JsonObject, Location], AskedQuestion]] = {
    "predicate": _predicate,
    "choice": _choice,
    "score": _score,
}


def _description(values: JsonObject, at: Location) -> str | None:
    text = values.get("description")
    return None if text is None else typed(text, str, (*at, "description"))


def _answer(answered: Answered) -> JsonObject:
    question, values = answered.asked.question, answered.asked.values
    name = question.name or None
    if answered.reply is None:
        return {"type": "refusal", "name": name, "x_reason": answered.reason}
    answer, probs = answered.reply.answer, probabilities(answered.reply.answer)
    if question.type == "predicate":
        return {"type": "predicate", "name": name, "probability": probs[1], **extension(answered)}
    if question.type == "choice":
        assert answer.prediction_index is not None
        return {
            "type": "choice",
            "name": name,
            "choice": values[answer.prediction_index],
            "confidence": choice_confidence(probs),
            "probabilities": [{"value": v, "probability": p} for v, p in zip(values, probs, strict=True)],
            **extension(answered),
        }
    return {
        "type": "score",
        "name": name,
        "score": answer.score,
        "confidence": score_confidence(probs),
        "probabilities": [
            {"label": label, "probability": p, "value": level}
            for level, (label, p) in enumerate(zip(values, probs, strict=True))
        ],
        **extension(answered),
    }
