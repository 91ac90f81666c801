"""Members written for use elsewhere: plain PEFT folders, merged models, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers

from lorchestra.config.data import DataConfig
from lorchestra.errors import CheckpointError
from lorchestra.runs.ensemble import load_run
from lorchestra.runs.export import export_run, exported_members
from lorchestra.runs.import_peft import import_run
from lorchestra.runs.train import train_run

FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture
def finished(run_config, texts_csv, tmp_path):
    """A finished run; a high learning rate, so that members are far from the base."""
    return train_run(run_config(texts_csv(), train={"lr": 0.05}), tmp_path / "run").run.root


def test_an_export_is_the_members_and_the_card(finished, tmp_path):
    assert exported_members(finished) == ["member_00", "member_01", "member_02"]
    out = export_run(finished, tmp_path / "out", card="# card\n")
    assert sorted(entry.name for entry in out.iterdir()) == ["README.md", *exported_members(finished)]
    assert (out / "README.md").read_text() == "# card\n"
    for name in exported_members(finished):
        assert sorted(file.name for file in (out / name).iterdir()) == sorted(FILES)
        for file in FILES:
            assert (out / name / file).read_bytes() == (finished / "members" / name / file).read_bytes()


def assert_merged_equals_members(root, out, texts, reference_log_probs):
    trained = load_run(root)
    examples = trained.read(texts, require_answer=False)
    rows = trained.pipeline.encode(examples).rows
    log_probs = trained.pipeline.predict_members(examples, "new").log_probs_MEC
    for m in range(trained.pipeline.model.num_members):
        merged, info = transformers.AutoModelForCausalLM.from_pretrained(
            out / f"merged_{m:02d}", dtype=torch.float32, output_loading_info=True
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert merged.config.use_cache
        for e, row in enumerate(rows):
            expected = reference_log_probs(merged.eval(), row)
            torch.testing.assert_close(torch.tensor(log_probs[m, e]).float(), expected, rtol=0, atol=1e-4)
        assert not list((out / f"merged_{m:02d}").glob("*.bin"))
    return log_probs


def test_merged_models_answer_as_the_members_do(finished, texts_csv, tiny_base, reference_log_probs, tmp_path):
    out = export_run(finished, tmp_path / "out", card="", merge=True)
    new = texts_csv("new.csv", 5, seed=9)
    log_probs = assert_merged_equals_members(finished, out, new, reference_log_probs)
    assert abs(log_probs[0] - log_probs[1]).max() > 0.01  # the second was not merged on top of the first
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "merged_00")
    assert (
        tokenizer("the film").input_ids == transformers.AutoTokenizer.from_pretrained(tiny_base)("the film").input_ids
    )


def test_imported_members_of_unlike_shapes_are_merged_too(peft_folder, texts_csv, reference_log_probs, tmp_path):
    folders = [
        peft_folder("a", seed=1, r=2, lora_alpha=16),
        peft_folder("b", seed=2, r=8, target_modules=["down_proj"], layers_to_transform=[1], use_rslora=True),
    ]
    run = import_run(folders, tmp_path / "run", data=DataConfig(train=str(texts_csv()), scoring="text"))
    out = export_run(run.root, tmp_path / "out", card="", merge=True)
    assert_merged_equals_members(run.root, out, texts_csv("new.csv", 4, seed=9), reference_log_probs)
    assert json.loads((out / "member_00/adapter_config.json").read_text())["r"] == 2


@pytest.mark.parametrize("merge", [False, True])
def test_adapters_can_name_a_base_that_others_have(finished, tmp_path, merge):
    out = export_run(finished, tmp_path / "out", card="", merge=merge, base_name="org/name")
    config = json.loads((out / "member_01/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/name"
    original = json.loads((finished / "members/member_01/adapter_config.json").read_text())
    assert config == original | {"base_model_name_or_path": "org/name", "revision": None}


def test_failed_members_are_left_out(finished, tmp_path):
    record = json.loads((finished / "ensemble.json").read_text())
    record["members"][1]["state"] = "failed"
    (finished / "ensemble.json").write_text(json.dumps(record))
    out = export_run(finished, tmp_path / "out", card="")
    assert sorted(entry.name for entry in out.iterdir()) == ["README.md", "member_00", "member_02"]


def test_an_existing_directory_is_refused(finished, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match=r"--out .*exists already"):
        export_run(finished, tmp_path / "out", card="")


def test_an_unfinished_run_is_refused(finished, tmp_path):
    (finished / "ensemble.json").unlink()
    with pytest.raises(CheckpointError, match="not finished"):
        export_run(finished, tmp_path / "out", card="")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("merge", [False, True])
def test_damage_is_named_and_leaves_nothing(finished, tmp_path, merge):
    shutil.copy(finished / "members/member_00" / FILES[1], finished / "members/member_01" / FILES[1])
    with pytest.raises(CheckpointError, match=r"member_01/adapter_model\.safetensors: the checksum"):
        export_run(finished, tmp_path / "out", card="", merge=merge)
    assert not (tmp_path / "out").exists()


def test_merging_into_another_base_is_refused(finished, make_base, tmp_path):
    text = (finished / "config.yaml").read_text()
    name = next(line for line in text.splitlines() if line.startswith("  name: "))
    (finished / "config.yaml").write_text(text.replace(name, f"  name: {make_base(6)}"))
    with pytest.raises(CheckpointError, match="trained on another base"):
        export_run(finished, tmp_path / "out", card="", merge=True)
    assert not (tmp_path / "out").exists()
