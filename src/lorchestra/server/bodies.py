"""Bodies of requests: read within limits of size and time, and parsed as strict JSON."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import AsyncIterable, Sequence

from lorchestra.config.serve import ServeLimits
from lorchestra.server.errors import BodyTooLargeError, InvalidJsonError, SlowBodyError

_DISCARDED = 4
"""So many times the limit of bytes are read and discarded before a body is refused: a client that is still sending
may not see a response that closes its connection."""
_DIGITS = 20
"""More digits than any 64-bit integer has."""


async def read_body(chunks: AsyncIterable[bytes], limits: ServeLimits) -> bytes:
    """The whole body.

    Raises:
        BodyTooLargeError, SlowBodyError: it exceeds its limit.
    """
    kept: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_timeout):
            async for chunk in chunks:
                size += len(chunk)
                if size <= limits.max_body_bytes:
                    kept.append(chunk)
                elif size > _DISCARDED * limits.max_body_bytes:
                    break
    except TimeoutError:
        raise SlowBodyError(f"the body did not arrive within {limits.body_timeout:g} s; send it at once") from None
    if size > limits.max_body_bytes:
        raise BodyTooLargeError(
            f"the body has more than {limits.max_body_bytes:,} bytes; send less, or several requests"
        )
    return b"".join(kept)


def parse_json(body: bytes, max_depth: int) -> object:
    """The body's value.

    Raises:
        InvalidJsonError: it is no JSON in UTF-8, repeats a key, is nested too deep, or holds NaN, infinity, a number
            beyond 64 bits or half of a surrogate pair.
    """
    try:
        text = body.decode()
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
    except UnicodeDecodeError as error:
        raise InvalidJsonError(f"the body is not UTF-8: byte {error.start} is invalid", (error.start,)) from None
    except json.JSONDecodeError as error:
        raise InvalidJsonError(f"the body is not JSON: {error.msg} at character {error.pos}", (error.pos,)) from None
    except RecursionError:
        raise _too_deep(max_depth) from None
    _check_values(value, max_depth)
    return value


def _object(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise InvalidJsonError(f"the key {twice[:60]!r} occurs twice in an object; use each once")
    return values


def _refuse_constant(name: str) -> object:
    raise InvalidJsonError(f"{name} is not JSON; use null or a finite number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise InvalidJsonError(f"the number {text[:30]} is too large; use a finite one")
    return number


def _integer(text: str) -> int:
    if len(text) <= _DIGITS and -(2**63) <= (number := int(text)) < 2**64:
        return number
    raise InvalidJsonError(f"the integer {text[:30]} has more than 64 bits; use a string")


def _check_values(value: object, max_depth: int) -> None:
    """Check depth and strings, level by level, so that no depth exhausts the stack."""
    level: list[object] = [value]
    depth = 0
    while level:
        below: list[object] = []
        for one in level:
            if isinstance(one, str):
                _check_text(one)
            elif isinstance(one, dict):
                below.extend(one)
                below.extend(one.values())
            elif isinstance(one, list):
                below.extend(one)
        depth += any(isinstance(one, dict | list) for one in level)
        if depth > max_depth:
            raise _too_deep(max_depth)
        level = below


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidJsonError("a string holds half of a surrogate pair, which is not a character; remove it") from None


def _too_deep(max_depth: int) -> InvalidJsonError:
    return InvalidJsonError(f"the body has more than {max_depth} levels of objects and arrays; flatten it")
