"""Requests on real sockets: deadlines, clients that leave at any moment, slow ones, and many at a time."""

from __future__ import annotations

import json
import random
import socket
import threading
import time

import httpx
import pytest
from live_server import noul, read_response, request_bytes, served, serving

SYSTEMONE = "/v1/systemone"


def metric(live, name):
    """The sum of a metric's samples."""
    lines = live.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name) and not line.startswith("#"))


def hold(live, engine):
    """Hold the worker in a pass, by a request in another thread; returns a function that ends it and its response."""
    engine.gate.clear()
    engine.entered.clear()
    responses = []
    thread = threading.Thread(target=lambda: responses.append(live.post(SYSTEMONE, noul("held"))))
    thread.start()
    assert engine.entered.wait(10)

    def release():
        engine.gate.set()
        thread.join()
        return responses[0]

    return release


def test_a_client_that_leaves_before_its_pass_is_not_computed(live, engine):
    release = hold(live, engine)
    connection = live.connect()
    connection.sendall(request_bytes(SYSTEMONE, noul("leaves early")))
    live.wait_until(lambda: live.service.queue.num_waiting == 1)
    connection.close()
    live.wait_until(lambda: live.service.queue.num_jobs == 1)
    assert live.service.queue.num_waiting == 0
    assert release().status_code == 200
    assert not any("leaves early" in batch for batch in engine.batches)
    assert metric(live, "lorchestra_disconnects_total") == 1


def test_a_client_that_leaves_during_its_pass_frees_the_queue(live, engine):
    engine.gate.clear()
    engine.entered.clear()
    connection = live.connect()
    connection.sendall(request_bytes(SYSTEMONE, noul("leaves late")))
    assert engine.entered.wait(10)
    connection.close()
    live.wait_until(lambda: live.service.queue.num_jobs == 0)
    engine.gate.set()
    assert live.post(SYSTEMONE, noul()).status_code == 200


def test_a_client_that_leaves_after_its_pass_harms_nobody(live):
    for _ in range(20):
        with live.connect() as connection:
            connection.sendall(request_bytes(SYSTEMONE, noul()))
    live.wait_until(lambda: live.service.is_idle)
    assert live.post(SYSTEMONE, noul()).status_code == 200


@pytest.mark.parametrize("part", [0, 10, -1])
def test_a_client_that_leaves_in_its_body_frees_its_request(live, part):
    message = request_bytes(SYSTEMONE, noul())
    start = message.index(b"\r\n\r\n") + 4
    with live.connect() as connection:
        connection.sendall(message[: start + part if part >= 0 else part])
        live.wait_until(lambda: live.service.queue.num_jobs == 1)
    live.wait_until(lambda: live.service.is_idle)


def test_half_a_body_gets_408_and_an_end(engine):
    with serving([served(engine)], body_timeout=0.2) as live, live.connect() as connection:
        connection.sendall(request_bytes(SYSTEMONE, noul())[:-5])
        status, body = read_response(connection)
        assert (status, body["detail"]["error_type"]) == (408, "timeout_error")
        assert connection.recv(1) == b""


def test_a_body_in_drops_has_its_time_limit_too(engine):
    with serving([served(engine)], body_timeout=0.3) as live, live.connect() as connection:
        message = request_bytes(SYSTEMONE, noul())
        head = message.index(b"\r\n\r\n") + 4
        connection.sendall(message[:head])
        started = time.monotonic()
        for byte in message[head:-1]:
            try:
                connection.sendall(bytes([byte]))
            except OSError:
                break
            time.sleep(0.02)
            if time.monotonic() - started > 0.5:
                break
        assert read_response(connection)[0] == 408


@pytest.mark.parametrize("start", [b"", b"POST /v1/system", b"POST /v1/systemone HTTP/1.1\r\nHost:"])
def test_a_connection_without_a_request_is_closed(engine, start):
    with serving([served(engine)], body_timeout=0.2) as live, live.connect() as connection:
        connection.sendall(start)
        assert connection.recv(1) == b""
        assert live.post(SYSTEMONE, noul()).status_code == 200


def test_a_request_that_takes_long_keeps_its_connection(engine):
    with serving([served(engine)], body_timeout=0.1) as live:
        release = hold(live, engine)
        time.sleep(0.5)
        assert release().status_code == 200


def test_a_slow_reader_delays_nobody(live):
    options = dict.fromkeys(f"option {i}" for i in range(255))
    body = noul() | {"questions": {f"q{i}": {"type": "choice", "criteria": options} for i in range(70)}}
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with slow:
        slow.connect(("127.0.0.1", live.port))
        slow.sendall(request_bytes(SYSTEMONE, body))
        live.wait_until(lambda: metric(live, "lorchestra_answers_total") >= 70)
        assert live.post(SYSTEMONE, noul()).status_code == 200
        slow.settimeout(30)
        assert len(read_response(slow)[1]["answers"]) == 70


def test_pipelined_requests_are_answered_in_order(live):
    states = [f"pipelined {i}" for i in range(5)]
    with live.connect() as connection:
        connection.sendall(b"".join(request_bytes(SYSTEMONE, noul(state)) for state in states))
        got = [read_response(connection) for _ in states]
    for state, (status, body) in zip(states, got, strict=True):
        assert status == 200
        assert body == live.post(SYSTEMONE, noul(state)).json()


def test_the_clients_deadline_gives_408_in_the_shape_of_the_route(live, engine):
    release = hold(live, engine)
    question = {"type": "predicate", "instructions": "Is it?"}
    decision = {"model": "fake", "input": "late", "questions": [question], "x_deadline_ms": 50}
    late = [
        live.post(SYSTEMONE, noul("late", x_deadline_ms=50)),
        live.post(SYSTEMONE, noul("late"), headers={"X-Deadline-Ms": "50"}),
        live.post(SYSTEMONE, noul("late", x_deadline_ms=1e6), headers={"X-Deadline-Ms": "50"}),
        live.post("/v1/decisions", decision),
    ]
    assert [response.status_code for response in late] == [408] * 4
    assert {response.headers["x-should-retry"] for response in late} == {"false"}
    assert "50 ms" in late[0].json()["detail"]["message"]
    assert late[3].json()["error"]["code"] == "deadline_exceeded"
    release()
    assert not any("late" in batch for batch in engine.batches)
    assert live.post(SYSTEMONE, noul("in time", x_deadline_ms=30_000)).status_code == 200


@pytest.mark.parametrize("value", ["soon", "-1", "0", "inf", "nan", ""])
def test_a_bad_deadline_header_is_refused(live, value):
    assert live.post(SYSTEMONE, noul(), headers={"X-Deadline-Ms": value}).status_code == 422


def test_the_servers_time_limit_gives_504(engine):
    with serving([served(engine)], timeout=0.5) as live:
        release = hold(live, engine)
        response = live.post(SYSTEMONE, noul("late"))
        assert response.status_code == 504
        assert response.json()["detail"]["error_type"] == "timeout_error"
        assert release().status_code == 504


def test_a_full_queue_gives_529_and_a_full_share_429(engine):
    with serving([served(engine)], max_requests=2, max_queue_tokens=100) as live:
        release = hold(live, engine)
        share = live.post(SYSTEMONE, noul("word " * 50))
        assert share.status_code == 429
        other = threading.Thread(target=lambda: live.post(SYSTEMONE, noul("word")))
        other.start()
        live.wait_until(lambda: live.service.queue.num_jobs == 2)
        full = live.post(SYSTEMONE, noul())
        assert full.status_code == 529
        for response in (share, full):
            assert int(response.headers["retry-after"]) >= 1
        assert release().status_code == 200
        other.join()


def test_limits_of_states_questions_and_options(engine):
    with serving([served(engine)], max_state_tokens=20, max_questions=3, max_options=8) as live:
        question = noul()["questions"]["q"]
        assert live.post(SYSTEMONE, noul("w " * 20)).status_code == 200
        long = live.post(SYSTEMONE, noul("w " * 21))
        assert (long.status_code, "21 tokens" in long.text) == (422, True)
        assert "characters" in live.post(SYSTEMONE, noul("w" * 321)).text
        decision = {"model": "fake", "questions": [{"type": "predicate", "instructions": "x"}], "input": "w " * 21}
        assert live.post("/v1/decisions", decision).json()["error"]["code"] == "context_length_exceeded"
        assert live.post(SYSTEMONE, noul() | {"questions": dict.fromkeys("abc", question)}).status_code == 200
        assert live.post(SYSTEMONE, noul() | {"questions": dict.fromkeys("abcd", question)}).status_code == 422
        choice = {"type": "choice", "criteria": dict.fromkeys("abcde")}
        assert live.post(SYSTEMONE, noul() | {"questions": {"a": choice}}).status_code == 200
        assert "10 options" in live.post(SYSTEMONE, noul() | {"questions": {"a": choice, "b": choice}}).text


def test_a_failing_engine_is_a_500_without_texts_in_the_log(live, engine, caplog):
    caplog.set_level("INFO", "lorchestra")
    response = live.post(SYSTEMONE, noul("poison secret"))
    assert response.status_code == 500
    assert response.json()["detail"]["error_type"] == "server_error"
    assert live.post(SYSTEMONE, noul()).status_code == 200
    assert "secret" not in caplog.text
    assert "RuntimeError" in caplog.text
    assert f"{SYSTEMONE} 500" in caplog.text


def test_texts_are_logged_on_request_only(engine, caplog):
    caplog.set_level("INFO", "lorchestra")
    with serving([served(engine)]) as live:
        live.post(SYSTEMONE, noul("a secret"))
        assert "secret" not in caplog.text
        assert "Is it true?" not in caplog.text
    with serving([served(engine)], log_texts=True) as live:
        live.post(SYSTEMONE, noul("a secret\x1b[2J"))
        assert "state: a secret" in caplog.text
        assert "\x1b" not in caplog.text


def one_of_many(live, number, expected, wrong):
    """A client of the crowd: every fourth sends rubbish or leaves."""
    draw = random.Random(number)
    with httpx.Client(base_url=live.url, timeout=60) as client:
        for turn in range(6):
            state, kind = f"state {number} {turn}", draw.randrange(8)
            if kind == 0:
                bad = client.post(SYSTEMONE, content=draw.choice([b"{", b"[1]", json.dumps(noul(3)).encode()]))
                if bad.status_code != 422:
                    wrong.append(("bad", bad.status_code))
            elif kind == 1:
                with live.connect() as connection:
                    connection.sendall(request_bytes(SYSTEMONE, noul(state)))
                    time.sleep(draw.random() / 50)
            else:
                response = client.post(SYSTEMONE, json=noul(state))
                if response.status_code != 200:
                    wrong.append((state, response.status_code))
                else:
                    expected.append((state, response.json()["answers"]["q"]["noul"]))


def test_in_a_crowd_nobody_gets_anothers_answer(live, engine):
    """40 clients, of whose requests a quarter are rubbish or cancelled: the others are answered, each its question."""
    got, wrong = [], []
    threads = [threading.Thread(target=one_of_many, args=(live, number, got, wrong)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(got) > 120
    alone = {state: live.post(SYSTEMONE, noul(state)).json()["answers"]["q"]["noul"] for state, _ in got[::10]}
    assert all(value == alone.get(state, value) for state, value in got)
    assert len({value for _, value in got}) == len(got)
    assert max(map(len, engine.batches)) > 1
    live.wait_until(lambda: live.service.is_idle)
