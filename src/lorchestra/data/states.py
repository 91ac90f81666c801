"""A state as text, by one rule that depends on its content alone: the same content always gives the same text.

- A string is itself.
- A conversation is a list of messages, tool calls and their outputs, in the format of chat completions or of responses;
  both give the same text. Each turn is a paragraph: `user: ...`, `assistant: ...`, `call 1, NAME: ARGUMENTS`,
  `result 1, NAME: ...`. Calls are numbered as they come, since their ids are random. Further lines of a turn are
  indented, so that no message can look like a turn of someone else. A single message of a user is its text alone: a
  text has the same prompt whether it is sent as a string or as a message.
- Content in parts (text, refusal, JSON) is the parts' text, one below the other.
- Everything else is JSON with sorted keys on one line; whole numbers are written without a fraction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from lorchestra.errors import InputError

CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
"""Types of items that call a tool, with the field that holds its input."""
OUTPUTS = ("function_call_output", "custom_tool_call_output")
"""Types of items that hold a tool's output."""
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_IMAGE_PARTS = ("image", "image_url", "input_image")


def state_text(state: object) -> str:
    """The text of a state that was given as JSON.

    Raises:
        InputError: a message holds an image, or a part of an unknown type.
    """
    if isinstance(state, str):
        return state
    if isinstance(state, Sequence) and state and all(is_turn(item) for item in state):
        return _conversation(state)
    return json_text(state)


def json_text(value: object) -> str:
    """A JSON value as text: a string as it is, other values on one line with sorted keys."""
    if isinstance(value, str):
        return value
    return json.dumps(_plain(value), ensure_ascii=False, sort_keys=True)


def content_text(content: object) -> str:
    """The text of a message's content or a tool's output: a string, or parts.

    Raises:
        InputError: an image, or a part of an unknown type.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        return json_text(content)
    return "\n".join(map(_part_text, content))


def is_turn(item: object) -> bool:
    """Whether a value is a message, a tool call or a tool's output."""
    if not isinstance(item, Mapping):
        return False
    kind = item.get("type", "message")
    if kind == "message":
        has_content = isinstance(item.get("content"), str | list) or isinstance(item.get("tool_calls"), list)
        return isinstance(item.get("role"), str) and has_content
    if kind in CALLS:
        return all(isinstance(item.get(key), str) for key in ("call_id", "name", CALLS[kind]))
    return kind in OUTPUTS and isinstance(item.get("call_id"), str) and isinstance(item.get("output"), str | list)


def _conversation(items: Sequence[Mapping[str, object]]) -> str:
    calls = _Calls()
    turns = [turn for item in items for turn in _turns(item, calls)]
    if len(turns) == 1 and turns[0][0] == "user":
        return turns[0][1]
    return "\n\n".join(f"{speaker}: {text}".replace("\n", "\n  ") for speaker, text in turns)


class _Calls:
    """The tool calls so far: number and tool by call id."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._count = 0

    def add(self, call_id: object, tool: object) -> str:
        """The speaker of a call."""
        self._count += 1
        self._names[str(call_id)] = f"{self._count}, {tool}"
        return f"call {self._names[str(call_id)]}"

    def output(self, call_id: object) -> str:
        """The speaker of a call's output."""
        return f"result {self._names.get(str(call_id), 'of no call')}"


def _turns(item: Mapping[str, object], calls: _Calls) -> list[tuple[str, str]]:
    """What an item adds to a conversation: speaker and text of each turn."""
    kind = item.get("type", "message")
    if kind in OUTPUTS:
        return [(calls.output(item["call_id"]), content_text(item["output"]))]
    if kind != "message":
        return [(calls.add(item["call_id"], item["name"]), str(item[CALLS[str(kind)]]))]
    role, content = str(item["role"]), content_text(item.get("content"))
    if role == "tool":
        return [(calls.output(item.get("tool_call_id")), content)]
    turns = [(role, content)] if content or not item.get("tool_calls") else []
    given = item.get("tool_calls")
    for call in given if isinstance(given, list) else []:
        tool = call.get("function", call.get("custom")) if isinstance(call, Mapping) else None
        if not isinstance(tool, Mapping):
            raise InputError(f"a tool call is {json_text(call)[:60]}; give it an id and a function")
        text = json_text(tool.get("arguments", tool.get("input", "")))
        turns.append((calls.add(call.get("id"), tool.get("name")), text))
    return turns


def _part_text(part: object) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in _IMAGE_PARTS:
        raise InputError("a message holds an image, and the base reads text only; leave it out, or describe it")
    if isinstance(part, Mapping) and isinstance(kind, str):
        if kind == "input_json" and "data" in part:
            return json_text(part["data"])
        if isinstance(text := part.get(_TEXT_PARTS.get(kind, "")), str):
            return text
    raise InputError(f"a part of a message is {json_text(part)[:60]}; use text, a refusal or input_json")


def _plain(value: object) -> object:
    """A JSON value with whole numbers as integers: 2.0 and 2 are the same number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
