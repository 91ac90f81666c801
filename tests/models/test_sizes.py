"""Declared sizes beyond a base's weights: refused before a model is built."""

from __future__ import annotations

import json
import re
import shutil
import struct

import pytest
import transformers

from lorchestra.config.adapt import BaseConfig
from lorchestra.errors import CheckpointError
from lorchestra.models.gguf import converted_directory
from lorchestra.models.gguf_header import read_header
from lorchestra.models.loading import load_base, load_tokenizer
from lorchestra.models.sizes import check_sizes


@pytest.fixture
def base(tiny_base, tmp_path):
    return shutil.copytree(tiny_base, tmp_path / "base")


def declare(base, **changes):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 1_000_000}, "num_hidden_layers is 1000000, but the weights have 3 layers"),
        ({"num_hidden_layers": 4}, "num_hidden_layers is 4, but the weights have 3 layers"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1, but"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers is 1000000000000000000000000000000, but"),
        ({"hidden_size": 10**9}, "hidden_size is 1000000000, but the longest axis of its weights is"),
        ({"vocab_size": 10**9}, "vocab_size is 1000000000, but"),
        ({"num_attention_heads": 10**9}, "num_attention_heads is 1000000000, but"),
        ({"head_dim": 1e12}, "head_dim is 1000000000000.0, but"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings is 1000000000000, but no base has that many"),
        ({"vision_config": {"num_hidden_layers": 10**7}}, "vision_config.num_hidden_layers is 10000000, but"),
        ({"layer_types": ["full_attention"] * 200_000}, "layer_types is a list of 200,000 values"),
    ],
)
def test_sizes_beyond_the_weights_are_refused_before_anything_is_built(base, monkeypatch, changes, message):
    def built(*arguments, **options):
        raise AssertionError("something was built")

    declare(base, **changes)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", built)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", built)
    for load in (load_base, load_tokenizer):
        with pytest.raises(CheckpointError, match=re.escape(f"config.json: {message}")):
            load(BaseConfig(name=str(base), device="cpu"))


def test_sizes_of_the_weights_are_accepted(base):
    check_sizes("base", base)
    declare(base, vision_config={"num_hidden_layers": 2}, quantization_config={}, intermediate_size=48 * 30)
    check_sizes("base", base)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/outside.safetensors"])
def test_shards_outside_of_the_directory_are_refused(base, name):
    (base / "model.safetensors").rename(base.parent / "outside.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(CheckpointError, match=r"lists the weights file .*, and that name"):
        load_base(BaseConfig(name=str(base), device="cpu"))


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def number(key, value):
    return text(key) + struct.pack("<IQ", 10, value)


def gguf(path, fields=(), tensors=(), num_fields=None, num_tensors=None):
    """A file with a header only."""
    counts = struct.pack("<QQ", len(tensors) if num_tensors is None else num_tensors, num_fields or len(fields))
    shapes = (text(n) + struct.pack("<I", len(s)) + struct.pack(f"<{len(s)}Q", *s) + bytes(12) for n, s in tensors)
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + counts + b"".join(fields) + b"".join(shapes) + bytes(64))
    return path


NAME = text("general.architecture") + struct.pack("<I", 8) + text("llama")
TENSORS = [("token_embd.weight", (8, 20)), ("blk.0.attn_q.weight", (8, 8)), ("blk.1.attn_q.weight", (8, 8))]


def test_the_header_of_a_gguf_file(tmp_path):
    fields = [NAME, number("llama.block_count", 2), text("x") + struct.pack("<IIQ3i", 9, 5, 3, 1, 2, 3)]
    header = read_header(gguf(tmp_path / "a.gguf", fields, TENSORS))
    assert header.fields == {"general.architecture": "llama", "llama.block_count": 2, "x": [1, 2, 3]}
    assert header.shapes == dict(TENSORS)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("block_count", 1_000_000, "block_count is 1000000, but the weights have 2 layers"),
        ("embedding_length", 10**9, "embedding_length is 1000000000, but the longest axis of its weights is 20"),
        ("attention.head_count", 10**9, "attention.head_count is 1000000000, but"),
        ("context_length", 10**15, "context_length is 1000000000000000, but no base has that many"),
    ],
)
def test_a_gguf_file_is_checked_before_it_is_converted(tmp_path, key, value, message):
    file = gguf(tmp_path / "a.gguf", [NAME, number(f"llama.{key}", value)], TENSORS)
    with pytest.raises(CheckpointError, match=message):
        converted_directory(file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"num_fields": 2**60}, "metadata fields, but the file has room for"),
        ({"num_tensors": 2**60}, "tensors, but the file has room for"),
        ({"fields": [text("x") + struct.pack("<IIQ", 9, 8, 2**60)]}, "texts of one field, but the file has room for"),
        ({"fields": [text("x") + struct.pack("<IIQ", 9, 4, 2**60)]}, "values of one field, but the file has room for"),
        ({"fields": [struct.pack("<Q", 2**60)]}, "bytes of one value, but the file has room for"),
        ({"fields": [text("x") + struct.pack("<I", 99)]}, "of the unknown kind 99"),
    ],
)
def test_counts_beyond_the_file_size_are_refused(tmp_path, damage, message):
    with pytest.raises(CheckpointError, match=message):
        converted_directory(gguf(tmp_path / "a.gguf", **damage))
