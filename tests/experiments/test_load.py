"""Finished runs read again: what each damage says, and what a prediction holds."""

from __future__ import annotations

import json
import math
import re
import shutil

import numpy as np
import pytest

from lorchestra.errors import CheckpointError, ConfigError, DataError
from lorchestra.experiments.load import load_run, prediction_rows
from lorchestra.experiments.train import train_run
from lorchestra.types import Predictions


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory, make_base):
    """One finished run on texts with labels, and the base it was trained on; copied before it is damaged."""
    from lorchestra.data.config import DataConfig
    from lorchestra.engine.config import RunConfig, TrainConfig
    from lorchestra.models.config import AdaptConfig, BaseConfig

    folder, base = tmp_path_factory.mktemp("trained"), make_base(3)
    rows = [f"the film {i} was {word},{label}" for i in range(25) for word, label in (("good", "yes"), ("bad", "no"))]
    (folder / "reviews.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    config = RunConfig(
        base=BaseConfig(name=str(base)),
        adapt=AdaptConfig(members=2, r=2),
        data=DataConfig(train=str(folder / "reviews.csv"), scoring="text"),
        train=TrainConfig(epochs=1, lr=0.01),
    )
    return train_run(config, folder / "run").run.root


@pytest.fixture
def run_copy(trained_run, tmp_path):
    """A copy of the finished run, to damage."""
    return shutil.copytree(trained_run, tmp_path / "copy")


def edit(path, **changes):
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, **changes}))


def test_a_copied_run_predicts_as_the_original(trained_run, run_copy, texts_csv):
    new = texts_csv("new.csv", 5, seed=8)
    assert list(load_run(trained_run).predict(new)) == list(load_run(run_copy).predict(new))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: shutil.rmtree(root), "no such run directory"),
        (lambda root: (root / "ensemble.json").unlink(), "not finished.*--if-exists resume"),
        (lambda root: [f.unlink() for f in root.iterdir() if f.is_file()], "not a run directory"),
        (lambda root: edit(root / "ensemble.json", format_version=99), "format_version is 99.*reads 1"),
        (lambda root: (root / "ensemble.json").write_text('{"format_version": 1, "ba'), "truncated or damaged"),
        (lambda root: (root / "ensemble.json").write_text("[1]"), "holds a list"),
        (lambda root: (root / "ensemble.json").write_text('{"format_version": 1}'), "lacks base"),
        (lambda root: (root / "config.yaml").unlink(), "config.yaml: cannot be read"),
        (lambda root: (root / "config.yaml").write_text("a: ["), "config.yaml: not valid YAML"),
        (lambda root: shutil.rmtree(root / "members/member_01"), "member_01.*missing; copy the run directory again"),
        (
            lambda root: shutil.copy(root / "members/member_00/adapter_model.safetensors", root / "members/member_01"),
            "checksum is not the one in ensemble.json",
        ),
        (lambda root: (root / "members/member_00/adapter_model.safetensors").write_bytes(b"x"), "checksum"),
    ],
    ids=[
        "gone",
        "unfinished",
        "no run",
        "version",
        "truncated",
        "list",
        "fields",
        "no config",
        "bad config",
        "member",
        "swapped",
        "garbage",
    ],
)
def test_each_damage_is_named(run_copy, damage, message):
    damage(run_copy)
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        load_run(run_copy)
    assert re.search(message, str(caught.value)), str(caught.value)


def test_another_base_than_the_one_trained_on_is_refused(run_copy, make_base):
    other = make_base(4)
    config = run_copy / "config.yaml"
    lines = [f"  name: {other}" if line.startswith("  name: ") else line for line in config.read_text().splitlines()]
    config.write_text("\n".join(lines) + "\n")
    with pytest.raises(CheckpointError, match=r"trained on another base.*only right on their own base"):
        load_run(run_copy)


def test_rows_of_the_other_kind_are_refused(run_copy, questions_jsonl):
    with pytest.raises(DataError, match=r"--data\.fields\.text question"):
        list(load_run(run_copy).predict(questions_jsonl()))


def test_a_prediction_by_hand():
    """Two members, two choices, then three; every number of the contract."""
    log = math.log
    log_probs = np.array(
        [
            [[log(0.9), log(0.1), -math.inf], [log(0.2), log(0.5), log(0.3)]],
            [[log(0.3), log(0.7), -math.inf], [log(0.2), log(0.5), log(0.3)]],
        ]
    )
    predictions = Predictions(
        log_probs, np.array([0, -1]), ("a", "b"), (("no", "yes"), ("x", "y", "z")), "task", "predict", ("q1", "q2")
    )
    first, second = prediction_rows(predictions, abstain_below=0.55)
    assert first["probs"] == pytest.approx([0.6, 0.4])
    assert first["member_probs"] == [pytest.approx([0.9, 0.1]), pytest.approx([0.3, 0.7])]
    assert (first["prediction"], first["prediction_text"], first["label"], first["abstain"]) == (0, "no", 0, False)
    assert first["confidence"] == pytest.approx(0.6)
    assert first["disagreement"] == 1.0
    total = -(0.6 * log(0.6) + 0.4 * log(0.4))
    expected = -(0.9 * log(0.9) + 0.1 * log(0.1) + 0.3 * log(0.3) + 0.7 * log(0.7)) / 2
    assert first["entropy"] == pytest.approx(total)
    assert first["mutual_information"] == pytest.approx(total - expected)
    assert (second["label"], second["abstain"], second["disagreement"]) == (None, True, 0.0)
    assert second["mutual_information"] == pytest.approx(0, abs=1e-15)
    assert second["probs"] == pytest.approx([0.2, 0.5, 0.3])
    assert set(first) == {
        "id",
        "choices",
        "prediction",
        "prediction_text",
        "label",
        "confidence",
        "probs",
        "member_probs",
        "entropy",
        "mutual_information",
        "disagreement",
        "abstain",
    }
    assert next(prediction_rows(predictions))["abstain"] is None
