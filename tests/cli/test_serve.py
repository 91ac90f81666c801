"""`lorchestra serve`: what it refuses before it listens, and what it passes on."""

from __future__ import annotations

import importlib.util

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("prometheus_client", reason="the extra serve is not installed")

from monitored_runs import certify

from lorchestra.server import lifecycle
from lorchestra.server.keys import VARIABLE

KEY = "a-key-of-sixteen-characters"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def served(monkeypatch):
    """What would be served."""
    calls = []
    monkeypatch.setattr(lifecycle, "serve", lambda app, host, port: calls.append((app.state.service, host, port)))
    return calls


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["run", "--host", "0.0.0.0"], "other machines could ask without a key"),
        (["run", "--host", "::"], "other machines could ask"),
        (["run", "--host", "example.org"], "other machines could ask"),
        (["run", "--max-questions", "0"], "--max-questions is 0; it must be positive"),
        (["run", "--state-cache-mb", "-1"], "--state-cache-mb is -1; it must not be negative"),
        (["run", "--timeout", "nan"], "--timeout is nan; it must be positive"),
        (["run", "--api-keys", "missing.txt"], "--api-keys missing.txt: cannot be read"),
        (["rows.csv"], "the first argument is a run directory"),
        ([], "no runs"),
        (["no-such-run"], "no-such-run"),
    ],
)
def test_bad_options_are_refused(lorchestra, served, options, message):
    code, _, err = lorchestra("serve", *options)
    assert code == 2
    assert message in err
    assert served == []


def test_missing_packages_are_named(lorchestra, monkeypatch):
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else original(name))
    code, _, err = lorchestra("serve", "run")
    assert code == 2
    assert "serve needs uvicorn: pip install 'lorchestra[serve]'" in err


def test_runs_limits_and_keys_reach_the_server(lorchestra, served, tiny_base, tmp_path, monkeypatch):
    root = certify(tmp_path, tiny_base)
    monkeypatch.setenv(VARIABLE, f"{KEY} alice")
    code, _, err = lorchestra("serve", root, "--host", "0.0.0.0", "--port", 9000, "--max-questions", 7, "--raw")
    assert (code, err) == (0, "")
    ((service, host, port),) = served
    assert (host, port, service.limits.max_questions) == ("0.0.0.0", 9000, 7)
    assert service.options.keys.client(f"Bearer {KEY}") == "alice"
    assert [(run.calibrated, run.similar) for run in service.registry.runs] == [(frozenset(), None)]
    service.stop()


def test_what_the_page_may_show_and_save_is_asked_for(lorchestra, served, tiny_base, tmp_path):
    root = certify(tmp_path, tiny_base)
    options = ("serve", root, "--show-training-rows", "--corrections")
    code, _, err = lorchestra(*options, tmp_path / "rows.csv")
    assert code == 2
    assert "end it with .jsonl" in err
    assert lorchestra(*options, tmp_path / "rows.jsonl")[0] == 0
    ((service, _, _),) = served
    (run,) = service.registry.runs
    assert run.similar.nearest("good film", 1)
    service.stop()


def test_an_open_server_for_all_is_asked_for(lorchestra, served, tiny_base, tmp_path):
    root = certify(tmp_path, tiny_base)
    assert lorchestra("serve", root, "--host", "0.0.0.0", "--allow-open")[0] == 0
    assert lorchestra("serve", root, "--host", "localhost")[0] == 0
    assert [host for _, host, _ in served] == ["0.0.0.0", "localhost"]
    for service, _, _ in served:
        service.stop()
