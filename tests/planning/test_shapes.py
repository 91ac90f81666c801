"""Shapes next to models that transformers builds from the same configuration, on the meta device."""

import json

import pytest
import torch
import transformers

from lorchestra.config.adapt import AdaptConfig
from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.planning.shapes import PUBLIC_SHAPES, BaseShape, read_shape, shape_from_config

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 301,
}
CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
}


def on_meta(kind, **fields):
    config, model = CLASSES[kind]
    with torch.device("meta"):
        return model(config(**fields))


def llama_of(shape: BaseShape):
    return on_meta(
        "llama",
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        tie_word_embeddings=shape.tied,
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("smollm2-135m", 134_515_008),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
    ],
)
def test_public_shapes_have_the_published_number_of_parameters(name, parameters):
    shape = PUBLIC_SHAPES[name]
    model = llama_of(shape)
    assert shape.num_parameters == parameters == sum(weight.numel() for weight in model.parameters())
    weights = {name: tuple(w.shape) for name, w in model.named_parameters() if w.ndim == 2 and ".layers." in name}
    sizes = {name.replace("self_attn.", "").replace("mlp.", ""): shape for name, shape in weights.items()}
    assert sizes == shape.weight_shapes()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
        ("mistral", {"head_dim": 24}),
        ("qwen2", {}),
    ],
)
def test_parameters_are_those_of_the_model_that_transformers_builds(kind, fields, tied, tmp_path):
    model = on_meta(kind, **SIZES, **fields, tie_word_embeddings=tied)
    model.config.save_pretrained(tmp_path)
    shape = read_shape(str(tmp_path))
    assert shape.num_parameters == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("layers", ["all", "last:2", "[0, 2]"])
@pytest.mark.parametrize("adapted", [("q_proj", "v_proj"), ("o_proj",), "all-linear"])
def test_adapter_parameters_are_those_of_the_ensemble(adapted, layers):
    shape = shape_from_config("tiny", SIZES | {"model_type": "llama"})
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    ensemble = EnsembleModel(model, AdaptConfig(members=2, r=3, target_modules=adapted, layers=layers), 0)
    names = tuple(shape.maps) if adapted == "all-linear" else adapted
    assert shape.adapter_parameters(names, len(ensemble.layers), 3) == ensemble.adapters.values.shape[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'; counted are llama"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_size": 0}, "hidden_size is 0, not a whole number"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers is '3'"),
        ({"vocab_size": None}, "vocab_size is None"),
    ],
)
def test_other_configurations_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        shape_from_config("tiny", SIZES | {"model_type": "llama"} | change)


def test_names_that_are_no_shape_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"'llama-3.1-8' is no file.*did you mean 'llama-3.1-8b'"):
        read_shape("llama-3.1-8")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        read_shape(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(ConfigError, match="model_type None"):
        read_shape(str(tmp_path))
