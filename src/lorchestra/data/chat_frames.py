"""The text that a chat template writes around messages.

A chat template is a program: it may write today's date, and it could interpret parts of a row's text. So it is run
once, on placeholders for the messages, and rows are put in their positions. The answer goes where the template writes
an assistant's message, not after its generation prompt, which may lack a space or a block that precedes every answer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from lorchestra.config.data import ChatFrame
from lorchestra.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# private-use characters, which no template interprets, around characters that templates may escape
_PLACEHOLDER = "\U000f5000{}aB &<'\"\\\U000f5001"
# white space that templates may trim, and that none writes
_EDGE = "\u2003"
_DIGITS = re.compile(r"\d+")


def frame_digest(tokenizer: PreTrainedTokenizerBase, system_prompt: str | None) -> str:
    """A digest of everything that a frame depends on, except the time: 16 hexadecimal digits."""
    inputs = [tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token, system_prompt]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode("ascii")).hexdigest()[:16]


def chat_frame(tokenizer: PreTrainedTokenizerBase, system_prompt: str | None, *, version: int = 2) -> ChatFrame:
    """Run the chat template on placeholders and return the text around them.

    With `version` 1 an answer directly follows the template's generation prompt, and nothing follows the answer.

    Raises:
        ConfigError: the template fails, or changes messages by more than trimming them.
    """
    chat = _Chat(tokenizer, system_prompt, version)
    alone, shots = chat.parts(0), chat.parts(3)
    if not all(_same_but_digits(chat.parts(number), _with_shots(shots, number)) for number in (1, 2, 3, 5)):
        shots = ()
    return ChatFrame(frame_digest(tokenizer, system_prompt), chat.trim(), alone, shots)


def frame_parts(frame: ChatFrame, num_shots: int) -> tuple[str, ...]:
    """The text before each message of a conversation with `num_shots` answered questions, and after the last answer.

    Raises:
        ConfigError: there are answered questions, but the frame of conversations of other lengths is unknown.
    """
    if num_shots == 0:
        return frame.alone
    if not frame.shots:
        raise ConfigError(
            "the base's chat template does not write longer conversations in a regular way, so no answered rows can be"
            " shown; set the number of few-shot rows to 0, or drop --data.prompt.chat-template"
        )
    return _with_shots(frame.shots, num_shots)


def _with_shots(three: tuple[str, ...], num_shots: int) -> tuple[str, ...]:
    """The parts for another number of shots, from those of three: only the first and last pair are special."""
    if num_shots == 0 or not three:
        return ()
    return (*three[:2], *(three[2:4] * (num_shots - 1)), *three[6:])


def _same_but_digits(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether parts are equal except for numbers, as the time may have changed."""
    return [_DIGITS.sub("0", part) for part in one] == [_DIGITS.sub("0", part) for part in other]


class _Chat:
    """A chat template to be run on placeholders."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None, version: int) -> None:
        self.tokenizer, self.system_prompt, self.version = tokenizer, system_prompt, version

    def parts(self, num_shots: int) -> tuple[str, ...]:
        """The text before each placeholder and after the last one."""
        contents = [_PLACEHOLDER.format(index) for index in range(2 * num_shots + 2)]
        if self.version > 1:
            parts = self._split(self._render(contents), contents)
            if parts is not None:
                # a line end after the end-of-turn token is no part of the answer's end
                return (*parts[:-1], parts[-1].rstrip() or parts[-1])
        # the template refuses conversations that end with the assistant, or omits the last answer
        parts = self._split(self._render(contents[:-1], must=True) or "", contents[:-1])
        if parts is None:
            raise ConfigError(
                "the base's chat template changes or omits parts of messages, so its text cannot be saved with the run;"
                " drop --data.prompt.chat-template, or use another base"
            )
        return (*parts, "")

    def trim(self) -> Literal["", "strip", "lstrip", "rstrip"]:
        """How white space around a user's message is stripped."""
        content = _EDGE + _PLACEHOLDER.format(0) + _EDGE
        text = self._render([content], must=True) or ""
        before, _, after = text.partition(_PLACEHOLDER.format(0))
        left, right = before.endswith(_EDGE), after.startswith(_EDGE)
        if left == right:
            return "" if left else "strip"
        return "rstrip" if left else "lstrip"

    def _split(self, text: str | None, contents: Sequence[str]) -> tuple[str, ...] | None:
        """The text between the contents; None if one of them is missing, repeated or out of order."""
        parts = []
        for content in contents:
            if text is None or text.count(content) != 1:
                return None
            before, _, text = text.partition(content)
            parts.append(before)
        return (*parts, text or "")

    def _render(self, contents: Sequence[str], *, must: bool = False) -> str | None:
        """The conversation with these messages by user and assistant in turn; with a generation prompt after a user's.

        Returns None if the template fails, unless it `must` not.
        """
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt is not None else []
        turns = [
            {"role": "assistant" if index % 2 else "user", "content": content} for index, content in enumerate(contents)
        ]
        unanswered = len(contents) % 2 == 1
        try:
            return str(
                self.tokenizer.apply_chat_template([*system, *turns], tokenize=False, add_generation_prompt=unanswered)
            )
        except Exception as error:  # the template is a program: it may raise anything
            if not must:
                return None
            drop = "--data.prompt.system-prompt" if self.system_prompt is not None else "--data.prompt.chat-template"
            message = f"the base's chat template fails ({error})"
            raise ConfigError(f"{message}; drop {drop}, or use another base") from error
