"""GGUF files: exact conversions, and refusals with the reason."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lorchestra.config.adapt import BaseConfig
from lorchestra.errors import CheckpointError
from lorchestra.models import gguf as converter
from lorchestra.models.gguf import converted_directory
from lorchestra.models.loading import load_base

gguf = pytest.importorskip("gguf", reason="needs lorchestra[gguf]")

MERGES = ["t h", "Ġ th", "i n", "Ġ c"]
TOKENS = ["<unk>", "<s>", "</s>", *bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in MERGES)]


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF's order of the rows of Llama's query and key projections."""
    width, inputs = weight.shape
    return weight.reshape(heads, 2, width // heads // 2, inputs).swapaxes(1, 2).reshape(width, inputs)


def write_gguf(
    file: Path,
    model: transformers.LlamaForCausalLM,
    architecture: str = "llama",
    header: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> Path:
    """Write a Llama with a byte-level tokenizer; one matrix is quantized to 8 bits."""
    config = model.config
    writer = gguf.GGUFWriter(file, architecture)
    header(writer)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, *[1] * (len(TOKENS) - 3)])  # control tokens, then normal ones
    writer.add_token_merges(MERGES)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        array = value.numpy()
        if ".q_proj." in name or ".k_proj." in name:
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            array = interleave(array, heads)
        target = names.get_name(name, try_suffixes=(".weight",))
        if name == "model.layers.0.mlp.up_proj.weight":
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def source(tiny_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_model(dtype=torch.float32, vocab_size=len(TOKENS))
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORCHESTRA_CACHE", str(tmp_path / "cache"))


def test_the_converted_base_answers_like_a_direct_load(
    on_log, source: Path, tiny_model, capfd: pytest.CaptureFixture[str]
) -> None:
    messages: list[str] = []
    on_log(messages.append)
    base = load_base(BaseConfig(name=str(source), device="cpu"))
    assert capfd.readouterr().out == ""
    (converting,) = (line for line in messages if line.startswith("Converting"))
    assert converting.startswith(f"Converting tiny.gguf into {base.path_for_peft}: done once")
    assert base.id == str(source)
    assert "quantization_config" not in (Path(base.path_for_peft) / "config.json").read_text("utf-8")

    file = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    direct = transformers.AutoModelForCausalLM.from_pretrained(**file, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(**file)
    for (name, ours), (_, theirs) in zip(base.model.named_parameters(), direct.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    for text in ("the cat in the hat", "  1,234\n\n thing</s>"):
        ids = tokenizer(text, return_tensors="pt").input_ids
        assert base.tokenizer(text, return_tensors="pt").input_ids.tolist() == ids.tolist()
        logits, expected = base.model(input_ids=ids).logits, direct(input_ids=ids).logits
        # the weights are equal, but differently aligned in memory, which some kernels depend on
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert base.tokenizer("the</s>").input_ids == [TOKENS.index("th"), TOKENS.index("e"), 2]

    original = tiny_model(dtype=torch.float32, vocab_size=len(TOKENS)).state_dict()
    for name, value in base.model.state_dict().items():
        tolerance = 0.02 if name == "model.layers.0.mlp.up_proj.weight" else 0.0
        torch.testing.assert_close(value, original[name], rtol=0.0, atol=tolerance)


def test_the_file_is_parsed_once_and_gguf_is_restored(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[object] = []

    class Counting(gguf.GGUFReader):  # type: ignore[misc,name-defined]
        def __init__(self, path: object, *options: object) -> None:
            parsed.append(path)
            super().__init__(path, *options)

    monkeypatch.setattr(gguf, "GGUFReader", Counting)
    table = gguf.get_tensor_name_map
    converted_directory(source)
    assert len(parsed) == 1
    assert gguf.GGUFReader is Counting
    assert gguf.get_tensor_name_map is table


def test_files_that_cannot_be_converted_are_refused(source: Path, tmp_path: Path, tiny_model) -> None:
    def refused(name: str, content: bytes) -> str:
        file = tmp_path / name
        file.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            converted_directory(file)
        assert str(caught.value).startswith(f"{file}: ")
        return str(caught.value)

    assert "is a Git LFS pointer" in refused("lfs.gguf", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "does not start with GGUF" in refused("text.gguf", b"hello")
    whole = source.read_bytes()
    assert "cannot be converted" in refused("half.gguf", whole[: len(whole) // 2])
    model = tiny_model(dtype=torch.float32, vocab_size=len(TOKENS))
    unknown = write_gguf(tmp_path / "unknown.gguf", model, architecture="newest").read_bytes()
    assert "architecture newest is not supported" in refused("unknown.gguf", unknown)
    with pytest.raises(CheckpointError, match=r"missing\.gguf: cannot be read \(No such file"):
        converted_directory(tmp_path / "missing.gguf")


def test_a_missing_gguf_package_is_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converter.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"pip install 'lorchestra\[gguf\]'"):
        converted_directory(source)


def test_a_tokenizer_that_changes_when_saved_is_refused(source: Path, tmp_path: Path) -> None:
    directory = converted_directory(source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    converter._check_saved_tokenizer(source, tokenizer, directory)
    tokenizer.add_tokens(["fox"])
    with pytest.raises(CheckpointError, match="its tokenizer changes when it is saved"):
        converter._check_saved_tokenizer(source, tokenizer, directory)


def split_in_two(writer: gguf.GGUFWriter) -> None:
    """The header fields of llama-gguf-split."""
    writer.add_uint16("split.no", 0)
    writer.add_uint16("split.count", 2)
    writer.add_int32("split.tensors.count", 29)


def write_adapter(file: Path) -> Path:
    """The format of convert_lora_to_gguf.py."""
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 16.0)
    for which, shape in (("a", (2, 32)), ("b", (32, 2))):
        writer.add_tensor(f"blk.0.attn_q.weight.lora_{which}", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_files_that_are_not_a_complete_model_are_refused_by_kind(
    source: Path, tmp_path: Path, tiny_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(file: Path) -> str:
        with pytest.raises(CheckpointError) as caught:
            converted_directory(file)
        return str(caught.value).removeprefix(f"{file}: ")

    model = tiny_model(dtype=torch.float32, vocab_size=len(TOKENS))
    part = write_gguf(tmp_path / "model.gguf", model, header=split_in_two)
    assert refused(part).startswith("is part 1 of 2 of a model in several files, which cannot be read; join them")
    named = tmp_path / "model-00002-of-00003.gguf"  # an old one, without the header
    named.write_bytes(source.read_bytes())
    assert refused(named).startswith("is part 2 of 3 of a model in several files")
    assert refused(write_adapter(tmp_path / "lora.gguf")).startswith("is a LoRA adapter, not a base: give the base")
    monkeypatch.delitem(gguf.quants._type_traits, gguf.GGMLQuantizationType.Q8_0)
    assert "has weights quantized as Q8_0, which the package gguf cannot unpack" in refused(source)


def test_a_format_newer_than_the_package_is_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reader(path: str) -> None:
        raise ValueError("99 is not a valid GGMLQuantizationType")

    monkeypatch.setattr(gguf, "GGUFReader", reader)
    with pytest.raises(
        CheckpointError,
        match=r"unknown to this version of .* \(99 is .*\); update it \(pip install -U gguf\)",
    ):
        converted_directory(source)


def test_a_conversion_draws_no_progress_bar_into_a_file(source: Path, tmp_path: Path) -> None:
    code = (
        "import logging; logging.basicConfig(level='INFO', format='%(message)s');"
        f"from pathlib import Path; from lorchestra.models.gguf import *; converted_directory(Path({str(source)!r}))"
    )
    environment = os.environ | {"LORCHESTRA_CACHE": str(tmp_path / "fresh")}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert process.stderr.startswith("Converting tiny.gguf into")
    assert process.stderr.count("\n") == 1
