"""Many clients against a real server for minutes: no answer is lost or another request's, and memory stays flat.

32 clients send requests about a few states; an eighth are invalid, an eighth leave before the answer. Every answer is
compared with the one that its state had at the start. Prints the counts and the server's memory.

    python benchmarks/serve_soak.py RUN [--minutes 5]
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from bench.setting import log, processor
from serve_speed import WORDS, server

CLIENTS, TOLERANCE = 32, 1e-4
QUESTIONS = {
    "refund": {"type": "noul", "instructions": "Is the customer asking for money back?"},
    "team": {"type": "choice", "instructions": "Which team?", "criteria": {"Billing": None, "Technical": None}},
    "anger": {"type": "score", "instructions": "How frustrated?", "criteria": ["Calm", "Frustrated", "Very angry"]},
}


class Clients:
    """Threads that send requests until a time is over; counts what came of them."""

    def __init__(self, port: int, seed: int = 0) -> None:
        self._port, self._draw = port, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.seconds: list[float] = []
        self._lock = threading.Lock()
        self._states = [" ".join(self._draw.choices(WORDS, k=length)) for length in range(5, 65, 5)]
        self._expected = {(state, name): self._numbers(state, name) for state in self._states for name in QUESTIONS}

    def run(self, seconds: float) -> None:
        """Send requests from all clients."""
        stop = time.monotonic() + seconds
        threads = [threading.Thread(target=self._client, args=(stop, seed)) for seed in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self, stop: float, seed: int) -> None:
        draw = random.Random(seed)
        while time.monotonic() < stop:
            state, name, kind = draw.choice(self._states), draw.choice(list(QUESTIONS)), draw.randrange(8)
            started = time.monotonic()
            try:
                what = (self._bad, self._leave, self._good)[min(kind, 2)](state, name)
            except Exception as error:  # a lost request, whatever the reason
                what = f"lost: {type(error).__name__}"
            with self._lock:
                self.counts[what] += 1
                if what == "answered":
                    self.seconds.append(time.monotonic() - started)

    def _send(self, body: bytes) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)
        connection.request("POST", "/v1/systemone", body, {"content-type": "application/json"})
        return connection

    def _body(self, state: str, name: str) -> bytes:
        return json.dumps({"model": "jev-latest", "state": state, "questions": {name: QUESTIONS[name]}}).encode()

    def _numbers(self, state: str, name: str) -> list[float]:
        """The members' probabilities in the answer to a request."""
        connection = self._send(self._body(state, name))
        response = connection.getresponse()
        body = json.loads(response.read())
        connection.close()
        if response.status in (429, 503, 529):
            raise BlockingIOError
        return flat(body["answers"][name]["x_members"])

    def _good(self, state: str, name: str) -> str:
        try:
            numbers = self._numbers(state, name)
        except BlockingIOError:
            return "refused for load"
        expected = self._expected[state, name]
        same = len(numbers) == len(expected) and all(
            abs(a - b) < TOLERANCE for a, b in zip(numbers, expected, strict=True)
        )
        return "answered" if same else "another's answer"

    def _bad(self, state: str, name: str) -> str:
        connection = self._send(self._body(state, name)[:-3])
        status = connection.getresponse().status
        connection.close()
        return "invalid, 4xx" if 400 <= status < 500 else f"invalid, {status}"

    def _leave(self, state: str, name: str) -> str:
        connection = self._send(self._body(state, name))
        time.sleep(0.02)
        connection.close()
        return "left"


def flat(value: Any) -> list[float]:
    """The numbers in nested lists and objects, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    return [n for one in value for n in flat(one)] if isinstance(value, list) else [float(value)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the clients and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    args = parser.parse_args(arguments)
    command = [sys.executable, "-m", "lorchestra", "serve", str(args.run)]
    with server(command, "/health/ready") as address:
        process = next(c for c in psutil.Process().children() if "serve" in c.cmdline())
        clients = Clients(int(address.rpartition(":")[2]))
        clients.run(30)  # fills caches and the allocator's pools
        sizes = [process.memory_info().rss / 1e6]
        clients.counts.clear()
        clients.seconds.clear()
        for part in range(max(1, round(args.minutes))):
            clients.run(60)
            sizes.append(process.memory_info().rss / 1e6)
            log(f"minute {part + 1}: {sizes[-1]:.0f} MB")
        time.sleep(2)
        with_idle = process.memory_info().rss / 1e6
    total = sum(clients.counts.values())
    print(f"{processor()}: {total} requests of {CLIENTS} clients in {args.minutes:g} minutes: {dict(clients.counts)}")
    print(f"median {1000 * statistics.median(clients.seconds):.0f} ms, longest {max(clients.seconds):.1f} s")
    print(f"memory of the server, MB: {', '.join(f'{size:.0f}' for size in sizes)}; idle {with_idle:.0f}")


if __name__ == "__main__":
    main()
