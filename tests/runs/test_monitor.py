"""Monitoring of a certified run: rows of the same kind, rows of another kind, looks, and what is refused."""

from __future__ import annotations

import json

import pytest
from monitored_runs import certify, write_rows

from lorchestra.errors import CheckpointError, ConfigError, DataError
from lorchestra.metrics.monitoring import ERRORS, LOSSES, NUMBERS
from lorchestra.runs.ensemble import Ensemble
from lorchestra.runs.train import train_run
from lorchestra.types import Example


@pytest.fixture(scope="module")
def certified(tmp_path_factory, tiny_base):
    """A run with a threshold."""
    return certify(tmp_path_factory.mktemp("monitor"), tiny_base)


@pytest.fixture
def trained(certified):
    ensemble = Ensemble.load(certified)
    yield ensemble
    ensemble.run.monitor.unlink(missing_ok=True)


def test_rows_of_the_same_kind(trained, tmp_path):
    result = trained.monitor(write_rows(tmp_path / "new.csv", 200, 2), false_alarm=0.01)
    assert not result.is_alarm
    assert (result.num_rows, result.num_reference, result.reference) == (200, 300, "certify.csv")
    assert {*NUMBERS.values(), LOSSES, ERRORS} <= set(result.p_values)
    assert json.loads(trained.run.monitor.read_text())["looks"][0]["result"]["alarm"] is False


def test_longer_rows_ring_without_a_label(trained, tmp_path):
    result = trained.monitor(write_rows(tmp_path / "new.csv", 200, 2, long=4, labeled=False))
    assert result.is_alarm
    assert "tokens per row" in result.reasons
    assert not {LOSSES, ERRORS} & set(result.p_values)


def test_labels_that_have_changed_ring(trained, tmp_path):
    result = trained.monitor(write_rows(tmp_path / "new.csv", 300, 2, wrong=1.0))
    assert {LOSSES, ERRORS} & set(result.reasons)
    assert result.automated.errors > 0.4 * result.automated.num_automated


def test_the_same_rows_are_one_look_and_others_are_more(trained, tmp_path):
    first = write_rows(tmp_path / "a.csv", 50, 2)
    assert trained.monitor(first).look == 1
    second = trained.monitor(write_rows(tmp_path / "b.csv", 50, 3))
    assert second.look == 2
    assert second.level < trained.monitor(first).level
    examples = [Example(str(i), f"the film was good {i}", trained.labels, None) for i in range(25)]
    assert trained.monitor(examples).look == 3
    assert len(trained.run.read_looks()) == 3


def test_what_cannot_be_compared(trained, run_config, texts_csv, tmp_path):
    with pytest.raises(DataError, match="19 rows are too few to compare; give at least 20"):
        trained.monitor(write_rows(tmp_path / "few.csv", 19, 2))
    for value in (0, 1, True, "0.1"):
        with pytest.raises(ConfigError, match=r"false_alarm: .* is not a number between 0 and 1"):
            trained.monitor(write_rows(tmp_path / "new.csv", 30, 2), false_alarm=value)
    other = train_run(run_config(texts_csv()), tmp_path / "other").run.root
    with pytest.raises(ConfigError, match=r"run lorchestra calibrate .* first"):
        Ensemble.load(other).monitor(write_rows(tmp_path / "new.csv", 30, 2))


def test_damaged_looks(trained, tmp_path):
    trained.run.monitor.write_text('{"format_version": 1, "looks": [{"rows": 3}]}')
    with pytest.raises(CheckpointError, match=r"monitor\.json: looks\[0\]"):
        trained.monitor(write_rows(tmp_path / "new.csv", 30, 2))
