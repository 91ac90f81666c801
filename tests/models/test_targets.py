"""`adapt.target_modules` with PEFT's meaning, and folders from which PEFT adapts the same modules."""

import copy
import json
import warnings

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorchestra.config.adapt import AdaptConfig
from lorchestra.errors import ConfigError
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.peft_files import load_member, peft_config, save_members
from lorchestra.models.targets import base_names, features, find_targets, is_transposed

EVERY = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
EVERY += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


def names(layers, modules):
    return [f"model.layers.{index}.{module}" for index in layers for module in modules]


def chosen(model, targets, adapted=(0, 1, 2)):
    linears = find_targets(model, model.model.layers, list(adapted), targets)
    assert all(model.get_submodule(name) is module for name, module in linears)
    return [name for name, _ in linears]


def by_peft(model, targets):
    """The modules that PEFT adapts."""
    config = peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM")
    return peft_adapted(peft.get_peft_model(copy.deepcopy(model), config))


def peft_adapted(model):
    layers = [name for name, module in model.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    return [name.removeprefix("base_model.model.") for name in layers]


TARGETS = {
    "names": (["v_proj", "q_proj"], ["self_attn.q_proj", "self_attn.v_proj"]),
    "ends of names": (["self_attn.v_proj", "mlp.down_proj"], ["self_attn.v_proj", "mlp.down_proj"]),
    "regex": (r".*\.(q|down)_proj", ["self_attn.q_proj", "mlp.down_proj"]),
    "all-linear": ("all-linear", EVERY),
}


@pytest.mark.parametrize(("targets", "modules"), TARGETS.values(), ids=TARGETS)
def test_targets_are_those_of_peft_in_the_models_order(tiny_model, targets, modules):
    model = tiny_model(depth=3)
    assert chosen(model, targets) == names(range(3), modules) == by_peft(model, targets)


def test_whole_names_and_regexes_of_some_layers(tiny_model):
    model = tiny_model(depth=3)
    for targets in (["model.layers.1.self_attn.q_proj"], r"model\.layers\.1\..*q_proj"):
        assert chosen(model, targets) == ["model.layers.1.self_attn.q_proj"] == by_peft(model, targets)


@pytest.mark.parametrize(("targets", "modules"), TARGETS.values(), ids=TARGETS)
def test_layers_bound_every_kind_of_target(tiny_model, targets, modules):
    assert chosen(tiny_model(depth=3), targets, [0, 2]) == names([0, 2], modules)


def test_all_linear_and_a_plain_name_as_given_on_a_command_line(tiny_model):
    model = tiny_model(depth=3)
    assert chosen(model, ("all-linear",)) == chosen(model, "All-Linear") == names(range(3), EVERY)
    assert chosen(model, "mlp.up_proj") == names(range(3), ["mlp.up_proj"])


REFUSED = {
    "unknown name": (("q_prj",), r"no linear map is named 'q_prj'; did you mean 'q_proj'\? known here: down_proj"),
    "unknown and known": (("q_proj", "zzz"), r"no linear map is named 'zzz'; known here: down_proj"),
    "part of a name": (("proj",), r"no linear map is named 'proj'"),
    "unknown plain text": ("q_prj", r"no linear map is named 'q_prj'; did you mean 'q_proj'\?"),
    "nothing": ((), r"name at least one linear map; known here: down_proj"),
    "empty text": (" ", r"name at least one linear map"),
    "no linear map": (("mlp",), r"'mlp' names 'model.layers.0.mlp', which is a LlamaMLP, not a linear map"),
    "regex, no linear map": (r".*\.mlp\..*", r"names 'model.layers.0.mlp.act_fn', which is a SiLU.*, not a linear map"),
    "regex without a match": (
        r".*\.w[qv]",
        r"the regular expression '.*' matches no linear map's whole name, such as 'model.layers.0.self_attn.q_proj'",
    ),
    "a regex for a part": (r"(q|v)_proj", r"matches no linear map's whole name"),
    "broken regex": ("(q_proj", r"'\(q_proj' is not a regular expression \(missing \)"),
    "head": (("q_proj", "lm_head"), r"'lm_head' names 'lm_head', the output head, which is not adapted"),
    "regex with head": (r".*(q_proj|lm_head)", r"names 'lm_head', the output head"),
    "embeddings": (("embed_tokens",), r"names 'model.embed_tokens', which is outside the decoder layers"),
    "another layer": (("layers.0.self_attn.q_proj",), r"is outside the decoder layers that adapt.layers names"),
}


@pytest.mark.parametrize(("targets", "message"), REFUSED.values(), ids=REFUSED)
def test_errors_of_refused_targets(tiny_model, targets, message):
    model = tiny_model(depth=2)
    adapted = [1] if "layers.0" in str(targets) else [0, 1]
    with pytest.raises(ConfigError, match="adapt.target_modules: .*" + message):
        find_targets(model, model.model.layers, adapted, targets)


def test_features_of_both_kinds_of_linear_map():
    assert features(nn.Linear(3, 5)) == features(Conv1D(5, 3)) == (3, 5)
    assert is_transposed(Conv1D(5, 3))
    assert not is_transposed(nn.Linear(3, 5))


def test_base_names_are_those_before_members_were_added(tiny_model, tiny_ensemble):
    before = [name for name, _ in tiny_model(depth=2).named_modules()]
    assert list(base_names(tiny_ensemble(depth=2, target_modules="all-linear").model)) == before


SAVED = {
    "names": (["v_proj", "q_proj"], "all", ["v_proj", "q_proj"], None),
    "names in some layers": (["q_proj"], "last:2", ["q_proj"], [1, 2]),
    "regex": (r".*\.(q|v)_proj", "all", ["q_proj", "v_proj"], None),
    "regex of one layer": (r".*\.1\..*\.q_proj", "all", ["model.layers.1.self_attn.q_proj"], None),
    "all-linear in some layers": ("all-linear", "[0]", sorted(name.split(".")[1] for name in EVERY), [0]),
}


@pytest.mark.parametrize(("targets", "layers", "saved", "saved_layers"), SAVED.values(), ids=SAVED)
def test_peft_adapts_the_same_modules_from_a_saved_member(
    tiny_model, tiny_ensemble, tmp_path, targets, layers, saved, saved_layers
):
    """And loads every tensor: none is missing, none is left over."""
    base = tiny_model(depth=3, dtype=torch.float32)
    ensemble = tiny_ensemble(
        base=copy.deepcopy(base), members=2, r=4, target_modules=targets, layers=layers, use_rslora=True
    )
    save_members(tmp_path, ensemble, ensemble.adapters.values, "base")
    config = json.loads((tmp_path / "member_01" / "adapter_config.json").read_text())
    assert config["target_modules"] == saved
    assert config["layers_to_transform"] == saved_layers
    assert config["use_rslora"] is True
    assert config["fan_in_fan_out"] is False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`")
        model = peft.PeftModel.from_pretrained(base, tmp_path / "member_01")
    assert peft_adapted(model) == [piece.name for piece in ensemble.adapters.slices]
    layer = model.get_submodule(f"base_model.model.{ensemble.adapters.slices[0].name}")
    assert layer.scaling["default"] == ensemble.adapt.scaling == 4.0 / 2.0
    fresh = tiny_ensemble(
        base=tiny_model(depth=3, dtype=torch.float32), members=2, r=4, target_modules=targets, layers=layers
    )
    load_member(fresh.adapters, 1, tmp_path / "member_01")
    assert torch.equal(fresh.adapters.values[1], ensemble.adapters.values[1])


def test_names_that_peft_would_find_elsewhere_are_saved_whole(tiny_model, tiny_ensemble):
    """As in a composite model whose vision part has maps of the same names."""
    base = tiny_model(depth=2)
    base.vision = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"q_proj": nn.Linear(2, 2)})])})
    ensemble = tiny_ensemble(base=base, target_modules=("q_proj",))
    config = peft_config(ensemble, "base")
    assert config.target_modules == names(range(2), ["self_attn.q_proj"]) == [s.name for s in ensemble.adapters.slices]
    assert config.layers_to_transform is None


def test_whole_names_that_are_ends_of_others_are_saved_as_a_regular_expression(tiny_model, tiny_ensemble):
    base = tiny_model(depth=1)
    base.copy = nn.ModuleDict({"model": copy.deepcopy(base.model)})
    untouched = copy.deepcopy(base)
    ensemble = tiny_ensemble(base=base, target_modules=("q_proj", "v_proj"))
    config = peft_config(ensemble, "base")
    assert isinstance(config.target_modules, str)
    assert by_peft(untouched, config.target_modules) == names([0], ["self_attn.q_proj", "self_attn.v_proj"])


def test_rslora_scales_by_the_root_of_the_rank(tiny_model):
    for use_rslora, scaling in ((False, 8.0), (True, 16.0)):
        adapt = AdaptConfig(members=1, r=4, lora_alpha=32.0, use_rslora=use_rslora)
        module = EnsembleModel(tiny_model(), adapt, 0).model.model.layers[0].self_attn.q_proj
        assert adapt.scaling == scaling
        assert module.scaling == (scaling,)
