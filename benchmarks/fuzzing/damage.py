"""Random damage to bytes and values: the mutators that all surfaces share."""

from __future__ import annotations

import json
import math
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

STRANGE_TEXTS = (
    "",
    " ",
    "\n",
    "\x00",
    "a\x00b",
    "\x1b[31mred\x1b[0m",
    "\x07\x08\x7f",
    "\ufeff",
    "\ufffe",
    "\u202eright to left",
    "שלום עולם",
    "مرحبا",
    "\u2028line\u2029",
    "\u200b",
    "e\u0301\u0301\u0301" * 40,
    "𝕱𝖎𝖑𝖒",
    "👩‍👩‍👧‍👦",
    "ß",
    "\ud800",
    "a\udfffb",
    "../../etc/passwd",
    "{question}",
    "{0.__class__}",
    "%s%n%d",
    "[bold]x[/bold]",
    "[/x]",
    "null",
    "NaN",
    "-0",
    "1e999",
    "[]",
    "{}",
    '"',
    "'",
    ",",
    "\t",
    "\r",
    "<s>",
    "</s>",
    "A",
    "x" * 5000,
)

STRANGE_NUMBERS = (
    0,
    -1,
    1,
    2,
    10**6,
    2**31,
    2**63,
    -(2**63) - 1,
    10**30,
    10**4000,
    0.0,
    -0.0,
    0.5,
    1e-320,
    1e308,
    math.inf,
    -math.inf,
    math.nan,
)

LEAVES = (
    "text",
    "0.5",
    "",
    "../../x",
    "/x",
    "a/b",
    "\u202e",
    "\x1b[31m",
    "x" * 300,
    1e38,
    1e300,
    -1e300,
    1e-300,
    2**40,
    2**70,
    10**6,
    -1,
    0,
    1,
    0.5,
    math.nan,
    math.inf,
    None,
    True,
    [],
    {},
    [[]],
    {"a": 1},
)
"""Replacements for fields of records: other types, and extreme numbers of the right type."""


class Canary:
    """Unpickling it writes a file: this must never happen."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.write_text, (Path(self.path), "a pickle was loaded"))


def pickled(path: Path) -> bytes:
    """A pickle that writes a file at `path` when it is loaded."""
    return pickle.dumps(Canary(str(path)))


def strange_value(draw: random.Random, depth: int = 0) -> Any:
    """A value that JSON, or Python's reading of it, can represent."""
    pick = draw.randrange(10 if depth < 3 else 7)
    if pick < 3:
        return draw.choice(STRANGE_TEXTS)
    if pick < 5:
        return draw.choice(STRANGE_NUMBERS)
    if pick < 7:
        return draw.choice((None, True, False))
    if pick < 9:
        return [strange_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {str(draw.choice(STRANGE_TEXTS)): strange_value(draw, depth + 1) for _ in range(draw.randrange(3))}


def dumps(value: Any) -> str:
    """JSON with Python's extensions (NaN, infinities, surrogates as escapes), and integers of any length."""
    try:
        return json.dumps(value)
    except ValueError:  # Python refuses to format integers of more than 4,300 digits
        return "1" + "0" * 5000


def damage_bytes(data: bytes, draw: random.Random) -> bytes:
    """One to four pieces of damage to a file's bytes."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        data = draw.choice(_WAYS)(data, draw)
    return data


def _truncate(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _flip_bit(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 3, 20))):
        if changed:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut(data: bytes, draw: random.Random) -> bytes:
    start, stop = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    return data[:start] + data[stop:]


def _repeat(data: bytes, draw: random.Random) -> bytes:
    start, stop = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    return data[:stop] + data[start:stop] + data[stop:]


def _insert(data: bytes, draw: random.Random) -> bytes:
    position = draw.randrange(len(data) + 1)
    piece = draw.choice(
        (
            draw.randbytes(draw.randrange(1, 9)),
            b"\x00",
            b"\xff\xfe",
            b"\xef\xbb\xbf",
            b"\r",
            b'"',
            b"\n",
            b"[" * draw.choice((1, 100, 100_000)),
            b"1" * draw.choice((20, 5000)),
            b"\xed\xa0\x80",
        )
    )
    return data[:position] + piece + data[position:]


def _shuffle_lines(data: bytes, draw: random.Random) -> bytes:
    lines = data.split(b"\n")
    draw.shuffle(lines)
    return b"\n".join(lines)


def _replace(data: bytes, draw: random.Random) -> bytes:
    return draw.choice((b"", b"\n", b"\x00" * 64, draw.randbytes(draw.randrange(200)), b"null", b"[]", b"{}"))


_WAYS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _truncate,
    _flip_bit,
    _flip_bit,
    _cut,
    _repeat,
    _insert,
    _insert,
    _shuffle_lines,
    _replace,
)


def other_encoding(text: str, draw: random.Random) -> bytes:
    """Text with an unexpected encoding, byte order mark or line ends."""
    ends = draw.choice(("\n", "\r\n", "\r", "\u2028", "\n\n"))
    encoding = draw.choice(("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-7"))
    data = text.replace("\n", ends).encode(encoding, errors="replace")
    return draw.choice((b"", b"", b"\xef\xbb\xbf", b"\xef\xbb\xbf\xef\xbb\xbf")) + data


def damage_json(value: Any, draw: random.Random) -> Any:
    """A copy of a JSON value with one field or entry removed, replaced, added or duplicated."""
    copy = json.loads(json.dumps(value))
    locations = _locations(copy)
    if not locations:
        return strange_value(draw)
    holder, key = draw.choice(locations)
    way = draw.randrange(5)
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, list):
        holder.append(holder[key])
    elif way == 2 and isinstance(holder, dict):
        holder[f"{key}_"] = holder.pop(key)
    elif way == 3:
        holder[key] = {"text": holder[key]} if draw.random() < 0.5 else [holder[key]]
    else:
        holder[key] = strange_value(draw)
    return copy


def replace_leaf(value: Any, draw: random.Random) -> Any:
    """A copy of a JSON value with one field or entry replaced by one of `LEAVES`."""
    copy = json.loads(json.dumps(value))
    locations = _locations(copy)
    if not locations:
        return draw.choice(LEAVES)
    holder, key = draw.choice(locations)
    holder[key] = draw.choice(LEAVES)
    return copy


def _locations(value: Any) -> list[tuple[Any, Any]]:
    """Every container with each of its keys."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    elif isinstance(value, list):
        keys = list(range(min(len(value), 6)))
    else:
        return []
    return [(value, key) for key in keys] + [location for key in keys for location in _locations(value[key])]
