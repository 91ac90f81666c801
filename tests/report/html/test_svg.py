"""The drawing: positions of values, escaping, and round numbers on the axes."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from lorchestra.report.html.glyphs import interval_glyph, member_glyph
from lorchestra.report.html.svg import Axis, Key, Panel, percent, plain, ticks
from lorchestra.report.html.tables import Difference


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.45, 0.74, [0.45, 0.5, 0.55, 0.6, 0.65, 0.7]),
        (0, 5, [0, 1, 2, 3, 4, 5]),
        (-0.2, 0.2, [-0.2, -0.1, 0.0, 0.1, 0.2]),
        (0, 13, [0, 5, 10]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("span", [1e-6, 0.003, 0.7, 9.99, 12345.0])
def test_ticks_are_few_and_inside(span):
    values = ticks(0.1 * span, 1.1 * span)
    assert 2 <= len(values) <= 6
    assert values[0] >= 0.1 * span * (1 - 1e-9)
    assert values[-1] <= 1.1 * span * (1 + 1e-9)


def panel(**options):
    return Panel(Axis(0, 10, "x"), Axis(0, 1, "y", percent), "what <it> shows", **options)


def test_values_land_where_the_axes_say():
    empty = panel(width=100, height=100, left=20, right=10, top=5, bottom=15)
    assert (empty.px(0), empty.px(10), empty.px(5)) == (20, 90, 55)
    assert (empty.py(0), empty.py(1), empty.py(0.5)) == (85, 5, 45)


def test_a_panel_is_well_formed_and_escapes():
    shown = panel()
    shown.line([0, 5, 6, 10], [0, 1, np.nan, 0.5], "ens", tip="<script>&")
    shown.area([0, 10], [0.2, 0.3], "one")
    shown.steps([0, 5, 10], [0.1, 0.2], "base", "dash")
    shown.bar(0, 2, 0.5, "one", "</title><script>")
    shown.point(1, 0.5, "ens", "square", "tip")
    shown.arrow((0, 0), (5, 0.5), "one", "<b>")
    shown.arrow((1, 0.1), (1, 0.1), "one")
    shown.text(1, 0.5, "<i>", dx=3)
    text = shown.svg()
    tree = ET.fromstring(text)
    assert {element.tag for element in tree.iter()} <= {"svg", "g", "path", "text", "title", "rect", "circle"}
    assert tree.get("aria-label") == "what <it> shows"
    titles = [element.text for element in tree.iter("title")]
    assert titles == ["<script>&", "</title><script>", "tip", "<b>", "<b>"]
    assert "<script" not in text
    assert "nan" not in text


def test_a_line_is_interrupted_where_a_value_is_missing():
    shown = panel()
    shown.line([0, 1, 2, 3, 4], [0, 0.1, np.nan, 0.3, 0.4], "ens")
    (path,) = re.findall(r'class="line [^"]*" d="([^"]*)"', shown.parts[0])
    assert re.sub(r"[-\d. ]+", "", path) == "MLML"


def test_numbers_are_short():
    assert [plain(value) for value in (0.1 + 0.2, 5.0, -1.5)] == ["0.3", "5", "\N{MINUS SIGN}1.5"]
    assert percent(0.07) == "7\u00a0%"


def test_a_legend_shows_line_and_marker():
    swatch = ET.fromstring(Key("name", "ens", "dash", "ring").swatch())
    assert [child.get("class") for child in swatch] == ["line dash", "ring"]
    assert [child.get("class") for child in ET.fromstring(Key("n", "one", "", "square", line=False).swatch())] == [
        "marker"
    ]


def glyph(low, value, high, scale=10.0):
    ends = (low, value, high)
    return ET.fromstring(interval_glyph(Difference("v", "i", "better", guaranteed=False, ends=ends), scale))


def test_an_interval_is_on_its_side_of_zero():
    inside = glyph(2.0, 4.0, 6.0)
    dot = inside.find("circle")
    assert float(dot.get("cx")) == pytest.approx(56 + 48 * 0.4, abs=0.06)
    assert inside.find("path[@class='span']").get("d") == "M65.6 7H84.8"
    assert inside.find("path[@class='dot']") is None


def test_beyond_the_scale_there_is_an_arrow():
    right, left = glyph(20.0, 30.0, 40.0), glyph(-40.0, -30.0, -20.0)
    for shown, start in ((right, "M112 "), (left, "M0 ")):
        assert shown.find("circle") is None
        (arrow,) = shown.findall("path[@class='dot']")
        assert arrow.get("d").startswith(start)
    assert interval_glyph(Difference("v", "", "unknown", guaranteed=False, ends=None), 1.0) == ""


def test_member_ticks_are_on_the_bar():
    shown = ET.fromstring(member_glyph(0.5, (0.0, 1.0), "<yes>"))
    assert shown.find("rect[@class='fill']").get("width") == "78.0"
    assert [path.get("d") for path in shown.findall("path")] == ["M2.0 1V15", "M158.0 1V15"]
    assert shown.get("aria-label") == "<yes>: ensemble 0.50; members 0.00 1.00"
