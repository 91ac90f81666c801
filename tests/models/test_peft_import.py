"""PEFT folders made by other tools: what is read, and the message of each refusal."""

from __future__ import annotations

import json
import math
import os
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lorchestra.errors import CheckpointError
from lorchestra.models.patching import parse_layers
from lorchestra.models.peft_import import check_fits, common_adapt, named_base, plain_tensors, read_peft_folder

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def edit(folder, **changes):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_a_folder_is_read(peft_folder, tiny_base):
    folder = read_peft_folder(peft_folder(r=4, lora_alpha=6, lora_dropout=0.1))
    assert (folder.r, folder.scaling, folder.dropout, folder.base) == (4, 1.5, 0.1, str(tiny_base))
    assert folder.modules["model.layers.2.self_attn.v_proj"] == (32, 16)
    assert len(folder.modules) == 2 * 3


def test_rslora_changes_the_scaling_only(peft_folder):
    folder = read_peft_folder(peft_folder(r=4, lora_alpha=6, use_rslora=True))
    assert folder.scaling == 6 / math.sqrt(4)


def test_the_common_shape_is_the_highest_rank_and_the_union_of_modules(peft_folder):
    folders = [
        read_peft_folder(peft_folder("a", r=2, lora_alpha=4, layers_to_transform=[0], lora_dropout=0.1)),
        read_peft_folder(peft_folder("b", r=8, target_modules=["down_proj"], layers_to_transform=[2])),
    ]
    adapt = common_adapt(folders)
    assert (adapt.members, adapt.r, adapt.lora_alpha / adapt.r, adapt.dropout) == (2, 8, 2.0, 0.0)
    assert set(adapt.target_modules) == {"self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"}
    assert parse_layers(adapt.layers, 3) == [0, 2]


FEATURES = {
    "DoRA": {"use_dora": True},
    "bias": {"bias": "lora_only"},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "tokens": {"trainable_token_indices": [3]},
    "rank_pattern": {"rank_pattern": {"q_proj": 2}},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 2}},
    "lora_bias": {"lora_bias": True},
    "an unknown feature": {"use_something_new": {"x": 1}},
}


@pytest.mark.parametrize("feature", FEATURES.values(), ids=FEATURES.keys())
def test_extensions_of_lora_are_refused_by_name(peft_folder, feature):
    folder = peft_folder()
    edit(folder, **feature)
    ((name, _),) = feature.items()
    with pytest.raises(CheckpointError, match=rf"{CONFIG}: {name} is .*not plain LoRA"):
        read_peft_folder(folder)


@pytest.mark.parametrize("kind", ["ADALORA", "IA3", "PROMPT_TUNING", "PREFIX_TUNING", "VERA", None])
def test_other_kinds_of_adapters_are_refused_by_name(peft_folder, kind):
    folder = peft_folder()
    edit(folder, peft_type=kind)
    with pytest.raises(CheckpointError, match=f"peft_type is {kind!r}; only LORA"):
        read_peft_folder(folder)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}])
def test_real_folders_with_extensions_are_refused(peft_folder, settings):
    with pytest.raises(CheckpointError, match="not plain LoRA"):
        read_peft_folder(peft_folder(**settings))


def test_an_adapter_of_the_output_head_is_refused(peft_folder):
    with pytest.raises(CheckpointError, match=r"adapts lm_head, which is outside the decoder layers"):
        read_peft_folder(peft_folder(target_modules=["q_proj", "lm_head"]))


def test_an_adapter_of_the_embeddings_is_refused(peft_folder):
    with pytest.raises(CheckpointError, match=r"lora_embedding_A is not an A or B of plain LoRA"):
        read_peft_folder(peft_folder(target_modules=["q_proj", "embed_tokens"]))


def test_pissa_changes_the_base_and_is_refused(peft_folder):
    with pytest.raises(CheckpointError, match=r"init_lora_weights is 'pissa', which changes the base's weights"):
        read_peft_folder(peft_folder(init_lora_weights="pissa"))


DAMAGE = {
    "gone": (lambda f: shutil.rmtree(f), "no such directory"),
    "no config": (lambda f: (f / CONFIG).unlink(), f"has no {CONFIG}; give a folder written by PEFT"),
    "a model": (lambda f: (f / CONFIG).rename(f / "config.json"), "a full model, not an adapter"),
    "a run": (lambda f: ((f / CONFIG).unlink(), (f / "members").mkdir()), "this is a run; its adapters are"),
    "no JSON": (lambda f: (f / CONFIG).write_text('{"r": 4'), f"{CONFIG}: cannot be read as JSON"),
    "deep JSON": (lambda f: (f / CONFIG).write_text("[" * 100_000), f"{CONFIG}: cannot be read as JSON"),
    "a list": (lambda f: (f / CONFIG).write_text("[]"), "has a list, not a JSON object"),
    "task": (lambda f: edit(f, task_type="TOKEN_CLS"), "task_type is 'TOKEN_CLS'"),
    "rank": (lambda f: edit(f, r="four"), "r is 'four', not a whole number"),
    "rank 0": (lambda f: edit(f, r=0), "r is 0, not a whole number"),
    "alpha": (lambda f: edit(f, lora_alpha=None), "lora_alpha is None, not a number"),
    "alpha NaN": (lambda f: edit(f, lora_alpha=math.nan), "lora_alpha is nan, not a number"),
    "dropout": (lambda f: edit(f, lora_dropout=1.5), "lora_dropout is 1.5, not in"),
    "base": (lambda f: edit(f, base_model_name_or_path=["x"]), "base_model_name_or_path is .*not a name"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"{WEIGHTS}: missing; copy the whole folder again"),
    "a pickle": (
        lambda f: (f / WEIGHTS).rename(f / "adapter_model.bin"),
        r"adapter_model\.bin: is a pickle.*never opened",
    ),
    "garbage": (lambda f: (f / WEIGHTS).write_bytes(b"x" * 99), f"{WEIGHTS}: not a readable safetensors file"),
    "truncated": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]),
        f"{WEIGHTS}: not a readable safetensors file",
    ),
    "empty": (lambda f: save_file({}, f / WEIGHTS), "has no tensors"),
    "other rank": (lambda f: edit(f, r=8), r"lora_A.weight has shape \[4, 32\], not \[8, in_features\] for r = 8"),
    "half a pair": (
        lambda f: edit_tensors(f, lambda t: t.pop("base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight")),
        r"layers\.1\.self_attn\.q_proj has no lora_B\.weight",
    ),
    "NaN": (
        lambda f: edit_tensors(f, lambda t: next(iter(t.values())).fill_(math.nan)),
        "has NaN or infinite values",
    ),
    "three axes": (
        lambda f: edit_tensors(f, lambda t: t.update({k: v[None] for k, v in t.items()})),
        r"has shape \[1, ",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_each_damage_is_named_with_its_path(peft_folder, damage, message):
    folder = peft_folder()
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_peft_folder(folder)
    assert str(folder) in str(caught.value)


def test_a_pickle_is_never_opened(peft_folder):
    """Unpickling this file would create a directory."""
    folder = peft_folder()
    (folder / WEIGHTS).unlink()
    traces = folder / "was_opened"
    torch.save({"x": _Trap(str(traces))}, folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="is a pickle"):
        read_peft_folder(folder)
    assert not traces.exists()
    torch.load(folder / "adapter_model.bin", weights_only=False)
    assert traces.exists()


class _Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_folders_of_different_bases_are_refused_with_both_names(peft_folder, make_base, tiny_base):
    one, other = read_peft_folder(peft_folder("a")), read_peft_folder(peft_folder("b", base=make_base(7)))
    with pytest.raises(CheckpointError) as caught:
        named_base([one, other])
    assert one.base in str(caught.value)
    assert other.base in str(caught.value)
    assert named_base([one]) == (str(tiny_base), None)


def test_modules_and_shapes_that_the_base_lacks_are_named(peft_folder, tiny_base):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_base)
    fits = read_peft_folder(peft_folder())
    check_fits(fits, model, "tiny")
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, vocab_size=50
    )
    narrow = transformers.LlamaForCausalLM(config)
    with pytest.raises(CheckpointError, match=r"q_proj is adapted as a map from 32 to 32 .* maps 16 to 16"):
        check_fits(fits, narrow, "narrow")
    del model.model.layers[2]
    with pytest.raises(CheckpointError, match=r"layers\.2\.self_attn\..*no linear map of that name"):
        check_fits(fits, model, "short")


def named(folder, name="default", only=lambda key: True):
    """The folder with the adapter's name in its keys, as in the state of PEFT's model."""
    tensors = load_file(folder / WEIGHTS)
    tensors = {k.replace(".weight", f".{name}.weight") if only(k) else k: v for k, v in tensors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def test_the_adapters_name_in_the_keys_is_left_out(peft_folder):
    plain, folder = read_peft_folder(peft_folder("a")), read_peft_folder(named(peft_folder("b"), "my-task"))
    assert (plain.adapter_name, folder.adapter_name) == (None, "my-task")
    assert folder.modules == plain.modules
    expected, tensors = load_file(plain.path / WEIGHTS), plain_tensors(folder)
    assert expected.keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in expected.items())


def test_two_adapters_in_one_file_are_refused(peft_folder):
    with pytest.raises(CheckpointError, match=r"has several adapters \(a, an unnamed one\); save each separately"):
        read_peft_folder(named(peft_folder(), "a", only=lambda key: "q_proj" in key))
    with pytest.raises(CheckpointError, match=r"has several adapters \(a, b\)"):
        read_peft_folder(
            named(named(peft_folder("c"), "a", lambda key: "q_proj" in key), "b", lambda key: "v_p" in key)
        )


def test_full_weights_instead_of_an_adapter_are_explained(peft_folder, tiny_base, tmp_path):
    merged = peft_folder("merged")
    shutil.copyfile(tiny_base / "model.safetensors", merged / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"has the weights of a full model \(.*, not of a LoRA; .* be the base"):
        read_peft_folder(merged)
    (merged / WEIGHTS).rename(merged / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"has the weights of a full model next to {CONFIG}, and no {WEIGHTS}"):
        read_peft_folder(merged)
    with pytest.raises(CheckpointError, match=r"a full model, not an adapter; .* can be the base"):
        read_peft_folder(tiny_base)


def test_files_and_parent_folders_are_explained(peft_folder, tmp_path):
    folder = peft_folder("outer/named")
    with pytest.raises(CheckpointError, match=rf"did you mean {folder}\?"):
        read_peft_folder(folder.parent)
    with pytest.raises(CheckpointError, match=rf"is a file of an adapter, not its folder {folder}"):
        read_peft_folder(folder / WEIGHTS)
    (tmp_path / "lora.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"is a file in llama\.cpp's format.*give the folder that PEFT saved"):
        read_peft_folder(tmp_path / "lora.gguf")
