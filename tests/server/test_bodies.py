"""Strict JSON: everything that parsers read differently, or that exhausts them, is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_server import noul, read_response, request_bytes, served, serving

from lorchestra.server.bodies import parse_json
from lorchestra.server.errors import InvalidJsonError

BAD = {
    "empty": b"",
    "no JSON": b"state=x",
    "half": b'{"model": "x", "state": "',
    "two values": b"{} {}",
    "duplicate key": b'{"a": 1, "b": {"c": 1, "c": 2}}',
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": -Infinity}',
    "too large for a float": b'{"a": 1e999}',
    "more than 64 bits": b'{"a": 18446744073709551616}',
    "ten thousand digits": b'{"a": ' + b"9" * 10_000 + b"}",
    "lone surrogate": b'{"a": "\\ud800"}',
    "lone surrogate in a key": b'{"\\udfff": 1}',
    "invalid UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "BOM": b'\xef\xbb\xbf{"a": 1}',
    "control character": b'{"a": "\x01"}',
    "65 levels": b"[" * 65 + b"]" * 65,
    "ten thousand levels": b"[" * 10_000 + b"]" * 10_000,
    "ten thousand objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "a million levels": b"[" * 1_000_000,
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
def test_bad_json_is_refused(body):
    with pytest.raises(InvalidJsonError):
        parse_json(body, 64)


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
def test_bad_json_is_a_4xx_in_the_shape_of_the_route(live, body):
    systemone, decisions = live.post("/v1/systemone", body), live.post("/v1/decisions", body)
    assert (systemone.status_code, decisions.status_code) == (422, 400)
    (fault,) = systemone.json()["detail"]
    assert fault["loc"][0] == "body"
    assert fault["type"] == "json_invalid"
    assert decisions.json()["error"]["code"] == "json_invalid"


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"3", b"null", b"true"])
def test_a_body_must_be_an_object(live, body):
    assert live.post("/v1/systemone", body).json()["detail"][0]["loc"] == ["body"]
    assert live.post("/v1/decisions", body).json()["error"]["param"] is None


def test_a_body_at_the_limit_of_depth_is_parsed():
    assert parse_json(b"[" * 64 + b"]" * 64, 64) == json.loads("[" * 64 + "]" * 64)
    assert parse_json(b'{"a": "\\ud83d\\ude00", "b": 18446744073709551615, "c": -1.5e3}', 64) == {
        "a": "\U0001f600",
        "b": 2**64 - 1,
        "c": -1500.0,
    }


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_every_other_value_is_read_as_json_reads_it(value):
    assert parse_json(json.dumps(value).encode(), 64) == value


@pytest.mark.parametrize("path", ["/v1/systemone", "/v1/decisions"])
def test_a_large_body_is_refused_once_it_is_read(engine, path):
    with serving([served(engine)], max_body_bytes=1000) as live:
        for size in (1001, 3999):
            with live.connect() as connection:
                connection.sendall(request_bytes(path, b" " * size))
                status, body = read_response(connection)
                assert status == 413
                assert "1,000 bytes" in str(body)
                assert connection.recv(1) == b""
        assert live.post("/v1/systemone", noul("x" * 500)).status_code == 200
