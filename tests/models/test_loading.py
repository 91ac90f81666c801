"""Loading a base: every kind of source, every user error, and the digests."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from lorchestra.config.adapt import BaseConfig
from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.models import loading as sources
from lorchestra.models.digests import model_digest
from lorchestra.models.loading import LoadedBase, load_base

WORDS = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]


def save_base(model: transformers.PreTrainedModel, directory: Path) -> Path:
    """Save a model, and a word tokenizer without a pad token."""
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(directory)
    model.save_pretrained(directory)
    return directory


def load(name: object, **options: object) -> LoadedBase:
    return load_base(BaseConfig(name=str(name), device="cpu", **options))  # type: ignore[arg-type]


def refused(name: object, **options: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(name, **options)
    assert repr(str(name)) in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def tiny_source(tiny_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tiny_model(dtype=torch.float32), tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def tiny(tiny_source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_source, tmp_path / "tiny"))


def change_config(directory: Path, change: Callable[[dict[str, object]], object]) -> None:
    config = json.loads((directory / "config.json").read_text())
    change(config)
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_directory_is_loaded_frozen_and_described(
    tiny_model, tmp_path: Path, family: str, capfd: pytest.CaptureFixture
) -> None:
    directory = save_base(tiny_model(family, dtype=torch.float32), tmp_path / "base")
    capfd.readouterr()
    base = load(directory)
    assert capfd.readouterr() == ("", "")
    assert base.id == base.path_for_peft == str(directory)
    assert base.revision is None
    assert base.context_length == 64
    assert (base.dtype, base.device) == (torch.float32, torch.device("cpu"))
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert base.model.config.use_cache is False
    assert base.tokenizer.pad_token_id is not None
    stock = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    ids = torch.tensor([[5, 7, 11, 13]])
    assert torch.equal(base.model(input_ids=ids).logits, stock(input_ids=ids).logits)


def test_a_missing_pad_token_becomes_the_end_token(tiny: Path) -> None:
    assert transformers.AutoTokenizer.from_pretrained(tiny).pad_token is None
    tokenizer = load(tiny).tokenizer
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("</s>", 2)


@pytest.mark.parametrize(("dtype", "expected"), [("float64", torch.float64), ("bfloat16", torch.bfloat16)])
def test_the_base_has_the_configured_number_format(tiny: Path, dtype: str, expected: torch.dtype) -> None:
    base = load(tiny, dtype=dtype)
    assert base.dtype == expected
    assert {parameter.dtype for parameter in base.model.parameters()} == {expected}


def test_auto_uses_cuda_in_bfloat16_if_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for device, dtype, expected in (("auto", "auto", "cuda bfloat16"), ("cpu", "auto", "cpu float32")):
        config = BaseConfig(device=device, dtype=dtype)  # type: ignore[arg-type]
        device = sources.base_device(config)
        assert f"{device.type} {str(sources._dtype(config, device)).removeprefix('torch.')}" == expected


def test_a_relative_directory_and_shards_are_found(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    (tiny / "model.safetensors").unlink()
    model.save_pretrained(tiny, max_shard_size="20kB")
    assert len(list(tiny.glob("model-*.safetensors"))) > 1
    monkeypatch.chdir(tmp_path)
    base = load("tiny")
    assert base.path_for_peft == str(tiny)
    assert base.digest == model_digest(model)
    next(tiny.glob("model-00001-*")).unlink()
    message = refused(tiny)
    assert "1 of " in message
    assert "weight files listed in model.safetensors.index.json are missing" in message


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)


def test_a_directory_of_pickles_is_refused_and_never_unpickled(tiny: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    (tiny / "model.safetensors").unlink()
    (tiny / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(sprung)))
    message = refused(tiny)
    assert "only pickled weights (pytorch_model.bin)" in message
    assert "save_pretrained" in message
    change_config(tiny, lambda config: config.update(transformers_weights="pytorch_model.bin"))
    shutil.copy(tiny / "pytorch_model.bin", tiny / "model.safetensors")
    assert "transformers_weights" in refused(tiny)
    assert not sprung.exists()
    pickle.loads((tiny / "pytorch_model.bin").read_bytes())
    assert sprung.exists()  # the trap works


def remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def drop_weight(directory: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    state = {name: value for name, value in model.state_dict().items() if name != "model.norm.weight"}
    model.save_pretrained(directory, state_dict=state)


def truncate(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def rename_weights(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "weights.safetensors")


def need_code(directory: Path) -> None:
    code = {"AutoConfig": "novel.Config", "AutoModelForCausalLM": "novel.Model"}
    change_config(directory, lambda config: config.update(model_type="novel", auto_map=code))
    (directory / "novel.py").write_text("raise SystemExit('this code ran')")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove("config.json"), "has no config.json."),
        (remove("model.safetensors"), "has no model.safetensors. Copy or download the weights."),
        (remove("tokenizer.json"), "It must hold config.json, model.safetensors and tokenizer.json."),
        (rename_weights, "only weights.safetensors. Rename a single file to model.safetensors"),
        (truncate, "are damaged (SafetensorError"),
        (drop_weight, "1 weights are missing (model.norm.weight, ...) and would be random."),
        (need_code, "needs code of its repository, which is never run here"),
        (lambda base: (base / "adapter_config.json").write_text("{}"), "has an adapter (adapter_config.json)"),
        (lambda base: (base / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda base: (base / "config.json").write_text("[]"), "config.json is not a JSON object"),
        (lambda base: change_config(base, lambda c: c.update(model_type="novel")), "does not recognize this arch"),
        (lambda base: change_config(base, lambda c: c.update(model_type="t5")), "Unrecognized configuration class"),
    ],
)
def test_an_unusable_directory_is_refused_with_the_reason(
    tiny: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(tiny)
    assert words in refused(tiny)


def test_an_index_without_a_map_is_refused(tiny: Path) -> None:
    (tiny / "model.safetensors").unlink()
    (tiny / "model.safetensors.index.json").write_text("{}")
    assert "has no weight_map" in refused(tiny)


def test_the_error_of_a_wrong_path_suggests_a_similar_one(tiny: Path, tmp_path: Path) -> None:
    assert f"there is no directory or file {tmp_path}/tinny. Did you mean {tiny}?" in refused(tmp_path / "tinny")
    assert f"Did you mean {tiny}?" in refused(tmp_path / "tinny" / "deeper")
    assert f"{tiny}/config.json is a file" in refused(tiny / "config.json")
    assert f"Did you mean {tiny}?" in refused(tmp_path)
    (tmp_path / "base.gguf").touch()
    assert f"there is no file {tmp_path}/bass.gguf. Did you mean {tmp_path}/base.gguf?" in refused(
        tmp_path / "bass.gguf"
    )
    assert f"Did you mean the file {tmp_path}/base.gguf?" in refused(tmp_path)
    assert "there is no directory or file" in refused("~nobody-of-this-name/base")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": " "}, "base.name is empty"),
        ({"dtype": "float16"}, "base.dtype is 'float16'; it must be auto, float32, bfloat16, float64."),
        ({"device": "tpu"}, "base.device is 'tpu'; it must be auto, cpu or cuda."),
        ({"revision": "main"}, "base.revision is 'main', but base.name 'smollm2-135m' is not on the hub"),
        ({"name": "./here", "revision": "main"}, "base.name './here' is not on the hub"),
        ({"name": "x.gguf", "revision": "main"}, "base.name 'x.gguf' is not on the hub"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_base(BaseConfig(**options))  # type: ignore[arg-type]
    assert words in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        load_base(BaseConfig(device="cuda"))


def test_a_base_too_large_for_the_device_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, device: torch.device) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(transformers.PreTrainedModel, "to", full)
    assert "do not fit into the memory of cpu as torch.float32" in refused(tiny)


def test_a_config_without_a_context_length_falls_back_on_the_tokenizer(tiny: Path) -> None:
    class Config:
        pass

    tokenizer = load(tiny).tokenizer
    tokenizer.model_max_length = 12
    source = sources._Source("x", Path("x"), "x")
    assert sources._context_length(source, Config(), tokenizer) == 12
    tokenizer.model_max_length = 10**30
    with pytest.raises(CheckpointError, match=r"has no max_position_embeddings\. Add it"):
        sources._context_length(source, Config(), tokenizer)


def test_bases_may_be_loaded_in_several_threads(tiny_base: Path) -> None:
    """transformers patches its classes while it loads, and overlapping loads would leave the patches."""
    tie_weights = transformers.PreTrainedModel.tie_weights
    start = threading.Barrier(4)
    digests = []

    def work() -> None:
        start.wait()
        digests.extend(model_digest(load(tiny_base).model) for _ in range(3))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 12
    assert len(set(digests)) == 1
    assert transformers.PreTrainedModel.tie_weights is tie_weights


def edit_config(base, **changes):
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


QUANTIZED = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {}},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
}


@pytest.mark.parametrize("method", QUANTIZED)
@pytest.mark.parametrize("nested", [False, True], ids=["", "text_config"])
def test_quantized_weights_are_named_and_refused(make_base, tmp_path, method, nested):
    base = shutil.copytree(make_base(0), tmp_path / "quantized")
    settings = {"quantization_config": QUANTIZED[method]}
    edit_config(base, **({"text_config": settings} if nested else settings))
    with pytest.raises(CheckpointError, match=rf"are quantized \({method}.*Give the model that it was made from"):
        load_base(BaseConfig(name=str(base)))


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json"])
def test_quantized_weights_of_older_tools_are_refused(make_base, tmp_path, name):
    base = shutil.copytree(make_base(0), tmp_path / "quantized")
    (base / name).write_text('{"bits": 4}')
    with pytest.raises(CheckpointError, match=rf"are quantized \(.*according to {name}"):
        load_base(BaseConfig(name=str(base)))


def test_full_weights_next_to_an_adapter_config_are_explained(make_base, peft_folder, tmp_path):
    """A merged or fully fine-tuned model saved to the adapter's folder looks like this."""
    folder = peft_folder()
    with pytest.raises(CheckpointError, match=r"not a base\. Give the base .*, '.*tiny'; lorchestra import"):
        load_base(BaseConfig(name=str(folder)))
    shutil.copytree(make_base(0), folder, dirs_exist_ok=True)
    with pytest.raises(
        CheckpointError, match=r"next to the weights .* model.*move adapter_config\.json out.*; otherwise"
    ):
        load_base(BaseConfig(name=str(folder)))
    (folder / "adapter_config.json").unlink()
    load_base(BaseConfig(name=str(folder)))
