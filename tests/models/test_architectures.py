"""The architectures of transformers that can be packed, each on a tiny random model, and those that are refused."""

import copy
import json
import warnings
from dataclasses import dataclass, field, replace

import peft
import pytest
import torch
import transformers

from lorchestra.config.adapt import AdaptConfig
from lorchestra.errors import ConfigError
from lorchestra.inference.predict import MemberPass, predict_rows
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.gguf import quiet_transformers
from lorchestra.models.patching import decoder_layers
from lorchestra.models.peft_files import check_readable, save_members
from lorchestra.models.probe import probe
from lorchestra.nn.packing import BASE, Item, pack
from lorchestra.types import EncodedExample

WINDOW = 4
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 101,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GROUPED = ("q_proj", "k_proj", "v_proj", "o_proj")
GATED = ("gate_proj", "up_proj", "down_proj")
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
MIXTURE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}


FIRST_IN_MLP = {"gate_proj", "gate_up_proj", "dense_h_to_4h", "c_fc", "fc1", "gate", "router"}
ATTENTION_SCALE = {"query_pre_attn_scalar": 8}
ROUNDED = 3e-6
"""For families whose code rounds to float32 (softmax of eager attention, routing of experts)."""


@dataclass(frozen=True)
class Family:
    """How to build a tiny model of a family, and its properties."""

    kind: str
    settings: dict = field(default_factory=dict)
    without: tuple[str, ...] = ()
    linear: tuple[str, ...] = (*GROUPED, *GATED)
    """The linear maps of its decoder layers."""
    targets: str | tuple[str, ...] = "all-linear"
    """Those adapted in the tests."""
    tolerance: float = 1e-9
    """In float64, relative to the largest value."""
    narrow_mlp: bool = True
    """Whether the last layer's MLP computes read positions only."""

    def build(self, dtype=torch.float64, **settings):
        """Random weights, large enough that every layer and every position matters."""
        kinds = (getattr(transformers, self.kind + end, None) for end in ("TextConfig", "Config"))
        config_class = next(kind for kind in kinds if kind is not None)
        sizes = {name: value for name, value in SIZES.items() if name not in self.without}
        with quiet_transformers():
            config = config_class(**sizes | self.settings | settings)
            model_class = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
            experts = (
                {"experts_implementation": "eager"} if dtype == torch.float64 else {}
            )  # the default has no float64
            model = model_class._from_config(config, **experts)
        source = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=source)
                parameter.copy_(0.25 * noise if parameter.ndim > 1 else parameter + 0.2 * noise)
        model = model.to(dtype).eval()
        for module in model.modules():
            if dtype == torch.float64 and type(module).__name__.endswith("RMSNorm"):
                module.forward = wide_norm(module)
        return model


def wide_norm(norm):
    """A norm's forward without rounding to float32; Gemma stores its weights minus one."""
    eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    weight = 1 + norm.weight if norm._get_name().startswith("Gemma") else norm.weight
    return lambda hidden: hidden * (hidden.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight


FAMILIES = {
    "llama": Family("Llama"),
    "qwen2": Family("Qwen2"),
    "qwen3": Family("Qwen3"),
    "qwen3_moe": Family("Qwen3Moe", MIXTURE | {"num_experts": 4}, linear=GROUPED, tolerance=ROUNDED),
    "mistral": Family("Mistral", {"sliding_window": WINDOW}),
    "gemma": Family("Gemma"),
    "gemma2": Family(
        "Gemma2", ATTENTION_SCALE | {"sliding_window": WINDOW, "attn_logit_softcapping": 2.0}, tolerance=ROUNDED
    ),
    "gemma3": Family("Gemma3", ATTENTION_SCALE | {"sliding_window": WINDOW, "layer_types": ALTERNATING}),
    "phi3": Family("Phi3", without=("head_dim",), linear=("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
    "gpt_neox": Family(
        "GPTNeoX",
        without=("head_dim", "num_key_value_heads"),
        linear=("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    ),
    "gpt2": Family(
        "GPT2",
        {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128},
        without=tuple(SIZES.keys() - {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"}),
        linear=("c_attn", "c_proj", "c_fc"),
    ),
    "opt": Family(
        "OPT",
        {"ffn_dim": 48, "word_embed_proj_dim": 32},
        without=("head_dim", "num_key_value_heads", "intermediate_size"),
        linear=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        narrow_mlp=False,
    ),
    "olmo2": Family("Olmo2"),
    "granite": Family("Granite"),
    "smollm3": Family("SmolLM3"),
    "starcoder2": Family("Starcoder2", {"sliding_window": WINDOW}, linear=(*GROUPED, "c_fc", "c_proj")),
    "gpt_oss": Family(
        "GptOss",
        {"num_experts_per_tok": 2, "num_local_experts": 4, "sliding_window": WINDOW, "layer_types": ALTERNATING},
        linear=GROUPED,
        tolerance=ROUNDED,
    ),
    # less common: keys wider than values, experts shared by all tokens, attention parallel to the MLP
    "deepseek_v3": Family(
        "DeepseekV3",
        MIXTURE
        | {"num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
        | {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6},
        without=("head_dim",),
        linear=("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", *GATED),
        targets=("q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
        tolerance=ROUNDED,
    ),
    "qwen2_moe": Family(
        "Qwen2Moe",
        MIXTURE | {"num_experts": 4, "shared_expert_intermediate_size": 16},
        linear=(*GROUPED, *GATED, "shared_expert_gate"),
        tolerance=ROUNDED,
    ),
    "phimoe": Family(
        "Phimoe",
        {"num_experts_per_tok": 2, "num_local_experts": 4},
        without=("head_dim",),
        linear=GROUPED,  # its router is a linear map by class, but not by what it returns
        tolerance=ROUNDED,
    ),
    "cohere": Family("Cohere", tolerance=ROUNDED),
}
ROWS = [
    EncodedExample(0, (3, 8, 5, 21, 60), ((4,), (7, 9, 30)), 1),
    EncodedExample(1, tuple(range(40, 52)), ((1, 2), (99, 98), (5, 6, 7, 8)), 0),
    EncodedExample(2, (77, 12), ((9, 4, 2), (11,)), 1),
]
FRESH = AdaptConfig(members=2, r=2, target_modules="all-linear")


def ensemble_on(base, **adapt):
    """Two members with adapters that change the answers."""
    ensemble = EnsembleModel(base, replace(FRESH, lora_alpha=4.0, **adapt), seed=0)
    noise = torch.randn(ensemble.adapters.values.shape, generator=torch.Generator().manual_seed(1))
    ensemble.adapters.values.add_(0.2 * noise)
    return ensemble


def batch_of(*members):
    return pack([Item(member, row) for member in members for row in ROWS])


def gradients(ensemble, batch, hidden=None):
    """Log-probabilities, and the gradient of the answers' negative log-probability."""
    log_probs = ensemble.forward(batch, hidden=hidden)
    answers = torch.tensor([item.example.answer for item in batch.items])
    ensemble.adapters.zero_grad()
    (-log_probs[torch.arange(len(answers)), answers].sum()).backward()
    return log_probs.detach(), ensemble.adapters.grad.clone()


def stock_log_probs(model, row):
    """For one row, each choice in a separate pass."""
    scores = []
    for choice in row.choices:
        log_probs = model(torch.tensor([[*row.prefix, *choice]])).logits[0].log_softmax(dim=-1)
        start = len(row.prefix) - 1
        scores.append(sum(log_probs[start + offset, token] for offset, token in enumerate(choice)))
    return torch.stack(scores).log_softmax(dim=0)


def close(actual, expected, tolerance):
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


def read_by_peft(base, folder):
    """PEFT's model of a saved member on a copy of the base; any warning of PEFT is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`")
        return peft.PeftModel.from_pretrained(
            copy.deepcopy(base), folder, is_trainable=True, autocast_adapter_dtype=False
        ).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_members_are_peft_models_one_by_one(name, tmp_path):
    """Saved and read by PEFT: the same modules adapted, and the same log-probabilities and gradients."""
    family = FAMILIES[name]
    base = family.build()
    ensemble = ensemble_on(copy.deepcopy(base), target_modules=family.targets, use_rslora=True)
    check_readable(ensemble)
    log_probs, _ = gradients(ensemble, batch_of(0, 1))
    save_members(tmp_path, ensemble, ensemble.adapters.values, "base")
    config = json.loads((tmp_path / "member_00" / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is (name == "gpt2")
    for member in range(2):
        model = read_by_peft(base, tmp_path / f"member_{member:02d}")
        expected = [stock_log_probs(model, row) for row in ROWS]
        for line, wanted in zip(log_probs[member * len(ROWS) :], expected, strict=False):
            close(line[: len(wanted)], wanted, family.tolerance)
        sum(-line[row.answer] for line, row in zip(expected, ROWS, strict=True)).backward()
        grads = {key: p.grad for key, p in model.named_parameters() if p.requires_grad}
        for module, leaves in ensemble.adapters.parameters.items():
            for which, group in zip("AB", leaves, strict=True):
                wanted = grads.pop(f"base_model.model.{module}.lora_{which}.default.weight")
                assert wanted.abs().max() > 1e-4
                close(group[member].grad, wanted, family.tolerance)
        assert not grads


@pytest.mark.parametrize("name", FAMILIES)
def test_the_probe_passes_and_trunk_and_top_are_the_whole(name):
    """The cut with gradients; the probe in both number formats that a CPU computes in."""
    family = FAMILIES[name]
    assert probe(ensemble_on(family.build())) < 1e-6
    ensemble = ensemble_on(family.build(torch.float32), layers="last:1")
    assert {piece.name.rsplit(".", 1)[-1] for piece in ensemble.adapters.slices} == set(family.linear)
    assert probe(ensemble) < 1e-5
    batch = batch_of(0, 1)
    whole, whole_grad = gradients(ensemble, batch)
    top, top_grad = gradients(ensemble, batch, ensemble.forward(batch, "trunk"))
    present = whole.isfinite()
    close(top[present], whole[present], 1e-6)
    close(top_grad, whole_grad, 1e-6)
    assert whole_grad.abs().max() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_mlp_on_read_positions_is_the_whole_mlp(name):
    """Answers and gradients, mixtures of experts included; where it is left alone, it computes every position."""
    family = FAMILIES[name]
    target = family.linear[0] if family.targets == "all-linear" else family.targets[0]
    ensemble = ensemble_on(family.build(), target_modules=(f"attn.{target}" if name == "gpt2" else target,))
    layer, batch, widths = decoder_layers(ensemble.model)[-1], batch_of(0, 1), []
    first = next(module for part, module in layer.named_modules() if part.rsplit(".", 1)[-1] in FIRST_IN_MLP)
    first.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].numel() // SIZES["hidden_size"]))
    narrow, narrow_grad = gradients(ensemble, batch)
    if family.narrow_mlp:
        del layer.mlp.forward
    wide, wide_grad = gradients(ensemble, batch)
    kept, every = len(batch.scoring.keep), batch.packing.num_tokens
    assert kept < every
    assert widths == [kept if family.narrow_mlp else every, every]
    present = wide.isfinite()
    close(narrow[present], wide[present], family.tolerance)
    close(narrow_grad, wide_grad, family.tolerance)
    assert narrow_grad.abs().max() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cached_prefix_acts_as_part_of_every_row(name):
    """Longer than any window; keys are cached after the rotation to their positions."""
    family = FAMILIES[name]
    base, front = family.build(), tuple(range(30, 54))
    rows = [replace(row, prefix=front + row.prefix) for row in ROWS]
    expected = [stock_log_probs(base, row).detach() for row in rows]
    ensemble = ensemble_on(base)
    scores = predict_rows(ensemble, rows, [MemberPass(BASE), MemberPass(1), MemberPass(0)], 30)
    for line, wanted in zip(scores[0], expected, strict=True):
        close(torch.from_numpy(line[: len(wanted)]), wanted, family.tolerance)
    for index, member in ((1, 1), (2, 0)):
        for line, row in zip(scores[index], rows, strict=True):
            alone = ensemble.forward(pack([Item(member, row)]))[0].detach()
            close(torch.from_numpy(line[: len(alone)]), alone, family.tolerance)


def test_adapters_stay_float32_on_a_bfloat16_base_of_conv1d():
    ensemble = ensemble_on(FAMILIES["gpt2"].build(torch.bfloat16))
    log_probs, grad = gradients(ensemble, batch_of(0, 1))
    assert ensemble.adapters.values.dtype == grad.dtype == log_probs.dtype == torch.float32
    assert grad.abs().max() > 1e-3


def test_the_text_part_of_a_composite_model_is_adapted(tmp_path):
    """Even if the vision part has as many layers, and maps of the same names."""
    text = FAMILIES["gemma3"].build(torch.float32).config.to_dict()
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3}
    vision = small | {"image_size": 16, "patch_size": 8}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
    base = transformers.Gemma3ForConditionalGeneration(config).eval()
    ensemble = ensemble_on(copy.deepcopy(base), target_modules=("q_proj", "v_proj"), layers="last:2")
    adapted = [piece.name for piece in ensemble.adapters.slices]
    assert len(adapted) == 4
    assert all(name.startswith("model.language_model.layers.") for name in adapted)
    assert probe(ensemble) < 1e-5
    check_readable(ensemble)
    save_members(tmp_path, ensemble, ensemble.adapters.values, "base")
    model = read_by_peft(base, tmp_path / "member_00")
    layers = [name for name, module in model.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    assert [name.removeprefix("base_model.model.") for name in layers] == adapted


@pytest.mark.parametrize("targets", ["all-linear", "gate_proj"])
def test_names_that_peft_reads_as_experts_are_refused_before_training(targets):
    ensemble = ensemble_on(FAMILIES["deepseek_v3"].build(torch.float32), target_modules=targets)
    with pytest.raises(ConfigError, match=rf"adapt.target_modules: '{targets}' cannot be saved for PEFT.*gate_proj"):
        check_readable(ensemble)


def tiny(kind, class_name=None, without=(), **settings):
    """A builder of a model to refuse."""

    def build():
        sizes = {name: value for name, value in SIZES.items() if name not in without}
        with quiet_transformers():
            config = getattr(transformers, f"{kind}Config")(**sizes | settings)
            return getattr(transformers, class_name or f"{kind}ForCausalLM")(config)

    return build


LINEAR = {f"linear_{part}_dim": 8 for part in ("key_head", "value_head")}
LINEAR |= {f"linear_num_{part}_heads": 2 for part in ("key", "value")}
REFUSED = {
    "bloom": (tiny("Bloom", without=("head_dim",)), r"distance bias to its attention scores \(ALiBi\)"),
    "falcon with alibi": (tiny("Falcon", without=("head_dim",), alibi=True), r"\(ALiBi\)"),
    "falcon": (tiny("Falcon", without=("head_dim",)), "does not go through transformers' attention interface"),
    "mpt": (tiny("Mpt", d_model=32, n_heads=4, n_layers=3), r"\(ALiBi\)"),
    "gpt_neo": (
        tiny("GPTNeo", attention_types=[[["global", "local", "global"], 1]]),
        "does not go through transformers' attention interface",
    ),
    "mamba": (tiny("Mamba", state_size=4), r"'linear_attention' layers \(0, 1, 2\) carry a state from token to token"),
    "rwkv": (tiny("Rwkv", attention_hidden_size=32), "its layers carry a state from token to token"),
    "lfm2": (
        tiny("Lfm2", layer_types=["conv", "full_attention", "conv"]),
        r"its 'conv' layers \(0, 2\) mix neighboring tokens by a convolution",
    ),
    "qwen3_next": (
        tiny(
            "Qwen3Next",
            num_experts=4,
            shared_expert_intermediate_size=16,
            layer_types=["linear_attention", "linear_attention", "full_attention"],
            **MIXTURE,
            **LINEAR,
        ),
        r"its 'linear_attention' layers \(0, 1\) carry a state",
    ),
    "jamba": (
        tiny(
            "Jamba",
            without=("head_dim",),
            num_experts=2,
            mamba_d_state=4,
            mamba_dt_rank=4,
            attn_layer_period=2,
            attn_layer_offset=1,
        ),
        "'linear_attention' layers .* carry a state",
    ),
    "llama4": (
        tiny(
            "Llama4Text",
            "Llama4ForCausalLM",
            num_local_experts=2,
            intermediate_size_mlp=16,
            layer_types=["chunked_attention", "full_attention", "chunked_attention"],
        ),
        r"its 'chunked_attention' layers \(0, 2\) attend within chunks",
    ),
    "sparse attention": (
        tiny("Llama", layer_types=["full_attention", "indexed_attention", "full_attention"]),
        r"its 'indexed_attention' layers \(1\) attend in a way that packed attention does not support",
    ),
    "bert": (tiny("Bert", "BertLMHeadModel"), r"its attention sees later tokens \(it is an encoder\)"),
    "t5": (
        tiny("T5", "T5ForConditionalGeneration", d_model=32, d_kv=8, d_ff=32, num_layers=3, num_heads=4),
        "it is an encoder with a decoder",
    ),
}


@pytest.mark.parametrize(("build", "reason"), REFUSED.values(), ids=REFUSED)
def test_an_architecture_that_packing_would_get_wrong_is_refused_with_the_reason(build, reason):
    """Before its targets are resolved: it need not have the default ones."""
    with pytest.raises(ConfigError, match=r"base.name: \w+ cannot be used: .*" + reason) as caught:
        EnsembleModel(build(), AdaptConfig(), seed=0)
    assert "take a decoder-only model" in str(caught.value)


def test_a_router_is_no_target():
    base = FAMILIES["phimoe"].build(torch.float32)
    with pytest.raises(ConfigError, match=r"'router' names '.*', which is a PhimoeTopKRouter, not a linear map"):
        ensemble_on(base, target_modules=("q_proj", "router"))


def test_a_model_without_a_list_of_decoder_layers_is_refused():
    model = FAMILIES["llama"].build(torch.float32)
    model.model.layers = torch.nn.ModuleDict({f"layer{i}": layer for i, layer in enumerate(model.model.layers)})
    with pytest.raises(ConfigError, match=r"base.name: LlamaForCausalLM has no list of 3 decoder layers"):
        EnsembleModel(model, AdaptConfig(), seed=0)


def test_a_convolution_within_the_layers_is_refused():
    model = FAMILIES["llama"].build(torch.float32)
    model.model.layers[1].mixer = torch.nn.Conv1d(32, 32, 3)
    with pytest.raises(ConfigError, match=r"convolution \(1.mixer is a Conv1d\)"):
        EnsembleModel(model, AdaptConfig(), seed=0)


SCALED = {
    "gemma2, capped": Family("Gemma2", ATTENTION_SCALE | {"final_logit_softcapping": 0.7}),
    "cohere, scaled": Family("Cohere", {"logit_scale": 3.0}),
    "granite, scaled": Family("Granite", {"logits_scaling": 4.0}),
}


@pytest.mark.parametrize("name", [*FAMILIES, *SCALED])
def test_the_base_distribution_over_the_vocabulary_is_that_of_stock_passes(name):
    """From the inputs of its head, in another batch, with the family's caps and scales of the head's output."""
    family = (FAMILIES | SCALED)[name]
    base = family.build()
    expected = [copy.deepcopy(base)(torch.tensor([row.prefix])).logits[0, -1].log_softmax(dim=-1) for row in ROWS]
    ensemble = ensemble_on(base, target_modules=family.targets)
    batch = batch_of(BASE)
    states = ensemble.forward(batch, "head_states")[batch.scoring.term_rows[:, 0, 0]]
    log_probs = ensemble.forward(batch_of(0, 1), "logits", head_states=states).log_softmax(dim=-1)
    close(log_probs, torch.stack(expected), max(family.tolerance, ROUNDED))
    batch = batch_of(BASE, 0)
    of_members = ensemble.forward(batch, "logits")[batch.scoring.term_rows[range(3), 0, 0]].log_softmax(dim=-1)
    close(of_members, log_probs, 1e-12)
