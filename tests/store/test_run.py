"""The run directory: what is written is read again, and what is missing is empty or named."""

from __future__ import annotations

import numpy as np
import pytest

from lorchestra.config.run import RunConfig
from lorchestra.errors import CheckpointError
from lorchestra.store.run import Run
from lorchestra.store.splits import read_digests, read_ids
from lorchestra.types import Predictions

SPLITS = {"train": {"digest": "d1", "num_examples": 2, "ids": ["a", "b"]}}


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_what_a_run_starts_with(run):
    assert not run.is_started
    run.write_description(RunConfig(), {"python": "3.11", "packages": {"torch": "2.13"}}, SPLITS)
    assert run.is_started
    assert not run.is_finished
    assert run.read_config() == RunConfig()
    assert run.read_environment() == {"python": "3.11", "packages": {"torch": "2.13"}}
    assert run.read_splits("train") == SPLITS
    assert (read_digests(run.splits, ["train"]), read_ids(run.splits)) == ({"train": "d1"}, {"train": ["a", "b"]})
    for read in (lambda: run.read_splits("val"), lambda: read_digests(run.splits, ["val"])):
        with pytest.raises(CheckpointError, match=r"splits\.json: val is missing"):
            read()
    with pytest.raises(CheckpointError, match=r"not finished .*lorchestra train --out .* --if-exists resume"):
        run.read_ensemble()


def test_what_may_be_missing_is_empty(run):
    assert run.read_environment() == {}
    assert run.read_events() == ()
    assert run.read_evaluations() == ([], {})
    assert run.read_named_evaluations() == []
    assert run.why_read_only() is None
    assert list(run.root.iterdir()) == []


def test_events_are_appended_and_cut_back(run):
    run.start_events()
    run.append_event("step", step=1, epoch=1, loss=[0.5, None])
    length = run.events.stat().st_size
    run.append_event("step", step=2, epoch=1, loss=[0.25, float("nan")])
    assert [event["loss"] for event in run.read_events(2)] == [[0.5, None], [0.25, None]]
    with pytest.raises(CheckpointError, match=r"events\.jsonl:1: loss has 2 values for 3 members"):
        run.read_events(3)
    run.start_events(keep_bytes=length)
    (event,) = run.read_events()
    other = Run(run.root / "other")
    other.root.mkdir()
    other.write_events([event])
    assert other.read_events() == (event,)


def test_predictions_are_saved_by_task_split_and_name(run):
    log_probs = np.log([[[0.75, 0.25]]])
    predictions = Predictions(log_probs, np.array([0]), ("a",), (("no", "yes"),), "reviews", "test")
    run.save_predictions(predictions)
    run.save_predictions(predictions, "base_zero_shot")
    for parts in (("reviews", "test"), ("reviews", "test", "base_zero_shot")):
        assert np.array_equal(run.load_predictions(*parts, answered=True).log_probs_MEC, log_probs)
        assert run.prediction(*parts).name == f"{'.'.join(parts)}.safetensors"


def test_new_members_replace_those_of_an_interrupted_run(run):
    (run.members / "member_00").mkdir(parents=True)
    (run.members / "member_00/old").touch()
    with run.new_members() as directory:
        (directory / "member_01").mkdir()
    assert [path.name for path in run.members.iterdir()] == ["member_01"]


def test_a_typed_path_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Run.at("~/run").root == tmp_path / "run"
