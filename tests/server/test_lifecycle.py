"""The server as a process: SIGTERM under load, two signals, kill -9 and a restart on the same port."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
from live_server import noul

from lorchestra.errors import ConfigError
from lorchestra.server.lifecycle import listen

pytestmark = pytest.mark.slow


@contextmanager
def process(run, *options, port=0):
    """`lorchestra serve` in a process, once it is ready: the process and its URL."""
    command = [sys.executable, "-m", "lorchestra", "serve", str(run), "--port", str(port), *options]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        try:
            url = None
            for line in server.stderr:
                url = url or next(iter(re.findall(r"http://\S+", line)), None)
                if line.startswith("ready"):
                    break
            else:
                pytest.fail(f"exit code {server.wait()}")
            yield server, url
        finally:
            server.kill()


def test_sigterm_under_load_answers_what_was_taken(tiny_run):
    """Every request gets 200, or is refused as a whole: with 503, or as a connection. No answer is lost."""
    statuses, stop = [], threading.Event()

    def client(number):
        with httpx.Client(base_url=url, timeout=60) as http:
            for turn in range(1000):
                if stop.is_set():
                    return
                try:
                    statuses.append(http.post("/v1/systemone", json=noul(f"state {number} {turn}")).status_code)
                except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError):
                    return  # a keep-alive connection may be closed just when it is used again
                if statuses[-1] == 503:
                    return

    with process(tiny_run) as (server, url):
        threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        while len(statuses) < 20:
            time.sleep(0.01)
        server.send_signal(signal.SIGTERM)
        rest = server.stderr.read()
        assert server.wait(60) == 0
        stop.set()
        for thread in threads:
            thread.join()
    assert set(statuses) <= {200, 503}
    assert "draining" in rest
    answered = re.findall(r"^/v1/systemone 200", rest, flags=re.MULTILINE)
    assert len(answered) == statuses.count(200)


def test_a_killed_server_starts_again_on_its_port(tiny_run):
    with process(tiny_run) as (server, url):
        before = httpx.post(f"{url}/v1/systemone", json=noul()).json()
        server.send_signal(signal.SIGKILL)
        assert server.wait(30) == -signal.SIGKILL
    with process(tiny_run, port=int(url.rsplit(":", 1)[1])) as (server, again):
        assert again == url
        assert httpx.post(f"{url}/v1/systemone", json=noul()).json() == before
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0


def test_an_address_that_is_taken_is_named():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: cannot be used"):
            listen("127.0.0.1", port)
    with pytest.raises(ConfigError, match=r"--host no\.such\.host\.invalid"):
        listen("no.such.host.invalid", 0)
