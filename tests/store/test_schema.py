"""The shape of records: what is refused, and in which words."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from lorchestra.errors import CheckpointError
from lorchestra.store.schema import COUNT, FILE_NAME, NUMBER_OR_NULL, Each, Number, Pair, check_shape

FILE = Path("run/record.json")
SHAPE = {
    "name": str,
    "count": int,
    "rate": float,
    "note": (str, None),
    "state": {"on", "off"},
    "parts": [{"size": int}],
}
GOOD = {"name": "x", "count": 3, "rate": 1, "note": None, "state": "on", "parts": [{"size": 1}, {"size": 2, "more": 0}]}


def test_a_record_of_the_shape_is_taken():
    check_shape(GOOD, SHAPE, FILE)
    check_shape(GOOD | {"note": "text", "rate": 0.5, "parts": [], "other": [None]}, SHAPE, FILE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "name is None, not text"),
        ({"count": 1.0}, "count is 1.0, not an integer"),
        ({"count": True}, "count is True, not an integer"),
        ({"count": 2**63}, "count is 9223372036854775808, not an integer"),
        ({"rate": 10**400}, "rate is 1000"),
        ({"rate": True}, "rate is True, not a number"),
        ({"name": 3}, "name is 3, not text"),
        ({"rate": math.nan}, "rate is nan, not a number"),
        ({"rate": "1"}, "rate is '1', not a number"),
        ({"note": 5}, "note is 5, not text"),
        ({"state": "up"}, "state is 'up', not one of off, on"),
        ({"state": ["on"]}, "state is ['on'], not one of off, on"),
        ({"parts": {}}, "parts is {}, not a list"),
        ({"parts": [{"size": 1}, {}]}, "parts[1].size is missing"),
        ({"parts": [{"size": 1}, [2]]}, "parts[1] is [2], not an object"),
    ],
)
def test_each_refusal_names_file_field_and_value(change, message):
    with pytest.raises(CheckpointError, match=re.escape(f"run/record.json: {message}")):
        check_shape(GOOD | change, SHAPE, FILE)


def test_missing_fields_and_whole_records():
    with pytest.raises(CheckpointError, match="count is missing"):
        check_shape({name: value for name, value in GOOD.items() if name != "count"}, SHAPE, FILE)
    with pytest.raises(CheckpointError, match=r"the record is \[\], not an object"):
        check_shape([], SHAPE, FILE)


BOUNDED = {
    "rank": Number(1, 100, whole=True),
    "scaling?": Number(-1e30, 1e30),
    "task": FILE_NAME,
    "names": (str, [str], None),
    "intervals": (Each((Pair(NUMBER_OR_NULL), None)), None),
    "sets": Each({"rows": COUNT}, names=True),
}
FINE = {
    "rank": 1,
    "task": "rows",
    "names": ["a"],
    "intervals": {"nll": [0.5, None], "ece": None},
    "sets": {"a": {"rows": 0}},
}


def test_bounds_alternatives_and_names():
    for change in ({}, {"scaling": -2}, {"names": "a"}, {"names": None, "intervals": None, "sets": {}}, {"rank": 100}):
        check_shape(FINE | change, BOUNDED, FILE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank is 0, not an integer from 1 to 100"),
        ({"rank": 101}, "rank is 101, not an integer from 1 to 100"),
        ({"rank": "8"}, "rank is '8', not an integer from 1 to 100"),
        ({"rank": 8.0}, "rank is 8.0, not an integer from 1 to 100"),
        ({"scaling": 1e300}, "scaling is 1e+300, not a number from -1e+30 to 1e+30"),
        ({"scaling": None}, "scaling is None, not a number from -1e+30 to 1e+30"),
        ({"task": "../x"}, "task is '../x', which begins with a dot and cannot be part of a file name"),
        ({"task": 3}, "task is 3, not text"),
        ({"names": 3}, "names is 3, not text or a list"),
        ({"names": ["a", 3]}, "names[1] is 3, not text"),
        ({"intervals": {"nll": [1]}}, "intervals.nll is [1], not a list of two"),
        ({"intervals": {"nll": [1, "x"]}}, "intervals.nll[1] is 'x', not a number from"),
        (
            {"sets": {"/x": {"rows": 1}}},
            "sets names '/x', which holds a path separator and cannot be part of a file name",
        ),
        ({"sets": {"x": {"rows": -1}}}, "sets.x.rows is -1, not an integer from 0"),
    ],
)
def test_what_is_out_of_bounds(change, message):
    with pytest.raises(CheckpointError, match=re.escape(f"run/record.json: {message}")):
        check_shape(FINE | change, BOUNDED, FILE)
