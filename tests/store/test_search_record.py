"""The record of a search: written, read, put into words, refused if damaged."""

from __future__ import annotations

import json

import pytest

from lorchestra.errors import CheckpointError
from lorchestra.store.run import Run
from lorchestra.store.search_record import SearchRecord, TrialRecord

RECORD = SearchRecord(
    lr=0.001,
    epochs=4,
    trials=(TrialRecord(0.001, (50,), (0.7,)), TrialRecord(0.002, (50,), (0.5,)), TrialRecord(0.004, (), ())),
    length=TrialRecord(0.0005, (25, 50), (0.6, 0.55)),
    steps_per_epoch=50,
    tokens=1234,
    seconds=5.5,
)


def test_what_is_written_is_read(tmp_path):
    run = Run(tmp_path)
    assert run.read_search() is None
    run.write_search(RECORD)
    assert run.read_search() == RECORD


def test_in_words():
    rate, length = RECORD.sentences()
    basis = "half of the best by the scaled validation NLL after 50 steps"
    assert rate == f"learning rate 0.001, {basis} (0.001: 0.700, 0.002: 0.500, 0.004: failed)"
    assert length == "number of epochs 4, by the validation criterion at half the rate by step (25: 0.600, 50: 0.550)"
    assert SearchRecord(0.01, 3, (), None, 50, 0, 0.0).sentences() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 9}, "format_version is 9, this is 1"),
        ({"lr": "fast"}, "lr"),
        ({"length": {"lr": 0.1, "steps": [1], "val_nll": []}}, "a trial has 1 steps and 0 values"),
        ({"trials": None}, "trials"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path, change, message):
    run = Run(tmp_path)
    run.search.write_text(json.dumps(json.loads(json.dumps(RECORD.to_dict())) | change))
    with pytest.raises(CheckpointError, match=message):
        run.read_search()
