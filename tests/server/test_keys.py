"""Keys: their file and variable, and which routes need one."""

from __future__ import annotations

import hmac

import pytest
from live_server import KEY, OTHER_KEY, noul, served, serving

from lorchestra.errors import ConfigError
from lorchestra.server import keys as keys_module
from lorchestra.server.keys import VARIABLE, Keys


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def test_keys_come_from_a_file_or_the_variable(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert Keys.load(None).is_open
    path = tmp_path / "keys.txt"
    path.write_text(f"# ours\n{KEY} alice\n\n{OTHER_KEY}\n")
    keys = Keys.load(str(path))
    assert keys.client(f"Bearer {KEY}") == "alice"
    assert keys.client(f"bearer  {OTHER_KEY} ") == "key2"
    monkeypatch.setenv(VARIABLE, f"{OTHER_KEY},{KEY} bob")
    assert Keys.load(None).client(f"Bearer {KEY}") == "bob"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no keys"),
        ("short\n", "line 1: a key has at least 16"),
        (f"{KEY} a b\n", "line 1: has 3 words"),
        (f"{KEY}\n{KEY}\n", "line 2: the key or its name occurs twice"),
        (f"{KEY} a\n{OTHER_KEY} a\n", "line 2: the key or its name occurs twice"),
        ("é" * 16, "ASCII"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_file_is_refused_without_quoting_keys(tmp_path, content, message):
    path = tmp_path / "keys.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        Keys.load(str(path))
    assert KEY not in str(error.value)


def test_every_key_is_compared_in_constant_time(monkeypatch):
    compared, original = [], hmac.compare_digest

    def compare(one, other):
        compared.append((one, other))
        return original(one, other)

    monkeypatch.setattr(keys_module.hmac, "compare_digest", compare)
    keys = Keys.from_lines([KEY, OTHER_KEY], "test")
    compared.clear()
    assert keys.client(f"Bearer {KEY}") == "key1"
    assert len(compared) == 2
    assert {len(digest) for pair in compared for digest in pair} == {32}


ROUTES = ["/v1/models", "/v1/x_runs", "/metrics", "/docs", "/openapi.json", "/health/ready", "/nothing", "/page"]


def test_every_route_but_live_needs_a_key(engine):
    with serving([served(engine)], keys=[f"{KEY} alice", OTHER_KEY]) as live:
        assert live.get("/health/live").status_code == 200
        for path in ROUTES:
            assert live.get(path).status_code == 401, path
            assert live.get(path, headers=bearer(KEY)).status_code != 401, path
        for headers in (
            {},
            bearer("wrong"),
            bearer(KEY[:-1]),
            {"authorization": "Bearer"},
            {"authorization": KEY},
            {"x-api-key": KEY},
        ):
            systemone = live.post("/v1/systemone", noul(), headers=headers)
            decisions = live.post("/v1/decisions", noul(), headers=headers)
            assert systemone.status_code == decisions.status_code == 401
            assert systemone.json()["detail"]["error_type"] == "authentication_error"
            assert decisions.json()["error"]["code"] == "invalid_api_key"
            assert systemone.headers["www-authenticate"] == "Bearer"
        assert live.post("/v1/systemone", noul(), headers=bearer(OTHER_KEY)).status_code == 200


def test_an_open_server_ignores_keys(live):
    assert live.post("/v1/systemone", noul(), headers=bearer("anything")).status_code == 200
