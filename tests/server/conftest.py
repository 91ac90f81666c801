"""Fixtures of the server's tests: servers on real sockets, with a fake engine and with a tiny run."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("prometheus_client", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")

from live_server import FakeEngine, served, serving
from monitored_runs import certify

from lorchestra.server.registry import ServedRun


@pytest.fixture
def engine():
    """An engine whose answers are a hash."""
    return FakeEngine()


@pytest.fixture
def live(engine):
    """A server with that engine."""
    with serving([served(engine)]) as server:
        yield server


@pytest.fixture(scope="session")
def tiny_run(tiny_base, tmp_path_factory):
    """The directory of a run with two members and a certified threshold, on the tiny base."""
    return certify(tmp_path_factory.mktemp("served"), tiny_base)


@pytest.fixture(scope="session")
def tiny_live(tiny_run):
    """A server of that run."""
    with serving([ServedRun.load(str(tiny_run))], timeout=120) as server:
        yield server
