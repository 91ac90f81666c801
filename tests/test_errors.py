"""Messages are safe to print in a terminal, whatever they quote from a file."""

from __future__ import annotations

import json

import pytest

from lorchestra.errors import DataError, LorchestraError, printable, visible, visible_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rows.csv:3: Überschrift 電影 😀", "rows.csv:3: Überschrift 電影 😀"),
        ("a\n  b\r\nc", "a b c"),
        ("\x1b[31mred\x07\x00", "\\x1b[31mred\\x07\\x00"),
        ("left\u202eright\u2028", "left\\u202eright\\u2028"),
        ("half \ud800", "half \\ud800"),
    ],
)
def test_nothing_but_printable_characters_on_one_line(text, shown):
    assert printable(text) == shown
    assert str(DataError(text)) == shown
    assert shown.isprintable()


def test_long_messages_keep_both_ends():
    shown = str(LorchestraError("start" + "x" * 10_000 + "what to do"))
    assert shown.startswith("startx")
    assert shown.endswith("xwhat to do")
    assert len(shown) == 2000


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("from\r\nWindows", "from\nWindows"),
        ("over\rwritten", "over\\rwritten"),
        ("\x1b[2J\u009b31m", "\\x1b[2J\\x9b31m"),
        ("a\u202eb\u200bc\ufeff", "a\\u202eb\\u200bc\\ufeff"),
        ("caf\u00e9 \u3000 \u00a0 \U0001f600", "caf\u00e9 \u3000 \u00a0 \U0001f600"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_a_terminal_would_execute_or_hide_is_escaped(text, shown):
    assert visible(text) == shown
    assert visible(shown) == shown


@pytest.mark.parametrize("text", ["\x1b\x7f\u009b", "\u202e\u2028\ufeff", "\U000e0001\U0001f600", "\ud800 \u3000"])
def test_json_keeps_its_value(text):
    line = visible_json(json.dumps(text, ensure_ascii=False))
    assert json.loads(line) == text
    assert visible(line) == line
