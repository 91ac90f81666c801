"""Messages are fit for a terminal whatever the file that they quote holds."""

from __future__ import annotations

import pytest

from lorchestra.errors import DataError, LorchestraError, printable


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
