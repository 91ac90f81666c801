"""Whole runs on a quantized base: trained, answered, resumed, planned, merged, imported."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers

from lorchestra.config.adapt import BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.errors import CheckpointError
from lorchestra.runs.ensemble import load_run
from lorchestra.runs.export import export_run
from lorchestra.runs.import_peft import import_run
from lorchestra.runs.plan import plan_run
from lorchestra.runs.rows import read_rows
from lorchestra.runs.train import train_run

pytest.importorskip("bitsandbytes", reason="needs the extra quant")


@pytest.fixture
def config(run_config, texts_csv, tiny_base):
    def build(kind="nf4", **settings):
        made = run_config(
            texts_csv(number=24), train={"epochs": 1, "criterion": "nll"}, evaluate={"few_shot": 0}, **settings
        )
        return dataclasses.replace(made, base=BaseConfig(name=str(tiny_base), dtype="float32", quantization=kind))

    return build


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_loaded_run_answers_as_it_did_in_training(config, tmp_path, kind):
    outcome = train_run(config(kind), tmp_path / "run")
    record = outcome.run.read_ensemble()
    trained = load_run(tmp_path / "run")
    assert trained.pipeline.base.quantization == record.base.quantization == kind
    saved = outcome.run.read_config()
    rows = read_rows(saved.data, saved.train.seed).task.splits["val"]
    log_probs = trained.pipeline.predict_members(rows, "val").log_probs_MEC
    answers = [row.answer for row in rows]
    losses = -log_probs[:, np.arange(len(rows)), answers].mean(axis=1)
    np.testing.assert_allclose(losses, [member.val_nll for member in record.members], rtol=1e-5)
    assert json.loads(outcome.run.environment.read_text())["quantization"] == kind


def test_plain_weights_are_not_those_the_members_were_trained_on(config, tmp_path):
    train_run(config("nf4"), tmp_path / "run")
    path = tmp_path / "run/config.yaml"
    path.write_text(path.read_text().replace("quantization: nf4", "quantization: none"))
    with pytest.raises(CheckpointError, match="trained on another base"):
        load_run(tmp_path / "run")


def test_merged_models_answer_as_the_members_on_the_dequantized_base(
    config, texts_csv, reference_log_probs, on_log, tmp_path
):
    train_run(config("nf4"), tmp_path / "run")
    messages = []
    on_log(messages.append)
    out = export_run(tmp_path / "run", tmp_path / "out", card="", merge=True)
    assert any("dequantized weights" in message and "warning" in message for message in messages)
    trained = load_run(tmp_path / "run")
    examples = trained.read(texts_csv("new.csv", 4, seed=9), require_answer=False)
    log_probs = trained.pipeline.predict_members(examples, "new").log_probs_MEC
    for m in range(3):
        merged = transformers.AutoModelForCausalLM.from_pretrained(out / f"merged_{m:02d}", dtype=torch.float32)
        assert not hasattr(merged.config, "quantization_config")
        for e, row in enumerate(trained.pipeline.encode(examples).rows):
            expected = reference_log_probs(merged.eval(), row)
            torch.testing.assert_close(torch.tensor(log_probs[m, e]).float(), expected, rtol=0, atol=1e-4)


def test_the_plan_counts_what_is_stored(config, tmp_path):
    plans = {kind: plan_run(config(kind), tmp_path / kind, seconds=0.1) for kind in ("none", "nf4")}
    assert plans["nf4"]["quantization"] == "nf4"
    assert plans["nf4"]["parameters"] == plans["none"]["parameters"]
    assert plans["nf4"]["bytes"]["base"] < plans["none"]["bytes"]["base"]


def test_adapters_of_elsewhere_are_put_on_a_quantized_base(peft_folder, texts_csv, tmp_path):
    data = DataConfig(train=str(texts_csv()), scoring="text")
    base = BaseConfig(name="", quantization="nf4", dtype="float32")
    run = import_run([peft_folder("a", seed=1)], tmp_path / "run", data=data, base=base)
    assert run.read_ensemble().base.quantization == "nf4"
    assert load_run(run.root).pipeline.base.quantization == "nf4"
