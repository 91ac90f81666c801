"""States of earlier requests: `cached_tokens` is true, and nothing is reused for another key or cache key."""

from __future__ import annotations

import pytest
from live_server import serving

from lorchestra.server.registry import ServedRun

KEYS = ("the-key-that-ann-has ann", "the-key-that-bob-has bob")
STATE = "a film about a long and slow train through the mountains and the snow of a winter that did not end"


@pytest.fixture(params=[False, True], ids=["separate", "shared"])
def shares(request):
    return request.param


@pytest.fixture
def live(tiny_run, shares):
    with serving([ServedRun.load(str(tiny_run))], keys=KEYS, share_states=shares, timeout=120) as server:
        yield server


def ask(live, key, *instructions, state=STATE, **fields):
    """The usage and the answers of a request."""
    questions = [{"type": "predicate", "instructions": text} for text in instructions]
    body = {"model": "jev-latest", "input": state, "questions": questions, **fields}
    response = live.post("/v1/decisions", body, headers={"authorization": f"Bearer {key}"})
    assert response.status_code == 200
    values = response.json()
    details = values["usage"]["input_tokens_details"]
    return (details["cached_tokens"], details["cache_write_tokens"]), values


def test_cached_tokens_are_those_of_the_state(live, shares):
    (cached, written), first = ask(live, "the-key-that-ann-has", "It is long.")
    assert cached == 0
    assert written > 10
    usage, again = ask(live, "the-key-that-ann-has", "It is long.", "It is slow.")
    assert usage == (written, 0)
    assert again["usage"]["input_tokens"] > first["usage"]["input_tokens"]
    assert again["answers"][0]["probability"] == pytest.approx(first["answers"][0]["probability"], abs=1e-5)
    # other keys and cache keys
    expected = (written, 0) if shares else (0, written)
    assert ask(live, "the-key-that-bob-has", "It is long.")[0] == expected
    assert ask(live, "the-key-that-ann-has", "It is long.", prompt_cache_key="other")[0] == expected
    assert ask(live, "the-key-that-ann-has", "It is long.", prompt_cache_key="other")[0] == (written, 0)
    # another state, and the first one for a single member
    member = f"{live.service.registry.runs[0].name}/member_00"
    assert ask(live, "the-key-that-ann-has", "It is long.", state="Not " + STATE)[0][0] == 0
    # one that goes on after the first
    longer, _ = ask(live, "the-key-that-ann-has", "It is long.", state=STATE + ", by night")
    assert 16 <= longer[0] <= written < sum(longer)
    assert ask(live, "the-key-that-ann-has", "It is long.", model=member)[0] == (written, 0)
    text = live.get("/metrics", headers={"authorization": "Bearer the-key-that-ann-has"}).text
    total = next(line for line in text.splitlines() if line.startswith("lorchestra_cached_tokens_total"))
    assert float(total.split()[1]) >= 3 * written
