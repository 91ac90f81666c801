"""What a chat template writes around the contents of a conversation.

A chat template is a program of the base's: it may write today's date, and a row's text could hold what it takes for its
marks. So it is run once, on stand-ins for the contents, and rows are put where the stand-ins were. The answer stands
where the template itself writes an assistant's message, not behind its opening of the assistant's turn, which may lack
a space or a block that comes before every answer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from lorchestra.config.data import ChatFrame
from lorchestra.errors import ConfigError

# Private characters that no template looks for, around some that a template which escapes would change.
_STAND_IN = "\U000f5000{}aB &<'\"\\\U000f5001"
# White space that templates which trim take away, and that none writes.
_EDGE = "\u2003"
_DIGITS = re.compile(r"\d+")


def frame_digest(tokenizer: Any, system_prompt: str | None) -> str:
    """What a frame depends on besides the time: 16 hexadecimal digits."""
    facts = [tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token, system_prompt]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("ascii")).hexdigest()[:16]


def chat_frame(tokenizer: Any, system_prompt: str | None, *, version: int = 2) -> ChatFrame:
    """Run the chat template on stand-ins and take what it writes around them.

    With `version` 1 an answer follows the template's opening of the assistant's turn directly, and nothing follows it.

    Raises:
        ConfigError: the template fails, or changes the contents by more than trimming them.
    """
    chat = _Chat(tokenizer, system_prompt, version)
    alone, shots = chat.parts(0), chat.parts(3)
    if not all(_alike(chat.parts(number), _with_shots(shots, number)) for number in (1, 2, 3, 5)):
        shots = ()
    return ChatFrame(frame_digest(tokenizer, system_prompt), chat.trim(), alone, shots)


def frame_parts(frame: ChatFrame, num_shots: int) -> tuple[str, ...]:
    """What stands before each content of a conversation with answered questions, and after its last answer.

    Raises:
        ConfigError: questions are to be shown, and the template writes conversations in no way that has a rule.
    """
    if num_shots == 0:
        return frame.alone
    if not frame.shots:
        raise ConfigError(
            "the base's chat template writes longer conversations by no simple rule, so no answered rows can be shown;"
            " set the number of few-shot rows to 0, or drop --data.prompt.chat-template"
        )
    return _with_shots(frame.shots, num_shots)


def _with_shots(three: tuple[str, ...], num_shots: int) -> tuple[str, ...]:
    """Parts for another number of shots: the first and the last pair differ from those between."""
    if num_shots == 0 or not three:
        return ()
    return (*three[:2], *(three[2:4] * (num_shots - 1)), *three[6:])


def _alike(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether parts are the same; a clock may have moved on between them."""
    return [_DIGITS.sub("0", part) for part in one] == [_DIGITS.sub("0", part) for part in other]


class _Chat:
    """A chat template to be run on stand-ins."""

    def __init__(self, tokenizer: Any, system_prompt: str | None, version: int) -> None:
        self.tokenizer, self.system_prompt, self.version = tokenizer, system_prompt, version

    def parts(self, num_shots: int) -> tuple[str, ...]:
        """What stands before each stand-in and after the last one."""
        contents = [_STAND_IN.format(index) for index in range(2 * num_shots + 2)]
        if self.version > 1:
            parts = self._split(self._render(contents), contents)
            if parts is not None:
                # a line end behind the mark that ends the turn says nothing more of the answer
                return (*parts[:-1], parts[-1].rstrip() or parts[-1])
        # a template that refuses a conversation which the assistant ends, or leaves its last answer out
        parts = self._split(self._render(contents[:-1], must=True) or "", contents[:-1])
        if parts is None:
            raise ConfigError(
                "the base's chat template changes or leaves out what it is given, so it cannot be written down with the"
                " run; drop --data.prompt.chat-template, or use another base"
            )
        return (*parts, "")

    def trim(self) -> Literal["", "strip", "lstrip", "rstrip"]:
        """What becomes of white space around a user's message."""
        content = _EDGE + _STAND_IN.format(0) + _EDGE
        text = self._render([content], must=True) or ""
        before, _, after = text.partition(_STAND_IN.format(0))
        left, right = before.endswith(_EDGE), after.startswith(_EDGE)
        if left == right:
            return "" if left else "strip"
        return "rstrip" if left else "lstrip"

    def _split(self, text: str | None, contents: Sequence[str]) -> tuple[str, ...] | None:
        """What stands between the contents; None where one is not there exactly once, in order."""
        parts = []
        for content in contents:
            if text is None or text.count(content) != 1:
                return None
            before, _, text = text.partition(content)
            parts.append(before)
        return (*parts, text or "")

    def _render(self, contents: Sequence[str], *, must: bool = False) -> str | None:
        """The conversation with these contents in turns; with the assistant's turn opened where the user had the last.

        Returns None where the template fails, unless it `must` not.
        """
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt is not None else []
        turns = [
            {"role": "assistant" if index % 2 else "user", "content": content} for index, content in enumerate(contents)
        ]
        asked = len(contents) % 2 == 1
        try:
            return str(
                self.tokenizer.apply_chat_template([*system, *turns], tokenize=False, add_generation_prompt=asked)
            )
        except Exception as error:  # the template is a program of the base's: it may raise anything
            if not must:
                return None
            drop = "--data.prompt.system-prompt" if self.system_prompt is not None else "--data.prompt.chat-template"
            message = f"the base's chat template fails ({error})"
            raise ConfigError(f"{message}; drop {drop}, or use another base") from error
