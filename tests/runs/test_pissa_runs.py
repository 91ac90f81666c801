"""Runs whose members start by PiSSA: what is saved is plain LoRA on the unchanged base, and runs as any other."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from lorchestra.config.data import DataConfig
from lorchestra.errors import ConfigError
from lorchestra.inference.predict import MemberPass
from lorchestra.nn.packing import BASE
from lorchestra.runs.build import build_pipeline
from lorchestra.runs.ensemble import load_run
from lorchestra.runs.export import export_run
from lorchestra.runs.import_peft import import_run
from lorchestra.runs.rows import read_rows
from lorchestra.runs.sweep.passes import make_packs
from lorchestra.runs.sweep.points import grid_points, parse_axis
from lorchestra.runs.sweep.run import read_points, run_sweep
from lorchestra.runs.train import train_run
from lorchestra.training.module import EnsembleModule

PISSA = {"init_lora_weights": "pissa", "r": 3, "target_modules": ("q_proj", "v_proj", "down_proj")}


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True, "lora_alpha": 5.0, "dropout": 0.2}])
def test_peft_reads_members_as_plain_lora(run_config, texts_csv, tiny_base, reference_log_probs, tmp_path, settings):
    from peft import PeftModel

    root = train_run(run_config(texts_csv(), adapt=PISSA | settings), tmp_path / "run").run.root
    trained = load_run(root)
    adapt = trained.config.adapt
    examples = trained.read(texts_csv("new.csv", 6, seed=9), require_answer=False)
    log_probs = trained.pipeline.predict_members(examples, "new").log_probs_MEC
    zero_shot = trained.pipeline.predict(examples, [MemberPass(BASE)], "new").log_probs_MEC[0]
    assert min(np.abs(log_probs[m] - zero_shot).max() for m in range(3)) > 0.05
    stock = transformers.AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    for m, member in enumerate(json.loads((root / "ensemble.json").read_text())["members"]):
        folder = root / member["path"]
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["r"], config["init_lora_weights"], config["use_rslora"]) == (6, True, False)
        assert config["lora_alpha"] / 6 == pytest.approx(adapt.scaling, rel=1e-12)
        assert (member["r"], member["scaling"]) == (6, adapt.scaling)
        base = transformers.AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        peft = PeftModel.from_pretrained(base, str(folder)).eval()
        for e, row in enumerate(trained.pipeline.encode(examples).rows):
            expected = reference_log_probs(peft, row)
            torch.testing.assert_close(torch.tensor(log_probs[m, e]).float(), expected, rtol=0, atol=1e-4)
        read = {name.replace(".base_layer", ""): weight for name, weight in peft.base_model.model.named_parameters()}
        assert all(torch.equal(read[name], weight) for name, weight in stock.named_parameters())


def test_exports_merge_and_come_back(run_config, texts_csv, tiny_base, reference_log_probs, tmp_path):
    texts = texts_csv()
    root = train_run(run_config(texts, adapt=PISSA), tmp_path / "run").run.root
    out = export_run(root, tmp_path / "out", card="", merge=True)
    trained = load_run(root)
    examples = trained.read(texts_csv("new.csv", 5, seed=9), require_answer=False)
    log_probs = trained.pipeline.predict_members(examples, "new").log_probs_MEC
    merged = transformers.AutoModelForCausalLM.from_pretrained(out / "merged_01", dtype=torch.float32).eval()
    for e, row in enumerate(trained.pipeline.encode(examples).rows):
        expected = reference_log_probs(merged, row)
        torch.testing.assert_close(torch.tensor(log_probs[1, e]).float(), expected, rtol=0, atol=1e-4)
    folders = [out / f"member_{m:02d}" for m in range(3)]
    import_run(folders, tmp_path / "imported", data=DataConfig(train=str(texts), scoring="text"))
    again = load_run(tmp_path / "imported").pipeline.predict_members(examples, "new").log_probs_MEC
    np.testing.assert_allclose(again, log_probs, rtol=0, atol=1e-6)


def test_points_with_and_without_in_one_pass_equal_each_alone(run_config, texts_csv, tmp_path):
    config = run_config(texts_csv(), adapt={"members": 2}, evaluate={"few_shot": 0})
    config = dataclasses.replace(config, base=dataclasses.replace(config.base, dtype="float64"))
    axes = [parse_axis(axis) for axis in ("adapt.init_lora_weights=true,pissa", "adapt.r=2,3")]
    asked = grid_points(config, axes)
    assert len(make_packs(asked, 8)) == 1
    outcome = run_sweep(asked, tmp_path / "sweep")
    points = read_points(outcome.root)
    assert [(p.config.adapt.init_lora_weights, p.config.adapt.r) for p in points] == [
        *((True, 2), (True, 3)),
        *(("pissa", 2), ("pissa", 3)),
    ]
    for point in points:
        alone = train_run(point.config, tmp_path / "alone" / point.name).run.root
        for path in sorted(alone.glob("members/*/*.safetensors")):
            wanted = load_file(path)
            saved = load_file(outcome.root / "runs" / point.name / path.relative_to(alone))
            assert saved.keys() == wanted.keys()
            for name in wanted:
                np.testing.assert_allclose(saved[name], wanted[name], rtol=0, atol=1e-9)
            config_json = path.with_name("adapter_config.json").relative_to(alone)
            assert (outcome.root / "runs" / point.name / config_json).read_text() == (alone / config_json).read_text()


def test_a_fresh_module_is_refused_and_a_finished_run_is_plain_lora(run_config, texts_csv, tmp_path):
    config = run_config(texts_csv(), adapt=PISSA)
    rows = read_rows(config.data, config.train.seed).task
    pipeline, _ = build_pipeline(config, rows.name, rows.labels, rows.splits["train"])
    with pytest.raises(ConfigError, match=r"adapt\.init_lora_weights: pissa freezes half of each adapter"):
        EnsembleModule(pipeline)
    module = load_run(train_run(config, tmp_path / "run").run.root).as_module()
    assert {p.shape[0] for name, p in module.named_parameters() if "lora_A" in name} == {6}
