"""Fixtures of the model tests: tiny random transformers models and ragged rows."""

import dataclasses

import pytest
import torch
import transformers
from torch import nn

from lorchestra.choice_tree import choice_tree
from lorchestra.config.adapt import AdaptConfig
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.types import EncodedExample

_CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}


def _widen_norms(model):
    """Replace the models' RMSNorm, which rounds to float32, by torch's."""
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if type(norm).__name__.endswith("RMSNorm"):
                wide = nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon)
                wide.weight = norm.weight
                setattr(parent, name, wide)


@pytest.fixture(scope="session")
def tiny_model():
    """Builds a tiny random base; its weights are large enough that attention and every layer matter."""

    def build(family="llama", *, dtype=torch.float64, depth=2, seed=0, **overrides):
        config_class, model_class = _CLASSES[family]
        settings = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": depth,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "vocab_size": 101,
            "max_position_embeddings": 64,
        }
        model = model_class(config_class(**settings | overrides)).to(dtype)
        source = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=source)
                parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.25 * noise)
        if dtype == torch.float64:
            _widen_norms(model)
        return model.eval()

    return build


@pytest.fixture(scope="session")
def tiny_ensemble(tiny_model):
    """Builds an ensemble on a tiny base, with non-zero B."""

    def build(family="llama", *, dtype=torch.float64, depth=2, base=None, seed=0, **adapt):
        adapt = {"members": 3, "r": 2, "lora_alpha": 4.0} | adapt
        ensemble = EnsembleModel(base or tiny_model(family, dtype=dtype, depth=depth), AdaptConfig(**adapt), seed)
        noise = torch.randn(ensemble.adapters.values.shape, generator=torch.Generator().manual_seed(seed + 1))
        ensemble.adapters.values.add_(0.3 * noise)
        return ensemble

    return build


@pytest.fixture(scope="session")
def letters():
    """Ragged rows scored by single tokens, with 2 to 5 choices."""
    return _rows(lambda draw: (int(torch.randint(0, 101, (), generator=draw)),))


@pytest.fixture(scope="session")
def texts():
    """Ragged rows scored by choices of 1 to 4 tokens."""
    return _rows(lambda draw: tuple(torch.randint(0, 101, (_between(draw, 1, 4),), generator=draw).tolist()))


@pytest.fixture(scope="session")
def trees():
    """Ragged rows scored by trees of few tokens, which 100 ends."""
    rows = _rows(lambda draw: (*torch.randint(0, 3, (_between(draw, 0, 3),), generator=draw).tolist(), 100))
    return [dataclasses.replace(row, tree=choice_tree(row.choices)) for row in rows]


def _between(draw, low, high):
    return int(torch.randint(low, high + 1, (), generator=draw))


def _rows(choice):
    draw = torch.Generator().manual_seed(5)
    rows = []
    for row in range(6):
        prefix = torch.randint(0, 101, (_between(draw, 2, 9),), generator=draw).tolist()
        choices = tuple(choice(draw) for _ in range(_between(draw, 2, 5)))
        rows.append(EncodedExample(row, tuple(prefix), choices, _between(draw, 0, len(choices) - 1)))
    return rows
