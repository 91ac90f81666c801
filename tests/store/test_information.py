"""The file of the head that predicts mutual information, and the record of a distillation."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorchestra.config.distill import DistillConfig
from lorchestra.errors import CheckpointError
from lorchestra.metrics.information import InformationHead
from lorchestra.store.atomic import sha256_file
from lorchestra.store.distill_record import DistillRecord, DistillResult, UnlabeledRecord
from lorchestra.store.information import read_information, write_information
from lorchestra.store.run import Run

HEAD = InformationHead(np.array([1.0, 2.0]), np.array([0.5, 3.0]), np.array([-1.0, 0.25]), 0.7)
RECORD = DistillRecord(
    source="/runs/many",
    ensemble="a" * 64,
    calibration="b" * 64,
    num_members=5,
    distill=DistillConfig("reverse", 0.5),
    num_train=1400,
    unlabeled=UnlabeledRecord("more.csv", "c" * 64, ("d" * 64,)),
)
RESULT = DistillResult(0.012, 0.1, 1401, 0.83, None)


def test_the_head_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "information.safetensors"
    read = read_information(path, write_information(path, HEAD), 2)
    for field in ("mean_D", "scale_D", "weights_D"):
        np.testing.assert_array_equal(getattr(read, field), getattr(HEAD, field))
    assert read.intercept == HEAD.intercept


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "information.safetensors"
    with pytest.raises(CheckpointError, match="missing; copy the run directory again"):
        read_information(path, "0" * 64, 2)
    write_information(path, HEAD)
    with pytest.raises(CheckpointError, match="wrong checksum"):
        read_information(path, "0" * 64, 2)
    with pytest.raises(CheckpointError, match=r"mean is not float64 \[3\] of finite numbers"):
        read_information(path, sha256_file(path), 3)


@pytest.mark.parametrize(
    ("change", "version", "message"),
    [
        ({}, "2", "format_version is '2', this version of lorchestra reads 1"),
        ({}, None, "format_version is None"),
        ({"weights": np.array([np.nan, 0.0])}, "1", "weights is not float64"),
        ({"scale": np.array([0.0, 1.0])}, "1", "scale has numbers that are not above 0"),
        ({"intercept": np.zeros(2)}, "1", "intercept is not float64"),
        ({"mean": np.zeros(2, dtype=np.float32)}, "1", "mean is not float64"),
        ({"mean": None}, "1", "mean is not float64"),
    ],
)
def test_a_damaged_head_is_refused(tmp_path, change, version, message):
    arrays = {"mean": HEAD.mean_D, "scale": HEAD.scale_D, "weights": HEAD.weights_D, "intercept": np.array([0.7])}
    arrays = {name: array for name, array in (arrays | change).items() if array is not None}
    path = tmp_path / "information.safetensors"
    save_file(arrays, path, None if version is None else {"format_version": version})
    with pytest.raises(CheckpointError, match=message):
        read_information(path, sha256_file(path), 2)


def test_what_is_no_tensor_file_is_refused(tmp_path):
    path = tmp_path / "information.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_information(path, sha256_file(path), 2)


@pytest.mark.parametrize(
    "record",
    [RECORD, dataclasses.replace(RECORD, unlabeled=None), dataclasses.replace(RECORD, result=RESULT)],
    ids=["started", "without further rows", "finished"],
)
def test_the_record_is_read_as_it_was_written(tmp_path, record):
    run = Run(tmp_path)
    assert run.read_distillation() is None
    run.write_distillation(record)
    assert run.read_distillation() == record


def test_in_words():
    assert RECORD.sentence() == (
        "one LoRA, taught by the calibrated mixture of 5 members (digest aaaaaaaaaaaa) on 1,400 training rows and 1"
        " rows of more.csv, KL(member || ensemble) + 0.5 x cross-entropy; mutual information is predicted, not computed"
        " from members"
    )
    assert RESULT.sentence() == (
        "on the validation rows, 0.0120 nats from the calibrated ensemble in the mean (KL); rank correlation of"
        " predicted and true mutual information 0.83 (head fitted on 1,401 rows)"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "is of another format version"),
        ({"ensemble": None}, "ensemble"),
        ({"distill": {"direction": "sideways", "answers_weight": 0.0}}, "direction"),
        ({"unlabeled": {"source": "more.csv"}}, "digest"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path, change, message):
    run = Run(tmp_path)
    run.distill.write_text(json.dumps(json.loads(json.dumps(RECORD.to_dict())) | change))
    with pytest.raises(CheckpointError, match=message):
        run.read_distillation()
