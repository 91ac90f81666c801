"""A server on a real socket in a thread, and an engine whose answers are a hash of state and question."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime

import httpx

from lorchestra.config.serve import ServeLimits
from lorchestra.errors import DataError
from lorchestra.questions import Question
from lorchestra.runs.ask import EncodedAsk, Reply
from lorchestra.runs.predict import Answer
from lorchestra.server.app import create_app
from lorchestra.server.keys import Keys
from lorchestra.server.lifecycle import DrainingServer, listen
from lorchestra.server.registry import ServedRun
from lorchestra.server.service import ServiceOptions
from lorchestra.types import EncodedExample

KEY, OTHER_KEY = "a-key-of-sixteen-characters", "another-key-of-many-characters"
TRAINED = Question("label", "choice", "", ("no", "yes"))


def noul(state="A text.", model="jev-latest", **fields):
    """The body of a request with one question."""
    return {
        "model": model,
        "state": state,
        "questions": {"q": {"type": "noul", "instructions": "Is it true?"}},
        **fields,
    }


class FakeEngine:
    """Answers by a hash; `gate` holds passes while it is not set, and `batches` has the states of each pass."""

    def __init__(self, num_members=3):
        self.num_members = num_members
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches = []

    def encode(self, asked):
        words = len(asked.state.split())
        if words > 2000:
            raise DataError(f"the prompt has {words} tokens, over 2000")
        if "unanswerable" in asked.question.instructions:
            raise DataError("the tokenizer cannot tell the options apart")
        row = EncodedExample(-1, tuple(range(words)), ((1,),) * len(asked.question.options), None, None, state=words)
        return EncodedAsk(asked, row, asked.question, asked.question.options == TRAINED.options)

    def answer(self, asks):
        self.batches.append([ask.asked.state for ask in asks])
        self.entered.set()
        self.gate.wait(30)
        for ask in asks:
            if "poison" in ask.asked.state:
                raise RuntimeError(f"failed at {ask.asked.state}")
        return [self._reply(ask) for ask in asks]

    def _reply(self, ask):
        asked = ask.asked
        members = range(self.num_members) if asked.member is None else [asked.member]
        probs = [self._probs(asked, member) for member in members]
        mixture = tuple(sum(column) / len(probs) for column in zip(*probs, strict=True))
        best = mixture.index(max(mixture))
        score = sum(i * p for i, p in enumerate(mixture)) if asked.question.type == "score" else None
        answer = Answer(
            id="",
            row=1,
            choices=asked.question.options,
            prediction=asked.question.options[best],
            prediction_index=best,
            probs=mixture,
            member_probs=tuple(probs),
            mutual_information=0.1,
            calibrated=ask.trained,
            decision="automate" if ask.trained else None,
            prediction_set=asked.question.options[:1] if ask.trained else None,
            score=score,
            trained=ask.trained,
        )
        return Reply(answer, ask.num_tokens, ask.state_tokens)

    @staticmethod
    def _probs(asked, member):
        weights = [
            1
            + int(
                hashlib.sha256(repr((asked.state, asked.question.content, option, member)).encode()).hexdigest()[:8], 16
            )
            for option in range(len(asked.question.options))
        ]
        return tuple(weight / sum(weights) for weight in weights)


def served(engine, name="fake", **fields):
    """A run with a given engine."""
    names = tuple(f"member_{index:02d}" for index in range(engine.num_members))
    created = datetime(2026, 11, 28, tzinfo=UTC)
    return ServedRun(name, engine, (TRAINED,), names, created, {"label"}, {"label"}, **fields)


class Live:
    """A server that listens at `url`."""

    def __init__(self, app):
        self.service = app.state.service
        self.server = DrainingServer(app)
        self.listener = listen("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})

    def post(self, path, body, **options):
        """A response, of a connection of its own."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(self.url + path, content=content, timeout=30, **options)

    def get(self, path, **options):
        return httpx.get(self.url + path, timeout=30, **options)

    def connect(self):
        """A bare connection, for what no client would send."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def drain(self):
        self.server.handle_exit(signal.SIGTERM, None)

    def wait_until(self, condition, seconds=20):
        """Wait until a condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it never came true"
            time.sleep(0.005)


@contextmanager
def serving(runs, keys=(), log_texts=False, corrections=None, share_states=False, **limits):
    """Serve runs for the length of the block; every request must have left the queue at its end."""
    options = ServiceOptions(ServeLimits(**limits), Keys.from_lines(keys, "keys"), log_texts, share_states)
    live = Live(create_app(runs, options, corrections=corrections))
    live.thread.start()
    try:
        live.wait_until(lambda: live.service.is_ready or live.service.has_failed)
        assert live.service.is_ready, "a test question failed"
        yield live
    finally:
        live.drain()
        live.thread.join(30)
        assert not live.thread.is_alive()
    assert live.service.is_idle
    assert live.service.queue.reserved_tokens == 0


def request_bytes(path, body, *headers):
    """A POST request as bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(content)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + content


def read_response(connection):
    """Status and body of the next response on a connection."""
    head = b""
    while b"\r\n\r\n" not in head:
        got = connection.recv(1)
        assert got, "the connection was closed"
        head += got
    lines = head.decode().split("\r\n")
    (length,) = [int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length")]
    body = b""
    while len(body) < length:
        got = connection.recv(length - len(body))
        assert got, "the connection was closed"
        body += got
    return int(lines[0].split()[1]), json.loads(body)
