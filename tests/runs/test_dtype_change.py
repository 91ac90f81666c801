"""What bfloat16 changes: measured after a training on some validation rows, shown and saved, or left out."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from lorchestra.models.digests import model_digest
from lorchestra.runs import dtype_change
from lorchestra.runs.dtype_change import compare_predictions
from lorchestra.runs.ensemble import load_run
from lorchestra.runs.train import train_run
from lorchestra.training.callbacks import Callback, Interrupted
from lorchestra.types import Predictions


@pytest.fixture
def config(run_config, texts_csv):
    """In bfloat16, long enough that ten validation rows are a small part of the training."""

    def build(dtype="bfloat16", epochs=12, **settings):
        files = {"val": str(texts_csv("val.csv", 30, seed=1)), "test": str(texts_csv("test.csv", 5, seed=2))}
        made = run_config(
            texts_csv(number=60), data=files | settings.pop("data", {}), train={"epochs": epochs}, **settings
        )
        return dataclasses.replace(made, base=dataclasses.replace(made.base, dtype=dtype))

    return build


def changes(root):
    events = map(json.loads, (root / "events.jsonl").read_text().splitlines())
    return [{**event, "time": None} for event in events if event["event"] == "base_dtype"]


def predictions(log_probs, labels):
    number = len(labels)
    return Predictions(
        task="t",
        split="val",
        log_probs_MEC=np.array(log_probs),
        labels=np.array(labels),
        ids=tuple(map(str, range(number))),
        texts=("",) * number,
        options=(("a", "b"),) * number,
    )


def test_known_differences():
    with np.errstate(divide="ignore"):
        full, half = (predictions(np.log([[[0.5, 0.5], [p, 1 - p], [1.0, 0.0]]] * 2), [0, 0, 0]) for p in (0.6, 0.3))
    change = compare_predictions(half, full)
    largest, other = np.log(0.6 / 0.3), np.log(0.7 / 0.4)
    assert change.max_change == pytest.approx(largest)
    assert change.mean_change == pytest.approx((largest + other) / 5)  # a probability of zero has no logarithm
    assert (change.rows, change.changed_answers) == (3, 1)
    assert change.nll == pytest.approx(-np.log(0.5 * 0.3) / 3)
    assert change.nll_float32 == pytest.approx(-np.log(0.5 * 0.6) / 3)


@pytest.mark.parametrize(
    "settings", [{}, {"adapt": {"layers": "last:1"}}, {"data": {"scoring": "head"}}], ids=["plain", "trunk", "head"]
)
def test_the_change_is_that_of_the_run_on_the_base_in_float32(on_log, config, tmp_path, settings):
    messages = []
    on_log(messages.append)
    run = train_run(config(**settings), tmp_path / "run").run
    (event,) = changes(run.root)
    assert 8 <= event["rows"] <= 30
    sentences = [text for text in messages if "in bfloat16 instead of float32" in text]
    assert len(sentences) == 1
    assert f"on {event['rows']} validation rows" in sentences[0]
    half = load_run(run.root)
    mapping = run.config.read_text()
    run.config.write_text(mapping.replace("dtype: bfloat16", "dtype: float32"))
    full = load_run(run.root)
    assert (half.pipeline.base.dtype, full.pipeline.base.dtype) == (torch.bfloat16, torch.float32)
    assert model_digest(half.pipeline.base.model) == model_digest(full.pipeline.base.model)
    rows = full.read(full.config.data.val, require_answer=True)[: event["rows"]]
    expected = compare_predictions(*(e.pipeline.predict_members(rows, "val") for e in (half, full)))
    assert event["max_change"] > 0
    for name, value in dataclasses.asdict(expected).items():
        assert event[name] == pytest.approx(value, abs=1e-5), name


def test_it_is_left_out_where_it_is_not_cheap_or_nothing_changed(config, tmp_path, monkeypatch):
    float32 = train_run(config("float32"), tmp_path / "float32").run
    short = train_run(config(epochs=1), tmp_path / "short").run
    monkeypatch.setattr(dtype_change, "free_bytes", lambda device: 1000)
    full = train_run(config(), tmp_path / "no-memory").run
    assert [changes(run.root) for run in (float32, short, full)] == [[], [], []]


def test_a_stop_during_the_comparison_is_resumed(config, tmp_path):
    class StopThere(Callback):
        stopping = False

        def on_progress(self, what, done, total):
            self.stopping = "float32" in what

        def should_stop(self):
            return self.stopping

    whole = train_run(config(), tmp_path / "whole").run
    with pytest.raises(Interrupted):
        train_run(config(), tmp_path / "run", callbacks=[StopThere()])
    resumed = train_run(config(), tmp_path / "run", if_exists="resume").run
    assert changes(resumed.root) == changes(whole.root)
