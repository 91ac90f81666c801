"""Digests: equal for the same base or tokenizer, different for others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from lorchestra.errors import CheckpointError
from lorchestra.models.digests import NUM_SAMPLES, _sample, model_digest, tokenizer_digest


@pytest.fixture
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    words = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_the_digest_does_not_depend_on_the_number_format(tiny_model, tmp_path: Path, family: str) -> None:
    model = tiny_model(family, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        values = torch.cat([parameter.flatten() for parameter in model.parameters()])
    assert not torch.equal(values, values.to(torch.bfloat16).float())  # rounding changes values
    load = transformers.AutoModelForCausalLM.from_pretrained
    formats = (torch.float32, torch.bfloat16, torch.float64)
    assert {model_digest(load(tmp_path, dtype=dtype)) for dtype in formats} == {model_digest(model)}


@pytest.mark.parametrize("index", [0, -1])
def test_the_digest_sees_the_first_and_the_last_value_of_every_parameter(tiny_model, index: int) -> None:
    model = tiny_model().requires_grad_(False)
    digest = model_digest(model)
    for name, parameter in model.named_parameters():
        value = parameter.view(-1)[index]
        before = value.clone()
        value += 1.0
        assert model_digest(model) != digest, name
        value.copy_(before)
    assert model_digest(model) == digest


@pytest.mark.parametrize("size", [1, 2, NUM_SAMPLES - 1, NUM_SAMPLES, NUM_SAMPLES + 1, 100_003])
def test_samples_are_evenly_spaced_from_the_first_to_the_last_value(size: int) -> None:
    samples = torch.frombuffer(bytearray(_sample(torch.arange(size))), dtype=torch.int64)
    assert len(samples) == min(size, NUM_SAMPLES)
    assert (samples[0], samples[-1]) == (0, size - 1)
    steps = samples.diff()
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


def test_samples_are_compared_as_bfloat16() -> None:
    assert _sample(torch.empty(0)) == b""
    assert _sample(torch.tensor([1.0, 1.0 + 2**-10])) == _sample(torch.tensor([1.0, 1.0]))
    assert _sample(torch.tensor([1.0, 1.0 + 2**-7])) != _sample(torch.tensor([1.0, 1.0]))
    assert len(_sample(torch.ones(3))) == 6


def test_the_digest_sees_the_architecture_but_not_bookkeeping(tiny_model) -> None:
    model = tiny_model()
    digest = model_digest(model)
    model.config.use_cache = not model.config.use_cache
    model.config.max_position_embeddings = 5
    model.config.name_or_path = "elsewhere"
    assert model_digest(model) == digest
    model.config.rms_norm_eps = 0.1
    assert model_digest(model) != digest


def test_the_digest_sees_names_and_shapes(tiny_model) -> None:
    model = tiny_model()
    digest = model_digest(model)
    first, second = model.model.layers
    first.mlp.up_proj, first.mlp.gate_proj = first.mlp.gate_proj, first.mlp.up_proj
    assert model_digest(model) != digest
    first.mlp.up_proj, first.mlp.gate_proj = first.mlp.gate_proj, first.mlp.up_proj
    second.mlp.up_proj.weight = torch.nn.Parameter(second.mlp.up_proj.weight.view(24, 64))
    assert model_digest(model) != digest


def test_tied_weights_count_once(tiny_model) -> None:
    tied = tiny_model(tie_word_embeddings=True)
    digest = model_digest(tied)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    tied.lm_head.weight = torch.nn.Parameter(tied.lm_head.weight.clone())
    assert model_digest(tied) != digest  # the same values, but a separate parameter


def test_the_tokenizer_digest_ignores_padding_and_truncation(tokenizer: transformers.PreTrainedTokenizerFast) -> None:
    digest = tokenizer_digest(tokenizer)
    before = tokenizer.backend_tokenizer.to_str()
    tokenizer(["a b c", "a"], padding=True, truncation=True, max_length=2)
    assert tokenizer.backend_tokenizer.to_str() != before
    assert tokenizer_digest(tokenizer) == digest
    tokenizer.pad_token = "<unk>"
    assert tokenizer_digest(tokenizer) == digest


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: tokenizer.add_tokens(["bird"]),
        lambda tokenizer: setattr(tokenizer, "eos_token", "<s>"),
        lambda tokenizer: setattr(tokenizer, "chat_template", "{{ messages }}"),
        lambda tokenizer: setattr(tokenizer.backend_tokenizer, "pre_tokenizer", pre_tokenizers.WhitespaceSplit()),
    ],
)
def test_the_tokenizer_digest_sees_what_changes_the_ids(
    tokenizer: transformers.PreTrainedTokenizerFast, change: Callable[[object], object]
) -> None:
    digest = tokenizer_digest(tokenizer)
    change(tokenizer)
    assert tokenizer_digest(tokenizer) != digest


def test_a_tokenizer_without_a_fast_backend_is_refused() -> None:
    class Slow:
        name_or_path = "someone/slow"

    with pytest.raises(CheckpointError, match=r"someone/slow: the tokenizer \(Slow\) has no fast version"):
        tokenizer_digest(Slow())
