"""What both wire formats share: typed access to a body's values, confidences, and the fields that extend answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from lorchestra.config.serve import ServeLimits
from lorchestra.data.states import json_text
from lorchestra.errors import ConfigError
from lorchestra.metrics.early_exit import ExitRule
from lorchestra.questions import Question
from lorchestra.runs.ask import Reply
from lorchestra.runs.predict import Answer
from lorchestra.server.errors import HttpError, InvalidRequestError, Location

T = TypeVar("T")

JsonObject = Mapping[str, object]


@dataclass(frozen=True)
class AskedQuestion:
    """A question, and the values by which its wire format names its options in answers."""

    question: Question
    values: tuple[object, ...]
    location: Location


@dataclass(frozen=True)
class ParsedRequest:
    """A request in either wire format.

    Attributes:
        model: the name of the model.
        state: as text.
        questions: in the order of their answers.
        deadline_ms: milliseconds after which the client has no use for an answer.
        partition: cached states are shared within it only.
        early_exit: when a question needs no more members; None for all of them.
    """

    model: str
    state: str
    questions: tuple[AskedQuestion, ...]
    deadline_ms: float | None = None
    partition: str = ""
    early_exit: ExitRule | None = None


@dataclass(frozen=True)
class Answered:
    """A question with its reply, or without one and the reason why it cannot be answered."""

    asked: AskedQuestion
    reply: Reply | None
    reason: str = ""


class WireFormat(Protocol):
    """How requests are read and responses written."""

    refuses: bool
    """Whether a question that cannot be answered gets a refusal, and not the request an error."""

    def parse(self, body: object, limits: ServeLimits) -> ParsedRequest:
        """The request of a body.

        Raises:
            HttpError: the body is no valid request.
        """
        ...

    def response(self, model: str, answered: Sequence[Answered]) -> JsonObject:
        """The response's body."""
        ...

    def error(self, error: HttpError) -> tuple[int, JsonObject]:
        """Status and body of an error."""
        ...


def member_of(values: JsonObject, key: str, types: type[T] | tuple[type[T], ...], at: Location) -> T:
    """A value that must be present and of a type.

    Raises:
        InvalidRequestError: it is not.
    """
    if key not in values:
        raise InvalidRequestError(f"{key} is missing", (*at, key))
    return typed(values[key], types, (*at, key))


def typed(value: object, types: type[T] | tuple[type[T], ...], at: Location) -> T:
    """A value that must be of a type.

    Raises:
        InvalidRequestError: it is not.
    """
    if isinstance(value, types):
        return value
    names = {str: "a string", dict: "an object", list: "an array", bool: "true or false"}
    wanted = " or ".join(names[one] for one in (types if isinstance(types, tuple) else (types,)))
    raise InvalidRequestError(f"{at[-1] if at else 'the body'} is {json_text(value)[:60]}; send {wanted}", at)


def deadline_of(body: JsonObject) -> float | None:
    """The client's deadline in milliseconds, from the field `x_deadline_ms`.

    Raises:
        InvalidRequestError: it is not a positive number.
    """
    value = body.get("x_deadline_ms")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InvalidRequestError(
            f"x_deadline_ms is {json_text(value)[:60]}; send a positive number", ("x_deadline_ms",)
        )
    return float(value)


def early_exit_of(body: JsonObject) -> ExitRule | None:
    """When members can stop, from the field `x_early_exit`: "exact", or a confidence.

    Raises:
        InvalidRequestError: it is neither of the two.
    """
    value = body.get("x_early_exit")
    if value is None:
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ConfigError(f"x_early_exit: {json_text(value)[:60]} is neither exact nor a confidence in (0, 1]")
        return ExitRule.parse(value, "x_early_exit")
    except (ConfigError, OverflowError) as error:
        raise InvalidRequestError(str(error)[:200], ("x_early_exit",)) from None


def check_counts(questions: Sequence[AskedQuestion], limits: ServeLimits) -> None:
    """Check the number of options of all questions together.

    Raises:
        InvalidRequestError: there are too many.
    """
    number = sum(len(asked.question.options) for asked in questions)
    if number > limits.max_options:
        raise InvalidRequestError(
            f"the questions have {number:,} options together, over {limits.max_options:,}; send several requests",
            ("questions",),
        )


def check_number(number: int, limits: ServeLimits) -> None:
    """Check the number of questions.

    Raises:
        InvalidRequestError: none, or too many.
    """
    if not 1 <= number <= limits.max_questions:
        raise InvalidRequestError(
            f"the request has {number} questions; ask 1 to {limits.max_questions}, or send several requests",
            ("questions",),
        )


def question_at(location: Location, name: str, *parts: object) -> Question:
    """A question; its errors name the location in the body.

    Raises:
        InvalidRequestError: see `Question`.
    """
    try:
        return Question(name, *parts)  # type: ignore[arg-type]
    except ConfigError as error:
        raise InvalidRequestError(str(error), location) from None


@dataclass(frozen=True, slots=True)
class Usage:
    """Input tokens of a request; how many of them were cached before, and how many are now."""

    input_tokens: int
    cached: int
    written: int


def usage(answered: Sequence[Answered]) -> Usage:
    """The tokens of a request, whose questions share those of the state."""
    replies = [one.reply for one in answered if one.reply is not None]
    of_questions = sum(reply.input_tokens - reply.state_tokens for reply in replies)
    state = max((reply.state_tokens for reply in replies), default=0)
    cached = min((reply.cached_tokens for reply in replies if reply.state_tokens), default=0)
    written = max((reply.written_tokens for reply in replies), default=0)
    return Usage(of_questions + state, cached, written)


def choice_confidence(probs: Sequence[float]) -> float:
    """How far the largest probability is above chance: 0 for equal ones, 1 for certainty."""
    chance = 1 / len(probs)
    return min(1.0, max(0.0, (max(probs) - chance) / (1 - chance)))


def score_confidence(probs: Sequence[float]) -> float:
    """1 minus the mean distance from the most probable level, relative to that of equal probabilities from the middle;
    at least 0."""
    number = len(probs)
    mode = max(range(number), key=lambda level: probs[level])
    spread = sum(p * abs(level - mode) for level, p in enumerate(probs))
    uniform = sum(abs(level - (number - 1) / 2) for level in range(number)) / number
    return min(1.0, max(0.0, 1 - spread / uniform))


def probabilities(answer: Answer) -> list[float]:
    """The probabilities of an answer's options, in the question's order."""
    assert answer.probs is not None
    return [_probability(p) for p in answer.probs]


def extension(answered: Answered) -> dict[str, object]:
    """The fields of an answer that are not part of the wire format.

    `x_members` has the members' probabilities in the order of the answer's probabilities; of true, for a predicate.
    """
    assert answered.reply is not None
    answer, values = answered.reply.answer, answered.asked.values
    question = answered.asked.question
    members = [[_probability(p) for p in member] for member in answer.member_probs or ()]
    fitting = answer.prediction_set
    extensions: dict[str, object] = {
        "x_mutual_information": answer.mutual_information,
        "x_members": [member[1] for member in members] if question.type == "predicate" else members,
        "x_decision": answer.decision,
        "x_prediction_set": None
        if fitting is None
        else [value for value, option in zip(values, question.options, strict=True) if option in fitting],
        "x_calibrated": answer.calibrated,
        "x_trained": answer.trained,
    }
    if answer.members_used is not None:
        extensions["x_members_used"] = answer.members_used
    if answer.information_predicted:
        extensions["x_information_predicted"] = True
    return extensions


def _probability(value: float) -> float:
    """A probability; sums of exponentials may leave [0, 1] by a rounding error."""
    assert math.isfinite(value)
    return min(1.0, max(0.0, value))
